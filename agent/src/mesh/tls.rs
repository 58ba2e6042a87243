//! TLS of the mesh: members prove themselves by their key, which the member list knows.
//!
//! Decides which certificates are taken: between members the listed public key counts, not the dates (a cluster that was off
//! for a month comes back); a machine that joins pins the CA by its hash. It must not look at anything but keys.

use std::sync::Arc;

use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{DigitallySignedStruct, DistinguishedName, RootCertStore, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use sha2::{Digest, Sha256};

use super::port::Half;
use super::{Class, MeshError};
use crate::credential::Credential;
use crate::members::Roster;
use crate::pki;
use crate::timing;

/// ALPN of the control connection; the version of the protocol is in it.
pub const CONTROL: &[u8] = b"skein-control/1";
pub const BULK: &[u8] = b"skein-bulk/1";
const RAFT: &[u8] = b"skein-raft/1";
/// Binaries that said nothing of cluster versions.
pub const OLD_JOIN: &[u8] = b"skein-join/1";
pub const JOIN: &[u8] = b"skein-join/2";

/// ALPN of the connection between replicas. It names the cluster epoch, from the second one on: who is in another one does not get as far
/// as a message. (The other connections are between machines of any epoch, or nobody could be told of the new one.)
pub fn raft(epoch: u64) -> Vec<u8> {
    match epoch {
        0 => RAFT.to_vec(),
        epoch => [RAFT, format!(" epoch {epoch:016x}").as_bytes()].concat(),
    }
}

/// How a handshake ends in which both ends have no protocol in common: TLS's alert `no_application_protocol` (RFC 7301, section 3.2).
pub fn no_such_protocol() -> quinn::TransportErrorCode {
    quinn::TransportErrorCode::crypto(120)
}

/// What a machine reads whose key is not on the list.
pub const UNKNOWN_KEY: &str = "this key belongs to no member of the cluster";

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

fn failed(error: impl std::fmt::Display) -> MeshError {
    MeshError::Tls(error.to_string())
}

/// The server's side: members with their key; on the mesh's half joining machines without.
pub fn server(
    credential: &Credential,
    roster: Roster,
    half: Half,
    epoch: u64,
) -> Result<quinn::ServerConfig, MeshError> {
    let mut config = rustls::ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(failed)?
        .with_client_cert_verifier(Arc::new(MemberVerifier { roster, members_only: half == Half::Raft }))
        .with_cert_resolver(Arc::new(credential.clone()));
    config.alpn_protocols = match half {
        Half::Mesh => vec![CONTROL.to_vec(), BULK.to_vec(), JOIN.to_vec(), OLD_JOIN.to_vec()],
        Half::Raft => vec![raft(epoch)],
    };
    let quic = QuicServerConfig::try_from(config).map_err(failed)?;
    let mut server = quinn::ServerConfig::with_crypto(Arc::new(quic));
    server.transport_config(transport());
    Ok(server)
}

/// The client's side towards members.
pub fn client(
    credential: &Credential,
    roster: Roster,
    class: Class,
    epoch: u64,
) -> Result<quinn::ClientConfig, MeshError> {
    let mut config = rustls::ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(failed)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(MemberVerifier { roster, members_only: true }))
        .with_client_cert_resolver(Arc::new(credential.clone()));
    let protocol = match class {
        Class::Control => CONTROL.to_vec(),
        Class::Bulk => BULK.to_vec(),
        Class::Raft => raft(epoch),
    };
    config.alpn_protocols = vec![protocol];
    finish(config, class.half())
}

/// The client's side of a machine that joins: it takes only the CA whose hash it was told.
pub fn joining(ca_hash: [u8; 32]) -> Result<quinn::ClientConfig, MeshError> {
    let mut config = rustls::ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(failed)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(PinnedAuthority { ca_hash }))
        .with_no_client_auth();
    config.alpn_protocols = vec![JOIN.to_vec(), OLD_JOIN.to_vec()];
    finish(config, Half::Mesh)
}

fn finish(config: rustls::ClientConfig, half: Half) -> Result<quinn::ClientConfig, MeshError> {
    let quic = QuicClientConfig::try_from(config).map_err(failed)?;
    let mut client = quinn::ClientConfig::new(Arc::new(quic));
    client.transport_config(transport());
    // Until the other end has chosen one, the ID says which half is meant.
    client.initial_dst_cid_provider(Arc::new(move || half.id()));
    Ok(client)
}

/// Packets that a peer may take without an acknowledgement (draft-ietf-quic-ack-frequency): by default it sends one for every second, and each costs the
/// sender of a batch as much as the packet did. A window that a loss has cut must not be smaller, or its end waits for a timer of 25 ms each time: the
/// first has eight packets of 1,452 bytes.
const UNACKNOWLEDGED: u32 = 4;

fn transport() -> Arc<quinn::TransportConfig> {
    let mut transport = quinn::TransportConfig::default();
    transport.max_idle_timeout(timing::MESH_IDLE.try_into().ok());
    transport.keep_alive_interval(Some(timing::MESH_KEEP_ALIVE));
    transport.max_concurrent_bidi_streams(1024u32.into());
    transport.datagram_receive_buffer_size(Some(1 << 20));
    let mut acknowledgements = quinn::AckFrequencyConfig::default();
    acknowledgements.ack_eliciting_threshold(UNACKNOWLEDGED.into());
    // A gap is told at once, as without the extension.
    acknowledgements.reordering_threshold(1u32.into());
    transport.ack_frequency_config(Some(acknowledgements));
    Arc::new(transport)
}

/// Takes certificates whose key is on the member list.
#[derive(Clone)]
struct MemberVerifier {
    roster: Roster,
    /// Nobody without a certificate is let in.
    members_only: bool,
}

impl std::fmt::Debug for MemberVerifier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("MemberVerifier")
    }
}

impl MemberVerifier {
    fn check(&self, certificate: &CertificateDer<'_>) -> Result<(), rustls::Error> {
        let hash = pki::key_hash(certificate)
            .map_err(|_| rustls::Error::InvalidCertificate(rustls::CertificateError::BadEncoding))?;
        match self.roster.by_key(&hash) {
            Some(_) => Ok(()),
            None => Err(rustls::Error::General(UNKNOWN_KEY.into())),
        }
    }
}

impl ServerCertVerifier for MemberVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.check(end_entity).map(|()| ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, &provider().signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &provider().signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}

impl ClientCertVerifier for MemberVerifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    /// A joining machine has none yet; what it may do is decided by the protocol that it speaks.
    fn client_auth_mandatory(&self) -> bool {
        self.members_only
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        self.check(end_entity).map(|()| ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        ServerCertVerifier::verify_tls12_signature(self, message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        ServerCertVerifier::verify_tls13_signature(self, message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        ServerCertVerifier::supported_verify_schemes(self)
    }
}

/// Takes a chain that ends in the CA with this hash.
#[derive(Debug)]
struct PinnedAuthority {
    ca_hash: [u8; 32],
}

impl ServerCertVerifier for PinnedAuthority {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let wrong = || {
            rustls::Error::General(
                "the machine at this address belongs to another cluster than the token".into(),
            )
        };
        let authority = intermediates
            .iter()
            .find(|found| <[u8; 32]>::from(Sha256::digest(found)) == self.ca_hash)
            .ok_or_else(wrong)?;
        let mut roots = RootCertStore::empty();
        roots.add(authority.clone().into_owned())?;
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider())
            .build()
            .map_err(|error| rustls::Error::General(error.to_string()))?;
        verifier.verify_server_cert(end_entity, &[], server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, &provider().signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &provider().signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}
