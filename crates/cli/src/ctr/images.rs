//! `ctr images`: image records, their content, and mounts of images.

use std::collections::BTreeSet;
use std::path::Path;

use api::engine::{Follow, ImageFollow, ImageStep};
use api::grpc::containers::ListContainersRequest;
use api::grpc::content::InfoRequest;
use api::grpc::images::images_client::ImagesClient;
use api::grpc::images::{
    CreateImageRequest, DeleteImageRequest, GetImageRequest, Image, ListImagesRequest, UpdateImageRequest,
};
use api::grpc::snapshots::{
    PrepareSnapshotRequest, RemoveSnapshotRequest, StatSnapshotRequest, UsageRequest, ViewSnapshotRequest,
};
use api::grpc::types::Descriptor as Wire;
use client::{Channel, parts};
use image::{Node, Platforms};
use prost_types::FieldMask;
use types::descriptor::media_type::{is_index, is_manifest};
use types::spec::image::{ExecConfig, Index, Manifest};
use types::{Context, Descriptor, Error, ErrorKind, Platform, Result, UnlessGone};

use super::command::{Call, Command, Flag, shown};
use super::connection::{Answer, Connection, error, present, service};
use super::registries::registry_flags;
use super::{containers, content, inspect, layers, snapshots, table, transfer};
use crate::output::{printable, said};

const SNAPSHOTTER: Flag = Flag::value("snapshotter", "the snapshotter [$CONTAINERD_SNAPSHOTTER]");

pub(super) const VERBS: &[Command] = &[
    Command::new(
        "convert",
        "[flags] <source_ref> <target_ref>",
        "convert an image: OCI media types, uncompressed layers, fewer platforms",
        &[
            Flag::switch("uncompress", "decompress layers"),
            Flag::switch("oci", "use OCI media types"),
            Flag::value("platform", "only these platforms"),
            Flag::switch("all-platforms", "all platforms, which must be present"),
        ],
        |call| Box::pin(convert(call)),
    ),
    Command::new(
        "check",
        "[flags] [<filter>, ...]",
        "check whether the content of images is complete",
        &[
            Flag::switch("quiet,q", "print only the names of images that are complete and unpacked"),
            SNAPSHOTTER,
        ],
        |call| Box::pin(check(call)),
    ),
    Command::new(
        "export",
        "[flags] <out> <image> ...",
        "write images to an archive",
        transfer::EXPORT_FLAGS,
        |call| Box::pin(transfer::export(call)),
    ),
    Command::new("import", "[flags] <in>", "import images from an archive", transfer::IMPORT_FLAGS, |call| {
        Box::pin(transfer::import(call))
    }),
    Command::new(
        "inspect|i",
        "<image> [flags]",
        "show the documents of an image as a tree",
        &[Flag::switch("content", "show labels and content too")],
        |call| Box::pin(inspect::inspect(call)),
    ),
    Command::new(
        "list|ls",
        "[flags] [<filter>, ...]",
        "list images",
        &[Flag::switch("quiet,q", "print only the names")],
        |call| Box::pin(list(call)),
    ),
    Command::new(
        "mount",
        "[flags] <ref> <target>",
        "mount an image",
        // As with containerd's, nothing is pulled; flags for registries are accepted for the sake of scripts.
        registry_flags![
            SNAPSHOTTER,
            Flag::switch("rw", "mount it writable"),
            Flag::value("platform", "the image for this platform"),
            transfer::SYNC_FS,
            Flag::value("label", "no effect"),
        ],
        |call| Box::pin(mount(call)),
    ),
    Command::new(
        "unmount",
        "[flags] <target>",
        "unmount an image",
        registry_flags![
            SNAPSHOTTER,
            Flag::switch("rm", "also remove its snapshot"),
            Flag::value("label", "no effect"),
        ],
        |call| Box::pin(unmount(call)),
    ),
    Command::new("pull", "[flags] <ref>", "pull an image", transfer::PULL_FLAGS, |call| {
        Box::pin(transfer::pull(call))
    }),
    Command::new("push", "[flags] <remote> [<local>]", "push an image", transfer::PUSH_FLAGS, |call| {
        Box::pin(transfer::push(call))
    }),
    Command::new(
        "prune",
        "[flags]",
        "remove images that no container uses",
        &[Flag::switch("all", "remove them; without it nothing is removed")],
        |call| Box::pin(prune(call)),
    ),
    Command::new(
        "delete|del|remove|rm",
        "[flags] <ref> [<ref>, ...]",
        "remove names of images",
        &[Flag::switch("sync", "wait until the content that only they reference is removed")],
        |call| Box::pin(remove(call)),
    ),
    Command::new(
        "tag",
        "[flags] <source_ref> <target_ref> [<target_ref>, ...]",
        "give an image further names",
        &[
            Flag::switch("local", "do not replace existing names, unless --force is given"),
            Flag::switch("force", "with --local, replace existing names"),
            Flag::switch("skip-reference-check", "no effect: names are not checked"),
        ],
        |call| Box::pin(tag(call)),
    ),
    Command::new(
        "label",
        "[flags] <name> [<key>=<value>, ...]",
        "set and clear labels",
        &[Flag::switch("replace-all,r", "remove all other labels")],
        |call| Box::pin(label(call)),
    ),
    Command::new(
        "usage",
        "[flags] <ref>",
        "show the disk usage of an image's snapshots",
        &[SNAPSHOTTER],
        |call| Box::pin(usage(call)),
    ),
];

pub(super) fn client(connection: &Connection) -> ImagesClient<Channel> {
    service!(connection, images::images_client::ImagesClient)
}

pub(super) async fn get(connection: &Connection, name: &str) -> Result<Image> {
    let request = connection.request(GetImageRequest { name: name.to_owned() })?;
    present(client(connection).get(request).await.answer()?.image, "image")
}

async fn listed(call: &Call, connection: &Connection) -> Result<Vec<Image>> {
    let request = connection.request(ListImagesRequest { filters: call.words().to_vec() })?;
    let mut images = client(connection).list(request).await.answer()?.images;
    images.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(images)
}

/// The names of images. Lists are decoded lazily, as there may be many.
async fn names(call: &Call, connection: &Connection) -> Result<Vec<String>> {
    let request = connection.request(ListImagesRequest { filters: call.words().to_vec() })?;
    let images = parts::list(connection.channel(), request).await.map_err(|status| error(&status))?;
    let names = images.map(|image| image.map(|image| image.name).map_err(|status| error(&status)));
    let mut names = names.collect::<Result<Vec<String>>>()?;
    names.sort_unstable();
    Ok(names)
}

async fn list(call: Call) -> Result<u8> {
    let connection = call.connect().await?;
    if call.is("quiet") {
        table::lines(names(&call, &connection).await?);
        return Ok(0);
    }
    let mut rows = Vec::new();
    for image in listed(&call, &connection).await? {
        let target = image.target.clone().unwrap_or_default();
        let tree = Tree::of(&connection, &target, &Platform::host()).await?;
        let platforms: BTreeSet<String> = tree.platforms.iter().map(ToString::to_string).collect();
        let or_dash = |text: String| if text.is_empty() { "-".to_owned() } else { text };
        rows.push(vec![
            image.name,
            target.media_type,
            target.digest,
            table::binary_size(tree.size()),
            or_dash(platforms.into_iter().collect::<Vec<_>>().join(",")),
            or_dash(shown(&image.labels)),
        ]);
    }
    table::print(&["REF", "TYPE", "DIGEST", "SIZE", "PLATFORMS", "LABELS"], &rows);
    Ok(0)
}

/// The content of an image for one platform, as far as it is present.
pub(super) struct Tree {
    /// The target, the documents between it and the manifest, the config, and the layers.
    needed: Vec<Descriptor>,
    missing: usize,
    missing_bytes: i64,
    /// The platforms of all manifests of the index, or that of the config.
    platforms: Vec<Platform>,
    /// The part of the config about the process, and the chain id of the layers.
    pub(super) config: Option<ExecConfig>,
    pub(super) chain_id: Option<String>,
}

impl Tree {
    pub(super) async fn of(connection: &Connection, target: &Wire, platform: &Platform) -> Result<Tree> {
        let mut tree = Tree {
            needed: Vec::new(),
            missing: 0,
            missing_bytes: 0,
            platforms: Vec::new(),
            config: None,
            chain_id: None,
        };
        let size = u64::try_from(target.size).unwrap_or(0);
        let mut next = Some(Descriptor::new(&target.media_type, target.digest.parse()?, size));
        while let Some(descriptor) = next.take() {
            let kind = descriptor.media_type.clone();
            let Some(bytes) =
                tree.take(connection, descriptor, is_index(&kind) || is_manifest(&kind)).await?
            else {
                break;
            };
            match Node::parse(&kind, &bytes)? {
                Node::Index(index) => {
                    let images = index.manifests.iter().filter(|entry| !image::is_attestation(entry));
                    tree.platforms.extend(images.filter_map(|entry| entry.platform.clone()));
                    let told = platforms_of_index(connection, &index).await?;
                    next = image::choose(&index, platform, &told).ok().cloned();
                }
                Node::Manifest(manifest) => {
                    tree.take_manifest(connection, &manifest).await?;
                }
            }
        }
        Ok(tree)
    }

    async fn take_manifest(&mut self, connection: &Connection, manifest: &Manifest) -> Result<()> {
        let bytes = self.take(connection, manifest.config.clone(), true).await?;
        for layer in &manifest.layers {
            self.take(connection, layer.clone(), false).await?;
        }
        let Some(bytes) = bytes else { return Ok(()) };
        // An artifact's config may have any content.
        let Ok(config) = image::parse_config(&bytes, manifest.layers.len()) else { return Ok(()) };
        if self.platforms.is_empty() {
            self.platforms.push(config.platform.clone());
        }
        self.chain_id = image::chain_ids(&config.rootfs.diff_ids).last().map(ToString::to_string);
        self.config = Some(config.config.unwrap_or_default());
        Ok(())
    }

    /// Adds a needed blob. Returns its content if it is a document and present.
    async fn take(
        &mut self,
        connection: &Connection,
        blob: Descriptor,
        read: bool,
    ) -> Result<Option<Vec<u8>>> {
        let digest = blob.digest.to_string();
        let size = i64::try_from(blob.size).unwrap_or(i64::MAX);
        self.needed.push(blob);
        let there = if read {
            content::read(connection, &digest).await.map(Some)
        } else {
            let request = connection.request(InfoRequest { digest })?;
            service!(connection, content::content_client::ContentClient)
                .info(request)
                .await
                .answer()
                .map(|_| None)
        };
        match there {
            Err(error) if error.is(ErrorKind::NotFound) => {
                self.missing += 1;
                self.missing_bytes += size;
                Ok(None)
            }
            there => there,
        }
    }

    fn size(&self) -> i64 {
        self.needed.iter().map(|blob| i64::try_from(blob.size).unwrap_or(0)).sum()
    }
}

async fn check(call: Call) -> Result<u8> {
    let connection = call.connect().await?;
    let snapshotter = snapshots::of_images(&call, &connection).await?;
    let mut rows = Vec::new();
    for image in listed(&call, &connection).await? {
        let target = image.target.clone().unwrap_or_default();
        let tree = Tree::of(&connection, &target, &Platform::host()).await?;
        let (all, there) = (tree.needed.len(), tree.needed.len() - tree.missing);
        let (size, here) = (tree.size(), tree.size() - tree.missing_bytes);
        let unpacked = match &tree.chain_id {
            Some(key) => is_there(&connection, &snapshotter, key).await?,
            None => false,
        };
        let status = match tree.missing {
            0 => "complete",
            missing if missing == all => "unavailable",
            _ => "incomplete",
        };
        if call.is("quiet") {
            if tree.missing == 0 && unpacked {
                table::lines([&image.name]);
            }
            continue;
        }
        rows.push(vec![
            image.name,
            target.media_type,
            target.digest,
            // As with containerd's, the target is not counted.
            format!("{status} ({}/{})", there.saturating_sub(1), all - 1),
            format!("{}/{}", table::binary_size(here), table::binary_size(size)),
            unpacked.to_string(),
        ]);
    }
    if !call.is("quiet") {
        table::print(&["REF", "TYPE", "DIGEST", "STATUS", "SIZE", "UNPACKED"], &rows);
    }
    Ok(0)
}

pub(super) async fn is_there(connection: &Connection, snapshotter: &str, key: &str) -> Result<bool> {
    let request = StatSnapshotRequest { snapshotter: snapshotter.to_owned(), key: key.to_owned() };
    let found = snapshots::client(connection).stat(connection.request(request)?).await.answer();
    Ok(found.unless_gone()?.is_some())
}

/// Converts an image, by Hoist's own service.
async fn convert(call: Call) -> Result<u8> {
    let (connection, source) = (call.connect().await?, call.word(0, "source ref")?);
    get(&connection, source).await?;
    let follow = ImageFollow::Convert {
        namespace: Some(connection.namespace),
        source: source.to_owned(),
        target: call.word(1, "target ref")?.to_owned(),
        compression: call.is("uncompress").then(|| "none".to_owned()),
        format: call.is("oci").then(|| "oci".to_owned()),
        platforms: call.values("platform").to_vec(),
        all_platforms: call.is("all-platforms"),
    };
    let mut answers = call.engine().await?.follow(&Follow::Image(follow)).await?;
    while let Some(step) = answers.next::<ImageStep>().await? {
        if let ImageStep::Done { answer } = step {
            table::lines(answer["Digest"].as_str());
            return Ok(0);
        }
    }
    Err(Error::unavailable("the daemon stopped in the middle of the work"))
}

async fn tag(call: Call) -> Result<u8> {
    let connection = call.connect().await?;
    let source = get(&connection, call.word(0, "source ref")?).await?;
    for name in call.words_from(1, "target ref")? {
        let mut image = Image { name: name.clone(), ..source.clone() };
        // As the daemon's transfer service does, which containerd's `ctr` uses unless `--local` is given: an existing
        // name is replaced, and labels are not copied. Some labels would have the collector remove the new image with
        // the source, or no longer follow its references.
        if !call.is("local") {
            image.labels.clear();
        }
        put(&connection, image, call.is("force") || !call.is("local")).await?;
        table::lines([name]);
    }
    Ok(0)
}

/// Creates an image record; with `replace`, updates one that exists.
pub(super) async fn put(connection: &Connection, image: Image, replace: bool) -> Result<()> {
    let create = CreateImageRequest { image: Some(image.clone()), source_date_epoch: None };
    match client(connection).create(connection.request(create)?).await.answer() {
        Err(error) if error.is(ErrorKind::AlreadyExists) && replace => {
            let update = UpdateImageRequest { image: Some(image), ..UpdateImageRequest::default() };
            client(connection).update(connection.request(update)?).await.answer().map(drop)
        }
        created => created.map(drop),
    }
}

async fn remove(call: Call) -> Result<u8> {
    let connection = call.connect().await?;
    let mut code = 0;
    let names = call.words_from(0, "image")?;
    for (at, name) in names.iter().enumerate() {
        // One collection, with the last image, is enough.
        let sync = call.is("sync") && at + 1 == names.len();
        let request = DeleteImageRequest { name: name.clone(), sync, target: None };
        match client(&connection).delete(connection.request(request)?).await.answer() {
            Ok(()) => table::lines([name]),
            Err(error) if error.is(ErrorKind::NotFound) => eprintln!("ctr: {name}: image not found"),
            Err(error) => {
                eprintln!("ctr: unable to delete {name}: {}", said(&error));
                code = 1;
            }
        }
    }
    Ok(code)
}

/// As containerd's, reports each step on standard error, and continues if an image cannot be removed.
async fn prune(call: Call) -> Result<u8> {
    if !call.is("all") {
        eprintln!("ctr: no images pruned: images prune requires --all");
        return Ok(0);
    }
    let connection = call.connect().await?;
    // List images before containers: then an image that is created meanwhile, or used by a new container, stays.
    let mut names = names(&call, &connection).await?;
    let request = connection.request(ListContainersRequest::default())?;
    let used = containers::client(&connection).list(request).await.answer()?.containers;
    let used: BTreeSet<String> = used.into_iter().map(|container| container.image).collect();
    names.retain(|name| !used.contains(name));
    for (at, name) in names.iter().enumerate() {
        // One collection, with the last image, is enough.
        let sync = at + 1 == names.len();
        let request = DeleteImageRequest { name: name.clone(), sync, target: None };
        match client(&connection).delete(connection.request(request)?).await.answer().unless_gone() {
            Ok(Some(())) => eprintln!("ctr: deleted image: {}", printable(name)),
            Ok(None) => {}
            Err(error) => eprintln!("ctr: failed to delete image {}: {}", printable(name), said(&error)),
        }
    }
    Ok(0)
}

async fn label(call: Call) -> Result<u8> {
    let connection = call.connect().await?;
    let name = call.word(0, "image")?.to_owned();
    let labels = Call::labels(&call.words()[1..]);
    let paths = match call.is("replace-all") {
        true => vec!["labels".to_owned()],
        false => labels.keys().map(|key| format!("labels.{key}")).collect(),
    };
    let request = UpdateImageRequest {
        image: Some(Image { name, labels, ..Image::default() }),
        update_mask: Some(FieldMask { paths }),
        source_date_epoch: None,
    };
    let updated = client(&connection).update(connection.request(request)?).await.answer()?;
    table::lines([shown(&present(updated.image, "image")?.labels)]);
    Ok(0)
}

/// Prints the usage of each snapshot, from the topmost down. As with containerd's, the namespace's label does not
/// choose the snapshotter.
async fn usage(call: Call) -> Result<u8> {
    let connection = call.connect().await?;
    let name = call.word(0, "image")?;
    let image =
        get(&connection, name).await.context(|| format!("failed to ensure if image {name} exists"))?;
    let tree = Tree::of(&connection, &image.target.unwrap_or_default(), &Platform::host()).await?;
    let snapshotter = snapshots::named(&call);
    let mut key = tree.chain_id.unwrap_or_default();
    if key.is_empty() || !is_there(&connection, &snapshotter, &key).await? {
        return Err(Error::failed_precondition(format!(
            "image {name} isn't unpacked in snapshotter {snapshotter}"
        )));
    }
    let mut client = snapshots::client(&connection);
    let mut rows = Vec::new();
    while !key.is_empty() {
        let request = UsageRequest { snapshotter: snapshotter.clone(), key: key.clone() };
        let usage = client.usage(connection.request(request)?).await.answer()?;
        let request = StatSnapshotRequest { snapshotter: snapshotter.clone(), key: key.clone() };
        let info = client.stat(connection.request(request)?).await.answer()?.info;
        rows.push(vec![key, table::binary_size(usage.size), usage.inodes.to_string()]);
        key = present(info, "snapshot")?.parent;
    }
    table::print(&["KEY", "SIZE", "INODES"], &rows);
    Ok(0)
}

/// The platform on the command line, or this machine's.
pub(super) fn platform(call: &Call) -> Result<Platform> {
    call.value("platform").filter(|text| !text.is_empty()).map_or_else(|| Ok(Platform::host()), str::parse)
}

async fn mount(call: Call) -> Result<u8> {
    let connection = call.connect().await?;
    let (name, target) = (call.word(0, "image")?, call.word(1, "target")?);
    let image = get(&connection, name).await?;
    let (found, platform) = (image.target.unwrap_or_default(), platform(&call)?);
    let tree = Tree::of(&connection, &found, &platform).await?;
    let parent = tree.chain_id.ok_or_else(|| {
        Error::failed_precondition(format!("image {name} has no files for this platform; pull it first"))
    })?;
    let snapshotter = snapshots::of_images(&call, &connection).await?;
    layers::unpack_if_needed(&connection, &snapshotter, &found, &platform, &parent).await?;
    let (key, labels) = (target.to_owned(), snapshots::root_label());
    let mounts = if call.is("rw") {
        let request =
            PrepareSnapshotRequest { snapshotter: snapshotter.clone(), key, parent: parent.clone(), labels };
        snapshots::client(&connection).prepare(connection.request(request)?).await.answer()?.mounts
    } else {
        let request =
            ViewSnapshotRequest { snapshotter: snapshotter.clone(), key, parent: parent.clone(), labels };
        snapshots::client(&connection).view(connection.request(request)?).await.answer()?.mounts
    };
    let mounted = linux::mount::mount_all(&own_mounts(mounts), Path::new(target));
    if let Err(error) = mounted {
        let request = RemoveSnapshotRequest { snapshotter, key: target.to_owned() };
        // The first error is returned.
        let _ = snapshots::client(&connection).remove(connection.request(request)?).await;
        return Err(error);
    }
    table::lines([&parent, target]);
    Ok(0)
}

pub(super) fn own_mounts(mounts: Vec<api::grpc::types::Mount>) -> Vec<types::Mount> {
    let own = |mount: api::grpc::types::Mount| types::Mount {
        kind: mount.r#type,
        source: mount.source,
        target: mount.target,
        options: mount.options,
    };
    mounts.into_iter().map(own).collect()
}

async fn unmount(call: Call) -> Result<u8> {
    let connection = call.connect().await?;
    let target = call.word(0, "target")?;
    linux::mount::unmount_all(Path::new(target))?;
    if call.is("rm") {
        let snapshotter = snapshots::of_images(&call, &connection).await?;
        let request = RemoveSnapshotRequest { snapshotter, key: target.to_owned() };
        let removed = snapshots::client(&connection).remove(connection.request(request)?).await.answer();
        removed.context(|| format!("remove the snapshot {target}"))?;
    }
    table::lines([target]);
    Ok(0)
}

/// The platforms of manifests whose descriptors do not have them, read from their configs as far as these are present.
pub(super) async fn platforms_of_index(connection: &Connection, index: &Index) -> Result<Platforms> {
    let look = async |digest: String| content::read(connection, &digest).await.unless_gone();
    Platforms::gather(index, |child| look(child.digest.to_string())).await
}
