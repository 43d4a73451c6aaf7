//! A machine whose kernel cannot mount overlayfs here: containers get copies of their images.

use std::fs;
use std::process::Command;

use testkit::{Daemon, images, is_root, run};

/// Overlayfs refuses an upper layer on another overlay, as in a container that runs containers.
#[test]
fn where_no_overlays_can_be_made_containers_have_copies_of_their_images() {
    if !is_root("mounts") {
        return;
    }
    let start = |more: &str| {
        Daemon::start_as("hoistd", |places| {
            let beside = places.root.with_file_name("beside");
            for dir in [&places.root, &beside.join("lower"), &beside.join("upper"), &beside.join("work")] {
                fs::create_dir_all(dir).expect("a writable directory");
            }
            let layer = |name: &str| beside.join(name).display().to_string();
            let layers =
                format!("lowerdir={},upperdir={},workdir={}", layer("lower"), layer("upper"), layer("work"));
            run(Command::new("mount").args(["-t", "overlay", "overlay", "-o", &layers]).arg(&places.root))
                .ok();
            let (root, state, socket) = (&places.root, &places.state, &places.socket);
            format!("{more}\nroot = {root:?}\nstate = {state:?}\n[grpc]\naddress = {socket:?}\n")
        })
    };
    let daemon = start("");
    assert!(daemon.log().contains("each container gets a full copy of its image"), "{}", daemon.log());
    assert_eq!(daemon.hoist(["info", "--format", "{{.Driver}}"]).ok().text(), "native");
    daemon.load(&images::busybox_archive());
    for name in ["one", "two"] {
        let script = format!("test ! -e /mark && echo {name} > /mark && cat /mark");
        let run = ["run", "--name", name, "--network", "none", "busybox", "sh", "-c", &script];
        assert_eq!(daemon.hoist(run).ok().text(), name);
    }
    let listed = daemon.ctr(["snapshots", "--snapshotter", "native", "ls"]).ok();
    assert!(listed.stdout.lines().filter(|line| line.contains("Active")).count() == 2, "{listed}");
    daemon.hoist(["rm", "one", "two"]).ok();
    daemon.hoist(["system", "check"]).ok();
    drop(daemon);

    // With `snapshotter = "overlayfs"` there is no fallback: the daemon reports the error.
    let daemon = start("snapshotter = \"overlayfs\"");
    assert_eq!(daemon.hoist(["info", "--format", "{{.Driver}}"]).ok().text(), "overlayfs");
    daemon.load(&images::busybox_archive());
    let refused = daemon.hoist(["run", "--rm", "--network", "none", "busybox", "true"]);
    assert!(refused.code == 125 && refused.stderr.contains("overlay"), "{refused}");
}
