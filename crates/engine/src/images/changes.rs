//! `diff`: the differences between a container and its image, or between two images.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use api::engine::{ChangedPath, Changes};
use diff::{Change, ChangeKind, Node, Trees};
use linux::pipe::{SILENCE_MAX, silent};
use metadata::Container;
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::time::timeout;
use transfer::with_view;
use types::spec::runtime::Spec;
use types::{Context, Error, ErrorKind, Mount, Result};

use crate::Engine;

impl Engine {
    /// Sends the differences, one by one.
    pub async fn changes(&self, of: Changes, to: mpsc::Sender<ChangedPath>) -> Result<()> {
        self.with_client(move |engine| match of {
            Changes::Container { id } => engine.container_changes(&id, &to),
            Changes::Images { from, to: other } => engine.image_changes(&from, &other, &to),
        })
        .await
    }

    fn container_changes(&self, text: &str, to: &mpsc::Sender<ChangedPath>) -> Result<()> {
        let container = self.find(text)?;
        let (parent, upper) = self.tree_of(&container)?;
        let what = |error: Error| error.context(format!("compare container {text} with its image"));
        self.with_view(parent.as_deref(), |lower| {
            let trees = Trees::open(lower, &upper)?.without_mount_points(places(&container));
            let mut above = Above(Vec::new());
            trees.changes(|change| {
                // As in Docker, the directories above a change count as changed.
                for directory in above.untold(change) {
                    tell(to, changed("C", &directory, None, None))?;
                }
                tell_change(to, change)
            })
        })
        .and_then(|()| self.check_is_there(&container))
        .map_err(what)
    }

    fn image_changes(&self, from: &str, other: &str, to: &mpsc::Sender<ChangedPath>) -> Result<()> {
        let top = |name: &str| self.described(&self.find_image(name)?).map(|described| described.top);
        let (lower, upper) = (top(from)?, top(other)?);
        self.with_view(lower.as_deref(), |lower| {
            self.with_view(upper.as_deref(), |upper| {
                Trees::open(lower, upper)?.changes(|change| tell_change(to, change))
            })
        })
        .map_err(|error| error.context(format!("compare image {from} with {other}")))
    }

    fn with_view<T>(&self, name: Option<&str>, work: impl FnOnce(&[Mount]) -> Result<T>) -> Result<T> {
        let parts = self.parts();
        with_view(&parts.metadata, &self.0.caller, &parts.snapshotter, name, work)
    }

    /// The parent snapshot of a container's snapshot, and the mounts of the latter.
    pub(crate) fn tree_of(&self, container: &Container) -> Result<(Option<String>, Vec<Mount>)> {
        let snapshots = self.parts().metadata.snapshots(&self.0.caller, &container.snapshotter)?;
        let parent = snapshots.stat(&container.snapshot_key)?.parent;
        let mounts = snapshots.mounts(&container.snapshot_key)?;
        Ok((Some(parent).filter(|parent| !parent.is_empty()), mounts))
    }

    /// To be called when the tree of a container has been read. `Aborted` if the container was removed meanwhile: a file
    /// that was deleted before it was read counts as one that the container had removed. A record is deleted before the
    /// tree.
    pub(crate) fn check_is_there(&self, container: &Container) -> Result<()> {
        match self.parts().metadata.containers(&self.0.caller).get(&container.id) {
            Err(error) if error.is(ErrorKind::NotFound) => {
                Err(Error::aborted("it was removed meanwhile, and not all of it was read"))
            }
            found => found.map(drop),
        }
    }
}

/// The mount points of a container: the runtime creates missing ones in its snapshot.
pub(crate) fn places(container: &Container) -> BTreeSet<PathBuf> {
    let spec = container.spec.as_ref().and_then(|spec| serde_json::from_slice::<Spec>(&spec.value).ok());
    let mounts = spec.map(|spec| spec.mounts).unwrap_or_default();
    mounts.iter().map(|mount| PathBuf::from(mount.destination.trim_start_matches('/'))).collect()
}

/// The directories above the previous change.
struct Above(Vec<PathBuf>);

impl Above {
    /// The directories above a change that were not reported, outermost first.
    fn untold(&mut self, change: &Change<'_>) -> Vec<PathBuf> {
        if change.kind == ChangeKind::Same {
            return Vec::new();
        }
        while self.0.last().is_some_and(|last| !change.path.starts_with(last)) {
            self.0.pop();
        }
        let above = change.path.ancestors().skip(1).filter(|above| !above.as_os_str().is_empty());
        let mut untold: Vec<PathBuf> = above
            .take_while(|above| self.0.last().is_none_or(|last| last != above))
            .map(Path::to_owned)
            .collect();
        untold.reverse();
        self.0.extend(untold.iter().cloned());
        if change.upper.is_some_and(Node::is_directory) {
            self.0.push(change.path.to_owned());
        }
        untold
    }
}

fn tell_change(to: &mpsc::Sender<ChangedPath>, change: &Change<'_>) -> Result<()> {
    let kind = match change.kind {
        ChangeKind::Added => "A",
        ChangeKind::Modified => "C",
        ChangeKind::Removed => "D",
        ChangeKind::Same => return Ok(()),
    };
    tell(to, changed(kind, change.path, change.lower, change.upper))
}

fn changed(kind: &str, path: &Path, lower: Option<&Node>, upper: Option<&Node>) -> ChangedPath {
    let size = |node: Option<&Node>| node.filter(|node| node.is_file()).map(|node| node.entry.size);
    let path = format!("/{}", path.display());
    ChangedPath { kind: kind.to_owned(), path, size_before: size(lower), size: size(upper) }
}

fn tell(to: &mpsc::Sender<ChangedPath>, change: ChangedPath) -> Result<()> {
    let sent = Handle::current().block_on(async { timeout(SILENCE_MAX, to.send(change)).await });
    let sent = sent.map_err(|_| silent(SILENCE_MAX)).context(|| "send a difference")?;
    sent.map_err(|_| Error::cancelled("the client has disconnected"))
}
