//! What daemons run and wait for: `start`, `delete` and `-info`. Each has ten seconds.
//!
//! Standard output is the answer and nothing else; standard error is for people.

use std::fs;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::SystemTime;

use api::shim::bootstrap::{BootstrapParams, BootstrapResult};
use api::shim::introspection::{RuntimeInfo, RuntimeVersion};
use api::shim::task::DeleteResponse;
use prost::Message;
use rustix::fs::OFlags;
use types::{Context, Digest, Result};

use crate::{Flags, container};

/// The directory of containerd's shim sockets; newer daemons name one.
const SOCKETS: &str = "/run/containerd/s";
/// More than any daemon sends.
const INPUT_LEN_MAX: u64 = 1 << 20;

/// Starts the shim and prints its address. The current directory is the bundle.
pub(crate) fn start(flags: &Flags) -> Result<()> {
    let params = params(&flags.id)?;
    let socket = socket(flags, params.as_ref());
    let listener = listen(&socket)?;
    let address = format!("unix://{}", socket.display());
    fs::write("address", &address).context(|| "write the address into the bundle")?;
    // The socket listens before its address is printed: the shim inherits it as standard input.
    let mut shim = Command::new("/proc/self/exe");
    shim.args(["-namespace", &flags.namespace, "-id", &flags.id, "serve"]).process_group(0);
    shim.stdin(OwnedFd::from(listener)).stdout(Stdio::null()).stderr(log());
    if let Some(params) = &params {
        shim.env("TTRPC_ADDRESS", &params.containerd_ttrpc_address);
    }
    shim.spawn().context(|| "start the shim in the background")?;
    answer(&match params {
        Some(_) => {
            let protocol = "ttrpc".to_owned();
            BootstrapResult { version: 3, address, protocol, ..BootstrapResult::default() }.encode_to_vec()
        }
        // Daemons before containerd 2.3 read an address, and speak version 2 of the task API to it.
        None => address.into_bytes(),
    })
}

/// Kills what a dead shim left, and prints how the container ended. The current directory is the bundle.
pub(crate) fn delete(flags: &Flags) -> Result<()> {
    let bundle = flags.bundle()?;
    container::end(&bundle)?;
    remove_socket(&bundle);
    let exited_at = Some(SystemTime::now().into());
    answer(&DeleteResponse { pid: 0, exit_status: 128 + 9, exited_at }.encode_to_vec())
}

/// Removes the socket that `start` wrote down.
pub(crate) fn remove_socket(bundle: &Path) {
    if let Ok(address) = fs::read_to_string(bundle.join("address")) {
        // The socket may be gone already.
        let _gone = fs::remove_file(address.trim_start_matches("unix://"));
    }
}

/// Prints the runtime's name and version.
pub(crate) fn info() -> Result<()> {
    let version = RuntimeVersion { version: env!("CARGO_PKG_VERSION").to_owned(), ..Default::default() };
    let name = "io.containerd.chroot.v1".to_owned();
    answer(&RuntimeInfo { name, version: Some(version), ..RuntimeInfo::default() }.encode_to_vec())
}

/// The parameters that containerd 2.3 and Hoist send on standard input. Older daemons send the runtime's options, or
/// nothing.
fn params(id: &str) -> Result<Option<BootstrapParams>> {
    let mut input = Vec::new();
    std::io::stdin().take(INPUT_LEN_MAX).read_to_end(&mut input).context(|| "read standard input")?;
    Ok(BootstrapParams::decode(input.as_slice()).ok().filter(|params| params.instance_id == id))
}

/// A path for each container of each daemon. It is short, because paths of Unix sockets have at most 107 bytes
/// (unix(7)).
fn socket(flags: &Flags, params: Option<&BootstrapParams>) -> PathBuf {
    let dir = params.and_then(|params| params.socket_dir.as_deref()).filter(|dir| !dir.is_empty());
    let name = format!("{}/{}/{}", flags.address, flags.namespace, flags.id);
    Path::new(dir.unwrap_or(SOCKETS)).join(Digest::of(name.as_bytes()).hex())
}

fn listen(socket: &Path) -> Result<UnixListener> {
    let about = || format!("listen on {}", socket.display());
    fs::create_dir_all(socket.parent().unwrap_or(Path::new("/"))).context(about)?;
    // The socket of a shim that was killed. No shim that lives has it: a daemon uses an id once at a time.
    let _old = fs::remove_file(socket);
    let listener = UnixListener::bind(socket).context(about)?;
    fs::set_permissions(socket, fs::Permissions::from_mode(0o600)).context(about)?;
    Ok(listener)
}

/// The fifo `log` in the bundle, which the daemon copies to its own log. Without a reader lines are lost, and the shim
/// is not blocked.
fn log() -> Stdio {
    let mut fifo = fs::File::options();
    fifo.read(true).write(true).custom_flags(OFlags::NONBLOCK.bits().cast_signed());
    fifo.open("log").map_or_else(|_| Stdio::null(), Stdio::from)
}

fn answer(bytes: &[u8]) -> Result<()> {
    std::io::stdout().write_all(bytes).context(|| "print the answer")
}
