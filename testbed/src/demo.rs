//! The demo: a cluster is formed, real applications run, machines are killed, nothing is lost. Each step is verified.
//!
//! Decides the story and when it failed. It acts on the cluster only as a user could: by the `skein` command inside the
//! hosts and by requests from outside.

mod application;
mod cluster;
mod failure;
mod load;
mod manifests;
mod timeline;
mod transcript;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::{SigSet, Signal};

use crate::bed::{Bed, BedConfig, BedError};
use crate::host::HostError;
use crate::images::{self, ImageError, Images};
use crate::wire::Bind;
use cluster::Cluster;
use transcript::Transcript;

/// Where the hosts see the images.
const IMAGES: &str = "/images";
const HOSTS: usize = 3;
const LOG_LINES: usize = 12;
const EVENT_LINES: usize = 20;
const INTERRUPTED: u8 = 130;

/// Settings of the demo.
#[derive(Debug, Clone)]
pub struct DemoConfig {
    pub directory: PathBuf,
    /// End by itself.
    pub once: bool,
    /// Leave everything as it is when a step fails, until Ctrl-C.
    pub hold: bool,
}

/// A step did not hold.
#[derive(Debug, thiserror::Error)]
pub enum DemoError {
    #[error("expected: {expected}\n     but: {found}")]
    Expected { expected: String, found: String },
    #[error("interrupted")]
    Interrupted,
    #[error(transparent)]
    Images(#[from] ImageError),
    #[error(transparent)]
    Bed(#[from] BedError),
    #[error(transparent)]
    Host(#[from] HostError),
    #[error("{0}")]
    Io(#[from] std::io::Error),
}

/// Where the demo keeps hosts' data and logs.
pub fn directory() -> PathBuf {
    images::cache().join("demo")
}

/// Runs the demo; the exit code tells whether every step held.
pub fn run(config: &DemoConfig) -> ExitCode {
    let begun = crate::clock::now();
    let transcript = Transcript::on_stdout(begun);
    match story(config, &transcript, begun) {
        Ok(()) => ExitCode::SUCCESS,
        Err(DemoError::Interrupted) => {
            transcript.note("interrupted; everything is taken down");
            ExitCode::from(INTERRUPTED)
        }
        Err(_) => ExitCode::FAILURE,
    }
}

fn story(config: &DemoConfig, transcript: &Transcript, begun: Instant) -> Result<(), DemoError> {
    let stop = on_interrupt().map_err(DemoError::Io)?;
    let made = prepare(config, transcript);
    let (bed, _images) = made.inspect_err(|error| transcript.failed(&error.to_string()))?;
    let cluster = Cluster { bed, transcript, stop };
    let told = steps(&cluster);
    if let Err(error) = &told
        && !matches!(error, DemoError::Interrupted)
    {
        transcript.failed(&error.to_string());
        tell_logs(&cluster, &config.directory);
        if config.hold {
            leave_running(&cluster, config);
        }
    }
    told?;
    transcript.done(&format!("every step held, in {:.1} s", begun.elapsed().as_secs_f64()));
    if !config.once {
        leave_running(&cluster, config);
    }
    Ok(())
}

fn steps(cluster: &Cluster<'_>) -> Result<(), DemoError> {
    cluster.transcript.title("A cluster");
    cluster.form()?;
    cluster.transcript.title("Applications");
    let applications = application::start(cluster)?;
    cluster.transcript.title("An agent is killed");
    failure::agent(cluster, &applications)?;
    cluster.transcript.title("The machine that leads is killed");
    let killed = failure::leader(cluster, &applications)?;
    cluster.transcript.title("The machine comes back");
    failure::comes_back(cluster, &applications, &killed)
}

fn prepare(config: &DemoConfig, transcript: &Transcript) -> Result<(Bed, Images), DemoError> {
    transcript.title("Three hosts on this machine");
    let images = transcript.step("images of Debian's nginx and redis", || {
        let images = images::ensure(&images::cache())?;
        let how =
            images.built.map_or("cached".to_owned(), |took| format!("built in {:.0} s", took.as_secs_f64()));
        Ok((how, images))
    })?;
    let bed = transcript.step("hosts, a switch, an outside", || {
        let mut bed = BedConfig::new("demo", HOSTS, &config.directory);
        let source = images.directory.clone();
        bed.binds = vec![Bind { source, target: IMAGES.into(), writable: false }];
        let bed = Bed::create(bed)?;
        let addresses: Vec<String> = bed.hosts().iter().map(|h| h.address().to_string()).collect();
        Ok((addresses.join(", "), bed))
    })?;
    Ok((bed, images))
}

/// A flag that Ctrl-C sets; a second one ends the process at once.
fn on_interrupt() -> std::io::Result<Arc<AtomicBool>> {
    let mut signals = SigSet::empty();
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        signals.add(signal);
    }
    // Before any thread starts, so that all inherit it; commands are started without it.
    signals.thread_block()?;
    let stop = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&stop);
    crate::clock::thread("demo-signals", move || {
        while signals.wait().is_ok() {
            if flag.swap(true, Ordering::Relaxed) {
                std::process::exit(i32::from(INTERRUPTED));
            }
        }
    })?;
    Ok(stop)
}

fn tell_logs(cluster: &Cluster<'_>, directory: &Path) {
    for words in [
        ["skein", "get", "pods", "-o", "wide"].as_slice(),
        &["skein", "cluster", "status"],
        &["skein", "events"],
    ] {
        let said = cluster.bed.hosts().iter().find_map(|host| host.ok(words).ok()).unwrap_or_default();
        let lines: Vec<&str> = said.lines().collect();
        cluster
            .transcript
            .log(&words.join(" "), lines.get(lines.len().saturating_sub(EVENT_LINES)..).unwrap_or_default());
    }
    for host in cluster.bed.hosts() {
        let log = cluster.bed.logs(host.name()).unwrap_or_default();
        let mut tail: Vec<&str> = log.lines().rev().take(LOG_LINES).collect();
        tail.reverse();
        cluster.transcript.log(&format!("{}, the last lines of its agent", host.name()), &tail);
    }
    let directory = directory.canonicalize().unwrap_or_else(|_| directory.to_owned());
    cluster
        .transcript
        .note(&format!("the agents' whole logs are in {}/host*/agent.log", directory.display()));
}

/// Says how to look around, then waits for Ctrl-C.
fn leave_running(cluster: &Cluster<'_>, config: &DemoConfig) {
    let program = std::env::current_exe().unwrap_or_else(|_| "testbed".into());
    let program = program.display();
    let default = config.directory == directory();
    let place = if default { String::new() } else { format!(" --directory {}", config.directory.display()) };
    let address = cluster.bed.hosts().first().map(|h| h.address().to_string()).unwrap_or_default();
    cluster.transcript.title("The cluster runs until Ctrl-C. In another terminal:");
    for line in [
        format!(
            "{program} shell{place} host1                      # then: skein get pods -o wide, skein cluster status"
        ),
        format!("{program} shell{place} host2 skein get pods -w"),
        format!("{program} shell{place} host3 skein logs job/fill"),
        format!("{program} shell{place} host1 curl http://{address}:{}", manifests::NODE_PORT),
        format!(
            "{program} shell{place} host1 sh -c 'skein kubeconfig > /tmp/kubeconfig && KUBECONFIG=/tmp/kubeconfig kubectl get nodes'"
        ),
    ] {
        cluster.transcript.line(&line);
    }
    while !cluster.stop.load(Ordering::Relaxed) {
        std::thread::sleep(Duration::from_millis(100));
    }
    cluster.transcript.note("taking everything down");
}
