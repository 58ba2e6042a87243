//! Further processes in a running container.

use std::time::Duration;

use runtime::ExecError;
use runtime::spec::ExecSpec;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::harness::{container, on_host, until};

fn shell(script: &str) -> ExecSpec {
    ExecSpec { args: ["/bin/sh", "-c", script].map(str::to_owned).to_vec(), ..ExecSpec::default() }
}

#[test]
fn exec_has_input_output_code_and_the_same_confinement() {
    on_host(async |host| {
        let uid = host.pod("p1").await;
        let mut spec = host.shell("main", "exec sleep 1000");
        spec.env = vec![("A".into(), "container".into())];
        host.runtime().start_container(&uid, spec).await.unwrap();
        let name = container("main");
        let run = async |spec: ExecSpec, input: &str| {
            let mut session = host.runtime().exec(&uid, &name, spec).await.unwrap();
            if let Some(mut stdin) = session.stdin.take() {
                stdin.write_all(input.as_bytes()).await.unwrap();
            }
            let (mut out, mut err) = (String::new(), String::new());
            session.stdout.read_to_string(&mut out).await.unwrap();
            session.stderr.read_to_string(&mut err).await.unwrap();
            (out, err, session.wait().await.unwrap())
        };
        let cat = ExecSpec { stdin: true, ..shell("wc -c; echo bad >&2; exit 5") };
        let (out, err, code) = run(cat, &"x".repeat(300_000)).await;
        assert_eq!((out.trim(), err.as_str(), code), ("300000", "bad\n", 5));
        let env = ExecSpec {
            env: vec![("B".into(), "exec".into())],
            cwd: Some("/tmp".into()),
            ..shell("echo $A $B; pwd")
        };
        assert_eq!(run(env, "").await, ("container exec\n/tmp\n".into(), String::new(), 0));
        let status = "grep -E '^(Seccomp|NoNewPrivs|CapBnd):' /proc/self/status; ls /proc/self/fd; mount -t tmpfs x /tmp";
        let (out, err, _) = run(shell(status), "").await;
        assert!(
            out.contains("Seccomp:\t2\n") && out.contains("NoNewPrivs:\t1\n") && out.contains("a00405fb"),
            "{out}"
        );
        assert!(out.ends_with("0\n1\n2\n3\n"), "no descriptor of ours inside: {out}");
        assert!(err.contains("denied") || err.contains("not permitted"), "{err}");
        let (_, _, code) = run(shell("kill -9 $$"), "").await;
        assert_eq!(code, 137);
        let missing = ExecSpec { args: vec!["nosuch".into()], ..ExecSpec::default() };
        match host.runtime().exec(&uid, &name, missing).await {
            Err(ExecError::CannotRun { code: 127, message }) => {
                assert!(message.contains("nosuch"), "{message}")
            }
            other => panic!("{:?}", other.err()),
        }
        for cwd in ["/proc/self/fd/3", "/proc/self/fd/5", "/proc/self/fd/7", "/proc/self/fd/10"] {
            let spec = ExecSpec { cwd: Some(cwd.to_owned()), ..shell("pwd; ls") };
            let refused = host.runtime().exec(&uid, &name, spec).await;
            assert!(refused.is_err(), "{cwd}");
        }
    });
}

#[test]
fn a_dropped_session_ends_its_process_and_not_the_container() {
    on_host(async |host| {
        let uid = host.pod("p1").await;
        host.runtime().start_container(&uid, host.shell("main", "exec sleep 1000")).await.unwrap();
        let name = container("main");
        let session = host.runtime().exec(&uid, &name, shell("exec sleep 77")).await.unwrap();
        let procs = format!("/sys/fs/cgroup/pids{}/podp1/main/cgroup.procs", host.config.cgroup_parent);
        let count = || std::fs::read_to_string(&procs).unwrap().lines().count();
        assert_eq!(count(), 2);
        drop(session);
        until("its process has ended", async || (count() == 1).then_some(())).await;
        host.runtime().stop_container(&uid, &name, Duration::ZERO).await.unwrap();
        let refused = host.runtime().exec(&uid, &name, shell("true")).await;
        assert!(matches!(refused, Err(ExecError::NotRunning)));
    });
}
