//! Known ways out of a container, each tried for real.
//!
//! Each test repeats an attack (CVE numbers name the reports) and looks for a trace of success on the host, or in what
//! the container saw. A bundle may also be refused, as long as nothing of the host has changed.

mod descriptors;
mod entering;
mod kernel;
mod keyrings;
mod links;
mod places;
mod privileges;
mod program;
mod shim;
mod traced;
mod users;

use std::fs::File;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::{Value, json};
use tempfile::TempDir;
use testkit::Finished;

use crate::runtime_bundle::{Runtime, read_text};

/// Runs a bundle with a deadline, and returns its output.
#[track_caller]
fn attempt(runtime: &Runtime, bundle: &TempDir) -> Finished {
    let path = bundle.path().display().to_string();
    let done = runtime.run(&["run", "--bundle", &path, &runtime.id("escape")]);
    assert_eq!(runtime.run(&["list", "-q"]).ok().text(), "", "nothing is left\n{done}");
    done
}

pub(crate) fn add_capabilities(spec: &mut Value, names: &[&str]) {
    for set in ["bounding", "effective", "permitted"] {
        let list = spec["process"]["capabilities"][set].as_array_mut().expect("capabilities");
        list.extend(names.iter().map(|name| json!(name)));
    }
}

/// A container that runs until it is dropped.
struct Running<'a> {
    runtime: &'a Runtime,
    id: String,
}

impl<'a> Running<'a> {
    fn start(runtime: &'a Runtime, bundle: &TempDir) -> Running<'a> {
        let id = runtime.id("running");
        let path = bundle.path().display().to_string();
        let output = bundle.path().join("output");
        let output = File::create(output).expect("a writable bundle");
        let mut create = runtime.command(&["run", "--detach", "--bundle", &path, &id]);
        create.stdout(output.try_clone().expect("a file")).stderr(output);
        let status = create.status().expect("it runs");
        assert!(status.success(), "{}", read_text(&bundle.path().join("output")));
        Running { runtime, id }
    }

    #[track_caller]
    fn exec(&self, words: &[&str]) -> Finished {
        self.exec_with(&[], words)
    }

    #[track_caller]
    fn exec_with(&self, flags: &[&str], words: &[&str]) -> Finished {
        self.runtime.run(&[&["exec"], flags, &[&self.id], words].concat())
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.runtime.run(&["delete", "--force", &self.id]);
    }
}

/// Repeats an attempt at least `least` times, until one has met the race and one has not: if all do, or none, the test
/// has shown nothing.
#[track_caller]
fn until_met(least: u32, mut attempt: impl FnMut() -> bool) {
    let (mut met, mut missed) = (0u32, 0u32);
    while met + missed < least || met == 0 || missed == 0 {
        assert!(met + missed < 500, "{met} of 500 attempts met the race");
        if attempt() {
            met += 1;
        } else {
            missed += 1;
        }
    }
    println!("{met} of {} attempts met the race", met + missed);
}

/// Repeats an action on its own thread.
struct Race {
    stop: std::sync::Arc<AtomicBool>,
    thread: std::thread::JoinHandle<()>,
}

impl Race {
    fn start(mut act: impl FnMut() + Send + 'static) -> Race {
        let stop = std::sync::Arc::new(AtomicBool::new(false));
        let asked = std::sync::Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            while !asked.load(Ordering::Relaxed) {
                act();
            }
        });
        Race { stop, thread }
    }

    fn stop(self) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("the thread does not panic");
    }
}
