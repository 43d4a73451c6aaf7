//! The compiler from a profile to a filter.

use types::spec::runtime::{LinuxSeccomp, SeccompArg, SeccompRule};
use types::{Error, Result};

use super::assemble::{Assembler, Label, Test};
use super::numbers::{self, Row, X32_BIT};
use super::{Architecture, Program, flag};

/// Verdicts (`SECCOMP_RET_*`).
pub(super) const KILL_THREAD: u32 = 0;
const KILL_PROCESS: u32 = 0x8000_0000;
const TRAP: u32 = 0x0003_0000;
const ERRNO: u32 = 0x0005_0000;
const NOTIFY: u32 = 0x7fc0_0000;
const TRACE: u32 = 0x7ff0_0000;
pub(super) const LOG: u32 = 0x7ffc_0000;
pub(super) const ALLOW: u32 = 0x7fff_0000;

const EPERM: u32 = 1;
const ENOSYS: u32 = 38;

/// Offsets in `struct seccomp_data`.
pub(super) const NUMBER: u32 = 0;
pub(super) const ARCHITECTURE: u32 = 4;
pub(super) const ARGUMENTS: u32 = 16;

/// Compiles a profile for this machine's architectures. Other architectures, and unknown call names, are ignored; words
/// that are not in the specification are `InvalidArgument`.
pub fn compile(profile: &LinuxSeccomp) -> Result<Program> {
    compile_for(profile, &architectures(profile)?)
}

fn compile_for(profile: &LinuxSeccomp, architectures: &[Architecture]) -> Result<Program> {
    let default = verdict(&profile.default_action, profile.default_errno_ret)?;
    if default == NOTIFY {
        return Err(Error::invalid_argument("seccomp action SCMP_ACT_NOTIFY cannot be the default"));
    }
    let rules = profile.syscalls.iter().map(Rule::read).collect::<Result<Vec<_>>>()?;
    let mut assembler = Assembler::new();
    let sections: Vec<_> = architectures
        .iter()
        .map(|architecture| {
            let table = Table::new(&rules, *architecture, default);
            (*architecture, table.write(&mut assembler, *architecture))
        })
        .collect();
    let entry = dispatch(&mut assembler, &sections, default);
    let instructions = assembler.finish(entry)?;
    Ok(Program { instructions, flags: flags(profile)? })
}

// --- words of the specification ---

/// Actions.
pub const ACTIONS: [(&str, u32); 9] = [
    ("SCMP_ACT_ALLOW", ALLOW),
    ("SCMP_ACT_ERRNO", ERRNO),
    ("SCMP_ACT_KILL", KILL_THREAD),
    ("SCMP_ACT_KILL_PROCESS", KILL_PROCESS),
    ("SCMP_ACT_KILL_THREAD", KILL_THREAD),
    ("SCMP_ACT_LOG", LOG),
    ("SCMP_ACT_NOTIFY", NOTIFY),
    ("SCMP_ACT_TRACE", TRACE),
    ("SCMP_ACT_TRAP", TRAP),
];

/// Flags of the filter.
pub const FLAGS: [(&str, u32); 4] = [
    ("SECCOMP_FILTER_FLAG_LOG", flag::LOG),
    ("SECCOMP_FILTER_FLAG_SPEC_ALLOW", flag::SPEC_ALLOW),
    ("SECCOMP_FILTER_FLAG_TSYNC", flag::TSYNC),
    ("SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV", flag::WAIT_KILLABLE_RECV),
];

/// Comparisons of arguments; `SCMP_CMP_MASKED_EQ` is handled apart.
const COMPARISONS: [(&str, Op); 6] = [
    ("SCMP_CMP_EQ", Op::Equal),
    ("SCMP_CMP_GE", Op::GreaterOrEqual),
    ("SCMP_CMP_GT", Op::Greater),
    ("SCMP_CMP_LE", Op::LessOrEqual),
    ("SCMP_CMP_LT", Op::Less),
    ("SCMP_CMP_NE", Op::NotEqual),
];
const MASKED_EQUAL: &str = "SCMP_CMP_MASKED_EQ";

/// Names of all comparisons.
pub fn operators() -> Vec<&'static str> {
    COMPARISONS.iter().map(|(word, _)| *word).chain([MASKED_EQUAL]).collect()
}

/// Names of the architectures whose programs this machine can run.
pub fn architecture_names() -> Vec<&'static str> {
    let runs = |architecture: &Option<Architecture>| architecture.is_some_and(|it| NATIVE.contains(&it));
    ARCHITECTURES.iter().filter(|(_, architecture)| runs(architecture)).map(|(name, _)| *name).collect()
}

#[cfg(target_arch = "x86_64")]
pub(super) const NATIVE: &[Architecture] = &[Architecture::X86_64, Architecture::X86, Architecture::X32];
#[cfg(target_arch = "aarch64")]
pub(super) const NATIVE: &[Architecture] = &[Architecture::Aarch64, Architecture::Arm];
#[cfg(target_arch = "riscv64")]
pub(super) const NATIVE: &[Architecture] = &[Architecture::Riscv64];

const ARCHITECTURES: &[(&str, Option<Architecture>)] = &[
    ("SCMP_ARCH_X86_64", Some(Architecture::X86_64)),
    ("SCMP_ARCH_X86", Some(Architecture::X86)),
    ("SCMP_ARCH_X32", Some(Architecture::X32)),
    ("SCMP_ARCH_AARCH64", Some(Architecture::Aarch64)),
    ("SCMP_ARCH_ARM", Some(Architecture::Arm)),
    ("SCMP_ARCH_RISCV64", Some(Architecture::Riscv64)),
    ("SCMP_ARCH_MIPS", None),
    ("SCMP_ARCH_MIPS64", None),
    ("SCMP_ARCH_MIPS64N32", None),
    ("SCMP_ARCH_MIPSEL", None),
    ("SCMP_ARCH_MIPSEL64", None),
    ("SCMP_ARCH_MIPSEL64N32", None),
    ("SCMP_ARCH_PPC", None),
    ("SCMP_ARCH_PPC64", None),
    ("SCMP_ARCH_PPC64LE", None),
    ("SCMP_ARCH_S390", None),
    ("SCMP_ARCH_S390X", None),
    ("SCMP_ARCH_PARISC", None),
    ("SCMP_ARCH_PARISC64", None),
    ("SCMP_ARCH_LOONGARCH64", None),
    ("SCMP_ARCH_M68K", None),
    ("SCMP_ARCH_SH", None),
    ("SCMP_ARCH_SHEB", None),
];

/// The machine's own architecture, whether the profile names it or not, and those it names that the machine can run.
fn architectures(profile: &LinuxSeccomp) -> Result<Vec<Architecture>> {
    let mut named = Vec::new();
    for name in &profile.architectures {
        match ARCHITECTURES.iter().find(|(known, _)| known == name) {
            Some((_, architecture)) => named.extend(*architecture),
            None => return Err(Error::invalid_argument(format!("seccomp architecture {name:?}"))),
        }
    }
    let runs = NATIVE.iter().enumerate();
    Ok(runs.filter(|(index, it)| *index == 0 || named.contains(it)).map(|(_, it)| *it).collect())
}

fn verdict(action: &str, errno: Option<u32>) -> Result<u32> {
    // The kernel truncates larger numbers silently.
    let number = errno.unwrap_or(EPERM);
    if number > 4095 {
        return Err(Error::invalid_argument(format!("seccomp errnoRet {number} is no error number")));
    }
    match ACTIONS.iter().find(|(known, _)| *known == action) {
        Some((_, verdict @ (ERRNO | TRACE))) => Ok(verdict | number),
        // `config-linux.md`, "Seccomp": it is an error.
        Some(_) if errno.is_some() => {
            Err(Error::invalid_argument(format!("seccomp action {action} has no errnoRet")))
        }
        Some((_, verdict)) => Ok(*verdict),
        None => Err(Error::invalid_argument(format!("seccomp action {action:?}"))),
    }
}

fn flags(profile: &LinuxSeccomp) -> Result<u32> {
    let mut flags = 0;
    for name in &profile.flags {
        match FLAGS.iter().find(|(known, _)| known == name) {
            Some((_, flag)) => flags |= flag,
            None => return Err(Error::invalid_argument(format!("seccomp flag {name:?}"))),
        }
    }
    // Without flags: no mitigation of speculative store bypass, which is expensive, and off by default on hosts too.
    if profile.flags.is_empty() {
        flags |= flag::SPEC_ALLOW;
    }
    if profile.syscalls.iter().any(|rule| rule.action == "SCMP_ACT_NOTIFY") {
        flags |= flag::NEW_LISTENER;
        if flags & flag::TSYNC != 0 {
            flags |= flag::TSYNC_ESRCH;
        }
    } else {
        // The kernel refuses this flag without a listener.
        flags &= !flag::WAIT_KILLABLE_RECV;
    }
    Ok(flags)
}

// --- what a profile says ---

/// A rule of the profile, resolved once for all architectures.
struct Rule {
    verdict: u32,
    /// Alternatives; always true if empty.
    tests: Vec<Vec<Condition>>,
    calls: Vec<&'static Row>,
}

impl Rule {
    fn read(rule: &SeccompRule) -> Result<Rule> {
        let verdict = verdict(&rule.action, rule.errno_ret)?;
        if rule.names.is_empty() || rule.names.iter().any(String::is_empty) {
            return Err(Error::invalid_argument(format!(
                "a seccomp rule of {} names no system call",
                rule.action
            )));
        }
        if verdict == NOTIFY && rule.names.iter().any(|name| name == "write") {
            // Sending the listener to the supervisor takes a write.
            return Err(Error::invalid_argument(
                "SCMP_ACT_NOTIFY cannot be used for the write syscall: the listener is sent to the supervisor by it",
            ));
        }
        let calls = rule.names.iter().filter_map(|name| numbers::find(name)).collect();
        Ok(Rule { verdict, tests: conditions(&rule.args)?, calls })
    }
}

/// The rules for the calls of one architecture.
struct Table<'a> {
    default: u32,
    /// The verdict for calls above the last one that the profile names.
    beyond: u32,
    /// The last call that the profile names.
    last: u32,
    /// Calls and their rules, by number, then in the order of the rules.
    calls: Vec<(u32, &'a Rule)>,
}

struct Condition {
    index: u32,
    op: Op,
    value: u64,
    mask: u64,
}

#[derive(Clone, Copy)]
enum Op {
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

impl<'a> Table<'a> {
    fn new(rules: &'a [Rule], architecture: Architecture, default: u32) -> Table<'a> {
        // A profile that logs or traces unknown calls should see new ones too.
        let is_permissive = [ALLOW, LOG].contains(&default) || default & 0xffff_0000 == TRACE;
        let beyond = if is_permissive { default } else { ERRNO | ENOSYS };
        let mut table = Table { default, beyond, last: 0, calls: Vec::with_capacity(512) };
        for rule in rules {
            for number in rule.calls.iter().filter_map(|row| row.number(architecture)) {
                table.last = table.last.max(number);
                if rule.verdict != default {
                    table.calls.push((number, rule));
                }
            }
        }
        table.calls.sort_by_key(|(number, _)| *number);
        table
    }

    /// Writes the search by call number, and returns its start, at which the number is loaded.
    fn write(&self, assembler: &mut Assembler, architecture: Architecture) -> Label {
        let first = if architecture == Architecture::X32 { X32_BIT } else { 0 };
        search(assembler, &self.ranges(first), self.default)
    }

    /// The calls as ranges with one outcome each: pairs of first number and outcome.
    fn ranges(&self, first: u32) -> Vec<(u32, Outcome<'_>)> {
        let calls = self.calls.chunk_by(|one, other| one.0 == other.0);
        let mut ranges = Vec::with_capacity(2 * self.calls.len() + 2);
        let mut next = first;
        for call in calls {
            let number = call[0].0;
            if number > next {
                ranges.push((next, Outcome::Verdict(self.default)));
            }
            let always = call.iter().find(|(_, rule)| rule.tests.is_empty());
            let outcome = always.map_or(Outcome::Tests(call), |(_, rule)| Outcome::Verdict(rule.verdict));
            ranges.push((number, outcome));
            next = number + 1;
        }
        if self.last >= next {
            ranges.push((next, Outcome::Verdict(self.default)));
        }
        ranges.push((self.last.max(first).max(next.saturating_sub(1)) + 1, Outcome::Verdict(self.beyond)));
        // Neighbours with the same verdict are one range.
        ranges.dedup_by(|later, earlier| match (&later.1, &earlier.1) {
            (Outcome::Verdict(later), Outcome::Verdict(earlier)) => later == earlier,
            _ => false,
        });
        ranges
    }
}

/// The outcome of a call.
enum Outcome<'a> {
    Verdict(u32),
    /// The first rule whose conditions all hold; the default if none does.
    Tests(&'a [(u32, &'a Rule)]),
}

/// A binary search. Both halves are written before the branch to them.
fn search(assembler: &mut Assembler, ranges: &[(u32, Outcome<'_>)], default: u32) -> Label {
    match ranges {
        [] => assembler.verdict(default),
        [(_, Outcome::Verdict(verdict))] => assembler.verdict(*verdict),
        [(_, Outcome::Tests(call))] => write_tests(assembler, call, default),
        _ => {
            let (lower, upper) = ranges.split_at(ranges.len() / 2);
            let boundary = upper[0].0;
            let above = search(assembler, upper, default);
            let below = search(assembler, lower, default);
            assembler.branch(Test::GreaterOrEqual, boundary, above, below)
        }
    }
}

fn write_tests(assembler: &mut Assembler, call: &[(u32, &Rule)], default: u32) -> Label {
    let mut otherwise = assembler.verdict(default);
    let tests = call.iter().flat_map(|(_, rule)| rule.tests.iter().map(|tests| (tests, rule.verdict)));
    for (conditions, verdict) in tests.rev() {
        let mut then = assembler.verdict(verdict);
        for condition in conditions.iter().rev() {
            then = condition.write(assembler, then, otherwise);
        }
        otherwise = then;
    }
    otherwise
}

impl Condition {
    /// Arguments have 64 bits, BPF words 32: the high half decides unless it is equal.
    fn write(&self, assembler: &mut Assembler, yes: Label, no: Label) -> Label {
        let low = ARGUMENTS + 8 * self.index;
        let high = low + 4;
        match self.op {
            Op::Equal => self.write_equal(assembler, (low, high), yes, no),
            Op::NotEqual => self.write_equal(assembler, (low, high), no, yes),
            Op::Greater => self.write_greater(assembler, Test::Greater, (low, high), yes, no),
            Op::GreaterOrEqual => self.write_greater(assembler, Test::GreaterOrEqual, (low, high), yes, no),
            Op::Less => self.write_greater(assembler, Test::GreaterOrEqual, (low, high), no, yes),
            Op::LessOrEqual => self.write_greater(assembler, Test::Greater, (low, high), no, yes),
        }
    }

    fn write_equal(
        &self,
        assembler: &mut Assembler,
        (low, high): (u32, u32),
        yes: Label,
        no: Label,
    ) -> Label {
        let value = halves(self.value & self.mask);
        let mask = halves(self.mask);
        let mut half = |offset: u32, value: u32, mask: u32, yes: Label| {
            let mut label = assembler.branch(Test::Equal, value, yes, no);
            if mask != u32::MAX {
                label = assembler.and(mask, label);
            }
            assembler.load(offset, label)
        };
        let lower = half(low, value.0, mask.0, yes);
        half(high, value.1, mask.1, lower)
    }

    fn write_greater(
        &self,
        assembler: &mut Assembler,
        test: Test,
        (low, high): (u32, u32),
        yes: Label,
        no: Label,
    ) -> Label {
        let value = halves(self.value);
        let lower = assembler.branch(test, value.0, yes, no);
        let lower = assembler.load(low, lower);
        let equal = assembler.branch(Test::Equal, value.1, lower, no);
        let greater = assembler.branch(Test::Greater, value.1, yes, equal);
        assembler.load(high, greater)
    }
}

/// The low and the high half.
pub(super) fn halves(value: u64) -> (u32, u32) {
    (u32::try_from(value & 0xffff_ffff).expect("masked"), u32::try_from(value >> 32).expect("shifted"))
}

/// The conditions of a rule, as alternatives. A rule that tests one argument twice holds if any of its tests does, as
/// with runc.
fn conditions(args: &[SeccompArg]) -> Result<Vec<Vec<Condition>>> {
    let all = args.iter().map(condition).collect::<Result<Vec<_>>>()?;
    let repeated =
        all.iter().enumerate().any(|(at, one)| all[..at].iter().any(|other| other.index == one.index));
    Ok(match all.is_empty() {
        true => Vec::new(),
        false if repeated => all.into_iter().map(|condition| vec![condition]).collect(),
        false => vec![all],
    })
}

fn condition(arg: &SeccompArg) -> Result<Condition> {
    if arg.index > 5 {
        return Err(Error::invalid_argument(format!("seccomp argument index {} is above 5", arg.index)));
    }
    let plain = |op| Condition { index: arg.index, op, value: arg.value, mask: u64::MAX };
    if arg.op == MASKED_EQUAL {
        return Ok(Condition { index: arg.index, op: Op::Equal, value: arg.value_two, mask: arg.value });
    }
    match COMPARISONS.iter().find(|(known, _)| *known == arg.op) {
        Some((_, op)) => Ok(plain(*op)),
        None => Err(Error::invalid_argument(format!("seccomp operator {:?}", arg.op))),
    }
}

/// The number that a tracer sets to skip a call (ptrace(2)): it has the bit of x32, but is not an x32 call.
const SKIPPED: u32 = u32::MAX;

/// Selects the section of the call's architecture. Calls of other architectures are killed.
fn dispatch(assembler: &mut Assembler, sections: &[(Architecture, Label)], default: u32) -> Label {
    let section =
        |wanted| sections.iter().find(|(architecture, _)| *architecture == wanted).map(|(_, label)| *label);
    let mut next = assembler.verdict(KILL_THREAD);
    for (architecture, label) in sections.iter().rev() {
        let entry = match architecture {
            // It shares its number with x86_64, whose section checks the bit.
            Architecture::X32 => continue,
            Architecture::X86_64 => {
                let wide = match section(Architecture::X32) {
                    Some(label) => label,
                    None => {
                        let (skipped, killed) = (assembler.verdict(default), assembler.verdict(KILL_THREAD));
                        assembler.branch(Test::Equal, SKIPPED, skipped, killed)
                    }
                };
                assembler.branch(Test::GreaterOrEqual, X32_BIT, wide, *label)
            }
            _ => *label,
        };
        let entry = assembler.load(NUMBER, entry);
        next = assembler.branch(Test::Equal, audit_number(*architecture), entry, next);
    }
    assembler.load(ARCHITECTURE, next)
}

/// `AUDIT_ARCH_*` (`linux/audit.h`).
pub(super) fn audit_number(architecture: Architecture) -> u32 {
    match architecture {
        Architecture::X86_64 | Architecture::X32 => 0xc000_003e,
        Architecture::X86 => 0x4000_0003,
        Architecture::Aarch64 => 0xc000_00b7,
        Architecture::Arm => 0x4000_0028,
        Architecture::Riscv64 => 0xc000_00f3,
    }
}

#[cfg(test)]
mod tests {
    use super::super::judge::judge;
    use super::super::profile::default_profile;
    use super::*;

    fn rule(names: &[&str], action: &str, args: &[(u32, &str, u64, u64)]) -> SeccompRule {
        let args = args.iter().map(|(index, op, value, value_two)| SeccompArg {
            index: *index,
            op: (*op).into(),
            value: *value,
            value_two: *value_two,
        });
        SeccompRule {
            names: names.iter().map(ToString::to_string).collect(),
            action: action.into(),
            errno_ret: None,
            args: args.collect(),
        }
    }

    fn profile(default: &str, syscalls: Vec<SeccompRule>) -> LinuxSeccomp {
        LinuxSeccomp { default_action: default.into(), syscalls, ..LinuxSeccomp::default() }
    }

    fn verdict_of(profile: &LinuxSeccomp, name: &str, args: [u64; 6]) -> u32 {
        let program = compile_for(profile, &[Architecture::X86_64]).unwrap();
        let number = numbers::number(name, Architecture::X86_64).expect("a call of this architecture");
        judge(&program.instructions, 0xc000_003e, number, args)
    }

    #[test]
    fn a_call_that_a_tracer_skips_is_no_call_of_x32() {
        for architectures in [&[Architecture::X86_64][..], &[Architecture::X86_64, Architecture::X32]] {
            for (default, expected) in [("SCMP_ACT_ALLOW", ALLOW), ("SCMP_ACT_ERRNO", ERRNO | 1)] {
                let program = compile_for(&profile(default, vec![]), architectures).unwrap();
                let verdict = |number| judge(&program.instructions, 0xc000_003e, number, [0; 6]);
                assert_ne!(verdict(u32::MAX), KILL_THREAD, "{default} {architectures:?}");
                if architectures.len() == 1 {
                    assert_eq!(verdict(u32::MAX), expected, "{default}");
                    assert_eq!((verdict(X32_BIT), verdict(u32::MAX - 1)), (KILL_THREAD, KILL_THREAD));
                }
            }
        }
    }

    #[test]
    fn conditions_hold_for_all_sixty_four_bits() {
        let big = 0x1_0000_0005_u64;
        for (op, holds, fails) in [
            ("SCMP_CMP_EQ", vec![big], vec![5, big + 1, 0x2_0000_0005]),
            ("SCMP_CMP_NE", vec![5, 0], vec![big]),
            ("SCMP_CMP_LT", vec![5, big - 1], vec![big, big + 1, 0x2_0000_0000]),
            ("SCMP_CMP_LE", vec![big, 0], vec![big + 1, 0x2_0000_0000]),
            ("SCMP_CMP_GT", vec![big + 1, 0x2_0000_0000], vec![big, 5]),
            ("SCMP_CMP_GE", vec![big, 0x2_0000_0000], vec![big - 1, 6]),
        ] {
            let profile =
                profile("SCMP_ACT_ERRNO", vec![rule(&["read"], "SCMP_ACT_ALLOW", &[(2, op, big, 0)])]);
            let verdict = |value| verdict_of(&profile, "read", [0, 0, value, 0, 0, 0]);
            holds.into_iter().for_each(|value| assert_eq!(verdict(value), ALLOW, "{op} {value:#x}"));
            fails.into_iter().for_each(|value| assert_eq!(verdict(value), ERRNO | 1, "{op} {value:#x}"));
        }
        let masked =
            rule(&["read"], "SCMP_ACT_ALLOW", &[(0, "SCMP_CMP_MASKED_EQ", 0xf000_0000_0000_000f, 3)]);
        let profile = profile("SCMP_ACT_ERRNO", vec![masked]);
        assert_eq!(verdict_of(&profile, "read", [0xf3, 0, 0, 0, 0, 0]), ALLOW);
        assert_eq!(verdict_of(&profile, "read", [4, 0, 0, 0, 0, 0]), ERRNO | 1);
        assert_eq!(verdict_of(&profile, "read", [0x1000_0000_0000_0003, 0, 0, 0, 0, 0]), ERRNO | 1);
    }

    #[test]
    fn every_call_of_the_default_profile_gets_the_verdict_that_the_profile_says() {
        let profile = default_profile(&[]);
        let program = compile(&profile).unwrap();
        assert!(program.len() < 4096);
        let mut last = 0;
        for name in numbers::names() {
            let Some(number) = numbers::number(name, Architecture::X86_64) else { continue };
            last = last.max(number);
            let rules = profile.syscalls.iter().filter(|rule| rule.names.iter().any(|known| known == name));
            let rules: Vec<&SeccompRule> = rules.collect();
            if rules.iter().any(|rule| !rule.args.is_empty()) {
                continue; // looked at below
            }
            let expected = match rules.first() {
                Some(rule) => verdict(&rule.action, rule.errno_ret).unwrap(),
                None => ERRNO | EPERM,
            };
            let found = judge(&program.instructions, 0xc000_003e, number, [0; 6]);
            // Calls newer than any that the profile names are told to be unknown.
            let newer = found == ERRNO | ENOSYS && rules.is_empty();
            assert!(found == expected || newer, "{name}: {found:#x}, expected {expected:#x}");
        }
        assert_eq!(judge(&program.instructions, 0xc000_003e, 100_000, [0; 6]), ERRNO | ENOSYS);
        assert_eq!(judge(&program.instructions, 0x1234, 0, [0; 6]), KILL_THREAD);
    }

    #[test]
    fn the_default_profile_refuses_namespaces_without_cap_sys_admin() {
        let clone_new_user = [0x1000_0000, 0, 0, 0, 0, 0];
        let thread = [0x0001_0f00, 0, 0, 0, 0, 0];
        let plain = default_profile(&[]);
        assert_eq!(verdict_of(&plain, "clone", clone_new_user), ERRNO | EPERM);
        assert_eq!(verdict_of(&plain, "clone", thread), ALLOW);
        assert_eq!(verdict_of(&plain, "clone3", [0; 6]), ERRNO | ENOSYS);
        assert_eq!(verdict_of(&plain, "mount", [0; 6]), ERRNO | EPERM);
        assert_eq!(verdict_of(&plain, "keyctl", [0; 6]), ERRNO | EPERM);
        assert_eq!(verdict_of(&plain, "personality", [0, 0, 0, 0, 0, 0]), ALLOW);
        assert_eq!(verdict_of(&plain, "personality", [0x0040_0000, 0, 0, 0, 0, 0]), ERRNO | EPERM);
        assert_eq!(verdict_of(&plain, "socket", [40, 0, 0, 0, 0, 0]), ERRNO | EPERM);
        assert_eq!(verdict_of(&plain, "socket", [2, 0, 0, 0, 0, 0]), ALLOW);
        let admin = default_profile(&["CAP_SYS_ADMIN".to_owned()]);
        assert_eq!(verdict_of(&admin, "clone", clone_new_user), ALLOW);
        assert_eq!(verdict_of(&admin, "clone3", [0; 6]), ALLOW);
        assert_eq!(verdict_of(&admin, "mount", [0; 6]), ALLOW);
    }

    #[test]
    fn allows_is_false_for_calls_that_ask_a_supervisor() {
        let with =
            |action: &str| compile(&profile("SCMP_ACT_ALLOW", vec![rule(&["setsid"], action, &[])])).unwrap();
        for (action, passes) in [
            ("SCMP_ACT_LOG", true),
            ("SCMP_ACT_ERRNO", false),
            ("SCMP_ACT_NOTIFY", false),
            ("SCMP_ACT_TRACE", false),
            ("SCMP_ACT_KILL", false),
        ] {
            assert_eq!(with(action).allows(libc::SYS_setsid, [0; 6]), passes, "{action}");
            assert!(with(action).allows(libc::SYS_read, [0; 6]), "{action}");
        }
        let default = compile(&default_profile(&[])).unwrap();
        assert!(default.allows(libc::SYS_clone, [0; 6]));
        assert!(!default.allows(libc::SYS_clone, [0x1000_0000, 0, 0, 0, 0, 0]));
        assert!(!default.allows(libc::SYS_clone3, [0; 6]));
        assert!(!default.allows(-1, [0; 6]));
    }

    #[test]
    fn a_notify_rule_for_write_is_refused() {
        let asks =
            |name: &str| compile(&profile("SCMP_ACT_ALLOW", vec![rule(&[name], "SCMP_ACT_NOTIFY", &[])]));
        let words = "SCMP_ACT_NOTIFY cannot be used for the write syscall";
        assert!(asks("write").unwrap_err().message().contains(words));
        asks("writev").unwrap();
    }

    #[test]
    fn the_wait_killable_flag_is_dropped_without_a_listener() {
        for (action, expected) in [
            ("SCMP_ACT_ERRNO", flag::LOG),
            ("SCMP_ACT_NOTIFY", flag::LOG | flag::NEW_LISTENER | flag::WAIT_KILLABLE_RECV),
        ] {
            let mut profile = profile("SCMP_ACT_ALLOW", vec![rule(&["mkdir"], action, &[])]);
            let names = ["SECCOMP_FILTER_FLAG_LOG", "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"];
            profile.flags = names.map(str::to_owned).to_vec();
            assert_eq!(compile(&profile).unwrap().flags, expected, "{action}");
        }
    }

    #[test]
    fn a_program_survives_being_written_down() {
        let program = compile(&default_profile(&[])).unwrap();
        assert_eq!(Program::from_bytes(&program.to_bytes()).unwrap(), program);
        assert!(Program::from_bytes(b"").is_err());
        assert!(Program::from_bytes(&program.to_bytes()[..11]).is_err());
    }
}
