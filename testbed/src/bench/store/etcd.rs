//! The other side: Debian's etcd on three hosts, TLS between members and to clients, certificates made here.
//!
//! Decides etcd's flags: its defaults, but for addresses and certificates. Its syncs are on, as they are by default.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::AtomicU64;

use agent::pki::Authority;

use super::super::BenchError;
use super::load::{self, Client};
use super::{Access, System, grpc, ours};
use crate::{Bed, BedConfig, Host, clock};

const CLIENT_PORT: u16 = 2379;
const PEER_PORT: u16 = 2380;
/// Where a host keeps its data, as it sees it: the same disk as our store's.
const DATA: &str = "/var/lib/skein";

pub struct Etcd {
    bed: Bed,
    access: Access,
    written: AtomicU64,
}

impl Etcd {
    pub fn start(directory: &Path) -> Result<Etcd, BenchError> {
        if !Path::new("/usr/bin/etcd").exists() {
            return Err(BenchError::Io(std::io::Error::other(
                "/usr/bin/etcd is missing: run scripts/setup.sh bench",
            )));
        }
        let bed = Bed::create(BedConfig::new("bench-etcd", 3, directory))?;
        let failed = |error: agent::pki::PkiError| BenchError::Io(std::io::Error::other(error.to_string()));
        let now = agent::clock::wall();
        let authority = Authority::create("etcd", now).map_err(failed)?;
        for host in bed.hosts() {
            certify(&authority, host, now).map_err(failed)??;
        }
        let cluster: Vec<String> =
            bed.hosts().iter().map(|host| format!("{}={}", host.name(), peer(host))).collect();
        for host in bed.hosts() {
            host.start_program_as_agent(arguments(host, &cluster.join(",")), true)?;
        }
        let client = authority.sign_client("bench", &[], now).map_err(failed)?;
        let tls = ours::client_tls(&authority.certificate, &client.certificate, &client.key, b"h2")?;
        let etcd = Etcd {
            bed,
            access: Access { tls, server_name: None, port: CLIENT_PORT },
            written: AtomicU64::new(0),
        };
        let limit = std::time::Duration::from_secs(30);
        let pause = std::time::Duration::from_millis(100);
        clock::poll(limit, pause, || etcd.leader().ok()).ok_or_else(|| BenchError::Late {
            what: "etcd has a leader".into(),
            limit,
            logs: directory.to_owned(),
        })?;
        Ok(etcd)
    }
}

fn certify(
    authority: &Authority,
    host: &Host,
    now: jiff::Timestamp,
) -> Result<Result<(), std::io::Error>, agent::pki::PkiError> {
    let key = agent::pki::new_key()?;
    let request = agent::pki::signing_request(&key)?;
    let certificate = authority.sign_member(
        &request,
        host.name(),
        &[host.address().into()],
        now,
        std::time::Duration::from_secs(86_400),
    )?;
    let write = |name: &str, text: &str| std::fs::write(host.data_path().join(name), text);
    Ok(write("ca.pem", &authority.certificate)
        .and_then(|()| write("own.pem", &certificate))
        .and_then(|()| write("own.key", &key)))
}

fn peer(host: &Host) -> String {
    format!("https://{}:{PEER_PORT}", host.address())
}

fn arguments(host: &Host, cluster: &str) -> Vec<String> {
    let client = format!("https://{}:{CLIENT_PORT}", host.address());
    let flags = [
        ("name", host.name().to_owned()),
        ("data-dir", format!("{DATA}/etcd")),
        ("listen-client-urls", client.clone()),
        ("advertise-client-urls", client),
        ("listen-peer-urls", peer(host)),
        ("initial-advertise-peer-urls", peer(host)),
        ("initial-cluster", cluster.to_owned()),
        ("cert-file", format!("{DATA}/own.pem")),
        ("key-file", format!("{DATA}/own.key")),
        ("trusted-ca-file", format!("{DATA}/ca.pem")),
        ("client-cert-auth", "true".to_owned()),
        ("peer-cert-file", format!("{DATA}/own.pem")),
        ("peer-key-file", format!("{DATA}/own.key")),
        ("peer-trusted-ca-file", format!("{DATA}/ca.pem")),
        ("peer-client-cert-auth", "true".to_owned()),
    ];
    let flags = flags.into_iter().map(|(name, value)| format!("--{name}={value}"));
    std::iter::once("/usr/bin/etcd".to_owned()).chain(flags).collect()
}

impl System for Etcd {
    fn name(&self) -> &'static str {
        "etcd"
    }

    fn bed(&self) -> &Bed {
        &self.bed
    }

    fn written(&self) -> &AtomicU64 {
        &self.written
    }

    async fn connect(&self, host: usize) -> Result<Client, BenchError> {
        let address = SocketAddr::new(self.host(host).address().into(), self.access.port);
        let made = grpc::Client::connect(&self.access, address).await;
        Ok(Client::Etcd(Box::new(made.map_err(std::io::Error::other)?)))
    }

    fn leader(&self) -> Result<usize, BenchError> {
        load::outside(self, async || {
            for index in 0..3 {
                if let Ok(Client::Etcd(client)) = self.connect(index).await
                    && client.leads().await.unwrap_or(false)
                {
                    return Ok(index);
                }
            }
            Err(BenchError::Io(std::io::Error::other("nobody leads")))
        })
    }
}
