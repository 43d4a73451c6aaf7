//! Links and rules of other programs are kept, and the bridge that was made here is recognized as such.

use linux::rtnetlink::Route;

use super::*;

fn ip(args: &str) {
    let output = Command::new("ip").args(args.split(' ')).output().expect("iproute2 is installed");
    assert!(output.status.success(), "ip {args}: {}", String::from_utf8_lossy(&output.stderr));
}

fn nft(rule: &str) {
    assert!(Command::new("nft").arg(rule).status().unwrap().success(), "{rule}");
}

fn address_of(link: &str) -> Option<Vec<u8>> {
    Route::open().unwrap().link(link).unwrap().map(|link| link.address)
}

#[test]
fn links_of_others_are_no_leftovers() {
    for bridge in ["theirs before ours", "made here"] {
        on_a_machine(|state| {
            if bridge != "made here" {
                ip("link add hoist0 type bridge");
            }
            let network = open(state);
            let (_, attachment) = attach(&network, "web", &[]);
            // One with an ordinary name, and one whose name looks like ours.
            ip("link add x master hoist0 type veth peer name y");
            ip("link add hv0123456789ab master hoist0 type veth peer name z");
            // Links of a second daemon that uses the same bridge.
            let other = tempfile::TempDir::new().unwrap();
            assert_eq!(
                Network::open(other.path(), Config::default()).unwrap().check(&BTreeSet::new()).unwrap(),
                []
            );
            assert_eq!(open(state).reconcile(&BTreeSet::from(["web".to_owned()])).unwrap(), [], "{bridge}");
            for link in ["x", "hv0123456789ab", &attachment.link] {
                assert!(address_of(link).is_some(), "{link} on a bridge {bridge}");
            }
            network.detach("web").unwrap();
        });
    }
}

/// Both would give the same addresses to their containers, and each would take the other's rules for leftovers.
#[test]
fn a_bridge_with_containers_of_another_daemon_is_left_to_it() {
    on_a_machine(|state| {
        let network = open(state);
        let (web, attachment) = attach(&network, "web", &[tcp(Some(8080), 80)]);
        let others_state = tempfile::TempDir::new().unwrap();
        let other = open(others_state.path());
        other.create_namespace("theirs").unwrap();
        let refused = other.attach("theirs", &Request::default()).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::FailedPrecondition);
        assert!(refused.chain().contains("network.bridge"), "{refused:?}");
        assert_eq!(other.reconcile(&BTreeSet::from(["theirs".to_owned()])).unwrap(), []);
        other.detach("theirs").unwrap();
        assert!(!other.remove_if_unused(true).unwrap());
        let server = serve(&web, 80, 1);
        call(attachment.gateway, 8080).expect("it is published as before");
        server.join().unwrap();

        // As if the daemon had been killed then: a bridge without containers is nobody's.
        network.detach("web").unwrap();
        attach(&other, "theirs", &[]);
        other.detach("theirs").unwrap();
    });
}

#[test]
fn the_bridge_keeps_its_mac_address_when_containers_come_and_go() {
    on_a_machine(|state| {
        let network = open(state);
        let ids: Vec<String> = (0..4).map(|number| format!("c{number}")).collect();
        let addresses = BTreeSet::from_iter(ids.iter().map(|id| {
            attach(&network, id, &[]);
            address_of("hoist0")
        }));
        assert_eq!(addresses.len(), 1, "{addresses:?}");
        for id in &ids {
            network.detach(id).unwrap();
            assert!(addresses.contains(&address_of("hoist0")));
        }
    });
}

/// A bridge without a MAC address of its own would take a container's, and lose it with that container.
#[test]
fn a_bridge_of_others_keeps_its_address_too() {
    on_a_machine(|state| {
        ip("link add hoist0 type bridge");
        ip("link add x master hoist0 type veth peer name y");
        let before = address_of("hoist0");
        let network = open(state);
        attach(&network, "web", &[]);
        assert_eq!(address_of("hoist0"), before);
        network.detach("web").unwrap();
    });
}

/// Rules and sysctls know a link by its name alone. One that has the bridge's as an alternative is named, in place of a
/// sysctl that is missing.
#[test]
fn a_link_with_the_bridges_name_as_an_alternative_is_refused() {
    on_a_machine(|state| {
        ip("link add lan type bridge");
        ip("link property add dev lan altname hoist0");
        let network = open(state);
        network.create_namespace("web").unwrap();
        let error = network.attach("web", &Request::default()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::FailedPrecondition, "{error:?}");
        assert!(error.chain().contains("lan has hoist0 as an alternative name"), "{error:?}");
    });
}

/// A bridge by which the host itself is on the network: the host's address is the gateway, and no container gets it.
#[test]
fn on_a_bridge_of_others_its_own_address_is_the_gateway() {
    on_a_machine(|state| {
        ip("link add hoist0 type bridge");
        ip("address add 10.77.0.3/29 dev hoist0");
        ip("address add 10.77.0.4/32 dev lo");
        let network = open(state);
        let mut addresses = BTreeSet::new();
        for id in ["c2", "c5", "c6"] {
            let (namespace, attachment) = attach(&network, id, &[]);
            assert_eq!(attachment.gateway, Ipv4Addr::new(10, 77, 0, 3));
            addresses.insert(attachment.address.octets()[3]);
            let server = serve(&namespace, 80, 1);
            assert_eq!(call(attachment.address, 80).unwrap(), "10.77.0.3");
            server.join().unwrap();
        }
        assert_eq!(addresses, BTreeSet::from([2, 5, 6]), "the machine has 3 and 4");
        network.create_namespace("c7").unwrap();
        let error = network.attach("c7", &Request::default()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ResourceExhausted, "{error:?}");
    });
}

/// Creating the bridge takes several steps; after the first it is a link without an address.
#[test]
fn a_bridge_that_a_crash_left_half_made_goes() {
    on_a_machine(|state| {
        let network = open(state);
        attach(&network, "web", &[]);
        network.detach("web").unwrap();
        let half =
            ["", "nft delete table ip hoist0", "ip address flush dev hoist0", "ip link set hoist0 down"];
        for steps in 1..=half.len() {
            attach(&network, "web", &[]);
            network.detach("web").unwrap();
            for step in half[..steps].iter().filter(|step| !step.is_empty()) {
                assert!(Command::new("sh").args(["-c", step]).status().unwrap().success(), "{step}");
            }
            // Without the state directory, nothing that was noted there can help.
            fs::remove_dir_all(state.join("netns")).unwrap();
            let _ = fs::remove_file(state.join("bridge"));
            assert!(open(state).remove_if_unused(false).unwrap(), "after {:?}", &half[..steps]);
            assert_eq!(address_of("hoist0"), None);
        }
    });
}

/// An earlier version noted name and index of the bridge in a file, which is valid until reboot.
#[test]
fn a_bridge_of_an_earlier_version_goes_if_its_note_is_of_this_boot() {
    for (memory, number_off, goes) in [(true, 0, true), (true, 1, false), (false, 0, false)] {
        on_a_machine(|_| {
            let parent = if memory { "/dev/shm" } else { env!("CARGO_TARGET_TMPDIR") };
            let state = tempfile::TempDir::new_in(parent).unwrap();
            ip("link add hoist0 type bridge");
            let index = Route::open().unwrap().link("hoist0").unwrap().unwrap().index + number_off;
            fs::write(state.path().join("bridge"), format!("hoist0 {index}\n")).unwrap();
            let network = open(state.path());
            attach(&network, "web", &[]);
            network.detach("web").unwrap();
            assert_eq!(network.remove_if_unused(false).unwrap(), goes, "{memory} {number_off}");
            assert_eq!(address_of("hoist0").is_none(), goes);
            assert_eq!(state.path().join("bridge").exists(), !goes);
        });
    }
}

/// nft encodes comments in the same field in a format of its own.
#[test]
fn rules_of_others_are_no_leftovers() {
    on_a_machine(|state| {
        let network = open(state);
        attach(&network, "web", &[tcp(Some(8080), 80)]);
        nft("add rule ip hoist0 forward iifname wg0 accept comment \"let the tunnel in\"");
        assert_eq!(open(state).reconcile(&BTreeSet::from(["web".to_owned()])).unwrap(), []);
        assert!(ruleset().contains("let the tunnel in"));
        let leftovers = open(state).reconcile(&BTreeSet::new()).unwrap();
        assert!(leftovers.contains(&network::Leftover::Record("web".to_owned())), "{leftovers:?}");
        assert!(ruleset().contains("let the tunnel in"));
    });
}
