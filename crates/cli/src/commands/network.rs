//! Networks, listed and shown. There are three fixed ones; commands that create or remove networks are refused.

use api::engine::{Call, NetworkCall};
use clap::{Args, Subcommand};
use client::Client;
use serde_json::Value;
use types::{Error, Result};

use super::absent::Words;
use super::{inspect, list};
use crate::listing::Listing;
use crate::output::{self, text};

#[derive(Subcommand)]
#[command(defer = true)]
pub(crate) enum Command {
    /// List networks
    #[command(alias = "list")]
    Ls(Flags),
    /// Show everything about networks, with the containers that run on them
    Inspect {
        /// `json`, or a template
        #[arg(long, short)]
        format: Option<String>,
        /// Has no effect: Docker shows more of swarm networks with it
        #[arg(long = "verbose", short = 'v', hide = true)]
        _verbose: bool,
        /// Names or ids
        #[arg(required = true)]
        networks: Vec<String>,
    },
    /// Remove unused networks, of which there are never any
    Prune {
        /// Has no effect: there is nothing to remove
        #[arg(long, value_name = "KEY=VALUE")]
        filter: Vec<String>,
        /// Do not ask for confirmation
        #[arg(long, short)]
        force: bool,
    },
    /// Refused: there are bridge, host and none
    #[command(hide = true)]
    Create(Words),
    /// Refused: there are bridge, host and none
    #[command(hide = true, alias = "remove")]
    Rm(Words),
    /// Refused: there are bridge, host and none
    #[command(hide = true)]
    Connect(Words),
    /// Refused: there are bridge, host and none
    #[command(hide = true)]
    Disconnect(Words),
}

#[derive(Args)]
pub(crate) struct Flags {
    /// driver, id, name (patterns), scope, type=builtin|custom, dangling=true|false, label (networks have none)
    #[arg(long, short, value_name = "KEY=VALUE")]
    filter: Vec<String>,
    #[command(flatten)]
    listing: Listing,
}

pub(super) async fn run(client: &Client, command: Command) -> Result<u8> {
    let ask = async |call: NetworkCall| client.call(&Call::Network(call)).await;
    match command {
        Command::Ls(Flags { filter, listing }) => {
            let mut answer = ask(NetworkCall::List { filters: filter }).await?;
            for row in answer.as_array_mut().into_iter().flatten() {
                row["ID"] = listing.id(text(row, "ID")).into();
            }
            let columns: &[output::Column] = &[
                ("NETWORK ID", |row| text(row, "ID")),
                ("NAME", |row| text(row, "Name")),
                ("DRIVER", |row| text(row, "Driver")),
                ("SCOPE", |row| text(row, "Scope")),
            ];
            listing.print(list(&answer), columns)?;
            Ok(0)
        }
        // Docker prints nothing either if there is nothing to remove.
        Command::Prune { .. } => Ok(0),
        Command::Create(_) => Err(fixed("made", CONTAINERS_REACH)),
        Command::Rm(_) => Err(fixed("removed", "the bridge goes with the last container on it")),
        Command::Connect(_) => Err(fixed("joined later", CONTAINERS_REACH)),
        Command::Disconnect(_) => {
            Err(fixed("left", "a container on none is made by `hoist run --network none`"))
        }
        Command::Inspect { format, networks, _verbose: _ } => {
            let find = async |name: &str| one(client, name).await;
            inspect::show(&networks, format.as_deref(), "network", find).await
        }
    }
}

const CONTAINERS_REACH: &str = "containers on the bridge reach each other by address (`hoist run --add-host NAME:ADDRESS`), \
                                and `hoist run --network container:NAME` shares the network of one";

fn fixed(done: &str, instead: &str) -> Error {
    Error::unimplemented(format!("networks cannot be {done}: there are bridge, host and none; {instead}"))
}

/// A network, as `inspect` shows it.
pub(super) async fn one(client: &Client, name: &str) -> Result<Value> {
    let mut network = client.call(&Call::Network(NetworkCall::Inspect { name: name.to_owned() })).await?;
    // Docker calls the field `Id` here and `ID` in lists.
    network["Id"] = network["ID"].take();
    network.as_object_mut().map(|fields| fields.remove("ID"));
    Ok(network)
}
