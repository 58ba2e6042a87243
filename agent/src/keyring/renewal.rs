//! Renews this machine's certificate before it ends, for the sake of everybody who looks at dates.
//!
//! Decides when by [`super::signing::renew_in`]. Between members the listed key counts, so that one whose certificate has expired still
//! reaches the leader and gets a new one.

use std::sync::Arc;
use std::time::Duration;

use tracing::{info, warn};

use super::signing;
use crate::clock;
use crate::cluster::Cluster;
use crate::identity;
use crate::mesh::wire::{Request, Response};
use crate::pki;

/// Longest sleep: a clock that is set forward is noticed within it.
const LOOK: Duration = Duration::from_secs(60);
/// Pause after a renewal that did not work.
const RETRY: Duration = Duration::from_secs(2);

/// Runs for as long as the process does.
pub async fn run(cluster: Arc<Cluster>) {
    loop {
        let wait = due_in(&cluster);
        if !wait.is_zero() {
            tokio::time::sleep(wait.min(LOOK)).await;
            continue;
        }
        match renew(&cluster).await {
            Ok(()) => info!("certificate renewed"),
            Err(error) => {
                warn!(%error, "the certificate could not be renewed yet");
                tokio::time::sleep(RETRY).await;
            }
        }
    }
}

fn due_in(cluster: &Cluster) -> Duration {
    let validity =
        pki::certificate_der(&cluster.credential.certificate()).and_then(|der| pki::validity(&der));
    validity.map_or(Duration::ZERO, |validity| signing::renew_in(validity, clock::wall().as_second()))
}

async fn renew(cluster: &Cluster) -> Result<(), String> {
    let text = |error: &dyn std::fmt::Display| error.to_string();
    let member = &cluster.identity.member;
    let wish = Request::SignMember {
        signing_request: pki::signing_request(&cluster.identity.key).map_err(|error| text(&error))?,
        name: member.name.clone(),
        address: member.address.ip().to_string(),
    };
    let certificate = match signing::ask(cluster, wish).await {
        Response::Certificate(certificate) => certificate,
        Response::Refused(why) => return Err(why),
        _ => return Err("the leader's answer makes no sense".into()),
    };
    // It takes the old one's place at once, on servers and clients that are running.
    cluster.credential.replace(&certificate).map_err(|error| text(&error))?;
    let path = cluster.config.data.join("member").join("node.crt");
    identity::write_durably(&path, certificate.as_bytes()).map_err(|error| text(&error))
}
