//! A host for one test: private mounts, directories, cgroup parent; checks at the end that nothing is left.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Once;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use runtime::ids::{ContainerName, Digest, PodUid};
use runtime::spec::{ContainerSpec, PodSpec};
use runtime::state::{ContainerStatus, Event, Exit};
use runtime::{Config, Events, LogOptions, OpenError, Runtime};

use crate::images;

const BASE: &str = "/var/tmp";
static NEXT: AtomicU32 = AtomicU32::new(0);
static SWEEP: Once = Once::new();

pub struct Host {
    pub dir: PathBuf,
    pub config: Config,
    pub image: Digest,
    runtime: Option<Runtime>,
    events: Option<Events>,
}

/// Runs a test on a host of its own.
pub fn on_host(test: impl AsyncFnOnce(&mut Host)) {
    SWEEP.call_once(sweep);
    unshare(CloneFlags::CLONE_NEWNS).expect("tests need root");
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>).unwrap();
    let tokio = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let name = format!("rt-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
    let clean =
        Clean { dir: Path::new(BASE).join(format!("skein-{name}")), cgroup: format!("/skein-test/{name}") };
    tokio.block_on(async {
        let mut host = Host::new(&clean).await;
        test(&mut host).await;
        host.remove_pods().await;
        host.check_clean(&clean.cgroup);
    });
}

struct Clean {
    dir: PathBuf,
    cgroup: String,
}

impl Drop for Clean {
    fn drop(&mut self) {
        remove_leftovers(&self.dir, &self.cgroup);
    }
}

/// Kills the shims of a directory and the processes of a cgroup parent, and removes both.
fn remove_leftovers(dir: &Path, cgroup: &str) {
    for pid in shims(dir) {
        let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::SIGKILL);
    }
    for controller in fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten() {
        let cgroup = controller.path().join(cgroup.trim_start_matches('/'));
        for _ in 0..200 {
            let pids = pids_below(&cgroup);
            for pid in &pids {
                let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(*pid), nix::sys::signal::SIGKILL);
            }
            remove_cgroup(&cgroup);
            if !cgroup.exists() {
                break;
            }
            // Who was killed is gone when the kernel has got to it; asked again then.
            std::thread::sleep(Duration::from_millis(10));
        }
        // The common parent goes with the last of us.
        let _ = cgroup.parent().map(fs::remove_dir);
    }
    let table = fs::read_to_string("/proc/thread-self/mountinfo").unwrap_or_default();
    let mounts = table.lines().filter_map(|line| line.split(' ').nth(4)).map(PathBuf::from);
    let mut mounts: Vec<PathBuf> = mounts.filter(|mount| mount.starts_with(dir)).collect();
    mounts.reverse();
    for mount in mounts {
        let _ = nix::mount::umount2(&mount, nix::mount::MntFlags::MNT_DETACH);
    }
    let _ = fs::remove_dir_all(dir);
}

/// What runs that were killed have left: their process ids are no more.
fn sweep() {
    for entry in fs::read_dir(BASE).unwrap().flatten() {
        let name = entry.file_name().into_string().unwrap_or_default();
        let Some(run) = name.strip_prefix("skein-rt-") else { continue };
        let pid = run.split('-').next().unwrap_or_default();
        if !Path::new("/proc").join(pid).exists() {
            remove_leftovers(&entry.path(), &format!("/skein-test/rt-{run}"));
        }
    }
}

/// The shims that serve pods below `dir`.
pub fn shims(dir: &Path) -> Vec<i32> {
    let wanted = dir.to_string_lossy().into_owned();
    let is_ours = |pid: &i32| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        line.starts_with("skein shim") && line.contains(&format!("{wanted}/"))
    };
    let entries = fs::read_dir("/proc").unwrap().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter(is_ours).collect()
}

/// Asks until there is an answer.
pub async fn until<T>(what: &str, mut answer: impl AsyncFnMut() -> Option<T>) -> T {
    let asked = async {
        loop {
            match answer().await {
                Some(answer) => return answer,
                None => tokio::time::sleep(Duration::from_millis(5)).await,
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(10), asked)
        .await
        .unwrap_or_else(|_| panic!("not within 10 s: {what}"))
}

/// Whether a process is no more, or only its exit code is left.
pub fn is_gone(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.is_empty() || stat.contains(") Z ")
}

fn pids_below(cgroup: &Path) -> Vec<i32> {
    let mut pids: Vec<i32> = fs::read_to_string(cgroup.join("cgroup.procs"))
        .unwrap_or_default()
        .lines()
        .filter_map(|pid| pid.parse().ok())
        .collect();
    for entry in fs::read_dir(cgroup).into_iter().flatten().flatten() {
        if entry.path().is_dir() {
            pids.extend(pids_below(&entry.path()));
        }
    }
    pids
}

fn remove_cgroup(cgroup: &Path) {
    for entry in fs::read_dir(cgroup).into_iter().flatten().flatten() {
        if entry.path().is_dir() {
            remove_cgroup(&entry.path());
        }
    }
    let _ = fs::remove_dir(cgroup);
}

impl Host {
    async fn new(clean: &Clean) -> Self {
        let dir = clean.dir.clone();
        fs::create_dir_all(dir.join("run")).unwrap();
        mount(Some("tmpfs"), &dir.join("run"), Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
        let config = Config {
            data: dir.join("data"),
            run: dir.join("run"),
            cgroup_parent: clean.cgroup.clone(),
            executable: executable(),
            ..Config::default()
        };
        let mut host = Self { dir, config, image: Digest::of(b""), runtime: None, events: None };
        host.open().await.unwrap();
        host.image = host.load(&images::busybox(serde_json::json!({ "Cmd": ["sh"] })));
        host
    }

    pub fn load(&self, archive: &images::Archive) -> Digest {
        let loaded = self.runtime().images().load_archive(archive.tar().as_slice(), None).unwrap();
        loaded[0].manifest
    }

    pub async fn open(&mut self) -> Result<(), OpenError> {
        let (runtime, events) = Runtime::open(self.config.clone()).await?;
        (self.runtime, self.events) = (Some(runtime), Some(events));
        Ok(())
    }

    /// What remains of an agent that was killed: nothing in memory, everything else.
    pub fn kill_agent(&mut self) {
        self.events = None;
        self.runtime = None;
    }

    pub fn runtime(&self) -> &Runtime {
        self.runtime.as_ref().unwrap()
    }

    pub async fn event(&mut self) -> Event {
        let events = self.events.as_mut().unwrap();
        tokio::time::timeout(Duration::from_secs(10), events.recv()).await.expect("no event").unwrap()
    }

    pub async fn pod(&self, uid: &str) -> PodUid {
        let uid = PodUid::new(uid).unwrap();
        self.runtime().create_pod(PodSpec::new(uid.clone(), "default", "web-0")).await.unwrap();
        uid
    }

    pub fn shell(&self, name: &str, script: &str) -> ContainerSpec {
        let mut spec = ContainerSpec::new(container(name), self.image);
        spec.command = Some(["/bin/sh", "-c", script].map(str::to_owned).to_vec());
        spec
    }

    /// Starts it and waits for its end.
    pub async fn run(&self, uid: &PodUid, spec: ContainerSpec) -> Exit {
        let name = spec.name.clone();
        self.runtime().start_container(uid, spec).await.unwrap();
        self.end(uid, &name).await
    }

    pub async fn end(&self, uid: &PodUid, name: &ContainerName) -> Exit {
        // Not by its event: that is the test's.
        until(&format!("{name} ends"), async || match self.status(uid, name).await {
            ContainerStatus::Exited(exit) => Some(exit),
            _ => None,
        })
        .await
    }

    pub async fn status(&self, uid: &PodUid, name: &ContainerName) -> ContainerStatus {
        let pod = self.runtime().pod(uid).await.unwrap();
        pod.containers.iter().find(|container| container.name == *name).unwrap().status.clone()
    }

    pub async fn log(&self, uid: &PodUid, name: &str) -> String {
        self.log_with(uid, name, LogOptions::default()).await
    }

    pub async fn log_with(&self, uid: &PodUid, name: &str, options: LogOptions) -> String {
        let mut lines = self.runtime().logs(uid, &container(name), options).unwrap();
        let mut text = Vec::new();
        while let Some(line) = lines.recv().await {
            text.extend(line.render(false));
        }
        String::from_utf8(text).unwrap()
    }

    /// Runs a script in a container of a fresh pod; its output and end.
    pub async fn output(
        &self,
        uid: &str,
        change: impl FnOnce(&mut ContainerSpec),
        script: &str,
    ) -> (String, Exit) {
        let uid = self.pod(uid).await;
        let mut spec = self.shell("main", script);
        change(&mut spec);
        let exit = self.run(&uid, spec).await;
        let log = self.log(&uid, "main").await;
        (log, exit)
    }

    async fn remove_pods(&mut self) {
        if self.runtime.is_none() {
            self.open().await.unwrap();
        }
        for pod in self.runtime().pods().await {
            self.runtime().remove_pod(&pod.spec.uid).await.unwrap();
        }
    }

    /// No process, mount, namespace, cgroup or file of a pod.
    pub fn check_clean(&self, cgroup: &str) {
        assert_eq!(shims(&self.dir), Vec::<i32>::new(), "shims");
        for controller in fs::read_dir("/sys/fs/cgroup").unwrap().flatten() {
            let parent = controller.path().join(cgroup.trim_start_matches('/'));
            let left: Vec<_> =
                fs::read_dir(&parent).into_iter().flatten().flatten().map(|e| e.path()).collect();
            assert!(!left.iter().any(|path| path.is_dir()), "cgroups {left:?}");
        }
        let table = fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
        let mounts: Vec<&str> =
            table.lines().filter(|line| line.contains(&*self.dir.to_string_lossy())).collect();
        assert_eq!(mounts.len(), 1, "mounts {mounts:?}");
        for left in ["data/pods", "run/pods", "run/netns", "run/utsns", "run/ipcns", "data/staging"] {
            let left = self.dir.join(left);
            let names: Vec<_> =
                fs::read_dir(&left).into_iter().flatten().flatten().map(|e| e.path()).collect();
            assert!(names.is_empty(), "files {names:?}");
        }
    }
}

/// SKEIN_TEST_EXECUTABLE measures another build, for example an optimised one.
fn executable() -> PathBuf {
    std::env::var_os("SKEIN_TEST_EXECUTABLE").unwrap_or(env!("CARGO_BIN_EXE_runtime-host").into()).into()
}

pub fn container(name: &str) -> ContainerName {
    ContainerName::new(name).unwrap()
}
