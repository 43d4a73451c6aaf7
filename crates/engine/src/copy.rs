//! `cp`: copies files out of containers and into them.

use std::ffi::{OsStr, OsString};
use std::io::{self, BufWriter, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use api::engine::{Copy, FileStat};
use diff::tar::Writer;
use diff::{LayOptions, Owners};
use linux::beneath::Root;
use linux::pipe::Pipe;
use metadata::Container;
use rustix::fs::{AtFlags, FileType, OFlags, Stat, readlinkat, statat};
use rustix::io::Errno;
use serde_json::{Value, json};
use stdx::CancelToken;
use types::spec::runtime::Spec;
use types::{Context, Error, Result, Timestamp};

use crate::Engine;
use crate::container_locks::CopyHandle;
use crate::record::Extension;
use crate::view::{Access, Reach, View};

/// The kernel's limit on followed symlinks (path_resolution(7)).
const SYMLINKS_MAX: usize = 40;

/// Buffer for the archive, in bytes.
const BUFFER_LEN: usize = 256 * 1024;

impl Engine {
    /// Metadata of the file at a path of a container.
    pub(crate) async fn stat_file(&self, text: &str, path: String) -> Result<Value> {
        let reach = Reach { path: PathBuf::from(&path), follows: true, beneath: false };
        let (_, view) = self.view(text, Access::Read, reach, &CopyHandle::new()).await?;
        self.blocking(move |_| {
            let place = Place::find(&view, &path)?;
            let stat = place.stat.ok_or_else(|| missing(&view, &path))?;
            let is_link = FileType::from_raw_mode(stat.st_mode) == FileType::Symlink;
            let answer = FileStat {
                name: place.called.to_string_lossy().into_owned(),
                size: u64::try_from(stat.st_size).unwrap_or(0),
                mode: stat.st_mode,
                mtime: Timestamp {
                    seconds: stat.st_mtime,
                    nanos: u32::try_from(stat.st_mtime_nsec).unwrap_or(0),
                }
                .to_string(),
                link_target: is_link.then(|| end_of_links(&view.root, &path)).transpose()?,
            };
            Ok(json!(answer))
        })
        .await
    }

    /// Copies through the client's pipe. Blocks on it until the client disconnects or another call needs the container.
    pub async fn copy_files(&self, copy: Copy) -> Result<Value> {
        let handle = CopyHandle::new();
        let _as_long_as_its_caller_waits = EndsWithCaller(handle.clone());
        let cancel = handle.token();
        let copied = match copy {
            Copy::Out { id, path, called, pipe } => {
                let (_, name) = split(&path);
                // A symlink that is copied itself is not followed.
                let reach = Reach { path: PathBuf::from(&path), follows: name == ".", beneath: true };
                let (_, view) = self.view(&id, Access::Read, reach, &handle).await?;
                self.with_client(move |_| copy_out(&view, &path, &called, &pipe, &cancel)).await
            }
            Copy::Export { id, pipe } => {
                let (container, view) = self.view_of_tree(&id, &handle).await?;
                self.with_client(move |engine| {
                    copy_out(&view, "/", "", &pipe, &cancel)?;
                    // If it runs, another call may have removed it meanwhile.
                    engine.parts().metadata.containers(&engine.0.caller).get(&container.id).map(drop)
                })
                .await
            }
            Copy::In { id, folder, pipe, to_user } => {
                let reach = Reach { path: PathBuf::from(&folder), follows: true, beneath: true };
                let (container, view) = self.view(&id, Access::Write, reach, &handle).await?;
                let owners = if to_user { owners(&container)? } else { Owners::Archive };
                self.with_client(move |_| copy_in(&view, &folder, owners, &pipe, &cancel)).await
            }
        };
        match copied {
            Err(_) if handle.is_cancelled() => Err(Error::aborted(
                "the container is being started or removed, and not all was copied: copy again",
            )),
            copied => copied.map(|()| json!({})),
        }
    }
}

/// Cancels the copy when the call's future is dropped.
struct EndsWithCaller(CopyHandle);

impl Drop for EndsWithCaller {
    fn drop(&mut self) {
        self.0.cancel();
    }
}

fn copy_out(view: &View, path: &str, called: &str, pipe: &str, cancel: &CancelToken) -> Result<()> {
    let Place { folder, name, stat, .. } = Place::find(view, path)?;
    stat.ok_or_else(|| missing(view, path))?;
    let pipe = Pipe::open_target(Path::new(pipe), cancel.clone())?;
    let mut writer = Writer::new(BufWriter::with_capacity(BUFFER_LEN, pipe), 0);
    let go_on = || {
        cancel.check().map_err(|cancelled| Error::cancelled(cancelled.to_string()))?;
        view.check()
    };
    diff::pack(folder, &name, called.as_bytes(), &mut writer, &go_on)
        .and_then(|()| writer.finish().context(|| "write the archive").map(drop))
        .and_then(|()| view.check())
        .map_err(|error| error.context(format!("copy {path} from container {}", view.name)))
}

fn copy_in(view: &View, folder: &str, owners: Owners, pipe: &str, cancel: &CancelToken) -> Result<()> {
    if view.root.find(Path::new(folder), OFlags::PATH | OFlags::DIRECTORY)?.is_none() {
        return Err(missing(view, folder));
    }
    let source = Watched { pipe: Pipe::open_source(Path::new(pipe), cancel.clone())?, view };
    let options = LayOptions { folder: PathBuf::from(folder), owners };
    diff::lay_down(source, options, view.root.as_fd())
        .and_then(|_| view.check())
        .map_err(|error| error.context(format!("copy to {folder} of container {}", view.name)))
}

/// Reads the client's archive, and fails once the container is no longer in the state that the view was made for.
struct Watched<'a> {
    pipe: Pipe,
    view: &'a View,
}

impl Read for Watched<'_> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let read = self.pipe.read(bytes)?;
        self.view.check().map_err(io::Error::other)?;
        Ok(read)
    }
}

/// The end of a path: a directory and a name in it. The directory itself has the name `.`.
struct Place {
    folder: OwnedFd,
    name: OsString,
    /// The last component of the path as given.
    called: OsString,
    /// `None` if the file does not exist.
    stat: Option<Stat>,
}

impl Place {
    /// `NotFound` if the directory does not exist.
    fn find(view: &View, path: &str) -> Result<Place> {
        let (above, name) = split(path);
        let called = Path::new(path).file_name().unwrap_or(OsStr::new("/")).to_owned();
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        let folder = view.root.find(above, flags)?.ok_or_else(|| missing(view, path))?;
        let stat = match statat(&folder, name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => None,
            stat => Some(stat.map_err(io::Error::from).context(|| format!("look at {path}"))?),
        };
        Ok(Place { folder, name: name.to_owned(), called, stat })
    }
}

/// Directory and last name of a path; the name is `.` if the path can only mean a directory.
fn split(path: &str) -> (&Path, &OsStr) {
    let means_directory = path.ends_with('/') || path.ends_with("/.") || path == ".";
    let path = Path::new(path);
    match path.components().next_back() {
        Some(Component::Normal(name)) if !means_directory => (path.parent().unwrap_or(Path::new("")), name),
        _ => (path, OsStr::new(".")),
    }
}

/// Follows the chain of symlinks at a path to its end.
fn end_of_links(root: &Root, path: &str) -> Result<String> {
    let mut path = path.to_owned();
    for _ in 0..SYMLINKS_MAX {
        let (above, name) = split(&path);
        let Some(folder) = root.find(above, OFlags::PATH | OFlags::DIRECTORY)? else { return Ok(path) };
        let Ok(target) = readlinkat(&folder, name, Vec::new()) else { return Ok(path) };
        // An absolute target replaces the whole path.
        let next = above.join(OsStr::from_bytes(target.as_bytes()));
        let text = next.to_str().ok_or_else(|| {
            Error::invalid_argument(format!("the symlink {path} leads to a name that is no UTF-8"))
        })?;
        path = text.to_owned();
    }
    Err(Error::invalid_argument(format!("too many symlinks follow each other from {path} on")))
}

fn missing(view: &View, path: &str) -> Error {
    Error::not_found(format!("Could not find the file {path} in container {}", view.name))
}

/// The owner of copied files, if they are to belong to the container's user.
fn owners(container: &Container) -> Result<Owners> {
    let spec = container.spec.as_ref().and_then(|spec| serde_json::from_slice::<Spec>(&spec.value).ok());
    let process = spec.and_then(|spec| spec.process);
    let user = process.ok_or_else(|| Error::data_loss("the container's spec cannot be read"))?.user;
    let is_named = Extension::of(container)?.create.user.is_some_and(|user| !user.is_empty());
    let is_own = is_named || user.uid != 0 || user.gid != 0;
    Ok(if is_own { Owners::Of { uid: user.uid, gid: user.gid } } else { Owners::Archive })
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn paths_are_a_directory_and_a_name() {
        for (path, above, name) in [
            ("/etc/hosts", "/etc", "hosts"),
            ("hosts", "", "hosts"),
            ("/etc/", "/etc/", "."),
            ("/etc/.", "/etc/.", "."),
            ("/", "/", "."),
            (".", ".", "."),
            ("", "", "."),
            ("/a/..", "/a/..", "."),
            ("/a/../b", "/a/..", "b"),
        ] {
            assert_eq!(split(path), (Path::new(above), OsStr::new(name)), "{path}");
        }
    }

    #[test]
    fn links_are_followed_to_their_end_inside_the_root() {
        let dir = tempfile::TempDir::new().unwrap();
        fs::create_dir(dir.path().join("d")).unwrap();
        for (name, target) in [("a", "d/b"), ("d/b", "../../../c"), ("c", "/nosuch"), ("x", "y"), ("y", "x")]
        {
            symlink(target, dir.path().join(name)).unwrap();
        }
        let root = Root::open(dir.path()).unwrap();
        assert_eq!(end_of_links(&root, "/a").unwrap(), "/nosuch");
        assert_eq!(end_of_links(&root, "a").unwrap(), "/nosuch");
        assert!(end_of_links(&root, "/x").unwrap_err().to_string().contains("too many"));
    }
}
