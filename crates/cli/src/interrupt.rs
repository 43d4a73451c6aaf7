//! Commands that are broken off by a signal and put away what they have made: pipes, and files that are not whole.

use std::ops::ControlFlow;

use rustix::process::Signal;
use types::Result;

use crate::signals::Signals;

/// Works until it is done or somebody breaks it off. Then the work is dropped, and the exit code is a shell's for the
/// signal. The daemon ends its part as the connection goes.
pub(crate) async fn unless_interrupted(work: impl Future<Output = Result<u8>>) -> Result<u8> {
    let mut signals = Signals::listen(&[Signal::HUP, Signal::INT, Signal::TERM])?;
    match signals.unless_one_comes(work).await {
        ControlFlow::Continue(done) => done,
        ControlFlow::Break(code) => Ok(code),
    }
}
