//! Pushing, and how its blobs go along.

use api::engine::{Follow, PushStep};
use clap::Args;
use client::Client;
use types::{Error, Reference, Result};

use crate::credentials;
use crate::progress::Progress;

#[derive(Args)]
pub(crate) struct Flags {
    /// Every platform of the image; without it those that are here
    #[arg(long)]
    all_platforms: bool,
    /// The images here that refer to it too: signatures, lists of contents
    #[arg(long)]
    referrers: bool,
    #[arg(long, short)]
    quiet: bool,
    /// A name with the registry in it; `hoist tag` gives an image one
    image: String,
}

pub(crate) async fn run(client: &Client, flags: Flags) -> Result<u8> {
    let Flags { all_platforms, referrers, quiet, image } = flags;
    let reference: Reference = image.parse()?;
    let credentials = credentials::for_pull(client, &reference).await?.keyring;
    let question = Follow::Push { reference: image, all_platforms, referrers, credentials };
    let mut answers = client.follow(&question).await?;
    let mut progress = Progress::new(quiet);
    let mut left_out = Vec::new();
    while let Some(step) = answers.next::<PushStep>().await? {
        match step {
            PushStep::Done { name, digest, size } => {
                if !left_out.is_empty() {
                    eprintln!("Not pushed, because it is not here: {}", left_out.join(", "));
                }
                if !quiet {
                    println!("{}: digest: {digest} size: {size}", tag(&name));
                }
                println!("{name}");
                return Ok(0);
            }
            PushStep::LeftOut { what } => left_out.push(what),
            step => show(&mut progress, step),
        }
    }
    Err(Error::unavailable(
        "the daemon stopped telling how the push goes; push again: what arrived is not sent twice",
    ))
}

fn tag(name: &str) -> String {
    let tag = name.parse::<Reference>().ok().and_then(|reference| reference.tag().map(str::to_owned));
    tag.unwrap_or_else(|| name.to_owned())
}

/// In Docker's words.
fn show(progress: &mut Progress, step: PushStep) {
    match step {
        PushStep::Blobs { blobs } => progress.expect(blobs),
        PushStep::Sending { digest, current } => progress.at(&digest, "Pushing", Some(current)),
        PushStep::Existed { digest } => progress.done(&digest, "Layer already exists"),
        PushStep::Mounted { digest, from } => progress.done(&digest, format!("Mounted from {from}")),
        PushStep::Sent { digest } => progress.done(&digest, "Pushed"),
        PushStep::Referrer { digest } => progress.done(&digest, "Pushed, as it refers to the image"),
        _ => {}
    }
}
