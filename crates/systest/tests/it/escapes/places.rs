//! The daemon's and runtime's own files, sockets, cgroups and user ids on the host, and who else can reach them.

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::{Value, json};
use tempfile::TempDir;
use testkit::{Daemon, MountsBelow, eventually, is_root, run};

use super::{Runtime, attempt, bundle, read_text, script};

/// CVE-2021-41103, CVE-2024-25621: a user of the host who knows a path reads images, logs and volumes, and runs the
/// setuid programs of images as root of the host.
#[test]
fn users_of_the_host_reach_nothing_that_the_daemon_keeps() {
    if !is_root("a daemon") {
        return;
    }
    let daemon = Daemon::with_busybox();
    // What is around the daemon's own directories is the test's, and open.
    for dir in [daemon.dir(), daemon.state().parent().expect("it is in a directory")] {
        fs::set_permissions(dir, fs::Permissions::from_mode(0o755)).expect("ours");
    }
    let make = "cp /bin/busybox /evil && chmod 4755 /evil && echo secret > /data/secret && exec sleep 1000";
    daemon.hoist(["run", "-d", "--name", "keeper", "-v", "vol:/data", "busybox", "sh", "-c", make]).ok();
    let all = eventually("the container has made its files", || {
        let mut find = Command::new("find");
        let all = run(find.arg(daemon.root()).arg(daemon.state()).args(["!", "-type", "l"])).stdout;
        (all.contains("/evil") && all.contains("/secret")).then_some(all)
    });
    assert!(all.lines().any(|path| path.contains("/rootfs/evil")), "the root file system is mounted\n{all}");
    // Nobody may enter the root; in the state there is the socket, for a group that may have been given it.
    let look = "while read -r path; do test -e \"$path\" && echo \"$path\"; done; exit 0";
    let mut nobody = Command::new("/usr/bin/setpriv");
    nobody.args(["--reuid=65534", "--regid=65534", "--clear-groups", "sh", "-c", look]);
    let mut nobody = nobody.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("setpriv is there");
    let mut stdin = nobody.stdin.take().expect("piped");
    let writer = std::thread::spawn(move || stdin.write_all(all.as_bytes()));
    let seen = nobody.wait_with_output().expect("a child of ours");
    writer.join().expect("no panic").expect("it reads all");
    let seen = String::from_utf8_lossy(&seen.stdout).into_owned();
    let inside = |path: &&str| {
        let path = Path::new(path);
        path.strip_prefix(daemon.root()).is_ok_and(|rest| rest != Path::new(""))
            || path.strip_prefix(daemon.state().join("tasks")).is_ok_and(|rest| rest.components().count() > 2)
    };
    let reached: Vec<&str> = seen.lines().filter(inside).collect();
    assert!(reached.is_empty(), "{reached:#?}");
    // What is in the way of others is not in the way of a container with a user namespace of its own.
    let mode = |path: &Path| fs::metadata(path).expect("it is there").permissions().mode() & 0o777;
    assert_eq!(mode(&daemon.root()), 0o700);
}

/// CVE-2021-41103's kin: an image that is mounted where users of the host may look has a program that makes root of
/// whoever runs it, and a device that everybody may open.
#[test]
fn an_image_that_is_looked_at_gives_nobody_rights() {
    if !is_root("a daemon") {
        return;
    }
    let daemon = Daemon::with_busybox();
    let make = "cp /bin/busybox /evil && chmod 4755 /evil && mknod -m 666 /null c 1 3";
    daemon.hoist(["run", "--name", "maker", "busybox", "sh", "-c", make]).ok();
    daemon.hoist(["commit", "maker", "evil"]).ok();
    let place = TempDir::new().expect("a temporary directory");
    let _mounts = MountsBelow(place.path().to_owned());
    let at = place.path().display().to_string();
    daemon.hoist(["image", "mount", "evil", &at]).ok();
    let program = fs::metadata(place.path().join("evil")).expect("it is in the image");
    assert_eq!(program.permissions().mode() & 0o7777, 0o4755, "as it is in the image");
    let opened = fs::File::open(place.path().join("null")).map_err(|error| error.kind());
    let points = read_text(Path::new("/proc/self/mountinfo"));
    daemon.hoist(["image", "unmount", &at]).ok();
    assert_eq!(opened.map(drop), Err(std::io::ErrorKind::PermissionDenied));
    let options = points.lines().map(|line| line.split(' ').collect::<Vec<_>>()).find(|line| line[4] == at);
    let options = options.expect("it is mounted")[5];
    assert!(options.split(',').any(|word| word == "nosuid"), "{options}");
}

/// CVE-2020-15257: a shim listens under an abstract name, which whoever shares the host's network can connect to.
#[test]
fn nothing_of_ours_listens_under_an_abstract_name() {
    if !is_root("a daemon") {
        return;
    }
    let daemon = Daemon::with_busybox();
    let look = ["run", "--rm", "--network", "host", "busybox", "cat", "/proc/net/unix"];
    let seen = daemon.hoist(look).ok().stdout;
    // Names of sockets in directories are of no use there; those with @ are.
    let path = |line: &str| line.split_whitespace().nth(7).unwrap_or_default().to_owned();
    let state = daemon.state().display().to_string();
    assert!(seen.lines().any(|line| path(line).contains(&state)), "the list has our sockets\n{seen}");
    let ours = |line: &&str| {
        let path = path(line);
        path.starts_with('@') && ["hoist", "shim", state.as_str()].iter().any(|word| path.contains(word))
    };
    let abstract_names: Vec<&str> = seen.lines().filter(ours).collect();
    assert!(abstract_names.is_empty(), "{abstract_names:#?}");
}

/// Whoever opens some devices has done something to the machine. The daemon looks for users where a container may have put one, and
/// the group of a user is among the further ones, so that what is closed to it stays closed (CVE-2023-25173).
#[test]
fn files_of_users_are_files() {
    if !is_root("a daemon") {
        return;
    }
    let daemon = Daemon::with_busybox();
    let run = ["run", "-d", "--name", "up", "--network", "none", "-u", "0:5", "busybox", "sleep", "1000"];
    daemon.hoist(run).ok();
    assert_eq!(daemon.hoist(["exec", "up", "id", "-G"]).ok().text(), "5");
    for place in ["mknod /etc/passwd c 10 130", "ln -s /proc/kmsg /etc/passwd", "mkfifo /etc/passwd"] {
        let change = format!("rm -f /etc/passwd && {place}");
        daemon.hoist(["exec", "-u", "0:0", "up", "sh", "-c", &change]).ok();
        let refused = daemon.hoist(["exec", "-u", "web", "up", "true"]);
        assert_ne!(refused.code, 0, "{place}: {refused}");
        refused.expect_stderr("/etc/passwd is no regular file");
        daemon.hoist(["exec", "up", "rm", "/etc/passwd"]).ok();
    }
    daemon.hoist(["rm", "-f", "up"]).ok();
}

/// CVE-2024-40635: a number of a user that does not fit becomes another, 0 for one.
#[test]
fn a_user_whose_number_does_not_fit_is_not_root() {
    if !is_root("a daemon") {
        return;
    }
    let daemon = Daemon::with_busybox();
    for user in [
        "4294967296",
        "4294967296:4294967296",
        "-4294967296",
        "18446744073709551616",
        "2147483648",
        "4294967295",
    ] {
        let done =
            daemon.hoist(["run", "--rm", &format!("--user={user}"), "busybox", "sh", "-c", "id -u; id -g"]);
        let is_root = done.stdout.lines().next() == Some("0");
        assert!(done.code != 0 || !is_root, "{user}: {done}");
    }
}

/// The one number that setresuid(2) takes for "leave it": the runtime's own user, root, would be left.
#[test]
fn the_number_that_is_nobodys_leaves_nobody_root() {
    let runtime = Runtime::ours();
    for which in ["uid", "gid"] {
        let bundle = bundle(|spec| {
            spec["process"]["user"] = json!({"uid": 1000, "gid": 1000});
            spec["process"]["user"][which] = json!(u32::MAX);
            script(spec, "id -u; id -g");
        });
        let done = attempt(&runtime, &bundle);
        assert_ne!(done.code, 0, "{which}: {done}");
        done.expect_stderr("4294967295");
    }
    let bundle = bundle(|spec| script(spec, "sleep 1000"));
    let running = super::Running::start(&runtime, &bundle);
    let done = running.exec_with(&["--user", "4294967295:4294967295"], &["id", "-u"]);
    assert!(done.code != 0 && done.stdout.is_empty(), "{done}");
}

/// CVE-2023-25809: where the container shares the host's cgroup namespace, the host's tree is shown, writable.
#[test]
fn of_the_hosts_cgroups_a_container_sees_its_own() {
    let runtime = Runtime::ours();
    let change = |spec: &mut Value, with_user: bool| {
        let namespaces = spec["linux"]["namespaces"].as_array_mut().expect("namespaces");
        namespaces.retain(|namespace| namespace["type"] != "cgroup");
        if with_user {
            namespaces.push(json!({"type": "user"}));
            for kind in ["uidMappings", "gidMappings"] {
                spec["linux"][kind] = json!([{"containerID": 0, "hostID": 100_000, "size": 65_536}]);
            }
        }
        // As the one who writes the spec may have forgotten: writable.
        for mount in spec["mounts"].as_array_mut().expect("mounts") {
            if mount["type"] == "cgroup" {
                mount["options"] = json!(["nosuid", "noexec", "nodev"]);
            }
        }
        // The root of a tree of version 1 has a release_agent, that of version 2 has no cgroup.type.
        script(
            spec,
            "for d in /sys/fs/cgroup /sys/fs/cgroup/*/; do
               test -e $d/cgroup.procs || continue; echo > /seen
               test -e $d/release_agent && echo WON $d
               test -e $d/cgroup.controllers && ! test -e $d/cgroup.type && echo WON $d
               for below in $d/*/; do test -d $below && echo WON $below; done; done
             test -e /seen && echo done",
        );
    };
    for with_user in [false, true] {
        let done = attempt(&runtime, &bundle(|spec| change(spec, with_user)));
        assert_eq!(done.ok().text(), "done", "user namespace: {with_user}");
    }
}

/// A cgroup that others have their cgroups below is not a container's: to end it would be to end them.
#[test]
fn a_cgroup_with_others_below_it_is_not_taken() {
    let runtime = Runtime::ours();
    let name = format!("escape-above-{}", std::process::id());
    // The root of version 2: where that is alone, there are cgroups and no trees below it.
    let trees = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"].map(Path::new);
    let Some(tree) = trees.into_iter().find(|tree| tree.join("cgroup.controllers").exists()) else {
        println!("skipped: this host has no cgroups of version 2");
        return;
    };
    let below = tree.join(&name).join("below");
    fs::create_dir_all(&below).expect("root may");
    let mut other = Command::new("sleep").arg("1000").spawn().expect("sleep is there");
    fs::write(below.join("cgroup.procs"), other.id().to_string()).expect("root may");
    let bundle = bundle(|spec| {
        spec["linux"]["cgroupsPath"] = json!(format!("/{name}"));
        script(spec, "true");
    });
    let done = attempt(&runtime, &bundle);
    let is_alive = other.try_wait().expect("a child of ours").is_none();
    other.kill().expect("a child of ours");
    other.wait().expect("a child of ours");
    eventually("the cgroups can be removed", || fs::remove_dir(&below).ok());
    fs::remove_dir(tree.join(&name)).expect("it is still there, and empty");
    assert!(is_alive, "it was killed: {done}");
    assert_ne!(done.code, 0, "{done}");
    done.expect_stderr("has processes already");
}

/// For roots on a ramdisk, where there is nothing to pivot.
#[test]
fn a_root_is_moved_where_it_is_asked_for() {
    let runtime = Runtime::ours();
    let bundle = bundle(|spec| script(spec, "echo inside"));
    let (path, calls) = (bundle.path().display().to_string(), bundle.path().join("calls"));
    for (flags, pivots) in [(&[][..], true), (&["--no-pivot"], false)] {
        let run_it = runtime.command(&[&["run", "--bundle", &path], flags, &[&runtime.id("moved")]].concat());
        let mut traced = Command::new("strace");
        traced.args(["-f", "-qq", "-e", "trace=pivot_root,chroot", "-o"]).arg(&calls);
        traced.arg(run_it.get_program()).args(run_it.get_args()).stdin(Stdio::null());
        assert_eq!(run(&mut traced).ok().text(), "inside", "{flags:?}");
        let calls = read_text(&calls);
        assert_eq!(calls.contains("pivot_root("), pivots, "{flags:?}: {calls}");
        assert_eq!(calls.contains("chroot("), !pivots, "{flags:?}: {calls}");
    }
}

/// CVE-2019-19921's neighbour: a root that is moved, not pivoted, leaves the host's mounts below it, and the kernel
/// takes the host's proc for a reason to let a new one be mounted, which has no masks.
#[test]
fn without_pivot_there_is_no_second_proc() {
    let runtime = Runtime::ours();
    let bundle = bundle(|spec| {
        // Whoever may not become root of the host may become root of a namespace.
        spec["process"]["user"] = json!({"uid": 1000, "gid": 1000});
        script(
            spec,
            "for t in proc sysfs; do
               busybox unshare -U -r -m -p -n -f sh -c \"mount -t $t $t /p && echo WON $t\" 2>/dev/null; done
             busybox unshare -U -r true && echo done",
        );
    });
    fs::create_dir(bundle.path().join("rootfs/p")).expect("a writable root");
    fs::set_permissions(bundle.path(), fs::Permissions::from_mode(0o755)).expect("ours");
    let path = bundle.path().display().to_string();
    for flags in [&[][..], &["--no-pivot"]] {
        let id = runtime.id("pivot");
        let done = runtime.run(&[&["run", "--bundle", &path], flags, &[&id]].concat());
        assert_eq!(done.ok().text(), "done", "{flags:?}");
    }
    // What covers one is not taken for it, and taken away.
    let covered = TempDir::new().expect("a temporary directory");
    let run_in = runtime.command(&["run", "--no-pivot", "--bundle", &path, &runtime.id("pivot")]);
    let script = "mount -t proc proc \"$0\" && mount -t tmpfs tmpfs \"$0\" && exec \"$@\"";
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private", "sh", "-c", script]).arg(covered.path());
    command.arg(run_in.get_program()).args(run_in.get_args()).stdin(Stdio::null());
    assert_eq!(run(&mut command).ok().text(), "done");
    assert!(fs::read_dir("/proc/1").is_ok(), "the host's is where it was");
    assert!(read_text(Path::new("/proc/self/mounts")).contains(" /proc proc "), "and still mounted");
}
