//! Our side: a cluster of agents, its administrator's certificate.
//!
//! Decides nothing but where the certificate comes from.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use agent::server::stream::protocol;
use base64::Engine;
use rustls::RootCertStore;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use super::super::{BenchError, Cluster};
use super::load::Client;
use super::{Access, System, stream};
use crate::Bed;
use crate::http::Api;

const API_PORT: u16 = 6443;

pub struct Ours {
    pub cluster: Cluster,
    pub access: Access,
    written: AtomicU64,
}

impl Ours {
    pub fn start(directory: &Path) -> Result<Ours, BenchError> {
        let cluster = Cluster::form("bench-ours", directory)?;
        Ours::of(cluster)
    }

    /// A cluster that runs.
    pub fn of(cluster: Cluster) -> Result<Ours, BenchError> {
        let access = access(&cluster.api(0))?;
        Ok(Ours { cluster, access, written: AtomicU64::new(0) })
    }
}

/// What the administrator uses towards any agent.
pub fn access(api: &Api) -> Result<Access, BenchError> {
    let config = api.get("/skein/v1/kubeconfig")?;
    let text = |value: &serde_json::Value| {
        let bytes = base64::engine::general_purpose::STANDARD.decode(value.as_str().unwrap_or_default());
        String::from_utf8(bytes.unwrap_or_default()).unwrap_or_default()
    };
    let user = &config["users"][0]["user"];
    let tls = client_tls(
        &text(&config["clusters"][0]["cluster"]["certificate-authority-data"]),
        &text(&user["client-certificate-data"]),
        &text(&user["client-key-data"]),
        protocol::ALPN,
    )?;
    Ok(Access { tls, server_name: Some(agent::pki::SERVER_NAME), port: API_PORT })
}

impl System for Ours {
    fn name(&self) -> &'static str {
        "ours"
    }

    fn bed(&self) -> &Bed {
        &self.cluster.bed
    }

    fn written(&self) -> &AtomicU64 {
        &self.written
    }

    async fn connect(&self, host: usize) -> Result<Client, BenchError> {
        let address = SocketAddr::new(self.host(host).address().into(), self.access.port);
        let made = stream::Client::connect(&self.access, address).await;
        Ok(Client::Ours(made.map_err(std::io::Error::other)?))
    }

    fn leader(&self) -> Result<usize, BenchError> {
        let status = (0..3).find_map(|index| {
            let status = self.cluster.status(index).ok()?;
            let name = status["leader"].as_str()?.to_owned();
            self.bed().hosts().iter().position(|host| host.name() == name)
        });
        status.ok_or_else(|| BenchError::Io(std::io::Error::other("nobody leads")))
    }
}

/// Both ends prove who they are, by the same suites and curves for both systems.
pub fn client_tls(
    authority: &str,
    certificate: &str,
    key: &str,
    protocol: &[u8],
) -> Result<Arc<rustls::ClientConfig>, BenchError> {
    let failed = |error: &dyn std::fmt::Display| BenchError::Io(std::io::Error::other(error.to_string()));
    let der = |pem: &str| CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|error| failed(&error));
    let mut roots = RootCertStore::empty();
    roots.add(der(authority)?).map_err(|error| failed(&error))?;
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).map_err(|error| failed(&error))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| failed(&error))?
        .with_root_certificates(roots)
        .with_client_auth_cert(vec![der(certificate)?], key)
        .map_err(|error| failed(&error))?;
    config.alpn_protocols = vec![protocol.to_vec()];
    Ok(Arc::new(config))
}
