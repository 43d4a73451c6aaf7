//! CPU profiles in pprof's format, as `ctr pprof profile` requests them.
//!
//! ```text
//! linux::sampling ──▶ (address, thread) counted for the duration ──▶ api::pprof
//! ```
//!
//! Samples have the current function only, not its callers: the program is built without frame pointers. pprof resolves
//! names from the program's file, which keeps its symbol table; the kernel is one function. The label `thread` has the
//! name of the sampled thread.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::time::Duration;

use api::pprof::{Function, Label, Line, Location, Mapping, Profile, Sample, ValueType};
use linux::mapping;
use linux::sampling::{self, Sampler};
use prost::Message as _;
use tokio::sync::{Mutex, MutexGuard};
use types::{Context as _, Error, Result, Timestamp};

/// Go's sampling period.
const PERIOD: Duration = Duration::from_millis(10);
pub(super) const SECONDS: u64 = 30;
pub(super) const SECONDS_MAX: u64 = 300;
/// Interval of reading: the kernel's ring buffers hold half a minute.
const DRAIN: Duration = Duration::from_secs(1);

/// One profile at a time: each needs a ring buffer per CPU.
static TURN: Mutex<()> = Mutex::const_new(());

/// The lock for making a profile. `Unavailable` while another is being made.
pub(super) fn turn() -> Result<MutexGuard<'static, ()>> {
    TURN.try_lock()
        .map_err(|_| Error::unavailable("another profile is being made; ask again when it is done"))
}

/// A profile of the next `seconds`, encoded. Dropping the future ends the sampling.
pub(super) async fn of_processors(seconds: u64, _turn: MutexGuard<'static, ()>) -> Result<Vec<u8>> {
    let begun = Timestamp::now();
    let end = tokio::time::Instant::now() + Duration::from_secs(seconds);
    let mut sampler = Sampler::start(PERIOD).context(
        || "sample the processors (perf_event_open(2); it needs CAP_PERFMON, and a kernel that has it)",
    )?;
    let mut found = Found::default();
    loop {
        let is_over = tokio::time::timeout_at(end, tokio::time::sleep(DRAIN)).await.is_err();
        found.add(sampler.take());
        if is_over {
            break;
        }
    }
    drop(sampler);
    let maps = fs::read_to_string("/proc/self/maps").context(|| "read /proc/self/maps")?;
    Ok(found.into_profile(&code(&maps), begun, Duration::from_secs(seconds)).encode_to_vec())
}

/// Number of samples by address and thread.
#[derive(Default)]
struct Found {
    /// By address, `None` in the kernel, and thread name.
    counts: BTreeMap<(Option<u64>, String), i64>,
    /// Cache of names by thread id: most threads have many samples.
    names: HashMap<u32, String>,
}

impl Found {
    fn add(&mut self, samples: Vec<sampling::Sample>) {
        for sample in samples {
            let name = self.names.entry(sample.thread).or_insert_with(|| {
                let name = fs::read_to_string(format!("/proc/self/task/{}/comm", sample.thread));
                // The thread has exited.
                name.map_or_else(|_| "unknown".to_owned(), |name| name.trim_end().to_owned())
            });
            *self.counts.entry((sample.address, name.clone())).or_default() += 1;
        }
    }

    fn into_profile(self, code: &[mapping::Mapping<'_>], begun: Timestamp, duration: Duration) -> Profile {
        let mut texts = Texts::default();
        let nanos = |duration: Duration| i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX);
        let samples = ValueType { r#type: texts.add("samples"), unit: texts.add("count") };
        let time = ValueType { r#type: texts.add("cpu"), unit: texts.add("nanoseconds") };
        let mut profile = Profile {
            sample_type: vec![samples, time],
            time_nanos: begun.seconds * 1_000_000_000 + i64::from(begun.nanos),
            duration_nanos: nanos(duration),
            period_type: Some(time),
            period: nanos(PERIOD),
            ..Profile::default()
        };
        let kernel = Function { id: 1, name: texts.add("[kernel]") };
        profile.function.push(kernel);
        for (code, id) in code.iter().zip(1..) {
            profile.mapping.push(Mapping {
                id,
                memory_start: code.addresses.start,
                memory_limit: code.addresses.end,
                file_offset: code.offset,
                filename: texts.add(code.file),
            });
        }
        let thread_key = texts.add("thread");
        let mut locations = HashMap::new();
        for ((place, thread), count) in self.counts {
            let id = *locations.entry(place).or_insert_with(|| {
                let id = profile.location.len() as u64 + 1;
                let has =
                    |code: &mapping::Mapping<'_>| place.is_some_and(|place| code.addresses.contains(&place));
                let found = code.iter().zip(1..).find(|(code, _)| has(code));
                profile.location.push(Location {
                    id,
                    mapping_id: found.map_or(0, |(_, id)| id),
                    address: place.unwrap_or(0),
                    line: if place.is_none() { vec![Line { function_id: kernel.id }] } else { Vec::new() },
                });
                id
            });
            profile.sample.push(Sample {
                location_id: vec![id],
                value: vec![count, count * nanos(PERIOD)],
                label: vec![Label { key: thread_key, str: texts.add(&thread) }],
            });
        }
        profile.string_table = texts.all;
        profile
    }
}

/// The profile's string table.
struct Texts {
    all: Vec<String>,
    known: HashMap<String, i64>,
}

impl Default for Texts {
    fn default() -> Texts {
        Texts { all: vec![String::new()], known: HashMap::new() }
    }
}

impl Texts {
    fn add(&mut self, text: &str) -> i64 {
        if let Some(number) = self.known.get(text) {
            return *number;
        }
        let number = self.all.len() as i64;
        self.all.push(text.to_owned());
        self.known.insert(text.to_owned(), number);
        number
    }
}

/// The executable mappings of `/proc/PID/maps`, in order.
fn code(maps: &str) -> Vec<mapping::Mapping<'_>> {
    let mappings = maps.lines().filter_map(mapping::Mapping::of_line);
    mappings.filter(|mapping| mapping.rights.contains('x')).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAPS: &str = "\
400000-401000 r--p 00000000 fe:00 77 /usr/bin/a program
401000-500000 r-xp 00001000 fe:00 77 /usr/bin/a program
7ff000-800000 rw-p 00000000 00:00 0 \n\
900000-901000 r-xp 00000000 00:00 0                          [vdso]
";

    #[test]
    fn executable_mappings_are_found() {
        let found: Vec<_> = code(MAPS).into_iter().map(|code| (code.addresses.start, code.file)).collect();
        assert_eq!(found, [(0x40_1000, "/usr/bin/a program"), (0x90_0000, "[vdso]")]);
    }

    #[test]
    fn samples_are_counted_by_place_and_thread() {
        let thread = rustix::thread::gettid().as_raw_nonzero().get() as u32;
        let sample = |address| sampling::Sample { thread, address };
        let mut found = Found::default();
        found.add(vec![sample(Some(0x40_1234)), sample(None), sample(Some(0x40_1234))]);
        found.add(vec![
            sample(Some(0x40_1234)),
            sample(Some(0x1)),
            sampling::Sample { thread: u32::MAX, address: None },
        ]);
        let profile = found.into_profile(&code(MAPS), Timestamp::default(), Duration::from_secs(2));
        let text = |number: i64| profile.string_table[number as usize].as_str();
        let mut rows: Vec<_> = profile
            .sample
            .iter()
            .map(|sample| {
                let place = &profile.location[sample.location_id[0] as usize - 1];
                let named = place.line.first().map(|line| {
                    text(
                        profile
                            .function
                            .iter()
                            .find(|function| function.id == line.function_id)
                            .unwrap()
                            .name,
                    )
                });
                let is_gone = text(sample.label[0].str) == "unknown";
                (place.address, place.mapping_id, named, sample.value.clone(), is_gone)
            })
            .collect();
        rows.sort();
        let nanos = 10_000_000;
        assert_eq!(
            rows,
            [
                (0, 0, Some("[kernel]"), vec![1, nanos], false),
                (0, 0, Some("[kernel]"), vec![1, nanos], true),
                (0x1, 0, None, vec![1, nanos], false),
                (0x40_1234, 1, None, vec![3, 3 * nanos], false),
            ]
        );
        assert_eq!(text(profile.mapping[0].filename), "/usr/bin/a program");
        assert_eq!((profile.string_table[0].as_str(), profile.duration_nanos), ("", 2_000_000_000));
        assert_eq!(text(profile.sample[0].label[0].key), "thread");
    }
}
