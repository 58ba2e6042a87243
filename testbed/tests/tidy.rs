//! The house rules that a machine can check, over every file of the workspace.
//!
//! Decides nothing about behaviour. A rule that is broken is listed with file and line, all of them at once.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Who may use whom among our crates (DESIGN section 2). `testbed` sees all.
const ARROWS: &[(&str, &[&str])] = &[
    ("api", &[]),
    ("raft-store", &[]),
    ("netfabric", &["api"]),
    ("runtime", &["api"]),
    ("agent", &["api", "raft-store", "netfabric", "runtime"]),
    ("cli", &["api", "agent", "runtime"]),
    ("testbed", &["api", "raft-store", "netfabric", "runtime", "agent", "cli"]),
];

/// More lines than this and a file has to be divided.
const LINES: usize = 600;

/// Files that are longer for now, with their length. Entries leave this list or their number falls; none is added.
const LONG_FOR_NOW: &[(&str, usize)] = &[];

/// Places of one machine, which mean nothing on another. Written in two halves, so that this file passes.
const MACHINE_PATHS: &[&str] = &[concat!("/wo", "rk/"), concat!("/ro", "ot/"), concat!("/tmp/bash", "_jobs")];

/// Hosts that packages come from: clients know them by themselves, and a copy that names them cannot use a mirror.
const REGISTRY_HOSTS: &[&str] = &[
    concat!("index.", "crates.io"),
    concat!("static.", "crates.io"),
    concat!("registry.", "npmjs.org"),
    concat!("pypi.", "org"),
    concat!("files.", "pythonhosted.org"),
    concat!("deb.", "debian.org"),
];

/// A text file of the workspace; its path is relative to the root.
struct File {
    path: String,
    text: String,
}

impl File {
    fn name(&self) -> &str {
        self.path.rsplit('/').next().unwrap_or(&self.path)
    }

    fn is_rust(&self) -> bool {
        self.path.ends_with(".rs")
    }

    /// `path:line` for every line that `broken` finds fault with.
    fn lines_where(&self, broken: impl Fn(&str) -> bool) -> Vec<String> {
        let numbered = self.text.lines().enumerate().filter(|(_, line)| broken(line));
        numbered.map(|(index, line)| format!("{}:{}: {}", self.path, index + 1, line.trim())).collect()
    }
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("testbed lies in the workspace")
}

/// Every text file below the root but what is built, cached or git's own.
fn files() -> Vec<File> {
    let mut found = Vec::new();
    let mut directories = vec![PathBuf::new()];
    while let Some(directory) = directories.pop() {
        let entries = fs::read_dir(root().join(&directory)).expect("the workspace can be read");
        for entry in entries.map(|entry| entry.expect("the workspace can be read")) {
            let path = directory.join(entry.file_name());
            let kind = entry.file_type().expect("the workspace can be read");
            if kind.is_dir() && !is_made(&path) {
                directories.push(path);
            } else if kind.is_file()
                && let Ok(text) = fs::read_to_string(root().join(&path))
            {
                found.push(File { path: path.to_string_lossy().into_owned(), text });
            }
        }
    }
    found.sort_by(|a, b| a.path.cmp(&b.path));
    assert!(found.len() > 50, "this is not the workspace: {}", root().display());
    found
}

fn is_made(directory: &Path) -> bool {
    [".git", "target", ".cache", ".vagrant"].iter().any(|made| directory.ends_with(made))
}

fn rust_files() -> Vec<File> {
    files().into_iter().filter(File::is_rust).collect()
}

fn pages() -> Vec<File> {
    files().into_iter().filter(|file| file.path.ends_with(".md")).collect()
}

#[track_caller]
fn nothing(rule: &str, broken: Vec<String>) {
    assert!(broken.is_empty(), "{rule}\n  {}", broken.join("\n  "));
}

/// Our crates, each with those of ours that its manifest names, for building and for tests.
fn dependencies() -> BTreeMap<String, BTreeSet<String>> {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".into());
    let mut command = Command::new(cargo);
    command.args(["metadata", "--no-deps", "--offline", "--format-version", "1"]).current_dir(root());
    let output = command.output().expect("cargo can be run");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).expect("cargo prints JSON");
    let packages = metadata["packages"].as_array().expect("a list of packages");
    let name = |value: &serde_json::Value| value["name"].as_str().unwrap_or_default().to_owned();
    let ours = |package: &serde_json::Value| {
        let all = package["dependencies"].as_array().into_iter().flatten();
        all.filter(|dependency| dependency["path"].is_string()).map(name).collect()
    };
    packages.iter().map(|package| (name(package), ours(package))).collect()
}

#[test]
fn crates_use_only_crates_that_the_design_lets_them_use() {
    let allowed: BTreeMap<&str, &[&str]> = ARROWS.iter().copied().collect();
    let mut broken = Vec::new();
    for (user, used) in dependencies() {
        let Some(allowed) = allowed.get(user.as_str()) else {
            broken.push(format!("{user} has no place in the layout"));
            continue;
        };
        let wrong = used.iter().filter(|used| !allowed.contains(&used.as_str()));
        broken.extend(wrong.map(|used| format!("{user} uses {used}")));
    }
    nothing("arrows between crates that DESIGN section 2 does not have:", broken);
}

#[test]
fn every_crate_inherits_the_lints_of_the_workspace() {
    let members: Vec<File> = files().into_iter().filter(|file| file.path.ends_with("/Cargo.toml")).collect();
    let broken = members.iter().filter(|file| !file.text.contains("[lints]\nworkspace = true"));
    nothing("manifests without `[lints] workspace = true`:", broken.map(|file| file.path.clone()).collect());
}

#[test]
fn every_module_opens_with_what_it_is() {
    let files = rust_files();
    let broken = files.iter().filter(|file| !file.text.starts_with("//! "));
    nothing("modules that do not open with `//!`:", broken.map(|file| file.path.clone()).collect());
}

#[test]
fn modules_are_files_beside_their_directory() {
    let files = rust_files();
    let broken = files.iter().filter(|file| file.name() == "mod.rs");
    nothing("write foo.rs beside foo/, not foo/mod.rs:", broken.map(|file| file.path.clone()).collect());
}

#[test]
fn no_file_is_too_long() {
    let listed: BTreeMap<&str, usize> = LONG_FOR_NOW.iter().copied().collect();
    let files = rust_files();
    let long = files.iter().map(|file| (file.path.as_str(), file.text.lines().count()));
    let long: BTreeMap<&str, usize> = long.filter(|(_, lines)| *lines > LINES).collect();
    let mut broken: Vec<String> = Vec::new();
    for (path, lines) in &long {
        match listed.get(path) {
            None => broken.push(format!("{path} has {lines} lines, {LINES} are allowed")),
            Some(was) if lines > was => broken.push(format!("{path} has grown from {was} to {lines} lines")),
            Some(_) => {}
        }
    }
    let short = listed.keys().filter(|path| !long.contains_key(*path));
    broken.extend(short.map(|path| format!("{path} is short enough now: take it off the list")));
    nothing("files that want to be divided:", broken);
}

#[test]
fn unsafe_code_is_in_files_named_sys_only() {
    let files = rust_files();
    let others = files.iter().filter(|file| file.name() != "sys.rs");
    nothing("unsafe code outside of sys.rs:", others.flat_map(|file| file.lines_where(has_unsafe)).collect());
}

/// Whether a line of code begins something unsafe. The word in comments and messages is free.
fn has_unsafe(line: &str) -> bool {
    let code = line.split("//").next().unwrap_or_default();
    let after = code
        .match_indices("unsafe")
        .map(|(at, word)| (code[..at].chars().last(), code[at + word.len()..].trim_start()));
    let begins = ["{", "fn ", "impl ", "extern ", "trait "];
    after.into_iter().any(|(before, after)| {
        before.is_none_or(|c| !is_word(c))
            && (after.is_empty() || begins.iter().any(|word| after.starts_with(word)))
    })
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

#[test]
fn no_file_names_a_place_of_one_machine() {
    let files = files();
    nothing(
        "paths of a work machine:",
        files.iter().flat_map(|file| file.lines_where(names_machine_path)).collect(),
    );
}

/// A machine's path counts where it begins; as the tail of another one (`pods/x/…`) it is something else.
fn names_machine_path(line: &str) -> bool {
    let begins = |at: usize| line[..at].chars().last().is_none_or(|c| !is_word(c) && !"/.-~}])>".contains(c));
    MACHINE_PATHS.iter().any(|path| line.match_indices(path).any(|(at, _)| begins(at)))
}

#[test]
fn no_file_names_a_host_that_packages_come_from() {
    let files = files();
    let named = |line: &str| REGISTRY_HOSTS.iter().any(|host| line.contains(host));
    nothing("hosts of package registries:", files.iter().flat_map(|file| file.lines_where(named)).collect());
}

#[test]
fn the_lock_file_takes_everything_from_crates_io() {
    let lock = fs::read_to_string(root().join("Cargo.lock")).expect("Cargo.lock is there");
    let sources = lock.lines().filter_map(|line| line.strip_prefix("source = "));
    let others =
        sources.filter(|source| *source != "\"registry+https://github.com/rust-lang/crates.io-index\"");
    nothing("sources in Cargo.lock that are not crates.io:", others.map(String::from).collect());
}

#[test]
fn decisions_have_a_title_and_a_date() {
    let pages = pages();
    let decisions =
        pages.iter().filter(|page| page.path.starts_with("docs/decisions/") && page.name() != "README.md");
    let broken =
        decisions.filter(|page| !page.text.starts_with("# ") || !page.text.lines().any(is_date_line));
    nothing(
        "decisions without `# title` first or without a line `Date: YYYY-MM-DD`:",
        broken.map(|page| page.path.clone()).collect(),
    );
}

fn is_date_line(line: &str) -> bool {
    let Some(date) = line.strip_prefix("Date: ") else { return false };
    let digits =
        date.char_indices().all(|(at, c)| if at == 4 || at == 7 { c == '-' } else { c.is_ascii_digit() });
    date.len() == 10 && digits
}

#[test]
fn links_of_pages_lead_somewhere() {
    let mut broken = Vec::new();
    for page in pages() {
        let directory = root().join(&page.path).parent().expect("a file has a directory").to_owned();
        let missing = links(&page.text).into_iter().filter(|target| !directory.join(target).exists());
        broken.extend(missing.map(|target| format!("{}: {target}", page.path)));
    }
    nothing("links to files that do not exist:", broken);
}

/// Targets of `[text](target)` that are files, without what follows `#`. Fenced code has no links.
fn links(text: &str) -> Vec<&str> {
    let prose = text.split("\n```").step_by(2);
    let targets = prose.flat_map(|prose| prose.split("](").skip(1)).filter_map(|rest| rest.split(')').next());
    let files = targets.filter(|target| !target.contains("://") && !target.starts_with("mailto:"));
    files.filter_map(|target| target.split('#').next()).filter(|target| !target.is_empty()).collect()
}

#[test]
fn the_architecture_page_names_modules_that_exist() {
    let page = fs::read_to_string(root().join("ARCHITECTURE.md")).expect("ARCHITECTURE.md is there");
    let quoted = page.split("\n```").step_by(2).flat_map(|prose| prose.split('`').skip(1).step_by(2));
    let ours = quoted.filter(|word| {
        ARROWS.iter().any(|(name, _)| word.strip_prefix(name).is_some_and(|rest| rest.starts_with('/')))
    });
    let missing = ours.filter(|path| !root().join(path).exists());
    nothing("ARCHITECTURE.md names files that do not exist:", missing.map(String::from).collect());
}
