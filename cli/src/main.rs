//! The `skein` binary: parses, runs, prints the error.
//!
//! Decides which program this is. `skein shim` and `skein oci` must start before any thread exists.

mod client;
mod commands;
mod output;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    let mut args = std::env::args_os().skip(1);
    match args.next().as_deref().and_then(std::ffi::OsStr::to_str) {
        Some("shim") => return runtime::shim::main(text(args)),
        Some("oci") => return runtime::oci::main(text(args)),
        _ => {}
    }
    let command = commands::Skein::parse();
    match commands::run(command) {
        Ok(code) => code,
        Err(error) => {
            output::error(&error);
            ExitCode::FAILURE
        }
    }
}

/// Arguments of our own processes are ours and plain text; anything else is refused as an unknown word by those who read it.
fn text(args: impl Iterator<Item = std::ffi::OsString>) -> impl Iterator<Item = String> {
    args.map(|arg| arg.to_string_lossy().into_owned())
}
