//! The `testbed` binary: parses, runs, prints the error.
//!
//! Decides which program this is. `host-init` must start before any thread exists.

use std::process::ExitCode;

fn main() -> ExitCode {
    let mut args = std::env::args().skip(1);
    let done = match args.next().as_deref() {
        Some("host-init") => testbed::init::main(&args.next().unwrap_or_default()),
        Some("echo") => testbed::init::echo(&args.next().unwrap_or_default()),
        Some("hold") => hold(&args.next().unwrap_or_default()),
        _ => Err(std::io::Error::other("usage: testbed images | demo [--once] | shell HOST")),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

/// A bed for the test of a bed that is killed: prints its run and its inits, then sleeps.
fn hold(directory: &str) -> std::io::Result<()> {
    let bed = testbed::Bed::create(testbed::BedConfig::new("hold", 2, directory)).map_err(std::io::Error::other)?;
    let pids: Vec<String> = bed.hosts().iter().filter_map(|h| h.init_pid().ok()).map(|p| p.to_string()).collect();
    println!("{} {}", bed.run_id(), pids.join(" "));
    loop {
        std::thread::sleep(std::time::Duration::from_secs(60));
    }
}
