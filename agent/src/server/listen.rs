//! Listening: TLS on the API's port, plain on the unix socket.
//!
//! Decides who the peer is: a client certificate of the cluster's CA names the user; on the socket, root is root. It must not
//! answer requests.

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
use rustls::RootCertStore;
use rustls::server::WebPkiClientVerifier;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio_rustls::TlsAcceptor;
use tracing::{debug, info};

use super::User;
use super::http::Answer;
use super::stream::{self, protocol};
use crate::clock::spawn;
use crate::credential::Credential;
use crate::pki;
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
    let acceptor = TlsAcceptor::from(Arc::new(tls(ca_certificate, credential)?));
    info!(address = ?listener.local_addr().ok(), "API listens");
    spawn(async move {
        loop {
            let Ok((stream, peer)) = listener.accept().await else {
                // Out of descriptors: others must end first.
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            };
            let _ = stream.set_nodelay(true);
            let (acceptor, handler, store) = (acceptor.clone(), handler.clone(), store.clone());
            spawn(async move {
                let handshake = tokio::time::timeout(HANDSHAKE, acceptor.accept(stream)).await;
                match handshake.unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into())) {
                    Ok(stream) => {
                        let certificates = stream.get_ref().1.peer_certificates();
                        let user = certificates.and_then(|chain| pki::subject(chain.first()?).ok());
                        let user = user.map(|(name, groups)| User { name, groups, local: false });
                        match stream.get_ref().1.alpn_protocol() {
                            Some(protocol::ALPN) if user.as_ref().is_some_and(User::is_admin) => {
                                stream::serve(stream, store).await;
                            }
                            Some(protocol::ALPN) => {
                                debug!(%peer, "a store stream without the administrator's certificate")
                            }
                            _ => serve(stream, user, handler).await,
                        }
                    }
                    Err(error) => debug!(%peer, %error, "TLS handshake failed"),
                }
            });
        }
    });
    Ok(())
}

fn tls(ca_certificate: &str, credential: &Credential) -> Result<rustls::ServerConfig, ListenError> {
    let failed = |error: &dyn std::fmt::Display| ListenError::Tls(error.to_string());
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let authority = pki::certificate_der(ca_certificate).map_err(|error| failed(&error))?;
    let mut roots = RootCertStore::empty();
    roots.add(authority).map_err(|error| failed(&error))?;
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
        .allow_unauthenticated()
        .build()
        .map_err(|error| failed(&error))?;
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| failed(&error))?
        .with_client_cert_verifier(verifier)
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
            spawn(serve(stream, root.then(User::root), handler.clone()));
        }
    });
    Ok(())
}

async fn serve<S>(stream: S, user: Option<User>, handler: Handler)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let service = service_fn(move |request| {
        let answer = handler(user.clone(), request);
        async move { Ok::<_, Infallible>(answer.await) }
    });
    let builder = Builder::new(TokioExecutor::new());
    if let Err(error) = builder.serve_connection_with_upgrades(TokioIo::new(stream), service).await {
        debug!(%error, "connection ended");
    }
}
