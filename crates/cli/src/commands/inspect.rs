//! `inspect`: everything about containers or images, as a document.

use api::engine::{Call, ImageCall};
use clap::Args;
use client::Client;
use serde_json::Value;
use types::{ErrorKind, Result};

use crate::template;

#[derive(Args)]
pub(crate) struct Flags {
    /// `json`, or a template
    #[arg(long, short)]
    format: Option<String>,
    #[arg(required = true)]
    names: Vec<String>,
}

/// Containers, and images where no container has the name.
pub(super) async fn run(client: &Client, flags: Flags) -> Result<u8> {
    let find = async |name: &str| {
        let container = client.call(&Call::Inspect { id: name.to_owned() }).await;
        match container {
            Err(error) if error.is(ErrorKind::NotFound) => image(client, name).await,
            other => other,
        }
    };
    show(&flags.names, flags.format.as_deref(), "container or image", find).await
}

pub(super) async fn images(client: &Client, flags: Flags) -> Result<u8> {
    show(&flags.names, flags.format.as_deref(), "image", async |name: &str| image(client, name).await).await
}

pub(super) async fn containers(client: &Client, flags: Flags) -> Result<u8> {
    let find = async |name: &str| client.call(&Call::Inspect { id: name.to_owned() }).await;
    show(&flags.names, flags.format.as_deref(), "container", find).await
}

async fn image(client: &Client, name: &str) -> Result<Value> {
    client.call(&ImageCall::Inspect { name: name.to_owned() }.into()).await
}

/// Prints those that are there, and says which are not.
pub(super) async fn show(
    names: &[String],
    format: Option<&str>,
    what: &str,
    find: impl AsyncFn(&str) -> Result<Value>,
) -> Result<u8> {
    let (mut found, mut code) = (Vec::new(), 0);
    for name in names {
        match find(name).await {
            Ok(answer) => found.push(answer),
            Err(error) if error.is(ErrorKind::NotFound) => {
                eprintln!("hoist: no such {what}: {name}");
                code = 1;
            }
            // It may mean several, or cannot be a name.
            Err(error) if error.is(ErrorKind::InvalidArgument) => {
                eprintln!("hoist: {name}: {}", error.chain());
                code = 1;
            }
            Err(error) => return Err(error),
        }
    }
    match format {
        None | Some("json") => println!("{}", serde_json::to_string_pretty(&found).expect("plain data")),
        Some(format) => {
            for answer in &found {
                println!("{}", template::render(format, answer)?);
            }
        }
    }
    Ok(code)
}
