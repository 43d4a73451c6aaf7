//! Long-running work on images: its progress is streamed, and it is cancelled when the client disconnects.

use std::sync::Arc;

use api::engine::{ImageFollow, ImageStep, Keyring};
use diff::Compression;
use diff::tar::Kind;
use metadata::{Caller, Image};
use serde_json::{Value, json};
use stdx::CancelOnDrop;
use tokio::sync::mpsc;
use transfer::{Checked, Conversion, Format, ImageFile, Platforms, Progress, Remotes, Verdict, What};
use types::filter::Filters;
use types::{Error, Namespace, Platform, Reference, Result};

use crate::Engine;
use crate::containers::familiar;
use crate::registries::own_keyring;

/// Rows per message.
const ROWS_AT_ONCE: usize = 512;
/// Progress messages queued for a slow client. Further ones are dropped.
const STEPS_WAITING: usize = 256;

impl Engine {
    /// Does the work and streams its progress. The last step is `Done`.
    pub async fn follow_images(&self, follow: ImageFollow, to: mpsc::Sender<ImageStep>) -> Result<()> {
        let answer = match follow {
            ImageFollow::Files { name } => self.image_files(name, &to).await?,
            ImageFollow::Convert {
                namespace,
                source,
                target,
                compression,
                format,
                platforms,
                all_platforms,
            } => {
                let namespace = namespace.map(Namespace::new).transpose()?;
                let conversion = Conversion {
                    compression: compression.as_deref().map(compression_of).transpose()?,
                    format: format.as_deref().map(format_of).transpose()?,
                    platforms: chosen(&platforms, all_platforms)?,
                };
                self.convert((namespace, source), &target, conversion, &to).await?
            }
            ImageFollow::Verify { names, credentials } => self.verify(names, credentials, &to).await?,
            ImageFollow::Load { path, embedded, fallback } => {
                self.load(&path, embedded.as_deref(), fallback.as_deref()).await?
            }
            ImageFollow::Import { path, name, comment, changes, platform } => {
                self.import_tree(&path, name.as_deref(), comment, &changes, platform.as_deref()).await?
            }
            ImageFollow::Save { names, pipe, platforms, all_platforms } => {
                self.save(names, &pipe, &platforms, all_platforms).await?
            }
        };
        // The client may have disconnected.
        let _ = to.send(ImageStep::Done { answer }).await;
        Ok(())
    }

    async fn image_files(&self, name: String, to: &mpsc::Sender<ImageStep>) -> Result<Value> {
        let files = self
            // External stream processors may have to decode its layers.
            .with_client(move |engine| {
                let image = engine.find_image(&name)?;
                let parts = engine.parts();
                let described =
                    transfer::describe(&parts.metadata, &engine.0.caller, &image.target, &Platform::host())
                        .map_err(|error| error.context(format!("read image {}", image.name)))?;
                transfer::files(&parts.metadata, &engine.0.caller, &described.manifest)
            })
            .await?;
        for files in files.chunks(ROWS_AT_ONCE) {
            let rows = files.iter().map(file_row).collect();
            if to.send(ImageStep::Rows { rows }).await.is_err() {
                break;
            }
        }
        Ok(json!({"Files": files.len()}))
    }

    async fn convert(
        &self,
        (namespace, source): (Option<Namespace>, String),
        target: &str,
        conversion: Conversion,
        to: &mpsc::Sender<ImageStep>,
    ) -> Result<Value> {
        let target: Reference = target.parse()?;
        let (send, mut receive) = mpsc::channel(STEPS_WAITING);
        let onward = to.clone();
        let teller = tokio::spawn(async move {
            let (mut all, mut current) = (Vec::new(), 0);
            while let Some(progress) = receive.recv().await {
                match progress {
                    Progress::Layers { layers, .. } => all = layers,
                    Progress::Done { digest } => {
                        let done = all.iter().find(|layer| layer.digest == digest);
                        current += done.map_or(0, |layer| layer.size);
                    }
                    _ => {}
                }
                let total = all.iter().map(|layer| layer.size).sum();
                let step = ImageStep::Progress { what: "Converting".into(), current, total };
                if onward.send(step).await.is_err() {
                    return;
                }
            }
        });
        let owner = CancelOnDrop::new();
        let cancel = owner.token();
        let image = self
            .blocking(move |engine| {
                let parts = engine.parts();
                let (image, caller) = match namespace {
                    None => (engine.find_image(&source)?, engine.0.caller.clone()),
                    Some(namespace) => {
                        let caller = Caller::new(namespace);
                        (parts.metadata.images(&caller).get(&source)?, caller)
                    }
                };
                let caller = caller.cancelled_by(cancel);
                let names = (&image, &target);
                transfer::convert(
                    &parts.metadata,
                    &caller,
                    &parts.snapshotter,
                    names,
                    &conversion,
                    Some(&send),
                )
            })
            .await;
        let _ = teller.await;
        let image = image?;
        Ok(json!({"Name": familiar(&image.name), "Digest": image.target.digest.to_string()}))
    }

    /// Verifies the digests of stored blobs, of the named images or of all.
    async fn verify(
        &self,
        names: Vec<String>,
        credentials: Keyring,
        to: &mpsc::Sender<ImageStep>,
    ) -> Result<Value> {
        let images: Vec<Image> = self
            .blocking(move |engine| match &names[..] {
                [] => engine.parts().metadata.images(&engine.0.caller).list(&Filters::all()),
                names => names.iter().map(|name| engine.find_image(name)).collect(),
            })
            .await?;
        let targets = images.into_iter().map(|image| (familiar(&image.name), image.target)).collect();
        let (engine, keyring) = (self.clone(), own_keyring(credentials));
        let remote: Remotes =
            Arc::new(move |reference| engine.parts().connections.remote(reference, &keyring));
        let tell = |current, total| {
            // Progress is dropped if the client does not read it in time.
            let _ = to.try_send(ImageStep::Progress { what: "Verifying".into(), current, total });
        };
        let checked = transfer::verify(&self.parts().metadata, &self.0.caller, targets, remote, tell).await?;
        let summary = |what: What| {
            let all = || checked.iter().filter(|one| one.what == what);
            let count = |fits: fn(&Verdict) -> bool| all().filter(|one| fits(&one.verdict)).count();
            json!({
                "Count": all().count(),
                "Bytes": all().map(|one| one.len).sum::<u64>(),
                "Mended": count(|verdict| matches!(verdict, Verdict::Mended(_))),
                "Broken": count(|verdict| matches!(verdict, Verdict::Broken(_))),
                "Unseen": count(|verdict| *verdict == Verdict::Unseen),
            })
        };
        let answer = json!({"Blobs": summary(What::Blob), "Layers": summary(What::Layer)});
        for checked in checked.chunks(ROWS_AT_ONCE) {
            let rows = checked.iter().map(checked_row).collect();
            // The client may have disconnected.
            let _ = to.send(ImageStep::Rows { rows }).await;
        }
        Ok(answer)
    }
}

pub(super) fn chosen(platforms: &[String], all: bool) -> Result<Platforms> {
    Ok(match platforms {
        _ if all => Platforms::All,
        [] => Platforms::Here(Platform::host()),
        wanted => Platforms::Only(wanted.iter().map(|name| name.parse()).collect::<Result<_>>()?),
    })
}

fn compression_of(name: &str) -> Result<Compression> {
    match name {
        "none" | "uncompressed" => Ok(Compression::None),
        "gzip" => Ok(Compression::Gzip),
        "zstd" => Ok(Compression::Zstd),
        _ => Err(Error::invalid_argument(format!("unknown compression {name:?}: none, gzip or zstd"))),
    }
}

fn format_of(name: &str) -> Result<Format> {
    match name {
        "oci" => Ok(Format::Oci),
        "docker" => Ok(Format::Docker),
        _ => Err(Error::invalid_argument(format!("unknown format {name:?}: oci or docker"))),
    }
}

fn file_row(file: &ImageFile) -> Value {
    let (letter, target) = match &file.kind {
        Kind::File | Kind::HardLink(_) => ('-', None),
        Kind::Directory => ('d', None),
        Kind::Symlink(target) => ('l', Some(String::from_utf8_lossy(target).into_owned())),
        Kind::CharacterDevice { .. } => ('c', None),
        Kind::BlockDevice { .. } => ('b', None),
        Kind::Fifo => ('p', None),
    };
    json!({
        "Mode": format!("{letter}{}", permissions(file.mode)),
        "Uid": file.uid,
        "Gid": file.gid,
        "Size": file.size,
        "Layer": file.layer,
        "Path": format!("/{}", file.path),
        "Target": target,
    })
}

/// `rwxr-sr-x`, as ls(1) formats it.
fn permissions(mode: u32) -> String {
    let mut text = String::with_capacity(9);
    for (shift, special, marks) in [(6, 0o4000, "sS"), (3, 0o2000, "sS"), (0, 0o1000, "tT")] {
        let bits = mode >> shift;
        text.push(if bits & 4 != 0 { 'r' } else { '-' });
        text.push(if bits & 2 != 0 { 'w' } else { '-' });
        text.push(match (mode & special != 0, bits & 1 != 0) {
            (false, true) => 'x',
            (false, false) => '-',
            (true, true) => char::from(marks.as_bytes()[0]),
            (true, false) => char::from(marks.as_bytes()[1]),
        });
    }
    text
}

fn checked_row(checked: &Checked) -> Value {
    let (state, detail) = match &checked.verdict {
        Verdict::Good => ("good", None),
        Verdict::Mended(from) => ("mended", Some(from)),
        Verdict::Broken(why) => ("broken", Some(why)),
        Verdict::Unseen => ("not seen", None),
    };
    json!({
        "Image": checked.image,
        "What": match checked.what {
            What::Blob => "blob",
            What::Layer => "unpacked layer",
        },
        "Digest": checked.descriptor.digest.to_string(),
        "MediaType": checked.descriptor.media_type,
        "Size": checked.len,
        "State": state,
        "Detail": detail,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn permissions_are_written_as_ls_does() {
        for (mode, text) in [
            (0o755, "rwxr-xr-x"),
            (0o1777, "rwxrwxrwt"),
            (0o4755, "rwsr-xr-x"),
            (0o2640, "rw-r-S---"),
            (0, "---------"),
        ] {
            assert_eq!(permissions(mode), text);
        }
    }
}
