//! Images as files: loaded, imported, saved.

use std::fs::File;
use std::io::BufWriter;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use linux::pipe::{Pipe, SILENCE_MAX};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use serde_json::{Value, json};
use transfer::TreeConfig;
use types::{Context, Error, Reference, Result};

use crate::Engine;

/// Bytes on their way into an archive.
const SAVE_BUFFER_LEN: usize = 256 * 1024;

impl Engine {
    /// Loads an archive or layout of this machine, or an embedded image.
    pub(crate) async fn load(
        &self,
        path: &str,
        embedded: Option<&str>,
        fallback: Option<&str>,
    ) -> Result<Value> {
        let (path, embedded) = (PathBuf::from(path), embedded.map(str::to_owned));
        // What a file is called may be no name for an image.
        let fallback = fallback.and_then(|name| name.to_ascii_lowercase().parse::<Reference>().ok());
        let images = self
            .with_client(move |engine| match &embedded {
                Some(name) => engine.load_embedded(name),
                None => {
                    let (parts, caller) = (engine.parts(), &engine.0.caller);
                    transfer::import(&parts.metadata, caller, &parts.snapshotter, &path, fallback.as_ref())
                }
            })
            .await?;
        Ok(images
            .iter()
            .map(|image| json!({"Name": image.name, "Digest": image.target.digest.to_string()}))
            .collect())
    }

    /// Makes an image from the tar of a root file system.
    pub(crate) async fn import_tree(
        &self,
        path: &str,
        name: Option<&str>,
        comment: String,
        platform: Option<&str>,
    ) -> Result<Value> {
        let path = PathBuf::from(path);
        let name: Option<Reference> = name.map(str::parse).transpose()?;
        let platform = platform.map(str::parse).transpose()?;
        let tree = TreeConfig { comment, platform, ..TreeConfig::default() };
        let image = self
            .with_client(move |engine| {
                let (parts, caller) = (engine.parts(), &engine.0.caller);
                transfer::import_tree(
                    &parts.metadata,
                    caller,
                    &parts.snapshotter,
                    &path,
                    name.as_ref(),
                    &tree,
                )
            })
            .await?;
        Ok(json!({"Name": image.name, "Digest": image.target.digest.to_string()}))
    }

    /// Writes images to a pipe of the caller.
    pub(crate) async fn save(
        &self,
        names: Vec<String>,
        pipe: &str,
        platforms: &[String],
        all_platforms: bool,
    ) -> Result<Value> {
        let pipe = PathBuf::from(pipe);
        let platforms = super::long::chosen(platforms, all_platforms)?;
        self.with_client(move |engine| {
            let images = names.iter().map(|name| engine.find_image(name)).collect::<Result<Vec<_>>>()?;
            let to = BufWriter::with_capacity(SAVE_BUFFER_LEN, open_pipe(&pipe)?);
            transfer::export(&engine.parts().metadata, &engine.0.caller, &images, &platforms.into(), to)
        })
        .await?;
        Ok(json!({}))
    }
}

/// Opens the writing end of a pipe that somebody reads. `Unavailable` if nobody does.
fn open_pipe(path: &Path) -> Result<Pipe> {
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
    Pipe::new(file, SILENCE_MAX).context(what)
}
