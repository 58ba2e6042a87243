//! `skein oci`: our OCI runtime, one short-lived process per operation, crun's command line.
//!
//! The only caller of libcontainer, which clones and runs Rust code in the child and changes its caller
//! for good: sound only in a process with one thread that ends afterwards. Decides how a failure becomes
//! an exit code and a line in the log file. Must not be entered once a thread or a tokio runtime exists.

mod args;
mod executor;

use std::error::Error;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use libcontainer::container::Container;
use libcontainer::container::builder::ContainerBuilder;
use libcontainer::oci_spec::runtime::Spec;
use libcontainer::signal::Signal;
use libcontainer::syscall::syscall::SyscallType;
use serde_json::{Value, json};

use crate::files;

use args::{Command, Invocation};
use executor::OurExecutor;

/// The exit code for a command that is not there; 126 for one that may not be run, 1 for all else.
pub(crate) const NOT_FOUND: u8 = 127;
pub(crate) const NOT_EXECUTABLE: u8 = 126;

#[derive(Debug, thiserror::Error)]
enum OciError {
    #[error("container {0:?} does not exist")]
    Absent(String),
    #[error("this process has threads; start `skein oci` as a command of its own")]
    Threads,
    #[error(transparent)]
    Container(#[from] libcontainer::error::LibcontainerError),
    #[error("bad signal {0:?}")]
    Signal(String),
    #[error(transparent)]
    Io(#[from] std::io::Error),
}

pub fn main(args: impl IntoIterator<Item = String>) -> ExitCode {
    let invocation = match args::parse(args) {
        Ok(invocation) => invocation,
        Err(message) => {
            eprintln!("skein oci: {message}");
            return ExitCode::from(2);
        }
    };
    match run(&invocation) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let message = chain(&error);
            report(invocation.log.as_deref(), &message);
            ExitCode::from(exit_code(&message))
        }
    }
}

fn run(invocation: &Invocation) -> Result<(), OciError> {
    if std::fs::read_dir("/proc/self/task")?.count() != 1 {
        return Err(OciError::Threads);
    }
    match &invocation.command {
        Command::Create { id, bundle, pid_file } => create(&invocation.root, id, bundle, pid_file.clone()),
        Command::Start { id } => Ok(load(&invocation.root, id)?.start()?),
        Command::Exec { id, process, pid_file } => exec(&invocation.root, id, process, pid_file.clone()),
        Command::Kill { id, signal } => kill(&invocation.root, id, signal),
        Command::Delete { id, force } => delete(&invocation.root, id, *force),
        Command::State { id } => state(&invocation.root, id),
    }
}

fn create(root: &Path, id: &str, bundle: &Path, pid_file: Option<PathBuf>) -> Result<(), OciError> {
    in_libcontainers_order(&bundle.join("config.json"))?;
    builder(root, id, pid_file)?
        .with_executor(OurExecutor::for_init())
        .as_init(bundle)
        .with_systemd(false)
        .with_detach(true)
        .build()?;
    Ok(())
}

/// Says that a document's masked seccomp conditions are in libcontainer's order.
const REORDERED: &str = "dev.skein.seccomp-reordered";

/// libcontainer 0.7 takes `valueTwo` of a masked comparison for the mask and `value` for the datum; the OCI specification, runc
/// and crun have it the other way round. Once for each document, however often `create` is repeated.
fn in_libcontainers_order(config: &Path) -> Result<(), OciError> {
    let Some(mut document) = files::read_json::<Value>(config)? else { return Ok(()) };
    if document["annotations"][REORDERED] == "true" {
        return Ok(());
    }
    let rules = document.pointer_mut("/linux/seccomp/syscalls").and_then(Value::as_array_mut);
    for rule in rules.into_iter().flatten() {
        let conditions = rule.get_mut("args").and_then(Value::as_array_mut);
        for condition in conditions.into_iter().flatten() {
            if condition["op"] == "SCMP_CMP_MASKED_EQ" {
                let (mask, datum) = (condition["value"].take(), condition["valueTwo"].take());
                condition["value"] = datum;
                condition["valueTwo"] = mask;
            }
        }
    }
    document["annotations"][REORDERED] = json!("true");
    Ok(files::write_json(config, &document)?)
}

/// libcontainer drops the container's seccomp filter for further processes: our executor installs it.
fn exec(root: &Path, id: &str, process: &Path, pid_file: Option<PathBuf>) -> Result<(), OciError> {
    let container = load(root, id)?;
    let spec = Spec::load(container.bundle().join("config.json"))
        .map_err(libcontainer::error::LibcontainerError::from)?;
    let seccomp = spec.linux().as_ref().and_then(|linux| linux.seccomp().clone());
    builder(root, id, pid_file)?
        .with_executor(OurExecutor::for_exec(seccomp))
        .as_tenant()
        .with_detach(true)
        .with_process(Some(process))
        .build()?;
    Ok(())
}

fn kill(root: &Path, id: &str, signal: &str) -> Result<(), OciError> {
    let bad = || OciError::Signal(signal.to_owned());
    let signal = Signal::try_from(signal).map_err(|_| bad())?;
    Ok(load(root, id)?.kill(signal, false)?)
}

/// Absence is success with force: the operation is repeated after a crash.
fn delete(root: &Path, id: &str, force: bool) -> Result<(), OciError> {
    match load(root, id) {
        Ok(mut container) => Ok(container.delete(force)?),
        Err(OciError::Absent(_)) if force => Ok(()),
        // A create that died half-way leaves a directory without a readable state.
        Err(_) if force => Ok(std::fs::remove_dir_all(root.join(id))?),
        Err(error) => Err(error),
    }
}

fn state(root: &Path, id: &str) -> Result<(), OciError> {
    let mut container = load(root, id)?;
    container.refresh_status()?;
    let state = json!({
        "ociVersion": "1.0.2",
        "id": id,
        "status": container.status().to_string(),
        "pid": container.pid().map_or(0, |pid| pid.as_raw()),
        "bundle": container.bundle(),
    });
    println!("{state}");
    Ok(())
}

fn builder(root: &Path, id: &str, pid_file: Option<PathBuf>) -> Result<ContainerBuilder, OciError> {
    Ok(ContainerBuilder::new(id.to_owned(), SyscallType::default())
        .with_root_path(root)?
        .with_pid_file(pid_file)?
        .validate_id()?)
}

fn load(root: &Path, id: &str) -> Result<Container, OciError> {
    let directory = root.join(id);
    if !directory.is_dir() {
        return Err(OciError::Absent(id.to_owned()));
    }
    Ok(Container::load(directory)?)
}

/// The whole chain once, without the repetitions that transparent wrappers bring.
fn chain(error: &dyn Error) -> String {
    let mut message = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let text = cause.to_string();
        if !message.contains(&text) {
            message = format!("{message}: {text}");
        }
        source = cause.source();
    }
    message
}

fn exit_code(message: &str) -> u8 {
    if message.contains(executor::NOT_FOUND_TEXT) {
        NOT_FOUND
    } else if message.contains(executor::NOT_EXECUTABLE_TEXT) {
        NOT_EXECUTABLE
    } else {
        1
    }
}

/// crun's and runc's JSON form: one object with `msg` per line.
fn report(log: Option<&Path>, message: &str) {
    let line = json!({ "level": "error", "msg": message });
    let written = log.map(|log| {
        let file = std::fs::OpenOptions::new().append(true).create(true).open(log);
        file.and_then(|mut file| writeln!(file, "{line}"))
    });
    if !matches!(written, Some(Ok(()))) {
        eprintln!("skein oci: {message}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masked_conditions_are_turned_round_once() {
        let path = std::env::temp_dir().join(format!("skein-seccomp-{}.json", std::process::id()));
        let rule = json!({"args": [{"op": "SCMP_CMP_MASKED_EQ", "value": 0xffff, "valueTwo": 40}]});
        let document = json!({"linux": {"seccomp": {"syscalls": [rule]}}});
        std::fs::write(&path, document.to_string()).unwrap();
        for _ in 0..2 {
            in_libcontainers_order(&path).unwrap();
            let read: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
            let condition = &read["linux"]["seccomp"]["syscalls"][0]["args"][0];
            assert_eq!(
                (condition["value"].as_u64(), condition["valueTwo"].as_u64()),
                (Some(40), Some(0xffff))
            );
        }
        std::fs::remove_file(&path).unwrap();
    }
}
