//! The daemon's bridge exists as long as a container uses it, and the daemon leaves the machine's own links and rules
//! alone.

use std::fs;
use std::path::Path;
use std::process::Command;

use testkit::{Daemon, eventually, images, is_root, run};

/// The name of the daemon's bridge and of its nftables table, from the configuration.
pub(crate) fn bridge(daemon: &Daemon) -> String {
    let config = fs::read_to_string(daemon.dir().join("config.toml")).expect("every daemon has one");
    let name = config.lines().find_map(|line| line.strip_prefix("bridge = "));
    name.expect("a bridge of its own").trim_matches('"').to_owned()
}

pub(crate) fn links() -> String {
    run(Command::new("ip").args(["-o", "link"])).ok().stdout
}

/// A daemon with busybox that logs when it becomes idle.
fn talkative() -> Daemon {
    let daemon = Daemon::start_with(&[], "[log]\nlevel = \"debug\"\n");
    daemon.load(&images::busybox_archive());
    daemon
}

/// Waits until an idle daemon logs once more that it is idle.
fn rests(daemon: &Daemon) {
    let times = || daemon.log().matches("at rest: let go of pages").count();
    let before = times();
    eventually("a daemon is at rest", || (times() > before).then_some(()));
}

/// Waits for a complete check of whether the bridge is in use.
fn looks(daemon: &Daemon) {
    // The first check may have begun before.
    for _ in 0..2 {
        daemon.hoist(["version"]).ok();
        rests(daemon);
    }
}

fn nft(words: &[&str]) -> testkit::Finished {
    run(Command::new("nft").args(words))
}

/// A table of the machine's own, removed when dropped.
struct Foreign(String);

impl Foreign {
    fn new() -> Foreign {
        let table = format!("foreign{}", std::process::id());
        let rules = format!(
            "add table ip {table}; add chain ip {table} c {{ type filter hook forward priority 10; }}; \
             add rule ip {table} c tcp dport 9 drop"
        );
        nft(&[&rules]).ok();
        Foreign(table)
    }

    fn text(&self) -> String {
        nft(&["list", "table", "ip", &self.0]).ok().stdout
    }
}

impl Drop for Foreign {
    fn drop(&mut self) {
        nft(&["delete", "table", "ip", &self.0]);
    }
}

#[test]
fn the_bridge_goes_with_the_last_container_and_comes_with_the_next() {
    if !is_root("a container with a network") {
        return;
    }
    let (daemon, foreign) = (talkative(), Foreign::new());
    let (bridge, before) = (bridge(&daemon), foreign.text());
    let is_there = || {
        let tables = nft(&["list", "tables"]).ok().stdout;
        let has_table = tables.lines().any(|line| line.split(' ').next_back() == Some(&bridge));
        (links().contains(&format!(": {bridge}: ")), has_table)
    };
    let gone = |what: &str| eventually(what, || (is_there() == (false, false)).then_some(()));
    assert_eq!(is_there(), (false, false));
    for _ in 0..2 {
        let web = ["run", "-d", "--name", "web", "-p", "127.0.0.1::80", "busybox", "sleep", "1000"];
        daemon.hoist(web).ok();
        assert_eq!(is_there(), (true, true));
        let other = ["run", "-d", "--rm", "-p", "127.0.0.1::80", "busybox", "true"];
        let id = daemon.hoist(other).ok().text().to_owned();
        eventually("the other has ended", || (daemon.hoist(["inspect", &id]).code != 0).then_some(()));
        daemon.hoist(["exec", "web", "ip", "addr", "show", "eth0"]).ok();
        daemon.hoist(["rm", "-f", "web"]).ok();
        gone("the bridge went with the last container");
    }
    // No call reaches the daemon when this container ends.
    let shared = format!("{}:/shared", daemon.dir().display());
    let ends = "until test -e /shared/go; do usleep 10000; done";
    daemon.hoist(["run", "-d", "--rm", "-v", &shared, "busybox", "sh", "-c", ends]).ok();
    rests(&daemon);
    assert_eq!(is_there(), (true, true));
    fs::write(daemon.dir().join("go"), "").expect("a writable directory");
    gone("the bridge went with one that ended by itself");
    assert_eq!(foreign.text(), before, "what is not ours is as it was");
}

/// Links and rules of others stay as long as the daemon lives.
#[test]
fn links_and_rules_of_others_stay() {
    if !is_root("a container with a network") {
        return;
    }
    let [mut guest, host] = [talkative(), talkative()];
    let [theirs, own] = [&guest, &host].map(bridge);
    let is_there = |bridge: &str| links().contains(&format!(": {bridge}: "));
    // A bridge of that name that existed before, without a port.
    run(Command::new("ip").args(["link", "add", &theirs, "type", "bridge"])).ok();
    for daemon in [&guest, &host] {
        daemon.hoist(["run", "--rm", "busybox", "true"]).ok();
    }
    nft(&["insert", "rule", "ip", &own, "forward", "iifname", "wg0", "accept"]).ok();
    looks(&guest);
    looks(&host);
    assert!(is_there(&theirs) && is_there(&own));
    assert!(nft(&["list", "table", "ip", &own]).ok().stdout.contains("wg0"));
    // A starting daemon does not take a foreign port for the leftover of an interrupted call.
    let port = format!("x{}", std::process::id());
    run(Command::new("ip").args(["link", "add", &port, "master", &theirs, "type", "veth"])).ok();
    guest.kill();
    guest.start_again();
    guest.hoist(["system", "check", "--repair"]).ok();
    assert!(links().contains(&format!(": {port}@")));
    drop((guest, host));
    assert!(is_there(&theirs), "it was there before");
    run(Command::new("ip").args(["link", "delete", &port])).ok();
    assert!(!is_there(&own), "it goes with its daemon");
    run(Command::new("ip").args(["link", "delete", &theirs])).ok();
}

/// The bridge goes even if the daemon became idle, and checked it, while the container was still starting.
#[test]
fn the_bridge_goes_after_a_slow_start_that_failed() {
    if !is_root("a container with a network") {
        return;
    }
    let daemon = talkative();
    let bridge = bridge(&daemon);
    let is_there = || links().contains(&format!(": {bridge}: "));
    let id = daemon.hoist(["create", "--name", "late", "busybox", "/nosuch"]).ok().text().to_owned();
    let signal = |signal: &str| {
        let sent = run(Command::new("pkill").args([signal, "-f", "--", &format!("-id {id} .* serve")]));
        sent.code == 0
    };
    std::thread::scope(|scope| {
        let started = scope.spawn(|| daemon.hoist(["start", "late"]));
        eventually("its shim is stopped", || (signal("-STOP") || started.is_finished()).then_some(()));
        if !started.is_finished() {
            assert!(is_there());
            rests(&daemon);
        }
        signal("-CONT");
        assert_ne!(started.join().expect("the thread of this test").code, 0);
    });
    eventually("nobody has the bridge", || (!is_there()).then_some(()));
}

/// The links of a container have IPv6 disabled unless a sysctl of the container enables it, for all links or for one;
/// router advertisements stay off even then.
#[test]
fn a_sysctl_turns_ipv6_on_for_a_container() {
    if !is_root("a container with a network") {
        return;
    }
    if !Path::new("/proc/sys/net/ipv6/conf").exists() {
        println!("skipped: this kernel has no IPv6");
        return;
    }
    let daemon = Daemon::with_busybox();
    let check = |flags: &[&str], expected: &str| {
        let look = "cd /proc/sys/net/ipv6/conf; cat eth0/disable_ipv6 default/disable_ipv6 lo/disable_ipv6 eth0/accept_ra";
        let rest = ["busybox", "sh", "-c", look];
        let said = daemon.hoist([&["run", "--rm"][..], flags, &rest[..]].concat()).ok();
        assert_eq!(said.text(), expected, "{flags:?}");
    };
    check(&[], "1\n1\n0\n0");
    check(&["--sysctl", "net.ipv6.conf.all.disable_ipv6=0"], "0\n0\n0\n0");
    check(&["--sysctl", "net.ipv6.conf.eth0.disable_ipv6=0"], "0\n1\n0\n0");
}
