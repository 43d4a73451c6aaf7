//! `top`: the processes of a container in the format of ps(1), read from the host's `/proc`.
//!
//! Runs nothing in the container, so that it works for images without `ps` and for containers that cannot start another
//! process.

use std::collections::BTreeMap;
use std::fs;

use serde_json::{Value, json};
use types::{Context, Error, Result, Timestamp};

use crate::Engine;

/// The columns of ps(1) with `-ef` and with `aux`.
const FULL: &str = "uid,pid,ppid,c,stime,tty,time,cmd";
const BSD: &str = "user,pid,%cpu,%mem,vsz,rss,tty,stat,start,bsdtime,command";

/// A column: its keyword in ps(1), its title, and its value.
type Column = (&'static str, &'static str, fn(&Process, &Machine) -> String);

const COLUMNS: &[Column] = &[
    ("uid", "UID", |process, machine| machine.user(process.uid)),
    ("user", "USER", |process, machine| machine.user(process.uid)),
    ("gid", "GID", |process, _| process.gid.to_string()),
    ("pid", "PID", |process, _| process.pid.to_string()),
    ("ppid", "PPID", |process, _| process.ppid.to_string()),
    ("pgid", "PGID", |process, _| process.group.to_string()),
    ("sid", "SID", |process, _| process.session.to_string()),
    ("c", "C", |process, machine| format!("{:.0}", process.cpu_percent(machine))),
    ("%cpu", "%CPU", |process, machine| format!("{:.1}", process.cpu_percent(machine))),
    ("%mem", "%MEM", |process, machine| {
        format!("{:.1}", process.rss as f64 * 100.0 / machine.memory.max(1) as f64)
    }),
    ("vsz", "VSZ", |process, _| (process.vsz / 1024).to_string()),
    ("rss", "RSS", |process, _| (process.rss / 1024).to_string()),
    ("tty", "TTY", |process, _| process.terminal()),
    ("stat", "STAT", |process, _| process.state.clone()),
    ("ni", "NI", |process, _| process.nice.to_string()),
    ("nlwp", "NLWP", |process, _| process.threads.to_string()),
    ("stime", "STIME", |process, machine| process.start(machine)),
    ("start", "START", |process, machine| process.start(machine)),
    ("etime", "ELAPSED", |process, machine| clock(process.elapsed(machine), false)),
    ("time", "TIME", |process, machine| clock(process.cpu_seconds(machine), true)),
    ("bsdtime", "TIME", |process, machine| {
        let seconds = process.cpu_seconds(machine);
        format!("{}:{:02}", seconds / 60, seconds % 60)
    }),
    ("comm", "COMMAND", |process, _| process.name.clone()),
    ("cmd", "CMD", |process, _| process.command.clone()),
    ("command", "COMMAND", |process, _| process.command.clone()),
];

/// Other keywords of ps(1) for the same columns.
const ALIASES: &[(&str, &str)] = &[
    ("args", "command"),
    ("pcpu", "%cpu"),
    ("pmem", "%mem"),
    ("tt", "tty"),
    ("s", "stat"),
    ("state", "stat"),
    ("nice", "ni"),
    ("ucmd", "comm"),
    ("euid", "uid"),
    ("euser", "user"),
    ("ruser", "user"),
    ("uname", "user"),
    ("vsize", "vsz"),
    ("rssize", "rss"),
    ("lstart", "start"),
    ("cputime", "time"),
    ("thcount", "nlwp"),
];

impl Engine {
    pub(crate) async fn top(&self, text: &str, options: &[String]) -> Result<Value> {
        let columns = columns(options)?;
        let text = text.to_owned();
        let container = self.blocking(move |engine| engine.find(&text)).await?;
        let pids = self.running(&container.id)?.pids().await?;
        let (titles, rows) = self
            .blocking(move |_| {
                let machine = Machine::look()?;
                let mut rows = Vec::new();
                for pid in pids {
                    // Skips a process that has ended, or another that reuses its pid.
                    let Some(process) = Process::read(pid.pid, container.id.as_str()) else { continue };
                    rows.push(
                        columns.iter().map(|(_, _, show)| show(&process, &machine)).collect::<Vec<_>>(),
                    );
                }
                Ok((columns.iter().map(|(_, title, _)| *title).collect::<Vec<_>>(), rows))
            })
            .await?;
        Ok(json!({"Titles": titles, "Processes": rows}))
    }
}

/// The columns that options of ps(1) select.
fn columns(options: &[String]) -> Result<Vec<Column>> {
    let mut list = None;
    let mut options = options.iter().map(String::as_str).peekable();
    while let Some(option) = options.next() {
        let word = option.trim_start_matches('-');
        if let Some(own) = word.strip_prefix("format=").or(word.strip_prefix("format")) {
            list = Some(if own.is_empty() { options.next().unwrap_or_default() } else { own }.to_owned());
        } else if let Some((before, own)) = word.split_once('o').filter(|(before, _)| selects(before)) {
            list = Some(if own.is_empty() { options.next().unwrap_or_default() } else { own }.to_owned());
            let _ = before;
        } else if word.contains('f') && selects(&word.replace('f', "")) {
            list = Some(FULL.to_owned());
        } else if word.contains('u') && selects(&word.replace('u', "")) {
            list = Some(BSD.to_owned());
        } else if !selects(word) {
            return Err(unknown(option));
        }
    }
    let list = list.unwrap_or_else(|| FULL.to_owned());
    let find = |name: &str| {
        let name = name.trim().to_ascii_lowercase();
        let own = ALIASES.iter().find(|(alias, _)| *alias == name).map_or(name.as_str(), |(_, own)| own);
        COLUMNS.iter().find(|(column, ..)| *column == own).copied().ok_or_else(|| unknown(&name))
    };
    list.split(',').map(find).collect()
}

/// Whether options of ps(1) only select processes: `top` shows all of the container's.
fn selects(letters: &str) -> bool {
    letters.bytes().all(|letter| b"eAaxw".contains(&letter))
}

fn unknown(word: &str) -> Error {
    let known = COLUMNS.iter().map(|(column, ..)| *column).collect::<Vec<_>>().join(", ");
    Error::invalid_argument(format!(
        "top does not know {word:?}: it takes -ef, aux, or -o with columns, of which there are {known}"
    ))
}

/// Facts about the host that a process's values relate to.
struct Machine {
    /// Uptime, and boot time since the epoch, in seconds.
    uptime: u64,
    booted: u64,
    ticks: u64,
    memory: u64,
    users: BTreeMap<u32, String>,
}

impl Machine {
    fn look() -> Result<Machine> {
        let read = |path: &str| fs::read_to_string(path).context(|| format!("read {path}"));
        let number = |text: Option<&str>| text.and_then(|text| text.parse().ok()).unwrap_or(0);
        let uptime = number(read("/proc/uptime")?.split('.').next());
        let stat = read("/proc/stat")?;
        let booted = number(stat.lines().find_map(|line| line.strip_prefix("btime ")));
        let memory = read("/proc/meminfo")?;
        let total = memory.lines().find_map(|line| line.strip_prefix("MemTotal:")?.split_whitespace().next());
        // Users as ps(1) on this host would show them.
        let users = fs::read_to_string("/etc/passwd").unwrap_or_default();
        let users = users.lines().filter_map(|line| {
            let fields: Vec<&str> = line.split(':').collect();
            Some((fields.get(2)?.parse().ok()?, (*fields.first()?).to_owned()))
        });
        let ticks = rustix::param::clock_ticks_per_second();
        let memory = number(total) * 1024;
        Ok(Machine { uptime, booted, ticks: ticks.max(1), memory, users: users.collect() })
    }

    fn user(&self, uid: u32) -> String {
        self.users.get(&uid).cloned().unwrap_or_else(|| uid.to_string())
    }
}

/// A process's fields of proc_pid_stat(5).
#[derive(Debug, Default)]
struct Process {
    pid: u32,
    ppid: u32,
    group: i64,
    session: i64,
    uid: u32,
    gid: u32,
    name: String,
    command: String,
    state: String,
    terminal: u64,
    cpu_ticks: u64,
    started_ticks: u64,
    nice: i64,
    threads: u64,
    vsz: u64,
    rss: u64,
}

impl Process {
    /// `None` if the process does not exist or is not in the container's cgroup.
    fn read(pid: u32, container: &str) -> Option<Process> {
        let read = |name: &str| fs::read(format!("/proc/{pid}/{name}")).ok();
        let stat = Process::parse(&String::from_utf8_lossy(&read("stat")?))?;
        let status = String::from_utf8_lossy(&read("status")?).into_owned();
        let id = |key: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(key))?;
            line.split_whitespace().nth(1)?.parse().ok()
        };
        let command = read("cmdline")?;
        let command = String::from_utf8_lossy(&command).trim_end_matches('\0').replace('\0', " ");
        let command = if command.is_empty() { format!("[{}]", stat.name) } else { command };
        let is_in = String::from_utf8_lossy(&read("cgroup")?).contains(container);
        is_in.then(|| Process {
            pid,
            uid: id("Uid:").unwrap_or(0),
            gid: id("Gid:").unwrap_or(0),
            command: printable(&command),
            ..stat
        })
    }

    fn parse(stat: &str) -> Option<Process> {
        // The name may contain anything, even parentheses.
        let (front, rest) = stat.rsplit_once(')')?;
        let name = front.split_once('(')?.1;
        let fields: Vec<&str> = rest.split_whitespace().collect();
        let number = |at: usize| fields.get(at).and_then(|text| text.parse::<i64>().ok()).unwrap_or(0);
        let positive = |at: usize| u64::try_from(number(at)).unwrap_or(0);
        Some(Process {
            name: printable(name),
            state: (*fields.first()?).to_owned(),
            ppid: u32::try_from(number(1)).unwrap_or(0),
            group: number(2),
            session: number(3),
            terminal: positive(4),
            cpu_ticks: positive(11) + positive(12),
            nice: number(16),
            threads: positive(17),
            started_ticks: positive(19),
            vsz: positive(20),
            rss: positive(21) * rustix::param::page_size() as u64,
            ..Process::default()
        })
    }

    fn elapsed(&self, machine: &Machine) -> u64 {
        machine.uptime.saturating_sub(self.started_ticks / machine.ticks)
    }

    fn cpu_seconds(&self, machine: &Machine) -> u64 {
        self.cpu_ticks / machine.ticks
    }

    fn cpu_percent(&self, machine: &Machine) -> f64 {
        let elapsed = self.elapsed(machine).max(1);
        (self.cpu_ticks as f64 * 100.0 / machine.ticks as f64 / elapsed as f64).min(99.9)
    }

    /// `pts/1`, or `?` without a terminal.
    fn terminal(&self) -> String {
        let (major, minor) =
            (self.terminal >> 8 & 0xfff, self.terminal & 0xff | self.terminal >> 12 & 0xfff00);
        match major {
            136..144 => format!("pts/{}", minor + (major - 136) * 256),
            4 => format!("tty{minor}"),
            _ => "?".to_owned(),
        }
    }

    /// Start time in UTC: the time of day, or the date if more than a day ago.
    fn start(&self, machine: &Machine) -> String {
        let seconds = machine.booted + self.started_ticks / machine.ticks;
        let time = Timestamp { seconds: i64::try_from(seconds).unwrap_or(0), nanos: 0 }.to_string();
        if self.elapsed(machine) < 86_400 { time[11..16].to_owned() } else { time[5..10].to_owned() }
    }
}

/// `[DD-]HH:MM:SS`; the hours are optional.
fn clock(seconds: u64, has_hours: bool) -> String {
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60);
    let rest = format!("{minutes:02}:{:02}", seconds % 60);
    match (days, hours) {
        (0, 0) if !has_hours => rest,
        (0, _) => format!("{hours:02}:{rest}"),
        _ => format!("{days}-{hours:02}:{rest}"),
    }
}

/// Replaces control characters: a container chooses the names of its processes, and must not control the user's
/// terminal.
fn printable(text: &str) -> String {
    text.chars().map(|letter| if letter.is_control() { '?' } else { letter }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_of_ps_choose_columns() {
        let titles = |options: &[&str]| {
            let options: Vec<String> = options.iter().map(ToString::to_string).collect();
            let columns = columns(&options)?;
            Ok::<_, Error>(columns.iter().map(|(_, title, _)| *title).collect::<Vec<_>>().join(" "))
        };
        let full = "UID PID PPID C STIME TTY TIME CMD";
        assert_eq!(titles(&[]).unwrap(), full);
        assert_eq!(titles(&["-ef"]).unwrap(), full);
        assert_eq!(titles(&["aux"]).unwrap(), "USER PID %CPU %MEM VSZ RSS TTY STAT START TIME COMMAND");
        assert_eq!(titles(&["-o", "pid,comm"]).unwrap(), "PID COMMAND");
        assert_eq!(titles(&["-eo", "pid,args"]).unwrap(), "PID COMMAND");
        assert_eq!(titles(&["-opid,pcpu"]).unwrap(), "PID %CPU");
        assert_eq!(titles(&["-e", "--format=etime"]).unwrap(), "ELAPSED");
        for wrong in ["-Z", "--forest", "-onosuch"] {
            assert!(titles(&[wrong]).unwrap_err().to_string().contains("-ef"), "{wrong}");
        }
    }

    #[test]
    fn a_name_may_have_anything_in_it() {
        let process =
            Process::parse("7 (a) b (\x1b[1m) S 1 7 7 34817 7 0 0 0 0 0 150 50 0 0 20 0 3 0 500 4096 2");
        let process = process.unwrap();
        assert_eq!((process.name.as_str(), process.state.as_str()), ("a) b (?[1m", "S"));
        assert_eq!(
            (process.ppid, process.cpu_ticks, process.threads, process.started_ticks),
            (1, 200, 3, 500)
        );
        assert_eq!(process.terminal(), "pts/1");
        assert!(Process::parse("7 no name").is_none());
        assert_eq!(
            (clock(3661, true), clock(61, false), clock(90_061, true)),
            ("01:01:01".into(), "01:01".into(), "1-01:01:01".into())
        );
    }
}
