//! Networks on the real kernel. Each test runs in a network namespace of its own that stands for the host.

mod changes;
mod closed;
mod others;

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use network::{Config, Network, PortRequest, Request, Transport};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use types::ErrorKind;

/// Runs `test` in a new network namespace, with a state directory. Processes that `test` starts inherit the namespace.
fn on_a_machine(test: impl FnOnce(&Path) + Send) {
    if !stdx::testing::is_root("a network namespace") {
        return;
    }
    let state = tempfile::TempDir::new().expect("a temporary directory");
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            linux::ns::unshare(&[linux::ns::NsKind::Network]).expect("root may");
            linux::rtnetlink::Route::open().and_then(|mut route| route.set_up(1)).expect("loopback is there");
            test(state.path());
        });
        thread.join().expect("the test passes");
    });
    for entry in fs::read_dir(state.path().join("netns")).into_iter().flatten().flatten() {
        let _ = rustix::mount::unmount(entry.path(), rustix::mount::UnmountFlags::DETACH);
    }
}

fn open(state: &Path) -> Network {
    Network::open(state, Config { subnet: Some("10.88.0.0/24".parse().unwrap()), ..Config::default() })
        .unwrap()
}

fn tcp(host_port: Option<u16>, container_port: u16) -> PortRequest {
    let host_ports = host_port.map(|port| (port, port));
    PortRequest { host_address: Ipv4Addr::UNSPECIFIED, host_ports, container_port, transport: Transport::Tcp }
}

/// Runs `work` in the network namespace pinned to `path`.
fn inside<T: Send>(path: &Path, work: impl FnOnce() -> T + Send) -> T {
    let file = File::open(path).expect("a namespace");
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network)).expect("root may");
            work()
        });
        thread.join().expect("no panic")
    })
}

/// Starts a server in a container's namespace that replies with the caller's address, for `calls` calls.
fn serve(namespace: &Path, port: u16, calls: usize) -> std::thread::JoinHandle<()> {
    let listener = inside(namespace, || TcpListener::bind(("0.0.0.0", port)).expect("a free port"));
    std::thread::spawn(move || {
        for _ in 0..calls {
            let (mut stream, caller) = listener.accept().expect("a caller");
            write!(stream, "{}", caller.ip()).expect("the caller reads");
        }
    })
}

fn call(address: impl Into<IpAddr>, port: u16) -> std::io::Result<String> {
    let mut stream =
        TcpStream::connect_timeout(&SocketAddr::new(address.into(), port), Duration::from_secs(5))?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

fn attach(network: &Network, id: &str, ports: &[PortRequest]) -> (PathBuf, network::Attachment) {
    let path = network.create_namespace(id).unwrap();
    let attachment = network.attach(id, &Request { ports: ports.to_vec(), mac: None }).unwrap();
    (path, attachment)
}

fn ruleset() -> String {
    let output = Command::new("nft").args(["list", "ruleset"]).output().expect("nft is installed");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn containers_reach_each_other_by_address() {
    on_a_machine(|state| {
        let network = open(state);
        let (one, first) = attach(&network, "one", &[]);
        let (two, second) = attach(&network, "two", &[]);
        assert_ne!(first.address, second.address);
        let server = serve(&one, 80, 1);
        assert_eq!(inside(&two, || call(first.address, 80)).unwrap(), second.address.to_string());
        server.join().unwrap();
    });
}

#[test]
fn a_published_port_is_reached_from_everywhere() {
    on_a_machine(|state| {
        let network = open(state);
        let (web, attachment) = attach(&network, "web", &[tcp(Some(8080), 80)]);
        let (other, _) = attach(&network, "other", &[]);
        let server = serve(&web, 80, 4);
        assert_eq!(call(Ipv4Addr::LOCALHOST, 8080).unwrap(), attachment.gateway.to_string(), "by loopback");
        call(attachment.gateway, 8080).expect("by an address of the machine");
        inside(&other, || call(attachment.gateway, 8080)).expect("by another container");
        inside(&web, || call(attachment.gateway, 8080)).expect("by the container itself");
        server.join().unwrap();
    });
}

/// The kernel acknowledges each rule of a batch that asks for it, and its socket buffer has no space for hundreds.
#[test]
fn hundreds_of_ports_are_published_and_taken_back() {
    on_a_machine(|state| {
        let network = open(state);
        let ports: Vec<PortRequest> = (20_000..20_600).map(|port| tcp(Some(port), port)).collect();
        let (web, attachment) = attach(&network, "web", &ports);
        let server = serve(&web, 20_599, 2);
        call(attachment.gateway, 20_599).unwrap();
        // Recreates all rules at once, as after a flush.
        assert!(Command::new("nft").args(["flush", "ruleset"]).status().unwrap().success());
        network.restore().unwrap();
        call(attachment.gateway, 20_599).unwrap();
        server.join().unwrap();
        network.detach("web").unwrap();
        assert!(!ruleset().contains("20599"), "{}", ruleset());
    });
}

#[test]
fn loopback_of_the_machine_is_closed_to_containers() {
    on_a_machine(|state| {
        let network = open(state);
        let (path, attachment) = attach(&network, "curious", &[]);
        let secret = TcpListener::bind("127.0.0.1:7777").unwrap();
        // What a container with CAP_NET_ADMIN would do: route 127.0.0.0/8 to the bridge.
        let route = inside(&path, || {
            fs::write("/proc/sys/net/ipv4/conf/eth0/route_localnet", "1").expect("own namespace");
            let ip =
                |args: &str| Command::new("ip").args(args.split(' ')).status().expect("iproute2").success();
            ip("address flush dev lo")
                && ip("route replace 127.0.0.1/32 via 10.88.0.1 dev eth0 onlink table 99")
                && ip("rule add pref 0 to 127.0.0.1 lookup 99")
        });
        assert!(route);
        let answer = inside(&path, || {
            TcpStream::connect_timeout(&SocketAddr::from(([127, 0, 0, 1], 7777)), Duration::from_millis(300))
        });
        assert!(answer.is_err(), "{attachment:?} reached {secret:?}");
    });
}

#[test]
fn detach_leaves_nothing_and_touches_nothing_else() {
    on_a_machine(|state| {
        let foreign = "add table ip foreign; add chain ip foreign c; add rule ip foreign c counter accept";
        assert!(Command::new("nft").arg(foreign).status().unwrap().success());
        let before = ruleset();
        let network = open(state);
        attach(&network, "web", &[tcp(Some(8080), 80), tcp(None, 81)]);
        assert!(ruleset().contains("8080"));
        network.unpublish("web").unwrap();
        assert!(!ruleset().contains("8080"));
        // The port is free for any program now, while the link still exists.
        drop(TcpListener::bind("0.0.0.0:8080").unwrap());
        assert!(network.attachment("web").is_some_and(|left| left.ports.is_empty()));
        network.detach("web").unwrap();
        network.detach("web").expect("twice is not an error");
        assert!(network.check(&BTreeSet::new()).unwrap().is_empty());
        assert!(network.remove_if_unused(false).unwrap());
        assert_eq!(ruleset(), before);
        assert_eq!(fs::read_dir(state.join("netns")).unwrap().count(), 0);
        assert_eq!(fs::read_dir(state.join("network")).unwrap().count(), 0);
        assert!(Command::new("ip").args(["link", "show", "hoist0"]).output().unwrap().stdout.is_empty());
    });
}

/// The record of a running container is damaged while no daemon runs.
#[test]
fn a_container_with_a_damaged_record_keeps_its_network_until_it_is_detached() {
    on_a_machine(|state| {
        let (web, attachment) = attach(&open(state), "web", &[tcp(Some(8080), 80)]);
        fs::write(state.join("network/web.json"), "{").unwrap();
        let network = open(state);
        assert_eq!(network.attachment("web"), None);
        assert!(!network.remove_if_unused(false).unwrap());
        assert!(network.reconcile(&["web".to_owned()].into()).unwrap().is_empty());
        let server = serve(&web, 80, 1);
        call(attachment.gateway, 8080).expect("it is still published");
        server.join().unwrap();
        let again = network.attach("web", &Request::default()).unwrap_err();
        assert_eq!(again.kind(), ErrorKind::AlreadyExists, "{again:?}");
        network.detach("web").unwrap();
        assert!(!ruleset().contains("8080"), "{}", ruleset());
        assert!(network.check(&BTreeSet::new()).unwrap().is_empty());
        assert!(network.remove_if_unused(false).unwrap());
        assert_eq!(fs::read_dir(state.join("network")).unwrap().count(), 0);
    });
}

#[test]
fn a_port_belongs_to_one_container() {
    on_a_machine(|state| {
        let network = open(state);
        attach(&network, "first", &[tcp(Some(8080), 80)]);
        network.create_namespace("second").unwrap();
        let error =
            network.attach("second", &Request { ports: vec![tcp(Some(8080), 80)], mac: None }).unwrap_err();
        assert!(error.chain().contains("container first"), "{error:?}");
        let theirs = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = theirs.local_addr().unwrap().port();
        let error =
            network.attach("second", &Request { ports: vec![tcp(Some(port), 80)], mac: None }).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::FailedPrecondition);
        assert!(error.chain().contains("in use"), "{error:?}");
        let chosen = network.attach("second", &Request { ports: vec![tcp(None, 80)], mac: None }).unwrap();
        assert_ne!(chosen.ports[0].host_port, 0);
        // Of a range, the first free port.
        network.create_namespace("third").unwrap();
        let one_of = |first, last| {
            let port = PortRequest { host_ports: Some((first, last)), ..tcp(None, 80) };
            network.attach("third", &Request { ports: vec![port, port], mac: None })
        };
        let none = one_of(8080, 8081).unwrap_err();
        assert!(none.chain().contains("no port of 8080-8081 is free"), "{none:?}");
        let given = one_of(8080, 8082).unwrap();
        assert_eq!(given.ports.iter().map(|port| port.host_port).collect::<Vec<_>>(), [8081, 8082]);
        assert_eq!(
            network.attach("second", &Request::default()).unwrap_err().kind(),
            ErrorKind::AlreadyExists
        );
    });
}

#[test]
fn a_failed_attachment_leaves_nothing() {
    on_a_machine(|state| {
        let network = open(state);
        attach(&network, "alive", &[]);
        let before = ruleset();
        // Without the namespace, attach fails after the record is written; the next one fails after the link is made.
        network.attach("dead", &Request { ports: vec![tcp(Some(8080), 80)], mac: None }).unwrap_err();
        let path = network.create_namespace("dead").unwrap();
        inside(&path, || {
            let dummy = ["link", "add", "eth0", "type", "bridge"];
            assert!(Command::new("ip").args(dummy).status().unwrap().success());
        });
        network.attach("dead", &Request { ports: vec![tcp(Some(8080), 80)], mac: None }).unwrap_err();
        network.remove_namespace("dead").unwrap();
        assert_eq!(network.check(&BTreeSet::from(["alive".to_owned()])).unwrap(), []);
        assert_eq!(ruleset(), before);
        assert_eq!(fs::read_dir(state.join("network")).unwrap().count(), 1);
        drop(TcpListener::bind("0.0.0.0:8080").unwrap());
    });
}

#[test]
fn a_new_daemon_takes_over_recorded_attachments() {
    on_a_machine(|state| {
        let (web, attachment) = attach(&open(state), "web", &[tcp(Some(8080), 80)]);
        let network = open(state);
        assert_eq!(network.attachment("web"), Some(attachment));
        let server = serve(&web, 80, 1);
        call(Ipv4Addr::LOCALHOST, 8080).expect("still published");
        server.join().unwrap();
        let (_, other) = attach(&network, "other", &[]);
        assert_ne!(Some(other.address), network.attachment("web").map(|web| web.address));
        network.detach("web").unwrap();
    });
}

/// A daemon that dies during attach or detach leaves a prefix or suffix of: record, link, rules, namespace. Each of
/// them alone must be found and removed.
#[test]
fn leftovers_of_any_crash_are_found_and_removed() {
    on_a_machine(|state| {
        let wreck = |how: &dyn Fn(&Network)| {
            let network = open(state);
            attach(&network, "dead", &[tcp(Some(8080), 80)]);
            attach(&network, "alive", &[tcp(Some(8081), 80)]);
            how(&network);
            drop(network);
            let network = open(state);
            let live = BTreeSet::from(["alive".to_owned()]);
            assert!(!network.check(&live).unwrap().is_empty());
            network.reconcile(&live).unwrap();
            assert_eq!(network.check(&live).unwrap(), []);
            assert!(ruleset().contains("8081") && !ruleset().contains("8080"));
            network.detach("alive").unwrap();
        };
        let record = state.join("network/dead.json");
        let link = network_link(state);
        wreck(&|_| {});
        wreck(&|_| fs::remove_file(&record).unwrap());
        wreck(&|_| {
            fs::remove_file(&record).unwrap();
            assert!(Command::new("ip").args(["link", "delete", &link]).status().unwrap().success());
        });
        wreck(&|_| assert!(Command::new("ip").args(["link", "delete", &link]).status().unwrap().success()));
        wreck(&|_| {
            assert!(
                Command::new("nft")
                    .args(["flush", "chain", "ip", "hoist0", "output"])
                    .status()
                    .unwrap()
                    .success()
            );
        });
        wreck(&|_| {
            rustix::mount::unmount(state.join("netns/dead"), rustix::mount::UnmountFlags::DETACH).unwrap();
        });
    });
}

/// The name of the link that a container called `dead` gets.
fn network_link(state: &Path) -> String {
    let network = open(state);
    let (_, attachment) = attach(&network, "dead", &[]);
    network.detach("dead").unwrap();
    attachment.link
}
