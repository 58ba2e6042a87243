//! Commands on their way to the leader: one stream, many commands, outcomes as they come.
//!
//! Decides what an unanswered command means, and that each term has a stream of its own: a leader that was killed and leads again is another
//! process, and the stream to the old one may look open for seconds. It must not repeat anything: the caller does, with the same number.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use quinn::{RecvStream, SendStream};
use raft_store::{Command, NodeId, Outcome};
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot};

use super::tries::Tried;
use crate::clock::spawn;
use crate::mesh::wire::{self, Forwarded, Request, Settled};
use crate::mesh::{Class, Mesh};
use crate::timing;

/// Commands that are written at once.
const BURST: usize = 256;

type Asked = (Vec<u8>, oneshot::Sender<Tried>);

/// Who leads, and in which term.
pub type Leader = (NodeId, u64);

/// The stream to whoever was last known to lead.
pub struct Forward {
    mesh: Mesh,
    /// Where the lines are served, wherever the first command of one comes from.
    workers: Handle,
    line: Mutex<Option<(Leader, mpsc::UnboundedSender<Asked>)>>,
}

impl Forward {
    /// On the runtime whose workers serve its lines.
    pub fn new(mesh: Mesh) -> Forward {
        Forward { mesh, workers: Handle::current(), line: Mutex::default() }
    }

    /// Proposes at the leader and waits for what came of it.
    pub async fn propose(&self, leader: Leader, command: &Command) -> Tried {
        let (reply, tried) = oneshot::channel();
        self.ask(leader, (wire::encode(command), reply));
        match tokio::time::timeout(timing::MESH_REQUEST, tried).await {
            Ok(Ok(tried)) => tried,
            _ => Tried::NoAnswer,
        }
    }

    fn ask(&self, leader: Leader, asked: Asked) {
        let mut line = self.line.lock().unwrap_or_else(PoisonError::into_inner);
        let asked = match line.as_ref() {
            Some((known, sender)) if *known == leader => match sender.send(asked) {
                Ok(()) => return,
                Err(mpsc::error::SendError(asked)) => asked,
            },
            _ => asked,
        };
        let (sender, receiver) = mpsc::unbounded_channel();
        let _ = sender.send(asked);
        *line = Some((leader, sender));
        let _there = self.workers.enter();
        spawn(run(self.mesh.clone(), leader.0, receiver));
    }
}

/// Lives as long as its stream: with it, all that is unanswered is without answer.
async fn run(mesh: Mesh, leader: NodeId, mut asked: mpsc::UnboundedReceiver<Asked>) {
    match mesh.open(leader, Class::Control, &Request::Forward).await {
        Ok((send, receive)) => carry(send, receive, asked).await,
        Err(_) => {
            asked.close();
            while let Some((_, reply)) = asked.recv().await {
                let _ = reply.send(Tried::NotSent);
            }
        }
    }
}

async fn carry(mut send: SendStream, receive: RecvStream, mut asked: mpsc::UnboundedReceiver<Asked>) {
    let (settled, mut outcomes) = mpsc::unbounded_channel();
    let reading = spawn(read(receive, settled));
    let mut waiting: HashMap<u64, oneshot::Sender<Tried>> = HashMap::new();
    let (mut next, mut burst, mut bytes) = (0, Vec::new(), Vec::new());
    loop {
        tokio::select! {
            count = asked.recv_many(&mut burst, BURST) => {
                if count == 0 {
                    break;
                }
                waiting.retain(|_, reply| !reply.is_closed());
                // Who has given up is not asked for any more.
                for (command, reply) in burst.drain(..).filter(|(_, reply)| !reply.is_closed()) {
                    next += 1;
                    waiting.insert(next, reply);
                    wire::put_frame(&Forwarded { id: next, command }, &mut bytes);
                }
                if send.write_all(&bytes).await.is_err() {
                    break;
                }
                bytes.clear();
            }
            settled = outcomes.recv() => {
                let Some(Settled { id, outcome }) = settled else { break };
                if let Some(reply) = waiting.remove(&id) {
                    let _ = reply.send(wire::decode::<Outcome>(&outcome).map_or(Tried::NoAnswer, Tried::Answered));
                }
            }
        }
    }
    reading.abort();
}

async fn read(mut receive: RecvStream, settled: mpsc::UnboundedSender<Settled>) {
    while let Ok(outcome) = wire::read_frame::<Settled>(&mut receive).await {
        if settled.send(outcome).is_err() {
            return;
        }
    }
}
