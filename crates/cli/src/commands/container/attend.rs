//! Staying with a process until it ends: bytes, signals, the size of the terminal.

use api::engine::{Call, Exited, Follow};
use client::Client;
use rustix::process::Signal;
use tokio::signal::unix::{SignalKind, signal};
use types::{Context, Error, Result};

use crate::streams::{self, Attached, Raw};

pub(super) async fn attend(
    client: &Client,
    id: &str,
    exec: Option<String>,
    tty: bool,
    attached: Attached,
    mut feeding: Option<tokio::task::JoinHandle<bool>>,
) -> Result<u8> {
    let raw = if tty { Some(Raw::enter()?) } else { None };
    let resize = async |client: &Client| {
        if let Some((rows, columns)) = streams::size() {
            // The process may have ended by now.
            let _ = client.call(&Call::Resize { id: id.to_owned(), exec: exec.clone(), rows, columns }).await;
        }
    };
    if tty {
        resize(client).await;
    }
    let what = || "wait for signals";
    let mut interrupt = signal(SignalKind::interrupt()).context(what)?;
    let mut terminate = signal(SignalKind::terminate()).context(what)?;
    let mut window = signal(SignalKind::window_change()).context(what)?;
    let mut signal = None;
    let waiting = wait(client, id.to_owned(), exec.clone());
    let mut waiting = std::pin::pin!(waiting);
    let code = loop {
        let typed = async {
            match &mut feeding {
                Some(feeding) => feeding.await.unwrap_or(false),
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            code = &mut waiting => break code?,
            detached = typed => {
                feeding = None;
                if !detached {
                    // The end of our input is the end of its; it may have ended by now.
                    let close = Call::CloseStdin { id: id.to_owned(), exec: exec.clone() };
                    let _ = client.call(&close).await;
                }
                if detached {
                    drop(raw);
                    eprintln!("detached from {id}");
                    attached.abandon();
                    return Ok(0);
                }
            }
            _ = window.recv(), if tty => resize(client).await,
            _ = interrupt.recv() => signal = Some(Signal::INT),
            _ = terminate.recv() => signal = Some(Signal::TERM),
        }
        match signal.take() {
            // As `docker exec` does: it ends, and the process goes on.
            Some(signal) if exec.is_some() => {
                drop(raw);
                attached.abandon();
                return Ok(u8::try_from(128 + signal.as_raw()).unwrap_or(255));
            }
            Some(signal) => pass_on(client, id, signal).await,
            None => {}
        }
    };
    // What the container wrote last is still on its way.
    attached.drain().await;
    drop(raw);
    Ok(u8::try_from(code).unwrap_or(255))
}

async fn pass_on(client: &Client, id: &str, signal: Signal) {
    let signal = signal.as_raw().to_string();
    // It may have ended by now.
    let _ = client.call(&Call::Kill { id: id.to_owned(), signal }).await;
}

pub(super) async fn wait(client: &Client, id: String, exec: Option<String>) -> Result<u32> {
    let mut answers = client.follow(&Follow::Wait { id, exec }).await?;
    let exited = answers.next::<Exited>().await?;
    exited
        .map(|exited| exited.code)
        .ok_or_else(|| Error::unavailable("the daemon stopped while the container ran; it goes on"))
}
