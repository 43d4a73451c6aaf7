//! Inflating ahead: frames of a zstd stream and members of a gzip file by several threads, where processors have nothing
//! to do.
//!
//! ```text
//! Input ─▶ Border ─▶ units: a long frame, or some short ones ─▶ threads ─▶ plain bytes, in order ─┬▶ reader
//!   └───── what is no unit, and what was a wrong one ─▶ the decoder, as without helpers ──────────┘
//! ```
//!
//! The first frame or member of a stream is part of none: nearly all streams have no other, and cost nothing here.
//!
//! Invariants
//! - A unit counts if the stream before it ended where it begins, and it was right to its very end. Any other is given
//!   back with all behind it, and read as if nobody had helped. So plain bytes, spans and errors are the same ones.
//! - Processors and memory are taken while there are some, and never waited for.
//! - Threads are joined by whoever has the decoder.

use std::collections::VecDeque;
use std::io::{self, Read};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::sync_channel;
use std::sync::{Arc, LazyLock};
use std::thread::{self, JoinHandle};

use inflate::{Damage, Gzip, Stop, WINDOW_LEN};
use zstd::stream::raw::{InBuffer, Operation, OutBuffer};

use super::border::{Border, LEN_MAX, Next, Part};
use super::{BUFFER_LEN, Input, Recording};
use crate::Compression;
use crate::budget::{Budget, Permit};
use crate::spans::Place;

/// Bytes for all units of a process, and for what is read to find their ends.
static BUDGET: Budget = Budget::new(BUDGET_LEN);
const BUDGET_LEN: u64 = 16 << 20;
/// Bytes that short parts are put together to, compressed and plain: a thread each would cost more than they do.
const UNIT_LEN: usize = 512 << 10;
/// What a part counts as at least, so that a unit has no more than some thousands.
const PART_LEN_MIN: usize = 256;
/// What inflating a unit takes beside its bytes: tables and buffers of a decoder.
const DECODER_LEN: usize = 512 << 10;
/// Units of one layer at a time.
const UNITS_MAX: usize = 8;
/// Places in a unit that the stream can be inflated from. One with more is nobody's honest work.
const PLACES_MAX: usize = 1 << 14;

/// Processors that a layer keeps busy by itself: it is inflated, and its blob and plain bytes are hashed and written.
const PROCESSORS_OF_LAYER: usize = 2;
static PROCESSORS: LazyLock<Arc<Processors>> = LazyLock::new(|| {
    Arc::new(Processors::new(thread::available_parallelism().map_or(1, std::num::NonZeroUsize::get)))
});

/// Who helps to inflate a layer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Helpers {
    /// As many threads as there are processors that no layer and no other helper keeps busy.
    #[default]
    Spare,
    /// So many threads.
    Fixed(usize),
}

/// How many threads may work, and how many do.
struct Processors {
    count: usize,
    busy: AtomicUsize,
    /// Where those who help wait for each other.
    #[cfg(test)]
    meeting: Option<tests::Meeting>,
}

/// Some processors that are busy, until dropped.
struct Busy(Arc<Processors>, usize);

impl Processors {
    fn new(count: usize) -> Processors {
        Processors {
            count,
            busy: AtomicUsize::new(0),
            #[cfg(test)]
            meeting: None,
        }
    }

    /// Counts a layer, whether there are processors for it or not.
    fn layer(self: &Arc<Processors>) -> Busy {
        self.busy.fetch_add(PROCESSORS_OF_LAYER, Ordering::Relaxed);
        Busy(self.clone(), PROCESSORS_OF_LAYER)
    }

    /// One that nobody keeps busy, if there is one.
    fn spare(self: &Arc<Processors>) -> Option<Busy> {
        let one_more = |busy| (busy < self.count).then_some(busy + 1);
        let taken = self.busy.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more);
        taken.is_ok().then(|| Busy(self.clone(), 1))
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.busy.fetch_sub(self.1, Ordering::Relaxed);
    }
}

/// What is inflated ahead of a decoder.
pub(super) struct Ahead {
    processors: Arc<Processors>,
    budget: &'static Budget,
    _layer: Option<Busy>,
    /// Where the part behind all units ends.
    border: Border,
    /// Units on their way, in the order of the stream.
    units: VecDeque<Begun>,
    /// The unit that is read, and how many of its plain bytes were.
    current: Option<(Unit, usize)>,
    /// The unit that was read before, whose memory the next one takes: new pages would cost a fifth of its time.
    spare: Option<Unit>,
    /// For what the input has grown by.
    input_permits: Vec<Permit<'static>>,
    /// Whether a unit was wrong: what follows is not believed to be what it looks like.
    is_over: bool,
    /// Plain bytes that other threads have made.
    helped_len: u64,
}

impl Ahead {
    /// None if nobody is ever going to help.
    pub(super) fn new(helpers: Helpers) -> Option<Ahead> {
        match helpers {
            Helpers::Spare => Ahead::beside(&PROCESSORS),
            Helpers::Fixed(count) => Ahead::of(Arc::new(Processors::new(count)), None),
        }
    }

    /// For a layer that counts among those of these processors.
    fn beside(processors: &Arc<Processors>) -> Option<Ahead> {
        Ahead::of(processors.clone(), Some(processors.layer()))
    }

    fn of(processors: Arc<Processors>, layer: Option<Busy>) -> Option<Ahead> {
        let own = if layer.is_some() { PROCESSORS_OF_LAYER } else { 0 };
        (processors.count > own).then(|| Ahead {
            processors,
            budget: &BUDGET,
            _layer: layer,
            border: Border::default(),
            units: VecDeque::new(),
            current: None,
            spare: None,
            input_permits: Vec::new(),
            is_over: false,
            helped_len: 0,
        })
    }

    /// Plain bytes that were made and not read.
    fn rest(&self) -> &[u8] {
        self.current.as_ref().map_or(&[], |(unit, at)| &unit.plain[*at..])
    }

    /// Plain bytes that other threads have made so far.
    pub(super) fn helped_len(&self) -> u64 {
        self.helped_len
    }

    pub(super) fn has_bytes(&self) -> bool {
        !self.rest().is_empty()
    }

    pub(super) fn read(&mut self, to: &mut [u8]) -> usize {
        let len = self.rest().len().min(to.len());
        to[..len].copy_from_slice(&self.rest()[..len]);
        if let Some((_, at)) = &mut self.current {
            *at += len;
        }
        len
    }

    /// Between two parts, all before having been read: whether plain bytes that follow are here.
    pub(super) fn go_on<R: Read>(
        &mut self,
        compression: Compression,
        input: &mut Input<R>,
        recording: &mut Recording<'_>,
    ) -> io::Result<bool> {
        while !self.has_bytes() {
            self.spare = self.current.take().map(|(unit, _)| unit).or(self.spare.take());
            if !self.start(compression, input, recording) {
                return Ok(false);
            }
            let unit = self.take()?;
            if !unit.is_right {
                self.give_back(unit, input)?;
                return Ok(false);
            }
            unit.show(recording)?;
            self.helped_len += if unit.is_helped { unit.plain.len() as u64 } else { 0 };
            self.current = Some((unit, 0));
        }
        Ok(true)
    }

    /// Behind a part: has more units begun, and says whether some are on their way. One follows each that was taken;
    /// more only while the first is not done, since the source may keep us waiting.
    pub(super) fn start<R: Read>(
        &mut self,
        compression: Compression,
        input: &mut Input<R>,
        recording: &mut Recording<'_>,
    ) -> bool {
        let mut has_begun = false;
        while !self.is_over && self.units.len() < UNITS_MAX {
            let processor = self.processors.spare();
            let is_waiting = self.units.front().is_some_and(|front| !front.is_done());
            // While we would wait we are a processor ourselves.
            if !is_waiting && (processor.is_none() || has_begun) {
                break;
            }
            let Some(unit) = self.cut(compression, input, recording) else { break };
            self.units.push_back(Begun::new(unit, processor));
            has_begun = true;
        }
        if self.units.is_empty() {
            // The part that was looked at last is read without help.
            self.border = Border::default();
        }
        !self.units.is_empty()
    }

    /// Takes the next unit from the input.
    fn cut<R: Read>(
        &mut self,
        compression: Compression,
        input: &mut Input<R>,
        recording: &mut Recording<'_>,
    ) -> Option<Unit> {
        input.show(recording);
        let mut cut = None::<Unit>;
        while let Some(part) = self.look(compression, input, recording) {
            let unit = match &mut cut {
                None => cut.insert(self.empty(compression, &part)?),
                Some(unit) if unit.takes(&part) => unit,
                Some(_) => break,
            };
            unit.add(part, input.take(part.len));
            self.border = Border::default();
        }
        if let Some(unit) = &mut cut {
            // By whoever gives it back to the allocator. Not nothing, which has no place in memory.
            unit.plain.reserve_exact(unit.plain_len_max().max(1));
        }
        cut
    }

    /// A unit that begins with a part; none if there is no memory for it.
    fn empty(&mut self, compression: Compression, part: &Part) -> Option<Unit> {
        let len = (part.len + part.plain_len_max + part.window_len).max(3 * UNIT_LEN) + DECODER_LEN;
        let len = len.next_multiple_of(UNIT_LEN) as u64;
        match self.spare.take().filter(|spare| spare.permit.len() >= len) {
            Some(spare) => Some(spare.emptied()),
            None => Some(Unit::new(compression, self.budget.try_take(len)?)),
        }
    }

    /// Looks for the end of the part that comes next, for which all of it has to be there.
    fn look<R: Read>(
        &mut self,
        compression: Compression,
        input: &mut Input<R>,
        recording: &mut Recording<'_>,
    ) -> Option<Part> {
        loop {
            match self.border.look(compression, input.rest()) {
                Next::Part(part) => return Some(part),
                Next::More(len) if self.has_room(input, len) && input.wait_for(len, recording) => {}
                Next::More(_) | Next::Unknown => {
                    self.border = Border::default();
                    return None;
                }
            }
        }
    }

    /// Sees to it that the input may have so many bytes at once.
    fn has_room<R: Read>(&mut self, input: &mut Input<R>, len: usize) -> bool {
        let old_len = input.buffer.len();
        if len <= old_len {
            return true;
        }
        let new_len = (2 * old_len).min(LEN_MAX + BUFFER_LEN).max(len);
        let Some(permit) = self.budget.try_take((new_len - old_len) as u64) else { return false };
        self.input_permits.push(permit);
        input.buffer.resize(new_len, 0);
        true
    }

    /// Waits for the first unit.
    fn take(&mut self) -> io::Result<Unit> {
        match self.units.pop_front().expect("one was begun") {
            Begun::Done(unit) => Ok(unit),
            Begun::Helped(thread) => thread
                .join()
                .ok()
                .flatten()
                .ok_or_else(|| io::Error::other("a thread that inflates broke down")),
        }
    }

    /// Has the input begin with a unit that was wrong, and all behind it.
    fn give_back<R: Read>(&mut self, unit: Unit, input: &mut Input<R>) -> io::Result<()> {
        self.is_over = true;
        let (mut bytes, permit) = (unit.bytes, unit.permit);
        self.input_permits.push(permit);
        while !self.units.is_empty() {
            let unit = self.take()?;
            bytes.extend_from_slice(&unit.bytes);
            self.input_permits.push(unit.permit);
        }
        input.put_back(bytes);
        Ok(())
    }
}

impl Drop for Ahead {
    fn drop(&mut self) {
        for unit in self.units.drain(..) {
            if let Begun::Helped(thread) = unit {
                let _ = thread.join(); // what it made is not wanted
            }
        }
    }
}

/// A unit on its way.
enum Begun {
    Done(Unit),
    Helped(JoinHandle<Option<Unit>>),
}

impl Begun {
    /// Has a thread inflate it, or does it here and now.
    fn new(unit: Unit, processor: Option<Busy>) -> Begun {
        let Some(processor) = processor else { return Begun::Done(unit.make()) };
        // It is sent there, since a thread that cannot be would take it along.
        let (send, receive) = sync_channel(1);
        let work = move || {
            let unit = receive.recv().ok().map(|unit: Unit| {
                #[cfg(test)]
                processor.0.meeting.as_ref().inspect(|meeting| meeting.wait());
                Unit { is_helped: true, ..unit.make() }
            });
            drop(processor);
            unit
        };
        match thread::Builder::new().name("inflate".to_owned()).spawn(work) {
            Ok(thread) => {
                send.send(unit).expect("the thread waits for it");
                Begun::Helped(thread)
            }
            Err(_) => Begun::Done(unit.make()),
        }
    }

    fn is_done(&self) -> bool {
        match self {
            Begun::Done(_) => true,
            Begun::Helped(thread) => thread.is_finished(),
        }
    }
}

/// Some parts, one behind the other.
struct Unit {
    compression: Compression,
    bytes: Vec<u8>,
    parts: Vec<Part>,
    /// What they count as.
    len: usize,
    plain: Vec<u8>,
    places: Vec<PlaceWithin>,
    /// Whether all of it was inflated, and nothing is wrong with it.
    is_right: bool,
    /// Whether another thread did that.
    is_helped: bool,
    permit: Permit<'static>,
}

/// Where the stream can be inflated from: the first such place of all with as many plain bytes before them.
struct PlaceWithin {
    at: usize,
    plain: usize,
    /// Upper bits of the byte before that belong to it; none where a part begins.
    bit_count: Option<u8>,
}

impl Unit {
    fn new(compression: Compression, permit: Permit<'static>) -> Unit {
        Unit {
            compression,
            bytes: Vec::new(),
            parts: Vec::new(),
            len: 0,
            plain: Vec::new(),
            places: Vec::new(),
            is_right: false,
            is_helped: false,
            permit,
        }
    }

    fn emptied(mut self) -> Unit {
        (self.len, self.is_right, self.is_helped) = (0, false, false);
        self.bytes.clear();
        self.parts.clear();
        self.plain.clear();
        self.places.clear();
        self
    }

    fn len_of(part: &Part) -> usize {
        part.len.max(part.plain_len_max).max(PART_LEN_MIN)
    }

    fn takes(&self, part: &Part) -> bool {
        self.len + Unit::len_of(part) <= UNIT_LEN
    }

    fn add(&mut self, part: Part, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
        self.len += Unit::len_of(&part);
        self.parts.push(part);
    }

    fn plain_len_max(&self) -> usize {
        self.parts.iter().map(|part| part.plain_len_max).sum()
    }

    fn make(mut self) -> Unit {
        self.is_right = match self.compression {
            Compression::None => false,
            Compression::Gzip => self.inflate().unwrap_or(false),
            Compression::Zstd => self.decompress().unwrap_or(false),
        };
        self
    }

    /// Whether it is what it should be.
    fn decompress(&mut self) -> io::Result<bool> {
        let mut decoder = zstd::stream::raw::Decoder::new()?;
        let mut at = 0;
        for part in &self.parts {
            self.places.push(PlaceWithin { at, plain: self.plain.len(), bit_count: None });
            let mut from = InBuffer::around(&self.bytes[at..at + part.len]);
            loop {
                let begin = (from.pos(), self.plain.len());
                let mut into = OutBuffer::around_pos(&mut self.plain, begin.1);
                let wanted = decoder.run(&mut from, &mut into)?;
                if wanted == 0 {
                    break;
                }
                if (from.pos(), into.pos()) == begin {
                    return Ok(false);
                }
            }
            if from.pos() != part.len {
                return Ok(false);
            }
            decoder.reinit()?;
            at += part.len;
        }
        Ok(true)
    }

    /// The same with gzip.
    fn inflate(&mut self) -> Result<bool, Damage> {
        let plain_len_max = self.plain_len_max();
        let mut gzip = Gzip::default();
        let mut at = 0;
        self.places.push(PlaceWithin { at, plain: 0, bit_count: None });
        loop {
            let last = self.places.last().expect("there is a first").plain;
            let block_at = (last + 1).saturating_sub(self.plain.len());
            let (taken, stop) = gzip.run(&self.bytes[at..], true, Some(block_at))?;
            at += taken;
            let output = gzip.output();
            if output.len() > plain_len_max - self.plain.len() || self.places.len() > PLACES_MAX {
                return Ok(false);
            }
            self.plain.extend_from_slice(output);
            gzip.take(output.len());
            match stop {
                Stop::Block => {
                    let bit_count = match gzip.place() {
                        inflate::Place::Member => None,
                        inflate::Place::Block { bit_count, .. } => Some(bit_count),
                    };
                    self.places.push(PlaceWithin { at, plain: self.plain.len(), bit_count });
                }
                Stop::Output => {}
                Stop::End => return Ok(true),
                Stop::Input | Stop::Member => return Ok(false),
            }
        }
    }

    /// Shows the recorder its bytes, and the places in it that are wanted.
    fn show(&self, recording: &mut Recording<'_>) -> io::Result<()> {
        let Recording { recorder: Some(recorder), plain: before } = recording else { return Ok(()) };
        let (mut shown, mut part) = (0, 0);
        for PlaceWithin { at, plain, bit_count } in &self.places {
            let place = match bit_count {
                None => {
                    part = *plain;
                    Place::Beginning
                }
                Some(bit_count) => {
                    let window = &self.plain[part.max(plain.saturating_sub(WINDOW_LEN))..*plain];
                    Place::Block { window, bit_count: *bit_count }
                }
            };
            let plain = *before + *plain as u64;
            if recorder.wanted_at() <= plain {
                recorder.took(&self.bytes[shown..*at]);
                shown = *at;
                recorder.place(plain, place)?;
            }
        }
        recorder.took(&self.bytes[shown..]);
        Ok(())
    }
}

#[cfg(test)]
mod tests;
