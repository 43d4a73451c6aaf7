//! `runc`'s command line: the same commands, flags, outputs and exit codes, so that programs that drive
//! runc (shims, podman, dockerd, BuildKit) do not notice the change.
//!
//! The arguments are read by hand: the shim links this crate and must stay small.

mod activation;
mod args;
mod checkpoint;
mod create;
mod document;
mod exec;
mod features;
mod foreground;
mod help;
mod log;
mod query;

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use linux::cgroup::Instance;
use linux::idmap;
use linux::process::ExitStatus;
use linux::sealed;
use types::spec::runtime::LinuxResources;
use types::{Context, Error, ErrorKind, Result};

pub use self::features::features;

use self::activation::Readiness;
use self::args::Args;
use self::help::Help;
use self::log::{Log, report};
use crate::Container;

const SIGPIPE: i32 = 13;

/// runc's exit code of an exec that has no process to take one from.
const EXEC_FAILED: u8 = 255;

/// The version that is reported to callers of the name `runc`.
const RUNC_LEVEL: &str = "1.3.0";

/// Runs one command by a smaller program that holds this crate, whose bytes these are: it starts faster, and it is what
/// a container's first process executes until its own program. Where files in memory may not be executed
/// (`vm.memfd_noexec`), the calling program does the work itself.
pub fn main_in(program: &[u8], mut args: Vec<OsString>) -> ExitCode {
    if !is_runc(&args)
        && let Some(name) = args.first_mut()
    {
        *name = NAME.into();
    }
    let _cannot = sealed::execute_in_memory(program, &args);
    main(args)
}

/// Whether this program was called by one of the runtime's names.
pub fn is_called(args: &[OsString]) -> bool {
    is_runc(args) || called(args) == Some(NAME.as_ref())
}

/// The runtime's name as a program of its own.
const NAME: &str = "hoist-runtime";

fn is_runc(args: &[OsString]) -> bool {
    called(args) == Some("runc".as_ref())
}

fn called(args: &[OsString]) -> Option<&OsStr> {
    args.first().map(Path::new).and_then(Path::file_name)
}

/// Runs one command. `args[0]` is the program's name.
pub fn main(args: Vec<OsString>) -> ExitCode {
    let called_runc = is_runc(&args);
    // Before this process opens descriptors of its own.
    let inherited = inherited_descriptors();
    let mut args = Args::new(args);
    let log = match Log::read(&mut args) {
        Ok(log) => log,
        Err(error) => {
            report(&error.chain());
            return ExitCode::FAILURE;
        }
    };
    match run(called_runc, &mut args, &log, inherited) {
        Ok(code) => code,
        Err(error) => {
            log.error(&error);
            ExitCode::FAILURE
        }
    }
}

/// How many descriptors the caller left open, from 3 on without a gap.
fn inherited_descriptors() -> u32 {
    let is_open = |number: &u32| fs::symlink_metadata(format!("/proc/self/fd/{number}")).is_ok();
    (3..).take_while(is_open).fold(0, |count, _| count + 1)
}

fn run(called_runc: bool, args: &mut Args, log: &Log, inherited: u32) -> Result<ExitCode> {
    let named_root = args.value(&["--root"]).map(PathBuf::from);
    let systemd_cgroup = args.flag(&["--systemd-cgroup"]);
    // Accepted for compatibility with runc: rootless mode is detected, and criu is looked up in PATH.
    args.value(&["--rootless"]);
    args.value(&["--criu"]);
    if args.flag(&["-v", "--version"]) {
        print_version(called_runc)?;
        return Ok(ExitCode::SUCCESS);
    }
    let help = Help { program: if called_runc { "runc" } else { "hoist runtime" } };
    let wants_help = args.flag(&["-h", "--help"]);
    let Some(command) = args.word().filter(|word| word != "help") else {
        // `help exec` is as `exec --help`.
        let text = args.word().map_or_else(|| Ok(help.all()), |command| help_of(&help, &command))?;
        print_line(&text)?;
        return Ok(ExitCode::SUCCESS);
    };
    // In `exec` and `ps`, the words after the container's id belong to another program.
    if !matches!(command.as_str(), "exec" | "ps") {
        args.look_anywhere();
    }
    if wants_help | args.flag(&["-h", "--help"]) {
        print_line(&help_of(&help, &command)?)?;
        return Ok(ExitCode::SUCCESS);
    }
    // A program that enters a container must not be a file that the container can write to (CVE-2019-5736).
    if sealed::is_marked() || matches!(command.as_str(), "create" | "run" | "exec") {
        sealed::ensure()?;
    }
    let names_root = named_root.is_some();
    let root = named_root.unwrap_or_else(|| default_root(called_runc));
    let cli = Cli { root, names_root, systemd_cgroup, log, inherited };
    let outcome = match command.as_str() {
        "create" => cli.create(args),
        "run" => return cli.run(args),
        "start" => cli.start(args),
        "exec" => {
            return Ok(cli.exec(args).unwrap_or_else(|error| {
                log.error(&error);
                EXEC_FAILED.into()
            }));
        }
        "kill" => cli.kill(args),
        "delete" => cli.delete(args),
        "state" => cli.state(args),
        "list" => cli.list(args),
        "ps" => cli.ps(args),
        "pause" => cli.load_alone(args)?.pause(),
        "resume" => cli.load_alone(args)?.resume(),
        "update" => cli.update(args),
        "events" => cli.events(args),
        "spec" => spec(args, called_runc),
        "features" => args.end().and_then(|()| print_json(&features())),
        "checkpoint" => cli.checkpoint(args),
        "restore" => return cli.restore(args),
        other => {
            Err(Error::invalid_argument(format!("unknown command {other:?}; see {} --help", help.program)))
        }
    };
    outcome.map(|()| ExitCode::SUCCESS)
}

fn help_of(help: &Help<'_>, command: &str) -> Result<String> {
    let no_topic =
        || Error::invalid_argument(format!("No help topic for '{command}'; see {} --help", help.program));
    help.of(command).ok_or_else(no_topic)
}

fn print_version(called_runc: bool) -> Result<()> {
    let (own, spec) = (env!("CARGO_PKG_VERSION"), types::spec::runtime::VERSION);
    // Programs that drive runc parse its version from this line: the version whose behaviour this runtime has.
    let name = if called_runc {
        format!("runc version {RUNC_LEVEL}+hoist.{own}\ncommit: hoist-{own}")
    } else {
        format!("hoist runtime {own}")
    };
    print_line(&format!("{name}\nspec: {spec}"))
}

/// The default state root: in memory, and below the user's own directory if the user is not the host's root. The root
/// of a user namespace counts as the user who made it, as with rootless podman, unless `USER` says `root`. For callers
/// of the name `runc` it is runc's.
fn default_root(called_runc: bool) -> PathBuf {
    let name = if called_runc { "runc" } else { "hoist/runtime" };
    let own = std::env::var_os("XDG_RUNTIME_DIR").filter(|dir| !dir.is_empty());
    let is_user = || {
        !rustix::process::geteuid().is_root()
            || idmap::in_user_namespace() && std::env::var_os("USER").is_none_or(|user| user != "root")
    };
    let own = own.filter(|_| is_user());
    own.map_or_else(|| PathBuf::from("/run"), PathBuf::from).join(name)
}

struct Cli<'a> {
    root: PathBuf,
    /// The caller passed `--root`.
    names_root: bool,
    systemd_cgroup: bool,
    log: &'a Log,
    /// How many descriptors the caller left open, from 3 on.
    inherited: u32,
}

impl Cli<'_> {
    /// The systemd instance that makes cgroups, with `--systemd-cgroup`.
    fn systemd(&self) -> Result<Option<Instance>> {
        let ask = || Instance::of_caller(|variable| std::env::var_os(variable));
        self.systemd_cgroup.then(ask).transpose().context(|| "--systemd-cgroup")
    }

    /// How many descriptors the container's program inherits: those of `--preserve-fds` and `sockets`. All must be the
    /// caller's: otherwise a descriptor of this process would go to the program under a missing one's number
    /// (CVE-2024-21626).
    fn preserve(&self, named: u32, sockets: u32) -> Result<u32> {
        let wanted = named.saturating_add(sockets);
        if wanted > self.inherited {
            return Err(Error::invalid_argument(format!(
                "{wanted} descriptors are to go to the program (--preserve-fds {named}, LISTEN_FDS {sockets}), but \
                 descriptor {} is not open",
                3 + self.inherited
            )));
        }
        Ok(wanted)
    }

    fn load(&self, args: &mut Args) -> Result<Container> {
        Container::load(&self.root, &args.id()?).map(|container| container.with_steps(self.log.steps()))
    }

    /// The container of a command that has no other argument.
    fn load_alone(&self, args: &mut Args) -> Result<Container> {
        let container = self.load(args)?;
        args.end().map(|()| container)
    }

    fn start(&self, args: &mut Args) -> Result<()> {
        let container = self.load_alone(args)?;
        let readiness = Readiness::listen(&container)?;
        let program = readiness.as_ref().map(|_| container.open_init()).transpose()?;
        container.start()?;
        match readiness.zip(program) {
            Some((readiness, program)) => readiness.wait(container.state().pid, &program),
            None => Ok(()),
        }
    }

    fn kill(&self, args: &mut Args) -> Result<()> {
        let all = args.flag(&["-a", "--all"]);
        let container = self.load(args)?;
        let signal =
            args.word().filter(|word| !word.is_empty()).map_or(Ok(15), |word| signal_number(&word))?;
        args.end()?;
        container.kill(signal, all).map_err(|error| match error.kind() {
            // Programs that drive runc match on these words, and take other errors for a failure.
            ErrorKind::NotFound => error.context(format!("kill {}: container not running", container.id())),
            _ => error,
        })
    }

    fn delete(&self, args: &mut Args) -> Result<()> {
        let force = args.flag(&["-f", "--force"]);
        let id = args.id()?;
        args.end()?;
        match Container::load(&self.root, &id) {
            Ok(container) => self.delete_and_warn(container.with_steps(self.log.steps()), force),
            Err(error) if error.is(ErrorKind::NotFound) && force => Ok(()),
            Err(error) if error.is(ErrorKind::FailedPrecondition) => {
                Container::remove_unfinished(&self.root, &id)
            }
            Err(error) => Err(error),
        }
    }

    /// Kills and deletes a container that this command made.
    fn take_down(&self, container: Container) -> Result<()> {
        self.delete_and_warn(container, true)
    }

    /// Failures that do not keep the container from going, such as those of poststop hooks, are warnings.
    fn delete_and_warn(&self, container: Container, force: bool) -> Result<()> {
        container.delete(force)?.iter().for_each(|error| self.log.warning(&error.chain()));
        Ok(())
    }

    fn update(&self, args: &mut Args) -> Result<()> {
        let file = args.value(&["-r", "--resources"]).filter(|path| !path.is_empty());
        let of_flags = document::limits_from_flags(args)?;
        // As with runc, a document replaces all limits.
        let resources = match file.as_deref() {
            Some("-") => read_resources(io::stdin(), "standard input")?,
            Some(path) => read_resources(fs::File::open(path).context(|| format!("open {path}"))?, path)?,
            None => of_flags,
        };
        let [l3_cache, bandwidth] =
            ["--l3-cache-schema", "--mem-bw-schema"].map(|name| args.value(&[name]).unwrap_or_default());
        let container = self.load(args)?;
        args.end()?;
        if !l3_cache.is_empty() || !bandwidth.is_empty() {
            container.update_shares(&l3_cache, &bandwidth)?;
        }
        container.update(&resources)
    }
}

fn spec(args: &mut Args, called_runc: bool) -> Result<()> {
    let folder = args.bundle();
    let rootless = args.flag(&["--rootless"]);
    args.end()?;
    let path = folder.join("config.json");
    if path.exists() {
        return Err(Error::already_exists(format!("{} exists; remove it first", path.display())));
    }
    let hostname = if called_runc { "runc" } else { "hoist" };
    let spec = if rootless { document::rootless_spec(hostname) } else { document::default_spec(hostname) };
    let text = serde_json::to_string_pretty(&spec).expect("a spec has only strings and numbers");
    fs::write(&path, text).context(|| format!("write {}", path.display()))
}

fn read_resources(mut from: impl Read, name: &str) -> Result<LinuxResources> {
    let mut text = Vec::new();
    from.read_to_end(&mut text).context(|| format!("read {name}"))?;
    serde_json::from_slice(&text)
        .map_err(|error| Error::invalid_argument(format!("read {name}")).with_source(error))
}

fn signal_number(word: &str) -> Result<u32> {
    match word {
        // Signal 0 only checks that the process exists (kill(2)).
        "0" => Ok(0),
        word => linux::signal::Signal::parse(word).map(|signal| signal.number().unsigned_abs()),
    }
}

fn exit_code(status: ExitStatus) -> ExitCode {
    ExitCode::from(u8::try_from(status.code()).unwrap_or(255))
}

fn print_json(value: &serde_json::Value) -> Result<()> {
    print_line(&serde_json::to_string_pretty(value).expect("values can be written"))
}

/// A reader that closes the pipe ends this program quietly, as SIGPIPE ends others.
fn print_line(line: &str) -> Result<()> {
    match writeln!(io::stdout(), "{line}") {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => std::process::exit(128 + SIGPIPE),
        written => written.context(|| "write to standard output"),
    }
}
