//! Containers: Docker's top-level commands, and the noun `container`.

mod attach;
mod attend;
mod commit;
mod copy;
mod create;
mod exec;
mod export;
mod extras;
mod limits;
mod list;
mod logs;
mod port;
mod refused;
mod start;
mod stats;
mod timing;
mod top;
mod update;

pub(super) use self::list::show;

use api::engine::{Call, Streams};
use clap::{Args, Subcommand};
use client::Client;
use types::{Error, Result};

use super::{each, each_that_may_be_gone, inspect, report_error, system};
use crate::interrupt::unless_interrupted;
use crate::parse;

#[derive(Subcommand)]
#[command(defer = true)]
pub(crate) enum Command {
    /// Create a container and start it
    #[command(disable_help_flag = true, override_usage = "hoist run [OPTIONS] IMAGE [COMMAND] [ARG...]")]
    Run(Box<create::Flags>),
    /// Create a container
    #[command(disable_help_flag = true, override_usage = "hoist create [OPTIONS] IMAGE [COMMAND] [ARG...]")]
    Create(Box<create::Flags>),
    /// Start containers
    Start(start::Flags),
    /// Stop containers
    Stop {
        /// Seconds before they are killed; -1 is never
        #[arg(long, short = 't', alias = "time", allow_negative_numbers = true, value_parser = parse::seconds)]
        timeout: Option<u64>,
        /// The signal that asks them to stop
        #[arg(long, short = 's')]
        signal: Option<String>,
        /// Names or ids
        #[arg(required = true)]
        containers: Vec<String>,
    },
    /// Stop containers and start them again
    Restart {
        /// Seconds before they are killed; -1 is never
        #[arg(long, short = 't', alias = "time", allow_negative_numbers = true, value_parser = parse::seconds)]
        timeout: Option<u64>,
        /// The signal that asks them to stop
        #[arg(long, short = 's')]
        signal: Option<String>,
        /// Names or ids
        #[arg(required = true)]
        containers: Vec<String>,
    },
    /// Send a signal to containers
    Kill {
        /// Its name or number
        #[arg(long, short = 's', default_value = "KILL")]
        signal: String,
        /// Names or ids
        #[arg(required = true)]
        containers: Vec<String>,
    },
    /// Remove containers
    Rm(Rm),
    /// List containers
    Ps(list::Flags),
    /// Show a container's log
    Logs(logs::Flags),
    /// Attach to a running container
    Attach(attach::Flags),
    /// Run a command in a running container
    Exec(exec::Flags),
    /// Wait for containers to end and print their exit codes
    Wait {
        /// Names or ids
        #[arg(required = true)]
        containers: Vec<String>,
    },
    /// Give a container another name
    Rename {
        /// Name or id
        container: String,
        /// The new name
        name: String,
    },
    /// Change limits and restart policies of containers
    Update(Box<update::Flags>),
    /// Show where the ports of a container are published
    Port(port::Flags),
    /// Show the processes of a container
    Top(top::Flags),
    /// Pause all processes of containers
    Pause {
        /// Names or ids
        #[arg(required = true)]
        containers: Vec<String>,
    },
    /// Resume all processes of containers
    Unpause {
        /// Names or ids
        #[arg(required = true)]
        containers: Vec<String>,
    },
    /// Show the resource usage of containers
    Stats(stats::Flags),
    /// Copy files out of a container or into it: CONTAINER:PATH FILE|-, or FILE|- CONTAINER:PATH
    Cp(copy::Flags),
    /// Write a container's files as a tar archive, without mounts
    Export(export::Flags),
    /// Make an image from a container
    Commit(commit::Flags),
    /// Show what a container changed in the files of its image
    Diff(super::changes::OfContainer),
}

#[derive(Args)]
pub(crate) struct Rm {
    /// Kill running containers first
    #[arg(long, short)]
    force: bool,
    /// Also remove their anonymous volumes
    #[arg(long, short)]
    volumes: bool,
    #[arg(long = "link", short = 'l', hide = true, num_args = 0..=1, require_equals = true, default_missing_value = "true",
        value_parser = parse::refused("containers are not linked, and so there is no link to remove"))]
    _link: Option<String>,
    /// Names or ids
    #[arg(required = true)]
    containers: Vec<String>,
}

/// The commands below the noun, some of which exist only there.
#[derive(Subcommand)]
#[command(defer = true)]
pub(crate) enum Noun {
    /// List containers
    #[command(alias = "list")]
    Ls(list::Flags),
    /// Show everything about containers
    Inspect(inspect::ContainerFlags),
    /// Remove containers that do not run
    Prune(system::PruneContainers),
    /// Remove containers
    #[command(hide = true)]
    Remove(Rm),
    #[command(flatten)]
    Plain(Command),
}

pub(super) async fn run_noun(client: &Client, command: Noun) -> Result<u8> {
    match command {
        Noun::Ls(flags) => list::run(client, flags).await,
        Noun::Inspect(flags) => inspect::containers(client, flags).await,
        Noun::Prune(flags) => system::prune_containers(client, flags).await,
        Noun::Remove(flags) => run(client, Command::Rm(flags)).await,
        Noun::Plain(command) => run(client, command).await,
    }
}

pub(super) async fn run(client: &Client, command: Command) -> Result<u8> {
    match command {
        Command::Run(flags) => create::run(client, *flags, true).await,
        Command::Create(flags) => create::run(client, *flags, false).await,
        Command::Start(flags) => start::run(client, flags).await,
        Command::Stop { timeout, signal, containers } => {
            let stop = async |id| {
                client.call(&Call::Stop { id, timeout_seconds: timeout, signal: signal.clone() }).await
            };
            each(&containers, stop).await
        }
        Command::Restart { timeout, signal, containers } => {
            let restart = async |id: String| {
                let (signal, timeout_seconds) = (signal.clone(), timeout);
                let found = client.call(&Call::Inspect { id: id.clone(), sizes: false }).await?;
                if found["HostConfig"]["AutoRemove"] == true {
                    return Err(Error::failed_precondition(format!(
                        "container {id} was made with --rm, so that to stop it is to remove it: `hoist stop {id}`, and \
                         run it anew"
                    )));
                }
                client.call(&Call::Stop { id: id.clone(), timeout_seconds, signal }).await?;
                client.call(&Call::Start { id, streams: Streams::default() }).await
            };
            each(&containers, restart).await
        }
        Command::Kill { signal, containers } => {
            each(&containers, async |id| client.call(&Call::Kill { id, signal: signal.clone() }).await).await
        }
        Command::Rm(Rm { force, volumes, containers, _link: _ }) => {
            let remove = async |id| client.call(&Call::Remove { id, force, volumes }).await;
            each_that_may_be_gone(&containers, force, remove).await
        }
        Command::Rename { container: id, name } => {
            client.call(&Call::Rename { id, name }).await?;
            Ok(0)
        }
        Command::Update(flags) => update::run(client, *flags).await,
        Command::Port(flags) => port::run(client, flags).await,
        Command::Top(flags) => top::run(client, flags).await,
        Command::Pause { containers } => {
            each(&containers, async |id| client.call(&Call::Pause { id }).await).await
        }
        Command::Unpause { containers } => {
            each(&containers, async |id| client.call(&Call::Unpause { id }).await).await
        }
        Command::Ps(flags) => list::run(client, flags).await,
        Command::Logs(flags) => logs::run(client, flags).await,
        Command::Attach(flags) => attach::run(client, flags).await,
        Command::Exec(flags) => exec::run(client, flags).await,
        Command::Wait { containers } => {
            let mut code = 0;
            for id in containers {
                match attend::wait(client, id.clone(), None).await {
                    Ok(ended) => println!("{ended}"),
                    Err(error) => {
                        report_error(&id, &error);
                        code = 1;
                    }
                }
            }
            Ok(code)
        }
        Command::Stats(flags) => stats::run(client, flags).await,
        Command::Cp(flags) => unless_interrupted(copy::run(client, flags)).await,
        Command::Export(flags) => unless_interrupted(export::run(client, flags)).await,
        Command::Commit(flags) => commit::run(client, flags).await,
        Command::Diff(flags) => super::changes::of_container(client, flags).await,
    }
}
