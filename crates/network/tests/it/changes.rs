//! Concurrent changes, and changes to our rules by other programs.

use std::net::UdpSocket;
use std::sync::Barrier;

use super::*;

#[test]
fn the_first_containers_may_start_at_once() {
    for _ in 0..20 {
        on_a_machine(|state| {
            let network = Network::open(state, Config::default()).unwrap();
            let ports: Vec<u16> = (9001..=9008).collect();
            for port in &ports {
                network.create_namespace(&format!("c{port}")).unwrap();
            }
            let all_are_here = Barrier::new(ports.len());
            let gateways: BTreeSet<Ipv4Addr> = std::thread::scope(|scope| {
                let attach = |port: u16| {
                    all_are_here.wait();
                    let request = Request { ports: vec![tcp(Some(port), 80)], mac: None };
                    network.attach(&format!("c{port}"), &request).unwrap().gateway
                };
                let threads: Vec<_> = ports.iter().map(|port| scope.spawn(move || attach(*port))).collect();
                threads.into_iter().map(|thread| thread.join().unwrap()).collect()
            });
            assert_eq!(gateways.len(), 1, "{gateways:?}");
            let addresses = Command::new("ip").args(["-4", "-o", "address", "show", "hoist0"]).output();
            assert_eq!(String::from_utf8_lossy(&addresses.unwrap().stdout).lines().count(), 1);
            let rules = ruleset();
            for port in &ports {
                assert_eq!(rules.matches(&format!("dport {port} dnat")).count(), 2, "{port} in {rules}");
            }
            assert_eq!(rules.matches("masquerade").count(), 3, "{rules}");
        });
    }
}

#[test]
fn ports_are_published_again_after_others_flushed_all_rules() {
    for flush in ["flush ruleset", "flush table ip hoist0", "flush ruleset; add table ip hoist0"] {
        on_a_machine(|state| {
            let network = open(state);
            let (web, attachment) = attach(&network, "web", &[tcp(Some(8080), 80)]);
            let (_, _) = attach(&network, "gone", &[tcp(Some(8081), 80)]);
            network.unpublish("gone").unwrap();
            let before = ruleset();
            assert!(Command::new("nft").arg(flush).status().unwrap().success());
            let server = serve(&web, 80, 2);
            network.restore().unwrap();
            assert_eq!(ruleset(), before, "{flush}");
            call(Ipv4Addr::LOCALHOST, 8080).expect("a daemon that begins restores");
            assert!(Command::new("nft").arg(flush).status().unwrap().success());
            attach(&network, "next", &[]);
            call(attachment.gateway, 8080).expect("the next container restores");
            server.join().unwrap();
        });
    }
}

/// Answers `times` datagrams with `name`.
fn answer(namespace: &Path, name: &'static str, times: usize) -> std::thread::JoinHandle<()> {
    let socket = inside(namespace, || UdpSocket::bind("0.0.0.0:53").unwrap());
    std::thread::spawn(move || {
        for _ in 0..times {
            let (_, caller) = socket.recv_from(&mut [0; 16]).unwrap();
            socket.send_to(name.as_bytes(), caller).unwrap();
        }
    })
}

#[test]
fn datagrams_go_to_the_container_that_has_the_port_now() {
    on_a_machine(|state| {
        let network = open(state);
        let udp = |port| PortRequest { transport: Transport::Udp, ..tcp(Some(port), 53) };
        let client = UdpSocket::bind("0.0.0.0:7000").unwrap();
        client.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let ask = |port: u16| {
            client.send_to(b"?", (Ipv4Addr::LOCALHOST, port)).unwrap();
            let mut buffer = [0; 16];
            let (len, _) = client.recv_from(&mut buffer).expect("an answer");
            String::from_utf8_lossy(&buffer[..len]).into_owned()
        };

        let (old, _) = attach(&network, "old", &[udp(5353)]);
        let (aside, _) = attach(&network, "aside", &[udp(5354)]);
        let servers = [answer(&old, "old", 1), answer(&aside, "aside", 2)];
        assert_eq!((ask(5353), ask(5354)), ("old".to_owned(), "aside".to_owned()));

        // While no container has the port, conntrack notes that the flow ends at the host itself.
        network.unpublish("old").unwrap();
        client.send_to(b"?", (Ipv4Addr::LOCALHOST, 5353)).unwrap();

        let (new, _) = attach(&network, "new", &[udp(5353)]);
        let second = answer(&new, "new", 2);
        assert_eq!(ask(5353), "new");
        network.detach("old").unwrap();
        assert_eq!((ask(5353), ask(5354)), ("new".to_owned(), "aside".to_owned()));
        for server in servers.into_iter().chain([second]) {
            server.join().unwrap();
        }
    });
}
