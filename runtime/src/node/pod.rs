//! One pod as this agent knows it: its shim, its containers' states.
//!
//! Decides how news changes states: an exit is never overwritten by an older "running". Holds the lock
//! that keeps two structural changes of one pod apart; does no IO.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

use super::client::Shim;
use crate::ids::ContainerName;
use crate::paths::PodPaths;
use crate::spec::PodSpec;
use crate::state::{ContainerState, ContainerStatus, Exit, PodState, Started};

pub(crate) struct Pod {
    pub paths: PodPaths,
    /// Held during create, start and remove, never while waiting for a container's end.
    pub changing: tokio::sync::Mutex<()>,
    known: Mutex<Known>,
    /// Counts changes, for those who wait for one.
    version: watch::Sender<u64>,
}

struct Known {
    spec: PodSpec,
    shim: Option<Arc<Shim>>,
    released: bool,
    containers: BTreeMap<ContainerName, ContainerState>,
}

impl Pod {
    pub fn new(spec: PodSpec, paths: PodPaths) -> Self {
        let known = Known { spec, shim: None, released: false, containers: BTreeMap::new() };
        let changing = tokio::sync::Mutex::default();
        Self { paths, changing, known: Mutex::new(known), version: watch::Sender::new(0) }
    }

    pub fn state(&self) -> PodState {
        let known = self.known();
        let containers = known.containers.values().cloned().collect();
        PodState {
            spec: known.spec.clone(),
            sandboxed: known.shim.is_some(),
            released: known.released,
            containers,
        }
    }

    pub fn spec(&self) -> PodSpec {
        self.known().spec.clone()
    }

    pub fn container(&self, name: &ContainerName) -> Option<ContainerState> {
        self.known().containers.get(name).cloned()
    }

    pub fn shim(&self) -> Option<Arc<Shim>> {
        self.known().shim.clone()
    }

    pub fn set_shim(&self, shim: Option<Arc<Shim>>) {
        // Dropped outside the lock: that ends its reader.
        let old = std::mem::replace(&mut self.known().shim, shim);
        drop(old);
        self.changed();
    }

    pub fn set_released(&self, released: bool) {
        self.known().released = released;
        self.changed();
    }

    pub fn put(&self, state: ContainerState) {
        self.known().containers.insert(state.name.clone(), state);
        self.changed();
    }

    pub fn remove(&self, name: &ContainerName) {
        self.known().containers.remove(name);
        self.changed();
    }

    pub fn started(&self, name: &ContainerName, started: Started) {
        if let Some(state) = self.known().containers.get_mut(name)
            && matches!(state.status, ContainerStatus::Creating)
        {
            state.status = ContainerStatus::Running(started);
        }
        self.changed();
    }

    /// Whether this was news.
    pub fn exited(&self, name: &ContainerName, attempt: u32, exit: &Exit) -> bool {
        let mut known = self.known();
        let Some(state) = known.containers.get_mut(name).filter(|state| state.attempt == attempt) else {
            return false;
        };
        if matches!(state.status, ContainerStatus::Exited(_)) {
            return false;
        }
        state.status = ContainerStatus::Exited(exit.clone());
        drop(known);
        self.changed();
        true
    }

    /// Waits until the container is no longer running; `None` when it is gone altogether.
    pub async fn end_of(&self, name: &ContainerName) -> Option<Exit> {
        let mut version = self.version.subscribe();
        loop {
            version.borrow_and_update();
            match self.container(name)?.status {
                ContainerStatus::Exited(exit) => return Some(exit),
                ContainerStatus::Creating | ContainerStatus::Running(_) => {}
            }
            if version.changed().await.is_err() {
                return None;
            }
        }
    }

    fn changed(&self) {
        self.version.send_modify(|version| *version += 1);
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
