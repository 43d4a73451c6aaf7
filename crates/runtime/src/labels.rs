//! AppArmor and SELinux labels: of a process from its next exec on, of its keyring, and of the file systems made for
//! it.
//!
//! Which of the two the host has is looked up while the host's tree is still reachable. A label for a module that the
//! host lacks is left out with a warning, so that one spec runs on both kinds of hosts.

use std::fs;
use std::io;
use std::os::fd::BorrowedFd;
use std::path::Path;

use linux::beneath::proc_path;
use linux::procfs::Proc;
use rustix::fs::XattrFlags;
use types::spec::runtime::{Process, Spec};
use types::{Context, ErrorKind, Result};

const APPARMOR: &str = "/sys/module/apparmor/parameters/enabled";
const SELINUX: &str = "/sys/fs/selinux/enforce";

/// The labels that are written right before the exec.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Labels {
    apparmor: Option<String>,
    selinux: Option<String>,
}

impl Labels {
    /// The labels of a process that this host can apply, and warnings for those it cannot.
    pub(crate) fn of(process: &Process) -> (Labels, Vec<String>) {
        Labels::on_host(process, has_apparmor(), has_selinux())
    }

    fn on_host(process: &Process, has_apparmor: bool, has_selinux: bool) -> (Labels, Vec<String>) {
        let mut warnings = Vec::new();
        let mut choose = |label: &str, has_it: bool, what: &str, module: &str| {
            if !label.is_empty() && !has_it {
                warnings.push(format!("{what} {label} is not applied: this host has no {module}"));
            }
            (!label.is_empty() && has_it).then(|| label.to_owned())
        };
        let labels = Labels {
            apparmor: choose(&process.apparmor_profile, has_apparmor, "AppArmor profile", "AppArmor"),
            selinux: choose(&process.selinux_label, has_selinux, "SELinux label", "SELinux"),
        };
        (labels, warnings)
    }

    /// Has the kernel label the keys that the calling process makes until its next exec: a confined program could not
    /// use its keyring otherwise.
    pub(crate) fn apply_to_keys(&self, proc: &Proc) -> Result<()> {
        match &self.selinux {
            Some(label) => proc.write("self/attr/keycreate", label).context(|| format!("label keys {label}")),
            None => Ok(()),
        }
    }

    /// Has the kernel label the next program that the calling process executes.
    pub(crate) fn apply(&self, proc: &Proc) -> Result<()> {
        if let Some(profile) = &self.apparmor {
            let text = format!("exec {profile}");
            let written = match proc.write("self/attr/apparmor/exec", &text) {
                // Kernels before 5.1 have one file for all modules.
                Err(error) if error.is(ErrorKind::NotFound) => proc.write("self/attr/exec", &text),
                other => other,
            };
            written.context(|| format!("set AppArmor profile {profile}"))?;
        }
        if let Some(label) = &self.selinux {
            proc.write("self/attr/exec", label).context(|| format!("set SELinux label {label}"))?;
        }
        Ok(())
    }
}

/// The label of file systems made for the container.
#[derive(Debug)]
pub(crate) struct MountLabel(String);

impl MountLabel {
    /// None if the spec has none, or this host no SELinux.
    pub(crate) fn of(spec: &Spec) -> Option<MountLabel> {
        let label = &spec.linux.as_ref()?.mount_label;
        (!label.is_empty() && has_selinux()).then(|| MountLabel(label.clone()))
    }

    /// The mount option for a new file system.
    pub(crate) fn option(&self) -> String {
        format!("context={}", self.0)
    }

    /// Labels the root of a file system that lacks such an option: message queues.
    pub(crate) fn apply(&self, root: BorrowedFd<'_>) -> Result<()> {
        rustix::fs::setxattr(proc_path(root), "security.selinux", self.0.as_bytes(), XattrFlags::empty())
            .map_err(io::Error::from)
            .context(|| format!("set SELinux label {}", self.0))
    }
}

pub(crate) fn has_apparmor() -> bool {
    fs::read_to_string(APPARMOR).is_ok_and(|text| text.starts_with('Y'))
}

pub(crate) fn has_selinux() -> bool {
    Path::new(SELINUX).exists()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_labels_that_the_host_knows_are_applied() {
        let process = Process {
            apparmor_profile: "docker-default".into(),
            selinux_label: "system_u:system_r:container_t:s0".into(),
            ..Process::default()
        };
        let (labels, warnings) = Labels::on_host(&process, true, false);
        assert_eq!(labels, Labels { apparmor: Some("docker-default".into()), selinux: None });
        assert_eq!(warnings.len(), 1);
        assert!(warnings[0].contains("SELinux label system_u"), "{warnings:?}");
        assert_eq!(Labels::on_host(&Process::default(), false, false), (Labels::default(), Vec::new()));
    }
}
