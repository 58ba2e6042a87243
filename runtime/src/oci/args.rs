//! The command line of `skein oci`, a subset of crun's and runc's.
//!
//! Decides what is understood. Written by hand: clap would cost a millisecond in each operation.

use std::path::PathBuf;

#[derive(Debug, PartialEq, Eq)]
pub(super) struct Invocation {
    pub root: PathBuf,
    pub log: Option<PathBuf>,
    pub command: Command,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Command {
    Create { id: String, bundle: PathBuf, pid_file: Option<PathBuf> },
    Start { id: String },
    Exec { id: String, process: PathBuf, pid_file: Option<PathBuf> },
    Kill { id: String, signal: String },
    Delete { id: String, force: bool },
    State { id: String },
}

/// Options of any command; each takes what it needs.
#[derive(Default)]
struct Options {
    root: Option<PathBuf>,
    log: Option<PathBuf>,
    bundle: Option<PathBuf>,
    pid_file: Option<PathBuf>,
    process: Option<PathBuf>,
    force: bool,
    words: Vec<String>,
}

pub(super) fn parse(args: impl IntoIterator<Item = String>) -> Result<Invocation, String> {
    let options = read_options(args)?;
    let mut words = options.words.into_iter();
    let command = words.next().ok_or("a command is needed: create, start, exec, kill, delete or state")?;
    let id = words.next().ok_or_else(|| format!("{command}: a container id is needed"))?;
    let command = match command.as_str() {
        "create" => Command::Create {
            id,
            bundle: options.bundle.ok_or("create: --bundle is needed")?,
            pid_file: options.pid_file,
        },
        "start" => Command::Start { id },
        "exec" => Command::Exec {
            id,
            process: options.process.ok_or("exec: --process is needed")?,
            pid_file: options.pid_file,
        },
        "kill" => Command::Kill { id, signal: words.next().unwrap_or_else(|| "TERM".to_owned()) },
        "delete" => Command::Delete { id, force: options.force },
        "state" => Command::State { id },
        other => return Err(format!("unknown command {other:?}")),
    };
    let root = options.root.ok_or("--root is needed")?;
    Ok(Invocation { root, log: options.log, command })
}

fn read_options(args: impl IntoIterator<Item = String>) -> Result<Options, String> {
    let mut options = Options::default();
    let mut args = args.into_iter();
    while let Some(arg) = args.next() {
        let (name, inline) = match arg.split_once('=') {
            Some((name, value)) if name.starts_with("--") => (name.to_owned(), Some(value.to_owned())),
            _ => (arg, None),
        };
        let mut value = || inline.clone().or_else(|| args.next()).ok_or(format!("{name} needs a value"));
        match name.as_str() {
            "--root" => options.root = Some(value()?.into()),
            "--log" => options.log = Some(value()?.into()),
            "--log-format" => drop(value()?),
            "--bundle" | "-b" => options.bundle = Some(value()?.into()),
            "--pid-file" => options.pid_file = Some(value()?.into()),
            "--process" | "-p" => options.process = Some(value()?.into()),
            "--force" | "-f" => options.force = true,
            "--detach" | "-d" => {}
            flag if flag.starts_with('-') => return Err(format!("unknown option {flag}")),
            _ => options.words.push(name),
        }
    }
    Ok(options)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(line: &str) -> Result<Invocation, String> {
        parse(line.split(' ').map(str::to_owned))
    }

    #[test]
    fn crun_s_command_lines_are_understood() {
        let create =
            read("--root /r --log=/l --log-format json create --bundle /b --pid-file /p c-0").unwrap();
        assert_eq!(create.log, Some("/l".into()));
        let pid_file = Some("/p".into());
        assert_eq!(create.command, Command::Create { id: "c-0".into(), bundle: "/b".into(), pid_file });
        let kill = read("--root /r kill c 9").unwrap();
        assert_eq!(kill.command, Command::Kill { id: "c".into(), signal: "9".into() });
    }

    #[test]
    fn gaps_are_named() {
        assert!(read("create --bundle /b c").unwrap_err().contains("--root"));
        assert!(read("--root /r create c").unwrap_err().contains("--bundle"));
        assert!(read("--root /r start").unwrap_err().contains("id"));
        assert!(read("--root /r start c --what").unwrap_err().contains("--what"));
    }
}
