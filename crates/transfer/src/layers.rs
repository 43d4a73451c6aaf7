//! Labels of a layer's snapshot, which tell the snapshotter about the layer.
//!
//! The layer's annotations for snapshotters are passed on. A remote snapshotter, which fetches layers on demand, also
//! gets the image that the layer belongs to. The names of those labels are containerd's
//! (`pkg/snapshotters/annotations.go`); they contain `cri` whichever client pulls.

use types::label::LABEL_LEN_MAX;
use types::spec::image::Manifest;
use types::{Descriptor, Digest, Labels};

/// Prefix of annotations that are passed on.
const INHERITED: &str = "containerd.io/snapshot/";
/// Prefix of labels that only Hoist sets: an image may not claim where it came from.
const ORIGIN: &str = "containerd.io/snapshot/cri.";

const IMAGE_REF: &str = "containerd.io/snapshot/cri.image-ref";
const MANIFEST_DIGEST: &str = "containerd.io/snapshot/cri.manifest-digest";
const LAYER_DIGEST: &str = "containerd.io/snapshot/cri.layer-digest";
const IMAGE_LAYERS: &str = "containerd.io/snapshot/cri.image-layers";

/// The layers of an image, lowest first, and the image's name and manifest, if snapshotters need them.
pub(crate) struct Layers {
    layers: Vec<Descriptor>,
    image: Option<(String, Digest)>,
}

impl Layers {
    pub(crate) fn of(manifest: &Manifest) -> Layers {
        Layers { layers: manifest.layers.clone(), image: None }
    }

    /// With the name that the image was pulled by.
    pub(crate) fn of_image(&self, name: &str, manifest: &Digest) -> Layers {
        Layers { layers: self.layers.clone(), image: Some((name.to_owned(), manifest.clone())) }
    }

    pub(crate) fn layer(&self, at: usize) -> &Descriptor {
        &self.layers[at]
    }

    /// The labels of a layer's snapshot.
    pub(crate) fn labels(&self, at: usize) -> Labels {
        let layer = &self.layers[at];
        let is_inherited = |key: &str| key.starts_with(INHERITED) && !key.starts_with(ORIGIN);
        let inherited = layer.annotations.iter().filter(|(key, _)| is_inherited(key));
        let mut labels: Labels = inherited.map(|(key, value)| (key.clone(), value.clone())).collect();
        if let Some((name, manifest)) = &self.image {
            labels.insert(IMAGE_REF.to_owned(), name.clone());
            labels.insert(MANIFEST_DIGEST.to_owned(), manifest.to_string());
            labels.insert(LAYER_DIGEST.to_owned(), layer.digest.to_string());
            labels.insert(IMAGE_LAYERS.to_owned(), self.list_from(at));
        }
        labels
    }

    /// Digests of this layer and those above it, as many as fit into a label.
    fn list_from(&self, at: usize) -> String {
        let mut list = self.layers[at].digest.to_string();
        for layer in &self.layers[at + 1..] {
            let more = format!("{list},{}", layer.digest);
            if IMAGE_LAYERS.len() + more.len() > LABEL_LEN_MAX {
                break;
            }
            list = more;
        }
        list
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layers(count: usize) -> Layers {
        let layer = |at: usize| {
            let digest = Digest::of(at.to_string().as_bytes());
            let mut layer = Descriptor::new("application/vnd.oci.image.layer.v1.tar", digest, 1);
            let annotations = [("stargz/toc.digest", "x"), ("cri.image-ref", "of-another")];
            let annotations = annotations.map(|(key, value)| (format!("{INHERITED}{key}"), value.to_owned()));
            layer.annotations = annotations.into();
            layer.annotations.insert("org.example".to_owned(), "other".to_owned());
            layer
        };
        Layers { layers: (0..count).map(layer).collect(), image: None }
    }

    #[test]
    fn annotations_for_snapshotters_are_handed_down_but_none_that_says_where_it_came_from() {
        let labels = layers(1).labels(0);
        assert_eq!(labels, Labels::from([(format!("{INHERITED}stargz/toc.digest"), "x".to_owned())]));
    }

    #[test]
    fn a_snapshotter_that_wants_to_know_is_told_of_which_image_a_layer_is() {
        let manifest = Digest::of(b"manifest");
        let layers = layers(3).of_image("r.example/a:1", &manifest);
        let labels = layers.labels(1);
        let digest = |at: usize| layers.layers[at].digest.to_string();
        assert_eq!(labels[IMAGE_REF], "r.example/a:1");
        assert_eq!(labels[MANIFEST_DIGEST], manifest.to_string());
        assert_eq!(labels[LAYER_DIGEST], digest(1));
        assert_eq!(labels[IMAGE_LAYERS], format!("{},{}", digest(1), digest(2)));
    }

    #[test]
    fn the_list_of_layers_ends_where_a_label_does() {
        let layers = layers(200).of_image("r.example/a:1", &Digest::of(b"manifest"));
        let labels = layers.labels(0);
        types::label::check(&labels).expect("it fits");
        let listed = labels[IMAGE_LAYERS].split(',').count();
        assert_eq!(listed, (LABEL_LEN_MAX - IMAGE_LAYERS.len() + 1) / 72, "each is 71 long");
    }
}
