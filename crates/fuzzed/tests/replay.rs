//! Replays the seeds of all fuzz targets, and random mutations of them, through the same functions that
//! the fuzzers call: a target that does not compile or a finding that comes back is seen in every test run.

use std::path::{Path, PathBuf};

use fuzzed::TARGETS;

/// Changed copies of each seed. Importing archives takes longest.
fn copies(target: &str) -> u64 {
    match target {
        "archive" => 10,
        "layer" | "recipe" => 40,
        _ => 500,
    }
}

fn seeds_of(target: &str) -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/seeds").join(target);
    let entries = std::fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut seeds: Vec<PathBuf> = entries.map(|entry| entry.expect("a readable folder").path()).collect();
    seeds.sort();
    seeds
}

/// Marsaglia's xorshift: the same changes on every run.
fn next(state: &mut u64) -> usize {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    usize::try_from(*state >> 16).expect("48 bits")
}

/// Changes, takes out, doubles or cuts off a few bytes.
fn change(bytes: &mut Vec<u8>, state: &mut u64) {
    for _ in 0..=next(state) % 4 {
        if bytes.is_empty() {
            return;
        }
        let at = next(state) % bytes.len();
        let end = (at + 1 + next(state) % 32).min(bytes.len());
        match next(state) % 5 {
            0 => bytes[at] ^= 1 << (next(state) % 8),
            1 => bytes[at] = u8::try_from(next(state) % 256).expect("a byte"),
            2 => drop(bytes.drain(at..end)),
            3 => {
                let copy = bytes[at..end].to_vec();
                let to = next(state) % bytes.len();
                bytes.splice(to..to, copy);
            }
            _ => bytes.truncate(at),
        }
    }
}

fn replay(target: &str) {
    let seeds = seeds_of(target);
    assert!(!seeds.is_empty(), "{target} has no seeds");
    for seed in seeds {
        let bytes = std::fs::read(&seed).expect("a readable seed");
        println!("{}", seed.display());
        fuzzed::run(target, &bytes);
        let mut state = 0x9e37_79b9_7f4a_7c15 ^ bytes.len() as u64;
        for copy in 0..copies(target) {
            let mut changed = bytes.clone();
            change(&mut changed, &mut state);
            println!("copy {copy}");
            fuzzed::run(target, &changed);
        }
    }
}

#[test]
fn every_target_handles_its_seeds_and_mutations() {
    for (target, _) in TARGETS.iter().filter(|(target, _)| *target != "layer" && *target != "archive") {
        replay(target);
    }
}

#[test]
fn layers_and_archives_handle_their_seeds_and_mutations() {
    replay("layer");
    replay("archive");
}

#[test]
fn every_folder_of_seeds_has_a_target() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/seeds");
    for entry in std::fs::read_dir(folder).expect("the seeds are there") {
        let name = entry.expect("a readable folder").file_name();
        assert!(TARGETS.iter().any(|(target, _)| **target == *name), "{name:?}");
    }
}
