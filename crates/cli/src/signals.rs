//! Signals that whoever stays with a process passes on to it.

use std::future::poll_fn;
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
}
