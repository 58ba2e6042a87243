//! Which capabilities a container gets.
//!
//! Decides the default set, what the pod adds and drops, and that nothing is promised which this process
//! does not hold itself (an agent in a confined host may lack some).

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::{BundleError, HostFacts};
use crate::spec::Security;

/// Docker's default set without NET_RAW (raw sockets can spoof and reach kernel bugs, CVE-2020-14386) and
/// MKNOD (device nodes; libcontainer applies no device rules on cgroup v2).
const DEFAULT: &[&str] = &[
    "AUDIT_WRITE",
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "KILL",
    "NET_BIND_SERVICE",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYS_CHROOT",
];

/// By their kernel numbers.
const ALL: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// The names with `CAP_`, as OCI documents have them. An explicitly added capability that cannot be given
/// is an error; what comes with a set is left out silently.
pub(super) fn capabilities(
    security: &Security,
    host: &HostFacts,
) -> Result<BTreeSet<&'static str>, BundleError> {
    let held = |name: &&str| is_held(name, host.capabilities);
    if security.privileged {
        return Ok(ALL.into_iter().filter(held).collect());
    }
    let mut set: BTreeSet<&'static str> = DEFAULT.iter().copied().filter(held).collect();
    for name in &security.drop_capabilities {
        match name.as_str() {
            "ALL" => set.clear(),
            _ => drop(set.remove(known(name)?)),
        }
    }
    for name in &security.add_capabilities {
        match name.as_str() {
            "ALL" => set.extend(ALL.into_iter().filter(held)),
            _ => {
                let name = known(name)?;
                if !held(&name) {
                    return Err(BundleError::CapabilityNotHeld(name));
                }
                set.insert(name);
            }
        }
    }
    Ok(set)
}

/// Nothing inheritable or ambient: a program without file capabilities run by a plain user has none
/// (CVE-2022-29162).
pub(super) fn sets(set: &BTreeSet<&'static str>) -> Value {
    let names: Vec<String> = set.iter().map(|name| format!("CAP_{name}")).collect();
    json!({ "bounding": names, "effective": names, "permitted": names, "inheritable": [], "ambient": [] })
}

fn known(name: &str) -> Result<&'static str, BundleError> {
    let short = name.strip_prefix("CAP_").unwrap_or(name);
    let found = ALL.into_iter().find(|known| *known == short);
    found.ok_or_else(|| BundleError::UnknownCapability(name.to_owned()))
}

fn is_held(name: &str, held: u64) -> bool {
    ALL.iter().position(|known| *known == name).is_some_and(|bit| held >> bit & 1 == 1)
}
