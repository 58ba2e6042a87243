//! How fast work starts: one pod, thirty pods.

use std::time::Duration;

use serde_json::{Value, json};

use super::{BenchError, Cluster, spread, trace};
use crate::clock;

/// The collection of deployments in the namespace `default`.
pub const DEPLOYMENTS: &str = "/apis/apps/v1/namespaces/default/deployments";

/// A deployment whose containers sleep and end at once when told to.
pub fn deployment(image: &str, name: &str, replicas: u32) -> Value {
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name},
        "spec": {
            "replicas": replicas, "selector": {"matchLabels": {"app": name}},
            "template": {
                "metadata": {"labels": {"app": name}},
                "spec": {"terminationGracePeriodSeconds": 0, "containers": [{"name": "c", "image": image, "command": ["sleep", "100000"]}]},
            },
        },
    })
}

/// Milliseconds until `count` pods of an application run, by a watch.
pub fn until_running(cluster: &Cluster, index: usize, app: &str, count: usize) -> Result<f64, BenchError> {
    let begun = clock::now();
    let mut running = std::collections::BTreeSet::new();
    let path =
        format!("/api/v1/namespaces/default/pods?watch=true&timeoutSeconds=60&labelSelector=app%3D{app}");
    for event in cluster.api(index).watch(&path)? {
        let pod = &event["object"];
        let uid = pod["metadata"]["uid"].as_str().unwrap_or("").to_string();
        if event["type"] != "DELETED"
            && pod["status"]["phase"] == "Running"
            && pod["metadata"]["deletionTimestamp"].is_null()
        {
            running.insert(uid);
        } else {
            running.remove(&uid);
        }
        if running.len() == count {
            return Ok(begun.elapsed().as_secs_f64() * 1000.0);
        }
    }
    Err(BenchError::Late {
        what: format!("{count} running pods"),
        limit: Duration::from_secs(60),
        logs: cluster.directory.clone(),
    })
}

/// A deployment of one replica, image present: from sending it to Running.
pub fn one(cluster: &Cluster) -> Result<(), BenchError> {
    let mut times = Vec::new();
    for round in 0..20 {
        let name = format!("one{round}");
        let begun = clock::now();
        cluster.api(0).post(DEPLOYMENTS, &deployment(&cluster.image, &name, 1))?;
        until_running(cluster, 0, &name, 1)?;
        times.push(begun.elapsed().as_secs_f64() * 1000.0);
        cluster.remove(&name)?;
    }
    println!("deployment of one replica, apply to Running: {}", spread(times.clone()));
    if let Some((round, slowest)) = times.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1)) {
        trace::print(cluster, &format!("one{round}-"), *slowest);
    }
    Ok(())
}

/// From one replica to thirty.
pub fn scale(cluster: &Cluster) -> Result<(), BenchError> {
    let mut times = Vec::new();
    for round in 0..3 {
        let name = format!("many{round}");
        cluster.api(0).post(DEPLOYMENTS, &deployment(&cluster.image, &name, 1))?;
        until_running(cluster, 0, &name, 1)?;
        let begun = clock::now();
        cluster.api(0).merge(&format!("{DEPLOYMENTS}/{name}"), &json!({"spec": {"replicas": 30}}))?;
        until_running(cluster, 0, &name, 30)?;
        times.push(begun.elapsed().as_secs_f64() * 1000.0);
        cluster.remove(&name)?;
    }
    println!("scale 1 to 30 over three hosts: {}", spread(times.clone()));
    if let Some((round, slowest)) = times.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1)) {
        trace::print(cluster, &format!("many{round}-"), *slowest);
    }
    Ok(())
}
