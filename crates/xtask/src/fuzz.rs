//! Fuzzing without further tools: the instrumentation that libFuzzer needs comes with the compiler.
//!
//! ```text
//! cargo xtask fuzz                     every target, a minute each
//! cargo xtask fuzz layer archive       these
//! cargo xtask fuzz seconds=3600 layer  for so long
//! ```
//!
//! What is new in what a target was fed stays in `fuzz/corpus/TARGET`, which git does not know; an input on which
//! it failed in `fuzz/artifacts/TARGET`. One that was mended becomes a seed.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::{Outcome, cargo, packages, step, workspace_root};

/// Seconds of each target, unless something else is said.
const SECONDS: u32 = 60;
/// Memory above which a target has failed, in MB.
const MEMORY_MAX: u32 = 2048;
/// With a target named, build scripts and macros are not instrumented.
const TARGET: &str = "x86_64-unknown-linux-gnu";
/// Coverage as libFuzzer counts it (SanitizerCoverage), and AddressSanitizer.
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
    // The versions that the product is built of.
    fs::copy(workspace_root().join("Cargo.lock"), folder.join("Cargo.lock"))
        .map_err(|error| format!("copy Cargo.lock: {error}"))?;
    let mut build = cargo("build");
    build.args(["--release", "--target", TARGET]).current_dir(&folder).env_remove("CARGO_TARGET_DIR");
    // The flags of a sanitizer are not stable; the compiler is the same.
    build.env("RUSTFLAGS", FLAGS.join(" ")).env("RUSTC_BOOTSTRAP", "1");
    step("build the fuzz targets", &mut build)?;
    for name in if wanted.is_empty() { known } else { wanted } {
        run(&folder, &name, seconds)?;
    }
    Ok(())
}

/// The targets by their names, in order.
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
