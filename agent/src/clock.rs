//! The agent's clocks, randomness and tasks: the only place of this crate where they come from.
//!
//! Decides which clock is meant by "now". It must not be called from a synchronous core; drivers hand the time in.

use std::time::Duration;

use jiff::Timestamp;
use nix::time::{ClockId, clock_gettime};

/// Milliseconds of CLOCK_BOOTTIME, which counts through suspend and never jumps.
pub fn millis() -> u64 {
    let time = clock_gettime(ClockId::CLOCK_BOOTTIME).map(Duration::from).unwrap_or_default();
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// The monotonic clock, as timers and QUIC count.
#[expect(clippy::disallowed_methods, reason = "this is the module that reads the clock")]
pub fn monotonic() -> std::time::Instant {
    std::time::Instant::now()
}

/// Wall-clock time, for documents that people read.
#[expect(clippy::disallowed_methods, reason = "this is the module that reads the clock")]
pub fn wall() -> Timestamp {
    Timestamp::try_from(std::time::SystemTime::now()).unwrap_or(Timestamp::UNIX_EPOCH)
}

/// Sixty-four bits from the kernel's generator, for ids and seeds.
pub fn random_u64() -> u64 {
    let mut bytes = [0u8; 8];
    fill_random(&mut bytes);
    u64::from_le_bytes(bytes)
}

/// Fills a buffer from the kernel's generator.
#[expect(clippy::disallowed_methods, reason = "this is the module that draws randomness")]
pub fn fill_random(bytes: &mut [u8]) {
    use ring::rand::SecureRandom;
    // getrandom(2) cannot fail once the kernel's pool is seeded; before that it waits.
    ring::rand::SystemRandom::new().fill(bytes).expect("the kernel gives random bytes");
}

/// A random UUID (RFC 9562, version 4).
pub fn uuid() -> String {
    let mut b = [0u8; 16];
    fill_random(&mut b);
    b[6] = (b[6] & 0x0f) | 0x40;
    b[8] = (b[8] & 0x3f) | 0x80;
    let hex = |range: &[u8]| range.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    format!("{}-{}-{}-{}-{}", hex(&b[0..4]), hex(&b[4..6]), hex(&b[6..8]), hex(&b[8..10]), hex(&b[10..16]))
}

/// Starts a task of a driver. Its end is the end of the agent or of what it serves.
#[expect(clippy::disallowed_methods, reason = "drivers start tasks here and nowhere else")]
pub fn spawn<F>(future: F) -> tokio::task::JoinHandle<F::Output>
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    tokio::spawn(future)
}

/// Runs what waits for a disk, or computes for long, off the threads of tasks.
#[expect(clippy::disallowed_methods, reason = "drivers hand work to other threads here and nowhere else")]
pub fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> tokio::task::JoinHandle<T> {
    tokio::task::spawn_blocking(work)
}
