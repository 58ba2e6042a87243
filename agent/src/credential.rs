//! This machine's certificate and key as TLS uses them, with a new certificate whenever there is one.
//!
//! Decides that a certificate is taken only for the key that is here. Running servers and clients ask for it at each handshake.

use std::sync::{Arc, PoisonError, RwLock};

use rustls::client::ResolvesClientCert;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls_pki_types::PrivateKeyDer;
use rustls_pki_types::pem::PemObject;

use crate::identity::Identity;
use crate::pki::{self, PkiError};

/// The pair that handshakes use now. Cheap to clone.
#[derive(Clone)]
pub struct Credential(Arc<Inner>);

struct Inner {
    ca_certificate: String,
    key: String,
    now: RwLock<(String, Arc<CertifiedKey>)>,
}

impl Credential {
    pub fn new(identity: &Identity) -> Result<Credential, PkiError> {
        let (ca, key) = (identity.ca_certificate.clone(), identity.key.clone());
        let pair = certified(&identity.certificate, &ca, &key)?;
        let now = RwLock::new((identity.certificate.clone(), pair));
        Ok(Credential(Arc::new(Inner { ca_certificate: ca, key, now })))
    }

    /// Uses another certificate from now on.
    pub fn replace(&self, certificate: &str) -> Result<(), PkiError> {
        let pair = certified(certificate, &self.0.ca_certificate, &self.0.key)?;
        *self.0.now.write().unwrap_or_else(PoisonError::into_inner) = (certificate.to_string(), pair);
        Ok(())
    }

    /// PEM of the certificate in use.
    pub fn certificate(&self) -> String {
        self.0.now.read().unwrap_or_else(PoisonError::into_inner).0.clone()
    }

    fn pair(&self) -> Arc<CertifiedKey> {
        self.0.now.read().unwrap_or_else(PoisonError::into_inner).1.clone()
    }
}

fn certified(certificate: &str, authority: &str, key: &str) -> Result<Arc<CertifiedKey>, PkiError> {
    let read = |error: &dyn std::fmt::Display| PkiError::Read(error.to_string());
    let chain = vec![pki::certificate_der(certificate)?, pki::certificate_der(authority)?];
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).map_err(|error| read(&error))?;
    let key = rustls::crypto::ring::sign::any_supported_type(&key).map_err(|error| read(&error))?;
    let pair = CertifiedKey::new(chain, key);
    pair.keys_match().map_err(|error| read(&error))?;
    Ok(Arc::new(pair))
}

impl std::fmt::Debug for Credential {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Credential")
    }
}

impl ResolvesServerCert for Credential {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.pair())
    }
}

impl ResolvesClientCert for Credential {
    fn resolve(&self, _hints: &[&[u8]], _schemes: &[rustls::SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.pair())
    }

    fn has_certs(&self) -> bool {
        true
    }
}
