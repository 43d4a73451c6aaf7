//! Pulling, with a bar for each layer on a terminal and a line for each step elsewhere.

use std::collections::HashMap;
use std::io::IsTerminal;

use api::engine::{Follow, Keyring, PullStep};
use clap::Args;
use client::Client;
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use types::{Error, Reference, Result};

use crate::credentials;
use crate::output::short;

#[derive(Args)]
pub(crate) struct Flags {
    #[arg(long, short)]
    quiet: bool,
    #[arg(long)]
    platform: Option<String>,
    image: String,
}

pub(crate) async fn run(client: &Client, flags: Flags) -> Result<u8> {
    let Flags { quiet, platform, image } = flags;
    let (name, digest) = pull(client, &image, platform, quiet).await?;
    if !quiet {
        println!("Digest: {digest}");
    }
    println!("{name}");
    Ok(0)
}

/// Pulls an image and returns its name and digest.
pub(crate) async fn pull(
    client: &Client,
    reference: &str,
    platform: Option<String>,
    quiet: bool,
) -> Result<(String, String)> {
    // A name that is none is refused by the daemon, like any other mistake in it.
    let credentials = match reference.parse::<Reference>() {
        Ok(parsed) => credentials::for_pull(client, &parsed).await?.keyring,
        Err(_) => Keyring::new(),
    };
    let question = Follow::Pull { reference: reference.to_owned(), platform, credentials };
    let mut answers = client.follow(&question).await?;
    let mut view = if quiet {
        View::Quiet
    } else if std::io::stderr().is_terminal() {
        View::Bars { all: MultiProgress::new(), layers: HashMap::new() }
    } else {
        View::Lines
    };
    while let Some(step) = answers.next::<PullStep>().await? {
        if let PullStep::Done { name, digest } = step {
            return Ok((name, digest));
        }
        view.show(step);
    }
    Err(Error::unavailable("the daemon stopped telling how the pull goes; pull again to take it up"))
}

enum View {
    Quiet,
    Lines,
    Bars { all: MultiProgress, layers: HashMap<String, ProgressBar> },
}

impl View {
    fn show(&mut self, step: PullStep) {
        match self {
            View::Quiet => {}
            View::Lines => lines(&step),
            View::Bars { all, layers } => bars(all, layers, step),
        }
    }
}

fn lines(step: &PullStep) {
    match step {
        PullStep::Resolved { name, digest } => eprintln!("Pulling {name} ({digest})"),
        PullStep::LayerDone { digest } => eprintln!("{}: Pull complete", short(digest)),
        PullStep::LayerExists { digest } => eprintln!("{}: Already exists", short(digest)),
        _ => {}
    }
}

fn bars(all: &MultiProgress, layers: &mut HashMap<String, ProgressBar>, step: PullStep) {
    let say = |digest: &str, words: &'static str| {
        if let Some(bar) = layers.get(digest) {
            bar.set_message(words);
        }
    };
    match step {
        PullStep::Resolved { name, .. } => {
            // A terminal that cannot be written to shows nothing.
            let _ = all.println(format!("Pulling {name}"));
        }
        PullStep::Layers { layers: found } => {
            let style = ProgressStyle::with_template("{prefix}: {msg:<16} [{bar:30}] {bytes}/{total_bytes}")
                .expect("a valid template")
                .progress_chars("=> ");
            for (digest, size) in found {
                let bar = all.add(ProgressBar::new(size)).with_style(style.clone());
                bar.set_prefix(short(&digest));
                bar.set_message("Waiting");
                layers.insert(digest, bar);
            }
        }
        PullStep::Downloading { digest, current } => {
            say(&digest, "Downloading");
            if let Some(bar) = layers.get(&digest) {
                bar.set_position(current);
            }
        }
        PullStep::Extracting { digest } => say(&digest, "Extracting"),
        PullStep::LayerDone { digest } => {
            if let Some(bar) = layers.get(&digest) {
                bar.set_position(bar.length().unwrap_or(0));
                bar.abandon_with_message("Pull complete");
            }
        }
        PullStep::LayerExists { digest } => {
            if let Some(bar) = layers.get(&digest) {
                bar.abandon_with_message("Already exists");
            }
        }
        PullStep::Done { .. } | PullStep::Failed { .. } => {}
    }
}
