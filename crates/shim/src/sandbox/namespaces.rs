//! The namespaces of a pod, which the shim itself moves into: there is no other process to hold them.
//!
//! Of the spec's namespaces those that containers share are taken: `ipc`, `network` and `uts`, made anew or
//! joined by their path. One that is not listed stays the host's. Process numbers, mounts and cgroups are each
//! container's own.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::AsFd;
use std::path::Path;

use linux::ns::{self, NsKind};
use types::spec::runtime::Spec;
use types::{Context, Error, Result};

pub(super) struct Namespaces {
    moved: Vec<Moved>,
}

struct Moved {
    kind: NsKind,
    host: File,
    pod: File,
}

impl Namespaces {
    /// Moves the shim. After an error it is where it was.
    pub(super) fn enter(spec: &Spec, netns: &str) -> Result<Namespaces> {
        let mut namespaces = Namespaces { moved: Vec::new() };
        let entered = namespaces.enter_all(spec, netns);
        match entered {
            Ok(()) => Ok(namespaces),
            Err(error) => {
                namespaces.go(|moved| &moved.host)?;
                Err(error)
            }
        }
    }

    fn enter_all(&mut self, spec: &Spec, netns: &str) -> Result<()> {
        let wanted = wanted(spec, netns)?;
        let has = |name: &str| wanted.iter().any(|(kind, path)| kind.name() == name && path.is_none());
        let sysctls = spec.linux.as_ref().map(|linux| &linux.sysctl);
        for key in sysctls.iter().flat_map(|sysctls| sysctls.keys()) {
            // The network may have been made for this pod by somebody else.
            runtime::check_sysctl(key, &|name| has(name) || name == "network" && !netns.is_empty())?;
        }
        for (kind, path) in &wanted {
            self.enter_one(*kind, path.as_deref())?;
        }
        if has("uts") && !spec.hostname.is_empty() {
            rustix::system::sethostname(spec.hostname.as_bytes())
                .map_err(std::io::Error::from)
                .context(|| format!("set host name {:?}", spec.hostname))?;
        }
        sysctls.map_or(Ok(()), set_sysctls)
    }

    fn enter_one(&mut self, kind: NsKind, path: Option<&str>) -> Result<()> {
        let host = own(kind)?;
        match path {
            None => ns::unshare(&[kind])?,
            Some(path) => {
                ns::join(kind.open(Path::new(path))?.as_fd(), kind).context(|| path.to_owned())?;
            }
        }
        let pod = own(kind)?;
        self.moved.push(Moved { kind, host, pod });
        Ok(())
    }

    pub(super) fn kinds(&self) -> impl Iterator<Item = NsKind> {
        self.moved.iter().map(|moved| moved.kind)
    }

    /// Runs work where the shim came from, for programs that are not the pod's.
    pub(super) fn at_home<T>(&self, work: impl FnOnce() -> Result<T>) -> Result<T> {
        self.go(|moved| &moved.host)?;
        let done = work();
        self.go(|moved| &moved.pod)?;
        done
    }

    fn go(&self, to: impl Fn(&Moved) -> &File) -> Result<()> {
        self.moved.iter().try_for_each(|moved| ns::join(to(moved).as_fd(), moved.kind))
    }
}

fn own(kind: NsKind) -> Result<File> {
    let path = format!("/proc/self/ns/{}", kind.file_name());
    File::open(&path).context(|| format!("open {path}"))
}

/// Kinds, and the paths of those that are there already.
fn wanted(spec: &Spec, netns: &str) -> Result<Vec<(NsKind, Option<String>)>> {
    let mut wanted = Vec::new();
    if !netns.is_empty() {
        wanted.push((NsKind::Network, Some(netns.to_owned())));
    }
    for namespace in spec.linux.iter().flat_map(|linux| &linux.namespaces) {
        let kind = NsKind::from_name(&namespace.kind)?;
        match kind {
            NsKind::Network if !netns.is_empty() => {}
            NsKind::Ipc | NsKind::Network | NsKind::Uts => {
                let path = Some(namespace.path.clone()).filter(|path| !path.is_empty());
                wanted.push((kind, path));
            }
            NsKind::User => {
                return Err(Error::unimplemented(
                    "a sandbox of this shim has no user namespace; give its containers theirs",
                ));
            }
            _ => {}
        }
    }
    Ok(wanted)
}

/// Those of the namespaces that the calling thread is in.
fn set_sysctls(sysctls: &BTreeMap<String, String>) -> Result<()> {
    for (key, value) in sysctls {
        let path =
            format!("/proc/sys/{}", if key.contains('/') { key.clone() } else { key.replace('.', "/") });
        std::fs::write(&path, value).context(|| format!("set sysctl {key} to {value:?}"))?;
    }
    Ok(())
}
