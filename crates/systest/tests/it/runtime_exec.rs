//! `exec` and its flags: which parts of the spec's `process` they replace. Compared with Debian's runc.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use serde_json::{Value, json};
use tempfile::TempDir;
use testkit::{Finished, eventually, run};

use crate::cgroups::{self, HIERARCHIES};
use crate::runtime_bundle::{Runtime, bundle, read_spec, script};

/// A container of one runtime, whose program sleeps.
struct Sleeping<'a> {
    runtime: &'a Runtime,
    id: String,
}

impl<'a> Sleeping<'a> {
    fn start(runtime: &'a Runtime, bundle: &TempDir, id: &str) -> Sleeping<'a> {
        let path = bundle.path().display().to_string();
        let mut command = runtime.command(&["run", "--detach", "--bundle", &path, id]);
        assert!(command.stdout(Stdio::null()).stderr(Stdio::null()).status().expect("it runs").success());
        Sleeping { runtime, id: id.to_owned() }
    }

    #[track_caller]
    fn exec(&self, flags: &[&str], script: &str) -> Finished {
        self.runtime.run(&[&["exec"], flags, &[&self.id, "sh", "-c", script]].concat())
    }
}

impl Drop for Sleeping<'_> {
    fn drop(&mut self) {
        self.runtime.run(&["delete", "--force", &self.id]);
    }
}

#[test]
fn who_enters_differs_in_what_is_asked_for_alone() {
    let look = "id -u; id -g; id -G; grep -E '^(Cap|NoNewPrivs)' /proc/self/status; pwd; echo $X $HOME";
    let few = json!(["CAP_CHOWN", "CAP_KILL"]);
    let plain = |spec: &mut Value| spec["process"]["noNewPrivileges"] = json!(false);
    let heir = |spec: &mut Value| {
        plain(spec);
        spec["process"]["capabilities"] =
            json!({"bounding": few, "effective": few, "permitted": few, "inheritable": few});
    };
    type Row<'a> = (&'a dyn Fn(&mut Value), &'a [&'a str], &'a str);
    let strict = |_: &mut Value| ();
    let rows: [Row<'_>; 14] = [
        (&plain, &[], "1000\n1001\n1001 9\n"),
        (&plain, &["--user", "5"], "5\n1001\n1001 9\n"),
        (&plain, &["--user", "5:6"], "5\n6\n6 9\n"),
        (&plain, &["--user", "0"], "0\n1001\n"),
        (&plain, &["-g", "7", "-g", "8"], "1000\n1001\n1001 7 8 9\n"),
        (&plain, &["--user", "0:0", "--cap", "CAP_SYS_ADMIN"], "0\n0\n"),
        (&heir, &["--cap", "CAP_CHOWN"], "1000\n1001\n"),
        (&heir, &["--user", "0:0", "-c", "CAP_CHOWN"], "0\n0\n"),
        (&plain, &["--no-new-privs"], "1000\n1001\n"),
        (&strict, &[], "1000\n1001\n"),
        (&strict, &["--no-new-privs=false"], "1000\n1001\n"),
        // An empty value is as if the flag were missing.
        (&plain, &["--cwd", "", "--apparmor", "", "--process-label", "", "--user", ""], "1000\n1001\n"),
        (&plain, &["--cwd", "/bin", "--env", "X=1", "--env", "X=2"], "1000\n1001\n"),
        (&plain, &["-e", "HOME=/nowhere"], "1000\n1001\n"),
    ];
    for (change, flags, begin) in rows {
        let [ours, runcs] = Runtime::both().map(|runtime| {
            let bundle = bundle(|spec| {
                script(spec, "sleep 1000");
                spec["process"]["user"] = json!({"uid": 1000, "gid": 1001, "additionalGids": [9]});
                change(spec);
            });
            let id = runtime.id("flags");
            let sleeping = Sleeping::start(&runtime, &bundle, &id);
            sleeping.exec(flags, look).ok().stdout
        });
        assert_eq!(ours, runcs, "{flags:?}");
        assert!(ours.starts_with(begin), "{flags:?}: {ours}");
        let has_ambient = ours.contains("CapAmb:\t0000000000000001");
        assert_eq!(has_ambient, flags.contains(&"CAP_CHOWN"), "{flags:?}: {ours}");
    }
}

/// Few hosts have resctrl, so a directory stands for the group that the state names.
#[test]
fn who_enters_is_in_the_class_of_the_container() {
    let runtime = Runtime::ours();
    let bundle = bundle(|spec| script(spec, "sleep 1000"));
    let id = runtime.id("class");
    let sleeping = Sleeping::start(&runtime, &bundle, &id);
    let class = TempDir::new().expect("a temporary directory");
    let file = runtime.root().join(&id).join("state.json");
    let mut state: Value = serde_json::from_slice(&fs::read(&file).expect("a state")).expect("JSON");
    assert!(state.get("resctrl_groups").is_none(), "it has no class: {state}");
    state["resctrl_groups"] = json!([class.path()]);
    fs::write(&file, state.to_string()).expect("ours");
    sleeping.exec(&[], "true").ok();
    let put = fs::read_to_string(class.path().join("tasks")).expect("somebody was put there");
    assert!(put.parse::<u32>().is_ok_and(|pid| pid > 0), "{put}");
    // An exec succeeds even if the group is gone.
    drop(class);
    sleeping.exec(&[], "true").ok();
}

/// `getenv` returns the first match.
#[test]
fn each_variable_is_there_once_with_its_last_value() {
    let [ours, runcs] = Runtime::both().map(|runtime| {
        let bundle = bundle(|spec| {
            spec["process"]["args"] = json!(["busybox", "env"]);
            spec["process"]["env"] = json!(["PATH=/bin", "A=1", "B=2", "A=3", "C="]);
        });
        let path = bundle.path().display().to_string();
        let lines = |done: Finished| {
            let mut lines: Vec<String> = done.ok().stdout.lines().map(str::to_owned).collect();
            lines.sort();
            lines.join(" ")
        };
        let first = lines(runtime.run(&["run", "--bundle", &path, &runtime.id("variables")]));
        let mut spec = read_spec(bundle.path());
        script(&mut spec, "sleep 1000");
        fs::write(bundle.path().join("config.json"), spec.to_string()).expect("a writable bundle");
        let id = runtime.id("variables");
        let _sleeping = Sleeping::start(&runtime, &bundle, &id);
        let flags = ["exec", "--env", "A=4", "--env", "D=x=y", "--env", "B=", &id, "busybox", "env"];
        let further = lines(runtime.run(&flags));
        for wrong in ["D", "=1", ""] {
            let refused = runtime.run(&["exec", "--env", wrong, &id, "true"]).expect_code(255);
            assert!(refused.stderr.contains("env"), "{}: {wrong:?}: {refused}", runtime.name);
        }
        (first, further)
    });
    assert_eq!(ours, runcs);
    assert_eq!(ours.1, "A=4 B= C= D=x=y HOME=/ PATH=/bin");
}

/// If the process file names no capabilities, the process has those of the first process. For labels see `labels` and
/// `selinux`.
#[test]
fn who_enters_without_capabilities_of_its_own_has_the_containers() {
    let rows: [(Value, &str); 3] = [
        (Value::Null, "CapEff:\t0000000020000420\n"),
        (json!({}), "CapEff:\t0000000000000000\n"),
        (json!({"bounding": ["CAP_CHOWN"]}), "CapBnd:\t0000000000000001\n"),
    ];
    for (capabilities, expected) in rows {
        let [ours, runcs] = Runtime::both().map(|runtime| {
            let bundle = bundle(|spec| script(spec, "sleep 1000"));
            let id = runtime.id("silent");
            let _sleeping = Sleeping::start(&runtime, &bundle, &id);
            let mut process = json!({"args": ["/bin/grep", "^Cap", "/proc/self/status"], "cwd": "/"});
            process["capabilities"] = capabilities.clone();
            let file = bundle.path().join("process.json");
            fs::write(&file, process.to_string()).expect("a writable bundle");
            runtime.run(&["exec", "--process", &file.display().to_string(), &id]).ok().stdout
        });
        assert_eq!(ours, runcs, "{capabilities}");
        assert!(ours.contains(expected), "{capabilities}: {ours}");
    }
}

/// The process would run outside of the container's limits.
#[test]
fn an_exec_into_a_missing_cgroup_is_refused() {
    let _hierarchies = HIERARCHIES.read();
    let runtime = Runtime::ours();
    let id = runtime.id("nowhere");
    let bundle = bundle(|spec| {
        script(spec, "sleep 1000");
        spec["linux"]["cgroupsPath"] = json!(format!("/{id}"));
    });
    let sleeping = Sleeping::start(&runtime, &bundle, &id);
    let has_version_1 = fs::exists("/sys/fs/cgroup/pids/cgroup.procs").unwrap_or(false);
    let rows: &[&str] =
        if has_version_1 { &["nosuch", "memory:nosuch", "devices:nosuch"] } else { &["nosuch"] };
    for cgroup in rows {
        let refused = sleeping.exec(&["--cgroup", cgroup], "echo ran");
        assert!(refused.code != 0 && refused.stdout.is_empty(), "{cgroup}: {refused}");
        assert!(refused.stderr.contains("/nosuch"), "{cgroup}: {refused}");
        // runc's words.
        refused.expect_stderr(" adding pid ").expect_stderr("no such file or directory");
    }
    let refused = sleeping.exec(&["--cgroup", "nosuch:/"], "echo ran");
    assert!(refused.code != 0 && refused.stdout.is_empty(), "{refused}");
    refused.expect_stderr("unknown controller \"nosuch\"");
}

/// Into cgroups below the container's, in all hierarchies or in those of some controllers.
#[test]
fn who_enters_is_in_the_cgroups_that_are_named() {
    let _hierarchies = HIERARCHIES.read();
    let rows: [&[&str]; 4] = [
        &[],
        &["--cgroup", "one"],
        &["--cgroup", "memory:one", "--cgroup=pids:/two"],
        &["--cgroup", "pids:two"],
    ];
    let has_version_1 = fs::exists("/sys/fs/cgroup/pids/cgroup.procs").unwrap_or(false);
    for flags in rows {
        if flags.iter().any(|flag| flag.contains(':')) && !has_version_1 {
            println!("skipped: {flags:?} is for cgroups of version 1");
            continue;
        }
        let [ours, runcs] = Runtime::both().map(|runtime| {
            let id = runtime.id("placed");
            let bundle = bundle(|spec| {
                script(spec, "sleep 1000");
                spec["linux"]["cgroupsPath"] = json!(format!("/{id}"));
                let namespaces = spec["linux"]["namespaces"].as_array_mut().expect("namespaces");
                namespaces.retain(|namespace| namespace["type"] != "cgroup");
            });
            let sleeping = Sleeping::start(&runtime, &bundle, &id);
            let trees = run(Command::new("find").args(["/sys/fs/cgroup", "-type", "d", "-name", &id])).stdout;
            for tree in trees.lines() {
                for below in ["one", "two"] {
                    fs::create_dir(format!("{tree}/{below}")).expect("root may");
                    // Without these, a cpuset cgroup of version 1 takes no process.
                    for file in ["cpuset.cpus", "cpuset.mems"] {
                        let from = format!("{tree}/{file}");
                        if has_version_1 && fs::exists(&from).unwrap_or(false) {
                            let set = fs::read_to_string(&from).expect("root may");
                            fs::write(format!("{tree}/{below}/{file}"), set).expect("root may");
                        }
                    }
                }
            }
            // runc does not use the hierarchy of version 2 on hosts that have both.
            let look = if has_version_1 { "grep -v ^0: /proc/self/cgroup" } else { "cat /proc/self/cgroup" };
            sleeping.exec(flags, look).ok().stdout.replace(&id, "ID")
        });
        assert_eq!(ours, runcs, "{flags:?}");
        assert_eq!(
            ours.contains("/ID/one"),
            flags.iter().any(|flag| flag.contains("one")),
            "{flags:?}: {ours}"
        );
        assert_eq!(
            ours.contains("/ID/two"),
            flags.iter().any(|flag| flag.contains("two")),
            "{flags:?}: {ours}"
        );
    }
}

/// An exec that exceeds the limit on processes is told the limit, and the flag that raises it.
#[test]
fn a_container_that_is_full_says_which_limit_is_in_the_way() {
    let runtime = Runtime::ours();
    let bundle = bundle(|spec| {
        script(spec, "sleep 1000");
        spec["linux"]["resources"]["pids"] = json!({"limit": 2});
    });
    let id = runtime.id("full");
    let sleeping = Sleeping::start(&runtime, &bundle, &id);
    let refused = sleeping.exec(&[], "true").expect_code(255);
    refused.expect_stderr("pids.max").expect_stderr("--pids-limit");
    runtime.run(&["update", "--pids-limit", "3", &id]).ok();
    sleeping.exec(&[], "true").ok();
}

#[test]
fn a_paused_container_is_entered_on_demand_only() {
    for runtime in Runtime::both() {
        let bundle = bundle(|spec| script(spec, "sleep 1000"));
        let id = runtime.id("paused");
        let sleeping = Sleeping::start(&runtime, &bundle, &id);
        runtime.run(&["pause", &id]).ok();
        sleeping.exec(&[], "true").expect_code(255).expect_stderr("paused");
        let output = bundle.path().join("output");
        let file = fs::File::create(&output).expect("a writable bundle");
        let words = ["exec", "--ignore-paused", &id, "sh", "-c", "echo ran; exit 3"];
        let mut entering = runtime.command(&words).stdout(file).spawn().expect("it runs");
        // The process is in the container's cgroup by now, which is frozen. If the container were resumed before,
        // nothing would be paused when the process enters.
        eventually("it has entered", || {
            let members = |tree: &PathBuf| fs::read_to_string(tree.join("cgroup.procs")).unwrap_or_default();
            cgroups::named(&id).iter().any(|tree| members(tree).lines().count() > 1).then_some(())
        });
        runtime.run(&["resume", &id]).ok();
        assert_eq!(entering.wait().expect("a child of ours").code(), Some(3), "{}", runtime.name);
        assert_eq!(fs::read_to_string(&output).expect("it is there"), "ran\n", "{}", runtime.name);
    }
}
