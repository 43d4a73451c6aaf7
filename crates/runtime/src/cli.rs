//! `runc`'s command line: the same commands, flags, outputs and exit codes, so that programs that drive
//! runc (shims, podman, dockerd, BuildKit) do not notice the change.
//!
//! The arguments are read by hand: the shim links this crate and must stay small.

mod args;
mod console;
mod document;

use std::ffi::OsString;
use std::fs;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use linux::process::ExitStatus;
use types::spec::runtime::{LinuxResources, Process, Spec};
use types::{Context, Error, Result, Timestamp};

use self::args::Args;
use crate::channel::send_with_fd;
use crate::{Container, CreateOptions, ExecOptions, Stdio};

const USAGE: &str = "\
usage: runtime [--root DIR] [--log FILE] [--log-format text|json] [--systemd-cgroup] COMMAND

  create [-b BUNDLE] [--console-socket PATH] [--pid-file PATH] [--no-pivot] [--no-new-keyring] [--preserve-fds N] ID
  run    [-d] and the flags of create, ID
  start ID
  exec   [-d] [-t] [-p PROCESS.JSON] [-u UID[:GID]] [-e K=V] [--cwd DIR] [--console-socket PATH] [--pid-file PATH] ID COMMAND…
  kill   [-a] ID [SIGNAL]
  delete [-f] ID
  state ID | list [-q] [-f json|table] | ps [-f json|table] ID
  pause ID | resume ID
  update [-r RESOURCES.JSON|-] [--memory N] [--memory-swap N] [--cpu-quota N] [--cpu-period N] [--cpu-share N] [--pids-limit N] ID
  events --stats ID
  spec | features | --version";

/// The runc that callers of that name are told they have.
const RUNC_LEVEL: &str = "1.3.0";

/// Runs one command. `args[0]` is the program's name.
pub fn main(args: Vec<OsString>) -> ExitCode {
    let called = args.first().map(Path::new).and_then(Path::file_name).map(OsString::from);
    let mut args = Args::new(args);
    let log = Log {
        path: args.value(&["--log"]),
        is_json: args.value(&["--log-format"]).as_deref() == Some("json"),
    };
    match run(called.as_deref() == Some("runc".as_ref()), &mut args, &log) {
        Ok(code) => code,
        Err(error) => {
            log.error(&error);
            eprintln!("{}", error.chain());
            ExitCode::FAILURE
        }
    }
}

/// Where `--log` points to. The shim reads the last error from there.
struct Log {
    path: Option<String>,
    is_json: bool,
}

impl Log {
    fn error(&self, error: &Error) {
        self.line("error", &error.chain());
    }

    fn warning(&self, words: &str) {
        if self.path.is_none() {
            eprintln!("warning: {words}");
        }
        self.line("warning", words);
    }

    fn line(&self, level: &str, words: &str) {
        let Some(path) = &self.path else { return };
        let time = Timestamp::now().to_string();
        let line = if self.is_json {
            serde_json::json!({"level": level, "msg": words, "time": time}).to_string()
        } else {
            format!("time={time:?} level={level} msg={words:?}")
        };
        // The error also goes to standard error; a log that cannot be written has no other reader.
        if let Ok(mut file) = fs::File::options().create(true).append(true).open(path) {
            let _ = writeln!(file, "{line}");
        }
    }
}

fn run(called_runc: bool, args: &mut Args, log: &Log) -> Result<ExitCode> {
    let root = args.value(&["--root"]).map_or_else(|| PathBuf::from("/run/hoist/runtime"), PathBuf::from);
    let systemd_cgroup = args.flag(&["--systemd-cgroup"]);
    // Accepted for runc's sake: rootless mode and criu's place are found out by themselves.
    args.flag(&["--debug"]);
    args.value(&["--rootless"]);
    args.value(&["--criu"]);
    if args.flag(&["-v", "--version"]) {
        let (own, spec) = (env!("CARGO_PKG_VERSION"), types::spec::runtime::VERSION);
        if called_runc {
            // Programs that drive runc read its version from this line: the one whose behaviour is ours.
            println!("runc version {RUNC_LEVEL}+hoist.{own}\nspec: {spec}");
        } else {
            println!("hoist runtime {own}\nspec: {spec}");
        }
        return Ok(ExitCode::SUCCESS);
    }
    if args.flag(&["-h", "--help"]) {
        println!("{USAGE}");
        return Ok(ExitCode::SUCCESS);
    }
    let command = args.word().ok_or_else(|| Error::invalid_argument(format!("no command\n{USAGE}")))?;
    let context = Cli { root, systemd_cgroup, log };
    let outcome = match command.as_str() {
        "create" => context.create(args),
        "run" => return context.run(args),
        "start" => context.load(args)?.start(),
        "exec" => return context.exec(args),
        "kill" => context.kill(args),
        "delete" => context.delete(args),
        "state" => context.state(args),
        "list" => context.list(args),
        "ps" => context.ps(args),
        "pause" => context.load(args)?.pause(),
        "resume" => context.load(args)?.resume(),
        "update" => context.update(args),
        "events" => context.events(args),
        "spec" => spec(args),
        "features" => print_json(&document::features()),
        "checkpoint" | "restore" => {
            Err(Error::unimplemented(format!("{command}: containers cannot be checkpointed yet")))
        }
        "help" => {
            println!("{USAGE}");
            Ok(())
        }
        other => Err(Error::invalid_argument(format!("unknown command {other:?}\n{USAGE}"))),
    };
    outcome.map(|()| ExitCode::SUCCESS)
}

struct Cli<'a> {
    root: PathBuf,
    systemd_cgroup: bool,
    log: &'a Log,
}

/// Flags that create and run share.
struct Birth {
    bundle: PathBuf,
    console_socket: Option<String>,
    pid_file: Option<String>,
    no_pivot: bool,
    no_new_keyring: bool,
    preserve_fds: u32,
    id: String,
}

impl Birth {
    fn read(args: &mut Args) -> Result<Birth> {
        Ok(Birth {
            bundle: args.value(&["-b", "--bundle"]).map_or_else(|| PathBuf::from("."), PathBuf::from),
            console_socket: args.value(&["--console-socket"]).filter(|path| !path.is_empty()),
            pid_file: args.value(&["--pid-file"]).filter(|path| !path.is_empty()),
            no_pivot: args.flag(&["--no-pivot"]),
            no_new_keyring: args.flag(&["--no-new-keyring"]),
            preserve_fds: args.number(&["--preserve-fds"])?.unwrap_or(0),
            id: args.id()?,
        })
    }

    fn options<'a>(&'a self, cli: &'a Cli<'_>, stdio: Stdio) -> CreateOptions<'a> {
        CreateOptions {
            id: &self.id,
            bundle: &self.bundle,
            state_root: &cli.root,
            stdio,
            systemd_cgroup: cli.systemd_cgroup,
            no_pivot: self.no_pivot,
            no_new_keyring: self.no_new_keyring,
            preserve_fds: self.preserve_fds,
        }
    }
}

impl Cli<'_> {
    fn load(&self, args: &mut Args) -> Result<Container> {
        Container::load(&self.root, &args.id()?)
    }

    fn create(&self, args: &mut Args) -> Result<()> {
        let birth = Birth::read(args)?;
        args.end()?;
        self.give_birth(&birth, false).map(drop)
    }

    /// Creates, hands the terminal on, writes the pid file. `foreground` keeps the terminal.
    fn give_birth(&self, birth: &Birth, foreground: bool) -> Result<crate::Created> {
        let terminal = read_terminal(&birth.bundle)?;
        if terminal && birth.console_socket.is_none() && !foreground {
            return Err(Error::invalid_argument(
                "process.terminal needs --console-socket for a detached container",
            ));
        }
        let stdio = if terminal { Stdio::Terminal { size: None } } else { Stdio::Inherit };
        let mut created = Container::create(birth.options(self, stdio))?;
        for words in &created.warnings {
            self.log.warning(words);
        }
        let hand_over = || -> Result<()> {
            if let (Some(master), Some(socket)) = (&created.console, &birth.console_socket) {
                send_console(socket, master.as_fd())?;
            }
            birth.pid_file.as_ref().map_or(Ok(()), |path| write_pid(path, created.pid))
        };
        if let Err(error) = hand_over() {
            // Nobody knows of the container yet.
            created.container.delete(true)?;
            return Err(error);
        }
        if birth.console_socket.is_some() {
            created.console = None;
        }
        Ok(created)
    }

    fn run(&self, args: &mut Args) -> Result<ExitCode> {
        let detach = args.flag(&["-d", "--detach"]);
        args.flag(&["--keep"]);
        let birth = Birth::read(args)?;
        args.end()?;
        let created = self.give_birth(&birth, !detach)?;
        if let Err(error) = created.container.start() {
            created.container.delete(true)?;
            return Err(error);
        }
        if detach {
            return Ok(ExitCode::SUCCESS);
        }
        let status = console::attend(created.console, &created.pidfd)?;
        created.container.delete(true)?;
        Ok(exit_code(status))
    }

    fn exec(&self, args: &mut Args) -> Result<ExitCode> {
        let detach = args.flag(&["-d", "--detach"]);
        let tty = args.flag(&["-t", "--tty"]);
        let process_file = args.value(&["-p", "--process"]).filter(|path| !path.is_empty());
        let console_socket = args.value(&["--console-socket"]).filter(|path| !path.is_empty());
        let pid_file = args.value(&["--pid-file"]).filter(|path| !path.is_empty());
        let preserve_fds = args.number(&["--preserve-fds"])?.unwrap_or(0);
        let changes = Changes::read(args)?;
        let container = self.load(args)?;
        let mut process = match process_file {
            Some(path) => read_process(&path)?,
            None => changes.apply(container.spec()?, args.rest())?,
        };
        process.terminal |= tty;
        if process.terminal && detach && console_socket.is_none() {
            return Err(Error::invalid_argument("a terminal needs --console-socket for a detached process"));
        }
        let stdio = if process.terminal { Stdio::Terminal { size: None } } else { Stdio::Inherit };
        let exec = container.exec(&process, ExecOptions { stdio, preserve_fds })?;
        for words in &exec.warnings {
            self.log.warning(words);
        }
        if let Some(path) = pid_file {
            write_pid(&path, exec.pid)?;
        }
        let mut console = exec.console;
        if let (Some(master), Some(socket)) = (&console, &console_socket) {
            send_console(socket, master.as_fd())?;
            console = None;
        }
        if detach {
            return Ok(ExitCode::SUCCESS);
        }
        console::attend(console, &exec.pidfd).map(exit_code)
    }

    fn kill(&self, args: &mut Args) -> Result<()> {
        let all = args.flag(&["-a", "--all"]);
        let container = self.load(args)?;
        let signal = args.word().map_or(Ok(15), |word| signal_number(&word))?;
        args.end()?;
        container.kill(signal, all)
    }

    fn delete(&self, args: &mut Args) -> Result<()> {
        let force = args.flag(&["-f", "--force"]);
        let id = args.id()?;
        args.end()?;
        match Container::load(&self.root, &id) {
            Ok(container) => {
                for error in container.delete(force)? {
                    self.log.warning(&error.chain());
                }
                Ok(())
            }
            Err(error) if error.is(types::ErrorKind::NotFound) && force => Ok(()),
            Err(error) if error.is(types::ErrorKind::FailedPrecondition) => {
                Container::remove_unfinished(&self.root, &id)
            }
            Err(error) => Err(error),
        }
    }

    fn state(&self, args: &mut Args) -> Result<()> {
        let container = self.load(args)?;
        args.end()?;
        print_json(&container.state().document(container.status()?))
    }

    fn list(&self, args: &mut Args) -> Result<()> {
        let quiet = args.flag(&["-q", "--quiet"]);
        let format = args.value(&["-f", "--format"]);
        args.end()?;
        let ids = Container::list(&self.root)?;
        if quiet {
            ids.iter().for_each(|id| println!("{id}"));
            return Ok(());
        }
        let mut documents = Vec::new();
        for id in &ids {
            // One that is being made or deleted in this moment is not listed.
            let Ok(container) = Container::load(&self.root, id) else { continue };
            let Ok(status) = container.status() else { continue };
            documents.push(container.state().document(status));
        }
        if format.as_deref() == Some("json") {
            return print_json(&serde_json::Value::Array(documents));
        }
        println!("{:<28} {:<10} {:<10} {:<32} CREATED", "ID", "PID", "STATUS", "BUNDLE");
        for document in documents {
            let text =
                |key: &str| document[key].as_str().map_or_else(|| document[key].to_string(), str::to_owned);
            println!(
                "{:<28} {:<10} {:<10} {:<32} {}",
                text("id"),
                text("pid"),
                text("status"),
                text("bundle"),
                text("created")
            );
        }
        Ok(())
    }

    fn ps(&self, args: &mut Args) -> Result<()> {
        let format = args.value(&["-f", "--format"]);
        let container = self.load(args)?;
        let pids = container.pids()?;
        if format.as_deref() == Some("json") {
            return print_json(&serde_json::json!(pids));
        }
        println!("{:<10} CMD", "PID");
        for pid in pids {
            let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            println!("{pid:<10} {}", String::from_utf8_lossy(&command).replace('\0', " "));
        }
        Ok(())
    }

    fn update(&self, args: &mut Args) -> Result<()> {
        let file = args.value(&["-r", "--resources"]);
        let mut resources = match file.as_deref() {
            Some("-") => read_resources(io::stdin(), "standard input")?,
            Some(path) => read_resources(fs::File::open(path).context(|| format!("open {path}"))?, path)?,
            None => LinuxResources::default(),
        };
        document::limits_from_flags(args, &mut resources)?;
        let container = self.load(args)?;
        args.end()?;
        container.update(&resources)
    }

    fn events(&self, args: &mut Args) -> Result<()> {
        if !args.flag(&["--stats"]) {
            return Err(Error::unimplemented(
                "events without --stats: a stream of events; ask with --stats again and again",
            ));
        }
        let container = self.load(args)?;
        args.end()?;
        let cpuset = container.cgroup()?.cpuset()?;
        print_json(&document::stats(container.id(), &container.stats()?, &cpuset))
    }
}

/// Flags of exec that change the first process's description.
struct Changes {
    user: Option<String>,
    environment: Vec<String>,
    cwd: Option<String>,
    additional_gids: Vec<String>,
    capabilities: Vec<String>,
    no_new_privileges: bool,
    apparmor: Option<String>,
}

impl Changes {
    fn read(args: &mut Args) -> Result<Changes> {
        let changes = Changes {
            user: args.value(&["-u", "--user"]),
            environment: args.values(&["-e", "--env"]),
            cwd: args.value(&["--cwd"]),
            additional_gids: args.values(&["-g", "--additional-gids"]),
            capabilities: args.values(&["-c", "--cap"]),
            no_new_privileges: args.flag(&["--no-new-privs"]),
            apparmor: args.value(&["--apparmor"]),
        };
        args.flag(&["--ignore-paused"]);
        Ok(changes)
    }

    fn apply(self, spec: Spec, command: Vec<String>) -> Result<Process> {
        let mut process = spec.process.unwrap_or_default();
        process.args = command;
        process.terminal = false;
        process.env.extend(self.environment);
        if let Some(cwd) = self.cwd {
            process.cwd = cwd;
        }
        let number = |text: &str| {
            text.parse::<u32>().map_err(|_| Error::invalid_argument(format!("{text:?} is not a numeric id")))
        };
        if let Some(user) = self.user {
            let (uid, gid) = user.split_once(':').unwrap_or((&user, "0"));
            (process.user.uid, process.user.gid) = (number(uid)?, number(gid)?);
        }
        for gid in &self.additional_gids {
            process.user.additional_gids.push(number(gid)?);
        }
        if !self.capabilities.is_empty() {
            let sets = process.capabilities.get_or_insert_default();
            for set in [&mut sets.bounding, &mut sets.effective, &mut sets.permitted] {
                set.extend(self.capabilities.iter().cloned());
            }
        }
        process.no_new_privileges |= self.no_new_privileges;
        if let Some(profile) = self.apparmor {
            process.apparmor_profile = profile;
        }
        Ok(process)
    }
}

fn spec(args: &mut Args) -> Result<()> {
    let folder = args.value(&["-b", "--bundle"]).unwrap_or_else(|| ".".into());
    args.end()?;
    let path = Path::new(&folder).join("config.json");
    if path.exists() {
        return Err(Error::already_exists(format!("{} exists; remove it first", path.display())));
    }
    let text =
        serde_json::to_string_pretty(&document::default_spec()).expect("a spec has only strings and numbers");
    fs::write(&path, text).context(|| format!("write {}", path.display()))
}

fn read_terminal(bundle: &Path) -> Result<bool> {
    let spec = crate::plan::read_spec(bundle)?;
    Ok(spec.process.is_some_and(|process| process.terminal))
}

fn read_process(path: &str) -> Result<Process> {
    let bytes = fs::read(path).context(|| format!("read {path}"))?;
    serde_json::from_slice(&bytes)
        .map_err(|error| Error::invalid_argument(format!("read {path}")).with_source(error))
}

fn read_resources(mut from: impl Read, name: &str) -> Result<LinuxResources> {
    let mut text = String::new();
    from.read_to_string(&mut text).context(|| format!("read {name}"))?;
    serde_json::from_str(&text)
        .map_err(|error| Error::invalid_argument(format!("read {name}")).with_source(error))
}

fn send_console(socket: &str, master: std::os::fd::BorrowedFd<'_>) -> Result<()> {
    let stream = UnixStream::connect(socket).context(|| format!("connect to console socket {socket}"))?;
    send_with_fd(stream.as_fd(), b"/dev/ptmx", master).context(|| format!("send the terminal to {socket}"))
}

/// Written whole: whoever waits for the file finds a pid in it.
fn write_pid(path: &str, pid: u32) -> Result<()> {
    let draft = format!("{path}.draft");
    fs::write(&draft, pid.to_string()).context(|| format!("write {draft}"))?;
    fs::rename(&draft, path).context(|| format!("write {path}"))
}

fn signal_number(word: &str) -> Result<u32> {
    const NAMES: [&str; 31] = [
        "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2", "PIPE",
        "ALRM", "TERM", "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG", "XCPU", "XFSZ",
        "VTALRM", "PROF", "WINCH", "IO", "PWR", "SYS",
    ];
    if let Ok(number @ 0..=64) = word.parse() {
        return Ok(number);
    }
    let upper = word.to_ascii_uppercase();
    let bare = upper.strip_prefix("SIG").unwrap_or(&upper);
    let found = (1..).zip(NAMES).find(|(_, name)| *name == bare).map(|(number, _)| number);
    found.ok_or_else(|| Error::invalid_argument(format!("unknown signal {word:?}")))
}

fn exit_code(status: ExitStatus) -> ExitCode {
    ExitCode::from(u8::try_from(status.code()).unwrap_or(255))
}

fn print_json(value: &serde_json::Value) -> Result<()> {
    let text = serde_json::to_string_pretty(value).expect("values can be written");
    writeln!(io::stdout(), "{text}").context(|| "write to standard output")
}
