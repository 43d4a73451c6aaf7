//! Queries: `state`, `list`, `ps`, `events`.

use std::process::Command;
use std::time::{Duration, Instant};

use linux::cgroup::OomWatch;
use linux::process::PidFd;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use serde_json::{Value, json};
use types::{Context, Error, ErrorKind, Result};

use super::args::Args;
use super::document::Spacing;
use super::{Cli, document, print_line};
use crate::{Container, Status};

/// The default interval between two reads of the counters.
const INTERVAL_DEFAULT: Duration = Duration::from_secs(5);

impl Cli<'_> {
    pub(super) fn state(&self, args: &mut Args) -> Result<()> {
        let container = self.load_alone(args)?;
        print_line(&document::state(&container.state().document(container.status()?), Spacing::Wide))
    }

    pub(super) fn list(&self, args: &mut Args) -> Result<()> {
        let quiet = args.flag(&["-q", "--quiet"]);
        let format = Format::read(args)?;
        args.end()?;
        if self.names_root && !self.root.exists() {
            return Err(Error::not_found(format!(
                "--root {}: no such file or directory",
                self.root.display()
            )));
        }
        let ids = Container::list(&self.root)?;
        if quiet {
            return ids.iter().try_for_each(|id| print_line(id));
        }
        let mut documents = Vec::new();
        for id in &ids {
            let found = Container::load(&self.root, id)
                .and_then(|container| Ok(container.state().document(container.status()?)));
            match found {
                Ok(document) => documents.push(document),
                // The container is being created or deleted right now.
                Err(error) if error.is(ErrorKind::NotFound) || error.is(ErrorKind::FailedPrecondition) => {}
                // One broken container does not hide the others.
                Err(error) => self.log.warning(&format!("container {id}: {}", error.chain())),
            }
        }
        match format {
            Format::Json => {
                let states = documents.iter().map(|state| document::state(state, Spacing::None));
                print_line(&format!("[{}]", states.collect::<Vec<_>>().join(",")))
            }
            Format::Table => print_table(&documents),
        }
    }

    pub(super) fn ps(&self, args: &mut Args) -> Result<()> {
        let format = Format::read(args)?;
        let container = self.load(args)?;
        let pids = container.pids()?;
        match format {
            Format::Json => print_line(&json!(pids).to_string()),
            Format::Table => print_processes(&pids, &args.rest()),
        }
    }

    pub(super) fn events(&self, args: &mut Args) -> Result<()> {
        let once = args.flag(&["--stats"]);
        let interval = args.value(&["--interval"]).map(|text| interval(&text)).transpose()?;
        let container = self.load(args)?;
        args.end()?;
        if once {
            return match container.status()? {
                Status::Stopped => Err(stopped(&container)),
                _ => print_stats(&container),
            };
        }
        let init = match PidFd::open(container.state().pid) {
            Ok(init) if container.state().is_alive()? => init,
            Ok(_) => return Err(stopped(&container)),
            Err(error) if error.is(ErrorKind::NotFound) => return Err(stopped(&container)),
            Err(error) => return Err(error),
        };
        // Without the memory controller there are no OOM events.
        let oom = container.cgroup()?.watch_oom().ok();
        follow(&container, &init, oom, interval.unwrap_or(INTERVAL_DEFAULT))
    }
}

fn stopped(container: &Container) -> Error {
    Error::failed_precondition(format!("container {} is not running: it has no events", container.id()))
}

/// Prints counters at each interval, and an event each time that memory runs out, until the container ends.
fn follow(container: &Container, init: &PidFd, mut oom: Option<OomWatch>, interval: Duration) -> Result<()> {
    let mut next = Instant::now() + interval;
    loop {
        let left = next.saturating_duration_since(Instant::now());
        let left =
            Timespec::try_from(left).map_err(|_| Error::invalid_argument("the interval is too long"))?;
        let mut waited = vec![PollFd::new(init, PollFlags::IN)];
        waited.extend(oom.as_ref().map(|oom| PollFd::new(oom, PollFlags::IN)));
        match poll(&mut waited, Some(&left)) {
            Err(Errno::INTR) => continue,
            other => other.map_err(std::io::Error::from).context(|| "wait for events")?,
        };
        let ended = !waited[0].revents().is_empty();
        if let Some(oom) = &mut oom {
            let happened = oom.take()?;
            for _ in 0..happened.events {
                print_line(&event("oom", container, None))?;
            }
        }
        if ended {
            return Ok(());
        }
        if Instant::now() >= next {
            print_stats(container)?;
            next += interval;
        }
    }
}

fn print_stats(container: &Container) -> Result<()> {
    let cpuset = container.cgroup()?.cpuset()?;
    let mut data = document::stats(&container.stats()?, &cpuset);
    if let Some(shares) = container.shares()? {
        data["intel_rdt"] = document::shares(&shares);
    }
    print_line(&event("stats", container, Some(&data)))
}

/// A line of `events`, its fields in runc's order: some scripts match on its beginning.
fn event(kind: &str, container: &Container, data: Option<&Value>) -> String {
    let (kind, id) = (json!(kind), json!(container.id()));
    let data = data.map(|data| format!(",\"data\":{data}")).unwrap_or_default();
    format!("{{\"type\":{kind},\"id\":{id}{data}}}")
}

enum Format {
    Table,
    Json,
}

impl Format {
    fn read(args: &mut Args) -> Result<Format> {
        match args.value(&["-f", "--format"]).as_deref() {
            None | Some("" | "table") => Ok(Format::Table),
            Some("json") => Ok(Format::Json),
            Some(other) => {
                Err(Error::invalid_argument(format!("--format {other:?}: json and table are known")))
            }
        }
    }
}

fn print_table(documents: &[Value]) -> Result<()> {
    const COLUMNS: [&str; 6] = ["id", "pid", "status", "bundle", "created", "owner"];
    let heading = COLUMNS.map(str::to_ascii_uppercase).to_vec();
    let rows = documents.iter().map(|document| {
        let text =
            |key: &str| document[key].as_str().map_or_else(|| document[key].to_string(), str::to_owned);
        COLUMNS.map(text).to_vec()
    });
    let rows: Vec<Vec<String>> = std::iter::once(heading).chain(rows).collect();
    for row in &rows {
        let mut line = String::new();
        for (column, cell) in row.iter().enumerate() {
            let width = rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
            line.push_str(&format!("{cell:<width$}", width = width.max(9) + 3));
        }
        print_line(line.trim_end())?;
    }
    Ok(())
}

/// Prints what ps(1) reports of these processes, with the caller's arguments.
fn print_processes(pids: &[u32], wishes: &[String]) -> Result<()> {
    let wishes = if wishes.is_empty() { &["-ef".to_owned()][..] } else { wishes };
    let what = || format!("run ps {}", wishes.join(" "));
    let output = match Command::new("ps").args(wishes).output() {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Err(Error::not_found("this host has no ps; ask with --format json"));
        }
        other => other.context(what)?,
    };
    if !output.status.success() {
        let words = String::from_utf8_lossy(&output.stderr);
        return Err(Error::invalid_argument(format!("{}: {}", what(), words.trim())));
    }
    let text = String::from_utf8_lossy(&output.stdout);
    rows_of(&text, pids)?.into_iter().try_for_each(print_line)
}

/// The heading, and the rows of these processes.
fn rows_of<'a>(text: &'a str, pids: &[u32]) -> Result<Vec<&'a str>> {
    let mut lines = text.lines();
    let heading = lines.next().unwrap_or_default();
    let column = heading.split_whitespace().position(|name| name == "PID");
    let column = column.ok_or_else(|| Error::invalid_argument("ps prints no column PID; ask for it"))?;
    let is_ours = |line: &&str| {
        let pid = line.split_whitespace().nth(column).and_then(|pid| pid.parse().ok());
        pid.is_some_and(|pid: u32| pids.contains(&pid))
    };
    Ok(std::iter::once(heading).chain(lines.filter(is_ours)).collect())
}

/// An interval in Go's notation: `5s`, `1m30s`, `250ms`.
fn interval(text: &str) -> Result<Duration> {
    stdx::duration(text).filter(|interval| !interval.is_zero()).ok_or_else(|| {
        Error::invalid_argument(format!("--interval {text:?}: expected a time such as 5s, 250ms or 1m30s"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interval_is_a_time_and_not_nothing() {
        let millis = |text: &str| interval(text).map(|interval| interval.as_millis()).ok();
        assert_eq!(millis("5s"), Some(5000));
        assert_eq!(millis("1m30s"), Some(90_000));
        assert_eq!(millis("1.5s"), Some(1500));
        assert_eq!(millis("250ms"), Some(250));
        for wrong in ["", "5", "s", "0", "0s", "5x", "1..2s", "-1s"] {
            assert_eq!(millis(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn rows_of_the_container_are_picked() {
        let text = "UID    PID CMD\nroot   1 init\nroot  12 sleep 7\n";
        assert_eq!(rows_of(text, &[12, 7]).unwrap(), ["UID    PID CMD", "root  12 sleep 7"]);
        assert!(rows_of("CMD\ninit\n", &[1]).is_err());
    }
}
