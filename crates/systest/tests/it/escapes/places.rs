//! The daemon's and runtime's own files, sockets, mounts and cgroups on the host, and who else can reach them.

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::{Value, json};
use tempfile::TempDir;
use testkit::{Daemon, MountsBelow, eventually, is_root, run};

use super::{add_capabilities, attempt};
use crate::runtime_bundle::{Runtime, add_mount, bundle, read_text, script};

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

/// What a container mounts in a volume is not mounted on the host, whatever the volume's propagation there.
#[test]
fn mounts_made_inside_are_not_seen_on_the_host() {
    let runtime = Runtime::ours();
    let host = TempDir::new().expect("a temporary directory");
    let _mounts = MountsBelow(host.path().to_owned());
    fs::create_dir(host.path().join("below")).expect("writable");
    run(Command::new("mount").arg("--bind").arg(host.path()).arg(host.path())).ok();
    run(Command::new("mount").arg("--make-shared").arg(host.path())).ok();
    for options in [&["rbind"][..], &["bind"], &["rbind", "rslave"], &["rbind", "rprivate"]] {
        let bundle = bundle(|spec| {
            add_capabilities(spec, &["CAP_SYS_ADMIN"]);
            add_mount(
                spec,
                json!({"destination": "/volume", "type": "bind", "source": host.path(), "options": options}),
            );
            script(spec, "mount -t tmpfs tmpfs /volume/below && touch /volume/below/inside && echo done");
        });
        let done = attempt(&runtime, &bundle);
        let seen = host.path().join("below/inside").exists();
        run(Command::new("umount").arg(host.path().join("below")));
        assert_eq!(done.text(), "done", "{options:?}: {done}");
        assert!(!seen, "{options:?}");
    }
}
