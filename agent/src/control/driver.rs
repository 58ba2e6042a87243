//! Runs [`Control`] while this machine leads: feeds it changes, proposes what it plans, tells people.
//!
//! Decides nothing. It must not propose without the epoch under which the plan was made.

use std::sync::Arc;
use std::time::Duration;

use raft_store::{Epoch, Revision, View};
use tokio::sync::{mpsc, watch};
use tracing::{debug, info, warn};

use super::{Answer, Batch, Control, EventRecord, Now};
use crate::clock::{self, spawn};
use crate::cluster::Cluster;
use crate::events::Report;
use crate::store::TransactError;

/// Events that wait to be written; with more, further ones are lost, on purpose.
const EVENTS_WAITING: usize = 1_000;
/// Longest wait for anything.
const IDLE: Duration = Duration::from_secs(3_600);

/// What became of a batch.
enum News {
    Answered(u64, Answer, Vec<EventRecord>),
    /// It is not known whether it took or will take effect.
    Unknown,
    /// Another leader plans now.
    Deposed,
}

/// Runs for as long as the process does; works while this machine leads.
pub async fn run(cluster: Arc<Cluster>) {
    let (events, waiting) = mpsc::channel(EVENTS_WAITING);
    spawn(tell(cluster.clone(), waiting));
    let mut leadership = cluster.store.leadership();
    loop {
        let Ok(epoch) = leadership.wait_for(|now| now.epoch.is_some()).await.map(|now| now.epoch) else {
            return;
        };
        if let Some(epoch) = epoch {
            tokio::select! {
                () = lead(&cluster, epoch, &events) => {}
                _ = leadership.wait_for(|now| now.epoch != Some(epoch)) => {}
            }
        }
    }
}

/// One leadership, or a part of it: after an unknown outcome everything is read anew.
async fn lead(cluster: &Arc<Cluster>, epoch: Epoch, events: &mpsc::Sender<EventRecord>) {
    // What an earlier round may still have under way compares the revisions that this one starts from: one of both is refused.
    let Some(view) = cluster.store.linearizable().await else { return };
    info!(epoch = epoch.0, objects = view.len(), "controllers start");
    let (sender, news) = mpsc::unbounded_channel();
    let control = Control::new(&view, clock::random_u64());
    let views = cluster.store.objects();
    Lead { cluster, epoch, control, seen: view.revision(), views, sender, news, events }.run().await;
}

struct Lead<'a> {
    cluster: &'a Arc<Cluster>,
    epoch: Epoch,
    control: Control,
    seen: Revision,
    views: watch::Receiver<View>,
    sender: mpsc::UnboundedSender<News>,
    news: mpsc::UnboundedReceiver<News>,
    events: &'a mpsc::Sender<EventRecord>,
}

impl Lead<'_> {
    async fn run(mut self) {
        loop {
            self.plan();
            let rest =
                self.control.next_wake().map(|at| Duration::from_millis(at.saturating_sub(clock::millis())));
            tokio::select! {
                changed = self.views.changed() => if changed.is_err() { return },
                news = self.news.recv() => if !self.take(news).await { return },
                () = tokio::time::sleep(rest.unwrap_or(IDLE)) => {}
            }
            // What else has come belongs to the same round.
            while let Ok(news) = self.news.try_recv() {
                if !self.take(Some(news)).await {
                    return;
                }
            }
        }
    }

    fn plan(&mut self) {
        let view = self.views.borrow_and_update().clone();
        let brake = crate::brake::is_on(&view);
        let now = Now { millis: clock::millis(), wall: clock::wall() };
        match view.changes(self.seen) {
            Ok(changes) => changes.for_each(|change| self.control.observe(change)),
            Err(_) => self.begin_anew(&view),
        }
        self.seen = view.revision().max(self.seen);
        let batches = self.control.plan(&view, now, brake);
        let took = clock::millis() - now.millis;
        if !batches.is_empty() {
            let writes: usize = batches.iter().map(|batch| batch.transaction.ops.len()).sum();
            let first = batches.iter().flat_map(|batch| &batch.transaction.ops).next();
            let first = first.map(|op| String::from_utf8_lossy(&op.key().0).into_owned()).unwrap_or_default();
            debug!(
                batches = batches.len(),
                writes,
                first,
                took_ms = took,
                revision = view.revision().0,
                "planned"
            );
        }
        batches.into_iter().for_each(|batch| self.propose(batch));
    }

    /// The history does not reach back to what was seen.
    fn begin_anew(&mut self, view: &View) {
        warn!(seen = self.seen.0, "controllers read everything anew: the history was compacted");
        self.control = Control::new(view, clock::random_u64());
        // Answers to the old plans mean nothing to the new one. They compare revisions, so that they do no harm.
        (self.sender, self.news) = mpsc::unbounded_channel();
    }

    fn propose(&self, batch: Batch) {
        let (store, epoch, sender) = (self.cluster.store.clone(), self.epoch, self.sender.clone());
        spawn(async move {
            let Batch { id, transaction, events } = batch;
            let news = match store.transact(transaction, Some(epoch)).await {
                Ok(revision) => News::Answered(id, Answer::Applied(revision), events),
                Err(TransactError::CompareFailed { key, .. }) => {
                    debug!(id, key = %String::from_utf8_lossy(&key.0), "somebody else was faster");
                    News::Answered(id, Answer::Refused, Vec::new())
                }
                Err(TransactError::StaleEpoch(_)) => News::Deposed,
                Err(TransactError::Refused(why)) => {
                    // One plan that cannot be written must not stop all others.
                    warn!(id, %why, "a plan was refused; it is made again in a second");
                    tokio::time::sleep(Duration::from_secs(1)).await;
                    News::Answered(id, Answer::Refused, Vec::new())
                }
                Err(TransactError::Unknown) => News::Unknown,
                Err(error) => {
                    warn!(id, %error, "a plan could not be written");
                    News::Unknown
                }
            };
            let _ = sender.send(news);
        });
    }

    /// Whether to go on.
    async fn take(&mut self, news: Option<News>) -> bool {
        match news {
            Some(News::Answered(id, answer, events)) => {
                self.control.answered(id, answer);
                for event in events {
                    let _ = self.events.try_send(event);
                }
                true
            }
            Some(News::Unknown) => {
                tokio::time::sleep(crate::timing::RETRY_PAUSE).await;
                false
            }
            Some(News::Deposed) | None => false,
        }
    }
}

/// Writes events one by one: they must not hold up what they tell of.
async fn tell(cluster: Arc<Cluster>, mut waiting: mpsc::Receiver<EventRecord>) {
    while let Some(event) = waiting.recv().await {
        let make = if event.warning { Report::warning } else { Report::normal };
        make(event.kind, &event.object, event.reason, &event.message).send(&cluster).await;
    }
}
