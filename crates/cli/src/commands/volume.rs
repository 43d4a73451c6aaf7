//! Volumes: made, listed, shown, removed.

use api::engine::{Call, VolumeCall};
use clap::Subcommand;
use client::Client;
use serde_json::Value;
use types::{Error, Result};

use super::{confirm, each, inspect, list};
use crate::output::{self, rows, size, text};

#[derive(Subcommand)]
#[command(defer = true)]
pub(crate) enum Command {
    /// Make a volume
    Create { name: Option<String> },
    /// List volumes
    #[command(alias = "list")]
    Ls {
        /// dangling=true|false, name=TEXT
        #[arg(long, short)]
        filter: Vec<String>,
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
        #[arg(required = true)]
        volumes: Vec<String>,
    },
    /// Remove volumes that no container uses
    #[command(alias = "remove")]
    Rm {
        /// One that is not there is no error
        #[arg(long, short)]
        force: bool,
        #[arg(required = true)]
        volumes: Vec<String>,
    },
    /// Remove what no container uses of those without a name
    Prune {
        /// Those with names too
        #[arg(long, short)]
        all: bool,
        /// Without asking
        #[arg(long, short)]
        force: bool,
    },
}

pub(super) async fn run(client: &Client, command: Command) -> Result<u8> {
    let ask = async |call: VolumeCall| client.call(&Call::Volume(call)).await;
    match command {
        Command::Create { name } => {
            println!("{}", text(&ask(VolumeCall::Create { name }).await?, "Name"));
            Ok(0)
        }
        Command::Ls { filter, format, quiet } => {
            let filters = filter.iter().map(|text| Filter::parse(text)).collect::<Result<Vec<_>>>()?;
            let answer = ask(VolumeCall::List).await?;
            let wanted: Vec<Value> =
                list(&answer).iter().filter(|row| filters.iter().all(|one| one.fits(row))).cloned().collect();
            print(&wanted, format.as_deref(), quiet)
        }
        Command::Inspect { format, volumes } => {
            let find = async |name: &str| ask(VolumeCall::Inspect { name: name.to_owned() }).await;
            inspect::show(&volumes, format.as_deref(), "volume", find).await
        }
        Command::Rm { force, volumes } => {
            each(&volumes, async |name| ask(VolumeCall::Remove { name, force }).await).await
        }
        Command::Prune { all, force } => {
            let which = if all { "all volumes" } else { "all volumes without a name" };
            let warning = format!("This removes {which} that no container uses.");
            if !force && !confirm(&warning)? {
                return Ok(1);
            }
            let answer = ask(VolumeCall::Prune { all }).await?;
            for name in list(&answer["VolumesDeleted"]) {
                println!("{}", name.as_str().unwrap_or_default());
            }
            println!("Total reclaimed space: {}", size(answer["SpaceReclaimed"].as_u64().unwrap_or(0)));
            Ok(0)
        }
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

#[derive(Debug, PartialEq)]
enum Filter {
    Dangling(bool),
    Name(String),
}

impl Filter {
    fn parse(filter: &str) -> Result<Filter> {
        match filter.split_once('=') {
            Some(("dangling", "true" | "1")) => Ok(Filter::Dangling(true)),
            Some(("dangling", "false" | "0")) => Ok(Filter::Dangling(false)),
            Some(("name", name)) => Ok(Filter::Name(name.to_owned())),
            _ => Err(Error::invalid_argument(format!(
                "invalid filter {filter:?}: dangling=true, dangling=false or name=TEXT"
            ))),
        }
    }

    fn fits(&self, volume: &Value) -> bool {
        match self {
            Filter::Dangling(wanted) => list(&volume["UsedBy"]).is_empty() == *wanted,
            Filter::Name(part) => text(volume, "Name").contains(part),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn filters_look_at_names_and_at_users() {
        let (used, free) = (json!({"Name": "data", "UsedBy": ["web"]}), json!({"Name": "old", "UsedBy": []}));
        let fits = |filter: &str| {
            let filter = Filter::parse(filter).unwrap();
            (filter.fits(&used), filter.fits(&free))
        };
        assert_eq!(fits("dangling=true"), (false, true));
        assert_eq!(fits("dangling=false"), (true, false));
        assert_eq!(fits("name=at"), (true, false));
        assert!(Filter::parse("driver=x").is_err() && Filter::parse("dangling").is_err());
    }
}
