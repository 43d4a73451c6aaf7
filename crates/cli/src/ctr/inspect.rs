//! `ctr images inspect`: an image as the tree of its documents.
//!
//! ```text
//! NAME
//! └── index ─┬─ manifest ─┬─ config
//!            │            └─ layers
//!            └─ …
//! ```

use api::grpc::content::InfoRequest;
use image::Node;
use serde::Serialize;
use serde_json::Value;
use types::descriptor::media_type::{is_index, is_manifest};
use types::{Descriptor, Result, UnlessGone};

use super::command::Call;
use super::connection::{Answer, Connection, service};
use super::{content, events, images, table};

/// What stands before a document, and before all that is below it: of one that others follow, and of the last.
const MIDDLE: (&str, &str) = ("├── ", "│   ");
const LAST: (&str, &str) = ("└── ", "    ");

pub(super) async fn inspect(call: Call) -> Result<u8> {
    let connection = call.connect().await?;
    let with_content = call.is("content");
    let image = images::get(&connection, call.word(0, "image")?).await?;
    let (created, updated) = (image.created_at.as_ref(), image.updated_at.as_ref());
    table::lines([image.name]);
    for (what, time) in [("Created", created), ("Updated", updated)] {
        table::lines([format!("{} {what}: {}", MIDDLE.1, events::go_time(time))]);
    }
    table::lines(image.labels.iter().map(|(key, value)| format!("{} Label {key:?}: {value:?}", MIDDLE.1)));
    let target = image.target.unwrap_or_default();
    let size = u64::try_from(target.size).unwrap_or(0);
    let target = Descriptor::new(&target.media_type, target.digest.parse()?, size);
    let mut pending = vec![(target, LAST.0.to_owned(), LAST.1.to_owned())];
    while let Some((blob, before, below)) = pending.pop() {
        table::lines([line(&before, &blob)]);
        if let Some(platform) = blob.platform.as_ref().filter(|platform| !platform.architecture.is_empty()) {
            table::lines([format!("{below}{} Platform: {platform}", MIDDLE.1)]);
        }
        let Some(bytes) = content::read(&connection, &blob.digest.to_string()).await.unless_gone()? else {
            table::lines([format!("{below}{} Content does not exist locally, skipping", LAST.0)]);
            continue;
        };
        if with_content {
            show(&connection, &blob, &bytes, &format!("{below}{}", MIDDLE.1)).await?;
        }
        if !is_index(&blob.media_type) && !is_manifest(&blob.media_type) {
            continue;
        }
        match Node::parse(&blob.media_type, &bytes)? {
            Node::Manifest(manifest) => {
                let shape = if manifest.layers.is_empty() { LAST } else { MIDDLE };
                let config = &manifest.config;
                table::lines([line(&format!("{below}{}", shape.0), config)]);
                if with_content
                    && let Some(bytes) =
                        content::read(&connection, &config.digest.to_string()).await.unless_gone()?
                {
                    show(&connection, config, &bytes, &format!("{below}{}", shape.1)).await?;
                }
                for (at, layer) in manifest.layers.iter().enumerate() {
                    let shape = if at + 1 == manifest.layers.len() { LAST } else { MIDDLE };
                    table::lines([line(&format!("{below}{}", shape.0), layer)]);
                }
            }
            Node::Index(index) => {
                let count = index.manifests.len();
                // The first is to be taken first.
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

fn line(before: &str, blob: &Descriptor) -> String {
    format!("{before}{} @{} ({} bytes)", blob.media_type, blob.digest, blob.size)
}

/// Prints the labels of a blob, and the blob itself if it is JSON.
async fn show(connection: &Connection, blob: &Descriptor, bytes: &[u8], margin: &str) -> Result<()> {
    let end = format!("{margin}└───────────────────────");
    let request = connection.request(InfoRequest { digest: blob.digest.to_string() })?;
    let mut client = service!(connection, content::content_client::ContentClient);
    let labels = client.info(request).await.answer()?.info.unwrap_or_default().labels;
    if !labels.is_empty() {
        table::lines([format!("{margin}┌────────Labels─────────")]);
        table::lines(labels.iter().map(|(key, value)| format!("{margin}│{key:?}: {value:?}")));
        table::lines([&end]);
    }
    if blob.media_type.ends_with("json")
        && let Ok(document) = serde_json::from_slice::<Value>(bytes)
    {
        table::lines([format!("{margin}┌────────Content────────")]);
        table::lines(indented(&document).lines().map(|line| format!("{margin}│{line}")));
        table::lines([&end]);
    }
    Ok(())
}

/// JSON with an indent of three.
fn indented(document: &Value) -> String {
    let mut text = Vec::new();
    let format = serde_json::ser::PrettyFormatter::with_indent(b"   ");
    let mut serializer = serde_json::Serializer::with_formatter(&mut text, format);
    document.serialize(&mut serializer).expect("a value has a JSON form");
    String::from_utf8_lossy(&text).into_owned()
}
