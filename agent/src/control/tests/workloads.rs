//! Deployments and ReplicaSets make and remove pods.

use serde_json::json;

use super::bed::{Bed, compares_all};

#[test]
fn a_deployment_becomes_placed_pods_in_one_transaction() {
    let mut bed = Bed::new(&["a", "b", "c"]);
    bed.deployment("web", 3);
    let batches = bed.plan();
    assert_eq!(batches.len(), 1);
    assert!(compares_all(&batches[0].transaction));
    for batch in batches {
        assert!(bed.apply(batch));
    }
    assert_eq!(bed.spread().into_values().collect::<Vec<_>>(), [1, 1, 1]);
    assert_eq!(bed.settle(), 0);
}

#[test]
fn pods_look_as_if_the_api_had_made_them() {
    let mut bed = Bed::new(&["a"]);
    bed.deployment("web", 1);
    bed.settle();
    let (pod, set) = (&bed.active()[0], &bed.list("ReplicaSet")[0]);
    assert_eq!(
        (pod.generation(), pod.text("/status/phase"), pod.text("/status/qosClass")),
        (1, "Pending", "BestEffort")
    );
    assert_eq!(pod.text("/spec/restartPolicy"), "Always");
    assert_eq!(pod.controller_uid(), Some(set.uid()));
    assert_eq!(pod.label("pod-template-hash"), set.label("pod-template-hash"));
    assert!(pod.label("pod-template-hash").is_some() && pod.uid().len() == 36);
    assert!(pod.name().starts_with(&format!("{}-", set.name())));
    let owner = &pod.list("/metadata/ownerReferences")[0];
    assert_eq!(
        (&owner["controller"], &owner["blockOwnerDeletion"], &owner["kind"]),
        (&json!(true), &json!(true), &json!("ReplicaSet"))
    );
    assert!(api::validate::create(super::bed::kind("Pod"), pod).is_ok());
}

#[test]
fn scaling_up_and_down_spreads_and_thins_out() {
    let mut bed = Bed::new(&["a", "b", "c"]);
    bed.deployment("web", 1);
    bed.converge();
    bed.change("Deployment", "web", |web| web.set(&["spec", "replicas"], json!(30)));
    assert_eq!(bed.settle(), 1);
    assert_eq!(bed.spread().into_values().collect::<Vec<_>>(), [10, 10, 10]);
    bed.converge();
    bed.change("Deployment", "web", |web| web.set(&["spec", "replicas"], json!(6)));
    bed.converge();
    assert_eq!(bed.spread().into_values().collect::<Vec<_>>(), [2, 2, 2]);
    assert_eq!(bed.list("Pod").len(), 6);
}

#[test]
fn unready_pods_go_first() {
    let mut bed = Bed::new(&["a", "b", "c"]);
    bed.deployment("web", 3);
    bed.converge();
    let sick = bed.active()[1].clone();
    bed.set_pod(&sick, "Running", false);
    bed.change("Deployment", "web", |web| web.set(&["spec", "replicas"], json!(2)));
    bed.settle();
    assert!(bed.active().iter().all(|pod| pod.name() != sick.name()));
}

#[test]
fn a_deleted_pod_is_replaced() {
    let mut bed = Bed::new(&["a"]);
    bed.deployment("web", 2);
    bed.converge();
    let pod = bed.active()[0].clone();
    bed.remove(&pod);
    bed.converge();
    assert_eq!(bed.active().len(), 2);
}

#[test]
fn an_orphan_that_matches_is_adopted() {
    let mut bed = Bed::new(&["a"]);
    let web = bed.deployment("web", 2);
    bed.settle();
    let hash = bed.list("ReplicaSet")[0].label("pod-template-hash").unwrap().to_string();
    bed.create("Pod", json!({"metadata": {"name": "stray", "labels": {"app": "web", "pod-template-hash": hash}}, "spec": web.0["spec"]["template"]["spec"]}));
    bed.converge();
    assert_eq!(bed.active().len(), 2);
    assert!(bed.active().iter().all(|pod| pod.controller_uid().is_some()));
}

#[test]
fn a_system_at_rest_plans_nothing() {
    let mut bed = Bed::new(&["a", "b", "c"]);
    bed.deployment("web", 5);
    bed.create(
        "Service",
        json!({"metadata": {"name": "web"}, "spec": {"selector": {"app": "web"}, "ports": [{"port": 80}]}}),
    );
    bed.converge();
    let revision = bed.view().revision();
    bed.pass(3_000);
    assert_eq!(bed.view().revision(), revision);
    let mut fresh = super::super::Control::new(&bed.view(), 5);
    assert!(fresh.plan(&bed.view(), bed.now(), false).is_empty());
}

#[test]
fn status_says_what_rollout_status_reads() {
    let mut bed = Bed::new(&["a"]);
    bed.deployment("web", 2);
    bed.settle();
    let web = bed.get("Deployment", "web").unwrap();
    assert_eq!(
        (
            web.int("/status/updatedReplicas"),
            web.int("/status/availableReplicas"),
            web.int("/status/observedGeneration")
        ),
        (2, 0, 1)
    );
    assert_eq!(web.annotation("deployment.kubernetes.io/revision"), Some("1"));
    bed.converge();
    let web = bed.get("Deployment", "web").unwrap();
    assert_eq!(
        (
            web.int("/status/replicas"),
            web.int("/status/availableReplicas"),
            web.int("/status/unavailableReplicas")
        ),
        (2, 2, 0)
    );
    let reasons: Vec<_> = web
        .list("/status/conditions")
        .iter()
        .map(|c| (c["type"].clone(), c["status"].clone(), c["reason"].clone()))
        .collect();
    assert_eq!(
        json!(reasons),
        json!([
            ["Available", "True", "MinimumReplicasAvailable"],
            ["Progressing", "True", "NewReplicaSetAvailable"]
        ])
    );
    assert!(
        bed.told("ScalingReplicaSet") == 1 && bed.told("SuccessfulCreate") == 2 && bed.told("Scheduled") == 2
    );
}
