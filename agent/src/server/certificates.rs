//! Client certificates of the API: TLS takes any, and whom one names is decided after the handshake.
//!
//! Decides that only a certificate of the cluster's CA names a user, and only while it is valid. A handshake fails for a wrong
//! signature, and for a certificate that cannot be read: everybody else is nobody, and reads so in HTTP (401, as Kubernetes
//! answers). Validity is asked at each request: a watch, `logs -f` or exec that has begun goes on until it ends by itself; a store
//! stream, which has no requests, is cut off. It must not decide what a user may do.

use std::sync::Arc;
use std::time::Duration;

use rustls::client::danger::HandshakeSignatureValid;
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{DigitallySignedStruct, DistinguishedName, Error, RootCertStore, SignatureScheme};
use rustls_pki_types::{CertificateDer, UnixTime};

use super::User;
use crate::pki::{self, PkiError};

/// The CA as the API knows it. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Certificates(Arc<dyn ClientCertVerifier>);

/// Whom a certificate names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proved {
    pub user: User,
    /// The certificate's last second, Unix time.
    pub until_s: i64,
}

impl Certificates {
    /// Those that this CA (PEM) signs.
    pub fn of(ca_certificate: &str) -> Result<Certificates, PkiError> {
        let read = |error: &dyn std::fmt::Display| PkiError::Read(error.to_string());
        let mut roots = RootCertStore::empty();
        roots.add(pki::certificate_der(ca_certificate)?).map_err(|error| read(&error))?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
            .allow_unauthenticated()
            .build()
            .map_err(|error| read(&error))?;
        Ok(Certificates(verifier))
    }

    /// The user of a chain whose key the peer has proved in its handshake; also in a resumed one, which no verifier sees.
    pub fn prove(&self, chain: &[CertificateDer<'_>], now: jiff::Timestamp) -> Option<Proved> {
        let (own, others) = chain.split_first()?;
        let since = u64::try_from(now.as_second()).ok()?;
        let now = UnixTime::since_unix_epoch(Duration::from_secs(since));
        self.0.verify_client_cert(own, others, now).ok()?;
        let (name, groups) = pki::subject(own).ok()?;
        let (_, until_s) = pki::validity(own).ok()?;
        Some(Proved { user: User { name, groups, local: false }, until_s })
    }
}

/// In the handshake: the signature alone.
impl ClientCertVerifier for Certificates {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.0.root_hint_subjects()
    }

    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn verify_client_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}
