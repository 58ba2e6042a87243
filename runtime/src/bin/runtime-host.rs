//! The crate's own tests' stand-in for the `skein` binary: the same two subcommands, nothing else.

use std::process::ExitCode;

fn main() -> ExitCode {
    let mut args = std::env::args().skip(1);
    match args.next().as_deref() {
        Some("oci") => runtime::oci::main(args),
        Some("shim") => runtime::shim::main(args),
        _ => ExitCode::from(2),
    }
}
