//! The namespaces of a pod. The shim itself moves into those that it can be in; the others are held by a
//! [`holder`](super::holder).
//!
//! Of the namespaces in the spec, a pod has those that containers share: `ipc`, `network` and `uts`, made or joined by
//! path, and `user` and `pid`, which are always made. A container that names none of the first three is in the pod's;
//! the holder's it joins by path. Kinds that are not listed stay the host's. Mount and cgroup namespaces are each
//! container's own.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::AsFd;
use std::path::Path;

use linux::ns::{self, NsKind};
use types::spec::runtime::{Linux, Spec};
use types::{Context, Error, Result};

use super::holder::{Holder, HolderOptions};

pub(super) struct Namespaces {
    moved: Vec<Moved>,
    holder: Option<Holder>,
    /// Namespaces that only the holder is in.
    held: Vec<NsKind>,
}

struct Moved {
    kind: NsKind,
    host: File,
    pod: File,
}

impl Namespaces {
    /// Moves the shim. After an error it is back in its own namespaces. `place` is a directory of the pod.
    pub(super) fn enter(spec: &Spec, netns: &str, place: &Path) -> Result<Namespaces> {
        let mut namespaces = Namespaces { moved: Vec::new(), holder: None, held: Vec::new() };
        let entered = namespaces.enter_all(spec, netns, place);
        match entered {
            Ok(()) => Ok(namespaces),
            Err(error) => {
                namespaces.leave()?;
                Err(error)
            }
        }
    }

    /// Moves the shim back to the host's namespaces, and ends the holder.
    pub(super) fn leave(self) -> Result<()> {
        self.go(|moved| &moved.host)
    }

    fn enter_all(&mut self, spec: &Spec, netns: &str, place: &Path) -> Result<()> {
        let wanted = Requested::of(spec, netns)?;
        let has = |name: &str| wanted.new.iter().any(|kind| kind.name() == name);
        // Before the user namespace is made, from which they could not be joined.
        for (kind, path) in &wanted.joined {
            self.enter_one(*kind, Some(path))?;
        }
        // The network namespace may be another program's, made for this pod, or the host's.
        let has_network = !netns.is_empty() && self.has_left(NsKind::Network)?;
        let sysctls = spec.linux.as_ref().map(|linux| &linux.sysctl);
        for key in sysctls.iter().flat_map(|sysctls| sysctls.keys()) {
            runtime::check_sysctl(key, &|name| has(name) || name == "network" && has_network)?;
        }
        let settle = || {
            if has("uts") && !spec.hostname.is_empty() {
                rustix::system::sethostname(spec.hostname.as_bytes())
                    .map_err(std::io::Error::from)
                    .context(|| format!("set host name {:?}", spec.hostname))?;
            }
            sysctls.map_or(Ok(()), set_sysctls)
        };
        if !wanted.is_held() {
            wanted.new.iter().try_for_each(|kind| self.enter_one(*kind, None))?;
            return settle();
        }
        let none = Linux::default();
        let linux = spec.linux.as_ref().unwrap_or(&none);
        if has("user") && (linux.uid_mappings.is_empty() || linux.gid_mappings.is_empty()) {
            let why = "a user namespace needs linux.uidMappings and linux.gidMappings";
            return Err(Error::invalid_argument(why));
        }
        let hold =
            HolderOptions { kinds: &wanted.new, uids: &linux.uid_mappings, gids: &linux.gid_mappings, place };
        let holder = Holder::start(&hold, settle)?;
        let (held, shared): (Vec<NsKind>, Vec<NsKind>) = wanted.new.iter().partition(|kind| is_held(**kind));
        for kind in shared {
            self.enter_one(kind, Some(&format!("/proc/{}/ns/{}", holder.pid(), kind.file_name())))?;
        }
        self.holder = Some(holder);
        self.held = held;
        Ok(())
    }

    /// Whether the pod has a user namespace.
    pub(super) fn has_users(&self) -> bool {
        self.held.contains(&NsKind::User)
    }

    pub(super) fn holder(&self) -> Option<&Holder> {
        self.holder.as_ref()
    }

    /// Whether the shim has left its original namespace of this kind.
    fn has_left(&self, kind: NsKind) -> Result<bool> {
        let Some(moved) = self.moved.iter().find(|moved| moved.kind == kind) else { return Ok(false) };
        ns::is_current(moved.host.as_fd(), kind).map(|is_home| !is_home)
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
        self.moved.iter().map(|moved| moved.kind).chain(self.held.iter().copied())
    }

    /// Runs work in the shim's original namespaces, for programs of the host.
    pub(super) fn on_host<T>(&self, work: impl FnOnce() -> Result<T>) -> Result<T> {
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

/// The namespaces that a spec asks for.
struct Requested {
    new: Vec<NsKind>,
    /// Existing ones, with their paths.
    joined: Vec<(NsKind, String)>,
}

impl Requested {
    fn of(spec: &Spec, netns: &str) -> Result<Requested> {
        let mut wanted = Requested { new: Vec::new(), joined: Vec::new() };
        if !netns.is_empty() {
            wanted.joined.push((NsKind::Network, netns.to_owned()));
        }
        for namespace in spec.linux.iter().flat_map(|linux| &linux.namespaces) {
            let kind = NsKind::from_name(&namespace.kind)?;
            match (kind, namespace.path.as_str()) {
                (NsKind::Network, _) if !netns.is_empty() => {}
                (NsKind::Ipc | NsKind::Network | NsKind::Uts | NsKind::User | NsKind::Pid, "") => {
                    wanted.new.push(kind);
                }
                (NsKind::Ipc | NsKind::Network | NsKind::Uts, path) => {
                    wanted.joined.push((kind, path.to_owned()));
                }
                (NsKind::User, _) => {
                    return Err(Error::unimplemented(
                        "a sandbox of this shim joins no user namespace; have it make one, or give the path to its \
                         containers",
                    ));
                }
                _ => {}
            }
        }
        Ok(wanted)
    }

    fn is_held(&self) -> bool {
        self.new.iter().any(|kind| is_held(*kind))
    }
}

/// Whether the shim cannot be in a namespace of this kind.
fn is_held(kind: NsKind) -> bool {
    matches!(kind, NsKind::User | NsKind::Pid)
}

/// Sets sysctls of the calling thread's namespaces.
fn set_sysctls(sysctls: &BTreeMap<String, String>) -> Result<()> {
    for (key, value) in sysctls {
        let path = format!("/proc/sys/{}", runtime::sysctl_path(key));
        std::fs::write(&path, value).context(|| format!("set sysctl {key} to {value:?}"))?;
    }
    Ok(())
}
