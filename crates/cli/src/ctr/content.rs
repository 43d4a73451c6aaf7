//! `ctr content`: blobs and ingests.

use std::collections::BTreeMap;
use std::io::Write;

use api::grpc::content::{
    AbortRequest, DeleteContentRequest, Info, ListContentRequest, ListStatusesRequest, ReadContentRequest,
    UpdateRequest, WriteAction, WriteContentRequest,
};
use prost_types::FieldMask;
use tokio::io::AsyncReadExt;
use tokio_stream::wrappers::ReceiverStream;
use types::label::gc::CONTENT;
use types::{Context, Error, Result};

use super::command::{Call, Command, Flag, shown};
use super::connection::{Answer, Connection, all, present, service};
use super::{objects, table};
use crate::output::said;
use crate::private_folder::PrivateFolder;

/// Bytes in one message of an ingest.
const CHUNK_LEN: usize = 1 << 20;
/// The number of messages that wait to be sent.
const WAITING_MAX: usize = 4;

pub(super) const VERBS: &[Command] = &[
    Command::new(
        "active",
        "[flags] [<regexp>]",
        "list ingests",
        &[
            Flag::value("timeout,t", "the timeout, such as 30s"),
            Flag::value("root", "no effect: the daemon has its own"),
        ],
        |call| Box::pin(active(call)),
    ),
    Command::new("abort", "<ref> [<ref>, ...]", "abort ingests", &[], |call| Box::pin(abort(call))),
    Command::new("delete|del|remove|rm", "[<digest>, ...]", "delete blobs", &[], |call| {
        Box::pin(delete(call))
    }),
    Command::new(
        "edit",
        "[flags] <digest>",
        "edit a blob in an editor, and print the digest of the new blob",
        &[
            Flag::value("validate", "check the new content: json"),
            Flag::value("editor", "the editor [$EDITOR]"),
        ],
        |call| Box::pin(edit(call)),
    ),
    Command::new("get", "<digest>", "write a blob to standard output", &[], |call| Box::pin(get(call))),
    Command::new(
        "ingest",
        "[flags] <key>",
        "store a blob from standard input",
        &[
            Flag::value("expected-size", "the expected size"),
            Flag::value("expected-digest", "the expected digest"),
        ],
        |call| Box::pin(ingest(call)),
    ),
    Command::new(
        "list|ls",
        "[flags] [<filter>, ...]",
        "list blobs",
        &[Flag::switch("quiet,q", "print only the digests")],
        |call| Box::pin(list(call)),
    ),
    Command::new("label", "<digest> [<label>=<value> ...]", "set and clear labels", &[], |call| {
        Box::pin(label(call))
    }),
    Command::group("prune", "remove references to blobs that are no longer needed", PRUNE_VERBS),
    Command {
        flags: super::transfer::FETCH_FLAGS,
        ..Command::new("fetch", "[flags] <ref>", "fetch an image without unpacking it", &[], |call| {
            Box::pin(super::transfer::fetch(call))
        })
    },
    Command::new(
        "fetch-object",
        "[flags] <remote> [<object> ...]",
        "write the object of a registry's reference to standard output",
        objects::FLAGS,
        |call| Box::pin(objects::fetch_object(call)),
    ),
    Command::new(
        "fetch-blob",
        "[flags] <remote> <digest> [<digest>, ...]",
        "write blobs of a registry to standard output",
        objects::BLOB_FLAGS,
        |call| Box::pin(objects::fetch_blob(call)),
    ),
    Command::new(
        "push-object",
        "[flags] <remote> <object> <type>",
        "push a local blob or document to a registry",
        objects::FLAGS,
        |call| Box::pin(objects::push_object(call)),
    ),
];

const PRUNE_VERBS: &[Command] = &[Command::new(
    "references",
    "[flags]",
    "remove the labels by which documents retain layers, so that the layers are collected",
    &[
        Flag::switch("async", "do not wait for the garbage collection"),
        Flag::switch("dry", "only print what would be done"),
    ],
    |call| Box::pin(prune_references(call)),
)];

/// The infix of labels by which a document retains its layers; it follows the prefix of references to blobs.
const LAYER: &str = ".l.";

async fn prune_references(call: Call) -> Result<u8> {
    let connection = call.connect().await?;
    let request = connection.request(ListContentRequest::default())?;
    let mut client = service!(connection, content::content_client::ContentClient);
    let stream = client.list(request).await.answer()?;
    for blob in all(stream).await?.into_iter().flat_map(|message| message.info) {
        let keeps_layer =
            |key: &String| key.strip_prefix(CONTENT).is_some_and(|rest| rest.starts_with(LAYER));
        let cleared: Vec<String> = blob.labels.into_keys().filter(keeps_layer).collect();
        if cleared.is_empty() {
            continue;
        }
        table::lines(cleared.iter().map(|key| format!("{}: {key}", blob.digest)));
        if call.is("dry") {
            continue;
        }
        let request = UpdateRequest {
            info: Some(Info { digest: blob.digest, ..Info::default() }),
            update_mask: Some(FieldMask {
                paths: cleared.iter().map(|key| format!("labels.{key}")).collect(),
            }),
        };
        client.update(connection.request(request)?).await.answer()?;
    }
    if !call.is("dry") && !call.is("async") {
        let (_, lease) = super::leases::hold(&connection).await?;
        super::leases::release_and_collect(&connection, lease).await?;
    }
    Ok(0)
}

/// Stores the edited content as a new blob, as blobs are immutable.
async fn edit(call: Call) -> Result<u8> {
    let connection = call.connect().await?;
    let digest = call.word(0, "digest")?;
    let is_json = match call.value("validate") {
        None => false,
        Some("json") => true,
        Some(other) => {
            return Err(Error::invalid_argument(format!("--validate {other}: only json is known")));
        }
    };
    let editor = call.value("editor").map(str::to_owned).or_else(|| std::env::var("EDITOR").ok());
    let editor = editor.filter(|editor| !editor.is_empty()).unwrap_or_else(|| "vi".to_owned());
    let bytes = read(&connection, digest).await?;
    let folder = PrivateFolder::create(&call.socket())?;
    let file = folder.path().join("blob");
    std::fs::write(&file, &bytes).context(|| format!("write {}", file.display()))?;
    // Through a shell, as `$EDITOR` may have flags.
    let run =
        std::process::Command::new("sh").args(["-c", &format!("{editor} \"$1\""), "sh"]).arg(&file).status();
    let status = run.context(|| format!("run the editor {editor:?}"))?;
    if !status.success() {
        return Err(Error::aborted(format!(
            "the editor {editor:?} ended with {status}; nothing was changed"
        )));
    }
    let edited = std::fs::read(&file).context(|| format!("read {}", file.display()))?;
    if is_json {
        serde_json::from_slice::<serde_json::Value>(&edited)
            .map_err(|error| Error::invalid_argument("what you wrote is no JSON").with_source(error))?;
    }
    let reference = format!("edit-{digest}-{}", std::process::id());
    // No object references the blob yet: a root label retains it until the user removes it.
    let labels = super::snapshots::root_label();
    table::lines([put(&connection, &reference, &edited, labels).await?]);
    Ok(0)
}

/// Stores a blob and returns its digest. It may exist already.
pub(super) async fn put(
    connection: &Connection,
    reference: &str,
    blob: &[u8],
    labels: BTreeMap<String, String>,
) -> Result<String> {
    let digest = types::Digest::of(blob).to_string();
    let len = i64::try_from(blob.len()).unwrap_or(i64::MAX);
    let message = |action: WriteAction, offset, data, labels| WriteContentRequest {
        action: action.into(),
        r#ref: reference.to_owned(),
        total: len,
        expected: digest.clone(),
        offset,
        data,
        labels,
    };
    let mut messages = Vec::new();
    for (at, chunk) in blob.chunks(CHUNK_LEN).enumerate() {
        let offset = i64::try_from(at * CHUNK_LEN).unwrap_or(i64::MAX);
        let data = bytes::Bytes::copy_from_slice(chunk);
        messages.push(message(WriteAction::Write, offset, data, [].into()));
    }
    messages.push(message(WriteAction::Commit, len, bytes::Bytes::new(), labels));
    let mut client = service!(connection, content::content_client::ContentClient);
    let written = match client.write(connection.request(tokio_stream::iter(messages))?).await.answer() {
        Ok(answers) => all(answers).await.map(drop),
        Err(error) => Err(error),
    };
    match written {
        Err(error) if !error.is(types::ErrorKind::AlreadyExists) => Err(error),
        _ => Ok(digest),
    }
}

async fn list(call: Call) -> Result<u8> {
    let connection = call.connect().await?;
    let request = connection.request(ListContentRequest { filters: call.words().to_vec() })?;
    let stream = service!(connection, content::content_client::ContentClient).list(request).await.answer()?;
    let blobs: Vec<Info> = all(stream).await?.into_iter().flat_map(|message| message.info).collect();
    if call.is("quiet") {
        table::lines(blobs.iter().map(|blob| &blob.digest));
    } else {
        let row = |blob: &Info| {
            let labels = if blob.labels.is_empty() { "-".to_owned() } else { shown(&blob.labels) };
            let age = table::age(blob.created_at.as_ref());
            vec![blob.digest.clone(), table::decimal_size(blob.size), age, labels]
        };
        table::print(&["DIGEST", "SIZE", "AGE", "LABELS"], &blobs.iter().map(row).collect::<Vec<_>>());
    }
    Ok(0)
}

async fn active(call: Call) -> Result<u8> {
    let connection = call.connect().await?;
    let filters = call.words().iter().map(|pattern| format!("ref~={pattern:?}")).collect();
    let request = connection.request(ListStatusesRequest { filters })?;
    let mut client = service!(connection, content::content_client::ContentClient);
    let statuses = client.list_statuses(request).await.answer()?.statuses;
    let rows: Vec<_> = statuses
        .iter()
        .map(|status| {
            let age = table::age(status.started_at.as_ref());
            vec![status.r#ref.clone(), table::decimal_size(status.offset), age]
        })
        .collect();
    table::print(&["REF", "SIZE", "AGE"], &rows);
    Ok(0)
}

async fn abort(call: Call) -> Result<u8> {
    let connection = call.connect().await?;
    for name in call.words_from(0, "ref")? {
        let request = connection.request(AbortRequest { r#ref: name.clone() })?;
        service!(connection, content::content_client::ContentClient).abort(request).await.answer()?;
        table::lines([name]);
    }
    Ok(0)
}

async fn delete(call: Call) -> Result<u8> {
    let connection = call.connect().await?;
    let mut code = 0;
    for digest in call.words() {
        let request = connection.request(DeleteContentRequest { digest: digest.clone() })?;
        match service!(connection, content::content_client::ContentClient).delete(request).await.answer() {
            Ok(()) => table::lines([digest]),
            Err(error) => {
                eprintln!("ctr: failed to delete {digest}: {}", said(&error));
                code = 1;
            }
        }
    }
    Ok(code)
}

async fn get(call: Call) -> Result<u8> {
    let connection = call.connect().await?;
    copy(&connection, call.word(0, "digest")?, std::io::stdout().lock()).await?;
    Ok(0)
}

/// Writes a blob's content to `out`.
pub(super) async fn copy(connection: &Connection, digest: &str, mut out: impl Write) -> Result<()> {
    let mut stream = open(connection, digest).await?;
    while let Some(message) = stream.message().await.map_err(|status| client::error(&status))? {
        out.write_all(&message.data).context(|| "write to standard output")?;
    }
    out.flush().context(|| "write to standard output")
}

async fn open(
    connection: &Connection,
    digest: &str,
) -> Result<tonic::Streaming<api::grpc::content::ReadContentResponse>> {
    let request = ReadContentRequest { digest: digest.to_owned(), offset: 0, size: 0 };
    let request = connection.request(request)?;
    service!(connection, content::content_client::ContentClient).read(request).await.answer()
}

/// Reads a whole blob, which must be a small document.
pub(super) async fn read(connection: &Connection, digest: &str) -> Result<Vec<u8>> {
    const DOCUMENT_LEN_MAX: usize = 8 << 20;
    let mut stream = open(connection, digest).await?;
    let mut bytes = Vec::new();
    while let Some(message) = stream.message().await.map_err(|status| client::error(&status))? {
        bytes.extend_from_slice(&message.data);
        if bytes.len() > DOCUMENT_LEN_MAX {
            return Err(Error::failed_precondition(format!("{digest} is larger than a document may be")));
        }
    }
    Ok(bytes)
}

async fn ingest(call: Call) -> Result<u8> {
    let connection = call.connect().await?;
    let key = call.word(0, "key")?.to_owned();
    let total = call.number("expected-size")?.unwrap_or(0);
    let expected = call.value("expected-digest").unwrap_or_default().to_owned();
    let (messages, receive) = tokio::sync::mpsc::channel(WAITING_MAX);
    let request = connection.request(ReceiverStream::new(receive))?;
    let reading = async move {
        let mut offset = 0;
        let mut input = tokio::io::stdin();
        let message = |action: WriteAction, offset, data| WriteContentRequest {
            action: action.into(),
            r#ref: key.clone(),
            total,
            expected: expected.clone(),
            offset,
            data,
            labels: [].into(),
        };
        // A write at offset 0 truncates what an earlier attempt left under the reference.
        let mut next = message(WriteAction::Write, 0, bytes::Bytes::new());
        loop {
            if messages.send(next).await.is_err() {
                // The daemon ended the call: its answer has the reason.
                return Ok(());
            }
            let mut buffer = vec![0; CHUNK_LEN];
            let len = input.read(&mut buffer).await.context(|| "read from standard input")?;
            if len == 0 {
                break;
            }
            buffer.truncate(len);
            next = message(WriteAction::Write, offset, buffer.into());
            offset += i64::try_from(len).unwrap_or(i64::MAX);
        }
        let _ = messages.send(message(WriteAction::Commit, offset, bytes::Bytes::new())).await;
        Ok(())
    };
    let mut client = service!(connection, content::content_client::ContentClient);
    let writing = async {
        let answers = client.write(request).await.answer()?;
        all(answers).await
    };
    tokio::pin!(reading, writing);
    // Stop reading once the daemon has answered: a terminal as input may never end.
    let written = tokio::select! {
        written = &mut writing => written,
        read = &mut reading => match read {
            Ok(()) => writing.await,
            Err(error) => Err(error),
        },
    };
    match written {
        // As with containerd's, success: the blob exists.
        Err(error) if error.is(types::ErrorKind::AlreadyExists) => Ok(0),
        written => written.map(|_| 0),
    }
}

async fn label(call: Call) -> Result<u8> {
    let connection = call.connect().await?;
    let digest = call.word(0, "digest")?.to_owned();
    let labels = Call::labels(&call.words()[1..]);
    let paths = labels.keys().map(|key| format!("labels.{key}")).collect();
    let request = UpdateRequest {
        info: Some(Info { digest, labels, ..Info::default() }),
        update_mask: Some(FieldMask { paths }),
    };
    let request = connection.request(request)?;
    let updated =
        service!(connection, content::content_client::ContentClient).update(request).await.answer()?;
    table::lines([shown(&present(updated.info, "blob")?.labels)]);
    Ok(0)
}
