//! `push`: pushes an image and shows the progress of its blobs.

use api::engine::{Follow, ImageCall, PushStep};
use clap::Args;
use client::Client;
use types::{Error, Reference, Result};

use super::{TrustFlag, repository};
use crate::commands::list;
use crate::credentials;
use crate::output::text;
use crate::progress::Progress;

#[derive(Args)]
pub(crate) struct Flags {
    /// Push every platform of the image; by default those that are present
    #[arg(long)]
    all_platforms: bool,
    /// Push only these platforms
    #[arg(long, value_delimiter = ',', conflicts_with = "all_platforms")]
    platform: Vec<String>,
    /// Also push local images that refer to it, such as signatures and SBOMs
    #[arg(long)]
    referrers: bool,
    /// Push every local tag of the repository, which is named without one
    #[arg(long, short)]
    all_tags: bool,
    /// Do not show progress
    #[arg(long, short)]
    quiet: bool,
    #[command(flatten)]
    _trust: TrustFlag,
    /// The image's name, with the registry; `hoist tag` gives an image one
    image: String,
}

pub(crate) async fn run(client: &Client, flags: Flags) -> Result<u8> {
    if !flags.all_tags {
        return push(client, &flags.image, &flags).await;
    }
    for image in tagged(client, &flags.image).await? {
        push(client, &image, &flags).await?;
    }
    Ok(0)
}

/// The names of the repository's local images. `NotFound` if there are none.
async fn tagged(client: &Client, name: &str) -> Result<Vec<String>> {
    let reference = repository(name)?;
    let call = ImageCall::List { filters: Vec::new(), all: false, tree: false, sizes: false };
    let rows = client.call(&call.into()).await?;
    let names = list(&rows).iter().map(|row| format!("{}:{}", text(row, "Repository"), text(row, "Tag")));
    let is_of = |name: &String| {
        let found = name.parse::<Reference>();
        found.is_ok_and(|found| found.tag().is_some() && found.familiar_name() == reference.familiar_name())
    };
    let names: Vec<String> = names.filter(is_of).collect();
    if names.is_empty() {
        return Err(Error::not_found(format!(
            "An image does not exist locally with the tag: {}; `hoist tag` gives one its name",
            reference.familiar_name()
        )));
    }
    Ok(names)
}

/// Pushes one image, as the flags say.
async fn push(client: &Client, image: &str, flags: &Flags) -> Result<u8> {
    let reference: Reference = image.parse()?;
    let credentials = credentials::for_pull(client, &reference).await?.keyring;
    let question = Follow::Push {
        reference: image.to_owned(),
        all_platforms: flags.all_platforms,
        platforms: flags.platform.clone(),
        referrers: flags.referrers,
        credentials,
    };
    let mut answers = client.follow(&question).await?;
    let mut progress = Progress::new(flags.quiet);
    let mut left_out = Vec::new();
    while let Some(step) = answers.next::<PushStep>().await? {
        match step {
            PushStep::Done { name, digest, size } => {
                // With `--platform`, the other platforms are left out on purpose.
                if !left_out.is_empty() && flags.platform.is_empty() {
                    eprintln!("Not pushed, because it is not here: {}", left_out.join(", "));
                }
                if !flags.quiet {
                    println!("{}: digest: {digest} size: {size}", tag(&name));
                }
                println!("{name}");
                return Ok(0);
            }
            PushStep::LeftOut { what } => left_out.push(what),
            step => show(&mut progress, step),
        }
    }
    Err(Error::unavailable("the daemon stopped during the push; push again to resume it"))
}

fn tag(name: &str) -> String {
    let tag = name.parse::<Reference>().ok().and_then(|reference| reference.tag().map(str::to_owned));
    tag.unwrap_or_else(|| name.to_owned())
}

/// Shows a step, as Docker does.
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
