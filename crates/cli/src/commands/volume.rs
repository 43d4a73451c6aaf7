//! Volumes: the noun `volume`.

use api::engine::{Call, VolumeCall};
use clap::Subcommand;
use client::Client;
use serde_json::Value;
use types::Result;

use super::system::prune;
use super::{absent, confirm, each, inspect, list};
use crate::output::{self, rows, text};
use crate::parse;

/// Why other volume drivers and their options are refused.
pub(super) const NO_DRIVERS: &str = "a volume is a directory of this machine, which is local, and takes no options: mount what it is to \
                                     be there with mount(8), and name that by -v PATH:TARGET, or ask for memory by --tmpfs";

#[derive(Subcommand)]
#[command(defer = true)]
pub(crate) enum Command {
    /// Make a volume
    Create {
        /// The volume's name, instead of a random one
        name: Option<String>,
        /// The name, as an older Docker took it
        #[arg(long = "name", value_name = "NAME", hide = true, conflicts_with = "name")]
        named: Option<String>,
        /// Options of the driver; there are none
        #[arg(long = "opt", short = 'o', hide = true, value_parser = parse::refused(NO_DRIVERS))]
        _opt: Vec<String>,
        /// Only `local` is possible
        #[arg(long, short, value_parser = parse::refused_but(&["local"], NO_DRIVERS), default_value = "local")]
        driver: String,
        /// KEY=VALUE
        #[arg(long)]
        label: Vec<String>,
    },
    /// List volumes
    #[command(alias = "list")]
    Ls {
        /// dangling=true|false, driver=local, label=KEY[=VALUE], label!=KEY[=VALUE], name=TEXT
        #[arg(long, short, value_name = "KEY=VALUE")]
        filter: Vec<String>,
        /// `json`, `table TEMPLATE`, or a template
        #[arg(long)]
        format: Option<String>,
        /// Names only
        #[arg(long, short)]
        quiet: bool,
    },
    /// Show everything about volumes
    Inspect {
        /// `json`, or a template
        #[arg(long, short)]
        format: Option<String>,
        /// Names
        #[arg(required = true)]
        volumes: Vec<String>,
    },
    /// Remove volumes that no container uses
    #[command(alias = "remove")]
    Rm {
        /// Ignore volumes that do not exist
        #[arg(long, short)]
        force: bool,
        /// Names
        #[arg(required = true)]
        volumes: Vec<String>,
    },
    /// Remove anonymous volumes that no container uses
    Prune {
        /// Also volumes with names
        #[arg(long, short)]
        all: bool,
        /// label=KEY[=VALUE], label!=KEY[=VALUE]
        #[arg(long, value_name = "KEY=VALUE")]
        filter: Vec<String>,
        /// Do not ask for confirmation
        #[arg(long, short)]
        force: bool,
    },
    #[command(hide = true, about = absent::CLUSTER)]
    Update(absent::Words),
}

pub(super) async fn run(client: &Client, command: Command) -> Result<u8> {
    let ask = async |call: VolumeCall| client.call(&Call::Volume(call)).await;
    match command {
        Command::Create { name, named, driver: _, label, _opt: _ } => {
            let name = name.or(named);
            let labels = parse::label_words(&label).collect();
            println!("{}", text(&ask(VolumeCall::Create { name, labels }).await?, "Name"));
            Ok(0)
        }
        Command::Ls { filter, format, quiet } => {
            let mut answer = ask(VolumeCall::List { filters: filter }).await?;
            answer.as_array_mut().into_iter().flatten().for_each(output::show_labels);
            print(list(&answer), format.as_deref(), quiet)
        }
        Command::Inspect { format, volumes } => {
            let find = async |name: &str| ask(VolumeCall::Inspect { name: name.to_owned() }).await;
            inspect::show(&volumes, format.as_deref(), "volume", find).await
        }
        Command::Rm { force, volumes } => {
            each(&volumes, async |name| ask(VolumeCall::Remove { name, force }).await).await
        }
        Command::Prune { all, filter, force } => {
            let which = if all { "all volumes" } else { "all volumes without a name" };
            let only =
                if filter.is_empty() { String::new() } else { format!(" (with {})", filter.join(", ")) };
            let warning = format!("This removes {which} that no container uses{only}.");
            if !force && !confirm(&warning)? {
                return Ok(1);
            }
            let answer = ask(VolumeCall::Prune { all, filters: filter }).await?;
            prune::show_volumes(&answer);
            prune::print_reclaimed(prune::reclaimed(&answer));
            Ok(0)
        }
        // `absent::refusal` has refused it before.
        Command::Update(_) => Ok(0),
    }
}

fn print(volumes: &[Value], format: Option<&str>, quiet: bool) -> Result<u8> {
    if quiet {
        volumes.iter().for_each(|row| println!("{}", text(row, "Name")));
        return Ok(0);
    }
    let columns: &[output::Column] =
        &[("DRIVER", |row| text(row, "Driver")), ("VOLUME NAME", |row| text(row, "Name"))];
    rows(volumes, columns, format)?;
    Ok(0)
}
