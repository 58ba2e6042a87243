//! What a container may not do.

use runtime::image::UnpackError;
use runtime::{PrepareError, StartError};
use serde_json::json;
use tar::EntryType;

use crate::harness::on_host;
use crate::images::{self, add_raw, busybox_layer};

#[test]
fn the_default_profile_denies_with_eperm() {
    on_host(async |host| {
        let script = "grep -E '^(Seccomp|NoNewPrivs|CapEff|CapBnd|CapInh|CapAmb):' /proc/self/status; \
            mount -t tmpfs x /tmp; unshare -n true; unshare -U true; mknod /tmp/n c 1 3; \
            echo x > /proc/sys/kernel/hostname; echo x > /sys/kernel/x; head -c 1 /proc/keys | wc -c; \
            ls /proc/self/fd; touch /rootfs-is-writable && echo ok";
        let (log, _) = host.output("p1", |_| {}, script).await;
        assert!(log.contains("Seccomp:\t2\n") && log.contains("NoNewPrivs:\t1\n"), "{log}");
        // AUDIT_WRITE … SYS_CHROOT without NET_RAW and MKNOD.
        for (set, value) in [
            ("Eff", "00000000a00405fb"),
            ("Bnd", "00000000a00405fb"),
            ("Inh", "0000000000000000"),
            ("Amb", "0000000000000000"),
        ] {
            assert!(log.contains(&format!("Cap{set}:\t{value}\n")), "{log}");
        }
        assert!(log.contains("mount: permission denied") || log.contains("mount: mounting x"), "{log}");
        assert_eq!(
            log.matches("Operation not permitted").count() + log.matches("permission denied").count(),
            4,
            "{log}"
        );
        assert_eq!(log.matches("Read-only file system").count(), 2, "{log}");
        assert!(log.contains("\nok\n") || log.ends_with("ok\n"), "{log}");
        let fds: Vec<&str> = log.lines().filter(|line| line.parse::<u32>().is_ok()).collect();
        assert_eq!(
            fds,
            ["0", "0", "1", "2", "3"],
            "keys is masked; only standard streams and ls's own: {log}"
        );
    });
}

#[test]
fn privileges_can_be_given_and_taken() {
    on_host(async |host| {
        let status = "grep -E '^(Seccomp|NoNewPrivs|CapEff):' /proc/self/status";
        let all_gone = |spec: &mut runtime::spec::ContainerSpec| {
            spec.security.drop_capabilities = vec!["ALL".into()];
            spec.security.add_capabilities = vec!["NET_BIND_SERVICE".into()];
            spec.security.read_only_root = true;
        };
        let (log, _) = host.output("p1", all_gone, &format!("{status}; touch /x")).await;
        assert!(log.contains("CapEff:\t0000000000000400\n") && log.contains("Read-only"), "{log}");
        let may_gain = |spec: &mut runtime::spec::ContainerSpec| spec.security.no_new_privileges = false;
        let (log, _) = host.output("p2", may_gain, status).await;
        assert!(log.contains("NoNewPrivs:\t0\n") && log.contains("Seccomp:\t2\n"), "{log}");
        let privileged = |spec: &mut runtime::spec::ContainerSpec| spec.security.privileged = true;
        let (log, _) =
            host.output("p3", privileged, &format!("{status}; mount -t tmpfs x /tmp && echo mounted")).await;
        assert!(log.contains("Seccomp:\t0\n") && log.contains("mounted"), "{log}");
        let user = |spec: &mut runtime::spec::ContainerSpec| spec.security.user = Some("web".into());
        let (log, _) = host.output("p4", user, status).await;
        assert!(log.contains("CapEff:\t0000000000000000\n"), "{log}");
        let mut unknown = host.shell("main", "true");
        unknown.security.user = Some("nobody-here".into());
        let refused = host.runtime().start_container(&"p4".parse().unwrap(), unknown).await;
        assert!(refused.unwrap_err().to_string().contains("numeric uid"));
    });
}

#[test]
fn images_with_symlinks_where_the_runtime_writes_are_refused() {
    on_host(async |host| {
        let canary = host.dir.join("canary");
        std::fs::create_dir(&canary).unwrap();
        let uid = host.pod("p1").await;
        for name in ["dev", "proc", "sys", "etc"] {
            let mut tar = tar::Builder::new(Vec::new());
            if name == "etc" {
                tar.append_data(
                    &mut images::header(EntryType::Regular, 0o644, 0),
                    ".wh.etc",
                    std::io::empty(),
                )
                .unwrap();
            }
            add_raw(&mut tar, EntryType::Symlink, name, canary.to_str().unwrap());
            let image = host.load(&images::archive(&[busybox_layer(), tar.into_inner().unwrap()], json!({})));
            let mut spec = host.shell("main", "true");
            spec.image = image;
            let refused = host.runtime().start_container(&uid, spec).await;
            assert!(
                matches!(refused, Err(StartError::Prepare(PrepareError::UnsafeRoot { .. }))),
                "{name}: {refused:?}"
            );
        }
        assert_eq!(std::fs::read_dir(&canary).unwrap().count(), 0);
    });
}

#[test]
fn layers_cannot_write_outside() {
    on_host(async |host| {
        let canary = host.dir.join("canary");
        std::fs::create_dir(&canary).unwrap();
        std::fs::write(canary.join("secret"), "secret").unwrap();
        let canary_path = canary.to_str().unwrap();
        let secret = format!("{canary_path}/secret");
        type Entry<'a> = (EntryType, &'a str, &'a str);
        let through = format!("{canary_path}/x");
        let cases: Vec<Vec<Entry>> = vec![
            vec![(EntryType::Regular, "../x", "")],
            vec![(EntryType::Regular, "a/../../x", "")],
            vec![(EntryType::Symlink, ".", canary_path), (EntryType::Regular, "x", "")],
            vec![(EntryType::Symlink, "/", canary_path)],
            vec![(EntryType::Link, "hard", "../../../../../../etc/passwd")],
            vec![(EntryType::Link, "hard", &secret)],
            vec![(EntryType::Symlink, "out", canary_path), (EntryType::Regular, "out/x", "")],
            vec![(EntryType::Symlink, "out", canary_path), (EntryType::Regular, "out/.wh.secret", "")],
            vec![(EntryType::Symlink, "out", canary_path), (EntryType::Link, "hard", "out/secret")],
            vec![(EntryType::Regular, ".wh...", "")],
            vec![(EntryType::Symlink, "x", &through), (EntryType::Regular, "x", "")],
        ];
        let uid = host.pod("p1").await;
        for (number, case) in cases.iter().enumerate() {
            let mut tar = tar::Builder::new(Vec::new());
            for (kind, path, link) in case {
                add_raw(&mut tar, *kind, path, link);
            }
            let image = host.load(&images::archive(&[busybox_layer(), tar.into_inner().unwrap()], json!({})));
            let mut spec = host.shell(&format!("c{number}"), "true");
            spec.image = image;
            match host.runtime().start_container(&uid, spec).await {
                // Resolved inside the root, harmless.
                Ok(_) => {}
                Err(StartError::Prepare(PrepareError::Unpack(UnpackError::Layer { .. }))) => {}
                other => panic!("{case:?}: {other:?}"),
            }
            let names: Vec<_> =
                std::fs::read_dir(&canary).unwrap().flatten().map(|e| e.file_name()).collect();
            assert_eq!(names, ["secret"], "{case:?}");
            assert_eq!(std::fs::read_to_string(&secret).unwrap(), "secret", "{case:?}");
            use std::os::unix::fs::MetadataExt;
            assert_eq!(std::fs::metadata(&secret).unwrap().nlink(), 1, "{case:?}");
        }
    });
}

/// CVE-2024-21626: a working directory that is one of the runtime's own descriptors.
#[test]
fn a_working_directory_outside_is_refused() {
    on_host(async |host| {
        let uid = host.pod("p1").await;
        for fd in 3..32 {
            let mut spec = host.shell("main", "pwd; ls ../../..");
            spec.working_dir = Some(format!("/proc/self/fd/{fd}"));
            let refused = host.runtime().start_container(&uid, spec).await;
            assert!(matches!(refused, Err(StartError::CannotRun(_))), "{fd}: {refused:?}");
        }
    });
}
