//! Features of the runtime spec, each seen from inside a container. Where Debian's runc has the feature, both run the
//! same bundle and must print the same.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::{Value, json};
use tempfile::TempDir;
use testkit::disk::Disk;
use testkit::{MountsBelow, eventually, run};

use crate::runtime_bundle::{
    Runtime, add_mount, bundle, compile, give, missing, read_spec, read_text, same, script,
};

/// What a script says in a container of ours.
#[track_caller]
pub(crate) fn ours(text: &str, change: impl Fn(&mut Value)) -> String {
    let bundle = bundle(|spec| {
        script(spec, text);
        change(spec);
    });
    let runtime = Runtime::ours();
    let path = bundle.path().display().to_string();
    runtime.run(&["run", "--bundle", &path, &runtime.id("spec")]).ok().text().to_owned()
}

fn add_namespace(spec: &mut Value, namespace: Value) {
    let list = spec["linux"]["namespaces"].as_array_mut().expect("namespaces");
    list.retain(|other| other["type"] != namespace["type"]);
    list.push(namespace);
}

pub(crate) fn map_users(spec: &mut Value, ranges: &[(u32, u32, u32)]) {
    add_namespace(spec, json!({"type": "user"}));
    let maps = ranges
        .iter()
        .map(|(inside, outside, size)| json!({"containerID": inside, "hostID": outside, "size": size}));
    let maps = Value::Array(maps.collect());
    spec["linux"]["uidMappings"] = maps.clone();
    spec["linux"]["gidMappings"] = maps;
}

/// A file system whose owners can be mapped, which kernels before 6.3 cannot with one in memory. Everybody may pass through.
pub(crate) fn mappable_disk() -> Disk {
    let disk = Disk::new(16 << 20);
    let parent = disk.path().parent().expect("a path below").to_owned();
    fs::set_permissions(parent, fs::Permissions::from_mode(0o755)).expect("ours");
    disk
}

/// A directory that everybody may pass through.
pub(crate) fn open_dir() -> TempDir {
    let dir = TempDir::new().expect("a temporary directory");
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).expect("ours");
    dir
}

pub(crate) fn chown(path: &Path, id: u32) {
    std::os::unix::fs::chown(path, Some(id), Some(id)).expect("root may");
}

/// Programs in Go write `null` for lists and maps that they have not made; runc reads it as nothing, wherever it is.
#[test]
fn null_in_a_spec_counts_as_absent() {
    let said = same("id -u; hostname; echo $HOME; pwd; grep Cap /proc/self/status", |spec| {
        for field in [
            "/process/consoleSize",
            "/process/rlimits",
            "/process/user/additionalGids",
            "/process/oomScoreAdj",
            "/process/capabilities/ambient",
            "/process/apparmorProfile",
            "/hooks",
            "/annotations",
            "/domainname",
            "/linux/uidMappings",
            "/linux/sysctl",
            "/linux/devices",
            "/linux/seccomp",
            "/linux/rootfsPropagation",
            "/linux/resources/devices",
            "/linux/resources/memory",
            "/linux/resources/pids",
            "/linux/resources/unified",
            "/linux/maskedPaths",
            "/linux/readonlyPaths",
            "/root/readonly",
        ] {
            let (object, name) = field.rsplit_once('/').expect("a path");
            spec.pointer_mut(object).expect("an object")[name] = Value::Null;
        }
        for mount in spec["mounts"].as_array_mut().expect("mounts") {
            mount["uidMappings"] = Value::Null;
            if mount["type"] == "proc" {
                mount["options"] = Value::Null;
            }
        }
    });
    assert!(said.starts_with("0\n"), "{said}");
}

#[test]
fn options_of_mounts_are_runcs() {
    // What each mount below /m is told by the kernel, and its file system, without the numbers of peer groups, and without
    // the mode that is a tmpfs's anyway.
    let look = "busybox awk '$5 ~ \"^/m\" { gsub(\"[0-9]\", \"\", $7); sub(\",mode=755\", \"\", $NF); \
                                         print $5, $6, $7, $NF }' /proc/self/mountinfo | sort";
    let host = open_dir();
    let _mounts = MountsBelow(host.path().to_owned());
    fs::create_dir(host.path().join("below")).expect("writable");
    run(Command::new("mount").args(["-t", "tmpfs", "tmpfs"]).arg(host.path().join("below"))).ok();
    run(Command::new("mount").arg("--bind").arg(host.path()).arg(host.path())).ok();
    run(Command::new("mount").args(["--make-shared"]).arg(host.path())).ok();
    let source = host.path().display().to_string();
    // What is to be taken away must be there.
    let flagged = open_dir();
    let _flagged_mounts = MountsBelow(flagged.path().to_owned());
    let flags = "nosuid,nodev,noexec,noatime,nodiratime,nosymfollow,mode=755";
    let mount_flagged =
        |at: &Path| run(Command::new("mount").args(["-t", "tmpfs", "-o", flags, "tmpfs"]).arg(at)).ok();
    mount_flagged(flagged.path());
    fs::create_dir(flagged.path().join("below")).expect("writable");
    mount_flagged(&flagged.path().join("below"));
    let cleared = flagged.path().display().to_string();
    let said = same(look, |spec| {
        spec["linux"]["rootfsPropagation"] = json!("rslave");
        let sets = [
            "rbind,ro",
            "rbind,rro",
            "rbind,rnosuid,rnodev,rnoexec",
            "bind,nosuid,nodev,noexec",
            "rbind,rshared",
            "rbind,rslave",
            "rbind,rprivate",
            "bind,shared",
            "bind,slave",
            "rbind,noatime",
            "rbind,rnoatime,nodiratime",
            "rbind,nosymfollow",
            "rbind,rro,rw",
            "bind,ro,rw",
            "bind,sync",
            "bind,private",
            "bind,unbindable",
            "rbind,runbindable",
            "rbind,rnosymfollow",
            "rbind,rnodiratime",
            "rbind,rnoatime",
            "rbind,rstrictatime",
            "bind,mand,acl,iversion,silent,defaults",
        ];
        let clearing = [
            "bind",
            "rbind,rdev",
            "rbind,rexec",
            "rbind,rsuid",
            "rbind,rsymfollow",
            "rbind,rrelatime",
            "rbind,rstrictatime",
            "rbind,rdiratime",
            "rbind,rdev,rexec,rsuid,rrw",
            "bind,ro",
            "rbind,ro,nosuid",
            "bind,noexec,rprivate",
            "bind,relatime",
            "bind,strictatime",
            "bind,nodiratime",
        ];
        let all = sets
            .iter()
            .map(|options| (&source, options))
            .chain(clearing.iter().map(|options| (&cleared, options)));
        for (number, (source, options)) in all.enumerate() {
            let options: Vec<&str> = options.split(',').collect();
            let destination = format!("/m{number}");
            add_mount(
                spec,
                json!({"destination": destination, "type": "bind", "source": source, "options": options}),
            );
        }
        let in_memory = [
            "strictatime,mode=711",
            "ro,size=4k",
            "dirsync,sync",
            "sync,async",
            "lazytime",
            "lazytime,nolazytime",
            "mand",
            "mand,nomand",
            // Without effect.
            "acl",
            "noacl",
            "iversion",
            "noiversion",
            "silent",
            "loud",
        ];
        for (number, options) in in_memory.iter().enumerate() {
            let options: Vec<&str> = options.split(',').collect();
            let destination = format!("/mt{number}");
            add_mount(
                spec,
                json!({"destination": destination, "type": "tmpfs", "source": "tmpfs", "options": options}),
            );
        }
    });
    assert!(said.contains("/m1 ro") && said.contains("shared:") && said.contains("unbindable"), "{said}");
}

#[test]
fn the_root_has_the_propagation_that_is_asked_for() {
    let look = "busybox awk '$5 == \"/\" { gsub(\"[0-9]\", \"\", $7); print $7 }' /proc/self/mountinfo";
    // On mounts that are shared, as systemd has them, and on those that are not.
    for (propagation, shared, expected) in [
        ("", "make-private", "-\n"),
        ("slave", "make-private", "-\n"),
        ("", "make-shared", "master:\n"),
        ("private", "make-shared", "-\n"),
        ("rprivate", "make-shared", "-\n"),
        ("slave", "make-shared", "master:\n"),
        ("rslave", "make-shared", "master:\n"),
    ] {
        let bundle = bundle(|spec| {
            script(spec, look);
            spec["linux"]["rootfsPropagation"] = json!(propagation);
        });
        let _mount = MountsBelow(bundle.path().to_owned());
        let path = bundle.path().display().to_string();
        run(Command::new("mount").args(["--bind", &path, &path, &format!("--{shared}")])).ok();
        let said = Runtime::both().map(|runtime| {
            let ended = runtime.run(&["run", "--bundle", &path, &runtime.id("root")]);
            (runtime.name, ended.ok().stdout)
        });
        for (name, said) in said {
            // Debian's runc then asks it of the host's root alone, and the mount that the root lies in is made private.
            if name == "runc" && (propagation, shared) == ("slave", "make-shared") {
                continue;
            }
            assert_eq!(said, expected, "{name}: {propagation:?}, {shared}");
        }
    }
    // Debian's runc leaves it private, or fails.
    for (propagation, expected) in [
        ("shared", "shared:"),
        ("rshared", "shared:"),
        ("unbindable", "unbindable"),
        ("runbindable", "unbindable"),
    ] {
        assert_eq!(ours(look, |spec| spec["linux"]["rootfsPropagation"] = json!(propagation)), expected);
    }
    let bundle = bundle(|spec| spec["linux"]["rootfsPropagation"] = json!("everywhere"));
    let path = bundle.path().display().to_string();
    let runtime = Runtime::ours();
    runtime.run(&["run", "--bundle", &path, &runtime.id("wrong")]).expect_code(1).expect_stderr("everywhere");
}

/// The tree of version 2 alone, also where it stands beside those of version 1; of it the container's own part, where
/// runc shows the host's.
#[test]
fn a_mount_of_version_2_shows_that_alone() {
    let mount = |spec: &mut Value| {
        add_mount(
            spec,
            json!({"destination": "/mnt", "type": "cgroup2", "source": "cgroup2", "options": ["ro", "nosuid"]}),
        );
    };
    let line = same("grep ' /mnt' /proc/self/mounts; test -e /mnt/cgroup.procs; echo $?", mount);
    assert!(
        line.starts_with("cgroup2 /mnt cgroup2 ro,nosuid,relatime") && line.ends_with(" 0 0\n0\n"),
        "{line}"
    );
    let members = ours("cat /mnt/cgroup.procs", mount).lines().count();
    assert!((1..=2).contains(&members), "the shell and what it runs: {members}");
}

#[test]
fn a_tmpfs_takes_what_it_covers() {
    let bundle = bundle(|spec| {
        add_mount(
            spec,
            json!({"destination": "/kept", "type": "tmpfs", "source": "tmpfs", "options": ["tmpcopyup"]}),
        );
        script(
            spec,
            "cat /kept/deep/file; echo new > /kept/new; stat -c '%a %u' /kept/deep; readlink /kept/link",
        );
    });
    let kept = bundle.path().join("rootfs/kept");
    fs::create_dir_all(kept.join("deep")).expect("writable");
    fs::write(kept.join("deep/file"), "of the image\n").expect("writable");
    fs::set_permissions(kept.join("deep"), fs::Permissions::from_mode(0o755)).expect("ours");
    chown(&kept.join("deep"), 7);
    std::os::unix::fs::symlink("deep/file", kept.join("link")).expect("writable");
    let path = bundle.path().display().to_string();
    for runtime in Runtime::both() {
        let done = runtime.run(&["run", "--bundle", &path, &runtime.id("copyup")]).ok();
        assert_eq!(done.text(), "of the image\n755 7\ndeep/file", "{}", runtime.name);
    }
    assert!(!kept.join("new").exists(), "the image is as it was");
}

/// The first process enters its cgroup as late as it can: before it takes memory for what the image holds.
#[test]
fn what_a_tmpfs_copies_is_the_containers_memory() {
    const LEN: usize = 16 << 20;
    let bundle = bundle(|spec| {
        // Before any mount that shows the cgroup.
        spec["mounts"].as_array_mut().expect("mounts").insert(
            0,
            json!({"destination": "/kept", "type": "tmpfs", "source": "tmpfs", "options": ["tmpcopyup"]}),
        );
        let files =
            ["memory/memory.usage_in_bytes", "memory.current"].map(|file| format!("/sys/fs/cgroup/{file}"));
        script(spec, &format!("cat {} 2>/dev/null || true", files.join(" ")));
    });
    let kept = bundle.path().join("rootfs/kept");
    fs::create_dir(&kept).expect("writable");
    fs::write(kept.join("file"), vec![1; LEN]).expect("writable");
    let runtime = Runtime::ours();
    let path = bundle.path().display().to_string();
    let done = runtime.run(&["run", "--bundle", &path, &runtime.id("charged")]).ok();
    let used: usize = done.text().parse().expect("the bytes of one tree");
    assert!(used >= LEN, "{used}");
}

/// So do hooks, of which the parent, which makes the cgroup meanwhile, is told nothing.
#[test]
fn a_hook_in_the_container_is_in_its_cgroup() {
    let runtime = Runtime::ours();
    let id = runtime.id("early");
    let bundle = bundle(|spec| {
        spec["linux"]["cgroupsPath"] = json!(format!("/{id}"));
        spec["linux"]["namespaces"]
            .as_array_mut()
            .expect("namespaces")
            .retain(|kind| kind["type"] != "cgroup");
        spec["mounts"].as_array_mut().expect("mounts").retain(|mount| mount["type"] != "cgroup");
    });
    let mut spec = read_spec(bundle.path());
    let seen = bundle.path().join("rootfs/seen");
    let text = format!("cat /proc/self/cgroup > {}", seen.display());
    spec["hooks"]["createContainer"] =
        json!([{"path": "/bin/sh", "args": ["sh", "-c", text], "env": ["PATH=/bin:/usr/bin"]}]);
    fs::write(bundle.path().join("config.json"), spec.to_string()).expect("writable");
    let path = bundle.path().display().to_string();
    runtime.run(&["run", "--bundle", &path, &id]).ok();
    let seen = read_text(&seen);
    assert!(!seen.is_empty() && seen.lines().all(|line| line.ends_with(&id)), "{seen}");
}

#[test]
fn user_namespaces_have_several_ranges() {
    let said = same("cat /proc/self/uid_map /proc/self/gid_map; id -u; stat -c %u /proc/1", |spec| {
        map_users(spec, &[(0, 100_000, 500), (500, 200_000, 500), (1000, 300_000, 1)]);
        spec["mounts"].as_array_mut().expect("mounts").retain(|mount| mount["type"] != "cgroup");
        spec["process"]["user"] = json!({"uid": 500, "gid": 1000, "additionalGids": [3]});
        spec["root"]["readonly"] = json!(true);
    });
    assert!(said.contains("300000") && said.contains("\n500\n"), "{said}");
}

/// A second container in the namespaces of a first, as the containers of a pod are.
#[test]
fn namespaces_are_joined() {
    let runtime = Runtime::ours();
    for with_user in [false, true] {
        let first = bundle(|spec| {
            script(spec, "echo up; sleep 1000");
            spec["hostname"] = json!("of-the-first");
            if with_user {
                map_users(spec, &[(0, 100_000, 65_536)]);
            }
        });
        let id = runtime.id("first");
        let path = first.path().display().to_string();
        runtime
            .command(&["run", "-d", "--bundle", &path, &id])
            .stdout(Stdio::null())
            .status()
            .expect("it runs");
        let state: Value = serde_json::from_str(&runtime.run(&["state", &id]).ok().stdout).expect("JSON");
        let pid = state["pid"].to_string();
        let join = |kind: &str, file: &str| json!({"type": kind, "path": format!("/proc/{pid}/ns/{file}")});
        let look = "for n in user net ipc uts; do readlink /proc/self/ns/$n; done; hostname; echo $$; id -u";
        let second = bundle(|spec| {
            script(spec, look);
            spec["hostname"] = json!("");
            for (kind, file) in [("network", "net"), ("ipc", "ipc"), ("uts", "uts")] {
                add_namespace(spec, join(kind, file));
            }
            if with_user {
                add_namespace(spec, join("user", "user"));
            }
        });
        if with_user {
            give(&second, 100_000);
        }
        let second_path = second.path().display().to_string();
        let said = runtime.run(&["run", "--bundle", &second_path, &runtime.id("second")]).ok();
        let link = |file: &str| {
            fs::read_link(format!("/proc/{pid}/ns/{file}")).expect("it runs").display().to_string()
        };
        let expected = format!(
            "{}\n{}\n{}\n{}\nof-the-first\n1\n0",
            link("user"),
            link("net"),
            link("ipc"),
            link("uts")
        );
        assert_eq!(said.text(), expected, "with a user namespace: {with_user}");
        // The pid namespace too, and a process that enters.
        let third = bundle(|spec| {
            script(spec, "readlink /proc/self/ns/pid");
            add_namespace(spec, join("pid", "pid"));
            if with_user {
                add_namespace(spec, join("user", "user"));
            }
        });
        if with_user {
            give(&third, 100_000);
        }
        let third_path = third.path().display().to_string();
        let said = runtime.run(&["run", "--bundle", &third_path, &runtime.id("third")]).ok();
        assert_eq!(said.text(), link("pid"), "with a user namespace: {with_user}");
        let exec = runtime.run(&["exec", &id, "sh", "-c", look]).ok();
        assert!(exec.text().starts_with(&link("user")), "{exec}");
        runtime.run(&["delete", "--force", &id]).ok();
    }
}

/// `config-linux.md`, "Namespaces": it is an error, and nothing of the container is made in another one.
#[test]
fn a_namespace_of_another_kind_is_not_joined() {
    let kinds = ["network", "ipc", "uts", "pid", "user", "mount", "cgroup", "time"];
    for kind in kinds {
        let other = if kind == "network" { "ipc" } else { "net" };
        for path in [format!("/proc/self/ns/{other}"), "/etc/hostname".to_owned()] {
            let bundle = bundle(|spec| {
                script(spec, "echo ran");
                add_namespace(spec, json!({"type": kind, "path": path}));
            });
            let bundle_path = bundle.path().display().to_string();
            let runtime = Runtime::ours();
            let refused = runtime.run(&["run", "--bundle", &bundle_path, &runtime.id("kind")]);
            assert_eq!((refused.code, refused.text()), (1, ""), "{kind} {path}: {refused}");
            refused.expect_stderr(&format!("join {kind} namespace"));
            assert_eq!(runtime.run(&["list", "-q"]).ok().text(), "", "nothing is left");
        }
    }
}

#[test]
fn a_new_network_has_its_loopback() {
    let new = json!({"type": "network"});
    let flags = same("cat /sys/class/net/lo/flags", |spec| add_namespace(spec, new.clone()));
    assert_eq!(flags, "0x9\n", "up, and loopback (netdevice(7))");
    let mapped = ours("cat /sys/class/net/lo/flags", |spec| {
        add_namespace(spec, new.clone());
        map_users(spec, &[(0, 100_000, 1000)]);
    });
    assert_eq!(mapped, "0x9");
}

#[test]
fn clocks_are_set_off() {
    let look = "cat /proc/self/timens_offsets; busybox cut -d. -f1 /proc/uptime";
    let mut uptime = String::new();
    for with_user in [false, true] {
        uptime = ours(look, |spec| {
            add_namespace(spec, json!({"type": "time"}));
            spec["linux"]["timeOffsets"] =
                json!({"monotonic": {"secs": 86_400}, "boottime": {"secs": 1_000_000, "nanosecs": 5}});
            if with_user {
                map_users(spec, &[(0, 100_000, 1000)]);
            }
        });
        let fields: Vec<&str> = uptime.split_whitespace().collect();
        assert_eq!(&fields[..6], ["monotonic", "86400", "0", "boottime", "1000000", "5"], "{uptime}");
    }
    let seconds: u64 = uptime.split_whitespace().last().and_then(|last| last.parse().ok()).expect("a number");
    assert!(seconds >= 1_000_000, "{uptime}");
}

#[test]
fn personality_scheduler_and_priorities_are_set() {
    let said = ours("uname -m", |spec| spec["linux"]["personality"] = json!({"domain": "LINUX32"}));
    assert_eq!(said, "i686");
    // Fields of proc_pid_stat(5): nice and policy.
    let said = ours(
        "busybox cut -d' ' -f19,41 /proc/self/stat; busybox ionice -p $$; hostname; cat /proc/sys/kernel/domainname",
        |spec| {
            spec["process"]["scheduler"] = json!({"policy": "SCHED_BATCH", "nice": 5});
            spec["process"]["ioPriority"] = json!({"class": "IOPRIO_CLASS_IDLE", "priority": 0});
            spec["domainname"] = json!("example.org");
            spec["hostname"] = json!("named");
        },
    );
    assert_eq!(said, "5 3\nidle\nnamed\nexample.org");
    // Priority and policy, by the numbers of sched(7).
    for (scheduler, expected) in [
        (json!({"policy": "SCHED_OTHER"}), "0 0"),
        (json!({"policy": "SCHED_FIFO", "priority": 7}), "7 1"),
        (json!({"policy": "SCHED_RR", "priority": 8}), "8 2"),
        (json!({"policy": "SCHED_BATCH"}), "0 3"),
        (json!({"policy": "SCHED_IDLE"}), "0 5"),
    ] {
        let said = ours("busybox cut -d' ' -f40,41 /proc/self/stat", |spec| {
            spec["process"]["scheduler"] = scheduler.clone();
            // Some kernels give groups of version 1 no such time by themselves.
            if Path::new("/sys/fs/cgroup/cpu/cpu.rt_runtime_us").exists() {
                spec["linux"]["resources"]["cpu"] =
                    json!({"realtimePeriod": 1_000_000, "realtimeRuntime": 1000});
            }
        });
        assert_eq!(said, expected, "{scheduler}");
    }
    // Nice and policy, as the shell itself reads them: who has a deadline makes no process, unless that begins without.
    let own = "read -r line < /proc/self/stat; set -- $line; echo ${19} ${41}";
    let with_deadline = |look: &str, flags: &[&str]| {
        ours(look, |spec| {
            spec["process"]["scheduler"] = json!({"policy": "SCHED_DEADLINE", "runtime": 10_000_000,
                "deadline": 100_000_000, "period": 100_000_000, "flags": flags});
        })
    };
    assert_eq!(with_deadline(own, &[]), "0 6");
    let both = format!("{own}; ({own}); true");
    assert_eq!(with_deadline(&both, &["SCHED_FLAG_RESET_ON_FORK"]), "0 6\n0 0");
    for (class, priority, expected) in
        [("IOPRIO_CLASS_BE", 3, "best-effort: prio 3"), ("IOPRIO_CLASS_RT", 2, "realtime: prio 2")]
    {
        let said = ours("busybox ionice -p $$", |spec| {
            spec["process"]["ioPriority"] = json!({"class": class, "priority": priority});
        });
        assert_eq!(said, expected, "{class}");
    }
    for (part, value) in [
        ("scheduler", json!({"policy": "SCHED_NOSUCH"})),
        ("ioPriority", json!({"class": "IOPRIO_NOSUCH", "priority": 1})),
    ] {
        let bundle = bundle(|spec| spec["process"][part] = value.clone());
        let runtime = Runtime::ours();
        let path = bundle.path().display().to_string();
        let refused = runtime.run(&["run", "--bundle", &path, &runtime.id("wrong")]);
        refused.expect_code(1).expect_stderr("NOSUCH");
    }
}

/// Whether the kernel takes one, or has anything to do by it, depends on how it was built; that it is told of it is seen by
/// strace(1).
#[test]
fn flags_of_schedulers_reach_the_kernel() {
    let runtime = Runtime::ours();
    for flag in [
        "RESET_ON_FORK",
        "RECLAIM",
        "DL_OVERRUN",
        "KEEP_POLICY",
        "KEEP_PARAMS",
        "UTIL_CLAMP_MIN",
        "UTIL_CLAMP_MAX",
    ] {
        let flag = format!("SCHED_FLAG_{flag}");
        let bundle = bundle(|spec| {
            script(spec, "true");
            spec["process"]["scheduler"] = json!({"policy": "SCHED_OTHER", "flags": [flag]});
        });
        let (path, calls) = (bundle.path().display().to_string(), bundle.path().join("calls"));
        let start = runtime.command(&["run", "--bundle", &path, &runtime.id("flags")]);
        let mut strace = Command::new("strace");
        strace.args(["-f", "-qq", "-e", "trace=sched_setattr", "-o"]).arg(&calls);
        run(strace.arg(start.get_program()).args(start.get_args()).stdin(Stdio::null()));
        let calls = read_text(&calls);
        assert!(calls.contains(&format!("sched_flags={flag},")), "{flag}: {calls}");
        // Without the last two fields the kernel refuses the last two flags.
        assert!(calls.contains("{size=56, "), "{flag}: {calls}");
    }
    let bundle = bundle(|spec| {
        spec["process"]["scheduler"] = json!({"policy": "SCHED_OTHER", "flags": ["SCHED_FLAG_NOSUCH"]});
    });
    let path = bundle.path().display().to_string();
    let refused = runtime.run(&["run", "--bundle", &path, &runtime.id("flags")]);
    refused.expect_code(1).expect_stderr("SCHED_FLAG_NOSUCH");
}

#[test]
fn memory_comes_from_the_nodes_of_the_policy() {
    // Behind the address of a range is its policy (numa(7)).
    let look = "busybox head -n 1 /proc/self/numa_maps | busybox cut -d' ' -f2-";
    let shows = |policy: Value, expected: &str| {
        let said = ours(look, |spec| spec["linux"]["memoryPolicy"] = policy.clone());
        let (shown, _) = said.split_once(" file=").or(said.split_once(" anon=")).unwrap_or((&said, ""));
        assert_eq!(shown, expected, "{policy}");
    };
    let policy = |mode: &str, nodes: &str, flag: &str| {
        let flags = if flag.is_empty() { json!([]) } else { json!([flag]) };
        json!({"mode": mode, "nodes": nodes, "flags": flags})
    };
    shows(Value::Null, "default");
    shows(policy("MPOL_DEFAULT", "", ""), "default");
    shows(policy("MPOL_PREFERRED", "0", ""), "prefer:0");
    shows(policy("MPOL_BIND", "0", "MPOL_F_STATIC_NODES"), "bind=static:0");
    shows(policy("MPOL_BIND", "0", "MPOL_F_RELATIVE_NODES"), "bind=relative:0");
    shows(policy("MPOL_BIND", "0", "MPOL_F_NUMA_BALANCING"), "bind=balancing:0");
    shows(policy("MPOL_INTERLEAVE", "0", ""), "interleave:0");
    shows(policy("MPOL_LOCAL", "", ""), "local");
    shows(policy("MPOL_PREFERRED_MANY", "0", ""), "prefer (many):0");
    if linux::release() >= (6, 9, 0) {
        shows(policy("MPOL_WEIGHTED_INTERLEAVE", "0", ""), "weighted interleave:0");
    }
}

/// A process that enters starts on some processors and ends on others.
#[test]
fn who_enters_runs_on_its_processors() {
    let processors = read_text(Path::new("/sys/devices/system/cpu/online"));
    if processors == "0" {
        println!("skipped: this machine has one processor");
        return;
    }
    let runtime = Runtime::ours();
    let bundle = bundle(|spec| {
        script(spec, "sleep 1000");
        spec["linux"]["personality"] = json!({"domain": "LINUX32"});
    });
    let id = runtime.id("affinity");
    let path = bundle.path().display().to_string();
    runtime.command(&["run", "-d", "--bundle", &path, &id]).stdout(Stdio::null()).status().expect("it runs");
    let process = bundle.path().join("process.json");
    let description = json!({"args": ["sh", "-c", "grep Cpus_allowed_list /proc/self/status; uname -m"], "cwd": "/",
        "env": ["PATH=/bin"], "execCPUAffinity": {"initial": "0", "final": "1"}});
    fs::write(&process, description.to_string()).expect("writable");
    let exec = runtime.command(&["exec", "--process", &process.display().to_string(), &id]);
    let calls = bundle.path().join("calls");
    let mut strace = Command::new("strace");
    strace.args(["-f", "-y", "-qq", "-e", "trace=sched_setaffinity,write", "-o"]).arg(&calls);
    strace.arg(exec.get_program()).args(exec.get_args()).stdin(Stdio::null());
    let said = run(&mut strace).ok();
    assert_eq!(said.text(), "Cpus_allowed_list:\t1\ni686", "the personality is the container's");
    let calls = read_text(&calls);
    let kind = |line: &str| match line {
        line if line.contains("sched_setaffinity(") && line.contains("[0]") => Some("initial"),
        line if line.contains("sched_setaffinity(") && line.contains("[1]") => Some("final"),
        line if line.contains("write(") && line.contains("</sys/fs/cgroup/") => Some("in the cgroup"),
        _ => None,
    };
    let mut order: Vec<&str> = calls.lines().filter_map(kind).collect();
    order.dedup();
    assert_eq!(order, ["initial", "in the cgroup", "final"], "{calls}");
    runtime.run(&["delete", "--force", &id]).ok();
}

/// Of the process in the configuration, where whoever enters brings none.
#[test]
fn who_enters_runs_on_the_processors_of_the_configuration() {
    if read_text(Path::new("/sys/devices/system/cpu/online")) == "0" {
        println!("skipped: this machine has one processor");
        return;
    }
    let runtime = Runtime::ours();
    let bundle = bundle(|spec| {
        script(spec, "sleep 1000");
        spec["process"]["execCPUAffinity"] = json!({"initial": "0", "final": "1"});
    });
    let id = runtime.id("affinity");
    let path = bundle.path().display().to_string();
    runtime.command(&["run", "-d", "--bundle", &path, &id]).stdout(Stdio::null()).status().expect("it runs");
    let look = ["sh", "-c", "grep Cpus_allowed_list /proc/self/status"];
    let said = runtime.run(&[&["exec", &id][..], &look].concat()).ok();
    assert_eq!(said.text(), "Cpus_allowed_list:\t1");
    let look = ["sh", "-c", "grep Cpus_allowed_list /proc/1/status"];
    let said = runtime.run(&[&["exec", &id][..], &look].concat()).ok();
    assert_ne!(said.text(), "Cpus_allowed_list:\t1", "it is about those who enter");
    runtime.run(&["delete", "--force", &id]).ok();
}

/// Where hooks find what they name by relative paths: not in the specification, but they are written beside runc.
#[test]
fn hooks_run_in_the_bundle_or_in_the_root() {
    for runtime in Runtime::both() {
        let bundle = bundle(|spec| script(spec, "echo program >> /log"));
        let root = bundle.path().join("rootfs").canonicalize().expect("a root");
        let at_bundle = root.parent().expect("a bundle").display().to_string();
        let at_root = root.display().to_string();
        let mut spec = read_spec(bundle.path());
        let mut expected = vec!["program".to_owned()];
        for (name, log, at) in [
            ("prestart", root.join("log"), at_bundle.as_str()),
            ("createRuntime", root.join("log"), &at_bundle),
            ("createContainer", root.join("log"), &at_root),
            ("startContainer", "/log".into(), "/"),
            ("poststart", root.join("log"), &at_bundle),
            ("poststop", root.join("log"), &at_bundle),
        ] {
            // The program in the root is there once it is mounted.
            let seen = if name == "createContainer" { "; ls bin/busybox proc/self/status" } else { "" };
            let text = format!("echo {name} $(pwd{seen}) >> {}", log.display());
            spec["hooks"][name] =
                json!([{"path": "/bin/sh", "args": ["sh", "-c", text], "env": ["PATH=/bin"]}]);
            let seen = if name == "createContainer" { " bin/busybox proc/self/status" } else { "" };
            expected.push(format!("{name} {at}{seen}"));
        }
        fs::write(bundle.path().join("config.json"), spec.to_string()).expect("writable");
        let path = bundle.path().display().to_string();
        let id = runtime.id("hooks-at");
        runtime.command(&["run", "--bundle", &path, &id]).current_dir("/").status().expect("it runs");
        let log = read_text(&root.join("log"));
        let mut lines: Vec<&str> = log.lines().collect();
        lines.sort_unstable();
        expected.sort_unstable();
        assert_eq!(lines, expected, "{}", runtime.name);
    }
}

/// Every hook in its order, with the state it is told, in the namespaces where it must run.
#[test]
fn hooks_run_in_their_order_and_place() {
    const HOOKS: [&str; 6] =
        ["prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"];
    const PLACE: &str = "$(readlink /proc/self/ns/mnt) $(readlink /proc/self/ns/uts)";
    for runtime in Runtime::both() {
        let bundle = bundle(|spec| {
            script(spec, &format!("echo program {PLACE} >> /log"));
            spec["annotations"] = json!({"org.example": "kept"});
        });
        let root = bundle.path().join("rootfs");
        let mut spec = read_spec(bundle.path());
        for name in HOOKS {
            // In the container's root there is another path to the log, and one program with many names.
            let (log, tr) = match name {
                "startContainer" => ("/log".to_owned(), "busybox tr"),
                _ => (root.join("log").display().to_string(), "tr"),
            };
            let hook = |number: u32| {
                let text =
                    format!("read state; echo $NAMED {PLACE} $(echo \"$state\" | {tr} -d ' \\n') >> {log}");
                let named = format!("NAMED={name}{number}");
                json!({"path": "/bin/sh", "args": ["sh", "-c", text], "env": [named, "PATH=/usr/bin:/bin"]})
            };
            spec["hooks"][name] = json!([hook(0), hook(1)]);
        }
        fs::write(bundle.path().join("config.json"), spec.to_string()).expect("writable");
        let path = bundle.path().display().to_string();
        let id = runtime.id("hooks");
        runtime.run(&["run", "--bundle", &path, &id]).ok();
        let log = read_text(&root.join("log"));
        let lines: Vec<Vec<&str>> = log.lines().map(|line| line.splitn(4, ' ').collect()).collect();

        let of = |kinds: &[&str]| -> Vec<String> {
            kinds.iter().flat_map(|kind| [format!("{kind}0"), format!("{kind}1")]).collect()
        };
        let mut order: Vec<&str> = lines.iter().map(|line| line[0]).collect();
        // The program and the hooks after its start are at work at once.
        let program = order.iter().position(|name| *name == "program").expect("it ran");
        order.remove(program);
        assert!((8..=10).contains(&program), "{}: behind what comes before its start: {log}", runtime.name);
        if runtime.name == "hoist" {
            assert_eq!(order, of(&HOOKS), "{log}");
        } else {
            // Debian's runc does not wait for the start before it tells of it.
            order.retain(|name| !name.starts_with("poststart"));
            let others: Vec<&str> = HOOKS.into_iter().filter(|name| *name != "poststart").collect();
            assert_eq!(order, of(&others), "{log}");
        }

        let inside = &lines[program][1..3];
        let outside: Vec<String> = ["mnt", "uts"]
            .map(|kind| fs::read_link(format!("/proc/self/ns/{kind}")).expect("a namespace"))
            .map(|path| path.display().to_string())
            .into();
        for (name, status) in
            HOOKS.iter().zip(["creating", "creating", "creating", "created", "running", "stopped"])
        {
            for line in lines.iter().filter(|line| line[0].starts_with(name)) {
                let is_inside = matches!(*name, "createContainer" | "startContainer");
                let place =
                    if is_inside { inside.to_vec() } else { outside.iter().map(String::as_str).collect() };
                assert_eq!(line[1..3], place, "{} {name}", runtime.name);
                let state: Value = serde_json::from_str(line[3]).expect("JSON");
                assert_eq!(state["id"], id, "{name}");
                assert_eq!(state["annotations"]["org.example"], "kept", "{name}");
                // As `runtime.md` has it; Debian's runc is of an older mind about some.
                if runtime.name == "hoist" {
                    assert_eq!(state["status"], status, "{name}: {state}");
                }
            }
        }
    }
}

/// `runtime.md`, "Lifecycle": what becomes of `config.json` after the creation changes nothing.
#[test]
fn hooks_are_those_of_the_creation() {
    for runtime in Runtime::both() {
        let bundle = bundle(|spec| script(spec, "echo program >> /log"));
        let root = bundle.path().join("rootfs");
        let mut spec = read_spec(bundle.path());
        let config = bundle.path().join("config.json");
        let mut write = |words: &str| {
            for name in ["startContainer", "poststart", "poststop"] {
                let log = if name == "startContainer" { "/".as_ref() } else { root.as_path() };
                let text = format!("echo {name} {words} >> {}/log", log.display());
                spec["hooks"][name] = json!([{"path": "/bin/sh", "args": ["sh", "-c", text]}]);
            }
            fs::write(&config, spec.to_string()).expect("writable");
        };
        write("then");
        let path = bundle.path().display().to_string();
        let id = runtime.id("hooks-then");
        // The container keeps its streams.
        let mut create = runtime.command(&["create", "--bundle", &path, &id]);
        assert!(create.stdout(Stdio::null()).stderr(Stdio::null()).status().expect("it runs").success());
        write("later");
        runtime.run(&["start", &id]).ok();
        eventually("the program has ended", || {
            runtime.run(&["state", &id]).ok().stdout.contains("stopped").then_some(())
        });
        runtime.run(&["delete", &id]).ok();
        let log = read_text(&root.join("log"));
        let mut lines: Vec<&str> = log.lines().collect();
        lines.sort_unstable();
        let expected = ["poststart then", "poststop then", "program", "startContainer then"];
        assert_eq!(lines, expected, "{}", runtime.name);
    }
}

#[test]
fn a_hook_that_fails_or_lingers_ends_the_birth() {
    for runtime in Runtime::both() {
        for name in ["prestart", "createRuntime", "createContainer", "startContainer", "poststart"] {
            for (text, timeout) in [("echo why >&2; exit 3", 0), ("exec sleep 1000", 1)] {
                let bundle = bundle(|spec| {
                    script(spec, "sleep 1000");
                    spec["hooks"][name] = json!([{"path": "/bin/sh", "args": ["sh", "-c", text], "env": ["PATH=/bin:/usr/bin"]}]);
                    if timeout > 0 {
                        spec["hooks"][name][0]["timeout"] = json!(timeout);
                    }
                });
                let path = bundle.path().display().to_string();
                let id = runtime.id("hook");
                let done = runtime.run(&["run", "--bundle", &path, &id]);
                assert_ne!(done.code, 0, "{} {name} {text}: {done}", runtime.name);
                if runtime.name == "hoist" {
                    let words = if timeout > 0 { "timeout of 1 s" } else { "exit status: 3: why" };
                    assert!(done.stderr.contains(name) && done.stderr.contains(words), "{name}: {done}");
                }
                runtime.run(&["delete", "--force", &id]);
                assert_eq!(runtime.run(&["list", "-q"]).ok().text(), "", "{name}: nothing is left");
            }
        }
    }
}

/// What a container leaves is taken down all the same, and the hook with it.
#[test]
fn a_last_hook_that_fails_or_lingers_is_a_warning() {
    for runtime in Runtime::both() {
        for (text, timeout, words) in
            [("exit 3", 0, "exit status: 3"), ("echo > $0; exec sleep 1000", 1, "timeout of 1 s")]
        {
            let bundle = bundle(|spec| script(spec, "exit 4"));
            let mut spec = read_spec(bundle.path());
            let begun = bundle.path().join("begun").display().to_string();
            let hook = |text: &str| json!({"path": "/bin/sh", "args": ["sh", "-c", text, begun], "env": ["PATH=/bin:/usr/bin"]});
            spec["hooks"]["poststop"] = json!([hook(text), hook("echo > $0.next")]);
            if timeout > 0 {
                spec["hooks"]["poststop"][0]["timeout"] = json!(timeout);
            }
            fs::write(bundle.path().join("config.json"), spec.to_string()).expect("writable");
            let path = bundle.path().display().to_string();
            let done = runtime.run(&["run", "--bundle", &path, &runtime.id("last")]).expect_code(4);
            assert_eq!(runtime.run(&["list", "-q"]).ok().text(), "", "nothing is left");
            assert_eq!(bundle.path().join("begun").exists(), timeout > 0);
            if runtime.name == "hoist" {
                // As the specification has it; Debian's runc leaves it at the first.
                assert!(bundle.path().join("begun.next").exists(), "the next one runs");
                done.expect_stderr("poststop").expect_stderr(words);
            }
        }
    }
}

/// More than a pipe holds, and nobody reads it while the hook runs.
#[test]
fn a_hook_may_say_as_much_as_it_likes() {
    let runtime = Runtime::ours();
    for (end, code) in [("exit 0", 0), ("exit 3", 1)] {
        let bundle = bundle(|spec| {
            script(spec, "true");
            let text = format!("echo first >&2; head -c 300000 /dev/zero >&2; {end}");
            spec["hooks"]["createRuntime"] = json!([{"path": "/bin/sh", "args": ["sh", "-c", text], "env": ["PATH=/bin:/usr/bin"], "timeout": 20}]);
        });
        let path = bundle.path().display().to_string();
        let done = runtime.run(&["run", "--bundle", &path, &runtime.id("hook")]);
        assert_eq!(done.code, code, "{done}");
        assert!(code == 0 || done.stderr.contains("first"), "{done}");
    }
}

/// A supervisor in C: takes one listener, keeps the message for the test, and answers one call.
const SUPERVISOR: &str = r#"
#include <errno.h>
#include <fcntl.h>
#include <linux/seccomp.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>
int main(int argc, char **argv) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    strcpy(address.sun_path, argv[1]);
    int server = socket(AF_UNIX, SOCK_STREAM, 0);
    if (bind(server, (void *)&address, sizeof address) || listen(server, 8)) return 1;
    int message = open(argv[2], O_WRONLY | O_CREAT | O_APPEND, 0644);
    for (;;) {
        int client = accept(server, 0, 0);
        char text[65536], space[CMSG_SPACE(sizeof(int))];
        struct iovec part = {text, sizeof text};
        struct msghdr header = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = space, .msg_controllen = sizeof space};
        ssize_t len = recvmsg(client, &header, 0);
        int listener;
        memcpy(&listener, CMSG_DATA(CMSG_FIRSTHDR(&header)), sizeof listener);
        write(message, text, len);
        write(message, "\n", 1);
        if (fork()) { close(client); close(listener); continue; }
        for (;;) {
            struct seccomp_notif call = {0};
            if (ioctl(listener, SECCOMP_IOCTL_NOTIF_RECV, &call)) return errno != EINTR && errno != ENOENT;
            struct seccomp_notif_resp answer = {.id = call.id, .error = -ENOTEMPTY};
            ioctl(listener, SECCOMP_IOCTL_NOTIF_SEND, &answer);
        }
    }
}
"#;

/// Calls that the profile has a supervisor asked about are answered by it, in the first process and in those
/// that enter, whatever other call it is asked about.
#[test]
fn a_supervisor_answers_for_the_kernel() {
    let dir = TempDir::new().expect("a temporary directory");
    let (program, socket, messages) =
        (dir.path().join("supervisor"), dir.path().join("s"), dir.path().join("messages"));
    compile(SUPERVISOR, &program);
    let mut supervisor = Command::new(&program).arg(&socket).arg(&messages).spawn().expect("just compiled");
    eventually("the supervisor listens", || socket.exists().then_some(()));
    for no_new_privileges in [true, false] {
        let runtime = Runtime::ours();
        let bundle = bundle(|spec| {
            script(spec, "mkdir /first 2>/said; sleep 1000");
            spec["process"]["noNewPrivileges"] = json!(no_new_privileges);
            spec["linux"]["seccomp"] = json!({
                "defaultAction": "SCMP_ACT_ALLOW", "listenerPath": socket, "listenerMetadata": "for the test",
                "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_NOTIFY"}]});
        });
        let path = bundle.path().display().to_string();
        let id = runtime.id("notify");
        let status = runtime.command(&["run", "-d", "--bundle", &path, &id]).stdout(Stdio::null()).status();
        assert!(status.expect("it runs").success());
        let said = bundle.path().join("rootfs/said");
        eventually("the first process is answered", || {
            fs::read_to_string(&said).is_ok_and(|text| text.contains("not empty")).then_some(())
        });
        runtime.run(&["exec", &id, "mkdir", "/second"]).expect_code(1).expect_stderr("not empty");
        let text = read_text(&messages);
        let told: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
        let told: Vec<&Value> = told.iter().filter(|told| told["state"]["id"] == id).collect();
        assert_eq!(told.len(), 2, "{text}");
        for (told, status) in told.iter().zip(["creating", "running"]) {
            assert_eq!((&told["metadata"], &told["fds"]), (&json!("for the test"), &json!(["seccompFd"])));
            assert_eq!(told["state"]["status"], status);
            assert!(told["pid"].as_u64().is_some_and(|pid| pid > 1), "{told}");
        }
        runtime.run(&["delete", "--force", &id]).ok();
    }
    supervisor.kill().expect("a child of ours");
    supervisor.wait().expect("a child of ours");
    let bundle = bundle(|spec| {
        spec["linux"]["seccomp"] = json!({"defaultAction": "SCMP_ACT_ALLOW",
            "syscalls": [{"names": ["mkdir"], "action": "SCMP_ACT_NOTIFY"}]});
    });
    let runtime = Runtime::ours();
    let path = bundle.path().display().to_string();
    let refused = runtime.run(&["run", "--bundle", &path, &runtime.id("notify")]);
    refused.expect_code(1).expect_stderr("listenerPath");
}

/// Actions of a filter, as runc's library makes them.
#[test]
fn actions_of_filters_are_runcs() {
    for action in [
        "SCMP_ACT_ERRNO",
        "SCMP_ACT_KILL",
        "SCMP_ACT_KILL_PROCESS",
        "SCMP_ACT_KILL_THREAD",
        "SCMP_ACT_TRAP",
        "SCMP_ACT_LOG",
        "SCMP_ACT_TRACE",
    ] {
        let attempt =
            "sh -c 'mkdir /made' 2>/dev/null; echo $?; test -d /made && busybox rmdir /made; echo end";
        let filter = |spec: &mut Value, flags: Value| {
            spec["linux"]["seccomp"] = json!({"defaultAction": "SCMP_ACT_ALLOW", "flags": flags,
                "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
                "syscalls": [{"names": ["mkdir", "mkdirat"], "action": action}]});
        };
        let said = same(attempt, |spec| filter(spec, json!([])));
        assert!(said.contains("end"), "{action}: {said}");
        // Debian's runc knows no flags.
        let flags =
            ["SECCOMP_FILTER_FLAG_LOG", "SECCOMP_FILTER_FLAG_SPEC_ALLOW", "SECCOMP_FILTER_FLAG_TSYNC"];
        assert_eq!(ours(attempt, |spec| filter(spec, json!(flags))), said.trim(), "{action} with flags");
    }
}

#[test]
fn network_devices_move_in_with_their_addresses() {
    let (device, peer) = (format!("hd{}", std::process::id()), format!("hp{}", std::process::id()));
    let ip = |words: &[&str]| run(Command::new("ip").args(words));
    ip(&["link", "add", &device, "type", "veth", "peer", "name", &peer]).ok();
    ip(&["address", "add", "192.0.2.7/24", "dev", &device]).ok();
    ip(&["address", "add", "2001:db8::7/64", "dev", &device, "nodad"]).ok();
    let said = ours("busybox ip -o address show eth7; ls /sys/class/net", |spec| {
        spec["linux"]["netDevices"] = json!({device.as_str(): {"name": "eth7"}});
    });
    assert!(said.contains("192.0.2.7/24") && said.contains("2001:db8::7/64"), "{said}");
    assert!(said.ends_with("eth7\nlo"), "{said}");
    assert_ne!(ip(&["link", "show", &device]).code, 0, "it went with its namespace");
    // Its other end goes with it, when the kernel takes the namespace down: some time after the container's end.
    eventually("its peer is gone", || (ip(&["link", "show", &peer]).code != 0).then_some(()));
    // A template, after names that are no templates.
    ip(&["link", "add", &device, "type", "veth", "peer", "name", &peer]).ok();
    let said = ours("ls /sys/class/net", |spec| {
        spec["linux"]["netDevices"] =
            json!({device.as_str(): {"name": "net%d"}, peer.as_str(): {"name": "net0"}});
    });
    assert_eq!(said, "lo\nnet0\nnet1");
    // An alternative name is taken too.
    ip(&["link", "add", &device, "type", "veth", "peer", "name", &peer]).ok();
    ip(&["link", "property", "add", "dev", &device, "altname", "other0"]).ok();
    let said = ours("ls /sys/class/net", |spec| {
        spec["linux"]["netDevices"] =
            json!({device.as_str(): {"name": "lan"}, peer.as_str(): {"name": "other%d"}});
    });
    assert_eq!(said, "lan\nlo\nother1");
    // A sysctl of one, whose name has a dot.
    ip(&["link", "add", &device, "type", "veth", "peer", "name", &peer]).ok();
    let said = ours("cat /proc/sys/net/ipv4/conf/eth7.100/tag", |spec| {
        spec["linux"]["netDevices"] = json!({device.as_str(): {"name": "eth7.100"}});
        spec["linux"]["sysctl"] = json!({"net.ipv4.conf.eth7/100.tag": "7"});
    });
    assert_eq!(said, "7");
    for (devices, words) in
        [(json!({"hd-none": {}}), "not there"), (json!({"lo": {"name": "a/b"}}), "no name")]
    {
        let bundle = bundle(|spec| spec["linux"]["netDevices"] = devices.clone());
        let runtime = Runtime::ours();
        let path = bundle.path().display().to_string();
        let refused = runtime.run(&["run", "--bundle", &path, &runtime.id("netdev")]);
        refused.expect_code(1).expect_stderr(words);
        assert_eq!(runtime.run(&["list", "-q"]).ok().text(), "", "nothing is left");
    }
}

/// What a host forbids or lacks is said, and the container runs all the same.
#[test]
fn what_the_host_cannot_do_is_a_warning() {
    let has_module = |path: &str| Path::new(path).exists();
    if has_module("/sys/module/apparmor") || has_module("/sys/fs/selinux/enforce") {
        println!("skipped: this host has the modules whose absence is tested");
        return;
    }
    let bundle = bundle(|spec| {
        script(spec, "echo ran");
        spec["process"]["apparmorProfile"] = json!("docker-default");
        spec["process"]["selinuxLabel"] = json!("system_u:system_r:container_t:s0");
        spec["linux"]["mountLabel"] = json!("system_u:object_r:container_file_t:s0");
    });
    let runtime = Runtime::ours();
    let path = bundle.path().display().to_string();
    let done = runtime.run(&["run", "--bundle", &path, &runtime.id("warned")]).ok();
    assert_eq!(done.text(), "ran");
    done.expect_stderr("AppArmor profile docker-default").expect_stderr("SELinux label system_u");
    let bundle = crate::runtime_bundle::bundle(|spec| spec["linux"]["intelRdt"] = json!({"closID": "x"}));
    let path = bundle.path().display().to_string();
    let has_resctrl = run(Command::new("grep").args(["-q", " - resctrl ", "/proc/self/mountinfo"])).code == 0;
    if !has_resctrl {
        let refused = runtime.run(&["run", "--bundle", &path, &runtime.id("rdt")]);
        refused.expect_code(1).expect_stderr("resctrl");
    }
}

/// `features` tells what is there: all that runc tells, and only words that a bundle may use.
#[test]
fn features_are_true() {
    let [ours, theirs] = Runtime::both().map(|runtime| -> Value {
        serde_json::from_str(&runtime.run(&["features"]).ok().stdout).expect("JSON")
    });
    let words = |features: &Value, pointer: &str| -> Vec<String> {
        let list = features.pointer(pointer).and_then(Value::as_array);
        list.into_iter().flatten().map(|word| word.as_str().expect("a word").to_owned()).collect()
    };
    let mut missing = missing(&theirs, &ours);
    // What is no promise: names and versions of its parts, processors that we do not run on.
    missing.retain(|path| {
        let other_processor = path.starts_with("/linux/seccomp/archs")
            && !["X86_64", "X86", "X32"].iter().any(|known| path.ends_with(&format!("SCMP_ARCH_{known}\"")));
        let other_part =
            ["libseccomp.version", "runc.commit", "runc.version"].iter().any(|part| path.ends_with(part));
        !other_processor && !other_part
    });
    assert!(missing.is_empty(), "{missing:?}\n{ours}");
    assert_eq!(ours["ociVersionMax"], "1.3.0");
    // All annotations that change what is done.
    let unsafe_ones = words(&ours, "/potentiallyUnsafeConfigAnnotations");
    assert_eq!(unsafe_ones, ["org.criu.config", "org.systemd.property."]);
    for seen in [
        "cgroup/v1",
        "cgroup/v2",
        "cgroup/rdma",
        "intelRdt/enabled",
        "intelRdt/schemata",
        "intelRdt/monitoring",
    ]
    .into_iter()
    .chain(["mountExtensions/idmap/enabled", "netDevices/enabled"])
    {
        assert_eq!(ours.pointer(&format!("/linux/{seen}")), Some(&json!(true)), "{seen}");
    }
    // A bundle may name each filter flag and each action.
    let flags = words(&ours, "/linux/seccomp/supportedFlags");
    assert_eq!(flags, words(&ours, "/linux/seccomp/knownFlags"));
    for architecture in words(&ours, "/linux/seccomp/archs") {
        let said = self::ours("grep Seccomp: /proc/self/status", |spec| {
            spec["linux"]["seccomp"] = json!({"defaultAction": "SCMP_ACT_ALLOW", "architectures": [architecture],
                "syscalls": [{"names": ["mkdir"], "action": "SCMP_ACT_ERRNO"}]});
        });
        assert_eq!(said, "Seccomp:\t2", "{architecture}");
    }
    // Each capability is one that a process can be given.
    let names = words(&ours, "/linux/capabilities");
    let said = self::ours("grep -E 'CapEff|CapBnd' /proc/self/status", |spec| {
        spec["process"]["capabilities"] = json!({"bounding": names, "effective": names, "permitted": names});
    });
    // This host's own may be fewer than its kernel's.
    let own = read_text(Path::new("/proc/self/status"));
    let all = own.lines().find_map(|line| line.strip_prefix("CapBnd:\t")).expect("proc(5)");
    assert_eq!(said, format!("CapEff:\t{all}\nCapBnd:\t{all}"));
    // Each option is one that a mount takes.
    let options = words(&ours, "/mountOptions");
    let host = mappable_disk();
    let said = self::ours("busybox grep -c ' /m' /proc/self/mountinfo", |spec| {
        for (number, option) in options.iter().enumerate() {
            let mut mount = json!({"destination": format!("/m{number}"), "type": "bind", "source": host.path(), "options": ["bind", option]});
            if ["remount", "tmpcopyup"].contains(&option.as_str()) {
                continue;
            }
            if option.ends_with("idmap") {
                for kind in ["uidMappings", "gidMappings"] {
                    mount[kind] = json!([{"containerID": 0, "hostID": 5, "size": 1}]);
                }
            }
            add_mount(spec, mount);
        }
    });
    assert_eq!(said, (options.len() - 2).to_string());
    for namespace in words(&ours, "/linux/namespaces") {
        let file = match namespace.as_str() {
            "network" => "net",
            "mount" => "mnt",
            other => other,
        };
        let said = self::ours(&format!("readlink /proc/self/ns/{file}"), |spec| match namespace.as_str() {
            "user" => map_users(spec, &[(0, 100_000, 1000)]),
            kind => add_namespace(spec, json!({"type": kind})),
        });
        let own = fs::read_link(format!("/proc/self/ns/{file}")).expect("the kernel has it");
        assert_ne!(said, own.display().to_string(), "{namespace}");
    }
}

/// What a specification or a newer runc refuses, and Debian's runc takes.
#[test]
fn what_could_not_be_meant_is_refused() {
    type Change = fn(&mut Value);
    let rows: [(Change, &str); 21] = [
        (
            |spec| {
                let namespaces = spec["linux"]["namespaces"].as_array_mut().expect("namespaces");
                namespaces.retain(|namespace| namespace["type"] != "mount");
            },
            "a container needs a mount namespace of its own",
        ),
        (
            |spec| spec["linux"]["timeOffsets"] = json!({"monotonic": {"secs": 5}}),
            "timeOffsets need a time namespace of the container's own",
        ),
        (
            |spec| {
                spec["linux"]["timeOffsets"] = json!({"monotonic": {"secs": 5}});
                add_namespace(spec, json!({"type": "time", "path": "/proc/self/ns/time"}));
            },
            "timeOffsets need a time namespace of the container's own",
        ),
        (|spec| spec["linux"]["uidMappings"] = one_id(), "uidMappings and gidMappings need a user namespace"),
        (|spec| spec["linux"]["gidMappings"] = one_id(), "uidMappings and gidMappings need a user namespace"),
        (
            |spec| {
                add_namespace(spec, json!({"type": "user"}));
                spec["linux"]["uidMappings"] = one_id();
            },
            "a user namespace needs uidMappings and gidMappings",
        ),
        (|spec| filter(spec, json!({"names": []})), "names no system call"),
        (|spec| filter(spec, json!({"names": [""]})), "names no system call"),
        (
            |spec| filter(spec, json!({"action": "SCMP_ACT_ALLOW", "errnoRet": 5})),
            "SCMP_ACT_ALLOW has no errnoRet",
        ),
        (
            |spec| filter(spec, json!({"action": "SCMP_ACT_KILL", "errnoRet": 5})),
            "SCMP_ACT_KILL has no errnoRet",
        ),
        (
            |spec| {
                filter(spec, json!({}));
                spec["linux"]["seccomp"]["defaultErrnoRet"] = json!(5);
            },
            "SCMP_ACT_ALLOW has no errnoRet",
        ),
        (
            |spec| spec["process"]["scheduler"] = json!({"policy": "SCHED_OTHER", "nice": 20}),
            "scheduler.nice 20 is not from -20 to 19",
        ),
        (
            |spec| spec["process"]["scheduler"] = json!({"policy": "SCHED_BATCH", "priority": 3}),
            "scheduler.priority is for SCHED_FIFO and SCHED_RR",
        ),
        (
            |spec| spec["process"]["scheduler"] = json!({"policy": "SCHED_OTHER", "period": 3}),
            "scheduler.runtime, deadline and period are for SCHED_DEADLINE",
        ),
        (
            |spec| spec["process"]["ioPriority"] = json!({"class": "IOPRIO_CLASS_BE", "priority": 8}),
            "ioPriority 8 is not from 0 to 7",
        ),
        (
            |spec| spec["process"]["ioPriority"] = json!({"class": "IOPRIO_CLASS_BE", "priority": -1}),
            "ioPriority -1 is not from 0 to 7",
        ),
        // In the words of newer runcs.
        (|spec| spec["linux"]["memoryPolicy"] = json!({}), "invalid memory policy mode"),
        (
            |spec| {
                let flags = ["MPOL_F_RELATIVE_NODES", "badflag"];
                spec["linux"]["memoryPolicy"] =
                    json!({"mode": "MPOL_PREFERRED", "nodes": "0", "flags": flags});
            },
            "invalid memory policy flag",
        ),
        (
            |spec| spec["linux"]["memoryPolicy"] = json!({"mode": "MPOL_DEFAULT", "nodes": "0-7"}),
            "mode requires 0 nodes but got 8",
        ),
        (
            |spec| {
                filter(spec, json!({"names": ["write"], "action": "SCMP_ACT_NOTIFY"}));
                spec["linux"]["seccomp"]["listenerPath"] = json!("/nosuch");
            },
            "SCMP_ACT_NOTIFY cannot be used for the write syscall",
        ),
        (
            |spec| {
                filter(spec, json!({"action": "SCMP_ACT_NOTIFY"}));
                spec["linux"]["seccomp"]["listenerPath"] = json!("/nosuch");
            },
            "failed to connect with seccomp agent",
        ),
    ];
    let runtime = Runtime::ours();
    for (change, words) in rows {
        let bundle = bundle(|spec| {
            script(spec, "true");
            change(spec);
        });
        let path = bundle.path().display().to_string();
        runtime.run(&["run", "--bundle", &path, &runtime.id("meant")]).expect_code(1).expect_stderr(words);
        assert_eq!(runtime.run(&["list", "-q"]).ok().text(), "", "nothing is left");
    }
}

fn one_id() -> Value {
    json!([{"containerID": 0, "hostID": 0, "size": 1}])
}

/// A filter of one rule, changed by `rule`.
fn filter(spec: &mut Value, rule: Value) {
    let mut whole = json!({"names": ["mkdir"], "action": "SCMP_ACT_ERRNO"});
    let changes = rule.as_object().expect("a rule").clone();
    whole.as_object_mut().expect("a rule").extend(changes);
    spec["linux"]["seccomp"] = json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [whole]});
}

/// Runs all the same, as under runc, and both say what was left out or is likely not meant.
#[test]
fn what_is_likely_not_meant_is_a_warning() {
    type Change = fn(&mut Value);
    let rows: [(Change, &str, &[&str]); 3] = [
        (
            |spec| spec["process"]["capabilities"]["bounding"] = json!(["CAP_CHOWN", "CAP_NOSUCH"]),
            "CapBnd:\t0000000000000001",
            &["unknown", "CAP_NOSUCH"],
        ),
        (
            |spec| {
                add_mount(
                    spec,
                    json!({"destination": "some/../sub/dir", "type": "tmpfs", "source": "tmpfs"}),
                );
                script(spec, "busybox awk '$3 == \"tmpfs\" && $2 ~ /sub/ { print $2 }' /proc/mounts");
            },
            "/sub/dir",
            &["some/../sub/dir", "not absolute"],
        ),
        // The last counts, which the specification forbids and runc does.
        (
            |spec| {
                let limit = |number: u32| json!({"type": "RLIMIT_NOFILE", "soft": number, "hard": number});
                spec["process"]["rlimits"] = json!([limit(99), limit(77)]);
                script(spec, "ulimit -n");
            },
            "77",
            &[],
        ),
    ];
    for (change, expected, words) in rows {
        let bundle = bundle(|spec| {
            script(spec, "grep CapBnd /proc/self/status");
            change(spec);
        });
        let path = bundle.path().display().to_string();
        for runtime in Runtime::both() {
            let done = runtime.run(&["run", "--bundle", &path, &runtime.id("likely")]).ok();
            assert_eq!(done.text(), expected, "{}", runtime.name);
            words.iter().fold(done, |done, word| done.expect_stderr(word));
        }
    }
    // Debian's runc says nothing of letters that no access has.
    let letters = bundle(|spec| {
        script(spec, "echo ran");
        spec["linux"]["resources"]["devices"] =
            json!([{"allow": true, "type": "c", "major": 1, "minor": 3, "access": "rwa"}]);
    });
    let path = letters.path().display().to_string();
    for runtime in Runtime::both() {
        let done = runtime.run(&["run", "--bundle", &path, &runtime.id("likely")]).ok();
        assert_eq!(done.text(), "ran", "{}", runtime.name);
        if runtime.name == "hoist" {
            done.expect_stderr("\"rwa\"").expect_stderr("left out");
        }
    }
    // Who enters is told as well.
    let bundle = bundle(|spec| script(spec, "sleep 1000"));
    let path = bundle.path().display().to_string();
    for runtime in Runtime::both() {
        let id = runtime.id("entered");
        let started = runtime
            .command(&["run", "--detach", "--bundle", &path, &id])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
        assert!(started.expect("it runs").success());
        let done = runtime.run(&["exec", "--cap", "CAP_NOSUCH", &id, "true"]).ok();
        done.expect_stderr("unknown").expect_stderr("CAP_NOSUCH");
        runtime.run(&["delete", "--force", &id]).ok();
    }
}
