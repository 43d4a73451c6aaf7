//! Opens two trees by a snapshotter's mounts, and finds the layers that only one of them has.

use std::path::Path;

use linux::beneath::Root;
use linux::idmap::Owners;
use linux::mount::{Bind, Layer, Options, open_layers, open_to_read, split_layers};
use linux::tree_mounts::overlay_option;
use types::{Mount, Result};

use crate::Trees;
use crate::tree::Tree;

impl Trees {
    /// Opens two trees by their mounts, detached from any mount namespace. A tree without mounts is empty.
    ///
    /// A writable overlay is opened read-only: it may be in use, and two mounts must not share an upper directory.
    pub fn open(lower: &[Mount], upper: &[Mount]) -> Result<Trees> {
        let open = |mounts: &[Mount]| match (mounts.is_empty(), unmapped(mounts)?) {
            (true, _) => Ok(None),
            (false, Some(layers)) => open_layers(&layers).map(Some),
            (false, None) => open_to_read(mounts).map(Some),
        };
        let mut trees = Trees::new(open(lower)?, open(upper)?);
        trees.guide = guide(lower, upper)
            .map(|layers| {
                layers.iter().map(|layer| Root::open(Path::new(layer)).map(Some).map(Tree)).collect()
            })
            .transpose()?;
        Ok(trees)
    }
}

/// The layers of an overlay with idmapped owners, so that all show the owners of the image: files in the upper
/// directory have mapped owners, which are mapped back, and those in lower layers have the image's. `None` for other
/// mounts.
fn unmapped(mounts: &[Mount]) -> Result<Option<Vec<Layer>>> {
    let [mount] = mounts else { return Ok(None) };
    let (Some(uids), Some(gids)) = (overlay_option(mount, "uidmap="), overlay_option(mount, "gidmap="))
    else {
        return Ok(None);
    };
    let written = Owners::parse(uids, gids)?.inverse();
    let upper = overlay_option(mount, "upperdir=");
    let upper = upper.map(|upper| Layer { path: upper.to_owned(), owners: Some(written) });
    let lower = overlay_option(mount, "lowerdir=").into_iter().flat_map(split_layers);
    Ok(Some(upper.into_iter().chain(lower.map(|path| Layer { path, owners: None })).collect()))
}

/// The layers that only one of two trees has, above those that both have. `None` if they have no common layer, or are
/// not made of layers.
fn guide(lower: &[Mount], upper: &[Mount]) -> Option<Vec<String>> {
    let (mut one, mut other) = (layers(lower)?, layers(upper)?);
    let mut shared = 0;
    while one.last().is_some() && one.last() == other.last() {
        one.pop();
        other.pop();
        shared += 1;
    }
    one.append(&mut other);
    (shared > 0).then_some(one)
}

/// The directories that a mount stacks, topmost first; `None` if they cannot be told.
fn layers(mounts: &[Mount]) -> Option<Vec<String>> {
    let [mount] = mounts else { return None };
    if mount.kind != "overlay" {
        let is_bind = mount.kind == "bind" || Options::parse(&mount.options).bind != Bind::No;
        return is_bind.then(|| vec![mount.source.clone()]);
    }
    let upper = overlay_option(mount, "upperdir=").map(str::to_owned);
    let lower = overlay_option(mount, "lowerdir=").map(split_layers);
    Some(upper.into_iter().chain(lower.into_iter().flatten()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn overlay(options: &[&str]) -> Vec<Mount> {
        let options = options.iter().map(ToString::to_string).collect();
        vec![Mount { kind: "overlay".into(), source: "overlay".into(), target: String::new(), options }]
    }

    fn bind(source: &str) -> Vec<Mount> {
        let options = vec!["ro".into(), "rbind".into()];
        vec![Mount { kind: "bind".into(), source: source.into(), target: String::new(), options }]
    }

    #[test]
    fn the_guide_is_the_layers_that_only_one_tree_has() {
        let check = |lower: &[Mount], upper: &[Mount], expected: Option<&[&str]>| {
            let found = guide(lower, upper);
            assert_eq!(
                found.as_deref(),
                expected.map(|list| list.iter().map(ToString::to_string).collect::<Vec<_>>()).as_deref()
            );
        };
        let active = overlay(&["workdir=/w", "upperdir=/u", "lowerdir=/b:/a"]);
        check(&overlay(&["lowerdir=/b:/a"]), &active, Some(&["/u"]));
        check(&bind("/a"), &active, Some(&["/u", "/b"]));
        check(&overlay(&["lowerdir=/c:/a"]), &active, Some(&["/c", "/u", "/b"]));
        check(&bind("/a"), &bind("/a"), Some(&[]));
        check(&bind("/x"), &active, None);
        check(&[], &active, None);
        check(&bind("/a"), &[bind("/a"), bind("/b")].concat(), None);
    }

    #[test]
    fn owners_are_mapped_back_in_the_upper_directory_only() {
        let maps = ["uidmap=0:1000:10", "gidmap=0:2000:10"];
        let active = overlay(&[&maps[..], &["workdir=/w", "upperdir=/u", "lowerdir=/b:/a"]].concat());
        let written = Owners::parse("1000:0:10", "2000:0:10").unwrap();
        let expected = [("/u", Some(written)), ("/b", None), ("/a", None)];
        let expected = expected.map(|(path, owners)| Layer { path: path.to_owned(), owners });
        assert_eq!(unmapped(&active).unwrap().unwrap(), expected);
        assert!(unmapped(&overlay(&["lowerdir=/b:/a"])).unwrap().is_none());
    }
}
