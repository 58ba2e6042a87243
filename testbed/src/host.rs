//! One host of a bed: booted, plugged in, given commands and an agent, killed.
//!
//! Decides the order of a kill: peers see silence first, then everything dies, then its traces go.

mod agent;
mod command;
mod link;

use std::fs;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Command as StdCommand, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nix::sched::{CloneFlags, unshare};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};

pub use command::{Command, Process};
pub use link::AgentState;

use crate::bed::cgroups::{self, CgroupError};
use crate::bed::{BedError, OUTSIDE, Shared};
use crate::namespace::{self, ToolError};
use crate::process::{CommandFailed, Output};
use crate::wire::{Bind, Setup};
use crate::{clock, sys};
use link::Link;

const BOOT_LIMIT: Duration = Duration::from_secs(10);
const DEATH_LIMIT: Duration = Duration::from_secs(10);
/// Where a host sees the skein binary.
const SKEIN: &str = "/usr/local/bin/skein";

/// Something a host was told did not work.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    #[error("{0} is down: boot it first")]
    Down(String),
    #[error("{0} is up already")]
    Up(String),
    #[error("{host} did not boot: {reason}")]
    Boot { host: String, reason: String },
    #[error("{host}: {what}: {source}")]
    Io { host: String, what: &'static str, source: io::Error },
    #[error("{host}: cannot start `{command}`: {reason}")]
    NotStarted { host: String, command: String, reason: String },
    #[error("{host}: the agent does not start: {reason}")]
    Agent { host: String, reason: String },
    #[error("{host}: no skein binary: build it (cargo build -p cli) or set SKEIN_BIN")]
    NoSkein { host: String },
    #[error("{host}: did not {what} within {limit:?}")]
    Late { host: String, what: &'static str, limit: Duration },
    #[error(transparent)]
    Tool(#[from] ToolError),
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    #[error("{host}: {failed}")]
    Command { host: String, failed: CommandFailed },
}

/// How a host dies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// As in a power cut: peers never hear of it again, no FIN, no RST, no ICMP.
    Silent,
    /// The kernel still says goodbye for the processes that die.
    LinkUp,
}

/// A machine made of namespaces; up or down. Usable from several threads.
#[derive(Debug)]
pub struct Host {
    name: String,
    port: String,
    address: Ipv4Addr,
    shared: Arc<Shared>,
    running: Mutex<Option<Running>>,
}

#[derive(Debug)]
struct Running {
    init: Child,
    network: Arc<OwnedFd>,
    link: Arc<Link>,
}

impl Host {
    pub(crate) fn new(number: usize, address: Ipv4Addr, shared: Arc<Shared>) -> Host {
        let (name, port) = (format!("host{number}"), format!("p{number}"));
        Host { name, port, address, shared, running: Mutex::new(None) }
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn address(&self) -> Ipv4Addr {
        self.address
    }

    pub(crate) fn port(&self) -> String {
        self.port.clone()
    }

    /// The machine's path of what the host has at /var/lib/skein. Outlives a kill.
    pub fn data_path(&self) -> PathBuf {
        self.directory().join("data")
    }

    /// The machine's path of what the host has at /srv. Outlives a kill.
    pub fn srv_path(&self) -> PathBuf {
        self.directory().join("srv")
    }

    pub fn log_path(&self) -> PathBuf {
        self.directory().join("agent.log")
    }

    pub fn cgroup_parent(&self) -> String {
        cgroups::parent_of(&self.shared.run, &self.name)
    }

    pub fn is_up(&self) -> bool {
        self.lock().is_some()
    }

    /// The pid of the host's init as the machine sees it.
    pub fn init_pid(&self) -> Result<i32, HostError> {
        self.with_running(|running| running.init.id().cast_signed())
    }

    /// Starts the host: what it had on disk, an empty /run, no agent.
    pub fn boot(&self) -> Result<(), BedError> {
        let mut running = self.lock();
        if running.is_some() {
            return Err(HostError::Up(self.name.clone()).into());
        }
        for directory in ["data", "srv", "stage"].map(|name| self.directory().join(name)) {
            fs::create_dir_all(&directory).map_err(|source| BedError::File { path: directory, source })?;
        }
        cgroups::create(&self.shared.run, &self.name)?;
        let started = self.start_init()?;
        self.shared.record.add_init(&self.name, started.init.id().cast_signed())?;
        let running = running.insert(started);
        self.plug(&running.network)?;
        running
            .link
            .ready(BOOT_LIMIT)
            .map_err(|reason| HostError::Boot { host: self.name.clone(), reason })?;
        Ok(())
    }

    /// Ends the host and all that runs on it, at once. Data stays.
    pub fn kill(&self, kind: Kind) -> Result<(), HostError> {
        let mut guard = self.lock();
        if guard.is_none() {
            return Err(HostError::Down(self.name.clone()));
        }
        if kind == Kind::Silent {
            self.shared.switch.silence(&self.port)?;
        }
        guard.take().map_or(Ok(()), |running| self.bury(running))
    }

    /// For the bed's end: no error if it is down.
    pub(crate) fn end(&self) -> Result<(), HostError> {
        let running = self.lock().take();
        running.map_or(Ok(()), |running| self.bury(running))
    }

    /// A command for the host, to be given more before it runs.
    pub fn command<S: AsRef<str>>(&self, argv: impl IntoIterator<Item = S>) -> Command<'_> {
        Command::new(self, argv.into_iter().map(|a| a.as_ref().to_owned()).collect())
    }

    /// Runs a command to its end; killed after half a minute.
    pub fn run<S: AsRef<str>>(&self, argv: impl IntoIterator<Item = S>) -> Result<Output, HostError> {
        self.command(argv).run()
    }

    /// Standard output of a command that must succeed.
    pub fn ok<S: AsRef<str>>(&self, argv: impl IntoIterator<Item = S>) -> Result<String, HostError> {
        self.command(argv).ok()
    }

    /// Starts a command that is killed when its handle is dropped.
    pub fn spawn<S: AsRef<str>>(&self, argv: impl IntoIterator<Item = S>) -> Result<Process, HostError> {
        self.command(argv).spawn()
    }

    /// Runs a closure with the host's network; sockets that it makes survive the host's processes.
    pub fn within<T: Send>(&self, act: impl FnOnce() -> T + Send) -> Result<T, HostError> {
        let network = self.with_running(|running| Arc::clone(&running.network))?;
        namespace::within(network.as_fd(), act).map_err(|source| self.io("entering its network", source))
    }

    /// A TCP connection from the host.
    pub fn connect(&self, to: SocketAddr, limit: Duration) -> Result<io::Result<TcpStream>, HostError> {
        self.within(|| TcpStream::connect_timeout(&to, limit))
    }

    /// The machine's pid of a process that the host knows as `pid`.
    pub fn machine_pid(&self, pid: i32) -> Result<Option<i32>, HostError> {
        let init = self.init_pid()?;
        let own = |pid: i32| fs::read_link(format!("/proc/{pid}/ns/pid")).ok();
        let namespace = own(init);
        let pids = fs::read_dir("/proc").map_err(|source| self.io("reading /proc", source))?;
        let mut pids = pids.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
        Ok(pids.find(|outer| own(*outer) == namespace && inner_pid(*outer) == Some(pid)))
    }

    /// Starts the init in namespaces of its own, from a thread that has nothing else to do there.
    fn start_init(&self) -> Result<Running, BedError> {
        let io = |source| self.io("starting its init", source);
        let flags = SockFlag::SOCK_CLOEXEC;
        let pair = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags);
        let (ours, theirs) = pair.map_err(|e| io(e.into()))?;
        let setup = serde_json::to_string(&self.setup()).map_err(|e| io(e.into()))?;
        let program = self.shared.program.clone();
        let spawned = namespace::on_own_thread(move || -> io::Result<(Child, OwnedFd)> {
            let own = CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWPID;
            unshare(own | CloneFlags::CLONE_NEWUTS | CloneFlags::CLONE_NEWIPC)?;
            let network = namespace::current_network()?;
            let mut command = StdCommand::new(program);
            command.args(["host-init", &setup]).stdin(theirs).stdout(Stdio::null());
            sys::fork_and_new_session(&mut command);
            Ok((command.spawn()?, network))
        });
        let (init, network) = spawned.and_then(|made| made).map_err(BedError::Namespace)?;
        let link = Link::over(ours).map_err(io)?;
        Ok(Running { init, network: Arc::new(network), link })
    }

    fn setup(&self) -> Setup {
        let bind = |source: PathBuf, target: &str, writable| Bind { source, target: target.into(), writable };
        let skein = self.shared.skein.clone();
        let mut binds = vec![
            bind(self.data_path(), "/var/lib/skein", true),
            bind(self.srv_path(), "/srv", true),
            bind(self.shared.program.clone(), "/usr/local/bin/testbed", false),
        ];
        binds.extend(skein.map(|binary| bind(binary, SKEIN, false)));
        binds.extend(self.shared.config.binds.iter().cloned());
        Setup {
            hostname: self.name.clone(),
            address: self.address.to_string(),
            outside: OUTSIDE.to_string(),
            names: self.shared.names.clone(),
            stage: self.directory().join("stage"),
            binds,
        }
    }

    fn plug(&self, network: &OwnedFd) -> Result<(), ToolError> {
        self.shared.switch.plug(&self.port, network)?;
        let (address, outside) = (self.address, OUTSIDE);
        let lines = format!(
            "link set lo up\naddr add {address}/24 dev eth0\nlink set eth0 up\nroute add default via {outside}\n"
        );
        namespace::ip(network, &lines)
    }

    /// Kills init, with it everything of its pid namespace, and removes what the host leaves.
    fn bury(&self, mut running: Running) -> Result<(), HostError> {
        running.init.kill().map_err(|source| self.io("killing its init", source))?;
        let (run, name) = (&self.shared.run, &self.name);
        let end = clock::now() + DEATH_LIMIT;
        while running.init.try_wait().map_err(|source| self.io("waiting for its init", source))?.is_none() {
            if clock::now() > end {
                return Err(HostError::Late { host: name.clone(), what: "die", limit: DEATH_LIMIT });
            }
            cgroups::thaw(run, name);
            std::thread::sleep(Duration::from_millis(1));
        }
        drop(running);
        self.shared.switch.unplug(&self.port);
        cgroups::remove_host(run, name)?;
        // Nothing depends on it: a later bed looks at start times.
        let _ = self.shared.record.remove_init(name);
        Ok(())
    }

    fn directory(&self) -> PathBuf {
        self.shared.config.directory.join(&self.name)
    }

    pub(crate) fn environment(&self) -> &[(String, String)] {
        &self.shared.config.env
    }

    pub(crate) fn io(&self, what: &'static str, source: io::Error) -> HostError {
        HostError::Io { host: self.name.clone(), what, source }
    }

    fn link(&self) -> Result<Arc<Link>, HostError> {
        self.with_running(|running| Arc::clone(&running.link))
    }

    fn with_running<T>(&self, act: impl FnOnce(&Running) -> T) -> Result<T, HostError> {
        self.lock().as_ref().map(act).ok_or_else(|| HostError::Down(self.name.clone()))
    }

    fn lock(&self) -> MutexGuard<'_, Option<Running>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn inner_pid(outer: i32) -> Option<i32> {
    let status = fs::read_to_string(Path::new("/proc").join(outer.to_string()).join("status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix("NSpid:"))?.split_whitespace().last()?.parse().ok()
}
