//! What a pull reads of what it has stored: nothing.

use std::sync::{Arc, Mutex};

use content::{Step, Watch};
use diff::{Compression, Encoder};
use serde_json::json;
use snapshot::LayerForm;
use testkit::{FaultProxy, Layout, Registry, digest_of};
use types::Digest;
use types::descriptor::media_type;

use crate::fixture::Stores;

/// A layer goes once from the network through hash, inflate and hash to the disk, in any compression and either form.
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
    for form in [LayerForm::Archives, LayerForm::Directories] {
        let read = Arc::<Mutex<Vec<String>>>::default();
        let noted = read.clone();
        let watch: Watch = Arc::new(move |step: &Step| {
            if let Step::Read(name) = step {
                noted.lock().expect("no panic").push(name.clone());
            }
            Ok(())
        });
        let Some(stores) = Stores::open_watched(form, Some(watch)) else { return };
        let proxy = FaultProxy::start(&registry, |_| Vec::new());
        stores.pull(&proxy.through(&reference)).await.expect("an image");
        let read = read.lock().expect("no panic");
        assert!(!read.is_empty(), "documents are read");
        for layer in &layers {
            let digest: Digest = digest_of(layer).parse().expect("a digest");
            assert!(!read.iter().any(|name| name.contains(digest.hex())), "{form:?}: {read:?}");
        }
        assert!(!read.iter().any(|name| name.ends_with(".data")), "{form:?}: {read:?}");
        let lens: u64 = layers.iter().map(|layer| layer["size"].as_u64().expect("a size")).sum();
        let fetched: u64 =
            layers.iter().flat_map(|layer| proxy.reads(&digest_of(layer))).map(|read| read.sent).sum();
        assert_eq!(fetched, lens, "{form:?}");
    }
}
