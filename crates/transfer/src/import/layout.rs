//! OCI layout directories (image-spec `image-layout.md`). Only blobs that the index leads to are read.
//!
//! The directory is untrusted, so no link is followed out of it.

use std::collections::BTreeSet;
use std::fs::File;
use std::path::{Path, PathBuf};

use linux::beneath::Root;
use rustix::fs::{FileType, OFlags};
use types::spec::image::Index;
use types::{Context, Descriptor, Digest, Error, ErrorKind, Result};

use super::{DOCUMENT_LEN_MAX, Found, Importer};
use crate::unpack::read;

impl Importer<'_> {
    pub(super) fn read_layout(&self, folder: &Path) -> Result<Found> {
        let root = Root::open(folder)?;
        let Some(file) = find(&root, Path::new("index.json"))? else {
            return Err(Error::invalid_argument("it has no index.json: a folder must be an OCI layout"));
        };
        let bytes = stdx::read_at_most(file, DOCUMENT_LEN_MAX).context(|| "read index.json")?;
        let too_large =
            || Error::invalid_argument(format!("index.json has more than {DOCUMENT_LEN_MAX} bytes"));
        let bytes = bytes.ok_or_else(too_large)?;
        let index: Index = serde_json::from_slice(&bytes)
            .map_err(|error| Error::invalid_argument("index.json cannot be read").with_source(error))?;
        let mut seen = BTreeSet::new();
        for descriptor in &index.manifests {
            self.copy_blobs(&root, descriptor, 0, &mut seen)?;
        }
        Ok(Found { index: Some(bytes), ..Found::default() })
    }

    /// Stores a blob and its descendants. Missing ones are left for [`Importer::admit`] to judge.
    fn copy_blobs(
        &self,
        root: &Root,
        descriptor: &Descriptor,
        depth: usize,
        seen: &mut BTreeSet<Digest>,
    ) -> Result<()> {
        let digest = &descriptor.digest;
        if depth > image::INDEX_DEPTH_MAX + 1 || !seen.insert(digest.clone()) {
            return Ok(());
        }
        let path: PathBuf = ["blobs", digest.algorithm().name(), digest.hex()].iter().collect();
        if let Some(mut file) = find(root, &path)? {
            let size = file.metadata().context(|| format!("stat {}", path.display()))?.len();
            self.store(&path.display().to_string(), "", Some(digest), Some(size), &mut file)?;
        }
        let Ok(node) = self.node(descriptor) else { return Ok(()) };
        node.children().into_iter().try_for_each(|child| self.copy_blobs(root, child, depth + 1, seen))
    }

    /// Reads a stored document. `admit` reports a malformed one.
    fn node(&self, descriptor: &Descriptor) -> Result<image::Node> {
        let bytes = read(self.metadata, self.caller, &descriptor.digest)?;
        image::Node::parse(&descriptor.media_type, &bytes)
    }
}

/// Opens a regular file of the directory; `None` if it does not exist.
fn find(root: &Root, path: &Path) -> Result<Option<File>> {
    let what = || format!("open {}", path.display());
    // Opening a FIFO must not block.
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let Some(fd) = root
        .find(path, flags)
        .map_err(|error| error.context(what()).with_kind(ErrorKind::InvalidArgument))?
    else {
        return Ok(None);
    };
    let file = File::from(fd);
    let stat = rustix::fs::fstat(&file).map_err(std::io::Error::from).context(what)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(Error::invalid_argument(format!("{}: it is no file", what())));
    }
    Ok(Some(file))
}
