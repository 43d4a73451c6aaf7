//! Flags of `run` about images: the platform, and exposed ports.

use std::io::Read as _;
use std::net::TcpStream;

use serde_json::{Value, json};
use testkit::layout::tar_of;
use testkit::{Daemon, Layout, Registry, eventually};

use crate::archives::shell_layer;

/// For two platforms. Both hold programs of this machine, and a file that says which it is.
fn two() -> Layout {
    let layout = Layout::new();
    let images = ["amd64", "arm64"].map(|architecture| {
        layout.image_of(architecture, &[shell_layer(), tar_of(&[("which", architecture)])], &json!({}))
    });
    layout.tag(&layout.index(&images), "two:1");
    layout
}

#[test]
#[cfg_attr(not(target_arch = "x86_64"), ignore = "its images are for x86")]
fn the_platform_that_is_asked_for_is_fetched_and_run() {
    let (layout, registry, daemon) = (two(), Registry::start(), Daemon::start());
    let reference = registry.push(layout.path(), "two:1", "two:1");
    let run = |flags: &[&str]| {
        let rest = ["--rm", "--network", "none", &reference, "cat", "/which"];
        daemon.hoist([&["run"], flags, &rest].concat())
    };
    run(&["--platform", "linux"]).expect_code(125).expect_stderr("/ARCHITECTURE[/VARIANT]");
    assert_eq!(run(&["--platform", "linux/arm64"]).ok().text(), "arm64");
    // It is here now, but not for this machine.
    run(&["--pull", "never"]).expect_code(125).expect_stderr("there is linux/arm64");
    assert_eq!(run(&[]).ok().text(), "amd64");
    for (flags, expected) in [("linux/arm64/v8", "arm64"), ("linux/amd64", "amd64")] {
        assert_eq!(run(&["--pull", "never", "--platform", flags]).ok().text(), expected);
    }
    let none = run(&["--platform", "linux/s390x"]).expect_code(125);
    none.expect_stderr("linux/s390x").expect_stderr("linux/amd64, linux/arm64");
    run(&["--platform", "linux/s390x", "--pull", "never"]).expect_code(125).expect_stderr("for linux/s390x");
    daemon.hoist(["create", "--name", "other", "--platform", "linux/arm64", &reference]).ok();
    assert_eq!(
        daemon.hoist(["ps", "-a", "--format", "{{.Names}} {{.Platform}}"]).ok().text(),
        "other linux/arm64"
    );
    // What is made of it is for its platform.
    let id = daemon.hoist(["commit", "other", "made:1"]).ok().text().to_owned();
    assert_eq!(daemon.hoist(["image", "inspect", "-f", "{{.Architecture}}", &id]).ok().text(), "arm64");
}

#[test]
#[cfg_attr(not(target_arch = "x86_64"), ignore = "its image is for x86")]
fn what_an_image_exposes_is_published() {
    let (layout, daemon) = (Layout::new(), Daemon::start());
    let ports = json!({"80/tcp": {}, "53/udp": {}, "8000-8001": {}});
    let config = json!({"config": {"Cmd": ["sh"], "ExposedPorts": ports}});
    layout.tag(&layout.image_of("amd64", &[shell_layer()], &config), "ports:1");
    let archive = daemon.dir().join("ports.tar");
    layout.archive(&archive);
    daemon.load(&archive);
    let run = ["run", "-d", "--name", "box", "-P", "-p", "127.0.0.1::8000", "ports:1"];
    daemon
        .hoist([&run[..], &["busybox", "nc", "-ll", "-p", "80", "-e", "busybox", "echo", "served"]].concat())
        .ok();
    let of = |port: &str| daemon.hoist(["port", "box", port]).ok().text().to_owned();
    let number = |outside: &str| outside.rsplit_once(':').expect("address:port").1.parse::<u16>().unwrap();
    for port in ["80", "53/udp", "8001"] {
        let outside = of(port);
        assert!(outside.starts_with("0.0.0.0:") && number(&outside) > 1023, "{port}: {outside}");
        let row = daemon.hoist(["ps", "--format", "{{.Ports}}"]).ok().text().to_owned();
        let protocol = if port.contains('/') { port.to_owned() } else { format!("{port}/tcp") };
        assert!(row.contains(&format!("{outside}->{protocol}")), "{row}");
    }
    assert!(of("8000").starts_with("127.0.0.1:"), "what -p says of a port counts");
    assert_eq!(of("8000").lines().count(), 1);
    let shown: Value = serde_json::from_str(&daemon.hoist(["inspect", "box"]).ok().stdout).expect("JSON");
    assert_eq!(shown[0]["HostConfig"]["PublishAllPorts"], true);
    assert_eq!(shown[0]["Config"]["ExposedPorts"]["53/udp"], json!({}));
    assert_eq!(shown[0]["NetworkSettings"]["Ports"].as_object().map(serde_json::Map::len), Some(4));
    let address = ("127.0.0.1", number(&of("80")));
    eventually("it is served", || {
        let mut said = String::new();
        TcpStream::connect(address).ok()?.read_to_string(&mut said).ok()?;
        (said == "served\n").then_some(())
    });
    daemon.hoist(["rm", "-f", "box"]).ok();
}
