//! Flags of containerd's `ctr`: Hoist's knows each, or the test says why not; and what the rarer ones do.

use std::collections::BTreeSet;
use std::fs;

use serde_json::{Value, json};
use testkit::{Daemon, MountsBelow, Registry, images, is_root};

use crate::cgroups::HIERARCHIES;

const RUNTIME: &str = "io.containerd.hoist.v2";
const INDEX: &str = types::descriptor::media_type::OCI_INDEX;

/// Nouns that scripts call.
const NOUNS: [&str; 11] = [
    "plugins",
    "version",
    "containers",
    "content",
    "events",
    "images",
    "leases",
    "namespaces",
    "run",
    "snapshots",
    "tasks",
];

/// Commands and flags of Debian's `ctr` that Hoist's does not have, and why.
const LEFT_OUT: &[(&str, &str, &str)] = &[];

/// The commands of a help text, each by its first name, and the flags, each by all its names.
fn help(text: &str) -> (BTreeSet<String>, BTreeSet<String>) {
    let (mut commands, mut flags, mut section) = (BTreeSet::new(), BTreeSet::new(), "");
    for line in text.lines() {
        match line.strip_prefix("   ") {
            None => section = line,
            Some(row) if section == "COMMANDS:" => {
                let first = row.trim().split([',', ' ']).next().expect("a word");
                commands.extend((first != "help").then(|| first.to_owned()));
            }
            Some(row) if section == "OPTIONS:" => {
                // Two spaces, or one and the value's name, separate the names from the description.
                let names = row.split("  ").next().unwrap_or_default().split(", ");
                let names = names.filter_map(|name| name.split_whitespace().next());
                flags.extend(names.filter(|name| name.starts_with('-')).map(ToOwned::to_owned));
            }
            Some(_) => {}
        }
    }
    (commands, flags)
}

#[test]
fn every_flag_of_debians_ctr_is_known_or_left_out_on_purpose() {
    let daemon = Daemon::start();
    let mut missing = BTreeSet::new();
    let mut queue: Vec<String> = NOUNS.map(str::to_owned).to_vec();
    let mut count = 0;
    while let Some(path) = queue.pop() {
        let words: Vec<&str> = path.split(' ').chain(["--help"]).collect();
        let (theirs, ours) =
            (help(&daemon.ctr(&words).ok().stdout), help(&daemon.own_ctr(&words).ok().stdout));
        count += theirs.1.len();
        queue.extend(theirs.0.intersection(&ours.0).map(|command| format!("{path} {command}")));
        let absent = theirs.0.difference(&ours.0).chain(theirs.1.difference(&ours.1));
        missing.extend(absent.map(|absent| (path.clone(), absent.clone())));
    }
    assert!(count > 200, "the help of Debian's is read: {count} flags");
    let listed = LEFT_OUT.iter().flat_map(|(command, flags, why)| {
        assert!(!why.is_empty());
        flags.split_whitespace().map(|flag| ((*command).to_owned(), flag.to_owned()))
    });
    assert_eq!(missing, listed.collect::<BTreeSet<_>>());
}

/// A daemon with busybox, and the image's name.
fn daemon() -> (Daemon, Registry, String) {
    let registry = Registry::start();
    let image = registry.push(&images::busybox(), images::TAG, "busybox") + ":latest";
    let daemon = Daemon::start();
    daemon.own_ctr(["images", "pull", "--plain-http", &image]).ok();
    (daemon, registry, image)
}

/// The spec of a container.
fn spec(daemon: &Daemon, id: &str) -> Value {
    let spec = daemon.own_ctr(["containers", "info", "--spec", id]).ok().stdout;
    serde_json::from_str(&spec).expect("a document")
}

#[test]
fn a_profile_of_calls_is_taken_from_a_file() {
    if !is_root("a container") {
        return;
    }
    let _hierarchies = HIERARCHIES.read();
    let (daemon, _registry, image) = daemon();
    let profile = daemon.dir().join("profile.json");
    let document = json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{ "names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 95 }],
    });
    fs::write(&profile, document.to_string()).expect("a writable directory");
    let path = profile.display().to_string();
    let run = |flags: &[&str]| {
        let words = ["run", "--rm", "--runtime", RUNTIME].iter().chain(flags).copied();
        daemon.own_ctr(words.chain([image.as_str(), "filtered", "mkdir", "/made"]).collect::<Vec<_>>())
    };
    run(&["--seccomp"]).ok();
    let refused = run(&["--seccomp", "--seccomp-profile", &path]);
    assert!(refused.code != 0 && refused.stderr.contains("not supported"), "{refused}");
    assert!(run(&["--seccomp-profile", &path]).stderr.contains("--seccomp"), "as Debian's has it");
    fs::write(&profile, "{").expect("a writable directory");
    let broken = run(&["--seccomp", "--seccomp-profile", &path]);
    assert!(broken.code != 0 && broken.stderr.contains(&format!("--seccomp-profile {path}")), "{broken}");
}

/// Its root is an unprivileged user of the host, to whom the image's files belong.
#[test]
fn a_container_has_a_user_namespace_of_its_own() {
    if !is_root("a container") {
        return;
    }
    let _hierarchies = HIERARCHIES.read();
    let (daemon, _registry, image) = daemon();
    let script = "cat /proc/self/uid_map /proc/self/gid_map; stat -c %u:%g /bin/busybox; touch /own && stat -c %u:%g /own";
    let run = |flags: &[&str]| {
        let words = ["run", "--rm", "--runtime", RUNTIME].iter().chain(flags).copied();
        daemon.own_ctr(words.chain([image.as_str(), "mapped", "sh", "-c", script]).collect::<Vec<_>>())
    };
    let maps = ["--uidmap", "0:100000:65536", "--gidmap", "0:200000:65536"];
    let seen = run(&maps).ok().stdout;
    let words: Vec<&str> = seen.split_whitespace().collect();
    assert_eq!(words, ["0", "100000", "65536", "0", "200000", "65536", "0:0", "0:0"]);
    assert!(run(&maps[..2]).stderr.contains("belong together"));
    assert!(run(&["--uidmap", "0:1", "--gidmap", "0:1:1"]).stderr.contains("INSIDE:OUTSIDE:COUNT"));
    let native = run(&[&maps[..], &["--snapshotter", "native"]].concat());
    assert!(native.code != 0 && native.stderr.contains("--remap-labels"), "{native}");
}

#[test]
fn what_runtimes_are_told_is_in_the_record() {
    let (daemon, _registry, image) = daemon();
    let create = |id: &str, flags: &[&str]| {
        let words = ["containers", "create"].iter().chain(flags).copied();
        daemon.own_ctr(words.chain([image.as_str(), id, "true"]).collect::<Vec<_>>())
    };
    create("told", &["--apparmor-profile", "mine", "--rdt-class", "gold"]).ok();
    let spec = spec(&daemon, "told");
    assert_eq!(spec["process"]["apparmorProfile"], "mine");
    assert_eq!(spec["linux"]["intelRdt"], json!({ "closID": "gold" }));
    create("file", &["--runtime-config-path", "/etc/own.toml"]).ok();
    let info: Value =
        serde_json::from_str(&daemon.ctr(["containers", "info", "file"]).ok().stdout).expect("a document");
    let options = &info["Runtime"]["Options"];
    assert_eq!(options["type_url"], "runtimeoptions.v1.Options", "{info}");
    let mixed = create("mixed", &["--runtime-config-path", "/etc/own.toml", "--no-pivot"]);
    assert!(mixed.code != 0 && mixed.stderr.contains("no runc"), "{mixed}");
}

#[test]
fn variables_and_names_are_those_of_debians() {
    let (daemon, _registry, image) = daemon();
    let file = daemon.dir().join("env");
    fs::write(&file, "A=1\nB= spaces \nC=3\nB\n\nC\nC=4\nOWN\n").expect("a writable directory");
    let flags = ["--env-file", file.to_str().expect("UTF-8"), "--env", "D=5", "--env", "A", "--env", "OWN"];
    let flags = [&["containers", "create"][..], &flags, &["--env", "PATH", "--env", "E=", &image]].concat();
    let env = |id: &str| {
        let env = spec(&daemon, id)["process"]["env"].as_array().expect("a list").clone();
        env.iter().map(|entry| entry.as_str().expect("text").to_owned()).collect::<BTreeSet<_>>()
    };
    let mut ours = daemon.own_ctr_command([&flags[..], &["ours", "true"]].concat());
    testkit::run(ours.env("OWN", "of the caller")).ok();
    let mut debians = daemon.ctr_command([&flags[..], &["debians", "true"]].concat());
    testkit::run(debians.env("OWN", "of the caller")).ok();
    assert_eq!(env("ours"), env("debians"));
    assert!(env("ours").contains("C=4") && !env("ours").iter().any(|entry| entry.starts_with("OWN")));

    let platform = types::Platform::host().to_string();
    let flags = ["--hostname", "named", "--cgroup", "/own/path", "--platform", &platform, &image];
    daemon.own_ctr([&["containers", "create"][..], &flags, &["named", "true"]].concat()).ok();
    let spec = spec(&daemon, "named");
    assert_eq!(spec["hostname"], "named");
    assert_eq!(spec["linux"]["cgroupsPath"], "/own/path");
}

#[test]
fn a_directory_of_devices_is_all_of_them() {
    let (daemon, _registry, image) = daemon();
    let folder = tempfile::tempdir().expect("a temporary directory");
    for (path, minor) in [("first", 7), ("deep/second", 8), ("console", 5), ("pts/left", 5)] {
        crate::run_flags::make_device(&folder.path().join(path), minor);
    }
    fs::write(folder.path().join("no-device"), "").expect("a writable directory");
    std::os::unix::fs::symlink("first", folder.path().join("link")).expect("a writable directory");
    let flags = ["containers", "create", "--device", folder.path().to_str().expect("UTF-8"), &image];
    daemon.own_ctr([&flags[..], &["ours", "true"]].concat()).ok();
    daemon.ctr([&flags[..], &["debians", "true"]].concat()).ok();
    let (ours, debians) = (spec(&daemon, "ours"), spec(&daemon, "debians"));
    let devices = &ours["linux"]["devices"];
    assert_eq!(devices.as_array().map(Vec::len), Some(2), "{devices}");
    assert_eq!(*devices, debians["linux"]["devices"]);
    let rules = |spec: &Value| spec["linux"]["resources"]["devices"].clone();
    assert_eq!(rules(&ours), rules(&debians));
}

/// Commands that containerd has since 2.x.
#[test]
fn images_and_daemons_are_shown_as_by_containerd_2() {
    let (daemon, _registry, image) = daemon();
    let tree = daemon.own_ctr(["images", "inspect", &image]).ok().stdout;
    assert_eq!(tree.lines().next(), Some(image.as_str()));
    for part in
        ["│    Created: 2", " +0000 UTC\n", "\n└── application/", "├── application/", "@sha256:", " bytes)"]
    {
        assert!(tree.contains(part), "{part}\n{tree}");
    }
    let whole = daemon.own_ctr(["images", "inspect", "--content", &image]).ok().stdout;
    for part in ["┌────────Labels─────────", "┌────────Content────────", "│{", "\"rootfs\""]
    {
        assert!(whole.contains(part), "{part}\n{whole}");
    }
    let missing = daemon.own_ctr(["images", "inspect", "nosuch"]);
    assert!(missing.code != 0 && missing.stderr.contains("not found"), "{missing}");

    let usage = daemon.own_ctr(["images", "usage", &image]).ok().stdout;
    let rows: Vec<Vec<&str>> = usage.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(rows[0], ["KEY", "SIZE", "INODES"]);
    assert!(rows.len() > 1 && rows[1][0].starts_with("sha256:"), "{usage}");
    let other = daemon.own_ctr(["images", "usage", "--snapshotter", "native", &image]);
    assert!(other.code != 0 && other.stderr.contains("isn't unpacked in snapshotter native"), "{other}");

    let parse = |text: &str| serde_json::from_str::<Value>(text).expect("a document");
    let info = parse(&daemon.own_ctr(["info"]).ok().stdout);
    assert_eq!(info["server"]["pid"], daemon.pid());
    assert_eq!(info["server"]["uuid"].as_str().map(str::len), Some(36));
    assert_eq!(daemon.own_ctr(["deprecations", "list"]).ok().text(), "");
    let runtime = daemon.own_ctr(["plugins", "inspect-runtime", "--runtime", RUNTIME]).ok().stdout;
    let runtime = parse(&runtime);
    assert_eq!(runtime["Name"], RUNTIME);
    assert!(runtime["Features"]["ociVersionMin"].is_string(), "{runtime}");
    let spec = parse(&daemon.own_ctr(["oci", "spec"]).ok().stdout);
    assert_eq!(spec["linux"]["cgroupsPath"], "/default");
}

/// A child of an index may be of any media type: here 9 MiB, with a terminal escape sequence in its type.
#[test]
fn an_image_is_shown_with_children_that_are_no_documents() {
    let (daemon, layout) = (Daemon::start(), tempfile::tempdir().expect("a temporary directory"));
    let blobs = layout.path().join("blobs/sha256");
    fs::create_dir_all(&blobs).expect("a writable directory");
    let index = |kind: &str, blob: &[u8]| {
        let digest = types::Digest::of(blob);
        fs::write(blobs.join(digest.hex()), blob).expect("a writable directory");
        let annotations = json!({ "io.containerd.image.name": "example.com/large:1" });
        let (digest, size) = (digest.to_string(), blob.len());
        let child = json!({ "mediaType": kind, "digest": digest, "size": size, "annotations": annotations });
        // With white space, and in another order of keys.
        format!(r#"{{"schemaVersion":  2, "mediaType": "{INDEX}", "manifests": [{child}]}}"#)
    };
    let inner = index("application/vnd.example\u{9b}2J", &vec![0; 9 << 20]);
    fs::write(layout.path().join("index.json"), index(INDEX, inner.as_bytes()))
        .expect("a writable directory");
    fs::write(layout.path().join("oci-layout"), r#"{"imageLayoutVersion": "1.0.0"}"#)
        .expect("a writable directory");
    let archive = daemon.dir().join("layout.tar");
    let mut tar = std::process::Command::new("tar");
    testkit::run(tar.arg("-C").arg(layout.path()).arg("-cf").arg(&archive).arg(".")).ok();
    let archive = archive.display().to_string();
    daemon.own_ctr(["images", "import", "--no-unpack", "--all-platforms", &archive]).ok();
    let shown = daemon.own_ctr(["images", "inspect", "--content", "example.com/large:1"]).ok().stdout;
    assert!(shown.contains("    └── application/vnd.example\\u{9b}2J @sha256:"), "{shown}");
    assert!(!shown.contains('\u{9b}'), "{shown:?}");
    assert!(shown.contains("│{\n") && shown.contains("│   \"schemaVersion\": 2,\n"), "{shown}");
    let at = |key: &str| shown.find(key).expect("a key of the document");
    assert!(at("\"schemaVersion\"") < at("\"manifests\""), "{shown}");
}

/// `images prune --all`, which runbooks for Kubernetes nodes call.
#[test]
fn images_without_containers_are_pruned() {
    let (daemon, _registry, image) = daemon();
    daemon.own_ctr(["images", "tag", &image, "unused:1", "unused:2"]).ok();
    daemon.own_ctr(["containers", "create", &image, "keeper", "true"]).ok();
    let nothing = daemon.own_ctr(["images", "prune"]).ok();
    assert!(nothing.stderr.contains("requires --all"), "{nothing}");
    assert_eq!(daemon.own_ctr(["images", "ls", "-q"]).ok().stdout.lines().count(), 3);
    let pruned = daemon.own_ctr(["images", "prune", "--all"]).ok();
    assert_eq!(pruned.stdout, "");
    assert!(pruned.stderr.contains("unused:1") && pruned.stderr.contains("unused:2"), "{pruned}");
    assert_eq!(daemon.own_ctr(["images", "ls", "-q"]).ok().text(), image);
    daemon.own_ctr(["containers", "rm", "keeper"]).ok();
    daemon.own_ctr(["images", "prune", "--all"]).ok();
    assert_eq!(daemon.own_ctr(["content", "ls", "-q"]).ok().text(), "");
}

#[test]
fn a_sandbox_is_started_shown_and_removed() {
    if !is_root("a sandbox") {
        return;
    }
    let _hierarchies = HIERARCHIES.read();
    let daemon = Daemon::start();
    let config = daemon.dir().join("pod.json");
    fs::write(&config, r#"{"ociVersion": "1.0.2"}"#).expect("a writable directory");
    let config = config.display().to_string();
    let refused = daemon.own_ctr(["sandboxes", "run", "--runtime", "io.containerd.none.v1", &config, "pod"]);
    assert!(refused.code != 0 && refused.stderr.contains("with shim sandboxer"), "{refused}");
    assert_eq!(daemon.own_ctr(["sandboxes", "ls"]).ok().stdout.lines().count(), 1, "no record is left");
    let started = daemon.own_ctr(["sandboxes", "run", "--runtime", RUNTIME, &config, "pod"]).ok();
    assert_eq!(started.text(), "pod");
    let listed = daemon.own_ctr(["sb", "ls"]).ok().stdout;
    let rows: Vec<Vec<&str>> = listed.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(rows[0], ["ID", "CREATED", "RUNTIME"]);
    assert!(rows[1][0] == "pod" && listed.contains(" +0000 UTC") && listed.contains(RUNTIME), "{listed}");
    let info = daemon.own_ctr(["sandbox", "info", "pod"]).ok().stdout;
    let info: Value = serde_json::from_str(&info).expect("a document");
    assert_eq!((&info["ID"], &info["Sandboxer"]), (&json!("pod"), &json!("shim")));
    daemon.own_ctr(["sandboxes", "rm", "pod"]).ok();
    assert_eq!(daemon.own_ctr(["sandboxes", "ls"]).ok().stdout.lines().count(), 1, "only the heading");
    let missing = daemon.own_ctr(["sandboxes", "rm", "pod"]).ok();
    assert!(missing.stderr.contains("failed to load sandbox pod"), "{missing}");
    assert!(daemon.own_ctr(["sandboxes", "info", "pod"]).code != 0);
}

/// Since containerd 2.0: a tag moves to another image, unless `ctr` works locally.
#[test]
fn a_name_moves_to_another_image_unless_it_is_to_stay() {
    let (daemon, _registry, image) = daemon();
    let archive = images::busybox_archive().display().to_string();
    daemon.own_ctr(["images", "import", "--local", "--label", "came=in", &archive]).ok();
    let other = "docker.io/library/busybox:latest";
    assert_eq!(daemon.own_ctr(["images", "ls", "-q", "labels.came==in"]).ok().text(), other);
    let digest = |name: &str| {
        let listed = daemon.own_ctr(["images", "ls", &format!("name=={name}")]).ok().stdout;
        listed.split_whitespace().find(|word| word.starts_with("sha256:")).expect("a digest").to_owned()
    };
    daemon.own_ctr(["images", "tag", &image, "moving:1"]).ok();
    let kept = daemon.own_ctr(["images", "tag", "--local", other, "moving:1"]);
    assert!(kept.code != 0 && kept.stderr.contains("already exists"), "{kept}");
    assert_eq!(digest("moving:1"), digest(&image));
    daemon.own_ctr(["images", "tag", "--local", "--force", other, "moving:1"]).ok();
    assert_eq!(digest("moving:1"), digest(other));
    // Labels are copied only if `ctr` works locally.
    daemon.own_ctr(["images", "tag", other, "bare:1"]).ok();
    assert_eq!(digest("bare:1"), digest(other));
    let labelled = daemon.own_ctr(["images", "ls", "-q", "labels.came==in"]).ok().stdout;
    assert_eq!(labelled.lines().collect::<BTreeSet<_>>(), BTreeSet::from([other, "moving:1"]));
    daemon.own_ctr(["images", "tag", "--skip-reference-check", &image, "moving:1"]).ok();
    assert_eq!(digest("moving:1"), digest(&image));
}

/// As with containerd, an image that was pulled without unpacking is unpacked when a container needs it.
#[test]
fn what_is_not_unpacked_is_unpacked_for_who_needs_it() {
    if !is_root("a container") {
        return;
    }
    let _hierarchies = HIERARCHIES.read();
    let daemon = Daemon::start();
    let archive = images::busybox_archive().display().to_string();
    let image = "docker.io/library/busybox:latest";
    let dumped = daemon.dir().join("spec.json").display().to_string();
    for namespace in ["runs", "mounts"] {
        daemon.own_ctr(["-n", namespace, "images", "import", "--no-unpack", &archive]).ok();
    }
    let run = ["-n", "runs", "run", "--rm", "--runtime", RUNTIME, "--dump-config", &dumped];
    let said = daemon.own_ctr([&run[..], &[image, "once", "echo", "hi"]].concat()).ok();
    assert_eq!(said.stdout, "hi\n");
    let spec = fs::read(&dumped).expect("the command wrote it");
    let spec: Value = serde_json::from_slice(&spec).expect("a document");
    assert_eq!(spec["process"]["args"], json!(["echo", "hi"]));
    let run = ["-n", "runs", "run", "--rm", "--runtime", RUNTIME, "--dump-config", "/no/such/file"];
    let refused = daemon.own_ctr([&run[..], &[image, "twice", "echo", "hi"]].concat());
    assert!(refused.code != 0 && refused.stderr.contains("--dump-config /no/such/file"), "{refused}");
    assert_eq!(daemon.own_ctr(["-n", "runs", "containers", "ls", "-q"]).ok().text(), "");
    let target = tempfile::tempdir().expect("a temporary directory");
    let _mounts = MountsBelow(target.path().to_owned());
    let path = target.path().display().to_string();
    daemon.own_ctr(["-n", "mounts", "images", "mount", image, &path]).ok();
    assert!(target.path().join("bin/busybox").exists());
    daemon.own_ctr(["-n", "mounts", "images", "unmount", "--rm", &path]).ok();
}

/// A manifest that no image refers to, with its blobs.
#[test]
fn a_manifest_is_pushed_by_its_digest() {
    let (daemon, registry, image) = daemon();
    let listed = daemon.own_ctr(["images", "ls", &format!("name=={image}")]).ok().stdout;
    let digest = listed.split_whitespace().find(|word| word.starts_with("sha256:")).expect("a digest");
    let other = format!("{}/other:1", registry.host());
    let push = ["images", "push", "--plain-http", "--manifest", digest];
    daemon.own_ctr([&push[..], &["--max-concurrent-uploaded-layers", "3", &other]].concat()).ok();
    daemon.own_ctr(["images", "pull", "--plain-http", "--label", "came=back", &other]).ok();
    let again = daemon.own_ctr(["images", "ls", "labels.came==back"]).ok().stdout;
    assert!(again.contains(digest), "{again}");
    let names = daemon.own_ctr(["images", "ls", "-q"]).ok().stdout;
    assert_eq!(names.lines().collect::<BTreeSet<_>>(), BTreeSet::from([image.as_str(), other.as_str()]));
    let zeros = format!("sha256:{}", "0".repeat(64));
    let missing = daemon.own_ctr(["images", "push", "--plain-http", "--manifest", &zeros, &other]);
    assert!(missing.code != 0 && missing.stderr.contains("not found"), "{missing}");
    let third = format!("{}/third:1", registry.host());
    daemon.own_ctr(["images", "tag", &other, &third]).ok();
    daemon.own_ctr(["images", "push", "--plain-http", &third]).ok();
    daemon.own_ctr(["content", "fetch", "--plain-http", "--label", "was=fetched", &third]).ok();
    assert!(daemon.own_ctr(["images", "ls", "labels.was==fetched"]).ok().stdout.contains(&third));
}

#[test]
fn the_cgroup_of_a_namespace_goes_with_it() {
    if !is_root("a cgroup") {
        return;
    }
    let _hierarchies = HIERARCHIES.read();
    let daemon = Daemon::start();
    let name = format!("grouped{}", std::process::id());
    linux::cgroup::Cgroup::share(&format!("/{name}/left")).expect("root makes cgroups");
    let is_there = || linux::cgroup::Cgroup::open(&format!("/{name}")).is_ok();
    for flags in [&[][..], &["-c"], &["--cgroup"]] {
        daemon.own_ctr(["namespaces", "create", &name]).ok();
        daemon.own_ctr([&["namespaces", "rm"][..], flags, &[&name]].concat()).ok();
        // Removing the namespace succeeds if its cgroup is gone already.
        assert_eq!(is_there(), flags.is_empty(), "{flags:?}");
    }
}
