//! Reports the daemon's state to the service manager (sd_notify(3)).

use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

use types::{Context, Result};

pub(crate) const READY: &str = "READY=1";
pub(crate) const STOPPING: &str = "STOPPING=1";

/// The message for `Type=notify-reload`, with the monotonic time that systemd compares.
pub(crate) fn reloading() -> String {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    format!("RELOADING=1\nMONOTONIC_USEC={}", time.tv_sec * 1_000_000 + time.tv_nsec / 1000)
}

/// Sends `state` if there is a service manager. An error is only logged.
pub(crate) fn notify(state: &str) {
    let Some(socket) = std::env::var_os("NOTIFY_SOCKET") else { return };
    if let Err(error) = send(socket.as_encoded_bytes(), state) {
        tracing::warn!("{}", error.chain());
    }
}

fn send(socket: &[u8], state: &str) -> Result<()> {
    let about = || "notify the service manager";
    let address = match socket {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name),
        path => {
            use std::os::unix::ffi::OsStrExt;
            SocketAddr::from_pathname(std::ffi::OsStr::from_bytes(path))
        }
    }
    .context(about)?;
    let datagrams = UnixDatagram::unbound().context(about)?;
    datagrams.send_to_addr(state.as_bytes(), &address).map(drop).context(about)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notify_sends_to_path_and_abstract_sockets() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let name = format!("hoist-notify-{}", std::process::id());
        let on_path = UnixDatagram::bind(&path).unwrap();
        let on_name = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
        let check = |socket: &[u8], datagrams: &UnixDatagram| {
            send(socket, READY).unwrap();
            let mut buffer = [0; 64];
            let len = datagrams.recv(&mut buffer).unwrap();
            assert_eq!(&buffer[..len], READY.as_bytes());
        };
        check(path.as_os_str().as_encoded_bytes(), &on_path);
        check(format!("@{name}").as_bytes(), &on_name);
    }
}
