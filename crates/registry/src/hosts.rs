//! The hosts of a registry, as directories such as `/etc/hoist/certs.d` configure them.
//!
//! ```text
//! certs.d/
//! ├── registry.example_5000_/        a port, in a form that every file system takes
//! ├── registry.example:5000/         or as it is written
//! │   ├── hosts.toml                 mirrors and the registry itself
//! │   └── *.crt  *.cert  *.key       Docker's files, where there is no hosts.toml
//! └── _default/                      for registries without a directory
//! ```
//!
//! The first directory found counts, in the first configuration directory that has one. Files are read for each pull,
//! so that a change needs no restart; an invalid file is an error, never a reason to ask another host.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use types::{Context, Error, Result};

use crate::host::{Host, MIRROR_DIAL_TIMEOUT, Scheme};
use crate::hosts_toml::{Entry, HostsToml};
use crate::tls::{ClientPem, Pem, Tls};

/// The hosts of a registry, by its name in references, in the order in which they are asked. Always includes the
/// registry itself.
pub(crate) fn hosts(directories: &[PathBuf], registry: &str) -> Result<Vec<Host>> {
    let names = directory_names(registry);
    for directory in directories.iter().flat_map(|root| names.iter().map(|name| root.join(name))) {
        match fs::metadata(&directory) {
            Ok(found) if found.is_dir() => return read(&directory, registry),
            Ok(_) => {
                return Err(Error::invalid_argument(format!("{} is not a directory", directory.display())));
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error).context(|| format!("look at {}", directory.display())),
        }
    }
    Ok(vec![Host::upstream(registry)])
}

fn directory_names(host: &str) -> Vec<String> {
    let with_port = match host.rsplit_once(':') {
        Some((name, port)) if !port.contains(']') => Some(format!("{name}_{port}_")),
        _ => None,
    };
    with_port.into_iter().chain([host.to_owned(), "_default".to_owned()]).collect()
}

fn read(directory: &Path, registry: &str) -> Result<Vec<Host>> {
    let file = directory.join("hosts.toml");
    let text = match Pem::read(&file) {
        Ok(found) => found,
        Err(error) if error.is(types::ErrorKind::NotFound) => {
            return Ok(vec![Host {
                tls: docker_files(directory)?,
                source: Some(directory.to_owned()),
                ..Host::upstream(registry)
            }]);
        }
        Err(error) => return Err(error),
    };
    let text = std::str::from_utf8(text.bytes()).map_err(|error| {
        Error::invalid_argument(format!("{}: not text", file.display())).with_source(error)
    })?;
    let parsed = HostsToml::parse(text, &file)?;
    let mirrors = parsed.mirrors.iter().map(|entry| host(entry, registry, &file, true));
    mirrors.chain([host(&parsed.server, registry, &file, false)]).collect()
}

fn host(entry: &Entry, registry: &str, file: &Path, is_mirror: bool) -> Result<Host> {
    let mut host = Host { source: Some(file.to_owned()), ..Host::upstream(registry) };
    let upstream = host.authority.clone();
    if let Some(address) = &entry.address {
        host.scheme = address.scheme;
        host.authority = address.authority.clone();
        // The registry's own address may be listed among the mirrors.
        let plain = |authority: &str| address.scheme.plain_authority(authority);
        let own = plain(&address.authority);
        host.is_mirror = is_mirror && own != plain(&upstream) && own != plain(registry);
        if address.authority == "docker.io" {
            host.authority = upstream;
        }
        host.path = address.path.clone();
        if !entry.override_path && !host.path.ends_with("/v2") {
            host.path.push_str("/v2");
        }
    }
    if !entry.capabilities.is_empty() {
        host.capabilities.clone_from(&entry.capabilities);
    }
    let own = if host.is_mirror { MIRROR_DIAL_TIMEOUT } else { host.dial_timeout };
    host.dial_timeout = entry.dial_timeout.unwrap_or(own);
    host.headers.clone_from(&entry.headers);
    host.tls = Tls {
        ca: entry.ca.iter().map(|path| Pem::authorities(path)).collect::<Result<_>>()?,
        client: entry
            .client
            .iter()
            .map(|(certificate, key)| ClientPem::read(certificate, key.as_deref()))
            .collect::<Result<_>>()?,
        skip_verify: entry.skip_verify.unwrap_or(false),
    };
    // TLS options for an http address mean: TLS if the host speaks it.
    let tells_tls = !host.tls.ca.is_empty() || !host.tls.client.is_empty() || entry.skip_verify.is_some();
    if host.scheme == Scheme::Http && tells_tls {
        host.scheme = Scheme::Either;
    }
    Ok(host)
}

/// `*.crt` are CAs; `NAME.cert` and `NAME.key` are a client certificate, and one without the other is an error.
fn docker_files(directory: &Path) -> Result<Tls> {
    let entries = fs::read_dir(directory).context(|| format!("read {}", directory.display()))?;
    let mut paths = entries
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<io::Result<Vec<_>>>()
        .context(|| format!("read {}", directory.display()))?;
    paths.sort();
    let mut tls = Tls::default();
    for path in &paths {
        let missing = |other: &str| {
            let other = path.with_extension(other);
            Error::invalid_argument(format!("{} has no {} beside it", path.display(), other.display()))
        };
        match path.extension().and_then(std::ffi::OsStr::to_str) {
            Some("crt") => tls.ca.push(Pem::authorities(path)?),
            Some("cert") => {
                let key = path.with_extension("key");
                let key = paths.contains(&key).then_some(key).ok_or_else(|| missing("key"))?;
                tls.client.push(ClientPem::read(path, Some(&key))?);
            }
            Some("key") if !paths.contains(&path.with_extension("cert")) => return Err(missing("cert")),
            _ => {}
        }
    }
    Ok(tls)
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;
    use crate::tls::FILE_LEN_MAX;

    /// Writes a tree of files, and looks up the hosts of a registry in it.
    fn found(files: &[(&str, &str)], roots: &[&str], name: &str) -> Result<Vec<Host>> {
        let dir = TempDir::new().unwrap();
        for (path, text) in files {
            let path = dir.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        let roots: Vec<PathBuf> = roots.iter().map(|root| dir.path().join(root)).collect();
        hosts(&roots, name)
    }

    fn addresses(hosts: &[Host]) -> Vec<String> {
        hosts.iter().map(|host| format!("{}{}", host.authority, host.path)).collect()
    }

    fn mirror(name: &str) -> String {
        format!("[host.\"https://{name}\"]\n")
    }

    #[test]
    fn the_first_directory_that_is_there_counts() {
        let check = |directories: &[&str], name: &str, expected: &str| {
            let files: Vec<(String, String)> = directories
                .iter()
                .enumerate()
                .map(|(at, directory)| (format!("{directory}/hosts.toml"), mirror(&format!("m{at}"))))
                .collect();
            let files: Vec<(&str, &str)> =
                files.iter().map(|(path, text)| (path.as_str(), text.as_str())).collect();
            let hosts = found(&files, &["one", "two"], name).unwrap();
            assert_eq!(addresses(&hosts)[0], expected, "{directories:?} {name}");
        };
        check(&["one/r.example_5000_", "one/r.example:5000", "one/_default"], "r.example:5000", "m0/v2");
        check(&["one/_default", "one/r.example:5000"], "r.example:5000", "m1/v2");
        check(&["one/r.example", "one/_default"], "r.example:5000", "m1/v2");
        check(&["two/r.example", "one/_default"], "r.example", "m1/v2");
        check(&["two/docker.io"], "docker.io", "m0/v2");
        check(&["one/other"], "docker.io", "registry-1.docker.io/v2");
        check(&["one/[::1]_5000_"], "[::1]:5000", "m0/v2");
    }

    #[test]
    fn the_registry_itself_is_asked_last() {
        let check = |text: &str, expected: &[&str]| {
            let hosts = found(&[("c/r.example/hosts.toml", text)], &["c"], "r.example").unwrap();
            assert_eq!(addresses(&hosts), expected, "{text}");
        };
        check("", &["r.example/v2"]);
        check("[host.\"b\"]\n[host.\"a\"]", &["b/v2", "a/v2", "r.example/v2"]);
        check("server = \"https://up.example\"\n[host.\"b\"]", &["b/v2", "up.example/v2"]);
        check(
            "[host.\"b/cache\"]\n[host.\"c/v2/\"]\n[host.\"d/p\"]\noverride_path = true",
            &["b/cache/v2", "c/v2", "d/p", "r.example/v2"],
        );
        let hosts = found(
            &[("c/docker.io/hosts.toml", "server = \"https://registry-1.docker.io\"\n[host.\"m\"]")],
            &["c"],
            "docker.io",
        )
        .unwrap();
        assert_eq!(hosts.iter().map(|host| host.is_mirror).collect::<Vec<_>>(), [true, false]);
        let is_mirror = |address: &str| {
            let text = format!("[host.\"{address}\"]");
            found(&[("c/r.example/hosts.toml", &text)], &["c"], "r.example").unwrap()[0].is_mirror
        };
        for own in ["https://r.example", "https://R.example:443", "http://r.example:80"] {
            assert!(!is_mirror(own), "{own}");
        }
        assert!(is_mirror("https://r.example:80") && is_mirror("https://m.example"));
    }

    #[test]
    fn an_http_host_with_tls_options_may_speak_tls() {
        let scheme = |further: &str| {
            let text = format!("[host.\"http://m.example\"]\n{further}");
            found(&[("c/r.example/hosts.toml", &text)], &["c"], "r.example").unwrap()[0].scheme
        };
        assert_eq!(scheme(""), Scheme::Http);
        assert_eq!(scheme("skip_verify = true"), Scheme::Either);
    }

    #[test]
    fn an_unreadable_file_is_an_error_that_names_it() {
        let check = |files: &[(&str, &str)], words: &[&str]| {
            let error = found(files, &["c"], "r.example").unwrap_err().chain();
            for word in words {
                assert!(error.contains(word), "{error:?} has no {word:?}");
            }
        };
        check(&[("c/r.example/hosts.toml", "\n[host")], &["c/r.example/hosts.toml:2:"]);
        check(&[("c/r.example/hosts.toml", "ca = \"no.pem\"")], &["r.example/no.pem"]);
        check(&[("c/r.example/hosts.toml", "ca = \"hosts.toml\"")], &["no certificate in", "hosts.toml"]);
        check(&[("c/r.example/ca.crt", "nothing")], &["no certificate in", "ca.crt"]);
        check(&[("c/r.example/a.cert", "x")], &["a.cert has no", "a.key beside it"]);
        check(&[("c/r.example/a.key", "x")], &["a.key has no", "a.cert beside it"]);
        check(&[("c/r.example", "a file")], &["r.example is not a directory"]);
        let huge = "#".repeat(usize::try_from(FILE_LEN_MAX).unwrap() + 1);
        check(&[("c/r.example/hosts.toml", &huge)], &["hosts.toml", "larger than"]);
    }
}
