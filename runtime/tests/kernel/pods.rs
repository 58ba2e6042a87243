//! What the containers of a pod share, what is removed, how fast it goes.

use std::collections::BTreeMap;
use std::time::Duration;

use runtime::ids::VolumeName;
use runtime::spec::{HostPathKind, Mount, MountSource, PodSpec};

use crate::harness::{container, on_host, shims};

fn empty_dir(name: &str, target: &str, memory: bool) -> Mount {
    let name = VolumeName::new(name).unwrap();
    let source = MountSource::EmptyDir { name, memory, size_bytes: Some(1 << 20) };
    Mount { source, target: target.to_owned(), read_only: false, sub_path: None }
}

#[test]
fn containers_of_a_pod_share_network_name_ipc_and_volumes() {
    on_host(async |host| {
        let uid = host.pod("p1").await;
        let show = "for n in net uts ipc; do readlink /proc/self/ns/$n; done; hostname; ls /dev/shm /tmp/v";
        let mut first = host.shell("first", &format!("touch /dev/shm/s /tmp/v/v; {show}; ip link show lo"));
        let mut second = host.shell("second", &format!("{show}; readlink /proc/self/ns/mnt; ps | wc -l"));
        for spec in [&mut first, &mut second] {
            spec.mounts = vec![empty_dir("v", "/tmp/v", false)];
        }
        host.run(&uid, first.clone()).await;
        host.run(&uid, second).await;
        let (one, two) = (host.log(&uid, "first").await, host.log(&uid, "second").await);
        let shared = one.lines().take(9).collect::<Vec<_>>();
        assert_eq!(shared, two.lines().take(9).collect::<Vec<_>>());
        assert!(one.contains("web-0\n") && one.contains("LOOPBACK,UP"), "{one}");
        let own = std::fs::read_link("/proc/thread-self/ns/net").unwrap();
        assert_ne!(one.lines().next().unwrap(), own.to_str().unwrap());
        assert!(two.lines().last().unwrap().trim().parse::<u32>().unwrap() <= 5, "own pid namespace: {two}");
        // Kept across a restart of the container.
        first.attempt = 1;
        first.command.as_mut().unwrap()[2] = "ls /tmp/v".to_owned();
        host.run(&uid, first).await;
        assert_eq!(host.log(&uid, "first").await, "v\n");
    });
}

#[test]
fn the_pod_s_files_are_there() {
    on_host(async |host| {
        let mut spec = PodSpec::new("p1".parse().unwrap(), "default", "db-0");
        spec.dns.servers = vec!["10.0.0.10".parse().unwrap()];
        spec.dns.search = vec!["default.svc.cluster.local".to_owned()];
        spec.hosts = vec![("10.1.2.3".parse().unwrap(), vec!["db-0".to_owned()])];
        let sandbox = host.runtime().create_pod(spec.clone()).await.unwrap();
        assert!(sandbox.network_namespace.as_ref().unwrap().exists());
        assert_eq!(host.runtime().create_pod(spec.clone()).await.unwrap(), sandbox, "idempotent");
        let script = host.shell("main", "cat /etc/hosts /etc/resolv.conf /etc/hostname");
        host.run(&spec.uid, script).await;
        let log = host.log(&spec.uid, "main").await;
        for line in ["10.1.2.3\tdb-0", "nameserver 10.0.0.10", "search default.svc.cluster.local", "db-0"] {
            assert!(log.lines().any(|known| known == line), "{line}: {log}");
        }
    });
}

#[test]
fn volumes_of_every_kind_and_sub_paths_that_cannot_escape() {
    on_host(async |host| {
        let uid = host.pod("p1").await;
        let shared = host.dir.join("shared");
        std::fs::create_dir_all(shared.join("sub")).unwrap();
        std::fs::write(shared.join("sub/file"), "from the host").unwrap();
        std::os::unix::fs::symlink("/", shared.join("up")).unwrap();
        let host_path = |target: &str, sub: Option<&str>, read_only| Mount {
            source: MountSource::HostPath { path: shared.clone(), kind: HostPathKind::Directory },
            target: target.to_owned(),
            read_only,
            sub_path: sub.map(str::to_owned),
        };
        let files = BTreeMap::from([("key".to_owned(), b"value".to_vec())]);
        let name = VolumeName::new("config").unwrap();
        let config = Mount {
            source: MountSource::Files { name, files, mode: 0o444 },
            target: "/config".to_owned(),
            read_only: true,
            sub_path: None,
        };
        let mut spec = host.shell(
            "main",
            "cat /sub/file /config/key; echo; touch /all/w; touch /ro/w || echo refused; \
             ls /up; df /mem | grep -c tmpfs; stat -c %a /config/key; touch /config/x || echo refused",
        );
        spec.mounts = vec![
            host_path("/all", None, false),
            host_path("/ro", None, true),
            host_path("/sub", Some("sub"), false),
            host_path("/up", Some("up"), false),
            empty_dir("mem", "/mem", true),
            config,
        ];
        host.run(&uid, spec.clone()).await;
        let log = host.log(&uid, "main").await;
        let lines: Vec<&str> = log.lines().filter(|line| !line.contains("Read-only")).collect();
        // "up" leads to "/", which inside the volume is the volume itself.
        assert_eq!(
            lines,
            ["from the hostvalue", "refused", "sub", "up", "w", "1", "444", "refused"],
            "{log}"
        );
        assert!(shared.join("w").exists());
        for (sub_path, kind) in [(Some("../data"), HostPathKind::Directory), (None, HostPathKind::File)] {
            let mut bad = host.shell("bad", "true");
            let source = MountSource::HostPath { path: shared.clone(), kind };
            let sub_path = sub_path.map(str::to_owned);
            bad.mounts = vec![Mount { source, target: "/x".to_owned(), read_only: false, sub_path }];
            let refused = host.runtime().start_container(&uid, bad).await;
            assert!(matches!(refused, Err(runtime::StartError::Prepare(_))), "{refused:?}");
        }
    });
}

/// 200 with SKEIN_TEST_PODS=200; the harness checks that nothing is left.
#[test]
fn many_pods_leave_nothing() {
    on_host(async |host| {
        let count = std::env::var("SKEIN_TEST_PODS").map_or(20, |text| text.parse().unwrap());
        let (mut pods, mut took) = (Vec::new(), Vec::new());
        for round in 0..count {
            let begun = runtime::clock::monotonic();
            let uid = host.pod(&format!("p{round}")).await;
            pods.push(begun.elapsed());
            let mut spec = host.shell("main", "exec sleep 1000");
            spec.resources.memory_limit_bytes = Some(64 << 20);
            host.runtime().start_container(&uid, spec).await.unwrap();
            took.push(begun.elapsed());
            if round % 2 == 0 {
                host.runtime().remove_container(&uid, &container("main")).await.unwrap();
            }
            if round >= 5 {
                let oldest = format!("p{}", round - 5).parse().unwrap();
                host.runtime().remove_pod(&oldest).await.unwrap();
                host.runtime().remove_pod(&oldest).await.unwrap();
            }
        }
        pods.sort();
        took.sort();
        let middle = took.len() / 2;
        println!("create_pod: p50 {:?}; with start_container: p50 {:?}", pods[middle], took[middle]);
        println!("the slowest: {:?}", took[took.len() - 1]);
        println!("shim PSS: {:?} KiB", shims(&host.dir).into_iter().map(pss).collect::<Vec<_>>());
        assert!(took[middle] < Duration::from_millis(500));
    });
}

fn pss(pid: i32) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("Pss:")).unwrap_or_default();
    line.trim().trim_end_matches(" kB").parse().unwrap_or(0)
}
