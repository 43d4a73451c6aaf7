//! Checkpoints of tasks, stored as blobs in containerd's formats.
//!
//! ```text
//! Tasks.Checkpoint ─▶ criu dumps to ROOT/checkpoints/taken/RANDOM ─▶ tar ─▶ content store, with the container's spec
//! Tasks.Create ─▶ content store ─▶ untar to ROOT/checkpoints/restored/NS/ID ─▶ the shim restores at the task's start
//! ```
//!
//! A restored task may need its images until it ends, so they are removed with it; the next daemon removes what a crash
//! left. They are below the root directory, because the state directory may be a tmpfs and the dumped memory would not
//! fit.

use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use api::shim::runc::{CheckpointOptions, Options};
use api::shim::unpack;
use diff::{ApplyOptions, Compression, Limits, Trees, Whiteouts};
use metadata::{Caller, Metadata};
use prost::Message;
use prost_types::Any;
use task::Shims;
use transfer::{LayerRequest, store_layer};
use types::descriptor::media_type;
use types::{
    ContainerId, Context, Descriptor, Digest, Error, ErrorKind, IngestRef, Labels, Mount, Namespace, Opaque,
    Result,
};

use crate::identity;

/// The images that criu dumped, as an uncompressed tar.
const IMAGES: &str = media_type::CHECKPOINT;
/// The container's spec: an encoded `google.protobuf.Any`.
const SPEC: &str = media_type::CHECKPOINT_CONFIG;
/// Annotation by which a client names a directory that has the images.
const FROM_PATH: &str = "RestoreFromPath";

#[derive(Clone)]
pub(crate) struct Checkpoints {
    metadata: Metadata,
    /// `ROOT/checkpoints`
    root: PathBuf,
}

/// A directory that is removed on drop.
pub(crate) struct Folder(PathBuf);

impl Folder {
    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if let Err(error) = remove(&self.0) {
            tracing::warn!("{}", error.chain());
        }
    }
}

impl Checkpoints {
    pub(crate) fn new(metadata: Metadata, root: &Path) -> Checkpoints {
        Checkpoints { metadata, root: root.join("checkpoints") }
    }

    /// Removes what no task needs, left by a crash. Called before any call is served.
    pub(crate) fn sweep(&self, shims: &Shims) -> Result<()> {
        remove(&self.root.join("taken"))?;
        let restored = self.root.join("restored");
        for namespace in names(&restored)? {
            for id in names(&restored.join(&namespace))? {
                let key = (Namespace::new(&namespace), ContainerId::new(&id));
                let (Ok(own), Ok(task)) = key else { continue };
                if !shims.has(&own, &task) {
                    remove(&restored.join(&namespace).join(&id))?;
                }
            }
        }
        Ok(())
    }

    /// A new empty directory for a checkpoint.
    pub(crate) fn folder(&self) -> Result<Folder> {
        let path = self.root.join("taken").join(identity::random_uuid()?);
        create(&path)?;
        Ok(Folder(path))
    }

    /// Stores the images in a directory as a blob, and the spec as another.
    pub(crate) fn store(&self, caller: &Caller, images: &Path, spec: Opaque) -> Result<Vec<Descriptor>> {
        let bind = Mount {
            kind: "bind".into(),
            source: images.display().to_string(),
            target: String::new(),
            options: vec!["bind".into(), "ro".into()],
        };
        let request = LayerRequest {
            media_type: IMAGES.into(),
            compression: Compression::None,
            reference: None,
            labels: Labels::new(),
            source_date_epoch: None,
        };
        let tar = Trees::open(&[], &[bind])
            .and_then(|trees| store_layer(&self.metadata, caller, &trees, request))
            .context(|| "store the images of the checkpoint")?;
        let spec = Any { type_url: spec.type_url, value: spec.value }.encode_to_vec();
        let spec = self.store_bytes(caller, &spec).context(|| "store the spec of the checkpoint")?;
        Ok(vec![tar.descriptor, spec])
    }

    fn store_bytes(&self, caller: &Caller, bytes: &[u8]) -> Result<Descriptor> {
        let descriptor = Descriptor::new(SPEC, Digest::of(bytes), bytes.len() as u64);
        let expected = content::Expected::new(descriptor.digest.clone(), descriptor.size);
        let reference = IngestRef::new(format!("checkpoint-{}", identity::random_uuid()?))?;
        let begun = self.metadata.content(caller).begin(&reference, expected.clone());
        let written = begun.and_then(|mut writer| {
            writer.truncate()?;
            writer.write(bytes)?;
            writer.of_type(SPEC).commit(expected, Labels::new())
        });
        match written {
            Err(error) if !error.is(ErrorKind::AlreadyExists) => Err(error),
            _ => Ok(descriptor),
        }
    }

    /// The directory of images to restore a task from: the one that the client names, or the blob unpacked here.
    pub(crate) fn bring(&self, caller: &Caller, id: &ContainerId, descriptor: Descriptor) -> Result<PathBuf> {
        if let Some(path) = descriptor.annotations.get(FROM_PATH) {
            return Ok(path.into());
        }
        if descriptor.media_type != IMAGES {
            return Err(Error::invalid_argument(format!(
                "unsupported checkpoint type {:?}",
                descriptor.media_type
            )));
        }
        let path = self.restored(&caller.namespace, id);
        let brought = (|| {
            remove(&path)?;
            create(&path)?;
            let folder = fs::File::open(&path).context(|| format!("open {}", path.display()))?;
            let source = self.metadata.content(caller).reader(&descriptor.digest)?;
            let options = ApplyOptions { whiteouts: Whiteouts::Remove, limits: Limits::default() };
            diff::apply(source, options, folder.as_fd())?;
            check_files(&path)
        })();
        if brought.is_err() {
            // Report the first error.
            let _ = remove(&path);
        }
        brought.context(|| format!("unpack checkpoint {}", descriptor.digest))?;
        Ok(path)
    }

    /// Removes the images that a task was restored from, if any.
    pub(crate) fn forget(&self, namespace: &Namespace, id: &ContainerId) -> Result<()> {
        remove(&self.restored(namespace, id))
    }

    fn restored(&self, namespace: &Namespace, id: &ContainerId) -> PathBuf {
        self.root.join("restored").join(namespace.as_str()).join(id.as_str())
    }
}

/// The directory in which a client wants the images of a checkpoint. `None`: in the content store.
pub(crate) fn image_path(options: Option<&Any>) -> Result<Option<PathBuf>> {
    let Some(options) = options.filter(|options| !options.type_url.is_empty()) else { return Ok(None) };
    match unpack::<CheckpointOptions>(options) {
        Some(Ok(options)) => absolute(options.image_path),
        Some(Err(error)) => Err(Error::invalid_argument("the options of a checkpoint").with_source(error)),
        // Options of another runtime, which the daemon cannot parse.
        None => Ok(None),
    }
}

/// The directory of images that a client wants restored, from the options of runc's shim.
pub(crate) fn criu_image_path(options: Option<&Any>) -> Result<Option<PathBuf>> {
    match options.and_then(unpack::<Options>) {
        Some(Ok(options)) => absolute(options.criu_image_path),
        // The shim will report what is wrong with them.
        Some(Err(_)) | None => Ok(None),
    }
}

fn absolute(path: String) -> Result<Option<PathBuf>> {
    match path.as_str() {
        "" => Ok(None),
        text if text.starts_with('/') => Ok(Some(path.into())),
        text => Err(Error::invalid_argument(format!("{text:?}: the path of a checkpoint is absolute"))),
    }
}

/// Refuses images that are neither regular files nor directories: criu, which runs as root, would follow a symlink,
/// even for its log, and block on a FIFO.
fn check_files(images: &Path) -> Result<()> {
    let mut left = vec![images.to_owned()];
    while let Some(directory) = left.pop() {
        let what = || format!("list {}", directory.display());
        for entry in fs::read_dir(&directory).context(what)? {
            let entry = entry.context(what)?;
            let kind = entry.file_type().context(what)?;
            if kind.is_dir() {
                left.push(entry.path());
            } else if !kind.is_file() {
                return Err(Error::invalid_argument(format!(
                    "{:?} is no file, and a checkpoint has nothing else",
                    entry.file_name()
                )));
            }
        }
    }
    Ok(())
}

fn create(path: &Path) -> Result<()> {
    let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(path);
    made.context(|| format!("create {}", path.display()))
}

fn remove(path: &Path) -> Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).context(|| format!("remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

fn names(path: &Path) -> Result<Vec<String>> {
    match fs::read_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        entries => {
            let what = || format!("list {}", path.display());
            let names = entries.context(what)?.map(|entry| entry.map(|entry| entry.file_name()));
            let names = names.collect::<io::Result<Vec<_>>>().context(what)?;
            Ok(names.into_iter().filter_map(|name| name.into_string().ok()).collect())
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::Arc;

    use api::shim::pack;

    use super::*;

    fn caller() -> Caller {
        Caller::new(Namespace::new("test").expect("a valid name"))
    }

    #[test]
    fn images_come_back_as_they_were_and_go_with_their_task() {
        if !stdx::testing::is_root("to open a tree and store it") {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let db = kv::Db::open(dir.path().join("meta.db"), kv::Options::default()).unwrap();
        let store = content::LocalStore::open(dir.path().join("content")).unwrap();
        let options = metadata::Options::default();
        let metadata = Metadata::open(db, Arc::new(store), BTreeMap::new(), options).unwrap();
        let checkpoints = Checkpoints::new(metadata.clone(), dir.path());
        let lease = types::LeaseId::new("held").unwrap();
        metadata.leases(caller()).create(&lease, Labels::new()).unwrap();
        let caller = caller().with_lease(lease);

        let folder = checkpoints.folder().unwrap();
        fs::write(folder.path().join("pages-1.img"), vec![7; 100_000]).unwrap();
        fs::create_dir(folder.path().join("deeper")).unwrap();
        fs::write(folder.path().join("deeper/core.img"), "registers").unwrap();
        let spec = Opaque { type_url: "a spec".into(), value: b"{}".to_vec() };
        let stored = checkpoints.store(&caller, folder.path(), spec).unwrap();
        let made = folder.path().to_owned();
        drop(folder);
        assert!(!made.exists());
        assert_eq!(stored.iter().map(|one| one.media_type.as_str()).collect::<Vec<_>>(), [IMAGES, SPEC]);
        let read = |digest: &Digest| {
            let mut bytes = Vec::new();
            io::Read::read_to_end(&mut metadata.content(&caller).reader(digest).unwrap(), &mut bytes)
                .unwrap();
            bytes
        };
        let spec = Any::decode(read(&stored[1].digest).as_slice()).unwrap();
        assert_eq!((spec.type_url.as_str(), spec.value.as_slice()), ("a spec", &b"{}"[..]));

        let id = ContainerId::new("frozen").unwrap();
        let images = checkpoints.bring(&caller, &id, stored[0].clone()).unwrap();
        assert_eq!(fs::read(images.join("pages-1.img")).unwrap(), vec![7; 100_000]);
        assert_eq!(fs::read_to_string(images.join("deeper/core.img")).unwrap(), "registers");
        checkpoints.forget(&caller.namespace, &id).unwrap();
        assert!(!images.exists());

        // criu would write its log through the symlink.
        let folder = checkpoints.folder().unwrap();
        fs::create_dir(folder.path().join("deeper")).unwrap();
        std::os::unix::fs::symlink("/tmp/log", folder.path().join("deeper/restore.log")).unwrap();
        let spec = Opaque { type_url: "a spec".into(), value: b"{}".to_vec() };
        let led = checkpoints.store(&caller, folder.path(), spec).unwrap();
        let refused = checkpoints.bring(&caller, &id, led[0].clone()).unwrap_err();
        assert!(refused.is(ErrorKind::InvalidArgument), "{refused:?}");
        assert!(refused.chain().contains("restore.log"), "{}", refused.chain());
        assert!(!images.exists());

        let wrong = checkpoints.bring(&caller, &id, stored[1].clone()).unwrap_err();
        assert!(wrong.is(ErrorKind::InvalidArgument), "{wrong:?}");
        let missing = Descriptor { digest: Digest::of(b"nothing"), ..stored[0].clone() };
        assert!(checkpoints.bring(&caller, &id, missing).unwrap_err().is(ErrorKind::NotFound));
        assert!(!images.exists(), "nothing is left of what failed");
        let path =
            Descriptor { annotations: [(FROM_PATH.into(), "/there".into())].into(), ..stored[0].clone() };
        assert_eq!(checkpoints.bring(&caller, &id, path).unwrap(), Path::new("/there"));
    }

    #[test]
    fn clients_may_have_the_images_in_a_directory_of_theirs() {
        let asked = |path: &str| {
            let options = CheckpointOptions { image_path: path.into(), ..CheckpointOptions::default() };
            image_path(Some(&pack(&options)))
        };
        assert_eq!(asked("/images").unwrap(), Some("/images".into()));
        assert_eq!(asked("").unwrap(), None);
        assert!(asked("images").unwrap_err().is(ErrorKind::InvalidArgument));
        assert_eq!(image_path(None).unwrap(), None);
        let other = Any { type_url: "another.Options".into(), value: vec![255] };
        assert_eq!(image_path(Some(&other)).unwrap(), None);
        let broken = Any { type_url: "containerd.runc.v1.CheckpointOptions".into(), value: vec![255] };
        assert!(image_path(Some(&broken)).unwrap_err().is(ErrorKind::InvalidArgument));
        let options = Options { criu_image_path: "/from".into(), ..Options::default() };
        assert_eq!(criu_image_path(Some(&pack(&options))).unwrap(), Some("/from".into()));
    }
}
