//! How often a pull, and the changes of many clients, wait for the disk (fsync(2), syncfs(2)), and in which order.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};

use api::grpc::leases::leases_client::LeasesClient;
use api::grpc::leases::{CreateRequest, ListRequest};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;
use testkit::disk::{RecordedDisk, mount_image};
use testkit::layout::{archive_of, tar_entry};
use testkit::{Daemon, Layout, MountsBelow, Registry, images, noise, run};
use tokio::task::JoinSet;

use crate::power::lose_power;
use crate::typed::{ask, on};

/// A call that waits for the disk.
#[derive(Debug)]
struct Sync {
    call: String,
    path: String,
}

impl Sync {
    /// Parses `PID fsync(12</path>) = 0`, or the beginning of such a line.
    fn parse(line: &str) -> Option<Sync> {
        let (_, call) = line.split_once(' ')?;
        let (call, rest) = call.trim_start().split_once('(')?;
        let (_, path) = rest.split_once('<')?;
        let (path, _) = path.split_once('>')?;
        Some(Sync { call: call.to_owned(), path: path.to_owned() })
    }

    fn is_of(&self, place: &str) -> bool {
        self.path.contains(place)
    }
}

/// The daemon's calls that wait for the disk during `work`, in the order in which they begin.
fn syncs(daemon: &Daemon, work: impl FnOnce()) -> Vec<Sync> {
    let log = daemon.dir().join("syncs");
    let mut strace = Command::new("strace")
        .args(["-f", "-y", "-e", "trace=fsync,fdatasync,syncfs", "-o"])
        .arg(&log)
        .args(["-p", &daemon.pid().to_string()])
        .stdin(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("strace is installed");
    let mut said = BufReader::new(strace.stderr.take().expect("a pipe was asked for"));
    let mut line = String::new();
    said.read_line(&mut line).expect("it says that it is there");
    assert!(line.contains("attached"), "{line}");
    work();
    let pid = i32::try_from(strace.id()).ok().and_then(Pid::from_raw).expect("a pid");
    kill_process(pid, Signal::INT).expect("a child of ours");
    // strace has written everything when it ends. Its messages are read until then.
    std::io::copy(&mut said, &mut std::io::sink()).expect("a pipe");
    strace.wait().expect("a child of ours");
    let log = fs::read_to_string(&log).expect("strace has written it");
    log.lines().filter_map(Sync::parse).collect()
}

/// Three layers of so many bytes each that do not compress, all in one directory if they are to be, which the lowest alone
/// has an entry for.
fn push(registry: &Registry, name: &str, len: usize, directory: &str) -> String {
    let layers: Vec<Vec<u8>> = (0..3)
        .map(|at| {
            let file = noise(&format!("{name}{at}"), len);
            let file = tar_entry(&format!("{directory}file{at}"), b'0', "", &file);
            let entry = tar_entry(directory, b'5', "", b"");
            let has_entry = at == 0 && !directory.is_empty();
            archive_of(&if has_entry { vec![entry, file] } else { vec![file] })
        })
        .collect();
    let layout = Layout::new();
    let architecture = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
    layout.tag(&layout.image_of(architecture, &layers, &json!({})), images::TAG);
    registry.push(layout.path(), images::TAG, &format!("{name}:1"))
}

/// The modes of a directory in all layers that contain it.
fn looks_of(daemon: &Daemon, path: &str) -> Vec<u32> {
    let trees = fs::read_dir(daemon.root().join("snapshots/overlayfs")).expect("trees of layers");
    let found = trees.flatten().filter_map(|tree| fs::metadata(tree.path().join(path)).ok());
    found.map(|looks| looks.permissions().mode() & 0o7777).collect()
}

/// One syncfs(2) writes all trees of a pull, and the records follow. Each blob is synced by itself while others are
/// downloaded, so that the next pull finds what was received.
#[test]
fn the_files_of_a_pull_are_on_disk_by_one_barrier_before_their_records() {
    let registry = Registry::start();
    let kinds =
        [("first", 1000, ""), ("small", 300_000, ""), ("implied", 1000, "a/"), ("large", 3_000_000, "")];
    let [first, small, implied, large] =
        kinds.map(|(name, len, directory)| push(&registry, name, len, directory));
    for form in ["archives", "directories"] {
        let daemon = Daemon::start_with(&[], &format!("[snapshots]\nlayers = {form:?}\n"));
        daemon.hoist(["pull", "-q", &first]).ok();
        daemon.hoist(["system", "prune", "--force"]).ok();
        for (image, is_large) in [(&small, false), (&implied, false), (&large, true)] {
            let found = syncs(&daemon, || drop(daemon.hoist(["pull", "-q", image]).ok()));
            let what = format!("{form}, {image}: {found:#?}");
            println!("{what}");
            let count = |is_so: &dyn Fn(&Sync) -> bool| found.iter().filter(|sync| is_so(sync)).count();
            let barrier = found.iter().position(|sync| sync.call == "syncfs").expect("a barrier");
            assert_eq!(count(&|sync| sync.call == "syncfs"), 1, "{what}");
            // A manifest, a config and three layers.
            assert_eq!(count(&|sync| sync.is_of("/content/ingest/")), 5, "{what}");
            assert!(count(&|sync| sync.is_of("/content/blobs/")) <= 5, "{what}");
            let records = |syncs: &[Sync]| syncs.iter().filter(|sync| sync.is_of("/meta.db")).count();
            // Of what is worth it that a daemon that is killed finds it again, twice a layer at most; and a collection of
            // what was before may end.
            let ahead = records(&found[..barrier]);
            assert!(if is_large { (1..=9).contains(&ahead) } else { ahead <= 3 }, "{ahead}: {what}");
            assert!((1..=3).contains(&records(&found[barrier..])), "{what}");
            let of_layers = found.iter().filter(|sync| sync.call != "syncfs" && sync.is_of("/snapshots/"));
            let of_layers: Vec<&str> = of_layers.map(|sync| &*sync.path).collect();
            // So are the images of merged layers.
            assert!(of_layers.is_empty(), "{what}");
            if form == "directories" && image == &implied {
                // The mode of the lowest layer's entry.
                assert_eq!(looks_of(&daemon, "fs/a"), [0o644; 3], "{what}");
            }
        }
    }
}

/// Changes of many clients share a wait for the disk. Each is answered only after the wait that contains it, so that a
/// power cut after the answers loses none.
#[test]
fn changes_of_many_clients_share_their_waits_and_outlive_the_power_once_they_are_answered() {
    const CLIENTS: usize = 64;
    const CHANGES: usize = 20;
    let mut daemon = Daemon::start();
    daemon.terminate();
    let disk = RecordedDisk::new(256 << 20);
    let _mounts = MountsBelow(daemon.root());
    run(Command::new("mount").arg("--bind").arg(disk.path()).arg(daemon.root())).ok();
    daemon.start_again();
    let mut answered = 0;
    let found = syncs(&daemon, || {
        on(&daemon, async |channel| {
            let mut clients = JoinSet::new();
            for client in 0..CLIENTS {
                let mut leases = LeasesClient::new(channel.clone());
                clients.spawn(async move {
                    for change in 0..CHANGES {
                        let id = format!("{client}-{change}");
                        let request = ask(CreateRequest { id, ..CreateRequest::default() });
                        leases.create(request).await.expect("a new lease");
                    }
                });
            }
            clients.join_all().await;
        });
        // Of what the daemon does afterwards nothing is to help.
        answered = disk.now();
    });
    let of_records = found.iter().filter(|sync| sync.is_of("/meta.db")).count();
    println!("{} changes by {of_records} waits", CLIENTS * CHANGES);
    assert!((1..CLIENTS * CHANGES / 2).contains(&of_records), "{of_records}");

    lose_power(&mut daemon);
    let left = daemon.dir().join("left");
    disk.end().after_cut(answered, |_| false, &left);
    mount_image(&left, &daemon.root());
    daemon.start_again();
    on(&daemon, async |channel| {
        let listed = LeasesClient::new(channel).list(ask(ListRequest::default())).await.expect("a list");
        let there = listed.into_inner().leases.into_iter().map(|lease| lease.id);
        let made =
            |id: &String| id.split_once('-').is_some_and(|(client, _)| client.parse::<usize>().is_ok());
        assert_eq!(there.filter(made).count(), CLIENTS * CHANGES);
    });
}
