//! Finding the daemon, and starting one where none listens.

use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use client::Client;
use types::{Context, Error, ErrorKind, Result};

use crate::args::ADDRESS_DEFAULT;

/// How long a new daemon may take until it listens.
const START_LIMIT: Duration = Duration::from_secs(30);

/// Set to keep us from starting one.
const NO_AUTOSTART: &str = "HOIST_NO_AUTOSTART";
/// The configuration of a daemon that we start.
const CONFIG: &str = "HOIST_CONFIG";
/// Where a unit of the daemon is (systemd.unit(5)): then its manager starts it, and starts it again.
const SERVICES: [&str; 4] = [
    "/etc/systemd/system/hoist.service",
    "/run/systemd/system/hoist.service",
    "/usr/local/lib/systemd/system/hoist.service",
    "/usr/lib/systemd/system/hoist.service",
];

/// Connects; where no daemon listens that we may start, starts one and says so.
pub(crate) async fn connect(address: &str) -> Result<Client> {
    let path = Path::new(address.strip_prefix("unix://").unwrap_or(address));
    match Client::connect(path).await {
        Err(error) if is_absent(&error) && rustix::process::geteuid().is_root() => {
            if let Some(why) = why_not_start(path) {
                return Err(error.context(why));
            }
            start(path)?;
            wait(path).await
        }
        other => other,
    }
}

/// Why it is not for us to start a daemon at an address, if it is not. One at an address of its own has a
/// configuration of its own, and another daemon in its place would show nothing of what it has.
fn why_not_start(address: &Path) -> Option<&'static str> {
    if std::env::var_os(NO_AUTOSTART).is_some() {
        return Some("no daemon is started, as HOIST_NO_AUTOSTART is set");
    }
    if std::env::var_os(CONFIG).is_some() {
        return None;
    }
    if address != Path::new(ADDRESS_DEFAULT) {
        return Some(
            "start the daemon of this address; with HOIST_CONFIG=FILE, its configuration, one is started here",
        );
    }
    let has_service = SERVICES.iter().any(|path| Path::new(path).exists());
    has_service.then_some("the daemon is a service of this machine: systemctl start hoist")
}

fn is_absent(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::NotFound | ErrorKind::Unavailable)
}

fn start(address: &Path) -> Result<()> {
    let what = || "start a daemon";
    let program = std::env::current_exe().context(what)?;
    let folder = address.parent().unwrap_or(Path::new("/run"));
    std::fs::create_dir_all(folder).context(|| format!("create {}", folder.display()))?;
    let log_path = folder.join("daemon.log");
    let log = File::options()
        .create(true)
        .append(true)
        .open(&log_path)
        .context(|| format!("open {}", log_path.display()))?;
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
    // A group of its own: what is typed at our terminal is not for it.
    command
        .stdin(Stdio::null())
        .stdout(log.try_clone().context(what)?)
        .stderr(log)
        .process_group(0)
        .current_dir("/");
    // It outlives us, and must not hold what was left open to us: a pipe whose end somebody waits for, a lock.
    linux::process::keep_from_programs(3)?;
    command.spawn().context(what).map(drop)
}

async fn wait(address: &Path) -> Result<Client> {
    let begun = Instant::now();
    loop {
        match Client::connect(address).await {
            Err(error) if is_absent(&error) && begun.elapsed() < START_LIMIT => {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            Err(error) => {
                return Err(error.context("the daemon that was started does not listen; its log says why"));
            }
            Ok(client) => return Ok(client),
        }
    }
}
