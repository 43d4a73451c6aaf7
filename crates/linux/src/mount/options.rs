//! Mount options: those of mount(8) and of the OCI runtime spec.

pub(super) const ATTR_RDONLY: u64 = libc::MOUNT_ATTR_RDONLY;
pub(super) const ATTR_NOSUID: u64 = libc::MOUNT_ATTR_NOSUID;
pub(super) const ATTR_NODEV: u64 = libc::MOUNT_ATTR_NODEV;
pub(super) const ATTR_NOEXEC: u64 = libc::MOUNT_ATTR_NOEXEC;
pub(super) const ATTR_ATIME: u64 = libc::MOUNT_ATTR__ATIME;
pub(super) const ATTR_NOATIME: u64 = libc::MOUNT_ATTR_NOATIME;
pub(super) const ATTR_STRICTATIME: u64 = libc::MOUNT_ATTR_STRICTATIME;
pub(super) const ATTR_NODIRATIME: u64 = libc::MOUNT_ATTR_NODIRATIME;
/// All access time attributes.
pub(super) const ATTR_TIMES: u64 = ATTR_ATIME | ATTR_NODIRATIME;
pub(super) const ATTR_NOSYMFOLLOW: u64 = libc::MOUNT_ATTR_NOSYMFOLLOW;

/// Propagation types (mount_namespaces(7)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Propagation {
    Shared,
    Slave,
    Private,
    Unbindable,
}

impl Propagation {
    pub(super) fn flag(self) -> u64 {
        match self {
            Propagation::Shared => libc::MS_SHARED,
            Propagation::Slave => libc::MS_SLAVE,
            Propagation::Private => libc::MS_PRIVATE,
            Propagation::Unbindable => libc::MS_UNBINDABLE,
        }
    }

    /// Parses `shared`, `rshared` and so on. True means recursive.
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

    /// The kernel requires the whole field of access times to be cleared before one is set.
    fn access_time(&mut self, set: u64) {
        self.add(0, ATTR_ATIME);
        self.clear |= ATTR_ATIME;
        self.set |= set;
    }
}

/// Whether a mount is a bind mount.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Bind {
    #[default]
    No,
    /// One file system.
    Single,
    /// With all mounts below.
    Recursive,
}

/// Parsed mount options.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    pub bind: Bind,
    pub attributes: Attributes,
    /// For the mount and all below it (`rro`, `rnosuid`, …).
    pub recursive: Attributes,
    /// The access time that an option sets, and no later one negates: 0 for `relatime`.
    pub named_times: Option<u64>,
    pub propagation: Vec<(Propagation, bool)>,
    /// Read-only for the file system itself, beside the mount.
    pub superblock_read_only: bool,
    /// Copies the content of the target directory into a new tmpfs (`tmpcopyup`).
    pub copy_up: bool,
    /// `idmap`: maps owners; true is `ridmap`.
    pub idmap: Option<bool>,
    pub remount: bool,
    /// `loop`: the source is a file, which is attached to a loop device while it is mounted.
    pub is_loop: bool,
    /// All other options, for the file system.
    pub data: Vec<String>,
}

impl Options {
    /// Parses options in their order: a later one overrides an earlier one. Unknown options are for the file system.
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
                // Each negates its own option only.
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

    /// Attributes of a bind mount. As with runc, a bind mount that names any clears the others of its source: `ro`
    /// alone allows execution on a mount that is `noexec` elsewhere. Access times stay unless set, also if negated
    /// (`atime`, `norelatime`, `nostrictatime`, `diratime`); in a user namespace (`keeps_locked`) so do attributes that
    /// the kernel has locked for it (mount_namespaces(7)).
    pub fn of_bind(&self, keeps_locked: bool) -> Attributes {
        let lockable = ATTR_RDONLY | ATTR_NOSUID | ATTR_NODEV | ATTR_NOEXEC;
        let all = ATTR_NOSYMFOLLOW | if keeps_locked { 0 } else { lockable };
        if self.attributes.is_empty() {
            return self.attributes;
        }
        let set = self.attributes.set & !ATTR_ATIME | self.named_times.unwrap_or(0);
        let names_times = self.named_times.is_some() || set & ATTR_NODIRATIME != 0;
        let clear = self.attributes.clear & !ATTR_TIMES | if names_times { ATTR_TIMES } else { 0 };
        // An attribute that is set must not be cleared, except the access time field, which must (mount_setattr(2)).
        Attributes { set, clear: (clear | all) & !(set & !ATTR_ATIME) }
    }

    /// The first option that a bind mount cannot have. Options of the file system as a whole, which is mounted already,
    /// are ignored.
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

/// Attribute options: plain for the mount alone, with the prefix `r` recursive.
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

/// Options that name the default, that mount(2) ignores and fsconfig(2) refuses, or that only mount(8) uses.
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

/// Options that the kernel accepts for any file system.
const FILE_SYSTEM: [&str; 7] = ["sync", "async", "dirsync", "mand", "nomand", "lazytime", "nolazytime"];

const PROPAGATIONS: [&str; 4] = ["shared", "slave", "private", "unbindable"];

/// Every option that [`Options`] knows, except those of particular file systems.
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

#[cfg(test)]
mod tests {
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
    fn every_option_of_features_is_parsed() {
        for word in option_words() {
            let options = parse(&word);
            let passed_on = options.data == [word.clone()];
            assert!(passed_on == FILE_SYSTEM.contains(&word.as_str()), "{word}: {options:?}");
        }
        assert_eq!(parse("size=1m").foreign_to_bind(), Some("size=1m"));
        assert_eq!(parse("sync,rbind,rro").foreign_to_bind(), None);
    }
}
