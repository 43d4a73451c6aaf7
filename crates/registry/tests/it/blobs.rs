//! Blobs in parts, from hosts that are slow, answer wrong ranges, or do not support them.

use std::time::Duration;

use registry::{Pace, Remote};
use testkit::{Asked, Fault, FaultProxy, Gate, Layout, Registry, digest_of, images, noise};
use types::descriptor::media_type;
use types::{Descriptor, Digest, ErrorKind, Reference, Result};

use crate::hosts::Configured;
use crate::server::{Reply, Server, give, range};

/// More than `LARGE_LEN`, and not a multiple of a part.
const LARGE: usize = (17 << 20) + 12_345;

/// Parts ahead are limited per process, so tests that count on them run one at a time.
static PARTS: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

/// Reads a blob from a host, with this pace.
async fn fetch(host: &str, blob: &[u8], offset: u64, pace: Pace) -> Result<Vec<u8>> {
    let reference: Reference = format!("{host}/some/image:1").parse().unwrap();
    let descriptor = Descriptor::new(media_type::OCI_LAYER, Digest::of(blob), blob.len() as u64);
    let mut stream = Remote::new(&reference, None).blob(&descriptor, offset).await?.with_pace(pace);
    let mut all = Vec::new();
    while let Some(chunk) = stream.next().await? {
        all.extend_from_slice(&chunk);
    }
    Ok(all)
}

#[tokio::test]
async fn a_large_blob_comes_in_parts_each_byte_once() {
    let _alone = PARTS.lock().await;
    let blob = noise("large", LARGE);
    let whole = blob.clone();
    let server = Server::start(move |request, _| give(&whole, request));
    for offset in [0, 1_000_000] {
        server.seen().clear();
        let fetched = fetch(&server.host(), &blob, offset, Pace::default()).await.unwrap();
        assert!(fetched == blob[usize::try_from(offset).unwrap()..], "the bytes are in order");
        let mut parts: Vec<_> = server.seen().iter().filter_map(range).collect();
        parts.sort_unstable();
        assert!(parts.len() > 5, "{parts:?}");
        assert!(parts.windows(2).all(|two| two[0].1 + 1 == two[1].0), "{parts:?}");
        assert_eq!(parts.first().map(|part| part.0 as u64), Some(offset));
        assert_eq!(parts.last().map(|part| part.1), Some(LARGE - 1));
    }
}

#[tokio::test]
async fn a_stream_that_is_not_read_keeps_no_other_from_reading_ahead() {
    let _alone = PARTS.lock().await;
    let blob = noise("large", LARGE);
    let whole = blob.clone();
    let server = Server::start(move |request, _| give(&whole, request));
    let reference: Reference = format!("{}/some/image:1", server.host()).parse().unwrap();
    let descriptor = Descriptor::new(media_type::OCI_LAYER, Digest::of(&blob), blob.len() as u64);
    let mut waiting = Vec::new();
    for _ in 0..2 {
        waiting.push(Remote::new(&reference, None).blob(&descriptor, 0).await.unwrap());
    }
    server.seen().clear();
    assert!(fetch(&server.host(), &blob, 0, Pace::default()).await.unwrap() == blob);
    assert!(server.seen().len() > 5, "{} requests", server.seen().len());
    for stream in &mut waiting {
        assert!(stream.next().await.unwrap().is_some());
    }
}

#[tokio::test]
async fn a_host_without_ranges_is_asked_once_for_a_large_blob() {
    let _alone = PARTS.lock().await;
    let blob = noise("large", LARGE);
    let whole = blob.clone();
    let server = Server::start(move |_, _| Reply::new(200, whole.clone()));
    assert!(fetch(&server.host(), &blob, 0, Pace::default()).await.unwrap() == blob);
    assert_eq!(server.seen().len(), 1);
}

#[tokio::test]
async fn parts_that_break_or_are_ignored_are_made_good() {
    let _alone = PARTS.lock().await;
    let blob = noise("large", LARGE);
    let whole = blob.clone();
    let server = Server::start(move |request, before| match before {
        // The first answer to a part breaks off, another one ignores the range.
        2 => give(&whole, request).cut_after(100_000),
        4 => Reply::new(200, whole.clone()),
        _ => give(&whole, request),
    });
    assert!(fetch(&server.host(), &blob, 0, Pace::default()).await.unwrap() == blob);
}

#[tokio::test]
async fn a_range_that_was_not_asked_for_is_a_lie() {
    let blob = noise("small", 100_000);
    for lie in ["bytes 0-99999/100000", "bytes 50000-99999/200000", "bytes 50000-99998/100000", "nonsense"] {
        let whole = blob.clone();
        let server = Server::start(move |request, _| match range(request) {
            Some((first, _)) => Reply::new(206, &whole[first..]).header("Content-Range", lie),
            None => Reply::new(200, whole.clone()).cut_after(50_000),
        });
        let error = fetch(&server.host(), &blob, 50_000, Pace::default()).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::DataLoss, "{lie}");
        assert!(error.chain().contains(lie) && error.chain().contains(&server.host()), "{}", error.chain());
        assert_eq!(server.seen().len(), 1, "a host that lies is not asked again");
    }
}

/// A registry with a layer, behind a proxy that injects these faults.
fn behind(
    layout: &Layout,
    name: &str,
    faults: impl Fn(&Asked) -> Vec<Fault> + Send + Sync + 'static,
) -> (Registry, FaultProxy, Vec<u8>) {
    let layer = layout.layer(name, 200_000);
    layout.tag(&layout.image("amd64", std::slice::from_ref(&layer)), images::TAG);
    let registry = Registry::start();
    registry.push(layout.path(), images::TAG, "some/image:1");
    let proxy = FaultProxy::start(&registry, move |asked| match asked.blob() {
        Some(_) => faults(asked),
        None => Vec::new(),
    });
    let path = layout.path().join("blobs").join(digest_of(&layer).replace(':', "/"));
    (registry, proxy, std::fs::read(path).unwrap())
}

/// A pace with timeouts short enough for a test.
fn quick() -> Pace {
    Pace {
        idle_timeout: Duration::from_millis(300),
        window: Duration::from_millis(300),
        window_len_min: 20_000,
        failures_max: 2,
    }
}

#[tokio::test]
async fn a_host_that_trickles_or_falls_silent_is_left() {
    let layout = Layout::new();
    let trickle = Fault::Throttle { bytes: 100, every: Duration::from_millis(20) };
    let (_registry, proxy, blob) = behind(&layout, "trickled", move |_| vec![trickle.clone()]);
    let error = fetch(&proxy.host(), &blob, 0, quick()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::DeadlineExceeded);
    assert!(error.chain().contains(&format!("{} is too slow", proxy.host())), "{}", error.chain());

    let layout = Layout::new();
    let (_registry, proxy, blob) =
        behind(&layout, "silent", |_| vec![Fault::Hold { at: 100_000, gate: Gate::default() }]);
    let error = fetch(&proxy.host(), &blob, 0, quick()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::DeadlineExceeded);
    assert!(error.chain().contains("sent nothing"), "{}", error.chain());
    let starts: Vec<_> = proxy
        .log()
        .iter()
        .filter(|served| served.asked.blob().is_some())
        .map(|served| served.asked.start())
        .collect();
    assert_eq!(starts, [None, Some(100_000)], "what came is not fetched again");
}

#[tokio::test]
async fn a_host_that_is_away_after_a_break_is_asked_again() {
    let blob = noise("small", 100_000);
    let whole = blob.clone();
    let server = Server::start(move |request, before| match before {
        0 => give(&whole, request).cut_after(50_000),
        // Longer than any request waits, so the host is abandoned at once.
        1 => Reply::new(503, "").header("Retry-After", "60"),
        _ => give(&whole, request),
    });
    assert!(fetch(&server.host(), &blob, 0, Pace::default()).await.unwrap() == blob);
    assert_eq!(server.seen().len(), 3);
}

/// Reads a blob from a mirror and the registry behind it.
async fn from_two(mirror: &str, own: &str, blob: &[u8]) -> Result<Vec<u8>> {
    let hosts = Configured::new(&format!("server = 'http://{own}'\n[host.'http://{mirror}']\n"));
    let descriptor = Descriptor::new(media_type::OCI_LAYER, Digest::of(blob), blob.len() as u64);
    let mut stream = hosts.remote().blob(&descriptor, 0).await?.with_pace(quick());
    let mut all = Vec::new();
    while let Some(chunk) = stream.next().await? {
        all.extend_from_slice(&chunk);
    }
    Ok(all)
}

#[tokio::test]
async fn a_broken_blob_continues_at_the_next_host() {
    let blob = noise("two hosts", 500_000);
    let (whole, other) = (blob.clone(), blob.clone());
    let mirror = Server::start(move |request, _| give(&whole, request).cut_after(300_000));
    let own = Server::start(move |request, _| give(&other, request));
    assert!(from_two(&mirror.host(), &own.host(), &blob).await.unwrap() == blob);
    assert_eq!(mirror.seen().len(), 1);
    let rest: Vec<_> = own.seen().iter().map(range).collect();
    assert_eq!(rest, [Some((300_000, 499_999))], "from where it was");
}

#[tokio::test]
async fn a_host_with_wrong_parts_ahead_is_removed_and_not_the_current_one() {
    let _alone = PARTS.lock().await;
    let blob = noise("large", LARGE);
    let (whole, other) = (blob.clone(), blob.clone());
    // Its first part breaks off, so the registry is asked; its parts ahead have wrong ranges.
    let mirror = Server::start(move |request, _| match range(request) {
        Some((0, _)) => give(&whole, request).cut_after(300_000),
        _ => Reply::new(206, "").header("Content-Range", "bytes 0-1/2"),
    });
    let own = Server::start(move |request, _| give(&other, request));
    assert!(from_two(&mirror.host(), &own.host(), &blob).await.unwrap() == blob);
}

#[tokio::test]
async fn a_mirror_that_trickles_or_lies_is_left_for_the_registry() {
    let layout = Layout::new();
    let trickle = Fault::Throttle { bytes: 100, every: Duration::from_millis(20) };
    let (registry, mirror, blob) = behind(&layout, "slow mirror", move |_| vec![trickle.clone()]);
    let own = FaultProxy::start(&registry, |_| Vec::new());
    assert!(from_two(&mirror.host(), &own.host(), &blob).await.unwrap() == blob);
    let sent: u64 = own.blob_bytes();
    assert!(sent > 150_000 && sent < blob.len() as u64, "the registry gave the rest: {sent}");

    let whole = blob.clone();
    let liar = Server::start(move |_, _| Reply::new(200, &whole[1..]));
    own.clear();
    assert!(from_two(&liar.host(), &own.host(), &blob).await.unwrap() == blob);
    assert_eq!((liar.seen().len(), own.blob_bytes()), (1, blob.len() as u64));
}

#[tokio::test]
async fn a_slow_moment_is_made_good_from_where_it_was() {
    let layout = Layout::new();
    let (_registry, proxy, blob) = behind(&layout, "slow once", |asked| match asked.start() {
        None => vec![Fault::Hold { at: 100_000, gate: Gate::default() }],
        Some(_) => Vec::new(),
    });
    assert!(fetch(&proxy.host(), &blob, 0, quick()).await.unwrap() == blob);
    assert_eq!(proxy.blob_bytes(), blob.len() as u64);
}

#[tokio::test]
async fn a_body_that_goes_on_after_the_blob_is_a_lie() {
    let layout = Layout::new();
    let (_registry, proxy, blob) = behind(&layout, "endless", |_| vec![Fault::Endless]);
    let error = fetch(&proxy.host(), &blob, 0, Pace::default()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::DataLoss);
    assert!(error.chain().contains("longer than the manifest says"), "{}", error.chain());
}
