//! Callers of the runtime without root's rights, or with a helper's (`newuidmap`): a missing right is a warning if the
//! container can run without it, else an error that names it.

use std::fs;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::{Value, json};
use tempfile::TempDir;
use testkit::{Finished, eventually, run};

use crate::runtime_bundle::{Runtime, bundle, read_text, script};
use crate::runtime_command::receive;

/// The command, run by root without some of its capabilities.
fn without(capabilities: &str, command: &Command) -> Command {
    // By its path, since busybox's `setpriv` has other flags.
    let mut less = Command::new("/usr/bin/setpriv");
    let dropped: Vec<String> = capabilities.split(',').map(|name| format!("-{name}")).collect();
    less.args(["--inh-caps", &dropped.join(","), "--bounding-set", &dropped.join(",")]);
    less.arg(command.get_program()).args(command.get_args()).stdin(Stdio::null());
    less
}

/// What an unprivileged user can run: a user namespace that maps only the user, no limits, and no cgroup.
fn map_own(spec: &mut Value, user: u32) {
    let map = json!([{"containerID": 0, "hostID": user, "size": 1}]);
    spec["linux"]["uidMappings"] = map.clone();
    spec["linux"]["gidMappings"] = map;
    spec["linux"]["namespaces"].as_array_mut().expect("a list").push(json!({"type": "user"}));
    let mounts = spec["mounts"].as_array_mut().expect("a list");
    // The group tty, which devpts needs, is not mapped.
    mounts.retain(|mount| mount["type"] != "cgroup" && mount["type"] != "devpts");
    spec["linux"]["resources"] = json!({});
}

/// The runtime's command, run by a user to whom `home` belongs, with a copy of the program.
fn by_user(user: u32, home: &Path, words: &[&str]) -> Command {
    let mut command = Command::new("/usr/bin/setpriv");
    command.args(["--reuid", &user.to_string(), "--regid", &user.to_string(), "--clear-groups", "--"]);
    command.arg(home.join("hoist")).arg("runtime").arg("--root").arg(home.join("state")).args(words);
    command.stdin(Stdio::null());
    command
}

#[test]
fn limits_that_the_host_forbids_are_a_warning() {
    let bundle = bundle(|spec| {
        script(spec, "ulimit -Hn; ulimit -Sn; cat /proc/self/oom_score_adj");
        spec["process"]["rlimits"] = json!([{"type": "RLIMIT_NOFILE", "hard": 4096, "soft": 3000}]);
        spec["process"]["oomScoreAdj"] = json!(-500);
    });
    let path = bundle.path().display().to_string();
    let own = read_text(Path::new("/proc/self/oom_score_adj"));
    let runtime = Runtime::ours();
    let command = runtime.command(&["run", "--bundle", &path, &runtime.id("limits")]);
    let less = without("sys_resource", &command);
    let mut limited = Command::new("sh");
    limited.args(["-c", "ulimit -n 2000 && exec \"$@\"", "sh"]).arg(less.get_program()).args(less.get_args());
    let said = run(limited.stdin(Stdio::null())).ok();
    assert_eq!(said.text(), format!("2000\n2000\n{own}"), "what there is is taken");
    said.expect_stderr("RLIMIT_NOFILE 4096").expect_stderr("2000 is used").expect_stderr("oomScoreAdj -500");
    // The same for an exec.
    let bundle = self::bundle(|spec| script(spec, "sleep 1000"));
    let path = bundle.path().display().to_string();
    let id = runtime.id("limits");
    let started = runtime.command(&["run", "-d", "--bundle", &path, &id]).stdout(Stdio::null()).status();
    assert!(started.expect("it runs").success());
    let process = bundle.path().join("process.json");
    let description = json!({"args": ["cat", "/proc/self/oom_score_adj"], "cwd": "/", "env": ["PATH=/bin"],
        "oomScoreAdj": -500});
    fs::write(&process, description.to_string()).expect("writable");
    let exec = runtime.command(&["exec", "--process", &process.display().to_string(), &id]);
    let said = run(&mut without("sys_resource", &exec));
    runtime.run(&["delete", "--force", &id]).ok();
    said.ok().expect_stderr("oomScoreAdj -500");
}

fn may_raise_limits() -> bool {
    const SYS_RESOURCE: u64 = 1 << 24;
    let status = fs::read_to_string("/proc/self/status").expect("a proc");
    let own = status.lines().find_map(|line| line.strip_prefix("CapEff:\t")).expect("capabilities");
    u64::from_str_radix(own, 16).expect("a number") & SYS_RESOURCE != 0
}

/// A process in a user namespace cannot raise a hard limit: the runtime does it from outside.
#[test]
fn limits_are_raised_in_a_user_namespace_too() {
    if !may_raise_limits() {
        println!("skipped: the test needs CAP_SYS_RESOURCE");
        return;
    }
    let limits = json!([{"type": "RLIMIT_NOFILE", "hard": 4096, "soft": 3000}]);
    let bundle = bundle(|spec| {
        script(spec, "ulimit -Hn; ulimit -Sn; sleep 1000");
        spec["process"]["rlimits"] = limits.clone();
        spec["linux"]["namespaces"].as_array_mut().expect("a list").push(json!({"type": "user"}));
        for kind in ["uidMappings", "gidMappings"] {
            spec["linux"][kind] = json!([{"containerID": 0, "hostID": 100_000, "size": 65_536}]);
        }
    });
    let (path, output) = (bundle.path().display().to_string(), bundle.path().join("output"));
    let runtime = Runtime::ours();
    let id = runtime.id("raised");
    let limited = |words: &[&str]| {
        let command = runtime.command(words);
        let mut limited = Command::new("sh");
        limited.args(["-c", "ulimit -n 2000 && exec \"$@\"", "sh"]).arg(command.get_program());
        limited.args(command.get_args()).stdin(Stdio::null());
        limited
    };
    let file = || fs::File::create(&output).expect("a writable bundle");
    let mut started = limited(&["run", "-d", "--bundle", &path, &id]);
    assert!(started.stdout(file()).stderr(Stdio::null()).status().expect("it runs").success());
    let said = || Some(read_text(&output)).filter(|text| text.lines().count() == 2);
    assert_eq!(eventually("it says its limits", said), "4096\n3000");
    let process = bundle.path().join("process.json");
    let description = json!({"args": ["sh", "-c", "ulimit -Hn; ulimit -Sn"], "cwd": "/", "env": ["PATH=/bin"],
        "rlimits": limits});
    fs::write(&process, description.to_string()).expect("writable");
    let said = run(&mut limited(&["exec", "--process", &process.display().to_string(), &id]));
    runtime.run(&["delete", "--force", &id]).ok();
    assert_eq!(said.ok().text(), "4096\n3000");
}

/// The runtime takes the listener from the new process with pidfd_getfd(2), for which it needs the right to trace it.
#[test]
fn a_supervisor_needs_the_right_to_trace() {
    let dir = TempDir::new().expect("a temporary directory");
    let socket = dir.path().join("supervisor");
    let _listener = UnixListener::bind(&socket).expect("a free name");
    let bundle = bundle(|spec| {
        script(spec, "true");
        spec["linux"]["seccomp"] = json!({"defaultAction": "SCMP_ACT_ALLOW", "listenerPath": socket,
            "syscalls": [{"names": ["mkdir"], "action": "SCMP_ACT_NOTIFY"}]});
    });
    let path = bundle.path().display().to_string();
    let runtime = Runtime::ours();
    let command = runtime.command(&["run", "--bundle", &path, &runtime.id("notify")]);
    let refused = run(&mut without("sys_ptrace", &command));
    refused.expect_code(1).expect_stderr("seccomp listener").expect_stderr("not permitted");
    assert_eq!(runtime.run(&["list", "-q"]).ok().text(), "", "nothing is left");
}

/// A user may trace the first process, which is the user's own. An exec runs beside processes that could see it, so it
/// is refused.
#[test]
fn a_user_without_privileges_has_supervisors() {
    const USER: u32 = 4346;
    let home = TempDir::new().expect("a temporary directory");
    let program = home.path().join("hoist");
    testkit::executable_copy(&testkit::hoist_program(), &program);
    let socket = home.path().join("supervisor");
    let listener = UnixListener::bind(&socket).expect("a free name");
    let bundle = bundle(|spec| {
        script(spec, "sleep 1000");
        spec["linux"]["seccomp"] = json!({"defaultAction": "SCMP_ACT_ALLOW", "listenerPath": socket,
            "syscalls": [{"names": ["mkdir"], "action": "SCMP_ACT_NOTIFY"}]});
        let map = json!([{"containerID": 0, "hostID": USER, "size": 1}]);
        spec["linux"]["uidMappings"] = map.clone();
        spec["linux"]["gidMappings"] = map;
        spec["linux"]["namespaces"].as_array_mut().expect("a list").push(json!({"type": "user"}));
        let mounts = spec["mounts"].as_array_mut().expect("a list");
        // The group tty, which devpts needs, is not mapped.
        mounts.retain(|mount| mount["type"] != "cgroup" && mount["type"] != "devpts");
        spec["linux"]["resources"] = json!({});
    });
    run(Command::new("chown").args(["-R", &format!("{USER}:{USER}")]).arg(home.path())).ok();
    let call = |words: &[&str]| {
        let mut user = Command::new("/usr/bin/setpriv");
        user.args(["--reuid", &USER.to_string(), "--regid", &USER.to_string(), "--clear-groups", "--"]);
        user.arg(&program).arg("runtime").arg("--root").arg(home.path().join("state")).args(words);
        user.stdin(Stdio::null());
        user
    };
    let path = bundle.path().display().to_string();
    let mut create = call(&["run", "-d", "--bundle", &path, "notify"]);
    let created = std::thread::scope(|scope| {
        let created = scope.spawn(|| create.stdout(Stdio::null()).status().expect("it runs"));
        let (state, descriptor) = receive(&listener);
        let state: Value = serde_json::from_slice(&state).expect("JSON");
        assert_eq!(state["state"]["id"], "notify");
        let link = format!("/proc/self/fd/{}", descriptor.as_raw_fd());
        let link = fs::read_link(link).expect("it is open").display().to_string();
        assert!(link.contains("seccomp"), "{link}");
        created.join().expect("no panic")
    });
    assert!(created.success());
    run(&mut call(&["exec", "notify", "true"])).expect_code(255).expect_stderr("seccomp listener");
    run(&mut call(&["delete", "--force", "notify"])).ok();
}

/// Where a filter forbids newer system calls, the runtime uses older ones.
#[test]
fn a_user_without_privileges_is_under_filters_that_know_no_new_calls() {
    const USER: u32 = 4347;
    let home = TempDir::new().expect("a temporary directory");
    let program = home.path().join("hoist");
    testkit::executable_copy(&testkit::hoist_program(), &program);
    for no_new_privileges in [false, true] {
        let bundle = bundle(|spec| {
            script(spec, "grep Seccomp: /proc/self/status");
            spec["process"]["noNewPrivileges"] = json!(no_new_privileges);
            spec["linux"]["seccomp"] = json!({"defaultAction": "SCMP_ACT_ALLOW",
                "syscalls": [{"names": ["openat2", "faccessat2"], "action": "SCMP_ACT_ERRNO"}]});
            map_own(spec, USER);
        });
        run(Command::new("chown").args(["-R", &format!("{USER}:{USER}")]).arg(home.path())).ok();
        let path = bundle.path().display().to_string();
        let said = run(&mut by_user(USER, home.path(), &["run", "--bundle", &path, "old"])).ok();
        assert_eq!(said.text(), "Seccomp:\t2", "with noNewPrivileges: {no_new_privileges}");
    }
}

/// The runtime looks at the first process's namespaces before its program begins, for which the user needs the right to
/// trace it. In a pid namespace that is not new the user has no such right.
#[test]
fn a_user_without_privileges_enters_what_is_not_started() {
    const USER: u32 = 4348;
    let home = TempDir::new().expect("a temporary directory");
    let program = home.path().join("hoist");
    testkit::executable_copy(&testkit::hoist_program(), &program);
    run(Command::new("chown").args(["-R", &format!("{USER}:{USER}")]).arg(home.path())).ok();
    for filter in [json!(null), json!({"defaultAction": "SCMP_ACT_ALLOW"})] {
        let bundle = bundle(|spec| {
            script(spec, "sleep 1000");
            spec["linux"]["seccomp"] = filter.clone();
            map_own(spec, USER);
        });
        let path = bundle.path().display().to_string();
        let mut create = by_user(USER, home.path(), &["create", "--bundle", &path, "waits"]);
        assert!(create.stdout(Stdio::null()).stderr(Stdio::null()).status().expect("it runs").success());
        let entered = run(&mut by_user(USER, home.path(), &["exec", "waits", "id", "-u"]));
        run(&mut by_user(USER, home.path(), &["delete", "--force", "waits"])).ok();
        assert_eq!(entered.ok().text(), "0", "{filter}");
    }
}

/// CVE-2014-8989, CVE-2018-7169: a file that its group may not read stays closed to members who make a user namespace.
#[test]
fn a_group_that_keeps_a_user_out_stays() {
    const USER: u32 = 4344;
    const GROUP: u32 = 4345;
    let home = TempDir::new().expect("a temporary directory");
    let program = home.path().join("hoist");
    testkit::executable_copy(&testkit::hoist_program(), &program);
    let kept = TempDir::new().expect("a temporary directory");
    let file = kept.path().join("file");
    fs::write(&file, "for all but a group").expect("writable");
    fs::set_permissions(kept.path(), fs::Permissions::from_mode(0o755)).expect("ours");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o604)).expect("ours");
    run(Command::new("chown").arg(format!("0:{GROUP}")).arg(&file)).ok();
    let bundle = bundle(|spec| {
        script(spec, "cat /proc/self/setgroups; cat /kept/file; sleep 1000");
        let map = json!([{"containerID": 0, "hostID": USER, "size": 1}]);
        spec["linux"]["uidMappings"] = map.clone();
        spec["linux"]["gidMappings"] = map;
        let namespaces = spec["linux"]["namespaces"].as_array_mut().expect("a list");
        namespaces.retain(|namespace| namespace["type"] != "cgroup");
        namespaces.push(json!({"type": "user"}));
        let mounts = spec["mounts"].as_array_mut().expect("a list");
        mounts.retain(|mount| mount["type"] != "cgroup");
        // The group tty, which devpts needs, is not mapped.
        mounts.retain(|mount| mount["type"] != "devpts");
        mounts.push(
            json!({"destination": "/kept", "type": "bind", "source": kept.path(), "options": ["bind"]}),
        );
        spec["linux"]["resources"] = json!({});
    });
    run(Command::new("chown").args(["-R", &format!("{USER}:{USER}")]).arg(home.path())).ok();
    let call = |words: &[&str]| {
        let mut user = Command::new("/usr/bin/setpriv");
        user.args([
            "--reuid",
            &USER.to_string(),
            "--regid",
            &USER.to_string(),
            "--groups",
            &GROUP.to_string(),
        ]);
        user.arg(&program).arg("runtime").arg("--root").arg(home.path().join("state")).args(words);
        user.current_dir(bundle.path()).stdin(Stdio::null());
        user
    };
    let id = format!("kept-{}", std::process::id());
    let output = home.path().join("output");
    let out = fs::File::create(&output).expect("writable");
    let mut start = call(&["run", "--detach", &id]);
    start.stdout(out.try_clone().expect("a file")).stderr(out);
    assert!(start.status().expect("it runs").success(), "{}", read_text(&output));
    let said =
        eventually("it has looked", || Some(read_text(&output)).filter(|said| said.contains("denied")));
    assert!(said.contains("deny") && !said.contains("for all"), "{said}");
    let exec = run(&mut call(&["exec", &id, "cat", "/kept/file"]));
    assert!(exec.code != 0 && exec.stderr.contains("denied"), "{exec}");
    run(&mut call(&["delete", "--force", &id])).ok();
    // A user outside of the group may read it.
    let other = run(Command::new("/usr/bin/setpriv")
        .args(["--reuid", &USER.to_string(), "--clear-groups", "cat"])
        .arg(&file));
    assert_eq!(other.ok().stdout, "for all but a group");
}

/// A user with subordinate ids (subuid(5)).
#[test]
fn a_user_without_privileges_maps_the_ids_it_is_granted() {
    const USER: u32 = 4343;
    if !Path::new("/usr/bin/newuidmap").exists() {
        println!("skipped: there is no newuidmap; try: apt-get install uidmap");
        return;
    }
    let home = TempDir::new().expect("a temporary directory");
    let program = home.path().join("hoist");
    testkit::executable_copy(&testkit::hoist_program(), &program);
    let bundle = bundle(|spec| {
        script(spec, "cat /proc/self/uid_map /proc/self/gid_map; id -u; id -G; touch /made");
        let maps = json!([
            {"containerID": 0, "hostID": USER, "size": 1},
            {"containerID": 1, "hostID": 700_000, "size": 1000},
        ]);
        spec["linux"]["uidMappings"] = maps.clone();
        spec["linux"]["gidMappings"] = maps;
        let namespaces = spec["linux"]["namespaces"].as_array_mut().expect("a list");
        namespaces.retain(|namespace| namespace["type"] != "cgroup");
        namespaces.push(json!({"type": "user"}));
        spec["mounts"].as_array_mut().expect("a list").retain(|mount| mount["type"] != "cgroup");
        spec["process"]["user"] = json!({"uid": 7, "gid": 8, "additionalGids": [9]});
        spec["linux"]["resources"] = json!({});
    });
    fs::set_permissions(bundle.path().join("rootfs"), fs::Permissions::from_mode(0o777)).expect("ours");
    let (grants, users) = (home.path().join("subids"), home.path().join("passwd"));
    fs::write(&grants, "granted:700000:1000\n").expect("writable");
    let known = fs::read_to_string("/etc/passwd").expect("a list of users");
    fs::write(&users, format!("{known}granted:x:{USER}:{USER}::/:/bin/sh\n")).expect("writable");
    run(Command::new("chown").args(["-R", &format!("{USER}:{USER}")]).arg(home.path())).ok();
    // The files with the grants are only in this mount namespace.
    let prepare = format!(
        "mount --bind {grants} /etc/subuid && mount --bind {grants} /etc/subgid && mount --bind {users} /etc/passwd && \
         exec /usr/bin/setpriv --reuid {USER} --regid {USER} --clear-groups \"$@\"",
        grants = grants.display(),
        users = users.display()
    );
    let call = |words: &[&str]| -> Finished {
        let mut apart = Command::new("unshare");
        apart.args(["--mount", "sh", "-c", &prepare, "sh"]).arg(&program).arg("runtime");
        apart.arg("--root").arg(home.path().join("state")).args(words);
        run(apart.current_dir(bundle.path()).stdin(Stdio::null()))
    };
    let said = call(&["run", &format!("granted-{}", std::process::id())]).ok();
    let words: Vec<String> = said.text().split_whitespace().map(str::to_owned).collect();
    let map = ["0", "4343", "1", "1", "700000", "1000"];
    assert_eq!(words, [&map[..], &map[..], &["7", "8", "9"]].concat(), "{said}");
    let made = fs::metadata(bundle.path().join("rootfs/made")).expect("made");
    assert_eq!((made.uid(), made.gid()), (700_006, 700_007));
    // Ids that were not granted are refused.
    let text = fs::read_to_string(bundle.path().join("config.json")).expect("a spec");
    fs::write(bundle.path().join("config.json"), text.replace("700000", "800000")).expect("ours");
    let refused = call(&["run", &format!("granted-{}", std::process::id())]);
    refused.expect_code(1).expect_stderr("newuidmap");
}
