//! `--filter` of container lists, with Docker's syntax.
//!
//! Values of the same key are alternatives, except labels, which must all match. Different keys must all match.

use std::collections::BTreeSet;

use api::engine::Port;
use metadata::Container;
use regex_lite::Regex;
use types::{Error, ErrorKind, Result, Timestamp};

use super::{State, exposed};
use crate::Engine;
use crate::filter::{FilterWord, LabelFilter};
use crate::health;
use crate::record::Extension;

pub(super) const KNOWN: &[&str] = &[
    "ancestor", "before", "exited", "expose", "health", "id", "label", "name", "network", "publish", "since",
    "status", "volume",
];

/// Docker's filter keys of `container prune`.
pub(super) const KNOWN_TO_PRUNE: &[&str] = &["label", "label!", "until"];

const STATES: &[&str] =
    &["created", "running", "paused", "restarting", "exited", "removing", "dead", "unknown"];

/// The parsed filters of one call. A key without values does not restrict.
#[derive(Default)]
pub(crate) struct Filter {
    ids: Vec<Regex>,
    names: Vec<Regex>,
    labels: LabelFilter,
    until: Option<Timestamp>,
    states: Vec<String>,
    exited: Vec<u32>,
    healths: Vec<String>,
    volumes: Vec<String>,
    networks: Vec<String>,
    published: Vec<Ports>,
    exposed: Vec<Ports>,
    /// Creation time of another container, which limits that of the result.
    before: Option<Timestamp>,
    since: Option<Timestamp>,
    /// Digests of images; the container must be made from one of them.
    ancestors: Option<BTreeSet<String>>,
}

/// Container ports, and their protocol if given.
#[derive(Debug, PartialEq)]
struct Ports {
    first: u16,
    last: u16,
    protocol: Option<String>,
}

impl Ports {
    fn contain(&self, port: u16, protocol: &str) -> bool {
        let own = if protocol.is_empty() { "tcp" } else { protocol };
        (self.first..=self.last).contains(&port) && self.protocol.as_ref().is_none_or(|wanted| wanted == own)
    }

    fn contain_one_of(&self, published: &[Port]) -> bool {
        published.iter().any(|port| self.contain(port.container_port, &port.protocol))
    }
}

impl Filter {
    /// Whether [`Filter::fits_exposed`] has to be asked.
    pub(super) fn asks_for_exposed(&self) -> bool {
        !self.exposed.is_empty()
    }

    /// Whether a wanted port is exposed: by the image or `--expose`, or by being published, as with Docker.
    pub(super) fn fits_exposed<'a>(
        &self,
        published: &[Port],
        exposed: impl IntoIterator<Item = &'a String>,
    ) -> bool {
        if self.exposed.is_empty() {
            return true;
        }
        let exposed = exposed::each(exposed);
        let is_exposed = |wanted: &Ports| {
            wanted.contain_one_of(published)
                || exposed.iter().any(|(port, protocol)| wanted.contain(*port, protocol))
        };
        self.exposed.iter().any(is_exposed)
    }

    /// Whether the filter asks for states, and so for containers that do not run as well.
    pub(super) fn means_all(&self) -> bool {
        !self.states.is_empty()
    }

    /// `health` is empty for a container without a health check, which filters call [`health::NO_HEALTH_CHECK`].
    pub(super) fn fits(
        &self,
        container: &Container,
        extension: &Extension,
        state: &State,
        health: &str,
    ) -> bool {
        let create = &extension.create;
        let any = |patterns: &[Regex], text: &str| {
            patterns.is_empty() || patterns.iter().any(|pattern| pattern.is_match(text))
        };
        let has_volume = |wanted: &String| {
            create.mounts.iter().any(|mount| mount.source == *wanted || mount.target == *wanted)
        };
        let publishes = |ports: &Ports| ports.contain_one_of(&create.ports);
        let code = state.exit.filter(|_| !state.is_alive()).map(|exit| exit.code);
        any(&self.ids, container.id.as_str())
            && (any(&self.names, &extension.name) || any(&self.names, &format!("/{}", extension.name)))
            && self.labels.fits(&create.labels)
            && (self.states.is_empty() || self.states.iter().any(|wanted| wanted == state.phase.name()))
            && (self.healths.is_empty()
                || self.healths.iter().any(|wanted| {
                    if health.is_empty() { wanted == health::NO_HEALTH_CHECK } else { wanted == health }
                }))
            && (self.exited.is_empty() || code.is_some_and(|code| self.exited.contains(&code)))
            && (self.volumes.is_empty() || self.volumes.iter().any(has_volume))
            && (self.networks.is_empty() || self.networks.contains(&create.network))
            && (self.published.is_empty() || self.published.iter().any(publishes))
            && self.until.is_none_or(|until| container.created < until)
            && self.before.is_none_or(|before| container.created < before)
            && self.since.is_none_or(|since| container.created > since)
            && self.ancestors.as_ref().is_none_or(|ids| ids.contains(&extension.image_digest))
    }
}

impl Engine {
    /// Parses the filters of a call that supports the keys `known`.
    pub(super) fn container_filter(&self, texts: &[String], known: &[&str]) -> Result<Filter> {
        let mut filter = Filter::default();
        for text in texts {
            let word = FilterWord::read(text, known)?;
            let (value, bad) = (word.value, |why: &str| word.bad(why));
            let regex = || {
                Regex::new(value).map_err(|error| bad("it is not a regular expression").with_source(error))
            };
            let created = || Ok::<_, Error>(self.find(value)?.created);
            match word.key {
                "id" => filter.ids.push(regex()?),
                "name" => filter.names.push(regex()?),
                "label" | "label!" => filter.labels.add(&word),
                "until" => {
                    let time = word.time()?;
                    filter.until = Some(filter.until.map_or(time, |other| other.min(time)));
                }
                "status" if STATES.contains(&value) => filter.states.push(value.to_owned()),
                "status" => return Err(bad(&format!("expected one of {}", STATES.join(", ")))),
                "health" if health::STATES.contains(&value) => filter.healths.push(value.to_owned()),
                "health" => return Err(bad(&format!("expected one of {}", health::STATES.join(", ")))),
                "exited" => {
                    filter.exited.push(value.parse().map_err(|_| bad("expected an exit code"))?);
                }
                "volume" => filter.volumes.push(value.to_owned()),
                "network" => filter.networks.push(value.to_owned()),
                "publish" | "expose" => {
                    let ports = ports(value).ok_or_else(|| bad("expected PORT[-PORT][/PROTOCOL]"))?;
                    let all = if word.key == "expose" { &mut filter.exposed } else { &mut filter.published };
                    all.push(ports);
                }
                "before" => {
                    let time = created()?;
                    filter.before = Some(filter.before.map_or(time, |other| other.min(time)));
                }
                "since" => {
                    let time = created()?;
                    filter.since = Some(filter.since.map_or(time, |other| other.max(time)));
                }
                "ancestor" => {
                    let ids = filter.ancestors.get_or_insert_default();
                    match self.find_image(value) {
                        // No container matches an unknown image; Docker reports no error either.
                        Err(error) if error.is(ErrorKind::NotFound) => {}
                        image => {
                            ids.insert(self.found(image?).id().to_string());
                        }
                    }
                }
                _ => return Err(bad(&format!("known are {}", known.join(", ")))),
            }
        }
        Ok(filter)
    }
}

/// `80` or `80-90`, optionally with `/PROTOCOL`.
fn ports(text: &str) -> Option<Ports> {
    let (range, protocol) = match text.split_once('/') {
        Some((range, protocol)) => (range, Some(protocol.to_owned())),
        None => (text, None),
    };
    let (first, last) = range.split_once('-').unwrap_or((range, range));
    Some(Ports { first: first.parse().ok()?, last: last.parse().ok()?, protocol })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_one_or_a_range() {
        let range = |first, last, protocol| Some(Ports { first, last, protocol });
        assert_eq!(ports("80"), range(80, 80, None));
        assert_eq!(ports("80-90/udp"), range(80, 90, Some("udp".to_owned())));
        for wrong in ["", "x", "80-", "70000", "/tcp"] {
            assert_eq!(ports(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn published_ports_are_exposed_too() {
        let published = [Port { container_port: 80, ..Port::default() }];
        let exposed = ["53/udp".to_owned(), "8000-8010/tcp".to_owned()];
        let check = |texts: &[&str]| {
            let exposed_ones = texts.iter().map(|text| ports(text).unwrap()).collect();
            Filter { exposed: exposed_ones, ..Filter::default() }.fits_exposed(&published, &exposed)
        };
        for fitting in [&["80"][..], &[], &["80/tcp"], &["53"], &["53/udp"], &["8005-9000"], &["1", "8000"]] {
            assert!(check(fitting), "{fitting:?}");
        }
        for other in ["80/udp", "53/tcp", "81", "8011-9000"] {
            assert!(!check(&[other]), "{other}");
        }
    }
}
