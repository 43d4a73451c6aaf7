//! `containerd.runc.v1`: options of runc and compatible runtimes.

use super::types::type_urls;

#[derive(Clone, PartialEq, prost::Message)]
pub struct Options {
    #[prost(bool, tag = "1")]
    pub no_pivot_root: bool,
    #[prost(bool, tag = "2")]
    pub no_new_keyring: bool,
    /// The cgroup of the shim itself.
    #[prost(string, tag = "3")]
    pub shim_cgroup: String,
    #[prost(uint32, tag = "4")]
    pub io_uid: u32,
    #[prost(uint32, tag = "5")]
    pub io_gid: u32,
    /// The OCI runtime to run instead of the built-in one.
    #[prost(string, tag = "6")]
    pub binary_name: String,
    /// The runtime's state directory.
    #[prost(string, tag = "7")]
    pub root: String,
    #[prost(bool, tag = "9")]
    pub systemd_cgroup: bool,
    #[prost(string, tag = "10")]
    pub criu_image_path: String,
    #[prost(string, tag = "11")]
    pub criu_work_path: String,
    #[prost(string, tag = "12")]
    pub task_api_address: String,
    #[prost(uint32, tag = "13")]
    pub task_api_version: u32,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct CheckpointOptions {
    #[prost(bool, tag = "1")]
    pub exit: bool,
    #[prost(bool, tag = "2")]
    pub open_tcp: bool,
    #[prost(bool, tag = "3")]
    pub external_unix_sockets: bool,
    #[prost(bool, tag = "4")]
    pub terminal: bool,
    #[prost(bool, tag = "5")]
    pub file_locks: bool,
    #[prost(string, repeated, tag = "6")]
    pub empty_namespaces: Vec<String>,
    #[prost(string, tag = "7")]
    pub cgroups_mode: String,
    #[prost(string, tag = "8")]
    pub image_path: String,
    #[prost(string, tag = "9")]
    pub work_path: String,
    #[prost(string, tag = "10")]
    pub parent_path: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub struct ProcessDetails {
    #[prost(string, tag = "1")]
    pub exec_id: String,
}

/// `runtimeoptions.v1.Options`, of other runtimes: the path of a configuration file.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ConfigPath {
    #[prost(string, tag = "2")]
    pub config_path: String,
}

type_urls! {
    ConfigPath => "runtimeoptions.v1.Options",
    Options => "containerd.runc.v1.Options",
    CheckpointOptions => "containerd.runc.v1.CheckpointOptions",
    ProcessDetails => "containerd.runc.v1.ProcessDetails",
}
