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
    /// What it keeps where memory is short
    #[arg(long)]
    memory_reservation: Option<String>,
    /// As 1.5: processor time that it may use
    #[arg(long)]
    cpus: Option<String>,
    /// Its part where processors are short; others have 1024
    #[arg(long, short)]
    cpu_shares: Option<u64>,
    /// Microseconds of processor time that it may use in each period; -1 is no limit
    #[arg(long, allow_negative_numbers = true)]
    cpu_quota: Option<i64>,
    /// Microseconds of such a period, from 1000 to 1000000
    #[arg(long)]
    cpu_period: Option<u64>,
    /// Processors that it may use: 0-2,7
    #[arg(long, default_value = "", hide_default_value = true)]
    cpuset_cpus: String,
    /// Memory that it may use, by the numbers of its nodes: 0,1
    #[arg(long, default_value = "", hide_default_value = true)]
    cpuset_mems: String,
    /// Its part where disks are busy, from 10 to 1000
    #[arg(long)]
    blkio_weight: Option<u16>,
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
        memory_reservation: flags.memory_reservation.as_deref().map(parse::bytes).transpose()?,
        milli_cpus: flags.cpus.as_deref().map(parse::milli_cpus).transpose()?,
        cpu_shares: flags.cpu_shares,
        cpu_period: flags.cpu_period,
        cpu_quota: flags.cpu_quota,
        cpuset: flags.cpuset_cpus,
        cpuset_mems: flags.cpuset_mems,
        blkio_weight: flags.blkio_weight,
        pids_limit: flags.pids_limit,
        restart: flags.restart.as_deref().map(parse::restart).transpose()?,
    };
    if update == Update::default() {
        return Err(Error::invalid_argument(
            "you must provide one or more flags: -m, --memory-swap, --memory-reservation, --cpus, -c, --cpu-quota, \
             --cpu-period, --cpuset-cpus, --cpuset-mems, --blkio-weight, --pids-limit, --restart",
        ));
    }
    each(&flags.containers, async |id| client.call(&Call::Update { id, update: update.clone() }).await).await
}
