//! Questions about names that are not the cluster's: asked of other servers, with a small cache.
//!
//! Decides for how long an answer is kept and when the next server is asked. Must not be asked for names of the
//! cluster.

use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hickory_proto::op::{Message, Query, ResponseCode};
use hickory_proto::rr::Record;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::{Instant, timeout};

const PATIENCE: Duration = Duration::from_millis(1500);
const CACHE_ENTRIES: usize = 4096;
/// The longest that an answer is kept, whatever its servers say.
const LONGEST_SECONDS: u32 = 300;
/// How long it is remembered that there is no answer.
const NEGATIVE_SECONDS: u32 = 5;

/// Another server's answer.
#[derive(Clone, Debug)]
pub struct Forwarded {
    pub code: ResponseCode,
    pub answers: Vec<Record>,
    pub authorities: Vec<Record>,
}

type Key = (String, u16);

#[derive(Debug)]
struct Kept {
    since: Instant,
    until: Instant,
    reply: Arc<Forwarded>,
}

/// Asks other servers, in their order.
#[derive(Debug, Default)]
pub struct Forwarder {
    upstreams: Vec<SocketAddr>,
    cache: Mutex<BTreeMap<Key, Kept>>,
}

impl Forwarder {
    pub fn new(upstreams: Vec<SocketAddr>) -> Self {
        Self { upstreams, cache: Mutex::default() }
    }

    /// The answer of the cache or of the first server that gives one; `None` when none does.
    pub async fn ask(&self, name: &str, query: &Query) -> Option<Arc<Forwarded>> {
        let key = (name.to_owned(), u16::from(query.query_type()));
        if let Some(found) = self.cached(&key) {
            return Some(found);
        }
        for upstream in &self.upstreams {
            match exchange(*upstream, query).await {
                Ok(reply) if reply.code != ResponseCode::ServFail && reply.code != ResponseCode::Refused => {
                    let reply = Arc::new(reply);
                    self.keep(key, reply.clone());
                    return Some(reply);
                }
                Ok(reply) => tracing::debug!(%upstream, name, code = %reply.code, "server did not answer"),
                Err(error) => tracing::debug!(%upstream, name, %error, "server not reachable"),
            }
        }
        None
    }

    fn cached(&self, key: &Key) -> Option<Arc<Forwarded>> {
        let cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        let now = now();
        let kept = cache.get(key).filter(|kept| kept.until > now)?;
        let age = now.duration_since(kept.since).as_secs() as u32;
        let mut aged = Forwarded::clone(&kept.reply);
        for record in aged.answers.iter_mut().chain(&mut aged.authorities) {
            record.ttl = record.ttl.saturating_sub(age);
        }
        Some(Arc::new(aged))
    }

    fn keep(&self, key: Key, reply: Arc<Forwarded>) {
        let now = now();
        let seconds = reply.answers.iter().map(|record| record.ttl).min().unwrap_or(NEGATIVE_SECONDS);
        let until = now + Duration::from_secs(u64::from(seconds.min(LONGEST_SECONDS)));
        let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        if cache.len() >= CACHE_ENTRIES {
            cache.retain(|_, kept| kept.until > now);
        }
        if cache.len() >= CACHE_ENTRIES {
            cache.clear();
        }
        cache.insert(key, Kept { since: now, until, reply });
    }
}

#[expect(clippy::disallowed_methods, reason = "driver: the age of answers of others")]
fn now() -> Instant {
    Instant::now()
}

/// One question to one server: by UDP, and by TCP when the answer did not fit.
async fn exchange(upstream: SocketAddr, query: &Query) -> io::Result<Forwarded> {
    let mut question = Message::query();
    question.metadata.recursion_desired = true;
    question.add_query(query.clone());
    let bytes = question.to_vec().map_err(io::Error::other)?;
    let late = |_| io::Error::from(io::ErrorKind::TimedOut);
    let mut reply =
        timeout(PATIENCE, by_udp(upstream, question.metadata.id, query, &bytes)).await.map_err(late)??;
    if reply.metadata.truncation {
        reply = timeout(PATIENCE, by_tcp(upstream, &bytes)).await.map_err(late)??;
    }
    Ok(Forwarded {
        code: reply.metadata.response_code,
        answers: reply.answers,
        authorities: reply.authorities,
    })
}

async fn by_udp(upstream: SocketAddr, id: u16, query: &Query, bytes: &[u8]) -> io::Result<Message> {
    let any: SocketAddr = match upstream {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (std::net::Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let socket = UdpSocket::bind(any).await?;
    socket.connect(upstream).await?;
    socket.send(bytes).await?;
    let mut buffer = vec![0; 4096];
    loop {
        let length = socket.recv(&mut buffer).await?;
        let Ok(reply) = Message::from_vec(buffer.get(..length).unwrap_or_default()) else { continue };
        // Anything else is not the answer to this question, whoever sent it.
        if reply.metadata.id == id && reply.queries.first().is_none_or(|asked| asked.name() == query.name()) {
            return Ok(reply);
        }
    }
}

async fn by_tcp(upstream: SocketAddr, bytes: &[u8]) -> io::Result<Message> {
    let mut stream = TcpStream::connect(upstream).await?;
    let mut framed = (bytes.len() as u16).to_be_bytes().to_vec();
    framed.extend_from_slice(bytes);
    stream.write_all(&framed).await?;
    let mut reply = vec![0; usize::from(stream.read_u16().await?)];
    stream.read_exact(&mut reply).await?;
    Message::from_vec(&reply).map_err(io::Error::other)
}
