//! One member, one machine: whether two run as the same, after a disk was copied or a virtual machine cloned.
//!
//! Decides it by lives: each start of an agent draws a number, and tells it to the leader now and then. A life that another has taken the
//! place of is over; if it speaks again later, both run. Both are told and stay down until a person has decided: what the two have
//! promised in one name cannot be kept. It must not decide which is the right one.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use raft_store::NodeId;
use tracing::error;

use crate::clock;
use crate::cluster::Cluster;
use crate::identity;
use crate::members::Member;
use crate::mesh::wire::{Request, Response};
use crate::run::towards;
use crate::store::Plan;
use crate::timing;

/// Words of a life that is over may still be on their way for so long.
const LATE_MS: u64 = 2_500;

/// A life and where it says it runs.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Life {
    number: u64,
    place: String,
}

#[derive(Debug)]
struct Heard {
    current: Life,
    /// Over, by number, with the time at which another took their place.
    past: BTreeMap<u64, u64>,
    /// Two that ran at once.
    doubled: Vec<Life>,
}

/// What has been heard of each member's lives, and since when which of them has asked to be known by another key.
#[derive(Debug, Default)]
pub struct Lives(BTreeMap<NodeId, Heard>, BTreeMap<NodeId, (u64, u64)>);

/// Whether a member's process may have the member known by another key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MayReplace {
    Yes,
    /// Another one may speak yet.
    NotYet,
    /// Another one runs: the places of both.
    Doubled([String; 2]),
}

impl Lives {
    /// A process that runs as this member asks to have it known by another key. It may, once nobody else was heard as the member for
    /// long enough since it first asked.
    pub fn may_replace(&mut self, now: u64, node: NodeId, number: u64, place: &str) -> MayReplace {
        // To ask is a word of this life too: of two that ask in turns both are found out.
        if let Some(places) = self.heard(now, node, number, place) {
            return MayReplace::Doubled(places);
        }
        let asked = self.1.entry(node).or_insert((number, now));
        if asked.0 != number {
            *asked = (number, now);
        }
        let since = asked.1;
        let long_enough = now.saturating_sub(since) >= timing::HEAR_OF_DOUBLES.as_millis() as u64;
        if long_enough { MayReplace::Yes } else { MayReplace::NotYet }
    }

    /// Takes a life's word; answers the places of both if two run as this member.
    pub fn heard(&mut self, now: u64, node: NodeId, number: u64, place: &str) -> Option<[String; 2]> {
        let life = Life { number, place: place.to_owned() };
        let Some(heard) = self.0.get_mut(&node) else {
            self.0.insert(node, Heard { current: life, past: BTreeMap::new(), doubled: Vec::new() });
            return None;
        };
        if !heard.doubled.contains(&life) {
            match heard.past.get(&number) {
                _ if heard.current.number == number => return None,
                None => {
                    let over = std::mem::replace(&mut heard.current, life);
                    heard.past.insert(over.number, now);
                    return None;
                }
                Some(since) if now.saturating_sub(*since) < LATE_MS => return None,
                Some(_) => heard.doubled = vec![heard.current.clone(), life],
            }
        }
        let [first, second] = heard.doubled.as_slice() else { return None };
        Some([first.place.clone(), second.place.clone()])
    }
}

/// Shared by the requests of all members.
pub type Watch = Arc<Mutex<Lives>>;

/// Answers a member's word.
pub fn answer(cluster: &Cluster, from: NodeId, life: u64, place: &str) -> Response {
    let mut lives = cluster.lives.lock().unwrap_or_else(PoisonError::into_inner);
    match lives.heard(clock::millis(), from, life, place) {
        Some(places) => tell(cluster, from, &places),
        None => Response::Done,
    }
}

/// Says, and writes down, that two run as one member.
pub fn tell(cluster: &Cluster, from: NodeId, [one, other]: &[String; 2]) -> Response {
    let name = cluster.roster.get(from).map_or_else(|| from.to_string(), |member| member.name);
    error!(%name, %one, %other, "two machines run as the same member: a disk was copied; both are refused");
    let places = format!("{one} and {other}");
    // The other one may speak to another member: the store tells it, and everybody.
    let (store, record) = (cluster.store.clone(), Plan::new().put(&key(&name), &places).build());
    clock::spawn(async move {
        if let Err(error) = store.transact(record, None).await {
            error!(%error, "this could not be written into the store: only who asks here is told");
        }
    });
    Response::Doubled(places)
}

/// Where it is written that two run as one member, until that is removed.
pub fn key(name: &str) -> String {
    format!("c/doubled/{name}")
}

/// What is written of this member.
fn written(cluster: &Cluster) -> Option<String> {
    let view = cluster.store.view();
    let entry = view.get(key(cluster.name()).as_bytes())?;
    Some(String::from_utf8_lossy(entry.value()).into_owned())
}

/// Tells this life: to the leader, where none is known to all voters, of whom one may lead, and where this machine leads to any other member.
pub async fn run(cluster: Arc<Cluster>) {
    let life = clock::random_u64();
    loop {
        if let Some(places) = written(&cluster) {
            stop(&cluster, &places);
        }
        for to in listeners(&cluster) {
            let word = Request::Life { number: life, place: place([&to]) };
            if let Ok(Response::Doubled(places)) = cluster.mesh.request(to.node_id(), word).await {
                stop(&cluster, &places);
            }
        }
        tokio::time::sleep(timing::TELL_LIFE).await;
    }
}

/// Where this process runs, as one reaches these members from here.
pub fn place<'a>(members: impl IntoIterator<Item = &'a Member>) -> String {
    let host = nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok()).unwrap_or_default();
    let address = members.into_iter().find_map(|member| towards(member.address));
    let address = address.map_or_else(|| "no address".into(), |address| address.to_string());
    format!("{host} ({address})")
}

fn listeners(cluster: &Cluster) -> Vec<Member> {
    let me = cluster.me();
    let mut others = cluster.roster.all();
    others.retain(|member| member.node_id() != me);
    let leader = cluster.store.leader();
    let view = cluster.store.view();
    let voters = &view.members().voters;
    let may_lead = |member: &&Member| match leader {
        Some(leader) => leader == member.node_id(),
        None => voters.contains(&member.node_id()),
    };
    let told: Vec<Member> = others.iter().filter(may_lead).cloned().collect();
    if told.is_empty() && !others.is_empty() {
        let at = clock::random_u64() as usize % others.len();
        return vec![others.swap_remove(at)];
    }
    told
}

/// Ends this agent, and sees to it that it does not come back by itself.
fn stop(cluster: &Cluster, places: &str) -> ! {
    stop_as_doubled(&cluster.config.data, cluster.name(), places)
}

/// The same, before there is a cluster.
pub fn stop_as_doubled(data: &Path, name: &str, places: &str) -> ! {
    let why = said(name, places);
    error!("{why}");
    if let Err(error) = identity::write_durably(&mark(data), why.as_bytes()) {
        error!(%error, "this could not be written down: the agent will come back, and be refused again");
    }
    std::process::exit(71);
}

fn said(name: &str, places: &str) -> String {
    format!(
        "two machines run as member {name}: {places}. The disk of one is a copy of the other's, and neither's store can be trusted any more. Run 'skein node rm {name}' on another member, 'skein node reset' on both, and join again under different names"
    )
}

fn mark(data: &Path) -> PathBuf {
    data.join("member").join("doubled")
}

/// What was found at an earlier start, if it was.
pub fn found_earlier(data: &Path) -> Option<String> {
    std::fs::read_to_string(mark(data)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const NODE: NodeId = NodeId(7);

    #[test]
    fn restarts_follow_one_another_and_are_nothing() {
        let mut lives = Lives::default();
        for (now, life) in [(0, 1), (2_000, 1), (4_000, 2), (4_100, 1), (6_000, 2), (9_000, 3), (60_000, 4)] {
            assert_eq!(lives.heard(now, NODE, life, "a"), None, "at {now}");
        }
    }

    #[test]
    fn a_member_is_known_by_another_key_only_after_nobody_else_was_heard_as_it() {
        let mut lives = Lives::default();
        lives.heard(0, NODE, 1, "host2");
        assert_eq!(lives.may_replace(1_000, NODE, 2, "host2"), MayReplace::NotYet);
        lives.heard(2_000, NODE, 1, "host2");
        assert_eq!(lives.may_replace(6_000, NODE, 2, "host2"), MayReplace::NotYet, "words may be late");
        assert_eq!(lives.may_replace(8_000, NODE, 2, "host2"), MayReplace::Yes);
        // Another process begins to wait anew, also where nothing was ever heard.
        assert_eq!(lives.may_replace(9_000, NODE, 3, "host2"), MayReplace::NotYet);
        assert_eq!(Lives::default().may_replace(9_000, NODE, 3, "host2"), MayReplace::NotYet);
    }

    #[test]
    fn a_copied_disk_does_not_take_the_place_of_the_original_that_runs() {
        let mut lives = Lives::default();
        lives.heard(0, NODE, 1, "host2");
        assert_eq!(lives.may_replace(1_000, NODE, 2, "host4"), MayReplace::NotYet);
        lives.heard(2_000, NODE, 1, "host2");
        let told = Some(["host4".to_string(), "host2".to_string()]);
        assert_eq!(lives.heard(4_000, NODE, 1, "host2"), told, "the original is told");
        let both = MayReplace::Doubled(["host4".into(), "host2".into()]);
        assert_eq!(lives.may_replace(5_000, NODE, 2, "host4"), both);
        assert_eq!(lives.may_replace(60_000, NODE, 2, "host4"), both);
    }

    #[test]
    fn of_two_that_both_ask_to_take_the_members_place_neither_gets_it() {
        let mut lives = Lives::default();
        for now in (0..4_000).step_by(1_000) {
            for (number, place) in [(1, "host2"), (2, "host4")] {
                let may = lives.may_replace(now, NODE, number, place);
                assert_eq!(may != MayReplace::NotYet, now >= 3_000, "{number} at {now}: {may:?}");
                assert_ne!(may, MayReplace::Yes);
            }
        }
    }

    #[test]
    fn a_life_that_was_over_and_speaks_again_is_a_second_machine_and_both_are_told() {
        let mut lives = Lives::default();
        assert_eq!(lives.heard(0, NODE, 1, "host2"), None);
        assert_eq!(lives.heard(1_000, NODE, 2, "host4"), None);
        assert_eq!(lives.heard(2_000, NODE, 1, "host2"), None, "it may have been on its way");
        let both = Some(["host4".to_string(), "host2".to_string()]);
        assert_eq!(lives.heard(4_000, NODE, 1, "host2"), both);
        assert_eq!(lives.heard(4_100, NODE, 2, "host4"), both);
        assert_eq!(lives.heard(4_200, NodeId(8), 2, "host4"), None);
        assert_eq!(lives.heard(90_000, NODE, 3, "host2"), None, "somebody has decided");
    }
}
