//! Hoist's `ctr` compared with Debian's: the same commands on the same daemon print the same words.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::process::Stdio;

use testkit::{Bundle, Daemon, Registry, eventually, images, run};

use crate::cgroups::HIERARCHIES;

const OUR_RUNTIME: &str = "io.containerd.hoist.v2";

/// A daemon whose namespace `default` has busybox, pulled by our `ctr`.
fn daemon() -> (Daemon, Registry, String) {
    let registry = Registry::start();
    let image = registry.push(&images::busybox(), images::TAG, "busybox") + ":latest";
    let daemon = Daemon::start();
    daemon.own_ctr(["images", "pull", "--plain-http", &image]).ok();
    (daemon, registry, image)
}

/// The words of each line of output, with labels sorted.
fn words(text: &str) -> Vec<Vec<String>> {
    let word = |word: &str| {
        let mut parts: Vec<&str> = word.split(',').collect();
        parts.sort_unstable();
        parts.join(",")
    };
    let lines = text.lines().filter(|line| !line.trim().is_empty());
    lines.map(|line| line.split_whitespace().map(word).collect()).collect()
}

/// Runs a read-only command by both clients and returns how their output differs. Tries three times, since ages are in
/// seconds and may change between the two.
fn difference(daemon: &Daemon, args: &[&str]) -> Option<String> {
    let look = || {
        let theirs = daemon.ctr(args);
        let ours = daemon.own_ctr(args);
        let same = ours.code == theirs.code
            && words(&ours.stdout) == words(&theirs.stdout)
            && (theirs.code == 0 || ours.stderr.starts_with("ctr: "));
        (!same).then(|| format!("{ours}\n{theirs}"))
    };
    (0..3).try_fold(String::new(), |_, _| look())
}

/// Runs a command by Debian's client, and the same on another object by Hoist's, and compares their output.
#[track_caller]
fn alike(daemon: &Daemon, theirs: &[&str], ours: &[&str], replace: (&str, &str)) {
    let (theirs, ours) = (daemon.ctr(theirs), daemon.own_ctr(ours));
    assert_eq!(ours.code, theirs.code, "{ours}\n{theirs}");
    assert_eq!(words(&ours.stdout.replace(replace.1, replace.0)), words(&theirs.stdout), "{ours}\n{theirs}");
}

#[test]
fn what_is_listed_is_listed_alike() {
    let (daemon, _registry, image) = daemon();
    daemon.own_ctr(["images", "tag", &image, "other:1"]).ok();
    daemon.own_ctr(["images", "label", "other:1", "k=v", "l=w"]).ok();
    daemon.own_ctr(["namespaces", "create", "tenant", "a=b"]).ok();
    daemon.own_ctr(["leases", "create", "--id", "held", "--expires", "0", "x=y"]).ok();
    daemon.own_ctr(["snapshots", "prepare", "by-hand"]).ok();
    daemon.own_ctr(["run", "-d", "--runtime", OUR_RUNTIME, &image, "own-listed", "sleep", "1000"]).ok();
    let mut differences = Vec::new();
    for command in [
        "images ls",
        "images ls -q",
        "i list name==other:1",
        "image ls name==nosuch",
        "images check",
        "images check -q",
        "content ls",
        "content ls -q",
        "content active",
        "snapshots ls",
        "snapshots tree",
        "snapshots usage",
        "snapshots usage -b by-hand",
        "snapshots mounts /mnt by-hand",
        "snapshots --snapshotter native ls",
        "containers ls",
        "c ls -q",
        "containers ls id==own-listed",
        "tasks ls",
        "t ls -q",
        "tasks ps own-listed",
        "namespaces ls",
        "ns ls -q",
        "leases ls",
        "leases ls -q",
        "plugins ls",
        "plugins ls -q",
        "plugins ls type==io.containerd.snapshotter.v1",
        "plugins ls -d",
        "--namespace tenant images ls",
        // Names that do not exist.
        "containers info nosuch",
        "tasks ps nosuch",
        "content get sha256:0000000000000000000000000000000000000000000000000000000000000000",
        "snapshots info nosuch",
        "snapshots rm nosuch",
        "leases rm nosuch",
        "images tag nosuch x",
        "namespaces rm nosuch other",
    ] {
        differences.extend(difference(&daemon, &command.split(' ').collect::<Vec<_>>()));
    }
    let digest = daemon.ctr(["content", "ls", "-q"]).ok().stdout.lines().next().expect("a blob").to_owned();
    differences.extend(difference(&daemon, &["content", "get", &digest]));
    // JSON documents are equal in any order of keys.
    for command in
        ["containers info own-listed", "containers info --spec own-listed", "snapshots info by-hand"]
    {
        let args: Vec<&str> = command.split(' ').collect();
        let parse = |text: &str| serde_json::from_str::<serde_json::Value>(text).expect("JSON");
        let (ours, theirs) = (daemon.own_ctr(&args).ok(), daemon.ctr(&args).ok());
        if parse(&ours.stdout) != parse(&theirs.stdout) {
            differences.push(format!("{ours}\n{theirs}"));
        }
    }
    let version = (daemon.own_ctr(["version"]).ok(), daemon.ctr(["version"]).ok());
    let server = |text: &str| words(text.split("Server:").nth(1).unwrap_or_default()).concat();
    let (ours, theirs) = (server(&version.0.stdout), server(&version.1.stdout));
    // Debian's client adds a warning that its version differs from the daemon's.
    if ours.len() != 6 || !theirs.starts_with(&ours) {
        differences.push(format!("{}\n{}", version.0, version.1));
    }
    // Scripts compare the client's and the server's version.
    let told: Vec<&str> =
        version.0.stdout.lines().filter(|line| line.trim_start().starts_with("Version:")).collect();
    if told.len() != 2 || told[0] != told[1] {
        differences.push(version.0.to_string());
    }
    let metrics = ["tasks", "metrics", "own-listed"];
    let metrics = (daemon.own_ctr(metrics).ok(), daemon.ctr(metrics).ok());
    let names = |text: &str| words(text).into_iter().map(|line| line[0].clone()).collect::<Vec<_>>();
    if names(&metrics.0.stdout) != names(&metrics.1.stdout) {
        differences.push(format!("{}\n{}", metrics.0, metrics.1));
    }
    daemon.own_ctr(["tasks", "rm", "-f", "own-listed"]);
    daemon.own_ctr(["containers", "rm", "own-listed"]).ok();
    assert!(differences.is_empty(), "{} differences\n{}", differences.len(), differences.join("\n\n"));
}

#[test]
fn what_is_changed_is_changed_alike() {
    let (daemon, _registry, image) = daemon();
    alike(
        &daemon,
        &["images", "tag", &image, "theirs:1"],
        &["images", "tag", &image, "ours:1"],
        ("theirs", "ours"),
    );
    alike(
        &daemon,
        &["images", "label", "theirs:1", "a=b"],
        &["images", "label", "ours:1", "a=b"],
        ("theirs", "ours"),
    );
    alike(&daemon, &["images", "rm", "theirs:1"], &["images", "rm", "ours:1"], ("theirs", "ours"));
    alike(&daemon, &["images", "rm", "theirs:1"], &["images", "rm", "ours:1"], ("theirs", "ours"));
    let (theirs, ours) =
        (["snapshots", "prepare", "-t", "/mnt", "theirs"], ["snapshots", "prepare", "-t", "/mnt", "ours"]);
    alike(&daemon, &theirs, &ours, ("overlayfs/2/", "overlayfs/3/"));
}

/// With a default snapshotter in a label of the namespace, both clients make, find and run snapshots there.
#[test]
fn a_namespace_chooses_its_snapshotter() {
    let _hierarchies = HIERARCHIES.read();
    let (daemon, _registry, image) = daemon();
    let label = "containerd.io/defaults/snapshotter=native";
    let mut found = Vec::new();
    for is_ours in [false, true] {
        let name = if is_ours { "ours" } else { "theirs" };
        let ctr = |words: &[&str]| {
            let words = [&["-n", name], words].concat();
            if is_ours { daemon.own_ctr(words) } else { daemon.ctr(words) }
        };
        ctr(&["namespaces", "create", name, label]).ok();
        ctr(&["images", "pull", "--plain-http", &image]).ok();
        let trees = ctr(&["snapshots", "--snapshotter", "native", "ls"]).ok().stdout.lines().count();
        // Commands that list snapshots ignore the label.
        let others = ctr(&["snapshots", "ls"]).ok().stdout.lines().count();
        let checked = ctr(&["images", "check"]).ok().stdout;
        ctr(&["containers", "create", "--runtime", OUR_RUNTIME, &image, "box", "true"]).ok();
        let container = ctr(&["containers", "info", "box"]).ok().stdout;
        let container: serde_json::Value = serde_json::from_str(&container).expect("JSON");
        ctr(&["containers", "rm", "box"]).ok();
        let archive = daemon.dir().join(name).display().to_string();
        ctr(&["images", "export", &archive, &image]).ok();
        ctr(&["images", "rm", "--sync", &image]).ok();
        ctr(&["images", "import", &archive]).ok();
        let again = ctr(&["snapshots", "--snapshotter", "native", "ls"]).ok().stdout.lines().count();
        let is_unpacked = checked.lines().nth(1).is_some_and(|line| line.trim_end().ends_with("true"));
        found.push((trees, others, again, is_unpacked, container["Snapshotter"].clone()));
        ctr(&["run", "--rm", "--runtime", OUR_RUNTIME, &image, "box", "true"]).ok();
    }
    assert_eq!(found[1], found[0]);
    assert_eq!(found[0].4, "native");
    assert!(found[0].0 > 1 && found[0].1 == 1, "{found:?}");
}

/// The whole life of a container by Hoist's `ctr`, with each state checked by Debian's.
#[test]
fn containers_live_and_die() {
    let _hierarchies = HIERARCHIES.read();
    let (daemon, _registry, image) = daemon();
    let once = [
        "run",
        "--rm",
        "--runtime",
        OUR_RUNTIME,
        &image,
        "own-once",
        "sh",
        "-c",
        "echo out; echo err >&2; exit 7",
    ];
    let once = daemon.own_ctr(once).expect_code(7);
    assert_eq!((once.stdout.as_str(), once.stderr.as_str()), ("out\n", "err\n"));
    assert_eq!(daemon.ctr(["containers", "ls", "-q"]).ok().text(), "", "--rm leaves nothing");
    assert_eq!(daemon.ctr(["leases", "ls", "-q"]).ok().text(), "", "and no lease");

    let shown = [
        "run",
        "--rm",
        "--runtime",
        OUR_RUNTIME,
        "--env",
        "WHO=me",
        "--cwd",
        "/tmp",
        "--user",
        "1:2",
        "--read-only",
        "--memory-limit",
        "67108864",
        "--label",
        "x=y",
        &image,
        "own-shown",
        "sh",
        "-c",
        "echo $WHO; pwd; id -u; id -g; touch /x || echo refused",
    ];
    assert_eq!(daemon.own_ctr(shown).ok().stdout, "me\n/tmp\n1\n2\nrefused\n");
    let typed = format!(
        "echo typed | {} --address {} run --rm --runtime {OUR_RUNTIME} {image} own-typed cat",
        daemon.dir().join("ctr").display(),
        daemon.socket().display()
    );
    assert_eq!(run(std::process::Command::new("sh").args(["-c", &typed])).ok().stdout, "typed\n");

    daemon
        .own_ctr(["containers", "create", "--runtime", OUR_RUNTIME, &image, "own-life", "sleep", "1000"])
        .ok();
    let pid_file = daemon.dir().join("pid").display().to_string();
    daemon.own_ctr(["tasks", "start", "-d", "--null-io", "--pid-file", &pid_file, "own-life"]).ok();
    let tasks = daemon.ctr(["tasks", "ls"]).ok();
    let pid = std::fs::read_to_string(&pid_file).expect("the pid is written");
    assert!(tasks.stdout.contains("own-life") && tasks.stdout.contains(&pid), "{tasks}");
    let exec = ["tasks", "exec", "--exec-id", "one", "own-life", "sh", "-c", "echo inside; exit 3"];
    assert_eq!(daemon.own_ctr(exec).expect_code(3).stdout, "inside\n");
    daemon.own_ctr(["tasks", "pause", "own-life"]).ok();
    assert!(daemon.ctr(["tasks", "ls"]).ok().stdout.contains("PAUSED"));
    daemon.own_ctr(["tasks", "resume", "own-life"]).ok();
    let running = daemon.own_ctr(["containers", "rm", "own-life"]);
    assert!(running.code != 0 && running.stderr.contains("non stopped"), "{running}");
    daemon.own_ctr(["tasks", "kill", "--signal", "SIGKILL", "own-life"]).ok();
    eventually("the task has stopped", || {
        daemon.ctr(["tasks", "ls"]).ok().stdout.contains("STOPPED").then_some(())
    });
    daemon.own_ctr(["tasks", "rm", "own-life"]).ok().expect_stderr("exit code 137");
    daemon.own_ctr(["containers", "rm", "own-life"]).ok();
    let snapshots = daemon.ctr(["snapshots", "ls"]).ok();
    assert!(!snapshots.stdout.contains("Active"), "{snapshots}");
    let refused = daemon.own_ctr(["run", "--odd", "0", &image, "own-refused", "true"]);
    assert!(refused.code != 0 && refused.stderr.contains("--odd is not known"), "{refused}");
}

#[test]
fn archives_blobs_and_mounts() {
    let (daemon, registry, image) = daemon();
    let archive = daemon.dir().join("out.tar").display().to_string();
    daemon.own_ctr(["images", "export", &archive, &image]).ok();
    daemon.own_ctr(["images", "push", "--plain-http", &format!("{}/pushed:1", registry.host()), &image]).ok();
    let mount = daemon.dir().join("mnt");
    std::fs::create_dir(&mount).expect("a writable directory");
    let mount = mount.display().to_string();
    let mounted = daemon.own_ctr(["images", "mount", &image, &mount]).ok();
    assert!(mounted.stdout.lines().nth(1) == Some(&mount), "{mounted}");
    assert!(std::path::Path::new(&mount).join("bin/busybox").exists());
    daemon.own_ctr(["images", "unmount", "--rm", &mount]).ok();
    assert!(!std::path::Path::new(&mount).join("bin").exists());
    daemon.own_ctr(["images", "rm", "--sync", &image]).ok();
    assert_eq!(daemon.ctr(["content", "ls", "-q"]).ok().text(), "");
    // An exported archive can be imported, by path and by standard input, and by Debian's client too.
    let imported = daemon.own_ctr(["images", "import", &archive]).ok();
    assert!(imported.stdout.contains(&format!("unpacking {image}")), "{imported}");
    assert!(daemon.ctr(["images", "check", "-q"]).ok().stdout.contains(&image), "it is whole and unpacked");
    daemon.own_ctr(["run", "--rm", "--runtime", OUR_RUNTIME, &image, "own-imported", "true"]).ok();
    daemon.own_ctr(["images", "rm", &image]).ok();
    let open = || std::fs::File::open(&archive).expect("it was exported");
    let base = image.trim_end_matches(":latest");
    let args =
        ["images", "import", "--no-unpack", "--base-name", base, "--digests", "--index-name", "whole:1", "-"];
    run(daemon.own_ctr_command(args).stdin(open())).ok();
    let names = daemon.ctr(["images", "ls", "-q"]).ok().stdout;
    for name in [image.as_str(), &format!("{base}@sha256:"), "whole:1"] {
        assert!(names.contains(name), "{name}\n{names}");
    }
    // `--base-name` matches whole components of a name only.
    for other in ["registry.example/other", &base[..base.len() - 1]] {
        let refused = daemon.own_ctr(["images", "import", "--base-name", other, &archive]);
        assert!(refused.code != 0 && refused.stderr.contains(other), "{refused}");
    }
    std::fs::write(daemon.dir().join("broken.tar"), [7; 4096]).expect("a writable directory");
    let broken = daemon.own_ctr(["images", "import", &daemon.dir().join("broken.tar").display().to_string()]);
    assert!(broken.code != 0 && broken.stderr.contains("import an archive"), "{broken}");
    daemon.ctr(["images", "import", &archive]).ok();

    daemon.own_ctr(["images", "pull", "--plain-http", &format!("{}/pushed:1", registry.host())]).ok();

    let text = "some bytes";
    let digest = types::Digest::of(text.as_bytes()).to_string();
    let file = daemon.dir().join("blob");
    std::fs::write(&file, text).expect("a writable directory");
    let open = || std::fs::File::open(&file).expect("it was written");
    let wrong = format!("sha256:{}", "0".repeat(64));
    let refused =
        run(daemon.own_ctr_command(["content", "ingest", "--expected-digest", &wrong, "k"]).stdin(open()));
    assert!(refused.code != 0, "{refused}");
    let size = text.len().to_string();
    let args = ["content", "ingest", "--expected-digest", &digest, "--expected-size", &size, "k"];
    run(daemon.own_ctr_command(args).stdin(open())).ok();
    assert_eq!(daemon.own_ctr(["content", "get", &digest]).ok().stdout, text);
    // As with Debian's, an existing blob is reported at once, without waiting for standard input.
    let (unread, _kept_open) = std::io::pipe().expect("a pipe");
    for reference in ["k", "other"] {
        let args = ["content", "ingest", "--expected-digest", &digest, reference];
        run(daemon.own_ctr_command(args).stdin(unread.try_clone().expect("a pipe"))).ok();
        run(daemon.own_ctr_command(["content", "ingest", reference]).stdin(open())).ok();
        run(daemon.ctr_command(args).stdin(open())).ok();
    }
    daemon.own_ctr(["content", "rm", &digest]).ok();
}

/// A container from a spec file (`--config`), as `runc spec` writes it beside a root file system.
#[test]
fn a_container_is_made_of_a_file() {
    let _hierarchies = HIERARCHIES.read();
    let (daemon, _registry, _image) = daemon();
    let bundle = Bundle::new("echo of the file; id -u");
    let file = bundle.path().join("config.json").display().to_string();
    let run = |words: &[&str]| {
        daemon.own_ctr([&["run", "--rm", "--runtime", OUR_RUNTIME, "--config", &file][..], words].concat())
    };
    assert_eq!(run(&["own-filed"]).ok().stdout, "of the file\n0\n");
    let many = run(&["busybox", "own-filed"]);
    assert!(many.code != 0 && many.stderr.contains("the container's id and nothing more"), "{many}");
    let none = run(&[]);
    assert!(none.code != 0 && none.stderr.contains("container id"), "{none}");
    let missing = daemon.own_ctr(["run", "--config", "/no/such", "own-filed"]);
    assert!(missing.code != 0 && missing.stderr.contains("--config /no/such"), "{missing}");
    daemon.own_ctr(["containers", "create", "--label", "a=b", "--config", &file, "own-filed"]).ok();
    let theirs = daemon.ctr(["containers", "ls", "labels.a==b"]).ok().stdout;
    assert!(theirs.contains("own-filed") && theirs.contains(" - "), "{theirs}");
    daemon.own_ctr(["containers", "rm", "own-filed"]).ok();
}

/// The user of an exec, looked up in the container's files, as Debian's `ctr` does.
#[test]
fn further_processes_are_users_by_name() {
    let _hierarchies = HIERARCHIES.read();
    let (daemon, _registry, image) = daemon();
    daemon.own_ctr(["run", "-d", "--runtime", OUR_RUNTIME, &image, "own-users", "sleep", "1000"]).ok();
    let exec = |words: &[&str]| daemon.own_ctr([&["tasks", "exec", "--exec-id", "e"][..], words].concat());
    let files = "echo web:x:33:44::/:/bin/sh >> /etc/passwd; echo staff:x:50: >> /etc/group";
    exec(&["own-users", "sh", "-c", files]).ok();
    for (user, seen) in [
        ("web", "33 44 44"),
        ("33", "33 44 44"),
        ("web:staff", "33 50 50"),
        ("33:50", "33 50 50"),
        ("7", "7 0 0"),
        ("root", "0 0 0"),
    ] {
        let shown = exec(&["--user", user, "own-users", "sh", "-c", "echo $(id -u) $(id -g) $(id -G)"]).ok();
        assert_eq!(shown.text(), seen, "{user}");
    }
    for unknown in ["nosuch", "web:nosuch"] {
        let refused = exec(&["--user", unknown, "own-users", "true"]);
        assert!(refused.code != 0 && refused.stderr.contains("nosuch"), "{refused}");
    }
    daemon.own_ctr(["tasks", "rm", "-f", "own-users"]).ok();
    daemon.own_ctr(["containers", "rm", "own-users"]).ok();
}

#[test]
fn events_are_printed_as_they_happen() {
    let daemon = Daemon::start();
    let listen = |mut command: std::process::Command| {
        let mut child = command.stdout(Stdio::piped()).spawn().expect("ctr starts");
        let lines = BufReader::new(child.stdout.take().expect("piped")).lines();
        let (tell, told) = std::sync::mpsc::channel();
        let reader = std::thread::spawn(move || {
            lines.map_while(Result::ok).take_while(|line| tell.send(line.clone()).is_ok()).count()
        });
        (child, told, reader)
    };
    let (mut ours, our_lines, our_reader) = listen(daemon.own_ctr_command(["events"]));
    let (mut theirs, their_lines, their_reader) = listen(daemon.ctr_command(["events"]));
    // `events` shows nothing from before it listens.
    let (mut our_seen, mut their_seen) = (BTreeSet::new(), BTreeSet::new());
    let mut round = 0;
    let both = eventually("both hear of the same", || {
        daemon.ctr(["namespaces", "create", &format!("n{round}"), "a=b"]).ok();
        round += 1;
        // Without the time; keys of JSON documents come in any order.
        let normal = |line: String| {
            let words: Vec<&str> = line.splitn(7, ' ').collect();
            let event: serde_json::Value = serde_json::from_str(words[6]).expect("JSON");
            format!("{} {} {event}", words[4], words[5])
        };
        our_seen.extend(our_lines.try_iter().map(normal));
        their_seen.extend(their_lines.try_iter().map(normal));
        our_seen.intersection(&their_seen).next().cloned()
    });
    assert!(both.contains("/namespaces/create") && both.contains("\"labels\":{\"a\":\"b\"}"), "{both}");
    for child in [&mut ours, &mut theirs] {
        child.kill().expect("ctr is a child of ours");
        child.wait().expect("ctr is a child of ours");
    }
    our_reader.join().expect("the reader ends with its pipe");
    their_reader.join().expect("the reader ends with its pipe");
}

#[test]
fn layers_are_made_from_trees_and_trees_from_layers() {
    let (daemon, _registry, image) = daemon();
    // A change on top of the image: both clients write the same layer of it.
    let chain = daemon.own_ctr(["snapshots", "ls"]).ok();
    let committed = chain.stdout.lines().find(|line| line.contains("Committed")).expect("a tree");
    let parent = committed.split_whitespace().next().expect("a key").to_owned();
    let target = daemon.dir().join("mnt");
    std::fs::create_dir(&target).expect("a writable directory");
    let mounts = daemon
        .own_ctr(["snapshots", "prepare", "-t", &target.display().to_string(), "changed", &parent])
        .ok();
    run(std::process::Command::new("sh").args(["-c", &mounts.stdout])).ok();
    std::fs::write(target.join("new-file"), "written here").expect("a writable tree");
    run(std::process::Command::new("umount").arg(&target)).ok();
    let listed = |args: &[&str]| {
        let layer = daemon.dir().join("layer.tar");
        let file = std::fs::File::create(&layer).expect("a writable directory");
        let made = daemon.own_ctr_command(args).stdout(file).status().expect("ctr runs");
        assert!(made.success(), "{args:?}");
        run(std::process::Command::new("tar").arg("-tf").arg(&layer)).ok().stdout
    };
    assert_eq!(listed(&["snapshots", "diff", "changed"]), "new-file\n");
    let plain = "application/vnd.oci.image.layer.v1.tar";
    assert_eq!(listed(&["snapshots", "diff", "--media-type", plain, &parent, "changed"]), "new-file\n");
    assert!(
        listed(&["snapshots", "diff", &parent]).contains("bin/busybox"),
        "a committed one, against its parent"
    );
    listed(&["snapshots", "diff", "--keep", "--label", "made=by-hand", "changed"]);
    let kept = daemon.own_ctr(["content", "ls", "labels.made==by-hand"]).ok();
    assert_eq!(kept.stdout.lines().count(), 2, "the heading and one: {kept}");
    assert!(!daemon.own_ctr(["snapshots", "ls"]).ok().stdout.contains("view-key"), "no view is left");
    assert!(daemon.own_ctr(["snapshots", "diff", "nosuch"]).stderr.contains("nosuch"));

    // The snapshots are removed, and unpacked again from the blobs.
    daemon.own_ctr(["snapshots", "rm", "changed"]).ok();
    daemon.own_ctr(["snapshots", "rm", &parent]).ok();
    let listed = daemon.own_ctr(["images", "ls", &format!("name=={image}")]).ok();
    let digest = listed.stdout.split_whitespace().find(|word| word.starts_with("sha256:")).expect("a digest");
    assert!(!daemon.own_ctr(["images", "check", "-q"]).ok().stdout.contains(&image), "it is not unpacked");
    let unpacked = daemon.own_ctr(["snapshots", "unpack", digest]).ok();
    assert_eq!(unpacked.text(), parent);
    assert!(daemon.own_ctr(["images", "check", "-q"]).ok().stdout.contains(&image), "it is unpacked");
    daemon.own_ctr(["run", "--rm", "--runtime", OUR_RUNTIME, &image, "unpacked", "true"]).ok();
    let nothing = daemon.own_ctr(["snapshots", "unpack", &format!("sha256:{}", "0".repeat(64))]);
    assert!(nothing.code != 0 && nothing.stderr.contains("manifest not found"), "{nothing}");
}

#[test]
fn blobs_are_edited_let_go_of_and_images_converted() {
    let (daemon, _registry, image) = daemon();
    let listed = daemon.own_ctr(["images", "ls", &format!("name=={image}")]).ok();
    let digest = listed
        .stdout
        .split_whitespace()
        .find(|word| word.starts_with("sha256:"))
        .expect("a digest")
        .to_owned();
    let edit =
        |editor: &str| daemon.own_ctr(["content", "edit", "--validate", "json", "--editor", editor, &digest]);
    let edited = edit("sed -i s/schemaVersion/changed/").ok().text().to_owned();
    assert!(edited.starts_with("sha256:") && edited != digest);
    assert!(daemon.own_ctr(["content", "get", &edited]).ok().stdout.contains("\"changed\""));
    assert_eq!(edit("true").ok().text(), digest, "what is not changed is the same");
    assert!(edit("false").code != 0);
    let broken = edit("sed -i s/{/x/");
    assert!(broken.code != 0 && broken.stderr.contains("no JSON"), "{broken}");

    let converted = daemon.own_ctr(["images", "convert", "--uncompress", "--oci", &image, "plain:1"]).ok();
    let manifest = daemon.own_ctr(["content", "get", converted.text()]).ok().stdout;
    assert!(manifest.contains("application/vnd.oci.image.layer.v1.tar\""), "{manifest}");
    daemon
        .own_ctr(["run", "--rm", "--runtime", OUR_RUNTIME, "docker.io/library/plain:1", "plain", "true"])
        .ok();
    // In another namespace, from blobs that the store has already.
    let elsewhere = |words: &[&str]| daemon.own_ctr([&["-n", "tenant"][..], words].concat());
    let none = elsewhere(&["images", "convert", &image, "x:1"]);
    assert!(none.code != 0 && none.stderr.contains("not found"), "{none}");
    let archive = daemon.dir().join("image.tar").display().to_string();
    daemon.own_ctr(["images", "export", &archive, &image]).ok();
    elsewhere(&["images", "import", &archive]).ok();
    let again = elsewhere(&["images", "convert", "--uncompress", "--oci", &image, "x:1"]).ok();
    assert_eq!(again.text(), converted.text(), "the same image there");
    assert!(elsewhere(&["images", "ls", "-q"]).ok().stdout.contains("docker.io/library/x:1"));
    assert!(!daemon.own_ctr(["images", "ls", "-q"]).ok().stdout.contains("library/x:1"));

    // Blobs of layers that only manifests refer to are removed; unpacked snapshots stay.
    let manifest: serde_json::Value =
        serde_json::from_str(&daemon.own_ctr(["content", "get", &digest]).ok().stdout).expect("a manifest");
    let layer = manifest["layers"][0]["digest"].as_str().expect("a digest");
    let is_here = || daemon.own_ctr(["content", "ls", "-q"]).ok().stdout.contains(layer);
    let dry = daemon.own_ctr(["content", "prune", "references", "--dry"]).ok();
    assert!(dry.stdout.contains(&format!("{digest}: containerd.io/gc.ref.content.l.0")), "{dry}");
    assert!(is_here());
    daemon.own_ctr(["content", "prune", "references"]).ok();
    assert!(!is_here());
    daemon.own_ctr(["run", "--rm", "--runtime", OUR_RUNTIME, &image, "pruned", "true"]).ok();
}

#[test]
fn all_platforms_come_and_registries_are_told_by_certificates() {
    let registry = Registry::start_secured();
    let image = registry.push(&images::busybox(), images::TAG, "busybox") + ":latest";
    let daemon = Daemon::start();
    let user = format!("{}:{}", Registry::USER, Registry::PASSWORD);
    let pull = |flags: &[&str]| {
        let words = ["images", "pull", "--user", &user].into_iter().chain(flags.iter().copied());
        daemon.own_ctr(words.chain([image.as_str()]))
    };
    let unknown = pull(&[]);
    assert!(unknown.code != 0 && unknown.stderr.contains("certificate"), "{unknown}");
    pull(&["--skip-verify"]).ok();
    daemon.own_ctr(["images", "rm", "--sync", &image]).ok();
    let ca = registry.ca().display().to_string();
    pull(&["--tlscacert", &ca, "--all-platforms"]).ok();
    let alone = pull(&["--tlscert", &ca]);
    assert!(alone.code != 0 && alone.stderr.contains("belong together"), "{alone}");
    let missing = pull(&["--tlscacert", "/no/such"]);
    assert!(missing.code != 0 && missing.stderr.contains("--tlscacert /no/such"), "{missing}");
}
