//! Pulling, and how its layers come along.

use api::engine::{Follow, Keyring, PullStep};
use clap::Args;
use client::Client;
use types::{Error, Reference, Result};

use super::TrustFlag;
use crate::credentials;
use crate::progress::Progress;

#[derive(Args)]
pub(crate) struct Flags {
    #[arg(long, short)]
    quiet: bool,
    #[arg(long)]
    platform: Option<String>,
    /// Every tag of the repository
    #[arg(long, short, hide = true)]
    all_tags: bool,
    #[command(flatten)]
    _trust: TrustFlag,
    image: String,
}

pub(crate) async fn run(client: &Client, flags: Flags) -> Result<u8> {
    let Flags { quiet, platform, all_tags, _trust, image } = flags;
    if all_tags {
        return Err(Error::unimplemented(
            "pull -a: the tags of a repository are not listed here; name those that are wanted, one by one",
        ));
    }
    let Pulled { name, digest, is_newer } = pull(client, &image, platform, quiet).await?;
    if !quiet {
        println!("Digest: {digest}");
        let what = if is_newer { "Downloaded newer image" } else { "Image is up to date" };
        println!("Status: {what} for {}", familiar(&name));
    }
    println!("{name}");
    Ok(0)
}

/// What a pull came to.
pub(crate) struct Pulled {
    name: String,
    digest: String,
    /// Some of its layers were not here.
    is_newer: bool,
}

/// As people write it: without what goes without saying, but with the tag.
fn familiar(name: &str) -> String {
    let Ok(reference) = name.parse::<Reference>() else { return name.to_owned() };
    match (reference.tag(), reference.digest()) {
        (Some(tag), None) => format!("{}:{tag}", reference.familiar_name()),
        (_, Some(digest)) => format!("{}@{digest}", reference.familiar_name()),
        (None, None) => reference.familiar_name(),
    }
}

/// Pulls an image.
pub(crate) async fn pull(
    client: &Client,
    reference: &str,
    platform: Option<String>,
    quiet: bool,
) -> Result<Pulled> {
    // A name that is none is refused by the daemon, like any other mistake in it.
    let credentials = match reference.parse::<Reference>() {
        Ok(parsed) => credentials::for_pull(client, &parsed).await?.keyring,
        Err(_) => Keyring::new(),
    };
    let question = Follow::Pull { reference: reference.to_owned(), platform, credentials };
    let mut answers = client.follow(&question).await?;
    let mut progress = Progress::new(quiet);
    let mut is_newer = false;
    while let Some(step) = answers.next::<PullStep>().await? {
        if let PullStep::Done { name, digest } = step {
            return Ok(Pulled { name, digest, is_newer });
        }
        is_newer |= matches!(step, PullStep::LayerDone { .. });
        show(&mut progress, step);
    }
    Err(Error::unavailable("the daemon stopped telling how the pull goes; pull again to take it up"))
}

/// In Docker's words.
fn show(progress: &mut Progress, step: PullStep) {
    match step {
        PullStep::Resolved { name, digest } => progress.say(&format!("Pulling {name} ({digest})")),
        PullStep::Layers { layers } => progress.expect(layers),
        PullStep::Downloading { digest, current } => progress.at(&digest, "Downloading", Some(current)),
        PullStep::Extracting { digest } => progress.at(&digest, "Extracting", None),
        PullStep::LayerDone { digest } => progress.done(&digest, "Pull complete"),
        PullStep::LayerExists { digest } => progress.done(&digest, "Already exists"),
        PullStep::Done { .. } | PullStep::Failed { .. } => {}
    }
}
