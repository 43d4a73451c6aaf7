//! Ports that an image or a container exposes: `80/tcp`, `53/udp`, or a range.

use std::collections::BTreeSet;
use std::ops::RangeInclusive;

use api::engine::Port;
use types::{Error, Result};

/// The most exposed ports of an image that are published. Each takes a packet filter rule, and an image may expose all
/// of them.
const PORTS_MAX: usize = 1024;

/// Adds each port of `exposed` that is not published yet, without a host port: a free one is chosen when the container
/// starts.
pub(super) fn publish_all<'a>(
    ports: &mut Vec<Port>,
    exposed: impl IntoIterator<Item = &'a String>,
) -> Result<()> {
    for text in exposed {
        let (range, protocol) = read(text).ok_or_else(|| {
            Error::invalid_argument(format!(
                "the image exposes {text:?}, which is not a port; publish its ports with -p"
            ))
        })?;
        for container_port in range {
            if ports.iter().any(|port| {
                port.container_port == container_port
                    && (port.protocol == protocol || port.protocol.is_empty() && protocol == "tcp")
            }) {
                continue;
            }
            if ports.len() >= PORTS_MAX {
                return Err(Error::resource_exhausted(format!(
                    "the image exposes more than {PORTS_MAX} ports; publish the needed ones with -p"
                )));
            }
            let protocol = protocol.clone();
            ports.push(Port { container_port, protocol, ..Port::default() });
        }
    }
    Ok(())
}

/// Parses `--expose` and expands ranges.
pub(super) fn expose(asked: &[String]) -> Result<Vec<String>> {
    let mut exposed = BTreeSet::new();
    for text in asked {
        let known = |protocol: &str| matches!(protocol, "tcp" | "udp" | "sctp");
        let (range, protocol) = read(text).filter(|(_, protocol)| known(protocol)).ok_or_else(|| {
            Error::invalid_argument(format!("--expose {text}: expected PORT[-PORT][/tcp|/udp|/sctp]"))
        })?;
        exposed.extend(range.map(|port| (protocol.clone(), port)));
    }
    if exposed.len() > PORTS_MAX {
        return Err(Error::resource_exhausted(format!("--expose: more than {PORTS_MAX} ports")));
    }
    Ok(exposed.into_iter().map(|(protocol, port)| format!("{port}/{protocol}")).collect())
}

/// Parses exposed ports. Skips invalid ones and those beyond the limit.
pub(super) fn each<'a>(exposed: impl IntoIterator<Item = &'a String>) -> BTreeSet<(u16, String)> {
    let ranges = exposed.into_iter().filter_map(|text| read(text));
    let ports = ranges.flat_map(|(range, protocol)| range.map(move |port| (port, protocol.clone())));
    ports.take(PORTS_MAX).collect()
}

/// Port range and protocol; `None` if invalid.
fn read(text: &str) -> Option<(RangeInclusive<u16>, String)> {
    let (numbers, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    let (first, last) = numbers.split_once('-').unwrap_or((numbers, numbers));
    let (first, last) = (first.parse::<u16>().ok()?, last.parse::<u16>().ok()?);
    (first > 0 && first <= last).then(|| (first..=last, protocol.to_ascii_lowercase()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn published(own: &[(u16, &str)], exposed: &[&str]) -> Result<Vec<(u16, String)>> {
        let port = |(number, protocol): &(u16, &str)| Port {
            host_port: Some(1),
            container_port: *number,
            protocol: (*protocol).into(),
            ..Port::default()
        };
        let mut ports: Vec<Port> = own.iter().map(port).collect();
        let exposed: Vec<String> = exposed.iter().map(ToString::to_string).collect();
        publish_all(&mut ports, &exposed)?;
        Ok(ports.into_iter().map(|port| (port.container_port, port.protocol)).collect())
    }

    #[test]
    fn what_is_exposed_is_published_once() {
        let check = |own: &[(u16, &str)], exposed: &[&str], expected: &[(u16, &str)]| {
            let expected: Vec<_> =
                expected.iter().map(|(number, word)| (*number, (*word).to_owned())).collect();
            assert_eq!(published(own, exposed).unwrap(), expected, "{exposed:?}");
        };
        check(&[], &["80", "53/udp"], &[(80, "tcp"), (53, "udp")]);
        check(&[(80, "tcp")], &["80/tcp", "80/UDP"], &[(80, "tcp"), (80, "udp")]);
        check(&[], &["8000-8002/tcp"], &[(8000, "tcp"), (8001, "tcp"), (8002, "tcp")]);
        for bad in ["", "x/tcp", "0", "5-4", "70000"] {
            assert!(published(&[], &[bad]).unwrap_err().message().contains("exposes"), "{bad}");
        }
        assert!(published(&[], &["1-65535"]).unwrap_err().message().contains("1024"));
    }
}
