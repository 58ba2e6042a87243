//! Whom a client is taken for, over a whole connection: real handshake, real HTTP.

use api::errors::ApiError;
use jiff::Timestamp;
use rustls::RootCertStore;
use rustls_pki_types::PrivateKeyDer;
use rustls_pki_types::pem::PemObject;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_rustls::TlsConnector;

use super::super::http;
use super::*;
use crate::identity::Identity;
use crate::members::{Member, id_of_key};
use crate::pki::{self, Authority};

const DAY_S: i64 = 86_400;

fn days_ago(days: i64) -> Timestamp {
    Timestamp::from_second(clock::wall().as_second() - days * DAY_S).unwrap()
}

/// A CA, and what a member shows that it has signed.
fn member() -> (Authority, Credential) {
    let authority = Authority::create("test", days_ago(1000)).unwrap();
    let key = pki::new_key().unwrap();
    let request = pki::signing_request(&key).unwrap();
    let week = Duration::from_secs(604_800);
    let certificate = authority.sign_member(&request, "host1", &[], days_ago(0), week).unwrap();
    let hash = pki::key_hash(&pki::certificate_der(&certificate).unwrap()).unwrap();
    let member = Member {
        name: "host1".into(),
        id: id_of_key(&hash),
        key: pki::hex(&hash),
        address: "127.0.0.1:7443".parse().unwrap(),
        api_port: 6443,
        block: 0,
        no_voter: false,
        seal_key: String::new(),
        versions: None,
    };
    let identity = Identity {
        cluster: "00".repeat(16),
        epoch: 0,
        member,
        key,
        certificate,
        ca_certificate: authority.certificate.clone(),
        known: Vec::new(),
    };
    let credential = Credential::new(&identity).unwrap();
    (authority, credential)
}

fn administrator(authority: &Authority, signed: Timestamp) -> pki::Credential {
    authority.sign_client("skein-admin", &["system:masters"], signed).unwrap()
}

fn connector(authority: &Authority, shown: Option<&pki::Credential>) -> TlsConnector {
    let mut roots = RootCertStore::empty();
    roots.add(pki::certificate_der(&authority.certificate).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let trusting = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots);
    let config = match shown {
        None => trusting.with_no_client_auth(),
        Some(shown) => {
            let key = PrivateKeyDer::from_pem_slice(shown.key.as_bytes()).unwrap();
            trusting
                .with_client_auth_cert(vec![pki::certificate_der(&shown.certificate).unwrap()], key)
                .unwrap()
        }
    };
    TlsConnector::from(Arc::new(config))
}

/// What a client reads on a new connection: the name that it was taken for, or a Status.
async fn heard(connector: &TlsConnector, acceptor: &TlsAcceptor, certificates: &Certificates) -> String {
    let (here, there) = tokio::io::duplex(1 << 16);
    let answers: Handler = Arc::new(|user, _| {
        let answer = match user {
            Some(user) => http::plain(200, &user.name),
            None => http::status(&ApiError::Unauthorized),
        };
        Box::pin(async move { answer })
    });
    let serving = async {
        let stream = acceptor.accept(there).await.unwrap();
        let proved = proved(&stream, certificates);
        serve(stream, move || still(&proved), answers).await;
    };
    let asking = async {
        let mut stream = connector.connect(pki::SERVER_NAME.try_into().unwrap(), here).await.unwrap();
        stream.write_all(b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await.unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        text
    };
    tokio::join!(serving, asking).1
}

#[tokio::test]
async fn only_a_valid_certificate_of_the_own_authority_names_a_user_and_all_others_are_told_401() {
    let (authority, credential) = member();
    let certificates = Certificates::of(&authority.certificate).unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(tls(&certificates, &credential).unwrap()));
    let own = administrator(&authority, days_ago(1));
    let expired = administrator(&authority, days_ago(500));
    let early = administrator(&authority, days_ago(-2));
    let foreign = administrator(&Authority::create("other", days_ago(1)).unwrap(), days_ago(1));
    for (shown, user) in [(Some(&own), true), (Some(&expired), false), (Some(&early), false)]
        .into_iter()
        .chain([(Some(&foreign), false), (None, false)])
    {
        let connector = connector(&authority, shown);
        // The second time with the ticket of the first, where TLS looks at no certificate.
        for _ in 0..2 {
            let text = heard(&connector, &acceptor, &certificates).await;
            if user {
                assert!(text.starts_with("HTTP/1.1 200") && text.ends_with("skein-admin"), "{text}");
            } else {
                assert!(text.starts_with("HTTP/1.1 401"), "{text}");
                assert!(text.contains("\"kind\":\"Status\"") && text.contains("Unauthorized"), "{text}");
            }
        }
    }
}

#[test]
fn a_certificate_that_expires_while_its_connection_is_open_names_nobody_from_then_on() {
    let (authority, _) = member();
    let certificates = Certificates::of(&authority.certificate).unwrap();
    let shown = administrator(&authority, days_ago(500));
    let chain = [pki::certificate_der(&shown.certificate).unwrap()];
    let proved = certificates.prove(&chain, days_ago(200));
    assert_eq!(proved.as_ref().map(|proved| proved.user.name.as_str()), Some("skein-admin"));
    assert_eq!(still(&proved), None);
}

#[tokio::test]
async fn a_store_stream_ends_when_its_certificate_does_and_not_before() {
    let (authority, _) = member();
    let certificates = Certificates::of(&authority.certificate).unwrap();
    let shown = administrator(&authority, days_ago(1));
    let chain = [pki::certificate_der(&shown.certificate).unwrap()];
    let valid = certificates.prove(&chain, clock::wall()).unwrap();
    let mut served = false;
    while_valid(&valid, async {
        tokio::task::yield_now().await;
        served = true;
    })
    .await;
    assert!(served, "as long as it is valid");
    let soon = Proved { until_s: clock::wall().as_second(), ..valid };
    let ended = tokio::time::timeout(Duration::from_secs(5), while_valid(&soon, std::future::pending()));
    assert!(ended.await.is_ok(), "still served");
    assert!(clock::wall().as_second() > soon.until_s, "its last second is part of it");
}
