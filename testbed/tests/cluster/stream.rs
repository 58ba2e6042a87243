//! The store's own stream protocol, past the API.

use std::collections::HashMap;
use std::ffi::OsString;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use agent::server::stream::protocol::{Answer, Ask, Read};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use raft_store::{Compare, Expect, Key, Op, Revision, Transaction};
use testbed::bench::store::stream::Client;
use testbed::bench::store::{Access, ours};
use testbed::clock;
use tokio::task::JoinSet;

use crate::disk;
use crate::world::World;

fn put(key: &str, value: &str) -> Transaction {
    let compares = vec![Compare { key: Key::from(key), expect: Expect::Absent }];
    Transaction { compares, ops: vec![Op::Put { key: Key::from(key), value: value.into() }] }
}

fn get(key: &str, read: Read) -> Ask {
    Ask::Get { key: Key::from(key), read }
}

#[test]
fn the_store_answers_streams_at_every_agent_for_keys_of_their_own() {
    let world = World::of(3, "stream");
    let access = ours::access(&world.api(0)).unwrap();
    let address = |index: usize| SocketAddr::new(world.host(index).address().into(), access.port);
    let steps = async {
        let mut clients = Vec::new();
        for index in 0..3 {
            clients.push(Client::connect(&access, address(index)).await.unwrap());
        }
        for (index, client) in clients.iter().enumerate() {
            let key = format!("stream/{index}");
            let answer = client.ask(Ask::Transact(put(&key, "value"))).await.unwrap();
            let Answer::Done { revision } = answer else { panic!("{answer:?}") };
            for other in &clients {
                for read in [Read::Linearizable, Read::AtLeast(revision)] {
                    let answer = other.ask(get(&key, read)).await.unwrap();
                    assert!(matches!(answer, Answer::Entry { entry: Some(_), .. }), "{answer:?}");
                }
            }
            let again = client.ask(Ask::Transact(put(&key, "value"))).await.unwrap();
            assert!(matches!(again, Answer::CompareFailed { index: 0, .. }), "{again:?}");
        }
        let (start, end) = (Key::from("stream/"), Key::from("stream0"));
        let answer =
            clients[1].ask(Ask::Range { start: start.clone(), end, limit: 2, read: Read::Local }).await;
        assert!(matches!(answer, Ok(Answer::Refused(_))), "the end lies outside: {answer:?}");
        let range = Ask::Range { start, end: Key::from("stream/~"), limit: 2, read: Read::Linearizable };
        match clients[1].ask(range).await.unwrap() {
            Answer::Entries { entries, more: true, .. } => assert_eq!(entries.len(), 2),
            answer => panic!("{answer:?}"),
        }
        for ask in [get("o/core/namespaces/default", Read::Local), Ask::Transact(put("o/x", "y"))] {
            let answer = clients[0].ask(ask).await.unwrap();
            assert!(matches!(answer, Answer::Refused(_)), "{answer:?}");
        }
        let stranger = Access {
            tls: Arc::new(without_certificate(&access)),
            server_name: access.server_name,
            port: access.port,
        };
        let answer = match Client::connect(&stranger, address(0)).await {
            Ok(client) => client.ask(get("stream/0", Read::Local)).await,
            Err(error) => Err(error),
        };
        assert!(answer.is_err(), "{answer:?}");
    };
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    world.bed.outside().within(|| runtime().block_on(steps)).unwrap();
}

/// Writes of others come too: what is waited for lies so far ahead that only these reach it.
const AHEAD: u64 = 40;

#[test]
fn a_stream_waits_for_a_revision_to_come_and_not_for_ever() {
    let world = World::of(3, "atleast");
    let access = ours::access(&world.api(0)).unwrap();
    let address = |index: usize| SocketAddr::new(world.host(index).address().into(), access.port);
    let steps = async {
        let (near, far) = (
            Client::connect(&access, address(0)).await.unwrap(),
            Client::connect(&access, address(2)).await.unwrap(),
        );
        let now = match near.ask(Ask::Transact(put("stream/first", "1"))).await.unwrap() {
            Answer::Done { revision } => revision,
            answer => panic!("{answer:?}"),
        };
        let wanted = Revision(now.0 + AHEAD);
        let mut waits = std::pin::pin!(far.ask(get("stream/last", Read::AtLeast(wanted))));
        // The question goes out, and what is asked after it is answered before it.
        let seen = tokio::select! {
            biased;
            answer = &mut waits => panic!("it did not wait: {answer:?}"),
            answer = far.ask(get("stream/first", Read::Local)) => answer.unwrap(),
        };
        assert!(matches!(seen, Answer::Entry { revision, .. } if revision < wanted), "{seen:?}");
        for n in 0..AHEAD {
            near.put(b"stream/last", n.to_string().as_bytes()).await.unwrap();
        }
        match waits.await.unwrap() {
            Answer::Entry { revision, entry: Some(_) } => assert!(revision >= wanted, "{revision:?}"),
            answer => panic!("{answer:?}"),
        }
        let began = clock::now();
        let answer = far.ask(get("stream/last", Read::AtLeast(Revision(wanted.0 + 1_000_000)))).await;
        assert!(matches!(answer, Ok(Answer::NoLeader(_))), "{answer:?}");
        let waited = began.elapsed();
        assert!((2_500..8_000).contains(&waited.as_millis()), "it gave up after {waited:?}");
    };
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    world.bed.outside().within(|| runtime().block_on(steps)).unwrap();
}

/// Questions of a kind that are counted, after as many as make a connection quiet.
const LONE: u64 = 500;
const UNTIL_QUIET: u64 = 100;

/// A client at the leader, and how often that agent's workers wake.
struct AtLeader<'a> {
    world: &'a World,
    access: &'a Access,
    leader: usize,
    client: Client,
}

impl<'a> AtLeader<'a> {
    async fn new(world: &'a World, access: &'a Access) -> AtLeader<'a> {
        let leader = loop {
            if let Some(leader) = disk::leader(world, 0) {
                break leader;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        };
        let address = SocketAddr::new(world.host(leader).address().into(), access.port);
        let client = Client::connect(access, address).await.unwrap();
        AtLeader { world, access, leader, client }
    }

    /// Writes and reads, one at a time.
    async fn alone(&self, from: u64, count: u64) {
        for number in from..from + count {
            let key = format!("stream/{number:05}");
            self.client.put(key.as_bytes(), b"value").await.unwrap();
            let answer = self.client.ask(get(&key, Read::Linearizable)).await.unwrap();
            assert!(matches!(answer, Answer::Entry { entry: Some(_), .. }), "{answer:?}");
        }
    }

    /// How often the workers slept while this was asked of a connection that was quiet before, and of one leader.
    async fn slept(&mut self, from: u64, ask: impl AsyncFn(&AtLeader)) -> u64 {
        loop {
            self.alone(from, UNTIL_QUIET).await;
            let pid = pid(self.world, self.leader);
            let before = sleeps(pid, "tokio-rt-worker");
            ask(self).await;
            let after = sleeps(pid, "tokio-rt-worker");
            if disk::leader(self.world, 0) == Some(self.leader) {
                let of_both =
                    after.iter().filter_map(|(thread, count)| count.checked_sub(*before.get(thread)?));
                return of_both.sum();
            }
            *self = AtLeader::new(self.world, self.access).await;
        }
    }
}

fn pid(world: &World, index: usize) -> i32 {
    let inside = world.host(index).agent_pid().unwrap().unwrap();
    world.host(index).machine_pid(inside).unwrap().unwrap()
}

#[test]
fn a_clients_lone_questions_are_served_on_the_replicas_thread_and_all_others_by_the_workers() {
    let world = World::of(3, "beside");
    let access = ours::access(&world.api(0)).unwrap();
    let steps = async || {
        let mut at = AtLeader::new(&world, &access).await;
        // Beside the replica: the workers sleep, but for what else they do.
        let lone = async |at: &mut AtLeader, from: u64| {
            let slept = at.slept(from, async |at| at.alone(from + UNTIL_QUIET, LONE).await).await;
            assert!(
                slept < LONE,
                "the workers slept {slept} times while {LONE} writes and reads were served"
            );
        };
        for round in 0..2 {
            lone(&mut at, 10_000 * round).await;
            // Many at once: back to the workers, and all are answered.
            let mut many = JoinSet::new();
            for number in 0..200 {
                let (client, key) = (at.client.clone(), format!("stream/many/{round}/{number:05}"));
                clock::spawn_in(&mut many, async move { client.put(key.as_bytes(), b"value").await });
            }
            while let Some(written) = many.join_next().await {
                written.unwrap().unwrap();
            }
        }
        // Two at once, all the time: each is the workers'.
        let two = async |at: &AtLeader| {
            let mut two = JoinSet::new();
            for asker in 0..2 {
                let client = at.client.clone();
                clock::spawn_in(&mut two, async move {
                    for number in 0..LONE {
                        let key = format!("stream/two/{asker}/{number:05}");
                        client.put(key.as_bytes(), b"value").await.unwrap();
                    }
                });
            }
            while let Some(written) = two.join_next().await {
                written.unwrap();
            }
        };
        let slept = at.slept(30_000, two).await;
        assert!(slept >= LONE, "the workers slept {slept} times while two times {LONE} writes were served");
        // So is what needs no replica. (Now and then one comes before the worker sleeps.)
        let local = async |at: &AtLeader| {
            for _ in 0..2 * LONE {
                let answer = at.client.ask(get("stream/00000", Read::Local)).await.unwrap();
                assert!(matches!(answer, Answer::Entry { entry: Some(_), .. }), "{answer:?}");
            }
        };
        let slept = at.slept(40_000, local).await;
        assert!(slept >= LONE, "the workers slept {slept} times while {} local reads were served", 2 * LONE);
        // Who was beside the replica when its followers fell silent is answered, and served again when they come back.
        lone(&mut at, 50_000).await;
        let others = (0..3).filter(|index| *index != at.leader).map(|index| Paused(pid(&world, index)));
        let others: Vec<Paused> = others.collect();
        others.iter().for_each(Paused::pause);
        let answer = at.client.ask(Ask::Transact(put("stream/silence", "value"))).await.unwrap();
        assert!(matches!(answer, Answer::NoLeader(_) | Answer::Unknown(_)), "{answer:?}");
        others.iter().for_each(Paused::resume);
        let mut answer = at.client.ask(get("stream/silence", Read::Linearizable)).await.unwrap();
        while !matches!(answer, Answer::Entry { .. }) {
            answer = at.client.ask(get("stream/silence", Read::Linearizable)).await.unwrap();
        }
        at.alone(60_000, UNTIL_QUIET + LONE).await;
        let (start, end) = (Key::from("stream/"), Key::from("stream/~"));
        let all = Ask::Range { start, end, limit: 10_000, read: Read::Linearizable };
        match at.client.ask(all).await.unwrap() {
            Answer::Entries { entries, more: false, .. } => {
                // Four times alone, before two at once and before local reads, two at once, and twice many.
                let written = (4 * (UNTIL_QUIET + LONE) + 2 * UNTIL_QUIET + 2 * LONE + 2 * 200) as usize;
                assert!((written..=written + 1).contains(&entries.len()), "{} of {written}", entries.len());
            }
            answer => panic!("{answer:?}"),
        }
    };
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    world.bed.outside().within(|| runtime().block_on(steps())).unwrap();
}

/// How often each thread of that name went to sleep. One that ends meanwhile is none of them.
fn sleeps(pid: i32, name: &str) -> HashMap<OsString, u64> {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten();
    let of_name = tasks.filter_map(|task| {
        let status = std::fs::read_to_string(task.path().join("status")).ok()?;
        let sleeps = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:\t"))?;
        status.starts_with(&format!("Name:\t{name}\n")).then(|| (task.file_name(), sleeps.parse().unwrap()))
    });
    of_name.collect()
}

/// An agent that can be stopped and goes on when this is dropped.
struct Paused(i32);

impl Paused {
    fn pause(&self) {
        kill(Pid::from_raw(self.0), Signal::SIGSTOP).unwrap();
    }

    fn resume(&self) {
        kill(Pid::from_raw(self.0), Signal::SIGCONT).unwrap();
    }
}

impl Drop for Paused {
    fn drop(&mut self) {
        let _ = kill(Pid::from_raw(self.0), Signal::SIGCONT);
    }
}

/// The same, but for the certificate of the client.
fn without_certificate(access: &Access) -> rustls::ClientConfig {
    let mut tls = (*access.tls).clone();
    tls.client_auth_cert_resolver = Arc::new(Nobody);
    tls
}

#[derive(Debug)]
struct Nobody;

impl rustls::client::ResolvesClientCert for Nobody {
    fn resolve(
        &self,
        _authorities: &[&[u8]],
        _schemes: &[rustls::SignatureScheme],
    ) -> Option<Arc<rustls::sign::CertifiedKey>> {
        None
    }

    fn has_certs(&self) -> bool {
        false
    }
}
