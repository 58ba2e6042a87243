//! Owned objects, finalizers, namespaces, old events.

use serde_json::json;

use super::bed::Bed;

#[test]
fn a_deployment_takes_everything_along() {
    let mut bed = Bed::new(&["a"]);
    bed.deployment("web", 3);
    bed.converge();
    bed.delete("Deployment", "web", None);
    bed.settle();
    assert!(bed.list("ReplicaSet").is_empty());
    assert!(
        bed.list("Pod")
            .iter()
            .all(|pod| pod.is_deleting() && pod.int("/metadata/deletionGracePeriodSeconds") == 30)
    );
    bed.converge();
    assert!(bed.list("Pod").is_empty());
}

#[test]
fn pods_without_a_node_go_at_once() {
    let mut bed = Bed::new(&[]);
    bed.deployment("web", 2);
    bed.settle();
    bed.delete("Deployment", "web", None);
    bed.settle();
    assert!(bed.list("Pod").is_empty());
}

#[test]
fn foreground_waits_for_the_dependents() {
    let mut bed = Bed::new(&["a"]);
    bed.deployment("web", 2);
    bed.converge();
    bed.delete("Deployment", "web", Some("foregroundDeletion"));
    bed.settle();
    assert!(bed.get("Deployment", "web").is_some());
    bed.converge();
    assert!(
        bed.get("Deployment", "web").is_none()
            && bed.list("ReplicaSet").is_empty()
            && bed.list("Pod").is_empty()
    );
}

#[test]
fn orphans_stay_and_are_adopted_again() {
    let mut bed = Bed::new(&["a"]);
    bed.deployment("web", 2);
    bed.converge();
    bed.delete("Deployment", "web", Some("orphan"));
    bed.converge();
    assert!(bed.get("Deployment", "web").is_none());
    assert_eq!((bed.list("ReplicaSet").len(), bed.active().len()), (1, 2));
    let web = bed.deployment("web", 2);
    bed.converge();
    let sets = bed.list("ReplicaSet");
    assert_eq!((sets.len(), sets[0].controller_uid(), bed.active().len()), (1, Some(web.uid()), 2));
}

#[test]
fn an_owner_of_the_same_name_is_not_the_same_owner() {
    let mut bed = Bed::new(&[]);
    bed.create("ConfigMap", json!({"metadata": {"name": "owner"}}));
    let reference = json!({"apiVersion": "v1", "kind": "ConfigMap", "name": "owner", "uid": "another"});
    bed.create("ConfigMap", json!({"metadata": {"name": "owned", "ownerReferences": [reference]}}));
    let foreign = json!({"apiVersion": "example.com/v1", "kind": "Thing", "name": "x", "uid": "unknown"});
    bed.create("ConfigMap", json!({"metadata": {"name": "foreign", "ownerReferences": [foreign]}}));
    bed.settle();
    assert!(bed.get("ConfigMap", "owned").is_none() && bed.get("ConfigMap", "foreign").is_some());
}

#[test]
fn a_namespace_goes_when_its_content_is_gone() {
    let mut bed = Bed::new(&["a"]);
    bed.deployment("web", 2);
    bed.create("ConfigMap", json!({"metadata": {"name": "settings"}}));
    bed.create("Service", json!({"metadata": {"name": "web"}, "spec": {"clusterIP": "10.43.1.1", "selector": {"app": "web"}, "ports": [{"port": 80, "nodePort": 30001}]}}));
    bed.create("Event", json!({"metadata": {"name": "e"}, "lastTimestamp": "2027-01-15T08:00:00Z"}));
    for key in ["a/ip/10.43.1.1", "a/port/30001"] {
        let op = raft_store::Op::Put { key: raft_store::Key::from(key), value: "default/web".into() };
        bed.transact(raft_store::Transaction { compares: vec![], ops: vec![op] }, None);
    }
    bed.converge();
    bed.change("Namespace", "default", |namespace| {
        namespace.set(&["metadata", "deletionTimestamp"], json!("2027-01-15T08:00:00Z"))
    });
    bed.settle();
    assert!(
        bed.list("Deployment").is_empty()
            && bed.list("ConfigMap").is_empty()
            && bed.list("Service").is_empty()
    );
    assert!(bed.get("Namespace", "default").is_some());
    bed.converge();
    let view = bed.view();
    let left: Vec<_> =
        view.prefix(b"", None).map(|entry| String::from_utf8_lossy(entry.key()).into_owned()).collect();
    assert_eq!(left, ["o/core/nodes/a"]);
}

#[test]
fn events_go_after_an_hour() {
    let mut bed = Bed::new(&[]);
    let time = api::duration::rfc3339(bed.now().wall);
    for number in 0..450 {
        bed.create("Event", json!({"metadata": {"name": format!("e{number}")}, "lastTimestamp": time}));
    }
    bed.pass(3_590);
    assert_eq!(bed.list("Event").len(), 450);
    bed.pass(120);
    assert_eq!(bed.list("Event").len(), 0);
}
