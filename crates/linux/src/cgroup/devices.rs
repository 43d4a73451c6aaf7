//! Device rules: which devices the processes of a cgroup may open and make.
//!
//! ```text
//! rules of the spec, then those every container gets ─▶ Policy { by default, exceptions }
//!                                                          ├─▶ version 1: lines for devices.allow, devices.deny
//!                                                          └─▶ version 2: a small eBPF program
//! ```
//!
//! A rule for all devices sets the default and drops the rules before it; others are exceptions to it. Version 1 cannot
//! express an exception to an exception, so it is refused in both versions.

use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};

use rustix::fs::{Mode, OFlags};
use types::spec::runtime::{DeviceRule, LinuxResources};
use types::{Context as _, Error, Result};

use super::{Cgroup, Member};

/// Sets the rules, unless the caller is in a user namespace or without privileges: there the kernel allows no rules,
/// and devices cannot be made anyway.
pub(super) fn restrict(cgroup: &Cgroup, resources: &LinuxResources) -> Result<()> {
    let policy = Policy::new(&resources.devices)?;
    if cgroup.members.is_empty() || !super::is_privileged() {
        return Ok(());
    }
    match (cgroup.controller("devices"), cgroup.unified()) {
        (Some(member), _) => write_lines(member, &policy),
        (None, Some(_)) if policy.allows_everything() => Ok(()),
        (None, Some(member)) => attach_program(member, &policy),
        (None, None) => Err(Error::failed_precondition("cgroup controller devices is not mounted")),
    }
}

/// The allowed devices if the default is to deny; None if the default is to allow.
pub(super) fn allowed(rules: &[DeviceRule]) -> Result<Option<Vec<Exception>>> {
    let policy = Policy::new(rules)?;
    Ok((!policy.allow_by_default).then_some(policy.exceptions))
}

const READ: u8 = 1;
const WRITE: u8 = 2;
const MAKE: u8 = 4;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Char,
    Block,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Exception {
    kind: Kind,
    /// None means any.
    pub(super) major: Option<u32>,
    pub(super) minor: Option<u32>,
    access: u8,
}

impl Exception {
    fn covers(&self, other: &Exception) -> bool {
        let any = |mine: Option<u32>, other: Option<u32>| mine.is_none() || mine == other;
        self.kind == other.kind && any(self.major, other.major) && any(self.minor, other.minor)
    }

    fn is_same_device(&self, other: &Exception) -> bool {
        (self.kind, self.major, self.minor) == (other.kind, other.major, other.minor)
    }

    /// In the format of `devices.allow`: `c 1:3 rwm`.
    fn line(&self) -> String {
        let kind = if self.kind == Kind::Char { 'c' } else { 'b' };
        let number = |number: Option<u32>| number.map_or_else(|| "*".to_owned(), |number| number.to_string());
        format!("{kind} {}:{} {}", number(self.major), number(self.minor), self.letters())
    }

    /// The access as letters of `rwm`.
    pub(super) fn letters(&self) -> String {
        let letters = [(READ, 'r'), (WRITE, 'w'), (MAKE, 'm')];
        letters.iter().filter(|(bit, _)| self.access & bit != 0).map(|(_, letter)| letter).collect()
    }

    pub(super) fn is_block(&self) -> bool {
        self.kind == Kind::Block
    }
}

const fn device(major: u32, minor: Option<u32>) -> Exception {
    Exception { kind: Kind::Char, major: Some(major), minor, access: READ | WRITE | MAKE }
}

/// Allowed for every container: mknod(2) for any device, and the devices that programs rely on.
const ALWAYS: &[Exception] = &[
    Exception { kind: Kind::Char, major: None, minor: None, access: MAKE },
    Exception { kind: Kind::Block, major: None, minor: None, access: MAKE },
    device(1, Some(3)), // null
    device(1, Some(8)), // random
    device(1, Some(7)), // full
    device(5, Some(0)), // tty
    device(1, Some(5)), // zero
    device(1, Some(9)), // urandom
    device(136, None),  // pts/*
    device(5, Some(2)), // ptmx
    // Tunnel programs make this node themselves; runc removed it once, and added it again.
    device(10, Some(200)),
];

#[derive(Clone, Debug, PartialEq, Eq)]
struct Policy {
    allow_by_default: bool,
    exceptions: Vec<Exception>,
}

impl Policy {
    fn new(rules: &[DeviceRule]) -> Result<Policy> {
        let mut policy = Policy { allow_by_default: false, exceptions: Vec::new() };
        for rule in rules {
            match parse(rule)? {
                Some(exception) => policy.add(rule.allow, exception)?,
                None => policy = Policy { allow_by_default: rule.allow, exceptions: Vec::new() },
            }
        }
        if !policy.allow_by_default {
            for exception in ALWAYS {
                policy.add(true, *exception)?;
            }
        }
        Ok(policy)
    }

    fn allows_everything(&self) -> bool {
        self.allow_by_default && self.exceptions.is_empty()
    }

    fn add(&mut self, allow: bool, rule: Exception) -> Result<()> {
        let known = self.exceptions.iter().position(|exception| exception.is_same_device(&rule));
        if allow != self.allow_by_default {
            match known {
                Some(index) => self.exceptions[index].access |= rule.access,
                None => self.exceptions.push(rule),
            }
            return Ok(());
        }
        let wider = |other: &&Exception| {
            other.covers(&rule) && !other.is_same_device(&rule) && other.access & rule.access != 0
        };
        if let Some(wider) = self.exceptions.iter().find(wider) {
            return Err(Error::invalid_argument(format!(
                "device rule {:?} makes a hole in rule {:?}, which cgroups cannot express",
                rule.line(),
                wider.line()
            )));
        }
        if let Some(index) = known {
            self.exceptions[index].access &= !rule.access;
            self.exceptions.retain(|exception| exception.access != 0);
        }
        Ok(())
    }
}

/// Parses a rule as an exception; None if it is for all devices.
fn parse(rule: &DeviceRule) -> Result<Option<Exception>> {
    let kind = match rule.kind.as_str() {
        "" | "a" => return Ok(None),
        "c" | "u" => Kind::Char,
        "b" => Kind::Block,
        kind => return Err(Error::invalid_argument(format!("device rule of type {kind:?}"))),
    };
    // -1 is the old form of "any".
    let number = |number: Option<i64>| match number {
        None | Some(-1) => Ok(None),
        Some(number) => u32::try_from(number)
            .map(Some)
            .map_err(|_| Error::invalid_argument(format!("device number {number} in a device rule"))),
    };
    // Other letters are ignored, as with runc; the runtime warns of them.
    let bits = rule.access.chars().map(|letter| match letter {
        'r' => READ,
        'w' => WRITE,
        'm' => MAKE,
        _ => 0,
    });
    let access = bits.fold(0, |access, bit| access | bit);
    if access == 0 {
        return Err(Error::invalid_argument(format!(
            "device rule with access {:?}, which has none of r, w and m",
            rule.access
        )));
    }
    Ok(Some(Exception { kind, major: number(rule.major)?, minor: number(rule.minor)?, access }))
}

// --- version 1 ---

/// A new cgroup inherits its parent's rules. "a" in `devices.deny` denies all, and each line in `devices.allow` allows
/// one again.
fn write_lines(member: &Member, policy: &Policy) -> Result<()> {
    let (all, one) = if policy.allow_by_default {
        ("devices.allow", "devices.deny")
    } else {
        ("devices.deny", "devices.allow")
    };
    let is_open = policy.allow_by_default && member.read("devices.list")?.trim() == "a *:* rwm";
    if !is_open {
        member.write(all, "a")?;
    }
    let file = member.open_file(one, OFlags::WRONLY)?;
    for exception in &policy.exceptions {
        let line = exception.line();
        let written = rustix::io::write(&file, line.as_bytes()).map_err(io::Error::from);
        written.context(|| member.cannot_write(one, &line))?;
    }
    Ok(())
}

// --- version 2 ---

/// An instruction of eBPF (Documentation/bpf/standardization/instruction-set.rst).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Instruction {
    code: u8,
    /// Destination in the low half, source in the high.
    registers: u8,
    offset: i16,
    immediate: i32,
}

const LOAD_WORD: u8 = 0x61;
const AND: u8 = 0x54;
const SHIFT_RIGHT: u8 = 0x74;
const MOVE: u8 = 0xb4;
const MOVE_REGISTER: u8 = 0xbc;
const JUMP_UNEQUAL: u8 = 0x55;
const JUMP_UNEQUAL_REGISTER: u8 = 0x5d;
const JUMP_EQUAL: u8 = 0x15;
const EXIT: u8 = 0x95;

/// Registers of the program, with the fields of `struct bpf_cgroup_dev_ctx`.
const RESULT: u8 = 0;
const CONTEXT: u8 = 1; // scratch once the context is loaded
const KIND: u8 = 2;
const ACCESS: u8 = 3;
const MAJOR: u8 = 4;
const MINOR: u8 = 5;

fn op(code: u8, destination: u8, source: u8, offset: i16, immediate: u32) -> Instruction {
    Instruction { code, registers: source << 4 | destination, offset, immediate: immediate.cast_signed() }
}

/// Returns 1 for allowed and 0 for denied.
fn program(policy: &Policy) -> Vec<Instruction> {
    let mut code = vec![
        op(LOAD_WORD, KIND, CONTEXT, 0, 0),
        op(AND, KIND, 0, 0, 0xffff),
        op(LOAD_WORD, ACCESS, CONTEXT, 0, 0),
        op(SHIFT_RIGHT, ACCESS, 0, 0, 16),
        op(LOAD_WORD, MAJOR, CONTEXT, 4, 0),
        op(LOAD_WORD, MINOR, CONTEXT, 8, 0),
    ];
    for exception in &policy.exceptions {
        code.extend(test(exception, !policy.allow_by_default));
    }
    code.extend(answer(policy.allow_by_default));
    code
}

fn answer(allow: bool) -> [Instruction; 2] {
    [op(MOVE, RESULT, 0, 0, u32::from(allow)), op(EXIT, 0, 0, 0, 0)]
}

/// The code for one exception. A mismatch jumps behind it.
fn test(exception: &Exception, allow: bool) -> Vec<Instruction> {
    let kind = if exception.kind == Kind::Block { 1 } else { 2 };
    let mut code = vec![op(JUMP_UNEQUAL, KIND, 0, 0, kind)];
    if let Some(major) = exception.major {
        code.push(op(JUMP_UNEQUAL, MAJOR, 0, 0, major));
    }
    if let Some(minor) = exception.minor {
        code.push(op(JUMP_UNEQUAL, MINOR, 0, 0, minor));
    }
    if exception.access != READ | WRITE | MAKE {
        // The access bits of bpf: 1 mknod, 2 read, 4 write.
        let bits = [(MAKE, 1), (READ, 2), (WRITE, 4)];
        let mask = bits.iter().filter(|(bit, _)| exception.access & bit != 0).map(|(_, bit)| bit).sum();
        code.push(op(MOVE_REGISTER, CONTEXT, ACCESS, 0, 0));
        code.push(op(AND, CONTEXT, 0, 0, mask));
        code.push(if allow {
            // Allowed only if all requested bits are …
            op(JUMP_UNEQUAL_REGISTER, CONTEXT, ACCESS, 0, 0)
        } else {
            // … and denied if any of them is.
            op(JUMP_EQUAL, CONTEXT, 0, 0, 0)
        });
    }
    code.extend(answer(allow));
    let len = code.len();
    for (index, instruction) in code.iter_mut().enumerate() {
        if matches!(instruction.code, JUMP_UNEQUAL | JUMP_UNEQUAL_REGISTER | JUMP_EQUAL) {
            instruction.offset =
                i16::try_from(len - index - 1).expect("a test has at most eight instructions");
        }
    }
    code
}

fn attach_program(member: &Member, policy: &Policy) -> Result<()> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let attach = || -> io::Result<()> {
        let program = load(&program(policy))?;
        let dir = rustix::fs::openat(&member.dir, ".", flags, Mode::empty())?;
        attach(program.as_fd(), dir.as_fd())
    };
    attach().context(|| format!("restrict devices of cgroup {}", member.path.display()))
}

const BPF_PROG_LOAD: libc::c_int = 5;
const BPF_PROG_ATTACH: libc::c_int = 8;
const BPF_PROG_TYPE_CGROUP_DEVICE: u32 = 15;
const BPF_CGROUP_DEVICE: u32 = 6;
const BPF_F_ALLOW_MULTI: u32 = 1 << 1;

/// The fields of `union bpf_attr` for `BPF_PROG_LOAD`, as far as they are used.
#[repr(C)]
struct LoadAttributes {
    kind: u32,
    instruction_count: u32,
    instructions: u64,
    license: u64,
    log: [u32; 4],
    kernel_version: u32,
    flags: u32,
}

/// Likewise for `BPF_PROG_ATTACH`.
#[repr(C)]
struct AttachAttributes {
    target: u32,
    program: u32,
    kind: u32,
    flags: u32,
}

#[expect(unsafe_code, reason = "bpf(2) has no safe face")]
fn load(instructions: &[Instruction]) -> io::Result<OwnedFd> {
    let license = c"Apache-2.0";
    let attributes = LoadAttributes {
        kind: BPF_PROG_TYPE_CGROUP_DEVICE,
        instruction_count: u32::try_from(instructions.len()).map_err(io::Error::other)?,
        instructions: instructions.as_ptr() as u64,
        license: license.as_ptr() as u64,
        log: [0; 4],
        kernel_version: 0,
        flags: 0,
    };
    // SAFETY: both pointers inside lead to memory that lives across the call, with the length given; the
    // size is that of the structure. The kernel makes every descriptor of a program close-on-exec.
    unsafe {
        let size = size_of::<LoadAttributes>();
        let fd = libc::syscall(libc::SYS_bpf, BPF_PROG_LOAD, &raw const attributes, size);
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(OwnedFd::from_raw_fd(i32::try_from(fd).map_err(io::Error::other)?))
    }
}

#[expect(unsafe_code, reason = "bpf(2) has no safe face")]
fn attach(program: BorrowedFd<'_>, dir: BorrowedFd<'_>) -> io::Result<()> {
    let attributes = AttachAttributes {
        target: dir.as_raw_fd().cast_unsigned(),
        program: program.as_raw_fd().cast_unsigned(),
        kind: BPF_CGROUP_DEVICE,
        flags: BPF_F_ALLOW_MULTI,
    };
    // SAFETY: the structure lives across the call and the size is its own.
    unsafe {
        let size = size_of::<AttachAttributes>();
        if libc::syscall(libc::SYS_bpf, BPF_PROG_ATTACH, &raw const attributes, size) < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(allow: bool, kind: &str, numbers: Option<(i64, i64)>, access: &str) -> DeviceRule {
        DeviceRule {
            allow,
            kind: kind.to_owned(),
            major: numbers.map(|numbers| numbers.0),
            minor: numbers.map(|numbers| numbers.1),
            access: access.to_owned(),
        }
    }

    /// Runs the program for an access of a character device.
    fn allows(policy: &Policy, major: u32, minor: u32, access: u32) -> bool {
        let code = program(policy);
        let mut registers = [0_u32; 6];
        let mut at = 0;
        loop {
            let instruction = code[at];
            let (destination, source) =
                (usize::from(instruction.registers & 15), usize::from(instruction.registers >> 4));
            let immediate = instruction.immediate.cast_unsigned();
            let mut jump = false;
            match instruction.code {
                LOAD_WORD => {
                    registers[destination] = match instruction.offset {
                        0 => access << 16 | 2,
                        4 => major,
                        _ => minor,
                    };
                }
                AND => registers[destination] &= immediate,
                SHIFT_RIGHT => registers[destination] >>= immediate,
                MOVE => registers[destination] = immediate,
                MOVE_REGISTER => registers[destination] = registers[source],
                JUMP_UNEQUAL => jump = registers[destination] != immediate,
                JUMP_UNEQUAL_REGISTER => jump = registers[destination] != registers[source],
                JUMP_EQUAL => jump = registers[destination] == immediate,
                EXIT => return registers[0] == 1,
                code => panic!("instruction {code:#x}"),
            }
            at += 1 + if jump { usize::try_from(instruction.offset).unwrap() } else { 0 };
        }
    }

    #[test]
    fn a_container_without_rules_has_the_usual_devices() {
        let policy = Policy::new(&[]).unwrap();
        assert!(allows(&policy, 1, 3, 2 | 4), "/dev/null");
        assert!(allows(&policy, 136, 7, 2), "/dev/pts/7");
        assert!(allows(&policy, 8, 0, 1), "mknod");
        assert!(allows(&policy, 10, 200, 2 | 4), "/dev/net/tun");
        assert!(!allows(&policy, 10, 229, 2), "/dev/fuse");
        assert!(!allows(&policy, 8, 0, 1 | 2), "more than mknod");
    }

    #[test]
    fn privileged_containers_may_do_all_but_exceptions() {
        let mut rules = vec![rule(true, "a", None, "rwm")];
        assert!(Policy::new(&rules).unwrap().allows_everything());
        rules.push(rule(false, "c", Some((10, 229)), "w"));
        let policy = Policy::new(&rules).unwrap();
        assert!(!allows(&policy, 10, 229, 2 | 4));
        assert!(allows(&policy, 10, 229, 2));
        rules.push(rule(true, "c", Some((10, 229)), "rwm"));
        assert!(Policy::new(&rules).unwrap().allows_everything());
    }

    #[test]
    fn holes_in_wider_rules_are_refused() {
        let rules = [
            rule(false, "", None, "rwm"),
            rule(true, "c", Some((10, -1)), "rw"),
            rule(false, "c", Some((10, 229)), "w"),
        ];
        let error = Policy::new(&rules).unwrap_err();
        assert_eq!(error.message().matches("c 10:").count(), 2, "{error}");
    }

    #[test]
    fn of_the_letters_of_an_access_the_known_ones_count() {
        for (access, expected) in [("rwa", "c 1:3 rw"), ("rx", "c 1:3 r"), ("mmR", "c 1:3 m")] {
            let exception = parse(&rule(true, "c", Some((1, 3)), access)).unwrap().unwrap();
            assert_eq!(exception.line(), expected, "{access}");
        }
        for access in ["", "x"] {
            let error = parse(&rule(true, "c", Some((1, 3)), access)).unwrap_err();
            assert!(error.message().contains("none of r, w and m"), "{error}");
        }
    }

    #[test]
    fn device_rules_have_the_kernels_format() {
        assert_eq!(ALWAYS[0].line(), "c *:* m");
        assert_eq!(device(136, None).line(), "c 136:* rwm");
    }
}
