//! `commit`: makes an image from a container.

use api::engine::{Call, Commit};
use clap::{ArgAction, Args};
use client::Client;
use types::Result;

use crate::output::text;

#[derive(Args)]
pub(crate) struct Flags {
    /// The author of the image
    #[arg(long, short)]
    author: Option<String>,
    /// A message about the change
    #[arg(long, short)]
    message: Option<String>,
    /// Pause the container while its files are copied (the default)
    #[arg(
        long, short, value_name = "BOOL", action = ArgAction::Set, num_args = 0..=1, require_equals = true,
        default_value_t = true, default_missing_value = "true"
    )]
    pause: bool,
    /// Let the container run while its files are copied
    #[arg(long)]
    no_pause: bool,
    /// An instruction of a Dockerfile to apply, such as 'CMD ["sh"]'
    #[arg(long, short)]
    change: Vec<String>,
    /// Name or id
    container: String,
    /// The image's name
    image: Option<String>,
}

pub(super) async fn run(client: &Client, flags: Flags) -> Result<u8> {
    let commit = Commit {
        id: flags.container,
        name: flags.image,
        author: flags.author,
        message: flags.message,
        changes: flags.change,
        pause: flags.pause && !flags.no_pause,
    };
    let image = client.call(&Call::Commit(Box::new(commit))).await?;
    println!("{}", text(&image, "Id"));
    Ok(0)
}
