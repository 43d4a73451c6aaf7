//! A pull does not read back what it has stored.

use std::sync::{Arc, Mutex};

use content::{Step, Watch};
use diff::{Compression, Encoder};
use serde_json::json;
use snapshot::LayerForm;
use testkit::{Asked, Fault, FaultProxy, Layout, Registry, digest_of};
use types::Digest;
use types::descriptor::media_type;

use crate::fixture::Stores;
use crate::mirrors::Site;

const FORMS: [LayerForm; 2] = [LayerForm::Archives, LayerForm::Directories];

/// Names of the files in a content store that were read.
#[derive(Default)]
struct Reads(Arc<Mutex<Vec<String>>>);

impl Reads {
    fn watch(&self) -> Watch {
        let noted = self.0.clone();
        Arc::new(move |step: &Step| {
            if let Step::Read(name) = step {
                noted.lock().expect("no panic").push(name.clone());
            }
            Ok(())
        })
    }

    /// Reads of layers and of ingests.
    fn of_layers(&self, layers: &[String]) -> Vec<String> {
        let read = self.0.lock().expect("no panic");
        assert!(!read.is_empty(), "documents are read");
        let digests: Vec<Digest> = layers.iter().map(|layer| layer.parse().expect("a digest")).collect();
        let is_layer = |name: &str| digests.iter().any(|digest| name.contains(digest.hex()));
        read.iter().filter(|name| name.ends_with(".data") || is_layer(name)).cloned().collect()
    }
}

/// Each layer passes once from the network through hash, inflate and hash to the disk, in any compression and either
/// form.
#[tokio::test(flavor = "multi_thread")]
async fn a_pull_reads_no_byte_of_a_layer_again() {
    use std::io::Write;
    let (layout, registry) = (Layout::new(), Registry::start());
    let (mut layers, mut diff_ids) = (Vec::new(), Vec::new());
    for (name, compression, kind) in [
        ("plain", Compression::None, media_type::OCI_LAYER),
        ("gzip", Compression::Gzip, media_type::OCI_LAYER_GZIP),
        ("zstd", Compression::Zstd, media_type::OCI_LAYER_ZSTD),
    ] {
        let text: String = testkit::noise(name, 900_000).iter().map(|byte| format!("{byte:02x}")).collect();
        let plain = testkit::layout::tar_of(&[(name, &text)]);
        let mut encoder = Encoder::new(compression, Vec::new()).expect("an encoder");
        encoder.write_all(&plain).expect("memory takes all");
        layers.push(layout.blob(kind, &encoder.finish().expect("memory takes all")));
        diff_ids.push(Digest::of(&plain).to_string());
    }
    let config = json!({"rootfs": {"type": "layers", "diff_ids": diff_ids}});
    layout.tag(&layout.image_of_blobs(&layers, &config), "once");
    let reference = registry.push(layout.path(), "once", "once:1");
    let digests: Vec<String> = layers.iter().map(digest_of).collect();
    for form in FORMS {
        let reads = Reads::default();
        let Some(stores) = Stores::open_watched(form, Some(reads.watch())) else { return };
        let proxy = FaultProxy::start(&registry, |_| Vec::new());
        stores.pull(&proxy.through(&reference)).await.expect("an image");
        assert_eq!(reads.of_layers(&digests), [] as [String; 0], "{form:?}");
        let lens: u64 = layers.iter().map(|layer| layer["size"].as_u64().expect("a size")).sum();
        let fetched: u64 = digests.iter().flat_map(|layer| proxy.reads(layer)).map(|read| read.sent).sum();
        assert_eq!(fetched, lens, "{form:?}");
    }
}

/// The first response with a layer ends early.
fn breaking(asked: &Asked) -> Vec<Fault> {
    match (asked.blob(), asked.before) {
        (Some(_), 0) => vec![Fault::Cut(90_000)],
        _ => Vec::new(),
    }
}

/// The bytes of a layer are one stream to the inflater, whichever hosts send them.
#[tokio::test(flavor = "multi_thread")]
async fn a_pull_whose_hosts_break_off_reads_no_byte_of_a_layer_again() {
    for form in FORMS {
        let reads = Reads::default();
        let Some(stores) = Stores::open_watched(form, Some(reads.watch())) else { return };
        let site = Site::new(breaking, breaking);
        site.pull(&stores).await.expect("both hosts bring the rest");
        for layer in &site.layers {
            assert_eq!(site.reads(layer), (2, 1), "{form:?}: a part of each host, and the rest");
        }
        assert_eq!(reads.of_layers(&site.layers), [] as [String; 0], "{form:?}");
    }
}

/// The tree of wrong bytes is dropped, and extracted anew from the right bytes as they come.
#[tokio::test(flavor = "multi_thread")]
async fn a_pull_with_wrong_bytes_after_a_break_reads_no_byte_of_a_layer_again() {
    for form in FORMS {
        let reads = Reads::default();
        let Some(stores) = Stores::open_watched(form, Some(reads.watch())) else { return };
        let site = Site::new(breaking, |asked| match asked.blob() {
            Some(_) => vec![Fault::Corrupt(150_000)],
            None => Vec::new(),
        });
        site.pull(&stores).await.expect("the mirror is honest");
        for layer in &site.layers {
            let starts: Vec<_> = site.mirror.reads(layer).iter().map(|read| read.asked.start()).collect();
            assert_eq!(starts, [None, None], "{form:?}: it was asked once more, for all of it");
            assert_eq!(site.own.reads(layer).len(), 1, "{form:?}");
        }
        assert_eq!(reads.of_layers(&site.layers), [] as [String; 0], "{form:?}");

        let expected = Stores::open_with(form).expect("root, as before");
        Site::new(|_| Vec::new(), |_| Vec::new()).pull(&expected).await.expect("nothing is wrong");
        assert_eq!(stores.committed(), expected.committed(), "{form:?}");
        assert_eq!(stores.left(), expected.left(), "{form:?}: nothing is left of the wrong bytes");
    }
}
