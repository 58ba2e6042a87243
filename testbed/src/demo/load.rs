//! Requests through node ports while machines die: a new connection each, at a fixed pace, all counted.
//!
//! Decides what a failed request is. A slow one must not hold up the next. A request that a machine has already taken
//! when it dies is lost with it in any system that balances connections, so the kill waits for a gap between two.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::clock;
use crate::outside::Outside;

/// Of one request, from connecting to the last byte.
const LIMIT: Duration = Duration::from_secs(3);
const DISTANCE: Duration = Duration::from_millis(100);
const GAP_LIMIT: Duration = Duration::from_secs(2);

/// One request and what became of it.
#[derive(Debug, Clone)]
pub struct Asked {
    pub to: SocketAddr,
    pub at: Instant,
    pub took: Duration,
    /// The pod that answered.
    pub answer: Result<String, String>,
}

/// A client that asks in turn, and what it can be asked while it does.
pub struct Load {
    addresses: Vec<SocketAddr>,
    stop: AtomicBool,
    in_flight: AtomicUsize,
    /// When the last request was sent.
    sent: Mutex<Option<Instant>>,
}

impl Load {
    pub fn on(addresses: Vec<SocketAddr>) -> Load {
        Load {
            addresses,
            stop: AtomicBool::new(false),
            in_flight: AtomicUsize::new(0),
            sent: Mutex::new(None),
        }
    }

    pub fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    /// Waits until nothing is on its way and the next request is still some time off.
    pub fn gap(&self) {
        clock::poll(GAP_LIMIT, Duration::from_millis(1), || {
            let sent = *self.sent.lock().unwrap_or_else(PoisonError::into_inner);
            let early = sent.is_some_and(|at| at.elapsed() < DISTANCE / 2);
            (early && self.in_flight.load(Ordering::Acquire) == 0).then_some(())
        });
    }

    /// Asks from outside until it is stopped; answers what became of each request.
    pub fn run(&self, outside: &Outside) -> Vec<Asked> {
        let asked = Mutex::new(Vec::new());
        clock::threads(|scope| {
            let mut next = clock::now();
            for to in self.addresses.iter().copied().cycle() {
                if self.stop.load(Ordering::Relaxed) {
                    break;
                }
                self.in_flight.fetch_add(1, Ordering::AcqRel);
                *self.sent.lock().unwrap_or_else(PoisonError::into_inner) = Some(clock::now());
                let asked = &asked;
                let one = move || {
                    let one = ask(outside, to);
                    self.in_flight.fetch_sub(1, Ordering::AcqRel);
                    asked.lock().unwrap_or_else(PoisonError::into_inner).push(one);
                };
                if let Err(error) = std::thread::Builder::new().spawn_scoped(scope, one) {
                    self.in_flight.fetch_sub(1, Ordering::AcqRel);
                    tracing::warn!(%error, "a request could not be made");
                }
                next += DISTANCE;
                std::thread::sleep(next.saturating_duration_since(clock::now()));
            }
        });
        asked.into_inner().unwrap_or_else(PoisonError::into_inner)
    }
}

fn ask(outside: &Outside, to: SocketAddr) -> Asked {
    let at = clock::now();
    let answer = outside.within(|| request(to, LIMIT)).and_then(|answer| answer).map_err(|e| e.to_string());
    Asked { to, at, took: at.elapsed(), answer }
}

/// One HTTP GET over a connection of its own; gives the body of a 200.
pub fn request(to: SocketAddr, limit: Duration) -> io::Result<String> {
    let end = clock::now() + limit;
    let left = || end.saturating_duration_since(clock::now()).max(Duration::from_millis(1));
    let mut stream = TcpStream::connect_timeout(&to, left())?;
    stream.set_write_timeout(Some(left()))?;
    write!(stream, "GET / HTTP/1.1\r\nHost: web\r\nConnection: close\r\n\r\n")?;
    let mut answer = Vec::new();
    loop {
        stream.set_read_timeout(Some(left()))?;
        let mut buffer = [0; 4096];
        match stream.read(&mut buffer)? {
            0 => break,
            n => answer.extend_from_slice(buffer.get(..n).unwrap_or_default()),
        }
    }
    let text = String::from_utf8_lossy(&answer);
    let body = text.split_once("\r\n\r\n").filter(|(head, _)| head.starts_with("HTTP/1.1 200"));
    body.map(|(_, body)| body.trim().to_owned())
        .ok_or_else(|| io::Error::other(format!("not a 200: {text:?}")))
}
