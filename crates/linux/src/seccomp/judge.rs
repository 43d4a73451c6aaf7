//! An interpreter of filters, which finds the verdict of a call without making it.

use super::assemble::{AND, JUMP, LOAD, RETURN, Test};
use super::compile::{
    ALLOW, ARCHITECTURE, ARGUMENTS, KILL_THREAD, LOG, NATIVE, NUMBER, audit_number, halves,
};
use super::{Instruction, Program};

impl Program {
    /// Whether a call of this machine is allowed without asking a supervisor.
    pub fn allows(&self, number: libc::c_long, args: [u64; 6]) -> bool {
        let architecture = audit_number(NATIVE[0]);
        u32::try_from(number)
            .is_ok_and(|number| matches!(judge(&self.instructions, architecture, number, args), ALLOW | LOG))
    }
}

/// The verdict (`SECCOMP_RET_*`). Instructions that the compiler does not emit count as a refusal. Jumps lead forward,
/// so that it terminates.
pub(super) fn judge(program: &[Instruction], architecture: u32, number: u32, args: [u64; 6]) -> u32 {
    let word = |offset: u32| match offset {
        NUMBER => number,
        ARCHITECTURE => architecture,
        _ => {
            let offset = offset.wrapping_sub(ARGUMENTS);
            let (low, high) = halves(args.get((offset / 8) as usize).copied().unwrap_or_default());
            if offset.is_multiple_of(8) { low } else { high }
        }
    };
    let (mut at, mut loaded) = (0, 0);
    while let Some(step) = program.get(at) {
        at += 1;
        let jump = |holds: bool| usize::from(if holds { step.if_true } else { step.if_false });
        match step.code {
            LOAD => loaded = word(step.operand),
            AND => loaded &= step.operand,
            JUMP => at += step.operand as usize,
            RETURN => return step.operand,
            code if code == Test::Equal.code() => at += jump(loaded == step.operand),
            code if code == Test::Greater.code() => at += jump(loaded > step.operand),
            code if code == Test::GreaterOrEqual.code() => at += jump(loaded >= step.operand),
            _ => break,
        }
    }
    KILL_THREAD
}
