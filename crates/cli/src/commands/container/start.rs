//! `start`: containers that are there, in the background or with our streams.

use api::engine::{Call, Streams};
use clap::Args;
use client::Client;
use types::{Error, Result};

use super::attend::attend;
use crate::commands::each;
use crate::output::text;
use crate::streams::Attached;

#[derive(Args)]
pub(crate) struct Flags {
    /// Show what it writes, pass signals on, and end as it ends
    #[arg(long, short)]
    attach: bool,
    /// With our standard input too
    #[arg(long, short)]
    interactive: bool,
    #[arg(required = true)]
    containers: Vec<String>,
}

pub(super) async fn run(client: &Client, flags: Flags) -> Result<u8> {
    let Flags { attach, interactive, containers } = flags;
    if !attach && !interactive {
        let start = async |id| client.call(&Call::Start { id, streams: Streams::default() }).await;
        return each(&containers, start).await;
    }
    let [name] = &containers[..] else {
        return Err(Error::invalid_argument("you cannot start and attach multiple containers at once"));
    };
    let container = client.call(&Call::Inspect { id: name.clone() }).await?;
    if container["State"]["Running"] == true {
        return Err(Error::failed_precondition(format!("container {name} is running: see `hoist logs -f`")));
    }
    let (id, tty) = (text(&container, "Id"), container["Config"]["Tty"] == true);
    let attached = Attached::prepare(interactive, tty)?;
    let feeding = attached.feed(tty);
    let started = client.call(&Call::Start { id: id.clone(), streams: attached.streams.clone() }).await;
    if let Err(error) = started {
        attached.abandon();
        return Err(error);
    }
    attend(client, &id, None, tty, attached, feeding).await
}
