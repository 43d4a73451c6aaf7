//! What can be run and what can be unpacked: the rest are artifacts.

use types::descriptor::media_type;
use types::spec::image::Manifest;
use types::{Descriptor, Error, Result};

/// What a manifest is if it is no image to run: its `artifactType`, the type of its config, or that of its
/// first layer that is no file system (image-spec `manifest.md`, "Guidelines for Artifact Usage"). Of layers of further
/// media types `is_processed` says that somebody makes file systems of them.
pub fn artifact_type(manifest: &Manifest, is_processed: impl Fn(&str) -> bool) -> Option<&str> {
    if !media_type::is_config(&manifest.config.media_type) {
        let config = Some(manifest.config.media_type.as_str()).filter(|kind| *kind != media_type::OCI_EMPTY);
        return manifest.artifact_type.as_deref().or(config).or(Some("unknown"));
    }
    let mut kinds = manifest.layers.iter().map(|layer| layer.media_type.as_str());
    kinds.find(|kind| !media_type::is_layer(kind) && !is_processed(kind))
}

/// Layers that may not be distributed have no bytes here.
pub fn check_distributable(layer: &Descriptor) -> Result<()> {
    let kind = &layer.media_type;
    if kind.contains("foreign") || kind.contains("nondistributable") {
        return Err(Error::unimplemented(format!(
            "layer {} is of type {kind}, which only its vendor may hand out",
            layer.digest
        )));
    }
    Ok(())
}

/// Whether a layer can become part of a tree: as it is, or because somebody makes a file system of it.
pub fn check_layer(layer: &Descriptor, is_processed: impl Fn(&str) -> bool) -> Result<()> {
    check_distributable(layer)?;
    if is_processed(&layer.media_type) {
        return Ok(());
    }
    if media_type::is_encrypted(&layer.media_type) {
        return Err(Error::unimplemented(format!(
            "layer {} of type {} is encrypted, and the daemon's configuration has no stream processor for it",
            layer.digest, layer.media_type
        )));
    }
    if media_type::is_layer(&layer.media_type) {
        return Ok(());
    }
    Err(Error::unimplemented(format!(
        "layer {} of type {} is no file system: this is an artifact, not an image to run",
        layer.digest, layer.media_type
    )))
}
