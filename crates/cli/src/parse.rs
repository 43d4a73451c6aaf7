//! Parsers of flags' values.

use api::engine::{Mount, Port, Restart};
use types::{Context as _, Error, Result};

/// Options of a bind mount's propagation (mount(8)).
const PROPAGATIONS: [&str; 6] = ["rprivate", "private", "rshared", "shared", "rslave", "slave"];
/// Options of a tmpfs (tmpfs(5)), and mount options.
const TMPFS_FLAGS: [&str; 13] = [
    "ro",
    "rw",
    "exec",
    "noexec",
    "suid",
    "nosuid",
    "dev",
    "nodev",
    "atime",
    "noatime",
    "relatime",
    "strictatime",
    "sync",
];
const TMPFS_KEYS: [&str; 7] = ["size", "mode", "uid", "gid", "nr_inodes", "nr_blocks", "mpol"];

/// Parses a size such as `512m`: bytes, with units in powers of 1024.
pub(crate) fn bytes(text: &str) -> Result<i64> {
    let bytes = stdx::bytes(text).and_then(|bytes| i64::try_from(bytes).ok());
    bytes.ok_or_else(|| {
        Error::invalid_argument(format!("invalid size {text:?}: expected something like 512m"))
    })
}

/// Parses the limit of memory and swap together, in bytes; -1 is unlimited.
pub(crate) fn swap(text: &str) -> Result<i64> {
    if text == "-1" { Ok(-1) } else { bytes(text) }
}

/// Parses a number of processors such as `1.5`, in thousandths. Zero is unlimited, as with Docker.
pub(crate) fn milli_cpus(text: &str) -> Result<u64> {
    // The kernel's minimum quota is 1 ms in a period of 100 ms (`cpu.cfs_quota_us`).
    let number = text.parse::<f64>().ok().filter(|number| *number == 0.0 || (0.01..1e6).contains(number));
    let number = number.ok_or_else(|| {
        Error::invalid_argument(format!(
            "invalid number of cpus {text:?}: expected something like 1.5, and 0.01 at least"
        ))
    })?;
    Ok((number * 1000.0) as u64)
}

/// Labels of a command line: `KEY=VALUE`, or `KEY` with an empty value.
pub(crate) fn label_words(words: &[String]) -> impl Iterator<Item = (String, String)> {
    let pairs = words.iter().map(|word| word.split_once('=').unwrap_or((word, "")));
    pairs.map(|(key, value)| (key.to_owned(), value.to_owned()))
}

/// Labels of a file, as Docker reads it: blanks before a key are ignored, those in a value kept. A key alone is
/// ignored.
pub(crate) fn labels(content: &str) -> Result<Vec<(String, String)>> {
    let content = content.strip_prefix('\u{feff}').unwrap_or(content);
    let lines =
        content.lines().map(str::trim_start).filter(|line| !line.is_empty() && !line.starts_with('#'));
    let mut labels = Vec::new();
    for line in lines {
        let (key, value) = line.split_once('=').map_or((line, None), |(key, value)| (key, Some(value)));
        if key.is_empty() || key.contains([' ', '\t']) {
            return Err(Error::invalid_argument(format!(
                "line {line:?}: a key has no blanks, and is not empty"
            )));
        }
        labels.extend(value.map(|value| (key.to_owned(), value.to_owned())));
    }
    Ok(labels)
}

/// A parser for a Docker flag that Hoist does not support: every value is refused, for this reason.
pub(crate) fn refused(
    why: &'static str,
) -> impl Fn(&str) -> std::result::Result<String, &'static str> + Clone {
    move |_| Err(why)
}

/// As [`refused`], but accepts values that are the default anyway.
pub(crate) fn refused_but(
    known: &'static [&'static str],
    why: &'static str,
) -> impl Fn(&str) -> std::result::Result<String, &'static str> + Clone {
    move |value| if known.contains(&value) { Ok(value.to_owned()) } else { Err(why) }
}

/// Parses seconds to wait. As with Docker, a negative number means no timeout.
pub(crate) fn seconds(text: &str) -> std::result::Result<u64, std::num::ParseIntError> {
    // Longer than any machine runs.
    const WITHOUT_END: u64 = i32::MAX as u64;
    text.parse::<i64>().map(|seconds| u64::try_from(seconds).unwrap_or(WITHOUT_END))
}

pub(crate) fn restart(text: &str) -> Result<Restart> {
    let (name, max) = text.split_once(':').map_or((text, None), |(name, max)| (name, Some(max)));
    let bad = || {
        Error::invalid_argument(format!(
            "invalid restart policy {text:?}: expected no, always, unless-stopped or on-failure[:N]"
        ))
    };
    match (name, max) {
        ("no" | "", None) => Ok(Restart::No),
        ("always", None) => Ok(Restart::Always),
        ("unless-stopped", None) => Ok(Restart::UnlessStopped),
        ("on-failure", None) => Ok(Restart::OnFailure(0)),
        ("on-failure", Some(max)) => max.parse().map(Restart::OnFailure).map_err(|_| bad()),
        _ => Err(bad()),
    }
}

/// Parses `[[IP:]HOST:]PORT[/PROTOCOL]`. Each port may be a range; a host range for one port means any free port of it.
pub(crate) fn ports(text: &str) -> Result<Vec<Port>> {
    let bad =
        || Error::invalid_argument(format!("invalid port {text:?}: expected [[IP:]HOST-PORT:]PORT[/udp]"));
    let (rest, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    let protocol = protocol.to_ascii_lowercase();
    let (front, inside) = rest.rsplit_once(':').map_or((None, rest), |(front, inside)| (Some(front), inside));
    let (host_ip, outside) = match front {
        None => ("", ""),
        Some(front) => front.rsplit_once(':').unwrap_or(("", front)),
    };
    // Refused here, before a container is created that cannot start.
    let unfit = |why: String| Error::invalid_argument(format!("invalid port {text:?}: {why}"));
    if !host_ip.is_empty() && host_ip.parse::<std::net::Ipv4Addr>().is_err() {
        return Err(unfit(format!("{host_ip:?} is not an IPv4 address")));
    }
    if !matches!(protocol.as_str(), "tcp" | "udp") {
        return Err(unfit(format!("protocol {protocol:?} is neither tcp nor udp")));
    }
    let range = |text: &str| -> Result<(u16, u16)> {
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        let (first, last) = (first.parse().map_err(|_| bad())?, last.parse().map_err(|_| bad())?);
        if first == 0 || last < first { Err(bad()) } else { Ok((first, last)) }
    };
    let inside = range(inside)?;
    // As with bind(2), port zero is any free port.
    let outside = if matches!(outside, "" | "0") { None } else { Some(range(outside)?) };
    // A host range for one container port: any free port of it.
    let last = outside.map(|(_, last)| last).filter(|_| inside.0 == inside.1);
    if last.is_none() && outside.is_some_and(|outside| outside.1 - outside.0 != inside.1 - inside.0) {
        return Err(Error::invalid_argument(format!(
            "invalid port {text:?}: the ranges have different lengths"
        )));
    }
    let each = (inside.0..=inside.1).enumerate().map(|(at, container_port)| Port {
        host_ip: host_ip.to_owned(),
        host_port: outside.map(|(first, _)| first + u16::try_from(at).expect("within the range")),
        host_port_last: last.filter(|last| outside.is_some_and(|(first, _)| first < *last)),
        container_port,
        protocol: protocol.clone(),
    });
    Ok(each.collect())
}

/// Parses `SOURCE:TARGET[:OPTIONS]`, or `TARGET` alone for an anonymous volume.
pub(crate) fn volume(text: &str) -> Result<Mount> {
    let parts: Vec<&str> = text.split(':').collect();
    let (source, target, options) = match parts[..] {
        [target] if target.starts_with('/') => ("", target, ""),
        // An empty source is probably an unset variable, and no request for an anonymous volume.
        [source, target] if !source.is_empty() => (source, target, ""),
        [source, target, options] if !source.is_empty() => (source, target, options),
        _ => {
            return Err(Error::invalid_argument(format!(
                "invalid volume {text:?}: expected [SOURCE:]TARGET[:ro]"
            )));
        }
    };
    // The shell has expanded `~` by now. One that is left, as in `--volume=~/x`, is no valid name either.
    let is_path = source.starts_with(['/', '.']);
    let (mut read_only, mut further) = (false, Vec::new());
    for option in options.split(',').filter(|option| !option.is_empty()) {
        match option {
            "ro" => read_only = true,
            // Docker Desktop's options for the consistency of macOS files have no meaning here.
            "rw" | "z" | "Z" | "consistent" | "cached" | "delegated" => {}
            "nocopy" if !is_path => further.push("nocopy".to_owned()),
            propagation if is_path && PROPAGATIONS.contains(&propagation) => {
                further.push(propagation.to_owned());
            }
            other => {
                let own = if is_path { PROPAGATIONS.join(", ") } else { "nocopy".to_owned() };
                return Err(Error::invalid_argument(format!(
                    "invalid volume {text:?}: unknown option {other:?}; expected ro, rw, z, Z, {own}"
                )));
            }
        }
    }
    let source = if is_path { absolute(source)? } else { source.to_owned() };
    Ok(Mount {
        kind: if is_path { "bind" } else { "volume" }.into(),
        source,
        target: target.into(),
        read_only,
        options: further,
        make_source: is_path,
    })
}

/// Parses `TARGET[:OPTIONS]` with the options of a tmpfs.
pub(crate) fn tmpfs(text: &str) -> Result<Mount> {
    let (target, options) = text.split_once(':').unwrap_or((text, ""));
    let options: Vec<String> =
        options.split(',').filter(|option| !option.is_empty()).map(str::to_owned).collect();
    for option in &options {
        let (key, value) = option.split_once('=').map_or((option.as_str(), None), |(k, v)| (k, Some(v)));
        let is_known = match value {
            None => TMPFS_FLAGS.contains(&key),
            Some(value) => TMPFS_KEYS.contains(&key) && !value.is_empty(),
        };
        if !is_known {
            return Err(Error::invalid_argument(format!(
                "invalid tmpfs {text:?}: unknown option {option:?}; expected {}, or one of {}, each with =VALUE",
                TMPFS_FLAGS.join(", "),
                TMPFS_KEYS.join(", ")
            )));
        }
    }
    let kind = "tmpfs".into();
    Ok(Mount { kind, target: target.into(), options, ..Mount::default() })
}

/// Parses `type=bind,source=/a,target=/b,readonly`.
pub(crate) fn mount(text: &str) -> Result<Mount> {
    let mut mount = Mount { kind: "volume".into(), ..Mount::default() };
    for pair in text.split(',') {
        let (key, value) = pair.split_once('=').unwrap_or((pair, "true"));
        match key {
            "type" => mount.kind = value.into(),
            "source" | "src" => mount.source = value.into(),
            "target" | "destination" | "dst" => mount.target = value.into(),
            "readonly" | "ro" => mount.read_only = value != "false" && value != "0",
            "tmpfs-size" => mount.options.push(format!("size={}", bytes(value)?)),
            "tmpfs-mode" if value.bytes().all(|digit| (b'0'..b'8').contains(&digit)) => {
                mount.options.push(format!("mode={value}"));
            }
            "bind-propagation" if PROPAGATIONS.contains(&value) => mount.options.push(value.into()),
            "tmpfs-mode" | "bind-propagation" => {
                return Err(Error::invalid_argument(format!(
                    "invalid mount {text:?}: {value:?} is no value of {key}"
                )));
            }
            "volume-nocopy" => {
                if value != "false" && value != "0" {
                    mount.options.push("nocopy".to_owned());
                }
            }
            // Docker Desktop's option has no meaning here.
            "consistency" => {}
            other => {
                return Err(Error::invalid_argument(format!(
                    "invalid mount {text:?}: unknown key {other:?}; expected type, source, target, readonly, of a bind \
                     bind-propagation, of a volume volume-nocopy, of a tmpfs tmpfs-size or tmpfs-mode"
                )));
            }
        }
    }
    if !["bind", "volume", "tmpfs"].contains(&mount.kind.as_str()) {
        return Err(Error::invalid_argument(format!(
            "invalid mount {text:?}: type is bind, volume or tmpfs"
        )));
    }
    let foreign = text
        .split(',')
        .map(|pair| pair.split_once('=').map_or(pair, |(key, _)| key))
        .find(|key| key.split_once('-').is_some_and(|(kind, _)| kind != mount.kind));
    if let Some(key) = foreign {
        return Err(Error::invalid_argument(format!(
            "invalid mount {text:?}: {key} is not an option of a {}",
            mount.kind
        )));
    }
    if mount.target.is_empty() || mount.source.is_empty() && mount.kind == "bind" {
        return Err(Error::invalid_argument(format!(
            "invalid mount {text:?}: it needs a target, and a source if it is a bind"
        )));
    }
    if mount.kind == "bind" {
        mount.source = absolute(&mount.source)?;
    }
    Ok(mount)
}

/// Reads a file of `KEY=VALUE` lines. A key alone has its value in this environment, and is skipped if it has none.
/// `flag` is for messages.
pub(crate) fn env_file(flag: &str, file: &str) -> Result<Vec<String>> {
    let about = || format!("{flag}: read {file}");
    let content = std::fs::read_to_string(file).context(about)?;
    let content = content.strip_prefix('\u{feff}').unwrap_or(&content);
    // Trailing blanks belong to the value.
    let lines =
        content.lines().map(str::trim_start).filter(|line| !line.is_empty() && !line.starts_with('#'));
    let entry = |line: &str| match line.split('=').next() {
        Some(name) if name.contains([' ', '\t']) => Err(Error::invalid_argument(format!(
            "variable {name:?} contains whitespaces; the file is not a shell script: leave out `export`, and write NAME=VALUE"
        ))),
        _ => env(line),
    };
    let entries = lines.map(|line| entry(line).map_err(|error| error.context(about())));
    Ok(entries.collect::<Result<Vec<_>>>()?.into_iter().filter(|entry| entry.contains('=')).collect())
}

/// An environment entry. `KEY` alone gets its value in this environment; without one it stays, and unsets the image's
/// variable.
pub(crate) fn env(entry: &str) -> Result<String> {
    match entry.split_once('=') {
        Some(("", _)) => {
            Err(Error::invalid_argument(format!("invalid environment variable {entry:?}: it has no name")))
        }
        Some(_) => Ok(entry.to_owned()),
        None => {
            Ok(std::env::var(entry).map_or_else(|_| entry.to_owned(), |value| format!("{entry}={value}")))
        }
    }
}

fn absolute(path: &str) -> Result<String> {
    let path = std::path::absolute(path)
        .map_err(|error| Error::invalid_argument(format!("invalid path {path:?}")).with_source(error))?;
    Ok(path.display().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_processors() {
        for (text, expected) in
            [("64m", 64 << 20), ("1g", 1 << 30), ("1.5k", 1536), ("100", 100), ("2GB", 2 << 30), ("7b", 7)]
        {
            assert_eq!(bytes(text).unwrap(), expected, "{text}");
        }
        assert_eq!((swap("-1").unwrap(), swap("1g").unwrap()), (-1, 1 << 30));
        assert!(swap("-2").is_err());
        assert!(bytes("x").is_err() && bytes("-1m").is_err() && bytes("").is_err());
        assert_eq!(milli_cpus("1.5").unwrap(), 1500);
        assert_eq!(milli_cpus("0").unwrap(), 0);
        assert!(milli_cpus("-0.5").is_err() && milli_cpus("0.0001").is_err() && milli_cpus("NaN").is_err());
        assert!(bytes("99999999999999g").is_err());
    }

    #[test]
    fn seconds_to_wait() {
        assert_eq!((seconds("3").unwrap(), seconds("0").unwrap()), (3, 0));
        assert!(seconds("-1").unwrap() > 1 << 30 && seconds("").is_err() && seconds("1s").is_err());
    }

    #[test]
    fn published_ports() {
        let port = |host_ip: &str, host_port, container_port, protocol: &str| Port {
            host_ip: host_ip.into(),
            host_port,
            host_port_last: None,
            container_port,
            protocol: protocol.into(),
        };
        assert_eq!(ports("80").unwrap(), [port("", None, 80, "tcp")]);
        assert_eq!(ports("8080:80").unwrap(), [port("", Some(8080), 80, "tcp")]);
        assert_eq!(ports("127.0.0.1:53:53/udp").unwrap(), [port("127.0.0.1", Some(53), 53, "udp")]);
        assert_eq!(ports("127.0.0.1::80").unwrap(), [port("127.0.0.1", None, 80, "tcp")]);
        assert_eq!(ports("1-2:3-4").unwrap(), [port("", Some(1), 3, "tcp"), port("", Some(2), 4, "tcp")]);
        assert_eq!(ports("0:80").unwrap(), [port("", None, 80, "tcp")]);
        assert_eq!(ports("53:53/UDP").unwrap(), [port("", Some(53), 53, "udp")]);
        assert_eq!(
            ports("8000-8010:80").unwrap(),
            [Port { host_port_last: Some(8010), ..port("", Some(8000), 80, "tcp") }]
        );
        assert_eq!(ports("7-7:80").unwrap(), [port("", Some(7), 80, "tcp")]);
        for bad in [
            "",
            "x",
            "1:2:3:4:x",
            "0",
            "1-2:3-5",
            "2-1:3",
            "70000",
            "80:80:80:80",
            "[::1]:1:2",
            "nobody::2",
            "1:1/sctp",
            "1/",
        ] {
            assert!(ports(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn volumes_and_mounts() {
        assert_eq!(
            volume("/a:/b:ro").unwrap(),
            Mount {
                kind: "bind".into(),
                source: "/a".into(),
                target: "/b".into(),
                read_only: true,
                options: Vec::new(),
                make_source: true,
            }
        );
        assert_eq!(volume("/a:/b:rslave").unwrap().options, ["rslave"]);
        assert!(volume("name:/b:rslave").is_err(), "a volume has none");
        assert_eq!(volume("name:/b").unwrap().kind, "volume");
        assert_eq!(
            (volume("/b").unwrap().kind, volume("/b").unwrap().source),
            ("volume".into(), String::new())
        );
        assert_eq!(volume("~/a:/b").unwrap().source, "~/a", "a name, which no volume has");
        assert!(volume("a").is_err() && volume("/a:/b:odd").is_err());
        let said = |refused: Result<Mount>| refused.unwrap_err().message().to_owned();
        assert!(said(volume("/a:/b:odd")).contains("expected ro, rw, z, Z, rprivate"));
        assert!(said(volume("name:/b:odd")).contains("expected ro, rw, z, Z, nocopy"));
        assert!(said(mount("type=bind,source=/a,target=/b,odd=1")).contains("bind-propagation"));
        assert!(volume(":/b").is_err() && volume(":/b:ro").is_err() && volume("").is_err());
        assert_eq!(mount("type=tmpfs,target=/t").unwrap().kind, "tmpfs");
        let of_volume = |text: &str| Mount { make_source: false, ..volume(text).unwrap() };
        assert_eq!(mount("type=bind,source=/a,target=/b,readonly").unwrap(), of_volume("/a:/b:ro"));
        assert_eq!(mount("type=bind,src=/a,dst=/b,ro=false").unwrap(), of_volume("/a:/b"));
        assert_eq!(mount("src=name,destination=/b").unwrap(), volume("name:/b").unwrap());
        let tmpfs = mount("type=tmpfs,target=/t,tmpfs-size=1m,tmpfs-mode=0700").unwrap();
        assert_eq!(tmpfs.options, ["size=1048576", "mode=0700"]);
        let bind =
            mount("type=bind,source=/a,target=/b,bind-propagation=rshared,consistency=cached").unwrap();
        assert_eq!(bind.options, ["rshared"]);
        for wrong in ["type=bind,source=/s", "type=tmpfs"] {
            let refused = mount(&format!("{wrong},target=/t,volume-nocopy")).unwrap_err();
            assert!(refused.message().contains("volume-nocopy is not an option of a"), "{refused}");
        }
        for wrong in ["tmpfs-mode=9", "tmpfs-size=x", "bind-propagation=rprivate"] {
            assert!(mount(&format!("type=tmpfs,target=/t,{wrong}")).is_err(), "{wrong}");
        }
        assert!(mount("type=bind,target=/t").is_err() && mount("type=odd,target=/t,source=/s").is_err());
    }

    #[test]
    fn file_systems_in_memory() {
        let full = tmpfs("/t:size=1m,noexec,mode=700").unwrap();
        assert_eq!((full.target.as_str(), full.options.len()), ("/t", 3));
        assert!(tmpfs("/t").unwrap().options.is_empty());
        for wrong in ["/t:bogus=1", "/t:size", "/t:size=", "/t:noexec=1", "/t:lowerdir=/"] {
            assert!(tmpfs(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn variables() {
        assert_eq!(env("A=").unwrap(), "A=");
        assert_eq!(env("THIS_IS_NOT_SET").unwrap(), "THIS_IS_NOT_SET");
        assert!(env("=C").is_err());
    }

    #[test]
    fn restart_policies() {
        assert_eq!(restart("on-failure:3").unwrap(), Restart::OnFailure(3));
        assert_eq!(restart("always").unwrap(), Restart::Always);
        assert!(restart("sometimes").is_err() && restart("always:3").is_err());
    }
}
