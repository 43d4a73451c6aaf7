//! What `Stats` answers: the metrics message of the container's cgroup version.

pub mod v1;
pub mod v2;
