//! `events`: prints events, one on each line.

use api::engine::{Events, Follow, Happened};
use clap::Args;
use client::Client;
use serde_json::Value;
use types::{Error, Result, Timestamp};

use crate::output::printable;
use crate::template;

#[derive(Args)]
pub(crate) struct Flags {
    /// container=, event=, image=, label=KEY[=VALUE], network=, volume=, scope=local, type=container|image|network|volume
    #[arg(long, short, value_name = "KEY=VALUE")]
    filter: Vec<String>,
    /// Also earlier events since then: a duration such as 10m, a time, or seconds since 1970
    #[arg(long, value_name = "TIME", allow_hyphen_values = true)]
    since: Option<String>,
    /// Only events until then
    #[arg(long, value_name = "TIME", allow_hyphen_values = true)]
    until: Option<String>,
    /// `json`, or a template
    #[arg(long)]
    format: Option<String>,
}

/// Prints events until `--until`, an interrupt, or the end of the daemon.
pub(super) async fn run(client: &Client, flags: Flags) -> Result<u8> {
    let is_bounded = flags.until.is_some();
    let events = Events { filters: flags.filter, since: flags.since, until: flags.until };
    let mut answers = client.follow(&Follow::Events(events)).await?;
    while let Some(happened) = answers.next::<Happened>().await? {
        match flags.format.as_deref() {
            None | Some("") => println!("{}", line(&happened)),
            Some("json") => println!("{}", document(&happened)),
            Some(format) => println!("{}", template::render(format, &document(&happened))?),
        }
    }
    if is_bounded { Ok(0) } else { Err(Error::unavailable("the daemon stopped")) }
}

/// The event as JSON, with the older fields that Docker still sends.
fn document(happened: &Happened) -> Value {
    let mut document = serde_json::to_value(happened).expect("plain data");
    let Happened { action, actor, .. } = happened;
    document["status"] = action.as_str().into();
    document["id"] = actor.id.as_str().into();
    document["from"] = actor.attributes.get("image").cloned().unwrap_or_default().into();
    document
}

/// The event as Docker prints it.
fn line(happened: &Happened) -> String {
    let nanos = u32::try_from(happened.time_nano.rem_euclid(1_000_000_000)).unwrap_or(0);
    let time = Timestamp { seconds: happened.time, nanos };
    let attributes = happened.actor.attributes.iter();
    let attributes: Vec<String> = attributes.map(|(key, value)| format!("{key}={value}")).collect();
    let (kind, action, id) = (&happened.kind, &happened.action, &happened.actor.id);
    let line = format!("{time} {kind} {action} {id} ({})", attributes.join(", "));
    printable(&line).into_owned()
}
