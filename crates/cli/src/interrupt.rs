//! Commands that are broken off by a signal and put away what they have made: pipes, and files that are not whole.

use tokio::signal::unix::{SignalKind, signal};
use types::{Context, Result};

/// Works until it is done or somebody breaks it off. Then the work is dropped, and the exit code is a shell's for the
/// signal. The daemon ends its part as the connection goes.
pub(crate) async fn unless_interrupted(work: impl Future<Output = Result<u8>>) -> Result<u8> {
    let what = || "wait for signals";
    let mut hangup = signal(SignalKind::hangup()).context(what)?;
    let mut interrupt = signal(SignalKind::interrupt()).context(what)?;
    let mut terminate = signal(SignalKind::terminate()).context(what)?;
    tokio::select! {
        done = work => done,
        _ = hangup.recv() => Ok(code(SignalKind::hangup())),
        _ = interrupt.recv() => Ok(code(SignalKind::interrupt())),
        _ = terminate.recv() => Ok(code(SignalKind::terminate())),
    }
}

fn code(kind: SignalKind) -> u8 {
    u8::try_from(128 + kind.as_raw_value()).unwrap_or(u8::MAX)
}
