//! The default seccomp profile.
//!
//! A **deny list**: everything is allowed but the calls below, which fail with EPERM. Docker's profile is
//! an allow list, which also stops calls that did not exist when it was written; its price is programs
//! that break on each new libc until the list catches up, and a list of 400 names whose gaps nobody here
//! would notice. What a deny list risks, new dangerous calls, is small here: containers hold no
//! CAP_SYS_ADMIN, no new privileges, and cannot make a user namespace to gain it inside one, which is
//! where most kernel escapes begin. So the list takes away
//!
//! - namespaces and mounts (`unshare`, `setns`, `clone` with any CLONE_NEW flag, `mount` and its successors);
//! - the kernel itself (modules, kexec, reboot, swap, clock, raw ports, syslog, accounting, quotas);
//! - what is not confined by namespaces (keyrings, file handles, NUMA placement of others, VSOCK);
//! - large surfaces with a record of escapes (`bpf`, `perf_event_open`, `userfaultfd`, `io_uring`), as
//!   Docker and containerd do by now.
//!
//! `ptrace` and `process_vm_*` stay: they reach only processes of the same container with the same ids,
//! and debuggers need them. `clone3` fails with ENOSYS, since its flags lie in memory that a filter cannot
//! read; libc then falls back to `clone`. `ioctl(TIOCSTI)` fails: it types into the caller's terminal.
//! A capability that the pod was granted unlocks the calls it is for, as in Docker.

use std::collections::BTreeSet;

use serde_json::{Value, json};

const EPERM: u32 = 1;
const ENOSYS: u32 = 38;

/// Denied unless the container has one of the capabilities.
const DENIED: &[(&[&str], &[&str])] = &[
    (
        &["SYS_ADMIN"],
        &[
            "mount",
            "umount",
            "umount2",
            "pivot_root",
            "move_mount",
            "open_tree",
            "fsopen",
            "fsconfig",
            "fsmount",
            "fspick",
            "mount_setattr",
            "setns",
            "unshare",
            "swapon",
            "swapoff",
            "quotactl",
            "quotactl_fd",
            "lookup_dcookie",
            "fanotify_init",
        ],
    ),
    (&["SYS_BOOT"], &["reboot", "kexec_load", "kexec_file_load"]),
    (
        &["SYS_MODULE"],
        &["init_module", "finit_module", "delete_module", "create_module", "query_module", "get_kernel_syms"],
    ),
    (&["SYS_TIME"], &["settimeofday", "clock_settime", "clock_settime64", "stime"]),
    (&["SYS_RAWIO"], &["iopl", "ioperm"]),
    (&["SYS_PACCT"], &["acct"]),
    (&["SYS_TTY_CONFIG"], &["vhangup"]),
    (&["SYSLOG", "SYS_ADMIN"], &["syslog"]),
    (&["SYS_NICE"], &["mbind", "set_mempolicy", "move_pages", "migrate_pages"]),
    (&["SYS_PTRACE"], &["kcmp", "pidfd_getfd", "process_madvise", "userfaultfd"]),
    (&["DAC_READ_SEARCH"], &["open_by_handle_at"]),
    (&["BPF", "SYS_ADMIN"], &["bpf"]),
    (&["PERFMON", "SYS_ADMIN"], &["perf_event_open"]),
    (
        &[],
        &[
            "add_key",
            "keyctl",
            "request_key",
            "io_uring_setup",
            "io_uring_enter",
            "io_uring_register",
            "nfsservctl",
            "sysfs",
            "_sysctl",
            "uselib",
            "ustat",
            "vm86",
            "vm86old",
        ],
    ),
];

/// CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET.
const NAMESPACE_FLAGS: [u64; 7] =
    [0x0002_0000, 0x0200_0000, 0x0400_0000, 0x0800_0000, 0x1000_0000, 0x2000_0000, 0x4000_0000];
const AF_VSOCK: u64 = 40;
const TIOCSTI: u64 = 0x5412;
const TIOCLINUX: u64 = 0x541c;

pub(super) fn profile(capabilities: &BTreeSet<&'static str>) -> Value {
    let held = |names: &[&str]| names.iter().any(|name| capabilities.contains(*name));
    let mut rules = Vec::new();
    for (unlocked_by, names) in DENIED {
        if !held(unlocked_by) {
            rules.push(json!({ "names": names, "action": "SCMP_ACT_ERRNO", "errnoRet": EPERM }));
        }
    }
    if !held(&["SYS_ADMIN"]) {
        rules.push(json!({ "names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": ENOSYS }));
        rules.extend(NAMESPACE_FLAGS.map(|flag| deny_when("clone", 0, flag, flag)));
    }
    rules.push(deny_when("socket", 0, 0xffff_ffff, AF_VSOCK));
    rules.extend([TIOCSTI, TIOCLINUX].map(|request| deny_when("ioctl", 1, 0xffff_ffff, request)));
    json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "architectures": architectures(),
        "syscalls": rules,
    })
}

/// Denied when `argument & mask == value`. The mask also cuts the upper half that the kernel ignores.
fn deny_when(name: &str, argument: u32, mask: u64, value: u64) -> Value {
    let condition =
        json!({ "index": argument, "value": mask, "valueTwo": value, "op": "SCMP_CMP_MASKED_EQ" });
    json!({ "names": [name], "action": "SCMP_ACT_ERRNO", "errnoRet": EPERM, "args": [condition] })
}

/// The 32-bit calls of a 64-bit machine are filtered too; any other architecture kills.
fn architectures() -> &'static [&'static str] {
    match std::env::consts::ARCH {
        "x86_64" => &["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
        "aarch64" => &["SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"],
        _ => &[],
    }
}
