//! `load`, `import` and `save`: images as archives.

use std::io::BufWriter;
use std::path::PathBuf;

use linux::pipe::Pipe;
use serde_json::{Map, Value, json};
use transfer::TreeConfig;
use types::{Error, Reference, Result};

use super::instruction;
use crate::Engine;

/// Buffer for the archive, in bytes.
const SAVE_BUFFER_LEN: usize = 256 * 1024;

impl Engine {
    /// Loads an archive or OCI layout of this host, or an embedded image.
    pub(crate) async fn load(
        &self,
        path: &str,
        embedded: Option<&str>,
        fallback: Option<&str>,
    ) -> Result<Value> {
        let (path, embedded) = (PathBuf::from(path), embedded.map(str::to_owned));
        // A file name need not be a valid image name.
        let fallback = fallback.and_then(|name| name.to_ascii_lowercase().parse::<Reference>().ok());
        let images = self
            .with_cancel(move |engine, caller| match &embedded {
                Some(name) => engine.load_embedded(name),
                None => {
                    let parts = engine.parts();
                    transfer::import(&parts.metadata, caller, &parts.snapshotter, &path, fallback.as_ref())
                }
            })
            .await?;
        for image in &images {
            self.tell_image(Some(&image.target.digest), "load", &image.name);
        }
        Ok(images
            .iter()
            .map(|image| json!({"Name": image.name, "Digest": image.target.digest.to_string()}))
            .collect())
    }

    /// Makes an image from a tar archive of a root file system.
    pub(crate) async fn import_tree(
        &self,
        path: &str,
        name: Option<&str>,
        comment: String,
        changes: &[String],
        platform: Option<&str>,
    ) -> Result<Value> {
        let path = PathBuf::from(path);
        let name: Option<Reference> = name.map(str::parse).transpose()?;
        let platform = platform.map(str::parse).transpose()?;
        let mut config = Map::new();
        changes.iter().try_for_each(|line| instruction::apply(&mut config, line))?;
        let exec = serde_json::from_value(config.into())
            .map_err(|error| Error::invalid_argument("apply the changes").with_source(error))?;
        let tree = TreeConfig { comment, platform, exec };
        let image = self
            .with_cancel(move |engine, caller| {
                let parts = engine.parts();
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
        self.tell_image(Some(&image.target.digest), "import", &image.name);
        let (name, digest) = (image.name.clone(), image.target.digest.to_string());
        let id = self.blocking(move |engine| Ok(engine.found(image).id().to_string())).await?;
        Ok(json!({"Id": id, "Name": name, "Digest": digest}))
    }

    /// Writes images to a pipe of the client.
    pub(crate) async fn save(
        &self,
        names: Vec<String>,
        pipe: &str,
        platforms: &[String],
        all_platforms: bool,
    ) -> Result<Value> {
        let pipe = PathBuf::from(pipe);
        let platforms = super::follow::chosen(platforms, all_platforms)?;
        self.with_cancel(move |engine, caller| {
            let images = names.iter().map(|name| engine.find_image(name)).collect::<Result<Vec<_>>>()?;
            let pipe = Pipe::open_target(&pipe, caller.cancel.clone())?;
            let to = BufWriter::with_capacity(SAVE_BUFFER_LEN, pipe);
            transfer::export(&engine.parts().metadata, caller, &images, &platforms.into(), to)?;
            for image in &images {
                engine.tell_image(Some(&image.target.digest), "save", &image.name);
            }
            Ok(())
        })
        .await?;
        Ok(json!({}))
    }
}
