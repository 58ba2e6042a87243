//! Asks the survivors, and gives the order to the one with the newest log.
//!
//! Decides nothing: [`super::judge`] does, on the machine that is asked and once more on the one that carries it out.

use std::time::Duration;

use raft_store::NodeId;
use serde_json::{Value, json};

use super::carry_out::{self, Order};
use super::{RecoverError, Survivor, Verdict, judge};
use crate::clock;
use crate::cluster::Cluster;
use crate::members::in_view;
use crate::mesh::wire::{Request, Response};

/// How long a survivor looks for a leader before it says that there is none.
const LED: Duration = Duration::from_millis(1_500);

/// What this machine says of its own store.
pub async fn own(cluster: &Cluster) -> Option<Survivor> {
    let led = matches!(tokio::time::timeout(LED, cluster.store.linearizable()).await, Ok(Some(_)));
    let status = cluster.store.status().await?;
    Some(Survivor {
        name: cluster.name().into(),
        epoch: cluster.identity.epoch,
        led,
        last: (status.last_term, status.last_index),
        commit: status.commit,
    })
}

/// Recovering failed.
#[derive(Debug, thiserror::Error)]
pub enum SurveyError {
    #[error(transparent)]
    Judged(#[from] RecoverError),
    #[error("{0} has the newest log and does not take the order: {1}")]
    NotTaken(String, String),
    #[error(transparent)]
    Order(#[from] carry_out::OrderError),
    #[error("the store has stopped")]
    Stopped,
}

/// Asks everybody and judges.
pub async fn survey(cluster: &Cluster, lost: &[String]) -> Result<Verdict, SurveyError> {
    let view = cluster.store.view();
    let listed = in_view(&view);
    let name = |id: &NodeId| {
        let found = listed.iter().find(|member| member.node_id() == *id);
        found.map_or_else(|| id.to_string(), |member| member.name.clone())
    };
    let raft = view.members();
    let sets = [&raft.voters, &raft.voters_outgoing].into_iter().filter(|set| !set.is_empty());
    let voters: Vec<Vec<String>> = sets.map(|set| set.iter().map(name).collect()).collect();
    let members: Vec<String> = listed.iter().map(|member| member.name.clone()).collect();
    let others = listed.iter().map(|member| member.node_id()).filter(|id| *id != cluster.me());
    let asked: Vec<_> = others
        .map(|id| {
            let mesh = cluster.mesh.clone();
            clock::spawn(async move { mesh.request(id, Request::Survey).await })
        })
        .collect();
    let mut survivors = vec![own(cluster).await.ok_or(SurveyError::Stopped)?];
    for answer in asked {
        if let Ok(Ok(Response::Survey(text))) = answer.await
            && let Ok(survivor) = serde_json::from_slice(&text)
        {
            survivors.push(survivor);
        }
    }
    Ok(judge(cluster.identity.epoch, &voters, &members, &survivors, lost)?)
}

/// Shows what would be done, or has it done by whoever has the newest log. What was judged comes with it.
pub async fn recover(cluster: &Cluster, lost: &[String], really: bool) -> Result<Value, SurveyError> {
    let verdict = survey(cluster, lost).await?;
    let mut answer = json!(verdict);
    answer["done"] = json!(really);
    if !really {
        return Ok(answer);
    }
    if verdict.best.name == cluster.name() {
        begin(cluster, &verdict)?;
        return Ok(answer);
    }
    let best = cluster.roster.by_name(&verdict.best.name).map(|member| member.node_id());
    let order = Request::Recover { lost: lost.to_vec() };
    let taken = match best {
        Some(best) => cluster.mesh.request(best, order).await,
        None => Ok(Response::Refused("it is no member".into())),
    };
    match taken {
        Ok(Response::Done) => Ok(answer),
        Ok(Response::Refused(why)) => Err(SurveyError::NotTaken(verdict.best.name, why)),
        Ok(_) => Err(SurveyError::NotTaken(verdict.best.name, "its answer makes no sense".into())),
        Err(error) => Err(SurveyError::NotTaken(verdict.best.name, error.to_string())),
    }
}

/// Another member asks this one to recover: it looks for itself.
pub async fn ordered(cluster: &Cluster, lost: &[String]) -> Response {
    match survey(cluster, lost).await {
        Ok(verdict) if verdict.best.name == cluster.name() => match begin(cluster, &verdict) {
            Ok(()) => Response::Done,
            Err(error) => Response::Refused(error.to_string()),
        },
        Ok(verdict) => Response::Refused(format!("{} has a newer log", verdict.best.name)),
        Err(error) => Response::Refused(error.to_string()),
    }
}

fn begin(cluster: &Cluster, verdict: &Verdict) -> Result<(), carry_out::OrderError> {
    tracing::warn!(lost = ?verdict.lost, unconfirmed = verdict.unconfirmed, "recovers the cluster from this machine's log");
    let order = Order::Lead {
        epoch: super::next_epoch(cluster.identity.epoch, clock::random_u64()),
        lost: verdict.lost.clone(),
        last: verdict.best.last,
        commit: verdict.best.commit,
        at: api::duration::rfc3339(clock::wall()),
    };
    carry_out::give(&cluster.config.data, &order)?;
    carry_out::restart_soon();
    Ok(())
}
