//! Health checks: a program that is run in a container at intervals to find out whether the container works.
//!
//! ```text
//! starting ──success──▶ healthy ◀──success── unhealthy
//!    └──── too many failures in a row ───────────▲
//! ```
//!
//! The watcher of a container also runs its checks, so a daemon that starts continues those of running containers. The
//! last results are stored in `containers/NS/ID/health.json` and are valid until the container is started again. A
//! probe that an earlier daemon left running is killed by the next one. Paused containers are not probed.

use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;
use std::sync::MutexGuard;
use std::time::Duration;

use api::engine::Exec;
use linux::process::{PidFd, kill_tree};
use linux::signal::SIGKILL;
use metadata::Container;
use rustix::fs::{CWD, FileType, Mode, mknodat};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use stdx::{Durable, Mutex, replace};
use task::{Io, Status, Task};
use tokio::io::AsyncReadExt as _;
use tokio::net::unix::pipe;
use tokio::sync::watch;
use tokio::task::spawn_blocking;
use tokio::time::{sleep, timeout};
use types::spec::image::Healthcheck;
use types::{ContainerId, Context, Error, ErrorKind, ExecId, Opaque, Result, Timestamp};

use crate::Engine;
use crate::containers::{PROCESS_TYPE, once};
use crate::record::Extension;

/// Values of `--filter health=`.
pub(crate) const STATES: &[&str] = &[STARTING, HEALTHY, UNHEALTHY, NO_HEALTH_CHECK];
/// The filter's value for a container without a health check.
pub(crate) const NO_HEALTH_CHECK: &str = "none";
const STARTING: &str = "starting";
const HEALTHY: &str = "healthy";
const UNHEALTHY: &str = "unhealthy";

/// Docker's defaults.
const INTERVAL: Duration = Duration::from_secs(30);
const TIMEOUT: Duration = Duration::from_secs(30);
const START_INTERVAL: Duration = Duration::from_secs(5);
const RETRIES: i64 = 3;
/// Docker's minimum interval: an image must not keep the daemon busy.
const PAUSE_MIN: Duration = Duration::from_millis(1);
/// Number of probe results that are kept, and the length of each output in bytes.
const PROBES_KEPT: usize = 5;
const OUTPUT_LEN_MAX: usize = 4096;
/// Exec id of a probe.
const EXEC: &str = "hoist-health";
/// How long a probe may take to end after SIGKILL.
const KILL_LIMIT: Duration = Duration::from_secs(10);

/// The health of a container since its start.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Health {
    started: Option<Timestamp>,
    status: String,
    failing_streak: i64,
    log: VecDeque<Probe>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Probe {
    start: Timestamp,
    end: Timestamp,
    /// The exit code; -1 if the probe timed out or could not run.
    code: i64,
    output: String,
}

impl Health {
    fn new(started: Option<Timestamp>) -> Health {
        Health { started, status: STARTING.into(), failing_streak: 0, log: VecDeque::new() }
    }

    /// The JSON of `inspect`.
    pub(crate) fn shown(&self) -> Value {
        let probe = |probe: &Probe| {
            json!({
                "Start": probe.start.to_string(), "End": probe.end.to_string(),
                "ExitCode": probe.code, "Output": probe.output,
            })
        };
        json!({
            "Status": self.status, "FailingStreak": self.failing_streak,
            "Log": self.log.iter().map(probe).collect::<Vec<_>>(),
        })
    }

    /// Whether failures do not count yet, because the container is in its start period.
    fn is_young(&self, check: &Healthcheck, now: Timestamp) -> bool {
        let age = self.started.map_or(Duration::ZERO, |started| started.until(now));
        self.status == STARTING && age < or(check.start_period, Duration::ZERO)
    }

    /// Time until the next probe.
    fn pause(&self, check: &Healthcheck, now: Timestamp) -> Duration {
        let pause = match self.is_young(check, now) {
            true => or(check.start_interval, START_INTERVAL),
            false => or(check.interval, INTERVAL),
        };
        pause.max(PAUSE_MIN)
    }

    fn note(&mut self, probe: Probe, check: &Healthcheck) {
        if probe.code == 0 {
            (self.status, self.failing_streak) = (HEALTHY.into(), 0);
        } else if !self.is_young(check, probe.start) {
            self.failing_streak += 1;
            if self.failing_streak >= if check.retries > 0 { check.retries } else { RETRIES } {
                self.status = UNHEALTHY.into();
            }
        }
        self.log.push_back(probe);
        while self.log.len() > PROBES_KEPT {
            self.log.pop_front();
        }
    }
}

fn or(nanoseconds: i64, otherwise: Duration) -> Duration {
    u64::try_from(nanoseconds).ok().filter(|time| *time > 0).map_or(otherwise, Duration::from_nanos)
}

/// The health of running containers, by id.
#[derive(Default)]
pub(crate) struct Healths(Mutex<BTreeMap<String, Health>>);

impl Healths {
    /// Docker's status; empty for a container without a health check.
    pub(crate) fn status(&self, id: &ContainerId, extension: &Extension) -> &'static str {
        if extension.health.is_none() {
            return "";
        }
        let all = self.lock();
        match all.get(id.as_str()).map(|health| health.status.as_str()) {
            Some(HEALTHY) => HEALTHY,
            Some(UNHEALTHY) => UNHEALTHY,
            _ => STARTING,
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Health>> {
        self.0.lock()
    }
}

/// Merges the requested health check with the image's. `None` if the container has none.
pub(crate) fn check(
    own: Option<&api::engine::Health>,
    image: Option<&Healthcheck>,
) -> Result<Option<Healthcheck>> {
    let mut check = image.cloned().unwrap_or_default();
    if let Some(own) = own {
        if own.is_off {
            return Ok(None);
        }
        if let Some(command) = own.command.as_ref().filter(|command| !command.is_empty()) {
            check.test = vec!["CMD-SHELL".to_owned(), command.clone()];
        }
        for (field, value) in [
            (&mut check.interval, own.interval),
            (&mut check.timeout, own.timeout),
            (&mut check.start_period, own.start_period),
            (&mut check.start_interval, own.start_interval),
            (&mut check.retries, own.retries),
        ] {
            if value < 0 {
                return Err(Error::invalid_argument(
                    "times and numbers of a health check are not below zero",
                ));
            }
            if value > 0 {
                *field = value;
            }
        }
    }
    match check.test.first().map(String::as_str) {
        None | Some("" | "NONE") => Ok(None),
        Some("CMD" | "CMD-SHELL") if check.test.len() > 1 => Ok(Some(check)),
        // Only an image can contain such a check; the container runs without it.
        Some(_) => {
            tracing::warn!(
                "the image's health check {:?} is ignored: expected CMD or CMD-SHELL, and a command",
                check.test
            );
            Ok(None)
        }
    }
}

fn command(check: &Healthcheck) -> Vec<String> {
    match check.test.split_first() {
        Some((kind, line)) if kind == "CMD-SHELL" => {
            ["/bin/sh", "-c"].map(str::to_owned).into_iter().chain(line.iter().cloned()).collect()
        }
        Some((_, words)) => words.to_vec(),
        None => Vec::new(),
    }
}

impl Engine {
    /// A container's health, also that of its last run.
    pub(crate) async fn health(&self, id: &ContainerId, extension: &Extension) -> Option<Health> {
        extension.health.as_ref()?;
        let known = self.0.healths.lock().get(id.as_str()).cloned();
        match known {
            Some(known) => Some(known),
            None => Some(self.recall(id).await.unwrap_or_else(|| Health::new(None))),
        }
    }

    /// Runs a container's health checks until it ends or has another watcher.
    pub(crate) async fn run_health_checks(self, id: ContainerId, mut ended: watch::Receiver<Option<u32>>) {
        let Ok((container, extension)) = self.find_own(id.as_str()).await else { return };
        let Some(check) = extension.health.clone() else { return };
        let recalled = self.recall(&id).await.filter(|health| health.started == extension.started);
        let mut health = recalled.unwrap_or_else(|| Health::new(extension.started));
        self.0.healths.lock().insert(id.to_string(), health.clone());
        let look = async {
            loop {
                sleep(health.pause(&check, Timestamp::now())).await;
                let probe = match self.probe(&container, &check).await {
                    Ok(Some(probe)) => probe,
                    Ok(None) => continue,
                    // The container is ending, or its shim does not answer.
                    Err(error) if error.is(ErrorKind::NotFound) => continue,
                    Err(error) => {
                        let (now, output) = (Timestamp::now(), error.chain());
                        Probe { start: now, end: now, code: -1, output }
                    }
                };
                let before = health.status.clone();
                health.note(probe, &check);
                self.0.healths.lock().insert(id.to_string(), health.clone());
                if let Err(error) = self.keep_health(&id, &health).await {
                    tracing::warn!(%id, "keep a container's health: {}", error.chain());
                }
                if health.status != before {
                    self.tell(&id, &format!("health_status: {}", health.status), &[]);
                }
            }
        };
        tokio::select! {
            () = look => {}
            _ = ended.wait_for(Option::is_some) => {
                self.0.healths.lock().remove(id.as_str());
            }
        }
    }

    /// Runs one probe; `None` if the container cannot be probed now.
    async fn probe(&self, container: &Container, check: &Healthcheck) -> Result<Option<Probe>> {
        let Some(task) = self.task_of(&container.id)? else { return Ok(None) };
        if task.state_or_unknown().await?.status != Status::Running {
            return Ok(None);
        }
        let exec = ExecId::new(EXEC).expect("a valid name");
        // A probe that an earlier daemon left running.
        if task.state(Some(&exec)).await.is_ok() {
            end(&task, &exec).await;
            let _ = task.delete_exec(&exec).await;
        }
        let (record, wanted) = (container.clone(), Exec { command: command(check), ..Exec::default() });
        let process = self.blocking(move |engine| engine.exec_process(&record, None, &wanted)).await?;
        let path = self.output_of_probes(&container.id).await?;
        // Opened for reading and writing: no end of file before the probe has opened its end.
        let output = pipe::OpenOptions::new().read_write(true).open_receiver(&path);
        let mut output = output.context(|| format!("open {}", path.display()))?;
        let to = once(&path.display().to_string());
        let io = Io { stdin: String::new(), stdout: to.clone(), stderr: to, terminal: false };
        let value = serde_json::to_vec(&process).expect("plain data");
        let spec = Opaque { type_url: PROCESS_TYPE.into(), value };
        let (start, mut said) = (Timestamp::now(), Vec::new());
        let begun = match task.exec(&exec, task::Exec { spec, io }).await {
            Ok(()) => task.start(Some(&exec)).await.map(drop),
            Err(error) => Err(error),
        };
        if let Err(error) = begun {
            let _ = task.delete_exec(&exec).await;
            // The program is missing or cannot be executed, unless the container has ended or was paused.
            return match task.state_or_unknown().await?.status {
                Status::Running => {
                    Ok(Some(Probe { start, end: Timestamp::now(), code: -1, output: error.chain() }))
                }
                _ => Ok(None),
            };
        }
        let limit = or(check.timeout, TIMEOUT);
        let waited = tokio::select! {
            waited = timeout(limit, task.wait(Some(&exec))) => waited,
            never = read_all(&mut output, &mut said) => match never {},
        };
        let code = match waited {
            Ok(exit) => i64::from(exit?.status),
            Err(_) => {
                end(&task, &exec).await;
                -1
            }
        };
        let _ = task.delete_exec(&exec).await;
        let mut rest = [0; OUTPUT_LEN_MAX];
        while let Ok(len @ 1..) = output.try_read(&mut rest) {
            keep(&mut said, &rest[..len]);
        }
        let output = match code {
            -1 => format!("Health check exceeded timeout ({limit:?}): {}", String::from_utf8_lossy(&said)),
            _ => String::from_utf8_lossy(&said).into_owned(),
        };
        Ok(Some(Probe { start, end: Timestamp::now(), code, output }))
    }

    async fn output_of_probes(&self, id: &ContainerId) -> Result<PathBuf> {
        let path = self.files(id.as_str()).join("health");
        self.blocking(move |_| match mknodat(CWD, &path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0) {
            Ok(()) | Err(Errno::EXIST) => Ok(path),
            Err(errno) => {
                Err(std::io::Error::from(errno)).context(|| format!("make a pipe at {}", path.display()))
            }
        })
        .await
    }

    async fn recall(&self, id: &ContainerId) -> Option<Health> {
        let path = self.files(id.as_str()).join("health.json");
        let read = self.blocking(move |_| std::fs::read(&path).context(|| "read a container's health"));
        serde_json::from_slice(&read.await.ok()?).ok()
    }

    async fn keep_health(&self, id: &ContainerId, health: &Health) -> Result<()> {
        let files = self.files(id.as_str());
        let bytes = serde_json::to_vec(health).expect("plain data");
        self.blocking(move |_| {
            let path = files.join("health.json");
            // The results need not survive a power cut.
            replace(&path, &bytes, 0o644, Durable::No).context(|| format!("write {}", path.display()))
        })
        .await
    }
}

/// Reads until cancelled, and keeps the beginning of the output.
async fn read_all(output: &mut pipe::Receiver, said: &mut Vec<u8>) -> std::convert::Infallible {
    let mut buffer = [0; OUTPUT_LEN_MAX];
    loop {
        match output.read(&mut buffer).await {
            Ok(len @ 1..) => keep(said, &buffer[..len]),
            _ => std::future::pending().await,
        }
    }
}

fn keep(said: &mut Vec<u8>, more: &[u8]) {
    let room = OUTPUT_LEN_MAX.saturating_sub(said.len());
    said.extend_from_slice(&more[..more.len().min(room)]);
}

/// Kills a probe with its descendants, even those in sessions of their own: they would accumulate with each probe and
/// hold its output open.
async fn end(task: &Task, exec: &ExecId) {
    let number = async || {
        let process = task.state(Some(exec)).await.ok()?;
        (process.status != Status::Stopped && process.pid > 1).then_some(process.pid)
    };
    if let Some(found) = number().await
        && let Ok(process) = PidFd::open(found)
        // Its pid cannot have been reused: the shim has not seen it end, before and after the pidfd was opened.
        && number().await == Some(found)
    {
        let _ = spawn_blocking(move || kill_tree(found, process)).await;
    }
    let killed = task.kill(Some(exec), SIGKILL, false).await;
    // A probe that was never started will not end.
    if !killed.is_err_and(|error| error.is(ErrorKind::FailedPrecondition)) {
        let _ = timeout(KILL_LIMIT, task.wait(Some(exec))).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn probe(at: Timestamp, code: i64) -> Probe {
        Probe { start: at, end: at, code, output: String::new() }
    }

    #[test]
    fn health_failures_count_in_a_row_and_after_the_start_period() {
        let started = Timestamp::now();
        let seconds = |count: u64| i64::try_from(Duration::from_secs(count).as_nanos()).unwrap();
        let check = Healthcheck {
            retries: 2,
            interval: seconds(7),
            start_period: seconds(10),
            start_interval: seconds(1),
            ..Healthcheck::default()
        };
        let mut health = Health::new(Some(started));
        let mut note = |after: u64, code: i64| {
            let at = started.plus(Duration::from_secs(after));
            health.note(probe(at, code), &check);
            (health.status.clone(), health.failing_streak, health.pause(&check, at).as_secs())
        };
        let is = |status: &str, streak, pause| (status.to_owned(), streak, pause);
        assert_eq!(note(1, 1), is("starting", 0, 1));
        assert_eq!(note(9, 1), is("starting", 0, 1));
        assert_eq!(note(10, 1), is("starting", 1, 7));
        assert_eq!(note(11, 0), is("healthy", 0, 7));
        assert_eq!(note(12, -1), is("healthy", 1, 7));
        assert_eq!(note(13, 3), is("unhealthy", 2, 7));
        assert_eq!(note(14, 0), is("healthy", 0, 7));
        assert_eq!(health.log.len(), PROBES_KEPT);
        assert_eq!(health.log[0].code, 1, "the first are forgotten");
    }

    #[test]
    fn an_image_cannot_have_probes_without_a_pause() {
        let check =
            Healthcheck { interval: 1, start_interval: 1, start_period: i64::MAX, ..Healthcheck::default() };
        let (now, mut health) = (Timestamp::now(), Health::new(Some(Timestamp::now())));
        assert_eq!(health.pause(&check, now), PAUSE_MIN);
        health.note(probe(now, 0), &check);
        assert_eq!(health.pause(&check, now), PAUSE_MIN);
    }

    #[test]
    fn requested_health_checks_override_the_images() {
        let image = |test: &[&str]| Healthcheck {
            test: test.iter().map(ToString::to_string).collect(),
            interval: 5,
            ..Healthcheck::default()
        };
        let own = api::engine::Health { interval: 7, retries: 1, ..Default::default() };
        let found = check(Some(&own), Some(&image(&["CMD", "a", "b"]))).unwrap().unwrap();
        assert_eq!(
            (found.interval, found.retries, command(&found)),
            (7, 1, vec!["a".to_owned(), "b".to_owned()])
        );
        let own = api::engine::Health { command: Some("x | y".into()), ..Default::default() };
        let found = check(Some(&own), Some(&image(&["NONE"]))).unwrap().unwrap();
        assert_eq!(
            (found.interval, command(&found)),
            (5, ["/bin/sh", "-c", "x | y"].map(str::to_owned).to_vec())
        );
        let off = api::engine::Health { is_off: true, ..Default::default() };
        assert!(check(Some(&off), Some(&image(&["CMD", "a"]))).unwrap().is_none());
        assert!(
            check(None, None).unwrap().is_none() && check(None, Some(&image(&["NONE"]))).unwrap().is_none()
        );
    }

    #[test]
    fn what_an_image_says_that_is_no_check_is_left_out() {
        for test in [&["curl", "-f", "x"][..], &["CMD"], &["CMD-SHELL"]] {
            let test = test.iter().map(ToString::to_string).collect();
            let image = Healthcheck { test, ..Healthcheck::default() };
            assert!(check(None, Some(&image)).unwrap().is_none());
            let own = api::engine::Health { command: Some("x".into()), ..Default::default() };
            assert!(check(Some(&own), Some(&image)).unwrap().is_some());
        }
    }
}
