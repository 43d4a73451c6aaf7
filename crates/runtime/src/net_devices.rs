//! Network devices of the host that move into the container (`config-linux.md`, "Network Devices").
//!
//! The kernel drops a device's addresses when it moves; permanent ones are added again, and the device is brought up.
//! When the namespace ends, the kernel gives hardware back to the host; a virtual device ends with it.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};

use linux::ns::NsKind;
use linux::rtnetlink::{Link, Route};
use types::spec::runtime::NetDevice;
use types::{Context, Error, Result};

use crate::plan::Namespaces;

/// Bytes of a device's name, at most (`IFNAMSIZ`, without the final zero).
const NAME_LEN_MAX: usize = 15;

/// Placeholder in a name for the first free number.
const NUMBER: &str = "%d";

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
        if is_template(to) {
            // The kernel accepts one placeholder, and no other `%`.
            if is_template(&to.replacen(NUMBER, "", 1)) {
                let why = format!("{to:?} is no name of a network device: of % it may have one {NUMBER}");
                return Err(Error::invalid_argument(why));
            }
            continue;
        }
        if seen.contains(&to) {
            return Err(Error::invalid_argument(format!("two network devices would be called {to:?}")));
        }
        seen.push(to);
    }
    Ok(())
}

/// Moves the devices into the network namespace of the container whose first process has this pid. `NotFound` if the
/// host lacks a device.
pub(crate) fn give(devices: &BTreeMap<String, NetDevice>, namespaces: &Namespaces, pid: u32) -> Result<()> {
    if devices.is_empty() {
        return Ok(());
    }
    // The process joins the namespace by itself at an unknown time; until then its own is the host's.
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
    let mut devices: Vec<_> = devices.iter().map(|(from, device)| (from, inside(from, device))).collect();
    // Templates come last, so that none takes a name that another device asks for.
    devices.sort_by_key(|(_, to)| is_template(to));
    for (from, wanted) in devices {
        let what = || format!("move network device {from} into the container as {wanted}");
        let to = match is_template(wanted) {
            true => first_free(wanted, &inside_route.links()?).context(what)?,
            false => wanted.to_owned(),
        };
        let link =
            host.link(from)?.ok_or_else(|| Error::not_found(format!("{}: it is not there", what())))?;
        let addresses = host.addresses()?;
        host.give_link(link.index, namespace, &to).context(what)?;
        let arrived = inside_route.link(&to)?.ok_or_else(|| Error::not_found(what()))?;
        // Addresses with a lifetime (DHCP) would never be renewed, and the kernel makes the link-local one anew.
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

fn is_template(name: &str) -> bool {
    name.contains('%')
}

/// The name that the kernel would choose for a template. It is chosen here, as the kernel does not return it.
/// Alternative names are taken too: the kernel refuses a name that another link has as one.
fn first_free(template: &str, taken: &[Link]) -> Result<String> {
    let names = (0..).map(|number: u32| template.replacen(NUMBER, &number.to_string(), 1));
    let mut names = names.take_while(|name| name.len() <= NAME_LEN_MAX);
    let free = names.find(|name| taken.iter().all(|link| !is_called(link, name)));
    free.ok_or_else(|| Error::failed_precondition("all names of this template are taken"))
}

fn is_called(link: &Link, name: &str) -> bool {
    link.name == name || link.alternative_names.iter().any(|other| other == name)
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
        assert!(check(&[("eth1", "net%d"), ("eth2", "net%d"), ("eth3", "net%dx")]));
        for wrong in ["net%", "net%s", "net%d%d", "net%%d"] {
            assert!(!check(&[("eth1", wrong)]), "{wrong}");
        }
    }

    #[test]
    fn a_template_has_the_first_number_that_is_free() {
        let link = |name: &str| Link {
            index: 1,
            name: name.into(),
            alternative_names: Vec::new(),
            kind: String::new(),
            master: None,
            is_up: true,
            address: Vec::new(),
        };
        let renamed = Link { alternative_names: vec!["eth0".into(), "eth1".into()], ..link("lan") };
        assert_eq!(first_free("eth%d", &[link("lo"), renamed]).ok().as_deref(), Some("eth2"));
        let first = |template: &str, taken: &[&str]| {
            let taken: Vec<Link> = taken.iter().map(|name| link(name)).collect();
            first_free(template, &taken).ok()
        };
        assert_eq!(first("eth%d", &["lo"]).as_deref(), Some("eth0"));
        assert_eq!(first("eth%d", &["eth0", "eth2", "eth1"]).as_deref(), Some("eth3"));
        let long = "thirteen-byte%d";
        let all: Vec<String> = (0..100).map(|number| format!("thirteen-byte{number}")).collect();
        let all: Vec<&str> = all.iter().map(String::as_str).collect();
        assert_eq!(first(long, &all[..99]).as_deref(), Some("thirteen-byte99"));
        assert_eq!(first(long, &all), None);
    }
}
