//! Fuzzing with libFuzzer, whose instrumentation comes with the compiler: no other tool is needed.
//!
//! ```text
//! cargo xtask fuzz                     every target, a minute each
//! cargo xtask fuzz layer archive       these targets
//! cargo xtask fuzz seconds=3600 layer  for an hour
//! ```
//!
//! New interesting inputs of a target are kept in `fuzz/corpus/TARGET`, which git ignores; inputs on which it failed in
//! `fuzz/artifacts/TARGET`. When the bug is fixed, its input becomes a seed.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::{Outcome, cargo, packages, step, workspace_root};

/// The default time for each target, in seconds.
const SECONDS: u32 = 60;
/// The memory above which a target fails, in MB.
const MEMORY_MAX: u32 = 2048;
/// With an explicit target, cargo does not instrument build scripts and macros.
const TARGET: &str = "x86_64-unknown-linux-gnu";
/// Coverage for libFuzzer (SanitizerCoverage), and AddressSanitizer.
const FLAGS: &[&str] = &[
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
    "--cfg",
    "fuzzing",
    "-Zsanitizer=address",
    "-Cdebug-assertions",
];

pub(crate) fn fuzz(words: &[String]) -> Outcome {
    packages::need("c++", "g++", "a C++ compiler, for libFuzzer")?;
    let folder = workspace_root().join("fuzz");
    let mut seconds = SECONDS;
    let mut wanted = Vec::new();
    for word in words {
        match word.strip_prefix("seconds=") {
            Some(number) => seconds = number.parse().map_err(|_| format!("{word}: not a number"))?,
            None => wanted.push(word.clone()),
        }
    }
    let known = targets(&folder)?;
    if let Some(unknown) = wanted.iter().find(|name| !known.contains(name)) {
        return Err(format!("{unknown} is no target; there are {}", known.join(", ")));
    }
    // Fuzz with the versions of dependencies that the product is built with.
    fs::copy(workspace_root().join("Cargo.lock"), folder.join("Cargo.lock"))
        .map_err(|error| format!("copy Cargo.lock: {error}"))?;
    let mut build = cargo("build");
    build.args(["--release", "--target", TARGET]).current_dir(&folder).env_remove("CARGO_TARGET_DIR");
    // Sanitizer flags are unstable: RUSTC_BOOTSTRAP lets the stable compiler take them.
    build.env("RUSTFLAGS", FLAGS.join(" ")).env("RUSTC_BOOTSTRAP", "1");
    step("build the fuzz targets", &mut build)?;
    for name in if wanted.is_empty() { known } else { wanted } {
        run(&folder, &name, seconds)?;
    }
    Ok(())
}

/// The names of all targets, sorted.
fn targets(folder: &Path) -> Outcome<Vec<String>> {
    let entries =
        fs::read_dir(folder.join("fuzz_targets")).map_err(|error| format!("list the targets: {error}"))?;
    let mut names: Vec<String> =
        entries.filter_map(|entry| Some(entry.ok()?.path().file_stem()?.to_str()?.to_owned())).collect();
    names.sort();
    Ok(names)
}

fn run(folder: &Path, name: &str, seconds: u32) -> Outcome {
    let corpus = folder.join("corpus").join(name);
    let artifacts = folder.join("artifacts").join(name);
    for made in [&corpus, &artifacts] {
        fs::create_dir_all(made).map_err(|error| format!("create {}: {error}", made.display()))?;
    }
    let mut fuzzer = Command::new(folder.join("target").join(TARGET).join("release").join(name));
    fuzzer.arg(format!("-max_total_time={seconds}")).arg(format!("-rss_limit_mb={MEMORY_MAX}"));
    fuzzer.args(["-timeout=20", "-print_final_stats=1"]);
    fuzzer.arg(format!("-artifact_prefix={}/", artifacts.display()));
    fuzzer.arg(corpus).arg(folder.join("seeds").join(name));
    step(&format!("fuzz {name}"), &mut fuzzer)
}
