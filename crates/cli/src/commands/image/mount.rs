//! `image mount` and `image unmount`: mounts an image on a folder of this machine.

use api::engine::ImageCall;
use clap::Args;
use client::Client;
use types::{Context, Error, Result};

use crate::commands::{each, list};
use crate::output::{self, rows, text};

#[derive(Args)]
pub(crate) struct Mount {
    /// `json`, `table TEMPLATE`, or a template, for the list
    #[arg(long)]
    format: Option<String>,
    /// Name or id; without it mounted images are listed
    image: Option<String>,
    /// The folder on which the image is mounted
    path: Option<String>,
}

#[derive(Args)]
pub(crate) struct Unmount {
    /// The folders on which they are mounted
    #[arg(required = true)]
    paths: Vec<String>,
}

pub(super) async fn mount(client: &Client, flags: Mount) -> Result<u8> {
    let Mount { format, image, path } = flags;
    match (image, path) {
        (Some(image), Some(path)) => {
            let mounted =
                client.call(&ImageCall::Mount { name: image, path: absolute(&path)? }.into()).await?;
            println!("{}", text(&mounted, "Path"));
        }
        (Some(image), None) => {
            return Err(Error::invalid_argument(format!(
                "say where to mount {image}: hoist image mount {image} PATH"
            )));
        }
        (None, _) => {
            let mounts = client.call(&ImageCall::Mounts.into()).await?;
            let columns: &[output::Column] = &[
                ("IMAGE", |row| text(row, "Image")),
                ("PATH", |row| text(row, "Path")),
                ("STATE", |row| text(row, "State")),
            ];
            rows(list(&mounts), columns, format.as_deref())?;
        }
    }
    Ok(0)
}

pub(super) async fn unmount(client: &Client, flags: Unmount) -> Result<u8> {
    let unmount =
        async |path: String| client.call(&ImageCall::Unmount { path: absolute(&path)? }.into()).await;
    each(&flags.paths, unmount).await
}

/// The absolute path, as the daemon has another working directory.
fn absolute(path: &str) -> Result<String> {
    let path = std::path::absolute(path).context(|| format!("find {path}"))?;
    Ok(path.display().to_string())
}
