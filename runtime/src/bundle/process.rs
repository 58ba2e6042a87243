//! The `process` part: command, environment, directory, user, capabilities, limits.
//!
//! Decides by Docker's and Kubernetes' rules: `command` replaces entrypoint and arguments, `args` the
//! arguments only; the pod's environment wins over the image's.

use serde_json::{Value, json};

use super::{BundleError, BundleInput, capabilities, user};
use crate::image::ImageConfig;
use crate::spec::{ContainerSpec, ExecSpec};

const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
const NOFILE: u64 = 65_536;

pub(super) fn process(input: &BundleInput) -> Result<Value, BundleError> {
    let (spec, image) = (input.spec, input.image);
    let security = &spec.security;
    let user = user::resolve(input.root, security, &image.user)?;
    let nofile = NOFILE.min(input.host.nofile_hard);
    let mut process = json!({
        "terminal": false,
        "user": {
            "uid": user.uid, "gid": user.gid, "additionalGids": user.groups, "umask": 0o022,
        },
        "args": command(spec, image)?,
        "env": environment(spec, image, input.hostname)?,
        "cwd": working_dir(spec, image),
        "capabilities": capabilities::sets(&capabilities::capabilities(security, input.host)?),
        "rlimits": [{ "type": "RLIMIT_NOFILE", "hard": nofile, "soft": nofile }],
    });
    // Absent, not false: libcontainer then installs the seccomp filter while it still may.
    if security.no_new_privileges && !security.privileged {
        process["noNewPrivileges"] = json!(true);
    }
    if let Some(score) = spec.resources.oom_score_adj {
        process["oomScoreAdj"] = json!(score.clamp(input.host.oom_score_adj_min, 1000));
    }
    Ok(process)
}

/// A process document for `exec`: the container's own with other arguments.
pub(crate) fn exec_process(container: &Value, exec: &ExecSpec) -> Result<Value, BundleError> {
    if exec.args.is_empty() {
        return Err(BundleError::NoCommand);
    }
    let mut process = container["process"].clone();
    process["args"] = json!(without_zeroes("args", &exec.args)?);
    let mut env: Vec<String> = serde_json::from_value(process["env"].clone()).unwrap_or_default();
    merge(&mut env, &exec.env)?;
    process["env"] = json!(env);
    if let Some(cwd) = &exec.cwd {
        process["cwd"] = json!(cwd);
    }
    Ok(process)
}

pub(super) fn command(spec: &ContainerSpec, image: &ImageConfig) -> Result<Vec<String>, BundleError> {
    let empty = Vec::new();
    let (head, tail) = match (&spec.command, &spec.args) {
        (Some(command), args) => (command, args.as_ref().unwrap_or(&empty)),
        (None, Some(args)) => (&image.entrypoint, args),
        (None, None) => (&image.entrypoint, &image.command),
    };
    let all: Vec<String> = head.iter().chain(tail).cloned().collect();
    if all.is_empty() {
        return Err(BundleError::NoCommand);
    }
    Ok(without_zeroes("command", &all)?.to_vec())
}

fn environment(
    spec: &ContainerSpec,
    image: &ImageConfig,
    hostname: &str,
) -> Result<Vec<String>, BundleError> {
    let mut env = vec![format!("PATH={PATH}"), format!("HOSTNAME={hostname}")];
    let pair = |line: &String| line.split_once('=').map(|(name, value)| (name.to_owned(), value.to_owned()));
    merge(&mut env, &image.env.iter().filter_map(pair).collect::<Vec<_>>())?;
    merge(&mut env, &spec.env)?;
    Ok(env)
}

/// The last of equal names wins and keeps the first one's place.
fn merge(env: &mut Vec<String>, additions: &[(String, String)]) -> Result<(), BundleError> {
    for (name, value) in additions {
        let line = format!("{name}={value}");
        if line.contains('\0') {
            return Err(BundleError::ZeroByte { what: "env" });
        }
        let same = |old: &&mut String| old.split_once('=').is_some_and(|(known, _)| known == name);
        match env.iter_mut().find(same) {
            Some(old) => *old = line,
            None => env.push(line),
        }
    }
    Ok(())
}

fn without_zeroes<'a>(what: &'static str, words: &'a [String]) -> Result<&'a [String], BundleError> {
    if words.iter().any(|word| word.contains('\0')) {
        return Err(BundleError::ZeroByte { what });
    }
    Ok(words)
}

pub(crate) fn working_dir(spec: &ContainerSpec, image: &ImageConfig) -> String {
    let chosen = spec.working_dir.as_deref().filter(|dir| !dir.is_empty()).unwrap_or(&image.working_dir);
    if chosen.starts_with('/') { chosen.to_owned() } else { format!("/{chosen}") }
}
