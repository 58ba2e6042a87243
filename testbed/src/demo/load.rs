//! Requests through node ports while machines die: a new connection each, at a fixed pace, all counted.
//!
//! Decides what a failed request is. A slow one must not hold up the next.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::clock;
use crate::outside::Outside;

/// Of one request, from connecting to the last byte.
const LIMIT: Duration = Duration::from_secs(3);
const DISTANCE: Duration = Duration::from_millis(100);

/// One request and what became of it.
#[derive(Debug, Clone)]
pub struct Asked {
    pub to: SocketAddr,
    pub at: Instant,
    pub took: Duration,
    /// The pod that answered.
    pub answer: Result<String, String>,
}

/// Asks the addresses in turn until `stop`, from outside.
pub fn run(outside: &Outside, addresses: &[SocketAddr], stop: &AtomicBool) -> Vec<Asked> {
    let asked = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        let mut next = clock::now();
        for to in addresses.iter().copied().cycle() {
            if stop.load(Ordering::Relaxed) {
                break;
            }
            let asked = &asked;
            let one = move || {
                let at = clock::now();
                let answer = outside.within(|| request(to, LIMIT)).and_then(|answer| answer).map_err(|e| e.to_string());
                let one = Asked { to, at, took: at.elapsed(), answer };
                asked.lock().unwrap_or_else(PoisonError::into_inner).push(one);
            };
            if let Err(error) = std::thread::Builder::new().spawn_scoped(scope, one) {
                tracing::warn!(%error, "a request could not be made");
            }
            next += DISTANCE;
            std::thread::sleep(next.saturating_duration_since(clock::now()));
        }
    });
    asked.into_inner().unwrap_or_else(PoisonError::into_inner)
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
    body.map(|(_, body)| body.trim().to_owned()).ok_or_else(|| io::Error::other(format!("not a 200: {text:?}")))
}
