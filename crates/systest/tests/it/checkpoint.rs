//! Checkpoint and restore of containers by the real criu, which needs a kernel that it supports: Debian's, in the guest
//! of `guest.rs`. On any other host the tests check the error.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Command, Stdio};

use api::shim::runc::{CheckpointOptions, Options};
use api::shim::task;
use api::shim::types::{Status, TypeUrl};
use linux::cgroup::Cgroup;
use linux::rtnetlink::Route;
use prost::Message;
use prost_types::Any;
use serde_json::{Value, json};
use tempfile::TempDir;
use testkit::{Finished, ShimHost, eventually, is_root, run};
use types::ErrorKind;

use crate::runtime_bundle::{Runtime, add_mount, bundle, read_spec, read_text, script};
use crate::runtime_command::receive;

/// Whether criu supports this kernel. In the guest it must.
pub(crate) fn criu_works() -> bool {
    if !is_root("a checkpoint") {
        return false;
    }
    // criu writes a log that the host's /etc/criu/default.conf names into its working directory, which must not be the
    // sources.
    let work = TempDir::new().expect("a temporary directory");
    let checked = run(Command::new("criu").arg("check").current_dir(work.path()));
    let works = checked.code == 0;
    assert!(works || std::env::var_os("HOIST_GUEST").is_none(), "criu does not work in the guest\n{checked}");
    if !works {
        println!("skipped: criu does not work on this kernel");
    }
    works
}

/// A script that counts into `/count` ten times a second, and writes `/begun` first.
pub(crate) const COUNT: &str = "echo begun >> /begun; i=0; while true; do i=$((i+1)); echo $i > /next; mv /next /count; \
                     sleep 0.1; done";

/// A bundle whose container counts, and directories for its images.
pub(crate) struct Counter {
    pub(crate) bundle: TempDir,
    pub(crate) path: String,
}

impl Counter {
    pub(crate) fn new(change: impl Fn(&mut Value)) -> Counter {
        let bundle = bundle(|spec| {
            script(spec, COUNT);
            change(spec);
        });
        let path = bundle.path().display().to_string();
        Counter { bundle, path }
    }

    pub(crate) fn images(&self, name: &str) -> String {
        self.bundle.path().join(name).display().to_string()
    }

    pub(crate) fn count(&self) -> u32 {
        let text = fs::read_to_string(self.bundle.path().join("rootfs/count"));
        text.ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0)
    }

    pub(crate) fn wait_beyond(&self, number: u32) -> u32 {
        eventually("it counts", || Some(self.count()).filter(|count| *count > number))
    }

    pub(crate) fn begun(&self) -> usize {
        read_text(&self.bundle.path().join("rootfs/begun")).lines().count()
    }

    pub(crate) fn run(&self, runtime: &Runtime, id: &str) {
        quiet(runtime, &["run", "-d", "--bundle", &self.path, id]);
        self.wait_beyond(2);
    }
}

/// Deletes a container when dropped.
pub(crate) struct End<'a>(pub(crate) &'a Runtime, pub(crate) &'a str);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.run(&["delete", "--force", self.1]);
    }
}

/// Runs a command whose container keeps the streams. They are files: criu would refuse pipes to a process outside of
/// the container.
#[track_caller]
pub(crate) fn quiet(runtime: &Runtime, words: &[&str]) {
    let log = TempDir::new().expect("a temporary directory");
    let errors = log.path().join("log");
    let mut command = runtime.command(&[&["--log", errors.to_str().expect("UTF-8")], words].concat());
    let status = command.stdout(Stdio::null()).stderr(Stdio::null()).status().expect("it runs");
    let said = fs::read_to_string(&errors).unwrap_or_default();
    assert!(status.success(), "{} {words:?}: {status}\n{said}\n{}", runtime.name, logs(words));
}

/// The ends of criu's logs in the directories that a command names.
pub(crate) fn logs(words: &[&str]) -> String {
    let mut found = String::new();
    for name in
        words.iter().flat_map(|word| ["dump.log", "restore.log"].map(|name| Path::new(word).join(name)))
    {
        let text = fs::read_to_string(&name).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        found.push_str(&lines[lines.len().saturating_sub(40)..].join("\n"));
    }
    found
}

pub(crate) fn state(runtime: &Runtime, id: &str) -> Value {
    serde_json::from_str(&runtime.run(&["state", id]).ok().stdout).expect("state is JSON")
}

#[test]
fn a_container_goes_on_where_it_was() {
    if !criu_works() {
        return;
    }
    // Each runtime restores the images of both.
    for saver in Runtime::both() {
        let counter = Counter::new(|spec| {
            add_mount(
                spec,
                json!({"destination": "/data/deep", "type": "bind", "source": "/etc",
                                   "options": ["rbind", "ro", "nosuid"]}),
            );
            add_mount(spec, json!({"destination": "/scratch", "type": "tmpfs", "source": "tmpfs"}));
            spec["annotations"] = json!({"org.example": "kept"});
            spec["linux"]["resources"]["pids"] = json!({"limit": 77});
        });
        let id = saver.id("saved");
        let _end = End(&saver, &id);
        counter.run(&saver, &id);
        saver.run(&["exec", &id, "sh", "-c", "echo kept > /scratch/file"]).ok();
        let (images, work) = (counter.images("images"), counter.images("work"));
        let words = ["checkpoint", "--image-path", &images, "--work-path", &work, &id];
        let saved = saver.run(&words);
        assert_eq!(saved.code, 0, "{}: {saved}\n{}", saver.name, logs(&words));
        assert_eq!(saver.run(&["list", "-q"]).ok().text(), "", "{}: it is gone", saver.name);
        let before = counter.count();
        for restorer in Runtime::both() {
            let id = restorer.id("restored");
            let _end = End(&restorer, &id);
            let words = [
                "restore",
                "-d",
                "--bundle",
                &counter.path,
                "--image-path",
                &images,
                "--work-path",
                &work,
                &id,
            ];
            let name = format!("{} saved, {} restored", saver.name, restorer.name);
            fs::write(counter.bundle.path().join("rootfs/count"), "0").expect("a writable root");
            quiet(&restorer, &words);
            let after = counter.wait_beyond(0);
            assert!(after >= before, "{name}: {after} follows on {before}");
            assert_eq!(counter.begun(), 1, "{name}: it did not begin anew");
            let told = state(&restorer, &id);
            assert_eq!(
                (&told["status"], &told["annotations"]["org.example"]),
                (&json!("running"), &json!("kept"))
            );
            let seen = restorer.run(&[
                "exec",
                &id,
                "sh",
                "-c",
                "cat /scratch/file; ls /data/deep/passwd; cat /proc/1/comm",
            ]);
            assert_eq!(seen.ok().text(), "kept\n/data/deep/passwd\nsh", "{name}");
            // runc 1.1 restores it into a cgroup of the old name, and leaves its network down.
            if restorer.name == "hoist" {
                let pid = told["pid"].as_u64().expect("a number");
                let network = File::open(format!("/proc/{pid}/ns/net")).expect("it lives");
                let links =
                    Route::open_in(network.as_fd()).and_then(|mut route| route.links()).expect("links");
                assert!(links.iter().any(|link| link.name == "lo" && link.is_up), "{name}: {links:?}");
                let cgroup = fs::read_to_string(format!("/proc/{}/cgroup", told["pid"])).expect("it lives");
                assert!(cgroup.contains(&id), "{name}: {cgroup}");
                assert_eq!(limit_of_pids(&cgroup), "77", "{name}");
            }
            restorer.run(&["kill", &id, "KILL"]).ok();
            eventually("it has stopped", || (state(&restorer, &id)["status"] == "stopped").then_some(()));
            restorer.run(&["delete", &id]).ok();
        }
    }
}

/// CVE-2026-119101: criu keeps the target and the source of a mount in one option. An image that mounted at a path
/// which reads as both made the restore mount a host's directory for another mount.
#[test]
fn a_mount_is_not_led_to_a_place_that_reads_as_a_source() {
    if !criu_works() {
        return;
    }
    let runtime = Runtime::ours();
    let counter = Counter::new(|spec| {
        for place in ["/x", "/data"] {
            let mount =
                json!({"destination": place, "type": "bind", "source": "/etc", "options": ["rbind", "ro"]});
            add_mount(spec, mount);
        }
    });
    let root = counter.bundle.path().join("rootfs");
    fs::create_dir_all(root.join("x]:/tmp")).expect("a writable root");
    std::os::unix::fs::symlink("/x]:/tmp", root.join("data")).expect("a writable root");
    let id = runtime.id("led");
    let _end = End(&runtime, &id);
    counter.run(&runtime, &id);
    let refused = runtime.run(&["checkpoint", "--image-path", &counter.images("images"), &id]);
    assert!(refused.code != 0 && refused.stderr.contains("mount it elsewhere"), "{refused}");
    counter.wait_beyond(counter.count());
}

/// As runc did before its fix of CVE-2026-119101: while a restore makes mount points, read-only mounts are writable,
/// and mount points are made among the host's files.
#[test]
fn a_restore_makes_no_place_in_what_is_read_only() {
    if !criu_works() {
        return;
    }
    let runtime = Runtime::ours();
    let host = TempDir::new().expect("a temporary directory");
    let place = host.path().join("place");
    fs::create_dir(&place).expect("writable");
    let counter = Counter::new(|spec| {
        let shown = host.path().display().to_string();
        for (destination, source) in [("/data", shown.as_str()), ("/data/place", "/etc")] {
            let options = ["bind", "ro"];
            add_mount(
                spec,
                json!({"destination": destination, "type": "bind", "source": source, "options": options}),
            );
        }
    });
    let (id, other) = (runtime.id("saved"), runtime.id("restored"));
    let _ends = (End(&runtime, &id), End(&runtime, &other));
    counter.run(&runtime, &id);
    let images = counter.images("images");
    runtime.run(&["checkpoint", "--image-path", &images, &id]).ok();
    fs::remove_dir(&place).expect("nothing is in it");
    let refused = runtime.run(&["restore", "-d", "--bundle", &counter.path, "--image-path", &images, &other]);
    assert!(refused.code != 0 && refused.stderr.contains("/data/place"), "{refused}");
    assert!(!place.exists(), "it was made on the host: {refused}");
}

/// A restore knows a mount by its target alone, and a container can rename the directory of a mount: a read-only mount
/// would come back as another one, writable.
#[test]
fn a_mount_does_not_come_back_for_more_than_the_bundle_has() {
    if !criu_works() {
        return;
    }
    let runtime = Runtime::ours();
    let [kept, given] = [(); 2].map(|()| TempDir::new().expect("a temporary directory"));
    let options = |spec: &mut Value, rights: [&str; 2]| {
        for (place, right) in ["/a/x", "/b/x"].into_iter().zip(rights) {
            let mounts = spec["mounts"].as_array_mut().expect("mounts");
            let mount = mounts.iter_mut().find(|mount| mount["destination"] == place).expect("it is there");
            mount["options"] = json!(["bind", right]);
        }
    };
    let counter = Counter::new(|spec| {
        for (place, source) in [("/a/x", kept.path()), ("/b/x", given.path())] {
            add_mount(spec, json!({"destination": place, "type": "bind", "source": source}));
        }
        options(spec, ["ro", "rw"]);
    });
    let (id, other) = (runtime.id("saved"), runtime.id("restored"));
    let _ends = (End(&runtime, &id), End(&runtime, &other));
    counter.run(&runtime, &id);
    let exchange = || runtime.run(&["exec", &id, "sh", "-c", "mv /a /c && mv /b /a && mv /c /b"]).ok();
    let (images, work) = (counter.images("images"), counter.images("work"));
    let save = ["checkpoint", "--image-path", &images, "--work-path", &work, &id];
    exchange();
    let refused = runtime.run(&save);
    assert!(refused.code != 0 && refused.stderr.contains("\"/a/x\" is not \"ro\""), "{refused}");
    counter.wait_beyond(counter.count());
    exchange();
    let saved = runtime.run(&save);
    assert_eq!(saved.code, 0, "{saved}\n{}", logs(&save));
    // As if the images had been swapped after the checkpoint.
    let mut spec = read_spec(counter.bundle.path());
    options(&mut spec, ["rw", "ro"]);
    fs::write(counter.bundle.path().join("config.json"), spec.to_string()).expect("a writable bundle");
    let restore =
        ["restore", "-d", "--bundle", &counter.path, "--image-path", &images, "--work-path", &work, &other];
    let refused = runtime.run(&restore);
    assert!(refused.code != 0 && refused.stderr.contains("\"/b/x\" is not \"ro\""), "{refused}");
    assert_eq!(runtime.run(&["list", "-q"]).ok().text(), "", "nothing is left");
    assert!(Cgroup::open(&format!("/{other}")).is_err(), "nor its cgroup");
}

pub(crate) fn limit_of_pids(cgroups: &str) -> String {
    let unified = Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
    let line =
        cgroups.lines().find(|line| if unified { line.starts_with("0::") } else { line.contains(":pids:") });
    let path =
        line.and_then(|line| line.rsplit(':').next()).expect("a cgroup with pids").trim_start_matches('/');
    let tree = if unified { "/sys/fs/cgroup" } else { "/sys/fs/cgroup/pids" };
    read_text(&Path::new(tree).join(path).join("pids.max"))
}

#[test]
fn a_restored_container_in_the_foreground_ends_with_its_code() {
    if !criu_works() {
        return;
    }
    let bundle = bundle(|spec| {
        script(
            spec,
            "echo before; echo up > /up; until test -e /go; do sleep 0.05; done; echo after; exit 7",
        );
    });
    let path = bundle.path().display().to_string();
    let (images, work) = (format!("{path}/images"), format!("{path}/work"));
    for runtime in Runtime::both() {
        let (up, go) = (bundle.path().join("rootfs/up"), bundle.path().join("rootfs/go"));
        let (_, _) = (fs::remove_file(&up), fs::remove_file(&go));
        let id = runtime.id("foreground");
        let _end = End(&runtime, &id);
        let mut first = runtime.command(&["run", "--bundle", &path, &id]);
        let mut first = first.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("it runs");
        eventually("it is up", || up.exists().then_some(()));
        let words = ["checkpoint", "--image-path", &images, "--work-path", &work, &id];
        let saved = runtime.run(&words);
        assert_eq!(saved.code, 0, "{}: {saved}\n{}", runtime.name, logs(&words));
        assert_eq!(first.wait().expect("a child of ours").code(), Some(137), "{}", runtime.name);
        let mut said = String::new();
        first.stdout.take().expect("piped").read_to_string(&mut said).expect("text");
        assert_eq!(said, "before\n", "{}", runtime.name);
        fs::write(&go, "").expect("a writable root");
        let words = ["restore", "--bundle", &path, "--image-path", &images, "--work-path", &work, &id];
        let mut restored = runtime.command(&words);
        let restored = restored.stdout(Stdio::piped()).stderr(Stdio::null()).output().expect("it runs");
        let said = String::from_utf8_lossy(&restored.stdout).into_owned();
        assert_eq!(
            (restored.status.code(), said.as_str()),
            (Some(7), "after\n"),
            "{}\n{}",
            runtime.name,
            logs(&words)
        );
        assert_eq!(runtime.run(&["list", "-q"]).ok().text(), "", "{}: nothing is left", runtime.name);
    }
}

#[test]
fn memory_is_saved_in_parts_while_the_container_goes_on() {
    if !criu_works() {
        return;
    }
    for runtime in Runtime::both() {
        let counter = Counter::new(|_| {});
        let id = runtime.id("parts");
        let _end = End(&runtime, &id);
        counter.run(&runtime, &id);
        let (first, second, work) =
            (counter.images("first"), counter.images("second"), counter.images("work"));
        let pre = ["checkpoint", "--pre-dump", "--image-path", &first, "--work-path", &work, &id];
        let saved = runtime.run(&pre);
        assert_eq!(saved.code, 0, "{}: {saved}\n{}", runtime.name, logs(&pre));
        counter.wait_beyond(counter.count());
        let rest = [
            "checkpoint",
            "--leave-running",
            "--parent-path",
            "../first",
            "--image-path",
            &second,
            "--work-path",
            &work,
            &id,
        ];
        let saved = runtime.run(&rest);
        assert_eq!(saved.code, 0, "{}: {saved}\n{}", runtime.name, logs(&rest));
        assert_eq!(state(&runtime, &id)["status"], "running", "{}", runtime.name);
        counter.wait_beyond(counter.count());
        runtime.run(&["delete", "--force", &id]).ok();
        let before = counter.count();
        fs::write(counter.bundle.path().join("rootfs/count"), "0").expect("a writable root");
        quiet(
            &runtime,
            &["restore", "-d", "--bundle", &counter.path, "--image-path", &second, "--work-path", &work, &id],
        );
        let after = counter.wait_beyond(0);
        assert!(after > 2 && after <= before + 1, "{}: {after}, and {before} when it ended", runtime.name);
        runtime.run(&["delete", "--force", &id]).ok();
    }
}

#[test]
fn a_terminal_is_handed_over_once_more() {
    if !criu_works() {
        return;
    }
    for runtime in Runtime::both() {
        let bundle = bundle(|spec| {
            script(spec, "echo up > /up; while read word; do echo heard $word; done");
            spec["process"]["terminal"] = json!(true);
        });
        let path = bundle.path().display().to_string();
        let (images, work, console) =
            (format!("{path}/images"), format!("{path}/work"), format!("{path}/console"));
        let listener = UnixListener::bind(&console).expect("a free name");
        let id = runtime.id("terminal");
        let _end = End(&runtime, &id);
        let mut first = runtime.command(&["run", "-d", "--bundle", &path, "--console-socket", &console, &id]);
        let mut first = first.spawn().expect("it runs");
        let (_, master) = receive(&listener);
        assert!(first.wait().expect("a child of ours").success());
        eventually("it is up", || bundle.path().join("rootfs/up").exists().then_some(()));
        // As containerd passes it for each container with a terminal.
        let words = ["checkpoint", "--shell-job", "--image-path", &images, "--work-path", &work, &id];
        let saved = runtime.run(&words);
        assert_eq!(saved.code, 0, "{}: {saved}\n{}", runtime.name, logs(&words));
        drop(master);
        let words = [
            "restore",
            "-d",
            "--shell-job",
            "--bundle",
            &path,
            "--image-path",
            &images,
            "--work-path",
            &work,
            "--console-socket",
            &console,
            &id,
        ];
        // The terminal's descriptor waits in the socket's queue.
        let restored = runtime.command(&words).status().expect("it runs");
        assert!(restored.success(), "{}\n{}", runtime.name, logs(&words));
        let (_, master) = receive(&listener);
        let mut master = File::from(master);
        master.write_all(b"you\n").expect("the container listens");
        let mut lines = BufReader::new(master).lines();
        let heard = lines.find(|line| line.as_ref().is_ok_and(|line| line.contains("heard")));
        assert_eq!(heard.expect("it answers").expect("text").trim(), "heard you", "{}", runtime.name);
        runtime.run(&["delete", "--force", &id]).ok();
    }
}

#[test]
fn a_joined_network_is_found_again() {
    if !criu_works() {
        return;
    }
    let network = format!("hoist-criu-{}", std::process::id());
    run(Command::new("ip").args(["netns", "add", &network])).ok();
    let counter = Counter::new(|spec| {
        let namespaces = spec["linux"]["namespaces"].as_array_mut().expect("runc writes namespaces");
        let own =
            namespaces.iter_mut().find(|namespace| namespace["type"] == "network").expect("one of networks");
        own["path"] = json!(format!("/run/netns/{network}"));
    });
    let runtime = Runtime::ours();
    let id = runtime.id("network");
    let _end = End(&runtime, &id);
    counter.run(&runtime, &id);
    let (images, work) = (counter.images("images"), counter.images("work"));
    let words = ["checkpoint", "--image-path", &images, "--work-path", &work, &id];
    let saved = runtime.run(&words);
    assert_eq!(saved.code, 0, "{saved}\n{}", logs(&words));
    let before = counter.count();
    quiet(
        &runtime,
        &["restore", "-d", "--bundle", &counter.path, "--image-path", &images, "--work-path", &work, &id],
    );
    counter.wait_beyond(before);
    let inode = |path: &str| std::os::unix::fs::MetadataExt::ino(&fs::metadata(path).expect("it is there"));
    let pid = &state(&runtime, &id)["pid"];
    assert_eq!(inode(&format!("/proc/{pid}/ns/net")), inode(&format!("/run/netns/{network}")));
    runtime.run(&["delete", "--force", &id]).ok();
    run(Command::new("ip").args(["netns", "delete", &network])).ok();
}

#[test]
fn what_cannot_be_saved_goes_on_and_what_cannot_be_restored_leaves_nothing() {
    if !is_root("a container") {
        return;
    }
    let runtime = Runtime::ours();
    let counter = Counter::new(|_| {});
    let (id, other) = (runtime.id("refused"), runtime.id("other"));
    let _end = End(&runtime, &id);
    let images = counter.images("images");
    let check = |words: &[&str], expected: &str| {
        let refused = runtime.run(words);
        assert!(refused.code != 0 && refused.stderr.contains(expected), "{words:?}: {refused}");
    };
    check(&["checkpoint", &id], "does not exist");
    runtime
        .command(&["create", "--bundle", &counter.path, &id])
        .stdout(Stdio::null())
        .status()
        .expect("it runs");
    check(&["checkpoint", "--image-path", &images, &id], "cannot be checkpointed in state created");
    runtime.run(&["start", &id]).ok();
    counter.wait_beyond(2);
    check(&["checkpoint", "--manage-cgroups-mode", "hard", &id], "soft, full, strict and ignore");
    check(&["checkpoint", "--empty-ns", "pid", &id], "cannot be left empty");
    check(&["checkpoint", "--page-server", "here", &id], "ADDRESS:PORT");
    check(&["checkpoint", "--status-fd", "77", &id], "--status-fd 77");
    let lacks = |words: &[&str]| -> Finished { run(runtime.command(words).env("PATH", "/nowhere")) };
    for words in [
        &["checkpoint", "--image-path", &images, &id][..],
        &["restore", "--bundle", &counter.path, "--image-path", &images, &other],
    ] {
        let refused = lacks(words);
        assert!(refused.code != 0 && refused.stderr.contains("criu is not installed"), "{refused}");
    }
    if criu_works() {
        check(&["checkpoint", "--parent-path", "/absolute", "--image-path", &images, &id], "relative");
        check(&["checkpoint", "--parent-path", "absent", "--image-path", &images, &id], "parent's images");
        check(&["restore", "--bundle", &counter.path, "--image-path", &images, &other], "descriptors.json");
        fs::write(Path::new(&images).join("descriptors.json"), "[]").expect("a directory of ours");
        let refused = runtime.run(&["restore", "--bundle", &counter.path, "--image-path", &images, &other]);
        assert!(refused.code != 0 && refused.stderr.contains("restore.log"), "{refused}");
    } else {
        check(&["checkpoint", "--image-path", &images, &id], "dump.log");
        check(&["restore", "--bundle", &counter.path, "--image-path", &images, &other], "restore.log");
    }
    assert_eq!(runtime.run(&["list", "-q"]).ok().text(), id, "nothing is left of what was not restored");
    assert!(Cgroup::open(&format!("/{other}")).is_err(), "nor its cgroup");
    assert_eq!(state(&runtime, &id)["status"], "running");
    counter.wait_beyond(counter.count());
    runtime.run(&["delete", "--force", &id]).ok();
}

pub(crate) fn packed(options: &CheckpointOptions) -> Option<Any> {
    Some(Any { type_url: CheckpointOptions::TYPE_URL.to_owned(), value: options.encode_to_vec() })
}

#[test]
fn a_task_is_brought_back_by_its_shim() {
    if !criu_works() {
        return;
    }
    for binary in ["", "/usr/sbin/runc"] {
        let host = ShimHost::new();
        let events = host.listen();
        let (output, images) = (host.dir().join("output"), host.dir().join("images"));
        let options = || Options {
            binary_name: binary.into(),
            root: host.dir().join("state").display().to_string(),
            ..Options::default()
        };
        let counting = "i=0; while true; do i=$((i+1)); echo $i; sleep 0.1; done";
        let container = |id: &str| {
            let container = host.container(id, counting).stdout(format!("file://{}", output.display()));
            container.with(|container| {
                container.options = options();
                container.spec["linux"]["namespaces"]
                    .as_array_mut()
                    .expect("a list")
                    .push(json!({"type": "network"}));
            })
        };
        let lines = || -> Vec<u32> {
            let text = fs::read_to_string(&output).unwrap_or_default();
            text.lines().filter_map(|line| line.parse().ok()).collect()
        };
        let task = container("counts").run();
        eventually("it counts", || (lines().len() > 2).then_some(()));
        let path = images.display().to_string();
        let mut request = task::CheckpointTaskRequest {
            id: task.id.clone(),
            path,
            options: packed(&CheckpointOptions::default()),
        };
        let note =
            || fs::read_to_string(host.bundle("counts").join("criu-work/dump.log")).unwrap_or_default();
        task.call::<()>("Checkpoint", &request)
            .unwrap_or_else(|error| panic!("{}\n{}", error.chain(), note()));
        events.wait_for("/tasks/checkpointed", "counts");
        assert_eq!(task.status(""), Status::Running, "it goes on");
        let before = lines().len();
        eventually("it counts on", || (lines().len() > before).then_some(()));
        request.options = packed(&CheckpointOptions { exit: true, ..CheckpointOptions::default() });
        task.call::<()>("Checkpoint", &request)
            .unwrap_or_else(|error| panic!("{}\n{}", error.chain(), note()));
        assert_eq!(task.wait(""), 137, "criu has ended it");
        task.delete("").unwrap();
        let last = *lines().last().expect("it has counted");

        let again = container("again").with(|container| {
            container.request.checkpoint = images.display().to_string();
        });
        let again = again.create();
        let created = again.state("").unwrap();
        assert_eq!((created.status(), created.pid), (Status::Created, 0));
        assert!(again.kill("", 9).unwrap_err().is(ErrorKind::FailedPrecondition));
        let note =
            || fs::read_to_string(host.bundle("again").join("criu-work/restore.log")).unwrap_or_default();
        let pid = again.try_start("").unwrap_or_else(|error| panic!("{}\n{}", error.chain(), note()));
        assert!(pid > 0 && again.state("").unwrap().pid == pid);
        assert_eq!(again.status(""), Status::Running);
        eventually("it counts on", || (*lines().last()? > last + 2).then_some(()));
        let counted = lines();
        assert!(counted.windows(2).all(|pair| pair[1] == pair[0] + 1), "no number is missing: {counted:?}");
        again.kill("", 9).unwrap();
        assert_eq!(again.wait(""), 137);
        again.delete("").unwrap();
        for topic in ["/tasks/create", "/tasks/start", "/tasks/exit", "/tasks/delete"] {
            events.wait_for(topic, "again");
        }
    }
}

#[test]
fn a_task_whose_images_are_no_checkpoint_is_refused_and_deleted() {
    if !is_root("a container") {
        return;
    }
    let host = ShimHost::new();
    let from = |id: &str, images: &Path| {
        host.container(id, "true")
            .with(|container| container.request.checkpoint = images.display().to_string())
    };
    let refused = from("absent", &host.dir().join("absent")).try_create().unwrap_err();
    assert!(refused.is(ErrorKind::InvalidArgument), "{}", refused.chain());
    let task = from("empty", host.dir()).create();
    let failed = task.try_start("").unwrap_err();
    assert!(
        failed.chain().contains("empty") && failed.chain().contains("criu")
            || failed.chain().contains("descriptors.json"),
        "{}",
        failed.chain()
    );
    assert!(task.try_start("").unwrap_err().is(ErrorKind::FailedPrecondition), "its streams are spent");
    assert_eq!(task.status(""), Status::Created);
    task.delete("").unwrap();
}
