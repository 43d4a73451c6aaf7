//! Behaviour of runc that no specification requires, and that its callers rely on.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::{Value, json};
use tempfile::TempDir;
use testkit::{Bundle, MountsBelow, eventually, run};

use crate::cgroups::is_v2;
use crate::runtime_bundle::{Runtime, add_mount, bundle, give, give_to, read_text, same, script};
use crate::runtime_joins::{Apart, join};

/// An id that no user has.
const USER: u32 = 4242;

/// Neither the user alone can enter the directory, nor root without CAP_DAC_OVERRIDE.
#[test]
fn a_working_directory_need_not_be_open_to_the_user() {
    for (owner, user) in [(0, USER), (USER, 0), (USER, USER)] {
        let closed = |spec: &mut Value| {
            spec["process"]["cwd"] = json!("/closed");
            spec["process"]["user"] = json!({"uid": user, "gid": user});
            add_mount(
                spec,
                json!({"destination": "/closed", "type": "tmpfs", "source": "tmpfs",
                    "options": [format!("uid={owner}"), "mode=0700"]}),
            );
        };
        assert_eq!(same("pwd", closed), "/closed\n", "of {owner}, for {user}");
    }
    // The same for an exec, whose user is another than the first process's.
    let bundle = bundle(|spec| {
        script(spec, "sleep 1000");
        spec["process"]["cwd"] = json!("/closed");
        spec["process"]["user"] = json!({"uid": USER, "gid": USER});
    });
    let closed = bundle.path().join("rootfs/closed");
    fs::create_dir(&closed).expect("a writable directory");
    std::os::unix::fs::chown(&closed, Some(USER), Some(USER)).expect("root");
    fs::set_permissions(&closed, fs::Permissions::from_mode(0o700)).expect("root");
    for runtime in Runtime::both() {
        let id = runtime.id("closed");
        let path = bundle.path().display().to_string();
        let mut started = runtime.command(&["run", "-d", "--bundle", &path, &id]);
        assert!(started.stdout(Stdio::null()).stderr(Stdio::null()).status().expect("it runs").success());
        assert_eq!(runtime.run(&["exec", "--user", "0", &id, "sh", "-c", "pwd"]).ok().text(), "/closed");
        runtime.run(&["delete", "--force", &id]).ok();
    }
    // A working directory outside of the container is refused for every user.
    let leaks = crate::runtime_bundle::bundle(|spec| {
        script(spec, "pwd");
        spec["process"]["cwd"] = json!("/proc/self/fd/7");
    });
    let path = leaks.path().display().to_string();
    Runtime::ours().run(&["run", "--bundle", &path, "leaks"]).expect_code(1);
}

#[test]
fn an_empty_home_is_none() {
    let homes = |values: &[&'static str]| {
        let values = values.to_vec();
        same("echo $HOME; busybox env | grep -c HOME=", move |spec| {
            let variables = spec["process"]["env"].as_array_mut().expect("variables");
            variables.extend(values.iter().map(|value| json!(format!("HOME={value}"))));
        })
    };
    assert_eq!(homes(&[]), "/\n1\n", "without a list of users");
    assert_eq!(homes(&[""]), "/\n1\n");
    assert_eq!(homes(&["/given", ""]), "/\n1\n");
    assert_eq!(homes(&["", "/given"]), "/given\n1\n");
}

/// The runtime's caller may be bound to some of the processors. The container may use all that its cgroup has.
#[test]
fn processors_of_the_caller_are_not_the_containers() {
    let look = "grep Cpus_allowed_list /proc/self/status";
    let all = read_text(Path::new("/proc/self/status"));
    let all =
        all.lines().find(|line| line.starts_with("Cpus_allowed_list")).expect("a kernel with processors");
    if all.ends_with("\t0") {
        eprintln!("skipped: this test may run on a single processor only");
        return;
    }
    let runtime = Runtime::ours();
    let tied = |words: &[&str]| {
        let command = runtime.command(words);
        let mut tied = Command::new("taskset");
        tied.args(["-c", "0"]).arg(command.get_program()).args(command.get_args()).stdin(Stdio::null());
        tied
    };
    let bundle_of = |text: &str, cpus: Option<&str>| {
        bundle(|spec| {
            script(spec, text);
            if let Some(cpus) = cpus {
                spec["linux"]["resources"]["cpu"] = json!({"cpus": cpus});
            }
        })
    };
    let sleeping = bundle_of("sleep 1000", None);
    for (looking, expected) in [
        (bundle_of(look, None), all.to_owned()),
        (bundle_of(look, Some("1")), "Cpus_allowed_list:\t1".to_owned()),
    ] {
        let path = looking.path().display().to_string();
        let said = run(&mut tied(&["run", "--bundle", &path, &runtime.id("tied")])).ok();
        assert_eq!(said.text(), expected);
    }
    let (path, id) = (sleeping.path().display().to_string(), runtime.id("tied"));
    let started = tied(&["run", "-d", "--bundle", &path, &id]).stdout(Stdio::null()).status();
    assert!(started.expect("it runs").success());
    assert_eq!(run(&mut tied(&["exec", &id, "sh", "-c", look])).ok().text(), all);
    runtime.run(&["delete", "--force", &id]).ok();
}

/// A mount becomes read-only only after the mounts below it are made.
#[test]
fn mounts_lie_in_a_read_only_one() {
    let said = same(
        "grep -E ' /(dev|dev/shm|run|run/inner) ' /proc/mounts | busybox cut -d, -f1; touch /run/x",
        |spec| {
            for mount in spec["mounts"].as_array_mut().expect("mounts") {
                if mount["destination"] == "/dev" {
                    mount["options"].as_array_mut().expect("options").push(json!("ro"));
                }
            }
            add_mount(
                spec,
                json!({"destination": "/run", "type": "tmpfs", "source": "tmpfs", "options": ["ro"]}),
            );
            add_mount(spec, json!({"destination": "/run/inner", "type": "tmpfs", "source": "tmpfs"}));
        },
    );
    let modes: Vec<&str> = said.lines().filter_map(|line| line.rsplit(' ').next()).collect();
    assert_eq!(modes, ["ro", "rw", "ro", "rw"], "{said}");
}

/// Also if the options only clear attributes, which Debian's runc ignores.
#[test]
fn a_bind_mount_has_the_attributes_that_it_names() {
    let host = TempDir::new().expect("a temporary directory");
    let flags = "ro,nosuid,nodev,noexec,noatime,mode=755";
    let _mount = MountsBelow(host.path().to_owned());
    run(Command::new("mount").args(["-t", "tmpfs", "-o", flags, "tmpfs"]).arg(host.path())).ok();
    let bundle = bundle(|spec| {
        script(spec, "busybox awk '$5 ~ \"^/m\" { print $6 }' /proc/self/mountinfo");
        let all = [
            &["bind"][..],
            &["bind", "rw", "rprivate"],
            &["bind", "exec"],
            &["bind", "atime"],
            &["bind", "norelatime"],
            &["bind", "diratime"],
            &["bind", "symfollow"],
            &["bind", "nodiratime", "norelatime"],
            // For a tree, the access times become relative, and the other attributes stay.
            &["rbind", "ratime"],
            &["rbind", "rnorelatime"],
            &["rbind", "rnostrictatime"],
        ];
        for (number, options) in all.iter().enumerate() {
            add_mount(
                spec,
                json!({"destination": format!("/m{number}"), "source": host.path(), "options": options}),
            );
        }
    });
    let runtime = Runtime::ours();
    let path = bundle.path().display().to_string();
    let done = runtime.run(&["run", "--bundle", &path, &runtime.id("names")]);
    let said: Vec<String> = done.ok().text().lines().map(str::to_owned).collect();
    // The negation of an access time option has no effect of its own: only another option changes the access times.
    let times = ["rw,noatime"; 6];
    let of_trees = ["ro,nosuid,nodev,noexec,relatime"; 3];
    let all =
        [&["ro,nosuid,nodev,noexec,noatime"][..], &times, &["rw,nodiratime,relatime"], &of_trees].concat();
    assert_eq!(said, all);
}

/// A hook without `env` gets the variables of the runtime, and one inside the container those of the container's
/// process.
#[test]
fn a_hook_without_variables_has_those_of_who_runs_it() {
    let said = same("cat /said", |spec| {
        spec["process"]["env"] = json!(["PATH=/bin", "ONE=two"]);
        let say = json!(["sh", "-c", "echo $ONE $HOME > /said"]);
        spec["hooks"] = json!({"startContainer": [{"path": "/bin/sh", "args": say}]});
    });
    assert_eq!(said, "two /\n");
    for runtime in Runtime::both() {
        let dir = TempDir::new().expect("a temporary directory");
        let note = dir.path().join("said").display().to_string();
        let bundle = bundle(|spec| {
            script(spec, "true");
            let say =
                |text: &str| json!([{"path": "/bin/sh", "args": ["sh", "-c", format!("{text} >> {note}")]}]);
            spec["hooks"] = json!({"createRuntime": say("echo $CALLER"), "poststop": say("echo $CALLER")});
        });
        let path = bundle.path().display().to_string();
        let mut command = runtime.command(&["run", "--bundle", &path, &runtime.id("hook")]);
        run(command.env("CALLER", "from outside")).ok();
        assert_eq!(read_text(Path::new(&note)), "from outside\nfrom outside", "{}", runtime.name);
    }
}

/// A created container's process is the first of its pid namespace, for which the kernel ignores signals without a
/// handler (pid_namespaces(7)).
#[test]
fn a_container_that_was_not_started_ends_when_asked() {
    let bundle = bundle(|spec| script(spec, "sleep 1000"));
    let path = bundle.path().display().to_string();
    for runtime in Runtime::both() {
        for signal in ["TERM", "INT", "HUP", "KILL"] {
            let id = runtime.id("asked");
            let mut created = runtime.command(&["create", "--bundle", &path, &id]);
            assert!(created.stdout(Stdio::null()).stderr(Stdio::null()).status().expect("it runs").success());
            runtime.run(&["kill", &id, signal]).ok();
            let is_stopped =
                || runtime.run(&["state", &id]).ok().stdout.contains(r#""status": "stopped""#).then_some(());
            eventually(&format!("{} ends it by {signal}", runtime.name), is_stopped);
            runtime.run(&["delete", &id]).ok();
        }
    }
}

/// A cgroup that somebody froze is refused, and stays frozen.
#[test]
fn a_frozen_cgroup_is_refused_and_stays() {
    let name = format!("frozen-{}", std::process::id());
    let (tree, file, frozen) = match is_v2() {
        true => ("/sys/fs/cgroup", "cgroup.freeze", "1"),
        false => ("/sys/fs/cgroup/freezer", "freezer.state", "FROZEN"),
    };
    let place = Path::new(tree).join(&name);
    fs::create_dir(&place).expect("root");
    fs::write(place.join(file), frozen).expect("a kernel with a freezer");
    let bundle = bundle(|spec| {
        script(spec, "true");
        spec["linux"]["cgroupsPath"] = json!(format!("/{name}"));
    });
    let path = bundle.path().display().to_string();
    let runtime = Runtime::ours();
    for command in ["run", "create", "create"] {
        let done = runtime.run(&[command, "--bundle", &path, &runtime.id("frozen")]).expect_code(1);
        done.expect_stderr("container's cgroup unexpectedly frozen").expect_stderr("thaw");
        assert_eq!(read_text(&place.join(file)), frozen, "by {command}");
    }
    fs::remove_dir(&place).expect("nobody is in it");
}

/// Without a pid namespace of the container's own, its other processes would outlive the first. With Debian's runc they
/// do.
#[test]
fn sigkill_ends_all_where_pids_are_the_hosts() {
    let runtime = Runtime::ours();
    for is_first_gone in [false, true] {
        let bundle = bundle(|spec| {
            script(spec, "sleep 1000 & exec sleep 1000");
            spec["linux"]["namespaces"]
                .as_array_mut()
                .expect("namespaces")
                .retain(|own| own["type"] != "pid");
        });
        let (path, id) = (bundle.path().display().to_string(), runtime.id("others"));
        let mut started = runtime.command(&["run", "-d", "--bundle", &path, &id]);
        assert!(started.stdout(Stdio::null()).stderr(Stdio::null()).status().expect("it runs").success());
        let pids = || -> Vec<i32> {
            let said = runtime.run(&["ps", "--format", "json", &id]).ok();
            serde_json::from_str(said.text()).expect("JSON")
        };
        eventually("both are there", || (pids().len() == 2).then_some(()));
        if is_first_gone {
            let state: Value = serde_json::from_str(&runtime.run(&["state", &id]).ok().stdout).expect("JSON");
            run(Command::new("kill").args(["-9", &state["pid"].to_string()])).ok();
            eventually("the first is gone", || (pids().len() == 1).then_some(()));
        }
        runtime.run(&["kill", &id, "KILL"]).ok();
        eventually("nobody is left", || pids().is_empty().then_some(()));
        runtime.run(&["kill", &id, "KILL"]).expect_code(1).expect_stderr("container not running");
        runtime.run(&["delete", &id]).ok();
    }
}

/// Namespaces of the host are joined before the user namespace, from which they could not be.
#[test]
fn a_user_namespace_goes_with_namespaces_of_the_host() {
    let apart = Apart::start(&["--net", "--uts", "--ipc"]);
    let look = "readlink /proc/self/ns/net; readlink /proc/self/ns/uts; readlink /proc/self/ns/ipc; id -u";
    let expected =
        [apart.link("net"), apart.link("uts"), apart.link("ipc"), "0".to_owned()].join("\n") + "\n";
    let of_host = |spec: &mut Value| {
        join(spec, apart.namespace("network", "net"));
        join(spec, apart.namespace("uts", "uts"));
        join(spec, apart.namespace("ipc", "ipc"));
        // The container has no right to set the host name, or to mount file systems that belong to these namespaces.
        spec["hostname"] = json!("");
        let mounts = spec["mounts"].as_array_mut().expect("mounts");
        mounts.retain(|mount| {
            mount["type"] != "sysfs" && mount["type"] != "mqueue" && mount["type"] != "cgroup"
        });
        add_mount(
            spec,
            json!({"destination": "/sys", "type": "bind", "source": "/sys", "options": ["rbind"]}),
        );
    };
    let user = json!({"type": "user"});
    let map = json!([{"containerID": 0, "hostID": 100_000, "size": 1000}]);
    let said = same(look, |spec| {
        of_host(spec);
        join(spec, user.clone());
        spec["linux"]["uidMappings"] = map.clone();
        spec["linux"]["gidMappings"] = map.clone();
    });
    assert_eq!(said, expected, "a user namespace of its own");

    // Debian's runc joins a user namespace only if the bundle has mappings.
    let owner = Bundle::new("exec sleep 1000").change(|spec| {
        spec["linux"]["uidMappings"] = map.clone();
        spec["linux"]["gidMappings"] = map.clone();
        join(spec, user.clone());
    });
    give_to(owner.path(), 100_000);
    owner.start();
    let joins = bundle(|spec| {
        script(spec, look);
        of_host(spec);
        join(spec, json!({"type": "user", "path": format!("/proc/{}/ns/user", owner.pid())}));
    });
    give(&joins, 100_000);
    let (runtime, path) = (Runtime::ours(), joins.path().display().to_string());
    let done = runtime.run(&["run", "--bundle", &path, &runtime.id("joins")]).ok();
    assert_eq!(done.stdout, expected, "one that is joined");
}

#[test]
fn ends_of_lines_reach_a_pipe_as_they_were_written() {
    let said = same("test -t 1 && echo terminal; busybox stty -a | grep -c -- -onlcr", |spec| {
        spec["process"]["terminal"] = json!(false);
    });
    assert_eq!(said, "0\n");
    let bundle = bundle(|spec| {
        script(spec, "test -t 1 && echo terminal");
        spec["process"]["terminal"] = json!(true);
    });
    let path = bundle.path().display().to_string();
    let runtime = Runtime::ours();
    // Debian's runc fails here, since its caller has no terminal.
    let done = runtime.run(&["run", "--bundle", &path, &runtime.id("lines")]).ok();
    assert_eq!(done.stdout, "terminal\n");
}

#[test]
fn documents_have_runcs_order() {
    let bundle = bundle(|spec| script(spec, "sleep 1000"));
    let path = bundle.path().display().to_string();
    for runtime in Runtime::both() {
        let id = runtime.id("order");
        let mut started = runtime.command(&["run", "-d", "--bundle", &path, &id]);
        assert!(started.stdout(Stdio::null()).stderr(Stdio::null()).status().expect("it runs").success());
        let begins = |words: &[&str], beginning: &str| {
            let said = runtime.run(words).ok().stdout;
            assert!(said.starts_with(beginning), "{} {words:?}: {said}", runtime.name);
            said
        };
        begins(&["events", "--stats", &id], &format!(r#"{{"type":"stats","id":"{id}","data":{{"#));
        let listed = begins(&["list", "--format", "json"], r#"[{"ociVersion":"1."#);
        assert!(
            listed.contains(&format!(r#","id":"{id}","pid":"#)) && listed.lines().count() == 1,
            "{listed}"
        );
        begins(&["state", &id], "{\n  \"ociVersion\": \"1.");
        assert_eq!(begins(&["ps", "--format", "json", &id], "[").lines().count(), 1);
        runtime.run(&["delete", "--force", &id]).ok();
    }
    // A directory that is named must exist.
    let done = Runtime::ours().run(&["--root", "/nowhere/runtime", "list"]).expect_code(1);
    done.expect_stderr("--root /nowhere/runtime: no such file or directory");
}

/// `--help` of each command is in runc's format.
#[test]
fn commands_explain_themselves() {
    let [ours, theirs] = Runtime::both();
    for command in [
        "checkpoint",
        "create",
        "delete",
        "events",
        "exec",
        "features",
        "kill",
        "list",
        "pause",
        "ps",
        "restore",
        "resume",
        "run",
        "spec",
        "start",
        "state",
        "update",
    ] {
        let said = ours.run(&[command, "--help"]).ok().stdout;
        assert!(said.starts_with(&format!("NAME:\n   hoist runtime {command} - ")), "{said}");
        assert_eq!(said, ours.run(&[command, "-h"]).ok().stdout);
        assert_eq!(said, ours.run(&["help", command]).ok().stdout);
        // It lists the long flags that runc lists.
        let known = theirs.run(&[command, "--help"]).stdout;
        let names =
            known.lines().filter_map(|line| line.trim_start().strip_prefix("--")?.split([' ', ',']).next());
        let hidden = ["help", "no-subreaper", "no-mount-fallback", "kernel-memory", "kernel-memory-tcp"];
        let is_hidden = |name: &&str| hidden.contains(name) || command == "restore" && *name == "no-pivot";
        for name in names.filter(|name| !is_hidden(name)) {
            assert!(said.contains(&format!("--{name}")), "{command} --{name}");
        }
    }
    assert!(ours.run(&["--help"]).ok().stdout.contains("   update   "));
    for runtime in [&ours, &theirs] {
        let done = runtime.run(&["foo", "--help"]);
        assert_ne!(done.code, 0, "{}", runtime.name);
        assert!(format!("{}{}", done.stdout, done.stderr).contains("No help topic for 'foo'"), "{done}");
    }
}

#[test]
fn a_capability_that_cannot_be_ambient_is_a_warning() {
    let bundle = bundle(|spec| {
        script(spec, "grep CapAmb /proc/self/status");
        let all = &mut spec["process"]["capabilities"];
        all["inheritable"] = json!(["CAP_KILL"]);
        all["ambient"] = json!(["CAP_KILL", "CAP_CHOWN"]);
        all["effective"] = json!(["CAP_KILL", "CAP_CHOWN"]);
    });
    let path = bundle.path().display().to_string();
    let runtime = Runtime::ours();
    let done = runtime.run(&["run", "--bundle", &path, &runtime.id("ambient")]).ok();
    assert_eq!(done.text(), "CapAmb:\t0000000000000020");
    done.expect_stderr("can't raise ambient capability CAP_CHOWN: ")
        .expect_stderr("effective capabilities that are not permitted are left out: CAP_CHOWN");
}

/// The streams are pipes that root has made: the runtime gives them to the user, who could not open them otherwise.
#[test]
fn standard_streams_are_the_users() {
    let user = |spec: &mut Value| spec["process"]["user"] = json!({"uid": USER, "gid": USER});
    let look = "echo one > /dev/stdout; echo two > /proc/self/fd/1; stat -Lc %u /proc/self/fd/1";
    assert_eq!(same(look, user), format!("one\ntwo\n{USER}\n"));
    let bundle = bundle(|spec| {
        script(spec, "sleep 1000");
        user(spec);
    });
    let path = bundle.path().display().to_string();
    for runtime in Runtime::both() {
        let id = runtime.id("streams");
        let mut started = runtime.command(&["run", "-d", "--bundle", &path, &id]);
        assert!(started.stdout(Stdio::null()).stderr(Stdio::null()).status().expect("it runs").success());
        let said = runtime.run(&["exec", &id, "sh", "-c", "echo one > /dev/stdout"]);
        runtime.run(&["delete", "--force", &id]).ok();
        assert_eq!(said.ok().text(), "one", "{}", runtime.name);
    }
}

/// Whatever the umask is.
#[test]
fn state_directories_are_readable_for_their_owner_only() {
    let dir = TempDir::new().expect("a temporary directory");
    let root = dir.path().join("root");
    let bundle = bundle(|spec| script(spec, "sleep 1000"));
    let runtime = Runtime::ours();
    let id = runtime.id("modes");
    let call = |words: &[&str]| {
        let mut call = Command::new("sh");
        call.args(["-c", "umask 0; exec \"$@\"", "sh"]).arg(testkit::hoist_program()).arg("runtime");
        call.arg("--root").arg(&root).args(words).stdin(Stdio::null());
        call
    };
    let mut created = call(&["create", "--bundle", &bundle.path().display().to_string(), &id]);
    assert!(created.stdout(Stdio::null()).stderr(Stdio::null()).status().expect("it runs").success());
    let mode = |path: &Path| fs::metadata(path).expect("it is there").permissions().mode() & 0o777;
    let own = root.join(&id);
    assert_eq!([mode(&root), mode(&own)], [0o700, 0o700]);
    let mut names = Vec::new();
    for entry in fs::read_dir(&own).expect("it is there") {
        let entry = entry.expect("it is there");
        assert_eq!(mode(&entry.path()), 0o600, "{entry:?}");
        names.push(entry.file_name());
    }
    run(&mut call(&["delete", "--force", &id])).ok();
    assert!(names.contains(&"state.json".into()) && names.contains(&"start".into()), "{names:?}");
}
