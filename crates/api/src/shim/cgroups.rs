//! The answer to `Stats`: the metrics message for the container's cgroup version.

pub mod v1;
pub mod v2;
