//! The shim's loop: requests in, children reaped, output copied, news out.
//!
//! Decides which child is whose: a runtime call, a container's first process, an exec'd one, or an orphan
//! that only has to be reaped. One thread; nothing here waits for anything but poll.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::sys::signalfd::SignalFd;
use nix::sys::socket::{SockFlag, accept4};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use super::container::Container;
use super::operation::{self, Kind, Operation, Plan};
use super::protocol::{self, Answer, Call, Create, MESSAGE_MAX, Message, Refusal, Request};
use crate::clock;
use crate::ids::ContainerName;

/// Without anything to do for this long the shim gives back the memory that it can get again.
const REST: Duration = Duration::from_millis(100);

pub(super) struct Server {
    dir: PathBuf,
    program: Option<PathBuf>,
    listener: OwnedFd,
    children: SignalFd,
    connections: BTreeMap<u64, OwnedFd>,
    next_connection: u64,
    containers: BTreeMap<ContainerName, Container>,
    operations: BTreeMap<Pid, Operation>,
    sessions: BTreeMap<Pid, Session>,
    /// Ends of processes whose pid no answered call has named yet. Emptied when no call is under way.
    early: Vec<(Pid, End)>,
    buffer: Vec<u8>,
    quit: bool,
}

struct Session {
    connection: u64,
    session: u64,
}

#[derive(Clone, Copy)]
struct End {
    code: i32,
    signal: Option<i32>,
}

enum Ready {
    Children,
    Listener,
    Connection(u64),
    Pipe(ContainerName, usize),
}

impl Server {
    pub fn new(dir: PathBuf, program: Option<PathBuf>, listener: OwnedFd, children: SignalFd) -> Self {
        Self {
            dir,
            program,
            listener,
            children,
            connections: BTreeMap::new(),
            next_connection: 0,
            containers: BTreeMap::new(),
            operations: BTreeMap::new(),
            sessions: BTreeMap::new(),
            early: Vec::new(),
            buffer: vec![0; MESSAGE_MAX],
            quit: false,
        }
    }

    pub fn run(&mut self) -> io::Result<()> {
        while !self.quit {
            for ready in self.wait()? {
                match ready {
                    Ready::Children => self.reap()?,
                    Ready::Listener => self.accept(),
                    Ready::Connection(id) => self.read_request(id),
                    Ready::Pipe(name, index) => {
                        if let Some(container) = self.containers.get_mut(&name) {
                            container.read_pipe(index, &mut self.buffer);
                        }
                    }
                }
            }
            let now = clock::monotonic();
            for (pid, operation) in &mut self.operations {
                operation.enforce(*pid, now);
            }
        }
        Ok(())
    }

    fn wait(&self) -> io::Result<Vec<Ready>> {
        let mut what = vec![Ready::Children, Ready::Listener];
        let mut fds = vec![
            PollFd::new(self.children.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.listener.as_fd(), PollFlags::POLLIN),
        ];
        for (id, connection) in &self.connections {
            what.push(Ready::Connection(*id));
            fds.push(PollFd::new(connection.as_fd(), PollFlags::POLLIN));
        }
        for (name, container) in &self.containers {
            for (index, pipe) in container.pipes() {
                what.push(Ready::Pipe(name.clone(), index));
                fds.push(PollFd::new(pipe, PollFlags::POLLIN));
            }
        }
        let mut polled = poll(&mut fds, self.timeout());
        if polled == Ok(0) && self.operations.is_empty() {
            // There is a shim for each pod, and nearly all of them wait nearly always: as the last thing before that.
            crate::sys::give_memory_back();
            polled = poll(&mut fds, PollTimeout::NONE);
        }
        match polled {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
        let ready = what.into_iter().zip(&fds).filter(|(_, fd)| fd.any() == Some(true));
        Ok(ready.map(|(what, _)| what).collect())
    }

    fn timeout(&self) -> PollTimeout {
        let Some(next) = self.operations.values().map(|operation| operation.deadline).min() else {
            return PollTimeout::try_from(REST).unwrap_or(PollTimeout::MAX);
        };
        let left = next.saturating_duration_since(clock::monotonic());
        // A call killed for its time is reaped soon: do not spin until then.
        PollTimeout::try_from(left.max(Duration::from_millis(20))).unwrap_or(PollTimeout::MAX)
    }

    fn accept(&mut self) {
        use std::os::fd::AsRawFd;
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        if let Ok(fd) = accept4(self.listener.as_raw_fd(), flags) {
            self.connections.insert(self.next_connection, crate::sys::adopt_fd(fd));
            self.next_connection += 1;
        }
    }

    fn read_request(&mut self, connection: u64) {
        let Some(socket) = self.connections.get(&connection) else { return };
        match protocol::receive::<Request>(socket, &mut self.buffer) {
            Ok(Some((request, fds))) => {
                let asker = (connection, request.id);
                match self.call(asker, request.call, fds) {
                    // Answered when the runtime call has ended.
                    Ok(None) => {}
                    Ok(Some(answer)) => self.reply(asker, Ok(answer)),
                    Err(refusal) => self.reply(asker, Err(refusal)),
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Ok(None) | Err(_) => self.hang_up(connection),
        }
    }

    /// The agent is gone: nobody reads its execs' output any more.
    fn hang_up(&mut self, connection: u64) {
        self.connections.remove(&connection);
        for (pid, _) in self.sessions.iter().filter(|(_, session)| session.connection == connection) {
            let _ = kill(*pid, Signal::SIGKILL);
        }
    }

    fn call(&mut self, asker: (u64, u64), call: Call, fds: Vec<OwnedFd>) -> Result<Option<Answer>, Refusal> {
        match call {
            Call::Create(create) => self.create(asker, create),
            Call::Start { name, limit_ms } => {
                let container = self.container(&name)?;
                container.started_at = Some(clock::wall());
                let id = container.id();
                let plan = Plan { kind: Kind::Start { name }, id, input: None, stdio: None, limit_ms };
                self.spawn(asker, plan)
            }
            Call::Exec { name, session, process, limit_ms } => {
                let container = self.container(&name)?;
                if !container.is_running() {
                    return Err(Refusal::NotRunning);
                }
                let id = container.id();
                let stdio = fds.try_into().map_err(|_| Refusal::Io("exec needs three descriptors".into()))?;
                let kind = Kind::Exec { session };
                self.spawn(asker, Plan { kind, id, input: Some(&process), stdio: Some(stdio), limit_ms })
            }
            Call::Signal { name, signal } => {
                let container = self.container(&name)?;
                let pid = container.pid.filter(|_| container.exit.is_none()).ok_or(Refusal::NotRunning)?;
                send_signal(pid, signal)
            }
            Call::SignalSession { session, signal } => {
                let found = self.sessions.iter().find(|(_, known)| known.session == session);
                let pid = *found.ok_or(Refusal::NotRunning)?.0;
                if signal == libc::SIGKILL {
                    // What it started and did not take out of its group goes with it, as with a terminal that is closed.
                    let _ = nix::sys::signal::killpg(pid, Signal::SIGKILL);
                }
                send_signal(pid, signal)
            }
            Call::Delete { name, limit_ms } => {
                let id = self.container(&name)?.id();
                let plan = Plan { kind: Kind::Delete { name }, id, input: None, stdio: None, limit_ms };
                self.spawn(asker, plan)
            }
            Call::Status => {
                Ok(Some(Answer::Containers(self.containers.values().map(Container::report).collect())))
            }
            Call::Quit if self.containers.values().any(Container::is_running) => Err(Refusal::StillRunning),
            Call::Quit => {
                self.quit = true;
                Ok(Some(Answer::Done))
            }
        }
    }

    fn container(&mut self, name: &ContainerName) -> Result<&mut Container, Refusal> {
        self.containers.get_mut(name).ok_or(Refusal::UnknownContainer)
    }

    fn create(&mut self, asker: (u64, u64), create: Create) -> Result<Option<Answer>, Refusal> {
        if self.containers.contains_key(&create.name) {
            return Err(Refusal::Exists);
        }
        let (name, bundle, limit_ms) = (create.name.clone(), create.bundle.clone(), create.limit_ms);
        let io = |error: io::Error| Refusal::Io(error.to_string());
        let (container, [stdout, stderr]) = Container::new(create).map_err(io)?;
        let stdin = std::fs::File::open("/dev/null").map_err(io)?;
        let stdio = Some([stdin.into(), stdout, stderr]);
        let kind = Kind::Create { name: name.clone() };
        let spawned =
            self.spawn(asker, Plan { kind, id: container.id(), input: Some(&bundle), stdio, limit_ms });
        self.containers.insert(name, container);
        spawned
    }

    fn spawn(&mut self, asker: (u64, u64), plan: Plan) -> Result<Option<Answer>, Refusal> {
        let spawned = operation::spawn(&self.dir, self.program.as_deref(), plan, asker);
        let (pid, operation) = spawned.map_err(|error| Refusal::Io(error.to_string()))?;
        self.operations.insert(pid, operation);
        Ok(None)
    }

    fn reap(&mut self) -> io::Result<()> {
        while self.children.read_signal()?.is_some() {}
        loop {
            let (pid, end) = match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::Exited(pid, code)) => (pid, End { code, signal: None }),
                Ok(WaitStatus::Signaled(pid, signal, _)) => {
                    let signal = signal as i32;
                    (pid, End { code: 128 + signal, signal: Some(signal) })
                }
                Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => break,
                Ok(_) | Err(Errno::EINTR) => continue,
                Err(error) => return Err(error.into()),
            };
            match self.operations.remove(&pid) {
                Some(operation) => self.operation_ended(&operation, end),
                None => self.process_ended(pid, end),
            }
        }
        if self.operations.is_empty() {
            self.early.clear();
        }
        Ok(())
    }

    fn operation_ended(&mut self, operation: &Operation, end: End) {
        let outcome = operation.finish(end.code);
        let pid = *outcome.as_ref().unwrap_or(&None);
        let answer = outcome.map(|pid| self.operation_done(operation, pid));
        if let (Err(_), Kind::Delete { name }) = (&answer, &operation.kind) {
            // Its id is never used again, so a leftover of the runtime's is in nobody's way.
            self.containers.retain(|known, container| known != name || container.is_running());
        }
        // The answer comes before the news of the process's end, which may be here already.
        self.reply(operation.asker, answer);
        if let Some(pid) = pid {
            self.catch_up(pid);
        }
    }

    fn operation_done(&mut self, operation: &Operation, pid: Option<Pid>) -> Answer {
        match (&operation.kind, pid) {
            (Kind::Create { name }, Some(pid)) => {
                if let Some(container) = self.containers.get_mut(name) {
                    container.pid = Some(pid);
                }
                Answer::Pid(pid.as_raw())
            }
            (Kind::Exec { session }, Some(pid)) => {
                let (connection, session) = (operation.asker.0, *session);
                self.sessions.insert(pid, Session { connection, session });
                if !self.connections.contains_key(&connection) {
                    let _ = kill(pid, Signal::SIGKILL);
                }
                Answer::Pid(pid.as_raw())
            }
            (Kind::Start { name }, _) => {
                self.containers.get(name).and_then(Container::started).map_or(Answer::Done, Answer::Started)
            }
            (Kind::Delete { name }, _) => {
                self.containers.remove(name);
                Answer::Done
            }
            _ => Answer::Done,
        }
    }

    /// A process that ended before we knew that it was one of ours.
    fn catch_up(&mut self, pid: Pid) {
        if let Some(at) = self.early.iter().position(|(known, _)| *known == pid) {
            let (_, end) = self.early.remove(at);
            self.process_ended(pid, end);
        }
    }

    fn process_ended(&mut self, pid: Pid, end: End) {
        if let Some(Session { connection, session }) = self.sessions.remove(&pid) {
            self.tell(connection, &Message::SessionExited { session, code: end.code });
            return;
        }
        let found = self.containers.values_mut().find(|container| container.pid == Some(pid));
        let Some(container) = found else {
            self.early.push((pid, end));
            return;
        };
        let exit = container.ended(end.code, end.signal, &mut self.buffer);
        let (name, attempt) = (container.create.name.clone(), container.create.attempt);
        let message = Message::Exited { name, attempt, exit };
        let connections: Vec<u64> = self.connections.keys().copied().collect();
        for connection in connections {
            self.tell(connection, &message);
        }
    }

    fn reply(&mut self, asker: (u64, u64), answer: Result<Answer, Refusal>) {
        self.tell(asker.0, &Message::Reply { id: asker.1, answer });
    }

    /// An agent that does not read is cut off; it finds everything again by `Status`.
    fn tell(&mut self, connection: u64, message: &Message) {
        let Some(socket) = self.connections.get(&connection) else { return };
        if protocol::send(socket, message, &[]).is_err() {
            self.hang_up(connection);
        }
    }
}

fn send_signal(pid: Pid, signal: i32) -> Result<Option<Answer>, Refusal> {
    match crate::sys::send_signal(pid, signal) {
        Ok(()) => Ok(Some(Answer::Done)),
        Err(error) if error.raw_os_error() == Some(Errno::ESRCH as i32) => Err(Refusal::NotRunning),
        Err(error) => Err(Refusal::Io(error.to_string())),
    }
}
