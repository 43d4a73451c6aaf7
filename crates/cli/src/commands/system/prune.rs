//! `prune`: of containers, and of all kinds of objects.

use api::engine::{Call, ImageCall, VolumeCall};
use clap::Args;
use client::Client;
use serde_json::Value;
use types::{Error, Result};

use crate::commands::{confirm, image, list};
use crate::output::{said, size};

#[derive(Args)]
pub(crate) struct Flags {
    /// Also images with names, if no container was made from them
    #[arg(long, short)]
    all: bool,
    /// Also anonymous volumes, if no container uses them
    #[arg(long)]
    volumes: bool,
    /// Do not ask for confirmation
    #[arg(long, short)]
    force: bool,
    /// until=TIME|AGE, label=KEY[=VALUE], label!=KEY[=VALUE]
    #[arg(long, value_name = "KEY=VALUE")]
    filter: Vec<String>,
}

#[derive(Args)]
pub(crate) struct OfContainers {
    /// Do not ask for confirmation
    #[arg(long, short)]
    force: bool,
    /// until=TIME|AGE, label=KEY[=VALUE], label!=KEY[=VALUE]
    #[arg(long, value_name = "KEY=VALUE")]
    filter: Vec<String>,
}

pub(crate) async fn containers(client: &Client, flags: OfContainers) -> Result<u8> {
    let OfContainers { force, filter } = flags;
    if !force && !confirm(&warning(&["every container that does not run".to_owned()], &filter))? {
        return Ok(1);
    }
    let answer = client.call(&Call::Prune { filters: filter }).await?;
    show_containers(&answer);
    print_reclaimed(reclaimed(&answer));
    Ok(0)
}

/// Prunes each kind of object, and continues after an error: the user may need the disk space.
pub(super) async fn run(client: &Client, flags: Flags) -> Result<u8> {
    let Flags { all, volumes, force, filter } = flags;
    let has = |keys: &[&str]| {
        filter.iter().any(|text| text.split_once('=').is_some_and(|(key, _)| keys.contains(&key)))
    };
    if volumes && has(&["until"]) {
        return Err(Error::invalid_argument(
            "--filter until= says nothing about volumes, of which nobody knows since when they are not used: leave it or \
             --volumes out",
        ));
    }
    let mut what = vec!["every container that does not run".to_owned()];
    if volumes {
        what.push("every volume without a name that no container uses".to_owned());
    }
    let images =
        if all { "every image that no container was made from" } else { "every image without a name" };
    what.push(format!("{images}, and what nothing needs"));
    if !force && !confirm(&warning(&what, &filter))? {
        return Ok(1);
    }
    let (mut bytes, mut first_error) = (0, None);
    let mut note = |answer: Result<Value>, show: fn(&Value)| match answer {
        Ok(answer) => {
            show(&answer);
            bytes += reclaimed(&answer);
        }
        Err(error) if first_error.is_none() => first_error = Some(error),
        Err(error) => eprintln!("hoist: {}", said(&error)),
    };
    note(client.call(&Call::Prune { filters: filter.clone() }).await, show_containers);
    if volumes {
        let prune = VolumeCall::Prune { all: false, filters: filter.clone() };
        note(client.call(&Call::Volume(prune)).await, show_volumes);
    }
    note(client.call(&ImageCall::Prune { all, filters: filter }.into()).await, show_images);
    print_reclaimed(bytes);
    first_error.map_or(Ok(0), Err)
}

fn warning(what: &[String], filter: &[String]) -> String {
    let only = if filter.is_empty() { String::new() } else { format!(" (with {})", filter.join(", ")) };
    format!("This removes {}{only}.", what.join(", "))
}

fn show_containers(answer: &Value) {
    show("Deleted Containers:", &answer["ContainersDeleted"]);
}

pub(in super::super) fn show_volumes(answer: &Value) {
    show("Deleted Volumes:", &answer["VolumesDeleted"]);
}

fn show_images(answer: &Value) {
    if ["Untagged", "Deleted"].iter().any(|key| !list(&answer[*key]).is_empty()) {
        println!("Deleted Images:");
        image::print_removed(answer);
        println!();
    }
}

fn show(title: &str, names: &Value) {
    if !list(names).is_empty() {
        println!("{title}");
        list(names).iter().filter_map(Value::as_str).for_each(|name| println!("{name}"));
        println!();
    }
}

pub(in super::super) fn reclaimed(answer: &Value) -> u64 {
    answer["SpaceReclaimed"].as_u64().unwrap_or(0)
}

pub(in super::super) fn print_reclaimed(bytes: u64) {
    println!("Total reclaimed space: {}", size(bytes));
}
