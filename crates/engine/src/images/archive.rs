//! Images as files: loaded, imported, saved.

use std::fs::File;
use std::io::BufWriter;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use serde_json::{Value, json};
use types::{Context, Error, Platform, Reference, Result};

use crate::Engine;

/// Bytes on their way into an archive.
const SAVE_BUFFER_LEN: usize = 256 * 1024;

impl Engine {
    /// Loads an archive or layout of this machine, or an embedded image.
    pub(crate) async fn load(&self, path: &str, embedded: Option<&str>) -> Result<Value> {
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
    pub(crate) async fn import_tree(&self, path: &str, name: Option<&str>, comment: String) -> Result<Value> {
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
    pub(crate) async fn save(&self, names: Vec<String>, pipe: &str) -> Result<Value> {
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
