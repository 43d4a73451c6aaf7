//! Requests that take long, with a progress bar.

use api::engine::{Follow, ImageFollow, ImageStep};
use client::Client;
use serde_json::Value;
use types::{Error, Result};

use crate::output;

/// Follows a request to its end. Returns the last answer, and the rows before it.
pub(super) async fn follow(client: &Client, question: &Follow, quiet: bool) -> Result<(Value, Vec<Value>)> {
    let mut answers = client.follow(question).await?;
    let bar = output::bytes_bar("Working", Some(0), quiet);
    let mut found = Vec::new();
    while let Some(step) = answers.next::<ImageStep>().await.inspect_err(|_| bar.finish_and_clear())? {
        match step {
            ImageStep::Progress { what, current, total } => {
                bar.set_length(total);
                bar.set_position(current);
                bar.set_message(what);
            }
            ImageStep::Rows { rows } => found.extend(rows),
            ImageStep::Done { answer } => {
                bar.finish_and_clear();
                return Ok((answer, found));
            }
        }
    }
    bar.finish_and_clear();
    Err(Error::unavailable("the daemon stopped in the middle of the work"))
}

/// Follows a request whose progress is shown otherwise, and returns the last answer.
pub(crate) async fn outcome(client: &Client, follow: ImageFollow) -> Result<Value> {
    let (answer, _) = self::follow(client, &Follow::Image(follow), true).await?;
    Ok(answer)
}
