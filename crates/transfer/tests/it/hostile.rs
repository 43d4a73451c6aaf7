//! Malicious registries: each attack fails with a one-line error that names it, and leaves nothing behind.

use serde_json::{Value, json};
use snapshot::{Kind, LayerForm, Overlay};
use testkit::layout::tar_of;
use testkit::{Asked, Fault, FaultProxy, Layout, Registry, digest_of};
use types::Digest;
use types::descriptor::media_type;
use types::filter::Filters;

use crate::fixture::{NOTHING, Stores};

/// An image of one layer in a registry.
struct Victim {
    layout: Layout,
    layer: String,
    size: u64,
    registry: Registry,
    reference: String,
}

impl Victim {
    fn new() -> Victim {
        let layout = Layout::new();
        let layer = layout.layer("only", 300_000);
        let image = layout.image("amd64", std::slice::from_ref(&layer));
        layout.tag(&image, "one");
        let registry = Registry::start();
        let reference = registry.push(layout.path(), "one", "victim:1");
        let size = layer["size"].as_u64().expect("a size");
        Victim { layer: digest_of(&layer), size, layout, registry, reference }
    }

    /// Checks that a pull through a proxy with these faults fails with a one-line error with these words.
    #[track_caller]
    fn check(&self, words: &[&str], rule: impl Fn(&Asked) -> Vec<Fault> + Send + Sync + 'static) {
        let Some(stores) = Stores::open() else { return };
        let proxy = FaultProxy::start(&self.registry, rule);
        let name = proxy.through(&self.reference);
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
        let error = runtime.block_on(stores.pull(&name)).expect_err("the registry lies");
        let said = error.chain();
        assert!(!said.contains('\n') && said.contains(&name), "{said}");
        for word in words {
            assert!(said.contains(word), "{word:?} is not in: {said}");
        }
        assert_eq!(stores.left(), NOTHING, "{said}");
        // The image can be pulled from an honest registry afterwards.
        let honest = FaultProxy::start(&self.registry, |_| Vec::new());
        runtime.block_on(stores.pull(&honest.through(&self.reference))).expect("nothing is wrong any more");
    }
}

fn on_blob(asked: &Asked, blob: &str, faults: &[Fault]) -> Vec<Fault> {
    if asked.blob() == Some(blob) { faults.to_vec() } else { Vec::new() }
}

#[test]
fn a_byte_that_is_another_is_found() {
    let victim = Victim::new();
    let layer = victim.layer.clone();
    victim.check(&["layer", &victim.layer, "have the digest"], move |asked| {
        on_blob(asked, &layer, &[Fault::Corrupt(123_456)])
    });
}

#[test]
fn a_blob_of_another_length_is_refused() {
    let victim = Victim::new();
    for length in [victim.size - 1, victim.size + 1, 1 << 50] {
        let layer = victim.layer.clone();
        victim.check(&[&victim.layer, &format!("{length} bytes are announced")], move |asked| {
            on_blob(asked, &layer, &[Fault::say("Content-Length", length.to_string())])
        });
    }
}

#[test]
fn a_body_without_an_end_is_cut_off() {
    let victim = Victim::new();
    let layer = victim.layer.clone();
    victim.check(&[&victim.layer, "longer than"], move |asked| on_blob(asked, &layer, &[Fault::Endless]));
    victim.check(&["manifest", "longer than"], |asked| match asked.manifest() {
        Some(_) => vec![Fault::Endless],
        None => Vec::new(),
    });
}

#[test]
fn a_manifest_of_ten_mebibytes_is_refused() {
    let victim = Victim::new();
    victim.check(&["larger than 8 MiB"], |asked| match asked.manifest() {
        Some(_) => vec![Fault::Body(vec![b' '; 10 << 20])],
        None => Vec::new(),
    });
}

#[test]
fn redirects_in_a_circle_end() {
    let victim = Victim::new();
    let layer = victim.layer.clone();
    victim.check(&["redirect"], move |asked| {
        let circle = format!("http://{}{}", asked.header("host").unwrap_or_default(), asked.path);
        on_blob(asked, &layer, &[Fault::redirect(circle)])
    });
}

#[test]
fn a_manifest_that_is_no_image_is_named() {
    let victim = Victim::new();
    victim.check(&["text/html"], |asked| match asked.manifest() {
        Some(_) => vec![Fault::say("Content-Type", "text/html")],
        None => Vec::new(),
    });
    // An index with the media type of a manifest.
    victim.check(&["cannot be read"], |asked| match asked.manifest() {
        Some(_) => {
            let index = json!({"schemaVersion": 2, "manifests": []}).to_string();
            vec![Fault::Body(index.into_bytes())]
        }
        None => Vec::new(),
    });
}

#[test]
fn a_child_that_is_not_what_its_index_says_is_refused() {
    let victim = Victim::new();
    let mut child = victim.layout.image("amd64", &[]);
    child["platform"] = json!({"os": "linux", "architecture": "amd64"});
    // An index that claims to be its own child. It cannot know its own digest.
    let claimed = digest_of(&child);
    let mut own = child.clone();
    own["mediaType"] = media_type::OCI_INDEX.into();
    let circle =
        json!({"schemaVersion": 2, "mediaType": media_type::OCI_INDEX, "manifests": [own]}).to_string();
    let words = format!("when asked for {claimed}");
    victim.check(&[&words], move |asked| match asked.manifest() {
        Some(_) => {
            let index = circle.clone().into_bytes();
            vec![Fault::Status(200), Fault::say("Content-Type", media_type::OCI_INDEX), Fault::Body(index)]
        }
        None => Vec::new(),
    });
}

#[test]
fn indexes_inside_indexes_end() {
    let victim = Victim::new();
    let mut documents: Vec<(String, String)> = Vec::new();
    let mut child: Value = victim.layout.image("amd64", &[]);
    for _ in 0..8 {
        let document = json!({
            "schemaVersion": 2, "mediaType": media_type::OCI_INDEX, "manifests": [child],
        })
        .to_string();
        child = victim.layout.blob(media_type::OCI_INDEX, document.as_bytes());
        documents.push((digest_of(&child), document));
    }
    let top = documents.last().expect("eight of them").1.clone();
    victim.check(&["too deep"], move |asked| {
        let Some(object) = asked.manifest() else { return Vec::new() };
        let found = documents.iter().find(|(digest, _)| digest == object);
        let document = found.map_or(&top, |(_, document)| document).clone().into_bytes();
        vec![Fault::Status(200), Fault::say("Content-Type", media_type::OCI_INDEX), Fault::Body(document)]
    });
}

/// The config has a wrong diff id for the last layer: no event names one of its trees, in either form, and none of
/// them exists once the pull has failed, even before a collection.
#[test]
fn a_layer_that_unpacks_to_other_bytes_is_never_visible() {
    let layout = Layout::new();
    let layers = [tar_of(&[("first", "true")]), tar_of(&[("second", "a lie")])];
    let diff_ids = [Digest::of(&layers[0]), Digest::of(b"another layer")].map(|digest| digest.to_string());
    let config = json!({"rootfs": {"type": "layers", "diff_ids": diff_ids}});
    layout.tag(&layout.image_of("amd64", &layers, &config), "lying");
    layout.tag(&layout.image_of("amd64", &layers, &json!({})), "true");
    let registry = Registry::start();
    let proxy = FaultProxy::start(&registry, |_| Vec::new());
    let [lying, honest] = ["lying", "true"]
        .map(|tag| proxy.through(&registry.push(layout.path(), tag, &format!("visible:{tag}"))));
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    for form in [LayerForm::Directories, LayerForm::Archives] {
        let Some(stores) = Stores::open_with(form) else { return };
        let error = runtime.block_on(stores.pull(&lying)).expect_err("the config lies");
        assert!(error.chain().contains("layer 1 unpacks to"), "{}", error.chain());
        assert_eq!(stores.committed(), Vec::<String>::new(), "{form:?}");
        let snapshots = stores.metadata.snapshots(stores.caller(), Overlay::NAME).expect("a snapshotter");
        let listed = snapshots.list(&Filters::all()).expect("a list");
        assert!(listed.iter().all(|snapshot| snapshot.kind != Kind::Committed), "{form:?}: {listed:?}");
        // The name that it would have with a right config.
        runtime.block_on(stores.pull(&honest)).expect("an honest config");
        assert_eq!(stores.committed().len(), 2, "{form:?}");
    }
}
