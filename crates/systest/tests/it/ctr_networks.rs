//! `ctr run --cni`: container networks by Debian's CNI plugins.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use serde_json::json;
use testkit::{Daemon, Finished, images, is_root, run};

use crate::cgroups::HIERARCHIES;

const IMAGE: &str = "docker.io/library/busybox:latest";

/// A daemon with busybox, and a CNI network for `ctr`: veth pairs, with addresses that `host-local` records in a
/// directory.
struct Plugged {
    daemon: Daemon,
    third: u32,
}

impl Plugged {
    fn start() -> Plugged {
        let daemon = Daemon::start();
        daemon.own_ctr(["images", "import", &images::busybox_archive().display().to_string()]).ok();
        let third = std::process::id() % 250;
        let plugged = Plugged { daemon, third };
        plugged.write(&json!({
            "cniVersion": "0.4.0",
            "name": plugged.name(),
            "plugins": [
                {
                    "type": "ptp",
                    "ipam": {
                        "type": "host-local",
                        "subnet": plugged.subnet(),
                        "dataDir": plugged.daemon.dir().join("addresses"),
                    },
                },
                { "type": "tuning", "sysctl": { "net.ipv4.conf.eth0.arp_filter": "1" } },
            ],
        }));
        plugged
    }

    fn write(&self, config: &serde_json::Value) {
        let folder = self.daemon.dir().join("net.d");
        fs::create_dir_all(&folder).expect("a writable directory");
        fs::write(folder.join("10-test.conflist"), config.to_string()).expect("a writable directory");
    }

    fn name(&self) -> String {
        format!("systest{}", std::process::id())
    }

    fn subnet(&self) -> String {
        format!("10.213.{}.0/24", self.third)
    }

    fn ctr(&self, words: &[&str]) -> Finished {
        let mut command = self.daemon.own_ctr_command(words);
        run(command.env("NETCONFPATH", self.daemon.dir().join("net.d")))
    }

    fn run(&self, flags: &[&str], id: &str, program: &[&str]) -> Finished {
        let words = ["run", "--cni", "--runtime", "io.containerd.hoist.v2"];
        self.ctr(&[&words[..], flags, &[IMAGE, id], program].concat())
    }

    /// The allocated addresses.
    fn addresses(&self) -> Vec<String> {
        let folder = self.daemon.dir().join("addresses").join(self.name());
        let names = fs::read_dir(folder).into_iter().flatten().flatten();
        let names = names.filter_map(|entry| entry.file_name().into_string().ok());
        names.filter(|name| name.starts_with("10.")).collect()
    }

    fn result(&self, id: &str) -> PathBuf {
        format!("/var/lib/cni/results/{}-default-{id}-eth0", self.name()).into()
    }
}

#[test]
fn a_container_has_a_network_by_plugins_as_long_as_it_runs() {
    if !is_root("a container with a network") {
        return;
    }
    let _hierarchies = HIERARCHIES.read();
    let plugged = Plugged::start();
    let script = "ip -o -4 addr show eth0; cat /proc/sys/net/ipv4/conf/eth0/arp_filter; ip route";
    let said = plugged.run(&["--rm"], "plugged", &["sh", "-c", script]).ok().stdout;
    let gateway = format!("10.213.{}.1", plugged.third);
    assert!(said.contains(&format!("inet 10.213.{}.", plugged.third)) && said.contains("\n1\n"), "{said}");
    assert!(said.contains(&gateway), "{said}");
    assert!(plugged.addresses().is_empty(), "{:?}", plugged.addresses());
    assert!(!plugged.result("plugged").exists());
    // The command's exit code is the program's.
    assert_eq!(plugged.run(&["--rm"], "fails", &["sh", "-c", "exit 3"]).code, 3);
    assert!(plugged.addresses().is_empty());
}

#[test]
fn a_network_goes_with_the_signal_or_with_the_task() {
    if !is_root("a container with a network") {
        return;
    }
    let _hierarchies = HIERARCHIES.read();
    let plugged = Plugged::start();
    for id in ["killed", "ended"] {
        let program = if id == "killed" { &["sleep", "1000"][..] } else { &["true"] };
        plugged.run(&["-d"], id, program).ok();
        assert_eq!(plugged.addresses().len(), 1, "{id}");
        assert!(plugged.result(id).exists());
        let noted = plugged.daemon.ctr(["containers", "info", id]).ok().stdout;
        assert!(noted.contains("ctr.cni-containerd.metadata"), "{noted}");
        if id == "killed" {
            plugged.ctr(&["tasks", "kill", "-s", "KILL", id]).ok();
            assert!(plugged.addresses().is_empty(), "as containerd's does, with the signal");
        }
        // The task may be about to end by itself.
        plugged.ctr(&["tasks", "rm", "-f", id]).ok();
        assert!(plugged.addresses().is_empty() && !plugged.result(id).exists(), "{id}");
        plugged.ctr(&["containers", "rm", id]).ok();
    }
}

#[test]
fn what_has_no_network_does_not_start() {
    if !is_root("a container with a network") {
        return;
    }
    let _hierarchies = HIERARCHIES.read();
    let plugged = Plugged::start();
    let check = |flags: &[&str], words: &str| {
        let refused = plugged.run(flags, "refused", &["true"]);
        assert!(refused.code == 1 && refused.stderr.contains(words), "{words}: {refused}");
        assert_eq!(plugged.daemon.ctr(["tasks", "ls", "-q"]).ok().stdout, "");
        assert!(plugged.addresses().is_empty());
    };
    check(&["--rm", "--net-host"], "--net-host");
    let ipam = json!({
        "type": "host-local",
        "subnet": plugged.subnet(),
        "dataDir": plugged.daemon.dir().join("addresses"),
    });
    // The second plugin of two fails: the interface of the first is removed.
    let broken = [json!({ "type": "ptp", "ipam": ipam }), json!({ "type": "no-such-plugin" })];
    plugged.write(&json!({ "cniVersion": "0.4.0", "name": plugged.name(), "plugins": broken }));
    check(&["--rm"], "no-such-plugin");
    plugged.write(&json!({ "cniVersion": "0.4.0", "name": plugged.name(), "plugins": [{ "type": "ptp" }] }));
    check(&["--rm"], "CNI plugin ptp failed (ADD)");
    fs::remove_dir_all(plugged.daemon.dir().join("net.d")).expect("it is there");
    check(&["--rm"], "net.d");
    let links = run(Command::new("ip").args(["-o", "addr"])).ok().stdout;
    assert!(!links.contains(&format!(" 10.213.{}.", plugged.third)), "{links}");
}
