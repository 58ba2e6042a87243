//! Timers of one thread: QUIC's, gossip's and the replica's, all behind one `timerfd`.
//!
//! Decides when the thread is woken: at the first deadline, and at no other time. tokio's timers are meant for many deadlines that never
//! come. A deadline further away than 64 ms wakes its thread once more on the way, and one that is nearer than all others writes to the
//! runtime's own event descriptor: of an idle agent's wake-ups these were a third (docs/decisions/0219). Must not do anything
//! when a timer fires but wake who waits for it.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::sys;
use crate::clock;

/// Whole milliseconds since the timers were made, rounded up. Deadlines within the same one come together.
type Tick = u64;

/// A thread's timers. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Timers(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    began: Instant,
    alarm: TimerFd,
    queue: Mutex<Queue>,
}

#[derive(Debug, Default)]
struct Queue {
    waiting: BTreeMap<(Tick, u64), Waker>,
    /// What the alarm is set to: never later than the first that waits.
    armed: Option<Tick>,
    next: u64,
}

impl Queue {
    fn first(&self) -> Option<Tick> {
        self.waiting.first_key_value().map(|((tick, _), _)| *tick)
    }
}

impl Timers {
    /// None wait yet.
    pub fn new() -> io::Result<Timers> {
        let flags = TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC;
        let alarm = TimerFd::new(ClockId::CLOCK_MONOTONIC, flags)?;
        let shared = Shared { began: clock::monotonic(), alarm, queue: Mutex::default() };
        Ok(Timers(Arc::new(shared)))
    }

    /// Wakes who waits, for as long as it runs. On the thread whose timers these are.
    pub async fn run(self) -> io::Result<()> {
        let alarm: OwnedFd = self.0.alarm.as_fd().try_clone_to_owned()?;
        let watched: AsyncFd<OwnedFd> = sys::watch(alarm, Interest::READABLE)?;
        loop {
            // The kernel tells of each expiry anew; there is no need to read how often it expired.
            watched.readable().await?.clear_ready();
            self.fire();
        }
    }

    fn fire(&self) {
        let now = self.tick_of_now();
        let mut queue = self.lock();
        queue.armed = None;
        let later = queue.waiting.split_off(&(now + 1, 0));
        let due = std::mem::replace(&mut queue.waiting, later);
        self.set(&mut queue);
        drop(queue);
        due.into_values().for_each(Waker::wake);
    }

    /// The thread is about to sleep: the alarm for what nobody waits for any more is put off.
    pub fn before_sleep(&self) {
        let mut queue = self.lock();
        if queue.armed != queue.first() {
            self.set(&mut queue);
        }
    }

    /// Sets the alarm to the first that waits.
    fn set(&self, queue: &mut Queue) {
        let first = queue.first();
        let outcome = match first {
            Some(tick) => {
                let since = clock::monotonic().saturating_duration_since(self.0.began);
                // Zero would turn the alarm off.
                let left = Duration::from_millis(tick).saturating_sub(since).max(Duration::from_nanos(1));
                let expiration = Expiration::OneShot(TimeSpec::from_duration(left));
                self.0.alarm.set(expiration, TimerSetTimeFlags::empty())
            }
            None => self.0.alarm.unset(),
        };
        // timerfd_settime(2) fails for a bad descriptor or a bad time, and these are neither.
        outcome.expect("an alarm that is open can be set");
        queue.armed = first;
    }

    /// Comes at a time.
    pub fn at(&self, at: Instant) -> Timer {
        Timer { of: self.clone(), at: self.tick(at), waits: None }
    }

    /// Comes after a time.
    pub fn after(&self, wait: Duration) -> Timer {
        self.at(clock::monotonic() + wait)
    }

    fn tick(&self, at: Instant) -> Tick {
        let since = at.saturating_duration_since(self.0.began).as_nanos();
        Tick::try_from(since.div_ceil(1_000_000)).unwrap_or(Tick::MAX)
    }

    /// The last tick that has come.
    fn tick_of_now(&self) -> Tick {
        let since = clock::monotonic().saturating_duration_since(self.0.began).as_millis();
        Tick::try_from(since).unwrap_or(Tick::MAX)
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.0.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One deadline. Costs nothing until it is waited for.
#[derive(Debug)]
pub struct Timer {
    of: Timers,
    at: Tick,
    /// Its place among those that wait, if it does. May be for an earlier deadline that it had: then it wakes for nothing, once.
    waits: Option<(Tick, u64)>,
}

impl Timer {
    /// Has another deadline from now on.
    pub fn set(&mut self, at: Instant) {
        self.at = self.of.tick(at);
    }

    /// Comes after a time from now on.
    pub fn set_after(&mut self, wait: Duration) {
        self.set(clock::monotonic() + wait);
    }

    fn poll_at(&mut self, context: &Context<'_>) -> Poll<()> {
        if self.of.tick_of_now() >= self.at {
            self.give_up();
            return Poll::Ready(());
        }
        let Timer { of, at, waits } = self;
        let mut queue = of.lock();
        if let Some(place) = waits.filter(|(tick, _)| tick == at)
            && let Some(waker) = queue.waiting.get_mut(&place)
        {
            waker.clone_from(context.waker());
            return Poll::Pending;
        }
        let place = (*at, queue.next);
        queue.next += 1;
        queue.waiting.insert(place, context.waker().clone());
        if let Some(earlier) = waits.replace(place) {
            queue.waiting.remove(&earlier);
        }
        if queue.armed.is_none_or(|armed| *at < armed) {
            of.set(&mut queue);
        }
        Poll::Pending
    }

    fn give_up(&mut self) {
        if let Some(place) = self.waits.take() {
            // It goes once the queue is free again: the last reference to a task takes along what that holds.
            let waker = self.of.lock().waiting.remove(&place);
            drop(waker);
        }
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        self.give_up();
    }
}

impl Future for Timer {
    type Output = ();

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        self.get_mut().poll_at(context)
    }
}

impl quinn::AsyncTimer for Timer {
    fn reset(self: Pin<&mut Self>, at: Instant) {
        self.get_mut().set(at);
    }

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        self.get_mut().poll_at(context)
    }
}

/// What quinn asks of a runtime: these timers, tokio's tasks, the mesh's own sockets.
#[derive(Debug)]
pub struct Runtime(pub Timers);

impl quinn::Runtime for Runtime {
    fn new_timer(&self, at: Instant) -> Pin<Box<dyn quinn::AsyncTimer>> {
        Box::pin(self.0.at(at))
    }

    fn spawn(&self, future: Pin<Box<dyn Future<Output = ()> + Send>>) {
        clock::spawn(future);
    }

    fn wrap_udp_socket(&self, socket: std::net::UdpSocket) -> io::Result<Arc<dyn quinn::AsyncUdpSocket>> {
        Ok(Arc::new(super::udp::Watched::new(socket)?))
    }

    fn now(&self) -> Instant {
        clock::monotonic()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHORT: Duration = Duration::from_millis(30);
    const LONG: Duration = Duration::from_millis(500);
    const HOUR: Duration = Duration::from_secs(3_600);

    /// Runs timers beside a test, whose end is theirs.
    async fn with<T>(timers: &Timers, test: impl Future<Output = T>) -> T {
        tokio::select! {
            ended = timers.clone().run() => panic!("the timers ended: {ended:?}"),
            outcome = test => outcome,
        }
    }

    #[tokio::test]
    async fn timers_come_in_order_and_never_early() {
        let timers = Timers::new().unwrap();
        with(&timers, async {
            let began = clock::monotonic();
            let (sender, mut order) = tokio::sync::mpsc::unbounded_channel();
            // All deadlines are far enough away to be waited for by all before the first comes.
            for wait in [800u64, 500, 700, 600, 500] {
                let (timer, sender) = (timers.at(began + Duration::from_millis(wait)), sender.clone());
                clock::spawn(async move {
                    timer.await;
                    sender.send((wait, clock::monotonic())).unwrap();
                });
            }
            let mut seen = Vec::new();
            while seen.len() < 5 {
                let (wait, at) = order.recv().await.unwrap();
                assert!(at - began >= Duration::from_millis(wait), "{wait} ms came after {:?}", at - began);
                seen.push(wait);
            }
            assert_eq!(seen, [500, 500, 600, 700, 800]);
        })
        .await;
        assert!(timers.lock().waiting.is_empty());
    }

    #[tokio::test]
    async fn a_deadline_moves_both_ways_while_it_is_waited_for() {
        let timers = Timers::new().unwrap();
        with(&timers, async {
            let began = clock::monotonic();
            let mut timer = timers.after(HOUR);
            assert!(futures_poll(&mut timer).await.is_pending());
            timer.set(began + SHORT);
            (&mut timer).await;
            assert!(clock::monotonic() - began >= SHORT);
            timer.set(began + SHORT);
            (&mut timer).await;
            let again = clock::monotonic();
            timer.set(again + LONG);
            assert!(futures_poll(&mut timer).await.is_pending());
            timer.set(again + LONG + SHORT);
            (&mut timer).await;
            assert!(clock::monotonic() - again >= LONG + SHORT);
        })
        .await;
    }

    #[tokio::test]
    async fn nothing_is_left_of_a_timer_that_is_dropped_and_the_alarm_goes_to_the_next() {
        let timers = Timers::new().unwrap();
        with(&timers, async {
            let mut first = timers.after(HOUR);
            let mut second = timers.after(HOUR * 2);
            assert!(futures_poll(&mut first).await.is_pending());
            assert!(futures_poll(&mut second).await.is_pending());
            drop(first);
            assert_eq!(timers.lock().waiting.len(), 1);
            timers.before_sleep();
            let armed = timers.lock().armed;
            assert_eq!(armed, Some(second.at));
            second.set_after(SHORT);
            (&mut second).await;
            timers.before_sleep();
            assert_eq!(timers.lock().armed, None);
        })
        .await;
    }

    /// The hook of a thread of the mesh puts the alarm off for what was given up.
    #[test]
    fn a_thread_that_sleeps_is_not_woken_for_what_nobody_waits_for() {
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.set_nonblocking(true).unwrap();
        let listen = |timers| {
            let socket = Arc::new(super::super::udp::Watched::new(socket)?);
            quinn::Endpoint::new_with_abstract_socket(
                quinn::EndpointConfig::default(),
                None,
                socket,
                Arc::new(Runtime(timers)),
            )
        };
        let (thread, _endpoint) = super::super::thread::start("timers", listen).unwrap();
        let timers = thread.timers().clone();
        let (sender, waits) = std::sync::mpsc::channel();
        let mut timer = timers.after(HOUR);
        thread.spawn(async move {
            assert!(futures_poll(&mut timer).await.is_pending());
            let armed = timer.of.lock().armed;
            drop(timer);
            sender.send(armed).unwrap();
        });
        assert!(waits.recv().unwrap().is_some());
        // It goes to sleep right after that, or has already.
        while timers.lock().armed.is_some() {
            std::thread::yield_now();
        }
        thread.end();
    }

    /// One look at a timer.
    async fn futures_poll(timer: &mut Timer) -> Poll<()> {
        std::future::poll_fn(|context| Poll::Ready(timer.poll_at(context))).await
    }
}
