//! The daemon and its disk usage: the noun `system`, and Docker's top-level commands of that kind.

mod disk;
mod events;
pub(super) mod prune;

use api::engine::Call;
use clap::Subcommand;
use client::Client;
use serde_json::{Value, json};
use types::{Error, Result};

pub(super) use self::prune::{OfContainers as PruneContainers, containers as prune_containers};
use super::{absent, list};
use crate::output::{memory, text};
use crate::template;

#[derive(Subcommand)]
#[command(defer = true)]
pub(crate) enum Command {
    /// The daemon and its disk
    #[command(subcommand)]
    System(Noun),
    /// Show versions, the kernel, the number of containers and images, and directories
    Info {
        /// `json`, or a template
        #[arg(long, short)]
        format: Option<String>,
    },
    /// Show events of containers, images, volumes and networks
    Events(events::Flags),
    /// Show the versions of the command line and the daemon
    Version {
        /// `json`, or a template
        #[arg(long, short)]
        format: Option<String>,
    },
}

#[derive(Subcommand)]
#[command(defer = true)]
pub(crate) enum Noun {
    /// Show versions, the kernel, the number of containers and images, and directories
    Info {
        /// `json`, or a template
        #[arg(long, short)]
        format: Option<String>,
    },
    /// Show disk usage
    Df(disk::Flags),
    /// Remove containers that do not run, images without a name, and unreferenced content
    Prune(prune::Flags),
    /// Show events of containers, images, volumes and networks
    Events(events::Flags),
    /// Compare the daemon's records with disk and kernel
    Check {
        /// Remove orphans, and repair what is damaged
        #[arg(long)]
        repair: bool,
    },
    /// Take over images and blobs of another containerd, while no daemon runs
    #[command(after_help = DAEMONS)]
    ImportContainerd {
        /// Its root directory, such as /var/lib/containerd
        root: String,
        /// Only print what would be taken over
        #[arg(long)]
        dry_run: bool,
    },
    /// Take down what a daemon left mounted, while none runs, so that its root directory can be deleted
    #[command(after_help = DAEMONS)]
    Unmount,
    #[command(hide = true, about = absent::CONTEXT)]
    DialStdio(absent::Words),
}

/// The end of the help of commands that the daemon's program runs.
const DAEMONS: &str =
    "Takes the flags --config FILE, --root DIR and --state DIR of the daemon whose directories are meant";

/// The error of a command that needs that no daemon runs. Such a command is defined here for the help only: `main`
/// leads it to the daemon's program.
pub(super) fn without_daemon(command: &Command) -> Option<Error> {
    let name = match command {
        Command::System(Noun::ImportContainerd { .. }) => "import-containerd",
        Command::System(Noun::Unmount) => "unmount",
        _ => return None,
    };
    Some(Error::failed_precondition(format!("stop the daemon first, and call: hoist system {name}")))
}

pub(super) async fn run(client: &Client, command: Command) -> Result<u8> {
    match command {
        Command::Info { format } | Command::System(Noun::Info { format }) => {
            info(client, format.as_deref()).await
        }
        Command::Events(flags) | Command::System(Noun::Events(flags)) => events::run(client, flags).await,
        Command::System(Noun::Df(flags)) => disk::run(client, flags).await,
        Command::System(Noun::Prune(flags)) => prune::run(client, flags).await,
        Command::System(Noun::Check { repair }) => check(client, repair).await,
        // These are handled without a daemon, in `without_daemon` and `absent`.
        Command::System(Noun::ImportContainerd { .. } | Noun::Unmount | Noun::DialStdio(_)) => Ok(0),
        Command::Version { format } => version(Ok(client.clone()), format.as_deref()).await,
    }
}

/// Prints the version of the command line, also without a daemon, which is then reported as an error.
pub(super) async fn version(daemon: Result<Client>, format: Option<&str>) -> Result<u8> {
    let info = match daemon {
        Ok(client) => client.call(&Call::Info).await,
        Err(error) => Err(error),
    };
    let mut version = json!({
        "Client": {
            "Version": env!("CARGO_PKG_VERSION"),
            "Os": std::env::consts::OS,
            "Arch": types::Platform::host().architecture,
        },
        "Server": null,
    });
    if let Ok(info) = &info {
        version["Server"] = json!({
            "Version": info["ServerVersion"],
            "Os": std::env::consts::OS,
            "Arch": types::Platform::host().architecture,
            "KernelVersion": info["KernelVersion"],
        });
    }
    match format {
        Some("json") => println!("{version}"),
        Some(format) if !format.is_empty() => println!("{}", template::render(format, &version)?),
        _ => {
            println!("Client: hoist {}", text(&version["Client"], "Version"));
            if info.is_ok() {
                println!("Server: hoist {}", text(&version["Server"], "Version"));
            }
        }
    }
    info.map(|_| 0)
}

async fn info(client: &Client, format: Option<&str>) -> Result<u8> {
    let info = client.call(&Call::Info).await?;
    match format {
        None | Some("") => print_info(&info),
        Some("json") => println!("{info}"),
        Some(format) => println!("{}", template::render(format, &info)?),
    }
    Ok(0)
}

/// Prints the daemon's information with Docker's labels and order.
fn print_info(info: &Value) {
    let options = list(&info["SecurityOptions"]).iter().filter_map(Value::as_str);
    let options = options.map(|option| option.trim_start_matches("name=").replace(",profile=", ", profile "));
    let rows = [
        ("Server Version", text(info, "ServerVersion")),
        ("Containers", text(info, "Containers")),
        (" Running", text(info, "ContainersRunning")),
        (" Paused", text(info, "ContainersPaused")),
        (" Stopped", text(info, "ContainersStopped")),
        ("Images", text(info, "Images")),
        ("Storage Driver", text(info, "Driver")),
        ("Logging Driver", text(info, "LoggingDriver")),
        ("Cgroup Driver", text(info, "CgroupDriver")),
        ("Cgroup Version", text(info, "CgroupVersion")),
        ("Default Runtime", text(info, "DefaultRuntime")),
        ("Security Options", options.collect::<Vec<_>>().join("; ")),
        ("Kernel Version", text(info, "KernelVersion")),
        ("Operating System", text(info, "OperatingSystem")),
        ("OSType", text(info, "OSType")),
        ("Architecture", text(info, "Architecture")),
        ("CPUs", text(info, "NCPU")),
        ("Total Memory", memory(info["MemTotal"].as_u64().unwrap_or(0))),
        ("Name", text(info, "Name")),
        ("Root Dir", text(info, "RootDir")),
        ("State Dir", text(info, "StateDir")),
    ];
    rows.iter().for_each(|(name, value)| println!("{name}: {value}"));
}

async fn check(client: &Client, repair: bool) -> Result<u8> {
    let answer = client.call(&Call::Check { repair }).await?;
    let (found, damaged) = (list(&answer["Found"]), list(&answer["Damaged"]));
    let show = |what: &str, all: &[Value]| {
        all.iter().for_each(|one| println!("{what}: {}", one.as_str().unwrap_or_default()));
    };
    show(if repair { "removed" } else { "left over" }, found);
    show("mended", list(&answer["Mended"]));
    show("damaged", damaged);
    if found.is_empty() {
        println!("nothing is left over");
    }
    if repair {
        return Ok(u8::from(!damaged.is_empty()));
    }
    let is_well = found.is_empty() && damaged.is_empty();
    if !is_well {
        eprintln!("hint: hoist system check --repair");
    }
    Ok(u8::from(!is_well))
}
