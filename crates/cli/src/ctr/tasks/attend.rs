//! Starting a process and attending it until it ends: its streams, signals, and the size of the terminal.

use api::grpc::tasks::{CloseIORequest, KillRequest, ResizePtyRequest, StartRequest};
use rustix::process::Signal;
use tokio::signal::unix::{SignalKind, signal};
use types::{Context, Result};

use super::{Waiting, client, code_of, delete_one};
use crate::ctr::command::Call;
use crate::ctr::connection::{Answer, Connection};
use crate::private_folder::PrivateFolder;
use crate::signals::{Signals, TO_A_TERMINAL, TO_PIPES};
use crate::streams::{self, Attached, Raw};

/// Whether we attended a process to its end, and our exit code.
pub(in crate::ctr) enum Attended {
    Exited(u8),
    /// The process goes on.
    Detached(u8),
}

impl Attended {
    pub(in crate::ctr) fn code(self) -> u8 {
        match self {
            Attended::Exited(code) | Attended::Detached(code) => code,
        }
    }
}

/// The streams of a process.
pub(super) enum Streams {
    Attached(Attached),
    /// A log URI; empty is none.
    Elsewhere(String),
}

impl Streams {
    /// The streams that the command line asks for.
    pub(super) fn of(call: &Call, terminal: bool, detach: bool) -> Result<Streams> {
        match call.value("log-uri") {
            Some(uri) => Ok(Streams::Elsewhere(uri.to_owned())),
            // A detached client reads nothing: unread pipes would block the container.
            None if detach || call.is("null-io") => Ok(Streams::Elsewhere(String::new())),
            None => {
                // Not beside the socket: these pipes remain for other clients to attach to.
                let folder = PrivateFolder::create_in(&std::env::temp_dir())?;
                Attached::prepare(folder, true, terminal).map(Streams::Attached)
            }
        }
    }

    /// The paths or URIs of input, output and error, for the request.
    pub(super) fn paths(&self) -> (String, String, String) {
        match self {
            Streams::Attached(attached) => {
                let api::engine::Streams { stdin, stdout, stderr } = attached.streams.clone();
                (stdin, stdout, stderr)
            }
            Streams::Elsewhere(uri) => (String::new(), uri.clone(), uri.clone()),
        }
    }

    /// Passes an answer on. After an error no shim opens our pipes, so waiting for it is stopped.
    pub(super) fn unless_failed<T>(&self, answer: Result<T>) -> Result<T> {
        if let (Streams::Attached(attached), Err(_)) = (self, &answer) {
            attached.stop();
        }
        answer
    }
}

/// Attends a process until it ends, and deletes it: streams, signals, the size of the terminal.
pub(super) async fn attend(
    connection: &Connection,
    (id, exec_id): (&str, &str),
    terminal: bool,
    streams: Streams,
    mut waiting: Waiting,
    mut signals: Signals,
) -> Result<Attended> {
    let mut attached = match streams {
        Streams::Attached(attached) => Some(attached),
        Streams::Elsewhere(_) => None,
    };
    let mut feeding = attached.as_mut().and_then(|attached| attached.feed(None));
    // Without input to send, the keys of the terminal raise signals as usual.
    let raw = if terminal && feeding.is_some() { Some(Raw::enter()?) } else { None };
    if terminal {
        resize(connection, id, exec_id).await;
    }
    let mut window = signal(SignalKind::window_change()).context(|| "wait for signals")?;
    // Only the creator of the pipes closes the input: other clients may attach later.
    let ends_input = attached.as_ref().is_some_and(Attached::is_own);
    let losing = attached.as_ref().map(Attached::lost);
    let losing = async {
        match losing {
            Some(losing) => losing.await,
            None => std::future::pending().await,
        }
    };
    let mut losing = std::pin::pin!(losing);
    let mut failed = None;
    let code = loop {
        let typed = async {
            match &mut feeding {
                Some(feeding) => drop(feeding.await),
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            // The end of the process has precedence over all other events.
            biased;
            ended = &mut waiting => {
                break code_of(ended)?;
            }
            // If our output has no reader, end as by SIGPIPE, which ends containerd's `ctr`. A full disk is no reason
            // to end.
            lost = &mut losing, if failed.is_none() => {
                let code = lost.code("ctr");
                if lost.is_broken_pipe() {
                    waiting.abort();
                    return Ok(Attended::Detached(code));
                }
                failed = Some(code);
            }
            () = typed => {
                feeding = None;
                if ends_input {
                    // Our input has ended: close the input of the process, which may have ended by now.
                    let (container_id, exec_id) = (id.to_owned(), exec_id.to_owned());
                    let request = connection.request(CloseIORequest { container_id, exec_id, stdin: true })?;
                    let _ = client(connection).close_io(request).await;
                }
            }
            _ = window.recv(), if terminal => resize(connection, id, exec_id).await,
            signal = signals.next() => pass_on(connection, id, exec_id, signal).await,
        }
    };
    // Output that the process wrote last may still be in the pipes.
    let draining = async {
        match attached {
            Some(attached) => attached.drain().await,
            None => None,
        }
    };
    let deleting = delete_one(connection, id, exec_id, false);
    let ending = async {
        match exec_id {
            // The container's other processes end with its first, which closes the pipes.
            "" => (draining.await, deleting.await),
            // Children may hold the pipes open. The shim limits its wait for them once the process is deleted.
            _ => tokio::join!(draining, deleting),
        }
    };
    let lost = tokio::select! {
        (lost, deleted) = ending => deleted.map(|_| lost)?,
        // The process has ended: a signal concerns only this client.
        signal = signals.next() => {
            return Ok(Attended::Exited(u8::try_from(128 + signal.as_raw()).unwrap_or(255)));
        }
    };
    drop(raw);
    let failed = failed.or_else(|| lost.map(|lost| lost.code("ctr")));
    Ok(Attended::Exited(failed.unwrap_or_else(|| u8::try_from(code).unwrap_or(255))))
}

/// Listens for the signals that are forwarded to the process.
pub(super) fn listen(terminal: bool) -> Result<Signals> {
    Signals::listen(if terminal { &TO_A_TERMINAL } else { &TO_PIPES })
}

/// Starts a process. Signals are forwarded from the beginning, as the process may have to be ended while it starts.
pub(super) async fn start_process(
    connection: &Connection,
    (id, exec_id): (&str, &str),
    signals: Option<&mut Signals>,
) -> Result<()> {
    let request = StartRequest { container_id: id.to_owned(), exec_id: exec_id.to_owned() };
    let (mut client, request) = (client(connection), connection.request(request)?);
    let starting = client.start(request);
    let passing = async {
        let Some(signals) = signals else { std::future::pending().await };
        loop {
            let signal = signals.next().await;
            pass_on(connection, id, exec_id, signal).await;
        }
    };
    tokio::select! {
        biased;
        started = starting => started.answer().map(drop),
        never = passing => never,
    }
}

async fn pass_on(connection: &Connection, id: &str, exec_id: &str, signal: Signal) {
    let request = KillRequest {
        container_id: id.to_owned(),
        exec_id: exec_id.to_owned(),
        signal: signal.as_raw().unsigned_abs(),
        all: false,
    };
    if let Ok(request) = connection.request(request) {
        // The process may have ended by now.
        let _ = client(connection).kill(request).await;
    }
}

async fn resize(connection: &Connection, id: &str, exec_id: &str) {
    let Some((height, width)) = streams::size() else { return };
    let request = ResizePtyRequest {
        container_id: id.to_owned(),
        exec_id: exec_id.to_owned(),
        width: width.into(),
        height: height.into(),
    };
    if let Ok(request) = connection.request(request) {
        let _ = client(connection).resize_pty(request).await;
    }
}
