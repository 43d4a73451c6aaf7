//! Images: found by name or id, pulled, loaded, listed, removed.

use std::fs::File;
use std::io::BufWriter;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use api::engine::PullStep;
use metadata::Image;
use registry::{Credentials, Remote};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use transfer::{Described, Progress, PullRequest};
use types::filter::Filters;
use types::{Context, Error, ErrorKind, Platform, Reference, Result};

use crate::Engine;
use crate::containers::familiar;
use crate::record::Extension;

/// Steps that may wait for a slow reader. Those beyond are left out.
const STEPS_WAITING: usize = 256;
/// Bytes on their way into an archive.
const SAVE_BUFFER_LEN: usize = 256 * 1024;

impl Engine {
    /// Pulls an image and tells the steps.
    pub async fn pull(
        &self,
        reference: &str,
        platform: Option<&str>,
        credentials: Option<Credentials>,
        to: mpsc::Sender<PullStep>,
    ) -> Result<Image> {
        let reference: Reference = reference.parse()?;
        let platform = platform.map_or_else(|| Ok(Platform::host()), str::parse)?;
        let remote = Remote::with_connections(&self.0.connections, &reference, credentials);
        let (send, mut receive) = mpsc::channel(STEPS_WAITING);
        let request = PullRequest {
            reference,
            platform,
            snapshotter: self.parts().snapshotter.clone(),
            caller: self.0.caller.clone(),
            remote,
        };
        let steps = tokio::spawn(async move {
            while let Some(progress) = receive.recv().await {
                if to.send(step(progress)).await.is_err() {
                    return;
                }
            }
        });
        let pulled = transfer::pull(&self.parts().metadata, request, Some(send)).await;
        // All steps are told before the outcome is.
        let _ = steps.await;
        pulled
    }

    /// Loads an archive or layout of this machine, or an embedded image.
    pub async fn load(&self, path: &str, embedded: Option<&str>) -> Result<Value> {
        let (path, embedded) = (PathBuf::from(path), embedded.map(str::to_owned));
        let images = self
            .blocking(move |engine| match &embedded {
                Some(name) => engine.load_embedded(name),
                None => {
                    let parts = engine.parts();
                    let stem = path
                        .file_stem()
                        .and_then(std::ffi::OsStr::to_str)
                        .unwrap_or("import")
                        .to_ascii_lowercase();
                    let fallback: Reference = stem.parse().or_else(|_| "import".parse())?;
                    transfer::import(
                        &parts.metadata,
                        &engine.0.caller,
                        &parts.snapshotter,
                        &path,
                        Some(&fallback),
                    )
                }
            })
            .await?;
        Ok(images
            .iter()
            .map(|image| json!({"Name": image.name, "Digest": image.target.digest.to_string()}))
            .collect())
    }

    /// Makes an image from the tar of a root file system.
    pub async fn import_tree(&self, path: &str, name: Option<&str>, comment: String) -> Result<Value> {
        let path = PathBuf::from(path);
        let name: Option<Reference> = name.map(str::parse).transpose()?;
        let image = self
            .blocking(move |engine| {
                let (parts, caller) = (engine.parts(), &engine.0.caller);
                let (name, comment) = (name.as_ref(), comment.as_str());
                transfer::import_tree(&parts.metadata, caller, &parts.snapshotter, &path, name, comment)
            })
            .await?;
        Ok(json!({"Name": image.name, "Digest": image.target.digest.to_string()}))
    }

    /// Writes images to a pipe of the caller.
    pub async fn save(&self, names: Vec<String>, pipe: &str) -> Result<Value> {
        let pipe = PathBuf::from(pipe);
        self.blocking(move |engine| {
            let images = names.iter().map(|name| engine.find_image(name)).collect::<Result<Vec<_>>>()?;
            let to = BufWriter::with_capacity(SAVE_BUFFER_LEN, open_pipe(&pipe)?);
            let (parts, caller) = (engine.parts(), &engine.0.caller);
            transfer::export(&parts.metadata, caller, &images, &Platform::host(), to)
        })
        .await?;
        Ok(json!({}))
    }

    /// Finds an image by name, or by its id or the beginning of it.
    pub(crate) fn find_image(&self, text: &str) -> Result<Image> {
        let images = self.parts().metadata.images(&self.0.caller);
        let missing = || Error::not_found(format!("No such image: {text}"));
        if let Ok(reference) = text.parse::<Reference>() {
            match images.get(&reference.to_string()) {
                Err(error) if error.is(ErrorKind::NotFound) => {}
                other => return other,
            }
        }
        let hex = text.strip_prefix("sha256:").unwrap_or(text);
        if hex.len() < 4 || !hex.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            text.parse::<Reference>()?;
            return Err(missing());
        }
        let fitting = images.list(&Filters::all())?.into_iter().find(|image| {
            let own = image.target.digest.hex().starts_with(hex);
            own || self
                .described(image)
                .is_ok_and(|described| described.manifest.config.digest.hex().starts_with(hex))
        });
        fitting.ok_or_else(missing)
    }

    pub(crate) fn described(&self, image: &Image) -> Result<Described> {
        let parts = self.parts();
        let described = transfer::describe(&parts.metadata, &self.0.caller, &image.target, &Platform::host())
            .map_err(|error| error.context(format!("read image {}", image.name)))?;
        // A tree that was collected, or that belongs to another snapshotter, is made again.
        if let Some(top) = &described.top {
            let snapshots = parts.metadata.snapshots(&self.0.caller, &parts.snapshotter)?;
            if snapshots.stat(top).is_err_and(|error| error.is(ErrorKind::NotFound)) {
                transfer::unpack(
                    &parts.metadata,
                    &self.0.caller,
                    &parts.snapshotter,
                    &image.target,
                    &Platform::host(),
                    None,
                )?;
            }
        }
        Ok(described)
    }

    pub async fn images(&self) -> Result<Value> {
        self.blocking(|engine| {
            let parts = engine.parts();
            let mut rows = Vec::new();
            for image in parts.metadata.images(&engine.0.caller).list(&Filters::all())? {
                let described = transfer::describe(&parts.metadata, &engine.0.caller, &image.target, &Platform::host());
                let (id, size, created) = match &described {
                    Ok(described) => {
                        let layers: u64 = described.manifest.layers.iter().map(|layer| layer.size).sum();
                        (described.manifest.config.digest.to_string(), layers, described.config.created.clone())
                    }
                    Err(_) => (image.target.digest.to_string(), image.target.size, None),
                };
                let reference = image.name.parse::<Reference>().ok();
                rows.push(json!({
                    "Repository": reference.as_ref().map_or_else(|| image.name.clone(), Reference::familiar_name),
                    "Tag": reference.as_ref().and_then(|reference| reference.tag()).unwrap_or("<none>"),
                    "Digest": image.target.digest.to_string(),
                    "ID": id,
                    "CreatedAt": created,
                    "PulledAt": image.updated.to_string(),
                    "SizeBytes": size,
                }));
            }
            Ok(Value::Array(rows))
        })
        .await
    }

    pub async fn inspect_image(&self, name: &str) -> Result<Value> {
        let name = name.to_owned();
        self.blocking(move |engine| {
            let image = engine.find_image(&name)?;
            let described = engine.described(&image)?;
            Ok(json!({
                "Id": described.manifest.config.digest.to_string(),
                "RepoTags": [familiar(&image.name)],
                "Digest": image.target.digest.to_string(),
                "Created": described.config.created,
                "Architecture": described.config.platform.architecture,
                "Os": described.config.platform.os,
                "Size": described.manifest.layers.iter().map(|layer| layer.size).sum::<u64>(),
                "Config": described.config.config,
                "RootFS": {"Type": "layers", "Layers": described.config.rootfs.diff_ids},
            }))
        })
        .await
    }

    /// Gives an image another name. A name that another image has moves to this one, as in Docker.
    pub async fn tag(&self, source: &str, target: &str) -> Result<Value> {
        let source = source.to_owned();
        let target: Reference = target.parse()?;
        if target.digest().is_some() {
            return Err(Error::invalid_argument(format!(
                "{target} names a digest, which belongs to its image alone"
            )));
        }
        self.blocking(move |engine| {
            let images = engine.parts().metadata.images(&engine.0.caller);
            let image = Image { name: target.to_string(), ..engine.find_image(&source)? };
            let tagged = match images.create(image.clone(), None) {
                Err(error) if error.is(ErrorKind::AlreadyExists) => {
                    images.update(&image, &["target".to_owned()], None)?
                }
                created => created?,
            };
            Ok(json!({"Name": familiar(&tagged.name)}))
        })
        .await
    }

    /// Removes an image's name; its bytes go with the next collection if nothing else needs them.
    pub async fn remove_image(&self, name: &str, force: bool) -> Result<Value> {
        let name = name.to_owned();
        self.blocking(move |engine| {
            let image = engine.find_image(&name)?;
            let users: Vec<String> = engine
                .all()?
                .iter()
                .filter_map(|container| Extension::of(container).ok())
                .filter(|extension| extension.image == image.name)
                .map(|extension| extension.name)
                .collect();
            if !users.is_empty() && !force {
                return Err(Error::failed_precondition(format!(
                    "image {} is used by container {}; remove that first, or force (-f)",
                    familiar(&image.name),
                    users.join(", ")
                )));
            }
            engine.parts().metadata.images(&engine.0.caller).delete(&image.name, None)?;
            Ok(json!({"Untagged": familiar(&image.name)}))
        })
        .await
    }
}

/// Opens the writing end of a pipe that somebody reads. `Unavailable` if nobody does.
fn open_pipe(path: &Path) -> Result<File> {
    let what = || format!("open pipe {}", path.display());
    // Without a reader, a blocking open would wait for ever.
    let flags = OFlags::WRONLY | OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let fd = match rustix::fs::open(path, flags, Mode::empty()) {
        Err(Errno::NXIO) => return Err(Error::unavailable(format!("{}: nobody reads it", what()))),
        opened => opened.map_err(std::io::Error::from).context(what)?,
    };
    let file = File::from(fd);
    if !file.metadata().context(what)?.file_type().is_fifo() {
        return Err(Error::invalid_argument(format!("{}: it is no pipe", what())));
    }
    rustix::io::ioctl_fionbio(&file, false).map_err(std::io::Error::from).context(what)?;
    Ok(file)
}

fn step(progress: Progress) -> PullStep {
    match progress {
        Progress::Resolved { name, digest } => PullStep::Resolved { name, digest: digest.to_string() },
        Progress::Layers(layers) => PullStep::Layers {
            layers: layers.into_iter().map(|(digest, size)| (digest.to_string(), size)).collect(),
        },
        Progress::Downloading { digest, current } => {
            PullStep::Downloading { digest: digest.to_string(), current }
        }
        Progress::Extracting { digest } => PullStep::Extracting { digest: digest.to_string() },
        Progress::Done { digest } => PullStep::LayerDone { digest: digest.to_string() },
        Progress::Exists { digest } => PullStep::LayerExists { digest: digest.to_string() },
    }
}
