//! Links, addresses, routes and packet filter rules, in network namespaces made by the tests.

use std::fs::File;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::AsFd;
use std::process::Command;

use linux::nft::{Batch, Expr, Hook, Nft, Transport};
use linux::rtnetlink::{Prefix, Route, Veth};
use types::ErrorKind;

/// Runs `test` in a new network namespace, which processes that it starts are in too.
fn in_new_namespace(test: impl FnOnce() + Send) {
    if !stdx::testing::is_root("a network namespace") {
        return;
    }
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            linux::ns::unshare(&[linux::ns::NsKind::Network]).expect("root may");
            test();
        });
        thread.join().expect("the test passes");
    });
}

fn own_namespace() -> File {
    File::open("/proc/thread-self/ns/net").expect("a namespace")
}

fn output(program: &str, args: &[&str]) -> String {
    let output =
        Command::new(program).args(args).output().unwrap_or_else(|error| panic!("{program}: {error}"));
    assert!(output.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn a_veth_pair_connects_a_bridge_with_another_namespace() {
    in_new_namespace(|| {
        let mut here = Route::open().unwrap();
        here.create_bridge("br0", None).unwrap();
        let bridge = here.link("br0").unwrap().expect("just made");
        assert_eq!(bridge.kind, "bridge");
        let gateway = Ipv4Addr::new(10, 7, 0, 1);
        here.add_address(bridge.index, Prefix { address: gateway.into(), len: 16 }).unwrap();
        here.set_up(bridge.index).unwrap();

        let (send, receive) = std::sync::mpsc::channel();
        let (done, wait) = std::sync::mpsc::channel::<()>();
        let other = std::thread::spawn(move || {
            linux::ns::unshare(&[linux::ns::NsKind::Network]).expect("root may");
            send.send(own_namespace()).expect("the test listens");
            // The namespace lives as long as its file; the thread stays so that processes can join.
            let _ = wait.recv();
        });
        let there = receive.recv().expect("the other thread answers");
        let veth = Veth {
            name: "v0",
            address: None,
            master: Some(bridge.index),
            peer: "eth0",
            peer_namespace: there.as_fd(),
            peer_address: Some([2, 0, 0, 0, 0, 9]),
            mtu: Some(1400),
        };
        here.create_veth(&veth).unwrap();
        let ours = here.link("v0").unwrap().expect("just made");
        assert_eq!((ours.master, ours.is_up), (Some(bridge.index), true));
        assert_eq!(here.link("eth0").unwrap(), None, "the peer was never here");

        let mut inside = Route::open_in(there.as_fd()).unwrap();
        let peer = inside.link("eth0").unwrap().expect("born there");
        assert_eq!(peer.address, [2, 0, 0, 0, 0, 9]);
        inside
            .add_address(peer.index, Prefix { address: Ipv4Addr::new(10, 7, 0, 2).into(), len: 16 })
            .unwrap();
        inside.set_up(peer.index).unwrap();
        inside.add_default_route(gateway.into()).unwrap();
        assert!(
            inside
                .routes()
                .unwrap()
                .contains(&Prefix { address: Ipv4Addr::new(10, 7, 0, 0).into(), len: 16 })
        );
        assert!(here.addresses().unwrap().iter().any(|own| own.prefix.address == IpAddr::from(gateway)));

        assert!(here.delete_link("v0").unwrap());
        assert!(!here.delete_link("v0").unwrap(), "gone is not an error");
        assert_eq!(inside.link("eth0").unwrap(), None, "one end takes the other with it");
        drop(done);
        other.join().expect("no panic");
    });
}

#[test]
fn errors_carry_the_kernels_words_and_a_kind() {
    in_new_namespace(|| {
        let mut route = Route::open().unwrap();
        route.create_bridge("br0", None).unwrap();
        assert_eq!(route.create_bridge("br0", None).unwrap_err().kind(), ErrorKind::AlreadyExists);
        let error = route.add_default_route(Ipv4Addr::new(10, 9, 9, 9).into()).unwrap_err();
        assert!(error.to_string().contains("the kernel says"), "{error:?}");
        assert_eq!(route.link("nosuch").unwrap(), None);
    });
}

#[test]
fn nft_lists_the_rules_as_intended() {
    in_new_namespace(|| {
        let address = Ipv4Addr::new(10, 7, 0, 2);
        let network = Ipv4Addr::new(10, 7, 0, 0);
        let mut nft = Nft::open().unwrap();
        assert!(!nft.has_table("ours").unwrap());
        assert_eq!(nft.rules("ours").unwrap(), []);

        let mut batch = Batch::new();
        batch.add_table("ours");
        batch.add_chain("ours", "prerouting", Hook::Prerouting);
        batch.add_chain("ours", "output", Hook::Output);
        batch.add_chain("ours", "postrouting", Hook::Postrouting);
        let publish = [
            Expr::DestinationIsLocal,
            Expr::Port(Transport::Tcp, 8080),
            Expr::TranslateDestination(address, 80),
        ];
        batch.add_rule("ours", "prerouting", &publish, b"container-1");
        let leave = [Expr::SourceIn(network, 16), Expr::LeavesNotBy("br0".into()), Expr::Masquerade];
        batch.add_rule("ours", "postrouting", &leave, b"");
        let hairpin = [
            Expr::SourceIn(network, 16),
            Expr::DestinationIn(network, 16),
            Expr::WasTranslated,
            Expr::Masquerade,
        ];
        batch.add_rule("ours", "postrouting", &hairpin, b"");
        batch.add_rule("ours", "output", &[Expr::DestinationIn(Ipv4Addr::LOCALHOST, 32), Expr::Accept], b"");
        batch.add_chain("ours", "raw", Hook::Raw);
        let loopback = Ipv4Addr::new(127, 0, 0, 0);
        let martian = [Expr::ArrivesBy("br0".into()), Expr::DestinationIn(loopback, 8), Expr::Drop];
        batch.add_rule("ours", "raw", &martian, b"");
        nft.apply("make rules", batch).unwrap();

        let listed = output("nft", &["list", "table", "ip", "ours"]);
        for line in [
            "type nat hook prerouting priority dstnat; policy accept;",
            "type nat hook postrouting priority srcnat; policy accept;",
            "fib daddr type local tcp dport 8080 dnat to 10.7.0.2:80",
            "ip saddr 10.7.0.0/16 oifname != \"br0\" masquerade",
            "ip saddr 10.7.0.0/16 ip daddr 10.7.0.0/16 ct status dnat masquerade",
            "ip daddr 127.0.0.1 accept",
            "type filter hook prerouting priority raw; policy accept;",
            "iifname \"br0\" ip daddr 127.0.0.0/8 drop",
        ] {
            assert!(listed.contains(line), "no {line:?} in\n{listed}");
        }
        let rules = nft.rules("ours").unwrap();
        assert_eq!(rules.len(), 5);
        let noted: Vec<_> = rules.into_iter().filter(|rule| rule.note == b"container-1").collect();
        assert_eq!(noted.len(), 1);

        let mut batch = Batch::new();
        batch.delete_rule("ours", &noted[0]);
        nft.apply("delete rule", batch).unwrap();
        assert_eq!(nft.rules("ours").unwrap().len(), 4);

        let mut batch = Batch::new();
        batch.delete_table("ours");
        nft.apply("delete table", batch).unwrap();
        assert_eq!(output("nft", &["list", "ruleset"]), "");
    });
}

#[test]
fn a_batch_with_one_bad_change_changes_nothing() {
    in_new_namespace(|| {
        let mut nft = Nft::open().unwrap();
        let mut batch = Batch::new();
        batch.add_table("ours");
        batch.add_rule("ours", "nosuchchain", &[Expr::Accept], b"");
        assert_eq!(nft.apply("make rules", batch).unwrap_err().kind(), ErrorKind::NotFound);
        assert!(!nft.has_table("ours").unwrap());
        nft.apply("an empty batch", Batch::new()).unwrap();
    });
}
