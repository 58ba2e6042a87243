//! The scheduler: filters, explanations, spread.

use serde_json::{Value, json};

use super::bed::{Bed, deployment};

fn pod(name: &str, extra: Value) -> Value {
    let mut spec = json!({"containers": [{"name": "c", "image": "x:1"}]});
    for (key, value) in extra.as_object().unwrap() {
        spec[key] = value.clone();
    }
    json!({"metadata": {"name": name}, "spec": spec})
}

fn cpu(amount: &str) -> Value {
    json!({"containers": [{"name": "c", "image": "x:1", "resources": {"requests": {"cpu": amount}}}]})
}

fn node_of(bed: &Bed, name: &str) -> String {
    bed.get("Pod", name).unwrap().text("/spec/nodeName").to_string()
}

#[test]
fn what_cannot_be_placed_says_why_node_by_node() {
    let mut bed = Bed::new(&["a", "b"]);
    bed.add_node("c", json!({"disk": "ssd"}));
    let mut body = pod("big", cpu("5"));
    body["spec"]["nodeSelector"] = json!({"disk": "ssd"});
    bed.create("Pod", body);
    bed.settle();
    let big = bed.get("Pod", "big").unwrap();
    let condition = &big.list("/status/conditions")[0];
    assert_eq!(
        (condition["type"].clone(), condition["status"].clone(), condition["reason"].clone()),
        (json!("PodScheduled"), json!("False"), json!("Unschedulable"))
    );
    let message =
        "0/3 nodes are available: 1 Insufficient cpu, 2 node(s) didn't match Pod's node affinity/selector.";
    assert_eq!(condition["message"], message);
    assert_eq!((bed.told("FailedScheduling"), bed.settle()), (1, 0));
}

#[test]
fn what_waits_is_placed_when_room_appears() {
    let mut bed = Bed::new(&["a"]);
    bed.create("Pod", pod("first", cpu("3")));
    bed.settle();
    bed.create("Pod", pod("second", cpu("3")));
    bed.settle();
    assert_eq!(node_of(&bed, "second"), "");
    bed.add_node("b", json!({}));
    bed.create("Pod", pod("third", cpu("3")));
    bed.settle();
    let placed = [node_of(&bed, "second"), node_of(&bed, "third")];
    assert_eq!(placed.iter().filter(|node| *node == "b").count(), 1);
    let first = bed.get("Pod", "first").unwrap();
    bed.remove(&first);
    bed.settle();
    let mut placed = [node_of(&bed, "second"), node_of(&bed, "third")];
    placed.sort();
    assert_eq!(placed, ["a", "b"]);
}

#[test]
fn one_pass_counts_what_it_has_placed() {
    let mut bed = Bed::new(&["a", "b"]);
    for number in 0..5 {
        bed.create("Pod", pod(&format!("p{number}"), cpu("2")));
    }
    bed.settle();
    assert_eq!(bed.spread(), [(String::new(), 1), ("a".into(), 2), ("b".into(), 2)].into());
}

#[test]
fn cordoned_tainted_and_dead_nodes_get_nothing() {
    let mut bed = Bed::new(&["a", "b", "c", "d"]);
    bed.change("Node", "a", |node| node.set(&["spec", "unschedulable"], json!(true)));
    bed.change("Node", "b", |node| {
        node.set(&["spec", "taints"], json!([{"key": "gpu", "value": "yes", "effect": "NoSchedule"}]))
    });
    bed.kill_node("c");
    bed.create("Deployment", deployment("web", 3));
    bed.settle();
    assert_eq!(bed.spread(), [("d".to_string(), 3)].into());
    bed.create("Pod", pod("gpu", json!({"tolerations": [{"key": "gpu", "operator": "Exists"}], "nodeName": null, "affinity": {"nodeAffinity": {
        "requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [{"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["b"]}]}]}}}})));
    bed.settle();
    assert_eq!(node_of(&bed, "gpu"), "b");
}

#[test]
fn affinity_operators_mean_what_kubernetes_says() {
    let term = |operator: &str, values: Value| {
        json!({"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [
            {"matchExpressions": [{"key": "size", "operator": operator, "values": values}]}]}}}})
    };
    for (operator, values, expected) in [
        ("In", json!(["5"]), "b"),
        ("NotIn", json!(["5"]), "a"),
        ("Exists", json!([]), "b"),
        ("DoesNotExist", json!([]), "a"),
        ("Gt", json!(["4"]), "b"),
        ("Lt", json!(["4"]), ""),
    ] {
        let mut bed = Bed::new(&["a"]);
        bed.add_node("b", json!({"size": "5"}));
        bed.create("Pod", pod("p", term(operator, values)));
        bed.settle();
        assert_eq!(node_of(&bed, "p"), expected, "{operator}");
    }
}

#[test]
fn a_host_port_is_given_once_per_node() {
    let mut bed = Bed::new(&["a", "b"]);
    let ports = json!({"containers": [{"name": "c", "image": "x:1", "ports": [{"containerPort": 80, "hostPort": 8080}]}]});
    for name in ["p", "q", "r"] {
        bed.create("Pod", pod(name, ports.clone()));
    }
    bed.settle();
    assert_eq!(bed.spread().get("a"), Some(&1));
    let waiting = bed.active().into_iter().find(|pod| pod.text("/spec/nodeName").is_empty()).unwrap();
    let message = waiting.list("/status/conditions")[0]["message"].as_str().unwrap().to_string();
    assert_eq!(
        message,
        "0/2 nodes are available: 2 node(s) didn't have free ports for the requested pod ports."
    );
}

#[test]
fn pods_of_other_schedulers_are_left_alone() {
    let mut bed = Bed::new(&["a"]);
    bed.create("Pod", pod("p", json!({"schedulerName": "mine"})));
    assert_eq!(bed.settle(), 0);
}
