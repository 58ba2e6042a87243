//! The last step inside the container: find the program, confine further processes, exec.
//!
//! Decides what "not found" and "not executable" mean, by asking the kernel as the container's user
//! (libcontainer's own check wants the world's execute bit). Runs in the container: must not rely on
//! anything of the host.

use std::ffi::{CString, NulError};
use std::path::Path;

use libcontainer::oci_spec::runtime::{LinuxSeccomp, Spec};
use libcontainer::seccomp::initialize_seccomp;
use libcontainer::workload::{Executor, ExecutorError, ExecutorValidationError};

use crate::sys;

pub(super) const NOT_FOUND_TEXT: &str = "not found in the container";
pub(super) const NOT_EXECUTABLE_TEXT: &str = "cannot be executed in the container";

#[derive(Clone)]
pub(super) struct OurExecutor {
    /// For processes added by exec, whose filter libcontainer forgets.
    seccomp: Option<LinuxSeccomp>,
}

impl OurExecutor {
    pub fn for_init() -> Self {
        Self { seccomp: None }
    }

    pub fn for_exec(seccomp: Option<LinuxSeccomp>) -> Self {
        Self { seccomp }
    }

    /// The capabilities are gone by now, so the filter can only be installed without new privileges: an
    /// exec'd process never gains any, even where the container itself may.
    fn confine(&self) -> Result<(), ExecutorError> {
        let Some(seccomp) = &self.seccomp else { return Ok(()) };
        let other = |error: String| ExecutorError::Other(error);
        nix::sys::prctl::set_no_new_privs().map_err(|error| other(error.to_string()))?;
        initialize_seccomp(seccomp).map_err(|error| other(error.to_string()))?;
        Ok(())
    }
}

impl Executor for OurExecutor {
    fn exec(&self, spec: &Spec) -> Result<(), ExecutorError> {
        let args = args_of(spec).ok_or(ExecutorError::InvalidArg)?;
        let program = find(spec, args).map_err(|error| ExecutorError::Other(error.to_string()))?;
        let strings: Result<Vec<CString>, NulError> =
            args.iter().map(|arg| CString::new(arg.as_str())).collect();
        let strings = strings.map_err(|_| ExecutorError::InvalidArg)?;
        self.confine()?;
        let Err(error) = nix::unistd::execv(&program, &strings);
        // Too late for an error of `create`: it belongs into the container's own log.
        let name = program.to_string_lossy();
        eprintln!("skein: {name:?} {NOT_EXECUTABLE_TEXT}: {error}");
        let code = if error == nix::errno::Errno::ENOENT { super::NOT_FOUND } else { super::NOT_EXECUTABLE };
        std::process::exit(i32::from(code))
    }

    fn validate(&self, spec: &Spec) -> Result<(), ExecutorValidationError> {
        let args = args_of(spec).ok_or(ExecutorValidationError::CantHandle("skein"))?;
        find(spec, args).map(drop)
    }
}

fn args_of(spec: &Spec) -> Option<&[String]> {
    spec.process().as_ref()?.args().as_deref().filter(|args| !args.is_empty())
}

fn find(spec: &Spec, args: &[String]) -> Result<CString, ExecutorValidationError> {
    let error = |text: String| ExecutorValidationError::ArgValidationError(text);
    let name = args.first().map(String::as_str).unwrap_or_default();
    let mut seen = None;
    for candidate in candidates(spec, name) {
        let path =
            CString::new(candidate.as_str()).map_err(|_| error(format!("{name:?} {NOT_FOUND_TEXT}")))?;
        let is_file = Path::new(&candidate).metadata().map(|metadata| metadata.is_file());
        match is_file {
            Ok(true) if sys::may_execute(&path) => return Ok(path),
            Ok(_) => seen = Some(candidate),
            Err(_) => {}
        }
    }
    Err(error(match seen {
        Some(path) => format!("{path:?} {NOT_EXECUTABLE_TEXT}: it is no program that this user may run"),
        None => format!("{name:?} {NOT_FOUND_TEXT}: check the command, the image and its PATH"),
    }))
}

/// A name with a slash is a path; others are looked up in the container's PATH.
fn candidates(spec: &Spec, name: &str) -> Vec<String> {
    if name.contains('/') {
        return vec![name.to_owned()];
    }
    let env = spec.process().as_ref().and_then(|process| process.env().as_ref());
    let path = env.into_iter().flatten().find_map(|line| line.strip_prefix("PATH=")).unwrap_or_default();
    path.split(':').filter(|part| !part.is_empty()).map(|part| format!("{part}/{name}")).collect()
}
