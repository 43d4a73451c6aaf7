//! `logs`: prints a container's log.

use std::io::Write;

use api::engine::{Follow, LogLine, Logs};
use clap::Args;
use client::Client;
use types::{Error, Result};

#[derive(Args)]
pub(crate) struct Flags {
    /// Also show new output
    #[arg(long, short)]
    follow: bool,
    /// Only this many last lines, or all
    #[arg(long, short = 'n', allow_negative_numbers = true)]
    tail: Option<String>,
    /// Show the time of each line
    #[arg(long, short)]
    timestamps: bool,
    /// Only what was written since: a time, seconds since 1970, or a duration before now such as 10m
    #[arg(long, value_name = "TIME")]
    since: Option<String>,
    /// Only what was written until then
    #[arg(long, value_name = "TIME")]
    until: Option<String>,
    /// Show extra attributes of each line; there are none, so a blank as Docker prints
    #[arg(long)]
    details: bool,
    /// Name or id
    container: String,
}

pub(super) async fn run(client: &Client, flags: Flags) -> Result<u8> {
    let Flags { follow, tail, timestamps, since, until, details, container: id } = flags;
    let tail = match tail.as_deref() {
        None | Some("all") => None,
        // As with Docker, a negative number means all.
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
        // The reader, such as a pager, has ended.
        if written.is_err() {
            break;
        }
    }
    Ok(0)
}
