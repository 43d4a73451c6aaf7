//! The shim: the process that stays with a container, or with all containers of a pod, independent of the daemon. It
//! holds their standard streams, reaps them, keeps their exit codes, and reports them to the daemon.
//!
//! One thread, one loop, no executor. Reading order: [`event_loop`] (what it waits for), [`sandbox`] (what it does),
//! [`service`] (the API).
//!
//! - [`command`], [`bootstrap`], [`orphan`], [`info`]: the command line that containerd calls.
//! - [`container`], [`process`], [`oci`], [`worker`], [`rootfs`], [`stats`]: containers.
//! - [`stdio`], [`log_driver`]: standard streams.
//! - [`publisher`], [`journal`], [`record`]: data that must not be lost; see `docs/design/shim.md`.
#![forbid(unsafe_code)]

mod address;
mod bootstrap;
mod command;
mod container;
mod event_loop;
mod info;
mod journal;
mod log;
mod log_driver;
mod oci;
mod orphan;
mod poll;
mod process;
mod publisher;
mod record;
mod rootfs;
mod sandbox;
mod service;
mod stats;
mod stdio;
mod worker;

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

use types::{Context, Result};

use command::{Command, Flags};
use event_loop::EventLoop;
use poll::Poll;
use publisher::Publisher;
use sandbox::Sandbox;

/// The program. `args` begins with the program's name: called by runc's, it is the OCI runtime, which is linked in
/// anyway.
pub fn main(args: Vec<OsString>) -> ExitCode {
    if runtime::cli::is_called(&args) {
        return runtime::cli::main(args);
    }
    let outcome = Command::parse(args.into_iter().skip(1)).and_then(|command| match command {
        Command::Start(flags) => bootstrap::start(flags),
        Command::Serve(flags) => serve(&flags),
        Command::Delete(flags) => orphan::delete(&flags),
        Command::Info => info::print(),
        Command::Version => info::print_version(),
    });
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("containerd-shim-hoist-v2: {}", error.chain());
            ExitCode::FAILURE
        }
    }
}

/// Runs the shim, until a daemon shuts it down.
fn serve(flags: &Flags) -> Result<()> {
    let listener = bootstrap::inherited_listener()?;
    // From here on this program is what containers execute first.
    linux::sealed::check()?;
    name_process();
    // Its own session, so that signals for the daemon's do not reach it.
    rustix::process::setsid().map_err(std::io::Error::from).context(|| "begin a session")?;
    let own = rustix::process::getpid();
    rustix::process::set_child_subreaper(Some(own))
        .map_err(std::io::Error::from)
        .context(|| "become subreaper")?;
    let children = linux::signal::child_signals()?;
    linux::signal::ignore_usr1();
    let bundle = std::env::current_dir().context(|| "find the bundle")?;
    let log = log::Log::new(bundle.join("log"), flags.debug);
    let events = std::env::var("TTRPC_ADDRESS").ok().filter(|address| !address.is_empty());
    let events = events.map(|address| ttrpc::socket_path(&address).map(Path::to_owned)).transpose()?;
    let publisher = Publisher::new(&flags.namespace, events);
    let poll = Poll::new().context(|| "make an epoll set")?;
    let sandbox = Sandbox::new(&flags.namespace, poll, publisher, log);
    let socket = flags.socket.clone().unwrap_or_default();
    EventLoop::new(sandbox, listener, socket, children)?.run()
}

/// Sets the name in `ps`: a process executed by descriptor would be called by that number.
fn name_process() {
    // The kernel cuts names to 15 bytes. A refusal changes nothing else.
    let _unnamed = rustix::thread::set_name(c"hoist-shim");
}
