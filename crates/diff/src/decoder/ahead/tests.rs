//! Streams of many parts, valid and damaged, must give the same bytes, spans and errors with and without helpers.

use std::io::Write;
use std::sync::{Condvar, Mutex};
use std::time::Duration;

use flate2::write::{DeflateEncoder, GzEncoder};
use inflate::{Buffer, OUTPUT_LEN};
use proptest::prelude::*;
use types::Digest;

use super::*;
use crate::Decoder;
use crate::spans::{About, Recorder};

/// A barrier at which helpers wait, once, until as many as wanted run at the same time.
pub(super) struct Meeting {
    wanted: usize,
    at_work: Mutex<(usize, bool)>,
    met: Condvar,
}

impl Meeting {
    /// Only reached by a helper that stays alone.
    const DEADLINE: Duration = Duration::from_secs(20);

    fn of(wanted: usize) -> Meeting {
        Meeting { wanted, at_work: Mutex::default(), met: Condvar::new() }
    }

    pub(super) fn wait(&self) {
        let mut at_work = self.at_work.lock().unwrap();
        at_work.0 += 1;
        at_work.1 |= at_work.0 >= self.wanted;
        self.met.notify_all();
        let waited = self.met.wait_timeout_while(at_work, Meeting::DEADLINE, |(_, have_met)| !*have_met);
        waited.unwrap().0.0 -= 1;
    }

    fn have_met(&self) -> bool {
        self.at_work.lock().unwrap().1
    }
}

/// The form of a part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    /// A zstd frame whose header states the content's length.
    Frame,
    /// A zstd frame that does not state it, with a checksum.
    Unstated,
    /// A skippable frame, and a frame that states its length.
    Skipped,
    /// A gzip member as gzip(1) writes it.
    Member,
    /// A gzip member with empty blocks.
    Flushed,
    /// A BGZF member, which states its own length.
    Bgzf,
}

const FRAMES: [Form; 3] = [Form::Frame, Form::Unstated, Form::Skipped];
const MEMBERS: [Form; 3] = [Form::Member, Form::Flushed, Form::Bgzf];

fn part(form: Form, plain: &[u8]) -> Vec<u8> {
    match form {
        Form::Frame | Form::Unstated => {
            let mut encoder = zstd::Encoder::new(Vec::new(), 1).unwrap();
            encoder.include_checksum(form == Form::Unstated).unwrap();
            let stated = (form == Form::Frame).then_some(plain.len() as u64);
            encoder.include_contentsize(stated.is_some()).unwrap();
            encoder.set_pledged_src_size(stated).unwrap();
            encoder.write_all(plain).unwrap();
            encoder.finish().unwrap()
        }
        Form::Skipped => [&b"\x5a\x2a\x4d\x18\x04\0\0\0skip"[..], &part(Form::Frame, plain)].concat(),
        Form::Member | Form::Flushed => {
            let mut encoder = GzEncoder::new(Vec::new(), flate2::Compression::fast());
            for piece in plain.chunks(if form == Form::Flushed { 9000 } else { usize::MAX }) {
                encoder.write_all(piece).unwrap();
                if form == Form::Flushed {
                    encoder.flush().unwrap();
                    encoder.flush().unwrap();
                }
            }
            encoder.finish().unwrap()
        }
        Form::Bgzf => {
            let mut encoder = DeflateEncoder::new(Vec::new(), flate2::Compression::fast());
            encoder.write_all(plain).unwrap();
            let deflated = encoder.finish().unwrap();
            let Ok(len) = u16::try_from(18 + deflated.len() + 8 - 1) else {
                return part(Form::Member, plain);
            };
            let mut checksum = flate2::Crc::new();
            checksum.update(plain);
            [
                &b"\x1f\x8b\x08\x04\0\0\0\0\0\xff\x06\0BC\x02\0"[..],
                &len.to_le_bytes(),
                &deflated,
                &checksum.sum().to_le_bytes(),
                &checksum.amount().to_le_bytes(),
            ]
            .concat()
        }
    }
}

/// Words, runs and noise.
fn text(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    let mut random = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let mut text = Vec::with_capacity(len + 400);
    while text.len() < len {
        let count = 1 + random() as usize % 400;
        match random() % 4 {
            0 => text.extend(std::iter::repeat_n(random() as u8, count)),
            1 => text.extend((0..count / 8).flat_map(|_| random().to_le_bytes())),
            _ => text.extend(
                (0..count / 4).flat_map(|_| [*b"tain", *b"shrd", *b"the ", *b"of\n "][random() as usize % 4]),
            ),
        }
    }
    text.truncate(len);
    text
}

/// A source that gives `piece` bytes at a time, and with `fails` an error at its end.
struct Source<'a> {
    bytes: &'a [u8],
    piece: usize,
    fails: bool,
}

impl Read for Source<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.bytes.is_empty() && self.fails {
            self.fails = false; // the reader must not read on
            return Err(io::Error::new(io::ErrorKind::ConnectionReset, "it broke off"));
        }
        let len = buffer.len().min(self.piece).min(self.bytes.len());
        buffer[..len].copy_from_slice(&self.bytes[..len]);
        self.bytes = &self.bytes[len..];
        Ok(len)
    }
}

/// The result of reading a stream: its plain bytes, and its record or the error.
struct Outcome {
    plain: Vec<u8>,
    record: Result<Vec<u8>, (io::ErrorKind, String)>,
}

fn read(source: Source<'_>, helpers: usize, fills: bool) -> Outcome {
    let record = tempfile::tempfile().unwrap();
    let mut plain = Vec::new();
    let read = || -> io::Result<Vec<u8>> {
        let mut decoder = Decoder::with_helpers(source, Helpers::Fixed(helpers))?;
        decoder.record(Recorder::new(&record)?);
        let mut buffer = Buffer::default();
        loop {
            let range = match fills {
                true => decoder.fill(&mut buffer)?,
                false => 0..decoder.read(&mut buffer[..10_000])?,
            };
            if range.is_empty() {
                break;
            }
            plain.extend_from_slice(&buffer[range]);
        }
        let compression = decoder.compression();
        let recorder = decoder.into_recorder().expect("one was given");
        let digest = Digest::of(&plain);
        let about = About {
            compression,
            blob: &digest,
            diff_id: &digest,
            plain_len: plain.len() as u64,
            pieces: Vec::new(),
        };
        recorder.finish(about).unwrap();
        let mut bytes = vec![0; record.metadata()?.len() as usize];
        std::os::unix::fs::FileExt::read_exact_at(&record, &mut bytes, 0)?;
        Ok(bytes)
    };
    let record = read().map_err(|error| (error.kind(), error.to_string()));
    Outcome { plain, record }
}

/// Checks that helpers make no difference.
#[track_caller]
fn check(stream: &[u8], piece: usize, fails: bool) {
    let source = || Source { bytes: stream, piece, fails };
    let alone = read(source(), 0, true);
    let is_zstd = Compression::detect(stream) == Compression::Zstd;
    for (helpers, fills) in [(1, true), (2, true), (2, false), (4, true)] {
        let helped = read(source(), helpers, fills);
        match (&alone.record, &helped.record) {
            (Err((kind, why)), Err((helped_kind, helped_why))) => {
                // libzstd's error for an invalid frame depends on the pieces in which it gets the frame.
                assert!(
                    (kind, why) == (helped_kind, helped_why) || is_zstd && kind == helped_kind,
                    "{helped_why}"
                );
                // Output that was not read before an error is lost.
                let (short, long) = match alone.plain.len() < helped.plain.len() {
                    true => (&alone.plain, &helped.plain),
                    false => (&helped.plain, &alone.plain),
                };
                assert!(long.starts_with(short), "other bytes before {why}");
            }
            (Ok(record), Ok(helped_record)) => {
                assert!(alone.plain == helped.plain, "{} and {}", alone.plain.len(), helped.plain.len());
                assert!(record == helped_record, "{helpers} helpers, another record");
            }
            (alone, helped) => {
                panic!("{:?} alone, {:?} with {helpers}", alone.as_ref().err(), helped.as_ref().err())
            }
        }
    }
}

/// A budget as large as the shared one, for a single test.
fn own_budget() -> &'static Budget {
    Box::leak(Box::new(Budget::new(BUDGET_LEN)))
}

/// Reads a stream with two helpers: the number of plain bytes that they inflated, and of all.
fn helped(stream: &[u8]) -> (usize, usize) {
    let mut decoder = Decoder::with_helpers(stream, Helpers::Fixed(2)).unwrap();
    decoder.ahead.as_mut().unwrap().budget = own_budget();
    let (mut helped, mut all) = (0, 0);
    loop {
        let is_helped = decoder.is_helped().unwrap();
        let len = decoder.read(&mut [0; 4096]).unwrap();
        if len == 0 {
            return (helped, all);
        }
        helped += if is_helped { len } else { 0 };
        all += len;
    }
}

#[test]
fn all_parts_but_the_first_are_for_helpers() {
    for form in FRAMES.into_iter().chain(MEMBERS) {
        for len in [700, 60_000, 3_000_000] {
            let plain = text((20 * len).min(6_000_000), len as u64);
            let parts: Vec<Vec<u8>> = plain.chunks(len).map(|plain| part(form, plain)).collect();
            let stream = parts.concat();
            let (helped, all) = helped(&stream);
            assert_eq!(all, plain.len());
            // The end of the last member is not found before the end of the stream, unless it states its length.
            let is_open = matches!(form, Form::Member | Form::Flushed)
                || (form == Form::Bgzf && parts[0].len() > 1 << 16);
            let alone =
                if is_open && parts.len() < 3 { plain.len() } else { len * (1 + usize::from(is_open)) };
            assert_eq!(helped, all - alone, "{form:?} of {len}");
            check(&stream, 1 << 16, false);
        }
    }
}

#[test]
fn helpers_inflate_several_parts_at_the_same_time() {
    for form in [Form::Frame, Form::Member, Form::Bgzf] {
        let plain = text(6_000_000, 17);
        let stream: Vec<u8> = plain.chunks(50_000).flat_map(|plain| part(form, plain)).collect();
        let mut decoder = Decoder::with_helpers(&stream[..], Helpers::Fixed(3)).unwrap();
        let processors = Processors { meeting: Some(Meeting::of(3)), ..Processors::new(3) };
        let processors = Arc::new(processors);
        decoder.ahead.as_mut().unwrap().processors = processors.clone();
        let mut read = Vec::new();
        decoder.read_to_end(&mut read).unwrap();
        assert!(read == plain);
        assert!(processors.meeting.as_ref().unwrap().have_met(), "{form:?}: three at the same time");
        assert!(decoder.helped_len() > 0);
    }
}

/// Helpers start only while the budget has memory.
#[test]
fn helpers_start_once_the_budget_has_memory() {
    let plain = text(6_000_000, 29);
    let stream: Vec<u8> = plain.chunks(50_000).flat_map(|plain| part(Form::Frame, plain)).collect();
    let mut decoder = Decoder::with_helpers(&stream[..], Helpers::Fixed(2)).unwrap();
    let budget = own_budget();
    decoder.ahead.as_mut().unwrap().budget = budget;
    let others = budget.try_take(BUDGET_LEN);
    let mut read = vec![0; 2_000_000];
    decoder.read_exact(&mut read).unwrap();
    assert_eq!(decoder.helped_len(), 0);
    drop(others);
    decoder.read_to_end(&mut read).unwrap();
    assert!(read == plain);
    assert!(decoder.helped_len() > 0);
}

/// With four processors, the first layer has helpers until the second one needs their processors; with two there are
/// none.
#[test]
fn a_layer_is_helped_by_processors_that_no_layer_needs() {
    let plain = text(6_000_000, 23);
    let stream: Vec<u8> = plain.chunks(50_000).flat_map(|plain| part(Form::Frame, plain)).collect();
    let read = |processors: &Arc<Processors>| {
        let mut decoder = Decoder::new(&stream[..]).unwrap();
        decoder.ahead = Ahead::beside(processors);
        io::copy(&mut decoder, &mut io::sink()).unwrap();
        decoder.helped_len()
    };
    assert_eq!(read(&Arc::new(Processors::new(2))), 0);
    let processors = Arc::new(Processors::new(4));
    assert!(read(&processors) > 0);
    let _other = Ahead::beside(&processors).unwrap();
    assert_eq!(read(&processors), 0);
}

#[test]
fn a_stream_of_one_part_gets_no_helpers() {
    let plain = text(3_000_000, 3);
    for form in [Form::Frame, Form::Unstated, Form::Member] {
        let stream = part(form, &plain);
        assert_eq!(helped(&stream), (0, plain.len()));
        let mut decoder = Decoder::with_helpers(&stream[..], Helpers::Fixed(2)).unwrap();
        io::copy(&mut decoder, &mut io::sink()).unwrap();
        let Ahead { units, input_permits, current, .. } = decoder.ahead.as_ref().unwrap();
        assert!(units.is_empty() && input_permits.is_empty() && current.is_none());
        assert_eq!(decoder.input.buffer.len(), BUFFER_LEN, "it read no further than ever");
    }
}

#[test]
fn wrong_headers_are_read_as_without_helpers() {
    let plain = text(300_000, 5);
    let [small, large] = [&plain[..1000], &plain[..]];
    let many = |form, parts: usize| part(form, small).repeat(parts);
    let patched = |form, at: isize, byte: u8| {
        let mut part = part(form, large);
        let at = if at < 0 { part.len() - at.unsigned_abs() } else { at as usize };
        part[at] ^= byte;
        [many(form, 30), part, many(form, 30)].concat()
    };
    for (stream, what) in [
        (patched(Form::Bgzf, 16, 1), "BGZF: another length"),
        (patched(Form::Bgzf, 17, 0x80), "BGZF: another length"),
        (patched(Form::Member, -4, 1), "gzip: another size"),
        (patched(Form::Member, -1, 0xff), "gzip: a size of gigabytes"),
        (patched(Form::Member, -8, 1), "gzip: another checksum"),
        (patched(Form::Member, 3, 0x20), "gzip: a flag that there is not"),
        (patched(Form::Frame, 4, 1), "zstd: a dictionary"),
        (patched(Form::Frame, 4, 8), "zstd: a flag that there is not"),
        (patched(Form::Frame, 6, 1), "zstd: more or less content"),
        (patched(Form::Frame, 8, 0x70), "zstd: content of gigabytes"),
        (patched(Form::Unstated, 5, 0xf8), "zstd: another window"),
        (patched(Form::Unstated, 6, 6), "zstd: a block of another kind"),
        (patched(Form::Unstated, -1, 1), "zstd: another checksum"),
        ([many(Form::Member, 30), b"rubbish".to_vec()].concat(), "gzip: rubbish"),
        ([many(Form::Frame, 30), b"rubbish that is long".to_vec()].concat(), "zstd: rubbish"),
        (
            [many(Form::Frame, 3), vec![0x50, 0x2a, 0x4d, 0x18, 0xff, 0xff, 0xff, 0xff]].concat(),
            "zstd: 4 GiB",
        ),
        ([many(Form::Frame, 3), part(Form::Frame, &vec![0; 40 << 20])].concat(), "zstd: a bomb"),
        ([many(Form::Unstated, 3), part(Form::Unstated, &vec![0; 40 << 20])].concat(), "zstd: a bomb"),
        (
            [many(Form::Member, 3), part(Form::Member, &vec![0; 40 << 20]), many(Form::Member, 9)].concat(),
            "gzip: a bomb",
        ),
        // A stored block that contains a plausible member.
        (
            {
                let inner = [many(Form::Member, 2), vec![9; 500]].concat();
                let mut stored = GzEncoder::new(Vec::new(), flate2::Compression::none());
                stored.write_all(&inner).unwrap();
                let mut stored = stored.finish().unwrap();
                stored[8..10].copy_from_slice(&many(Form::Member, 1)[8..10]);
                [many(Form::Member, 3), stored.repeat(3), many(Form::Member, 9)].concat()
            },
            "gzip: members in a member",
        ),
    ] {
        println!("{what}");
        check(&stream, 1 << 14, false);
        check(&stream, 700, false);
    }
}

#[test]
fn a_failing_source_is_read_to_its_error() {
    for form in FRAMES.into_iter().chain(MEMBERS) {
        let stream: Vec<u8> = text(400_000, 9).chunks(7000).flat_map(|plain| part(form, plain)).collect();
        for len in [0, 100, stream.len() / 2, stream.len() - 1, stream.len()] {
            check(&stream[..len], 4000, true);
        }
    }
}

/// The end of a member that does not fit into one read comes before the helpers' output of the next member.
#[test]
fn a_member_may_end_just_behind_a_full_buffer() {
    for len in [OUTPUT_LEN - 1, OUTPUT_LEN, OUTPUT_LEN + 1, OUTPUT_LEN + 5000, 2 * OUTPUT_LEN + 1] {
        for form in MEMBERS {
            let stream: Vec<u8> =
                [len, 0, 9087, 60_000, 100].into_iter().flat_map(|len| part(form, &text(len, 7))).collect();
            check(&stream, 300_000, false);
        }
    }
}

#[test]
fn helpers_take_only_idle_processors() {
    let processors = Arc::new(Processors::new(4));
    let layer = processors.layer();
    let (one, other) = (processors.spare().unwrap(), processors.spare().unwrap());
    assert!(processors.spare().is_none());
    drop(one);
    let second = processors.layer();
    assert!(processors.spare().is_none(), "a layer counts before helpers do");
    drop((other, second));
    let again = [processors.spare(), processors.spare()];
    assert!(again.iter().all(Option::is_some));
    drop((layer, again));
    assert_eq!(processors.busy.load(Ordering::Relaxed), 0);
}

#[test]
fn a_dropped_decoder_gives_back_memory_and_processors() {
    let stream: Vec<u8> =
        text(6_000_000, 2).chunks(50_000).flat_map(|plain| part(Form::Frame, plain)).collect();
    let mut decoder = Decoder::with_helpers(&stream[..], Helpers::Fixed(4)).unwrap();
    while !decoder.is_helped().unwrap() {
        assert!(decoder.read(&mut [0; 1000]).unwrap() > 0);
    }
    let processors = decoder.ahead.as_ref().unwrap().processors.clone();
    drop(decoder);
    assert_eq!(processors.busy.load(Ordering::Relaxed), 0);
    assert_eq!(Arc::strong_count(&processors), 1, "all threads have ended");
}

/// Lengths of parts: mostly short ones, some of several units.
fn lens(count: usize) -> impl Strategy<Value = Vec<(usize, usize)>> {
    let len = prop_oneof![1 => Just(0), 8 => 1_usize..5000, 2 => 5000_usize..200_000, 1 => 200_000_usize..2_000_000];
    prop::collection::vec((0_usize..3, len), 1..count)
}

fn stream(forms: [Form; 3], lens: &[(usize, usize)], seed: u64) -> Vec<u8> {
    let plain = text(lens.iter().map(|(_, len)| len).sum(), seed);
    let mut at = 0;
    let parts = lens.iter().map(|(form, len)| {
        at += len;
        part(forms[*form], &plain[at - len..at])
    });
    parts.collect::<Vec<_>>().concat()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(20))]

    #[test]
    fn helpers_make_no_difference(
        is_zstd in any::<bool>(), lens in lens(80), seed in any::<u64>(), piece in 500_usize..300_000,
    ) {
        check(&stream(if is_zstd { FRAMES } else { MEMBERS }, &lens, seed), piece, false);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    #[test]
    fn helpers_make_no_difference_to_damaged_streams(
        is_zstd in any::<bool>(), lens in prop::collection::vec((0_usize..3, 0_usize..3000), 2..40), seed in any::<u64>(),
        piece in 1_usize..10_000, cut in prop::option::of(any::<prop::sample::Index>()),
        flips in prop::collection::vec((any::<prop::sample::Index>(), 0_u8..8), 0..3), fails in any::<bool>(),
    ) {
        let mut stream = stream(if is_zstd { FRAMES } else { MEMBERS }, &lens, seed);
        for (at, bit) in flips {
            let at = at.index(stream.len());
            stream[at] ^= 1 << bit;
        }
        stream.truncate(cut.map_or(stream.len(), |cut| cut.index(stream.len())));
        check(&stream, piece, fails);
    }
}
