//! Many at once, and others who change what is ours.

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
                    let request = Request { ports: vec![tcp(Some(port), 80)] };
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
