//! Flags for what a container may use, said when it is made and changed with `update`.

use api::engine::Update;
use clap::Args;
use types::Result;

use crate::parse;

// Of a group of flags a doc comment would become the help of each command that has it.
#[derive(Args)]
pub(crate) struct LimitFlags {
    /// Bytes, or with k, m, g behind
    #[arg(long, short, help_heading = "Limits")]
    memory: Option<String>,
    /// Memory and swap together; -1 is no limit. As long as nothing is said it is twice as much as -m
    #[arg(long, allow_hyphen_values = true, help_heading = "Limits")]
    memory_swap: Option<String>,
    /// What it keeps where memory is short
    #[arg(long, help_heading = "Limits")]
    memory_reservation: Option<String>,
    /// As 1.5: processor time that it may use
    #[arg(long, help_heading = "Limits")]
    cpus: Option<String>,
    /// Its part where processors are short; others have 1024
    #[arg(long, short, help_heading = "Limits")]
    cpu_shares: Option<u64>,
    /// Microseconds of processor time that it may use in each period; -1 is no limit
    #[arg(long, allow_negative_numbers = true, help_heading = "Limits")]
    cpu_quota: Option<i64>,
    /// Microseconds of such a period, from 1000 to 1000000; 100000 as long as nothing is said
    #[arg(long, help_heading = "Limits")]
    cpu_period: Option<u64>,
    /// Processors that it may use: 0-2,7
    #[arg(long, default_value = "", hide_default_value = true, help_heading = "Limits")]
    cpuset_cpus: String,
    /// Memory that it may use, by the numbers of its nodes: 0,1
    #[arg(long, default_value = "", hide_default_value = true, help_heading = "Limits")]
    cpuset_mems: String,
    /// Its part where disks are busy, from 10 to 1000
    #[arg(long, help_heading = "Limits")]
    blkio_weight: Option<u16>,
    /// How many processes it may have; -1 is for as many as the machine has
    #[arg(long, allow_negative_numbers = true, help_heading = "Limits")]
    pids_limit: Option<i64>,
}

impl LimitFlags {
    /// Zeros are as they were said.
    pub(crate) fn read(self) -> Result<Update> {
        Ok(Update {
            memory: self.memory.as_deref().map(parse::bytes).transpose()?,
            memory_swap: self.memory_swap.as_deref().map(parse::swap).transpose()?,
            memory_reservation: self.memory_reservation.as_deref().map(parse::bytes).transpose()?,
            milli_cpus: self.cpus.as_deref().map(parse::milli_cpus).transpose()?,
            cpu_shares: self.cpu_shares,
            cpu_period: self.cpu_period,
            cpu_quota: self.cpu_quota,
            cpuset: self.cpuset_cpus,
            cpuset_mems: self.cpuset_mems,
            blkio_weight: self.blkio_weight,
            pids_limit: self.pids_limit,
            restart: None,
        })
    }
}
