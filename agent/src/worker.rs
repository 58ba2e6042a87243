//! The pod worker: one task for each pod of this node, which does what [`plan`] says and reports what became of it.
//!
//! Decides nothing about pods; it must not touch pods of other nodes.

pub mod addresses;
pub mod host_ports;
pub mod plan;
pub mod pod_task;
pub mod probes;
mod probing;
pub mod spec;
pub mod status;

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

use api::kinds::Kind;
use api::{Object, keys};
use raft_store::{Revision, View};
use runtime::Events;
use runtime::ids::PodUid;
use runtime::state::Event;
use tokio::sync::{Notify, watch};
use tracing::info;

use crate::clock::spawn;
use crate::cluster::Cluster;
use crate::objects::shown;

/// Wakes the task of a pod when its containers did something.
#[derive(Default)]
pub struct Wakes(Mutex<HashMap<PodUid, Arc<Notify>>>);

impl Wakes {
    fn of(&self, uid: &PodUid) -> Arc<Notify> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).entry(uid.clone()).or_default().clone()
    }

    fn forget(&self, uid: &PodUid) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(uid);
    }

    fn wake_all(&self) {
        for notify in self.0.lock().unwrap_or_else(PoisonError::into_inner).values() {
            notify.notify_one();
        }
    }
}

/// The row of pods.
pub fn pods() -> &'static Kind {
    Kind::by_name("Pod").expect("Pod is a row of the table of kinds")
}

struct Worker {
    cluster: Arc<Cluster>,
    wakes: Arc<Wakes>,
    tasks: BTreeMap<PodUid, watch::Sender<Option<Object>>>,
}

/// Runs the node's pods until the process ends.
pub async fn run(cluster: Arc<Cluster>, mut events: Events) {
    let wakes = Arc::new(Wakes::default());
    let mut worker = Worker { cluster: cluster.clone(), wakes: wakes.clone(), tasks: BTreeMap::new() };
    let mut views = cluster.store.objects();
    // A replica that has not caught up yet would show pods of the past: wait for a leader's word first.
    while cluster.store.linearizable().await.is_none() {}
    let mut seen = worker.begin().await;
    loop {
        tokio::select! {
            event = events.recv() => match event {
                Some(Event::ContainerExited { uid, .. } | Event::ShimLost { uid }) => wakes.of(&uid).notify_one(),
                None => return,
            },
            changed = views.changed() => {
                if changed.is_err() {
                    return;
                }
                let view = views.borrow_and_update().clone();
                seen = worker.follow(&view, seen);
            }
        }
    }
}

impl Worker {
    /// Takes up all pods: those that should be here and those that the runtime still has.
    async fn begin(&mut self) -> Revision {
        let view = self.cluster.store.view();
        // Those that should be here first: a task that began without its object would take the pod for one to be removed.
        self.take_all(&view);
        for state in self.cluster.runtime.pods().await {
            if !self.tasks.contains_key(&state.spec.uid) {
                self.set(state.spec.uid, None);
            }
        }
        view.revision()
    }

    fn take_all(&mut self, view: &View) {
        let mut wanted: BTreeMap<PodUid, Object> = BTreeMap::new();
        for entry in view.prefix(keys::prefix(pods(), None).as_bytes(), None) {
            if let Ok(pod) = shown(entry)
                && pod.text("/spec/nodeName") == self.cluster.name()
                && let Ok(uid) = PodUid::new(pod.uid())
            {
                wanted.insert(uid, pod);
            }
        }
        let gone: Vec<PodUid> = self.tasks.keys().filter(|uid| !wanted.contains_key(uid)).cloned().collect();
        for uid in gone {
            self.set(uid, None);
        }
        for (uid, pod) in wanted {
            self.set(uid, Some(pod));
        }
    }

    /// Applies what has changed since; all anew when the history does not reach back.
    fn follow(&mut self, view: &View, since: Revision) -> Revision {
        let prefix = keys::prefix(pods(), None);
        let mut images_changed = false;
        let Ok(changes) = view.changes(since) else {
            self.take_all(view);
            return view.revision();
        };
        let images = keys::prefix(crate::images::images(), None);
        let config_maps = "o/core/configmaps/";
        let mut touched: Vec<(Option<Object>, Option<Object>)> = Vec::new();
        for change in changes {
            if change.key().starts_with(prefix.as_bytes()) {
                let object =
                    |entry: &Option<raft_store::Entry>| entry.as_ref().and_then(|entry| shown(entry).ok());
                touched.push((object(&change.before), object(&change.after)));
            }
            images_changed |= change.key().starts_with(images.as_bytes())
                || change.key().starts_with(config_maps.as_bytes());
        }
        for (before, after) in touched {
            self.apply(before, after);
        }
        if images_changed {
            self.wakes.wake_all();
        }
        view.revision()
    }

    fn apply(&mut self, before: Option<Object>, after: Option<Object>) {
        let here = |object: &Object| object.text("/spec/nodeName") == self.cluster.name();
        let before_uid = before.filter(|object| here(object)).map(|object| object.uid().to_string());
        let after = after.filter(|object| here(object));
        let after_uid = after.as_ref().map(|object| object.uid().to_string());
        if let Some(uid) = before_uid.filter(|uid| Some(uid) != after_uid.as_ref())
            && let Ok(uid) = PodUid::new(uid)
        {
            self.set(uid, None);
        }
        if let Some(pod) = after
            && let Ok(uid) = PodUid::new(pod.uid())
        {
            self.set(uid, Some(pod));
        }
    }

    fn set(&mut self, uid: PodUid, pod: Option<Object>) {
        self.tasks.retain(|_, sender| !sender.is_closed());
        if let Some(sender) = self.tasks.get(&uid) {
            sender.send_replace(pod);
            return;
        }
        let (sender, receiver) = watch::channel(pod);
        let task = pod_task::PodTask::new(self.cluster.clone(), uid.clone(), receiver, self.wakes.of(&uid));
        let (wakes, name) = (self.wakes.clone(), uid.clone());
        info!(pod = %uid.as_str(), "takes up a pod");
        spawn(async move {
            task.run().await;
            wakes.forget(&name);
        });
        self.tasks.insert(uid, sender);
    }
}
