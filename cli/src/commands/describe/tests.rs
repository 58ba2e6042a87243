//! Data in, text out.

use serde_json::{Value, json};

use super::{happened, machines, pods};

fn template() -> Value {
    json!({
        "metadata": {"labels": {"app": "web"}},
        "spec": {"containers": [{"name": "c", "image": "nginx:1", "command": ["sh", "-c", "serve"],
            "ports": [{"containerPort": 80, "protocol": "TCP"}]}]},
    })
}

#[test]
fn a_pod_reads_as_users_know_it() {
    let pod = json!({
        "metadata": {"name": "web-1", "namespace": "default", "labels": {"app": "web"},
            "ownerReferences": [{"kind": "ReplicaSet", "name": "web", "controller": true}]},
        "spec": {"nodeName": "host1", "nodeSelector": {"disk": "fast"},
            "tolerations": [{"key": "a", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300}],
            "volumes": [{"name": "data", "hostPath": {"path": "/srv"}}],
            "containers": [{"name": "c", "image": "nginx:1", "ports": [{"containerPort": 80, "protocol": "TCP"}],
                "env": [{"name": "A", "value": "b"}], "resources": {"limits": {"cpu": "1", "memory": "64Mi"}},
                "volumeMounts": [{"name": "data", "mountPath": "/data", "readOnly": true}]}]},
        "status": {"phase": "Running", "podIP": "10.42.0.2", "hostIP": "10.0.0.1", "startTime": "2026-01-01T00:00:00Z", "qosClass": "Burstable",
            "conditions": [{"type": "Ready", "status": "True"}],
            "containerStatuses": [{"name": "c", "containerID": "skein://1", "imageID": "sha256:2", "ready": true, "restartCount": 1,
                "state": {"running": {"startedAt": "2026-01-01T00:00:09Z"}},
                "lastState": {"terminated": {"exitCode": 1, "reason": "Error", "finishedAt": "2026-01-01T00:00:05Z"}}}]},
    });
    let text = "\
Name:           web-1
Namespace:      default
Node:           host1/10.0.0.1
Start Time:     2026-01-01T00:00:00Z
Labels:         app=web
Annotations:    <none>
Status:         Running
IP:             10.42.0.2
Controlled By:  ReplicaSet/web
Containers:
  c:
    Container ID:   skein://1
    Image:          nginx:1
    Image ID:       sha256:2
    Ports:          80/TCP
    State:          Running
                      Started: 2026-01-01T00:00:09Z
    Last State:     Terminated
                      Reason: Error
                      Exit Code: 1
                      Finished: 2026-01-01T00:00:05Z
    Ready:          True
    Restart Count:  1
    Limits:         cpu=1
                    memory=64Mi
    Environment:    A:  b
    Mounts:         /data from data (ro)
Conditions:
  Type    Status   Reason
  ----    ------   ------
  Ready   True
Volumes:
  data:  hostPath (path=/srv)
QoS Class:       Burstable
Node-Selectors:  disk=fast
Tolerations:     a:NoExecute op=Exists for 300s
";
    assert_eq!(pods::pod(&pod).text(), text);
}

#[test]
fn a_deployment_names_its_sets_old_and_new() {
    let set = |name: &str, revision: &str, wanted: i64| {
        json!({"metadata": {"name": name, "annotations": {"deployment.kubernetes.io/revision": revision}},
            "spec": {"replicas": wanted}, "status": {"replicas": 1}})
    };
    let deployment = json!({
        "metadata": {"name": "web", "namespace": "default", "creationTimestamp": "2026-01-01T00:00:00Z",
            "annotations": {"deployment.kubernetes.io/revision": "2"}},
        "spec": {"replicas": 3, "selector": {"matchLabels": {"app": "web"}}, "template": template(),
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": "25%", "maxSurge": 1}}},
        "status": {"replicas": 3, "updatedReplicas": 2, "availableReplicas": 2, "unavailableReplicas": 1,
            "conditions": [{"type": "Available", "status": "True", "reason": "MinimumReplicasAvailable"}]},
    });
    let text = "\
Name:                   web
Namespace:              default
CreationTimestamp:      2026-01-01T00:00:00Z
Labels:                 <none>
Annotations:            deployment.kubernetes.io/revision=2
Selector:               app=web
Replicas:               3 desired | 2 updated | 3 total | 2 available | 1 unavailable
StrategyType:           RollingUpdate
MinReadySeconds:        0
RollingUpdateStrategy:  25% max unavailable, 1 max surge
Pod Template:
  Labels:  app=web
  Containers:
    c:
      Image:        nginx:1
      Ports:        80/TCP
      Command:      sh
                    -c
                    serve
      Environment:  <none>
      Mounts:       <none>
  Volumes:  <none>
Conditions:
  Type        Status   Reason
  ----        ------   ------
  Available   True     MinimumReplicasAvailable
OldReplicaSets:  web-a (1/1 replicas created)
NewReplicaSet:   web-b (1/2 replicas created)
";
    let sets = [set("web-a", "1", 1), set("web-b", "2", 2), set("web-0", "0", 0)];
    assert_eq!(pods::deployment(&deployment, &sets).text(), text);
}

#[test]
fn a_job_counts_its_pods() {
    let job = json!({
        "metadata": {"name": "fill", "namespace": "default", "labels": {"a": "b"}},
        "spec": {"parallelism": 2, "completions": 2, "backoffLimit": 6, "template": template()},
        "status": {"startTime": "2026-01-01T00:00:00Z", "succeeded": 1, "active": 1, "ready": 1},
    });
    let text = pods::job(&job).text();
    assert!(text.contains("Completions:    2\n"), "{text}");
    assert!(text.contains("Pods Statuses:  1 Active (1 Ready) / 1 Succeeded / 0 Failed\n"), "{text}");
    assert!(text.ends_with("  Volumes:  <none>\nConditions:  <none>\n"), "{text}");
}

#[test]
fn a_node_says_what_it_has_and_what_runs_there() {
    let node = json!({
        "metadata": {"name": "host1", "labels": {"kubernetes.io/os": "linux"}, "creationTimestamp": "2026-01-01T00:00:00Z"},
        "spec": {"podCIDR": "10.42.0.0/24", "taints": [{"key": "k", "value": "v", "effect": "NoSchedule"}]},
        "status": {"capacity": {"cpu": "2", "pods": "110"}, "allocatable": {"cpu": "2", "pods": "110"},
            "addresses": [{"type": "InternalIP", "address": "10.0.0.1"}, {"type": "Hostname", "address": "host1"}],
            "nodeInfo": {"architecture": "amd64", "bootID": ""},
            "conditions": [{"type": "Ready", "status": "True", "reason": "AgentReady", "message": "the agent runs", "lastTransitionTime": "2026-01-01T00:00:01Z"}]},
    });
    let pod = json!({"metadata": {"name": "web-1", "namespace": "default"}, "status": {"phase": "Running"},
        "spec": {"containers": [{"resources": {"requests": {"cpu": "100m"}}}, {"resources": {"requests": {"cpu": "50m"}}}]}});
    let text = "\
Name:               host1
Labels:             kubernetes.io/os=linux
Annotations:        <none>
CreationTimestamp:  2026-01-01T00:00:00Z
Taints:             k=v:NoSchedule
Unschedulable:      false
Conditions:
  Type    Status   LastTransitionTime     Reason       Message
  ----    ------   ------------------     ------       -------
  Ready   True     2026-01-01T00:00:01Z   AgentReady   the agent runs
Addresses:
  InternalIP:  10.0.0.1
  Hostname:    host1
Capacity:
  cpu:   2
  pods:  110
Allocatable:
  cpu:   2
  pods:  110
System Info:
  architecture:  amd64
PodCIDR:  10.42.0.0/24
Non-terminated Pods (1 in total):
  Namespace   Name    Status    CPU Requests   Memory Requests
  ---------   ----    ------    ------------   ---------------
  default     web-1   Running   100m+50m       0
";
    assert_eq!(machines::node(&node, &[pod]).text(), text);
}

#[test]
fn a_service_lists_its_ready_endpoints_by_port() {
    let service = json!({
        "metadata": {"name": "web", "namespace": "default"},
        "spec": {"type": "NodePort", "clusterIP": "10.43.0.9", "selector": {"app": "web"}, "sessionAffinity": "None",
            "ports": [{"port": 80, "targetPort": "http", "protocol": "TCP", "nodePort": 30080}]},
    });
    let endpoint =
        |address: &str, ready: bool| json!({"addresses": [address], "conditions": {"ready": ready}});
    let slice = json!({"ports": [{"name": "", "port": 8080}],
        "endpoints": [endpoint("10.42.0.3", true), endpoint("10.42.0.2", true), endpoint("10.42.0.9", false)]});
    let text = "\
Name:              web
Namespace:         default
Labels:            <none>
Annotations:       <none>
Selector:          app=web
Type:              NodePort
IP:                10.43.0.9
Port:              <unset>  80/TCP
TargetPort:        http/TCP
NodePort:          <unset>  30080/TCP
Endpoints:         10.42.0.2:8080,10.42.0.3:8080
Session Affinity:  None
";
    assert_eq!(machines::service(&service, &[slice]).text(), text);
    assert!(machines::service(&service, &[]).text().contains("Endpoints:         <none>\n"));
}

#[test]
fn events_come_last_oldest_first_and_only_of_this_object() {
    let event = |uid: &str, reason: &str, time: &str, count: i64| {
        json!({"cells": ["5s"], "object": {"involvedObject": {"uid": uid}, "type": "Normal", "reason": reason, "lastTimestamp": time,
            "count": count, "message": "a\nb", "source": {"component": "host1"}}})
    };
    let table = json!({"rows": [event("1", "Late", "2026-01-02", 3), event("2", "Other", "2026-01-01", 1), event("1", "Early", "2026-01-01", 1)]});
    let text = "\
Events:
  Type     Reason   Age       From    Message
  ----     ------   ---       ----    -------
  Normal   Early    5s        host1   a b
  Normal   Late     5s (x3)   host1   a b
";
    assert_eq!(happened(&table, &json!("1")), text);
    assert_eq!(happened(&json!({}), &json!("1")), "Events:  <none>\n");
}
