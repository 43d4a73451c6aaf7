//! Concurrent pulls of images that share blobs.

use std::collections::BTreeSet;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use metadata::Caller;
use registry::Remote;
use serde_json::Value;
use snapshot::{LayerForm, Snapshotter};
use testkit::{Fault, FaultProxy, Gate, Layout, Registry, digest_of};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use transfer::{AtOnce, Flights, Progress, Slots};
use types::descriptor::media_type;
use types::{Digest, Namespace};

use crate::fixture::Stores;
use crate::held_merge::HeldMerge;

/// Shorter than the 30 seconds after which a silent document request fails.
const SOON: Duration = Duration::from_secs(15);

#[tokio::test(flavor = "multi_thread")]
async fn thirty_images_at_once_cost_their_distinct_bytes() {
    let Some(stores) = Stores::open() else { return };
    let layout = Layout::new();
    // Each image has the base, one of three middle layers, and a layer of its own.
    let base = layout.layer("base", 1 << 20);
    let mut distinct = BTreeSet::new();
    for at in 0..30 {
        let middle = layout.layer(&format!("middle-{}", at % 3), 300_000);
        let own = layout.layer(&format!("own-{at}"), 50_000);
        let image = layout.image("amd64", &[base.clone(), middle, own]);
        layout.tag(&image, &format!("image-{at}"));
        distinct.extend(blobs_of(&layout, &image));
    }
    let registry = Registry::start();
    std::thread::scope(|scope| {
        for at in 0..30 {
            let (registry, layout) = (&registry, &layout);
            scope.spawn(move || {
                registry.push(layout.path(), &format!("image-{at}"), &format!("image-{at}:1"))
            });
        }
    });
    let proxy = FaultProxy::start(&registry, |_| Vec::new());
    let (stores, mut pulls) = (Arc::new(stores), JoinSet::new());
    for at in 0..30 {
        let (stores, name) = (stores.clone(), format!("{}/image-{at}:1", proxy.host()));
        pulls.spawn(async move { stores.pull(&name).await });
    }
    for pulled in pulls.join_all().await {
        pulled.unwrap();
    }
    let wanted: u64 = distinct.iter().map(|(_, size)| size).sum();
    assert_eq!(proxy.blob_bytes(), wanted, "each distinct byte once, and no other");
    for (digest, _) in &distinct {
        assert_eq!(proxy.reads(digest).len(), 1, "{digest}");
    }
}

/// All pulls of an image store its first document, in any order.
#[tokio::test(flavor = "multi_thread")]
async fn pulls_of_one_image_at_the_same_moment_all_succeed() {
    let Some(stores) = Stores::open() else { return };
    let (stores, layout, registry) = (Arc::new(stores), Layout::new(), Registry::start());
    let layer = layout.layer("only", 1000);
    for round in 0..20 {
        let tag = format!("round-{round}");
        let image = layout.image(&format!("arch-{round}"), std::slice::from_ref(&layer));
        layout.tag(&image, &tag);
        let reference = registry.push(layout.path(), &tag, &format!("{tag}:1"));
        let mut pulls = JoinSet::new();
        for _ in 0..8 {
            let (stores, reference) = (stores.clone(), reference.clone());
            pulls.spawn(async move { stores.pull(&reference).await });
        }
        for pulled in pulls.join_all().await {
            pulled.unwrap();
        }
    }
}

/// Digests and sizes of an image's config and layers.
fn blobs_of(layout: &Layout, image: &Value) -> Vec<(String, u64)> {
    let path = layout.path().join("blobs").join(digest_of(image).replace(':', "/"));
    let manifest: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let layers = manifest["layers"].as_array().unwrap();
    let all = std::iter::once(&manifest["config"]).chain(layers);
    all.map(|blob| (digest_of(blob), blob["size"].as_u64().unwrap())).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_waiting_pull_resumes_a_broken_one() {
    let Some(stores) = Stores::open() else { return };
    let layout = Layout::new();
    let layer = layout.layer("only", 1_000_000);
    layout.tag(&layout.image("amd64", std::slice::from_ref(&layer)), "one");
    let registry = Registry::start();
    let reference = registry.push(layout.path(), "one", "one:1");
    let gate = Gate::default();
    let (wanted, held) = (digest_of(&layer), gate.clone());
    // The first response stalls in the middle and then breaks; later requests are served.
    let proxy = FaultProxy::start(&registry, move |asked| match asked.blob() {
        Some(blob) if blob == wanted && asked.before == 0 => {
            vec![Fault::Hold { at: 400_000, gate: held.clone() }, Fault::Cut(400_000)]
        }
        _ => Vec::new(),
    });
    let name = proxy.through(&reference);
    let (first, second) = tokio::join!(
        async {
            // Cancelled while it waits for the rest, as by an interrupted client.
            let pull = stores.pull(&name);
            tokio::select! {
                pulled = pull => panic!("the gate is closed: {pulled:?}"),
                () = arrival(&gate) => {}
            }
            gate.open();
        },
        async {
            arrival(&gate).await;
            stores.pull_for(other_namespace(), &name).await
        }
    );
    let ((), image) = (first, second.unwrap());
    assert_eq!(image.name, name);
    let starts: Vec<_> = proxy.reads(&digest_of(&layer)).iter().map(|read| read.asked.start()).collect();
    assert_eq!(starts.len(), 2, "one flight broke off, the next one began: {starts:?}");
}

/// Of the only slot and of the flight of its last layer, whichever that was.
#[tokio::test(flavor = "multi_thread")]
async fn a_pull_that_waits_for_a_merge_holds_nothing_of_others() {
    let gate = Gate::default();
    let held = gate.clone();
    let around = |inner| -> Arc<dyn Snapshotter> { Arc::new(HeldMerge { inner, gate: held }) };
    let Some(mut stores) = Stores::open_around(LayerForm::Archives, None, around) else { return };
    stores.slots = Slots::new(AtOnce { downloads: NonZeroUsize::MIN, uploads: NonZeroUsize::MIN });
    let (stores, layout, registry) = (Arc::new(stores), Layout::new(), Registry::start());
    let layers = ["one", "two"].map(|name| layout.layer(name, 1000));
    let push = |tag: &str, layers: &[Value]| {
        layout.tag(&layout.image("amd64", layers), tag);
        registry.push(layout.path(), tag, &format!("{tag}:1"))
    };
    let both = push("both", &layers);
    let alone = [("one", &layers[..1]), ("two", &layers[1..])].map(|(tag, layers)| push(tag, layers));
    let pulling = tokio::spawn({
        let stores = stores.clone();
        async move { stores.pull(&both).await }
    });
    arrival(&gate).await;
    for name in alone {
        let pulled = tokio::time::timeout(SOON, stores.pull(&name)).await;
        pulled.unwrap_or_else(|_| panic!("{name} waits for the merge of another image")).unwrap();
    }
    gate.open();
    pulling.await.unwrap().unwrap();
}

async fn arrival(gate: &Gate) {
    let gate = gate.clone();
    tokio::task::spawn_blocking(move || gate.arrivals(1)).await.unwrap();
}

fn other_namespace() -> Caller {
    Caller::new(Namespace::new("other").expect("a valid name"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_blob_of_another_namespace_is_not_fetched_again() {
    let Some(stores) = Stores::open() else { return };
    let layout = Layout::new();
    layout.tag(&layout.image("amd64", &[layout.layer("only", 100_000)]), "one");
    let registry = Registry::start();
    let reference = registry.push(layout.path(), "one", "one:1");
    let proxy = FaultProxy::start(&registry, |_| Vec::new());
    let name = proxy.through(&reference);
    let (one, two) = tokio::join!(stores.pull(&name), stores.pull_for(other_namespace(), &name));
    assert_eq!(one.unwrap().target, two.unwrap().target);
    let layer = digest_of(&layout.layer("only", 100_000));
    assert_eq!(proxy.reads(&layer).len(), 1, "the layer came once");
}

/// An image may have the same layer several times, and the layer may be empty, even without an end-of-archive marker.
#[tokio::test(flavor = "multi_thread")]
async fn a_layer_of_an_image_that_has_it_three_times_comes_once() {
    let (layout, registry) = (Layout::new(), Registry::start());
    let same = layout.layer("only", 50_000);
    let nothing = layout.blob(media_type::OCI_LAYER, b"");
    let end = layout.blob(media_type::OCI_LAYER, &[0; 1024]);
    let layers = [&same, &nothing, &same, &end, &same].map(Value::clone);
    layout.tag(&layout.image("amd64", &layers), "thrice");
    let reference = registry.push(layout.path(), "thrice", "thrice:1");
    let digests = layers.each_ref().map(digest_of);
    let diff_ids = digests.each_ref().map(|digest| digest.parse::<Digest>().expect("a digest"));
    let chain: Vec<String> = image::chain_ids(&diff_ids).iter().map(Digest::to_string).collect();
    for form in [LayerForm::Archives, LayerForm::Directories] {
        let Some(stores) = Stores::open_with(form) else { return };
        let proxy = FaultProxy::start(&registry, |_| Vec::new());
        let remote = Remote::new(&proxy.through(&reference).parse().expect("a reference"), None);
        let platform = "linux/amd64".parse().expect("a platform");
        let request = stores.request(remote, stores.caller(), platform);
        let (report, mut told) = mpsc::channel(1000);
        transfer::pull(&stores.metadata, request, Some(report)).await.expect("an image");
        for (layer, reads) in [(&same, 1), (&nothing, 0), (&end, 1)] {
            assert_eq!(proxy.reads(&digest_of(layer)).len(), reads, "{form:?}: {layer}");
        }
        let mut extracted = Vec::new();
        while let Ok(progress) = told.try_recv() {
            if let Progress::Extracting { digest } = progress {
                extracted.push(digest.to_string());
            }
        }
        extracted.sort();
        let mut expected = digests.to_vec();
        expected.sort();
        assert_eq!(extracted, expected, "{form:?}: each tree is made once");
        assert_eq!(stores.committed(), chain, "{form:?}");
        let top = chain.last().expect("five trees");
        assert!(stores.look(top, "only") == testkit::noise("only", 50_000), "{form:?}");
    }
}

/// A registry may serve the document of another image endlessly.
#[tokio::test(flavor = "multi_thread")]
async fn a_slow_document_blocks_no_other_pull() {
    let Some(mut stores) = Stores::open() else { return };
    stores.flights = Flights::with_patience(Duration::from_millis(100));
    let layout = Layout::new();
    let image = layout.image("amd64", &[layout.layer("only", 100_000)]);
    layout.tag(&layout.index(std::slice::from_ref(&image)), "one");
    let registry = Registry::start();
    let reference = registry.push(layout.path(), "one", "one:1");
    let gate = Gate::default();
    let (manifest, held) = (digest_of(&image), gate.clone());
    let slow = FaultProxy::start(&registry, move |asked| match asked.manifest() {
        Some(asked) if asked == manifest => vec![Fault::Hold { at: 10, gate: held.clone() }],
        _ => Vec::new(),
    });
    let name = slow.through(&reference);
    let ((), slowly) = tokio::join!(
        async {
            arrival(&gate).await;
            let pulled = tokio::time::timeout(SOON, stores.pull_for(other_namespace(), &reference)).await;
            let same = tokio::time::timeout(SOON, stores.pull(&reference)).await;
            gate.open();
            pulled.expect("it waits for nobody who is slow").expect("an image");
            same.expect("nor in the same namespace").expect("an image");
        },
        stores.pull(&name)
    );
    slowly.expect("an image, in the end");
}
