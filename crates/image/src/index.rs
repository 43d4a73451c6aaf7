//! What the entries of an index are: images, what describes them, and blobs.

use types::Descriptor;
use types::descriptor::media_type;
use types::spec::image::Index;

/// The images of an index. Attestations come as manifests for a platform that does not exist. Blobs are no images,
/// whatever platform they are for: they are parts of what the index is, as those of a checkpoint.
pub(crate) fn images(index: &Index) -> impl DoubleEndedIterator<Item = &Descriptor> {
    let is_image = |child: &&Descriptor| media_type::is_document(&child.media_type) && !is_attestation(child);
    index.manifests.iter().filter(is_image)
}

/// Whether an entry of an index is a blob and nothing more.
pub fn is_blob(child: &Descriptor) -> bool {
    !media_type::is_document(&child.media_type) && !media_type::is_old_manifest(&child.media_type)
}

/// Whether an index is made of the blobs that it names itself, as that of a checkpoint is. They are for every platform,
/// and each is needed; of images in it there may be a part or none. In other indexes the images are what counts.
pub fn is_made_of_blobs(index: &Index) -> bool {
    const CONTAINER: &str = "application/vnd.containerd.container.";
    let has_image = images(index).next().is_some();
    index
        .manifests
        .iter()
        .any(|child| is_blob(child) && (!has_image || child.media_type.starts_with(CONTAINER)))
}

/// Whether a descriptor of an index is about another image of it, as attestations are.
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
