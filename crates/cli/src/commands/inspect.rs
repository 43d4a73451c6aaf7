//! `inspect`: prints all that is known about containers, images, networks or volumes, as JSON.

use api::engine::{Call, ImageCall, VolumeCall};
use clap::{Args, ValueEnum as _};
use client::Client;
use serde_json::Value;
use types::{ErrorKind, Result};

use super::image::SHOWN_AS_IT_IS_HERE;
use super::network;
use crate::output::said;
use crate::parse::refused;
use crate::template;

#[derive(Args)]
pub(crate) struct Flags {
    /// `json`, or a template
    #[arg(long, short)]
    format: Option<String>,
    /// Names or ids
    #[arg(required = true)]
    names: Vec<String>,
}

#[derive(Args)]
pub(crate) struct ImageFlags {
    #[arg(long = "platform", hide = true, value_parser = refused(SHOWN_AS_IT_IS_HERE))]
    _platform: Option<String>,
    #[command(flatten)]
    flags: Flags,
}

#[derive(Args)]
pub(crate) struct ContainerFlags {
    /// Compute disk usage: SizeRw is what the container wrote, SizeRootFs all of its files
    #[arg(long, short)]
    size: bool,
    #[command(flatten)]
    flags: Flags,
}

#[derive(Args)]
pub(crate) struct AnyFlags {
    /// Only objects of this kind
    #[arg(long = "type", value_name = "KIND")]
    kind: Option<Kind>,
    #[command(flatten)]
    flags: ContainerFlags,
}

/// The kinds of objects, in the order in which a name is looked up, which is Docker's.
#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Kind {
    Container,
    Image,
    Network,
    Volume,
}

/// Prints objects. A name of several kinds means the first of them.
pub(super) async fn run(client: &Client, AnyFlags { kind, flags }: AnyFlags) -> Result<u8> {
    let ContainerFlags { size, flags } = flags;
    let kinds = match &kind {
        None => Kind::value_variants(),
        Some(kind) => std::slice::from_ref(kind),
    };
    let find = async |name: &str| {
        let mut told = None;
        for kind in kinds {
            match of_kind(client, *kind, name, size).await {
                // A name that is invalid for one kind may be valid for another.
                Err(error) if error.is(ErrorKind::NotFound) || error.is(ErrorKind::InvalidArgument) => {
                    // Keep the first error: that a name is ambiguous among containers says more than that no volume has
                    // it.
                    told.get_or_insert(error);
                }
                found => return found,
            }
        }
        Err(told.expect("there are kinds"))
    };
    let what = match kind {
        None => "container, image, network or volume",
        Some(Kind::Container) => "container",
        Some(Kind::Image) => "image",
        Some(Kind::Network) => "network",
        Some(Kind::Volume) => "volume",
    };
    show(&flags.names, flags.format.as_deref(), what, find).await
}

async fn of_kind(client: &Client, kind: Kind, name: &str, sizes: bool) -> Result<Value> {
    match kind {
        Kind::Container => client.call(&Call::Inspect { id: name.to_owned(), sizes }).await,
        Kind::Image => image(client, name).await,
        Kind::Network => network::one(client, name).await,
        Kind::Volume => client.call(&Call::Volume(VolumeCall::Inspect { name: name.to_owned() })).await,
    }
}

pub(super) async fn images(client: &Client, ImageFlags { flags, .. }: ImageFlags) -> Result<u8> {
    show(&flags.names, flags.format.as_deref(), "image", async |name: &str| image(client, name).await).await
}

pub(super) async fn containers(client: &Client, flags: ContainerFlags) -> Result<u8> {
    let ContainerFlags { size: sizes, flags } = flags;
    let find = async |name: &str| client.call(&Call::Inspect { id: name.to_owned(), sizes }).await;
    show(&flags.names, flags.format.as_deref(), "container", find).await
}

async fn image(client: &Client, name: &str) -> Result<Value> {
    client.call(&ImageCall::Inspect { name: name.to_owned() }.into()).await
}

/// Prints the objects that exist, and reports the others.
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
            // The name may be ambiguous or invalid.
            Err(error) if error.is(ErrorKind::InvalidArgument) => {
                eprintln!("hoist: {name}: {}", said(&error));
                code = 1;
            }
            Err(error) => return Err(error),
        }
    }
    match format {
        None | Some("" | "json") => println!("{}", serde_json::to_string_pretty(&found).expect("plain data")),
        Some(format) => {
            for answer in &found {
                println!("{}", template::render(format, answer)?);
            }
        }
    }
    Ok(code)
}
