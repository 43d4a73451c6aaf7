//! `hoist cp`: files copied into and out of containers, as Docker copies them, also while a hostile container changes
//! its files.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, chown, symlink};
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use testkit::{Daemon, Docker, Finished, SilentDisk, eventually, images, is_root, run};

/// The files below a directory: kind, mode, owner, size and target of each.
fn listing(dir: &Path) -> String {
    let mut find = Command::new("find");
    find.arg(".").args(["-printf", "%P %y %m %U:%G %l\\n"]).current_dir(dir);
    let listed = run(&mut find).ok();
    let mut lines: Vec<&str> = listed.stdout.lines().filter(|line| !line.starts_with(' ')).collect();
    lines.sort_unstable();
    lines.join("\n")
}

/// Fills a directory with a file of each kind, and a setuid program.
fn tree(dir: &Path) {
    let tree = dir.join("tree");
    fs::create_dir_all(tree.join("inner/empty")).expect("a writable directory");
    fs::write(tree.join("inner/file"), "inner").expect("a writable directory");
    fs::write(tree.join(".wh.kept"), "no whiteout").expect("a writable directory");
    fs::write(tree.join("tool"), "#!").expect("a writable directory");
    symlink("inner/file", tree.join("link")).expect("a writable directory");
    fs::hard_link(tree.join("tool"), tree.join("twin")).expect("a writable directory");
    chown(tree.join("inner"), Some(1234), Some(2345)).expect("root");
    chown(tree.join("tool"), Some(1234), Some(2345)).expect("root");
    fs::set_permissions(tree.join("tool"), fs::Permissions::from_mode(0o4755)).expect("root");
    fs::write(dir.join("file"), "plain").expect("a writable directory");
}

#[track_caller]
fn cat(daemon: &Daemon, container: &str, path: &str) -> String {
    daemon.hoist(["exec", container, "cat", path]).ok().stdout
}

/// The daemon, with containers `runs` and `made` of busybox, a volume in both, and a [`tree`] beside it.
fn stage() -> Daemon {
    let daemon = Daemon::with_busybox();
    for (container, begin) in [("runs", &["run", "-d"][..]), ("made", &["create"])] {
        let volume = format!("{container}-data:/data");
        let words = ["--name", container, "--network", "none", "-v", &volume, "busybox", "sleep", "1000"];
        daemon.hoist([begin, &words].concat()).ok();
    }
    tree(daemon.dir());
    daemon
}

/// Removing a name in one mount namespace detaches what other namespaces have mounted on it, unless the daemon checks
/// first.
#[test]
fn what_is_mounted_in_a_container_is_written_to_and_stays_mounted() {
    if !is_root("cp") {
        return;
    }
    let daemon = Daemon::with_busybox();
    let dir = daemon.dir().to_owned();
    let here = |name: &str| dir.join(name).display().to_string();
    fs::write(dir.join("new"), "new").expect("a writable directory");
    for (verb, container) in [(&["run", "-d"][..], "runs"), (&["create"], "made")] {
        for name in ["open", "closed"] {
            fs::write(dir.join(name), "old").expect("a writable directory");
        }
        let (open, closed) = (here("open") + ":/open", here("closed") + ":/closed:ro");
        let flags = ["--name", container, "--network", "none", "-v", &open, "-v", &closed];
        daemon.hoist([verb, &flags, &["busybox", "sleep", "1000"]].concat()).ok();
        daemon.hoist(["cp", &here("new"), &format!("{container}:/open")]).ok();
        let refused = daemon.hoist(["cp", &here("new"), &format!("{container}:/closed")]);
        assert_ne!(refused.code, 0, "{container}: {refused}");
        daemon.hoist(["cp", &here("new"), &format!("{container}:/etc/hosts")]).ok();
        let (into, out) = (format!("{container}:/x"), format!("{container}:/etc/hosts"));
        daemon.hoist(["cp", "", &into]).expect_code(1).expect_stderr("the source is empty");
        daemon.hoist(["cp", &out, ""]).expect_code(1).expect_stderr("the destination is empty");
        let text = |name: &str| fs::read_to_string(dir.join(name)).expect("a file");
        assert_eq!((text("open").as_str(), text("closed").as_str()), ("new", "old"), "{container}");
        daemon.hoist(["start", container]).ok();
        let mounts = cat(&daemon, container, "/proc/self/mountinfo");
        for place in [" /open ", " /closed ", " /etc/hosts "] {
            assert!(mounts.contains(place), "{container}: {place} of {mounts}");
        }
    }
}

/// A volume whose server does not answer blocks only copies from or to that volume.
#[test]
fn only_what_a_path_leads_to_is_looked_at() {
    if !is_root("cp") {
        return;
    }
    let daemon = Daemon::with_busybox();
    let dir = daemon.dir().to_owned();
    for name in ["silent/sub", "open/sub", "elsewhere"] {
        fs::create_dir_all(dir.join(name)).expect("a writable directory");
    }
    fs::write(dir.join("open/file"), "open").expect("a writable directory");
    fs::write(dir.join("elsewhere/file"), "elsewhere").expect("a writable directory");
    symlink("/elsewhere/file", dir.join("open/link")).expect("a writable directory");
    let bind = |from: &str, to: &str| format!("{}:{to}", dir.join(from).display());
    let volumes = [
        bind("open", "/open"),
        bind("elsewhere", "/elsewhere"),
        bind("silent/sub", "/slow"),
        bind("silent/sub", "/open/sub"),
    ];
    let mut create = vec!["create", "--name", "made", "--network", "none"];
    volumes.iter().for_each(|volume| create.extend(["-v", volume]));
    daemon.hoist([&create[..], &["busybox", "true"]].concat()).ok();
    let disk = SilentDisk::over(&dir.join("silent"));
    let copy = |from: &str, to: &str| {
        let words =
            ["20", &testkit::hoist_program().display().to_string(), "cp", "-L", from, to].map(str::to_owned);
        run(Command::new("timeout").args(words).env("HOIST_ADDRESS", daemon.socket()))
    };
    let (out, new) = (dir.join("out").display().to_string(), dir.join("new").display().to_string());
    fs::write(&new, "new").expect("a writable directory");
    for (from, text) in
        [("/open/file", "open"), ("/open/link", "elsewhere"), ("/elsewhere/../open/file", "open")]
    {
        copy(&format!("made:{from}"), &out).ok();
        assert_eq!(fs::read_to_string(&out).expect("a file"), text, "{from}");
    }
    copy(&new, "made:/elsewhere").ok();
    assert_eq!(fs::read_to_string(dir.join("elsewhere/new")).expect("a file"), "new");
    copy("made:/etc", &out.replace("out", "folder")).ok();
    // This path is in the volume.
    let mut slow = daemon.command(["cp", "made:/open", &out.replace("out", "slow")]);
    let mut slow = slow.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("hoist starts");
    disk.is_asked();
    drop(disk);
    slow.wait().expect("a child of ours");
}

#[test]
fn files_and_folders_go_in_and_out_of_containers_that_run_and_that_do_not() {
    if !is_root("cp") {
        return;
    }
    let daemon = stage();
    let dir = daemon.dir().to_owned();
    let here = |name: &str| dir.join(name).display().to_string();
    for container in ["runs", "made"] {
        let inside = |path: &str| format!("{container}:{path}");
        let out = here(&format!("out-{container}"));
        fs::create_dir(&out).expect("a writable directory");
        // A file under its own name and under another, over an existing file, and into a volume.
        let copied = daemon.hoist(["cp", &here("file"), &inside("/")]).ok();
        assert!(copied.stdout.is_empty() && copied.stderr.starts_with("Successfully copied "), "{copied}");
        daemon.hoist(["cp", "-q", &here("file"), &inside("/etc/other")]).ok().expect_stderr("");
        daemon.hoist(["cp", &here("file"), &inside("etc/passwd")]).ok();
        daemon.hoist(["cp", &here("file"), &inside("/data/kept")]).ok();
        let volume = daemon.root().join(format!("volumes/{container}-data/_data/kept"));
        assert_eq!(fs::read_to_string(volume).expect("it is in the volume"), "plain");
        daemon.hoist(["cp", &inside("/data/kept"), &here("kept")]).ok();
        // Files that the daemon mounts in the container are written to, not replaced.
        daemon.hoist(["cp", &here("file"), &inside("/etc/hosts")]).ok();

        // A directory, in and out again.
        daemon.hoist(["cp", &here("tree"), &inside("/copy")]).ok();
        daemon.hoist(["cp", &here("tree"), &inside("/copy")]).ok();
        daemon.hoist(["cp", "-a", &inside("/copy/tree"), &out]).ok();
        assert_eq!(listing(&Path::new(&out).join("tree")), listing(&dir.join("tree")), "{container}");
        let [tool, twin] = ["tool", "twin"].map(|name| fs::metadata(Path::new(&out).join("tree").join(name)));
        assert_eq!(tool.expect("a file").ino(), twin.expect("a file").ino(), "one file of two names");
        // The copy belongs to the caller, and loses its setuid bits.
        daemon.hoist(["cp", &inside("/copy/tree/."), &here(&format!("own-{container}"))]).ok();
        let own = fs::metadata(dir.join(format!("own-{container}/tool"))).expect("a file");
        assert_eq!((own.uid(), own.mode() & 0o7777), (0, 0o755));

        // A symlink, and its target.
        daemon.hoist(["cp", &inside("/copy/link"), &out]).ok();
        assert_eq!(fs::read_link(Path::new(&out).join("link")).expect("a link").as_os_str(), "inner/file");
        fs::remove_file(Path::new(&out).join("link")).expect("a link");
        daemon.hoist(["cp", "-L", &inside("/copy/link"), &out]).ok();
        assert_eq!(fs::read_to_string(Path::new(&out).join("link")).expect("a file"), "inner");

        // As tar archives.
        let archive = run(daemon.command(["cp", &inside("/copy/tree"), "-"]).stdout(Stdio::piped())).ok();
        assert!(archive.stdout.contains("tree/inner/file"), "{container}");
        let mut tar = Command::new("tar");
        let tar = tar.args(["--create", "--gzip", "--directory"]).arg(dir.join("tree")).arg("inner");
        let packed = tar.output().expect("tar runs").stdout;
        let mut copy = daemon.command(["cp", "-", &inside("/data")]);
        let mut copy = copy.stdin(Stdio::piped()).spawn().expect("hoist starts");
        copy.stdin.take().expect("a pipe").write_all(&packed).expect("it reads");
        assert!(copy.wait().expect("a child of ours").success());
        daemon.hoist(["cp", &inside("/data/inner/file"), &here("from-archive")]).ok();
        assert_eq!(fs::read_to_string(dir.join("from-archive")).expect("a file"), "inner");
    }
    assert_eq!(cat(&daemon, "runs", "/etc/hosts"), "plain");
    // Both containers see the files when they run.
    daemon.hoist(["start", "made"]).ok();
    for container in ["runs", "made"] {
        for path in ["/file", "/etc/other", "/etc/passwd", "/data/kept"] {
            assert_eq!(cat(&daemon, container, path), "plain", "{container} {path}");
        }
        let owner = daemon.hoist(["exec", container, "stat", "-c", "%u:%g %a", "/copy/tool"]).ok();
        assert_eq!(owner.text(), "1234:2345 4755");
    }
    let mounts = fs::read_to_string("/proc/self/mounts").expect("procfs");
    assert!(
        !mounts.contains(&format!(" {} ", daemon.state().display())),
        "nothing is seen of what was mounted"
    );
}

#[test]
fn what_cannot_be_copied_is_said_and_leaves_nothing() {
    if !is_root("cp") {
        return;
    }
    let daemon = stage();
    let dir = daemon.dir().to_owned();
    let here = |name: &str| dir.join(name).display().to_string();
    daemon.hoist(["create", "--name", "shut", "--read-only", "busybox", "sleep", "1000"]).ok();
    #[track_caller]
    fn refused(daemon: &Daemon, words: &[&str], why: &str) {
        let refused = daemon.hoist(["cp"].iter().chain(words));
        assert!(refused.code == 1 && refused.stderr.contains(why), "{why}\n{refused}");
    }
    let refused = |words: &[&str], why: &str| refused(&daemon, words, why);
    refused(&["runs:/nosuch", &here("x")], "Could not find the file /nosuch in container runs");
    refused(&["nosuch:/etc", &here("x")], "No such container: nosuch");
    refused(&[&here("nosuch"), "runs:/"], "nosuch");
    refused(&[&here("file"), "runs:/nosuch/file"], "Could not find the file /nosuch in container runs");
    refused(&[&here("file"), "runs:/nosuch/"], "no such directory");
    refused(&[&here("tree"), "runs:/etc/passwd"], "cannot copy a directory");
    refused(&[&here("file"), "runs:/dev/null"], "must be a directory or a regular file");
    refused(&["runs:/etc", &here("file")], "cannot copy a directory");
    refused(&["runs:/etc/passwd", &here("nosuch/file")], "does not exist");
    refused(&["-", "runs:/etc/passwd"], "must be a directory");
    refused(&["runs:/a", "made:/b"], "between containers");
    refused(&[&here("file"), &here("tree")], "CONTAINER:PATH");
    refused(&["runs:/proc/cpuinfo", &here("x")], "made up by the kernel");
    refused(&[&here("file"), "shut:/etc/x"], "read-only file system");
    // A directory and a file do not take each other's place.
    fs::create_dir(dir.join("passwd")).expect("a writable directory");
    refused(&[&here("passwd"), "runs:/etc/"], "a directory cannot replace");
    assert!(!dir.join("x").exists());
}

/// A container whose root file system is an attacker's.
fn attacker(daemon: &Daemon, program: &str) {
    daemon.hoist(["run", "-d", "--name", "evil", "--network", "none", "busybox", "sh", "-c", program]).ok();
}

/// CVE-2018-15664: a path component that is a directory when it is checked, and a symlink when it is used.
#[test]
fn a_link_that_takes_the_place_of_a_directory_leads_nowhere_outside() {
    if !is_root("cp") {
        return;
    }
    let daemon = Daemon::with_busybox();
    let dir = daemon.dir().to_owned();
    // The same path is a secret on the host and a decoy in the container.
    let secret = dir.join("secret");
    fs::create_dir(&secret).expect("a writable directory");
    fs::write(secret.join("key"), "of the machine").expect("a writable directory");
    let path = secret.display();
    let program = format!(
        "mkdir -p {path} /swap /real; echo decoy > {path}/key; echo real > /swap/key; ln -s {path} /stash
         touch /ready; while true; do mv /swap /real/s; mv /stash /swap; mv /swap /stash; mv /real/s /swap; done"
    );
    attacker(&daemon, &program);
    eventually("the container is at it", || {
        (daemon.hoist(["exec", "evil", "test", "-e", "/ready"]).code == 0).then_some(())
    });
    fs::write(dir.join("payload"), "written").expect("a writable directory");
    fs::create_dir(dir.join("out")).expect("a writable directory");
    let (payload, out) = (dir.join("payload").display().to_string(), dir.join("out"));
    for round in 0..15 {
        let to = out.join(round.to_string()).display().to_string();
        // A copy may find nothing, or a directory that was removed meanwhile.
        daemon.hoist(["cp", "-q", "evil:/swap/key", &to]);
        daemon.hoist(["cp", "-q", "evil:/swap", &format!("{to}-all")]);
        daemon.hoist(["cp", "-q", &payload, "evil:/swap/key"]);
        daemon.hoist(["cp", "-q", &payload, "evil:/swap/new"]);
        let archive = daemon.hoist(["cp", "evil:/", "-"]);
        assert!(!archive.stdout.contains("of the machine"), "round {round}");
    }
    assert_eq!(fs::read_to_string(secret.join("key")).expect("it is there"), "of the machine");
    assert_eq!(fs::read_dir(&secret).expect("it is there").count(), 1, "nothing was written");
    let found = run(Command::new("grep").args(["-r", "of the machine"]).arg(&out));
    assert_eq!(found.stdout, "", "nothing was read");
}

/// The daemon does not execute, load, open or wait for any file of the container.
#[test]
fn pipes_devices_and_links_of_a_container_are_copied_as_what_they_are() {
    if !is_root("cp") {
        return;
    }
    let daemon = Daemon::with_busybox();
    let dir = daemon.dir().to_owned();
    let outside = dir.join("outside");
    fs::write(&outside, "untouched").expect("a writable directory");
    let program = format!(
        "mkdir /d; mkfifo /d/pipe; mknod /d/null c 1 3; ln -s /proc/self/exe /d/exe; ln -s {outside} /d/out
         ln -s ../../../../etc/own /d/up; echo of the container > /etc/own; echo '#!/bin/sh' > /lib/libnss_files.so.2
         touch /ready; sleep 1000",
        outside = outside.display()
    );
    attacker(&daemon, &program);
    let ready = || daemon.hoist(["exec", "evil", "test", "-e", "/ready"]).code == 0;
    eventually("the container is ready", || ready().then_some(()));
    let out = dir.join("out").display().to_string();
    let copied = daemon.hoist(["cp", "evil:/d", &out]).ok();
    copied.expect_stderr("skipped out/null");
    let kind = |name: &str| fs::symlink_metadata(dir.join("out").join(name)).map(|found| found.file_type());
    assert!(kind("pipe").expect("it is there").is_fifo());
    assert!(kind("exe").expect("it is there").is_symlink() && kind("up").expect("it is there").is_symlink());
    assert!(kind("null").is_err(), "no device comes without -a");
    let with_all = dir.join("all").display().to_string();
    daemon.hoist(["cp", "-a", "evil:/d", &with_all]).ok();
    assert!(fs::symlink_metadata(dir.join("all/null")).expect("it is there").file_type().is_char_device());
    // Links that lead out of the container are resolved inside it, at either end of the copy.
    for path in ["evil:/d/up", "evil:/d/out", "evil:/d/exe"] {
        let followed = daemon.hoist(["cp", "-L", path, &dir.join("followed").display().to_string()]);
        assert_eq!(followed.code, if path.ends_with("up") { 0 } else { 1 }, "{followed}");
    }
    assert_eq!(fs::read_to_string(dir.join("followed")).expect("it is there"), "of the container\n");
    daemon.hoist(["cp", &dir.join("followed").display().to_string(), "evil:/d/out"]);
    assert_eq!(fs::read_to_string(&outside).expect("it is there"), "untouched");
    // A foreign archive whose entries lead out of the directory.
    let evil = dir.join("evil.tar");
    let mut tar = Command::new("tar");
    tar.args(["--create", "--absolute-names", "--transform", "s,^,../../../../../../,", "--file"]);
    run(tar.arg(&evil).arg(&outside)).ok();
    fs::write(&outside, "changed").expect("a writable directory");
    let mut copy = daemon.command(["cp", "-", "evil:/d"]);
    run(copy.stdin(File::open(&evil).expect("an archive"))).ok();
    assert_eq!(fs::read_to_string(&outside).expect("it is there"), "changed");
    daemon.hoist(["exec", "evil", "test", "-e", &format!("/d/{}", outside.display())]).ok();
}

/// The process that copies inside the container has no descriptor of the host (CVE-2019-14271, CVE-2024-21626).
#[test]
fn nothing_of_the_daemon_is_seen_in_the_container_while_it_copies() {
    if !is_root("cp") {
        return;
    }
    let daemon = Daemon::with_busybox();
    let program = "head -c 30000000 /dev/zero > /big; touch /ready
         while true; do ls -l /proc/[0-9]*/fd /proc/[0-9]*/exe; done > /seen 2>/dev/null";
    attacker(&daemon, program);
    eventually("the container looks", || {
        (daemon.hoist(["exec", "evil", "test", "-s", "/seen"]).code == 0).then_some(())
    });
    for _ in 0..5 {
        daemon.hoist(["cp", "-q", "evil:/big", &daemon.dir().join("big").display().to_string()]).ok();
        daemon.hoist(["cp", "-q", &daemon.dir().join("big").display().to_string(), "evil:/back"]).ok();
    }
    let seen = daemon.hoist(["exec", "evil", "cat", "/seen"]).ok();
    for word in ["hoist", "volumes", "/var/tmp", "archive"] {
        assert!(!seen.stdout.contains(word), "{word}");
    }
}

/// Ctrl-C, while reading or while writing.
#[test]
fn a_copy_that_is_broken_off_ends_in_the_daemon_too() {
    if !is_root("cp") {
        return;
    }
    let daemon = stage();
    let open = || {
        let fds = fs::read_dir(format!("/proc/{}/fd", daemon.pid())).expect("procfs").flatten();
        let paths = fds.filter_map(|fd| fs::read_link(fd.path()).ok());
        paths.filter(|path| path.to_string_lossy().contains("/archive")).count()
    };
    for (from, to) in [("runs:/usr", "-"), ("-", "runs:/"), ("made:/usr", "-"), ("-", "made:/")] {
        let mut copy = daemon.command(["cp", from, to]);
        let mut copy = copy.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("hoist starts");
        // `wait` would close it, and the end of an archive may be noticed before the signal.
        let input = copy.stdin.take();
        eventually("the daemon is at it", || (open() > 0).then_some(()));
        kill_process(Pid::from_child(&copy), Signal::INT).expect("a child of ours");
        assert_eq!(copy.wait().expect("a child of ours").code(), Some(130), "{from} {to}");
        drop(input);
        eventually("the daemon has ended it", || (open() == 0).then_some(()));
    }
    daemon.hoist(["start", "made"]).ok();
}

/// A copy that waits for a silent pipe lets other commands have the container.
#[test]
fn a_copy_that_waits_for_its_pipe_gives_way() {
    if !is_root("cp") {
        return;
    }
    let daemon = stage();
    daemon.hoist(["create", "--name", "gone", "--network", "none", "busybox", "true"]).ok();
    let open = || {
        let fds = fs::read_dir(format!("/proc/{}/fd", daemon.pid())).expect("procfs").flatten();
        let paths = fds.filter_map(|fd| fs::read_link(fd.path()).ok());
        paths.filter(|path| path.to_string_lossy().contains("/archive")).count()
    };
    for (name, ends) in [("made", &["start", "made"][..]), ("gone", &["rm", "-f", "gone"])] {
        let mut copy = daemon.command(["cp", "-", &format!("{name}:/")]);
        let copy = copy.stdin(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("hoist starts");
        eventually("the daemon is at it", || (open() > 0).then_some(()));
        // Commands that change the container wait for the copy, up to a limit.
        daemon.hoist(["rename", name, "other"]).expect_code(1).expect_stderr("are being copied since");
        daemon.hoist(ends).ok();
        // The command's standard input stays open as long as the copy runs.
        eventually("the daemon has ended it", || (open() == 0).then_some(()));
        let ended = copy.wait_with_output().expect("a child of ours");
        let said = String::from_utf8_lossy(&ended.stderr);
        assert!(!ended.status.success() && said.contains("copy again"), "{said}");
    }
}

/// Both make the same copies, and the results are compared.
#[test]
fn copies_are_called_and_owned_as_dockers_are() {
    if !is_root("cp") {
        return;
    }
    let Some(docker) = Docker::start() else { return };
    docker.docker(["load".as_ref(), "-i".as_ref(), images::busybox_archive().as_os_str()]).ok();
    let daemon = Daemon::with_busybox();
    let user = ["create", "--name", "cc", "-u", "77:88", "--network", "none", "busybox", "sleep", "1000"];
    docker.docker(user).ok();
    daemon.hoist(user).ok();
    type Cli<'a> = dyn Fn(&[&str]) -> Finished + 'a;
    let by_docker = |words: &[&str]| docker.docker(words);
    let by_hoist = |words: &[&str]| daemon.hoist(words);
    let clis: [(&str, &Cli<'_>); 2] = [("docker", &by_docker), ("hoist", &by_hoist)];
    let cases: &[(&str, &str)] = &[
        ("{d}/tree", "cc:/in"),
        ("{d}/tree", "cc:/in"),
        ("{d}/tree/.", "cc:/contents"),
        ("{d}/tree/.", "cc:/in"),
        ("{d}/tree/", "cc:/slash"),
        ("{d}/file", "cc:/in/link"),
        ("{d}/file", "cc:/in"),
        ("{d}/file", "cc:/in/file2"),
        ("{d}/file", "cc:/nosuch/"),
        ("{d}/file", "cc:/nosuch/x"),
        ("{d}/tree", "cc:/nosuch/x"),
        ("{d}/tree", "cc:/in/file"),
        ("-L {d}/tree/link", "cc:/in"),
        ("{d}/tree/link", "cc:/in/l2"),
        ("cc:/in", "{d}/out"),
        ("cc:/in", "{d}/out"),
        ("cc:/in/.", "{d}/out2"),
        ("cc:/in/", "{d}/out3"),
        ("cc:/in/file", "{d}/out"),
        ("cc:/in/file", "{d}/nosuch/"),
        ("cc:/in/file", "{d}/nosuch/x"),
        ("cc:/in/file/", "{d}/x"),
        ("cc:/in", "{d}/file"),
        ("-L cc:/in/tree/link", "{d}/out/followed"),
        ("cc:/in/l2", "{d}/out"),
        ("cc:in/inner/file", "{d}/"),
    ];
    let results = clis.map(|(name, cli)| {
        let dir = daemon.dir().join(name);
        fs::create_dir(&dir).expect("a writable directory");
        tree(&dir);
        let codes = cases.iter().map(|(from, to)| {
            let words = format!("cp {from} {to}").replace("{d}", &dir.display().to_string());
            let words: Vec<&str> = words.split(' ').collect();
            let done = cli(&words);
            (*from, *to, done.code == 0)
        });
        let codes: Vec<_> = codes.collect();
        let archive = cli(&["cp", "cc:/in", "-"]).ok();
        let path = dir.join("in.tar");
        fs::write(&path, archive.stdout).expect("a writable directory");
        let owners = run(Command::new("tar").args(["-tv", "--numeric-owner", "-f"]).arg(&path)).ok();
        fs::remove_file(&path).expect("a file");
        // Which of two hard links tar calls the link is arbitrary, and Docker drops setuid bits.
        let shown = owners.stdout.lines().map(|line| {
            let words: Vec<&str> = line.split_whitespace().collect();
            let mode = words[0][1..].replace('s', "x");
            format!("{} {mode} {}", words[5].trim_end_matches('/'), words[1])
        });
        let owners: BTreeSet<String> = shown.collect();
        (codes, listing(&dir).replace(" 4755 ", " 755 "), owners)
    });
    let [docker, hoist] = results;
    assert_eq!(hoist.0, docker.0);
    assert_eq!(hoist.1, docker.1);
    assert_eq!(hoist.2, docker.2);
}

/// The archive of `docker export`: the container's root file system without its mounts.
#[test]
fn the_tree_of_a_container_is_exported_without_what_is_mounted() {
    let daemon = Daemon::with_busybox();
    let folder = daemon.dir().join("outside");
    fs::create_dir(&folder).expect("a folder");
    fs::write(folder.join("secret"), "of the machine").expect("a file");
    let script = "echo own > /made; echo volume > /crop/grain; echo x > /dev/shm/y; rm /bin/vi; ln /made /again; chown 7:8 /made
        echo ready; exec sleep 1000";
    let bind = format!("{}:/bind", folder.display());
    let flags = ["--network", "none", "-v", "crop:/crop", "-v", &bind];
    let rest = ["busybox", "sh", "-c", script];
    daemon.hoist([&["run", "-d", "--name", "box"][..], &flags, &rest].concat()).ok();
    eventually("it has made its files", || {
        daemon.hoist(["logs", "box"]).ok().stdout.contains("ready").then_some(())
    });
    let tar = daemon.dir().join("box.tar");
    let (name, target) = (tar.display().to_string(), daemon.dir().join("unpacked"));
    let export = || {
        daemon.hoist(["export", "-o", &name, "box"]).ok();
        let listed = run(Command::new("tar").args(["--numeric-owner", "-tvf", &name])).ok();
        listed.stdout.lines().map(str::to_owned).collect::<Vec<_>>()
    };
    let check = |lines: &[String]| {
        let find = |name: &str| lines.iter().find(|line| line.ends_with(&format!(" {name}")));
        let made = find("made").or(find("again")).unwrap_or_else(|| panic!("{lines:#?}"));
        assert!(made.contains(" 7/8 "), "{made}");
        assert!(lines.iter().any(|line| line.contains(" link to ")), "a link stays a link: {lines:#?}");
        for there in ["usr/bin/busybox", "crop/", "proc/", "etc/hosts"] {
            assert!(find(there).is_some(), "{there}: {lines:#?}");
        }
        for gone in ["usr/bin/vi", "crop/grain", "bind/secret", "dev/shm/y", "proc/1/"] {
            assert!(find(gone).is_none(), "{gone}: {lines:#?}");
        }
    };
    let of_running = export();
    check(&of_running);
    // The container goes on, and the archive is the same after its end.
    assert_eq!(daemon.hoist(["exec", "box", "cat", "/made"]).ok().text(), "own");
    daemon.hoist(["stop", "-t", "0", "box"]).ok();
    assert_eq!(export(), of_running);
    // Through a pipe, and back as an image.
    let mut hoist = daemon.command(["export", "box"]).stdout(Stdio::piped()).spawn().expect("hoist starts");
    let mut import = daemon.command(["import", "-", "box:1"]);
    run(import.stdin(hoist.stdout.take().expect("a pipe"))).ok();
    assert!(hoist.wait().expect("a child of ours").success());
    assert_eq!(
        daemon.hoist(["run", "--rm", "--network", "none", "box:1", "cat", "/again"]).ok().text(),
        "own"
    );
    fs::create_dir(&target).expect("a folder");
    run(Command::new("tar").args(["-xf", &name, "-C"]).arg(&target).arg("etc/passwd")).ok();

    daemon.hoist(["export", "nosuch"]).expect_code(1).expect_stderr("No such container: nosuch");
    daemon
        .hoist(["export", "-o", &target.display().to_string(), "box"])
        .expect_code(1)
        .expect_stderr("a file");
    daemon.hoist(["export", "-o", "/nosuch/x.tar", "box"]).expect_code(1).expect_stderr("/nosuch/x.tar");
    assert_eq!(daemon.hoist(["container", "export", "box"]).code, 0);
    daemon.hoist(["rm", "box"]).ok();
}
