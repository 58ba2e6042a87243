//! Jobs.

use serde_json::{Value, json};

use super::bed::Bed;

fn job(bed: &mut Bed, extra: Value) {
    let template = json!({"metadata": {"labels": {"job-name": "j"}}, "spec": {"restartPolicy": "Never", "containers": [{"name": "c", "image": "x:1"}]}});
    let mut body = json!({"metadata": {"name": "j"}, "spec": {"template": template}});
    for (key, value) in extra.as_object().unwrap() {
        body["spec"][key] = value.clone();
    }
    bed.create("Job", body);
    bed.converge();
}

fn end_all(bed: &mut Bed, phase: &str) {
    for pod in bed.active() {
        bed.set_pod(&pod, phase, false);
    }
    bed.settle();
}

fn condition(bed: &Bed) -> (String, String) {
    let job = bed.get("Job", "j").unwrap();
    let last = job.list("/status/conditions").last().cloned().unwrap_or_default();
    (last["type"].as_str().unwrap_or("").into(), last["reason"].as_str().unwrap_or("").into())
}

#[test]
fn a_job_runs_to_completion_and_keeps_its_pods() {
    let mut bed = Bed::new(&["a"]);
    job(&mut bed, json!({"completions": 5, "parallelism": 2}));
    assert_eq!(bed.active().len(), 2);
    for _ in 0..3 {
        end_all(&mut bed, "Succeeded");
        bed.converge();
    }
    let job = bed.get("Job", "j").unwrap();
    assert_eq!((job.int("/status/succeeded"), job.int("/status/active"), bed.list("Pod").len()), (5, 0, 5));
    assert_eq!(condition(&bed), ("Complete".into(), "CompletionsReached".into()));
    assert!(!job.text("/status/completionTime").is_empty() && bed.told("Completed") == 1);
    assert_eq!(bed.settle(), 0);
}

#[test]
fn failures_are_tried_again_after_a_doubling_pause() {
    let mut bed = Bed::new(&["a"]);
    job(&mut bed, json!({"backoffLimit": 3}));
    for pause in [10, 20, 40] {
        end_all(&mut bed, "Failed");
        bed.pass(pause - 2);
        assert_eq!(bed.active().len(), 0, "{pause}");
        bed.pass(3);
        bed.converge();
        assert_eq!(bed.active().len(), 1, "{pause}");
    }
    end_all(&mut bed, "Failed");
    assert_eq!(condition(&bed), ("Failed".into(), "BackoffLimitExceeded".into()));
    bed.pass(1_000);
    assert_eq!((bed.active().len(), bed.list("Pod").len(), bed.told("BackoffLimitExceeded")), (0, 4, 1));
}

#[test]
fn a_retry_that_succeeds_completes_the_job() {
    let mut bed = Bed::new(&["a"]);
    job(&mut bed, json!({}));
    end_all(&mut bed, "Failed");
    bed.pass(11);
    bed.converge();
    end_all(&mut bed, "Succeeded");
    assert_eq!(condition(&bed).0, "Complete");
    let job = bed.get("Job", "j").unwrap();
    assert_eq!((job.int("/status/succeeded"), job.int("/status/failed")), (1, 1));
}

#[test]
fn a_pod_lost_with_its_node_is_no_failure() {
    let mut bed = Bed::new(&["a", "b"]);
    job(&mut bed, json!({"backoffLimit": 0}));
    let node = bed.active()[0].text("/spec/nodeName").to_string();
    bed.kill_node(&node);
    bed.settle();
    assert_eq!(bed.active().len(), 1);
    assert_ne!(bed.active()[0].text("/spec/nodeName"), node);
    assert_eq!(bed.get("Job", "j").unwrap().int("/status/failed"), 0);
}

#[test]
fn a_deadline_ends_a_job() {
    let mut bed = Bed::new(&["a"]);
    job(&mut bed, json!({"activeDeadlineSeconds": 30}));
    bed.pass(29);
    assert_eq!(bed.active().len(), 1);
    bed.pass(2);
    assert_eq!((condition(&bed).1, bed.active().len()), ("DeadlineExceeded".into(), 0));
}

#[test]
fn a_suspended_job_has_no_pods_until_it_is_resumed() {
    let mut bed = Bed::new(&["a"]);
    job(&mut bed, json!({"suspend": true}));
    assert_eq!((bed.list("Pod").len(), condition(&bed).1), (0, "JobSuspended".into()));
    bed.change("Job", "j", |job| job.set(&["spec", "suspend"], json!(false)));
    bed.converge();
    assert_eq!((bed.active().len(), condition(&bed).1), (1, "JobResumed".into()));
}

#[test]
fn restarts_in_place_count_towards_the_limit() {
    let mut bed = Bed::new(&["a"]);
    job(&mut bed, json!({"backoffLimit": 2}));
    let name = bed.active()[0].name().to_string();
    bed.change("Pod", &name, |pod| {
        pod.set(&["status", "containerStatuses"], json!([{"name": "c", "restartCount": 3}]))
    });
    bed.settle();
    assert_eq!(condition(&bed).1, "BackoffLimitExceeded");
}

#[test]
fn a_finished_job_goes_after_its_time_to_live() {
    let mut bed = Bed::new(&["a"]);
    job(&mut bed, json!({"ttlSecondsAfterFinished": 60}));
    end_all(&mut bed, "Succeeded");
    bed.pass(58);
    assert!(bed.get("Job", "j").is_some());
    bed.pass(4);
    bed.converge();
    assert!(bed.get("Job", "j").is_none() && bed.list("Pod").is_empty());
}
