//! The whole system, as its users meet it: the real `hoist` program (`HOIST_BIN`), a real registry,
//! real images, and the clients and runtimes of others.
//!
//! Each test has a daemon of its own on temporary directories. They need root.

mod activation;
mod api;
mod api_checkpoints;
mod archives;
mod cgroups;
mod checkpoint;
mod commit;
mod config;
mod ctr;
mod ctr_own;
mod escapes;
mod gc;
mod guest;
mod hello;
mod images;
mod import_containerd;
mod labels;
mod lifecycle;
mod load;
mod memory;
mod mounts;
mod platforms;
mod plugins;
mod policy;
mod power;
mod reaper;
mod reflection;
mod registry;
mod restart;
mod restart_monitor;
mod retention;
mod rot;
mod runtime;
mod runtime_bundle;
mod runtime_command;
mod runtime_joins;
mod runtime_rights;
mod runtime_spec;
mod sandboxes;
mod scale;
mod selinux;
mod services;
mod shim;
mod shim_daemons;
mod shim_events;
mod shim_small;
mod shim_streams;
mod systemd;
mod telemetry;
mod traces;
mod transfer;
mod typed;
mod volumes;
