//! Ctrl-C while images are loaded, saved, imported and converted: the daemon stops its part of the work too.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::Path;
use std::process::{Child, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use testkit::bulk::{Bulk, Compression, Shape};
use testkit::{Daemon, eventually, images};

/// Ends a command as Ctrl-C does, and waits until the daemon has stopped its part.
fn break_off(daemon: &Daemon, mut child: Child) {
    kill_process(Pid::from_child(&child), Signal::INT).expect("a child of ours");
    assert_eq!(child.wait().expect("a child of ours").code(), Some(130));
    eventually("the daemon has ended the work", || {
        let is_done = daemon.ctr(["leases", "ls", "-q"]).ok().text().is_empty() && pipes(daemon) == 0;
        is_done.then_some(())
    });
    assert!(ingests(daemon).is_empty(), "what had come has gone");
}

/// How many pipes of clients the daemon has open.
fn pipes(daemon: &Daemon) -> usize {
    let fds = fs::read_dir(format!("/proc/{}/fd", daemon.pid())).expect("procfs").flatten();
    let open = fds.filter_map(|fd| fs::read_link(fd.path()).ok());
    open.filter(|path| path.to_string_lossy().contains("/archive")).count()
}

fn ingests(daemon: &Daemon) -> Vec<std::ffi::OsString> {
    let entries = fs::read_dir(daemon.root().join("content/ingest")).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name()).collect()
}

/// A command that has read a part of a file from its standard input, and waits for the rest.
fn fed(daemon: &Daemon, words: &[&str], file: &Path) -> (Child, impl Sized) {
    let mut command = daemon.command(words);
    command.stdin(Stdio::piped()).env("TMPDIR", daemon.dir()).stdout(Stdio::null());
    let mut child = command.spawn().expect("hoist starts");
    let mut part = vec![0; 256 << 10];
    File::open(file).and_then(|mut file| file.read_exact(&mut part)).expect("a longer file");
    let mut stdin = child.stdin.take().expect("a pipe");
    stdin.write_all(&part).expect("it reads");
    eventually("the daemon has a part of it", || (!ingests(daemon).is_empty()).then_some(()));
    (child, stdin)
}

/// The directory in which a command made its pipes is removed.
fn no_folder(daemon: &Daemon) {
    let entries = fs::read_dir(daemon.dir()).expect("a directory").flatten();
    let left: Vec<_> = entries.filter(|entry| entry.path().join("archive").exists()).collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn archives_that_come_in_and_go_out() {
    let daemon = Daemon::start();
    let archive = images::busybox_archive();
    let (load, _held) = fed(&daemon, &["load"], &archive);
    break_off(&daemon, load);
    assert_eq!(daemon.hoist(["images", "-aq"]).ok().text(), "");
    let (import, _held) = fed(&daemon, &["import", "-", "tree:1"], &archive);
    break_off(&daemon, import);
    assert_eq!(daemon.hoist(["images", "-aq"]).ok().text(), "");

    daemon.load(&archive);
    let mut save = daemon.command(["save", "busybox"]);
    let mut save = save.stdout(Stdio::piped()).env("TMPDIR", daemon.dir()).spawn().expect("hoist starts");
    save.stdout.as_mut().expect("a pipe").read_exact(&mut [0]).expect("it writes");
    eventually("the daemon writes", || (pipes(&daemon) > 0).then_some(()));
    break_off(&daemon, save);
    let file = daemon.dir().join("saved.tar");
    assert!(!file.exists());
    no_folder(&daemon);
}

#[test]
fn a_conversion() {
    let image = Bulk::make(Shape { len: 300_000_000, files: 3, compression: Compression::None });
    let daemon = Daemon::start();
    daemon.load(image.layout.path());
    let name = daemon.hoist(["images", "--format", "{{.Repository}}:{{.Tag}}"]).ok().text().to_owned();
    let mut convert = daemon.command(["image", "convert", "--compression", "zstd", &name, "other:1"]);
    let mut convert = convert.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("hoist starts");
    eventually("a layer is being written", || (!ingests(&daemon).is_empty()).then_some(()));
    kill_process(Pid::from_child(&convert), Signal::INT).expect("a child of ours");
    assert!(!convert.wait().expect("a child of ours").success());
    eventually("the daemon has ended the work", || {
        daemon.ctr(["leases", "ls", "-q"]).ok().text().is_empty().then_some(())
    });
    assert!(!daemon.hoist(["images", "-a"]).ok().stdout.contains("other"), "it was not done to its end");
}
