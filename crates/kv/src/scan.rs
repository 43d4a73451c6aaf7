//! A scan of many records by two threads: the caller's thread reads them from the engine, another decodes them.
//!
//! ```text
//! engine ──records──▶ batch ──▶ visit, on a thread of its own
//!                       └─────▶ visit, on the caller's thread, if one batch holds all records
//! ```
//!
//! Reading a record from the engine takes about as long as turning it into part of an answer, so for 100,000 records
//! one thread would take twice as long. Most scans are short and need no second thread.

use std::ops::ControlFlow;
use std::panic::resume_unwind;
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread;

use types::Result;

/// Bytes from which a batch counts as full.
const BATCH_LEN: usize = 256 << 10;
/// Full batches that wait for the visitor at most.
const WAITING_MAX: usize = 4;

/// Called with a key and a value.
type Each<'a> = &'a mut dyn FnMut(&[u8], &[u8]) -> Result<ControlFlow<()>>;

/// Calls `visit` with each record that `read` yields, in order, until one of them fails.
pub(crate) fn visit_all(
    read: impl FnOnce(Each<'_>) -> Result<()>,
    mut visit: impl FnMut(&[u8], &[u8]) -> Result<()> + Send,
) -> Result<()> {
    let mut batch = Batch::default();
    thread::scope(|scope| {
        let (send, full) = sync_channel::<Batch>(WAITING_MAX);
        let mut to_begin = Some((full, &mut visit));
        let mut visitor = None;
        let read = read(&mut |key, value| {
            batch.push(key, value);
            if batch.bytes.len() < BATCH_LEN {
                return Ok(ControlFlow::Continue(()));
            }
            if let Some((full, visit)) = to_begin.take() {
                visitor = Some(scope.spawn(move || visit_batches(&full, visit)));
            }
            // If the visitor has ended, joining it below gives the error.
            let sent = send.send(std::mem::take(&mut batch));
            Ok(if sent.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) })
        });
        drop(send);
        let visited = visitor.map_or(Ok(Ok(())), thread::ScopedJoinHandle::join);
        visited.unwrap_or_else(|panic| resume_unwind(panic)).and(read)
    })?;
    batch.visit(&mut visit)
}

fn visit_batches(full: &Receiver<Batch>, visit: &mut impl FnMut(&[u8], &[u8]) -> Result<()>) -> Result<()> {
    full.iter().try_for_each(|batch| batch.visit(visit))
}

/// Records, concatenated.
#[derive(Default)]
struct Batch {
    bytes: Vec<u8>,
    /// For each record, where its key and its value end in `bytes`.
    ends: Vec<(usize, usize)>,
}

impl Batch {
    fn push(&mut self, key: &[u8], value: &[u8]) {
        if self.bytes.capacity() == 0 {
            self.bytes.reserve(BATCH_LEN + key.len() + value.len());
        }
        self.bytes.extend_from_slice(key);
        let key_end = self.bytes.len();
        self.bytes.extend_from_slice(value);
        self.ends.push((key_end, self.bytes.len()));
    }

    fn visit(&self, visit: &mut impl FnMut(&[u8], &[u8]) -> Result<()>) -> Result<()> {
        let mut start = 0;
        for (key_end, end) in &self.ends {
            visit(&self.bytes[start..*key_end], &self.bytes[*key_end..*end])?;
            start = *end;
        }
        Ok(())
    }
}
