//! Probes from the node: who is ready, who is restarted, what a rolling update waits for.

use serde_json::{Value, json};

use crate::world::{World, app, pod};

fn container(world: &World, name: &str) -> Value {
    world.get(0, "pod", name)["status"]["containerStatuses"][0].clone()
}

fn inside(world: &World, pod: &str, line: &str) {
    world.run(0, &["skein", "exec", pod, "--", "sh", "-c", line]);
}

#[test]
fn probes_decide_who_is_started_ready_and_restarted() {
    let world = World::of(1, "probes");
    let mut probed = pod("p", "httpd -f -p 8080 -h /tmp", "Always");
    let container_spec = &mut probed["spec"]["containers"][0];
    container_spec["ports"] = json!([{"name": "web", "containerPort": 8080}]);
    container_spec["startupProbe"] =
        json!({"tcpSocket": {"port": "web"}, "periodSeconds": 1, "failureThreshold": 30});
    container_spec["readinessProbe"] =
        json!({"httpGet": {"path": "/ready", "port": "web"}, "periodSeconds": 1});
    container_spec["livenessProbe"] = json!({"exec": {"command": ["sh", "-c", "! test -e /tmp/sick"]}, "periodSeconds": 1, "timeoutSeconds": 5, "failureThreshold": 2});
    world.apply(0, &probed);
    world.until("it has started and is not ready", || {
        let container = container(&world, "p");
        container["started"] == true && container["ready"] == false
    });
    world.until("the reason is told", || {
        world.run(0, &["skein", "events"]).contains("Readiness probe failed: HTTP status 404")
    });
    inside(&world, "p", "echo yes > /tmp/ready");
    world.until("it is ready", || container(&world, "p")["ready"] == true);
    let agent = world.host(0).agent_pid().unwrap();
    let before = world.get(0, "pod", "p")["status"].clone();
    world.host(0).kill_agent(nix::sys::signal::Signal::SIGKILL).unwrap();
    world.host(0).agent_after(agent, std::time::Duration::from_secs(5)).unwrap();
    world.until("the API is back", || world.status(0).is_some_and(|status| status["leader"] == "host1"));
    inside(&world, "p", "true");
    assert_eq!(world.get(0, "pod", "p")["status"], before, "a new agent takes it for as ready as it was");
    inside(&world, "p", "echo > /tmp/sick");
    world.until("its liveness probe restarts it", || container(&world, "p")["restartCount"] == 1);
    world.until("it is up again, and not ready", || {
        let container = container(&world, "p");
        container["started"] == true && container["ready"] == false
    });
    assert!(world.run(0, &["skein", "events"]).contains("Liveness probe failed"));
}

#[test]
fn a_rolling_update_waits_for_readiness() {
    let world = World::of(1, "rolling");
    let with_probe = |path: &str| {
        let mut web = app("web", 2);
        let container = &mut web["spec"]["template"]["spec"]["containers"][0];
        container["readinessProbe"] = json!({"httpGet": {"path": path, "port": 8080}, "periodSeconds": 1});
        web
    };
    let ready = || world.get(0, "deployment", "web")["status"]["readyReplicas"].as_i64().unwrap_or(0);
    world.apply(0, &with_probe("/index.html"));
    world.until("both are ready", || ready() == 2);
    let old = world.pods(0, "web");
    world.apply(0, &with_probe("/nothing"));
    let new = testbed::clock::poll(
        std::time::Duration::from_secs(20),
        std::time::Duration::from_millis(100),
        || {
            world
                .run(0, &["skein", "events"])
                .contains("Readiness probe failed: HTTP status 404")
                .then_some(())
        },
    );
    assert!(
        new.is_some(),
        "a new pod runs that never gets ready: {}{}{}",
        world.run(0, &["skein", "get", "pods", "-o", "wide"]),
        world.run(0, &["skein", "describe", "deployment", "web"]),
        world.run(0, &["skein", "events"])
    );
    assert_eq!(ready(), 2, "the old ones stay until new ones are ready");
    let now = world.pods(0, "web");
    assert!(old.iter().all(|name| now.contains(name)), "{old:?} {now:?}");
    world.apply(0, &with_probe("/"));
    world.until("the update that gets ready replaces them", || {
        let now = world.pods(0, "web");
        ready() == 2 && now.len() == 2 && !old.iter().any(|name| now.contains(name))
    });
}
