//! Devices of the Container Device Interface, for `run` and for `ctr`.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use testkit::{Daemon, Registry, images};

/// A CDI file of the machine, removed when dropped.
struct Described(PathBuf);

impl Described {
    /// Writes a CDI document. Its one device is requested as `KIND=NAME`.
    fn write(folder: &str, form: &str, kind: &str, document: &str) -> Described {
        fs::create_dir_all(folder).unwrap();
        let name = kind.replace(['/', '.'], "-");
        let path = Path::new(folder).join(format!("{name}.{form}"));
        fs::write(&path, document).unwrap();
        Described(path)
    }
}

impl Drop for Described {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// A kind of this test alone: tests run side by side on one machine.
fn kind(of: &str) -> String {
    format!("hoist-{}.test/{of}", std::process::id())
}

#[test]
fn a_container_gets_what_a_device_needs() {
    let daemon = Daemon::with_busybox();
    let (kind, hook, mark) = (kind("run"), daemon.dir().join("hook"), daemon.dir().join("mark"));
    testkit::executable(&hook, &format!("#!/bin/sh\necho $MARK > {}\n", mark.display()));
    fs::write(daemon.dir().join("library"), "of the driver").unwrap();
    let document = |path: &str| {
        json!({
            "cdiVersion": "0.8.0", "kind": kind, "containerEdits": {"env": ["KIND=one"]},
            "devices": [{"name": "all", "containerEdits": {
                "env": ["WHICH=all"], "additionalGids": [77],
                "deviceNodes": [{"path": "/dev/given", "hostPath": path, "permissions": "r"}],
                "mounts": [{"hostPath": daemon.dir().join("library"), "containerPath": "/lib/driver", "options": ["ro", "rbind"]}],
                "hooks": [{"hookName": "createRuntime", "path": hook, "args": ["hook"], "env": ["MARK=hooked"]}],
            }}],
        })
        .to_string()
    };
    let file = Described::write("/var/run/cdi", "json", &kind, &document("/dev/loop-control"));
    let name = format!("{kind}=all");
    let run = |flags: &[&str], script: &str| {
        let rest = ["--network", "none", "busybox", "sh", "-c", script];
        daemon.hoist([&["run", "--rm", "--device", name.as_str()], flags, &rest].concat())
    };
    // The device is none of those that every container has.
    let script = "echo $KIND $WHICH; cat /lib/driver; echo; grep Groups: /proc/self/status | cut -f2; id -u
        true < /dev/given && echo read; true > /dev/given || echo refused; stat -c %u /dev/given";
    let said = run(&["-u", "7:8"], script).ok().text().to_owned();
    assert_eq!(said, "one all\nof the driver\n8 77 \n7\nread\nrefused\n7");
    assert_eq!(fs::read_to_string(&mark).unwrap(), "hooked\n");

    // Device numbers change with a reboot: the CDI file at the time of the start counts.
    let create =
        ["create", "--name", "box", "--device", &name, "--network", "none", "busybox", "sleep", "1000"];
    daemon.hoist(create).ok();
    let shown: Value = serde_json::from_str(&daemon.hoist(["inspect", "box"]).ok().stdout).expect("JSON");
    assert_eq!(shown[0]["HostConfig"]["DeviceRequests"][0]["DeviceIDs"], json!([name]));
    fs::write(&file.0, document("/dev/zero")).unwrap();
    daemon.hoist(["start", "box"]).ok();
    let exec = |script: &str| daemon.hoist(["exec", "box", "sh", "-c", script]).ok().text().to_owned();
    assert_eq!(exec("stat -c %t:%T /dev/given; echo $WHICH"), "1:5\nall");
    assert_eq!(exec("grep Groups: /proc/self/status | cut -f2").trim(), "0 77");
    let other = daemon
        .hoist([
            "exec",
            "-u",
            "5:6",
            "box",
            "sh",
            "-c",
            "grep Groups: /proc/self/status | cut -f2; echo $WHICH",
        ])
        .ok();
    assert_eq!(other.text().lines().map(str::trim).collect::<Vec<_>>(), ["6 77", "all"], "whoever it is");
    daemon.hoist(["rm", "-f", "box"]).ok();

    fs::write(&file.0, document("/dev/nosuch")).unwrap();
    run(&[], "true").expect_code(125).expect_stderr("/dev/nosuch");
    fs::write(&file.0, document("/dev/zero").replace("createRuntime", "odd")).unwrap();
    run(&[], "true").expect_code(125).expect_stderr("odd").expect_stderr(&file.0.display().to_string());
    drop(file);
    run(&[], "true").expect_code(125).expect_stderr(&name).expect_stderr("/etc/cdi, /var/run/cdi");
    let gpus = daemon.hoist(["run", "--rm", "--gpus", "device=nosuch", "busybox", "true"]);
    gpus.expect_code(125).expect_stderr("nvidia.com/gpu=nosuch");
    assert_eq!(daemon.hoist(["ps", "-aq"]).ok().stdout, "", "nothing is left");
}

#[test]
fn ctr_gives_devices_as_containerds_does() {
    let (daemon, registry) = (Daemon::start(), Registry::start());
    let image = registry.push(&images::busybox(), images::TAG, "busybox:1");
    daemon.own_ctr(["images", "pull", "--plain-http", &image]).ok();
    let kind = kind("ctr");
    let document = format!(
        "cdiVersion: 0.6.0\nkind: {kind}\ndevices:\n- name: 0\n  containerEdits:\n    env: [WHICH=zero]\n    deviceNodes:\n    \
         - {{path: /dev/given, hostPath: /dev/loop-control, fileMode: 0640}}\n"
    );
    let _file = Described::write("/etc/cdi", "yaml", &kind, &document);
    let name = format!("{kind}=0");
    let script =
        "echo $WHICH; stat -c %a /dev/given; true < /dev/given && echo read; test -c /dev/fuse && echo plain";
    let run = |flags: &[&str]| {
        let rest = [image.as_str(), "cdi", "sh", "-c", script];
        daemon.own_ctr([&["run", "--rm"], flags, &rest].concat())
    };
    let said = run(&["--device", &name, "--device", "/dev/fuse"]).ok().text().to_owned();
    assert_eq!(said, "zero\n640\nread\nplain");
    let missing = run(&["--gpus", "7"]);
    assert!(missing.code != 0 && missing.stderr.contains("nvidia.com/gpu=7"), "{missing}");
    let odd = run(&["--gpus", "x"]);
    assert!(odd.code != 0 && odd.stderr.contains("--gpus x"), "{odd}");
}

/// Debian's `ctr` on the same daemon.
#[test]
fn a_default_profile_of_apparmor_needs_apparmor() {
    if Path::new("/sys/kernel/security/apparmor/profiles").exists() {
        eprintln!("skipped: this kernel has AppArmor");
        return;
    }
    let (daemon, registry) = (Daemon::start(), Registry::start());
    let image = registry.push(&images::busybox(), images::TAG, "busybox:1");
    daemon.own_ctr(["images", "pull", "--plain-http", &image]).ok();
    let words = ["run", "--rm", "--apparmor-default-profile", "hoist-test", &image, "box", "true"];
    for refused in [daemon.own_ctr(words), daemon.ctr(words)] {
        assert_ne!(refused.code, 0);
        refused.expect_stderr("/sys/kernel/security/apparmor/profiles");
    }
    let both = ["run", "--apparmor-profile", "a", "--apparmor-default-profile", "b", &image, "box", "true"];
    let refused = daemon.own_ctr(both);
    assert!(refused.code != 0 && refused.stderr.contains("one profile"), "{refused}");
    assert_eq!(daemon.own_ctr(["containers", "ls", "-q"]).ok().stdout, "");
}
