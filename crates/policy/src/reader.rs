//! Reads the directory of verifiers, once for all concurrent callers.
//!
//! ```text
//! call ─▶ waiting ─▶ a thread reads once for all waiting callers, and again for those that came since ─▶ none waits
//!             └── no answer within the verifier timeout ─▶ an error; later calls fail at once until the disk answers
//! ```
//!
//! Invariants
//! - An answer comes from a read that began after the call.
//! - An unresponsive disk blocks at most one thread, however many callers there are. The thread is detached: shutting
//!   down an executor would wait for its own threads.

use std::path::PathBuf;
use std::sync::{Arc, MutexGuard};
use std::thread;
use std::time::{Duration, Instant};

use stdx::Mutex;
use tokio::sync::oneshot;
use types::{Context, Error, ErrorKind, Result};

use crate::Verifiers;

/// Clones share one reader.
#[derive(Clone, Default)]
pub struct Reader(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    waiting: Vec<oneshot::Sender<Answer>>,
    /// When the current read began; `None` if no thread runs.
    began: Option<Instant>,
}

/// Cloneable: every waiting caller gets the same answer.
type Answer = std::result::Result<Vec<PathBuf>, (ErrorKind, String)>;

impl Reader {
    /// The verifier programs of a directory, in the order in which they are asked. `DeadlineExceeded` if the disk
    /// does not answer within the verifiers' timeout.
    pub async fn programs(&self, of: &Verifiers) -> Result<Vec<PathBuf>> {
        let answer = self.answer(of)?;
        match tokio::time::timeout(of.timeout, answer).await {
            Ok(Ok(answer)) => answer.map_err(|(kind, message)| Error::new(kind, message)),
            Ok(Err(_)) | Err(_) => Err(late(of, of.timeout)),
        }
    }

    fn answer(&self, of: &Verifiers) -> Result<oneshot::Receiver<Answer>> {
        let mut state = self.state();
        if let Some(time) = state.began.map(|began| began.elapsed()).filter(|time| *time > of.timeout) {
            return Err(late(of, time));
        }
        let (tell, told) = oneshot::channel();
        state.waiting.push(tell);
        if state.began.is_none() {
            let (reader, verifiers) = (self.clone(), of.clone());
            let thread = thread::Builder::new().name("verifiers".into());
            thread.spawn(move || reader.run(&verifiers)).context(|| "start a thread for image verifiers")?;
            state.began = Some(Instant::now());
        }
        Ok(told)
    }

    /// Reads as long as callers wait.
    fn run(&self, of: &Verifiers) {
        loop {
            let waiting = {
                let mut state = self.state();
                let waiting = std::mem::take(&mut state.waiting);
                state.began = Some(Instant::now()).filter(|_| !waiting.is_empty());
                waiting
            };
            if waiting.is_empty() {
                return;
            }
            let answer = of.read().map_err(|error| (error.kind(), error.chain()));
            for tell in waiting {
                // Callers that timed out have dropped their receivers.
                let _ = tell.send(answer.clone());
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock()
    }
}

fn late(of: &Verifiers, time: Duration) -> Error {
    Error::deadline_exceeded(format!(
        "read the image verifiers in {}: no answer for {time:?}; see to its disk, or set image_verifiers.bin_dir",
        of.directory.display()
    ))
}

#[cfg(test)]
mod tests {
    use tokio::task::JoinSet;

    use super::*;

    #[tokio::test]
    async fn concurrent_callers_all_see_the_programs_that_existed_before() {
        let dir = tempfile::tempdir().unwrap();
        let of =
            Verifiers { directory: dir.path().into(), count_max: None, timeout: Duration::from_secs(60) };
        let reader = Reader::default();
        for round in 1..=20 {
            std::fs::write(dir.path().join(format!("{round:02}")), "").unwrap();
            let mut asking = JoinSet::new();
            for _ in 0..50 {
                let (reader, of) = (reader.clone(), of.clone());
                asking.spawn(async move { reader.programs(&of).await });
            }
            while let Some(answer) = asking.join_next().await {
                assert_eq!(answer.unwrap().unwrap().len(), round);
            }
        }
    }

    #[tokio::test]
    async fn an_error_goes_to_everybody() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        std::fs::write(&file, "").unwrap();
        let of = Verifiers { directory: file, count_max: None, timeout: Duration::from_secs(60) };
        let reader = Reader::default();
        let (one, other) = tokio::join!(reader.programs(&of), reader.programs(&of));
        for answer in [one, other] {
            assert!(answer.unwrap_err().message().contains("read the image verifiers in"));
        }
    }
}
