//! Tells images that can be run and layers that can be unpacked from artifacts.

use types::descriptor::media_type;
use types::spec::image::Manifest;
use types::{Descriptor, Error, Result};

/// The artifact type of a manifest that is not a runnable image, `None` if it is one: its `artifactType`, its
/// config's media type, or that of its first layer that is not a file system (image-spec `manifest.md`, "Guidelines
/// for Artifact Usage"). `is_processed` says for which further media types a stream processor makes file systems.
pub fn artifact_type(manifest: &Manifest, is_processed: impl Fn(&str) -> bool) -> Option<&str> {
    if !media_type::is_config(&manifest.config.media_type) {
        let config = Some(manifest.config.media_type.as_str()).filter(|kind| *kind != media_type::OCI_EMPTY);
        return manifest.artifact_type.as_deref().or(config).or(Some("unknown"));
    }
    let mut kinds = manifest.layers.iter().map(|layer| layer.media_type.as_str());
    kinds.find(|kind| !media_type::is_layer(kind) && !is_processed(kind))
}

/// `Unimplemented` for a layer that may not be distributed: registries do not have its bytes.
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

/// `Unimplemented` unless the layer can be unpacked, directly or by a stream processor.
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
