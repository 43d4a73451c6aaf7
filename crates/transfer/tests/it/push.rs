//! Pushes: whole or partial images, uploads of missing blobs only, mounts, referrers.

use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};

use registry::{Credentials, Remote};
use serde_json::{Value, json};
use snapshot::Overlay;
use testkit::{Asked, Fault, FaultProxy, Layout, Registry, digest_of};
use transfer::{Progress, PushProgress, PushRequest, Scope, WantedPlatforms};
use types::descriptor::media_type;
use types::{Descriptor, Error, ErrorKind, Reference, Result};

use crate::fixture::Stores;

/// Pushes an image under another name.
async fn push(
    stores: &Stores,
    from: &str,
    to: &str,
    scope: Scope,
) -> Result<(Descriptor, Vec<PushProgress>)> {
    let (report, mut told) = tokio::sync::mpsc::channel(1024);
    let reference: Reference = to.parse()?;
    let name = from.parse::<Reference>()?.to_string();
    let request = PushRequest {
        target: stores.metadata.images(stores.caller()).get(&name)?.target,
        remote: Remote::new(&reference, None::<Credentials>),
        reference,
        scope,
        referrers: true,
        slots: stores.slots.clone(),
        caller: stores.caller(),
    };
    let pushed = transfer::push(&stores.metadata, request, Some(report)).await?;
    let mut all = Vec::new();
    while let Some(progress) = told.recv().await {
        all.push(progress);
    }
    Ok((pushed, all))
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime")
}

/// The digest of the raw manifest, by skopeo.
fn digest_in(reference: &str) -> String {
    let inspect = ["inspect", "--raw", "--tls-verify=false", &format!("docker://{reference}")];
    let raw = testkit::run(Command::new("skopeo").args(inspect)).ok();
    types::Digest::of(raw.stdout.as_bytes()).to_string()
}

/// Blob bytes that a registry received.
fn uploaded(proxy: &FaultProxy) -> u64 {
    proxy.requests(Asked::is_upload).iter().map(|served| served.received).sum()
}

#[test]
fn only_what_is_missing_is_sent() {
    let Some(stores) = Stores::open() else { return };
    let (runtime, layout) = (runtime(), Layout::new());
    let (base, own) = (layout.layer("base", 3_000_000), layout.layer("own", 500_000));
    let first = layout.image("amd64", std::slice::from_ref(&base));
    let second = layout.image("amd64", &[base, own.clone()]);
    layout.tag(&first, "first");
    layout.tag(&second, "second");
    let (source, target) = (Registry::start(), Registry::start());
    let names: Vec<String> = ["first", "second"]
        .iter()
        .map(|tag| source.push(layout.path(), tag, &format!("from/{tag}:1")))
        .collect();
    for name in &names {
        runtime.block_on(stores.pull(name)).unwrap();
    }
    let proxy = FaultProxy::start(&target, |_| Vec::new());
    let to = |name: &str| format!("{}/{name}", proxy.host());

    let (pushed, _) = runtime.block_on(push(&stores, &names[0], &to("one:1"), Scope::Present)).unwrap();
    assert_eq!(pushed.digest.to_string(), digest_of(&first));
    assert_eq!(digest_in(&to("one:1")), digest_of(&first));
    let whole = uploaded(&proxy);
    assert!(whole > 3_000_000, "{whole}");

    // The second push sends nothing.
    proxy.clear();
    let (_, told) = runtime.block_on(push(&stores, &names[0], &to("one:1"), Scope::Present)).unwrap();
    assert_eq!(uploaded(&proxy), 0);
    assert!(told.iter().any(|step| matches!(step, PushProgress::Sent { how: registry::Sent::Existed, .. })));

    // Another repository of the same registry: known blobs are mounted, the rest is sent.
    proxy.clear();
    let (_, told) = runtime.block_on(push(&stores, &names[1], &to("two:1"), Scope::Present)).unwrap();
    assert_eq!(digest_in(&to("two:1")), digest_of(&second));
    let rest = uploaded(&proxy);
    assert!(rest >= own["size"].as_u64().unwrap() && rest < 1_000_000, "{rest}");
    let mounted = |step: &PushProgress| matches!(step, PushProgress::Sent { how: registry::Sent::Mounted(from), .. } if from == "one");
    assert_eq!(told.iter().filter(|step| mounted(step)).count(), 1, "{told:?}");
}

#[test]
fn an_upload_that_breaks_or_is_too_large_for_one_request_arrives() {
    let Some(stores) = Stores::open() else { return };
    let (runtime, layout) = (runtime(), Layout::new());
    let image = layout.image("amd64", &[layout.layer("large", 40 << 20)]);
    layout.tag(&image, "one");
    let (source, target) = (Registry::start(), Registry::start());
    let name = source.push(layout.path(), "one", "one:1");
    runtime.block_on(stores.pull(&name)).unwrap();

    // The first upload breaks in the middle, and this registry discards the partial upload.
    let breaks = AtomicUsize::new(0);
    let breaking = FaultProxy::start(&target, move |asked| {
        let len = asked.header("content-length").and_then(|len| len.parse().ok()).unwrap_or(0_u64);
        let is_first = len > 35_000_000 && breaks.fetch_add(1, Ordering::SeqCst) == 0;
        if is_first { vec![Fault::CutUpload(10_000_000)] } else { Vec::new() }
    });
    let to = format!("{}/broken:1", breaking.host());
    runtime.block_on(push(&stores, &name, &to, Scope::Present)).unwrap();
    assert_eq!(digest_in(&to), digest_of(&image));

    // A proxy in front of the registry limits the body size.
    let narrow = FaultProxy::start(&target, |asked| {
        let len = asked.header("content-length").and_then(|len| len.parse().ok()).unwrap_or(0_u64);
        if len > 35_000_000 { vec![Fault::answer(413)] } else { Vec::new() }
    });
    let to = format!("{}/narrow:1", narrow.host());
    runtime.block_on(push(&stores, &name, &to, Scope::Present)).unwrap();
    assert_eq!(digest_in(&to), digest_of(&image));
    let chunks = narrow.requests(|asked| asked.method == "PATCH");
    assert_eq!(chunks.len(), 2, "40 MiB in chunks of 32");
}

/// An index of three platforms, and a store that has some of them.
fn three_platforms() -> (Layout, Value, Vec<Value>) {
    let layout = Layout::new();
    let images: Vec<Value> = ["amd64", "arm64", "s390x"]
        .iter()
        .map(|name| layout.image(name, &[layout.layer(name, 100_000)]))
        .collect();
    let index = layout.index(&images);
    layout.tag(&index, "three");
    (layout, index, images)
}

/// A descriptor's platform is optional, a config's is not.
#[test]
fn images_of_an_index_that_says_no_platforms_are_told_by_their_configs() {
    let Some(stores) = Stores::open() else { return };
    let (runtime, (layout, _, mut images)) = (runtime(), three_platforms());
    for image in &mut images {
        image.as_object_mut().unwrap().remove("platform").expect("it says it");
    }
    layout.tag(&layout.index(&images), "silent");
    let (source, target) = (Registry::start(), Registry::start());
    let name = source.push(layout.path(), "silent", "silent:1");
    let pull = |platform| runtime.block_on(stores.pull_platform(&name, platform));

    let none = pull("linux/riscv64").unwrap_err();
    assert!(none.chain().contains("there is linux/amd64, linux/arm64, linux/s390x"), "{}", none.chain());
    pull("linux/s390x").unwrap();
    let is_here = |file: &str| stores.unpacked(file) == 100_000;
    assert!(is_here("s390x") && !is_here("amd64"));
    let to = format!("{}/silent:1", target.host());
    runtime.block_on(push(&stores, &name, &to, Scope::Only(vec!["linux/s390x".parse().unwrap()]))).unwrap();
    assert_eq!(digest_in(&to), digest_of(&images[2]));
}

#[test]
fn a_push_of_an_index_sends_the_platforms_in_the_store() {
    let Some(stores) = Stores::open() else { return };
    let (runtime, (layout, index, images)) = (runtime(), three_platforms());
    let (source, target) = (Registry::start(), Registry::start());
    let name = source.push(layout.path(), "three", "three:1");
    let to = |tag: &str| format!("{}/three:{tag}", target.host());
    let left_out = |told: &[PushProgress]| -> Vec<String> {
        told.iter()
            .filter_map(|step| match step {
                PushProgress::LeftOut { what } => Some(what.clone()),
                _ => None,
            })
            .collect()
    };

    runtime.block_on(stores.pull_platform(&name, "linux/arm64")).unwrap();
    let (one, told) = runtime.block_on(push(&stores, &name, &to("one"), Scope::Present)).unwrap();
    assert_eq!(one.digest.to_string(), digest_of(&images[1]), "one platform goes as its manifest");
    assert_eq!(left_out(&told), ["linux/amd64", "linux/s390x"]);
    assert_eq!(digest_in(&to("one")), digest_of(&images[1]));
    let refused = runtime.block_on(push(&stores, &name, &to("all"), Scope::Whole)).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::NotFound);
    assert!(
        refused.chain().contains("linux/amd64") && refused.chain().contains("is not here"),
        "{}",
        refused.chain()
    );

    runtime.block_on(stores.pull_platform(&name, "linux/s390x")).unwrap();
    let (two, told) = runtime.block_on(push(&stores, &name, &to("two"), Scope::Present)).unwrap();
    assert_eq!(left_out(&told), ["linux/amd64"]);
    let inspect = ["inspect", "--raw", "--tls-verify=false", &format!("docker://{}", to("two"))];
    let raw = testkit::run(Command::new("skopeo").args(inspect)).ok().stdout;
    assert_eq!(types::Digest::of(raw.as_bytes()), two.digest);
    let pushed: Value = serde_json::from_str(&raw).unwrap();
    let children: Vec<String> = pushed["manifests"].as_array().unwrap().iter().map(digest_of).collect();
    assert_eq!(children, [digest_of(&images[1]), digest_of(&images[2])]);

    runtime.block_on(stores.pull_platform(&name, "linux/amd64")).unwrap();
    let (all, told) = runtime.block_on(push(&stores, &name, &to("all"), Scope::Whole)).unwrap();
    assert!(left_out(&told).is_empty());
    assert_eq!(all.digest.to_string(), digest_of(&index));
    assert_eq!(digest_in(&to("all")), digest_of(&index));
    for image in &images {
        let child = format!("{}@{}", to("all").trim_end_matches(":all"), digest_of(image));
        assert_eq!(digest_in(&child), digest_of(image));
    }
}

#[test]
fn a_blob_that_is_not_here_is_named() {
    let Some(stores) = Stores::open() else { return };
    let (runtime, layout) = (runtime(), Layout::new());
    let layer = layout.layer("only", 100_000);
    layout.tag(&layout.image("amd64", std::slice::from_ref(&layer)), "one");
    let registry = Registry::start();
    let name = registry.push(layout.path(), "one", "one:1");
    runtime.block_on(stores.pull(&name)).unwrap();
    let digest = digest_of(&layer).parse().unwrap();
    stores.metadata.content(stores.caller()).delete(&digest).unwrap();
    let error: Error = runtime
        .block_on(push(&stores, &name, &format!("{}/two:1", registry.host()), Scope::Present))
        .unwrap_err();
    let said = error.chain();
    assert!(said.contains(&digest_of(&layer)) && said.contains("pull the image again"), "{said}");
}

/// Debian's registry lacks the referrers API: the list is an index under a tag.
#[test]
fn referrers_are_pushed_with_their_image_and_listed() {
    let Some(stores) = Stores::open() else { return };
    let (runtime, layout) = (runtime(), Layout::new());
    let image = layout.image("amd64", &[layout.layer("only", 10_000)]);
    let signature = layout.artifact("application/vnd.example.signature", &image, "signed");
    let contents = layout.artifact("application/vnd.example.contents", &image, "contains");
    let about = layout.artifact("application/vnd.example.signature", &contents, "signed too");
    layout.tag(&image, "image");
    for (artifact, tag) in [(&signature, "signature"), (&contents, "contents"), (&about, "about")] {
        layout.tag(artifact, tag);
    }
    let (source, target) = (Registry::start(), Registry::start());
    for tag in ["image", "signature", "contents", "about"] {
        let name = source.push(layout.path(), tag, &format!("from/app:{tag}"));
        runtime.block_on(stores.pull(&name)).unwrap();
    }
    let from = format!("{}/from/app:image", source.host());
    let to = format!("{}/app:1", target.host());
    let (_, told) = runtime.block_on(push(&stores, &from, &to, Scope::Present)).unwrap();
    let referrers = told.iter().filter(|step| matches!(step, PushProgress::Referrer { .. })).count();
    assert_eq!(referrers, 3, "two of the image, and one of one of them");
    // The second push changes nothing.
    runtime.block_on(push(&stores, &from, &to, Scope::Present)).unwrap();

    let remote = Remote::new(&to.parse().unwrap(), None);
    let listed = |subject: &Value, kind: Option<&str>| -> Vec<String> {
        let subject = digest_of(subject).parse().unwrap();
        let found = runtime.block_on(remote.referrers(&subject, kind)).unwrap();
        let mut digests: Vec<String> = found.iter().map(|found| found.digest.to_string()).collect();
        digests.sort();
        digests
    };
    let mut both = [digest_of(&signature), digest_of(&contents)];
    both.sort();
    assert_eq!(listed(&image, None), both);
    assert_eq!(listed(&image, Some("application/vnd.example.signature")), [digest_of(&signature)]);
    assert_eq!(listed(&contents, None), [digest_of(&about)]);
    assert!(listed(&about, None).is_empty());
    let first = &runtime.block_on(remote.referrers(&digest_of(&signature).parse().unwrap(), None)).unwrap();
    assert!(first.is_empty());
}

#[test]
fn referrers_by_the_api_come_page_by_page() {
    let registry = Registry::start();
    let subject = types::Digest::of(b"subject");
    let page = |name: &str, kind: &str| {
        let mut descriptor = json!({"mediaType": media_type::OCI_MANIFEST, "size": 1, "artifactType": kind});
        descriptor["digest"] = types::Digest::of(name.as_bytes()).to_string().into();
        json!({"schemaVersion": 2, "mediaType": media_type::OCI_INDEX, "manifests": [descriptor]}).to_string()
    };
    let (first, second) = (page("a", "one"), page("b", "two"));
    let proxy = FaultProxy::start(&registry, move |asked| {
        if !asked.path.contains("/referrers/") {
            return Vec::new();
        }
        let mut headers = vec![("Content-Type", media_type::OCI_INDEX.to_owned())];
        let body = match asked.path.contains("last=") {
            true => second.clone(),
            false => {
                let next = format!(
                    "<{}&last=a>; rel=\"next\"",
                    asked.path.replace("?", "?x=1&") + if asked.path.contains('?') { "" } else { "?x=1" }
                );
                headers.push(("Link", next));
                first.clone()
            }
        };
        vec![Fault::Answer { status: 200, headers, body: body.into_bytes() }]
    });
    let remote = Remote::new(&format!("{}/app:1", proxy.host()).parse().unwrap(), None);
    let runtime = runtime();
    assert_eq!(runtime.block_on(remote.referrers(&subject, None)).unwrap().len(), 2);
    // If the registry does not filter, the client does.
    let found = runtime.block_on(remote.referrers(&subject, Some("two"))).unwrap();
    assert_eq!(found.iter().map(|found| found.artifact_type.as_deref()).collect::<Vec<_>>(), [Some("two")]);
}

/// The registry lacks some of the blobs beside the images of an index, or refuses them.
#[test]
fn missing_blobs_beside_an_image_are_left_out() {
    let Some(stores) = Stores::open() else { return };
    let (runtime, layout) = (runtime(), Layout::new());
    let image = layout.image("amd64", &[layout.layer("own", 100_000)]);
    layout.tag(&image, "own");
    let entry = |kind: &str, architecture: Option<&str>| {
        let mut entry = layout.blob(kind, format!("{kind} {architecture:?}").as_bytes());
        if let Some(architecture) = architecture {
            entry["platform"] = json!({"os": "linux", "architecture": architecture});
        }
        entry
    };
    let old = entry(media_type::DOCKER_SCHEMA1_SIGNED, Some("amd64"));
    let disks = [Some("arm64"), Some("amd64"), None].map(|platform| entry("application/x-disk", platform));
    let [disk_of_others, disk_of_ours, disk_of_all] = &disks;
    let denied = entry("application/x-denied", None);
    let children = [&old, &image, disk_of_others, disk_of_ours, disk_of_all, &denied];
    let index = layout.index(&children.map(Value::clone));
    let bytes = std::fs::read(layout.blob_path(&index)).expect("an index");
    let there = [digest_of(disk_of_all), digest_of(disk_of_others)];
    let denied_digest = digest_of(&denied);
    let bodies =
        [disk_of_all, disk_of_others].map(|disk| std::fs::read(layout.blob_path(disk)).expect("a blob"));

    let registry = Registry::start();
    registry.push(layout.path(), "own", "odd:own");
    let proxy = FaultProxy::start(&registry, move |asked| {
        let answer = |body: &[u8], kind: &str| {
            let headers = vec![("Content-Type", kind.to_owned())];
            vec![Fault::Answer { status: 200, headers, body: body.to_vec() }]
        };
        if asked.manifest() == Some("odd") {
            return answer(&bytes, media_type::OCI_INDEX);
        }
        if asked.blob() == Some(&*denied_digest) {
            return vec![Fault::Answer { status: 403, headers: Vec::new(), body: Vec::new() }];
        }
        let at = asked.blob().and_then(|blob| there.iter().position(|there| there == blob));
        at.map_or_else(Vec::new, |at| answer(&bodies[at], "application/octet-stream"))
    });
    let name = format!("{}/odd:odd", proxy.host());
    let pulled = runtime.block_on(stores.pull(&name)).unwrap();
    assert_eq!(pulled.target.digest.to_string(), digest_of(&index));
    let asked_for = |blob: &Value| {
        let digest = digest_of(blob);
        let is_of = |asked: &Asked| asked.blob() == Some(&*digest) || asked.manifest() == Some(&*digest);
        !proxy.requests(is_of).is_empty()
    };
    assert!(asked_for(disk_of_ours) && asked_for(disk_of_all) && asked_for(&denied));
    assert!(!asked_for(disk_of_others) && !asked_for(&old), "they are of no use here");
    let has = |blob: &Value| {
        let digest = digest_of(blob).parse().expect("a digest");
        stores.metadata.content(stores.caller()).info(&digest).is_ok()
    };
    assert!(has(disk_of_all) && !has(disk_of_ours) && !has(&denied));

    let to = |tag: &str| format!("{}/odd:{tag}", registry.host());
    let ours = || vec!["linux/amd64".parse().expect("a platform")];
    for (tag, scope) in [("whole", Scope::Whole), ("present", Scope::Present), ("only", Scope::Only(ours()))]
    {
        let (pushed, _) = runtime.block_on(push(&stores, &name, &to(tag), scope)).unwrap();
        assert_eq!(pushed.digest.to_string(), digest_of(&image), "{tag}");
    }
}

/// The image in a checkpoint may have nothing for the requested platforms.
#[test]
fn a_checkpoint_comes_and_goes_without_an_image_for_the_platform() {
    let Some(stores) = Stores::open() else { return };
    let (runtime, layout) = (runtime(), Layout::new());
    let images = ["arm64", "s390x"].map(|name| layout.image(name, &[layout.layer(name, 100_000)]));
    let base = layout.index(&images);
    layout.tag(&base, "base");
    let state = layout.blob("application/vnd.containerd.container.criu.checkpoint.criu.tar", b"state");
    let whole = layout.index(&[base.clone(), state.clone()]);
    let bytes = std::fs::read(layout.blob_path(&whole)).expect("an index");
    let (blob, body) = (digest_of(&state), std::fs::read(layout.blob_path(&state)).expect("a blob"));

    let registry = Registry::start();
    registry.push(layout.path(), "base", "frozen:base");
    let proxy = FaultProxy::start(&registry, move |asked| {
        let answer = |body: &[u8], kind: &str| {
            let headers = vec![("Content-Type", kind.to_owned())];
            vec![Fault::Answer { status: 200, headers, body: body.to_vec() }]
        };
        match (asked.manifest(), asked.blob()) {
            (Some("frozen"), _) => answer(&bytes, media_type::OCI_INDEX),
            (_, Some(asked)) if *asked == blob => answer(&body, "application/octet-stream"),
            _ => Vec::new(),
        }
    });
    let name = format!("{}/frozen:frozen", proxy.host());
    runtime.block_on(stores.pull(&name)).unwrap();
    let to = format!("{}/frozen:again", registry.host());
    let platforms =
        vec!["linux/amd64".parse().expect("a platform"), "linux/arm64".parse().expect("a platform")];
    runtime.block_on(push(&stores, &name, &to, Scope::Only(platforms.clone()))).unwrap();
    let children = |name: &str| -> Vec<String> {
        let inspect = ["inspect", "--raw", "--tls-verify=false", &format!("docker://{name}")];
        let raw = testkit::run(Command::new("skopeo").args(inspect)).ok().stdout;
        let index: Value = serde_json::from_str(&raw).unwrap();
        index["manifests"].as_array().unwrap().iter().map(digest_of).collect()
    };
    assert_eq!(children(&to), [digest_of(&state)], "nothing of the image is here");

    runtime.block_on(stores.pull_platform(&name, "linux/arm64")).unwrap();
    runtime.block_on(push(&stores, &name, &to, Scope::Only(platforms))).unwrap();
    assert_eq!(children(&to), [digest_of(&images[0]), digest_of(&state)]);
}

/// The selection for the requested platforms may be empty.
#[test]
fn a_checkpoint_of_another_platform_is_not_pushed_for_this_one() {
    let Some(stores) = Stores::open() else { return };
    let (runtime, layout) = (runtime(), Layout::new());
    let mut state = layout.blob("application/vnd.containerd.container.criu.checkpoint.criu.tar", b"state");
    state["platform"] = json!({"os": "linux", "architecture": "amd64"});
    let base = layout.image("amd64", &[layout.layer("base", 10_000)]);
    for (tag, children) in [("bare", vec![state.clone()]), ("whole", vec![base, state.clone()])] {
        layout.tag(&layout.index(&children), &format!("frozen.example/{tag}:1"));
    }
    transfer::import(&stores.metadata, &stores.caller(), Overlay::NAME, layout.path(), None).unwrap();
    let registry = Registry::start();
    for tag in ["bare", "whole"] {
        let name = format!("frozen.example/{tag}:1");
        let to = format!("{}/{tag}:1", registry.host());
        let of_others = vec!["linux/s390x".parse().expect("a platform")];
        let refused = runtime.block_on(push(&stores, &name, &to, Scope::Only(of_others))).unwrap_err();
        assert!(refused.is(ErrorKind::NotFound), "{tag}: {}", refused.chain());
        assert!(refused.chain().contains("linux/s390x"), "{tag}: {}", refused.chain());
        let ours = vec!["linux/amd64".parse().expect("a platform")];
        runtime.block_on(push(&stores, &name, &to, Scope::Only(ours))).unwrap();
    }
}

/// Each document is visited and sent once, however many indexes reference it; so are its layers.
#[test]
fn a_document_of_several_indexes_is_pushed_and_pulled_once() {
    let Some(stores) = Stores::open() else { return };
    let (runtime, layout) = (runtime(), Layout::new());
    let images = ["amd64", "arm64"].map(|name| layout.image(name, &[layout.layer(name, 10_000)]));
    let [first, second] = images.clone();
    let indexes = [layout.index(&[first.clone(), second.clone()]), layout.index(&[second, first])];
    layout.tag(&layout.index(&indexes), "twice.example/all:1");
    transfer::import(&stores.metadata, &stores.caller(), Overlay::NAME, layout.path(), None).unwrap();

    let registry = Registry::start();
    let proxy = FaultProxy::start(&registry, |_| Vec::new());
    let to = format!("{}/all:1", proxy.host());
    let (pushed, _) = runtime.block_on(push(&stores, "twice.example/all:1", &to, Scope::Whole)).unwrap();
    for document in images.iter().chain(&indexes) {
        let digest = digest_of(document);
        let asked = proxy.requests(|asked| asked.manifest() == Some(digest.as_str()));
        assert_eq!(asked.len(), 2, "{digest} is asked for, and sent");
    }

    let other = Stores::open().expect("we are root");
    let remote = Remote::new(&to.parse().unwrap(), None::<Credentials>);
    let mut request = other.request(remote, other.caller(), "linux/amd64".parse().unwrap());
    request.platforms = WantedPlatforms::First(usize::MAX);
    let (report, mut told) = tokio::sync::mpsc::channel(1024);
    let pulled = runtime.block_on(transfer::pull(&other.metadata, request, Some(report))).unwrap();
    assert_eq!(pulled.target.digest, pushed.digest);
    let mut layers = Vec::new();
    while let Some(progress) = told.blocking_recv() {
        if let Progress::Layers { layers: named, .. } = progress {
            layers.extend(named.into_iter().map(|layer| layer.digest));
        }
    }
    assert_eq!(layers.len(), images.len(), "{layers:?}");
}
