//! `delete`: cleans up after a dead shim, and prints how its container ended.
//!
//! Events that the shim could not deliver are sent from here, so that a daemon that was away while the shim died still
//! gets them.

use std::io::Write;
use std::path::Path;
use std::time::Duration;

use api::shim::task::DeleteResponse;
use linux::cgroup::Cgroup;
use linux::process::PidFd;
use linux::signal::SIGKILL;
use prost::Message;
use ttrpc::Blocking;
use types::{Context, ErrorKind, Result, Timestamp};

use crate::command::Flags;
use crate::publisher::{forward, wire_time};
use crate::record::{self, ExitRecord, HolderRecord, PodRecord, RuntimeRecord};
use crate::{journal, oci, rootfs};

/// The exit status of a container whose end was not recorded: killed.
const KILLED: u32 = 128 + SIGKILL;
const SEND_MAX: Duration = Duration::from_secs(1);

pub(crate) fn delete(flags: &Flags) -> Result<()> {
    let bundle = match &flags.bundle {
        Some(bundle) => bundle.clone(),
        None => std::env::current_dir().context(|| "find the bundle")?,
    };
    let exit: Option<ExitRecord> = record::read_reserved(&bundle, record::EXIT).unwrap_or_else(|error| {
        // Perhaps a power cut damaged it. The container must be removable all the same.
        eprintln!("containerd-shim-hoist-v2: {}; its container counts as killed", error.chain());
        None
    });
    let outcome = take_down(&flags.id, &bundle);
    send_rest(&bundle);
    let response = DeleteResponse {
        pid: exit.as_ref().map_or_else(|| init_pid(&bundle), |exit| exit.pid),
        exit_status: exit.as_ref().map_or(KILLED, |exit| exit.status),
        exited_at: Some(wire_time(exit.map_or_else(Timestamp::now, |exit| exit.exited_at))),
    };
    std::io::stdout().write_all(&response.encode_to_vec()).context(|| "print the answer")?;
    outcome
}

/// Continues after a failure, and removes as much as possible.
fn take_down(id: &str, bundle: &Path) -> Result<()> {
    take_down_pod(bundle)?;
    let Some(runtime) = record::read::<RuntimeRecord>(bundle, record::RUNTIME)? else { return Ok(()) };
    let deleted = oci::delete_orphan(id, bundle, &runtime);
    let unmounted = if runtime.rootfs_mounted { rootfs::unmount(bundle) } else { Ok(()) };
    deleted.and(unmounted)
}

/// The sandbox's containers have bundles of their own.
fn take_down_pod(bundle: &Path) -> Result<()> {
    let Some(pod) = record::read::<PodRecord>(bundle, record::POD)? else { return Ok(()) };
    let ended = pod.holder.as_ref().map_or(Ok(()), end_holder);
    let removed = Cgroup::open_locations(&pod.cgroup).and_then(|cgroup| cgroup.delete());
    let removed = removed.or_else(|error| if error.is(ErrorKind::NotFound) { Ok(()) } else { Err(error) });
    ended.and(removed)
}

fn end_holder(holder: &HolderRecord) -> Result<()> {
    let end = || {
        // Opened first and checked second: its pid may have been reused.
        let process = PidFd::open(holder.pid)?;
        if HolderRecord::of(holder.pid)? == *holder { process.kill() } else { Ok(()) }
    };
    end().or_else(|error| if error.is(ErrorKind::NotFound) { Ok(()) } else { Err(error) })
}

fn init_pid(bundle: &Path) -> u32 {
    let text = std::fs::read_to_string(bundle.join(record::INIT_PID)).unwrap_or_default();
    text.trim().parse().unwrap_or(0)
}

/// Sends the rest of the journal, which is removed with the bundle in any case.
fn send_rest(bundle: &Path) {
    let entries = journal::read(bundle);
    let address = std::env::var("TTRPC_ADDRESS").unwrap_or_default();
    if entries.is_empty() || address.is_empty() {
        return;
    }
    let Ok(mut daemon) = Blocking::connect(&address) else { return };
    for entry in entries {
        if daemon.call::<()>(&forward(&entry, SEND_MAX)).is_err() {
            return;
        }
    }
}
