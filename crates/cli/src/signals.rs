//! Signals that whoever stays with a process passes on to it, and that break off what comes before.

use std::future::poll_fn;
use std::ops::ControlFlow;
use std::task::Poll;

use rustix::process::Signal;
use tokio::signal::unix::{Signal as Listener, SignalKind, signal};
use types::{Context, Result};

/// Signals that are for the process, as Docker has it.
pub(crate) const TO_PIPES: [Signal; 6] =
    [Signal::HUP, Signal::INT, Signal::QUIT, Signal::TERM, Signal::USR1, Signal::USR2];
/// The keys of a terminal are the process's own, and the end of the terminal is ours alone.
pub(crate) const TO_A_TERMINAL: [Signal; 2] = [Signal::INT, Signal::TERM];

/// Those that we listen for, from the first moment on.
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

    /// Works until it is done or a signal comes. Then the work is dropped, and the exit code is a shell's for the signal. One
    /// that comes as the work is done is kept for [`Signals::next`].
    pub(crate) async fn unless_one_comes<T>(&mut self, work: impl Future<Output = T>) -> ControlFlow<u8, T> {
        tokio::select! {
            biased;
            done = work => ControlFlow::Continue(done),
            signal = self.next() => ControlFlow::Break(exit_code(signal)),
        }
    }
}

/// A shell's for whom a signal has ended.
pub(crate) fn exit_code(signal: Signal) -> u8 {
    u8::try_from(128 + signal.as_raw()).unwrap_or(u8::MAX)
}
