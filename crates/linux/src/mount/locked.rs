//! Mount attributes that a user namespace may not clear (mount_namespaces(7)).

use std::io;
use std::os::fd::BorrowedFd;

use rustix::fs::StatVfsMountFlags;
use types::{Context, Error, Result};

use super::MountPoint;
use super::options::{
    ATTR_NOATIME, ATTR_NODEV, ATTR_NODIRATIME, ATTR_NOEXEC, ATTR_NOSUID, ATTR_RDONLY, ATTR_STRICTATIME,
    ATTR_TIMES, Attributes,
};

/// The locked attributes of a mount that another user namespace made, as the kernel reports them for a file in it. A
/// read-only file system counts as a read-only mount.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Locked(u64);

impl Locked {
    /// Attributes that cannot be cleared once locked, with the option that would clear each.
    const FLAGS: [(u64, &str, &str); 4] = [
        (ATTR_RDONLY, "ro", "rw"),
        (ATTR_NOSUID, "nosuid", "suid"),
        (ATTR_NODEV, "nodev", "dev"),
        (ATTR_NOEXEC, "noexec", "exec"),
    ];

    /// The attributes of the mount that a file, also with `O_PATH`, is open in.
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
        // Strictatime has no flag of its own.
        if !flags.intersects(StatVfsMountFlags::NOATIME | StatVfsMountFlags::RELATIME) {
            set |= ATTR_STRICTATIME;
        }
        Ok(Locked(set))
    }

    /// The attributes of a mount by its options in mountinfo.
    pub fn of_point(point: &MountPoint) -> Locked {
        let has = |word: &str| point.options.split(',').any(|other| other == word);
        let named = Locked::FLAGS.map(|(flag, word, _)| (flag, word));
        let times = [(ATTR_NOATIME, "noatime"), (ATTR_NODIRATIME, "nodiratime")];
        let set =
            named.iter().chain(&times).filter(|(_, word)| has(word)).fold(0, |set, (flag, _)| set | flag);
        let is_strict = !has("noatime") && !has("relatime");
        Locked(set | if is_strict { ATTR_STRICTATIME } else { 0 })
    }

    /// The restricting options that are wanted and that the mount lacks.
    pub fn lacks(self, wanted: Attributes) -> Vec<&'static str> {
        let lacking = Locked::FLAGS.iter().filter(|(flag, ..)| wanted.set & !self.0 & flag != 0);
        lacking.map(|(_, word, _)| *word).collect()
    }

    /// Refuses a change that clears a locked attribute, or changes access times, which are always locked.
    /// `PermissionDenied` then.
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

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::path::Path;

    use super::super::{Options, mount_point, mount_points, open_path};
    use super::*;

    fn parse(words: &str) -> Options {
        Options::parse(&words.split(',').map(str::to_owned).collect::<Vec<_>>())
    }

    #[test]
    fn locked_mount_attributes_cannot_be_cleared() {
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
        let lacks = |source: &str, words: &str| point(source).lacks(parse(words).attributes);
        assert_eq!(lacks("rw,nodev,relatime", "ro,nosuid,nodev,noatime"), ["ro", "nosuid"]);
        assert_eq!(lacks("ro,noexec,relatime", "rw,noexec"), [""; 0]);
        // Both ways agree.
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
}
