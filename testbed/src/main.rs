//! The `testbed` binary: parses, runs, prints the error.
//!
//! Decides which program this is. `host-init` must start before any thread exists.

use std::process::ExitCode;

fn main() -> ExitCode {
    let mut args = std::env::args().skip(1);
    let done = match args.next().as_deref() {
        Some("host-init") => testbed::init::main(&args.next().unwrap_or_default()),
        Some("echo") => testbed::init::echo(&args.next().unwrap_or_default()),
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
