//! The shim: the process that stays with a container, or with all containers of a pod, whatever
//! happens to the daemon. It holds their standard streams, reaps them, keeps their exit codes, and
//! tells the daemon.
//!
//! One thread, one loop, no executor. Reading order: [`event_loop`] (what it waits for), [`sandbox`]
//! (what it does), [`service`] (how it is asked).
//!
//! - [`command`], [`bootstrap`], [`orphan`], [`info`]: the command line that containerd calls.
//! - [`container`], [`process`], [`oci`], [`worker`], [`rootfs`], [`stats`]: containers.
//! - [`stdio`], [`log_driver`]: standard streams.
//! - [`publisher`], [`journal`], [`record`]: what must not be lost; see `docs/design/shim.md`.
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

/// The program. `args` begins with the program's name: under that of runc it is the OCI runtime, which it holds
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

/// Is the shim, until a daemon ends it.
fn serve(flags: &Flags) -> Result<()> {
    let listener = bootstrap::inherited_listener()?;
    // From here on this program is the first stage of containers.
    linux::sealed::check()?;
    name_process();
    // Its own session, so that no signal meant for the daemon's reaches it.
    rustix::process::setsid().map_err(std::io::Error::from).context(|| "begin a session")?;
    let own = rustix::process::getpid();
    rustix::process::set_child_subreaper(Some(own))
        .map_err(std::io::Error::from)
        .context(|| "become subreaper")?;
    let children = linux::signal::child_signals()?;
    linux::signal::pass_over_question();
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

/// The name in `ps`: executed by descriptor, the process would be called by its number.
fn name_process() {
    // The kernel cuts names to 15 bytes; any name will do, so a refusal is no failure.
    let _unnamed = rustix::thread::set_name(c"hoist-shim");
}
