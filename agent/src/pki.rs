//! Keys and certificates: the cluster's CA, members, the admin, join tokens.
//!
//! Decides what a certificate says. It must not decide who is a member: the replicated list does (DESIGN section 5).

use std::net::IpAddr;
use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DnType, ExtendedKeyUsagePurpose,
    IsCa, Issuer, KeyPair, KeyUsagePurpose, PublicKeyData, SanType,
};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use sha2::{Digest, Sha256};
use zeroize::Zeroize;

/// The name that every member's certificate carries; members dial it, whatever the address.
pub const SERVER_NAME: &str = "skein";

/// How far before its signing a certificate begins, so that a machine whose clock lags a little accepts it.
pub const BACKDATED_S: i64 = 300;

/// Making or reading a key or certificate failed.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    #[error("making a key or certificate failed: {0}")]
    Make(#[from] rcgen::Error),
    #[error("a certificate cannot be read: {0}")]
    Read(String),
}

const DAY_S: i64 = 86_400;

/// The cluster's certificate authority: PEM of certificate and key, which is wiped when this is dropped.
#[derive(Clone)]
pub struct Authority {
    pub certificate: String,
    pub key: String,
}

/// A key and its certificate in PEM.
#[derive(Clone)]
pub struct Credential {
    pub certificate: String,
    pub key: String,
}

impl Drop for Authority {
    fn drop(&mut self) {
        self.key.zeroize();
    }
}

impl Authority {
    /// A new authority, valid for ten years from `now`.
    pub fn create(cluster: &str, now: jiff::Timestamp) -> Result<Authority, PkiError> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, format!("skein {cluster}"));
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages =
            vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
        valid(&mut params, now, 3650 * DAY_S);
        let certificate = params.self_signed(&key)?.pem();
        Ok(Authority { certificate, key: key.serialize_pem() })
    }

    /// Signs a member's request: its name and addresses are ours to say, only the key is the member's.
    pub fn sign_member(
        &self,
        request: &str,
        name: &str,
        addresses: &[IpAddr],
        now: jiff::Timestamp,
        lifetime: Duration,
    ) -> Result<String, PkiError> {
        let mut asked = CertificateSigningRequestParams::from_pem(request)?;
        let mut params = CertificateParams::new(server_names(name))?;
        params.distinguished_name.push(DnType::CommonName, format!("system:node:{name}"));
        params.distinguished_name.push(DnType::OrganizationName, "system:nodes");
        for address in addresses {
            params.subject_alt_names.push(SanType::IpAddress(*address));
        }
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        valid(&mut params, now, i64::try_from(lifetime.as_secs()).unwrap_or(DAY_S));
        asked.params = params;
        Ok(asked.signed_by(&self.issuer()?)?.pem())
    }

    /// A client certificate: `user` is its CN, `groups` its Os.
    pub fn sign_client(
        &self,
        user: &str,
        groups: &[&str],
        now: jiff::Timestamp,
    ) -> Result<Credential, PkiError> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, user);
        for group in groups {
            params.distinguished_name.push(DnType::OrganizationName, *group);
        }
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        valid(&mut params, now, 365 * DAY_S);
        let certificate = params.signed_by(&key, &self.issuer()?)?.pem();
        Ok(Credential { certificate, key: key.serialize_pem() })
    }

    /// Whether the key is that of the certificate.
    pub fn matches(&self) -> Result<bool, PkiError> {
        let key = KeyPair::from_pem(&self.key)?;
        let hash: [u8; 32] = Sha256::digest(key.subject_public_key_info()).into();
        Ok(hash == key_hash(&certificate_der(&self.certificate)?)?)
    }

    fn issuer(&self) -> Result<Issuer<'static, KeyPair>, PkiError> {
        Ok(Issuer::from_ca_cert_pem(&self.certificate, KeyPair::from_pem(&self.key)?)?)
    }
}

fn server_names(name: &str) -> Vec<String> {
    [
        SERVER_NAME,
        name,
        "localhost",
        "kubernetes",
        "kubernetes.default",
        "kubernetes.default.svc",
        "kubernetes.default.svc.cluster.local",
    ]
    .map(String::from)
    .to_vec()
}

fn valid(params: &mut CertificateParams, now: jiff::Timestamp, seconds: i64) {
    let at = |seconds: i64| {
        let unix = std::time::Duration::from_secs(u64::try_from(now.as_second() + seconds).unwrap_or(0));
        rcgen::date_time_ymd(1970, 1, 1) + unix
    };
    params.not_before = at(-BACKDATED_S);
    params.not_after = at(seconds);
}

/// A member's new key, PEM.
pub fn new_key() -> Result<String, PkiError> {
    Ok(KeyPair::generate()?.serialize_pem())
}

/// The signing request for a key, both PEM.
pub fn signing_request(key: &str) -> Result<String, PkiError> {
    let key = KeyPair::from_pem(key)?;
    Ok(CertificateParams::default().serialize_request(&key)?.pem()?)
}

/// A certificate that only its own key vouches for: between members, who look at the key alone.
pub fn own_certificate(key: &str) -> Result<String, PkiError> {
    let key = KeyPair::from_pem(key)?;
    Ok(CertificateParams::default().self_signed(&key)?.pem())
}

/// The first certificate of a PEM text.
pub fn certificate_der(pem: &str) -> Result<CertificateDer<'static>, PkiError> {
    CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|error| PkiError::Read(error.to_string()))
}

/// SHA-256 of a certificate's public key (SubjectPublicKeyInfo): what the member list knows a member by.
pub fn key_hash(certificate: &CertificateDer<'_>) -> Result<[u8; 32], PkiError> {
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate)
        .map_err(|error| PkiError::Read(error.to_string()))?;
    Ok(Sha256::digest(parsed.public_key().raw).into())
}

/// From when until when a certificate is valid, in Unix seconds.
pub fn validity(certificate: &CertificateDer<'_>) -> Result<(i64, i64), PkiError> {
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate)
        .map_err(|error| PkiError::Read(error.to_string()))?;
    let validity = parsed.validity();
    Ok((validity.not_before.timestamp(), validity.not_after.timestamp()))
}

/// Subject of a verified client certificate: CN and every O.
pub fn subject(certificate: &CertificateDer<'_>) -> Result<(String, Vec<String>), PkiError> {
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate)
        .map_err(|error| PkiError::Read(error.to_string()))?;
    let text = |value: &x509_parser::x509::AttributeTypeAndValue<'_>| {
        value.as_str().map(String::from).unwrap_or_default()
    };
    let name = parsed.subject().iter_common_name().next().map(text).unwrap_or_default();
    let groups = parsed.subject().iter_organization().map(text).collect();
    Ok((name, groups))
}

/// A join token: which CA to expect, and the secret that lets a machine in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Token {
    pub ca_hash: [u8; 32],
    pub secret: String,
}

/// The text is not a join token.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "this is not a join token: it should read skein1.<64 hex digits>.<secret>; print a new one with 'skein token create' on a member"
)]
pub struct TokenError;

impl Token {
    pub fn parse(text: &str) -> Result<Token, TokenError> {
        let mut parts = text.trim().split('.');
        let (Some("skein1"), Some(hash), Some(secret), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(TokenError);
        };
        let ca_hash = from_hex(hash).and_then(|bytes| <[u8; 32]>::try_from(bytes).ok()).ok_or(TokenError)?;
        if secret.len() < 16 || !secret.bytes().all(|b| b.is_ascii_alphanumeric()) {
            return Err(TokenError);
        }
        Ok(Token { ca_hash, secret: secret.to_string() })
    }

    /// What the store keeps instead of the secret.
    pub fn secret_hash(&self) -> String {
        hex(&Sha256::digest(self.secret.as_bytes()))
    }
}

impl std::fmt::Display for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "skein1.{}.{}", hex(&self.ca_hash), self.secret)
    }
}

pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

pub fn from_hex(text: &str) -> Option<Vec<u8>> {
    let digits: Vec<u32> = text.chars().map(|c| c.to_digit(16)).collect::<Option<_>>()?;
    digits.chunks(2).map(|pair| Some((pair.first()? * 16 + pair.get(1)?) as u8)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const WEEK: Duration = Duration::from_secs(604_800);

    #[test]
    fn a_member_is_signed_by_the_authority_and_keeps_its_key() {
        let now = jiff::Timestamp::from_second(1_800_000_000).unwrap();
        let ca = Authority::create("test", now).unwrap();
        let key = new_key().unwrap();
        let request = signing_request(&key).unwrap();
        let first = ca.sign_member(&request, "host1", &["10.0.0.1".parse().unwrap()], now, WEEK).unwrap();
        let again = ca.sign_member(&request, "host1", &[], now, WEEK).unwrap();
        let hash = |pem: &str| key_hash(&certificate_der(pem).unwrap()).unwrap();
        assert_eq!(hash(&first), hash(&again));
        assert_ne!(hash(&first), hash(&ca.certificate));
        assert!(key.contains("PRIVATE KEY"));
        assert!(ca.matches().unwrap());
        let foreign = Authority { certificate: ca.certificate.clone(), key };
        assert!(!foreign.matches().unwrap());
        let valid = validity(&certificate_der(&first).unwrap()).unwrap();
        assert_eq!(valid, (now.as_second() - BACKDATED_S, now.as_second() + 604_800));
        let (name, groups) = subject(&certificate_der(&first).unwrap()).unwrap();
        assert_eq!(
            (name.as_str(), groups.as_slice()),
            ("system:node:host1", &["system:nodes".to_string()][..])
        );
    }

    #[test]
    fn tokens_can_be_read_back_and_nonsense_is_refused() {
        let token = Token { ca_hash: [7; 32], secret: "abcdefghijklmnop".into() };
        assert_eq!(Token::parse(&token.to_string()), Ok(token));
        for bad in ["", "skein1.00.abcdefghijklmnop", "skein2.x.y", "skein1.zz.abcdefghijklmnop"] {
            assert_eq!(Token::parse(bad), Err(TokenError), "{bad}");
        }
    }
}
