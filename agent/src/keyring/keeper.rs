//! The leader's hand on the keyring: puts it into the store, seals it to whom the core says, takes a new recovery key.
//!
//! Decides nothing: [`super::holders`] does. Each write carries the leader's epoch and the revision that was read, and nothing unsealed
//! leaves this process.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use raft_store::{Epoch, Millis, NodeId, View};
use tracing::{info, warn};

use super::holders::{Holders, Keys, Look, Step, may_vote};
use super::seal::{self, SealKey, SealPublic};
use super::secrets::generation_of;
use super::{FIRST, KEY, OpenError, Ring, SealError, Secrets, fresh, public_of_text};
use crate::clock;
use crate::cluster::Cluster;
use crate::members::{self, Member, in_view};
use crate::store::{Plan, Touched, TransactError};
use crate::{pki, timing};

/// The keyring could not be changed.
#[derive(Debug, thiserror::Error)]
pub enum KeepError {
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error(transparent)]
    Seal(#[from] SealError),
    #[error("the keyring could not be written: {0}")]
    Write(#[from] TransactError),
    #[error("no keyring is in the store, and this machine has none to put there")]
    Nothing,
}

/// What one leadership remembers.
#[derive(Default)]
pub struct Keeper {
    core: Holders,
    said: String,
    known: Known,
}

/// What was read of the last state, so that looking again at the same one costs nothing.
#[derive(Default)]
struct Known {
    /// The keyring and the revision that it was read at.
    ring: Option<(u64, Arc<Ring>)>,
    /// The members' sealing keys.
    keys: Arc<Keys>,
    /// Whether the members changed.
    members: Option<Touched>,
}

impl Known {
    fn look(&mut self, view: &View) {
        let revision = view.get(KEY.as_bytes()).map(|entry| entry.mod_revision().0);
        if self.ring.as_ref().map(|(at, _)| *at) != revision {
            self.ring = revision.and_then(|at| Some((at, Arc::new(Ring::in_view(view)?))));
        }
        if self.members.get_or_insert_with(|| Touched::below([members::PREFIX])).look(view) {
            self.keys = Arc::new(keys(view));
        }
    }
}

impl Keeper {
    /// Brings the keyring in line with the voters, and says whether those who are to vote next hold it.
    pub async fn tend(
        &mut self,
        cluster: &Cluster,
        epoch: Epoch,
        view: &View,
        coming: &BTreeSet<NodeId>,
    ) -> bool {
        self.known.look(view);
        let done = match self.known.ring.clone() {
            Some((_, ring)) => self.bring_in_line(cluster, epoch, view, &ring, coming).await,
            None => adopt(cluster, epoch).await.map(|()| coming.is_empty()),
        };
        match done {
            Ok(ready) => ready,
            Err(error) => {
                let text = error.to_string();
                if self.said != text {
                    warn!(%error, "keyring");
                    self.said = text;
                }
                // A keyring that is not here to be sealed must not keep the cluster at too few voters.
                matches!(error, KeepError::Open(_) | KeepError::Nothing)
            }
        }
    }

    async fn bring_in_line(
        &mut self,
        cluster: &Cluster,
        epoch: Epoch,
        view: &View,
        ring: &Ring,
        coming: &BTreeSet<NodeId>,
    ) -> Result<bool, KeepError> {
        let members = view.members();
        let voters = members.voters.iter().chain(&members.voters_outgoing).copied().collect();
        let (keys, held) = (self.known.keys.clone(), ring.held());
        let look = Look { voters: &voters, coming, keys: &keys, held: &held };
        let Step::Seal { to, new_data_key } = self.core.next(Millis(clock::millis()), &look) else {
            return Ok(may_vote(coming, &keys, &held));
        };
        let mut secrets = ring.open(&cluster.identity.cluster, cluster.me(), &cluster.seal_key)?;
        if new_data_key {
            secrets.rotate(fresh(), &in_use(view));
        }
        write(cluster, epoch, Some(view), &secrets, &to, ring.recovery()).await?;
        info!(holders = to.len(), new_data_key, generation = secrets.generation(), "keyring sealed anew");
        // What was written is looked at in the next state.
        Ok(coming.is_empty())
    }
}

/// The members' sealing keys, as far as they have said them.
fn keys(view: &View) -> Keys {
    let members = in_view(view);
    members.iter().filter_map(|member| Some((member.node_id(), key_of(member)?))).collect()
}

/// A member's sealing key, unless it has said none, or something that nothing can be sealed to.
pub fn key_of(member: &Member) -> Option<SealPublic> {
    public_of_text(&member.seal_key).filter(seal::is_sound)
}

async fn write(
    cluster: &Cluster,
    epoch: Epoch,
    read: Option<&View>,
    secrets: &Secrets,
    to: &Keys,
    recovery: Option<SealPublic>,
) -> Result<(), KeepError> {
    let ring = Ring::seal(&cluster.identity.cluster, secrets, to, recovery, fresh)?;
    put(cluster, epoch, read, &ring).await
}

async fn put(cluster: &Cluster, epoch: Epoch, read: Option<&View>, ring: &Ring) -> Result<(), KeepError> {
    let plan = match read.and_then(|view| view.get(KEY.as_bytes())) {
        Some(entry) => Plan::new().expect_revision(KEY, entry.mod_revision().0),
        None => Plan::new().expect_absent(KEY),
    };
    let plan = plan.put(KEY, serde_json::to_vec(ring).unwrap_or_default());
    let revision = cluster.store.transact(plan.build(), Some(epoch)).await?;
    let _ = cluster.store.at_least(revision).await;
    Ok(())
}

/// Puts the first keyring into the store: the one that init left, or one made of the file of an agent from before keyrings.
async fn adopt(cluster: &Cluster, epoch: Epoch) -> Result<(), KeepError> {
    let directory = cluster.config.data.join("member");
    let first = std::fs::read(directory.join(FIRST)).ok();
    if let Some(ring) = first.and_then(|text| serde_json::from_slice::<Ring>(&text).ok()) {
        put(cluster, epoch, None, &ring).await?;
        info!("keyring put into the store");
        return Ok(());
    }
    let Ok(ca_key) = std::fs::read_to_string(directory.join(OLD_CA_KEY)) else {
        return Err(KeepError::Nothing);
    };
    let to = Keys::from([(cluster.me(), cluster.seal_key.public())]);
    write(cluster, epoch, None, &Secrets::new(ca_key, fresh()), &to, None).await?;
    info!("the CA's key moved from its file into the keyring");
    Ok(())
}

/// Where agents from before keyrings kept the CA's key, below `DATA/member`.
const OLD_CA_KEY: &str = "ca.key";

/// Removes what the store has taken over.
fn clean_up(directory: &Path) {
    for name in [FIRST, OLD_CA_KEY] {
        let _ = std::fs::remove_file(directory.join(name));
    }
}

/// Says this machine's sealing key, and what its binary supports, to the others, and removes what the store has taken over. Every member's part.
pub async fn publish(cluster: Arc<Cluster>) {
    let mut views = cluster.store.objects();
    let directory = cluster.config.data.join("member");
    let own = members::key(cluster.name());
    let mut touched = Touched::below([KEY, own.as_str()]);
    let (mut cleaned, mut said) = (false, false);
    loop {
        let view = views.borrow_and_update().clone();
        if !cleaned && view.get(KEY.as_bytes()).is_some() {
            clean_up(&directory);
            cleaned = true;
        }
        if touched.look(&view) || !said {
            let outcome = say_key(&cluster, &view).await;
            said = outcome.is_ok();
            if let Err(error) = outcome {
                tracing::debug!(%error, "this machine's sealing key is not on the member list yet");
            }
        }
        // Without a change it is tried again.
        if let Ok(Err(_)) = tokio::time::timeout(timing::LEADER_ANSWER, views.changed()).await {
            return;
        }
    }
}

/// Writes what this machine says of itself into its member record, if that says something else.
async fn say_key(cluster: &Cluster, view: &View) -> Result<(), TransactError> {
    let key = members::key(cluster.name());
    let Some(entry) = view.get(key.as_bytes()) else { return Ok(()) };
    let own = pki::hex(&cluster.seal_key.public());
    let Ok(mut member) = serde_json::from_slice::<Member>(entry.value()) else { return Ok(()) };
    let versions = members::own_versions();
    if member.node_id() != cluster.me() || (&member.seal_key, member.versions) == (&own, versions) {
        return Ok(());
    }
    member.seal_key = own;
    member.versions = versions;
    let record = serde_json::to_vec(&member).unwrap_or_default();
    let plan = Plan::new().expect_revision(&key, entry.mod_revision().0).put(&key, record);
    match cluster.store.transact(plan.build(), None).await {
        // Somebody else changed it: that is a new state, in which it is looked at again.
        Ok(_) | Err(TransactError::CompareFailed { .. }) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Seals the keyring to another recovery key; the one before opens it no longer.
pub async fn set_recovery(cluster: &Cluster, epoch: Epoch, public: SealPublic) -> Result<(), KeepError> {
    let view = cluster.store.linearizable().await.ok_or(TransactError::NoLeader)?;
    let ring = Ring::in_view(&view).ok_or(OpenError::Absent)?;
    let secrets = ring.open(&cluster.identity.cluster, cluster.me(), &cluster.seal_key)?;
    write(cluster, epoch, Some(&view), &secrets, &ring.held(), Some(public)).await
}

/// The data keys that something in the store is encrypted with.
fn in_use(view: &View) -> BTreeSet<u64> {
    view.prefix(b"", None).filter_map(|entry| generation_of(entry.value())).collect()
}

/// Opens the keyring with the recovery key where no voter that is left can, and seals it to this leader; the others follow.
pub async fn unlock(cluster: &Cluster, epoch: Epoch, key: &SealKey) -> Result<(), KeepError> {
    let view = cluster.store.linearizable().await.ok_or(TransactError::NoLeader)?;
    let ring = Ring::in_view(&view).ok_or(OpenError::Absent)?;
    let mut secrets = ring.open_by_recovery(&cluster.identity.cluster, key)?;
    // Whoever held a wrap is not among the voters any more.
    secrets.rotate(fresh(), &in_use(&view));
    let to = Keys::from([(cluster.me(), cluster.seal_key.public())]);
    write(cluster, epoch, Some(&view), &secrets, &to, ring.recovery()).await?;
    info!("keyring opened with the recovery key");
    Ok(())
}

/// Who holds a wrap and should not, or should and does not, for `cluster status`. `name` names a member.
pub fn note(view: &View, leader: Option<NodeId>, name: impl Fn(NodeId) -> String) -> Option<String> {
    let Some(ring) = Ring::in_view(view) else {
        return Some("there is no keyring: no machine can join, no certificate is renewed".into());
    };
    let members = view.members();
    let voters: BTreeSet<NodeId> = members.voters.iter().chain(&members.voters_outgoing).copied().collect();
    let held: BTreeSet<NodeId> = ring.held().into_keys().collect();
    let list = |ids: &BTreeSet<NodeId>| ids.iter().map(|id| name(*id)).collect::<Vec<_>>().join(", ");
    match () {
        () if leader.is_some_and(|leader| !held.contains(&leader)) => Some(format!(
            "the leader cannot open the keyring (sealed to: {}): no machine can join, no certificate is renewed. On the leader: \
             'skein cluster unlock --recovery-key FILE'",
            list(&held)
        )),
        () if held != voters => {
            Some(format!("the keyring is sealed to {}; voters are {}", list(&held), list(&voters)))
        }
        () if ring.recovery().is_none() => {
            Some("the keyring has no recovery key: 'skein cluster recovery-key' makes one".into())
        }
        () => None,
    }
}
