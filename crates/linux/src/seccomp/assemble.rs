//! An assembler that writes a filter backward.
//!
//! Jumps of BPF lead forward, and conditional ones at most 255 instructions far. Written backward, every target is
//! known when a jump to it is written, and a far one gets an intermediate unconditional jump, which has no limit, right
//! there.

use types::{Error, Result};

use super::Instruction;

/// The most instructions that the kernel accepts (`BPF_MAXINSNS`).
const LEN_MAX: usize = 4096;

pub(super) const LOAD: u16 = 0x20;
pub(super) const AND: u16 = 0x54;
pub(super) const JUMP: u16 = 0x05;
pub(super) const RETURN: u16 = 0x06;

/// The comparison of a conditional jump.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Test {
    Equal,
    Greater,
    GreaterOrEqual,
}

impl Test {
    pub(super) fn code(self) -> u16 {
        match self {
            Test::Equal => 0x15,
            Test::Greater => 0x25,
            Test::GreaterOrEqual => 0x35,
        }
    }
}

/// A position in the program: the number of instructions from there to the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Label(usize);

pub(super) struct Assembler {
    /// Last instruction first.
    reversed: Vec<Instruction>,
    /// The latest position of each verdict.
    verdicts: Vec<(u32, Label)>,
}

impl Assembler {
    pub(super) fn new() -> Assembler {
        // About the size of container engines' default profiles.
        Assembler { reversed: Vec::with_capacity(512), verdicts: Vec::new() }
    }

    /// A position that ends the program with this verdict; reuses one in reach.
    pub(super) fn verdict(&mut self, verdict: u32) -> Label {
        const REACH: usize = 200;
        let here = self.reversed.len();
        let known = self.verdicts.iter_mut().find(|(known, _)| *known == verdict);
        if let Some((_, label)) = &known
            && here - label.0 < REACH
        {
            return *label;
        }
        let label = Label(here + 1);
        match known {
            Some((_, place)) => *place = label,
            None => self.verdicts.push((verdict, label)),
        }
        self.push(RETURN, 0, 0, verdict)
    }

    /// Loads four bytes of `struct seccomp_data`, and continues at `then`.
    pub(super) fn load(&mut self, offset: u32, then: Label) -> Label {
        self.lead_to(then);
        self.push(LOAD, 0, 0, offset)
    }

    pub(super) fn and(&mut self, mask: u32, then: Label) -> Label {
        self.lead_to(then);
        self.push(AND, 0, 0, mask)
    }

    pub(super) fn branch(&mut self, test: Test, operand: u32, yes: Label, no: Label) -> Label {
        let yes = self.in_reach(yes);
        let no = self.in_reach(no);
        let distance = |label: Label| {
            u8::try_from(self.reversed.len() - label.0).expect("stepping stones bring targets into reach")
        };
        let (if_true, if_false) = (distance(yes), distance(no));
        self.push(test.code(), if_true, if_false, operand)
    }

    /// The complete program, which begins at `entry`.
    pub(super) fn finish(mut self, entry: Label) -> Result<Vec<Instruction>> {
        self.lead_to(entry);
        if self.reversed.len() > LEN_MAX {
            let len = self.reversed.len();
            return Err(Error::resource_exhausted(format!(
                "system call filter has {len} steps; the kernel takes {LEN_MAX}"
            )));
        }
        self.reversed.reverse();
        Ok(self.reversed)
    }

    /// Makes sure that the next written instruction continues at this position.
    fn lead_to(&mut self, target: Label) {
        if target.0 != self.reversed.len() {
            self.jump(target);
        }
    }

    /// The position itself, or a jump to it. One instruction of the reach is left for another jump.
    fn in_reach(&mut self, target: Label) -> Label {
        if self.reversed.len() - target.0 < 255 { target } else { self.jump(target) }
    }

    fn jump(&mut self, target: Label) -> Label {
        let distance = u32::try_from(self.reversed.len() - target.0).expect("programs are short");
        self.push(JUMP, 0, 0, distance)
    }

    fn push(&mut self, code: u16, if_true: u8, if_false: u8, operand: u32) -> Label {
        self.reversed.push(Instruction { code, if_true, if_false, operand });
        Label(self.reversed.len())
    }
}
