//! The `testbed` binary: parses, runs, prints the error.
//!
//! Decides which program this is. `host-init` must start before any thread exists.

use std::io;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::time::Duration;

use clap::{Parser, Subcommand};
use testbed::lacking::Syncs;
use testbed::{bed, bench, chaos, demo, images, init, lacking, small_image};

/// Clusters to break: three hosts on one machine, made of namespaces.
#[derive(Debug, Parser)]
#[command(name = "testbed", version, about, disable_help_subcommand = true)]
struct Testbed {
    #[command(subcommand)]
    command: Subject,
}

#[derive(Debug, Subcommand)]
enum Subject {
    /// Three hosts run nginx and redis and carry on when machines are killed.
    Demo {
        /// End by itself, with exit code 0 only if every step held.
        #[arg(long)]
        once: bool,
        /// When a step fails, leave everything as it is until Ctrl-C.
        #[arg(long)]
        hold: bool,
        /// Where hosts keep their data and logs [default: .cache/demo].
        #[arg(long)]
        directory: Option<PathBuf>,
    },
    /// Make the demo's images, if they are not there, and print where they are.
    Images,
    /// Measure starts, scaling, failover and idle agents; all, or those named. `store`, and more names, measures the store beside etcd.
    #[command(after_help = bench::PARTS)]
    Bench { only: Vec<String> },
    /// Hurt a cluster by a seed while clients use its store, and judge what they were told.
    ChaosStore {
        #[arg(long, default_value_t = 60)]
        seconds: u64,
        /// [default: some number]
        #[arg(long)]
        seed: Option<u64>,
        #[arg(long, default_value_t = 3)]
        hosts: usize,
        /// How many of them vote; with fewer than hosts, who votes changes too [default: three of three or four, five of more].
        #[arg(long)]
        voters: Option<usize>,
        /// Where hosts keep their data and logs, and a failed run its history [default: .cache/chaos].
        #[arg(long)]
        directory: Option<PathBuf>,
    },
    /// Judge the history of a failed run again.
    Judge { history: PathBuf },
    /// A shell inside a host of the demo that runs, or a command there.
    Shell {
        host: String,
        /// [default: bash]
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        command: Vec<String>,
        #[arg(long)]
        directory: Option<PathBuf>,
    },
    #[command(hide = true)]
    HostInit { setup: String },
    #[command(hide = true)]
    Echo { address: String },
    #[command(hide = true)]
    WithoutNetfilter {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        command: Vec<String>,
    },
    #[command(hide = true)]
    WithoutVxlan {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        command: Vec<String>,
    },
    #[command(hide = true)]
    WithoutSync {
        /// Not before this file is there.
        #[arg(long)]
        once: Option<PathBuf>,
        #[arg(long, value_enum, default_value_t, requires = "once")]
        of: Syncs,
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        command: Vec<String>,
    },
    #[command(hide = true)]
    SlowSync {
        /// As long as this file is there.
        #[arg(long)]
        there: PathBuf,
        #[arg(long)]
        milliseconds: u64,
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        command: Vec<String>,
    },
    #[command(hide = true)]
    Hold { directory: PathBuf },
}

fn main() -> ExitCode {
    match run(Testbed::parse().command) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Subject) -> io::Result<ExitCode> {
    match command {
        Subject::Demo { once, hold, directory } => {
            let config =
                demo::DemoConfig { directory: directory.unwrap_or_else(demo::directory), once, hold };
            return Ok(demo::run(&config));
        }
        Subject::Images => {
            let made = images::ensure(&images::cache()).map_err(io::Error::other)?;
            println!("{}\n{}", made.web.display(), made.redis.display());
        }
        Subject::Bench { only } => bench(only)?,
        Subject::ChaosStore { seconds, seed, hosts, voters, directory } => {
            let directory = directory.unwrap_or_else(|| images::cache().join("chaos"));
            let seed = seed.unwrap_or_else(|| u64::from(std::process::id()));
            let config = chaos::ChaosConfig { directory, hosts, voters, seconds, seed };
            println!("{}", chaos::run(&config).map_err(io::Error::other)?.text);
        }
        Subject::Judge { history } => println!("{}", chaos::judge_again(&history).map_err(io::Error::other)?),
        Subject::Shell { host, command, directory } => {
            return Err(shell(&host, command, directory.unwrap_or_else(demo::directory)));
        }
        Subject::HostInit { setup } => init::main(&setup)?,
        Subject::Echo { address } => init::echo(&address)?,
        Subject::WithoutNetfilter { command } => return Err(lacking::without_netfilter(&command)),
        Subject::WithoutVxlan { command } => return Err(lacking::without_vxlan(&command)),
        Subject::WithoutSync { once: None, command, .. } => return Err(lacking::without_sync(&command)),
        Subject::WithoutSync { once: Some(there), of, command } => {
            return Err(lacking::without_sync_once(of, there, &command));
        }
        Subject::SlowSync { there, milliseconds, command } => {
            return Err(lacking::slow_sync(there, Duration::from_millis(milliseconds), &command));
        }
        Subject::Hold { directory } => hold(directory)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn bench(only: Vec<String>) -> io::Result<()> {
    let directory = images::cache().join("bench");
    std::fs::create_dir_all(&directory)?;
    if only.first().is_some_and(|name| name == "store") {
        return bench::store::run(&directory, &only[1..]).map_err(io::Error::other);
    }
    let archive = directory.join("small.tar");
    small_image::write(&archive)?;
    let config = bench::BenchConfig { directory, archive, image: small_image::NAME.to_owned(), only };
    bench::run(&config).map_err(io::Error::other)
}

/// Becomes a shell in all namespaces of a host, without what a host may not do. Returns only if that fails.
fn shell(host: &str, command: Vec<String>, directory: PathBuf) -> io::Error {
    let Some(pid) = bed::init_of(&directory, host) else {
        return io::Error::other(format!(
            "no host {host} runs in {}: start `make demo` first",
            directory.display()
        ));
    };
    let inside = if command.is_empty() { vec!["bash".to_owned()] } else { command };
    let limits = ["setpriv", "--bounding-set=-sys_time,-sys_boot,-sys_module"];
    let mut enter = Command::new("nsenter");
    enter.args(["--target", &pid.to_string(), "--all", "--wd=/", "--"]).args(limits).args(inside);
    enter
        .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
        .env("debian_chroot", host);
    enter.exec()
}

/// A bed for the test of a bed that is killed: prints its run and its inits, then sleeps.
fn hold(directory: PathBuf) -> io::Result<()> {
    let bed =
        testbed::Bed::create(testbed::BedConfig::new("hold", 2, directory)).map_err(io::Error::other)?;
    let pids: Vec<String> =
        bed.hosts().iter().filter_map(|h| h.init_pid().ok()).map(|p| p.to_string()).collect();
    println!("{} {}", bed.run_id(), pids.join(" "));
    loop {
        std::thread::sleep(std::time::Duration::from_secs(60));
    }
}
