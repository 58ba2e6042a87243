//! Gossip's driver: carries packets, timers and exchanges between the membership core and the mesh.
//!
//! Decides nothing. Runs on the mesh's thread, as its packets do.

use std::collections::BTreeSet;
use std::time::Duration;

use raft_store::NodeId;
use tokio::sync::{mpsc, oneshot, watch};

use crate::clock::spawn;
use crate::members::Roster;
use crate::membership::{Effect, Input, Membership};
use crate::mesh::wire::{Datagram, Request, Response};
use crate::mesh::{Mesh, Timer};
use crate::timing;

/// What the driver is asked.
pub enum Ask {
    Input(Input),
    /// Everything known, for another member.
    Knowledge(oneshot::Sender<Vec<u8>>),
}

/// Starts the driver. Answers where to send and whom this machine suspects.
pub fn start(
    mut core: Membership,
    mesh: Mesh,
    roster: Roster,
) -> (mpsc::UnboundedSender<Ask>, watch::Receiver<BTreeSet<NodeId>>) {
    let (asks, mut receiver) = mpsc::unbounded_channel();
    let (suspects, watching) = watch::channel(BTreeSet::new());
    let back = asks.clone();
    let heard = asks.clone();
    mesh.give_gossip_to(Box::new(move |_, bytes| {
        let _ = heard.send(Ask::Input(Input::Datagram(bytes)));
    }));
    let thread = mesh.clone();
    // Where its packets come and go: probes wait for nobody, and at rest no other thread wakes.
    thread.spawn(async move {
        let mut exchange = mesh.timers().after(Duration::ZERO);
        let mut members = mesh.timers().after(Duration::ZERO);
        loop {
            let input = tokio::select! {
                ask = receiver.recv() => match ask {
                    Some(Ask::Input(input)) => input,
                    Some(Ask::Knowledge(reply)) => {
                        let _ = reply.send(core.knowledge());
                        continue;
                    }
                    None => return,
                },
                () = &mut members => {
                    members.set_after(timing::GOSSIP_MEMBERS);
                    Input::Members(roster.all().iter().map(|member| member.id).collect())
                }
                () = &mut exchange => {
                    exchange.set_after(timing::GOSSIP_EXCHANGE);
                    exchange_with_one(&core, &mesh, &roster, &back);
                    continue;
                }
            };
            for effect in core.handle(input) {
                match effect {
                    Effect::Send { to, bytes } => mesh.send_datagram(to, &Datagram::Gossip(bytes)),
                    Effect::Wake { after, timer } => wake(mesh.timers().after(after), back.clone(), timer),
                    Effect::Suspects(set) => {
                        tracing::info!(suspects = ?set.iter().map(ToString::to_string).collect::<Vec<_>>(), "suspected members changed");
                        suspects.send_replace(set);
                    }
                }
            }
        }
    });
    (asks, watching)
}

fn wake(due: Timer, back: mpsc::UnboundedSender<Ask>, timer: crate::membership::Timer) {
    spawn(async move {
        due.await;
        let _ = back.send(Ask::Input(Input::Timer(timer)));
    });
}

/// Sends all that is known to a member chosen at random and takes what it knows.
fn exchange_with_one(core: &Membership, mesh: &Mesh, roster: &Roster, back: &mpsc::UnboundedSender<Ask>) {
    let others: Vec<NodeId> =
        roster.all().iter().map(|member| member.node_id()).filter(|id| *id != mesh.me()).collect();
    if others.is_empty() {
        return;
    }
    let to = others[(crate::clock::random_u64() % others.len() as u64) as usize];
    let (mesh, back, knowledge) = (mesh.clone(), back.clone(), core.knowledge());
    spawn(async move {
        if let Ok(Response::Exchanged(known)) = mesh.request(to, Request::Exchange(knowledge)).await {
            let _ = back.send(Ask::Input(Input::Exchange(known)));
        }
    });
}
