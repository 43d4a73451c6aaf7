//! Slow and silent registries do not block other transfers.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use content::{Step, Watch};
use diff::{Compression, Encoder};
use metadata::Caller;
use serde_json::{Value, json};
use snapshot::LayerForm;
use testkit::layout::tar_of;
use testkit::{Fault, FaultProxy, Gate, Layout, Registry, digest_of};
use tokio::task::JoinSet;
use types::descriptor::media_type;
use types::{Digest, Namespace};

use crate::fixture::Stores;

/// Shorter than the 20 seconds after which a silent host is abandoned.
const SOON: Duration = Duration::from_secs(15);

/// Pulls images whose layers stall half way, then another one, and lets the first go on.
async fn check(
    layout: &Layout,
    slow: Vec<(String, Vec<Value>)>,
    quick: &str,
    held: usize,
) -> Arc<FaultProxy> {
    let stores = Arc::new(Stores::open().expect("asked before"));
    let registry = Registry::start();
    let quick = registry.push(layout.path(), quick, "quick:1");
    let gate = Gate::default();
    let layers: BTreeSet<String> = slow.iter().flat_map(|(_, layers)| layers.iter().map(digest_of)).collect();
    let (slow_layers, closed) = (layers.clone(), gate.clone());
    let proxy = Arc::new(FaultProxy::start(&registry, move |asked| match asked.blob() {
        Some(blob) if slow_layers.contains(blob) && asked.before == 0 => {
            vec![Fault::Hold { at: 100_000, gate: closed.clone() }]
        }
        _ => Vec::new(),
    }));
    let mut pulls = JoinSet::new();
    for (name, _) in &slow {
        let name = proxy.through(&registry.push(layout.path(), name, &format!("{name}:1")));
        let stores = stores.clone();
        pulls.spawn(async move { stores.pull(&name).await });
    }
    let arriving = gate.clone();
    tokio::task::spawn_blocking(move || arriving.arrivals(held)).await.expect("no panic");
    let pulled = tokio::time::timeout(SOON, stores.pull(&quick)).await;
    pulled.expect("it waits for nobody who is silent").expect("an image");
    gate.open();
    for pulled in pulls.join_all().await {
        pulled.expect("an image");
    }
    proxy
}

#[tokio::test(flavor = "multi_thread")]
async fn silent_hosts_hold_no_slot_that_other_layers_need() {
    if !testkit::is_root("unpacking layers") {
        return;
    }
    let layout = Layout::new();
    // More layers than slots.
    let slow: Vec<(String, Vec<Value>)> = (0..6)
        .map(|image| {
            let layer = |at| layout.layer(&format!("slow-{image}-{at}"), 300_000);
            let layers: Vec<Value> = (0..3).map(layer).collect();
            layout.tag(&layout.image("amd64", &layers), &format!("slow-{image}"));
            (format!("slow-{image}"), layers)
        })
        .collect();
    layout.tag(&layout.image("amd64", &[layout.layer("quick", 300_000)]), "quick");
    let layers: Vec<Value> = slow.iter().flat_map(|(_, layers)| layers.clone()).collect();
    let proxy = check(&layout, slow, "quick", transfer::layers_at_once()).await;
    let again: Vec<u64> =
        layers.iter().filter_map(|layer| proxy.reads(&digest_of(layer)).get(1)?.asked.start()).collect();
    assert!(!again.is_empty(), "somebody gave way");
    assert!(again.iter().all(|start| *start > 0), "what came is not fetched again: {again:?}");
}

/// A busy host sends `Retry-After`; giving way must not make the client ask earlier.
#[tokio::test(flavor = "multi_thread")]
async fn a_host_with_retry_after_is_asked_later_and_blocks_no_other_pull() {
    const LATER: Duration = Duration::from_secs(6);
    if !testkit::is_root("unpacking layers") {
        return;
    }
    let (layout, registry) = (Layout::new(), Registry::start());
    let stores = Arc::new(Stores::open().expect("asked before"));
    // When each layer was requested first, and which layers were requested again too early.
    let asked: Arc<Mutex<BTreeMap<String, Instant>>> = Arc::default();
    let too_early: Arc<Mutex<BTreeSet<String>>> = Arc::default();
    let mut names = Vec::new();
    let mut busy = BTreeSet::new();
    // More layers than slots.
    for image in 0..6 {
        let layers: Vec<Value> = (0..3).map(|at| layout.layer(&format!("busy-{image}-{at}"), 1000)).collect();
        layout.tag(&layout.image("amd64", &layers), &format!("busy-{image}"));
        busy.extend(layers.iter().map(|layer| digest_of(layer).to_string()));
        names.push(registry.push(layout.path(), &format!("busy-{image}"), &format!("busy-{image}:1")));
    }
    layout.tag(&layout.image("amd64", &[layout.layer("quick", 300_000)]), "quick");
    let quick = registry.push(layout.path(), "quick", "quick:1");
    let (first, early) = (asked.clone(), too_early.clone());
    let proxy = FaultProxy::start(&registry, move |request| {
        let Some(blob) = request.blob().filter(|blob| busy.contains(*blob)) else { return Vec::new() };
        let mut first = first.lock().expect("no panic");
        let is_new = !first.contains_key(blob);
        let since = first.entry(blob.to_owned()).or_insert_with(Instant::now).elapsed();
        if since >= LATER {
            return Vec::new();
        }
        if !is_new {
            early.lock().expect("no panic").insert(blob.to_owned());
        }
        let later = vec![("Retry-After", LATER.as_secs().to_string())];
        vec![Fault::Answer { status: 429, headers: later, body: Vec::new() }]
    });
    let mut pulls = JoinSet::new();
    for name in &names {
        let (name, stores) = (proxy.through(name), stores.clone());
        pulls.spawn(async move { stores.pull(&name).await });
    }
    let pulled = tokio::time::timeout(LATER, stores.pull(&quick)).await;
    pulled.expect("it waits for nobody who is busy").expect("an image");
    for pulled in pulls.join_all().await {
        pulled.expect("an image");
    }
    assert_eq!(asked.lock().expect("no panic").len(), 18);
    assert_eq!(*too_early.lock().expect("no panic"), BTreeSet::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn windows_of_slow_layers_block_no_other_pull() {
    if !testkit::is_root("unpacking layers") {
        return;
    }
    let layout = Layout::new();
    // Windows of 2 MiB each: more than the shared budget.
    let slow: Vec<(String, Vec<Value>)> = (0..3)
        .map(|image| {
            let names = (0..3).map(|at| format!("window-{image}-{at}"));
            (format!("windows-{image}"), zstd_image(&layout, &format!("windows-{image}"), names))
        })
        .collect();
    zstd_image(&layout, "quick", ["quick".to_owned()].into_iter());
    check(&layout, slow, "quick", 9).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_bytes_of_slow_hosts_are_detected_after_giving_way() {
    if !testkit::is_root("unpacking layers") {
        return;
    }
    let (stores, layout, registry) =
        (Arc::new(Stores::open().expect("asked before")), Layout::new(), Registry::start());
    let gate = Gate::default();
    let closed = gate.clone();
    // Layers read from their beginning stall before this point; all have wrong bytes.
    let proxy = FaultProxy::start(&registry, move |asked| match asked.start() {
        None => vec![Fault::Hold { at: 100_000, gate: closed.clone() }, Fault::Corrupt(200_000)],
        Some(_) => vec![Fault::Corrupt(200_000)],
    });
    let mut pulls = JoinSet::new();
    // More layers than slots.
    for image in 0..6 {
        let layers: Vec<Value> =
            (0..3).map(|at| layout.layer(&format!("wrong-{image}-{at}"), 300_000)).collect();
        let tag = format!("wrong-{image}");
        layout.tag(&layout.image("amd64", &layers), &tag);
        let name = proxy.through(&registry.push(layout.path(), &tag, &format!("{tag}:1")));
        let stores = stores.clone();
        pulls.spawn(async move { stores.pull(&name).await });
    }
    let first = tokio::time::timeout(SOON, pulls.join_next()).await.expect("it is not asked again and again");
    let error = first.expect("there are six").expect("no panic").expect_err("the only host lies").chain();
    assert!(error.contains("have the digest"), "{error}");
    gate.open();
    for pulled in pulls.join_all().await {
        pulled.expect_err("the only host lies");
    }
}

/// Upper bound of bytes read from the socket while the disk takes none: queued chunks and read-ahead (transfer.md,
/// "Memory"), and the kernel's buffers of two ends of a connection.
fn taken_at_most() -> u64 {
    const IN_MEMORY: u64 = (1 << 20) + (8 << 20) + (1 << 20);
    let largest = |direction: &str| {
        let text = std::fs::read_to_string(format!("/proc/sys/net/ipv4/tcp_{direction}mem"));
        let text = text.expect("the kernel has TCP");
        text.split_whitespace().nth(2).and_then(|len| len.parse::<u64>().ok()).expect("three lengths")
    };
    IN_MEMORY + largest("r") + largest("w")
}

/// A disk that blocks writes of a blob: the daemon stops reading from the registry, and buffers nothing.
#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_takes_nothing_holds_up_the_socket() {
    let len = 2 * usize::try_from(taken_at_most()).expect("some megabytes");
    let disk = Gate::default();
    let is_stuck = Arc::new(AtomicBool::new(false));
    let (stuck, closed) = (is_stuck.clone(), disk.clone());
    let watch: Watch = Arc::new(move |step: &Step| {
        if matches!(step, Step::Write(_)) && stuck.load(Ordering::SeqCst) {
            closed.pass();
        }
        Ok(())
    });
    let Some(stores) = Stores::open_watched(LayerForm::Archives, Some(watch)) else { return };
    let (layout, registry) = (Layout::new(), Registry::start());
    let layer = layout.layer("large", len);
    layout.tag(&layout.image("amd64", std::slice::from_ref(&layer)), "large");
    let reference = registry.push(layout.path(), "large", "large:1");
    let large = digest_of(&layer);
    let proxy = FaultProxy::start(&registry, move |asked| {
        if asked.blob() == Some(&large) {
            is_stuck.store(true, Ordering::SeqCst);
        }
        Vec::new()
    });
    let stores = Arc::new(stores);
    let (name, pulling) = (proxy.through(&reference), stores.clone());
    let pull = tokio::spawn(async move { pulling.pull(&name).await });
    let arriving = disk.clone();
    tokio::task::spawn_blocking(move || arriving.arrivals(1)).await.expect("no panic");
    // Enough time for all of it: another daemon pulls it completely, twice.
    for _ in 0..2 {
        let other = Stores::open().expect("asked before");
        other.pull(&reference).await.expect("an image");
    }
    let sent: u64 = proxy.reads(&digest_of(&layer)).iter().map(|read| read.sent).sum();
    assert!(sent < taken_at_most(), "{sent} bytes, of {} at most", taken_at_most());
    disk.open();
    pull.await.expect("no panic").expect("it goes on when the disk does");
    assert!(proxy.blob_bytes() >= len as u64);
}

/// An image of zstd layers. Returns their descriptors.
fn zstd_image(layout: &Layout, tag: &str, names: impl Iterator<Item = String>) -> Vec<Value> {
    let (mut layers, mut diff_ids) = (Vec::new(), Vec::new());
    for name in names {
        let hex: String =
            testkit::layout::noise(&name, 200_000).iter().map(|byte| format!("{byte:02x}")).collect();
        let plain = tar_of(&[(&name, &hex)]);
        let mut encoder = Encoder::new(Compression::Zstd, Vec::new()).expect("an encoder");
        encoder.write_all(&plain).expect("memory takes all");
        layers.push(layout.blob(media_type::OCI_LAYER_ZSTD, &encoder.finish().expect("memory takes all")));
        diff_ids.push(Digest::of(&plain).to_string());
    }
    let config = json!({
        "architecture": "amd64", "os": "linux", "config": {"Cmd": ["sh"]},
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
    });
    let config = layout.document(media_type::OCI_CONFIG, &config);
    let manifest = json!({
        "schemaVersion": 2, "mediaType": media_type::OCI_MANIFEST, "config": config, "layers": layers,
    });
    let mut descriptor = layout.document(media_type::OCI_MANIFEST, &manifest);
    descriptor["platform"] = json!({"os": "linux", "architecture": "amd64"});
    layout.tag(&descriptor, tag);
    layers
}

/// Pulls an image from a host whose first response for the layer has these faults, and the same image from a good
/// host.
async fn check_shared(faults: impl Fn(&Gate) -> Vec<Fault> + Send + Sync + 'static) {
    for namespace in ["default", "other"] {
        let Some(stores) = Stores::open() else { return };
        let layout = Layout::new();
        let layer = layout.layer("only", 300_000);
        layout.tag(&layout.image("amd64", std::slice::from_ref(&layer)), "one");
        let registry = Registry::start();
        let reference = registry.push(layout.path(), "one", "one:1");
        let (gate, wanted) = (Gate::default(), digest_of(&layer));
        let faults = faults(&gate);
        let slow = FaultProxy::start(&registry, move |asked| match asked.blob() {
            Some(blob) if blob == wanted && asked.before == 0 => faults.clone(),
            _ => Vec::new(),
        });
        let name = slow.through(&reference);
        let both = async {
            tokio::join!(stores.pull(&name), async {
                let arriving = gate.clone();
                tokio::task::spawn_blocking(move || arriving.arrivals(1)).await.expect("no panic");
                stores
                    .pull_for(Caller::new(Namespace::new(namespace).expect("a valid name")), &reference)
                    .await
            })
        };
        let (slowly, quickly) = tokio::time::timeout(SOON, both).await.expect("nobody waits for the gate");
        quickly.expect("an image");
        slowly.expect("an image, with what the other one brought");
        gate.open();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_layer_blocks_no_other_pull() {
    check_shared(|gate| vec![Fault::Hold { at: 100_000, gate: gate.clone() }]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unanswered_layer_request_blocks_no_other_pull() {
    check_shared(|gate| vec![Fault::Wait(gate.clone())]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_bytes_of_a_slow_host_are_detected() {
    check_shared(|gate| vec![Fault::Corrupt(10), Fault::Hold { at: 100_000, gate: gate.clone() }]).await;
}

/// Layers do not wait for the slowest one before they are unpacked.
#[tokio::test(flavor = "multi_thread")]
async fn layers_are_unpacked_side_by_side() {
    if !testkit::is_root("unpacking layers") {
        return;
    }
    const LEN: usize = 300_000;
    let (layout, registry) = (Layout::new(), Registry::start());
    let name = |at: usize| format!("side-{at}");
    let layers: Vec<Value> = (0..3).map(|at| layout.layer(&name(at), LEN)).collect();
    layout.tag(&layout.image("amd64", &layers), "sides");
    let reference = registry.push(layout.path(), "sides", "sides:1");
    for (held, layer) in layers.iter().enumerate() {
        let (stores, gate) = (Arc::new(Stores::open().expect("asked before")), Gate::default());
        let (slow, closed) = (digest_of(layer), gate.clone());
        let proxy = FaultProxy::start(&registry, move |asked| match asked.blob() {
            Some(blob) if blob == slow && asked.before == 0 => {
                vec![Fault::Hold { at: 100_000, gate: closed.clone() }]
            }
            _ => Vec::new(),
        });
        let (own, through) = (stores.clone(), proxy.through(&reference));
        let pulling = tokio::spawn(async move { own.pull(&through).await });
        tokio::task::spawn_blocking(move || {
            gate.arrivals(1);
            for at in (0..3).filter(|at| *at != held) {
                testkit::eventually(&format!("layer {at} is unpacked beside layer {held}"), || {
                    (stores.unpacked(&name(at)) == LEN as u64).then_some(())
                });
            }
            assert!(stores.unpacked(&name(held)) < LEN as u64);
            gate.open();
        })
        .await
        .expect("no panic");
        pulling.await.expect("no panic").expect("an image");
    }
}
