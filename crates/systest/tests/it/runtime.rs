//! The OCI runtime compared with Debian's runc: both run the same bundle and must give the same result.

use std::fs;

use serde_json::{Value, json};
use testkit::{Bundle, eventually, run};

use crate::runtime_bundle::{Runtime, bundle, same};

#[test]
fn identity_limits_and_privileges_are_runcs() {
    let status = "grep -E '^(Uid|Gid|Groups|Cap|NoNewPrivs|Seccomp:)' /proc/self/status; id; hostname; umask; \
                  cat /proc/self/limits | grep -E 'open files|processes'; cat /proc/self/oom_score_adj; pwd; echo $HOME $X";
    let plain = same(status, |_| {});
    assert!(plain.contains("NoNewPrivs:\t1") && plain.contains("runc"), "{plain}");
    same("echo $HOME; cd; pwd; mkdir /made 2>&1", |spec| {
        spec["process"]["user"] = json!({"uid": 7, "gid": 8});
        spec["mounts"].as_array_mut().expect("mounts").push(json!(
            {"destination": "/etc/passwd", "type": "bind", "source": "/etc/passwd", "options": ["bind", "ro"]}
        ));
    });
    same(status, |spec| {
        spec["process"]["user"] = json!({"uid": 7, "gid": 8, "additionalGids": [9, 10], "umask": 23});
        spec["process"]["noNewPrivileges"] = json!(false);
        spec["process"]["cwd"] = json!("/tmp/made/for/it");
        spec["process"]["env"] = json!(["PATH=/bin", "X=1", "X=2"]);
        spec["process"]["oomScoreAdj"] = json!(77);
        spec["process"]["rlimits"] = json!([{"type": "RLIMIT_NOFILE", "hard": 99, "soft": 98}]);
        spec["hostname"] = json!("renamed");
        let few = json!(["CAP_CHOWN", "CAP_NET_BIND_SERVICE"]);
        spec["process"]["capabilities"] =
            json!({"bounding": few, "effective": few, "permitted": few, "inheritable": few, "ambient": few});
        spec["linux"]["seccomp"] = json!({"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64"],
            "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1}]});
    });
}

/// The umask of the runtime's caller has no effect on the container.
#[test]
fn modes_are_masked_as_the_container_has_it() {
    for (umask, expected) in [(None, "0022\n"), (Some(0o27), "0027\n")] {
        let bundle = bundle(|spec| {
            spec["process"]["args"] = json!(["sh", "-c", "umask"]);
            if let Some(umask) = umask {
                spec["process"]["user"]["umask"] = json!(umask);
            }
        });
        let path = bundle.path().display().to_string();
        for runtime in Runtime::both() {
            let command = runtime.command(&["run", "--bundle", &path, &runtime.id("masked")]);
            let mut masked = std::process::Command::new("sh");
            masked.args(["-c", "umask 077; exec \"$@\"", "sh"]).arg(command.get_program());
            assert_eq!(run(masked.args(command.get_args())).ok().stdout, expected, "{}", runtime.name);
        }
    }
}

#[test]
fn every_limit_of_a_process_is_runcs() {
    let kinds = [
        "CPU",
        "FSIZE",
        "DATA",
        "STACK",
        "CORE",
        "RSS",
        "NPROC",
        "NOFILE",
        "MEMLOCK",
        "AS",
        "LOCKS",
        "SIGPENDING",
        "MSGQUEUE",
        "NICE",
        "RTPRIO",
        "RTTIME",
    ];
    let said = same("cat /proc/self/limits", |spec| {
        // Each limit has values of its own. They are small: a caller may lack the right to raise its limits.
        let limits = (1u64..).zip(kinds).map(|(number, kind)| {
            let unit = match kind {
                "FSIZE" | "DATA" | "STACK" | "RSS" | "AS" => 1 << 26,
                "MEMLOCK" => 1 << 16,
                "NICE" | "RTPRIO" => 0,
                _ => 100,
            };
            json!({"type": format!("RLIMIT_{kind}"), "soft": number * unit, "hard": (number + 20) * unit})
        });
        spec["process"]["rlimits"] = limits.collect();
    });
    assert_eq!(said.matches("unlimited").count(), 0, "{said}");
}

/// A program that needs few open files runs with a small limit on them. If another limit is too small, the error names
/// it.
#[test]
fn small_limits_are_met_or_named() {
    let files = |soft: u32, hard: u32| json!([{"type": "RLIMIT_NOFILE", "soft": soft, "hard": hard}]);
    for (soft, hard) in [(1, 1), (3, 5), (63, 1024)] {
        let bundle = Bundle::new("ulimit -n; ulimit -Hn").change(|spec| {
            spec["process"]["rlimits"] = files(soft, hard);
        });
        assert_eq!(bundle.run(&["run"]).ok().stdout, format!("{soft}\n{hard}\n"));
    }
    let sleeping = Bundle::new("sleep 1000").change(|spec| spec["process"]["rlimits"] = files(1, 2));
    sleeping.start();
    assert_eq!(sleeping.exec("ulimit -n; ulimit -Hn").ok().stdout, "1\n2\n");
    let small = Bundle::new("true").with_resources(json!({"memory": {"limit": 1000}}));
    let refused = small.run(&["run"]);
    // The kernel may also refuse a limit below what is in use.
    assert!(refused.code != 0 && refused.stderr.contains("memory"), "{refused}");
}

/// As with runc, a container that was created can be paused, and cannot be started until it is resumed.
#[test]
fn what_was_created_is_paused_and_resumed() {
    for runtime in Runtime::both() {
        let name = runtime.name;
        let bundle = bundle(|spec| spec["process"]["args"] = json!(["sleep", "1000"]));
        let path = bundle.path().display().to_string();
        let id = runtime.id("early");
        let mut create = runtime.command(&["create", "--bundle", &path, &id]);
        let created = create.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null()).status();
        assert!(created.expect("it runs").success(), "{name}");
        let status = || {
            let state = runtime.run(&["state", &id]).ok().stdout;
            serde_json::from_str::<Value>(&state).expect("JSON")["status"].as_str().map(str::to_owned)
        };
        runtime.run(&["pause", &id]).ok();
        assert_eq!(status().as_deref(), Some("paused"), "{name}");
        runtime.run(&["start", &id]).expect_code(1).expect_stderr("paused");
        assert_ne!(runtime.run(&["delete", &id]).code, 0, "{name}: it is not stopped");
        runtime.run(&["resume", &id]).ok();
        assert_eq!(status().as_deref(), Some("created"), "{name}");
        runtime.run(&["start", &id]).ok();
        assert_eq!(status().as_deref(), Some("running"), "{name}");
        runtime.run(&["delete", "--force", &id]).ok();
    }
}

/// The freezer of cgroup version 1 keeps a killed process until it is thawed. Here the test freezes the cgroup, not the
/// runtime.
#[test]
fn a_container_that_the_old_freezer_holds_is_killed() {
    let freezer = std::path::Path::new("/sys/fs/cgroup/freezer");
    if !freezer.join("cgroup.procs").exists() {
        println!("skipped: this host has no freezer of version 1");
        return;
    }
    let bundle = bundle(|spec| {
        spec["process"]["args"] = json!(["sleep", "1000"]);
        // A path by which the test finds the cgroup on the host.
        spec["linux"]["cgroupsPath"] = json!(format!("/frozen-{}", std::process::id()));
    });
    let path = bundle.path().display().to_string();
    let runtime = Runtime::ours();
    let id = runtime.id("frozen");
    let started = runtime
        .command(&["run", "--detach", "--bundle", &path, &id])
        .stdout(std::process::Stdio::null())
        .status();
    assert!(started.expect("it runs").success());
    let state = freezer.join(format!("frozen-{}", std::process::id())).join("freezer.state");
    fs::write(&state, "FROZEN").expect("root may");
    eventually("it is frozen", || (fs::read_to_string(&state).ok()?.trim() == "FROZEN").then_some(()));
    runtime.run(&["kill", &id, "KILL"]).ok();
    eventually("it has ended", || {
        let state = runtime.run(&["state", &id]).ok();
        state.stdout.contains("stopped").then_some(())
    });
    runtime.run(&["delete", &id]).ok();
}

/// Cases of the other tests in which runc and crun agree.
#[test]
fn what_runc_and_crun_agree_in_is_ours() {
    type Change = fn(&mut Value);
    let [ours, runc] = Runtime::both();
    let all = [ours, runc, Runtime::crun()];
    let status = "grep -E '^(Uid|Gid|Groups|Cap|NoNewPrivs|Seccomp:)' /proc/self/status; id; hostname; umask; \
                  cat /proc/self/limits | grep -E 'open files|processes'; cat /proc/self/oom_score_adj; pwd; echo $HOME $X";
    let read_only = "touch /x /proc/sys/kernel/domainname 2>&1; cat /proc/keys /proc/timer_list | busybox wc -c; \
                     ls /proc/acpi /sys/firmware; ls /dev/pts /dev/shm; stat -c '%a %n' /dev/shm /dev/mqueue";
    let sysctls = "cat /proc/sys/net/ipv4/ip_unprivileged_port_start /proc/sys/kernel/shm_rmid_forced";
    let rows: [(&str, Change, i32); 8] = [
        (status, |_| {}, 0),
        (
            status,
            |spec| {
                spec["process"]["user"] = json!({"uid": 7, "gid": 8, "additionalGids": [9, 10], "umask": 23});
                spec["process"]["noNewPrivileges"] = json!(false);
                spec["process"]["cwd"] = json!("/tmp/made/for/it");
                spec["process"]["env"] = json!(["PATH=/bin", "X=1"]);
                spec["process"]["oomScoreAdj"] = json!(77);
                spec["process"]["rlimits"] = json!([{"type": "RLIMIT_NOFILE", "hard": 99, "soft": 98}]);
                spec["hostname"] = json!("renamed");
                let few = json!(["CAP_CHOWN", "CAP_NET_BIND_SERVICE"]);
                spec["process"]["capabilities"] = json!({"bounding": few, "effective": few, "permitted": few,
                    "inheritable": few, "ambient": few});
            },
            0,
        ),
        (read_only, |spec| spec["root"]["readonly"] = json!(true), 0),
        (
            sysctls,
            |spec| {
                spec["linux"]["sysctl"] =
                    json!({"net.ipv4.ip_unprivileged_port_start": "7", "kernel.shm_rmid_forced": "1"});
            },
            0,
        ),
        ("exit 42", |_| {}, 42),
        ("sh -c 'kill -9 $$'; exit $?", |_| {}, 137),
        ("true", |spec| spec["process"]["args"] = json!(["/no/such/program"]), 1),
        ("true", |spec| spec["linux"]["sysctl"] = json!({"vm.swappiness": "1"}), 1),
    ];
    for (script, change, code) in rows {
        let bundle = bundle(|spec| {
            spec["process"]["args"] = json!(["sh", "-c", script]);
            change(spec);
        });
        let path = bundle.path().display().to_string();
        let [ours, runc, crun] = all.each_ref().map(|runtime| {
            let done = runtime.run(&["run", "--bundle", &path, &runtime.id("three")]);
            assert_eq!(done.code, code, "{} {script}: {done}", runtime.name);
            assert!(code != 1 || !done.stderr.is_empty(), "{}: it says why\n{done}", runtime.name);
            assert_eq!(runtime.run(&["list", "-q"]).ok().text(), "", "{}: nothing is left", runtime.name);
            done.stdout
        });
        assert_eq!((&ours, &ours), (&runc, &crun), "{script}");
    }
}

#[test]
fn file_systems_are_runcs() {
    // Ids and device numbers of mounts differ from run to run.
    let mounts =
        "busybox awk '{ print $5, $6, $9 == \"-\" ? $10 : $9 }' /proc/self/mountinfo | grep -v cgroup | sort";
    let plain = same(mounts, |_| {});
    assert!(plain.contains("/proc/keys"), "masked paths are mounts\n{plain}");
    same(
        "ls -ln /dev | busybox awk '{ print $1, $3, $4, $NF }'; ls /dev/pts /dev/shm; stat -c '%a %n' /dev/shm /dev/mqueue",
        |_| {},
    );
    same(
        "touch /x; touch /proc/sys/kernel/domainname; cat /proc/keys /proc/timer_list | busybox wc -c; ls /proc/acpi /sys/firmware",
        |spec| {
            spec["root"]["readonly"] = json!(true);
        },
    );
    same(mounts, |spec| {
        let list = spec["mounts"].as_array_mut().expect("runc writes mounts");
        list.push(json!({"destination": "/data/deep", "type": "bind", "source": "/etc", "options": ["rbind", "ro", "nosuid"]}));
        list.push(json!({"destination": "/scratch", "type": "tmpfs", "source": "tmpfs", "options": ["mode=1700", "size=64k", "noexec"]}));
        list.push(json!({"destination": "/etc/hosts", "type": "bind", "source": "/etc/hosts", "options": ["bind", "rw"]}));
    });
    same("cat /proc/sys/net/ipv4/ip_unprivileged_port_start /proc/sys/kernel/shm_rmid_forced", |spec| {
        spec["linux"]["sysctl"] =
            json!({"net.ipv4.ip_unprivileged_port_start": "7", "kernel.shm_rmid_forced": "1"});
    });
}

#[test]
fn exit_codes_and_refusals_are_runcs() {
    for (script, code) in [("exit 0", 0), ("exit 42", 42), ("kill -9 $$", 137), ("kill -TERM $$", 143)] {
        let bundle = bundle(|spec| {
            // The first process of a pid namespace ignores signals that it sends itself and does not handle
            // (pid_namespaces(7)).
            spec["process"]["args"] = json!(["sh", "-c", format!("sh -c '{script}'; exit $?")]);
        });
        let path = bundle.path().display().to_string();
        for runtime in Runtime::both() {
            runtime.run(&["run", "--bundle", &path, &runtime.id("code")]).expect_code(code);
        }
    }
    // For each mistake, words that the errors of both runtimes contain.
    type Change = fn(&mut Value);
    let rows: [(&str, Change, &[&str]); 8] = [
        (
            "no such program",
            |spec| spec["process"]["args"] = json!(["/no/such/program"]),
            &["/no/such/program", "no such file"],
        ),
        (
            "a hook that is looked for",
            |spec| spec["hooks"] = json!({"createRuntime": [{"path": "true"}]}),
            &["hook", "true"],
        ),
        (
            "a hook without time",
            |spec| spec["hooks"] = json!({"createRuntime": [{"path": "/bin/true", "timeout": 0}]}),
            &["hook", "timeout"],
        ),
        ("no arguments", |spec| spec["process"]["args"] = json!([]), &["args"]),
        ("relative cwd", |spec| spec["process"]["cwd"] = json!("relative"), &["cwd", "absolute"]),
        ("no rootfs", |spec| spec["root"]["path"] = json!("missing"), &["/missing", "no such file"]),
        (
            "a sysctl of the host",
            |spec| spec["linux"]["sysctl"] = json!({"vm.swappiness": "1"}),
            &["vm.swappiness"],
        ),
        (
            "a mount on /proc",
            |spec| {
                spec["mounts"].as_array_mut().expect("mounts").push(json!(
                    {"destination": "/proc/self", "type": "tmpfs", "source": "tmpfs"}
                ));
            },
            &["/proc/self"],
        ),
    ];
    for (what, change, words) in rows {
        let bundle = bundle(change);
        let path = bundle.path().display().to_string();
        for command in ["run", "create"] {
            let codes = Runtime::both().map(|runtime| {
                let refused = runtime.run(&[command, "--bundle", &path, &runtime.id("refused")]);
                let said = refused.stderr.to_lowercase();
                for word in words {
                    assert!(said.contains(word), "{} {what}: {word:?} is missing\n{refused}", runtime.name);
                }
                assert_eq!(runtime.run(&["list", "-q"]).ok().text(), "", "{what}: nothing is left");
                refused.code
            });
            assert_eq!(codes, [1, 1], "{what}: ours and runc's");
        }
    }
}

#[test]
fn a_life_from_create_to_delete_is_runcs() {
    let bundle = bundle(|spec| {
        spec["process"]["args"] =
            json!(["sh", "-c", "trap 'exit 5' TERM; echo up > /up; while true; do sleep 0.05; done"]);
        spec["annotations"] = json!({"org.example": "kept"});
    });
    let path = bundle.path().display().to_string();
    let up = bundle.path().join("rootfs/up");
    for runtime in Runtime::both() {
        let (id, name) = (runtime.id("life"), runtime.name);
        let _ = fs::remove_file(&up);
        let state = || -> Value {
            serde_json::from_str(&runtime.run(&["state", &id]).ok().stdout).expect("state is JSON")
        };
        runtime.command(&["create", "--bundle", &path, &id]).status().expect("it runs");
        let created = state();
        assert_eq!(created["status"], "created", "{name}");
        assert_eq!(created["annotations"]["org.example"], "kept", "{name}");
        assert_eq!(created["bundle"], path, "{name}");
        let again = runtime.run(&["create", "--bundle", &path, &id]);
        assert!(again.code != 0 && again.stderr.contains("exist"), "{name}: {again}");
        assert!(!up.exists(), "{name}: nothing of the container has run");
        runtime.run(&["start", &id]).ok();
        eventually("the container is up", || up.exists().then_some(()));
        assert_eq!(state()["status"], "running", "{name}");
        assert_ne!(runtime.run(&["start", &id]).code, 0, "{name}: it runs already");
        assert_ne!(runtime.run(&["delete", &id]).code, 0, "{name}: it runs still");

        let exec =
            runtime.run(&["exec", "--env", "A=b", &id, "sh", "-c", "echo $A; cat /proc/1/comm; exit 9"]);
        assert_eq!((exec.code, exec.stdout.as_str()), (9, "b\nsh\n"), "{name}: {exec}");
        assert_ne!(runtime.run(&["exec", &id, "/no/such"]).code, 0, "{name}");
        let listed: Value =
            serde_json::from_str(&runtime.run(&["list", "--format", "json"]).ok().stdout).expect("JSON");
        assert_eq!(listed[0]["id"], id, "{name}");
        let pids: Vec<u32> =
            serde_json::from_str(&runtime.run(&["ps", "--format", "json", &id]).ok().stdout).expect("JSON");
        assert!(pids.contains(&u32::try_from(created["pid"].as_u64().expect("a pid")).expect("a pid")));

        runtime.run(&["pause", &id]).ok();
        assert_eq!(state()["status"], "paused", "{name}");
        runtime.run(&["resume", &id]).ok();
        runtime.run(&["update", "--pids-limit", "77", &id]).ok();
        let stats: Value =
            serde_json::from_str(&runtime.run(&["events", "--stats", &id]).ok().stdout).expect("JSON");
        assert_eq!((&stats["type"], &stats["id"]), (&json!("stats"), &json!(id)), "{name}");
        assert_eq!(stats["data"]["pids"]["limit"], 77, "{name}: {stats}");

        runtime.run(&["kill", &id, "TERM"]).ok();
        eventually("the container has stopped", || (state()["status"] == "stopped").then_some(()));
        assert_ne!(runtime.run(&["exec", &id, "true"]).code, 0, "{name}: it has stopped");
        runtime.run(&["delete", &id]).ok();
        let gone = runtime.run(&["state", &id]);
        assert!(gone.code != 0 && gone.stderr.contains("not exist"), "{name}: {gone}");
        assert_ne!(runtime.run(&["delete", &id]).code, 0, "{name}: it is gone");
        runtime.run(&["delete", "--force", &id]).ok();
    }
}

/// A stopped container can only be deleted.
#[test]
fn what_is_done_to_a_stopped_container_fails() {
    let bundle = bundle(|spec| spec["process"]["args"] = json!(["sleep", "1000"]));
    let path = bundle.path().display().to_string();
    for runtime in Runtime::both() {
        let (id, name) = (runtime.id("ended"), runtime.name);
        runtime.command(&["create", "--bundle", &path, &id]).status().expect("it runs");
        runtime.run(&["kill", &id, "KILL"]).ok();
        eventually("it has stopped", || {
            runtime.run(&["state", &id]).ok().stdout.contains("\"stopped\"").then_some(())
        });
        let rows: [&[&str]; 7] = [
            &["start", &id],
            &["pause", &id],
            &["resume", &id],
            &["events", &id],
            &["events", "--stats", &id],
            &["update", "--pids-limit", "7", &id],
            &["kill", &id, "TERM"],
        ];
        for words in rows {
            let refused = runtime.run(words);
            assert_eq!(refused.code, 1, "{name}: {words:?}: {refused}");
        }
        runtime.run(&["kill", &id, "KILL"]).expect_code(1).expect_stderr("container not running");
        runtime.run(&["ps", &id]).ok();
        runtime.run(&["delete", &id]).ok();
    }
}

/// `start` fails if the first process is killed before it executes the program.
#[test]
fn a_start_of_what_is_killed_meanwhile_fails() {
    for runtime in Runtime::both() {
        let bundle = bundle(|spec| spec["process"]["args"] = json!(["sleep", "1000"]));
        let path = bundle.path().display().to_string();
        let (id, pid_file) = (runtime.id("killed"), bundle.path().join("pid"));
        let file = pid_file.display().to_string();
        runtime.command(&["create", "--bundle", &path, "--pid-file", &file, &id]).status().expect("it runs");
        let pid = fs::read_to_string(&pid_file).expect("a pid");
        let signal = |name: &str| run(std::process::Command::new("kill").args([name, &pid])).ok();
        signal("-STOP");
        let mut start = runtime.command(&["start", &id]).spawn().expect("it runs");
        let door = runtime.root().join(&id).join("start");
        if runtime.name == "hoist" {
            eventually("it waits", || (!door.exists()).then_some(()));
        }
        signal("-KILL");
        assert_eq!(start.wait().expect("a child of ours").code(), Some(1), "{}", runtime.name);
        runtime.run(&["delete", "--force", &id]).ok();
    }
}

/// `state` and `list --format json` print the same fields as runc, with the same values unless these differ from run to
/// run.
#[test]
fn documents_are_runcs() {
    let bundle = bundle(|spec| {
        spec["process"]["args"] = json!(["sleep", "1000"]);
        spec["annotations"] = json!({"org.example": "kept"});
    });
    let path = bundle.path().display().to_string();
    let [ours, runcs] = Runtime::both().map(|runtime| {
        let id = runtime.id("document");
        let begun = types::Timestamp::now().to_string();
        let mut create = runtime.command(&["run", "--detach", "--bundle", &path, &id]);
        assert!(create.stdout(std::process::Stdio::null()).status().expect("it runs").success());
        let end = types::Timestamp::now().to_string();
        let read = |words: &[&str]| -> Value {
            serde_json::from_str(&runtime.run(words).ok().stdout).expect("it is JSON")
        };
        let mut documents = [read(&["state", &id]), read(&["list", "--format", "json"])[0].clone()];
        // Of runc's two commands, only `list` prints the owner.
        assert!(documents[0]["owner"].is_string(), "{}", documents[0]);
        documents[0]["owner"] = documents[1]["owner"].clone();
        let pid = documents[0]["pid"].as_u64().expect("a pid");
        assert!(fs::exists(format!("/proc/{pid}/ns")).expect("proc"), "{}", documents[0]);
        runtime.run(&["kill", &id, "KILL"]).ok();
        let stopped = eventually("it has stopped", || {
            Some(read(&["state", &id])).filter(|state| state["status"] == "stopped")
        });
        runtime.run(&["delete", &id]).ok();
        for document in &mut documents {
            assert_eq!((document["id"].as_str(), document["pid"].as_u64()), (Some(&*id), Some(pid)));
            let created = document["created"].as_str().expect("a time").to_owned();
            assert!(begun[..19] <= created[..19] && created[..19] <= end[..19], "{begun} {created} {end}");
            assert!(created.ends_with('Z') && created.as_bytes()[10] == b'T', "{created}");
            // These differ from run to run, or from runtime to runtime: the test only checks whether they are there.
            for own in ["id", "pid", "created", "ociVersion"] {
                document[own] = json!(document[own].is_null());
            }
        }
        assert_eq!(stopped["pid"], 0, "{}: {stopped}", runtime.name);
        let fields: Vec<String> = stopped.as_object().expect("fields").keys().cloned().collect();
        (documents, fields)
    });
    assert_eq!(ours, runcs);
}

#[test]
fn a_container_meets_its_limits() {
    let limits = |spec: &mut Value| {
        spec["linux"]["resources"] = json!({
            "memory": {"limit": 33_554_432}, "pids": {"limit": 20}, "cpu": {"quota": 50_000, "period": 100_000}
        });
    };
    // A shell that doubles a string until it is killed.
    let hungry = same("x=0123456789; while true; do x=$x$x; done; echo not reached", limits);
    assert_eq!(hungry, "");
    let bundle = bundle(|spec| {
        spec["process"]["args"] = json!(["sh", "-c", "for i in $(busybox seq 30); do sleep 1000 & done"]);
        limits(spec);
    });
    let path = bundle.path().display().to_string();
    for runtime in Runtime::both() {
        let done = runtime.run(&["run", "--bundle", &path, &runtime.id("pids")]);
        assert!(done.stderr.contains("fork"), "{}: {done}", runtime.name);
    }
}
