//! Layers kept as archives, from the registry to the running container. Containers see the same files after the daemon
//! was killed, after a reboot, and on top of layers kept as directories.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::Path;
use std::process::Command;

use api::grpc::snapshots::PrepareSnapshotRequest;
use api::grpc::snapshots::snapshots_client::SnapshotsClient;
use api::shim::types::Mount;
use serde_json::json;
use tempfile::TempDir;
use testkit::layout::{archive_of, tar_entry};
use testkit::{Daemon, Layout, Registry, ShimHost, eventually, images, run};

use crate::typed::{ask, on};

const ARCHIVES: &str = "[snapshots]\nlayers = \"archives\"\n";

/// Places below the daemon's root where images are mounted.
fn mounted(daemon: &Daemon) -> Vec<String> {
    let mounts = fs::read_to_string("/proc/self/mounts").expect("proc is there");
    let fields = mounts.lines().filter_map(|line| {
        let mut fields = line.split(' ').skip(1);
        Some((fields.next()?, fields.next()?))
    });
    let ours = fields.filter(|(at, kind)| *kind == "erofs" && Path::new(at).starts_with(daemon.root()));
    ours.map(|(at, _)| at.to_owned()).collect()
}

/// How many files of layers on disk have this name.
fn count(daemon: &Daemon, name: &str) -> usize {
    let trees = fs::read_dir(daemon.root().join("snapshots/overlayfs")).expect("a directory of trees");
    trees.filter(|entry| entry.as_ref().is_ok_and(|entry| entry.path().join(name).exists())).count()
}

/// How many snapshots are directories: unpacked layers, and those that containers write to.
fn unpacked(daemon: &Daemon) -> usize {
    let trees = fs::read_dir(daemon.root().join("snapshots/overlayfs")).expect("a directory of trees");
    let is_filled = |entry: std::io::Result<fs::DirEntry>| {
        fs::read_dir(entry.ok()?.path().join("fs")).ok()?.next()?.ok().map(drop)
    };
    trees.filter_map(is_filled).count()
}

/// What a reboot leaves: neither daemon nor mounts nor the state directory.
fn reboot(daemon: &mut Daemon) {
    daemon.kill();
    for at in mounted(daemon) {
        run(Command::new("umount").args(["--lazy", &at])).ok();
    }
    // The network namespace of a container that has just ended may still be mounted.
    testkit::unmount_below(&daemon.state());
    fs::remove_dir_all(daemon.state()).expect("nothing runs");
}

/// An uncompressed tar archive of the files that `fill` makes.
fn layer(fill: impl FnOnce(&Path)) -> Vec<u8> {
    let dir = TempDir::new().expect("a temporary directory");
    fill(dir.path());
    let tar = Command::new("tar").arg("-C").arg(dir.path()).args(["-cf", "-", "."]).output();
    let tar = tar.expect("tar is part of Debian");
    assert!(tar.status.success(), "{tar:?}");
    tar.stdout
}

pub(crate) fn shell_layer() -> Vec<u8> {
    layer(shell)
}

fn shell(root: &Path) {
    fs::create_dir(root.join("bin")).unwrap();
    fs::copy("/bin/busybox", root.join("bin/busybox")).unwrap();
    for tool in ["sh", "cat", "ls", "stat", "true", "sleep", "touch", "rm", "wc"] {
        symlink("busybox", root.join("bin").join(tool)).unwrap();
    }
    fs::create_dir(root.join("etc")).unwrap();
    fs::write(root.join("etc/base"), "base").unwrap();
    fs::write(root.join("etc/gone"), "gone").unwrap();
}

pub(crate) fn upper_layer() -> Vec<u8> {
    layer(|root| {
        fs::create_dir(root.join("etc")).unwrap();
        fs::write(root.join("etc/upper"), "upper").unwrap();
        fs::write(root.join("etc/.wh.gone"), "").unwrap();
    })
}

/// Pushes an image of these layers.
pub(crate) fn push(registry: &Registry, layers: &[Vec<u8>], name: &str) -> String {
    let layout = Layout::new();
    let architecture = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
    let config = json!({"config": {"Cmd": ["sh"], "Env": ["PATH=/bin"]}});
    let image = layout.image_of(architecture, layers, &config);
    layout.tag(&image, images::TAG);
    registry.push(layout.path(), images::TAG, name) + ":latest"
}

/// The lowest layer has whiteouts, which hide nothing. It is the image's only layer, so no merged image is made.
#[test]
fn what_the_only_layer_deletes_is_not_shown() {
    let only = layer(|root| {
        shell(root);
        fs::write(root.join(".wh.top"), "").unwrap();
        for directory in ["dir", "opaque"] {
            fs::create_dir(root.join(directory)).unwrap();
            fs::write(root.join(directory).join("here"), "").unwrap();
        }
        fs::write(root.join("dir/.wh.gone"), "").unwrap();
        fs::write(root.join("opaque/.wh..wh..opq"), "").unwrap();
    });
    let registry = Registry::start();
    let reference = push(&registry, &[only], "only");
    let daemon = Daemon::start_with(&[], ARCHIVES);
    daemon.hoist(["pull", &reference]).ok();
    let shown = daemon.dir().join("shown").display().to_string();
    fs::create_dir(&shown).unwrap();
    daemon.hoist(["image", "mount", &reference, &shown]).ok();
    let names = |of: &str| {
        let entries = fs::read_dir(Path::new(&shown).join(of)).expect("a directory");
        let mut names: Vec<_> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    };
    assert_eq!(
        [names("."), names("dir"), names("opaque")],
        [
            ["bin", "dir", "etc", "opaque"].map(String::from).to_vec(),
            vec!["here".to_owned()],
            vec!["here".to_owned()],
        ]
    );
    daemon.hoist(["image", "unmount", &shown]).ok();
    let look = ["run", "--rm", "--network", "none", &reference, "sh", "-c", "ls /dir /opaque && rm -r /dir"];
    assert_eq!(daemon.hoist(look).ok().text(), "/dir:\nhere\n\n/opaque:\nhere");
    daemon.hoist(["image", "verify", &reference]).ok();
}

#[test]
fn a_hundred_layers_are_one_mount_until_they_are_removed() {
    let registry = Registry::start();
    let reference = registry.push(&images::hundred_layers(), images::TAG, "layers");
    for more in ["", "loop_devices = true\n"] {
        let mut daemon = Daemon::start_with(&[], &format!("{ARCHIVES}{more}"));
        daemon.hoist(["pull", &reference]).ok();
        let archives = count(&daemon, "data.tar");
        assert!(archives >= 100 && unpacked(&daemon) == 0);
        let script = "ls /layer | wc -l; cat /last; touch /layer/1 /own";
        let check = |daemon: &Daemon| {
            let found = daemon.hoist(["run", "--rm", &reference, "sh", "-c", script]).ok();
            assert_eq!(found.stdout, "99\n99", "{more}");
            assert_eq!(mounted(daemon).len(), 1, "{more}");
            // A kernel that does not read files reliably gets loop devices in either case.
            if !more.is_empty() {
                assert_eq!(loop_devices(daemon), archives + 1, "the image and its archives");
            }
        };
        check(&daemon);
        daemon.hoist(["run", "-d", "--name", "stays", &reference, "sleep", "1000"]).ok();

        daemon.kill();
        daemon.start_again();
        assert_eq!(daemon.hoist(["exec", "stays", "cat", "/last"]).ok().text(), "99", "{more}");
        check(&daemon);
        daemon.hoist(["rm", "-f", "stays"]).ok();

        reboot(&mut daemon);
        eventually("a reboot leaves no device", || (loop_devices(&daemon) == 0).then_some(()));
        daemon.start_again();
        check(&daemon);
        daemon.hoist(["system", "check"]).ok();

        daemon.hoist(["rmi", &reference]).ok();
        daemon.hoist(["system", "prune", "-f"]).ok();
        assert_eq!(mounted(&daemon), Vec::<String>::new());
        // The kernel releases loop devices a moment after the unmount.
        eventually("the devices are given back", || (loop_devices(&daemon) == 0).then_some(()));
        assert_eq!(count(&daemon, "data.tar"), 0);
    }
}

/// How many loop devices use files of the daemon.
fn loop_devices(daemon: &Daemon) -> usize {
    let devices = fs::read_dir("/sys/block").expect("sysfs is mounted");
    let shown =
        devices.filter_map(|device| fs::read_to_string(device.ok()?.path().join("loop/backing_file")).ok());
    shown.filter(|file| Path::new(file.trim_end()).starts_with(daemon.root())).count()
}

/// As on a kernel that cannot mount EROFS from files: a pull, a container, a reboot, and the release of the last
/// device.
#[test]
fn layers_are_shown_by_loop_devices_where_that_is_wanted() {
    let registry = Registry::start();
    let both = push(&registry, &[shell_layer(), upper_layer()], "by-loop");
    let mut daemon = Daemon::start_with(&[], &format!("{ARCHIVES}loop_devices = true\n"));
    daemon.hoist(["pull", &both]).ok();
    assert_eq!((count(&daemon, "data.tar"), unpacked(&daemon)), (2, 0));
    let look = ["run", "--rm", &both, "sh", "-c", "cat /etc/base /etc/upper; ls /etc/gone; touch /own"];
    let check = |daemon: &Daemon| {
        let found = daemon.hoist(look).ok();
        assert_eq!(found.stdout, "baseupper");
        assert!(found.stderr.contains("/etc/gone"), "{found}");
        assert_eq!((mounted(daemon).len(), loop_devices(daemon)), (1, 3), "an image and two archives");
    };
    check(&daemon);
    daemon.kill();
    daemon.start_again();
    check(&daemon);
    reboot(&mut daemon);
    eventually("a reboot leaves no device", || (loop_devices(&daemon) == 0).then_some(()));
    daemon.start_again();
    check(&daemon);
    daemon.hoist(["rmi", &both]).ok();
    daemon.hoist(["system", "prune", "--force"]).ok();
    eventually("the devices are given back", || (loop_devices(&daemon) == 0).then_some(()));
    assert_eq!(mounted(&daemon), Vec::<String>::new());
}

/// The same layer twice, an empty blob, and an archive of nothing but its end.
#[test]
fn layers_that_say_nothing_and_one_that_comes_twice_are_used_like_others() {
    let registry = Registry::start();
    let shell = shell_layer();
    let reference = push(&registry, &[shell.clone(), Vec::new(), shell, vec![0; 1024]], "odd-layers");
    let directories = "[snapshots]\nlayers = \"directories\"\n".to_owned();
    let by_loop = format!("{ARCHIVES}loop_devices = true\n");
    for (config, archives) in [(ARCHIVES.to_owned(), 4), (by_loop, 4), (directories, 0)] {
        let mut daemon = Daemon::start_with(&[], &config);
        daemon.hoist(["pull", &reference]).ok();
        assert_eq!(count(&daemon, "data.tar"), archives, "{config}");
        let look = ["run", "--rm", "--network", "none", &reference, "sh", "-c", "cat /etc/base; touch /own"];
        assert_eq!(daemon.hoist(look).ok().stdout, "base", "{config}");
        daemon.hoist(["image", "verify", &reference]).ok();
        reboot(&mut daemon);
        daemon.start_again();
        assert_eq!(daemon.hoist(look).ok().stdout, "base", "{config}");
        daemon.hoist(["rmi", &reference]).ok();
        daemon.hoist(["system", "prune", "--force"]).ok();
        assert_eq!((mounted(&daemon), count(&daemon, "data.tar")), (Vec::new(), 0), "{config}");
        eventually("no device shows a file", || (loop_devices(&daemon) == 0).then_some(()));
    }
}

/// A client's `Prepare`, `Apply` and `Commit` make the same files as a pull by the daemon, with either snapshotter's
/// name.
#[test]
fn layers_that_a_client_has_unpacked_are_kept_as_they_came() {
    let registry = Registry::start();
    let base = shell_layer();
    let lower = push(&registry, std::slice::from_ref(&base), "lower");
    let both = push(&registry, &[base, upper_layer()], "both");
    let mut daemon = Daemon::start();
    daemon.hoist(["pull", &lower]).ok();
    daemon.ctr(["images", "pull", "--plain-http", "--snapshotter", "erofs", &both]).ok();
    assert_eq!((count(&daemon, "data.tar"), unpacked(&daemon)), (2, 0));
    assert_eq!(count(&daemon, "layer.spans"), 2, "of a pull, and of a client's layer");
    // By either name of the snapshotter.
    let named =
        push(&registry, &[layer(|root| fs::write(root.join("named"), "overlayfs").unwrap())], "named");
    daemon.ctr(["images", "pull", "--plain-http", "--snapshotter", "overlayfs", &named]).ok();
    assert_eq!((count(&daemon, "data.tar"), unpacked(&daemon)), (3, 0));
    assert_eq!(count(&daemon, "layer.spans"), 3);
    let ls = daemon.ctr(["run", "--rm", "--runtime", "io.containerd.hoist.v2", &both, "looks", "ls", "/etc"]);
    for name in ["base", "upper"] {
        assert!(ls.stdout.contains(name), "{ls}");
    }
    assert!(!ls.stdout.contains("gone"), "{ls}");
    assert_eq!(
        daemon.hoist(["run", "--rm", &both, "cat", "/etc/base", "/etc/upper"]).ok().stdout,
        "baseupper"
    );

    reboot(&mut daemon);
    daemon.start_again();
    daemon.hoist(["system", "prune", "--force"]).ok();
    // Both names list the same snapshots, and references by either name keep them.
    for snapshotter in ["overlayfs", "erofs"] {
        let words = ["run", "--rm", "--snapshotter", snapshotter, "--runtime", "io.containerd.hoist.v2"];
        let shown = daemon.ctr(words.iter().copied().chain([&*both, "shown", "cat", "/etc/upper"])).ok();
        assert_eq!(shown.stdout, "upper");
        let listed = daemon.ctr(["snapshots", "--snapshotter", snapshotter, "ls"]).ok();
        assert_eq!(listed.stdout.lines().count(), 4, "{listed}");
    }
    let plugins = daemon.ctr(["plugins", "ls", "type==io.containerd.snapshotter.v1"]).ok();
    for name in ["overlayfs", "erofs", "native"] {
        assert!(plugins.stdout.lines().any(|line| line.split_whitespace().nth(1) == Some(name)), "{plugins}");
    }
    // Mounted by the client itself.
    let by_client = TempDir::new().unwrap();
    let target = by_client.path().to_str().expect("a plain path");
    daemon.ctr(["images", "mount", "--snapshotter", "erofs", &both, target]).ok();
    assert_eq!(fs::read_to_string(by_client.path().join("etc/upper")).unwrap(), "upper");
    assert!(!by_client.path().join("etc/gone").exists());
    daemon.ctr(["images", "unmount", "--rm", "--snapshotter", "erofs", target]).ok();
}

#[test]
fn layers_that_were_unpacked_stay_and_carry_archives() {
    let registry = Registry::start();
    let base = shell_layer();
    let lower = push(&registry, std::slice::from_ref(&base), "lower");
    let both = push(&registry, &[base, upper_layer()], "both");
    let mut daemon = Daemon::start_with(&[], "[snapshots]\nlayers = \"directories\"\n");
    daemon.hoist(["pull", &lower]).ok();
    assert_eq!((count(&daemon, "data.tar"), unpacked(&daemon)), (0, 1));
    assert_eq!(count(&daemon, "layer.spans"), 0, "only archives have records");
    daemon.terminate();
    let file = daemon.dir().join("config.toml");
    let text = fs::read_to_string(&file).expect("the config is there");
    fs::write(&file, text.replace("directories", "archives")).expect("a writable directory");
    daemon.start_again();
    daemon.hoist(["pull", &both]).ok();
    assert_eq!((count(&daemon, "data.tar"), unpacked(&daemon)), (1, 1));
    assert_eq!(count(&daemon, "layer.spans"), 1);
    let look = ["run", "--rm", &both, "sh", "-c", "cat /etc/base /etc/upper; ls /etc/gone"];
    let found = daemon.hoist(look);
    assert_eq!((found.code, found.stdout.as_str()), (1, "baseupper"), "{found}");
}

#[test]
fn spans_are_recorded_unless_the_configuration_says_no() {
    let registry = Registry::start();
    let reference = push(&registry, &[shell_layer()], "unrecorded");
    let daemon = Daemon::start_with(&[], &format!("{ARCHIVES}spans = false\n"));
    daemon.hoist(["pull", &reference]).ok();
    assert_eq!((count(&daemon, "data.tar"), count(&daemon, "layer.spans")), (1, 0));
    assert_eq!(daemon.hoist(["run", "--rm", &reference, "cat", "/etc/base"]).ok().stdout, "base");
    daemon.hoist(["system", "check"]).ok();
}

/// The registry sends other bytes than the diff ID says: in neither form does any file of them become visible, not even
/// before clean-up.
#[test]
fn a_layer_that_unpacks_to_other_bytes_is_not_mounted() {
    let registry = Registry::start();
    let layout = Layout::new();
    let config = json!({"rootfs": {"type": "layers", "diff_ids": [format!("sha256:{}", "0".repeat(64))]}});
    let image = layout.image_of("amd64", &[shell_layer()], &config);
    layout.tag(&image, images::TAG);
    let reference = registry.push(layout.path(), images::TAG, "wrong");
    for form in ["archives", "directories"] {
        let daemon = Daemon::start_with(&[], &format!("[snapshots]\nlayers = \"{form}\"\n"));
        daemon
            .hoist(["pull", "--platform", "linux/amd64", &reference])
            .expect_code(1)
            .expect_stderr("unpacks to");
        let listed = daemon.ctr(["snapshots", "ls"]).ok();
        assert!(!listed.stdout.contains("Committed"), "{form}: {listed}");
        assert_eq!(mounted(&daemon).len(), 0, "{form}");
        daemon.hoist(["system", "prune", "-f"]).ok();
        assert_eq!((mounted(&daemon).len(), count(&daemon, "layer.erofs"), unpacked(&daemon)), (0, 0, 0));
    }
}

/// A hundred layers with a hundred thousand files: removing them is as quick as removing one layer, in either form, and
/// the disk is free a little later.
#[test]
fn removal_leaves_nothing_however_many_files_there_were() {
    let registry = Registry::start();
    let many = (1..100).map(|layer| {
        let file = |file| tar_entry(&format!("tree/{layer}/{file}"), b'0', "", b"");
        archive_of(&(0..1000).map(file).collect::<Vec<_>>())
    });
    let layers: Vec<Vec<u8>> = std::iter::once(shell_layer()).chain(many).collect();
    let large = push(&registry, &layers, "large");
    let small = push(&registry, &layers[..11], "small");
    for (form, reference, directories) in [("archives", &large, 99), ("directories", &small, 10)] {
        let daemon = Daemon::start_with(&[], &format!("[snapshots]\nlayers = \"{form}\"\n"));
        daemon.hoist(["pull", reference]).ok();
        let look = ["run", "--rm", reference, "sh", "-c", "ls /tree | wc -l; ls /tree/7 | wc -l"];
        let found = daemon.hoist(look).ok();
        assert_eq!(found.stdout.split_whitespace().collect::<Vec<_>>(), [&*directories.to_string(), "1000"]);
        daemon.hoist(["rmi", reference]).ok();
        daemon.hoist(["system", "prune", "--force"]).ok();
        let trees = daemon.root().join("snapshots/overlayfs");
        let left =
            fs::read_dir(&trees).expect("a directory of trees").map(|entry| entry.unwrap().file_name());
        assert_eq!(left.collect::<Vec<_>>(), ["removed"], "out of the way at once");
        eventually("the files are deleted", || {
            fs::read_dir(trees.join("removed")).expect("a directory").next().is_none().then_some(())
        });
        assert_eq!(mounted(&daemon), Vec::<String>::new());
    }
}

/// A container with its own user namespace, by the snapshot labels that containerd 2 sets. It sees the owners of the
/// image; files that it writes belong to host ids that nobody else has; a layer made from its changes has the owners of
/// the image again. In either form of layers.
#[test]
fn owners_are_mapped_for_a_container_with_its_own_user_namespace() {
    let registry = Registry::start();
    let users = layer(|root| {
        fs::create_dir(root.join("home")).unwrap();
        fs::write(root.join("home/file"), "").unwrap();
        chown(root.join("home/file"), Some(1000), Some(1001)).unwrap();
        // Writable for all, since the container has no capabilities.
        fs::set_permissions(root.join("home/file"), fs::Permissions::from_mode(0o666)).unwrap();
    });
    let reference = push(&registry, &[shell_layer(), upper_layer(), users], "owners");
    let mut labels = BTreeMap::from(
        [("uidmapping", 100_000), ("gidmapping", 200_000)]
            .map(|(label, first)| (format!("containerd.io/snapshot/{label}"), format!("0:{first}:65536"))),
    );
    // No container of the daemon refers to the snapshot, so a collection would remove it.
    labels.insert("containerd.io/gc.root".to_owned(), String::from("now"));
    for form in ["archives", "directories"] {
        let daemon = Daemon::start_with(&[], &format!("[snapshots]\nlayers = \"{form}\"\n"));
        daemon.hoist(["pull", &reference]).ok();
        let prepare = PrepareSnapshotRequest {
            snapshotter: "overlayfs".into(),
            key: "mapped".into(),
            parent: topmost(&daemon),
            labels: labels.clone().into_iter().collect(),
        };
        let rootfs = on(&daemon, async |channel| {
            let made = SnapshotsClient::new(channel).prepare(ask(prepare)).await.expect("a new key");
            made.into_inner().mounts
        });
        let host = ShimHost::new();
        fs::set_permissions(host.dir(), fs::Permissions::from_mode(0o755)).unwrap();
        let script = "stat -c %u:%g / /etc/base /etc/upper /home/file; \
                      echo more >> /home/file; touch /own; stat -c %u:%g /home/file /own";
        let seen = host.dir().join("seen");
        fs::write(&seen, "").unwrap();
        let task = host
            .container("mapped", script)
            .stdout(&seen)
            .with(|container| {
                container.request.rootfs = rootfs
                    .iter()
                    .map(|mount| Mount {
                        r#type: mount.r#type.clone(),
                        source: mount.source.clone(),
                        target: mount.target.clone(),
                        options: mount.options.clone(),
                    })
                    .collect();
                container.spec["root"] = json!({"path": "rootfs", "readonly": false});
                let map = |first: u32| json!([{"containerID": 0, "hostID": first, "size": 65536}]);
                let linux = &mut container.spec["linux"];
                (linux["uidMappings"], linux["gidMappings"]) = (map(100_000), map(200_000));
                linux["namespaces"].as_array_mut().expect("a list").push(json!({"type": "user"}));
            })
            .run();
        assert_eq!(task.wait(""), 0, "{}", fs::read_to_string(&seen).unwrap_or_default());
        let seen = fs::read_to_string(&seen).unwrap();
        let expected = ["0:0", "0:0", "0:0", "1000:1001", "1000:1001", "0:0"];
        assert_eq!(seen.lines().collect::<Vec<_>>(), expected, "{form}");
        task.end();

        let owner = |path: &str| {
            let mut found = fs::read_dir(daemon.root().join("snapshots/overlayfs"))
                .expect("a directory of trees")
                .filter_map(|tree| fs::metadata(tree.ok()?.path().join("fs").join(path)).ok());
            // In the directories form the image's own file has the name too.
            let written = found.find(|file| file.uid() >= 100_000).map(|file| (file.uid(), file.gid()));
            written.unwrap_or_else(|| panic!("{form}: {path} is not there, or not of a mapped owner"))
        };
        assert_eq!(owner("own"), (100_000, 200_000));
        assert_eq!(owner("home/file"), (101_000, 201_001));

        let changed = daemon.ctr_command(["snapshots", "diff", "mapped"]).output().expect("ctr runs");
        assert!(changed.status.success(), "{}", String::from_utf8_lossy(&changed.stderr));
        let archive = daemon.dir().join("changed.tar.gz");
        fs::write(&archive, &changed.stdout).unwrap();
        let mut list = Command::new("tar");
        list.args(["--numeric-owner", "-tvzf"]).arg(&archive);
        let listed = run(&mut list).ok().stdout;
        let owner = |name: &str| {
            let line = listed.lines().find(|line| line.ends_with(name)).expect("it changed");
            line.split_whitespace().nth(1).expect("tar's format").to_owned()
        };
        assert_eq!(
            (owner(" own"), owner(" home/file")),
            ("0/0".to_owned(), "1000/1001".to_owned()),
            "{listed}"
        );
    }
}

/// The key of the snapshot of the image's last layer. There must be no other image.
fn topmost(daemon: &Daemon) -> String {
    let listed = daemon.ctr(["snapshots", "ls"]).ok().stdout;
    let rows: Vec<Vec<&str>> = listed.lines().skip(1).map(|line| line.split_whitespace().collect()).collect();
    let is_parent = |key: &str| rows.iter().any(|row| row[1] == key);
    rows.iter().map(|row| row[0]).find(|key| !is_parent(key)).expect("a chain").to_owned()
}

fn unmount(daemon: &Daemon) -> testkit::Finished {
    let mut command = daemon.command(["system", "unmount"]);
    command.args(["--root".as_ref(), daemon.root().as_os_str()]);
    command.args(["--state".as_ref(), daemon.state().as_os_str()]);
    command.args(["--address".as_ref(), daemon.socket().as_os_str()]);
    run(command.args(["--config".as_ref(), daemon.dir().join("config.toml").as_os_str()]))
}

#[test]
fn a_root_can_be_deleted_once_its_daemon_and_containers_are_gone() {
    for (more, devices) in [("", 0), ("loop_devices = true\n", 2)] {
        let mut daemon = Daemon::start_with(&[], &format!("{ARCHIVES}{more}"));
        daemon.load(&images::busybox_archive());
        let id = daemon.hoist(["run", "-d", "--network", "none", "busybox", "sleep", "1000"]).ok();
        unmount(&daemon).expect_code(1).expect_stderr("in use by a running daemon");
        daemon.terminate();
        unmount(&daemon).expect_code(1).expect_stderr(id.text());
        daemon.start_again();
        daemon.hoist(["rm", "-f", id.text()]).ok();
        let elsewhere = daemon.dir().join("elsewhere");
        fs::create_dir(&elsewhere).expect("a writable directory");
        let at = elsewhere.display().to_string();
        daemon.hoist(["image", "mount", "busybox", &at]).ok();
        daemon.terminate();
        unmount(&daemon).expect_code(1).expect_stderr(&at);
        run(Command::new("umount").arg(&elsewhere)).ok();
        assert!(!mounted(&daemon).is_empty() && loop_devices(&daemon) >= devices, "{more}");
        let held =
            fs::File::open(Path::new(&mounted(&daemon)[0]).join("bin/busybox")).expect("a file of a layer");
        unmount(&daemon).expect_code(1).expect_stderr("in use");
        drop(held);
        unmount(&daemon).ok();
        assert_eq!(mounted(&daemon).len(), 0, "{more}");
        // The kernel lets go of them a moment after it has unmounted what they show.
        eventually("no device shows a file", || (loop_devices(&daemon) == 0).then_some(()));
        assert_eq!(unmount(&daemon).ok().text(), "nothing was mounted");
        // The daemon can be started again on the same root.
        daemon.start_again();
        let said = daemon.hoist(["run", "--rm", "--network", "none", "busybox", "echo", "again"]).ok();
        assert_eq!(said.text(), "again");
        daemon.terminate();
        fs::remove_dir_all(daemon.root()).expect("nothing is mounted in it");
    }
}

#[test]
fn a_daemon_that_ends_takes_down_layers_that_nobody_may_use() {
    let mut daemon = Daemon::start_with(&[], ARCHIVES);
    daemon.load(&images::busybox_archive());
    let run_once = ["run", "--rm", "--network", "none", "busybox", "true"];
    daemon.hoist(run_once).ok();
    assert!(!mounted(&daemon).is_empty(), "what the container was made of");
    daemon.terminate();
    assert_eq!(mounted(&daemon), [] as [String; 0]);

    // A container has a snapshot whether it runs or not, and so has a client that was given mounts.
    daemon.start_again();
    daemon.hoist(["create", "--name", "kept", "--network", "none", "busybox", "true"]).ok();
    daemon.terminate();
    assert!(!mounted(&daemon).is_empty());
    daemon.start_again();
    daemon.hoist(["start", "kept"]).ok();
    daemon.hoist(["rm", "-f", "kept"]).ok();
    let topmost = topmost(&daemon);
    daemon.ctr(["snapshots", "prepare", "seen", &topmost]).ok();
    daemon.terminate();
    assert!(!mounted(&daemon).is_empty());
    daemon.start_again();
    daemon.ctr(["snapshots", "rm", "seen"]).ok();
    daemon.hoist(run_once).ok();

    // A killed daemon could not unmount them.
    daemon.kill();
    daemon.start_again();
    daemon.terminate();
    assert_eq!(mounted(&daemon), [] as [String; 0], "what the one before had mounted");
}
