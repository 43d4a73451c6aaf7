//! Attending a process until it ends: its streams, signals, and the size of the terminal.

use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use api::engine::{Call, Exited, Follow, Streams};
use clap::Args;
use client::Client;
use rustix::process::Signal;
use tokio::signal::unix::{SignalKind, signal};
use types::{Context, Error, ErrorKind, Result};

use crate::keys::DetachKeys;
use crate::private_folder::PrivateFolder;
use crate::signals::{Signals, TO_PIPES, exit_code};
use crate::streams::{self, Attached, InputOutcome, Raw};

/// How long the client waits for a restarted daemon. The process and its streams do not need the daemon.
const DAEMON_LIMIT: Duration = Duration::from_secs(30);
const DAEMON_PAUSE: Duration = Duration::from_millis(100);

// No doc comments on groups of flags: clap would use them as the help of each command that has the group.

// How to detach from a process.
#[derive(Args)]
pub(crate) struct DetachFlags {
    /// Keys that detach from the process and leave it running, with a terminal [default: ctrl-p,ctrl-q]
    #[arg(long, value_name = "KEYS")]
    pub(crate) detach_keys: Option<DetachKeys>,
}

// What happens to signals.
#[derive(Args)]
pub(crate) struct SignalFlags {
    /// Forward signals to the process; with false they end only this program
    #[arg(long, default_value_t = true, num_args = 0..=1, require_equals = true, default_missing_value = "true",
        action = clap::ArgAction::Set, value_name = "BOOL")]
    pub(crate) sig_proxy: bool,
}

/// Listens for the signals that concern an attached client. Call it before the process is requested: until the process
/// exists they cancel the request, afterwards [`Process::attend`] handles them.
pub(super) fn listen(tty: bool) -> Result<Signals> {
    Signals::listen(if tty { &[Signal::HUP, Signal::INT, Signal::TERM] } else { &TO_PIPES })
}

/// A process that this client is attached to.
pub(super) struct Process<'a> {
    pub(super) container: &'a str,
    pub(super) exec: Option<String>,
    pub(super) tty: bool,
    /// Whether the end of our input closes the input of the process.
    pub(super) ends_input: bool,
    pub(super) detach_keys: Option<DetachKeys>,
    /// Whether signals are forwarded to the process. Otherwise they end only this client.
    pub(super) takes_signals: bool,
}

impl Process<'_> {
    /// Creates the pipes, sends the call that starts or attaches to the process, and attends it. A signal before the
    /// answer cancels the call.
    pub(super) async fn begin(
        self,
        client: &Client,
        types: bool,
        call: impl FnOnce(Streams) -> Call,
    ) -> Result<u8> {
        let mut signals = listen(self.tty)?;
        let attached = Attached::prepare(PrivateFolder::create(client.address())?, types, self.tty)?;
        let call = call(attached.streams.clone());
        match signals.unless_one_comes(client.call(&call)).await {
            ControlFlow::Break(code) => Ok(code),
            ControlFlow::Continue(Ok(_)) => self.attend(client, attached, signals).await,
            ControlFlow::Continue(Err(error)) => {
                attached.abandon();
                Err(error)
            }
        }
    }

    /// Attends the process until it ends, and returns its exit code, or until the user detaches.
    pub(super) async fn attend(
        self,
        client: &Client,
        mut attached: Attached,
        mut signals: Signals,
    ) -> Result<u8> {
        let keys = self.tty.then(|| self.detach_keys.clone().unwrap_or_default());
        let mut feeding = attached.feed(keys);
        // Without input to send, the keys of the terminal raise signals as usual.
        let raw = if self.tty && feeding.is_some() { Some(Raw::enter()?) } else { None };
        if self.tty {
            self.resize(client).await;
        }
        let mut window = signal(SignalKind::window_change()).context(|| "wait for signals")?;
        let mut waiting = std::pin::pin!(self.wait_for_end(client));
        let mut lost = std::pin::pin!(attached.lost());
        let code = loop {
            let typed = async {
                match &mut feeding {
                    Some(feeding) => feeding.await.unwrap_or(InputOutcome::Refused),
                    None => std::future::pending().await,
                }
            };
            let mut signal = None;
            tokio::select! {
                code = &mut waiting => break code?,
                // The process goes on; nothing shows its output any more.
                lost = &mut lost => {
                    drop(raw);
                    attached.abandon();
                    return Ok(lost.code("hoist"));
                }
                fed = typed => {
                    feeding = None;
                    match fed {
                        InputOutcome::End if self.ends_input => self.close_input(client).await,
                        InputOutcome::End | InputOutcome::Refused => {}
                        InputOutcome::Detached => {
                            drop(raw);
                            eprintln!("detached from {}", self.container);
                            attached.abandon();
                            return Ok(0);
                        }
                    }
                }
                _ = window.recv(), if self.tty => self.resize(client).await,
                came = signals.next() => signal = Some(came),
            }
            match signal {
                // The hangup of our terminal does not concern the process, which has a terminal of its own.
                Some(signal) if self.takes_signals && !(self.tty && signal == Signal::HUP) => {
                    self.pass_on(client, signal).await;
                }
                Some(signal) => {
                    drop(raw);
                    attached.abandon();
                    return Ok(exit_code(signal));
                }
                None => {}
            }
        };
        // Output that the container wrote last may still be in the pipes.
        let lost = attached.drain().await;
        drop(raw);
        match lost {
            Some(lost) => Ok(lost.code("hoist")),
            None => Ok(u8::try_from(code).unwrap_or(255)),
        }
    }

    // The calls below ignore errors: the process may have ended by now.

    async fn resize(&self, client: &Client) {
        if let Some((rows, columns)) = streams::size() {
            let (id, exec) = (self.container.to_owned(), self.exec.clone());
            let _ = client.call(&Call::Resize { id, exec, rows, columns }).await;
        }
    }

    async fn close_input(&self, client: &Client) {
        let close = Call::CloseStdin { id: self.container.to_owned(), exec: self.exec.clone() };
        let _ = client.call(&close).await;
    }

    async fn pass_on(&self, client: &Client, signal: Signal) {
        let signal = signal.as_raw().to_string();
        let _ = client.call(&Call::Kill { id: self.container.to_owned(), signal }).await;
    }

    /// Waits for the end of the process, also across a restart of the daemon.
    async fn wait_for_end(&self, client: &Client) -> Result<u32> {
        let mut gone_since = Instant::now();
        loop {
            let asked = Instant::now();
            let error = match wait(client, self.container.to_owned(), self.exec.clone()).await {
                Err(error) if error.is(ErrorKind::Unavailable) => error,
                other => return other,
            };
            if asked.elapsed() > DAEMON_PAUSE {
                // The daemon was there until now.
                gone_since = Instant::now();
            }
            if gone_since.elapsed() > DAEMON_LIMIT {
                return Err(error);
            }
            tokio::time::sleep(DAEMON_PAUSE).await;
        }
    }
}

pub(super) async fn wait(client: &Client, id: String, exec: Option<String>) -> Result<u32> {
    let mut answers = client.follow(&Follow::Wait { id, exec }).await?;
    let exited = answers.next::<Exited>().await?;
    exited
        .map(|exited| exited.code)
        .ok_or_else(|| Error::unavailable("the daemon stopped while the container ran; it goes on"))
}
