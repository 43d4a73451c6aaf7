//! The commands. Each noun has a module with its commands and what they do.
//!
//! The module has an enum of commands and a function `run`, which dispatches them. A command of more than a few lines
//! has a file of its own in the module's folder, below its flags.

mod absent;
mod changes;
mod container;
mod image;
mod inspect;
mod network;
mod registry;
mod system;
mod volume;

use std::io::{BufRead, Read};

use clap::Subcommand;
use client::Client;
use serde_json::Value;
use types::{Context, Error, ErrorKind, Result};

pub(crate) use self::absent::CONTEXT;
use crate::args::Cli;
use crate::daemon::connect;
use crate::{completion, credentials, output};

// `defer`, here and in each noun, builds a command's flags only when the command is used: building all of them takes a
// quarter of the program's start.
#[derive(Subcommand)]
#[command(defer = true)]
pub(crate) enum Command {
    #[command(flatten)]
    Container(container::Command),
    /// Containers
    #[command(subcommand, name = "container")]
    Containers(container::Noun),
    #[command(flatten)]
    Image(image::Command),
    #[command(flatten)]
    Registry(registry::Command),
    /// Show everything about containers, images, networks or volumes
    Inspect(inspect::AnyFlags),
    /// Directories that outlive containers
    #[command(subcommand)]
    Volume(volume::Command),
    /// Networks of containers
    #[command(subcommand)]
    Network(network::Command),
    #[command(flatten)]
    System(system::Command),
    /// Run the daemon, as a service does (see `hoist daemon --help`)
    Daemon(absent::Words),
    /// containerd's command line, over its own API (see `hoist ctr --help`)
    Ctr(absent::Words),
    /// The OCI runtime, with the command line of runc (see `hoist runtime --help`)
    Runtime(absent::Words),
    #[command(flatten)]
    Absent(absent::Command),
    /// Print completions for a shell
    Completion {
        /// The shell
        shell: clap_complete::Shell,
    },
}

/// Runs a command and returns the exit code.
pub(crate) async fn run(cli: Cli) -> Result<u8> {
    if let Some(folder) = cli.config {
        credentials::keep_in(folder);
    }
    if let Some(why) = absent::refusal(&cli.command) {
        return Err(why);
    }
    // Commands that work without a daemon.
    let command = match cli.command {
        Command::Completion { shell } => {
            print!("{}", String::from_utf8_lossy(&completion::script(shell)?));
            return Ok(0);
        }
        // These exist for the help only: `main` runs them when they are the first word.
        Command::Daemon(_) | Command::Ctr(_) | Command::Runtime(_) => {
            return Err(Error::invalid_argument(
                "daemon, ctr and runtime have flags of their own, and are the first word: hoist ctr --address SOCKET images ls",
            ));
        }
        Command::Registry(registry::Command::Logout(flags)) => return registry::logout::run(flags).await,
        Command::System(system::Command::Version { format }) => {
            return system::version(connect(&cli.address).await, format.as_deref()).await;
        }
        command => command,
    };
    if let Command::System(command) = &command
        && let Some(why) = system::without_daemon(command)
    {
        return Err(why);
    }
    let client: Client = connect(&cli.address).await?;
    match command {
        Command::Container(command) => container::run(&client, command).await,
        Command::Containers(command) => container::run_noun(&client, command).await,
        Command::Image(command) => image::run(&client, command).await,
        Command::Registry(command) => registry::run(&client, command).await,
        Command::Inspect(flags) => inspect::run(&client, flags).await,
        Command::Volume(command) => volume::run(&client, command).await,
        Command::Network(command) => network::run(&client, command).await,
        Command::System(command) => system::run(&client, command).await,
        Command::Daemon(_) | Command::Ctr(_) | Command::Runtime(_) | Command::Absent(_) => Ok(0),
        Command::Completion { .. } => Ok(0),
    }
}

/// The most bytes that are read as the answer to a prompt.
const ANSWER_LEN_MAX: u64 = 1024;

/// Calls `act` for each name, continues after an error, and prints the names for which it succeeded.
async fn each(names: &[String], act: impl AsyncFn(String) -> Result<Value>) -> Result<u8> {
    each_that_may_be_gone(names, false, act).await
}

/// As [`each`]. With `may_be_gone`, as for a forced removal, an object that does not exist is reported but is no
/// failure.
async fn each_that_may_be_gone(
    names: &[String],
    may_be_gone: bool,
    act: impl AsyncFn(String) -> Result<Value>,
) -> Result<u8> {
    let mut code = 0;
    for name in names {
        match act(name.clone()).await {
            Ok(_) => println!("{name}"),
            Err(error) => {
                report_error(name, &error);
                if !(may_be_gone && error.is(ErrorKind::NotFound)) {
                    code = 1;
                }
            }
        }
    }
    Ok(code)
}

/// Reports an error about one of several objects. The name is added unless the message has it.
fn report_error(name: &str, error: &Error) {
    let text = output::said(error);
    let names_it = text.split([' ', ':', ';', ',', '"']).any(|word| word == name);
    let of = if names_it { String::new() } else { format!("{name}: ") };
    eprintln!("hoist: {of}{text}");
}

pub(crate) fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

/// Asks for confirmation: the user at the terminal, or the program that writes to our standard input. The end of the
/// input means no.
pub(crate) fn confirm(warning: &str) -> Result<bool> {
    eprint!("{warning} Go on? [y/N] ");
    let mut answer = String::new();
    let asked = std::io::stdin().lock().take(ANSWER_LEN_MAX).read_line(&mut answer);
    let is_yes = asked.context(|| "read the answer")? > 0 && answer.trim().eq_ignore_ascii_case("y");
    if !is_yes {
        eprintln!("\nhoist: nothing was removed; --force removes without asking");
    }
    Ok(is_yes)
}
