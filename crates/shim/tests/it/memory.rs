//! What a shim with one sleeping container costs. Promises of `docs/design/shim.md`, checked on the
//! release build when it is there.

use std::collections::BTreeMap;
use std::path::Path;

use crate::fixture::{Config, Shim, is_possible};

/// KiB by name, from `smaps_rollup`.
fn memory(pid: u32) -> BTreeMap<String, u64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
    text.lines()
        .filter_map(|line| {
            let (name, rest) = line.split_once(':')?;
            Some((name.to_owned(), rest.split_whitespace().next()?.parse().ok()?))
        })
        .collect()
}

#[test]
fn memory_does_not_grow_with_processes_that_came_and_went() {
    if !is_possible() {
        return;
    }
    let mut shim = Shim::run(&Config::sleep());
    let round = |shim: &mut Shim, first: u32| {
        for number in first..first + 100 {
            let id = format!("e{number}");
            shim.exec_and_wait(&id, "true");
            shim.delete(&id).unwrap();
        }
        memory(shim.pid)["Private_Dirty"]
    };
    let before = round(&mut shim, 0);
    let after = round(&mut shim, 100);
    println!("private memory after 100 and 200 processes: {before} and {after} KiB");
    assert!(after <= before + 64, "{before} KiB, then {after} KiB");
    assert!(std::fs::read_dir(format!("/proc/{}/fd", shim.pid)).unwrap().count() < 20);
    shim.finish();
}

#[test]
fn an_idle_shim_is_one_thread() {
    if !is_possible() {
        return;
    }
    let shim = Shim::run(&Config::sleep());
    let status = std::fs::read_to_string(format!("/proc/{}/status", shim.pid)).unwrap();
    assert!(status.contains("Threads:\t1\n"), "{status}");
    let figures = memory(shim.pid);
    println!("idle shim ({}): Rss {} KiB, Pss {} KiB", crate::fixture::SHIM, figures["Rss"], figures["Pss"]);
    shim.finish();
}

#[test]
fn the_program_is_small() {
    let program = Path::new(crate::fixture::SHIM);
    let shipped = testkit::repository()
        .join("target/x86_64-unknown-linux-musl/shim")
        .join(program.file_name().unwrap());
    let Ok(metadata) = std::fs::metadata(&shipped) else {
        println!("skipped: needs {}", shipped.display());
        return;
    };
    println!("{}: {} bytes", shipped.display(), metadata.len());
    assert!(metadata.len() <= 2 << 20);
}
