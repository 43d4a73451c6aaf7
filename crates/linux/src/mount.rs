//! Mounts by file descriptor: made detached, attached when they are complete.
//!
//! ```text
//! fsopen ─▶ fsconfig… ─▶ fsmount ──┐
//! open_tree (bind) ────────────────┼─▶ mount_setattr ─▶ move_mount ─▶ visible
//! ```
//!
//! The target of a mount is always an open descriptor, never a path that could be swapped while we
//! look away. [`Options`] reads the words of `mount(8)` and the OCI runtime spec; [`mount_all`] carries
//! out the mounts of a snapshotter. Overlay layers are given one by one (`lowerdir+`, Linux 6.8), so
//! their number is not limited by the 4 KiB of classic mount data.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode, OFlags, StatVfsMountFlags};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags, fsconfig_create,
    fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, move_mount, open_tree, unmount,
};
use types::{Context, Error, Mount, Result};

use crate::beneath::proc_path;
use crate::idmap::{self, Owners};
use crate::loopdev::LoopDevice;
pub use crate::overlay::maps_owners;
use crate::{overlay, tree_mounts};

const ATTR_RDONLY: u64 = libc::MOUNT_ATTR_RDONLY;
const ATTR_NOSUID: u64 = libc::MOUNT_ATTR_NOSUID;
const ATTR_NODEV: u64 = libc::MOUNT_ATTR_NODEV;
const ATTR_NOEXEC: u64 = libc::MOUNT_ATTR_NOEXEC;
const ATTR_ATIME: u64 = libc::MOUNT_ATTR__ATIME;
const ATTR_NOATIME: u64 = libc::MOUNT_ATTR_NOATIME;
const ATTR_STRICTATIME: u64 = libc::MOUNT_ATTR_STRICTATIME;
const ATTR_NODIRATIME: u64 = libc::MOUNT_ATTR_NODIRATIME;
/// All that says which accesses are written down.
const ATTR_TIMES: u64 = ATTR_ATIME | ATTR_NODIRATIME;
const ATTR_NOSYMFOLLOW: u64 = libc::MOUNT_ATTR_NOSYMFOLLOW;
const ATTR_IDMAP: u64 = libc::MOUNT_ATTR_IDMAP;

/// How events travel between a mount and its copies (mount_namespaces(7)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Propagation {
    Shared,
    Slave,
    Private,
    Unbindable,
}

impl Propagation {
    fn flag(self) -> u64 {
        match self {
            Propagation::Shared => libc::MS_SHARED,
            Propagation::Slave => libc::MS_SLAVE,
            Propagation::Private => libc::MS_PRIVATE,
            Propagation::Unbindable => libc::MS_UNBINDABLE,
        }
    }

    /// Reads `shared`, `rshared` and so on. True means "and everything below".
    pub fn parse(word: &str) -> Option<(Propagation, bool)> {
        let (name, recursive) = match word.strip_prefix('r') {
            Some(rest) => (rest, true),
            None => (word, false),
        };
        let propagation = match name {
            "shared" => Propagation::Shared,
            "slave" => Propagation::Slave,
            "private" => Propagation::Private,
            "unbindable" => Propagation::Unbindable,
            _ => return None,
        };
        Some((propagation, recursive))
    }
}

/// Attributes of a mount to set and to clear (mount_setattr(2)).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Attributes {
    pub set: u64,
    pub clear: u64,
}

impl Attributes {
    pub const READ_ONLY: Attributes = Attributes { set: ATTR_RDONLY, clear: 0 };

    pub fn is_empty(self) -> bool {
        self == Attributes::default()
    }

    fn add(&mut self, set: u64, clear: u64) {
        self.set = self.set & !clear | set;
        self.clear = self.clear & !set | clear;
    }

    fn change(&mut self, change: Change) {
        match change {
            Change::Set(flag) => self.add(flag, 0),
            Change::Clear(flag) => self.add(0, flag),
            Change::AccessTime(flag) => self.access_time(flag),
        }
    }

    /// The kernel wants the whole field of access times cleared before one of them is set.
    fn access_time(&mut self, set: u64) {
        self.add(0, ATTR_ATIME);
        self.clear |= ATTR_ATIME;
        self.set |= set;
    }
}

/// What is set of a mount and may not be taken away in a user namespace that did not make it (mount_namespaces(7)), as the
/// kernel reports it for a file in it. A file system that is read-only as a whole counts as a mount that is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Locked(u64);

impl Locked {
    /// Those that may be taken away only where they were set, each with the word that would do it.
    const FLAGS: [(u64, &str, &str); 4] = [
        (ATTR_RDONLY, "ro", "rw"),
        (ATTR_NOSUID, "nosuid", "suid"),
        (ATTR_NODEV, "nodev", "dev"),
        (ATTR_NOEXEC, "noexec", "exec"),
    ];

    /// What is set of the mount that a file is open in, `O_PATH` ones included.
    pub fn of(file: BorrowedFd<'_>) -> Result<Locked> {
        let flags = rustix::fs::fstatvfs(file).map_err(io::Error::from);
        let flags = flags.context(|| "read the attributes of a mount")?.f_flag;
        let mut set = [
            (StatVfsMountFlags::RDONLY, ATTR_RDONLY),
            (StatVfsMountFlags::NOSUID, ATTR_NOSUID),
            (StatVfsMountFlags::NODEV, ATTR_NODEV),
            (StatVfsMountFlags::NOEXEC, ATTR_NOEXEC),
            (StatVfsMountFlags::NOATIME, ATTR_NOATIME),
            (StatVfsMountFlags::NODIRATIME, ATTR_NODIRATIME),
        ]
        .into_iter()
        .filter(|(flag, _)| flags.contains(*flag))
        .fold(0, |set, (_, attribute)| set | attribute);
        // Which has no flag of its own.
        if !flags.intersects(StatVfsMountFlags::NOATIME | StatVfsMountFlags::RELATIME) {
            set |= ATTR_STRICTATIME;
        }
        Ok(Locked(set))
    }

    /// What is set of a mount by its options in mountinfo.
    pub fn of_point(point: &MountPoint) -> Locked {
        let has = |word: &str| point.options.split(',').any(|other| other == word);
        let named = Locked::FLAGS.map(|(flag, word, _)| (flag, word));
        let times = [(ATTR_NOATIME, "noatime"), (ATTR_NODIRATIME, "nodiratime")];
        let set =
            named.iter().chain(&times).filter(|(_, word)| has(word)).fold(0, |set, (flag, _)| set | flag);
        let is_strict = !has("noatime") && !has("relatime");
        Locked(set | if is_strict { ATTR_STRICTATIME } else { 0 })
    }

    /// Refuses a change that takes some of it away, or changes which accesses are written down, which is locked whatever
    /// it is. `PermissionDenied` then.
    pub fn check(self, change: Attributes) -> Result<()> {
        let lost = Locked::FLAGS.iter().find(|(flag, ..)| change.clear & !change.set & self.0 & flag != 0);
        if let Some((_, set, word)) = lost {
            return Err(Error::permission_denied(format!(
                "{word:?}: operation not permitted: its source is {set:?}, which a user namespace may not take away; \
                 leave {word:?} out, or mount the source without {set:?}"
            )));
        }
        if (self.0 & !change.clear | change.set) & ATTR_TIMES == self.0 & ATTR_TIMES {
            return Ok(());
        }
        Err(Error::permission_denied(
            "other access times: operation not permitted: those of its source may not be changed in a user namespace; \
             leave the words for them out, or mount the source with them",
        ))
    }
}

/// Whether a mount shows what is elsewhere.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Bind {
    #[default]
    No,
    /// One file system.
    Single,
    /// With all mounts below.
    Recursive,
}

/// The options of a mount, read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    pub bind: Bind,
    pub attributes: Attributes,
    /// For the mount and all below it (`rro`, `rnosuid`, …).
    pub recursive: Attributes,
    /// The access times that a word sets, and no later one takes back: 0 for `relatime`.
    pub named_times: Option<u64>,
    pub propagation: Vec<(Propagation, bool)>,
    /// Read-only for the file system itself, beside the mount.
    pub superblock_read_only: bool,
    /// Copies what the target directory holds into a new tmpfs.
    pub copy_up: bool,
    /// `idmap`: maps owners; true is `ridmap`.
    pub idmap: Option<bool>,
    pub remount: bool,
    /// `loop`: the source is a file, which a loop device shows for as long as it is mounted.
    pub is_loop: bool,
    /// What is left is for the file system.
    pub data: Vec<String>,
}

impl Options {
    pub fn parse(options: &[String]) -> Options {
        let mut parsed = Options::default();
        for word in options {
            parsed.add(word);
        }
        parsed
    }

    fn add(&mut self, word: &str) {
        if let Some(propagation) = Propagation::parse(word) {
            self.propagation.push(propagation);
        } else if let Some(change) = change(word) {
            self.attributes.change(change);
            match word {
                "ro" => self.superblock_read_only = true,
                "rw" => self.superblock_read_only = false,
                "relatime" => self.named_times = Some(0),
                "noatime" => self.named_times = Some(ATTR_NOATIME),
                "strictatime" => self.named_times = Some(ATTR_STRICTATIME),
                // Each takes back its own word alone.
                "norelatime" => self.named_times = self.named_times.filter(|times| *times != 0),
                "atime" => self.named_times = self.named_times.filter(|times| *times != ATTR_NOATIME),
                "nostrictatime" => {
                    self.named_times = self.named_times.filter(|times| *times != ATTR_STRICTATIME);
                }
                _ => {}
            }
        } else if let Some(change) = word.strip_prefix('r').and_then(change) {
            self.recursive.change(change);
        } else {
            match word {
                "bind" => self.bind = Bind::Single,
                "rbind" => self.bind = Bind::Recursive,
                "remount" => self.remount = true,
                "loop" => self.is_loop = true,
                "tmpcopyup" => self.copy_up = true,
                "idmap" => self.idmap = Some(false),
                "ridmap" => self.idmap = Some(true),
                _ if word.is_empty() || WITHOUT_EFFECT.contains(&word) => {}
                _ => self.data.push(word.to_owned()),
            }
        }
    }

    /// Attributes of a bind mount. As with runc, one that names any has no others, whatever what it shows has: `ro` alone
    /// lets programs be executed from a mount that is `noexec` elsewhere. Access times that are not named stay, also where
    /// they are negated (`atime`, `norelatime`, `nostrictatime`, `diratime`), and in a user namespace (`keeps_locked`) what
    /// the kernel locks for it (mount_namespaces(7)).
    pub fn of_bind(&self, keeps_locked: bool) -> Attributes {
        let lockable = ATTR_RDONLY | ATTR_NOSUID | ATTR_NODEV | ATTR_NOEXEC;
        let all = ATTR_NOSYMFOLLOW | if keeps_locked { 0 } else { lockable };
        if self.attributes.is_empty() {
            return self.attributes;
        }
        let set = self.attributes.set & !ATTR_ATIME | self.named_times.unwrap_or(0);
        let names_times = self.named_times.is_some() || set & ATTR_NODIRATIME != 0;
        let clear = self.attributes.clear & !ATTR_TIMES | if names_times { ATTR_TIMES } else { 0 };
        // What is set must not be cleared, but for the field of access times, which must (mount_setattr(2)).
        Attributes { set, clear: (clear | all) & !(set & !ATTR_ATIME) }
    }

    /// The first word that a bind mount has no use for. Those for the file system as a whole, which is
    /// mounted already, are passed over.
    pub fn foreign_to_bind(&self) -> Option<&str> {
        self.data.iter().map(String::as_str).find(|word| !FILE_SYSTEM.contains(word))
    }
}

#[derive(Clone, Copy)]
enum Change {
    Set(u64),
    Clear(u64),
    AccessTime(u64),
}

/// Words for attributes: alone for the mount, with `r` before them for everything below it too.
const ATTRIBUTES: [(&str, Change); 18] = [
    ("ro", Change::Set(ATTR_RDONLY)),
    ("rw", Change::Clear(ATTR_RDONLY)),
    ("nosuid", Change::Set(ATTR_NOSUID)),
    ("suid", Change::Clear(ATTR_NOSUID)),
    ("nodev", Change::Set(ATTR_NODEV)),
    ("dev", Change::Clear(ATTR_NODEV)),
    ("noexec", Change::Set(ATTR_NOEXEC)),
    ("exec", Change::Clear(ATTR_NOEXEC)),
    ("nosymfollow", Change::Set(ATTR_NOSYMFOLLOW)),
    ("symfollow", Change::Clear(ATTR_NOSYMFOLLOW)),
    ("nodiratime", Change::Set(ATTR_NODIRATIME)),
    ("diratime", Change::Clear(ATTR_NODIRATIME)),
    ("noatime", Change::AccessTime(ATTR_NOATIME)),
    ("strictatime", Change::AccessTime(ATTR_STRICTATIME)),
    ("relatime", Change::AccessTime(0)),
    ("atime", Change::AccessTime(0)),
    ("norelatime", Change::AccessTime(0)),
    ("nostrictatime", Change::AccessTime(0)),
];

/// Words that name what is so anyway, that the kernel sets aside in mount(2) and refuses in fsconfig(2), or that only
/// mount(8) acts on.
const WITHOUT_EFFECT: [&str; 15] = [
    "defaults",
    "loud",
    "silent",
    "iversion",
    "noiversion",
    "acl",
    "noacl",
    "auto",
    "noauto",
    "user",
    "nouser",
    "users",
    "group",
    "_netdev",
    "nofail",
];

/// Words that the kernel takes for a file system of any kind.
const FILE_SYSTEM: [&str; 7] = ["sync", "async", "dirsync", "mand", "nomand", "lazytime", "nolazytime"];

const PROPAGATIONS: [&str; 4] = ["shared", "slave", "private", "unbindable"];

/// Every word that [`Options`] knows, and that does not go to one kind of file system only.
pub fn option_words() -> Vec<String> {
    let recursive = |word: &&str| format!("r{word}");
    let attributes = ATTRIBUTES.map(|(word, _)| word);
    let specification = ["bind", "rbind", "remount", "tmpcopyup", "idmap", "ridmap"];
    let plain = attributes.iter().chain(&WITHOUT_EFFECT[..7]).chain(&FILE_SYSTEM);
    let plain = plain.chain(&PROPAGATIONS).chain(&specification).map(ToString::to_string);
    let recursive = attributes.iter().chain(&PROPAGATIONS).map(recursive);
    let mut words: Vec<String> = plain.chain(recursive).collect();
    words.sort();
    words
}

fn change(word: &str) -> Option<Change> {
    ATTRIBUTES.iter().find(|(known, _)| *known == word).map(|(_, change)| *change)
}

/// Changes the mount that `target` is open on, and, where options for it are named, the file system that it shows.
/// Attributes that are not named stay. Whether the file system as a whole is read-only does too: it may be the
/// host's, as sysfs is.
pub fn reconfigure(target: BorrowedFd<'_>, options: &Options) -> Result<()> {
    let change = || -> io::Result<()> {
        let flags =
            rustix::mount::FsPickFlags::FSPICK_EMPTY_PATH | rustix::mount::FsPickFlags::FSPICK_CLOEXEC;
        let context = rustix::mount::fspick(target, "", flags)?;
        for word in &options.data {
            match word.split_once('=') {
                Some((key, value)) => fsconfig_set_string(&context, key, value)?,
                None => fsconfig_set_flag(&context, word.as_str())?,
            }
        }
        rustix::mount::fsconfig_reconfigure(&context)?;
        Ok(())
    };
    if options.bind == Bind::No && !options.data.is_empty() {
        change().context(|| format!("remount with {}", options.data.join(",")))?;
    }
    set_attributes(target, options.attributes, false)
}

/// Makes a file system that is mounted nowhere yet.
pub fn new_filesystem(kind: &str, source: &str, options: &Options) -> Result<OwnedFd> {
    if options.is_loop {
        let is_read_only = options.superblock_read_only;
        let access = if is_read_only { OFlags::RDONLY } else { OFlags::RDWR };
        let file = rustix::fs::open(source, access | OFlags::CLOEXEC, Mode::empty())
            .map_err(io::Error::from)
            .context(|| format!("open {source}"))?;
        let device = LoopDevice::attach(file.as_fd(), is_read_only)?;
        let options = Options { is_loop: false, ..options.clone() };
        return new_filesystem(kind, &device.path().display().to_string(), &options);
    }
    let what = || format!("mount {kind}");
    if kind == "overlay" && !overlay::takes_layers() {
        return old_overlay(options);
    }
    let context = fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC).map_err(io::Error::from).context(what)?;
    let configured = configure(context.as_fd(), kind, source, options);
    configured.map_err(io::Error::from).map_err(|error| {
        // The kernel explains itself in the context's log (fsopen(2)).
        let words = kernel_words(context.as_fd());
        let text = if words.is_empty() { what() } else { format!("mount {kind}: the kernel says {words:?}") };
        Error::new(error.kind().into(), text).with_source(error)
    })?;
    // There is nothing to be cleared of one that is new.
    let attributes = u32::try_from(options.attributes.set).expect("attributes of mounts");
    let attributes = MountAttrFlags::from_bits_retain(attributes);
    fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes).map_err(io::Error::from).context(what)
}

fn old_overlay(options: &Options) -> Result<OwnedFd> {
    let (layers, words): (Vec<String>, Vec<String>) =
        options.data.iter().cloned().partition(|word| word.starts_with("lowerdir="));
    let layers: Vec<String> =
        layers.iter().filter_map(|word| word.strip_prefix("lowerdir=")).flat_map(split_layers).collect();
    let mount = overlay::detached(&layers, &words, options.superblock_read_only)?;
    set_attributes(mount.as_fd(), options.attributes, false).context(|| "mount overlay")?;
    Ok(mount)
}

fn configure(context: BorrowedFd<'_>, kind: &str, source: &str, options: &Options) -> Result<(), Errno> {
    if !source.is_empty() {
        fsconfig_set_string(context, "source", source)?;
    }
    if options.superblock_read_only {
        fsconfig_set_flag(context, "ro")?;
    }
    for word in &options.data {
        match word.split_once('=') {
            Some(("lowerdir", layers)) if kind == "overlay" => set_layers(context, layers)?,
            Some((key, value)) => fsconfig_set_string(context, key, value)?,
            None => fsconfig_set_flag(context, word.as_str())?,
        }
    }
    fsconfig_create(context)
}

/// Layers from top to bottom, one by one (see [`overlay::takes_layers`]).
fn set_layers(context: BorrowedFd<'_>, layers: &str) -> Result<(), Errno> {
    split_layers(layers).try_for_each(|layer| fsconfig_set_string(context, "lowerdir+", layer.as_str()))
}

/// Splits the value of `lowerdir` at colons that no backslash protects (overlayfs's own rule).
pub fn split_layers(layers: &str) -> impl Iterator<Item = String> {
    let mut parts = vec![String::new()];
    let mut characters = layers.chars();
    while let Some(character) = characters.next() {
        match character {
            '\\' => parts.last_mut().expect("never empty").extend(characters.next()),
            ':' => parts.push(String::new()),
            other => parts.last_mut().expect("never empty").push(other),
        }
    }
    parts.into_iter()
}

fn kernel_words(context: BorrowedFd<'_>) -> String {
    let mut words = Vec::new();
    let mut buffer = [0; 512];
    while let Ok(len @ 1..) = rustix::io::read(context, &mut buffer) {
        let line = String::from_utf8_lossy(&buffer[..len]).trim().to_owned();
        // `e overlay: …`: the letter is the level.
        words.push(line.split_once(' ').map_or(line.clone(), |(_, text)| text.to_owned()));
    }
    words.join("; ")
}

/// A copy of what is at `dir`/`path`, mounted nowhere yet. An empty path is `dir` itself.
pub fn clone_tree(dir: BorrowedFd<'_>, path: &Path, recursive: bool) -> Result<OwnedFd> {
    let mut flags =
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    if recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    open_tree(dir, path, flags).map_err(io::Error::from).context(|| format!("bind {}", path.display()))
}

/// [`clone_tree`] of a path of this machine.
pub fn clone_path(path: &Path, recursive: bool) -> Result<OwnedFd> {
    clone_tree(CWD, path, recursive)
}

/// Changes attributes of a mount, or of all mounts below it too.
pub fn set_attributes(mount: BorrowedFd<'_>, attributes: Attributes, recursive: bool) -> Result<()> {
    if attributes.is_empty() {
        return Ok(());
    }
    let change =
        MountAttr { attr_set: attributes.set, attr_clr: attributes.clear, propagation: 0, userns_fd: 0 };
    mount_setattr(mount, &change, recursive).context(|| "set mount attributes")
}

pub fn set_propagation(mount: BorrowedFd<'_>, propagation: Propagation, recursive: bool) -> Result<()> {
    let change = MountAttr { attr_set: 0, attr_clr: 0, propagation: propagation.flag(), userns_fd: 0 };
    mount_setattr(mount, &change, recursive).context(|| format!("set propagation {propagation:?}"))
}

/// Shows the owners of a detached mount through the map of a user namespace.
pub fn set_idmap(mount: BorrowedFd<'_>, user_namespace: BorrowedFd<'_>, recursive: bool) -> Result<()> {
    let userns_fd = u64::try_from(user_namespace.as_raw_fd()).expect("an open fd");
    let change = MountAttr { attr_set: ATTR_IDMAP, attr_clr: 0, propagation: 0, userns_fd };
    let what = "map the owners of a mount";
    match mount_setattr(mount, &change, recursive) {
        // All else that the kernel calls invalid is ours to get right.
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Err(Error::failed_precondition(format!(
            "{what}: this kernel cannot do that for its file system (overlayfs: Linux 5.19, tmpfs: 6.3)"
        ))),
        other => other.context(|| what),
    }
}

#[repr(C)]
struct MountAttr {
    attr_set: u64,
    attr_clr: u64,
    propagation: u64,
    userns_fd: u64,
}

#[expect(unsafe_code, reason = "rustix has no mount_setattr")]
fn mount_setattr(mount: BorrowedFd<'_>, change: &MountAttr, recursive: bool) -> io::Result<()> {
    let mut flags = libc::AT_EMPTY_PATH;
    if recursive {
        flags |= libc::AT_RECURSIVE;
    }
    // SAFETY: the path is a static empty string; pointer and size describe `change`, which the kernel only
    // reads.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            flags,
            std::ptr::from_ref(change),
            size_of::<MountAttr>(),
        )
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Attaches a detached mount on top of what `target` is open on.
pub fn attach(mount: BorrowedFd<'_>, target: BorrowedFd<'_>) -> Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    let attached = move_mount(mount, "", target, "", flags);
    attached.map_err(|errno| io::Error::from(told_apart(errno, mount, target))).context(|| {
        let target = std::fs::read_link(proc_path(target)).unwrap_or_default();
        format!("attach mount to {}", target.display())
    })
}

/// A file on a directory, or the reverse, is "invalid" to `move_mount`, as much else is. `mount` calls it "not a
/// directory", and callers that help their users wait for that.
fn told_apart(errno: Errno, mount: BorrowedFd<'_>, target: BorrowedFd<'_>) -> Errno {
    let is_dir = |fd: BorrowedFd<'_>| {
        rustix::fs::fstat(fd).map(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Directory)
    };
    match (is_dir(mount), is_dir(target)) {
        (Ok(mount), Ok(target)) if errno == Errno::INVAL && mount != target => Errno::NOTDIR,
        _ => errno,
    }
}

/// Carries out the mounts of a snapshotter on a directory, in order. The target of each is below it.
///
/// On failure what was mounted is unmounted again.
pub fn mount_all(mounts: &[Mount], target: &Path) -> Result<()> {
    for (done, mount) in mounts.iter().enumerate() {
        if let Err(error) = mount_one(mount, target) {
            for _ in 0..done {
                // The error that counts is the first one; a busy mount goes when its user does.
                let _ = unmount(target, UnmountFlags::DETACH);
            }
            return Err(error.context(format!("mount root file system on {}", target.display())));
        }
    }
    Ok(())
}

fn mount_one(mount: &Mount, target: &Path) -> Result<()> {
    let options = Options::parse(&mount.options);
    let fd = detached(mount, &options)?;
    let target = if mount.target.is_empty() {
        open_path(target)?
    } else {
        let root = crate::beneath::Root::open(target)?;
        root.open_at(Path::new(&mount.target), OFlags::PATH)?
    };
    attach(fd.as_fd(), target.as_fd())?;
    for (propagation, recursive) in options.propagation {
        set_propagation(fd.as_fd(), propagation, recursive)?;
    }
    Ok(())
}

/// Opens the tree that mounts make, to look at it; it may be in use.
///
/// `InvalidArgument` as [`open_mounts`].
pub fn open_to_read(mounts: &[Mount]) -> Result<OwnedFd> {
    open_mounts(&tree_mounts::read_only(mounts))
}

/// Opens the tree that mounts make, mounted where nobody sees it: it goes with the descriptor, so that a
/// process that dies leaves nothing behind.
///
/// `InvalidArgument` unless it is a single mount: several need a place to be put together.
pub fn open_mounts(mounts: &[Mount]) -> Result<OwnedFd> {
    let [mount] = mounts else {
        return Err(Error::invalid_argument(format!("a tree of {} mounts, one expected", mounts.len())));
    };
    let mounted = detached(mount, &Options::parse(&mount.options))?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::openat(&mounted, ".", flags, Mode::empty())
        .map_err(io::Error::from)
        .context(|| format!("open the tree at {}", mount.source))
}

/// What a mount makes, attached nowhere yet. Its lower layers, or what it binds, show their owners through the map
/// of `uidmap=` and `gidmap=`, if it has these words.
pub fn detached(mount: &Mount, options: &Options) -> Result<OwnedFd> {
    let is_bind = options.bind != Bind::No || mount.kind == "bind";
    let (owners, options) = &take_owners(options)?;
    if !is_bind {
        let make = || new_filesystem(&mount.kind, &mount.source, options);
        return match owners {
            None => make(),
            Some(owners) if mount.kind == "overlay" => {
                let layers = options.data.iter().filter_map(|word| word.strip_prefix("lowerdir="));
                let mapped = |path| Layer { path, owners: Some(owners.clone()) };
                let layers: Vec<Layer> = layers.flat_map(split_layers).map(mapped).collect();
                overlay::with_owners(&layers, make)
            }
            Some(_) => Err(Error::invalid_argument(format!("mount {}: it cannot map owners", mount.kind))),
        };
    }
    let recursive = options.bind == Bind::Recursive;
    let fd = clone_path(Path::new(&mount.source), recursive)?;
    if let Some(owners) = owners {
        set_idmap(fd.as_fd(), idmap::namespace(owners)?.as_fd(), recursive)?;
    }
    set_attributes(fd.as_fd(), options.attributes, false)?;
    set_attributes(fd.as_fd(), options.recursive, true)?;
    Ok(fd)
}

/// The map that a mount asks for, and its other options.
fn take_owners(options: &Options) -> Result<(Option<Owners>, Options)> {
    let mut options = options.clone();
    let mut take = |key: &str| {
        let at = options.data.iter().position(|word| word.starts_with(key))?;
        Some(options.data.remove(at)[key.len()..].to_owned())
    };
    let owners = match (take("uidmap="), take("gidmap=")) {
        (Some(uids), Some(gids)) => Some(Owners::parse(&uids, &gids)?),
        (None, None) => None,
        _ => return Err(Error::invalid_argument("of uidmap and gidmap a mount has both or none")),
    };
    Ok((owners, options))
}

/// A lower layer of an overlay.
#[derive(Clone, Debug, PartialEq)]
pub struct Layer {
    pub path: String,
    /// The map through which it shows its owners.
    pub owners: Option<Owners>,
}

/// Opens layers on each other, the uppermost first, read-only and mounted nowhere.
pub fn open_layers(layers: &[Layer]) -> Result<OwnedFd> {
    let escaped = layers.iter().map(|layer| layer.path.replace('\\', "\\\\").replace(':', "\\:"));
    let lower = format!("lowerdir={}", escaped.collect::<Vec<_>>().join(":"));
    let options = Options { data: vec![lower], ..Options::default() };
    overlay::with_owners(layers, || {
        let mount = new_filesystem("overlay", "overlay", &options)?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let opened = rustix::fs::openat(&mount, ".", flags, Mode::empty()).map_err(io::Error::from);
        opened.context(|| "open an overlay")
    })
}

fn open_path(path: &Path) -> Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty())
        .map_err(io::Error::from)
        .context(|| format!("open {}", path.display()))
}

/// Unmounts what is mounted last on `target`, and says whether something was. Nothing is there of it afterwards:
/// `FailedPrecondition` while somebody uses it.
pub fn unmount_one(target: &Path) -> Result<bool> {
    match unmount(target, UnmountFlags::NOFOLLOW) {
        Ok(()) => Ok(true),
        Err(Errno::INVAL | Errno::NOENT) => Ok(false),
        Err(Errno::BUSY) => Err(Error::failed_precondition(format!(
            "unmount {}: it is in use: end the programs that have files of it open, or their working directory in it",
            target.display()
        ))),
        Err(errno) => Err(io::Error::from(errno)).context(|| format!("unmount {}", target.display())),
    }
}

/// Unmounts everything that is mounted on `target`, lazily: users that are left keep what they have. A
/// path that is not a mount point, or not there, is not an error.
pub fn unmount_all(target: &Path) -> Result<()> {
    loop {
        match unmount(target, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
            Ok(()) => {}
            Err(Errno::INVAL | Errno::NOENT) => return Ok(()),
            Err(errno) => {
                return Err(io::Error::from(errno)).context(|| format!("unmount {}", target.display()));
            }
        }
    }
}

/// A mount as `/proc/self/mountinfo` lists it (proc_pid_mountinfo(5)).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountPoint {
    pub path: PathBuf,
    /// The part of the file system that is mounted.
    pub root: PathBuf,
    pub kind: String,
    pub source: String,
    pub options: String,
    pub superblock_options: String,
    pub is_shared: bool,
    /// What is mounted elsewhere comes here.
    pub is_slave: bool,
}

/// The mount that a path without links lies in.
pub fn mount_point_of(path: &Path) -> Result<Option<MountPoint>> {
    let is_above = |point: &MountPoint| path.starts_with(&point.path);
    // Of those at one place the last covers the others.
    let above = mount_points()?.into_iter().filter(is_above);
    Ok(above.max_by_key(|point| point.path.components().count()))
}

/// The mounts of the calling process, outermost first.
pub fn mount_points() -> Result<Vec<MountPoint>> {
    let file = "/proc/self/mountinfo";
    let text = std::fs::read(file).context(|| format!("read {file}"))?;
    Ok(text.split(|byte| *byte == b'\n').filter_map(mount_point).collect())
}

/// A line of mountinfo. Names in it are whoever's: paths are kept byte for byte, of the rest what is no text is
/// replaced.
pub(crate) fn mount_point(line: &[u8]) -> Option<MountPoint> {
    let separator = b" - ";
    let at = line.windows(separator.len()).position(|here| here == separator)?;
    let (front, back) = (&line[..at], &line[at + separator.len()..]);
    let is_blank = |byte: &u8| *byte == b' ';
    let mut front = front.split(is_blank).skip(3);
    let (root, path, options) = (front.next()?, front.next()?, front.next()?);
    let fields: Vec<&[u8]> = front.collect();
    let has = |start: &str| fields.iter().any(|field| field.starts_with(start.as_bytes()));
    let (is_shared, is_slave) = (has("shared:"), has("master:"));
    let mut back = back.splitn(3, is_blank);
    let as_path = |bytes: &[u8]| PathBuf::from(OsString::from_vec(unescape(bytes)));
    let as_text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Some(MountPoint {
        path: as_path(path),
        root: as_path(root),
        kind: as_text(back.next()?),
        source: as_text(&unescape(back.next()?)),
        options: as_text(options),
        superblock_options: as_text(back.next().unwrap_or_default()),
        is_shared,
        is_slave,
    })
}

/// The kernel writes blanks and backslashes as three octal digits.
fn unescape(text: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(text.len());
    let mut rest = text;
    while let [first, tail @ ..] = rest {
        let code = tail.get(..3).and_then(|digits| std::str::from_utf8(digits).ok());
        match code.and_then(|digits| u8::from_str_radix(digits, 8).ok()).filter(|_| *first == b'\\') {
            Some(byte) => {
                plain.push(byte);
                rest = &tail[3..];
            }
            None => {
                plain.push(*first);
                rest = tail;
            }
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStrExt;

    use super::*;

    fn parse(words: &str) -> Options {
        Options::parse(&words.split(',').map(str::to_owned).collect::<Vec<_>>())
    }

    #[test]
    fn words_become_attributes() {
        let options = parse("nosuid,noexec,ro,mode=755,size=64k");
        assert_eq!(options.attributes.set, ATTR_NOSUID | ATTR_NOEXEC | ATTR_RDONLY);
        assert_eq!(options.data, ["mode=755", "size=64k"]);
        assert!(options.superblock_read_only);
        let last_wins = parse("ro,rw,nodev,dev");
        assert_eq!((last_wins.attributes.set, last_wins.superblock_read_only), (0, false));
        let times = parse("strictatime");
        assert_eq!(times.attributes, Attributes { set: ATTR_STRICTATIME, clear: ATTR_ATIME });
        assert_eq!(Options::default().of_bind(false), Attributes::default());
        let bind = times.of_bind(false);
        assert_eq!(bind.set, ATTR_STRICTATIME);
        assert_eq!(
            bind.clear & (ATTR_ATIME | ATTR_RDONLY | ATTR_NOEXEC),
            ATTR_ATIME | ATTR_RDONLY | ATTR_NOEXEC
        );
        let read_only = Options { attributes: Attributes::READ_ONLY, ..Options::default() };
        assert_eq!(read_only.of_bind(true), Attributes { set: ATTR_RDONLY, clear: ATTR_NOSYMFOLLOW });
        let read_only = read_only.of_bind(false);
        assert_eq!(read_only.set, ATTR_RDONLY);
        assert_eq!(read_only.clear & (ATTR_RDONLY | ATTR_ATIME | ATTR_NODEV), ATTR_NODEV);
        assert_eq!(parse("rro,rnosuid").recursive.set, ATTR_RDONLY | ATTR_NOSUID);
        assert_eq!(parse("rbind,rslave").propagation, [(Propagation::Slave, true)]);
        assert_eq!(parse("relatime").data, Vec::<String>::new());
    }

    #[test]
    fn access_times_that_are_only_negated_stay() {
        let times = |words: &str| {
            let Attributes { set, clear } = parse(words).of_bind(false);
            (set & ATTR_TIMES, clear & ATTR_TIMES)
        };
        let negations =
            ["atime", "norelatime", "nostrictatime", "diratime", "noatime,atime", "relatime,norelatime"];
        for words in negations.into_iter().chain(["ro", "nodiratime,diratime"]) {
            assert_eq!(times(words), (0, 0), "{words}");
            assert_ne!(parse(words).of_bind(false).clear & ATTR_NODEV, 0, "{words}: others are not had");
        }
        assert_eq!(times("relatime"), (0, ATTR_TIMES));
        assert_eq!(times("noatime,norelatime"), (ATTR_NOATIME, ATTR_TIMES));
        assert_eq!(times("strictatime,atime"), (ATTR_STRICTATIME, ATTR_TIMES));
        let kept = ATTR_TIMES & !ATTR_NODIRATIME;
        assert_eq!(times("nodiratime,norelatime"), (ATTR_NODIRATIME, kept));
        assert_eq!(times("nodiratime,strictatime"), (ATTR_NODIRATIME | ATTR_STRICTATIME, kept));
    }

    #[test]
    fn what_is_locked_is_not_taken_away() {
        let point = |options: &str| {
            let line = format!("36 35 98:0 / /mnt {options} - ext3 /dev/root ro");
            Locked::of_point(&mount_point(line.as_bytes()).unwrap())
        };
        let refused = |source: &str, words: &str| point(source).check(parse(words).of_bind(true)).is_err();
        for (source, words) in [
            ("ro,relatime", "rw,nosuid"),
            ("rw,nosuid,relatime", "suid"),
            ("rw,nodev,relatime", "dev"),
            ("rw,noexec,relatime", "exec"),
            ("rw,nodiratime,relatime", "strictatime"),
            ("rw,nodiratime,relatime", "noatime"),
            ("rw,relatime", "nodiratime"),
            ("rw", "relatime"),
            ("rw", "nodiratime"),
            ("rw,noatime", "relatime"),
        ] {
            assert!(refused(source, words), "{source}: {words}");
        }
        for (source, words) in [
            ("ro,noexec,noatime", "ro,nosuid,nodev"),
            ("ro,relatime", "rw,ro"),
            ("ro,nosymfollow,relatime", "symfollow"),
            ("rw,noatime,nodiratime", "atime"),
            ("rw,nodiratime,relatime", "diratime"),
            ("rw", "nostrictatime"),
            ("rw", "strictatime"),
            ("rw,relatime", "relatime,rw,dev"),
        ] {
            assert!(!refused(source, words), "{source}: {words}");
        }
        assert!(point("ro,relatime").check(parse("rrw").recursive).is_err());
        // Two ways to the same.
        let points = mount_points().unwrap();
        let proc = points.iter().rfind(|point| point.path == Path::new("/proc")).unwrap();
        let opened = open_path(Path::new("/proc")).unwrap();
        assert_eq!(Locked::of(opened.as_fd()).unwrap(), Locked::of_point(proc));
        let message = point("ro").check(parse("rw").of_bind(true)).unwrap_err().chain();
        assert!(
            message.contains("operation not permitted") && message.contains("leave \"rw\" out"),
            "{message}"
        );
    }

    #[test]
    fn every_word_that_is_told_is_known() {
        for word in option_words() {
            let options = parse(&word);
            let passed_on = options.data == [word.clone()];
            assert!(passed_on == FILE_SYSTEM.contains(&word.as_str()), "{word}: {options:?}");
        }
        assert_eq!(parse("size=1m").foreign_to_bind(), Some("size=1m"));
        assert_eq!(parse("sync,rbind,rro").foreign_to_bind(), None);
    }

    #[test]
    fn layers_are_split_at_bare_colons() {
        let layers: Vec<String> = split_layers(r"/a:/b\:c:/d\\e").collect();
        assert_eq!(layers, ["/a", "/b:c", r"/d\e"]);
    }

    #[test]
    fn mountinfo_is_read() {
        let line =
            r"36 35 98:0 /mnt1 /mnt\0402 rw,noatime shared:1 master:2 - ext3 /dev/root rw,errors=continue";
        let mount = mount_point(line.as_bytes()).unwrap();
        assert_eq!(
            (mount.path.to_str(), mount.kind.as_str(), mount.is_shared),
            (Some("/mnt 2"), "ext3", true)
        );
        assert_eq!((mount.root.to_str(), mount.is_slave), (Some("/mnt1"), true));
        assert_eq!((&*mount.options, &*mount.superblock_options), ("rw,noatime", "rw,errors=continue"));
        assert_eq!(unescape(br"/a\040b\134c\9"), br"/a b\c\9");
        assert_eq!(mount_point(b""), None);
        assert!(mount_points().unwrap().iter().any(|mount| mount.path == Path::new("/")));
    }

    /// Whoever may mount calls places as they like.
    #[test]
    fn mounts_whose_names_are_no_text_are_read() {
        let line = b"36 35 0:40 /of\xfe\\012 /mnt/\xff\\040x rw shared:1 - tmp\xc3 \xff\\134 rw,name=\xff";
        let mount = mount_point(line).unwrap();
        let bytes = |path: &Path| path.as_os_str().as_bytes().to_vec();
        assert_eq!(
            (bytes(&mount.path), bytes(&mount.root)),
            (b"/mnt/\xff x".to_vec(), b"/of\xfe\n".to_vec())
        );
        assert_eq!((&*mount.kind, &*mount.source), ("tmp\u{fffd}", "\u{fffd}\\"));
        assert_eq!((&*mount.superblock_options, mount.is_shared), ("rw,name=\u{fffd}", true));
    }

    #[test]
    fn a_hundred_and_twenty_layers_are_one_tree() {
        if !stdx::testing::is_root("a mount") {
            return;
        }
        let dir =
            tempfile::TempDir::with_prefix("a-rather-long-name-so-that-the-sum-exceeds-a-page-").unwrap();
        let layers: Vec<String> = (0..120)
            .map(|layer| {
                let path = dir.path().join(format!("layer{layer}"));
                std::fs::create_dir(&path).unwrap();
                std::fs::write(path.join(format!("file{layer}")), "").unwrap();
                path.display().to_string()
            })
            .collect();
        for name in ["upper", "work", "merged"] {
            std::fs::create_dir(dir.path().join(name)).unwrap();
        }
        let options = vec![
            format!("lowerdir={}", layers.join(":")),
            format!("upperdir={}", dir.path().join("upper").display()),
            format!("workdir={}", dir.path().join("work").display()),
        ];
        let overlay =
            Mount { kind: "overlay".into(), source: "overlay".into(), target: String::new(), options };
        let merged = dir.path().join("merged");
        mount_all(std::slice::from_ref(&overlay), &merged).unwrap();
        assert_eq!(std::fs::read_dir(&merged).unwrap().count(), 120);
        unmount_all(&merged).unwrap();
        assert_eq!(std::fs::read_dir(&merged).unwrap().count(), 0);

        let wrong = Mount { options: vec!["lowerdir=/nosuch".into()], ..overlay };
        let error = mount_all(&[wrong], &merged).unwrap_err();
        assert!(error.chain().contains("overlay"), "{error:?}");
    }
}
