//! Where traces are sent: the table `otlp`, overridden by OpenTelemetry's environment variables.
//!
//! <https://opentelemetry.io/docs/specs/otel/protocol/exporter/>

use std::path::PathBuf;
use std::time::Duration;

use http::{HeaderName, HeaderValue, Uri};
use types::{Error, Result};

use super::raw;

/// Default of `OTEL_BSP_SCHEDULE_DELAY`: how long spans are batched.
const DELAY: Duration = Duration::from_secs(5);

/// A collector of traces.
#[derive(Clone, Debug, PartialEq)]
pub struct Otlp {
    /// The full URL, with the path for HTTP.
    pub endpoint: Uri,
    pub protocol: Protocol,
    /// A file with CA certificates to trust in addition to the system's.
    pub ca: Option<PathBuf>,
    /// Headers to send with each request, such as an API key.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// The daemon's `service.name`.
    pub service_name: String,
    /// Fraction of traces that are exported, from 0 to 1. A caller's sampling decision takes precedence.
    pub sampling_ratio: f64,
    /// Longest time a span waits before it is sent.
    pub delay: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    HttpProtobuf,
    Grpc,
}

/// `None` if tracing is off.
pub(super) fn check(table: &raw::Otlp, variable: impl Fn(&str) -> Option<String>) -> Result<Option<Otlp>> {
    let said = |name: &str| variable(name).filter(|value| !value.is_empty());
    let is_off = said("OTEL_SDK_DISABLED").is_some_and(|value| value.eq_ignore_ascii_case("true"))
        || said("OTEL_TRACES_EXPORTER").is_some_and(|value| value != "otlp");
    let of_traces = said("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT");
    let in_full = of_traces.is_some();
    let general = || said("OTEL_EXPORTER_OTLP_ENDPOINT");
    let in_table = || Some(table.endpoint.clone()).filter(|endpoint| !endpoint.is_empty());
    let Some(endpoint) = of_traces.or_else(general).or_else(in_table).filter(|_| !is_off) else {
        return Ok(None);
    };
    let protocol = said("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL").or_else(|| said("OTEL_EXPORTER_OTLP_PROTOCOL"));
    let protocol = match protocol.as_deref().unwrap_or(&table.protocol) {
        "http/protobuf" => Protocol::HttpProtobuf,
        "grpc" => Protocol::Grpc,
        other => {
            return Err(invalid("protocol", &format!("{other:?} is neither \"http/protobuf\" nor \"grpc\"")));
        }
    };
    let with_path = protocol == Protocol::HttpProtobuf && !in_full;
    let ca = said("OTEL_EXPORTER_OTLP_TRACES_CERTIFICATE").or_else(|| said("OTEL_EXPORTER_OTLP_CERTIFICATE"));
    let ca = ca.unwrap_or_else(|| table.ca.clone());
    let headers = said("OTEL_EXPORTER_OTLP_TRACES_HEADERS").or_else(|| said("OTEL_EXPORTER_OTLP_HEADERS"));
    let ratio = said("OTEL_TRACES_SAMPLER_ARG").map_or(Ok(table.sampling_ratio), |ratio| {
        ratio.parse().map_err(|_| invalid("sampling_ratio", &format!("{ratio:?} is no number")))
    })?;
    if !(0.0..=1.0).contains(&ratio) {
        return Err(invalid("sampling_ratio", &format!("{ratio} is not between 0 and 1")));
    }
    let delay = said("OTEL_BSP_SCHEDULE_DELAY").and_then(|delay| delay.parse().ok());
    Ok(Some(Otlp {
        endpoint: address(&endpoint, with_path)?,
        protocol,
        ca: Some(ca).filter(|ca| !ca.is_empty()).map(PathBuf::from),
        headers: headers.map_or_else(|| Ok(Vec::new()), |headers| pairs(&headers))?,
        service_name: said("OTEL_SERVICE_NAME").unwrap_or_else(|| table.service_name.clone()),
        sampling_ratio: ratio,
        delay: delay.map_or(DELAY, Duration::from_millis),
    }))
}

/// Parses a collector's URL; with the default path of traces if it has none.
fn address(endpoint: &str, with_path: bool) -> Result<Uri> {
    let bad = || invalid("endpoint", &format!("{endpoint:?} is no URL such as http://127.0.0.1:4318"));
    let path = if with_path { "/v1/traces" } else { "" };
    let uri: Uri = format!("{}{path}", endpoint.trim_end_matches('/')).parse().map_err(|_| bad())?;
    let is_known = matches!(uri.scheme_str(), Some("http" | "https"));
    if is_known && uri.host().is_some() { Ok(uri) } else { Err(bad()) }
}

/// Parses `NAME=VALUE,…` with percent-encoded values.
fn pairs(text: &str) -> Result<Vec<(HeaderName, HeaderValue)>> {
    let pair = |text: &str| {
        let (name, value) = text.split_once('=')?;
        let value = HeaderValue::from_bytes(&decoded(value.trim())?).ok()?;
        Some((name.trim().parse().ok()?, value))
    };
    let pairs = text.split(',').filter(|pair| !pair.trim().is_empty());
    pairs
        .map(|text| pair(text).ok_or_else(|| invalid("headers", &format!("{text:?} is not NAME=VALUE"))))
        .collect()
}

fn decoded(text: &str) -> Option<Vec<u8>> {
    let (mut bytes, mut rest) = (Vec::new(), text.bytes());
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let digits = [rest.next()?, rest.next()?];
        bytes.push(u8::from_str_radix(std::str::from_utf8(&digits).ok()?, 16).ok()?);
    }
    Some(bytes)
}

fn invalid(key: &str, why: &str) -> Error {
    Error::invalid_argument(format!("configuration: otlp.{key}: {why}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checked(table: raw::Otlp, variables: &[(&str, &str)]) -> Result<Option<Otlp>> {
        check(&table, |name| {
            variables.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
        })
    }

    fn table(endpoint: &str) -> raw::Otlp {
        raw::Otlp { endpoint: endpoint.into(), ..raw::Otlp::default() }
    }

    #[test]
    fn otlp_environment_variables_override_the_file() {
        fn url(table: raw::Otlp, variables: &[(&str, &str)]) -> Option<String> {
            checked(table, variables).unwrap().map(|otlp| otlp.endpoint.to_string())
        }
        const ENDPOINT: &str = "OTEL_EXPORTER_OTLP_ENDPOINT";
        assert_eq!(url(table(""), &[]), None);
        assert_eq!(url(table("http://a:1/"), &[]).as_deref(), Some("http://a:1/v1/traces"));
        assert_eq!(
            url(table("http://a:1"), &[(ENDPOINT, "http://b:2")]).as_deref(),
            Some("http://b:2/v1/traces")
        );
        let own = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "https://c:3/all");
        assert_eq!(url(table(""), &[(ENDPOINT, "http://b:2"), own]).as_deref(), Some("https://c:3/all"));
        let grpc = ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc");
        assert_eq!(url(table(""), &[(ENDPOINT, "http://b:2"), grpc]).as_deref(), Some("http://b:2/"));
        for off in [("OTEL_SDK_DISABLED", "true"), ("OTEL_TRACES_EXPORTER", "none")] {
            assert_eq!(url(table("http://a:1"), &[off]), None);
        }
        let headers = [("OTEL_EXPORTER_OTLP_HEADERS", "key=a%20b, other=c")];
        let told = checked(table("http://a:1"), &headers).unwrap().unwrap().headers;
        assert_eq!(
            told.iter().map(|(name, value)| (name.as_str(), value.as_bytes())).collect::<Vec<_>>(),
            [("key", &b"a b"[..]), ("other", &b"c"[..])]
        );
    }

    #[test]
    fn mistakes_are_named() {
        for (table, variables, named) in [
            (table("a:1"), &[][..], "otlp.endpoint"),
            (table("unix:///run/x"), &[], "otlp.endpoint"),
            (raw::Otlp { protocol: "http/json".into(), ..table("http://a:1") }, &[], "otlp.protocol"),
            (raw::Otlp { sampling_ratio: 2.0, ..table("http://a:1") }, &[], "otlp.sampling_ratio"),
            (table("http://a:1"), &[("OTEL_EXPORTER_OTLP_HEADERS", "key")], "otlp.headers"),
        ] {
            let error = checked(table, variables).unwrap_err().to_string();
            assert!(error.contains(named), "{error}");
        }
    }
}
