//! Parallel decompression: helper threads inflate zstd frames or gzip members ahead of the reader, on idle processors.
//!
//! ```text
//! Input ─▶ BoundarySearch ─▶ units: a long part or some short ones ─▶ threads ─▶ plain bytes, in order ─┬▶ reader
//!   └───── bytes in no unit, or in a wrong one ─▶ the decoder, as without helpers ──────────────────────┘
//! ```
//!
//! A part is a frame or a member. The first one of a stream is in no unit: nearly all streams have only this one, and
//! so cost nothing here.
//!
//! Invariants
//! - A unit's bytes are used if the stream before it ended where it begins, and the unit is valid to its very end.
//!   Otherwise the unit and all behind it are given back to the input and read without helpers. So helpers change
//!   neither plain bytes nor spans nor errors.
//! - Processors and memory are taken if they are free, and never waited for.
//! - The thread that owns the decoder joins the helper threads.

use std::collections::VecDeque;
use std::io::{self, Read};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::sync_channel;
use std::sync::{Arc, LazyLock};
use std::thread::{self, JoinHandle};

use inflate::{Damage, Gzip, Stop, WINDOW_LEN};
use zstd::stream::raw::{InBuffer, Operation, OutBuffer};

use super::boundary::{BoundarySearch, LEN_MAX, Next, Part};
use super::{BUFFER_LEN, Input, Recording};
use crate::Compression;
use crate::budget::{Budget, Permit};
use crate::spans::Place;

/// Bytes for all units of the process, and for the input buffers that grow to find their ends.
static BUDGET: Budget = Budget::new(BUDGET_LEN);
const BUDGET_LEN: u64 = 16 << 20;
/// Short parts are joined into units of up to this many bytes, compressed and plain: starting a thread for each would
/// cost more than inflating it.
const UNIT_LEN: usize = 512 << 10;
/// Least bytes that a part counts as, so that a unit has at most some thousands of parts.
const PART_LEN_MIN: usize = 256;
/// Bytes of a decoder's tables and buffers.
const DECODER_LEN: usize = 512 << 10;
/// Most units of one layer at a time.
const UNITS_MAX: usize = 8;
/// Most recorded places of a unit. Only a hostile stream has more.
const PLACES_MAX: usize = 1 << 14;

/// Processors that a layer keeps busy without helpers: by inflating, and by hashing and writing.
const PROCESSORS_OF_LAYER: usize = 2;
static PROCESSORS: LazyLock<Arc<Processors>> = LazyLock::new(|| {
    Arc::new(Processors::new(thread::available_parallelism().map_or(1, std::num::NonZeroUsize::get)))
});

/// The threads that help to inflate a layer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Helpers {
    /// As many as there are processors that no layer and no other helper keeps busy.
    #[default]
    Spare,
    /// Up to this many.
    Fixed(usize),
}

/// The processors that helpers may use.
struct Processors {
    count: usize,
    busy: AtomicUsize,
    /// Where helper threads of a test wait for each other.
    #[cfg(test)]
    meeting: Option<tests::Meeting>,
}

/// Counts a number of processors as busy, until dropped.
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

    /// Counts the processors of a layer as busy, even if there are not as many.
    fn layer(self: &Arc<Processors>) -> Busy {
        self.busy.fetch_add(PROCESSORS_OF_LAYER, Ordering::Relaxed);
        Busy(self.clone(), PROCESSORS_OF_LAYER)
    }

    /// Takes an idle processor, if there is one.
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

/// The units of a stream that are inflated ahead of its reader.
pub(super) struct Ahead {
    processors: Arc<Processors>,
    budget: &'static Budget,
    _layer: Option<Busy>,
    /// The search for the end of the part behind all units.
    boundary: BoundarySearch,
    /// Started units, in the order of the stream.
    units: VecDeque<PendingUnit>,
    /// The unit that is being read, and how many of its plain bytes were read.
    current: Option<(Unit, usize)>,
    /// The unit that was read before, whose memory the next one reuses: new pages would cost a fifth of its time.
    spare: Option<Unit>,
    /// Permits for the growth of the input buffer.
    input_permits: Vec<Permit<'static>>,
    /// Whether a unit was wrong. From then on the decoder reads without helpers.
    is_over: bool,
    /// Plain bytes that helper threads inflated and the decoder used.
    helped_len: u64,
}

impl Ahead {
    /// `None` if no helper can ever run.
    pub(super) fn new(helpers: Helpers) -> Option<Ahead> {
        match helpers {
            Helpers::Spare => Ahead::beside(&PROCESSORS),
            Helpers::Fixed(count) => Ahead::of(Arc::new(Processors::new(count)), None),
        }
    }

    /// For a layer that keeps some of these processors busy itself.
    fn beside(processors: &Arc<Processors>) -> Option<Ahead> {
        Ahead::of(processors.clone(), Some(processors.layer()))
    }

    fn of(processors: Arc<Processors>, layer: Option<Busy>) -> Option<Ahead> {
        let own = if layer.is_some() { PROCESSORS_OF_LAYER } else { 0 };
        (processors.count > own).then(|| Ahead {
            processors,
            budget: &BUDGET,
            _layer: layer,
            boundary: BoundarySearch::default(),
            units: VecDeque::new(),
            current: None,
            spare: None,
            input_permits: Vec::new(),
            is_over: false,
            helped_len: 0,
        })
    }

    /// The unread plain bytes of the current unit.
    fn rest(&self) -> &[u8] {
        self.current.as_ref().map_or(&[], |(unit, at)| &unit.plain[*at..])
    }

    /// Plain bytes that helper threads inflated so far.
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

    /// Takes the next unit as the current one, if there is a valid one. Must be called between two parts, when the
    /// plain bytes of all parts before were read.
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

    /// Starts more units, and returns whether any are started. Must be called behind a part. One unit is started for
    /// each that was taken, and more only while the first is not done, since reading from the source may block.
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
            // Instead of waiting for a helper, this thread inflates a unit itself.
            if !is_waiting && (processor.is_none() || has_begun) {
                break;
            }
            let Some(unit) = self.cut(compression, input, recording) else { break };
            self.units.push_back(PendingUnit::start(unit, processor));
            has_begun = true;
        }
        if self.units.is_empty() {
            // The decoder reads the next part itself, so the search begins anew behind it.
            self.boundary = BoundarySearch::default();
        }
        !self.units.is_empty()
    }

    /// Takes the parts of the next unit from the input.
    fn cut<R: Read>(
        &mut self,
        compression: Compression,
        input: &mut Input<R>,
        recording: &mut Recording<'_>,
    ) -> Option<Unit> {
        input.show(recording);
        let mut cut = None::<Unit>;
        while let Some(part) = self.find_part(compression, input, recording) {
            let unit = match &mut cut {
                None => cut.insert(self.empty(compression, &part)?),
                Some(unit) if unit.takes(&part) => unit,
                Some(_) => break,
            };
            unit.add(part, input.take(part.len));
            self.boundary = BoundarySearch::default();
        }
        if let Some(unit) = &mut cut {
            // Reserved by the thread that frees it, for the sake of the allocator. At least one byte, since an empty
            // vector has no memory that zstd could be pointed at.
            unit.plain.reserve_exact(unit.plain_len_max().max(1));
        }
        cut
    }

    /// An empty unit with room for the given part; `None` if the budget has no memory for it.
    fn empty(&mut self, compression: Compression, part: &Part) -> Option<Unit> {
        let len = (part.len + part.plain_len_max + part.window_len).max(3 * UNIT_LEN) + DECODER_LEN;
        let len = len.next_multiple_of(UNIT_LEN) as u64;
        match self.spare.take().filter(|spare| spare.permit.len() >= len) {
            Some(spare) => Some(spare.emptied()),
            None => Some(Unit::new(compression, self.budget.try_take(len)?)),
        }
    }

    /// Finds the next part, reading all of it into the input buffer.
    fn find_part<R: Read>(
        &mut self,
        compression: Compression,
        input: &mut Input<R>,
        recording: &mut Recording<'_>,
    ) -> Option<Part> {
        loop {
            match self.boundary.search(compression, input.rest()) {
                Next::Part(part) => return Some(part),
                Next::More(len) if self.grow_input(input, len) && input.wait_for(len, recording) => {}
                Next::More(_) | Next::Unknown => {
                    self.boundary = BoundarySearch::default();
                    return None;
                }
            }
        }
    }

    /// Grows the input buffer to hold `len` bytes at once. False if the budget has no memory for it.
    fn grow_input<R: Read>(&mut self, input: &mut Input<R>, len: usize) -> bool {
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
            PendingUnit::Done(unit) => Ok(unit),
            PendingUnit::Helped(thread) => thread
                .join()
                .ok()
                .flatten()
                .ok_or_else(|| io::Error::other("a thread that inflates broke down")),
        }
    }

    /// Gives the bytes of a wrong unit, and of all units behind it, back to the input.
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
            if let PendingUnit::Helped(thread) = unit {
                let _ = thread.join(); // its result is not needed any more
            }
        }
    }
}

/// A started unit.
enum PendingUnit {
    Done(Unit),
    Helped(JoinHandle<Option<Unit>>),
}

impl PendingUnit {
    /// Inflates a unit on a thread if there is a processor for one, and otherwise right away.
    fn start(unit: Unit, processor: Option<Busy>) -> PendingUnit {
        let Some(processor) = processor else { return PendingUnit::Done(unit.run()) };
        // The unit is sent to the thread: a failing spawn would drop a unit that the closure owns.
        let (send, receive) = sync_channel(1);
        let work = move || {
            let unit = receive.recv().ok().map(|unit: Unit| {
                #[cfg(test)]
                processor.0.meeting.as_ref().inspect(|meeting| meeting.wait());
                Unit { is_helped: true, ..unit.run() }
            });
            drop(processor);
            unit
        };
        match thread::Builder::new().name("inflate".to_owned()).spawn(work) {
            Ok(thread) => {
                send.send(unit).expect("the thread waits for it");
                PendingUnit::Helped(thread)
            }
            Err(_) => PendingUnit::Done(unit.run()),
        }
    }

    fn is_done(&self) -> bool {
        match self {
            PendingUnit::Done(_) => true,
            PendingUnit::Helped(thread) => thread.is_finished(),
        }
    }
}

/// Consecutive parts of a stream that one thread inflates.
struct Unit {
    compression: Compression,
    bytes: Vec<u8>,
    parts: Vec<Part>,
    /// Sum of the parts' lengths by [`Unit::len_of`].
    len: usize,
    plain: Vec<u8>,
    places: Vec<PlaceWithin>,
    /// Whether all of it was inflated, without an error.
    is_right: bool,
    /// Whether a helper thread inflated it.
    is_helped: bool,
    permit: Permit<'static>,
}

/// A place from which the stream can be inflated. If several have the same plain offset, only the first is kept.
struct PlaceWithin {
    /// Offset in the unit's bytes.
    at: usize,
    /// Offset in its plain bytes.
    plain: usize,
    /// Number of upper bits of the byte before that belong to the block; `None` where a part begins.
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

    /// The length that a part counts as.
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

    /// Inflates the unit.
    fn run(mut self) -> Unit {
        self.is_right = match self.compression {
            Compression::None => false,
            Compression::Gzip => self.inflate().unwrap_or(false),
            Compression::Zstd => self.decompress().unwrap_or(false),
        };
        self
    }

    /// Inflates zstd frames. False if one of them does not end where its part does.
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

    /// Inflates gzip members. False if they have more plain bytes than they state, or do not end with the unit.
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

    /// Shows the recorder the unit's bytes and the places that it wants.
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
