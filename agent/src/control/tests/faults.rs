//! Dead nodes, slow and refused writes, deposed leaders: never a surplus pod.

use serde_json::json;

use super::super::{Answer, Control};
use super::bed::Bed;

#[test]
fn pods_of_a_dead_node_are_replaced_once() {
    let mut bed = Bed::new(&["a", "b", "c"]);
    bed.deployment("web", 6);
    bed.converge();
    bed.kill_node("b");
    let batches = bed.plan();
    assert_eq!(batches.len(), 1);
    for batch in batches {
        assert!(bed.apply(batch));
    }
    assert_eq!(bed.spread(), [("a".to_string(), 3), ("c".to_string(), 3)].into());
    assert_eq!((bed.list("Pod").len(), bed.told("TaintManagerEviction")), (6, 2));
    bed.settle();
    assert_eq!(bed.active().len(), 6);
}

#[test]
fn the_brake_keeps_pods_where_they_are_but_not_ready() {
    let mut bed = Bed::new(&["a", "b"]);
    bed.deployment("web", 2);
    bed.converge();
    bed.brake = true;
    bed.kill_node("b");
    bed.settle();
    assert_eq!(bed.spread().len(), 2);
    assert_eq!(bed.get("Deployment", "web").unwrap().int("/status/readyReplicas"), 1);
    bed.brake = false;
    bed.settle();
    assert_eq!(bed.spread(), [("a".to_string(), 2)].into());
}

#[test]
fn a_pod_without_an_owner_stays_on_its_dead_node() {
    let mut bed = Bed::new(&["a"]);
    bed.create(
        "Pod",
        json!({"metadata": {"name": "alone"}, "spec": {"containers": [{"name": "c", "image": "x:1"}]}}),
    );
    bed.converge();
    bed.kill_node("a");
    bed.settle();
    let pod = bed.get("Pod", "alone").unwrap();
    let ready = pod.list("/status/conditions").iter().find(|c| c["type"] == "Ready").unwrap().clone();
    assert_eq!((ready["status"].clone(), ready["reason"].clone()), (json!("False"), json!("NodeLost")));
    bed.change("Pod", "alone", |pod| {
        pod.set(&["metadata", "deletionTimestamp"], json!("2027-01-01T00:00:00Z"))
    });
    bed.settle();
    assert!(bed.get("Pod", "alone").is_none());
}

#[test]
fn planning_again_while_writes_are_under_way_plans_nothing() {
    let mut bed = Bed::new(&["a", "b", "c"]);
    bed.deployment("web", 5);
    let batches = bed.plan();
    for _ in 0..10 {
        bed.millis += 100;
        assert!(bed.plan().is_empty());
    }
    bed.change("Deployment", "web", |web| web.set_annotation("touched", "yes"));
    assert!(bed.plan().is_empty());
    for batch in batches {
        bed.apply(batch);
    }
    bed.converge();
    assert_eq!(bed.list("Pod").len(), 5);
}

#[test]
fn a_result_that_is_answered_before_it_is_seen_is_not_planned_again() {
    let mut bed = Bed::new(&["a"]);
    bed.deployment("web", 3);
    let before = bed.view();
    let batches = bed.plan();
    let epoch = bed.epoch();
    for batch in batches {
        let raft_store::Outcome::Applied { revision, .. } = bed.transact(batch.transaction, Some(epoch))
        else {
            panic!()
        };
        bed.control.answered(batch.id, Answer::Applied(revision));
    }
    let now = bed.now();
    assert!(bed.control.plan(&before, now, false).is_empty());
    bed.settle();
    assert_eq!(bed.list("Pod").len(), 3);
}

#[test]
fn a_refused_plan_is_made_again_from_the_new_state() {
    let mut bed = Bed::new(&["a", "b"]);
    bed.deployment("web", 4);
    let batches = bed.plan();
    bed.change("Deployment", "web", |web| web.set(&["spec", "replicas"], json!(2)));
    for batch in batches {
        assert!(!bed.apply(batch));
    }
    bed.converge();
    assert_eq!(bed.list("Pod").len(), 2);
}

#[test]
fn one_conflict_does_not_hold_up_the_others() {
    let mut bed = Bed::new(&["a", "b"]);
    bed.deployment("one", 2);
    bed.deployment("two", 2);
    let batches = bed.plan();
    bed.change("Deployment", "one", |one| one.set_annotation("touched", "1"));
    for batch in batches {
        bed.apply(batch);
    }
    let batches = bed.plan();
    assert_eq!(batches.len(), 2);
    bed.change("Deployment", "one", |one| one.set_annotation("touched", "2"));
    assert_eq!(
        batches.into_iter().filter(|_| true).map(|batch| bed.apply(batch)).filter(|done| *done).count(),
        1
    );
    bed.converge();
    assert_eq!(bed.list("Pod").len(), 4);
}

#[test]
fn a_deposed_leaders_plan_comes_to_nothing() {
    let mut bed = Bed::new(&["a", "b", "c"]);
    bed.deployment("web", 3);
    bed.converge();
    bed.kill_node("a");
    // The old leader plans, pauses; the new one, with a seed of its own, plans and writes.
    let mut old = Control::new(&bed.view(), 77);
    let late = old.plan(&bed.view(), bed.now(), false);
    assert!(!late.is_empty());
    bed.converge();
    assert_eq!(bed.list("Pod").len(), 3);
    // Even with an epoch that still counted the compares would refuse it.
    for batch in late {
        let stale = raft_store::Epoch(bed.epoch().0 - 1);
        let outcome = bed.transact(batch.transaction.clone(), Some(stale));
        assert!(matches!(outcome, raft_store::Outcome::StaleEpoch { .. }));
        let epoch = bed.epoch();
        let outcome = bed.transact(batch.transaction, Some(epoch));
        assert!(matches!(outcome, raft_store::Outcome::CompareFailed { .. }), "{outcome:?}");
    }
    bed.converge();
    assert_eq!(bed.list("Pod").len(), 3);
}

#[test]
fn nothing_surplus_appears_when_answers_come_in_any_order() {
    for seed in 0..30 {
        let random = super::super::step::Random::new(seed);
        let mut bed = Bed::new(&["a", "b", "c"]);
        bed.deployment("web", 4);
        let mut flying = Vec::new();
        let mut wanted = 4;
        for _ in 0..120 {
            flying.extend(bed.plan());
            match random.next() % 6 {
                0 if wanted < 9 => {
                    wanted += 1;
                    bed.change("Deployment", "web", |web| web.set(&["spec", "replicas"], json!(wanted)));
                }
                1 => bed.nodes_work(),
                _ if !flying.is_empty() => {
                    let at = (random.next() % flying.len() as u64) as usize;
                    let batch = flying.swap_remove(at);
                    bed.apply(batch);
                }
                _ => bed.millis += 10,
            }
            assert!(bed.active().len() <= wanted, "seed {seed}");
        }
        for batch in flying {
            bed.apply(batch);
        }
        bed.converge();
        assert_eq!(bed.list("Pod").len(), wanted, "seed {seed}");
    }
}

fn with_finalizer(bed: &mut Bed, node: &str) -> String {
    let on_node = |pod: &api::Object| pod.text("/spec/nodeName") == node;
    let name = bed.active().iter().find(|pod| on_node(pod)).unwrap().name().to_string();
    bed.change("Pod", &name, |pod| pod.set(&["metadata", "finalizers"], json!(["example.com/wait"])));
    name
}

#[test]
fn a_dead_nodes_pod_with_a_finalizer_is_replaced_but_stays_until_the_finalizer_is_gone() {
    let mut bed = Bed::new(&["a", "b"]);
    bed.deployment("web", 4);
    bed.converge();
    let kept = with_finalizer(&mut bed, "b");
    bed.kill_node("b");
    bed.settle();
    assert_eq!(bed.spread(), [("a".to_string(), 4)].into(), "replaced at once");
    assert!(bed.get("Pod", &kept).unwrap().is_deleting());
    assert_eq!(bed.list("Pod").len(), 5);
    assert_eq!(bed.told("TaintManagerEviction"), 2);
    bed.pass(120);
    assert!(bed.get("Pod", &kept).is_some(), "nobody but its owner takes the finalizer away");
    bed.change("Pod", &kept, |pod| drop(pod.metadata_mut().remove("finalizers")));
    bed.settle();
    assert!(bed.get("Pod", &kept).is_none());
    assert_eq!(bed.list("Pod").len(), 4);
}

#[test]
fn a_pod_without_an_owner_that_is_being_deleted_waits_for_its_finalizer_on_a_dead_node() {
    let mut bed = Bed::new(&["a"]);
    let body =
        json!({"metadata": {"name": "alone"}, "spec": {"containers": [{"name": "c", "image": "x:1"}]}});
    bed.create("Pod", body);
    bed.converge();
    bed.change("Pod", "alone", |pod| {
        pod.set(&["metadata", "finalizers"], json!(["example.com/wait"]));
        pod.set(&["metadata", "deletionTimestamp"], json!("2027-01-01T00:00:00Z"));
    });
    bed.kill_node("a");
    bed.settle();
    assert!(bed.get("Pod", "alone").is_some());
    bed.change("Pod", "alone", |pod| drop(pod.metadata_mut().remove("finalizers")));
    bed.settle();
    assert!(bed.get("Pod", "alone").is_none());
}

#[test]
fn a_jobs_pod_with_a_finalizer_stays_on_its_dead_node_and_another_one_runs() {
    let mut bed = Bed::new(&["a", "b"]);
    let template = json!({"spec": {"restartPolicy": "Never", "containers": [{"name": "c", "image": "x:1"}]}});
    bed.create(
        "Job",
        json!({"metadata": {"name": "j"}, "spec": {"completions": 2, "parallelism": 2, "template": template}}),
    );
    bed.converge();
    let kept = with_finalizer(&mut bed, "b");
    bed.kill_node("b");
    bed.settle();
    assert_eq!(bed.spread(), [("a".to_string(), 2)].into());
    assert!(bed.get("Pod", &kept).unwrap().is_deleting());
    bed.change("Pod", &kept, |pod| drop(pod.metadata_mut().remove("finalizers")));
    bed.settle();
    assert_eq!(bed.list("Pod").len(), 2);
}

fn bytes(transaction: &raft_store::Transaction) -> usize {
    let keys: usize = transaction.compares.iter().map(|compare| compare.key.0.len()).sum();
    let ops = transaction.ops.iter().map(|op| match op {
        raft_store::Op::Put { key, value } | raft_store::Op::PutFor { key, value, .. } => {
            key.0.len() + value.0.len()
        }
        raft_store::Op::Delete { key } => key.0.len(),
    });
    keys + ops.sum::<usize>()
}

fn fat_pod(at: usize) -> serde_json::Value {
    let argument = "x".repeat(100_000);
    let container = json!({"name": "c", "image": "x:1", "args": [argument]});
    json!({"metadata": {"name": format!("p{at}"), "labels": {"app": "fat"}}, "spec": {"containers": [container]}})
}

#[test]
fn batches_are_bounded_by_bytes_too() {
    let mut bed = Bed::new(&["a", "b"]);
    for at in 0..60 {
        bed.create("Pod", fat_pod(at));
    }
    let mut rounds = 0;
    loop {
        let batches = bed.plan();
        if batches.is_empty() {
            break;
        }
        rounds += 1;
        assert!(rounds < 100);
        for batch in batches {
            assert!(bytes(&batch.transaction) <= 2 << 20, "{}", bytes(&batch.transaction));
            assert!(bed.apply(batch));
        }
    }
    assert_eq!(bed.spread().values().sum::<usize>(), 60);
    assert_eq!(bed.spread().len(), 2, "all are placed: {:?}", bed.spread());
}

#[test]
fn a_replica_set_with_fat_pods_stays_below_the_stores_limit() {
    let mut bed = Bed::new(&["a", "b"]);
    let spec = fat_pod(0)["spec"].clone();
    bed.create(
        "Deployment",
        json!({
            "metadata": {"name": "fat"},
            "spec": {"replicas": 80, "selector": {"matchLabels": {"app": "fat"}},
                "template": {"metadata": {"labels": {"app": "fat"}}, "spec": spec}},
        }),
    );
    for _ in 0..200 {
        let batches = bed.plan();
        for batch in batches {
            assert!(bytes(&batch.transaction) <= 3 << 20, "{}", bytes(&batch.transaction));
            assert!(bed.apply(batch));
        }
    }
    assert_eq!(bed.active().len(), 80);
}

#[test]
fn many_fat_dependents_are_orphaned_in_steps_and_none_is_lost() {
    let mut bed = Bed::new(&["a"]);
    let owner = bed.create("ConfigMap", json!({"metadata": {"name": "owner"}}));
    let reference = json!([{"apiVersion": "v1", "kind": "ConfigMap", "name": "owner", "uid": owner.uid()}]);
    for at in 0..40 {
        let data = json!({"k": "x".repeat(200_000)});
        bed.create(
            "ConfigMap",
            json!({"metadata": {"name": format!("c{at}"), "ownerReferences": reference}, "data": data}),
        );
    }
    bed.settle();
    bed.delete("ConfigMap", "owner", Some("orphan"));
    for _ in 0..100 {
        for batch in bed.plan() {
            assert!(bytes(&batch.transaction) <= 2 << 20, "{}", bytes(&batch.transaction));
            assert!(bed.apply(batch));
        }
    }
    assert_eq!(bed.list("ConfigMap").len(), 40, "the owner is gone, nothing else");
    assert!(bed.list("ConfigMap").iter().all(|map| map.list("/metadata/ownerReferences").is_empty()));
}
