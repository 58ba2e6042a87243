//! nginx on every host, redis on one, a job that fills redis; each verified from where its users are.
//!
//! Decides what "runs" means: ready pods, spread over hosts, answers from outside, data by name.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use super::DemoError;
use super::cluster::{Cluster, Pod};
use super::load::request;
use super::manifests::{self, KEYS, NODE_PORT, REDIS_HOST, WEB_REPLICAS};

const ROLLOUT: Duration = Duration::from_secs(60);
const ANSWER: Duration = Duration::from_secs(3);
const SETTLED: Duration = Duration::from_secs(5);
const REQUESTS_PER_HOST: usize = 8;

/// What runs before anything is killed.
pub struct Applications {
    pub web: Vec<Pod>,
    pub redis: Pod,
    pub redis_service: Ipv4Addr,
}

pub fn start(cluster: &Cluster<'_>) -> Result<Applications, DemoError> {
    let transcript = cluster.transcript;
    transcript.step("skein apply: web ×3, redis, their services", || {
        cluster.apply("host2", manifests::web())?;
        cluster.apply("host3", manifests::redis())?;
        Ok(("by way of host2 and host3".to_owned(), ()))
    })?;
    for name in ["web", "redis"] {
        transcript.step(&format!("skein rollout status deployment/{name}"), || {
            let seconds = ROLLOUT.as_secs().to_string();
            let words = ["skein", "rollout", "status", &format!("deployment/{name}"), "--timeout", &seconds];
            let said = cluster.host("host1")?.command(words).limit(ROLLOUT * 2).ok()?;
            Ok((said.trim().lines().last().unwrap_or("").to_owned(), ()))
        })?;
    }
    let (web, redis) = transcript.step("pods spread over the hosts", || spread(cluster))?;
    show(cluster, web.iter().chain([&redis]));
    node_ports(cluster, &web)?;
    fill(cluster)?;
    let service = cluster.json("host1", &["get", "service", "redis"])?;
    let address = service["spec"]["clusterIP"].as_str().and_then(|ip| ip.parse().ok());
    let redis_service = address.ok_or_else(|| DemoError::Expected {
        expected: "a ClusterIP of the service redis".to_owned(),
        found: service["spec"].to_string(),
    })?;
    Ok(Applications { web, redis, redis_service })
}

/// Prints pods and where they are.
pub fn show<'p>(cluster: &Cluster<'_>, pods: impl Iterator<Item = &'p Pod>) {
    for pod in pods {
        cluster.transcript.line(&format!("{:32} {:8} {}", pod.name, pod.node, pod.address));
    }
}

fn spread(cluster: &Cluster<'_>) -> Result<(String, (Vec<Pod>, Pod)), DemoError> {
    let web = cluster.pods("host1", "web")?;
    let nodes: BTreeSet<&str> = web.iter().map(|pod| pod.node.as_str()).collect();
    if web.len() != WEB_REPLICAS || nodes.len() != WEB_REPLICAS || !web.iter().all(|pod| pod.ready) {
        let expected = format!("{WEB_REPLICAS} ready pods of web on as many hosts");
        return Err(DemoError::Expected { expected, found: format!("{web:?}") });
    }
    let redis = cluster.pods("host1", "redis")?;
    match redis.as_slice() {
        [pod] if pod.node == REDIS_HOST && pod.ready => Ok((String::new(), (web, pod.clone()))),
        other => Err(DemoError::Expected {
            expected: format!("redis ready on {REDIS_HOST}"),
            found: format!("{other:?}"),
        }),
    }
}

/// Each host answers at the node port, with pods of all hosts behind it.
fn node_ports(cluster: &Cluster<'_>, web: &[Pod]) -> Result<(), DemoError> {
    cluster.transcript.step("NodePort on each host, asked from outside", || {
        // Without a readiness probe a pod is ready when its process runs, a moment before that listens.
        let answered = cluster.wait("answers of all pods at all hosts", SETTLED, || {
            let mut all = BTreeSet::new();
            for host in cluster.bed.hosts() {
                all.extend(answers_of(cluster, host.name(), web)?);
            }
            Ok(if all.len() == web.len() { Ok(all.len()) } else { Err(format!("only {all:?} answer")) })
        })?;
        Ok((
            format!("{} requests, {answered} pods answered", REQUESTS_PER_HOST * cluster.bed.hosts().len()),
            (),
        ))
    })
}

/// Who answers at the node port of one host. None may fail.
pub fn answers_of(cluster: &Cluster<'_>, host: &str, web: &[Pod]) -> Result<BTreeSet<String>, DemoError> {
    let to = SocketAddr::from((cluster.host(host)?.address(), NODE_PORT));
    let mut names = BTreeSet::new();
    for _ in 0..REQUESTS_PER_HOST {
        let answer = cluster.bed.outside().within(|| request(to, ANSWER))?;
        match answer {
            Ok(name) if web.iter().any(|pod| pod.name == name) => names.insert(name),
            other => {
                let expected = format!("http://{to} to answer with a name of web's pods");
                return Err(DemoError::Expected { expected, found: format!("{other:?}") });
            }
        };
    }
    Ok(names)
}

fn fill(cluster: &Cluster<'_>) -> Result<(), DemoError> {
    cluster.transcript.step("a job fills redis by its DNS name", || {
        cluster.apply("host1", manifests::fill())?;
        cluster.wait("the job fill to complete", ROLLOUT, || {
            let job = cluster.json("host1", &["get", "job", "fill"])?;
            Ok(if job["status"]["succeeded"] == 1 { Ok(()) } else { Err(job["status"].to_string()) })
        })?;
        let log = cluster.skein("host3", &["logs", "job/fill"])?;
        let expected = format!("redis holds {KEYS} keys");
        if log.lines().any(|line| line == expected) {
            return Ok((format!("its log: {}", log.trim()), ()));
        }
        Err(DemoError::Expected { expected: format!("the job's log to say \"{expected}\""), found: log })
    })
}

/// The number of keys, asked of redis' service on a host.
pub fn redis_keys(cluster: &Cluster<'_>, from: &str, service: Ipv4Addr) -> Result<usize, DemoError> {
    let mut stream = cluster.host(from)?.connect((service, 6379).into(), ANSWER)??;
    stream.set_read_timeout(Some(ANSWER))?;
    stream.write_all(b"DBSIZE\r\n")?;
    let mut answer = [0; 32];
    let length = stream.read(&mut answer)?;
    let text = String::from_utf8_lossy(answer.get(..length).unwrap_or_default()).into_owned();
    let keys = text.trim().strip_prefix(':').and_then(|n| n.parse().ok());
    keys.ok_or_else(|| DemoError::Expected {
        expected: "a number of keys from redis".to_owned(),
        found: text,
    })
}
