//! The DNS server: sockets, and the shape of each answer.
//!
//! Decides response codes and what goes into which section. Must not decide what a name means (`records`).

use std::io;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use hickory_proto::op::{Edns, Header, HeaderCounts, MessageType, Metadata, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::{A, PTR, SOA, SRV};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use hickory_server::Server;
use hickory_server::net::runtime::Time;
use hickory_server::server::{Request, RequestHandler, ResponseHandler, ResponseInfo};
use hickory_server::zone_handler::MessageResponseBuilder;
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, SockaddrStorage, bind, listen, setsockopt, socket, sockopt,
};
use tokio::sync::watch;

use super::DOMAIN;
use super::forward::Forwarder;
use super::records::{Meaning, Named, Records};

/// Seconds that clients may keep an answer: endpoints change.
const TTL_SECONDS: u32 = 5;
const UDP_PAYLOAD: u16 = 1232;
const TCP_IDLE: Duration = Duration::from_secs(10);
const TCP_BUFFER: usize = 64 * 1024;

/// Why the server does not start.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// A socket could not be had.
    #[error("cannot answer DNS at {0}: {1}; another DNS server may be bound there (ss -lnup 'sport = :53')")]
    Bind(SocketAddr, #[source] io::Error),
}

/// Bound sockets, for a server in another network namespace than the caller's.
#[derive(Debug, Default)]
pub struct Sockets {
    udp: Vec<UdpSocket>,
    tcp: Vec<TcpListener>,
}

impl Sockets {
    /// Binds these addresses, also such that no interface carries yet.
    pub fn bind(addresses: &[SocketAddr]) -> Result<Self, ServeError> {
        let mut sockets = Self::default();
        for address in addresses {
            let failed = |error| ServeError::Bind(*address, error);
            let udp = bound(*address, SockType::Datagram).map_err(failed)?;
            let tcp = bound(*address, SockType::Stream).map_err(failed)?;
            listen(&tcp, Backlog::MAXALLOWABLE).map_err(|error| failed(error.into()))?;
            sockets.udp.push(udp.into());
            sockets.tcp.push(tcp.into());
        }
        Ok(sockets)
    }
}

fn bound(address: SocketAddr, kind: SockType) -> io::Result<OwnedFd> {
    let family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let socket = socket(family, kind, SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK, None)?;
    if kind == SockType::Stream {
        setsockopt(&socket, sockopt::ReuseAddr, &true)?;
    }
    setsockopt(&socket, sockopt::IpFreebind, &true)?;
    bind(socket.as_raw_fd(), &SockaddrStorage::from(address))?;
    Ok(socket)
}

/// A running server; dropping it stops it.
pub struct DnsServer {
    _server: Server<Handler>,
}

impl DnsServer {
    /// Answers at `addresses` over UDP and TCP from the newest records, and asks `upstreams` for all else.
    pub async fn serve(
        addresses: &[SocketAddr],
        records: watch::Receiver<Arc<Records>>,
        upstreams: Vec<SocketAddr>,
    ) -> Result<Self, ServeError> {
        Self::serve_on(Sockets::bind(addresses)?, records, upstreams)
    }

    /// The same on sockets that are bound already; must be called on a tokio runtime.
    pub fn serve_on(
        sockets: Sockets,
        records: watch::Receiver<Arc<Records>>,
        upstreams: Vec<SocketAddr>,
    ) -> Result<Self, ServeError> {
        let mut server = Server::new(Handler { records, forwarder: Forwarder::new(upstreams) });
        for socket in sockets.udp {
            let address = socket.local_addr().unwrap_or(SocketAddr::from(([0, 0, 0, 0], 0)));
            let socket = tokio::net::UdpSocket::from_std(socket);
            server.register_socket(socket.map_err(|error| ServeError::Bind(address, error))?);
        }
        for listener in sockets.tcp {
            let address = listener.local_addr().unwrap_or(SocketAddr::from(([0, 0, 0, 0], 0)));
            let listener = tokio::net::TcpListener::from_std(listener);
            let listener = listener.map_err(|error| ServeError::Bind(address, error))?;
            server.register_listener(listener, TCP_IDLE, TCP_BUFFER);
        }
        Ok(Self { _server: server })
    }
}

struct Handler {
    records: watch::Receiver<Arc<Records>>,
    forwarder: Forwarder,
}

/// The parts of an answer.
struct Answer {
    code: ResponseCode,
    authoritative: bool,
    answers: Vec<Record>,
    authorities: Vec<Record>,
}

impl Answer {
    const fn failure(code: ResponseCode) -> Self {
        Self { code, authoritative: false, answers: Vec::new(), authorities: Vec::new() }
    }
}

impl Handler {
    async fn answer(&self, request: &Request) -> Answer {
        if request.metadata.message_type != MessageType::Query || request.metadata.op_code != OpCode::Query {
            return Answer::failure(ResponseCode::NotImp);
        }
        let Ok(info) = request.request_info() else { return Answer::failure(ResponseCode::FormErr) };
        let query = info.query.original();
        let name = query.name().to_lowercase().to_string();
        let name = name.strip_suffix('.').unwrap_or(&name);
        let records = self.records.borrow().clone();
        match records.find(name) {
            Meaning::Known(named) => of_cluster(query, Some(named)),
            Meaning::Unknown => of_cluster(query, None),
            Meaning::Foreign => self.forward(name, query).await,
        }
    }

    async fn forward(&self, name: &str, query: &Query) -> Answer {
        match self.forwarder.ask(name, query).await {
            None => Answer::failure(ResponseCode::ServFail),
            Some(reply) => Answer {
                code: reply.code,
                authoritative: false,
                answers: reply.answers.clone(),
                authorities: reply.authorities.clone(),
            },
        }
    }
}

fn of_cluster(query: &Query, named: Option<&Named>) -> Answer {
    let code = if named.is_some() { ResponseCode::NoError } else { ResponseCode::NXDomain };
    let answers = named.map(|named| matching(query, named)).unwrap_or_default();
    let authorities =
        if answers.is_empty() { start_of_authority().into_iter().collect() } else { Vec::new() };
    Answer { code, authoritative: true, answers, authorities }
}

fn matching(query: &Query, named: &Named) -> Vec<Record> {
    let wants = |kind| query.query_type() == kind || query.query_type() == RecordType::ANY;
    let record = |data| Record::from_rdata(query.name().clone(), TTL_SECONDS, data);
    let mut records = Vec::new();
    if wants(RecordType::A) {
        records.extend(named.addresses.iter().map(|address| record(RData::A(A(*address)))));
    }
    if wants(RecordType::SRV) {
        let targets = named.services.iter().filter_map(|(port, target)| Some((*port, absolute(target)?)));
        let weight = (100 / named.services.len().max(1)).max(1) as u16;
        records.extend(targets.map(|(port, target)| record(RData::SRV(SRV::new(0, weight, port, target)))));
    }
    if wants(RecordType::PTR) {
        let names = named.pointers.iter().filter_map(|name| absolute(name));
        records.extend(names.map(|name| record(RData::PTR(PTR(name)))));
    }
    records
}

fn absolute(name: &str) -> Option<Name> {
    Name::from_str(&format!("{name}.")).ok()
}

/// What makes clients remember an answer without records, and for how long.
fn start_of_authority() -> Option<Record> {
    let (server, person) =
        (absolute(&format!("ns.dns.{DOMAIN}"))?, absolute(&format!("hostmaster.{DOMAIN}"))?);
    let data = SOA::new(server, person, 1, 7200, 1800, 86400, TTL_SECONDS);
    Some(Record::from_rdata(absolute(DOMAIN)?, TTL_SECONDS, RData::SOA(data)))
}

#[async_trait::async_trait]
impl RequestHandler for Handler {
    async fn handle_request<R: ResponseHandler, T: Time>(
        &self,
        request: &Request,
        mut out: R,
    ) -> ResponseInfo {
        let answer = self.answer(request).await;
        let mut metadata = Metadata::response_from_request(&request.metadata);
        metadata.response_code = answer.code;
        metadata.authoritative = answer.authoritative;
        metadata.recursion_available = true;
        let mut edns = Edns::new();
        edns.set_max_payload(UDP_PAYLOAD);
        let mut builder = MessageResponseBuilder::from_message_request(request);
        if request.edns.is_some() {
            builder.edns(&edns);
        }
        let response = builder.build(metadata, &answer.answers, &answer.authorities, &[], &[]);
        match out.send_response(response).await {
            Ok(info) => info,
            Err(error) => {
                tracing::debug!(%error, "answer could not be sent");
                ResponseInfo::from(Header { metadata, counts: HeaderCounts::default() })
            }
        }
    }
}
