//! Proxies: which hosts are reached through which proxy. The rules are those of Go's `httpproxy`, since the same
//! variables are set for the programs of the whole machine.
//!
//! ```text
//! HTTP_PROXY, HTTPS_PROXY   http://[user:password@]host[:port], or https://; also in lower case
//! NO_PROXY                  *                  everything
//!                           example.com        it and its subdomains           .example.com   only subdomains
//!                           10.0.0.0/8, ::1    addresses                       host:5000      one port
//! ```
//!
//! Loopback hosts are never reached through a proxy.

use std::net::IpAddr;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::{HeaderValue, Uri};
use percent_encoding::percent_decode_str;
use types::{Error, Result};

use crate::host::is_loopback;

/// The proxies by URL scheme.
#[derive(Clone, Debug, Default)]
pub struct Proxies {
    http: Option<Proxy>,
    https: Option<Proxy>,
    exceptions: Vec<Exception>,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Proxy {
    /// Scheme, host and port.
    pub(crate) address: Uri,
    /// `Basic …`, if the address has a user.
    pub(crate) authorization: Option<HeaderValue>,
}

#[derive(Clone, Debug, PartialEq)]
struct Exception {
    what: Hosts,
    port: Option<u16>,
}

#[derive(Clone, Debug, PartialEq)]
enum Hosts {
    All,
    /// An address, and the length of its prefix.
    Network(IpAddr, u8),
    /// With a leading dot, so that it matches only whole labels.
    Domain {
        suffix: String,
        itself: bool,
    },
}

impl Proxies {
    /// Reads the variables through `variable`. An empty one counts as unset. `InvalidArgument` for an invalid proxy
    /// URL.
    pub fn from_variables(variable: impl Fn(&str) -> Option<String>) -> Result<Proxies> {
        let find = |name: &str| {
            let found = variable(name).filter(|value| !value.is_empty());
            found.or_else(|| variable(&name.to_ascii_lowercase())).filter(|value| !value.is_empty())
        };
        let proxy = |name: &str| {
            let found = find(name).map(|text| Proxy::parse(&text));
            found.transpose().map_err(|error| error.context(format!("read {name}")))
        };
        let exceptions = find("NO_PROXY").unwrap_or_default();
        Ok(Proxies {
            http: proxy("HTTP_PROXY")?,
            https: proxy("HTTPS_PROXY")?,
            exceptions: exceptions.split(',').filter_map(Exception::parse).collect(),
        })
    }

    /// The proxy for a URL; `None` if it is reached directly.
    pub(crate) fn choose(&self, address: &Uri) -> Option<&Proxy> {
        let (proxy, default_port) = match address.scheme_str() {
            Some("https") => (self.https.as_ref()?, 443),
            _ => (self.http.as_ref()?, 80),
        };
        let host = address.host()?.trim_end_matches('.').to_ascii_lowercase();
        let port = address.port_u16().unwrap_or(default_port);
        let direct = is_loopback(&host) || self.exceptions.iter().any(|rule| rule.holds(&host, port));
        (!direct).then_some(proxy)
    }
}

impl Proxy {
    fn parse(text: &str) -> Result<Proxy> {
        // The text may contain a password: it is not quoted.
        let bad = |why: &str| Error::invalid_argument(format!("not the address of a proxy: {why}"));
        let full = if text.contains("://") { text.to_owned() } else { format!("http://{text}") };
        let uri: Uri = full.parse().map_err(|_| bad("expected http://host:port"))?;
        let scheme = match uri.scheme_str() {
            Some(scheme @ ("http" | "https")) => scheme,
            Some(other) => return Err(bad(&format!("{other} is not supported, http and https are"))),
            None => return Err(bad("expected http://host:port")),
        };
        let authority = uri.authority().map_or("", http::uri::Authority::as_str);
        let (user, host) =
            authority.rsplit_once('@').map_or((None, authority), |(user, host)| (Some(user), host));
        if host.is_empty() {
            return Err(bad("it has no host"));
        }
        let authorization = user.map(|user| {
            let (user, password) = user.split_once(':').unwrap_or((user, ""));
            let mut pair: Vec<u8> = percent_decode_str(user).collect();
            pair.push(b':');
            pair.extend(percent_decode_str(password));
            let mut value =
                HeaderValue::from_str(&format!("Basic {}", STANDARD.encode(pair))).expect("base64");
            value.set_sensitive(true);
            value
        });
        let address = format!("{scheme}://{host}").parse().map_err(|_| bad("expected http://host:port"))?;
        Ok(Proxy { address, authorization })
    }
}

impl Exception {
    fn parse(text: &str) -> Option<Exception> {
        let text = text.trim().to_ascii_lowercase();
        if text == "*" {
            return Some(Exception { what: Hosts::All, port: None });
        }
        if let Some((address, bits)) = text.split_once('/') {
            let (address, bits) = (address.parse::<IpAddr>().ok()?, bits.parse().ok()?);
            let what = (bits <= bits_of(address)).then_some(Hosts::Network(address, bits))?;
            return Some(Exception { what, port: None });
        }
        if let Ok(address) = text.trim_matches(['[', ']']).parse::<IpAddr>() {
            return Some(Exception { what: Hosts::Network(address, bits_of(address)), port: None });
        }
        let (name, port) = match text.rsplit_once(':') {
            Some((name, port)) => (name, Some(port.parse().ok()?)),
            None => (text.as_str(), None),
        };
        if let Ok(address) = name.trim_matches(['[', ']']).parse::<IpAddr>() {
            return Some(Exception { what: Hosts::Network(address, bits_of(address)), port });
        }
        let name = name.strip_prefix('*').filter(|rest| rest.starts_with('.')).unwrap_or(name);
        let (bare, itself) = name.strip_prefix('.').map_or((name, true), |bare| (bare, false));
        let suffix = format!(".{bare}");
        (!bare.is_empty()).then_some(Exception { what: Hosts::Domain { suffix, itself }, port })
    }

    fn holds(&self, host: &str, port: u16) -> bool {
        if self.port.is_some_and(|only| only != port) {
            return false;
        }
        match &self.what {
            Hosts::All => true,
            Hosts::Network(network, bits) => {
                let address = host.trim_matches(['[', ']']).parse::<IpAddr>();
                address.is_ok_and(|address| is_within(address, *network, *bits))
            }
            Hosts::Domain { suffix, itself } => host.ends_with(suffix) || (*itself && host == &suffix[1..]),
        }
    }
}

fn bits_of(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

fn is_within(address: IpAddr, network: IpAddr, bits: u8) -> bool {
    let number = |address: IpAddr| match address {
        // In the upper bits, so that both kinds of addresses are shifted alike.
        IpAddr::V4(v4) => u128::from(v4.to_bits()) << 96,
        IpAddr::V6(v6) => v6.to_bits(),
    };
    let differing = number(address) ^ number(network);
    address.is_ipv4() == network.is_ipv4() && differing.checked_shr(128 - u32::from(bits)).unwrap_or(0) == 0
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn proxies(no_proxy: &str) -> Proxies {
        Proxies::from_variables(|name| match name {
            "HTTP_PROXY" => Some("http://plain:3128".into()),
            "https_proxy" => Some("user:p%40ss@secure".into()),
            "NO_PROXY" => Some(no_proxy.into()),
            _ => None,
        })
        .unwrap()
    }

    fn is_direct(no_proxy: &str, address: &str) -> bool {
        proxies(no_proxy).choose(&address.parse().unwrap()).is_none()
    }

    #[test]
    fn each_scheme_has_its_proxy() {
        let proxies = proxies("");
        let chosen = |address: &str| proxies.choose(&address.parse().unwrap()).unwrap().clone();
        assert_eq!(chosen("http://a").address, "http://plain:3128");
        let secure = chosen("https://a");
        assert_eq!(secure.address, "http://secure");
        assert_eq!(secure.authorization.unwrap(), "Basic dXNlcjpwQHNz", "user:p@ss");
        assert!(Proxies::from_variables(|_| None).unwrap().choose(&Uri::from_static("http://a")).is_none());
        assert!(Proxies::from_variables(|_| Some(String::new())).is_ok());
    }

    #[test]
    fn exceptions_are_those_of_go() {
        for (no_proxy, address, direct) in [
            ("", "https://a.example", false),
            ("*", "https://a.example", true),
            ("a.example", "https://a.example", true),
            ("a.example", "https://b.a.example", true),
            ("a.example", "https://ba.example", false),
            ("A.Example", "https://a.eXample", true),
            (".a.example", "https://a.example", false),
            (".a.example", "https://b.a.example", true),
            ("*.a.example", "https://b.a.example", true),
            (" x , a.example ", "https://a.example", true),
            ("a.example:5000", "https://a.example:5000", true),
            ("a.example:5000", "https://a.example", false),
            ("a.example:443", "https://a.example", true),
            ("a.example:80", "http://a.example", true),
            ("10.0.0.0/8", "https://10.1.2.3:5000", true),
            ("10.0.0.0/8", "https://11.1.2.3", false),
            ("0.0.0.0/0", "https://1.2.3.4", true),
            ("0.0.0.0/0", "https://a.example", false),
            ("10.0.0.1", "https://10.0.0.1", true),
            ("10.0.0.1:5000", "https://10.0.0.1:5001", false),
            ("fd00::/8", "https://[fd00::1]:5000", true),
            ("fd00::/8", "https://[fe00::1]", false),
            ("[fd00::1]:5000", "https://[fd00::1]:5000", true),
            ("10.0.0.0/33", "https://10.0.0.1", false),
            ("", "https://localhost:5000", true),
            ("", "http://127.0.0.1", true),
            ("", "http://[::1]", true),
        ] {
            assert_eq!(is_direct(no_proxy, address), direct, "{no_proxy:?} {address}");
        }
    }

    #[test]
    fn an_invalid_proxy_is_refused_without_its_password() {
        for text in ["socks5://user:secret@host", "http://user:secret@", "http://user:secret@ho st", "://"] {
            let error = Proxies::from_variables(|_| Some(text.into())).unwrap_err().chain();
            assert!(error.contains("HTTP_PROXY") && !error.contains("secret"), "{error}");
        }
    }

    proptest! {
        #[test]
        fn no_exception_breaks_the_parser(text in ".{0,60}") {
            proxies(&text);
        }

        #[test]
        fn a_host_is_an_exception_with_all_below_it(
            host in "[a-z]{1,8}(\\.[a-z]{1,8}){0,3}", below in "[a-z]{1,8}", other in "[a-z]{1,8}"
        ) {
            let below = format!("https://{below}.{host}");
            let beside = format!("https://{other}{host}");
            let itself = format!("https://{host}");
            prop_assert!(is_direct(&host, &below));
            prop_assert!(is_direct(&host, &itself));
            prop_assert!(host == "localhost" || !is_direct(&host, &beside) || other.is_empty());
        }

        #[test]
        fn a_network_is_its_first_bits(a: u32, b: u32, bits in 0..=32_u32) {
            let (left, right) = (std::net::Ipv4Addr::from_bits(a), std::net::Ipv4Addr::from_bits(b));
            let same = bits == 0 || a >> (32 - bits) == b >> (32 - bits);
            prop_assert_eq!(is_within(left.into(), right.into(), u8::try_from(bits).unwrap()), same);
        }
    }
}
