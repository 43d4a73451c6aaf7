//! Decides which mounts of a list the mount manager performs, and which are left to the client.
//!
//! ```text
//! mkfs/loop       performed here, after its step: `loop` is one of our types
//! format/ext4     left to the client, but its step is done here
//! overlay         left to the client, unchanged
//! ```
//!
//! All mounts up to the last one of our types are performed here, and all before the last one that has a step.
//!
//! The type of a mount may begin with steps to do first: `format/`, `mkdir/` and `mkfs/`, several of them in their
//! order.

use types::Mount;

use crate::{Options, fuse};

/// A step to do before a mount is performed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Fill in placeholders for earlier mounts.
    Format,
    /// Create a file system in a file.
    Mkfs,
    /// Create directories.
    Mkdir,
}

impl Step {
    fn parse(word: &str) -> Option<Step> {
        match word {
            "format" => Some(Step::Format),
            "mkfs" => Some(Step::Mkfs),
            "mkdir" => Some(Step::Mkdir),
            _ => None,
        }
    }
}

#[derive(Debug, PartialEq)]
pub(crate) struct Planned {
    pub(crate) steps: Vec<Step>,
    /// The mount, with its type without the steps.
    pub(crate) mount: Mount,
}

#[derive(Debug, PartialEq)]
pub(crate) struct Plan {
    /// The mounts to perform here, in order.
    pub(crate) here: Vec<Planned>,
    /// The first mount that is left to the client. Its steps are done here, as it may refer to mounts before it.
    pub(crate) next: Option<Planned>,
    /// All mounts after it, unchanged.
    pub(crate) rest: Vec<Mount>,
}

/// Types that the kernel does not know, or not with all options of containerd.
const OWN_KINDS: [&str; 2] = ["erofs", "loop"];

impl Plan {
    /// `None` if the client can perform all mounts itself.
    pub(crate) fn new(mounts: Vec<Mount>, options: &Options) -> Option<Plan> {
        let is_allowed = |kind: &str| options.allowed.iter().any(|allowed| allowed == kind);
        let is_own = |kind: &str| OWN_KINDS.contains(&kind) || options.makes_fuse && fuse::is_fuse(kind);
        let mut here = None;
        let mut planned = Vec::new();
        for (index, mount) in mounts.iter().enumerate() {
            let mut kind = mount.kind.as_str();
            let mut steps = Vec::new();
            while let Some((word, rest)) = kind.split_once('/')
                && let Some(step) = Step::parse(word)
            {
                if !is_allowed(&format!("{word}/*")) && !is_allowed(&mount.kind) {
                    here = here.max(Some(index));
                }
                steps.push(step);
                kind = rest;
            }
            if options.is_all || (is_own(kind) && !is_allowed(kind)) {
                here = here.max(Some(index + 1));
            }
            planned.push(Planned { steps, mount: Mount { kind: kind.to_owned(), ..mount.clone() } });
        }
        let here = here?;
        let mut planned = planned.into_iter();
        Some(Plan {
            here: planned.by_ref().take(here).collect(),
            next: planned.next(),
            rest: mounts.into_iter().skip(here + 1).collect(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The kinds that are made here, the next, and the rest.
    fn check(kinds: &[&str], is_all: bool, allowed: &[&str], expected: Option<(&[&str], &str, &[&str])>) {
        let mounts =
            kinds.iter().map(|kind| Mount { kind: (*kind).to_owned(), ..Mount::default() }).collect();
        let allowed: Vec<String> = allowed.iter().map(ToString::to_string).collect();
        let options = Options { is_all, allowed: allowed.clone(), ..Options::default() };
        let plan = Plan::new(mounts, &options);
        let found = plan.as_ref().map(|plan| {
            let here: Vec<&str> = plan.here.iter().map(|planned| planned.mount.kind.as_str()).collect();
            let rest: Vec<&str> = plan.rest.iter().map(|mount| mount.kind.as_str()).collect();
            (here, plan.next.as_ref().map_or("", |planned| planned.mount.kind.as_str()), rest)
        });
        let expected = expected.map(|(here, next, rest)| (here.to_vec(), next, rest.to_vec()));
        assert_eq!(found, expected, "{kinds:?} {is_all} {allowed:?}");
    }

    #[test]
    fn mounts_up_to_the_last_that_needs_it_are_performed_here() {
        check(&[], false, &[], None);
        check(&[], true, &[], None);
        check(&["bind", "overlay"], false, &[], None);
        check(&["bind", "overlay"], true, &[], Some((&["bind", "overlay"], "", &[])));
        check(&["format/ext4"], false, &[], Some((&[], "ext4", &[])));
        check(&["loop", "format/ext4"], false, &[], Some((&["loop"], "ext4", &[])));
        check(&["loop", "ext4"], false, &[], Some((&["loop"], "ext4", &[])));
        check(&["erofs"], false, &[], Some((&["erofs"], "", &[])));
        check(&["bind", "mkdir/bind", "tmpfs"], false, &[], Some((&["bind"], "bind", &["tmpfs"])));
        check(&["mkfs/loop", "format/mkdir/overlay"], false, &[], Some((&["loop"], "overlay", &[])));
        check(&["made/up"], false, &[], None);
        check(&["format/made/up"], false, &[], Some((&[], "made/up", &[])));
    }

    #[test]
    fn steps_that_the_client_handles_are_left_to_it() {
        check(&["loop"], false, &["loop"], None);
        check(&["format/ext4"], false, &["format/*"], None);
        check(&["format/ext4"], false, &["format/ext4"], None);
        check(&["loop"], true, &["loop"], Some((&["loop"], "", &[])));
        check(
            &["loop", "erofs", "format/overlay"],
            false,
            &["loop", "format/*"],
            Some((&["loop", "erofs"], "overlay", &[])),
        );
        check(
            &["erofs", "bind", "format/overlay"],
            false,
            &["format/*"],
            Some((&["erofs"], "bind", &["format/overlay"])),
        );
    }

    #[test]
    fn fuse_mounts_are_performed_for_clients_that_cannot() {
        let mounts = vec![Mount { kind: "fuse3.fuse-overlayfs".into(), ..Mount::default() }];
        assert_eq!(Plan::new(mounts.clone(), &Options::default()), None);
        let options = Options { makes_fuse: true, ..Options::default() };
        assert_eq!(Plan::new(mounts, &options).unwrap().here.len(), 1);
        let mounts = vec![Mount { kind: "fuse".into(), ..Mount::default() }];
        assert_eq!(Plan::new(mounts, &options), None, "the kernel's own");
    }

    #[test]
    fn steps_of_a_mount_type_are_done_in_order() {
        let mount = Mount { kind: "format/mkdir/overlay".into(), ..Mount::default() };
        let plan = Plan::new(vec![mount], &Options::default()).unwrap();
        assert_eq!(plan.next.unwrap().steps, [Step::Format, Step::Mkdir]);
    }
}
