//! What neither a container nor a neighbour on the wire may do.

use std::net::{Ipv6Addr, SocketAddrV6};
use std::time::Instant;

use linux::netlink::Route;
use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType, ipproto, sendto, socket_with, sockopt};

use super::*;

fn ip(args: &str) -> String {
    let output = Command::new("ip").args(args.split(' ')).output().expect("iproute2 is installed");
    assert!(output.status.success(), "ip {args}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Tells all who listen on `eth0` that this is their router (RFC 4861, 4.2).
fn advertise_router() {
    // The kernel gives the address, the only one that a router may speak by, when it has seen the cable.
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
fn a_container_is_nobodys_router() {
    on_a_machine(|state| {
        let network = open(state);
        let (path, attachment) = attach(&network, "curious", &[tcp(Some(8080), 80)]);
        let heard = |path: &Path| {
            inside(path, || {
                advertise_router();
                // What is sent later is heard later.
                call(attachment.gateway, 8080).unwrap();
            });
            ip("-6 route show default")
        };
        let server = serve(&path, 80, 2);
        assert_eq!(heard(&path), "");
        let ipv6 = |key: &str| fs::read_to_string(format!("/proc/sys/net/ipv6/conf/hoist0/{key}")).unwrap();
        assert_eq!((ipv6("disable_ipv6").trim(), ipv6("accept_ra").trim()), ("1", "0"));

        // A bridge that an earlier version made listens still.
        fs::write("/proc/sys/net/ipv6/conf/hoist0/accept_ra", "2").unwrap();
        fs::write("/proc/sys/net/ipv6/conf/hoist0/disable_ipv6", "0").unwrap();
        attach(&network, "second", &[]);
        assert_eq!(heard(&path), "");
        server.join().unwrap();
    });
}
