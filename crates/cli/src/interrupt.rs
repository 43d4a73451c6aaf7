//! Cancellation of commands by signals: a cancelled command removes its pipes and incomplete files.

use std::ops::ControlFlow;

use rustix::process::Signal;
use types::Result;

use crate::signals::Signals;

/// Runs `work` until it is done or a signal cancels it. The future is then dropped, and the exit code is 128 + the
/// signal, as in a shell. The daemon cancels its part when the connection closes.
pub(crate) async fn unless_interrupted(work: impl Future<Output = Result<u8>>) -> Result<u8> {
    let mut signals = Signals::listen(&[Signal::HUP, Signal::INT, Signal::TERM])?;
    match signals.unless_one_comes(work).await {
        ControlFlow::Continue(done) => done,
        ControlFlow::Break(code) => Ok(code),
    }
}
