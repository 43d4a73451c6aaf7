//! Staying with a process until it ends: bytes, signals, the size of the terminal.

use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use api::engine::{Call, Exited, Follow, Streams};
use clap::Args;
use client::Client;
use rustix::process::Signal;
use tokio::signal::unix::{SignalKind, signal};
use types::{Context, Error, ErrorKind, Result};

use crate::keys::DetachKeys;
use crate::signals::{Signals, TO_PIPES, exit_code};
use crate::streams::{self, Attached, Fed, PrivateFolder, Raw};

/// How long a daemon that has gone is waited for: the process and its streams go on without.
const DAEMON_LIMIT: Duration = Duration::from_secs(30);
const DAEMON_PAUSE: Duration = Duration::from_millis(100);

// Of a group of flags a doc comment would become the help of each command that has it.

// How to leave a process.
#[derive(Args)]
pub(crate) struct Leaving {
    /// Keys that end this program alone, of a terminal [default: ctrl-p,ctrl-q]
    #[arg(long, value_name = "KEYS")]
    pub(crate) detach_keys: Option<DetachKeys>,
}

// What becomes of signals.
#[derive(Args)]
pub(crate) struct Passing {
    /// Pass on signals; with false they end this program alone
    #[arg(long, default_value_t = true, num_args = 0..=1, require_equals = true, default_missing_value = "true",
        action = clap::ArgAction::Set, value_name = "BOOL")]
    pub(crate) sig_proxy: bool,
}

/// The signals that concern who stays with a process. To be listened for before the process is asked for: until it is there
/// they break that off, and from then on [`Process::attend`] has them.
pub(super) fn listen(tty: bool) -> Result<Signals> {
    Signals::listen(if tty { &[Signal::HUP, Signal::INT, Signal::TERM] } else { &TO_PIPES })
}

/// A process that we stay with.
pub(super) struct Process<'a> {
    pub(super) container: &'a str,
    pub(super) exec: Option<String>,
    pub(super) tty: bool,
    /// The end of our input is the end of its.
    pub(super) ends_input: bool,
    pub(super) detach_keys: Option<DetachKeys>,
    /// It gets the signals that we get. Otherwise they end us alone.
    pub(super) takes_signals: bool,
}

impl Process<'_> {
    /// Makes pipes, asks for the process to be started or joined with them, and stays with it. A signal that comes before the
    /// answer breaks that off.
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

    /// Until it ends, with its exit code, or until somebody leaves it.
    pub(super) async fn attend(
        self,
        client: &Client,
        mut attached: Attached,
        mut signals: Signals,
    ) -> Result<u8> {
        let keys = self.tty.then(|| self.detach_keys.clone().unwrap_or_default());
        let mut feeding = attached.feed(keys);
        // Whose keys go nowhere wants those for signals.
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
                    Some(feeding) => feeding.await.unwrap_or(Fed::Refused),
                    None => std::future::pending().await,
                }
            };
            let mut signal = None;
            tokio::select! {
                code = &mut waiting => break code?,
                // The process goes on, and what it writes from now on nobody sees.
                lost = &mut lost => {
                    drop(raw);
                    attached.abandon();
                    return Ok(lost.code("hoist"));
                }
                fed = typed => {
                    feeding = None;
                    match fed {
                        Fed::End if self.ends_input => self.close_input(client).await,
                        Fed::End | Fed::Refused => {}
                        Fed::Detached => {
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
                // The end of our terminal is not one of its.
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
        // What the container wrote last is still on its way.
        let lost = attached.drain().await;
        drop(raw);
        match lost {
            Some(lost) => Ok(lost.code("hoist")),
            None => Ok(u8::try_from(code).unwrap_or(255)),
        }
    }

    // Of what follows the process may have ended by now.

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

    /// Also past the end of a daemon after which another begins.
    async fn wait_for_end(&self, client: &Client) -> Result<u32> {
        let mut gone_since = Instant::now();
        loop {
            let asked = Instant::now();
            let error = match wait(client, self.container.to_owned(), self.exec.clone()).await {
                Err(error) if error.is(ErrorKind::Unavailable) => error,
                other => return other,
            };
            if asked.elapsed() > DAEMON_PAUSE {
                // There was one until now.
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
