//! What is killed, and what must hold while it is: an agent, the machine that leads, and its return.
//!
//! Decides the promises that the demo checks: no request fails, none waits longer than the limit, data stays.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use super::DemoError;
use super::application::{Applications, answers_of, redis_keys, show};
use super::cluster::{Cluster, Pod};
use super::load::{Asked, Load};
use super::manifests::{KEYS, NODE_PORT, REDIS_HOST, WEB_REPLICAS};
use super::timeline::{self, Moment, Timeline, Victim};
use super::transcript::short;
use crate::clock;
use crate::host::{Host, Kind};

const AGENT_BACK: Duration = Duration::from_secs(10);
const LEADER_MOVES: Duration = Duration::from_secs(60);
const REPLACED: Duration = Duration::from_secs(20);
const RETURN: Duration = Duration::from_secs(30);
/// Requests before the kill and after the replacement.
const QUIET: Duration = Duration::from_secs(1);
const LONGEST_WAIT: Duration = Duration::from_millis(1500);
/// Prints pid and start time of each process of a name.
const PROCESSES: &str = "for p in /proc/[0-9]*; do read -r c < $p/comm && [ \"$c\" = \"$0\" ] && \
                         echo ${p#/proc/} $(cut -d' ' -f22 $p/stat); done 2>/dev/null; true";

/// Kills the agent that runs redis; nothing may happen to redis.
pub fn agent(cluster: &Cluster<'_>, applications: &Applications) -> Result<(), DemoError> {
    let host = cluster.host(REDIS_HOST)?;
    let before = processes(host, "redis-server")?;
    let old = host.agent_pid()?;
    cluster.transcript.step(&format!("kill -9 the agent of {REDIS_HOST}, where redis runs"), || {
        host.kill_agent(Signal::SIGKILL)?;
        // Its init waits a moment before it starts another: nobody is there now.
        expect_keys(cluster, REDIS_HOST, applications)?;
        expect_keys(cluster, "host1", applications)?;
        Ok((format!("redis still answers: {KEYS} keys"), ()))
    })?;
    cluster.transcript.step("the agent comes back by itself", || {
        host.agent_after(old, AGENT_BACK)?;
        cluster.answers(host)?;
        let pod = cluster.wait("redis to be ready, seen by its own agent", AGENT_BACK, || {
            let pods = cluster.pods(REDIS_HOST, "redis")?;
            let pod = pods.iter().find(|pod| pod.ready && pod.name == applications.redis.name).cloned();
            Ok(pod.ok_or_else(|| format!("{pods:?}")))
        })?;
        let after = processes(host, "redis-server")?;
        if before != after || before.is_empty() || pod.container != applications.redis.container {
            let expected =
                format!("the same redis: process {before:?}, container {:?}", applications.redis.container);
            return Err(DemoError::Expected {
                expected,
                found: format!("process {after:?}, container {:?}", pod.container),
            });
        }
        let pid = before.first().and_then(|line| line.split(' ').next()).unwrap_or("");
        Ok((format!("redis is the same process, pid {pid}, 0 restarts"), ()))
    })
}

/// A machine that was killed.
pub struct Killed {
    pub name: String,
}

/// Kills the machine that leads, in silence, while requests come in at the others.
pub fn leader(cluster: &Cluster<'_>, applications: &Applications) -> Result<Killed, DemoError> {
    let name = cluster.transcript.step(&format!("{REDIS_HOST} does not lead"), || {
        let name = leader_elsewhere(cluster)?;
        Ok((format!("{name} leads"), name))
    })?;
    let survivors: Vec<&str> =
        cluster.bed.hosts().iter().map(Host::name).filter(|host| *host != name).collect();
    let ports: Vec<SocketAddr> = survivors
        .iter()
        .map(|host| Ok(SocketAddr::from((cluster.host(host)?.address(), NODE_PORT))))
        .collect::<Result<_, DemoError>>()?;
    let load = Load::on(ports);
    let (asked, killed, told) = clock::threads(|scope| {
        let asking = scope.spawn(|| load.run(cluster.bed.outside()));
        std::thread::sleep(QUIET);
        let told = kill(cluster, applications, &name, &survivors, &load);
        std::thread::sleep(QUIET);
        load.stop();
        let killed = told.as_ref().map_or_else(|_| clock::now(), |(_, killed)| *killed);
        (asking.join().unwrap_or_default(), killed, told)
    });
    let (mut line, _) = told?;
    let web = cluster.pods(survivors.first().copied().unwrap_or("host1"), "web")?;
    line.extend(serving(&asked, &web, applications, killed).map(|after| (Moment::Serving, after)));
    tell(cluster, &line)?;
    judge(cluster, &asked, killed)?;
    cluster.transcript.step("pods spread over the survivors", || new_spread(&name, &web))?;
    show(cluster, web.iter());
    cluster.transcript.step("redis was not touched", || {
        survivors.iter().try_for_each(|host| expect_keys(cluster, host, applications))?;
        Ok((format!("{KEYS} keys"), ()))
    })?;
    Ok(Killed { name })
}

/// Starts the machine again; it must find its way by itself and run nothing that it should not.
pub fn comes_back(
    cluster: &Cluster<'_>,
    applications: &Applications,
    killed: &Killed,
) -> Result<(), DemoError> {
    let host = cluster.host(&killed.name)?;
    let name = killed.name.as_str();
    cluster.transcript.step(&format!("{name} is switched on, its agent started"), || {
        host.boot()?;
        host.start_agent()?;
        cluster.answers(host)?;
        Ok((String::new(), ()))
    })?;
    cluster.transcript.step("it takes part again", || {
        cluster.wait(&format!("{name} alive, a voter, its node Ready, as all see it"), RETURN, || {
            for from in cluster.bed.hosts() {
                if let Err(seen) = took_part(cluster, from.name(), name)? {
                    return Ok(Err(format!("{}: {seen}", from.name())));
                }
            }
            Ok(Ok(()))
        })?;
        Ok(("alive, voter, node Ready".to_owned(), ()))
    })?;
    cluster.transcript.step("it runs nothing that was replaced", || {
        let wanted = cluster.pods(name, "web")?.iter().filter(|pod| pod.node == name).count();
        cluster.wait(&format!("{wanted} nginx on {name}"), RETURN, || {
            let running = processes(host, "nginx")?.len();
            // A master has a worker.
            let right = if wanted == 0 { running == 0 } else { running >= wanted };
            Ok(if right { Ok(()) } else { Err(format!("{running} processes of nginx")) })
        })?;
        Ok((String::new(), ()))
    })?;
    cluster.transcript.step("its NodePort answers", || {
        let web = cluster.pods(name, "web")?;
        let answered = cluster
            .wait("answers", RETURN, || Ok(answers_of(cluster, name, &web).map_err(|e| e.to_string())))?;
        let same = cluster.pods(name, "redis")?.iter().any(|pod| pod.name == applications.redis.name);
        let expected =
            || DemoError::Expected { expected: "the same redis pod".into(), found: "another".into() };
        if same { Ok((format!("{} pods answered", answered.len()), ())) } else { Err(expected()) }
    })
}

fn took_part(cluster: &Cluster<'_>, from: &str, name: &str) -> Result<Result<(), String>, DemoError> {
    let status = cluster.json(from, &["cluster", "status"])?;
    let members = status["members"].as_array().into_iter().flatten();
    let member =
        members.filter(|m| m["name"] == name).map(|m| (m["state"].as_str(), m["role"].as_str())).next();
    let (state, role) = member.unwrap_or_default();
    let node = cluster.json(from, &["get", "node", name])?;
    let conditions = node["status"]["conditions"].as_array().into_iter().flatten();
    let ready = conditions.filter(|c| c["type"] == "Ready").any(|c| c["status"] == "True");
    let voter = matches!(role, Some("voter" | "leader"));
    let holds = state == Some("alive") && voter && ready;
    Ok(if holds { Ok(()) } else { Err(format!("state {state:?}, role {role:?}, node ready {ready}")) })
}

fn expect_keys(cluster: &Cluster<'_>, from: &str, applications: &Applications) -> Result<(), DemoError> {
    let found = redis_keys(cluster, from, applications.redis_service)?;
    if found == KEYS {
        return Ok(());
    }
    Err(DemoError::Expected {
        expected: format!("{KEYS} keys in redis, asked on {from}"),
        found: found.to_string(),
    })
}

/// Pid and start time of a host's processes of one name.
fn processes(host: &Host, name: &str) -> Result<BTreeSet<String>, DemoError> {
    Ok(host.ok(["sh", "-c", PROCESSES, name])?.lines().map(str::to_owned).collect())
}

/// The node that leads; as long as it is redis' own, its agent is killed and the others elect.
fn leader_elsewhere(cluster: &Cluster<'_>) -> Result<String, DemoError> {
    let host = cluster.host(REDIS_HOST)?;
    cluster.wait(&format!("a leader that is not {REDIS_HOST}"), LEADER_MOVES, || {
        let seen = BTreeSet::from([cluster.leader("host1")?, cluster.leader("host3")?]);
        let leader = seen.iter().flatten().next().cloned();
        match leader {
            Some(name) if seen.len() == 1 && name != REDIS_HOST => Ok(Ok(name)),
            Some(name) if seen.len() == 1 => {
                let old = host.agent_pid()?;
                host.kill_agent(Signal::SIGKILL)?;
                host.agent_after(old, AGENT_BACK)?;
                cluster.answers(host)?;
                Ok(Err(format!("{name} leads")))
            }
            _ => Ok(Err(format!("no agreement: {seen:?}"))),
        }
    })
}

fn kill(
    cluster: &Cluster<'_>,
    applications: &Applications,
    name: &str,
    survivors: &[&str],
    load: &Load,
) -> Result<(Timeline, Instant), DemoError> {
    let pods = applications.web.iter().filter(|pod| pod.node == name).collect();
    let host = cluster.host(name)?;
    cluster.transcript.step(&format!("{name}: network cut, then SIGKILL of everything"), || {
        load.gap();
        let victim = Victim { name, pods, killed: clock::now() };
        let line = clock::threads(|scope| {
            let watch = scope.spawn(|| timeline::watch(cluster, &victim, survivors, REPLACED, &cluster.stop));
            let done = host.kill(Kind::Silent);
            let line = watch.join().unwrap_or_default();
            done.map(|()| line)
        })?;
        if cluster.stop.load(Ordering::Relaxed) {
            return Err(DemoError::Interrupted);
        }
        Ok(("a power cut, as its peers see it".to_owned(), (line, victim.killed)))
    })
}

/// When the first answer of a pod came that was not there before.
fn serving(asked: &[Asked], web: &[Pod], applications: &Applications, killed: Instant) -> Option<Duration> {
    let new = |name: &String| {
        !applications.web.iter().any(|pod| pod.name == *name) && web.iter().any(|pod| pod.name == *name)
    };
    let answers = asked.iter().filter(|one| one.answer.as_ref().is_ok_and(new));
    answers.map(|one| (one.at + one.took).saturating_duration_since(killed)).min()
}

fn tell(cluster: &Cluster<'_>, line: &Timeline) -> Result<(), DemoError> {
    let mut moments: Vec<_> = line.iter().collect();
    moments.sort_by_key(|(_, after)| **after);
    for (moment, after) in moments {
        cluster.transcript.line(&format!("{:>6} ms  {}", after.as_millis(), moment.name()));
    }
    let missing: Vec<&str> = Moment::ALL.iter().filter(|m| !line.contains_key(m)).map(|m| m.name()).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let expected = format!("after the kill, within {REPLACED:?}: {}", missing.join("; "));
    Err(DemoError::Expected { expected, found: "it was not seen".to_owned() })
}

fn judge(cluster: &Cluster<'_>, asked: &[Asked], killed: Instant) -> Result<(), DemoError> {
    cluster.transcript.step("requests at the survivors meanwhile", || {
        let failed: Vec<&Asked> = asked.iter().filter(|one| one.answer.is_err()).collect();
        let longest = asked.iter().map(|one| one.took).max().unwrap_or_default();
        if failed.is_empty() && longest <= LONGEST_WAIT && !asked.is_empty() {
            return Ok((format!("{} sent, none failed, longest wait {}", asked.len(), short(longest)), ()));
        }
        let after = |one: &Asked| one.at.saturating_duration_since(killed).as_millis();
        let slow = asked.iter().filter(|one| one.took > LONGEST_WAIT && one.answer.is_ok());
        let told = failed.iter().copied().chain(slow).take(8);
        let told: Vec<String> = told
            .map(|one| {
                format!(
                    "{} at {} ms after the kill took {}: {:?}",
                    one.to,
                    after(one),
                    short(one.took),
                    one.answer
                )
            })
            .collect();
        let expected = format!("no failed request, no wait above {}", short(LONGEST_WAIT));
        let found = format!(
            "{} of {} failed, longest wait {}\n{}",
            failed.len(),
            asked.len(),
            short(longest),
            told.join("\n")
        );
        Err(DemoError::Expected { expected, found })
    })
}

fn new_spread(dead: &str, web: &[Pod]) -> Result<(String, ()), DemoError> {
    let nodes: BTreeSet<&str> = web.iter().map(|pod| pod.node.as_str()).collect();
    let holds = web.len() == WEB_REPLICAS && nodes.len() == 2 && !nodes.contains(dead);
    let expected = || format!("{WEB_REPLICAS} pods of web on both survivors");
    if holds {
        Ok((String::new(), ()))
    } else {
        Err(DemoError::Expected { expected: expected(), found: format!("{web:?}") })
    }
}
