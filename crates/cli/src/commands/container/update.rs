//! `update`: other limits and another restart policy.

use api::engine::{Call, Update};
use clap::Args;
use client::Client;
use types::{Error, Result};

use crate::commands::each;
use crate::parse;

#[derive(Args)]
pub(crate) struct Flags {
    /// Bytes, or with k, m, g behind
    #[arg(long, short)]
    memory: Option<String>,
    /// Memory and swap together; -1 is no limit
    #[arg(long, allow_hyphen_values = true)]
    memory_swap: Option<String>,
    #[arg(long)]
    cpus: Option<String>,
    /// -1 for as many as the machine has
    #[arg(long, allow_negative_numbers = true)]
    pids_limit: Option<i64>,
    /// no, always, unless-stopped or on-failure[:N]
    #[arg(long)]
    restart: Option<String>,
    #[arg(required = true)]
    containers: Vec<String>,
}

pub(super) async fn run(client: &Client, flags: Flags) -> Result<u8> {
    let update = Update {
        memory: flags.memory.as_deref().map(parse::bytes).transpose()?,
        memory_swap: flags.memory_swap.as_deref().map(parse::swap).transpose()?,
        milli_cpus: flags.cpus.as_deref().map(parse::milli_cpus).transpose()?,
        pids_limit: flags.pids_limit,
        restart: flags.restart.as_deref().map(parse::restart).transpose()?,
    };
    if update == Update::default() {
        return Err(Error::invalid_argument(
            "you must provide one or more flags: -m, --memory-swap, --cpus, --pids-limit, --restart",
        ));
    }
    each(&flags.containers, async |id| client.call(&Call::Update { id, update }).await).await
}
