//! Joining over the mesh's port: the side that asks and the hand-over of the question on the side that answers.
//!
//! Decides nothing about who may join; [`crate::enrol`] does. Nothing is sent before the CA was checked by its hash.

use std::net::SocketAddr;

use quinn::{Connection, Endpoint};
use raft_store::{Supported, Version};
use tokio::sync::OwnedSemaphorePermit;

use super::wire::{self, JoinAnswer, JoinRequest, Supports};
use super::{Incoming, Mesh, connection, tls};
use crate::pki::{self, Token};
use crate::timing;

/// Asking to join failed.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    #[error("no answer from {address} within 5 s: check the address, that an agent runs there, and that UDP port {} is open", address.port())]
    Unreachable { address: SocketAddr },
    #[error("the machine at {address} was not accepted: {why}; check that the token is of this cluster")]
    Untrusted { address: SocketAddr, why: String },
    #[error("{0}")]
    Refused(String),
    #[error("joining through {address} broke off: {why}; try again")]
    Broken { address: SocketAddr, why: String },
}

/// Asks the member at `address` to let this machine in.
pub async fn ask(
    address: SocketAddr,
    token: &Token,
    request: &JoinRequest,
    supported: Supported,
) -> Result<JoinAnswer, JoinError> {
    let broken = |why: String| JoinError::Broken { address, why };
    let config = tls::joining(token.ca_hash).map_err(|error| broken(error.to_string()))?;
    let any = SocketAddr::new(std::net::Ipv4Addr::UNSPECIFIED.into(), 0);
    let endpoint = Endpoint::client(any).map_err(|error| broken(error.to_string()))?;
    let dialling = endpoint
        .connect_with(config, address, pki::SERVER_NAME)
        .map_err(|error| broken(error.to_string()))?;
    let opened = match tokio::time::timeout(std::time::Duration::from_secs(5), dialling).await {
        Err(_) | Ok(Err(quinn::ConnectionError::TimedOut)) => return Err(JoinError::Unreachable { address }),
        Ok(Err(error)) => return Err(JoinError::Untrusted { address, why: error.to_string() }),
        Ok(Ok(opened)) => opened,
    };
    let (mut send, mut receive) = opened.open_bi().await.map_err(|error| broken(error.to_string()))?;
    if connection::protocol(&opened).as_deref() == Some(tls::JOIN) {
        let supports = Supports { oldest: supported.oldest.0, newest: supported.newest.0 };
        wire::write_frame(&mut send, &supports).await.map_err(|error| broken(error.to_string()))?;
    }
    wire::write_frame(&mut send, request).await.map_err(|error| broken(error.to_string()))?;
    let answer = match tokio::time::timeout(timing::JOIN_ANSWER, wire::read_frame(&mut receive)).await {
        Ok(answer) => answer.map_err(|error| broken(error.to_string()))?,
        Err(_) => return Err(broken("no answer in time".into())),
    };
    opened.close(0u32.into(), b"done");
    endpoint.wait_idle().await;
    match answer {
        JoinAnswer::Refused(why) => Err(JoinError::Refused(why)),
        welcome => Ok(welcome),
    }
}

impl Supports {
    fn supported(&self) -> Supported {
        Supported { oldest: Version(self.oldest), newest: Version(self.newest) }
    }
}

/// Takes the one question that a joining machine may ask, and soon: it is a stranger until it has shown its token.
pub async fn serve(mesh: Mesh, connection: Connection, permit: OwnedSemaphorePermit, says: bool) {
    let question = async {
        let (send, mut receive) = connection.accept_bi().await.ok()?;
        let supported = match says {
            true => wire::read_frame::<Supports>(&mut receive).await.ok()?.supported(),
            false => Supported::UNSAID,
        };
        Some((send, wire::read_frame::<JoinRequest>(&mut receive).await.ok()?, supported))
    };
    let Ok(Some((send, request, supported))) = tokio::time::timeout(timing::STRANGER, question).await else {
        return connection.close(2u32.into(), b"no join request");
    };
    let _ = mesh.0.incoming.send(Incoming::Join { request, supported, send }).await;
    // The answer is the dispatcher's; who does not take it is not waited for.
    let _ = tokio::time::timeout(timing::JOIN_ANSWER, connection.closed()).await;
    connection.close(0u32.into(), b"answered");
    drop(permit);
}
