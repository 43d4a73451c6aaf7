//! Connects to the daemon, and starts one if none listens.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use client::Client;
use types::{Context, Error, ErrorKind, Result};

use crate::args::ADDRESS_DEFAULT;

/// How long a new daemon may take until it listens.
const START_LIMIT: Duration = Duration::from_secs(30);

/// The most bytes of a new daemon's log that are searched for its error.
const LOG_LEN_MAX: u64 = 1 << 20;
/// The size, in bytes, from which a log is truncated before the next daemon starts: no program rotates it, and `/run`
/// is in memory.
const OLD_LOG_LEN_MAX: u64 = 1 << 20;
/// The error text of a daemon that finds another one running.
const GIVES_WAY: &str = "is in use by a running daemon";

/// The environment variable that prevents starting a daemon.
const NO_AUTOSTART: &str = "HOIST_NO_AUTOSTART";
/// The environment variable with the configuration file of a daemon that this program starts.
const CONFIG: &str = "HOIST_CONFIG";
/// Paths of the daemon's unit (systemd.unit(5)). If one exists, systemd starts and restarts the daemon.
const SERVICES: [&str; 4] = [
    "/etc/systemd/system/hoist.service",
    "/run/systemd/system/hoist.service",
    "/usr/local/lib/systemd/system/hoist.service",
    "/usr/lib/systemd/system/hoist.service",
];

/// Connects to the daemon. If none listens and this program may start one, starts it and says so.
pub(crate) async fn connect(address: &str) -> Result<Client> {
    let path = socket_path(address)?;
    match Client::connect(path).await {
        Err(error) if is_absent(&error) => match StartConditions::look(path).why_not_start() {
            Some(why) => Err(error.context(why)),
            None => wait(path, start(path)?).await,
        },
        other => other,
    }
}

/// How the daemon of a socket is started, for a program that starts none itself.
pub(crate) fn how_to_start(address: &Path) -> String {
    StartConditions::look(address).how_to_start(address)
}

/// The path of a socket, given as a path or an address. `InvalidArgument` for other kinds of addresses.
pub(crate) fn socket_path(address: &str) -> Result<&Path> {
    match address.split_once("://") {
        None => Ok(Path::new(address)),
        Some(("unix", path)) => Ok(Path::new(path)),
        Some(_) => Err(Error::invalid_argument(format!(
            "-H {address}: only unix sockets are spoken to; on another machine call `ssh HOST hoist …`, and over TCP use \
             another client of gRPC"
        ))),
    }
}

/// The facts that decide whether a daemon is started.
struct StartConditions {
    is_root: bool,
    is_told_not_to: bool,
    has_config: bool,
    is_usual_address: bool,
    /// Whether systemd has a unit of the daemon.
    is_service: bool,
}

impl StartConditions {
    fn look(address: &Path) -> StartConditions {
        StartConditions {
            is_root: rustix::process::geteuid().is_root(),
            is_told_not_to: std::env::var_os(NO_AUTOSTART).is_some(),
            has_config: std::env::var_os(CONFIG).is_some(),
            is_usual_address: address == Path::new(ADDRESS_DEFAULT),
            is_service: SERVICES.iter().any(|path| Path::new(path).exists()),
        }
    }

    /// The reason not to start a daemon, and who has to start it. A daemon at another address than the default has a
    /// configuration of its own; one started in its place would not show its containers.
    fn why_not_start(&self) -> Option<&'static str> {
        if !self.is_root {
            return Some(match (self.is_usual_address, self.is_service) {
                (true, true) => "the daemon does not run; as root: systemctl start hoist",
                (true, false) => "the daemon does not run; any hoist command of root starts it",
                (false, _) => {
                    "no daemon runs at this address; its root starts it: hoist daemon --address SOCKET"
                }
            });
        }
        if self.is_told_not_to {
            return Some("no daemon is started, as HOIST_NO_AUTOSTART is set");
        }
        if self.has_config {
            return None;
        }
        if !self.is_usual_address {
            return Some(
                "start the daemon of this address; with HOIST_CONFIG=FILE, its configuration, one is started here",
            );
        }
        self.is_service.then_some("the daemon is a service of this machine: systemctl start hoist")
    }

    fn how_to_start(&self, address: &Path) -> String {
        match (self.is_usual_address, self.is_service) {
            (true, true) => "start the daemon, as root: systemctl start hoist".into(),
            (true, false) if self.is_told_not_to => "start the daemon, as root: hoist daemon".into(),
            (true, false) => "any hoist command of root starts the daemon, such as: hoist ps".into(),
            (false, _) => {
                format!(
                    "start the daemon of this socket, as root: hoist daemon --address {}",
                    address.display()
                )
            }
        }
    }
}

fn is_absent(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::NotFound | ErrorKind::Unavailable)
}

/// A daemon that this program started, and its log.
struct Started {
    daemon: Child,
    log: File,
    /// The offset in the log at which its messages begin.
    log_begin: u64,
}

impl Started {
    /// Its last messages, if it has failed. Giving way to another daemon, which was started at the same time, is no
    /// failure.
    fn failure(&mut self) -> Option<String> {
        match self.daemon.try_wait() {
            Ok(Some(ended)) if !ended.success() => {}
            _ => return None,
        }
        let mut said = Vec::new();
        // A log that cannot be read has no messages.
        let _ = self.log.seek(SeekFrom::Start(self.log_begin));
        let _ = (&mut self.log).take(LOG_LEN_MAX).read_to_end(&mut said);
        let said = String::from_utf8_lossy(&said);
        if said.contains(GIVES_WAY) {
            return None;
        }
        Some(said.lines().rfind(|line| !line.trim().is_empty()).unwrap_or("it said nothing").to_owned())
    }
}

fn start(address: &Path) -> Result<Started> {
    let what = || "start a daemon";
    let program = std::env::current_exe().context(what)?;
    let folder = address.parent().unwrap_or(Path::new("/run"));
    std::fs::create_dir_all(folder).context(|| format!("create {}", folder.display()))?;
    let log_path = folder.join("daemon.log");
    let about = || format!("open {}", log_path.display());
    let log = open_log(&log_path).context(about)?;
    let mut said = File::open(&log_path).context(about)?;
    let log_begin = said.seek(SeekFrom::End(0)).context(about)?;
    eprintln!(
        "no daemon listens at {}: started one, which logs to {}",
        address.display(),
        log_path.display()
    );
    let mut command = Command::new(program);
    command.arg("daemon").arg("--address").arg(address);
    if let Some(config) = std::env::var_os(CONFIG) {
        command.arg("--config").arg(config);
    }
    // A process group of its own, so that the terminal's signals do not reach it.
    command
        .stdin(Stdio::null())
        .stdout(log.try_clone().context(what)?)
        .stderr(log)
        .process_group(0)
        .current_dir("/");
    // The daemon outlives us: it must not inherit other file descriptors, such as a pipe whose end is awaited, or a
    // lock.
    linux::process::keep_from_programs(3)?;
    Ok(Started { daemon: command.spawn().context(what)?, log: said, log_begin })
}

/// Opens the log for appending, and truncates a long one. A daemon that another command has just started appends as
/// well, and continues after the truncation.
fn open_log(path: &Path) -> std::io::Result<File> {
    let log = File::options().create(true).append(true).open(path)?;
    if log.metadata()?.len() > OLD_LOG_LEN_MAX {
        log.set_len(0)?;
    }
    Ok(log)
}

async fn wait(address: &Path, mut started: Started) -> Result<Client> {
    let begun = Instant::now();
    loop {
        // Check for the exit first: then a daemon that listens by now is still found below.
        let failure = started.failure();
        match (Client::connect(address).await, failure) {
            (Err(error), Some(said)) if is_absent(&error) => {
                return Err(error.context(format!("the daemon that was started has failed: {said}")));
            }
            (Err(error), _) if is_absent(&error) && begun.elapsed() < START_LIMIT => {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            (Err(error), _) => {
                return Err(error.context("the daemon that was started does not listen; its log says why"));
            }
            (Ok(client), _) => return Ok(client),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_daemon_log_is_truncated() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("daemon.log");
        for (before, after) in [(0, 0), (OLD_LOG_LEN_MAX, OLD_LOG_LEN_MAX), (OLD_LOG_LEN_MAX + 1, 0)] {
            File::create(&path).unwrap().set_len(before).unwrap();
            let log = open_log(&path).unwrap();
            assert_eq!(log.metadata().unwrap().len(), after, "{before}");
        }
        std::fs::remove_file(&path).unwrap();
        open_log(&path).unwrap();
        assert!(path.is_file(), "one that is not there is made");
    }

    #[test]
    fn sockets_are_named_by_path_or_as_an_address() {
        for (address, path) in [("/a", "/a"), ("unix:///a", "/a"), ("a/b", "a/b")] {
            assert_eq!(socket_path(address).unwrap(), Path::new(path), "{address}");
        }
        for address in ["tcp://10.0.0.5:2376", "ssh://host", "http://x"] {
            let refused = socket_path(address).unwrap_err();
            assert!(refused.message().contains("only unix sockets"), "{address}");
        }
    }

    #[test]
    fn a_refusal_to_start_the_daemon_says_who_starts_it() {
        let why = |change: fn(&mut StartConditions)| {
            let mut around = StartConditions {
                is_root: true,
                is_told_not_to: false,
                has_config: false,
                is_usual_address: true,
                is_service: false,
            };
            change(&mut around);
            around.why_not_start()
        };
        assert_eq!(why(|_| {}), None);
        assert_eq!(why(|around| (around.is_usual_address, around.has_config) = (false, true)), None);
        assert!(why(|around| around.is_told_not_to = true).unwrap().contains("HOIST_NO_AUTOSTART"));
        assert!(why(|around| around.is_usual_address = false).unwrap().contains("HOIST_CONFIG=FILE"));
        assert!(why(|around| around.is_service = true).unwrap().contains("systemctl start hoist"));
        // If the user is not root, the advice is for root.
        assert!(why(|around| around.is_root = false).unwrap().contains("hoist command of root"));
        let of_a_service = why(|around| (around.is_root, around.is_service) = (false, true));
        assert!(of_a_service.unwrap().contains("as root: systemctl start hoist"));
        let elsewhere = why(|around| (around.is_root, around.is_usual_address) = (false, false));
        assert!(elsewhere.unwrap().contains("hoist daemon --address"));
    }

    #[test]
    fn who_starts_no_daemon_says_how_it_is_started() {
        let how = |is_usual_address, is_service, is_told_not_to| {
            let (is_root, has_config) = (true, false);
            StartConditions { is_root, is_told_not_to, has_config, is_usual_address, is_service }
                .how_to_start(Path::new("/a/b.sock"))
        };
        assert!(how(true, true, false).ends_with("systemctl start hoist"));
        assert!(how(true, false, false).ends_with("hoist ps"));
        assert!(how(true, false, true).ends_with("hoist daemon"), "no hoist command starts it");
        assert!(how(false, true, false).ends_with("hoist daemon --address /a/b.sock"));
    }
}
