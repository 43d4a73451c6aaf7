//! `ctr snapshots`.

use std::collections::BTreeMap;

use api::grpc::snapshots::snapshots_client::SnapshotsClient;
use api::grpc::snapshots::{
    CommitSnapshotRequest, Info, Kind, ListSnapshotsRequest, MountsRequest, PrepareSnapshotRequest,
    RemoveSnapshotRequest, StatSnapshotRequest, UpdateSnapshotRequest, UsageRequest, ViewSnapshotRequest,
};
use api::grpc::types::Mount;
use client::Channel;
use prost_types::FieldMask;
use serde_json::json;
use types::label::gc;
use types::{Context, Result};

use super::command::{Call, Command, Flag, shown};
use super::connection::{Answer, Connection, all, present, service};
use super::{layers, namespaces, table, transfer};

/// The default snapshotter of containerd's clients, which need not be the daemon's.
const DEFAULT: &str = "overlayfs";
/// The namespace label that selects another (containerd's `defaults.DefaultSnapshotterNSLabel`).
const DEFAULT_LABEL: &str = "containerd.io/defaults/snapshotter";

const SNAPSHOTTER: Flag = Flag::value("snapshotter", "the snapshotter [$CONTAINERD_SNAPSHOTTER]");
pub(super) const GROUP_FLAGS: &[Flag] = &[SNAPSHOTTER];
const NEW_FLAGS: &[Flag] = &[
    Flag::value("target,t", "print the command that mounts it on this path"),
    Flag::switch("mounts", "print its mounts as JSON"),
];

pub(super) const VERBS: &[Command] = &[
    Command::new("commit", "<key> <active>", "commit an active snapshot", &[], |call| Box::pin(commit(call))),
    Command::new(
        "diff",
        "[flags] <idA> [<idB>]",
        "write the layer between two snapshots, or between one and its parent",
        layers::DIFF_FLAGS,
        |call| Box::pin(layers::diff(call)),
    ),
    Command::new("info", "<key>", "show a snapshot", &[], |call| Box::pin(info(call))),
    Command::new("list|ls", "[<filter>, ...]", "list snapshots", &[], |call| Box::pin(list(call))),
    Command::new(
        "mounts|m|mount",
        "<target> <key>",
        "print the command that mounts a snapshot",
        &[],
        |call| Box::pin(mounts(call)),
    ),
    Command::new("prepare", "[flags] <key> [<parent>]", "create an active snapshot", NEW_FLAGS, |call| {
        Box::pin(prepare(call))
    }),
    Command::new("delete|del|remove|rm", "<key> [<key>, ...]", "remove snapshots", &[], |call| {
        Box::pin(remove(call))
    }),
    Command::new("label", "<name> [<label>=<value> ...]", "set and clear labels", &[], |call| {
        Box::pin(label(call))
    }),
    Command::new("tree", "", "show snapshots as trees of parents and children", &[], |call| {
        Box::pin(tree(call))
    }),
    Command {
        flags: &[SNAPSHOTTER, transfer::SYNC_FS],
        ..Command::new("unpack", "<digest>", "unpack the image with this digest to snapshots", &[], |call| {
            Box::pin(layers::unpack(call))
        })
    },
    Command::new(
        "usage",
        "[flags] [<key>, ...]",
        "show the disk usage of snapshots",
        &[Flag::switch("b", "sizes in bytes")],
        |call| Box::pin(usage(call)),
    ),
    Command::new("view", "[flags] <key> [<parent>]", "create a read-only snapshot", NEW_FLAGS, |call| {
        Box::pin(view(call))
    }),
];

/// The snapshotter for a command about snapshots. As in containerd's client, the namespace's label has no effect here.
pub(super) fn named(call: &Call) -> String {
    said(call).unwrap_or_else(|| DEFAULT.to_owned())
}

/// The snapshotter for images: that of the command line or environment, or of the namespace's label, as in containerd's
/// client.
pub(super) async fn of_images(call: &Call, connection: &Connection) -> Result<String> {
    if let Some(said) = said(call) {
        return Ok(said);
    }
    let labels = namespaces::labels(connection).await?;
    let label = labels.get(DEFAULT_LABEL).filter(|name| !name.is_empty());
    Ok(label.cloned().unwrap_or_else(|| DEFAULT.to_owned()))
}

/// The snapshotter on the command line or in the environment.
fn said(call: &Call) -> Option<String> {
    let said = call.value("snapshotter").filter(|name| !name.is_empty()).map(str::to_owned);
    said.or_else(|| std::env::var("CONTAINERD_SNAPSHOTTER").ok().filter(|name| !name.is_empty()))
}

pub(super) fn client(connection: &Connection) -> SnapshotsClient<Channel> {
    service!(connection, snapshots::snapshots_client::SnapshotsClient)
}

async fn listed(connection: &Connection, snapshotter: String, filters: &[String]) -> Result<Vec<Info>> {
    let request = connection.request(ListSnapshotsRequest { snapshotter, filters: filters.to_vec() })?;
    let stream = client(connection).list(request).await.answer()?;
    let mut found: Vec<Info> = all(stream).await?.into_iter().flat_map(|message| message.info).collect();
    found.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(found)
}

fn kind(info: &Info) -> &'static str {
    match info.kind() {
        Kind::Unknown => "Unknown",
        Kind::View => "View",
        Kind::Active => "Active",
        Kind::Committed => "Committed",
    }
}

async fn list(call: Call) -> Result<u8> {
    let connection = call.connect().await?;
    let found = listed(&connection, named(&call), call.words()).await?;
    let row = |info: &Info| vec![info.name.clone(), info.parent.clone(), kind(info).to_owned()];
    table::print(&["KEY", "PARENT", "KIND"], &found.iter().map(row).collect::<Vec<_>>());
    Ok(0)
}

async fn info(call: Call) -> Result<u8> {
    let connection = call.connect().await?;
    let key = call.word(0, "key")?.to_owned();
    let request = connection.request(StatSnapshotRequest { snapshotter: named(&call), key })?;
    let info = present(client(&connection).stat(request).await.answer()?.info, "snapshot")?;
    let mut shown = json!({
        "Kind": kind(&info),
        "Name": info.name,
        "Created": table::time(info.created_at.as_ref()),
        "Updated": table::time(info.updated_at.as_ref()),
    });
    // Go omits empty fields.
    if !info.parent.is_empty() {
        shown["Parent"] = info.parent.clone().into();
    }
    if !info.labels.is_empty() {
        shown["Labels"] = json!(info.labels);
    }
    table::json(&shown);
    Ok(0)
}

async fn tree(call: Call) -> Result<u8> {
    let connection = call.connect().await?;
    let found = listed(&connection, named(&call), &[]).await?;
    let mut children: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for info in &found {
        children.entry(&info.parent).or_default().push(&info.name);
    }
    let mut pending: Vec<(&str, usize)> =
        children.get("").into_iter().flatten().rev().map(|name| (*name, 0)).collect();
    while let Some((name, depth)) = pending.pop() {
        let branch = if depth == 0 { " ".to_owned() } else { format!("{}\\_ ", "  ".repeat(depth)) };
        table::lines([format!("{branch}{name}")]);
        pending.extend(children.get(name).into_iter().flatten().rev().map(|child| (*child, depth + 1)));
    }
    Ok(0)
}

async fn usage(call: Call) -> Result<u8> {
    let connection = call.connect().await?;
    let snapshotter = named(&call);
    let keys: Vec<String> = match call.words() {
        [] => {
            listed(&connection, snapshotter.clone(), &[]).await?.into_iter().map(|info| info.name).collect()
        }
        keys => keys.to_vec(),
    };
    let mut rows = Vec::new();
    for key in keys {
        let request =
            connection.request(UsageRequest { snapshotter: snapshotter.clone(), key: key.clone() })?;
        let usage = client(&connection).usage(request).await.answer()?;
        let size = if call.is("b") { usage.size.to_string() } else { table::binary_size(usage.size) };
        rows.push(vec![key, size, usage.inodes.to_string()]);
    }
    table::print(&["KEY", "SIZE", "INODES"], &rows);
    Ok(0)
}

async fn prepare(call: Call) -> Result<u8> {
    let connection = call.connect().await?;
    let request = PrepareSnapshotRequest {
        snapshotter: named(&call),
        key: call.word(0, "key")?.to_owned(),
        parent: call.words().get(1).cloned().unwrap_or_default(),
        labels: root_label(),
    };
    let mounts = client(&connection).prepare(connection.request(request)?).await.answer()?.mounts;
    show(&call, &mounts);
    Ok(0)
}

async fn view(call: Call) -> Result<u8> {
    let connection = call.connect().await?;
    let request = ViewSnapshotRequest {
        snapshotter: named(&call),
        key: call.word(0, "key")?.to_owned(),
        parent: call.words().get(1).cloned().unwrap_or_default(),
        labels: root_label(),
    };
    let mounts = client(&connection).view(connection.request(request)?).await.answer()?.mounts;
    show(&call, &mounts);
    Ok(0)
}

/// The label that retains an object which the user created directly, until the user removes it.
pub(super) fn root_label() -> BTreeMap<String, String> {
    [(gc::ROOT.to_owned(), types::Timestamp::now().to_string())].into()
}

fn show(call: &Call, mounts: &[Mount]) {
    if let Some(target) = call.value("target") {
        table::lines(commands(mounts, target));
    } else if call.is("mounts") {
        let each = mounts
            .iter()
            .map(|mount| json!({"Type": mount.r#type, "Source": mount.source, "Options": mount.options}));
        table::json(&each.collect());
    }
}

/// The shell commands that mount a snapshot.
fn commands(mounts: &[Mount], target: &str) -> Vec<String> {
    let command = |mount: &Mount| {
        let options =
            if mount.options.is_empty() { String::new() } else { format!(" -o {}", mount.options.join(",")) };
        format!("mount -t {} {} {target}{options}", mount.r#type, mount.source)
    };
    mounts.iter().map(command).collect()
}

async fn mounts(call: Call) -> Result<u8> {
    let connection = call.connect().await?;
    let (target, key) = (call.word(0, "target")?, call.word(1, "key")?.to_owned());
    let request = connection.request(MountsRequest { snapshotter: named(&call), key })?;
    table::lines(commands(&client(&connection).mounts(request).await.answer()?.mounts, target));
    Ok(0)
}

async fn commit(call: Call) -> Result<u8> {
    let connection = call.connect().await?;
    let request = CommitSnapshotRequest {
        snapshotter: named(&call),
        name: call.word(0, "key")?.to_owned(),
        key: call.word(1, "active snapshot")?.to_owned(),
        labels: root_label(),
        parent: String::new(),
    };
    client(&connection).commit(connection.request(request)?).await.answer()?;
    Ok(0)
}

async fn remove(call: Call) -> Result<u8> {
    let connection = call.connect().await?;
    for key in call.words_from(0, "key")? {
        let request = RemoveSnapshotRequest { snapshotter: named(&call), key: key.clone() };
        let removed = client(&connection).remove(connection.request(request)?).await.answer();
        removed.context(|| format!("failed to remove {key:?}"))?;
    }
    Ok(0)
}

async fn label(call: Call) -> Result<u8> {
    let connection = call.connect().await?;
    let name = call.word(0, "key")?.to_owned();
    let labels = Call::labels(&call.words()[1..]);
    let paths = labels.keys().map(|key| format!("labels.{key}")).collect();
    let request = UpdateSnapshotRequest {
        snapshotter: named(&call),
        info: Some(Info { name, labels, ..Info::default() }),
        update_mask: Some(FieldMask { paths }),
    };
    let updated = client(&connection).update(connection.request(request)?).await.answer()?;
    table::lines([shown(&present(updated.info, "snapshot")?.labels)]);
    Ok(0)
}
