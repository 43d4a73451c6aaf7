//! Network modes of containers, and the list of networks in Docker's format. There are always three: bridge, host and
//! none.

use std::fmt;
use std::str::FromStr;

use api::engine::{Create, Dns};
use metadata::Container;
use network::Range;
use regex_lite::Regex;
use serde_json::{Map, Value, json};
use types::{ContainerId, Digest, Error, Result};

use crate::Engine;
use crate::filter::FilterWord;
use crate::record::Extension;
use crate::spec::OF_CONTAINER;

/// The predefined networks.
pub(crate) const NETWORKS: [NetworkMode; 3] = [NetworkMode::Bridge, NetworkMode::Host, NetworkMode::None];

/// The network mode of a container, in the text form of `run --network` and of records.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum NetworkMode {
    /// A network namespace of its own, with an interface on the bridge.
    Bridge,
    /// The host's network namespace.
    Host,
    /// A network namespace of its own, without interfaces but the loopback.
    None,
    /// The network namespace of another container: in a request by name or id, in a record by id.
    Of(String),
}

impl NetworkMode {
    /// The mode of a container, which was validated when the container was created. Defaults to the bridge.
    pub(crate) fn of(create: &Create) -> NetworkMode {
        create.network.parse().unwrap_or(NetworkMode::Bridge)
    }

    /// Docker's driver name; `None` for another container's network, which is not listed.
    pub(crate) const fn driver(&self) -> Option<&'static str> {
        match self {
            NetworkMode::Bridge => Some("bridge"),
            NetworkMode::Host => Some("host"),
            NetworkMode::None => Some("null"),
            NetworkMode::Of(_) => None,
        }
    }
}

impl FromStr for NetworkMode {
    type Err = Error;

    /// Empty means bridge. `NotFound` for an unknown network.
    fn from_str(text: &str) -> Result<NetworkMode> {
        match text {
            "" | "bridge" => Ok(NetworkMode::Bridge),
            "host" => Ok(NetworkMode::Host),
            "none" => Ok(NetworkMode::None),
            other => {
                let other = other.strip_prefix(OF_CONTAINER).ok_or_else(|| unknown(text))?;
                Ok(NetworkMode::Of(other.to_owned()))
            }
        }
    }
}

impl fmt::Display for NetworkMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            NetworkMode::Bridge => f.write_str("bridge"),
            NetworkMode::Host => f.write_str("host"),
            NetworkMode::None => f.write_str("none"),
            NetworkMode::Of(other) => write!(f, "{OF_CONTAINER}{other}"),
        }
    }
}

const FILTERS: &[&str] = &["driver", "id", "name", "scope", "type", "dangling", "label"];

type Fits = Box<dyn Fn(&Value) -> bool>;

/// Compiles a filter to a predicate on rows. The predefined networks have no labels and are never dangling.
fn fits(word: &FilterWord<'_>) -> Result<Fits> {
    let value = word.value.to_owned();
    let pattern = || {
        Regex::new(word.value).map_err(|error| word.bad("it is not a regular expression").with_source(error))
    };
    let matches = |pattern: &Regex, text: &Value| text.as_str().is_some_and(|text| pattern.is_match(text));
    Ok(match (word.key, word.value) {
        ("type", "builtin") | ("dangling", "false" | "0") => Box::new(|_| true),
        ("type", "custom") | ("dangling", "true" | "1") | ("label", _) => Box::new(|_| false),
        ("type", _) => return Err(word.bad("expected builtin or custom")),
        ("dangling", _) => return Err(word.bad("expected true or false")),
        ("driver", _) => Box::new(move |row| row["Driver"] == value),
        ("scope", _) => Box::new(move |row| row["Scope"] == value),
        ("id", _) => pattern().map(|id| Box::new(move |row: &Value| matches(&id, &row["ID"])))?,
        (_, _) => pattern().map(|name| Box::new(move |row: &Value| matches(&name, &row["Name"])))?,
    })
}

impl Engine {
    pub(crate) fn list_networks(&self, filters: &[String]) -> Result<Value> {
        let mut rows: Vec<Value> = NETWORKS.iter().map(|network| self.network_row(network)).collect();
        // Values of the same key are alternatives.
        let words = filters.iter().map(|text| FilterWord::read(text, FILTERS)).collect::<Result<Vec<_>>>()?;
        for key in FILTERS {
            let own: Vec<_> = words.iter().filter(|word| word.key == *key).collect();
            let fits = own.iter().map(|word| fits(word)).collect::<Result<Vec<_>>>()?;
            rows.retain(|row| fits.is_empty() || fits.iter().any(|fits| fits(row)));
        }
        Ok(rows.into())
    }

    /// A network by name, id or prefix of an id, with the containers on it.
    pub(crate) async fn inspect_network(&self, text: &str) -> Result<Value> {
        let is_meant =
            |network: &NetworkMode| network.to_string() == text || self.is_network_id(network, text);
        let network = NETWORKS.into_iter().find(is_meant).ok_or_else(|| unknown(text))?;
        let mut shown = self.network_row(&network);
        let mut on_it = Map::new();
        for (container, extension) in self.with_network(&network).await? {
            if self.state_of(&container.id, &extension).await.is_alive() {
                on_it.insert(container.id.to_string(), self.endpoint(&container, &extension));
            }
        }
        let (ranges, options) = match network {
            NetworkMode::Bridge => self.bridge_facts().await?,
            _ => Default::default(),
        };
        shown["IPAM"] = json!({"Driver": "default", "Options": null, "Config": ranges});
        shown["Containers"] = on_it.into();
        shown["Options"] = options.into();
        shown["Labels"] = json!({});
        Ok(shown)
    }

    fn network_row(&self, network: &NetworkMode) -> Value {
        json!({
            "ID": self.network_id(network),
            "Name": network.to_string(),
            "Driver": network.driver(),
            "Scope": "local",
            "EnableIPv4": true,
            "EnableIPv6": false,
            "Internal": false,
            "Attachable": false,
            "Ingress": false,
        })
    }

    /// Docker-style id, stable for a given root directory.
    pub(crate) fn network_id(&self, network: &NetworkMode) -> String {
        Digest::of(format!("{network} of {}", self.parts().root.display()).as_bytes()).hex().to_owned()
    }

    fn is_network_id(&self, network: &NetworkMode, text: &str) -> bool {
        text.len() >= 4 && self.network_id(network).starts_with(text)
    }

    async fn with_network(&self, network: &NetworkMode) -> Result<Vec<(Container, Extension)>> {
        let network = network.clone();
        self.blocking(move |engine| {
            let all = engine.all()?.into_iter();
            let own = all.filter_map(|container| {
                let extension = Extension::of(&container).ok()?;
                Some((container, extension))
            });
            Ok(own.filter(|(_, extension)| NetworkMode::of(&extension.create) == network).collect())
        })
        .await
    }

    fn endpoint(&self, container: &Container, extension: &Extension) -> Value {
        let attachment = self.parts().network.attachment(container.id.as_str());
        let address = attachment.as_ref().map(|one| format!("{}/{}", one.address, one.prefix_len));
        json!({
            "Name": extension.name,
            "MacAddress": attachment.as_ref().map(network::Attachment::mac_text).unwrap_or_default(),
            "IPv4Address": address.unwrap_or_default(),
            "IPv6Address": "",
        })
    }

    /// The bridge's subnet, or the configured one if the bridge does not exist yet.
    async fn bridge_facts(&self) -> Result<(Vec<Value>, Map<String, Value>)> {
        let range =
            |range: Range| json!({"Subnet": range.subnet.to_string(), "Gateway": range.gateway.to_string()});
        self.blocking(move |engine| {
            let network = &engine.parts().network;
            let ranges = network.range()?.into_iter().map(range).collect();
            let config = network.config();
            let mut options = Map::new();
            options.insert("com.docker.network.bridge.name".into(), config.bridge.as_str().into());
            if let Some(mtu) = config.mtu {
                options.insert("com.docker.network.driver.mtu".into(), mtu.to_string().into());
            }
            Ok((ranges, options))
        })
        .await
    }
}

fn unknown(name: &str) -> Error {
    Error::not_found(format!(
        "network {name} does not exist; there are bridge, host, none, and {OF_CONTAINER}NAME for that of a container"
    ))
}

impl Engine {
    /// Finds the container whose network is joined, and replaces its name by its id. Follows a container that has
    /// itself joined another's network.
    pub(crate) fn join(&self, create: &mut Create) -> Result<Option<(ContainerId, Extension)>> {
        let NetworkMode::Of(text) = NetworkMode::of(create) else { return Ok(None) };
        let said = [
            ("-h", create.hostname.is_some()),
            ("--domainname", !create.extras.domainname.is_empty()),
            ("-p", !create.ports.is_empty() || create.publish_all),
            ("--add-host", !create.extras.hosts.is_empty()),
            ("--dns", create.extras.dns != Dns::default()),
        ];
        if let Some((flag, _)) = said.iter().find(|(_, is_said)| *is_said) {
            return Err(Error::invalid_argument(format!(
                "conflicting options: {flag} and --network {}; it is said of the container whose network it is",
                create.network
            )));
        }
        let mut container = self.find(&text)?;
        let mut extension = Extension::of(&container)?;
        // That container has joined the network of a third one.
        if let NetworkMode::Of(third) = NetworkMode::of(&extension.create) {
            container = self.find(&third)?;
            extension = Extension::of(&container)?;
        }
        if NetworkMode::of(&extension.create) == NetworkMode::None {
            return Err(Error::failed_precondition(format!("container {text} has no network to share")));
        }
        create.network = NetworkMode::Of(container.id.to_string()).to_string();
        Ok(Some((container.id, extension)))
    }
}

/// The requested MAC address, `02:42:ac:11:00:02`, also with `-` as separator. `InvalidArgument` for an invalid or
/// multicast address, or if the container has no interface of its own.
pub(crate) fn mac_address(create: &Create) -> Result<Option<[u8; 6]>> {
    let text = &create.extras.mac_address;
    if text.is_empty() {
        return Ok(None);
    }
    if NetworkMode::of(create) != NetworkMode::Bridge {
        return Err(Error::invalid_argument(format!(
            "conflicting options: --mac-address and --network {}; it is of an interface on the bridge",
            create.network
        )));
    }
    let is_byte = |text: &&str| text.len() == 2 && text.bytes().all(|digit| digit.is_ascii_hexdigit());
    let byte = |text: &str| Some(text).filter(is_byte).and_then(|text| u8::from_str_radix(text, 16).ok());
    let bytes: Option<Vec<u8>> = text.split([':', '-']).map(byte).collect();
    let address = bytes.and_then(|bytes| <[u8; 6]>::try_from(bytes).ok());
    // The lowest bit of the first byte marks a group address (IEEE 802, 8.2).
    let address = address.filter(|address| address[0] & 1 == 0 && *address != [0; 6]);
    address.map(Some).ok_or_else(|| {
        Error::invalid_argument(format!(
            "--mac-address {text:?}: it is the hardware address of one interface, such as 02:42:ac:11:00:02"
        ))
    })
}

#[cfg(test)]
mod tests {
    use api::engine::Extras;

    use super::*;

    #[test]
    fn network_modes_are_parsed_as_they_are_written() {
        let of = |text: &str| text.parse::<NetworkMode>();
        for network in NETWORKS.into_iter().chain([NetworkMode::Of("web".into())]) {
            assert_eq!(of(&network.to_string()).unwrap(), network);
        }
        assert_eq!(of("").unwrap(), NetworkMode::Bridge);
        assert_eq!(of("container:web").unwrap(), NetworkMode::Of("web".to_owned()));
        for wrong in ["web", "Bridge", "host ", "container", "null"] {
            let refused = of(wrong).unwrap_err();
            assert!(refused.is(types::ErrorKind::NotFound), "{refused}");
            assert!(refused.message().contains(wrong), "{refused}");
        }
    }

    #[test]
    fn networks_have_dockers_names_and_drivers() {
        let found = NETWORKS.map(|network| (network.to_string(), network.driver()));
        let expected = [("bridge", "bridge"), ("host", "host"), ("none", "null")];
        assert_eq!(found, expected.map(|(name, driver)| (name.to_owned(), Some(driver))));
        assert_eq!(NetworkMode::Of("web".into()).driver(), None);
    }

    #[test]
    fn hardware_addresses_are_of_one_interface_on_the_bridge() {
        let found = |text: &str, network: &str| {
            let extras = Extras { mac_address: text.into(), ..Extras::default() };
            mac_address(&Create { network: network.into(), extras, ..Create::default() })
        };
        assert_eq!(found("", "host").unwrap(), None);
        assert_eq!(found("02:42:AC:11:00:02", "bridge").unwrap(), Some([2, 0x42, 0xac, 0x11, 0, 2]));
        assert_eq!(found("02-42-ac-11-00-02", "bridge").unwrap(), Some([2, 0x42, 0xac, 0x11, 0, 2]));
        for bad in [
            "02:42",
            "02:42:ac:11:00:02:03",
            "03:42:ac:11:00:02",
            "0:0:0:0:0:0",
            "00:00:00:00:00:00",
            "+2:42:ac:11:00:02",
        ] {
            assert!(found(bad, "bridge").is_err(), "{bad}");
        }
        assert!(found("02:42:ac:11:00:02", "none").unwrap_err().message().contains("--network none"));
    }
}
