//! Creations that fail or are killed: they leave nothing behind, and leave what belongs to others alone.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use linux::cgroup::Cgroup;
use serde_json::{Value, json};
use tempfile::TempDir;
use testkit::{eventually, is_root, run};

use crate::cgroups::named;
use crate::runtime_bundle::{Runtime, bundle};

/// A bundle whose container uses the cgroup of this name.
fn bundle_in(name: &str, program: &str) -> TempDir {
    bundle(|spec| {
        spec["process"]["args"] = json!([program, "1000"]);
        spec["linux"]["cgroupsPath"] = json!(format!("/{name}"));
    })
}

#[test]
fn a_creation_that_fails_leaves_the_cgroups_that_it_found() {
    if !is_root("cgroups") {
        return;
    }
    let runtime = Runtime::ours();
    let name = runtime.id("found");
    let bundle = bundle_in(&name, "/none-such");
    let path = bundle.path().display().to_string();
    let fail = || runtime.run(&["run", "--bundle", &path, &runtime.id("fails")]).expect_stderr("none-such");
    assert_ne!(fail().code, 0);
    assert_eq!(named(&name), Vec::<PathBuf>::new(), "what was made is gone");
    let whole = Cgroup::share(&format!("/{name}")).expect("root may make cgroups");
    let (all, one) = (named(&name), whole.locations().into_values().next().expect("there is a tree"));
    assert_ne!(fail().code, 0);
    assert_eq!(named(&name), all, "what was there stays");
    whole.delete().expect("empty");
    std::fs::create_dir(&one).expect("just removed");
    assert_ne!(fail().code, 0);
    assert_eq!(named(&name), std::slice::from_ref(&one), "in one tree, too");
    std::fs::remove_dir(one).expect("empty");
}

/// The first process would never run, and the runtime would wait for it for ever.
#[test]
fn a_frozen_cgroup_is_refused() {
    if !is_root("cgroups") {
        return;
    }
    let runtime = Runtime::ours();
    for below in ["", "/below"] {
        let name = runtime.id("frozen");
        let frozen = Cgroup::share(&format!("/{name}")).expect("root may make cgroups");
        frozen.freeze().expect("root may");
        let bundle = bundle_in(&format!("{name}{below}"), "true");
        let path = bundle.path().display().to_string();
        let create = runtime.command(&["run", "--bundle", &path, &runtime.id("stopped")]);
        let mut timed = Command::new("busybox");
        timed.args(["timeout", "-s", "KILL", "60"]).arg(create.get_program()).args(create.get_args());
        run(timed.stdin(Stdio::null())).expect_code(1).expect_stderr("thaw").expect_stderr(&name);
        assert_eq!(runtime.run(&["list", "--quiet"]).ok().text(), "");
        frozen.thaw().expect("root may");
        frozen.delete().expect("nobody is in it");
    }
}

/// The limit on open files grows until the container runs, so that each call that opens a file fails once.
#[test]
fn a_creation_that_lacks_descriptors_leaves_nothing() {
    if !is_root("cgroups") {
        return;
    }
    let runtime = Runtime::ours();
    let name = runtime.id("few");
    let bundle = bundle_in(&name, "true");
    let path = bundle.path().display().to_string();
    let mut failed = 0;
    let done = (3..200).find(|limit| {
        let id = runtime.id("few");
        let create = runtime.command(&["run", "--bundle", &path, &id]);
        let mut limited = Command::new("prlimit");
        limited.arg(format!("--nofile={limit}")).arg(create.get_program()).args(create.get_args());
        let done = run(limited.stdin(Stdio::null()));
        assert_eq!(named(&name), Vec::<PathBuf>::new(), "{limit} files: {done}");
        assert_eq!(runtime.run(&["list", "--quiet"]).ok().text(), "", "{limit} files: {done}");
        failed += u32::from(done.stderr.contains("too many open files") && done.stderr.contains(&id));
        done.code == 0
    });
    assert!(done.is_some() && failed > 5, "{done:?}, {failed}");
}

/// The runtime is killed when it would make its cgroup, which another container uses.
#[test]
fn a_creation_that_is_cut_off_leaves_the_cgroup_of_another_container() {
    if !is_root("cgroups") {
        return;
    }
    let runtime = Runtime::ours();
    let name = runtime.id("theirs");
    let theirs = Cgroup::share(&format!("/{name}")).expect("root may make cgroups");
    let mut process = Command::new("sleep").arg("1000").spawn().expect("it starts");
    theirs.add(process.id()).expect("it lives");
    let bundle = bundle_in(&name, "sleep");
    let path = bundle.path().display().to_string();
    let id = runtime.id("late");
    let create = runtime.command(&["create", "--bundle", &path, &id]);
    let mut killed = Command::new("strace");
    killed.args(["-f", "-qq", "-o", "/dev/null", "-e", "inject=mkdir,mkdirat:signal=SIGKILL"]);
    for place in theirs.locations().into_values() {
        killed.arg("-P").arg(place);
    }
    killed.arg(create.get_program()).args(create.get_args()).stdin(Stdio::null());
    assert_eq!(run(&mut killed).code, 137);
    runtime.run(&["create", "--bundle", &path, &id]).expect_code(1).expect_stderr("already exists");
    runtime.run(&["delete", "--force", &id]).ok();
    assert!(process.try_wait().expect("a child of ours").is_none(), "it lives");
    assert_eq!(theirs.processes().expect("it is there"), [process.id()]);
    process.kill().and_then(|()| process.wait()).expect("a child of ours");
    theirs.delete().expect("nobody is in it");
}

/// The cgroup was empty, so that another container could use it.
#[test]
fn a_container_that_has_ended_leaves_its_cgroup_to_another() {
    if !is_root("cgroups") {
        return;
    }
    let runtime = Runtime::ours();
    let name = runtime.id("shared");
    let start = |program: &str| {
        let bundle = bundle_in(&name, program);
        let (path, id) = (bundle.path().display().to_string(), runtime.id(program));
        let mut started = runtime.command(&["run", "-d", "--bundle", &path, &id]);
        started.stdout(Stdio::null()).stderr(Stdio::null());
        assert!(started.status().expect("it runs").success(), "{program}");
        (id, bundle)
    };
    let status = |id: &str| -> Value {
        let state: Value = serde_json::from_str(&runtime.run(&["state", id]).ok().stdout).expect("JSON");
        state["status"].clone()
    };
    let (first, _kept) = start("true");
    eventually("the first has ended", || (status(&first) == "stopped").then_some(()));
    let (second, _kept) = start("sleep");
    runtime.run(&["kill", &first, "KILL"]).expect_code(1).expect_stderr("container not running");
    runtime.run(&["kill", "--all", &first, "KILL"]).ok();
    runtime.run(&["delete", &first]).ok();
    assert_eq!(status(&second), "running");
    runtime.run(&["delete", "--force", &second]).ok();
    assert!(Cgroup::open(&format!("/{name}")).is_err(), "it goes with the last");
}
