//! URLs: their origins, and references relative to them.

use http::Uri;
use types::{Error, Result};

/// Host name and port of a URL.
pub(crate) fn host_of(address: &Uri) -> &str {
    address.authority().map_or("", http::uri::Authority::as_str)
}

/// The origin of a URL, `https://host`: scheme, host and port, normalized to lower case and without the default port
/// (RFC 9110, section 4.2.3).
pub(crate) fn origin(address: &Uri) -> String {
    let scheme = address.scheme_str().unwrap_or("https");
    let name = address.host().unwrap_or_default().to_ascii_lowercase();
    let usual = if scheme == "http" { 80 } else { 443 };
    match address.port_u16().filter(|port| *port != usual) {
        Some(port) => format!("{scheme}://{name}:{port}"),
        None => format!("{scheme}://{name}"),
    }
}

/// Resolves a URL relative to another (RFC 3986, section 5.2). `PermissionDenied` if that leads from https to http.
pub(crate) fn resolve(base: &Uri, location: &str) -> Result<Uri> {
    let scheme = base.scheme_str().unwrap_or("https");
    let (path, query) = match location.find(['?', '#']) {
        Some(at) => location.split_at(at),
        None => (location, ""),
    };
    // A colon in the first path segment ends a scheme.
    let has_scheme = path.split('/').next().is_some_and(|first| first.contains(':'));
    let text = if has_scheme {
        location.to_owned()
    } else if path.starts_with("//") {
        format!("{scheme}:{location}")
    } else {
        let folder = base.path().rsplit_once('/').map_or("", |(folder, _)| folder);
        let path = match path {
            "" => base.path().to_owned(),
            _ if path.starts_with('/') => without_dots(path),
            _ => without_dots(&format!("{folder}/{path}")),
        };
        format!("{scheme}://{}{path}{query}", host_of(base))
    };
    let uri: Uri = text.parse().map_err(|error| Error::unavailable("not an address").with_source(error))?;
    match uri.scheme_str() {
        // No downgrade from https.
        Some("http") if base.scheme_str() == Some("https") => {
            Err(Error::permission_denied("from https to http"))
        }
        Some("http" | "https") => Ok(uri),
        _ => Err(Error::unavailable("neither http nor https")),
    }
}

/// Removes `.` and `..` from a path (RFC 3986, section 5.2.4).
fn without_dots(path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/').skip(1) {
        match part {
            "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    if path.ends_with("/.") || path.ends_with("/..") {
        parts.push("");
    }
    format!("/{}", parts.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redirects_are_resolved_and_never_leave_tls() {
        let base: Uri = "https://a.example/v2/x/blobs/y".parse().unwrap();
        let to = |location: &str| resolve(&base, location).map(|uri| uri.to_string());
        assert_eq!(to("/z").unwrap(), "https://a.example/z");
        assert_eq!(to("https://b.example/q?s=1").unwrap(), "https://b.example/q?s=1");
        assert_eq!(to("//b.example/q").unwrap(), "https://b.example/q");
        assert_eq!(to("uploads/1").unwrap(), "https://a.example/v2/x/blobs/uploads/1");
        assert_eq!(to("./uploads/1?a=b").unwrap(), "https://a.example/v2/x/blobs/uploads/1?a=b");
        assert_eq!(to("../../../../z").unwrap(), "https://a.example/z");
        assert_eq!(to("?state=1").unwrap(), "https://a.example/v2/x/blobs/y?state=1");
        assert_eq!(to("/up?back=http://b.example/").unwrap(), "https://a.example/up?back=http://b.example/");
        assert!(to("http://b.example/q").is_err());
        assert!(to("file:///etc/passwd").is_err());
    }

    #[test]
    fn a_host_is_the_same_however_it_is_written() {
        for (address, expected) in [
            ("https://r.example/v2/", "https://r.example"),
            ("https://R.Example:443/up", "https://r.example"),
            ("http://r.example:80/up", "http://r.example"),
            ("HTTPS://r.example:80/up", "https://r.example:80"),
            ("http://r.example:443", "http://r.example:443"),
            ("https://[::1]:443/up", "https://[::1]"),
            ("http://[::1]:5000/up", "http://[::1]:5000"),
        ] {
            assert_eq!(origin(&address.parse().unwrap()), expected, "{address}");
        }
    }
}
