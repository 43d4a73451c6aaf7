//! `ctr images inspect`: prints an image as a tree of its documents.
//!
//! ```text
//! NAME
//! └── index ─┬─ manifest ─┬─ config
//!            │            └─ layers
//!            └─ …
//! ```

use api::grpc::content::{Info, InfoRequest};
use image::Node;
use serde_json::Value;
use types::descriptor::media_type::is_document;
use types::{Descriptor, Result, UnlessGone};

use super::command::Call;
use super::connection::{Answer, Connection, service};
use super::{content, events, images, table};
use crate::output::printable;

/// The prefixes of a child's line, and of all lines below it: for a child with siblings after it, and for the last.
const MIDDLE: (&str, &str) = ("├── ", "│   ");
const LAST: (&str, &str) = ("└── ", "    ");

pub(super) async fn inspect(call: Call) -> Result<u8> {
    let connection = call.connect().await?;
    let with_content = call.is("content");
    let image = images::get(&connection, call.word(0, "image")?).await?;
    let (created, updated) = (image.created_at.as_ref(), image.updated_at.as_ref());
    say(&image.name);
    for (what, time) in [("Created", created), ("Updated", updated)] {
        say(&format!("{} {what}: {}", MIDDLE.1, events::go_time(time)));
    }
    for (key, value) in &image.labels {
        say(&format!("{} Label {key:?}: {value:?}", MIDDLE.1));
    }
    let target = image.target.unwrap_or_default();
    let size = u64::try_from(target.size).unwrap_or(0);
    let target = Descriptor::new(&target.media_type, target.digest.parse()?, size);
    let mut pending = vec![(target, LAST.0.to_owned(), LAST.1.to_owned())];
    while let Some((blob, before, below)) = pending.pop() {
        say(&line(&before, &blob));
        if let Some(platform) = blob.platform.as_ref().filter(|platform| !platform.architecture.is_empty()) {
            say(&format!("{below}{} Platform: {platform}", MIDDLE.1));
        }
        let Some(found) = info(&connection, &blob).await.unless_gone()? else {
            say(&format!("{below}{} Content does not exist locally, skipping", LAST.0));
            continue;
        };
        if with_content {
            show(&connection, &blob, &found, &format!("{below}{}", MIDDLE.1)).await?;
        }
        // An index may reference anything of any size: read only documents.
        if !is_document(&blob.media_type) {
            continue;
        }
        let bytes = content::read(&connection, &blob.digest.to_string()).await?;
        match Node::parse(&blob.media_type, &bytes)? {
            Node::Manifest(manifest) => {
                let shape = if manifest.layers.is_empty() { LAST } else { MIDDLE };
                let config = &manifest.config;
                say(&line(&format!("{below}{}", shape.0), config));
                if with_content && let Some(found) = info(&connection, config).await.unless_gone()? {
                    show(&connection, config, &found, &format!("{below}{}", shape.1)).await?;
                }
                for (at, layer) in manifest.layers.iter().enumerate() {
                    let shape = if at + 1 == manifest.layers.len() { LAST } else { MIDDLE };
                    say(&line(&format!("{below}{}", shape.0), layer));
                }
            }
            Node::Index(index) => {
                let count = index.manifests.len();
                // On a stack: push in reverse, so that the first child is popped first.
                for (at, child) in index.manifests.iter().enumerate().rev() {
                    let shape = if at + 1 == count { LAST } else { MIDDLE };
                    let (before, below) = (format!("{below}{}", shape.0), format!("{below}{}", shape.1));
                    pending.push((child.clone(), before, below));
                }
            }
        }
    }
    Ok(0)
}

/// Prints a line, with control characters escaped, as it has text from images.
fn say(line: &str) {
    table::lines([printable(line)]);
}

fn line(before: &str, blob: &Descriptor) -> String {
    format!("{before}{} @{} ({} bytes)", blob.media_type, blob.digest, blob.size)
}

async fn info(connection: &Connection, blob: &Descriptor) -> Result<Info> {
    let request = connection.request(InfoRequest { digest: blob.digest.to_string() })?;
    let mut client = service!(connection, content::content_client::ContentClient);
    Ok(client.info(request).await.answer()?.info.unwrap_or_default())
}

/// Prints the labels of a blob, and the blob itself if it is JSON.
async fn show(connection: &Connection, blob: &Descriptor, info: &Info, margin: &str) -> Result<()> {
    let end = format!("{margin}└───────────────────────");
    if !info.labels.is_empty() {
        say(&format!("{margin}┌────────Labels─────────"));
        for (key, value) in &info.labels {
            say(&format!("{margin}│{key:?}: {value:?}"));
        }
        say(&end);
    }
    if !blob.media_type.ends_with("json") {
        return Ok(());
    }
    let bytes = content::read(connection, &blob.digest.to_string()).await?;
    if let Ok(document) = std::str::from_utf8(&bytes)
        && serde_json::from_str::<Value>(document).is_ok()
    {
        say(&format!("{margin}┌────────Content────────"));
        indented(document, |line| say(&format!("{margin}│{line}")));
        say(&end);
    }
    Ok(())
}

/// Passes each line of a JSON document, indented by three spaces like Go's `json.Indent`, to `take`. The order of keys
/// and the spelling of values are kept.
fn indented(document: &str, mut take: impl FnMut(&str)) {
    let (mut line, mut depth) = (String::new(), 0);
    let (mut in_string, mut is_escaped, mut opened) = (false, false, false);
    for letter in document.chars() {
        if in_string {
            line.push(letter);
            in_string = is_escaped || letter != '"';
            is_escaped = !is_escaped && letter == '\\';
            continue;
        }
        if letter.is_ascii_whitespace() {
            continue;
        }
        let closes = matches!(letter, '}' | ']');
        depth -= usize::from(closes);
        // A line ends after an opening and before a closing bracket, unless the brackets are empty.
        if opened != closes {
            take(&line);
            line = "   ".repeat(depth);
        }
        opened = matches!(letter, '{' | '[');
        depth += usize::from(opened);
        in_string = letter == '"';
        line.push(letter);
        match letter {
            ':' => line.push(' '),
            ',' => {
                take(&line);
                line = "   ".repeat(depth);
            }
            _ => {}
        }
    }
    take(&line);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_is_indented_without_changing_order_or_spelling() {
        let document = r#" {"b":1.50,"a" : [ ],"c":[{"d\"{,":"\\"},{ }, true], "b":"\u0041:"}
"#;
        let mut lines = Vec::new();
        indented(document, |line| lines.push(line.to_owned()));
        let expected = [
            "{",
            r#"   "b": 1.50,"#,
            r#"   "a": [],"#,
            r#"   "c": ["#,
            "      {",
            r#"         "d\"{,": "\\""#,
            "      },",
            "      {},",
            "      true",
            "   ],",
            r#"   "b": "\u0041:""#,
            "}",
        ];
        assert_eq!(lines, expected);
        let mut lines = Vec::new();
        indented("7\n", |line| lines.push(line.to_owned()));
        assert_eq!(lines, ["7"]);
    }
}
