//! `update`: changes limits and the restart policy of containers.

use api::engine::{Call, Update};
use clap::Args;
use client::Client;
use types::{Error, Result};

use super::limits::LimitFlags;
use super::refused::RefusedLimits;
use crate::commands::each;
use crate::parse;

#[derive(Args)]
pub(crate) struct Flags {
    #[command(flatten)]
    limits: LimitFlags,
    #[command(flatten)]
    _refused: RefusedLimits,
    /// no, always, unless-stopped or on-failure[:N]
    #[arg(long)]
    restart: Option<String>,
    /// Names or ids
    #[arg(required = true)]
    containers: Vec<String>,
}

pub(super) async fn run(client: &Client, flags: Flags) -> Result<u8> {
    let restart = flags.restart.as_deref().map(parse::restart).transpose()?;
    let update = Update { restart, ..flags.limits.read()? };
    if update == Update::default() {
        return Err(Error::invalid_argument(
            "you must provide one or more flags: -m, --memory-swap, --memory-reservation, --cpus, -c, --cpu-quota, \
             --cpu-period, --cpuset-cpus, --cpuset-mems, --blkio-weight, --pids-limit, --restart",
        ));
    }
    each(&flags.containers, async |id| client.call(&Call::Update { id, update: update.clone() }).await).await
}
