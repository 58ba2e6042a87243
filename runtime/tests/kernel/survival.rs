//! Agents and shims that are killed.

use std::time::Duration;

use runtime::spec::PodSpec;
use runtime::state::{ContainerStatus, Event, ExitReason};
use runtime::{LogOptions, OpenError, StartError};

use crate::harness::{container, is_gone, on_host, shims, until};

#[test]
fn a_new_agent_finds_containers_exit_codes_and_logs() {
    on_host(async |host| {
        let uid = host.pod("p1").await;
        let script = "echo begun; while ! test -e /tmp/v/go; do usleep 20000; done; echo ended; exit 9";
        let mut spec = host.shell("main", script);
        let shared = host.dir.join("v");
        std::fs::create_dir(&shared).unwrap();
        spec.mounts = vec![runtime::spec::Mount {
            source: runtime::spec::MountSource::HostPath {
                path: shared.clone(),
                kind: runtime::spec::HostPathKind::Directory,
            },
            target: "/tmp/v".to_owned(),
            read_only: false,
            sub_path: None,
        }];
        let started = host.runtime().start_container(&uid, spec.clone()).await.unwrap();
        let refused = host.open().await;
        assert!(matches!(refused, Err(OpenError::InUse { .. })), "one agent at a time");
        host.kill_agent();
        host.open().await.unwrap();
        assert_eq!(host.status(&uid, &spec.name).await, ContainerStatus::Running(started));
        assert!(host.runtime().pod(&uid).await.unwrap().sandboxed);
        host.kill_agent();
        std::fs::write(shared.join("go"), "").unwrap();
        until("it has ended while there was no agent", async || is_gone(started.pid).then_some(())).await;
        host.open().await.unwrap();
        // The shim may be about to write it down.
        let exit = host.end(&uid, &spec.name).await;
        assert_eq!((exit.code, exit.started_at), (9, Some(started.started_at)));
        assert_eq!(host.log(&uid, "main").await, "begun\nended\n");
        // And it is a whole agent: restart it, hear of its end.
        spec.attempt = 1;
        host.runtime().start_container(&uid, spec.clone()).await.unwrap();
        let event = host.event().await;
        assert!(matches!(event, Event::ContainerExited { attempt: 1, exit, .. } if exit.code == 9));
    });
}

#[test]
fn a_killed_shim_takes_its_pod_along_and_is_reported() {
    on_host(async |host| {
        for agent_lives in [true, false] {
            let uid = host.pod("p1").await;
            let spec = host.shell("main", "sleep 1000 & trap '' TERM; exec sleep 1000");
            let name = spec.name.clone();
            let started = host.runtime().start_container(&uid, spec.clone()).await.unwrap();
            if !agent_lives {
                host.kill_agent();
            }
            let shim = shims(&host.dir);
            assert_eq!(shim.len(), 1);
            nix::sys::signal::kill(nix::unistd::Pid::from_raw(shim[0]), nix::sys::signal::SIGKILL).unwrap();
            if !agent_lives {
                host.open().await.unwrap();
            }
            let Event::ContainerExited { exit, .. } = host.event().await else { panic!("no exit") };
            assert_eq!((exit.code, exit.reason), (137, ExitReason::ShimLost));
            assert_eq!(host.event().await, Event::ShimLost { uid: uid.clone() });
            assert!(is_gone(started.pid), "its process is dead");
            assert!(!host.runtime().pod(&uid).await.unwrap().sandboxed);
            assert!(matches!(host.status(&uid, &name).await, ContainerStatus::Exited(_)));
            let refused = host.runtime().start_container(&uid, spec.clone()).await;
            assert!(matches!(refused, Err(StartError::NoSandbox)));
            // Another shim for the same pod; the network namespace is the old one.
            host.pod("p1").await;
            let mut again = host.shell("main", "echo again");
            again.attempt = 1;
            assert_eq!(host.run(&uid, again).await.code, 0);
            assert_eq!(host.log(&uid, "main").await, "again\n");
            assert!(matches!(host.event().await, Event::ContainerExited { attempt: 1, .. }));
            host.runtime().remove_pod(&uid).await.unwrap();
        }
    });
}

#[test]
fn a_reboot_empties_the_run_directory_and_loses_no_volume() {
    on_host(async |host| {
        let uid = host.pod("p1").await;
        let mut spec = host.shell("main", "echo kept >> /v/file; echo written; exec sleep 1000");
        let name = "v".parse().unwrap();
        let source = runtime::spec::MountSource::EmptyDir { name, memory: false, size_bytes: None };
        spec.mounts =
            vec![runtime::spec::Mount { source, target: "/v".into(), read_only: false, sub_path: None }];
        host.runtime().start_container(&uid, spec.clone()).await.unwrap();
        let is_written = async || (host.log(&uid, "main").await == "written\n").then_some(());
        until("the volume holds it", is_written).await;
        host.kill_agent();
        let shims = shims(&host.dir);
        for pid in &shims {
            nix::sys::signal::kill(nix::unistd::Pid::from_raw(*pid), nix::sys::signal::SIGKILL).unwrap();
        }
        let dead = async || shims.iter().all(|pid| is_gone(*pid)).then_some(());
        until("the shim is gone", dead).await;
        for kind in ["net", "uts", "ipc"] {
            nix::mount::umount(&host.config.run.join(format!("{kind}ns/p1"))).unwrap();
        }
        nix::mount::umount(&host.config.run.join("pods/p1/shm")).unwrap();
        for name in ["pods", "netns", "utsns", "ipcns"] {
            std::fs::remove_dir_all(host.config.run.join(name)).unwrap();
        }
        host.open().await.unwrap();
        assert!(matches!(host.event().await, Event::ContainerExited { .. }));
        assert!(matches!(host.event().await, Event::ShimLost { .. }));
        host.pod("p1").await;
        spec.attempt = 1;
        spec.command.as_mut().unwrap()[2] = "cat /v/file".to_owned();
        host.run(&uid, spec).await;
        assert_eq!(host.log(&uid, "main").await, "kept\n");
    });
}

#[test]
fn removals_and_creations_that_were_cut_off_are_finished() {
    on_host(async |host| {
        let spec = PodSpec::new("p1".parse().unwrap(), "default", "web");
        host.runtime().create_pod(spec.clone()).await.unwrap();
        host.runtime().start_container(&spec.uid, host.shell("main", "exec sleep 1000")).await.unwrap();
        host.kill_agent();
        // As remove_pod leaves it when killed after the record is gone, with everything still there.
        std::fs::remove_file(host.config.data.join("pods/p1/pod.json")).unwrap();
        host.open().await.unwrap();
        assert!(host.runtime().pods().await.is_empty());
        let follow = host.runtime().logs(&spec.uid, &container("main"), LogOptions::default());
        assert!(follow.is_err());
    });
}

/// Another OCI runtime with crun's command line, where one is installed (Debian's runc).
#[test]
fn another_oci_runtime_takes_the_place_of_ours() {
    let runc = std::path::Path::new("/usr/sbin/runc");
    if !runc.exists() {
        eprintln!("skipped: install runc to run this test");
        return;
    }
    on_host(async |host| {
        host.kill_agent();
        host.config.oci_runtime = runtime::OciRuntime::Program(runc.to_owned());
        host.open().await.unwrap();
        let (log, exit) =
            host.output("p1", |_| {}, "echo out; grep Seccomp: /proc/self/status; exit 4").await;
        assert_eq!((log.as_str(), exit.code), ("out\nSeccomp:\t2\n", 4));
        let uid = host.pod("p2").await;
        host.runtime().start_container(&uid, host.shell("main", "exec sleep 1000")).await.unwrap();
        let spec = runtime::spec::ExecSpec { args: vec!["/bin/false".into()], ..Default::default() };
        let mut session = host.runtime().exec(&uid, &container("main"), spec).await.unwrap();
        assert_eq!(session.wait().await.unwrap(), 1);
        let mut missing = host.shell("missing", "");
        missing.command = Some(vec!["/no/such".to_owned()]);
        let refused = host.runtime().start_container(&uid, missing).await;
        assert!(matches!(&refused, Err(StartError::CannotRun(exit)) if exit.code == 127), "{refused:?}");
        host.runtime().remove_container(&uid, &container("main")).await.unwrap();
    });
}

#[test]
fn a_runtime_call_that_hangs_is_killed_and_leaves_nothing() {
    on_host(async |host| {
        host.kill_agent();
        let hanging = host.dir.join("hanging");
        std::fs::write(&hanging, "#!/bin/sh\nsleep 1000\n").unwrap();
        std::fs::set_permissions(&hanging, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        host.config.oci_runtime = runtime::OciRuntime::Program(hanging);
        host.config.operation_limit = Duration::from_millis(200);
        host.open().await.unwrap();
        let uid = host.pod("p1").await;
        let refused = host.runtime().start_container(&uid, host.shell("main", "true")).await;
        let message = refused.unwrap_err().to_string();
        assert!(message.contains("create within 200 ms"), "{message}");
        assert!(host.runtime().pod(&uid).await.unwrap().containers.is_empty());
        // The name is free again.
        assert!(host.runtime().start_container(&uid, host.shell("main", "true")).await.is_err());
    });
}

#[test]
fn a_stopped_shim_cannot_hold_up_removal() {
    on_host(async |host| {
        let uid = host.pod("p1").await;
        host.runtime().start_container(&uid, host.shell("main", "exec sleep 1000")).await.unwrap();
        let shim = nix::unistd::Pid::from_raw(shims(&host.dir)[0]);
        nix::sys::signal::kill(shim, nix::sys::signal::SIGSTOP).unwrap();
        let begun = runtime::clock::monotonic();
        host.runtime().remove_pod(&uid).await.unwrap();
        assert!(begun.elapsed() < Duration::from_secs(10));
    });
}

#[test]
fn a_release_that_was_cut_off_is_finished_and_logs_and_exits_outlive_it() {
    on_host(async |host| {
        let uid = host.pod("p1").await;
        let exit = host.run(&uid, host.shell("main", "echo said; exit 4")).await;
        assert_eq!((exit.code, shims(&host.dir).len()), (4, 1));
        host.kill_agent();
        // As far as an agent that was killed right at the beginning came.
        let record = std::fs::read_dir(host.dir.join("data/pods")).unwrap().next().unwrap().unwrap().path();
        std::fs::write(record.join("released"), "").unwrap();
        host.open().await.unwrap();
        for again in [false, true] {
            if again {
                host.runtime().release_pod(&uid).await.unwrap();
            }
            let state = host.runtime().pod(&uid).await.unwrap();
            assert!(state.released && !state.sandboxed);
            assert!(shims(&host.dir).is_empty());
            assert_eq!(host.log(&uid, "main").await, "said\n");
            assert_eq!(host.status(&uid, &container("main")).await, ContainerStatus::Exited(exit.clone()));
        }
        host.runtime().remove_pod(&uid).await.unwrap();
        assert!(!record.exists());
    });
}
