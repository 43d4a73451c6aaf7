//! Creates directories and file systems before a mount, beneath directories of the daemon.
//!
//! Options of the mount ask for them, and are removed from it:
//!
//! | option | meaning |
//! |---|---|
//! | `X-containerd.mkdir.path=DIR[:MODE[:UID:GID]]` | create a directory with that mode (octal, else 0700) and owner |
//! | `X-containerd.mkfs.size=N[KMGTP][i][B]` | size of the file system in the source; an existing file is kept |
//! | `X-containerd.mkfs.fs=ext2`, `ext3`, `ext4`, `xfs` | its type, else ext4 |
//! | `X-containerd.mkfs.uuid=UUID` | its UUID |
//!
//! A file is formatted under another name and then renamed, so that an existing file always has a complete file system.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use linux::beneath::{Root, proc_path};
use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, Uid, fchmod, fchown, mkdirat, openat, renameat, unlinkat,
};
use rustix::io::Errno;
use types::id::is_uuid;
use types::{Context, Error, Mount, Result};

const MKDIR: &str = "X-containerd.mkdir.";
const MKFS: &str = "X-containerd.mkfs.";

const DIRECTORY_MODE: u32 = 0o700;
const IMAGE_MODE: u32 = 0o640;

/// The directories beneath which directories and file systems may be created.
pub(crate) struct Roots(pub(crate) Vec<PathBuf>);

impl Roots {
    /// Opens the parent directory of `path`, and returns the name in it. `Unimplemented` if it is beneath no root.
    fn parent<'p>(&self, path: &'p str, what: &str) -> Result<(OwnedFd, &'p Path)> {
        let path = Path::new(path);
        let found = self.0.iter().find_map(|root| Some((root, path.strip_prefix(root).ok()?)));
        let Some((root, inside)) = found else {
            let roots: Vec<_> = self.0.iter().map(|root| root.display().to_string()).collect();
            let message = format!("{what} {}: only beneath {}", path.display(), roots.join(" and "));
            return Err(Error::unimplemented(message));
        };
        let name = inside.file_name().map(Path::new);
        let name = name.ok_or_else(|| {
            Error::invalid_argument(format!("{what} {}: this is no path of something", path.display()))
        })?;
        let flags = OFlags::PATH | OFlags::DIRECTORY;
        let parent = inside.parent().unwrap_or(Path::new(""));
        Ok((Root::open(root)?.open_at(parent, flags).context(|| format!("{what} {}", path.display()))?, name))
    }
}

/// Removes the options without creating anything.
pub(crate) fn nothing(mount: Mount) -> Mount {
    let (_, options) = split(mount.options, MKDIR);
    let (_, options) = split(options, MKFS);
    Mount { options, ..mount }
}

/// Creates the directories that the mount asks for.
pub(crate) fn mkdir(mount: Mount, roots: &Roots) -> Result<Mount> {
    let (asked, options) = split(mount.options, MKDIR);
    for option in asked {
        let refused = |why: &str| Error::invalid_argument(format!("invalid mkdir option {option:?}: {why}"));
        let Some(value) = option.strip_prefix("path=") else { return Err(refused("only \"path\" is known")) };
        let parts: Vec<&str> = value.splitn(4, ':').collect();
        let mode = |text: &str| match u32::from_str_radix(text, 8) {
            Ok(mode) if mode <= 0o777 => Ok(mode),
            _ => Err(refused("the mode is octal and at most 777")),
        };
        let id = |text: &str| text.parse::<u32>().map_err(|_| refused("owners are numbers"));
        let (mode, owner) = match parts[..] {
            [_] => (None, None),
            [_, bits] => (Some(mode(bits)?), None),
            [_, bits, uid, gid] => (Some(mode(bits)?), Some((id(uid)?, id(gid)?))),
            _ => return Err(refused("a user comes with a group")),
        };
        make_directory(parts[0], mode, owner, roots)?;
    }
    Ok(Mount { options, ..mount })
}

/// Creates a directory. An existing one keeps its mode and owner, unless the mount asks for others.
fn make_directory(path: &str, mode: Option<u32>, owner: Option<(u32, u32)>, roots: &Roots) -> Result<()> {
    let (parent, name) = roots.parent(path, "create directory")?;
    let what = || format!("create directory {path}");
    let is_new = match mkdirat(&parent, name, Mode::from_raw_mode(DIRECTORY_MODE)) {
        Ok(()) => true,
        Err(Errno::EXIST) => false,
        Err(errno) => return Err(io::Error::from(errno)).context(what),
    };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let made = openat(&parent, name, flags, Mode::empty()).map_err(io::Error::from).context(what)?;
    if let Some((uid, gid)) = owner {
        fchown(&made, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))
            .map_err(io::Error::from)
            .context(what)?;
    }
    // After the owner, as chown(2) clears mode bits; and not by mkdir(2), which applies the umask.
    if let Some(mode) = mode.or(is_new.then_some(DIRECTORY_MODE)) {
        fchmod(&made, Mode::from_raw_mode(mode)).map_err(io::Error::from).context(what)?;
    }
    Ok(())
}

/// Creates the file system in the mount's source, if it does not exist.
pub(crate) fn mkfs(mount: Mount, roots: &Roots) -> Result<Mount> {
    let (asked, options) = split(mount.options, MKFS);
    let mut format = Format { kind: "ext4".to_owned(), uuid: None };
    let mut size = 0;
    for option in asked {
        match option.split_once('=') {
            Some(("size", value)) => size = size_of(value)?,
            Some(("fs", value)) => format.kind = value.to_owned(),
            Some(("uuid", value)) => format.uuid = Some(value.to_owned()),
            _ => return Err(Error::invalid_argument(format!("unknown mount option {MKFS}{option}"))),
        }
    }
    if size == 0 {
        return Err(Error::invalid_argument(format!("mkfs requires the option {MKFS}size")));
    }
    format.make(&mount.source, size, roots)?;
    Ok(Mount { options, ..mount })
}

struct Format {
    kind: String,
    uuid: Option<String>,
}

impl Format {
    fn make(&self, path: &str, size: u64, roots: &Roots) -> Result<()> {
        let (program, arguments) = self.command()?;
        let (parent, name) = roots.parent(path, "make the file system")?;
        let what = || format!("make the file system {path}");
        match rustix::fs::statat(&parent, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(found) if FileType::from_raw_mode(found.st_mode) == FileType::RegularFile => return Ok(()),
            Ok(_) => return Err(Error::failed_precondition(format!("{path} is there, and is no file"))),
            Err(Errno::NOENT) => {}
            Err(errno) => return Err(io::Error::from(errno)).context(what),
        }
        let unfinished = PathBuf::from(format!(".{}.mkfs", name.display()));
        match unlinkat(&parent, &unfinished, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(errno) => return Err(io::Error::from(errno)).context(what),
        }
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = openat(&parent, &unfinished, flags, Mode::from_raw_mode(IMAGE_MODE));
        let file = File::from(file.map_err(io::Error::from).context(what)?);
        let made = (|| {
            file.set_len(size).context(what)?;
            let place = fs::read_link(proc_path(parent.as_fd())).context(what)?.join(&unfinished);
            run(program, &arguments, &place).context(what)?;
            // After a power cut, an existing file counts as complete.
            file.sync_all().context(what)?;
            renameat(&parent, &unfinished, &parent, name).map_err(io::Error::from).context(what)
        })();
        if made.is_err() {
            let _ = unlinkat(&parent, &unfinished, AtFlags::empty()); // if it fails, the next attempt removes it
        }
        made
    }

    fn command(&self) -> Result<(&'static str, Vec<String>)> {
        if let Some(uuid) = self.uuid.as_ref().filter(|uuid| !is_uuid(uuid)) {
            return Err(Error::invalid_argument(format!("{MKFS}uuid={uuid}: this is no UUID")));
        }
        let uuid = |option: &str, prefix: &str| match &self.uuid {
            Some(uuid) => vec!["-q".to_owned(), option.to_owned(), format!("{prefix}{uuid}")],
            None => vec!["-q".to_owned()],
        };
        Ok(match self.kind.as_str() {
            "ext2" => ("mkfs.ext2", uuid("-U", "")),
            "ext3" => ("mkfs.ext3", uuid("-U", "")),
            "ext4" => ("mkfs.ext4", uuid("-U", "")),
            "xfs" => ("mkfs.xfs", uuid("-m", "uuid=")),
            other => {
                let message = format!("unsupported filesystem {other:?}: ext2, ext3, ext4 and xfs are made");
                return Err(Error::invalid_argument(message));
            }
        })
    }
}

fn run(program: &str, arguments: &[String], file: &Path) -> Result<()> {
    let output = Command::new(program).args(arguments).arg(file).stdin(Stdio::null()).output();
    let output = match output {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(Error::failed_precondition(format!("{program} is not installed, or not in PATH")));
        }
        output => output.context(|| format!("run {program}"))?,
    };
    if output.status.success() {
        return Ok(());
    }
    let said = [output.stdout, output.stderr].concat();
    let said: String = String::from_utf8_lossy(&said).trim().chars().take(1000).collect();
    Err(Error::failed_precondition(format!("{program}: {}: {}", output.status, said.replace('\n', "; "))))
}

/// Splits options into those with a prefix, from which it is removed, and the others.
fn split(options: Vec<String>, prefix: &str) -> (Vec<String>, Vec<String>) {
    let (mut asked, mut others) = (Vec::new(), Vec::new());
    for option in options {
        match option.strip_prefix(prefix) {
            Some(rest) => asked.push(rest.to_owned()),
            None => others.push(option),
        }
    }
    (asked, others)
}

/// Parses a size of at least one byte.
fn size_of(text: &str) -> Result<u64> {
    stdx::bytes(text)
        .filter(|bytes| *bytes > 0)
        .ok_or_else(|| Error::invalid_argument(format!("{MKFS}size={text}: a size is written like 64MiB")))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use types::ErrorKind;

    use super::*;

    fn mount(source: &str, options: &[String]) -> Mount {
        Mount { source: source.to_owned(), options: options.to_vec(), ..Mount::default() }
    }

    #[test]
    fn mkdir_options_create_directories_beneath_the_roots_only() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("ours");
        fs::create_dir(&root).unwrap();
        symlink("/etc", root.join("out")).unwrap();
        let roots = Roots(vec![root.clone()]);
        let make = |value: &str| {
            let option = format!("X-containerd.mkdir.path={value}");
            mkdir(mount("", &[option, "ro".into()]), &roots).map(|mount| mount.options)
        };
        let mode = |name: &str| fs::metadata(root.join(name)).unwrap().permissions().mode() & 0o7777;
        let inside = |name: &str| format!("{}/{name}", root.display());

        assert_eq!(make(&inside("plain")).unwrap(), ["ro"]);
        assert_eq!(mode("plain"), 0o700);
        make(&inside("open:0777")).unwrap();
        assert_eq!(mode("open"), 0o777);
        make(&inside("open:0755")).unwrap();
        assert_eq!(mode("open"), 0o755);
        make(&inside("open")).unwrap();
        assert_eq!(mode("open"), 0o755, "nothing was asked");
        make(&inside("open/inner")).unwrap();
        assert_eq!(mode("open/inner"), 0o700);

        let kind = |value: &str| make(value).unwrap_err().kind();
        assert_eq!(kind(&inside("no/parent")), ErrorKind::NotFound);
        assert_eq!(kind(&inside("x:abc")), ErrorKind::InvalidArgument);
        assert_eq!(kind(&inside("x:1777")), ErrorKind::InvalidArgument);
        assert_eq!(kind(&inside("x:700:0")), ErrorKind::InvalidArgument);
        assert_eq!(kind("/elsewhere"), ErrorKind::Unimplemented);
        assert_eq!(kind(&format!("{}x/y", root.display())), ErrorKind::Unimplemented);
        assert_eq!(kind(&inside("out/passwd.d")), ErrorKind::NotFound, "links end at the root");
        let other = mkdir(mount("", &["X-containerd.mkdir.mode=7".into()]), &roots);
        assert_eq!(other.unwrap_err().kind(), ErrorKind::InvalidArgument);
    }

    #[test]
    fn mkfs_sizes_may_have_units() {
        assert_eq!(size_of("100MiB").unwrap(), 100 << 20);
        for text in ["", "0", "-1", "many", "9999999p"] {
            assert!(size_of(text).unwrap_err().is(ErrorKind::InvalidArgument), "{text}");
        }
    }

    #[test]
    fn mkfs_leaves_an_existing_file_alone() {
        if Command::new("mkfs.ext4").arg("-V").output().is_err() {
            println!("skipped: mkfs.ext4 is not installed");
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let roots = Roots(vec![dir.path().to_owned()]);
        let path = dir.path().join("disk");
        let uuid = "00112233-4455-6677-8899-aabbccddeeff";
        let option = |words: &str| words.split(',').map(|word| format!("{MKFS}{word}")).collect::<Vec<_>>();
        let make = |words: &str| mkfs(mount(&path.display().to_string(), &option(words)), &roots);

        for words in ["fs=ext4", "size=8m,fs=btrfs", "size=8m,uuid=clear", "size=8m,what=1"] {
            assert!(make(words).unwrap_err().is(ErrorKind::InvalidArgument), "{words}");
        }
        // Too small for the program: nothing is left.
        assert!(make("size=1k").is_err());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);

        assert_eq!(make(&format!("size=8MiB,fs=ext4,uuid={uuid}")).unwrap().options, Vec::<String>::new());
        let made = fs::read(&path).unwrap();
        assert_eq!(made.len(), 8 << 20);
        // The superblock at 1024: magic number and UUID.
        assert_eq!(made[1024 + 0x38..1024 + 0x3A], [0x53, 0xEF]);
        assert_eq!(made[1024 + 0x68..1024 + 0x6C], [0x00, 0x11, 0x22, 0x33]);

        fs::write(&path, "what was here").unwrap();
        make("size=8m").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"what was here", "what is there is not touched");
    }
}
