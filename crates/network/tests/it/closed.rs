//! Isolation: what neither a container nor a neighbour on the wire may do.

use std::net::{Ipv6Addr, SocketAddrV6};
use std::time::Instant;

use linux::rtnetlink::{Prefix, Route, Veth};
use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType, ipproto, sendto, socket_with, sockopt};

use super::*;

fn ip(args: &str) -> String {
    let output = Command::new("ip").args(args.split(' ')).output().expect("iproute2 is installed");
    assert!(output.status.success(), "ip {args}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Sends a router advertisement to all hosts on `eth0` (RFC 4861, 4.2).
fn advertise_router() {
    // A container with CAP_NET_ADMIN can turn IPv6 on again.
    fs::write("/proc/sys/net/ipv6/conf/eth0/disable_ipv6", "0").unwrap();
    // Router advertisements need a link-local source address, which the kernel assigns once the link is up.
    let deadline = Instant::now() + Duration::from_secs(20);
    while !ip("-6 -o address show dev eth0 scope link -tentative").contains("fe80::") {
        assert!(Instant::now() < deadline, "eth0 has no address of IPv6");
    }
    let index = Route::open().unwrap().link("eth0").unwrap().unwrap().index;
    let socket =
        socket_with(AddressFamily::INET6, SocketType::RAW, SocketFlags::CLOEXEC, Some(ipproto::ICMPV6))
            .unwrap();
    sockopt::set_ipv6_multicast_hops(&socket, 255).unwrap();
    let advertisement = [134, 0, 0, 0, 64, 0, 0x07, 0x08, 0, 0, 0, 0, 0, 0, 0, 0];
    let all_nodes = SocketAddrV6::new(Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1), 0, 0, index);
    sendto(&socket, &advertisement, SendFlags::empty(), &all_nodes).unwrap();
}

/// CVE-2020-13401.
#[test]
fn a_container_is_no_ipv6_router_of_the_host() {
    on_a_machine(|state| {
        let network = open(state);
        let (path, attachment) = attach(&network, "curious", &[tcp(Some(8080), 80)]);
        let heard = |path: &Path| {
            inside(path, || {
                advertise_router();
                // This call is answered after the router advertisement was received.
                call(attachment.gateway, 8080).unwrap();
            });
            ip("-6 route show default")
        };
        let server = serve(&path, 80, 2);
        assert_eq!(heard(&path), "");
        let ipv6 = |key: &str| fs::read_to_string(format!("/proc/sys/net/ipv6/conf/hoist0/{key}")).unwrap();
        assert_eq!((ipv6("disable_ipv6").trim(), ipv6("accept_ra").trim()), ("1", "0"));

        // A bridge made by an earlier version still accepts router advertisements.
        fs::write("/proc/sys/net/ipv6/conf/hoist0/accept_ra", "2").unwrap();
        fs::write("/proc/sys/net/ipv6/conf/hoist0/disable_ipv6", "0").unwrap();
        attach(&network, "second", &[]);
        assert_eq!(heard(&path), "");
        server.join().unwrap();
    });
}

/// The same between containers: with IPv6 on, one could answer for the names that other containers look up, where these
/// have addresses of both families (as in CVE-2024-32473).
#[test]
fn a_container_is_no_ipv6_router_of_other_containers() {
    on_a_machine(|state| {
        let network = open(state);
        let (curious, _) = attach(&network, "curious", &[]);
        let (other, attachment) = attach(&network, "other", &[]);
        let server = serve(&other, 80, 1);
        inside(&curious, || {
            advertise_router();
            // This call is answered after the router advertisement was received.
            call(attachment.address, 80).unwrap();
        });
        server.join().unwrap();
        let seen = inside(&other, || {
            ["-6 route show default", "-6 -o address show dev eth0", "-6 -o address show dev lo"].map(ip)
        });
        assert_eq!((seen[0].as_str(), seen[1].as_str()), ("", ""));
        assert!(seen[2].contains("::1/128"), "{}", seen[2]);
    });
}

/// A second host on the wire, with a route to our containers.
fn neighbour(network: &Network) -> PathBuf {
    let path = network.create_namespace("neighbour").unwrap();
    let namespace = File::open(&path).unwrap();
    let mut here = Route::open().unwrap();
    here.create_veth(&Veth {
        name: "lan0",
        address: None,
        master: None,
        peer: "eth0",
        peer_namespace: namespace.as_fd(),
        peer_address: None,
        mtu: None,
    })
    .unwrap();
    let link = here.link("lan0").unwrap().unwrap();
    here.add_address(link.index, Prefix { address: Ipv4Addr::new(10, 99, 0, 1).into(), len: 24 }).unwrap();
    inside(&path, || {
        ip("address add 10.99.0.2/24 dev eth0");
        ip("link set eth0 up");
        ip("route add 10.88.0.0/24 via 10.99.0.1");
        ip("route add 198.51.100.0/24 via 10.99.0.1");
    });
    path
}

fn is_open(address: Ipv4Addr, port: u16) -> bool {
    let address = SocketAddr::new(address.into(), port);
    TcpStream::connect_timeout(&address, Duration::from_millis(500)).is_ok()
}

#[test]
fn a_neighbour_reaches_what_is_published_for_it_and_nothing_else() {
    on_a_machine(|state| {
        let network = open(state);
        let local = PortRequest { host_address: Ipv4Addr::LOCALHOST, ..tcp(Some(8081), 81) };
        let (web, attachment) = attach(&network, "web", &[tcp(Some(8080), 80), local]);
        let (other, _) = attach(&network, "other", &[]);
        let neighbour = neighbour(&network);
        let host = Ipv4Addr::new(10, 99, 0, 1);

        let published = serve(&web, 80, 2);
        inside(&neighbour, || call(host, 8080)).expect("published for everyone");
        assert!(!inside(&neighbour, || is_open(attachment.address, 80)), "past the published port");
        inside(&other, || call(attachment.address, 80)).expect("containers reach each other");
        published.join().unwrap();

        let outside = serve(&neighbour, 80, 1);
        inside(&web, || call(Ipv4Addr::new(10, 99, 0, 2), 80)).expect("containers reach the outside");
        outside.join().unwrap();

        let published = serve(&web, 81, 1);
        inside(&neighbour, || {
            fs::write("/proc/sys/net/ipv4/conf/eth0/route_localnet", "1").expect("own namespace");
            ip("address flush dev lo");
            ip("route replace 127.0.0.1/32 via 10.99.0.1 dev eth0 onlink table 99");
            ip("rule add pref 0 to 127.0.0.1 lookup 99");
            assert!(!is_open(Ipv4Addr::LOCALHOST, 8081), "published for the machine itself");
        });
        call(Ipv4Addr::LOCALHOST, 8081).expect("published for the machine itself");
        published.join().unwrap();
    });
}
