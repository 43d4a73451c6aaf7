//! Network devices of the host that move into the container (`config-linux.md`, "Network Devices").
//!
//! A device keeps those of its addresses that are its own for good, which the kernel drops on the way, and is up when it
//! arrives. When the
//! namespace ends the kernel gives hardware back to the host; a device of software ends with it.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};

use linux::netlink::Route;
use linux::ns::NsKind;
use types::spec::runtime::NetDevice;
use types::{Context, Error, Result};

use crate::plan::Namespaces;

/// Bytes of a name that the kernel takes (`IFNAMSIZ`, without the final zero).
const NAME_LEN_MAX: usize = 15;

pub(crate) fn check(devices: &BTreeMap<String, NetDevice>) -> Result<()> {
    let mut seen = Vec::with_capacity(devices.len());
    for (from, device) in devices {
        let to = inside(from, device);
        for name in [from.as_str(), to] {
            let is_name = !name.is_empty()
                && name.len() <= NAME_LEN_MAX
                && name != "."
                && name != ".."
                && !name.contains(['/', ':'])
                && !name.contains(char::is_whitespace);
            if !is_name {
                return Err(Error::invalid_argument(format!("{name:?} is no name of a network device")));
            }
        }
        if seen.contains(&to) {
            return Err(Error::invalid_argument(format!("two network devices would be called {to:?}")));
        }
        seen.push(to);
    }
    Ok(())
}

/// Moves the devices into the network of the container that a process is the first of. `NotFound` if the host
/// has none of this name.
pub(crate) fn give(devices: &BTreeMap<String, NetDevice>, namespaces: &Namespaces, pid: u32) -> Result<()> {
    if devices.is_empty() {
        return Ok(());
    }
    // The process joins that by itself, and nobody knows when: until then its own is the host's.
    if let Some(joined) = namespaces.joined(NsKind::Network) {
        return give_into(devices, joined);
    }
    let path = format!("/proc/{pid}/ns/net");
    let namespace = File::open(&path).context(|| format!("open {path}"))?;
    give_into(devices, namespace.as_fd())
}

fn give_into(devices: &BTreeMap<String, NetDevice>, namespace: BorrowedFd<'_>) -> Result<()> {
    let mut host = Route::open()?;
    let mut inside_route = Route::open_in(namespace)?;
    for (from, device) in devices {
        let to = inside(from, device);
        let what = || format!("move network device {from} into the container as {to}");
        let link =
            host.link(from)?.ok_or_else(|| Error::not_found(format!("{}: it is not there", what())))?;
        let addresses = host.addresses()?;
        host.give_link(link.index, namespace, to).context(what)?;
        let arrived = inside_route.link(to)?.ok_or_else(|| Error::not_found(what()))?;
        // What is lent would never be given back, and the kernel makes the link-local one anew.
        for address in addresses.iter().filter(|address| address.link == link.index && address.is_lasting) {
            inside_route.add_address(arrived.index, address.prefix).context(what)?;
        }
        inside_route.set_up(arrived.index).context(what)?;
    }
    Ok(())
}

fn inside<'a>(from: &'a str, device: &'a NetDevice) -> &'a str {
    if device.name.is_empty() { from } else { &device.name }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(devices: &[(&str, &str)]) -> bool {
        let devices = devices.iter().map(|(from, to)| ((*from).to_owned(), NetDevice { name: (*to).into() }));
        super::check(&devices.collect()).is_ok()
    }

    #[test]
    fn names_must_be_names_and_differ() {
        assert!(check(&[("eth1", ""), ("eth2", "net0")]));
        assert!(!check(&[("eth1", "same"), ("eth2", "same")]));
        assert!(!check(&[("eth1", "eth2"), ("eth2", "")]));
        for wrong in ["..", "a/b", "a:1", "longer-than-fifteen", "a b"] {
            assert!(!check(&[("eth1", wrong)]), "{wrong}");
            assert!(!check(&[(wrong, "eth1")]), "{wrong}");
        }
    }
}
