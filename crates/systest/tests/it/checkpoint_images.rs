//! Checkpoints as images: an index of a checkpoint's blobs, with or without the image of its container. It is pushed,
//! pulled, exported and imported as one image, and stays the same.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};
use testkit::{Containerd, Daemon, Finished, Layout, Registry, digest_of, eventually, images, is_root, run};

use crate::checkpoint::{COUNT, criu_works};

const STATE: &str = "application/vnd.containerd.container.criu.checkpoint.criu.tar";
const SPEC: &str = "application/vnd.containerd.container.checkpoint.config.v1+proto";

/// A blob of a checkpoint's index as containerd's clients write it: with the platform on which it was made.
fn part(layout: &Layout, kind: &str, bytes: &[u8]) -> Value {
    let mut part = layout.blob(kind, bytes);
    part["platform"] = json!({"os": "linux", "architecture": "amd64"});
    part
}

/// The digests of an index's children in a daemon, and whether each can be read.
fn held(daemon: &Daemon, name: &str) -> Vec<(String, bool)> {
    let index = index(daemon, name);
    let children = index["manifests"].as_array().expect("it has children").iter().map(digest_of);
    children
        .map(|digest| {
            let is_here = daemon.ctr(["content", "get", &digest]).code == 0;
            (digest, is_here)
        })
        .collect()
}

fn index(daemon: &Daemon, name: &str) -> Value {
    let target = target(daemon, name);
    serde_json::from_str(&daemon.ctr(["content", "get", &target]).ok().stdout).expect("an index is JSON")
}

fn target(daemon: &Daemon, name: &str) -> String {
    let listed = daemon.ctr(["images", "ls", &format!("name=={name}")]).ok().stdout;
    let digest = listed.split_whitespace().find(|word| word.starts_with("sha256:"));
    digest.unwrap_or_else(|| panic!("{name} is not in {listed}")).to_owned()
}

#[test]
fn blobs_of_an_index_go_with_it_and_come_with_it() {
    if !is_root("snapshots") {
        return;
    }
    let (layout, registry) = (Layout::new(), Registry::start());
    let bases = ["amd64", "arm64"].map(|architecture| {
        let layers = [layout.layer(architecture, 100_000)];
        layout.image(architecture, &layers)
    });
    let base = layout.index(&bases);
    // Larger than a manifest may be.
    let state = part(&layout, STATE, &testkit::layout::noise("state", 9 << 20));
    let spec = part(&layout, SPEC, b"a spec");
    let whole = layout.index(&[base.clone(), state.clone(), spec.clone()]);
    let bare = layout.index(&[state.clone(), spec.clone()]);
    layout.tag(&whole, "frozen.example/whole:1");
    layout.tag(&bare, "frozen.example/bare:1");

    let first = Daemon::start();
    first.hoist(["load", "--input", &layout.path().display().to_string()]).ok();
    let names = ["whole", "bare"].map(|name| (format!("frozen.example/{name}:1"), name));
    for (name, short) in &names {
        let to = format!("{}/{short}:1", registry.host());
        first.hoist(["tag", name, &to]).ok();
        first.hoist(["push", &to]).ok();
    }

    let second = Daemon::start();
    for ((_, short), made) in names.iter().zip([&whole, &bare]) {
        let name = format!("{}/{short}:1", registry.host());
        second.hoist(["pull", &name]).ok();
        assert_eq!(target(&second, &name), digest_of(made), "{short} is what it was");
        assert!(held(&second, &name).iter().all(|(_, is_here)| *is_here), "{short}");
        assert!(second.hoist(["images"]).ok().stdout.contains(short));
        assert_eq!(second.hoist(["image", "verify", &name]).code, 0, "{short}");
    }
    // One index has the image of this machine's platform, the other has no image.
    let name = format!("{}/whole:1", registry.host());
    let (of_this, of_others) = (digest_of(&bases[0]), digest_of(&bases[1]));
    assert_eq!(second.ctr(["content", "get", &of_this]).code, 0);
    assert!(second.ctr(["content", "get", &of_others]).code != 0, "nobody asked for it");
    let run = second.hoist(["run", "--rm", &format!("{}/bare:1", registry.host()), "true"]);
    assert!(run.code != 0 && run.stderr.contains("no image for"), "{run}");

    // A push leaves out the parts of the image that the daemon lacks, and the pushed index says so.
    let copy = format!("{}/copy:1", registry.host());
    second.hoist(["tag", &name, &copy]).ok();
    second.hoist(["push", &copy]).ok();
    let third = Daemon::start();
    third.hoist(["pull", &copy]).ok();
    let expected: Vec<_> = [&bases[0], &state, &spec].map(|part| (digest_of(part), true)).into();
    assert_eq!(held(&third, &copy), expected);

    // An archive has all that the daemon has, under the same digest.
    let archive = second.dir().join("saved.tar").display().to_string();
    second.hoist(["save", "--output", &archive, &name, &format!("{}/bare:1", registry.host())]).ok();
    let fourth = Daemon::start();
    fourth.hoist(["load", "--input", &archive]).ok();
    assert_eq!(target(&fourth, &name), digest_of(&whole));
    assert!(held(&fourth, &name).iter().all(|(_, is_here)| *is_here));
    // The blobs of a checkpoint are removed with its index.
    let is_here = || fourth.ctr(["content", "get", &digest_of(&state)]).code == 0;
    fourth.ctr(["images", "rm", "--sync", &name]).ok();
    assert!(is_here(), "the other has it still");
    fourth.ctr(["images", "rm", "--sync", &format!("{}/bare:1", registry.host())]).ok();
    assert!(!is_here());
}

#[test]
fn an_index_without_its_blobs_is_no_image() {
    if !is_root("snapshots") {
        return;
    }
    let layout = Layout::new();
    let (state, spec) = (part(&layout, STATE, b"state"), part(&layout, SPEC, b"a spec"));
    layout.tag(&layout.index(&[state.clone(), spec]), "frozen.example/bare:1");
    fs::remove_file(layout.blob_path(&state)).expect("it was written");
    let daemon = Daemon::start();
    let refused = daemon.hoist(["load", "--input", &layout.path().display().to_string()]);
    assert!(refused.code != 0 && refused.stderr.contains(&digest_of(&state)), "{refused}");
}

/// By Debian's client, on a kernel that criu supports. The checkpoint travels as an archive, because the guest has no
/// registry.
#[test]
fn ctr_takes_a_container_from_one_daemon_to_another() {
    if !criu_works() {
        return;
    }
    let first = Daemon::start();
    first.ctr(["images".as_ref(), "import".as_ref(), images::busybox_archive().as_os_str()]).ok();
    let image = "docker.io/library/busybox:latest";
    let runtime = ["--runtime", "io.containerd.hoist.v2"];
    let words = ["run", "-d", "--null-io"].iter().chain(&runtime);
    first.ctr(words.chain(&[image, "counter", "sh", "-c", COUNT])).ok();
    let reads = |daemon: &Daemon, id: &str, path: &str| {
        let found = daemon.ctr(["tasks", "exec", "--exec-id", "look", id, "cat", path]);
        (found.code == 0).then(|| found.stdout.trim().to_owned())
    };
    let counts = |daemon: &Daemon, id: &str, from: u32| {
        eventually("it counts", || {
            let count: u32 = reads(daemon, id, "/count")?.parse().ok()?;
            (count > from).then_some(count)
        })
    };
    counts(&first, "counter", 2);
    let name = "frozen.example/counter:1";
    first.ctr(["containers", "checkpoint", "--rw", "--image", "--task", "counter", name]).ok();
    let before = counts(&first, "counter", 0);

    let archive = first.dir().join("counter.tar").display().to_string();
    first.hoist(["save", "--output", &archive, name]).ok();
    // Both daemons are on one host, and a restored container goes into the cgroup that it had.
    first.ctr(["tasks", "rm", "--force", "counter"]);
    let second = Daemon::start();
    second.hoist(["load", "--input", &archive]).ok();
    second.ctr(["images".as_ref(), "import".as_ref(), images::busybox_archive().as_os_str()]).ok();
    second.ctr(["containers", "restore", "--rw", "--live", "again", name]).ok();
    let after = counts(&second, "again", 0);
    assert!(after > 2, "it goes on at {after}, it was at {before} at most");
    counts(&second, "again", after);
    assert_eq!(reads(&second, "again", "/begun").as_deref(), Some("begun"), "it did not begin anew");
    second.ctr(["tasks", "rm", "--force", "again"]);
}

/// By Debian's containerd with Hoist's shim: into its store, into a directory, into an image, and back from that. `ctr`
/// sends its checkpoint options only to shims with runc's name, so Hoist's shim has that name.
#[test]
fn ctr_checkpoints_a_task_under_containerd() {
    if !criu_works() {
        return;
    }
    let (containerd, programs) = crate::shim_daemons::containerd();
    std::os::unix::fs::symlink(testkit::shim_program(), programs.path().join("containerd-shim-runc-v2"))
        .expect("a writable directory");
    let image = "docker.io/library/busybox:latest";
    let starts = |id: &str| {
        let words = ["run", "-d", "--null-io", "--runtime", "io.containerd.runc.v2", image, id, "sh", "-c"];
        containerd.ctr(words.iter().chain(&[COUNT])).ok();
    };
    let reads = |id: &str, path: &str| {
        let found = containerd.ctr(["tasks", "exec", "--exec-id", "look", id, "cat", path]);
        (found.code == 0).then(|| found.stdout.trim().to_owned())
    };
    let counts = |id: &str, from: u32| {
        eventually("it counts", || {
            let count: u32 = reads(id, "/count")?.parse().ok()?;
            (count > from).then_some(count)
        })
    };
    let ends = |id: &str| {
        eventually("the task has ended", || {
            let tasks = containerd.ctr(["tasks", "ls"]).ok();
            tasks.stdout.lines().any(|line| line.starts_with(id) && line.contains("STOPPED")).then_some(())
        });
        containerd.ctr(["tasks", "delete", id]);
    };
    // The container survives the first checkpoint, and ends with the second. (containerd cannot write a container's
    // spec twice.)
    starts("cd-stored");
    counts("cd-stored", 2);
    let files = containerd.dir().join("files").display().to_string();
    fs::create_dir(&files).expect("a writable directory");
    containerd.ctr(["tasks", "checkpoint", "--image-path", &files, "cd-stored"]).ok();
    assert!(Path::new(&files).join("inventory.img").exists(), "criu's files are where ctr was told");
    let before = counts("cd-stored", 0);
    counts("cd-stored", before);
    containerd.ctr(["tasks", "checkpoint", "--exit", "cd-stored"]).ok();
    ends("cd-stored");

    starts("cd-frozen");
    counts("cd-frozen", 2);
    let name = "frozen.example/frozen:1";
    containerd.ctr(["containers", "checkpoint", "--rw", "--image", "--task", "cd-frozen", name]).ok();
    let before = counts("cd-frozen", 0);
    containerd.ctr(["tasks", "kill", "--signal", "SIGKILL", "cd-frozen"]).ok();
    ends("cd-frozen");
    containerd.ctr(["containers", "restore", "--rw", "--live", "cd-again", name]).ok();
    let after = counts("cd-again", 0);
    assert!(after > 2, "it goes on at {after}, it was at {before} at most");
    counts("cd-again", after);
    assert_eq!(reads("cd-again", "/begun").as_deref(), Some("begun"), "it did not begin anew");
}

/// A checkpoint's image with the image of its container, and one without.
struct Frozen {
    archive: std::path::PathBuf,
    /// The checkpoint's blobs, and all its other blobs.
    blobs: Vec<String>,
    documents: Vec<String>,
    _layout: Layout,
}

impl Frozen {
    fn new() -> Frozen {
        let layout = Layout::new();
        let mut base = layout.image("amd64", &[layout.layer("base", 10_000)]);
        base["platform"] = json!({"os": "linux", "architecture": "amd64"});
        let (state, spec) = (part(&layout, STATE, b"state"), part(&layout, SPEC, b"a spec"));
        let whole = layout.index(&[base.clone(), state.clone(), spec.clone()]);
        let bare = layout.index(&[state.clone(), spec.clone()]);
        layout.tag(&whole, "frozen.example/whole:1");
        layout.tag(&bare, "frozen.example/bare:1");
        let archive = layout.path().join("all.tar");
        layout.archive(&archive);
        let digests = |parts: &[&Value]| parts.iter().map(|part| digest_of(part)).collect();
        Frozen {
            archive,
            blobs: digests(&[&state, &spec]),
            documents: digests(&[&whole, &bare, &base]),
            _layout: layout,
        }
    }

    /// Runs the commands. Returns for each whether it succeeded, and the blobs and images after it.
    fn moved(&self, registry: &Registry, dir: &Path, ctr: impl Fn(&[&str]) -> Finished) -> Vec<String> {
        let mut told = Vec::new();
        let call = |told: &mut Vec<String>, args: &[&str]| {
            let code = ctr(args).code;
            told.push(format!("{} {}: {code}", args[1], args.last().unwrap_or(&"")));
        };
        let here = |told: &mut Vec<String>, when: &str| {
            for digest in self.blobs.iter().chain(&self.documents) {
                let is_here = ctr(&["content", "get", digest]).code == 0;
                told.push(format!("{when}: {digest} {is_here}"));
            }
        };
        ctr(&["images", "import", "--no-unpack", &self.archive.display().to_string()]).ok();
        here(&mut told, "imported");
        for name in ["whole", "bare"] {
            let (local, remote) =
                (format!("frozen.example/{name}:1"), format!("{}/{name}:1", registry.host()));
            let of = |name: &str| ctr(&["images", "ls", &format!("name=={name}")]).stdout;
            ctr(&["images", "push", "--plain-http", &remote, &local]).ok();
            let out = dir.join(format!("{name}.tar")).display().to_string();
            // ctr makes Docker's form from an image's config, which a checkpoint alone does not have.
            call(&mut told, &["images", "export", &format!("{out}.docker"), &local]);
            ctr(&["images", "export", "--skip-manifest-json", &out, &local]).ok();
            let listed = run(std::process::Command::new("tar").args(["-tf", &out])).ok().stdout;
            let mut files: Vec<&str> = listed.lines().filter(|file| !file.ends_with('/')).collect();
            files.sort_unstable();
            told.extend(files.into_iter().map(|file| format!("{name} exported: {file}")));
            ctr(&["images", "rm", "--sync", &local]).ok();
            here(&mut told, &format!("{name} removed"));
            ctr(&["images", "pull", "--plain-http", &remote]);
            let line = of(&remote).lines().nth(1).unwrap_or_default().to_owned();
            let kind = line.split_whitespace().skip(1).take(2).collect::<Vec<_>>().join(" ");
            told.push(format!("{name} pulled: {kind}"));
            here(&mut told, &format!("{name} pulled"));
            ctr(&["images", "rm", "--sync", &remote]);
            ctr(&["images", "import", "--no-unpack", &out]).ok();
            here(&mut told, &format!("{name} imported again"));
            call(&mut told, &["images", "rm", "--sync", &local]);
        }
        here(&mut told, "in the end");
        told
    }
}

#[test]
fn ctr_moves_a_checkpoint_as_it_does_with_containerd() {
    if !is_root("snapshots") {
        return;
    }
    let frozen = Frozen::new();
    let (daemon, registry) = (Daemon::start(), Registry::start());
    // containerd's client, on both daemons.
    let ctr = |socket: &Path, args: &[&str]| run(&mut Containerd::client(socket, args));
    let ours = frozen.moved(&registry, daemon.dir(), |args| ctr(&daemon.socket(), args));
    for (digest, when) in frozen.blobs.iter().flat_map(|digest| {
        ["imported", "whole pulled", "whole imported again", "bare pulled", "bare imported again"]
            .map(|when| (digest, when))
    }) {
        assert!(ours.contains(&format!("{when}: {digest} true")), "{when}: {digest}\n{}", ours.join("\n"));
    }
    for digest in frozen.blobs.iter().chain(&frozen.documents) {
        assert!(ours.contains(&format!("in the end: {digest} false")), "{}", ours.join("\n"));
    }
    let Some(containerd) = Containerd::start() else { return };
    let registry = Registry::start();
    let theirs = frozen.moved(&registry, containerd.dir(), |args| ctr(&containerd.socket(), args));
    // Through the transfer service Hoist converts what it can; containerd refuses, as does the client of 1.6.
    let is_same =
        |line: &String| containerd.major() == 1 || !line.starts_with("export frozen.example/bare:1");
    let [ours, theirs] = [ours, theirs].map(|told| told.into_iter().filter(is_same).collect::<Vec<_>>());
    assert_eq!(ours, theirs, "what ctr says and has is the same");
}
