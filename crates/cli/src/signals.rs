//! Signals that an attached client forwards to the process, and that cancel the request before the process exists.

use std::future::poll_fn;
use std::ops::ControlFlow;
use std::task::Poll;

use rustix::process::Signal;
use tokio::signal::unix::{Signal as Listener, SignalKind, signal};
use types::{Context, Result};

/// The signals that are forwarded to a process with pipes, as Docker does.
pub(crate) const TO_PIPES: [Signal; 6] =
    [Signal::HUP, Signal::INT, Signal::QUIT, Signal::TERM, Signal::USR1, Signal::USR2];
/// The signals that are forwarded to a process with a terminal: keys reach it as bytes, and the hangup is ours.
pub(crate) const TO_A_TERMINAL: [Signal; 2] = [Signal::INT, Signal::TERM];

/// Listeners for signals, active from their creation on.
pub(crate) struct Signals(Vec<(Signal, Listener)>);

impl Signals {
    pub(crate) fn listen(all: &[Signal]) -> Result<Signals> {
        let listen = |one: &Signal| Ok((*one, signal(SignalKind::from_raw(one.as_raw()))?));
        let listeners = all.iter().map(listen).collect::<std::io::Result<_>>();
        listeners.map(Signals).context(|| "wait for signals")
    }

    pub(crate) async fn next(&mut self) -> Signal {
        poll_fn(|context| {
            let mut all = self.0.iter_mut();
            let came = all.find_map(|(one, listener)| listener.poll_recv(context).is_ready().then_some(*one));
            came.map_or(Poll::Pending, Poll::Ready)
        })
        .await
    }

    /// Runs `work` until it is done or a signal cancels it. The future is then dropped, and the exit code is a shell's
    /// for the signal. A signal that arrives as the work is done is kept for [`Signals::next`].
    pub(crate) async fn unless_one_comes<T>(&mut self, work: impl Future<Output = T>) -> ControlFlow<u8, T> {
        tokio::select! {
            biased;
            done = work => ControlFlow::Continue(done),
            signal = self.next() => ControlFlow::Break(exit_code(signal)),
        }
    }
}

/// The exit code that a shell reports for a program ended by a signal.
pub(crate) fn exit_code(signal: Signal) -> u8 {
    u8::try_from(128 + signal.as_raw()).unwrap_or(u8::MAX)
}
