//! The documents that the OCI runtime is given.

use super::*;
use crate::ids::{ContainerName, Digest};
use crate::spec::Security;

const ALL_HELD: u64 = (1 << 41) - 1;

fn host() -> HostFacts {
    HostFacts {
        unified_cgroups: true,
        swap_accounting: true,
        nofile_hard: 20_000,
        capabilities: ALL_HELD,
        oom_score_adj_min: -5,
    }
}

/// The document for a spec, with an image that sets everything.
fn config_of(change: impl FnOnce(&mut ContainerSpec, &mut HostFacts)) -> Result<Value, BundleError> {
    let mut host = host();
    let mut spec = ContainerSpec::new(ContainerName::new("c").unwrap(), Digest::of(b""));
    change(&mut spec, &mut host);
    let image = ImageConfig {
        env: vec!["A=image".into(), "PATH=/image".into()],
        entrypoint: vec!["entry".into()],
        command: vec!["cmd".into()],
        ..ImageConfig::default()
    };
    // A directory without /etc: the image has no user database.
    let root = OwnedFd::from(std::fs::File::open("/proc/self/ns").unwrap());
    let binds = [BindMount { source: "/src".into(), target: "/dst".into(), read_only: true }];
    config(&BundleInput {
        spec: &spec,
        image: &image,
        host: &host,
        hostname: "h",
        rootfs: Path::new("/rootfs"),
        root: &root,
        cgroup: "/skein/podu/c".into(),
        namespaces: &[("network", "/run/netns/u".into())],
        binds: &binds,
    })
}

#[test]
fn command_and_args_follow_kubernetes() {
    let words = |words: &[&str]| Some(words.iter().map(|word| (*word).to_owned()).collect());
    for (command, args, expected) in [
        (None, None, vec!["entry", "cmd"]),
        (None, words(&["x"]), vec!["entry", "x"]),
        (words(&["x"]), None, vec!["x"]),
        (words(&["x"]), words(&["y"]), vec!["x", "y"]),
        (None, words(&[]), vec!["entry"]),
    ] {
        let config = config_of(|spec, _| (spec.command, spec.args) = (command, args)).unwrap();
        assert_eq!(config["process"]["args"], json!(expected));
    }
    let empty = config_of(|spec, _| spec.command = words(&[]));
    assert!(matches!(empty, Err(BundleError::NoCommand)));
}

#[test]
fn the_last_environment_wins_in_the_first_s_place() {
    let config =
        config_of(|spec, _| spec.env = vec![("A".into(), "pod".into()), ("B".into(), "1=2".into())]).unwrap();
    assert_eq!(config["process"]["env"], json!(["PATH=/image", "HOSTNAME=h", "A=pod", "B=1=2"]));
}

#[test]
fn limits_are_what_was_asked_within_what_may_be_set() {
    let config = config_of(|spec, _| {
        spec.resources.memory_limit_bytes = Some(1 << 20);
        spec.resources.cpu_quota_millis = Some(1500);
        spec.resources.cpu_shares = Some(1);
        spec.resources.pids_limit = Some(7);
        spec.resources.oom_score_adj = Some(-900);
    })
    .unwrap();
    let resources = &config["linux"]["resources"];
    assert_eq!(resources["memory"], json!({ "limit": 1 << 20, "swap": 1 << 20 }));
    assert_eq!(resources["cpu"], json!({ "quota": 150_000, "period": 100_000, "shares": 2 }));
    assert_eq!(resources["pids"]["limit"], 7);
    assert_eq!(config["process"]["oomScoreAdj"], -5);
    assert_eq!(config["process"]["rlimits"][0]["hard"], 20_000);
}

#[test]
fn safe_by_default_and_nothing_of_it_when_privileged() {
    let config = config_of(|_, _| {}).unwrap();
    let process = &config["process"];
    assert_eq!(process["noNewPrivileges"], true);
    assert_eq!(process["capabilities"]["inheritable"], json!([]));
    let bounding = process["capabilities"]["bounding"].to_string();
    assert!(!["NET_RAW", "MKNOD", "SYS_ADMIN"].iter().any(|name| bounding.contains(name)), "{bounding}");
    assert!(config["linux"]["seccomp"]["syscalls"].to_string().contains("\"mount\""));
    assert!(config["linux"]["maskedPaths"].to_string().contains("/proc/kcore"));
    let config = config_of(|spec, _| spec.security.privileged = true).unwrap();
    assert!(config["linux"].get("seccomp").is_none() && config["linux"].get("maskedPaths").is_none());
    assert!(config["process"].get("noNewPrivileges").is_none(), "absent, not false");
}

#[test]
fn a_granted_capability_unlocks_its_calls() {
    let grant = |name: &str| {
        let add_capabilities = vec![name.to_owned()];
        config_of(|spec, _| spec.security = Security { add_capabilities, ..Security::default() })
    };
    let rules = grant("SYS_ADMIN").unwrap()["linux"]["seccomp"]["syscalls"].to_string();
    assert!(!rules.contains("\"mount\"") && !rules.contains("\"clone3\"") && rules.contains("\"keyctl\""));
    let rules = grant("CAP_SYS_TIME").unwrap()["linux"]["seccomp"]["syscalls"].to_string();
    assert!(!rules.contains("\"settimeofday\"") && rules.contains("\"mount\""));
    assert!(matches!(grant("FLY"), Err(BundleError::UnknownCapability(_))));
}

#[test]
fn only_capabilities_that_we_hold_are_given() {
    let confined = |host: &mut HostFacts| host.capabilities = 1 << 10; // NET_BIND_SERVICE
    let config = config_of(|spec, host| {
        spec.security.privileged = true;
        confined(host);
    });
    assert_eq!(config.unwrap()["process"]["capabilities"]["bounding"], json!(["CAP_NET_BIND_SERVICE"]));
    let refused = config_of(|spec, host| {
        spec.security.add_capabilities = vec!["NET_ADMIN".into()];
        confined(host);
    });
    assert!(matches!(refused, Err(BundleError::CapabilityNotHeld("NET_ADMIN"))));
}

#[test]
fn strange_targets_and_bytes_are_refused() {
    assert!(matches!(
        config_of(|spec, _| spec.command = Some(vec!["a\0b".into()])),
        Err(BundleError::ZeroByte { .. })
    ));
    for target in ["", "/", "relative", "/a/../../b"] {
        assert!(!is_target(target), "{target:?}");
    }
    assert!(is_target("/a/b"));
}
