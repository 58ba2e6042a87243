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
