//! Listening: TLS on the API's port, plain on the unix socket.
//!
//! Decides who the peer is: over TLS whom its certificate proves ([`super::certificates`]), on the socket root is root. It must
//! not answer requests.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use hyper::Request;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tracing::{debug, info};

use super::User;
use super::certificates::{Certificates, Proved};
use super::http::Answer;
use super::socket::Socket;
use super::stream::{self, protocol};
use crate::clock::{self, spawn};
use crate::credential::Credential;
use crate::store::Store;

/// How long a stranger may take for a TLS handshake.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// Pause after a connection that could not be taken.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Listening failed.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    #[error(
        "cannot listen on {address} (TCP): {cause}; is another agent running, or the port taken? 'ss -ltnp' shows who has it: end that, and this works"
    )]
    Port { address: SocketAddr, cause: std::io::Error },
    #[error("cannot make the socket {path}: {cause}")]
    Socket { path: String, cause: std::io::Error },
    #[error("setting up TLS failed: {0}")]
    Tls(String),
}

/// Answers one request of a user, `None` for nobody.
pub type Handler = Arc<dyn Fn(Option<User>, Request<Incoming>) -> Pending + Send + Sync>;
/// The answer on its way.
pub type Pending = std::pin::Pin<Box<dyn Future<Output = Answer> + Send>>;

/// Takes the API's port.
pub async fn bind(address: SocketAddr) -> Result<TcpListener, ListenError> {
    TcpListener::bind(address).await.map_err(|cause| ListenError::Port { address, cause })
}

/// Serves HTTPS and store streams until the process ends.
pub fn https(
    listener: TcpListener,
    ca_certificate: &str,
    credential: &Credential,
    handler: Handler,
    store: Store,
) -> Result<(), ListenError> {
    let failed = |error: &dyn std::fmt::Display| ListenError::Tls(error.to_string());
    let certificates = Certificates::of(ca_certificate).map_err(|error| failed(&error))?;
    let acceptor =
        TlsAcceptor::from(Arc::new(tls(&certificates, credential).map_err(|error| failed(&error))?));
    info!(address = ?listener.local_addr().ok(), "API listens");
    spawn(async move {
        loop {
            let Ok((stream, peer)) = listener.accept().await else {
                // Out of descriptors: others must end first.
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            };
            let _ = stream.set_nodelay(true);
            let (acceptor, certificates) = (acceptor.clone(), certificates.clone());
            let (handler, store) = (handler.clone(), store.clone());
            spawn(async move {
                let handshake = tokio::time::timeout(HANDSHAKE, acceptor.accept(Socket::from(stream))).await;
                match handshake.unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into())) {
                    Ok(stream) => {
                        let proved = proved(&stream, &certificates);
                        let admin = proved.as_ref().filter(|proved| proved.user.is_admin());
                        match (stream.get_ref().1.alpn_protocol(), admin) {
                            (Some(protocol::ALPN), Some(admin)) => {
                                while_valid(admin, stream::serve(stream, store)).await;
                            }
                            (Some(protocol::ALPN), None) => {
                                debug!(%peer, "a store stream without the administrator's certificate")
                            }
                            _ => serve(stream, move || still(&proved), handler).await,
                        }
                    }
                    Err(error) => debug!(%peer, %error, "TLS handshake failed"),
                }
            });
        }
    });
    Ok(())
}

fn proved<S>(stream: &TlsStream<S>, certificates: &Certificates) -> Option<Proved> {
    let chain = stream.get_ref().1.peer_certificates()?;
    certificates.prove(chain, clock::wall())
}

/// The user, unless the certificate has expired while the connection was open.
fn still(proved: &Option<Proved>) -> Option<User> {
    let proved = proved.as_ref().filter(|proved| clock::wall().as_second() <= proved.until_s);
    proved.map(|proved| proved.user.clone())
}

/// A store stream asks at no request: it ends with the certificate.
async fn while_valid(proved: &Proved, serving: impl Future<Output = ()>) {
    let left_s = proved.until_s.saturating_add(1).saturating_sub(clock::wall().as_second());
    let left = Duration::from_secs(u64::try_from(left_s).unwrap_or(0));
    if tokio::time::timeout(left, serving).await.is_err() {
        debug!(user = proved.user.name, "a store stream ended with its certificate");
    }
}

fn tls(certificates: &Certificates, credential: &Credential) -> Result<rustls::ServerConfig, rustls::Error> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_client_cert_verifier(Arc::new(certificates.clone()))
        .with_cert_resolver(Arc::new(credential.clone()));
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec(), protocol::ALPN.to_vec()];
    Ok(config)
}

/// Serves the unix socket (mode 0600, so that only root gets in) until the process ends.
pub fn unix(path: &Path, handler: Handler) -> Result<(), ListenError> {
    let failed = |cause| ListenError::Socket { path: path.display().to_string(), cause };
    let _ = std::fs::remove_file(path);
    let listener = UnixListener::bind(path).map_err(failed)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).map_err(failed)?;
    spawn(async move {
        loop {
            let Ok((stream, _)) = listener.accept().await else {
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            };
            let root = stream.peer_cred().is_ok_and(|peer| peer.uid() == 0);
            spawn(serve(stream, move || root.then(User::root), handler.clone()));
        }
    });
    Ok(())
}

/// Answers requests; whose they are is asked at each.
async fn serve<S>(stream: S, user: impl Fn() -> Option<User>, handler: Handler)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let service = service_fn(move |request| {
        let answer = handler(user(), request);
        async move { Ok::<_, Infallible>(answer.await) }
    });
    let builder = Builder::new(TokioExecutor::new());
    if let Err(error) = builder.serve_connection_with_upgrades(TokioIo::new(stream), service).await {
        debug!(%error, "connection ended");
    }
}

#[cfg(test)]
mod tests;
