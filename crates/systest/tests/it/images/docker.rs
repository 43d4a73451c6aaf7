//! Images exchanged between Hoist and dockerd, in both directions, as the same image.

use std::fs::File;
use std::path::PathBuf;

use serde_json::json;
use testkit::layout::tar_of;
use testkit::{Daemon, Docker, Layout, images, run};

/// Docker's id of an image is the digest of its config.
fn id_of(daemon: &Daemon, image: &str) -> String {
    daemon.hoist(["image", "inspect", "--format", "{{.Id}}", image]).ok().text().to_owned()
}

fn docker_id_of(docker: &Docker, image: &str) -> String {
    docker.docker(["image", "inspect", "--format", "{{.Id}}", image]).ok().text().to_owned()
}

/// A daemon with two images that have compressed layers, some of them in common.
fn two_images(daemon: &Daemon) -> [&'static str; 2] {
    let archive = daemon.dir().join("busybox.tar");
    images::archive(&images::busybox(), "oci-archive", "one:1", &archive);
    daemon.load(&archive);
    let layout = Layout::new();
    let layers = [
        tar_of(&[("dir/lower", "lower"), ("gone", "gone")]),
        tar_of(&[("dir/upper", "upper"), (".wh.gone", "")]),
    ];
    let config = json!({"config": {"Cmd": ["x"], "Labels": {"kind": "by hand"}}});
    layout.tag(&layout.image_of("amd64", &layers, &config), "two:2");
    daemon.load(layout.path());
    daemon.hoist(["image", "convert", "--compression", "gzip", "two:2", "two:2"]).ok();
    ["one:1", "two:2"]
}

#[test]
fn docker_loads_what_we_save_and_saves_what_we_load() {
    let Some(docker) = Docker::start() else { return };
    let daemon = Daemon::start();
    let names = two_images(&daemon);
    let saved = daemon.dir().join("out.tar").display().to_string();
    daemon.hoist(["save", "-o", &saved].into_iter().chain(names)).ok();

    docker.docker(["load", "-i", &saved]).ok();
    for name in names {
        assert_eq!(docker_id_of(&docker, name), id_of(&daemon, name), "{name}");
    }
    let labels = docker.docker(["image", "inspect", "--format", "{{json .Config.Labels}}", "two:2"]).ok();
    assert_eq!(labels.text(), r#"{"kind":"by hand"}"#);

    let back = daemon.dir().join("back.tar");
    let back_name = back.display().to_string();
    docker.docker(["save", "-o", &back_name].into_iter().chain(names)).ok();
    let other = Daemon::start();
    other.load(&back);
    for name in names {
        assert_eq!(id_of(&other, name), id_of(&daemon, name), "{name}");
    }
    assert_eq!(
        other.hoist(["run", "--rm", "one:1", "echo", "by way of docker"]).ok().text(),
        "by way of docker"
    );
    let files = |daemon: &Daemon| daemon.hoist(["image", "ls-files", "two:2"]).ok().stdout;
    assert_eq!(files(&other), files(&daemon));
    assert!(files(&other).contains("dir/upper") && !files(&other).contains("gone"), "{}", files(&other));
}

#[test]
fn docker_runs_what_is_piped_to_it() {
    let Some(docker) = Docker::start() else { return };
    let daemon = Daemon::start();
    let [name, _] = two_images(&daemon);
    let saved: PathBuf = daemon.dir().join("piped.tar");
    let mut save = daemon.command(["save", name]);
    run(save.stdout(File::create(&saved).expect("a writable directory"))).ok();
    let mut load = docker.command(["load"]);
    run(load.stdin(File::open(&saved).expect("the archive"))).ok();
    let seen = docker.docker(["run", "--rm", "--network", "none", name, "echo", "from hoist"]).ok();
    assert_eq!(seen.text(), "from hoist");
}
