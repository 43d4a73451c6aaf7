//! The configuration as the program reads it: containerd's files, imports, drop-ins, and what a running daemon reloads.

use std::collections::{BTreeSet, VecDeque};
use std::fs;
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use api::grpc::content::content_client::ContentClient;
use api::grpc::content::{WriteAction, WriteContentRequest};
use api::grpc::images::images_client::ImagesClient;
use api::grpc::images::{CreateImageRequest, Image, ListImagesRequest};
use api::grpc::types::Descriptor;
use bytes::Bytes;
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use testkit::{
    Daemon, Fault, FaultProxy, Finished, Gate, Layout, Registry, digest_of, eventually, hoist_program,
    images, run,
};
use tonic::Code;
use types::Digest;

use crate::cgroups::{HIERARCHIES, is_v2};
use crate::retention;
use crate::typed::{ask, on};

/// The program, under a given name.
fn called(dir: &Path, name: &str) -> Command {
    let link = dir.join(name);
    if !link.exists() {
        std::os::unix::fs::symlink(hoist_program(), &link).expect("a writable directory");
    }
    Command::new(link)
}

fn config(dir: &Path, name: &str, file: &Path, verb: &str) -> Finished {
    let mut command = called(dir, name);
    if name != "containerd" {
        command.arg("daemon");
    }
    run(command.arg("--config").arg(file).args(["config", verb]))
}

fn reload(daemon: &Daemon) {
    let pid = i32::try_from(daemon.pid()).ok().and_then(Pid::from_raw).expect("a pid");
    kill_process(pid, Signal::HUP).expect("the daemon is a child of ours");
}

/// Debian's default file, with directories of the test, starts a daemon that Debian's `ctr` can use.
#[test]
fn the_default_file_of_debians_containerd_starts_a_daemon() {
    let theirs = run(Command::new("containerd").args(["config", "default"])).ok().stdout;
    assert!(theirs.contains("version = 2"), "{theirs}");
    let daemon = Daemon::start_as("containerd", |places| {
        theirs
            .replace("\"/var/lib/containerd\"", &format!("{:?}", places.root))
            .replace("\"/run/containerd\"", &format!("{:?}", places.state))
            .replace("\"/run/containerd/containerd.sock\"", &format!("{:?}", places.socket))
    });
    assert!(daemon.ctr(["version"]).ok().stdout.contains("2.3.4+hoist."));
    let log = daemon.log();
    assert!(log.contains("io.containerd.cri.v1.runtime"), "it is not named in\n{log}");
    assert!(log.contains("containerd successfully booted in "), "scripts wait for it\n{log}");
    for known in ["gc.v1.scheduler", "stream_processors", "timeouts"] {
        assert!(!log.contains(known), "what has a counterpart is not warned of\n{log}");
    }
    assert!(daemon.root().join("meta.db").exists(), "the root is the one that the file names");
}

#[test]
fn under_containerds_name_configurations_are_containerds() {
    let dir = TempDir::new().expect("a temporary directory");
    let default = run(called(dir.path(), "containerd").args(["config", "default"])).ok();
    for line in
        ["version = 4", "root = \"/var/lib/containerd\"", "address = \"/run/containerd/containerd.sock\""]
    {
        assert!(default.stdout.lines().any(|found| found == line), "{line}\n{default}");
    }
    let file = dir.path().join("config.toml");
    fs::write(&file, &default.stdout).expect("a writable directory");
    let checked = config(dir.path(), "containerd", &file, "check").ok();
    assert_eq!(checked.stderr, "", "what is printed has no key without effect");
    let again = config(dir.path(), "containerd", &file, "migrate").ok();
    assert_eq!(again.stdout, default.stdout, "a file of today is left as it is");

    // Debian's default configuration becomes version 4, complete.
    let theirs = run(Command::new("containerd").args(["config", "default"])).ok().stdout;
    fs::write(&file, theirs.replace("pause:3.6", "pause:mine")).expect("a writable directory");
    let migrated = config(dir.path(), "containerd", &file, "migrate").ok();
    for line in [
        "version = 4",
        "sandbox = \"registry.k8s.io/pause:mine\"",
        "[plugins.\"io.containerd.server.v1.grpc\"]",
    ] {
        assert!(migrated.stdout.lines().any(|found| found == line), "{line}\n{migrated}");
    }
    // Hoist's form has only the keys that Hoist knows, and warns of the others.
    let ours = config(dir.path(), "hoist", &file, "migrate").ok();
    assert!(ours.stdout.contains("[gc]") && !ours.stdout.contains("plugins"), "{ours}");
    assert!(ours.stderr.contains("pinned_images.sandbox"), "{ours}");
    fs::write(dir.path().join("ours.toml"), &ours.stdout).expect("a writable directory");
    config(dir.path(), "hoist", &dir.path().join("ours.toml"), "check").ok();
}

/// Of version 1 in every tree, as containerd's.
#[test]
fn a_daemon_moves_to_the_cgroup_that_its_file_names() {
    if !testkit::is_root("cgroups") {
        return;
    }
    let _hierarchies = HIERARCHIES.read();
    let path = format!("/hoist-test-{}/daemon", std::process::id());
    // containerd does not require the leading slash.
    let written = &path[1..];
    let mut daemon = Daemon::start_as("containerd", |places| {
        format!(
            "version = 2\nroot = {:?}\nstate = {:?}\n[grpc]\naddress = {:?}\n[cgroup]\npath = {written:?}\n",
            places.root, places.state, places.socket
        )
    });
    assert!(!daemon.log().contains("has no effect"), "{}", daemon.log());
    let trees = fs::read_to_string(format!("/proc/{}/cgroup", daemon.pid())).expect("it runs");
    let has_moved = |line: &&str| line.ends_with(&format!(":{path}"));
    let controllers = ["memory", "cpu", "pids"];
    let expected = if is_v2() { 1 } else { controllers.len() };
    let found = trees.lines().filter(has_moved);
    let found =
        found.filter(|line| is_v2() || controllers.iter().any(|controller| line.contains(controller)));
    assert!(found.count() >= expected, "{trees}");
    daemon.terminate();
    for path in [path.as_str(), path.trim_end_matches("/daemon")] {
        linux::cgroup::Cgroup::open(path).and_then(|cgroup| cgroup.delete()).expect("nobody is in it");
    }
}

/// A daemon with a configuration of containerd's that has all that it needs, and these keys.
fn with_keys(keys: &str) -> Daemon {
    let daemon = Daemon::start_as("containerd", |places| {
        format!(
            "version = 4\nroot = {:?}\nstate = {:?}\n{keys}\n[plugins.\"io.containerd.server.v1.grpc\"]\naddress = {:?}\n",
            places.root, places.state, places.socket
        )
    });
    assert!(!daemon.log().contains("has no effect"), "{}", daemon.log());
    daemon
}

#[test]
fn messages_are_as_long_as_the_file_of_containerd_lets_them_be() {
    let limits = "max_recv_message_size = 33554432\nmax_send_message_size = 20000";
    let daemon = Daemon::start_as("containerd", |places| {
        format!(
            "version = 2\nroot = {:?}\nstate = {:?}\n[grpc]\naddress = {:?}\n{limits}\n",
            places.root, places.state, places.socket
        )
    });
    assert!(!daemon.log().contains("has no effect"), "{}", daemon.log());
    on(&daemon, async |channel| {
        let mut content = ContentClient::new(channel.clone());
        let mut write = async |mib: usize| {
            let data = Bytes::from(vec![0; mib << 20]);
            let total = i64::try_from(data.len()).expect("a number");
            let (action, r#ref) = (WriteAction::Write.into(), format!("of-{mib}"));
            let message = WriteContentRequest { action, r#ref, total, data, ..Default::default() };
            let mut answers = content.write(ask(tokio_stream::iter([message]))).await?.into_inner();
            answers.message().await
        };
        assert_eq!(write(20).await.unwrap().unwrap().offset, 20 << 20);
        let refused = write(33).await.unwrap_err();
        assert_eq!(refused.code(), Code::ResourceExhausted);
        assert!(refused.message().contains("received message larger than max"), "{refused}");

        let mut images = ImagesClient::new(channel);
        for number in 0..200 {
            let digest = Digest::of(b"a target").to_string();
            let target = Some(Descriptor { media_type: "x".into(), digest, size: 8, ..Default::default() });
            let image = Some(Image { name: format!("image-{number}"), target, ..Default::default() });
            images.create(ask(CreateImageRequest { image, ..Default::default() })).await.unwrap();
        }
        let refused = images.list(ask(ListImagesRequest::default())).await.unwrap_err();
        assert_eq!(refused.code(), Code::ResourceExhausted, "{refused}");
        let some = ListImagesRequest { filters: vec!["name==image-1".into()] };
        assert_eq!(images.list(ask(some)).await.unwrap().into_inner().images.len(), 1);
    });
}

#[test]
fn a_daemon_starts_only_with_the_plugins_that_its_file_requires() {
    let here = r#"required_plugins = ["io.containerd.snapshotter.v1.native", "io.containerd.grpc.v1.tasks"]"#;
    with_keys(here).ctr(["version"]).ok();
    let dir = TempDir::new().expect("a temporary directory");
    let (file, place) = (dir.path().join("config.toml"), |name: &str| dir.path().join(name));
    let text = format!(
        "version = 2\nroot = {:?}\nstate = {:?}\nrequired_plugins = [\"io.containerd.snapshotter.v1.zfs\"]\n\
         [grpc]\naddress = {:?}\n",
        place("root"),
        place("state"),
        place("socket")
    );
    fs::write(&file, text).expect("a writable directory");
    let refused = run(called(dir.path(), "containerd").arg("--config").arg(&file)).expect_code(1);
    let refused = refused.expect_stderr("required plugin io.containerd.snapshotter.v1.zfs not included");
    assert!(!refused.stderr.contains("ERROR"), "nothing had begun that broke off: {refused}");
    for socket in ["socket", "socket.ttrpc"] {
        assert!(!place(socket).exists(), "nobody was served by {socket}");
    }
}

#[test]
fn plugins_that_the_file_disables_are_not_there_and_what_others_need_stays() {
    let disabled = |ids: &str| with_keys(&format!("disabled_plugins = [{ids}]\n"));
    let daemon = disabled(
        r#""io.containerd.grpc.v1.cri", "io.containerd.snapshotter.v1.native", "io.containerd.grpc.v1.tasks",
           "io.containerd.monitor.container.v1.restart", "io.containerd.streaming.v1.manager",
           "io.containerd.content.v1.content""#,
    );
    let warned = "io.containerd.content.v1.content stays: other parts of the daemon need it";
    let warnings = daemon.log().lines().filter(|line| line.contains("disabled_plugins")).count();
    assert!(daemon.log().contains(warned) && warnings == 1, "{}", daemon.log());
    let listed = daemon.ctr(["plugins", "ls"]).ok();
    let is_listed = |kind: &str, id: &str| {
        listed.stdout.lines().any(|line| {
            let mut words = line.split_whitespace();
            words.next() == Some(kind) && words.next() == Some(id)
        })
    };
    let gone = [
        ("io.containerd.snapshotter.v1", "native"),
        ("io.containerd.grpc.v1", "tasks"),
        ("io.containerd.monitor.container.v1", "restart"),
        ("io.containerd.streaming.v1", "manager"),
        ("io.containerd.grpc.v1", "streaming"),
        ("io.containerd.grpc.v1", "transfer"),
    ];
    for (kind, id) in gone {
        assert!(!is_listed(kind, id), "{kind}.{id}: {listed}");
    }
    for (kind, id) in [("io.containerd.content.v1", "content"), ("io.containerd.snapshotter.v1", "overlayfs")]
    {
        assert!(is_listed(kind, id), "{kind}.{id}: {listed}");
    }
    daemon
        .ctr(["tasks", "ls"])
        .expect_code(1)
        .expect_stderr("unknown service containerd.services.tasks.v1.Tasks");
    daemon.ctr(["snapshots", "--snapshotter", "native", "ls"]).expect_code(1).expect_stderr("native");
    // A client that names no snapshotter gets the other one; Hoist's own commands do not use these services.
    daemon.load(&images::busybox_archive());
    if testkit::is_root("containers") {
        let said = daemon.hoist(["run", "--rm", "--network", "none", "busybox", "echo", "here"]).ok();
        assert_eq!(said.text(), "here");
    }
}

#[test]
fn shims_and_overlays_are_as_the_file_of_containerd_says() {
    if !testkit::is_root("containers") {
        return;
    }
    let sockets = TempDir::new().expect("a temporary directory");
    let socket = sockets.path().join("events.sock");
    let daemon = with_keys(&format!(
        "[plugins.\"io.containerd.shim.v1.manager\"]\nenv = [\"OF_SHIMS=a=b\", \"GOMAXPROCS=7\"]\n\
         [plugins.\"io.containerd.server.v1.ttrpc\"]\naddress = {socket:?}\nuid = 0\ngid = 0\n\
         [plugins.\"io.containerd.snapshotter.v1.overlayfs\"]\nmount_options = [\"volatile\"]\nslow_chown = true\n\
         [timeouts]\n\"io.containerd.timeout.shim.cleanup\" = \"7s\"\n\"io.containerd.timeout.task.state\" = \"1s\"\n"
    ));
    daemon.load(&images::busybox_archive());
    daemon.hoist(["run", "-d", "--name", "box", "--network", "none", "busybox", "sleep", "1000"]).ok();
    let pid = daemon.hoist(["inspect", "-f", "{{.State.Pid}}", "box"]).ok().text().to_owned();
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
    let shim = status.lines().find_map(|line| line.strip_prefix("PPid:")).expect("it has one").trim();
    let env = fs::read(format!("/proc/{shim}/environ")).expect("it runs");
    let env: Vec<String> =
        env.split(|byte| *byte == 0).map(|entry| String::from_utf8_lossy(entry).into_owned()).collect();
    for expected in ["OF_SHIMS=a=b", "GOMAXPROCS=7", &format!("TTRPC_ADDRESS={}", socket.display())] {
        assert!(env.iter().any(|entry| entry == expected), "{expected}: {env:?}");
    }
    let beside = format!("{}.ttrpc", daemon.socket().display());
    assert!(socket.exists() && !Path::new(&beside).exists(), "there is one socket for events");
    let mounts = daemon.hoist(["exec", "box", "cat", "/proc/self/mounts"]).ok();
    let root = mounts.stdout.lines().find(|line| line.starts_with("overlay / ")).expect("a root");
    assert!(root.contains("volatile"), "{root}");
    // A shim that does not answer is waited for as long as the file says.
    let shim = shim.parse().ok().and_then(Pid::from_raw).expect("a pid");
    kill_process(shim, Signal::STOP).expect("it runs");
    let listed = daemon.ctr(["tasks", "ls"]).ok();
    kill_process(shim, Signal::CONT).expect("it runs");
    assert!(listed.stdout.contains("UNKNOWN"), "{listed}");
    assert!(daemon.log().contains("took longer than 1s"), "{}", daemon.log());
    // Events of shims come through that socket.
    daemon.hoist(["kill", "box"]).ok();
    assert_eq!(daemon.hoist(["wait", "box"]).ok().text(), "137");
}

/// Requests that a test holds up, and the most that were held at once.
#[derive(Clone, Default)]
struct Held {
    gates: Arc<Mutex<VecDeque<Gate>>>,
    waiting: Arc<AtomicUsize>,
    most: Arc<AtomicUsize>,
}

impl Held {
    /// Counts a request, and holds it up.
    fn hold(&self) -> Vec<Fault> {
        let gate = Gate::default();
        self.gates.lock().expect("no panic").push_back(gate.clone());
        self.most.fetch_max(self.waiting.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
        vec![Fault::Wait(gate)]
    }

    /// Releases `all` requests, each when the limit of concurrent ones is reached. Returns the most that were held at
    /// once.
    fn let_go(&self, all: usize, at_once: usize) -> usize {
        for gone in 0..all {
            let wanted = at_once.min(all - gone);
            eventually("as many as may be at once", || {
                (self.waiting.load(Ordering::SeqCst) >= wanted).then_some(())
            });
            let gate = self.gates.lock().expect("no panic").pop_front();
            self.waiting.fetch_sub(1, Ordering::SeqCst);
            gate.expect("it waits").open();
        }
        self.most.load(Ordering::SeqCst)
    }
}

/// Neither the default number, nor the limit for pulls and pushes separately.
#[test]
fn pulls_and_pushes_have_together_as_much_at_once_as_the_file_of_containerd_says() {
    const IMAGES: usize = 2;
    const LAYERS: usize = 6;
    if !testkit::is_root("unpacking layers") {
        return;
    }
    let (layout, registry) = (Layout::new(), Registry::start());
    let (mut layers, mut configs, mut references) = (BTreeSet::new(), BTreeSet::new(), Vec::new());
    for name in ["first", "second"] {
        let own: Vec<_> = (0..LAYERS).map(|at| layout.layer(&format!("{name}-{at}"), 1000)).collect();
        let manifest = layout.image("amd64", &own);
        layout.tag(&manifest, name);
        layers.extend(own.iter().map(|layer| digest_of(layer).to_string()));
        let read = fs::read(layout.blob_path(&manifest)).expect("it was written");
        let read: serde_json::Value = serde_json::from_slice(&read).expect("a manifest");
        configs.insert(digest_of(&read["config"]).to_string());
        references.push(registry.push(layout.path(), name, &format!("{name}:1")));
    }
    // Layers are requested once the configs are here: those of both pulls at the same time.
    let (pulled, pushed, begun) = (Held::default(), Held::default(), Gate::default());
    let (down, up, both) = (pulled.clone(), pushed.clone(), begun.clone());
    let proxy = FaultProxy::start(&registry, move |asked| match (asked.method.as_str(), asked.blob()) {
        ("GET", Some(blob)) if layers.contains(blob) => down.hold(),
        ("GET", Some(blob)) if configs.contains(blob) => vec![Fault::Wait(both.clone())],
        ("POST", _) if asked.is_upload() => up.hold(),
        _ => Vec::new(),
    });
    let daemon = &with_keys(
        "[plugins.\"io.containerd.transfer.v1.local\"]\nmax_concurrent_downloads = 5\n\
         max_concurrent_uploaded_layers = 4\n",
    );
    let from: Vec<String> = references.iter().map(|reference| proxy.through(reference)).collect();
    let to: Vec<String> = (0..IMAGES).map(|at| format!("{}/other-{at}:1", proxy.host())).collect();
    std::thread::scope(|scope| {
        let pull = |from| move || daemon.hoist(["pull", "--platform", "linux/amd64", from]);
        let pulls: Vec<_> = from.iter().map(|from| scope.spawn(pull(from))).collect();
        begun.arrivals(IMAGES);
        begun.open();
        assert_eq!(pulled.let_go(IMAGES * LAYERS, 5), 5);
        pulls.into_iter().for_each(|pull| drop(pull.join().expect("it does not panic").ok()));
        for (from, to) in from.iter().zip(&to) {
            daemon.hoist(["tag", from, to]).ok();
        }
        let push = |to| move || daemon.hoist(["push", to]);
        let pushes: Vec<_> = to.iter().map(|to| scope.spawn(push(to))).collect();
        assert_eq!(pushed.let_go(IMAGES * (LAYERS + 1), 4), 4);
        pushes.into_iter().for_each(|push| drop(push.join().expect("it does not panic").ok()));
    });
}

/// containerd's `content_sharing_policy = "isolated"` keeps tenants apart in Hoist, too.
#[test]
fn isolated_content_is_brought_by_each_namespace_unless_its_owner_shares_it() {
    let daemon = Daemon::start_as("containerd", |places| {
        format!(
            "version = 2\nroot = {:?}\nstate = {:?}\n[grpc]\naddress = {:?}\n\
             [plugins.\"io.containerd.metadata.v1.bolt\"]\ncontent_sharing_policy = \"isolated\"\n",
            places.root, places.state, places.socket
        )
    });
    assert!(!daemon.log().contains("has no effect"), "{}", daemon.log());
    let blob = Digest::of(b"hello").to_string();
    let message = |reference: &str, action: WriteAction, offset, data: &'static [u8]| WriteContentRequest {
        action: action.into(),
        r#ref: reference.into(),
        offset,
        total: 5,
        expected: blob.clone(),
        data: data.into(),
        labels: [("containerd.io/gc.root".into(), "test".into())].into(),
    };
    on(&daemon, async |channel| {
        let mut client = ContentClient::new(channel);
        // The offset at the beginning, and the answer to the last message.
        let mut write = async |namespace: &str, messages: Vec<WriteContentRequest>| {
            let mut request = tonic::Request::new(tokio_stream::iter(messages));
            request.metadata_mut().insert(api::grpc::NAMESPACE_KEY, namespace.parse().expect("plain text"));
            let mut answers = client.write(request).await?.into_inner();
            let first = answers.message().await?.expect("an answer to the first message").offset;
            while answers.message().await?.is_some() {}
            Ok::<_, tonic::Status>(first)
        };
        let whole = || {
            vec![
                message("whole", WriteAction::Stat, 0, b""),
                message("whole", WriteAction::Commit, 0, b"hello"),
            ]
        };
        let named = || {
            vec![message("named", WriteAction::Stat, 0, b""), message("named", WriteAction::Commit, 5, b"")]
        };
        assert_eq!(write("owner", whole()).await.unwrap(), 0);
        assert_eq!(write("other", named()).await.unwrap_err().code(), Code::OutOfRange, "it has no bytes");
        assert_eq!(write("other", whole()).await.unwrap(), 0);

        daemon.ctr(["namespaces", "label", "owner", "containerd.io/namespace.shareable=true"]).ok();
        assert_eq!(write("third", named()).await.unwrap(), 5);
    });
}

#[test]
fn imports_and_flags_count_in_their_order() {
    let dir = TempDir::new().expect("a temporary directory");
    let write =
        |name: &str, text: &str| fs::write(dir.path().join(name), text).expect("a writable directory");
    fs::create_dir(dir.path().join("conf.d")).expect("a writable directory");
    write(
        "config.toml",
        "version = 2\nroot = \"/a\"\nimports = [\"conf.d/*.toml\"]\n[debug]\nlevel = \"warn\"\n",
    );
    write(
        "conf.d/1.toml",
        "version = 3\nroot = \"/b\"\n[plugins.\"io.containerd.gc.v1.scheduler\"]\nstartup_delay = \"7s\"\n",
    );
    write(
        "conf.d/2.toml",
        "version = 4\n[plugins.\"io.containerd.server.v1.grpc\"]\naddress = \"/c.sock\"\n",
    );
    let file = dir.path().join("config.toml");
    let check = |name: &str, words: &[&str], of_its_own: &[&str]| {
        let mut dump = called(dir.path(), name);
        dump.args(words).arg("--config").arg(&file);
        let dump = run(dump.args(["--state", "/flag", "-l", "debug", "config", "dump"])).ok();
        let of_both = [
            "root = \"/b\"",
            "state = \"/flag\"",
            "startup_delay = \"7s\"",
            "address = \"/c.sock\"",
            "level = \"debug\"",
        ];
        for line in of_both.iter().chain(of_its_own) {
            assert!(dump.stdout.lines().any(|found| found == *line), "{line}\n{dump}");
        }
    };
    check("hoist", &["daemon"], &["[gc]", "schedule_delay = \"1s\""]);
    // The same under containerd's name, in containerd's form.
    let of_theirs = [
        "version = 4",
        "[plugins.\"io.containerd.gc.v1.scheduler\"]",
        "[plugins.\"io.containerd.server.v1.grpc\"]",
    ];
    check("containerd", &[], &of_theirs);
    // An unknown key is a warning in a file of containerd's, as there, and an error in one of Hoist's, where it may be
    // a typing mistake.
    write("conf.d/3.toml", "version = 4\n\nrot = \"/x\"\n");
    let unknown = config(dir.path(), "hoist", &file, "check").ok();
    assert!(unknown.stderr.contains("conf.d/3.toml: has no effect here: rot"), "{unknown}");
    write("conf.d/3.toml", "rot = \"/x\"\n");
    let wrong = config(dir.path(), "hoist", &file, "check").expect_code(1);
    assert!(
        wrong.stderr.contains("conf.d/3.toml:1") && wrong.stderr.contains("did you mean `root`"),
        "{wrong}"
    );
}

#[test]
fn a_daemon_that_runs_takes_up_what_it_can() {
    let registry = Registry::start();
    let image = registry.push(&images::busybox(), images::TAG, "busybox") + ":latest";
    let daemon = Daemon::start();
    let file = daemon.dir().join("config.toml");
    let before = fs::read_to_string(&file).expect("the daemon has a file");
    let policy = daemon.dir().join("policy.toml");
    fs::write(&policy, "default = \"reject\"\n").expect("a writable directory");
    assert!(!daemon.log().contains("DEBUG"), "{}", daemon.log());

    // An invalid file changes nothing.
    fs::write(&file, format!("polcy = {policy:?}\n{before}")).expect("a writable directory");
    reload(&daemon);
    eventually("the mistake is told", || daemon.log().contains("did you mean `policy`").then_some(()));
    daemon.ctr(["images", "pull", "--plain-http", &image]).ok();
    daemon.ctr(["images", "rm", &image]).ok();

    let changed =
        format!("policy = {policy:?}\nsnapshotter = \"native\"\n{before}\n[log]\nlevel = \"debug\"\n");
    fs::write(&file, changed).expect("a writable directory");
    reload(&daemon);
    eventually("the file is read again", || {
        daemon.log().contains("configuration was read again").then_some(())
    });
    assert!(daemon.log().contains("snapshotter changed, and counts from the next start"), "{}", daemon.log());
    let refused = daemon.ctr(["images", "pull", "--plain-http", &image]);
    assert!(refused.code != 0 && refused.stderr.contains("the policy does not let"), "{refused}");
    eventually("more is logged", || daemon.log().contains("DEBUG").then_some(()));

    fs::write(&file, before).expect("a writable directory");
    reload(&daemon);
    eventually("the file is read again", || {
        (daemon.log().matches("configuration was read again").count() == 2).then_some(())
    });
    daemon.ctr(["images", "pull", "--plain-http", &image]).ok();
}

/// As early as a client can know that the daemon exists. Before it handles signals, SIGTERM or SIGHUP would kill it.
#[test]
fn a_signal_right_after_the_start_is_heard() {
    let mut daemon = Daemon::start();
    daemon.terminate();
    for _ in 0..20 {
        let mut process = Command::new(hoist_program())
            .arg("daemon")
            .args(["--root".as_ref(), daemon.root().as_os_str()])
            .args(["--state".as_ref(), daemon.state().as_os_str()])
            .args(["--address".as_ref(), daemon.socket().as_os_str()])
            .args(["--config".as_ref(), daemon.dir().join("config.toml").as_os_str()])
            .stderr(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .expect("hoist starts");
        while UnixStream::connect(daemon.socket()).is_err() {
            assert!(process.try_wait().expect("it is a child of ours").is_none(), "it does not start");
        }
        let pid = i32::try_from(process.id()).ok().and_then(Pid::from_raw).expect("a pid");
        kill_process(pid, Signal::HUP).expect("it is a child of ours");
        kill_process(pid, Signal::TERM).expect("it is a child of ours");
        let ended = process.wait().expect("it is a child of ours");
        assert!(ended.success(), "{ended}");
    }
}

/// An operator may send it to all containerds, and so to one that is still reading its configuration.
#[test]
fn sigusr1_does_not_end_a_daemon_that_is_starting() {
    let dir = TempDir::new().expect("a temporary directory");
    let file = dir.path().join("config.toml");
    run(Command::new("mkfifo").arg(&file)).ok();
    let process = Command::new(hoist_program())
        .arg("daemon")
        .args(["--config".as_ref(), file.as_os_str()])
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("hoist starts");
    // The daemon reads its configuration once this returns (fifo(7)), and has not got it yet.
    let mut config = fs::File::options().write(true).open(&file).expect("the daemon reads it");
    let pid = i32::try_from(process.id()).ok().and_then(Pid::from_raw).expect("a pid");
    kill_process(pid, Signal::USR1).expect("it is a child of ours");
    // A daemon that the signal ended reads nothing: what it ended by is asserted below.
    let _ = config.write_all(b"rot = \"/x\"\n");
    drop(config);
    let ended = process.wait_with_output().expect("it is a child of ours");
    let said = String::from_utf8_lossy(&ended.stderr);
    assert_eq!(ended.status.code(), Some(1), "{}: {said}", ended.status);
    assert!(said.contains("unknown field `rot`"), "{said}");
}

/// After a reload the next pull uses the new mirror, and the restart policy the new pause.
#[test]
fn what_is_read_again_counts_for_registries_and_restarts() {
    if !testkit::is_root("a container") {
        return;
    }
    let _hierarchies = HIERARCHIES.read();
    let registry = Registry::start();
    let image = registry.push(&images::busybox(), images::TAG, "busybox") + ":latest";
    let daemon = Daemon::start_with(&[], "[restart]\ninterval = \"1h\"\n");
    daemon.ctr(["images", "pull", "--plain-http", &image]).ok();
    let label = "containerd.io/restart.status=running";
    let create = ["containers", "create", "--runtime", "io.containerd.hoist.v2", "--label", label];
    daemon.ctr([&create[..], &[&image, "again", "sleep", "1000"]].concat()).ok();

    let (host, _) = image.split_once('/').expect("a host and a path");
    let directories = daemon.dir().join("certs.d");
    let mirrored = directories.join("mirrored.invalid");
    fs::create_dir_all(&mirrored).expect("a writable directory");
    fs::write(mirrored.join("hosts.toml"), format!("[host.\"http://{host}\"]\n")).expect("a new directory");
    let file = daemon.dir().join("config.toml");
    let before = fs::read_to_string(&file).expect("the daemon has a file");
    let after =
        before.replace("\"1h\"", "\"100ms\"") + &format!("\n[registry]\nconfig_path = {directories:?}\n");
    fs::write(&file, after).expect("a writable directory");
    reload(&daemon);
    eventually("the file is read again", || {
        daemon.log().contains("configuration was read again").then_some(())
    });
    daemon.hoist(["pull", "-q", "mirrored.invalid/busybox:latest"]).ok();
    eventually("what should run is started", || {
        daemon.ctr(["tasks", "ls"]).ok().stdout.contains("RUNNING").then_some(())
    });
    daemon.ctr(["containers", "label", "again", "containerd.io/restart.status="]).ok();
    daemon.ctr(["tasks", "rm", "--force", "again"]).ok();
    daemon.ctr(["containers", "rm", "again"]).ok();
}

/// So do garbage collection, retention of blobs, and verifiers.
#[test]
fn what_is_read_again_counts_for_garbage_blobs_and_verifiers() {
    let registry = Registry::start();
    let image = registry.push(&images::busybox(), images::TAG, "busybox") + ":latest";
    let daemon = Daemon::start_with(&[], "[gc]\nstartup_delay = \"1h\"\n[content]\nunpacked = \"keep\"\n");
    daemon.hoist(["pull", "-q", &image]).ok();
    let layer = retention::blob(&daemon, &retention::layer(&daemon, &image).0);
    let stray = Digest::of(b"stray");
    let mut ingest = daemon.own_ctr_command(["content", "ingest", "stray"]);
    let text = daemon.dir().join("stray");
    fs::write(&text, "stray").expect("a writable directory");
    run(ingest.stdin(fs::File::open(&text).expect("it was written"))).ok();
    let stray = retention::blob(&daemon, &stray);
    assert!(layer.exists() && stray.exists());

    let verifiers = daemon.dir().join("verifiers");
    fs::create_dir(&verifiers).expect("a writable directory");
    testkit::executable(&verifiers.join("door"), "#!/bin/sh\necho closed today\nexit 1\n");
    let file = daemon.dir().join("config.toml");
    let before = fs::read_to_string(&file).expect("the daemon has a file");
    let after = before.replace("\"1h\"", "\"0s\"").replace("\"keep\"", "\"drop\"");
    fs::write(&file, after + &format!("\n[image_verifiers]\nbin_dir = {verifiers:?}\n"))
        .expect("a writable directory");
    reload(&daemon);
    eventually("what nobody needs is collected", || (!stray.exists()).then_some(()));
    eventually("blobs of unpacked layers go", || (!layer.exists()).then_some(()));
    let refused = daemon.hoist(["tag", &image, "other:1"]);
    assert!(refused.code != 0 && refused.stderr.contains("closed today"), "{refused}");
}
