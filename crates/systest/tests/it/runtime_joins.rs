//! Namespaces and mounts that exist before the container.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};
use testkit::{Bundle, MountsBelow, run};

use crate::escapes::add_capabilities;
use crate::runtime_bundle::{Runtime, add_mount, bundle, give, give_to, same, script};
use crate::runtime_spec::open_dir;

/// A process in new namespaces, which is killed when this is dropped.
pub(crate) struct Apart(Child);

impl Apart {
    pub(crate) fn start(flags: &[&str]) -> Apart {
        let mut unshare = Command::new("unshare");
        unshare.args(flags).args(["sh", "-c", "echo here; exec sleep 1000"]);
        let mut child = unshare.stdout(Stdio::piped()).spawn().expect("unshare is part of Debian");
        let mut said = String::new();
        BufReader::new(child.stdout.take().expect("piped")).read_line(&mut said).expect("text");
        assert_eq!(said, "here\n", "unshare {flags:?}");
        Apart(child)
    }

    /// Gives its user namespace these users of the host, from its root on.
    fn map_users(&self, first: u32, count: u32) {
        for map in ["uid_map", "gid_map"] {
            let path = format!("/proc/{}/{map}", self.0.id());
            fs::write(path, format!("0 {first} {count}")).expect("it has no maps yet");
        }
    }

    /// The namespace of a file in `/proc/PID/ns`, for a spec.
    pub(crate) fn namespace(&self, kind: &str, file: &str) -> Value {
        json!({"type": kind, "path": format!("/proc/{}/ns/{file}", self.0.id())})
    }

    pub(crate) fn link(&self, file: &str) -> String {
        let link = fs::read_link(format!("/proc/{}/ns/{file}", self.0.id())).expect("it lives");
        link.display().to_string()
    }
}

impl Drop for Apart {
    fn drop(&mut self) {
        let _ended = self.0.kill().and_then(|()| self.0.wait());
    }
}

pub(crate) fn join(spec: &mut Value, namespace: Value) {
    let list = spec["linux"]["namespaces"].as_array_mut().expect("namespaces");
    list.retain(|other| other["type"] != namespace["type"]);
    list.push(namespace);
}

/// The container's root becomes the root of the joined mount namespace, and its mounts are not on the host.
#[test]
fn a_mount_namespace_is_joined() {
    for runtime in Runtime::both() {
        let apart = Apart::start(&["--mount"]);
        let bundle = bundle(|spec| {
            script(
                spec,
                "readlink /proc/self/ns/mnt; ls /; cat /mine/file; test -e /etc/passwd || echo alone",
            );
            add_mount(
                spec,
                json!({"destination": "/mine", "type": "tmpfs", "source": "tmpfs", "options": ["mode=755", "tmpcopyup"]}),
            );
            join(spec, apart.namespace("mount", "mnt"));
        });
        fs::create_dir(bundle.path().join("rootfs/mine")).expect("writable");
        fs::write(bundle.path().join("rootfs/mine/file"), "of the image\n").expect("writable");
        let path = bundle.path().display().to_string();
        let id = runtime.id("joins");
        let said = runtime.run(&["run", "--bundle", &path, &id]).ok();
        let expected = format!("{}\nbin\ndev\nmine\nproc\nsys\nof the image\nalone", apart.link("mnt"));
        assert_eq!(said.text(), expected, "{}", runtime.name);
        let mounts = fs::read_to_string("/proc/self/mountinfo").expect("proc is mounted");
        assert!(!mounts.contains(&path), "{}: nothing is mounted on the host", runtime.name);
    }
}

/// There too a program that may mount takes nothing away of what its bind mounts have on the host. They are the host's, and
/// not in a copy that was made for that namespace.
#[test]
fn what_a_source_has_is_locked_in_a_mount_namespace_that_is_joined() {
    const ROOT: u32 = 100_000;
    let host = open_dir();
    let _mounts = MountsBelow(host.path().to_owned());
    let apart = Apart::start(&["--user", "--mount"]);
    apart.map_users(ROOT, 65_536);
    let mount = |words: &[&str]| run(Command::new("mount").args(words).arg(host.path())).ok();
    mount(&["-t", "tmpfs", "-o", "mode=755", "tmpfs"]);
    fs::write(host.path().join("file"), "of the host\n").expect("writable");
    mount(&["-o", "remount,bind,ro"]);
    let bundle = bundle(|spec| {
        join(spec, apart.namespace("user", "user"));
        join(spec, apart.namespace("mount", "mnt"));
        add_capabilities(spec, &["CAP_SYS_ADMIN"]);
        script(
            spec,
            "readlink /proc/self/ns/mnt; cat /m/file; busybox mount -o remount,bind,nosuid /m && \
             ! busybox mount -o remount,bind,rw /m && ! touch /m/new && echo locked",
        );
        add_mount(
            spec,
            json!({"destination": "/m", "type": "bind", "source": host.path(), "options": ["rbind"]}),
        );
    });
    give(&bundle, ROOT);
    let runtime = Runtime::ours();
    let path = bundle.path().display().to_string();
    let done = runtime.run(&["run", "--bundle", &path, &runtime.id("locked")]).ok();
    assert_eq!(done.text(), format!("{}\nof the host\nlocked", apart.link("mnt")), "{done}");
}

/// The first process joins the network namespace while the runtime moves the devices: they arrive there, whichever is
/// first.
#[test]
fn devices_move_into_a_network_that_is_joined() {
    let ip = |words: &[&str]| run(Command::new("ip").args(words));
    for turn in 0..8 {
        let apart = Apart::start(&["--net"]);
        let (device, peer) = (format!("hj{}", std::process::id()), format!("hk{}", std::process::id()));
        ip(&["link", "add", &device, "type", "veth", "peer", "name", &peer]).ok();
        let bundle = bundle(|spec| {
            script(spec, "readlink /proc/self/ns/net; ls /sys/class/net");
            join(spec, apart.namespace("network", "net"));
            spec["linux"]["netDevices"] = json!({device.as_str(): {"name": "eth7"}});
        });
        let runtime = Runtime::ours();
        let path = bundle.path().display().to_string();
        let said = runtime.run(&["run", "--bundle", &path, &runtime.id("moves")]);
        let stays = ip(&["link", "show", &device]).code == 0;
        // If one end of a veth pair is deleted, so is the other.
        ip(&["link", "delete", &peer]).ok();
        assert_eq!(said.ok().text(), format!("{}\neth7\nlo", apart.link("net")), "turn {turn}");
        assert!(!stays, "turn {turn}: it is on the host still");
    }
    // The host's own namespace, by another path.
    let bundle = bundle(|spec| {
        join(spec, json!({"type": "network", "path": format!("/proc/{}/ns/net", std::process::id())}));
        spec["linux"]["netDevices"] = json!({"lo": {"name": "eth7"}});
    });
    let runtime = Runtime::ours();
    let path = bundle.path().display().to_string();
    let refused = runtime.run(&["run", "--bundle", &path, &runtime.id("moves")]);
    refused.expect_code(1).expect_stderr("netDevices needs a network namespace of the container's own");
}

/// An exec is in both as well.
#[test]
fn cgroup_and_time_namespaces_are_joined() {
    let apart = Apart::start(&["--cgroup", "--time", "--boottime", "1000000"]);
    let runtime = Runtime::ours();
    let look = "readlink /proc/self/ns/cgroup; readlink /proc/self/ns/time; busybox cut -d. -f1 /proc/uptime";
    let bundle = bundle(|spec| {
        script(spec, "sleep 1000");
        join(spec, apart.namespace("cgroup", "cgroup"));
        join(spec, apart.namespace("time", "time_for_children"));
    });
    let path = bundle.path().display().to_string();
    let id = runtime.id("joins");
    let started = runtime.command(&["run", "-d", "--bundle", &path, &id]).stdout(Stdio::null()).status();
    assert!(started.expect("it runs").success());
    let state: Value = serde_json::from_str(&runtime.run(&["state", &id]).ok().stdout).expect("JSON");
    let init = |file: &str| {
        let link = fs::read_link(format!("/proc/{}/ns/{file}", state["pid"])).expect("it lives");
        link.display().to_string()
    };
    let joined = [apart.link("cgroup"), apart.link("time_for_children")];
    assert_eq!([init("cgroup"), init("time")], joined);
    let said = runtime.run(&["exec", &id, "sh", "-c", look]).ok();
    runtime.run(&["delete", "--force", &id]).ok();
    let words: Vec<&str> = said.text().lines().collect();
    assert_eq!(&words[..2], joined);
    assert!(words[2].parse::<u64>().is_ok_and(|uptime| uptime >= 1_000_000), "{said}");
    // In the joined cgroup namespace, the container's cgroup is still its own.
    let said =
        same("busybox cut -d: -f1,2 /proc/self/cgroup | busybox tail -n 1; ls -d /sys/fs/cgroup", |spec| {
            join(spec, apart.namespace("cgroup", "cgroup"));
        });
    assert!(said.ends_with("/sys/fs/cgroup\n"), "{said}");
}

fn maps(spec: &mut Value, uids: (u32, u32, u32), gids: (u32, u32, u32)) {
    let map = |(inside, outside, size)| json!([{"containerID": inside, "hostID": outside, "size": size}]);
    spec["linux"]["uidMappings"] = map(uids);
    spec["linux"]["gidMappings"] = map(gids);
}

/// The namespace has mappings. Those of the bundle may be left out, or be the same, as with containerd.
#[test]
fn a_user_namespace_is_joined_with_the_maps_that_it_has() {
    const MAP: (u32, u32, u32) = (0, 100_000, 1000);
    let first = Bundle::new("exec sleep 1000").change(|spec| {
        maps(spec, MAP, MAP);
        join(spec, json!({"type": "user"}));
    });
    give_to(first.path(), MAP.1);
    first.start();
    let user = json!({"type": "user", "path": format!("/proc/{}/ns/user", first.pid())});
    let runtime = Runtime::ours();
    let attempt = |change: &dyn Fn(&mut Value)| {
        let bundle = bundle(|spec| {
            script(spec, "id -u; cat /proc/self/uid_map");
            join(spec, user.clone());
            change(spec);
        });
        give(&bundle, MAP.1);
        let path = bundle.path().display().to_string();
        runtime.run(&["run", "--bundle", &path, &runtime.id("maps")])
    };
    for change in [&|_: &mut Value| {}, &|spec: &mut Value| maps(spec, MAP, MAP)] as [&dyn Fn(&mut Value); 2]
    {
        let said = attempt(change).ok();
        assert_eq!(said.text().split_whitespace().collect::<Vec<_>>(), ["0", "0", "100000", "1000"]);
    }
    let one_only = |spec: &mut Value| {
        maps(spec, MAP, MAP);
        spec["linux"]["gidMappings"] = json!([]);
    };
    let others: [&dyn Fn(&mut Value); 4] = [
        &|spec| maps(spec, (0, 200_000, 1000), MAP),
        &|spec| maps(spec, MAP, (0, 100_000, 999)),
        &|spec| maps(spec, MAP, (1, 100_000, 1000)),
        &one_only,
    ];
    for change in others {
        attempt(change).expect_code(1).expect_stderr("other maps than the user namespace that is joined");
        assert_eq!(run(&mut runtime.command(&["list", "-q"])).ok().text(), "", "nothing is left");
    }
}

/// The cgroup belongs to the host id of the container's user, also if the bundle has no mappings and those of the
/// namespace are used.
#[test]
fn who_joins_a_user_namespace_owns_its_cgroup_by_the_maps_of_that() {
    if !fs::exists("/sys/fs/cgroup/cgroup.controllers").unwrap_or(false) {
        println!("skipped: cgroups are given to users on hosts with version 2 only");
        return;
    }
    let first = Bundle::new("exec sleep 1000").change(|spec| {
        maps(spec, (0, 100_000, 1000), (0, 100_000, 1000));
        join(spec, json!({"type": "user"}));
    });
    give_to(first.path(), 100_000);
    first.start();
    let second = Bundle::new("exec sleep 1000").change(|spec| {
        join(spec, json!({"type": "user", "path": format!("/proc/{}/ns/user", first.pid())}));
        join(spec, json!({"type": "cgroup"}));
        let list = spec["mounts"].as_array_mut().expect("mounts");
        list.retain(|mount| mount["type"] != "cgroup");
        list.push(
            json!({"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["rw"]}),
        );
        spec["process"]["user"] = json!({"uid": 7, "gid": 7});
    });
    give_to(second.path(), 100_000);
    second.start();
    let cgroup = Path::new("/sys/fs/cgroup").join(second.id());
    assert_eq!(fs::metadata(cgroup).expect("it is there").uid(), 100_007);
}

/// A later entry with the same destination and `remount` changes the mount.
#[test]
fn a_mount_is_changed_by_a_later_one() {
    let source = tempfile::TempDir::new().expect("a temporary directory");
    fs::write(source.path().join("file"), "shown\n").expect("writable");
    let host = source.path().display().to_string();
    let look = "busybox awk '$5 ~ \"^/m\" { print $5, $6, $9 }' /proc/self/mountinfo | sort; \
                busybox df -k /memory | busybox awk 'NR == 2 { print $2 }'; \
                cat /mirror/file; echo > /memory/made; echo > /mirror/made; echo done";
    let said = same(look, |spec| {
        for mount in [
            json!({"destination": "/memory", "type": "tmpfs", "source": "tmpfs", "options": ["size=64k", "mode=755"]}),
            json!({"destination": "/memory", "type": "tmpfs", "source": "tmpfs", "options": ["remount", "nosuid", "noexec", "size=128k"]}),
            json!({"destination": "/mirror", "type": "bind", "source": host, "options": ["bind"]}),
            json!({"destination": "/mirror", "type": "bind", "source": host, "options": ["bind", "remount", "ro", "nodev"]}),
            json!({"destination": "/mfile", "type": "bind", "source": format!("{host}/file"), "options": ["bind"]}),
            json!({"destination": "/mfile", "type": "bind", "source": format!("{host}/file"), "options": ["bind", "remount", "ro"]}),
        ] {
            add_mount(spec, mount);
        }
    });
    assert!(said.starts_with("/memory rw,nosuid,noexec"), "{said}");
    assert!(
        said.contains("/mirror ro,nodev") && said.contains("/mfile ro") && said.contains("\n128\n"),
        "{said}"
    );
    assert!(!source.path().join("made").exists());
    let runtime = Runtime::ours();
    let bundle = bundle(|spec| {
        add_mount(
            spec,
            json!({"destination": "/bin", "type": "tmpfs", "source": "tmpfs", "options": ["remount", "ro"]}),
        );
    });
    let path = bundle.path().display().to_string();
    let refused = runtime.run(&["run", "--bundle", &path, &runtime.id("remount")]);
    refused.expect_code(1).expect_stderr("/bin");
    assert_eq!(run(&mut runtime.command(&["list", "-q"])).ok().text(), "", "nothing is left");
}
