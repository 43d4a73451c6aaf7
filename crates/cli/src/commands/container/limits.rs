//! Flags for resource limits, which `run` and `create` set and `update` changes.

use api::engine::Update;
use clap::Args;
use types::Result;

use crate::parse;

// No doc comments on groups of flags: clap would use them as the help of each command that has the group.
#[derive(Args)]
pub(crate) struct LimitFlags {
    /// Memory in bytes, or with the unit k, m or g
    #[arg(long, short, help_heading = "Limits")]
    memory: Option<String>,
    /// Memory and swap together; -1 is unlimited; twice -m unless set
    #[arg(long, allow_hyphen_values = true, help_heading = "Limits")]
    memory_swap: Option<String>,
    /// Soft limit of memory
    #[arg(long, help_heading = "Limits")]
    memory_reservation: Option<String>,
    /// Processors that it may use, as 1.5
    #[arg(long, help_heading = "Limits")]
    cpus: Option<String>,
    /// Relative share of processor time; 1024 unless set
    #[arg(long, short, help_heading = "Limits")]
    cpu_shares: Option<u64>,
    /// Microseconds of processor time in each period; -1 is unlimited
    #[arg(long, allow_negative_numbers = true, help_heading = "Limits")]
    cpu_quota: Option<i64>,
    /// Microseconds of a period, from 1000 to 1000000; 100000 unless set
    #[arg(long, help_heading = "Limits")]
    cpu_period: Option<u64>,
    /// Processors on which it may run: 0-2,7
    #[arg(long, default_value = "", hide_default_value = true, help_heading = "Limits")]
    cpuset_cpus: String,
    /// NUMA nodes whose memory it may use: 0,1
    #[arg(long, default_value = "", hide_default_value = true, help_heading = "Limits")]
    cpuset_mems: String,
    /// Relative share of disk IO, from 10 to 1000
    #[arg(long, help_heading = "Limits")]
    blkio_weight: Option<u16>,
    /// The most processes; -1 is unlimited
    #[arg(long, allow_negative_numbers = true, help_heading = "Limits")]
    pids_limit: Option<i64>,
}

impl LimitFlags {
    /// Converts the flags. An explicit zero stays zero.
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
