//! Which Debian mirror and proxy this machine itself uses.
//!
//! Reads apt's settings; decides nothing else and names no server of its own.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// No mirror is configured.
#[derive(Debug, thiserror::Error)]
pub enum MirrorError {
    #[error(
        "no Debian mirror for {suite} in /etc/apt/sources.list or /etc/apt/sources.list.d: add one (a line `deb MIRROR {suite} main`)"
    )]
    None { suite: String },
}

/// Where packages come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mirror {
    pub url: String,
    /// apt's proxy for it, for the environment of what downloads.
    pub proxy: Option<String>,
}

/// One source of packages: its URL, suites and components.
#[derive(Debug, PartialEq, Eq)]
struct Source {
    url: String,
    suites: Vec<String>,
    components: Vec<String>,
}

pub fn of_this_machine(suite: &str) -> Result<Mirror, MirrorError> {
    let listed: Vec<Source> = files().iter().flat_map(|path| sources(path)).collect();
    let url = choose(&listed, suite).ok_or_else(|| MirrorError::None { suite: suite.to_owned() })?;
    Ok(Mirror { proxy: proxy(&url), url })
}

/// The source that has the suite itself, else one of another suite of Debian: a mirror carries all of them.
fn choose(listed: &[Source], suite: &str) -> Option<String> {
    let main = |source: &&Source| {
        let special = |s: &String| s.contains("security") || s.contains('/');
        source.components.iter().any(|c| c == "main") && !source.suites.iter().any(special)
    };
    let exact = listed.iter().filter(main).find(|source| source.suites.iter().any(|s| s == suite));
    let debian = |source: &&Source| source.url.trim_end_matches('/').ends_with("debian");
    let other = || listed.iter().filter(main).find(debian);
    exact.or_else(other).map(|source| source.url.clone())
}

fn files() -> Vec<PathBuf> {
    let mut found = vec![PathBuf::from("/etc/apt/sources.list")];
    let more = fs::read_dir("/etc/apt/sources.list.d").into_iter().flatten().flatten().map(|e| e.path());
    found.extend(more);
    found.sort();
    found
}

fn sources(path: &Path) -> Vec<Source> {
    let text = fs::read_to_string(path).unwrap_or_default();
    match path.extension().and_then(|e| e.to_str()) {
        Some("sources") => text.split("\n\n").filter_map(stanza).collect(),
        Some("list") => text.lines().filter_map(line).collect(),
        _ => Vec::new(),
    }
}

/// `deb [options] URL SUITE COMPONENT…`
fn line(line: &str) -> Option<Source> {
    let rest = line.trim().strip_prefix("deb ")?.trim_start();
    let rest = if rest.starts_with('[') { rest.split_once(']')?.1 } else { rest };
    let mut words = rest.split_whitespace().map(str::to_owned);
    Some(Source { url: words.next()?, suites: vec![words.next()?], components: words.collect() })
}

/// `Types: deb`, `URIs: …`, `Suites: …`, `Components: …`
fn stanza(text: &str) -> Option<Source> {
    let field = |name: &str| {
        let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        Some(value.split_whitespace().map(str::to_owned).collect::<Vec<_>>())
    };
    let enabled = field("Enabled").is_none_or(|words| words != ["no"]);
    if !enabled || !field("Types")?.iter().any(|t| t == "deb") {
        return None;
    }
    Some(Source {
        url: field("URIs")?.into_iter().next()?,
        suites: field("Suites")?,
        components: field("Components")?,
    })
}

/// What apt would use; the environment's own settings pass through anyway.
fn proxy(url: &str) -> Option<String> {
    let scheme = url.split(':').next()?;
    let output = Command::new("apt-config")
        .args(["shell", "P", &format!("Acquire::{scheme}::Proxy")])
        .output()
        .ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    let value = text.trim().strip_prefix("P=")?.trim_matches('\'');
    (!value.is_empty() && value != "DIRECT").then(|| value.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const STANZAS: &str = "\
Types: deb
# a comment
URIs: http://mirror.example/debian
Suites: bookworm bookworm-updates
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Types: deb
URIs: http://mirror.example/debian-security
Suites: bookworm-security
Components: main";

    #[test]
    fn both_forms_of_sources_are_read() {
        let listed: Vec<Source> = STANZAS.split("\n\n").filter_map(stanza).collect();
        assert_eq!(choose(&listed, "bookworm").as_deref(), Some("http://mirror.example/debian"));
        let listed: Vec<Source> = [
            "# deb http://off.example/debian bookworm main",
            "deb [arch=amd64 signed-by=/k] https://cloud.example/apt sdk main",
            "deb http://two.example/debian/ trixie main contrib",
        ]
        .into_iter()
        .filter_map(line)
        .collect();
        assert_eq!(choose(&listed, "bookworm").as_deref(), Some("http://two.example/debian/"));
    }

    #[test]
    fn security_and_foreign_sources_are_no_mirror() {
        let listed: Vec<Source> = STANZAS.split("\n\n").skip(1).filter_map(stanza).collect();
        assert_eq!(choose(&listed, "bookworm"), None);
    }
}
