//! Embeds the shim and `hello`, two small static programs, into `hoist`, so that there is one file to install.
//!
//! `cargo xtask build` builds both first and passes their paths in `HOIST_SHIM` and `HOIST_HELLO`. A plain `cargo
//! build` embeds neither; `hoist` then looks for them in its own directory and in `PATH`.

use std::path::PathBuf;
use std::{env, fs};

use sha2::{Digest, Sha256};

fn main() {
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    for (variable, name) in [("HOIST_SHIM", "shim"), ("HOIST_HELLO", "hello")] {
        println!("cargo::rerun-if-env-changed={variable}");
        let bytes = match env::var_os(variable) {
            Some(path) => {
                println!("cargo::rerun-if-changed={}", path.display());
                fs::read(&path).unwrap_or_else(|error| panic!("{variable}={}: {error}", path.display()))
            }
            None => Vec::new(),
        };
        let hash = Sha256::digest(&bytes);
        let version: String = hash.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
        println!("cargo::rustc-env={}_VERSION={version}", name.to_uppercase());
        fs::write(out.join(name), bytes).expect("OUT_DIR is writable");
    }
}
