//! The progress of blobs: a bar for each on a terminal, otherwise a line for each that is complete.

use std::collections::HashMap;
use std::io::IsTerminal;

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use crate::output::short;

/// Printed to standard error, so that progress never mixes with output that programs read.
pub(crate) enum Progress {
    Quiet,
    Lines,
    Bars { all: MultiProgress, blobs: HashMap<String, ProgressBar> },
}

impl Progress {
    pub(crate) fn new(quiet: bool) -> Progress {
        if quiet {
            Progress::Quiet
        } else if std::io::stderr().is_terminal() {
            Progress::Bars { all: MultiProgress::new(), blobs: HashMap::new() }
        } else {
            Progress::Lines
        }
    }

    /// Prints a message, above the bars.
    pub(crate) fn say(&self, words: &str) {
        match self {
            Progress::Quiet => {}
            Progress::Lines => eprintln!("{words}"),
            // A failure to write to the terminal is ignored.
            Progress::Bars { all, .. } => drop(all.println(words)),
        }
    }

    /// Adds a bar for each blob, by its digest and size in bytes.
    pub(crate) fn expect(&mut self, expected: Vec<(String, u64)>) {
        let Progress::Bars { all, blobs } = self else { return };
        let style = ProgressStyle::with_template("{prefix}: {msg:<20} [{bar:30}] {bytes}/{total_bytes}")
            .expect("a valid template")
            .progress_chars("=> ");
        for (digest, size) in expected {
            let bar = all.add(ProgressBar::new(size)).with_style(style.clone());
            bar.set_prefix(short(&digest));
            bar.set_message("Waiting");
            blobs.insert(digest, bar);
        }
    }

    /// Updates a blob's state, and its position in bytes if it is known.
    pub(crate) fn at(&self, digest: &str, words: &'static str, current: Option<u64>) {
        let Progress::Bars { blobs, .. } = self else { return };
        let Some(bar) = blobs.get(digest) else { return };
        bar.set_message(words);
        if let Some(current) = current {
            bar.set_position(current);
        }
    }

    /// Completes a blob.
    pub(crate) fn done(&self, digest: &str, words: impl Into<String>) {
        let words = words.into();
        let bar = match self {
            Progress::Bars { blobs, .. } => blobs.get(digest),
            _ => None,
        };
        match bar {
            Some(bar) => {
                bar.set_position(bar.length().unwrap_or(0));
                bar.abandon_with_message(words);
            }
            None => self.say(&format!("{}: {words}", short(digest))),
        }
    }
}
