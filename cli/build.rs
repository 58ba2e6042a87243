//! Links the binary at a fixed address: a shim per pod would else have its own copy of every relocated page
//! (docs/decisions/0011).

fn main() {
    println!("cargo::rustc-link-arg-bins=-no-pie");
    println!("cargo::rerun-if-changed=build.rs");
}
