//! How fast a dead machine's work is back. A host is cut off and killed in one go: its peers see silence.

use std::time::Duration;

use serde_json::json;

use super::{BenchError, Cluster, spread, start};
use crate::{Kind, clock};

const APP: &str = "survivors";
const ROUNDS: usize = 3;

/// A host that does not lead.
pub fn follower(cluster: &Cluster) -> Result<(), BenchError> {
    let mut times = Vec::new();
    for _ in 0..ROUNDS {
        let leader = cluster.leader()?;
        let victim = (0..3).find(|index| *index != leader && *index != 0).unwrap_or(2);
        times.push(kill(cluster, victim, 0)?.0);
    }
    println!("follower host killed to its pods Running elsewhere: {}", spread(times));
    Ok(())
}

/// The host that leads.
pub fn leader(cluster: &Cluster) -> Result<(), BenchError> {
    let (mut times, mut writes) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let victim = cluster.leader()?;
        let witness = usize::from(victim == 0);
        let (back, written) = kill(cluster, victim, witness)?;
        times.push(back);
        writes.push(written);
    }
    println!("leader host killed to its pods Running elsewhere: {}", spread(times));
    println!("leader host killed to writes back: {}", spread(writes));
    Ok(())
}

/// Kills `victim` with six pods over three hosts and watches from `witness`. Answers milliseconds until six run on the others,
/// and until a write is answered.
fn kill(cluster: &Cluster, victim: usize, witness: usize) -> Result<(f64, f64), BenchError> {
    let api = cluster.api(witness);
    api.post(start::DEPLOYMENTS, &start::deployment(&cluster.image, APP, 6))?;
    start::until_running(cluster, witness, APP, 6)?;
    let name = cluster.host(victim).name().to_string();
    let begun = clock::now();
    cluster.host(victim).kill(Kind::Silent)?;
    let written = clock::threads(|scope| {
        let writer = scope.spawn(|| first_write(cluster, witness, begun));
        let back = six_elsewhere(cluster, witness, &name, begun);
        (back, writer.join())
    });
    let back = written.0?;
    let write = written.1.map_err(|_| std::io::Error::other("the writer failed"))??;
    cluster.host(victim).boot()?;
    cluster.host(victim).start_agent()?;
    cluster.wait("the host to be back", || {
        let status = cluster.status(witness)?;
        let members = status["members"].as_array().cloned().unwrap_or_default();
        Ok(members.iter().all(|member| member["state"] == "alive") && status["leader"].is_string())
    })?;
    cluster.wait("its agent to answer", || Ok(cluster.status(victim).is_ok()))?;
    api.delete(&format!("{}/{APP}", start::DEPLOYMENTS))?;
    cluster.wait("the pods to go", || {
        let list = cluster
            .api(witness)
            .get(&format!("/api/v1/namespaces/default/pods?labelSelector=app%3D{APP}"))?;
        Ok(list["items"].as_array().is_some_and(Vec::is_empty))
    })?;
    Ok((back, write))
}

fn first_write(cluster: &Cluster, witness: usize, begun: std::time::Instant) -> Result<f64, BenchError> {
    let path = "/api/v1/namespaces/default/configmaps";
    let name = format!("write-{}", begun.elapsed().as_nanos());
    let body = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}});
    let limit = Duration::from_secs(20);
    let done = clock::poll(limit, Duration::from_millis(5), || cluster.api(witness).post(path, &body).ok());
    done.map(|_| begun.elapsed().as_secs_f64() * 1000.0).ok_or_else(|| BenchError::Late {
        what: "a write".into(),
        limit,
        logs: cluster.directory.clone(),
    })
}

fn six_elsewhere(
    cluster: &Cluster,
    witness: usize,
    dead: &str,
    begun: std::time::Instant,
) -> Result<f64, BenchError> {
    let path = format!("/api/v1/namespaces/default/pods?resourceVersion=0&labelSelector=app%3D{APP}");
    let limit = Duration::from_secs(30);
    let done = clock::poll(limit, Duration::from_millis(10), || {
        let list = cluster.api(witness).get(&path).ok()?;
        let up = |pod: &&serde_json::Value| {
            pod["status"]["phase"] == "Running"
                && pod["metadata"]["deletionTimestamp"].is_null()
                && pod["spec"]["nodeName"] != dead
        };
        (list["items"].as_array()?.iter().filter(up).count() == 6).then_some(())
    });
    done.map(|()| begun.elapsed().as_secs_f64() * 1000.0).ok_or_else(|| BenchError::Late {
        what: "six pods on the other hosts".into(),
        limit,
        logs: cluster.directory.clone(),
    })
}
