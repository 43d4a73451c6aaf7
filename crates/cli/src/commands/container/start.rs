//! `start`: starts existing containers, in the background or attached.

use api::engine::{Call, Streams};
use clap::Args;
use client::Client;
use types::{Error, Result};

use super::attend::{DetachFlags, Process, SignalFlags};
use crate::commands::absent::CHECKPOINT;
use crate::commands::each;
use crate::output::text;
use crate::parse::refused;

#[derive(Args)]
pub(crate) struct Flags {
    /// Attach standard output and error, forward signals, and exit with the container's code
    #[arg(long, short)]
    attach: bool,
    /// Also attach standard input
    #[arg(long, short)]
    interactive: bool,
    #[arg(long = "checkpoint", hide = true, value_parser = refused(CHECKPOINT))]
    _checkpoint: Option<String>,
    #[arg(long = "checkpoint-dir", hide = true, value_parser = refused(CHECKPOINT))]
    _checkpoint_dir: Option<String>,
    #[command(flatten)]
    leaving: DetachFlags,
    #[command(flatten)]
    passing: SignalFlags,
    /// Names or ids
    #[arg(required = true)]
    containers: Vec<String>,
}

pub(super) async fn run(client: &Client, flags: Flags) -> Result<u8> {
    let Flags { attach, interactive, leaving, passing, containers, .. } = flags;
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
    let process = Process {
        container: &id,
        exec: None,
        tty,
        ends_input: container["Config"]["StdinOnce"] == true,
        detach_keys: leaving.detach_keys,
        takes_signals: passing.sig_proxy,
    };
    process.begin(client, interactive, |streams| Call::Start { id: id.clone(), streams }).await
}
