//! The mounts by which a snapshotter describes a tree, and variants of them for other purposes.
//!
//! ```text
//! overlay of upper, work and layers ─┬─ read_only ─▶ overlay of upper and layers: to look at, while it is in use
//!                                    ├─ throwaway ─▶ volatile overlay: what is written need not be kept
//!                                    ├─ durable   ─▶ overlay that is not volatile: what is written is to be kept
//!                                    └─ grounded  ─▶ the same overlay, with one more layer below all others
//! ```
//!
//! An overlay that has an upper directory writes that directory's whole file system to the disk when it is
//! unmounted, with all that others have written there: seconds, on a busy machine. Neither of the first two does.

use std::io;
use std::path::Path;

use types::{Context, Mount, Result};

use crate::overlay;

/// The value of an overlay's option, `key` with its `=`.
pub fn overlay_option<'a>(mount: &'a Mount, key: &str) -> Option<&'a str> {
    let is_overlay = mount.kind == "overlay";
    mount.options.iter().find_map(|option| option.strip_prefix(key)).filter(|_| is_overlay)
}

/// The mounts with the upper directory of an overlay as its topmost layer, for reading a tree that may be in use: two
/// mounts must not share an upper directory.
pub fn read_only(mounts: &[Mount]) -> Vec<Mount> {
    let each = mounts.iter().map(|mount| {
        let Some(upper) = overlay_option(mount, "upperdir=") else { return mount.clone() };
        let escaped = escaped(upper);
        let options = mount.options.iter().filter_map(|option| match option.split_once('=') {
            Some(("upperdir" | "workdir", _)) => None,
            Some(("lowerdir", layers)) => Some(format!("lowerdir={escaped}:{layers}")),
            _ if option == "rw" || option == "volatile" => None,
            _ => Some(option.clone()),
        });
        Mount { options: options.collect(), ..mount.clone() }
    });
    each.collect()
}

/// The mounts of a tree that is removed with its container: fsync(2) and unmount return at once. Written data may be
/// lost or torn if the machine goes down.
///
/// Unchanged if the kernel lacks the option (before Linux 5.10; overlayfs.rst, "Volatile mount"). The mark of an
/// earlier such mount, which makes the kernel refuse the next one, is removed: the tree must not be mounted.
pub fn throwaway(mut mounts: Vec<Mount>) -> Result<Vec<Mount>> {
    if !overlay::may_be_volatile() {
        return Ok(mounts);
    }
    for mount in &mut mounts {
        let Some(work) = overlay_option(mount, "workdir=") else { continue };
        let mark = Path::new(work).join("work/incompat");
        match std::fs::remove_dir_all(&mark) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(error).context(|| format!("remove {}", mark.display()));
            }
            _ => mount.options.push("volatile".to_owned()),
        }
    }
    Ok(mounts)
}

/// The mounts of a tree that is to be kept, without the option `volatile`, which a snapshotter may add to all: it makes
/// syncs no-ops.
pub fn durable(mut mounts: Vec<Mount>) -> Vec<Mount> {
    for mount in mounts.iter_mut().filter(|mount| mount.kind == "overlay") {
        mount.options.retain(|option| option != "volatile");
    }
    mounts
}

/// The mounts with one more layer, below all others of an overlay. Unchanged if there is none.
pub fn grounded(mut mounts: Vec<Mount>, layer: &Path) -> Vec<Mount> {
    let layer = escaped(&layer.to_string_lossy());
    for mount in mounts.iter_mut().filter(|mount| mount.kind == "overlay") {
        for layers in mount.options.iter_mut().filter(|option| option.starts_with("lowerdir=")) {
            layers.push(':');
            layers.push_str(&layer);
        }
    }
    mounts
}

/// A path as one of the layers of `lowerdir=`.
fn escaped(layer: &str) -> String {
    layer.replace('\\', "\\\\").replace(':', "\\:")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn overlay(options: &[&str]) -> Vec<Mount> {
        let options = options.iter().map(ToString::to_string).collect();
        vec![Mount { kind: "overlay".into(), source: "overlay".into(), target: String::new(), options }]
    }

    #[test]
    fn a_read_only_overlay_has_no_work_directory() {
        let used = overlay(&["index=off", "volatile", "workdir=/w", "upperdir=/a:b", "lowerdir=/l2:/l1"]);
        assert_eq!(read_only(&used), overlay(&["index=off", "lowerdir=/a\\:b:/l2:/l1"]));
        let view = overlay(&["lowerdir=/l2:/l1"]);
        assert_eq!(read_only(&view), view);
    }

    #[test]
    fn a_durable_overlay_is_not_volatile() {
        let words = ["volatile", "index=off", "workdir=/w", "upperdir=/u", "lowerdir=/l"];
        assert_eq!(durable(overlay(&words)), overlay(&words[1..]));
    }

    #[test]
    fn a_layer_is_laid_below_all_others() {
        let found = grounded(overlay(&["upperdir=/u", "lowerdir=/l2:/l1"]), Path::new("/a:b"));
        assert_eq!(found, overlay(&["upperdir=/u", "lowerdir=/l2:/l1:/a\\:b"]));
        let bind = vec![Mount { kind: "bind".into(), ..overlay(&["rw"]).remove(0) }];
        assert_eq!(grounded(bind.clone(), Path::new("/x")), bind);
    }

    #[test]
    fn the_mark_of_an_earlier_volatile_mount_is_removed() {
        let work = tempfile::tempdir().unwrap();
        let mark = work.path().join("work/incompat/volatile");
        std::fs::create_dir_all(&mark).unwrap();
        let words =
            [format!("workdir={}", work.path().display()), "upperdir=/u".into(), "lowerdir=/l".into()];
        let words = words.each_ref().map(String::as_str);
        let found = throwaway(overlay(&words)).unwrap();
        assert_eq!(found, overlay(&[&words[..], &["volatile"]].concat()));
        assert!(!mark.exists() && work.path().join("work").exists());
        let view = overlay(&["lowerdir=/l2:/l1"]);
        assert_eq!(throwaway(view.clone()).unwrap(), view);
    }
}
