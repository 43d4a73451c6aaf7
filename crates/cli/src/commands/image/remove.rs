//! `rmi` and `image rm`: removes names, and images that have no name left.

use api::engine::ImageCall;
use clap::Args;
use client::Client;
use serde_json::Value;
use types::{ErrorKind, Result};

use crate::commands::{list, report_error};
use crate::parse::refused;

#[derive(Args)]
pub(crate) struct Flags {
    /// Remove all names of an id, even if containers were made from it
    #[arg(long, short)]
    force: bool,
    // Docker's flag to keep parent images. It has no effect here, as images have no parents.
    #[arg(long = "no-prune", hide = true)]
    _no_prune: bool,
    #[arg(long = "platform", hide = true, value_parser = refused(
        "an image is removed with all its platforms; `hoist image convert --platform` makes one of some of them first",
    ))]
    _platform: Vec<String>,
    /// Names, digests or ids
    #[arg(required = true)]
    images: Vec<String>,
}

/// Removes names, and continues after an error.
pub(super) async fn run(client: &Client, flags: Flags) -> Result<u8> {
    let mut code = 0;
    for name in flags.images {
        match client.call(&ImageCall::Remove { name: name.clone(), force: flags.force }.into()).await {
            Ok(removed) => print(&removed),
            Err(error) => {
                report_error(&name, &error);
                if !(flags.force && error.is(ErrorKind::NotFound)) {
                    code = 1;
                }
            }
        }
    }
    Ok(code)
}

pub(in crate::commands) fn print(removed: &Value) {
    let texts = |key: &str| list(&removed[key]).iter().filter_map(Value::as_str);
    texts("Untagged").for_each(|name| println!("Untagged: {name}"));
    texts("Deleted").for_each(|id| println!("Deleted: {id}"));
    let held: Vec<&str> = texts("StillNamed").collect();
    if !held.is_empty() {
        eprintln!("the image stays as {}", held.join(", "));
    }
}
