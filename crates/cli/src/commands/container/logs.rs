//! `logs`: what a container wrote.

use std::io::Write;

use api::engine::{Follow, LogLine, Logs};
use clap::Args;
use client::Client;
use types::{Error, Result};

#[derive(Args)]
pub(crate) struct Flags {
    /// Go on as it writes
    #[arg(long, short)]
    follow: bool,
    /// The last lines only
    #[arg(long, short = 'n', allow_negative_numbers = true)]
    tail: Option<String>,
    /// With the time of each line
    #[arg(long, short)]
    timestamps: bool,
    /// Not what was written before: a time, seconds since 1970, or how long ago, such as 10m
    #[arg(long, value_name = "TIME")]
    since: Option<String>,
    /// Not what was written after
    #[arg(long, value_name = "TIME")]
    until: Option<String>,
    /// With what its log has beside each line, which is nothing: a blank, as in Docker's
    #[arg(long)]
    details: bool,
    /// Name or id
    container: String,
}

pub(super) async fn run(client: &Client, flags: Flags) -> Result<u8> {
    let Flags { follow, tail, timestamps, since, until, details, container: id } = flags;
    let tail = match tail.as_deref() {
        None | Some("all") => None,
        // As Docker's: less than none is all.
        Some(text) if text.parse::<i64>().is_ok_and(|lines| lines < 0) => None,
        Some(text) => Some(
            text.parse().map_err(|_| Error::invalid_argument(format!("invalid number of lines {text:?}")))?,
        ),
    };
    let mut answers = client.follow(&Follow::Logs(Logs { id, follow, tail, since, until })).await?;
    while let Some(line) = answers.next::<LogLine>().await? {
        let log = if details { format!(" {}", line.log) } else { line.log };
        let shown = if timestamps { format!("{} {log}", line.time) } else { log };
        let written = match line.stream.as_str() {
            "stderr" => std::io::stderr().write_all(shown.as_bytes()),
            _ => std::io::stdout().write_all(shown.as_bytes()),
        };
        // A pager that was closed wants no more.
        if written.is_err() {
            break;
        }
    }
    Ok(0)
}
