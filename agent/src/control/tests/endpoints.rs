//! Who serves a service.

use serde_json::{Value, json};

use super::bed::{Bed, deployment};

fn service(bed: &mut Bed, port: Value) {
    bed.create(
        "Service",
        json!({"metadata": {"name": "web"}, "spec": {"selector": {"app": "web"}, "ports": [port]}}),
    );
}

fn endpoints(bed: &Bed) -> usize {
    bed.list("EndpointSlice").iter().map(|slice| slice.list("/endpoints").len()).sum()
}

#[test]
fn endpoints_follow_readiness() {
    let mut bed = Bed::new(&["a", "b"]);
    service(&mut bed, json!({"name": "http", "port": 80, "targetPort": 8080}));
    bed.deployment("web", 2);
    bed.settle();
    let slice = bed.list("EndpointSlice").pop().unwrap();
    assert_eq!((slice.label("kubernetes.io/service-name"), endpoints(&bed)), (Some("web"), 0));
    bed.converge();
    let slice = bed.list("EndpointSlice").pop().unwrap();
    assert_eq!(slice.0["ports"], json!([{"name": "http", "protocol": "TCP", "port": 8080}]));
    let pod = bed.active()[0].clone();
    let endpoint =
        slice.list("/endpoints").iter().find(|endpoint| endpoint["targetRef"]["name"] == pod.name()).unwrap();
    assert_eq!(endpoint["conditions"], json!({"ready": true, "serving": true, "terminating": false}));
    assert_eq!(
        (&endpoint["addresses"][0], &endpoint["nodeName"]),
        (&pod.0["status"]["podIP"], &pod.0["spec"]["nodeName"])
    );
    bed.set_pod(&pod, "Running", false);
    bed.settle();
    assert_eq!(endpoints(&bed), 1);
    bed.kill_node(bed.active()[1].text("/spec/nodeName").to_string().as_str());
    bed.settle();
    assert_eq!(endpoints(&bed), 0);
}

#[test]
fn a_terminating_pod_is_no_endpoint() {
    let mut bed = Bed::new(&["a"]);
    service(&mut bed, json!({"port": 80}));
    bed.deployment("web", 2);
    bed.converge();
    bed.change("Deployment", "web", |web| web.set(&["spec", "replicas"], json!(1)));
    bed.settle();
    assert_eq!((endpoints(&bed), bed.list("Pod").len()), (1, 2));
}

#[test]
fn a_named_port_is_looked_up_in_the_pod() {
    let mut bed = Bed::new(&["a"]);
    service(&mut bed, json!({"port": 80, "targetPort": "web"}));
    let mut body = deployment("web", 1);
    body["spec"]["template"]["spec"]["containers"][0]["ports"] =
        json!([{"name": "web", "containerPort": 7000}]);
    bed.create("Deployment", body);
    bed.converge();
    assert_eq!(bed.list("EndpointSlice")[0].list("/ports")[0]["port"], 7000);
}

#[test]
fn many_endpoints_take_several_slices() {
    let mut bed = Bed::new(&["a", "b", "c"]);
    service(&mut bed, json!({"port": 80}));
    bed.deployment("web", 250);
    bed.converge();
    let mut sizes: Vec<usize> =
        bed.list("EndpointSlice").iter().map(|slice| slice.list("/endpoints").len()).collect();
    sizes.sort();
    assert_eq!(sizes, [50, 100, 100]);
    bed.change("Deployment", "web", |web| web.set(&["spec", "replicas"], json!(5)));
    bed.converge();
    assert_eq!((bed.list("EndpointSlice").len(), endpoints(&bed)), (1, 5));
}

#[test]
fn slices_go_with_their_service() {
    let mut bed = Bed::new(&["a"]);
    service(&mut bed, json!({"port": 80}));
    bed.settle();
    bed.delete("Service", "web", None);
    bed.settle();
    assert!(bed.list("EndpointSlice").is_empty());
}
