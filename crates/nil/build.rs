//! Builds the test guests and puts their images where `src/images.rs` includes them.

#[path = "../../guests/compile.rs"]
mod compile;

use std::path::{Path, PathBuf};

fn main() {
    let root = Path::new(&variable("CARGO_MANIFEST_DIR")).join("../..");
    let out = PathBuf::from(variable("OUT_DIR"));
    let watched = [
        "guests/Cargo.toml",
        "guests/Cargo.lock",
        "guests/compile.rs",
        "guests/link.ld",
        "guests/src",
        "crates/guest-abi",
    ];
    for path in watched {
        println!("cargo:rerun-if-changed={}", root.join(path).display());
    }
    let rustc = std::env::var_os("RUSTC");
    let images = compile::compile(variable("CARGO"), rustc, &root.join("guests"), &out.join("guests"));
    for guest in compile::GUESTS {
        if let Err(error) = std::fs::copy(images.join(guest), out.join(guest)) {
            panic!("the guest {guest} was built but cannot be copied to {}: {error}", out.display());
        }
    }
}

fn variable(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| panic!("cargo sets {name} for build scripts"))
}
