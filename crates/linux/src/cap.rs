//! Capabilities (capabilities(7)): the five sets of a process.

use std::io;

use types::spec::runtime::Capabilities;
use types::{Context, Result};

/// By number, without `CAP_` (`linux/capability.h`).
const NAMES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// A set of capabilities, one bit each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CapSet(pub u64);

impl CapSet {
    /// Of its many rights, that to load a filter of system calls without `no_new_privs` (seccomp(2)).
    pub const SYS_ADMIN: CapSet = CapSet(1 << 21);

    /// The named capabilities. Names unknown to this program or this kernel are ignored, as runc does: a newer caller
    /// may ask for what an older kernel lacks.
    pub fn from_names(names: &[String]) -> CapSet {
        CapSet(names.iter().filter_map(|name| number(name)).fold(0, |bits, cap| bits | 1 << cap))
    }

    pub fn contains(self, cap: u32) -> bool {
        self.0 & 1 << cap != 0
    }

    /// The calling thread's bounding set: no program that it executes can have more.
    pub fn bounding() -> CapSet {
        CapSet((0..64).filter(|cap| is_bounding(*cap).unwrap_or(false)).fold(0, |bits, cap| bits | 1 << cap))
    }

    /// Names as in specs: `CAP_CHOWN`.
    pub fn names(self) -> Vec<String> {
        let known = (0..).zip(NAMES).filter(|(cap, _)| self.contains(*cap));
        known.map(|(_, name)| format!("CAP_{name}")).collect()
    }
}

/// All capabilities that this version knows.
pub fn all_names() -> Vec<String> {
    NAMES.iter().map(|name| format!("CAP_{name}")).collect()
}

/// The number of a capability, with or without `CAP_`, in any case.
pub fn number(name: &str) -> Option<u32> {
    let upper = name.to_ascii_uppercase();
    let bare = upper.strip_prefix("CAP_").unwrap_or(&upper);
    (0..).zip(NAMES).find(|(_, known)| *known == bare).map(|(cap, _)| cap)
}

/// Leaves only the wanted capabilities in the bounding set. Comes before the change of user.
pub fn limit_bounding(wanted: CapSet) -> Result<()> {
    let last = last_cap();
    for cap in (0..=last).filter(|cap| !wanted.contains(*cap)) {
        prctl(libc::PR_CAPBSET_DROP, cap.into(), 0)
            .context(|| format!("drop capability {cap} from the bounding set"))?;
    }
    Ok(())
}

/// Keeps the permitted set over the change of user that follows.
pub fn keep_over_setuid(keep: bool) -> Result<()> {
    prctl(libc::PR_SET_KEEPCAPS, keep.into(), 0).context(|| "prctl(PR_SET_KEEPCAPS)")
}

/// The sets that [`apply`] has given the calling thread.
#[must_use]
pub struct Applied {
    effective: u64,
    permitted: u64,
    inheritable: u64,
    /// Permitted beside these sets, until they are given up.
    kept: u64,
}

impl Applied {
    /// Makes the kept capabilities effective.
    pub fn use_kept(&self) -> Result<()> {
        self.set(self.kept)
    }

    /// Leaves the calling thread what was wanted. No system call is made if nothing was kept beside that.
    pub fn give_up_kept(self) -> Result<()> {
        self.set(0)
    }

    fn set(&self, more: u64) -> Result<()> {
        if self.kept == 0 {
            return Ok(());
        }
        capset(self.effective | more, self.permitted | more, self.inheritable).context(|| "set capabilities")
    }
}

/// Sets effective, permitted, inheritable and ambient. Comes after the change of user. `kept` stays permitted, without
/// being effective, unless it is wanted.
pub fn apply(wanted: &Capabilities, kept: CapSet) -> Result<Applied> {
    let bounding = CapSet::bounding().0;
    let set = |names: &[String]| CapSet::from_names(names).0 & bounding;
    let (permitted, inheritable) = (set(&wanted.permitted), set(&wanted.inheritable));
    let effective = set(&wanted.effective) & permitted;
    let kept = kept.0 & !effective;
    capset(effective, permitted | kept, inheritable).context(|| "set capabilities")?;
    prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL.cast_unsigned().into(), 0)
        .context(|| "clear the ambient capabilities")?;
    let ambient = set(&wanted.ambient) & permitted & inheritable;
    for cap in (0..64_u64).filter(|cap| ambient & 1 << cap != 0) {
        prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_RAISE.cast_unsigned().into(), cap)
            .context(|| format!("raise ambient capability {cap}"))?;
    }
    Ok(Applied { effective, permitted, inheritable, kept })
}

/// Drops all capabilities, also for programs executed later. Does not need `/proc`.
pub fn drop_all() -> Result<()> {
    limit_bounding(CapSet::default())?;
    capset(0, 0, 0).context(|| "drop the capabilities")?;
    prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL.cast_unsigned().into(), 0)
        .context(|| "clear the ambient capabilities")
}

/// The highest capability of this kernel.
fn last_cap() -> u32 {
    let known = u32::try_from(NAMES.len()).expect("forty-one");
    (known..64).find(|cap| is_bounding(*cap).is_err()).map_or(63, |cap| cap - 1)
}

/// Whether a capability is in the bounding set. Asked by prctl(2), as the `/proc` in sight may be the container's, or
/// missing.
#[expect(unsafe_code, reason = "this option of prctl takes a number only")]
fn is_bounding(cap: u32) -> io::Result<bool> {
    // SAFETY: numbers only.
    match unsafe { libc::prctl(libc::PR_CAPBSET_READ, u64::from(cap), 0_u64, 0_u64, 0_u64) } {
        0 => Ok(false),
        1.. => Ok(true),
        _ => Err(io::Error::last_os_error()),
    }
}

#[expect(unsafe_code, reason = "rustix has no capset for whole sets")]
fn capset(effective: u64, permitted: u64, inheritable: u64) -> io::Result<()> {
    #[repr(C)]
    struct Header {
        version: u32,
        pid: i32,
    }
    #[repr(C)]
    struct Data {
        effective: u32,
        permitted: u32,
        inheritable: u32,
    }
    const VERSION_3: u32 = 0x2008_0522;
    let low = |bits: u64| u32::try_from(bits & 0xffff_ffff).expect("masked");
    let high = |bits: u64| u32::try_from(bits >> 32).expect("shifted");
    let header = Header { version: VERSION_3, pid: 0 };
    let data = [
        Data { effective: low(effective), permitted: low(permitted), inheritable: low(inheritable) },
        Data { effective: high(effective), permitted: high(permitted), inheritable: high(inheritable) },
    ];
    // SAFETY: version 3 reads one header and two data structures, which live across the call.
    let result = unsafe { libc::syscall(libc::SYS_capset, &raw const header, data.as_ptr()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[expect(unsafe_code, reason = "these options of prctl take numbers only")]
fn prctl(option: libc::c_int, second: u64, third: u64) -> io::Result<()> {
    // SAFETY: no option used in this module takes a pointer.
    let result = unsafe { libc::prctl(option, second, third, 0_u64, 0_u64) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bounding_set_is_the_one_that_proc_shows() {
        let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
        let shown = status.lines().find_map(|line| line.strip_prefix("CapBnd:")).unwrap();
        assert_eq!(format!("{:016x}", CapSet::bounding().0), shown.trim());
    }

    #[test]
    fn names_and_numbers_agree() {
        assert_eq!(number("CAP_CHOWN"), Some(0));
        assert_eq!(number("sys_admin"), Some(21));
        assert_eq!(number("CAP_CHECKPOINT_RESTORE"), Some(40));
        assert_eq!(number("CAP_NOSUCH"), None);
        let set = CapSet::from_names(&["CAP_KILL".into(), "CAP_BPF".into(), "CAP_NOSUCH".into()]);
        assert_eq!(set.names(), ["CAP_KILL", "CAP_BPF"]);
        assert_eq!(CapSet::SYS_ADMIN.names(), ["CAP_SYS_ADMIN"]);
    }

    #[test]
    fn a_kept_capability_is_permitted_until_it_is_given_up() {
        if !stdx::testing::is_root("a capability") {
            return;
        }
        let sets = || {
            let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
            let set = |name: &str| {
                let shown = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
                CapSet(u64::from_str_radix(shown.trim(), 16).unwrap()).names().join(" ")
            };
            [set("CapEff:"), set("CapPrm:")]
        };
        let check = |wanted: &[&str], expected: [[&str; 2]; 3]| {
            let names: Vec<String> = wanted.iter().map(ToString::to_string).collect();
            let wanted = Capabilities {
                bounding: names.clone(),
                effective: names.clone(),
                permitted: names,
                ..Capabilities::default()
            };
            let applied = apply(&wanted, CapSet::SYS_ADMIN).unwrap();
            let first = sets();
            applied.use_kept().unwrap();
            let second = sets();
            applied.give_up_kept().unwrap();
            assert_eq!([first, second, sets()], expected);
        };
        // They are a thread's own.
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let (one, both) = ("CAP_KILL", "CAP_KILL CAP_SYS_ADMIN");
                check(&["CAP_KILL"], [[one, both], [both, both], [one, one]]);
            });
            scope.spawn(|| check(&["CAP_SYS_ADMIN"], [["CAP_SYS_ADMIN"; 2]; 3]));
        });
    }
}
