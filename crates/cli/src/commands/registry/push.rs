//! Pushing, with a bar for each blob on a terminal and a line for each that is done elsewhere.

use std::collections::HashMap;
use std::io::IsTerminal;

use api::engine::{Follow, PushStep};
use clap::Args;
use client::Client;
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use types::{Error, Reference, Result};

use crate::credentials;
use crate::output::short;

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
    let mut view = if quiet {
        View::Quiet
    } else if std::io::stderr().is_terminal() {
        View::Bars { all: MultiProgress::new(), blobs: HashMap::new() }
    } else {
        View::Lines
    };
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
            step => view.show(step),
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

enum View {
    Quiet,
    Lines,
    Bars { all: MultiProgress, blobs: HashMap<String, ProgressBar> },
}

impl View {
    fn show(&mut self, step: PushStep) {
        match self {
            View::Quiet => {}
            View::Lines => {
                if let Some((digest, words)) = outcome(&step) {
                    eprintln!("{}: {words}", short(digest));
                }
            }
            View::Bars { all, blobs } => bars(all, blobs, step),
        }
    }
}

/// How a blob ended, in Docker's words.
fn outcome(step: &PushStep) -> Option<(&str, String)> {
    match step {
        PushStep::Existed { digest } => Some((digest, "Layer already exists".into())),
        PushStep::Mounted { digest, from } => Some((digest, format!("Mounted from {from}"))),
        PushStep::Sent { digest } => Some((digest, "Pushed".into())),
        PushStep::Referrer { digest } => Some((digest, "Pushed, as it refers to the image".into())),
        _ => None,
    }
}

fn bars(all: &MultiProgress, blobs: &mut HashMap<String, ProgressBar>, step: PushStep) {
    if let Some((digest, words)) = outcome(&step) {
        match blobs.get(digest) {
            Some(bar) => {
                bar.set_position(bar.length().unwrap_or(0));
                bar.abandon_with_message(words);
            }
            // A terminal that cannot be written to shows nothing.
            None => drop(all.println(format!("{}: {words}", short(digest)))),
        }
        return;
    }
    match step {
        PushStep::Blobs { blobs: found } => {
            let style = ProgressStyle::with_template("{prefix}: {msg:<20} [{bar:30}] {bytes}/{total_bytes}")
                .expect("a valid template")
                .progress_chars("=> ");
            for (digest, size) in found {
                let bar = all.add(ProgressBar::new(size)).with_style(style.clone());
                bar.set_prefix(short(&digest));
                bar.set_message("Waiting");
                blobs.insert(digest, bar);
            }
        }
        PushStep::Sending { digest, current } => {
            if let Some(bar) = blobs.get(&digest) {
                bar.set_message("Pushing");
                bar.set_position(current);
            }
        }
        _ => {}
    }
}
