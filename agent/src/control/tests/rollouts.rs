//! Rolling updates, rollbacks, pauses.

use serde_json::json;

use super::super::step::Random;
use super::bed::{Bed, deployment};

fn set_image(bed: &mut Bed, image: &str) {
    bed.change("Deployment", "web", |web| {
        web.0["spec"]["template"]["spec"]["containers"][0]["image"] = json!(image)
    });
}

fn images(bed: &Bed) -> Vec<String> {
    bed.active()
        .iter()
        .map(|pod| pod.list("/spec/containers")[0]["image"].as_str().unwrap().to_string())
        .collect()
}

fn ready(bed: &Bed) -> usize {
    let is_ready = |pod: &&api::Object| {
        pod.list("/status/conditions").iter().any(|c| c["type"] == "Ready" && c["status"] == "True")
    };
    bed.active().iter().filter(is_ready).count()
}

/// Lets one random thing happen: a pod becomes ready, or one that should go is gone.
fn random_event(bed: &mut Bed, random: &Random) {
    let pods = bed.list("Pod");
    if pods.is_empty() {
        return;
    }
    let pod = &pods[(random.next() % pods.len() as u64) as usize];
    match pod.is_deleting() {
        true => bed.remove(pod),
        false if !pod.text("/spec/nodeName").is_empty() => bed.set_pod(pod, "Running", true),
        false => {}
    }
}

#[test]
fn a_rolling_update_keeps_its_bounds_whatever_becomes_ready_when() {
    for seed in 0..40 {
        let random = Random::new(seed);
        let (replicas, surge, unavailable) =
            (1 + (seed % 7) as i64, (seed % 3) as i64, ((seed / 3) % 3) as i64);
        let unavailable = if surge == 0 { unavailable.max(1) } else { unavailable };
        let mut bed = Bed::new(&["a", "b", "c"]);
        let mut body = deployment("web", replicas);
        body["spec"]["strategy"] = json!({"type": "RollingUpdate", "rollingUpdate": {"maxSurge": surge, "maxUnavailable": unavailable}});
        bed.create("Deployment", body);
        bed.converge();
        set_image(&mut bed, "nginx:2");
        for round in 0..400 {
            for batch in bed.plan() {
                bed.apply(batch);
            }
            let (all, up) = (bed.active().len() as i64, ready(&bed) as i64);
            assert!(all <= replicas + surge, "seed {seed} round {round}: {all} pods");
            assert!(up >= replicas - unavailable, "seed {seed} round {round}: {up} ready");
            random_event(&mut bed, &random);
        }
        bed.converge();
        assert_eq!(images(&bed), vec!["nginx:2"; replicas as usize], "seed {seed}");
    }
}

#[test]
fn a_rollback_takes_the_old_set_again() {
    let mut bed = Bed::new(&["a"]);
    bed.deployment("web", 2);
    bed.converge();
    let first = bed.list("ReplicaSet")[0].name().to_string();
    set_image(&mut bed, "nginx:2");
    bed.converge();
    assert_eq!(bed.list("ReplicaSet").len(), 2);
    set_image(&mut bed, "nginx:1");
    bed.converge();
    assert_eq!(bed.list("ReplicaSet").len(), 2);
    let set = bed.get("ReplicaSet", &first).unwrap();
    assert_eq!(
        (set.int("/spec/replicas"), set.annotation("deployment.kubernetes.io/revision")),
        (2, Some("3"))
    );
    assert_eq!(
        bed.get("Deployment", "web").unwrap().annotation("deployment.kubernetes.io/revision"),
        Some("3")
    );
}

#[test]
fn history_beyond_its_limit_goes() {
    let mut bed = Bed::new(&["a"]);
    let mut body = deployment("web", 1);
    body["spec"]["revisionHistoryLimit"] = json!(2);
    bed.create("Deployment", body);
    for version in 2..7 {
        bed.converge();
        set_image(&mut bed, &format!("nginx:{version}"));
    }
    bed.converge();
    assert_eq!(bed.list("ReplicaSet").len(), 3);
}

#[test]
fn recreate_waits_until_the_old_pods_are_gone() {
    let mut bed = Bed::new(&["a"]);
    let mut body = deployment("web", 2);
    body["spec"]["strategy"] = json!({"type": "Recreate"});
    bed.create("Deployment", body);
    bed.converge();
    set_image(&mut bed, "nginx:2");
    bed.settle();
    assert_eq!((bed.active().len(), bed.list("Pod").len()), (0, 2));
    bed.nodes_work();
    bed.settle();
    assert_eq!(images(&bed), ["nginx:2", "nginx:2"]);
}

#[test]
fn a_paused_deployment_scales_but_does_not_roll() {
    let mut bed = Bed::new(&["a"]);
    bed.deployment("web", 2);
    bed.converge();
    bed.change("Deployment", "web", |web| web.set(&["spec", "paused"], json!(true)));
    set_image(&mut bed, "nginx:2");
    bed.change("Deployment", "web", |web| web.set(&["spec", "replicas"], json!(3)));
    bed.converge();
    assert_eq!(images(&bed), ["nginx:1"; 3]);
    bed.change("Deployment", "web", |web| web.set(&["spec", "paused"], json!(false)));
    bed.converge();
    assert_eq!(images(&bed), ["nginx:2"; 3]);
}

#[test]
fn a_rollout_that_stalls_says_so_once() {
    let mut bed = Bed::new(&["a"]);
    bed.deployment("web", 2);
    bed.converge();
    set_image(&mut bed, "nginx:2");
    bed.pass(590);
    let progressing = |bed: &Bed| bed.get("Deployment", "web").unwrap().list("/status/conditions")[1].clone();
    assert_eq!(progressing(&bed)["reason"], "ReplicaSetUpdated");
    bed.pass(20);
    assert_eq!(
        (progressing(&bed)["reason"].clone(), progressing(&bed)["status"].clone()),
        (json!("ProgressDeadlineExceeded"), json!("False"))
    );
    let revision = bed.view().revision();
    bed.pass(3_000);
    assert_eq!(bed.view().revision(), revision);
    bed.converge();
    assert_eq!(progressing(&bed)["reason"], "NewReplicaSetAvailable");
}

#[test]
fn min_ready_seconds_delay_availability() {
    let mut bed = Bed::new(&["a"]);
    let mut body = deployment("web", 1);
    body["spec"]["minReadySeconds"] = json!(10);
    bed.create("Deployment", body);
    bed.converge();
    assert_eq!(bed.get("Deployment", "web").unwrap().int("/status/availableReplicas"), 0);
    bed.pass(11);
    assert_eq!(bed.get("Deployment", "web").unwrap().int("/status/availableReplicas"), 1);
}
