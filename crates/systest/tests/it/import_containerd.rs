//! `import-containerd`: takes over what Debian's containerd has, while neither daemon runs.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use api::grpc::content::content_client::ContentClient;
use api::grpc::content::{ListContentRequest, WriteAction, WriteContentRequest};
use api::grpc::images::ListImagesRequest;
use api::grpc::images::images_client::ImagesClient;
use api::grpc::leases::leases_client::LeasesClient;
use api::grpc::leases::{
    CreateRequest, DeleteRequest, DeleteResourceRequest, ListRequest, ListResourcesRequest, Resource,
};
use api::grpc::snapshots::PrepareSnapshotRequest;
use api::grpc::snapshots::snapshots_client::SnapshotsClient;
use testkit::{Containerd, Daemon, Finished, images, run};

use crate::api::walk;
use crate::typed::ask;

fn import(daemon: &Daemon, source: &Path, more: &[&str]) -> Finished {
    let mut command = daemon.command(["system", "import-containerd"]);
    command.arg(source).args(["--root".as_ref(), daemon.root().as_os_str()]);
    command.args(["--state".as_ref(), daemon.state().as_os_str()]).args(more);
    command.args(["--config".as_ref(), daemon.dir().join("config.toml").as_os_str()]);
    run(&mut command)
}

/// The size, times and other metadata of every file below a directory, by which a change would be seen.
fn state(dir: &Path) -> BTreeMap<PathBuf, (u64, i64, i64, u32, u64)> {
    let mut found = BTreeMap::new();
    let mut pending = vec![dir.to_owned()];
    while let Some(dir) = pending.pop() {
        for entry in fs::read_dir(&dir).expect("a readable folder") {
            let path = entry.expect("a readable folder").path();
            let metadata = fs::symlink_metadata(&path).expect("it is there");
            let stamp = metadata.mtime() * 1_000_000_000 + metadata.mtime_nsec();
            let changed = metadata.ctime() * 1_000_000_000 + metadata.ctime_nsec();
            found.insert(path.clone(), (metadata.len(), stamp, changed, metadata.mode(), metadata.ino()));
            if metadata.is_dir() {
                pending.push(path);
            }
        }
    }
    found
}

#[test]
fn images_of_debians_containerd_run_here_and_its_root_is_as_it_was() {
    let Some(mut theirs) = Containerd::start() else { return };
    let archive = images::busybox_archive().display().to_string();
    theirs.ctr(["images", "import", &archive]).ok();
    let name = theirs.ctr(["images", "ls", "-q"]).ok().text().to_owned();
    theirs.ctr(["images", "label", &name, "team=blue"]).ok();
    theirs.ctr(["namespaces", "create", "tenant", "owner=me"]).ok();
    theirs.ctr(["-n", "tenant", "images", "import", &archive]).ok();
    theirs.ctr(["-n", "tenant", "images", "tag", &name, "second:1"]).ok();
    theirs.ctr(["containers", "create", &name, "stays", "true"]).ok();
    theirs.ctr(["leases", "create", "--id", "held", "--expires", "24h"]).ok();
    let listed = |words: &str| {
        let mut lines: Vec<String> =
            words.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
        lines.sort();
        lines
    };
    let images = listed(&theirs.ctr(["images", "ls"]).ok().stdout);
    let tenants = listed(&theirs.ctr(["-n", "tenant", "images", "ls"]).ok().stdout);
    let blobs = listed(&theirs.ctr(["content", "ls", "-q"]).ok().stdout);

    let mut daemon = Daemon::start();
    daemon.terminate();
    let running = import(&daemon, &theirs.root(), &[]).expect_code(1);
    assert!(running.stderr.contains("stop it first"), "{running}");
    theirs.stop();
    let before = state(&theirs.root());
    let told = import(&daemon, &theirs.root(), &["--dry-run"]).ok();
    assert!(told.stdout.contains("namespace tenant: 2 images") && told.stdout.contains("second:1"), "{told}");
    let imported = import(&daemon, &theirs.root(), &[]).ok();
    assert!(
        imported.stdout.contains("took over 3 images") && imported.stdout.contains("left 1 containers"),
        "{imported}"
    );
    // A second import takes over nothing.
    let again = import(&daemon, &theirs.root(), &[]).ok();
    assert!(again.stdout.contains("took over 0 images, 0 blobs"), "{again}");
    assert_eq!(state(&theirs.root()), before, "nothing of the source was touched");

    daemon.start_again();
    assert_eq!(listed(&daemon.ctr(["images", "ls"]).ok().stdout), images);
    assert_eq!(listed(&daemon.ctr(["-n", "tenant", "images", "ls"]).ok().stdout), tenants);
    assert!(daemon.ctr(["namespaces", "ls"]).ok().stdout.contains("owner=me"));
    assert!(daemon.ctr(["leases", "ls", "-q"]).ok().stdout.contains("held"));
    // A blob without references is removed by the next garbage collection.
    let here = listed(&daemon.ctr(["content", "ls", "-q"]).ok().stdout);
    assert!(here.iter().all(|digest| blobs.contains(digest)) && !here.is_empty(), "{here:?}\n{blobs:?}");
    daemon.hoist(["run", "--rm", "--network", "none", &name, "echo", "taken over"]).ok();
}

/// The records without their times of change, and the resources of all leases.
async fn records(socket: &Path) -> Vec<String> {
    let channel = client::channel(socket).await.expect("the daemon listens");
    let mut found = Vec::new();
    let mut content = ContentClient::new(channel.clone());
    let blobs = walk::all(content.list(ask(ListContentRequest::default()))).await;
    for blob in blobs.expect("blobs").into_inner().into_iter().flat_map(|some| some.info) {
        // containerd 1.6 does not say when a blob was changed.
        found.push(format!("blob {} {} {:?}", blob.digest, blob.size, blob.created_at));
    }
    let images = ImagesClient::new(channel.clone()).list(ask(ListImagesRequest::default())).await;
    for image in images.expect("images").into_inner().images {
        found.push(format!("image {} {:?} {:?}", image.name, image.created_at, image.updated_at));
    }
    let mut leases = LeasesClient::new(channel);
    for lease in leases.list(ask(ListRequest::default())).await.expect("leases").into_inner().leases {
        let request = ask(ListResourcesRequest { id: lease.id.clone() });
        let held = leases.list_resources(request).await.expect("resources").into_inner().resources;
        let held: Vec<_> = held.into_iter().filter(|one| one.r#type == "content").collect();
        found.push(format!("lease {} {:?} {held:?}", lease.id, lease.created_at));
    }
    found.sort();
    found
}

/// A blob that only a lease holds is removed by the next garbage collection if the lease lacks it.
#[test]
fn what_a_lease_holds_is_held_here_also_when_half_of_it_came_before() {
    if !testkit::is_root("snapshots") {
        return;
    }
    let Some(mut theirs) = Containerd::start() else { return };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    theirs.ctr(["images", "import", &images::busybox_archive().display().to_string()]).ok();
    let name = theirs.ctr(["images", "ls", "-q"]).ok().text().to_owned();
    theirs.ctr(["images", "label", &name, "changed=later"]).ok();
    let collect = async |socket: &Path| {
        let mut leases = LeasesClient::new(client::channel(socket).await.expect("the daemon listens"));
        let create = CreateRequest { id: "short".into(), ..CreateRequest::default() };
        leases.create(ask(create)).await.expect("a lease");
        leases.delete(ask(DeleteRequest { id: "short".into(), sync: true })).await.expect("a collection");
    };
    let text = "held by its lease alone";
    let digest = types::Digest::of(text.as_bytes()).to_string();
    let recorded = runtime.block_on(async {
        let channel = client::channel(&theirs.socket()).await.expect("containerd listens");
        let mut leases = LeasesClient::new(channel.clone());
        let create = CreateRequest { id: "alone".into(), ..CreateRequest::default() };
        leases.create(ask(create)).await.expect("a lease");
        let write = WriteContentRequest {
            action: WriteAction::Commit.into(),
            r#ref: "alone".into(),
            total: text.len() as i64,
            expected: digest.clone(),
            data: text.into(),
            ..WriteContentRequest::default()
        };
        let mut request = ask(tokio_stream::iter([write]));
        request.metadata_mut().insert(api::grpc::LEASE_KEY, "alone".parse().expect("plain text"));
        let mut content = ContentClient::new(channel.clone());
        walk::all(content.write(request)).await.expect("a blob");
        let mut request = ask(PrepareSnapshotRequest {
            snapshotter: "native".into(),
            key: "k".into(),
            ..Default::default()
        });
        request.metadata_mut().insert(api::grpc::LEASE_KEY, "alone".parse().expect("plain text"));
        SnapshotsClient::new(channel).prepare(request).await.expect("a tree");
        collect(&theirs.socket()).await;
        records(&theirs.socket()).await
    });
    theirs.stop();

    let mut daemon = Daemon::start();
    daemon.terminate();
    let told = import(&daemon, &theirs.root(), &["--dry-run"]).ok();
    assert!(told.stdout.contains("1 snapshots and ingests that leases hold"), "{told}");
    let imported = import(&daemon, &theirs.root(), &[]).ok();
    assert!(imported.stdout.contains("left 1 snapshots and ingests that leases hold"), "{imported}");
    daemon.start_again();
    let socket = daemon.socket();
    runtime.block_on(collect(&socket));
    assert_eq!(runtime.block_on(records(&socket)), recorded);

    // As an interrupted import leaves it: a lease without its resources.
    runtime.block_on(async {
        let mut leases = LeasesClient::new(client::channel(&socket).await.expect("the daemon listens"));
        let resource = Some(Resource { r#type: "content".into(), id: digest.clone() });
        let request = DeleteResourceRequest { id: "alone".into(), resource };
        leases.delete_resource(ask(request)).await.expect("it is taken from the lease");
        collect(&socket).await;
    });
    assert!(!daemon.ctr(["content", "ls", "-q"]).ok().stdout.contains(&digest));
    daemon.terminate();
    import(&daemon, &theirs.root(), &[]).ok();
    daemon.start_again();
    runtime.block_on(collect(&socket));
    assert_eq!(runtime.block_on(records(&socket)), recorded);
}

#[test]
fn what_is_broken_is_told_and_the_rest_is_taken_over() {
    let Some(mut theirs) = Containerd::start() else { return };
    let archive = images::busybox_archive().display().to_string();
    theirs.ctr(["images", "import", &archive]).ok();
    let name = theirs.ctr(["images", "ls", "-q"]).ok().text().to_owned();
    let target = theirs.ctr(["images", "ls"]).ok();
    let target = target
        .stdout
        .split_whitespace()
        .find(|word| word.starts_with("sha256:"))
        .expect("a digest")
        .to_owned();
    theirs.stop();
    let blobs = theirs.root().join("io.containerd.content.v1.content/blobs/sha256");
    let manifest = blobs.join(target.trim_start_matches("sha256:"));
    let mut bytes = fs::read(&manifest).expect("the blob is there");
    bytes[10] ^= 1;
    fs::remove_file(&manifest).expect("a folder of ours");
    fs::write(&manifest, bytes).expect("a folder of ours");

    let mut daemon = Daemon::start();
    daemon.terminate();
    let imported = import(&daemon, &theirs.root(), &[]).expect_code(1);
    for words in [
        &*format!("blob {target}: its bytes are not those of its digest"),
        &*format!("image {name}: its target was not taken over"),
        "2 records of",
    ] {
        assert!(imported.stderr.contains(words), "{words}\n{imported}");
    }
    assert!(imported.stdout.contains("took over 0 images"), "{imported}");
    daemon.start_again();
    assert!(daemon.ctr(["content", "active"]).ok().text().lines().count() <= 1, "nothing half is left");

    let nothing = import(&daemon, Path::new("/var/tmp"), &[]).expect_code(1);
    assert!(nothing.stderr.contains("/var/tmp is no root of containerd's"), "{nothing}");
}

/// A blob is missing, or is shorter than its descriptor says.
#[test]
fn an_image_that_lacks_a_blob_is_left() {
    for is_missing in [true, false] {
        let Some(mut theirs) = Containerd::start() else { return };
        theirs.ctr(["images", "import", &images::busybox_archive().display().to_string()]).ok();
        let name = theirs.ctr(["images", "ls", "-q"]).ok().text().to_owned();
        theirs.stop();
        let blobs = theirs.root().join("io.containerd.content.v1.content/blobs/sha256");
        let files =
            fs::read_dir(&blobs).expect("a folder of ours").map(|entry| entry.expect("a file").path());
        let layer = files.max_by_key(|path| fs::metadata(path).expect("it is there").len()).expect("a layer");
        let bytes = fs::read(&layer).expect("the blob is there");
        fs::remove_file(&layer).expect("a folder of ours");
        if !is_missing {
            fs::write(&layer, &bytes[..100]).expect("a folder of ours");
        }

        let mut daemon = Daemon::start();
        daemon.terminate();
        let imported = import(&daemon, &theirs.root(), &[]).expect_code(1);
        let digest = layer.file_name().expect("a digest").display();
        for words in [
            &*format!("image {name}: it lacks blob sha256:{digest}, which was not taken over"),
            if is_missing { "its bytes are missing" } else { "has 100 bytes, and its record says" },
            "2 records of",
        ] {
            assert!(imported.stderr.contains(words), "{words}\n{imported}");
        }
        assert!(imported.stdout.contains("took over 0 images"), "{imported}");
        daemon.start_again();
        assert!(daemon.ctr(["content", "active"]).ok().text().lines().count() <= 1, "nothing half is left");
        daemon.terminate();

        // Once the blob is complete, the image is imported as well.
        fs::write(&layer, &bytes).expect("a folder of ours");
        let imported = import(&daemon, &theirs.root(), &[]).ok();
        // Blobs that were imported without the image may be removed by then.
        assert!(imported.stdout.contains("took over 1 images"), "{imported}");
    }
}
