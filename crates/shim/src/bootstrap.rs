//! `start`: starts a shim in the background, or finds that of the same pod, and prints its address.
//!
//! ```text
//! daemon ── exec start ──▶ listen ── exec serve (own session, listener as stdin) ──▶ shim
//!        ◀─ address ────────┘
//! ```
//!
//! Containers of one pod share a shim: the annotations in [`GROUPS`] name the group, and the group determines the
//! socket. A later `start` finds a live shim there and prints the same address.

use std::ffi::OsString;
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use api::shim::bootstrap::{BootstrapParams, BootstrapResult, LOG_LEVEL_DEBUG};
use api::shim::runc;
use linux::cgroup::Cgroup;
use prost::Message;
use prost_types::Any;
use serde::Deserialize;
use types::{Context, Error, Result};

use crate::address;
use crate::command::Flags;

/// Annotations that name a container's group; the first one found wins.
const GROUPS: [&str; 2] = ["io.containerd.runc.v2.group", "io.kubernetes.cri.sandbox-id"];
/// containerd's input is small; a broken or hostile caller must not fill the memory.
const STDIN_MAX: u64 = 4 << 20;

/// The caller's input on stdin.
#[derive(Default)]
struct StartInput {
    /// Set if the caller speaks the bootstrap protocol of containerd 2.3, and reads its result.
    params: Option<BootstrapParams>,
    options: runc::Options,
}

pub(crate) fn start(mut flags: Flags) -> Result<()> {
    let input = read_stdin(&flags.id)?;
    if let Some(params) = &input.params {
        flags.debug |= params.log_level <= LOG_LEVEL_DEBUG;
        if flags.address.is_empty() {
            flags.address.clone_from(&params.containerd_grpc_address);
        }
    }
    let group = group(Path::new("config.json"))?.unwrap_or_else(|| flags.id.clone());
    let socket_dir =
        input.params.as_ref().and_then(|params| params.socket_dir.clone()).filter(|dir| !dir.is_empty());
    let socket_dir = socket_dir.map_or_else(|| PathBuf::from(address::SOCKET_DIR), PathBuf::from);
    let path = address::path(&socket_dir, &flags.address, &flags.namespace, &group)?;
    let address = format!("unix://{}", path.display());
    crate::record::write_bytes(Path::new("."), "address", address.as_bytes())?;
    // The last step that may fail: a shim that the caller does not learn of would stay for ever.
    if let Some(listener) = address::claim(&path)? {
        spawn(flags, &path, listener.into(), &input)?;
    }
    print(&input, &address)
}

/// containerd 2.3 expects a message; earlier versions read an address, and assume version 2 of the task API.
fn print(input: &StartInput, address: &str) -> Result<()> {
    let answer = match &input.params {
        Some(_) => BootstrapResult {
            version: 3,
            address: address.to_owned(),
            protocol: "ttrpc".to_owned(),
            ..BootstrapResult::default()
        }
        .encode_to_vec(),
        None => address.as_bytes().to_vec(),
    };
    std::io::stdout().write_all(&answer).context(|| "print the address")
}

/// Parses the bootstrap parameters of containerd 2.3, or the bare options of earlier versions, or nothing.
///
/// Both are protobuf and start with a string; parameters are recognized by the container's id.
fn read_stdin(id: &str) -> Result<StartInput> {
    let mut bytes = Vec::new();
    std::io::stdin().lock().take(STDIN_MAX).read_to_end(&mut bytes).context(|| "read stdin")?;
    let params = BootstrapParams::decode(bytes.as_slice()).ok().filter(|params| params.instance_id == id);
    let options = match &params {
        Some(params) => params.extensions.iter().find_map(|extension| options(extension.value.as_ref()?)),
        None => Any::decode(bytes.as_slice()).ok().and_then(|any| options(&any)),
    };
    Ok(StartInput { params, options: options.unwrap_or_default() })
}

fn options(any: &Any) -> Option<runc::Options> {
    api::shim::unpack(any)?.ok()
}

/// The group that the bundle's annotations name.
fn group(config: &Path) -> Result<Option<String>> {
    #[derive(Deserialize)]
    struct Spec {
        #[serde(default)]
        annotations: std::collections::BTreeMap<String, String>,
    }
    let text = match std::fs::read(config) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).context(|| format!("read {}", config.display())),
    };
    let mut spec: Spec = serde_json::from_slice(&text)
        .map_err(|error| Error::invalid_argument("config.json is not an OCI spec").with_source(error))?;
    Ok(GROUPS.iter().find_map(|key| spec.annotations.remove(*key)))
}

/// Executes this program as the shim, from a sealed copy that containers cannot write to.
fn spawn(flags: Flags, socket: &Path, listener: OwnedFd, input: &StartInput) -> Result<()> {
    let about = || "start the shim in the background";
    let program = linux::sealed::open_program().context(about)?;
    let mut command = Command::new(format!("/proc/self/fd/{}", program.as_raw_fd()));
    command.args(serve_args(&flags, socket)).stdin(listener).stdout(Stdio::null()).stderr(Stdio::null());
    if let Some(params) = &input.params
        && !params.containerd_ttrpc_address.is_empty()
    {
        command.env("TTRPC_ADDRESS", &params.containerd_ttrpc_address);
    }
    let cgroup = &input.options.shim_cgroup;
    let cgroup = if cgroup.is_empty() {
        None
    } else {
        // Shims may share a cgroup.
        Some(Cgroup::share(cgroup).context(|| format!("make the shim's cgroup {cgroup}"))?)
    };
    let mut child = command.spawn().context(about)?;
    if let Err(error) = adjust_oom_score(child.id()) {
        // Not allowed everywhere; the shim runs all the same.
        drop(error);
    }
    if let Some(Err(error)) = cgroup.map(|cgroup| cgroup.add(child.id())) {
        // It has no container yet, and the caller does not know it.
        let _ended = child.kill().and_then(|()| child.wait());
        return Err(error.context(format!("put the shim into cgroup {}", input.options.shim_cgroup)));
    }
    Ok(())
}

fn serve_args(flags: &Flags, socket: &Path) -> Vec<OsString> {
    let mut args: Vec<OsString> = vec![
        "-namespace".into(),
        flags.namespace.clone().into(),
        "-address".into(),
        flags.address.clone().into(),
        "-id".into(),
        flags.id.clone().into(),
        "-socket".into(),
        socket.into(),
    ];
    if flags.debug {
        args.push("-debug".into());
    }
    args.push("serve".into());
    args
}

/// When memory runs out the kernel should kill a shim before its daemon, and after its containers.
fn adjust_oom_score(pid: u32) -> Result<()> {
    let Some(parent) = rustix::process::getppid() else { return Ok(()) };
    let path = format!("/proc/{}/oom_score_adj", parent.as_raw_nonzero());
    let text = std::fs::read_to_string(&path).context(|| format!("read {path}"))?;
    let score: i32 = text.trim().parse().map_err(|_| Error::internal(format!("{path} holds no number")))?;
    let path = format!("/proc/{pid}/oom_score_adj");
    std::fs::write(&path, (score + 1).min(1000).to_string()).context(|| format!("write {path}"))
}

/// The listener that `start` passed as stdin, which becomes `/dev/null`.
pub(crate) fn inherited_listener() -> Result<std::os::unix::net::UnixListener> {
    let about = || "take the listening socket from stdin";
    let listener = std::io::stdin().as_fd().try_clone_to_owned().context(about)?;
    let null = std::fs::File::open("/dev/null").context(about)?;
    rustix::stdio::dup2_stdin(&null).map_err(std::io::Error::from).context(about)?;
    if !rustix::net::sockopt::socket_acceptconn(&listener).unwrap_or(false) {
        return Err(Error::invalid_argument("serve is called by start, with a listening socket as stdin"));
    }
    Ok(listener.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn annotations_name_the_group() {
        let directory = tempfile::tempdir().unwrap();
        let config = directory.path().join("config.json");
        assert_eq!(group(&config).unwrap(), None);
        for (annotations, expected) in [
            ("{}", None),
            (r#"{"io.kubernetes.cri.sandbox-id":"pod"}"#, Some("pod")),
            (r#"{"io.kubernetes.cri.sandbox-id":"pod","io.containerd.runc.v2.group":"g"}"#, Some("g")),
        ] {
            std::fs::write(&config, format!(r#"{{"ociVersion":"1.1.0","annotations":{annotations}}}"#))
                .unwrap();
            assert_eq!(group(&config).unwrap().as_deref(), expected);
        }
        std::fs::write(&config, "not json").unwrap();
        assert!(group(&config).is_err());
    }
}
