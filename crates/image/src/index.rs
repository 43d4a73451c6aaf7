//! Classifies the entries of an index: images, attestations and blobs.

use types::Descriptor;
use types::descriptor::media_type;
use types::spec::image::Index;

/// The images of an index, without attestations (manifests for a platform that does not exist) and without blobs,
/// which are parts of what the index itself describes, such as a checkpoint.
pub(crate) fn images(index: &Index) -> impl DoubleEndedIterator<Item = &Descriptor> {
    let is_image = |child: &&Descriptor| media_type::is_document(&child.media_type) && !is_attestation(child);
    index.manifests.iter().filter(is_image)
}

/// Whether an entry of an index is a plain blob, neither an index nor a manifest.
pub fn is_blob(child: &Descriptor) -> bool {
    !media_type::is_document(&child.media_type) && !media_type::is_old_manifest(&child.media_type)
}

/// Whether the content of an index is its own blobs, as for a checkpoint. Blobs are for every platform, and all are
/// needed; images in such an index may be incomplete or missing. In other indexes only the images count.
pub fn is_made_of_blobs(index: &Index) -> bool {
    const CONTAINER: &str = "application/vnd.containerd.container.";
    let has_image = images(index).next().is_some();
    index
        .manifests
        .iter()
        .any(|child| is_blob(child) && (!has_image || child.media_type.starts_with(CONTAINER)))
}

/// Whether an entry of an index is an attestation, which is about another image of it.
pub fn is_attestation(descriptor: &Descriptor) -> bool {
    descriptor.annotations.contains_key("vnd.docker.reference.type")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest;

    #[test]
    fn an_index_is_made_of_its_blobs_if_it_is_a_checkpoint_or_has_no_image() {
        const STATE: &str = "application/vnd.containerd.container.criu.checkpoint.criu.tar";
        const DISK: &str = "application/x-disk";
        const OLD: &str = media_type::DOCKER_SCHEMA1_SIGNED;
        const IMAGE: &str = media_type::OCI_MANIFEST;
        let is_made_of_blobs = |kinds: &[&str]| {
            is_made_of_blobs(&Index {
                schema_version: 2,
                media_type: None,
                artifact_type: None,
                manifests: kinds.iter().map(|kind| Descriptor::new(*kind, digest("a"), 1)).collect(),
                subject: None,
                annotations: Default::default(),
            })
        };
        assert!(is_made_of_blobs(&[DISK]));
        assert!(is_made_of_blobs(&[IMAGE, STATE, DISK]));
        assert!(is_made_of_blobs(&[media_type::OCI_INDEX, STATE]));
        assert!(!is_made_of_blobs(&[IMAGE, DISK]));
        assert!(!is_made_of_blobs(&[IMAGE, OLD]));
        assert!(!is_made_of_blobs(&[OLD, media_type::OCI_ARTIFACT]));
        assert!(!is_made_of_blobs(&[]));
    }
}
