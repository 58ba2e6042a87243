//! The brake on replacing pods after too many deaths at once: its record in the store, so that it outlives a leader.
//!
//! Decides the record's form. It must not decide when the brake is pulled or let go ([`crate::liveness`]); nothing is written
//! while neither happens.

use raft_store::{Transaction, View};
use serde::{Deserialize, Serialize};

use crate::clock;
use crate::objects::{no_leader, write_error};
use crate::store::{Plan, Store, TransactError};

/// Key of the record; there is none before the brake is pulled for the first time.
pub const KEY: &str = "c/brake";
/// How often a release is tried again when another write was faster.
const TRIES: usize = 8;

/// Stored in JSON.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Brake {
    pub on: bool,
    /// When that was decided last, in Unix milliseconds. Deaths before a release no longer count.
    pub since_ms: i64,
}

/// What the state says; `None` if the brake was never pulled.
pub fn in_view(view: &View) -> Option<Brake> {
    view.get(KEY.as_bytes()).and_then(|entry| serde_json::from_slice(entry.value()).ok())
}

/// Whether pods of dead machines are kept from being replaced.
pub fn is_on(view: &View) -> bool {
    in_view(view).is_some_and(|brake| brake.on)
}

fn record(on: bool) -> Vec<u8> {
    serde_json::to_vec(&Brake { on, since_ms: clock::wall().as_millisecond() }).unwrap_or_default()
}

/// Writes down what the leader decided.
pub fn decided(on: bool) -> Transaction {
    Plan::new().put(KEY, record(on)).build()
}

/// An operator says that the dead are dead, on any machine. Answers whether the brake was on.
pub async fn confirm_dead(store: &Store) -> Result<bool, api::errors::ApiError> {
    for _ in 0..TRIES {
        let view = store.linearizable().await.ok_or_else(no_leader)?;
        let Some(entry) = view.get(KEY.as_bytes()).filter(|_| is_on(&view)) else { return Ok(false) };
        let plan = Plan::new().expect_revision(KEY, entry.mod_revision().0).put(KEY, record(false));
        match store.transact(plan.build(), None).await {
            Ok(_) => return Ok(true),
            Err(TransactError::CompareFailed { .. }) => {}
            Err(error) => return Err(write_error(error)),
        }
    }
    Err(api::errors::ApiError::Unavailable("the brake is being changed by others; try again".into()))
}
