//! `start`: containers that are there, in the background or with our streams.

use std::ops::ControlFlow;

use api::engine::{Call, Streams};
use clap::Args;
use client::Client;
use types::{Error, Result};

use super::attend::{self, Leaving, Passing, Process};
use crate::commands::each;
use crate::output::text;
use crate::streams::{Attached, PrivateFolder};

#[derive(Args)]
pub(crate) struct Flags {
    /// Show what it writes, pass signals on, and end as it ends
    #[arg(long, short)]
    attach: bool,
    /// With our standard input too
    #[arg(long, short)]
    interactive: bool,
    #[command(flatten)]
    leaving: Leaving,
    #[command(flatten)]
    passing: Passing,
    #[arg(required = true)]
    containers: Vec<String>,
}

pub(super) async fn run(client: &Client, flags: Flags) -> Result<u8> {
    let Flags { attach, interactive, leaving, passing, containers } = flags;
    if !attach && !interactive {
        let start = async |id| client.call(&Call::Start { id, streams: Streams::default() }).await;
        return each(&containers, start).await;
    }
    let [name] = &containers[..] else {
        return Err(Error::invalid_argument("you cannot start and attach multiple containers at once"));
    };
    let container = client.call(&Call::Inspect { id: name.clone(), sizes: false }).await?;
    if container["State"]["Running"] == true {
        return super::attach::join(client, &container, interactive, leaving, passing).await;
    }
    let (id, tty) = (text(&container, "Id"), container["Config"]["Tty"] == true);
    let mut signals = attend::listen(tty)?;
    let attached = Attached::prepare(PrivateFolder::create(client.address())?, interactive, tty)?;
    let start = Call::Start { id: id.clone(), streams: attached.streams.clone() };
    match signals.unless_one_comes(client.call(&start)).await {
        ControlFlow::Break(code) => return Ok(code),
        ControlFlow::Continue(Ok(_)) => {}
        ControlFlow::Continue(Err(error)) => {
            attached.abandon();
            return Err(error);
        }
    }
    let process = Process {
        container: &id,
        exec: None,
        tty,
        ends_input: container["Config"]["StdinOnce"] == true,
        detach_keys: leaving.detach_keys,
        takes_signals: passing.sig_proxy,
    };
    process.attend(client, attached, signals).await
}
