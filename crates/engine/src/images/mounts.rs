//! `image mount`: read-only views of images' file systems, mounted at a path that the client chooses.
//!
//! Each mount is a view snapshot, which keeps the image's snapshots, with labels that tell where it is mounted. The
//! mount survives the daemon; the labels let the next daemon recognize it. A view without its mount was left by a
//! reboot or a crash, and is removed with other leftovers.

use std::path::{Path, PathBuf};

use metadata::Snapshot;
use serde_json::{Value, json};
use types::filter::Filters;
use types::{Context, Digest, Error, ErrorKind, Labels, Result, Timestamp, UnlessGone};

use crate::Engine;
use crate::containers::{ROOT_LABEL, familiar};

/// Label of the view: its mount point.
const PATH_LABEL: &str = "hoist.engine/image-mount";
/// Label of the view: the image's name when it was mounted.
const IMAGE_LABEL: &str = "hoist.engine/image";

/// A view that is, or was, mounted.
pub(crate) struct ImageMount {
    pub(crate) key: String,
    pub(crate) path: PathBuf,
    image: String,
    pub(crate) is_mounted: bool,
}

impl Engine {
    pub(crate) async fn mount_image(&self, name: &str, path: &str) -> Result<Value> {
        let (name, path) = (name.to_owned(), PathBuf::from(path));
        // Held so that `sweep` does not take the view for a leftover before it is mounted.
        let _nobody_sweeps = self.0.starting.read().await;
        self.blocking(move |engine| {
            let path = path.canonicalize().context(|| format!("find {}", path.display()))?;
            if !path.is_dir() {
                return Err(Error::invalid_argument(format!("{} is no folder", path.display())));
            }
            if linux::mount::mount_points()?.iter().any(|point| point.path == path) {
                let message = format!("something is mounted on {} already", path.display());
                return Err(Error::failed_precondition(message));
            }
            let image = engine.find_image(&name)?;
            let described = engine.described(&image)?;
            let top = described.top.ok_or_else(|| {
                Error::failed_precondition(format!("image {} has no files", familiar(&image.name)))
            })?;
            let labels = Labels::from([
                (PATH_LABEL.to_owned(), path.display().to_string()),
                (IMAGE_LABEL.to_owned(), image.name.clone()),
                (ROOT_LABEL.to_owned(), Timestamp::now().to_string()),
            ]);
            let parts = engine.parts();
            let snapshots = parts.metadata.snapshots(&engine.0.caller, &parts.snapshotter)?;
            let key = key(&path);
            let mut view = match snapshots.view(&key, Some(&top), labels.clone()) {
                // An earlier view of this path, whose mount is gone, as checked above.
                Err(error) if error.is(ErrorKind::AlreadyExists) => {
                    snapshots.remove(&key)?;
                    snapshots.view(&key, Some(&top), labels)
                }
                made => made,
            }?;
            // Any user of the host may reach the mount point, so setuid programs and devices of the image must not work
            // there.
            for mount in &mut view {
                mount.options.extend(["nosuid", "nodev"].map(str::to_owned));
            }
            if let Err(error) = linux::mount::mount_all(&view, &path) {
                // Report the first error; the next `system check` finds what is left.
                let _ = snapshots.remove(&key);
                return Err(error);
            }
            Ok(json!({"Path": path, "Image": familiar(&image.name)}))
        })
        .await
    }

    pub(crate) async fn unmount_image(&self, path: &str) -> Result<Value> {
        let path = PathBuf::from(path);
        let _nobody_sweeps = self.0.starting.read().await;
        self.blocking(move |engine| {
            // A mount point that was deleted is still known by its former path.
            let path = path.canonicalize().unwrap_or(path);
            let mounted = engine.image_mounts()?.into_iter().find(|mount| mount.path == path);
            let mounted = mounted.ok_or_else(|| {
                Error::not_found(format!("no image is mounted on {} (hoist image mount)", path.display()))
            })?;
            linux::mount::unmount_all(&mounted.path)?;
            engine.forget_mount(&mounted.key)?;
            Ok(json!({"Path": path, "Image": familiar(&mounted.image)}))
        })
        .await
    }

    pub(crate) async fn list_image_mounts(&self) -> Result<Value> {
        self.blocking(|engine| {
            let row = |mount: ImageMount| {
                let state = if mount.is_mounted { "mounted" } else { "gone" };
                json!({"Path": mount.path, "Image": familiar(&mount.image), "State": state})
            };
            Ok(engine.image_mounts()?.into_iter().map(row).collect())
        })
        .await
    }

    pub(crate) fn image_mounts(&self) -> Result<Vec<ImageMount>> {
        let parts = self.parts();
        let ours = Filters::parse(&[format!("labels.{PATH_LABEL:?}")])?;
        let views = parts.metadata.snapshots(&self.0.caller, &parts.snapshotter)?.list(&ours)?;
        let points = linux::mount::mount_points()?;
        let mount = |view: Snapshot| {
            let label = |key: &str| view.labels.get(key).cloned().unwrap_or_default();
            let path = PathBuf::from(label(PATH_LABEL));
            let is_mounted = points.iter().any(|point| point.path == path);
            ImageMount { path, image: label(IMAGE_LABEL), is_mounted, key: view.key }
        };
        Ok(views.into_iter().map(mount).collect())
    }

    pub(crate) fn forget_mount(&self, key: &str) -> Result<()> {
        let parts = self.parts();
        let snapshots = parts.metadata.snapshots(&self.0.caller, &parts.snapshotter)?;
        snapshots.remove(key).unless_gone().map(drop)
    }
}

/// The key of the view for a path: one view per path.
fn key(path: &Path) -> String {
    format!("image-mount-{}", Digest::of(path.as_os_str().as_encoded_bytes()).short())
}
