//! `pull`: pulls an image and shows the progress of its layers.

use api::engine::{Call, Follow, Keyring, PullStep, RegistryCall};
use clap::Args;
use client::Client;
use types::{Error, Reference, Result};

use super::{TrustFlag, repository};
use crate::commands::report_error;
use crate::credentials;
use crate::progress::Progress;

#[derive(Args)]
pub(crate) struct Flags {
    /// Do not show progress
    #[arg(long, short)]
    quiet: bool,
    /// OS/ARCHITECTURE[/VARIANT]: the platform of the image, instead of this machine's
    #[arg(long)]
    platform: Option<String>,
    /// Pull every tag of the repository, which is named without one
    #[arg(long, short)]
    all_tags: bool,
    #[command(flatten)]
    _trust: TrustFlag,
    /// NAME[:TAG|@DIGEST]
    image: String,
}

pub(crate) async fn run(client: &Client, flags: Flags) -> Result<u8> {
    let Flags { quiet, platform, all_tags, _trust, image } = flags;
    if all_tags {
        return pull_all(client, &image, platform, quiet).await;
    }
    let Pulled { name, digest, is_newer } = pull(client, &image, platform, quiet).await?;
    if !quiet {
        println!("Digest: {digest}");
    }
    print_end(&name, &familiar(&name), is_newer, quiet);
    Ok(0)
}

/// Prints the result, as Docker does.
fn print_end(name: &str, shown: &str, is_newer: bool, quiet: bool) {
    if !quiet {
        let what = if is_newer { "Downloaded newer image" } else { "Image is up to date" };
        println!("Status: {what} for {shown}");
    }
    println!("{name}");
}

/// Pulls every tag of a repository. Continues after an error, as some tags may have no image for this machine.
async fn pull_all(client: &Client, name: &str, platform: Option<String>, quiet: bool) -> Result<u8> {
    let reference = repository(name)?;
    let credentials = credentials::for_pull(client, &reference).await?.keyring;
    let question = RegistryCall::Tags { reference: name.to_owned(), credentials: credentials.clone() };
    let tags = client.call(&Call::Registry(question)).await?;
    let tags: Vec<String> = serde_json::from_value(tags)
        .map_err(|error| Error::internal("the daemon's list of tags is malformed").with_source(error))?;
    let name = reference.name();
    if tags.is_empty() {
        return Err(Error::not_found(format!("{name} has no tags in its registry")));
    }
    let (mut pulled_any, mut is_newer, mut code) = (false, false, 0);
    for tag in tags {
        let image = format!("{name}:{tag}");
        match pull_with(client, &image, platform.clone(), credentials.clone(), quiet).await {
            Ok(pulled) => {
                pulled_any = true;
                is_newer |= pulled.is_newer;
                if !quiet {
                    println!("{tag}: Digest: {}", pulled.digest);
                }
            }
            Err(error) => {
                report_error(&image, &error);
                code = 1;
            }
        }
    }
    if pulled_any {
        print_end(&name, &reference.familiar_name(), is_newer, quiet);
    }
    Ok(code)
}

/// The result of a pull.
pub(crate) struct Pulled {
    name: String,
    digest: String,
    /// Whether any layer was missing before.
    is_newer: bool,
}

/// The short form of a name, with its tag.
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
    // The daemon reports a malformed name, with all other errors in it.
    let credentials = match reference.parse::<Reference>() {
        Ok(parsed) => credentials::for_pull(client, &parsed).await?.keyring,
        Err(_) => Keyring::new(),
    };
    pull_with(client, reference, platform, credentials, quiet).await
}

async fn pull_with(
    client: &Client,
    reference: &str,
    platform: Option<String>,
    credentials: Keyring,
    quiet: bool,
) -> Result<Pulled> {
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
    Err(Error::unavailable("the daemon stopped during the pull; pull again to resume it"))
}

/// Shows a step, as Docker does.
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
