//! Volumes: filled from the image, kept or removed with their containers, and never removed while in use.

use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use testkit::{Daemon, Registry, images, run};

/// A daemon with the image `seeded`, whose `/data` is a declared volume, belongs to user 1000 and contains `seed`.
fn seeded() -> (Registry, Daemon) {
    let registry = Registry::start();
    let image = registry.push(&images::busybox(), images::TAG, "busybox") + ":latest";
    let daemon = Daemon::start();
    daemon.hoist(["pull", "-q", &image]).ok();
    let program =
        "mkdir -p /data && echo grain > /data/seed && ln -s seed /data/link && chown -R 1000:1000 /data";
    daemon.hoist(["run", "--name", "maker", &image, "sh", "-c", program]).ok();
    daemon.hoist(["commit", "--change", "VOLUME /data", "maker", "seeded"]).ok();
    daemon.hoist(["rm", "maker"]).ok();
    (registry, daemon)
}

fn names(daemon: &Daemon, filters: &[&str]) -> Vec<String> {
    let words = ["volume", "ls", "-q"].iter().chain(filters);
    daemon.hoist(words).ok().stdout.lines().map(str::to_owned).collect()
}

#[test]
fn a_volume_is_filled_once_and_outlives_its_containers() {
    let (_registry, daemon) = seeded();
    let script = "cat /data/link && echo more > /data/own && stat -c %u /data";
    let first = daemon.hoist([
        "run",
        "--name",
        "one",
        "-u",
        "1000",
        "-v",
        "crop:/data",
        "seeded",
        "sh",
        "-c",
        script,
    ]);
    assert_eq!(first.ok().text(), "grain\n1000");
    // A volume that exists is not filled, whatever the image contains.
    let second = daemon.hoist([
        "run",
        "--rm",
        "-v",
        "crop:/data:ro",
        "seeded",
        "sh",
        "-c",
        "cat /data/own; rm /data/seed",
    ]);
    assert!(second.code != 0 && second.stdout.trim() == "more", "{second}");

    let refused = daemon.hoist(["volume", "rm", "crop"]);
    assert!(refused.code != 0 && refused.stderr.contains("one"), "it is in use, and by whom: {refused}");
    assert_eq!(names(&daemon, &[]), ["crop"]);
    assert_eq!(names(&daemon, &["-f", "dangling=true"]), Vec::<String>::new());
    let mounted = daemon.hoist(["inspect", "-f", "{{json .Mounts}}", "one"]).ok().text().to_owned();
    let shown = daemon.hoist(["volume", "inspect", "crop"]).ok();
    let shown: serde_json::Value = serde_json::from_str(&shown.stdout).expect("JSON");
    let place = shown[0]["Mountpoint"].as_str().expect("a path");
    assert!(mounted.contains(place) && mounted.contains("\"crop\""), "{mounted}");
    assert_eq!(std::fs::read_to_string(format!("{place}/own")).expect("the volume's file"), "more\n");

    daemon.hoist(["rm", "-v", "one"]).ok();
    daemon.hoist(["volume", "prune", "-f"]).ok();
    assert_eq!(names(&daemon, &[]), ["crop"], "one with a name goes by its name only");
    daemon.hoist(["volume", "rm", "crop"]).ok();
    assert_eq!(names(&daemon, &[]), Vec::<String>::new());
    daemon.hoist(["volume", "rm", "crop"]).expect_code(1).expect_stderr("crop");
}

#[test]
fn labels_of_volumes_choose_what_is_listed_and_pruned() {
    let daemon = Daemon::start();
    let create =
        |words: &[&str]| daemon.hoist(["volume", "create"].iter().chain(words)).ok().text().to_owned();
    create(&["-d", "local", "--label", "tier=db", "--label", "keep", "data"]);
    let nameless = create(&["--label", "tier=db"]);
    create(&["plain"]);
    assert_eq!(names(&daemon, &["-f", "label=keep"]), ["data"]);
    assert_eq!(names(&daemon, &["-f", "label=tier=db", "-f", "name=data"]), ["data"]);
    assert_eq!(names(&daemon, &["-f", "label!=tier"]), ["plain"]);
    // An existing volume keeps its labels.
    create(&["--label", "tier=web", "data"]);
    let shown = daemon.hoist(["volume", "inspect", "-f", "{{json .Labels}} {{.Driver}}", "data"]).ok();
    assert_eq!(shown.text(), r#"{"keep":"","tier":"db"} local"#);
    daemon.hoist(["volume", "ls", "-f", "size=1"]).expect_code(1).expect_stderr("dangling, driver, label");
    daemon.hoist(["volume", "create", "-d", "nfs"]).expect_code(1).expect_stderr("local");

    daemon.hoist(["volume", "prune", "-f", "--filter", "label=tier=web"]).ok();
    assert_eq!(names(&daemon, &[]).len(), 3);
    daemon.hoist(["volume", "prune", "-f", "-a", "--filter", "label!=keep", "--filter", "label!=none"]).ok();
    assert_eq!(names(&daemon, &[]), ["data"]);
    assert!(nameless.len() == 64);
    daemon.hoist(["system", "prune", "-f", "--volumes", "--filter", "label=none"]).ok();
    daemon.hoist(["volume", "prune", "-f", "-a", "--filter", "label=tier=db"]).ok();
    assert_eq!(names(&daemon, &[]), Vec::<String>::new());
}

#[test]
fn a_volume_is_not_filled_if_that_is_not_wanted() {
    let (_registry, daemon) = seeded();
    for (name, words) in [
        ("short", ["-v", "short:/data:nocopy"]),
        ("long", ["--mount", "type=volume,src=long,dst=/data,volume-nocopy"]),
    ] {
        let looked = daemon.hoist([
            "run",
            "--rm",
            words[0],
            words[1],
            "seeded",
            "sh",
            "-c",
            "ls /data; stat -c %u /data",
        ]);
        assert_eq!(looked.ok().text(), "0", "{name}");
    }
    // The volume can still be filled later.
    assert_eq!(
        daemon.hoist(["run", "--rm", "-v", "short:/data", "seeded", "cat", "/data/link"]).ok().text(),
        "grain"
    );
}

#[test]
fn volumes_without_a_name_go_with_their_container() {
    let (_registry, daemon) = seeded();
    // Volumes of the image, and of the command line.
    let script =
        "cat /data/seed; touch /data/x /scratch/y; grep -c -e ' /data ' -e ' /scratch ' /proc/mounts";
    let flags = ["-v", "/scratch", "seeded", "sh", "-c", script];
    let finished = daemon.hoist(["run", "--rm", "--read-only"].iter().chain(&flags)).ok();
    assert_eq!(finished.text(), "grain\n2");
    assert_eq!(names(&daemon, &[]), Vec::<String>::new());

    daemon.hoist(["run", "--name", "kept"].iter().chain(&flags)).ok();
    assert_eq!(names(&daemon, &[]).len(), 2);
    daemon.hoist(["rm", "kept"]).ok();
    assert_eq!(names(&daemon, &["-f", "dangling=true"]).len(), 2, "as Docker does without -v");
    let pruned = daemon.hoist(["volume", "prune", "-f"]).ok();
    assert!(pruned.stdout.contains("reclaimed"), "{pruned}");
    assert_eq!(names(&daemon, &[]), Vec::<String>::new());

    daemon.hoist(["run", "--name", "gone"].iter().chain(&flags)).ok();
    daemon.hoist(["rm", "-v", "gone"]).ok();
    assert_eq!(names(&daemon, &[]), Vec::<String>::new());
    // A container that did not start leaves no volume.
    daemon.hoist(["run", "-v", "/scratch", "--entrypoint", "/nosuch", "seeded"]).expect_code(127);
    assert_eq!(names(&daemon, &[]), Vec::<String>::new());
    daemon.hoist(["run", "--name", "../up", "-v", "/scratch", "seeded"]).expect_code(125);
    assert_eq!(names(&daemon, &[]), Vec::<String>::new());
}

#[test]
fn what_is_no_name_of_a_volume_is_refused() {
    let daemon = Daemon::start();
    for name in ["..", "a/b", "-x/..", "a b"] {
        let refused = daemon.hoist(["volume", "create", "--", name]);
        assert!(refused.code != 0 && refused.stderr.contains(name), "{refused}");
    }
    let made = daemon.hoist(["volume", "create"]).ok().text().to_owned();
    assert_eq!((made.len(), names(&daemon, &["-f", "name=x"])), (64, Vec::new()));
    daemon.hoist(["volume", "create", "mine"]).ok();
    daemon.hoist(["volume", "create", "mine"]).ok();
    let listed = daemon.hoist(["volume", "ls"]).ok();
    assert!(listed.stdout.starts_with("DRIVER") && listed.stdout.contains("mine"), "{listed}");
    let usage = daemon.hoist(["system", "df"]).ok();
    assert!(usage.stdout.lines().any(|line| line.starts_with("Local Volumes")), "{usage}");
}

/// An empty volume is filled in place, since other containers may have it mounted.
#[test]
fn an_empty_volume_is_not_swapped_under_who_has_it() {
    let (_registry, daemon) = seeded();
    daemon.hoist(["volume", "create", "shared"]).ok();
    let inode = || std::fs::metadata(daemon.root().join("volumes/shared/_data")).expect("its data").ino();
    let first = inode();
    daemon.hoist(["run", "-d", "--name", "writer", "-v", "shared:/out", "seeded", "sleep", "1000"]).ok();
    // The image has no files at `/in`. A volume in use is not filled.
    daemon.hoist(["run", "--rm", "-v", "shared:/in", "seeded", "true"]).ok();
    let listed = daemon.hoist(["run", "--rm", "-v", "shared:/data", "seeded", "ls", "/data"]).ok();
    assert_eq!((listed.text(), inode()), ("", first));
    daemon.hoist(["exec", "writer", "sh", "-c", "echo late > /out/file"]).ok();
    let read = daemon.hoist(["run", "--rm", "-v", "shared:/in", "seeded", "cat", "/in/file"]).ok();
    assert_eq!(read.text(), "late");

    daemon.hoist(["exec", "writer", "rm", "/out/file"]).ok();
    daemon.hoist(["rm", "-f", "writer"]).ok();
    let filled =
        ["run", "--rm", "-v", "shared:/data", "seeded", "sh", "-c", "cat /data/link; stat -c %u /data"];
    assert_eq!(daemon.hoist(filled).ok().text(), "grain\n1000");
    assert_eq!(inode(), first);
    assert!(!daemon.root().join("volumes/shared/.draft").exists());
}

/// Containers that are created at the same time share a new volume, which is filled before any of them starts.
#[test]
fn containers_that_are_made_at_once_fill_a_new_volume_once() {
    let (_registry, daemon) = seeded();
    let program = "mkdir /more; for d in 1 2 3 4 5 6 7 8; do mkdir /more/$d; for f in 1 2 3 4 5 6 7 8 9; do echo $d > /more/$d/$f; done; done";
    daemon.hoist(["run", "--name", "maker", "seeded", "sh", "-c", program]).ok();
    daemon.hoist(["commit", "maker", "many"]).ok();
    daemon.hoist(["rm", "-v", "maker"]).ok();
    let many = |name: &str| {
        let volume = format!("{name}:/more");
        let words = ["run", "--rm", "-v", &volume, "many", "sh", "-c", "cat /more/*/* | wc -l"];
        let mut command = daemon.command(words);
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("hoist starts")
    };
    for round in 0..3 {
        let name = format!("crowd{round}");
        let running: Vec<_> = (0..6).map(|_| many(&name)).collect();
        for one in running {
            let one = one.wait_with_output().expect("it ends");
            let said = (String::from_utf8_lossy(&one.stdout), String::from_utf8_lossy(&one.stderr));
            assert_eq!((said.0.trim(), said.1.trim()), ("72", ""));
        }
    }
}

/// As with Docker, only anonymous volumes are removed with their container.
#[test]
fn a_volume_that_is_called_by_its_digits_stays() {
    let (_registry, daemon) = seeded();
    let made = daemon.hoist(["volume", "create"]).ok().text().to_owned();
    let mount = format!("{made}:/kept");
    // The anonymous volume of the image is removed.
    daemon.hoist(["run", "--rm", "-v", &mount, "seeded", "sh", "-c", "echo mine > /kept/file"]).ok();
    assert_eq!(names(&daemon, &[]), [made.as_str()]);
    daemon.hoist(["run", "--name", "one", "-v", &mount, "seeded", "true"]).ok();
    daemon.hoist(["rm", "-v", "one"]).ok();
    daemon.hoist(["run", "--name", "../up", "-v", &mount, "seeded"]).expect_code(125);
    daemon.hoist(["run", "-v", &mount, "--entrypoint", "/nosuch", "seeded"]).expect_code(127);
    daemon.hoist(["run", "-v", &mount, "--network", "nosuch", "seeded", "true"]).expect_code(125);
    // An unknown user is only noticed in the container's root file system, after the volumes were made.
    daemon.hoist(["run", "-v", &mount, "-u", "nosuch", "seeded", "true"]).expect_code(125);
    assert_eq!(names(&daemon, &[]), [made.as_str()]);
    let read = daemon.hoist(["run", "--rm", "-v", &mount, "seeded", "cat", "/kept/file"]).ok();
    assert_eq!(read.text(), "mine");
    // It is anonymous, and not in use.
    daemon.hoist(["volume", "prune", "-f"]).ok();
    assert_eq!(names(&daemon, &[]), Vec::<String>::new());
}

/// Without an answer, destructive commands do nothing, whether a person or a script calls them.
#[test]
fn what_destroys_asks_and_takes_no_silence_for_yes() {
    let daemon = Daemon::start();
    daemon.hoist(["volume", "create"]).ok();
    let answer = daemon.dir().join("answer");
    let asked = |words: &[&str], text: &str| {
        std::fs::write(&answer, text).expect("a writable directory");
        let answer = std::fs::File::open(&answer).expect("a file of ours");
        run(daemon.command(words).stdin(answer))
    };
    for text in ["", "n\n", "\n", "yes, but not now\n"] {
        for noun in ["volume", "system", "image"] {
            asked(&[noun, "prune"], text).expect_code(1).expect_stderr("--force");
        }
    }
    assert_eq!(names(&daemon, &[]).len(), 1);
    asked(&["volume", "prune"], "y\n").ok();
    assert_eq!(names(&daemon, &[]).len(), 0);
    asked(&["system", "prune"], "Y\n").ok();
}

/// A file system of its own, with which mounts come to whoever has it as `rslave` or `rshared`; taken down with what is below.
struct SharedMount(PathBuf);

impl SharedMount {
    fn at(path: PathBuf) -> SharedMount {
        std::fs::create_dir(&path).expect("a folder");
        mount(&["-t", "tmpfs", "shared", path.to_str().expect("UTF-8")]);
        let mounted = SharedMount(path);
        mount(&["--make-shared", mounted.0.to_str().expect("UTF-8")]);
        mounted
    }
}

impl Drop for SharedMount {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--recursive").arg(&self.0).status();
    }
}

#[track_caller]
fn mount(words: &[&str]) {
    run(Command::new("mount").args(words)).ok();
}

#[test]
fn mounts_propagate_as_the_option_of_a_bind_says() {
    let daemon = Daemon::with_busybox();
    let shared = SharedMount::at(daemon.dir().join("shared"));
    let source = shared.0.display().to_string();
    for sub in ["own", "out", "late"] {
        std::fs::create_dir(shared.0.join(sub)).expect("a folder");
    }
    let kinds = [
        ("slave", ":rslave"),
        ("one", ":ro,slave"),
        ("alone", ":rprivate"),
        ("plain", ""),
        ("both", ":rshared"),
    ];
    for (name, options) in kinds {
        let bind = format!("{source}:/a{options}");
        let program = ["--network", "none", "--cap-add", "SYS_ADMIN", "busybox", "sleep", "1000"];
        daemon.hoist([&["run", "-d", "--name", name, "-v", &bind], &program[..]].concat()).ok();
    }
    // Made on the machine, after they started.
    let late = shared.0.join("late");
    mount(&["-t", "tmpfs", "late", late.to_str().expect("UTF-8")]);
    std::fs::write(late.join("mark"), "").expect("a file");
    let sees = |name: &str| daemon.hoist(["exec", name, "test", "-e", "/a/late/mark"]).code == 0;
    let seen: Vec<&str> = kinds.iter().map(|(name, _)| *name).filter(|name| sees(name)).collect();
    assert_eq!(seen, ["slave", "one", "both"]);
    // Made inside: only what is shared both ways comes out.
    for (name, place) in [("slave", "/a/own"), ("both", "/a/out")] {
        daemon.hoist(["exec", name, "mount", "-t", "tmpfs", "in", place]).ok();
        daemon.hoist(["exec", name, "touch", &format!("{place}/mark")]).ok();
    }
    assert!(shared.0.join("out/mark").exists() && !shared.0.join("own/mark").exists());
    let names: Vec<&str> = kinds.iter().map(|(name, _)| *name).collect();
    daemon.hoist([&["rm", "-f"], &names[..]].concat()).ok();
    // One whose source is of a private mount cannot have it.
    let apart = daemon.dir().join("apart");
    std::fs::create_dir(&apart).expect("a folder");
    let (apart, bind) = (apart.display().to_string(), format!("{}:/a:rslave", apart.display()));
    mount(&["-t", "tmpfs", "apart", &apart]);
    let _apart = SharedMount(apart.clone().into());
    mount(&["--make-private", &apart]);
    let refused = daemon.hoist(["run", "--rm", "--network", "none", "-v", &bind, "busybox", "true"]);
    refused.expect_code(125).expect_stderr(&apart);
}
