//! Run to completion, and what a process is given.

use std::time::Duration;

use runtime::StartError;
use runtime::state::{ContainerStatus, Event, ExitReason};
use serde_json::json;

use crate::harness::{container, on_host, until};
use crate::images;

#[test]
fn a_container_runs_to_its_end_with_code_and_output() {
    on_host(async |host| {
        let (log, exit) = host.output("p1", |_| {}, "echo out; echo err >&2; exit 7").await;
        assert_eq!((exit.code, exit.reason, exit.signal), (7, ExitReason::Error, None));
        assert_eq!(log, "out\nerr\n");
        let Event::ContainerExited { container, attempt, exit: told, .. } = host.event().await else {
            panic!("no exit event");
        };
        assert_eq!((container.as_str(), attempt, told), ("main", 0, exit));
    });
}

#[test]
fn command_arguments_environment_and_directory_follow_the_rules() {
    on_host(async |host| {
        let image = host.load(&images::busybox(json!({
            "Entrypoint": ["/bin/echo", "entry"], "Cmd": ["cmd"],
            "Env": ["PATH=/bin", "A=image", "B=image"], "WorkingDir": "/made/here", "User": "web",
        })));
        let cases = [
            (None, None, "entry cmd\n"),
            (None, Some(vec!["args"]), "entry args\n"),
            (Some(vec!["/bin/echo", "mine"]), None, "mine\n"),
            (Some(vec!["/bin/echo", "mine"]), Some(vec!["args"]), "mine args\n"),
        ];
        let owned = |words: Vec<&str>| words.into_iter().map(str::to_owned).collect();
        for (number, (command, args, expected)) in cases.into_iter().enumerate() {
            let change = |spec: &mut runtime::spec::ContainerSpec| {
                spec.image = image;
                spec.command = command.map(owned);
                spec.args = args.map(owned);
            };
            let (log, exit) = host.output(&format!("case{number}"), change, "").await;
            assert_eq!((log.as_str(), exit.code), (expected, 0));
        }
        let script = "echo $A $B $C; pwd; id -u; id -g; id -G; echo $HOSTNAME; umask; touch /made/here/x 2>/dev/null || echo no";
        let change = |spec: &mut runtime::spec::ContainerSpec| {
            spec.image = image;
            spec.env = vec![("B".into(), "pod".into()), ("C".into(), "x=y z".into())];
        };
        let (log, _) = host.output("env", change, script).await;
        let expected = "image pod x=y z\n/made/here\n1000\n1001\n1001 1002\nweb-0\n0022\n";
        assert!(log.starts_with(expected) && log.ends_with("no\n"), "{log}");
    });
}

#[test]
fn a_command_that_is_not_there_is_127_and_one_that_is_no_program_126() {
    on_host(async |host| {
        let uid = host.pod("p1").await;
        for (name, command, code) in
            [("a", "/no/such", 127), ("b", "nosuch", 127), ("c", "/etc/plain", 126), ("d", "/etc", 126)]
        {
            let mut spec = host.shell(name, "");
            spec.command = Some(vec![command.to_owned()]);
            let refused = host.runtime().start_container(&uid, spec.clone()).await;
            let Err(StartError::CannotRun(exit)) = refused else { panic!("{command}: {refused:?}") };
            assert_eq!((exit.code, exit.reason), (code, ExitReason::CannotRun), "{}", exit.message);
            assert!(exit.message.contains(command), "{}", exit.message);
            assert_eq!(host.status(&uid, &spec.name).await, ContainerStatus::Exited(*exit));
            // The next attempt of the same name works.
            spec.command = Some(vec!["/bin/true".to_owned()]);
            spec.attempt = 1;
            assert_eq!(host.run(&uid, spec).await.code, 0);
        }
    });
}

#[test]
fn stopping_is_graceful_and_then_is_not() {
    on_host(async |host| {
        let uid = host.pod("p1").await;
        let polite =
            host.shell("polite", "trap 'echo bye; exit 3' TERM; echo up; while true; do sleep 0.05; done");
        let deaf = host.shell("deaf", "trap '' TERM; echo up; while true; do sleep 0.05; done");
        for spec in [polite, deaf] {
            let name = spec.name.clone();
            host.runtime().start_container(&uid, spec).await.unwrap();
            let is_up = async || (host.log(&uid, name.as_str()).await == "up\n").then_some(());
            until("it has set its trap", is_up).await;
        }
        let stop = async |name: &str, grace| {
            host.runtime().stop_container(&uid, &container(name), Duration::from_millis(grace)).await.unwrap()
        };
        assert_eq!(stop("polite", 5000).await.code, 3);
        let exit = stop("deaf", 200).await;
        assert_eq!((exit.code, exit.signal, exit.oom_killed), (137, Some(9), false));
        assert_eq!(stop("deaf", 200).await, exit, "stopping what has ended gives its end");
    });
}

#[test]
fn a_restart_has_a_fresh_root_and_keeps_the_log_before() {
    on_host(async |host| {
        let uid = host.pod("p1").await;
        for attempt in 0..3 {
            let script = format!("test -e /mark && echo dirty; touch /mark; echo try {attempt}");
            let mut spec = host.shell("main", &script);
            spec.attempt = attempt;
            host.run(&uid, spec).await;
        }
        assert_eq!(host.log(&uid, "main").await, "try 2\n");
        let previous = runtime::LogOptions { previous: true, ..Default::default() };
        assert_eq!(host.log_with(&uid, "main", previous).await, "try 1\n");
        let logs = host.config.data.join("pods/p1/logs/main");
        assert_eq!(std::fs::read_dir(logs).unwrap().count(), 2, "older logs are gone");
    });
}
