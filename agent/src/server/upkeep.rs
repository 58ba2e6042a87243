//! Operators' requests about the state itself: how many vote, recover, backup.
//!
//! Decides the forms of these answers; the work is done in [`crate::voters`], [`crate::recovery`], [`crate::backup`].

use api::errors::ApiError;
use hyper::Request;
use hyper::body::Incoming;
use serde_json::{Value, json};

use super::http::{self, Reply};
use crate::backup::{self, Schedule};
use crate::cluster::Cluster;
use crate::keyring::{self, keeper, seal::SealKey, signing};
use crate::mesh::wire::{Request as Wish, Response};
use crate::objects::{Freshness, write_error};
use crate::recovery::survey;
use crate::store::Plan;
use crate::{pki, voters};

async fn document(request: Request<Incoming>) -> Result<Value, ApiError> {
    let body = http::body(request).await?;
    serde_json::from_slice(&body)
        .map_err(|error| ApiError::BadRequest(format!("the body is not JSON: {error}")))
}

/// An operator's count of voters, or the rule again.
pub async fn pin_voters(cluster: &Cluster, request: Request<Incoming>) -> Reply {
    let body = document(request).await?;
    let plan = match voters::parse_pinned(&body["count"]).map_err(ApiError::BadRequest)? {
        Some(count) => Plan::new().put(voters::PINNED, count.to_string()),
        None => Plan::new().delete(voters::PINNED),
    };
    cluster.store.transact(plan.build(), None).await.map_err(write_error)?;
    Ok(http::json(200, &json!({"voters": body["count"]})))
}

/// What recovering would do, or, with `really`, does.
pub async fn recover(cluster: &Cluster, request: Request<Incoming>) -> Reply {
    let body = document(request).await?;
    let names = body["lost"].as_array().into_iter().flatten().filter_map(Value::as_str);
    let lost: Vec<String> = names.map(String::from).collect();
    let verdict = survey::recover(cluster, &lost, body["really"] == true).await;
    Ok(http::json(200, &verdict.map_err(|error| ApiError::BadRequest(error.to_string()))?))
}

/// The whole state as one checked file.
pub async fn download(cluster: &Cluster) -> Reply {
    let view = cluster.store.linearizable().await.ok_or_else(|| {
        ApiError::Unavailable("no leader confirmed in time that this state is the newest: try again, or see 'skein cluster status'".into())
    })?;
    let bytes = backup::make(cluster, view).await.map_err(|error| ApiError::Internal(error.to_string()))?;
    Ok(http::bytes("application/octet-stream", bytes))
}

/// How often backups are made and how many are kept.
pub async fn schedule(cluster: &Cluster) -> Reply {
    let view = cluster.objects.view(Freshness::Linearizable).await?;
    Ok(http::json(200, &json!(Schedule::of(&view))))
}

/// Changes that.
pub async fn set_schedule(cluster: &Cluster, request: Request<Incoming>) -> Reply {
    let body = document(request).await?;
    let view = cluster.objects.view(Freshness::Linearizable).await?;
    let schedule = Schedule::of(&view).changed(&body).map_err(ApiError::BadRequest)?;
    let plan = Plan::new().put(backup::SETTING, serde_json::to_vec(&schedule).unwrap_or_default());
    cluster.store.transact(plan.build(), None).await.map_err(write_error)?;
    Ok(http::json(200, &json!(schedule)))
}

/// Makes a recovery key in the place of the one before. It is answered here and kept nowhere; only its public half leaves this machine.
pub async fn recovery_key(cluster: &Cluster) -> Reply {
    let key = SealKey::from_bytes(keyring::fresh());
    let wish = Wish::SetRecovery { public: pki::hex(&key.public()) };
    match signing::ask(cluster, wish).await {
        Response::Done => Ok(http::json(201, &json!({"recoveryKey": *keyring::recovery_text(&key)}))),
        Response::Refused(why) => Err(ApiError::Unavailable(why)),
        _ => Err(ApiError::Internal("the leader's answer makes no sense".into())),
    }
}

/// Opens the keyring with the recovery key, on the leader.
pub async fn unlock(cluster: &Cluster, request: Request<Incoming>) -> Reply {
    let body = document(request).await?;
    let key = keyring::recovery_key(body["recoveryKey"].as_str().unwrap_or(""))
        .ok_or_else(|| ApiError::BadRequest(NO_RECOVERY_KEY.into()))?;
    let Some(epoch) = cluster.store.leadership().borrow().epoch else {
        return Err(ApiError::BadRequest(
            "this machine does not lead: run it on the leader, which 'skein cluster status' names".into(),
        ));
    };
    let unlocked = keeper::unlock(cluster, epoch, &key).await;
    unlocked.map_err(|error| ApiError::BadRequest(error.to_string()))?;
    Ok(http::json(200, &json!({"unlocked": true})))
}

/// What is said of a text that is no recovery key.
pub const NO_RECOVERY_KEY: &str = "this is no recovery key: it is the line skein-recovery1.<64 hex digits> that 'skein init' or 'skein cluster recovery-key' printed";
