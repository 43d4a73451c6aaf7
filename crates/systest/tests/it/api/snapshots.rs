//! `containerd.services.snapshots.v1`, and `containerd.services.diff.v1`, which applies layers to snapshots and
//! compares them.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::process::Command;

use api::grpc::content::content_client::ContentClient;
use api::grpc::content::{
    InfoRequest, ListStatusesRequest, ReadContentRequest, WriteAction, WriteContentRequest,
};
use api::grpc::diff::diff_client::DiffClient;
use api::grpc::diff::{ApplyRequest, DiffRequest};
use api::grpc::snapshots::snapshots_client::SnapshotsClient;
use api::grpc::snapshots::{
    CleanupRequest, CommitSnapshotRequest, Info, Kind, ListSnapshotsRequest, MountsRequest,
    PrepareSnapshotRequest, RemoveSnapshotRequest, StatSnapshotRequest, UpdateSnapshotRequest, UsageRequest,
    ViewSnapshotRequest,
};
use api::grpc::types::{Descriptor, Mount};
use testkit::is_root;
use testkit::layout::tar_of;
use tonic::Code;
use types::Digest;

use super::walk::{
    BAD_FILTERS, BROKEN, BROKEN_THERE, Difference, LabelStep, Side, There, Watched, all, ask, covers,
    differs, in_lease, map, mask, within,
};

const DIFFERENCES: &[Difference] = &[
    differs("list without a namespace", There::Code(Code::Unknown), "the same refusal, without a class"),
    differs("a filter that is none", There::Code(Code::Unknown), "the same refusal, without a class"),
    differs("a label without a key", There::Code(Code::Unknown), "the same refusal, without a class"),
    BROKEN_THERE,
];

const DIFFERENCES_OF_DIFFS: &[Difference] =
    &[differs("apply what is no layer", There::Code(Code::Unknown), "the same refusal, without a class")];

const OVERLAY: &str = "overlayfs";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

fn prepare(key: &str, parent: &str, labels: &[(&str, &str)]) -> PrepareSnapshotRequest {
    PrepareSnapshotRequest {
        snapshotter: OVERLAY.into(),
        key: key.into(),
        parent: parent.into(),
        labels: map(labels),
    }
}

fn view(key: &str, parent: &str) -> ViewSnapshotRequest {
    let (snapshotter, labels) = (OVERLAY.into(), map(&[]));
    ViewSnapshotRequest { snapshotter, key: key.into(), parent: parent.into(), labels }
}

fn commit(name: &str, key: &str) -> CommitSnapshotRequest {
    CommitSnapshotRequest {
        snapshotter: OVERLAY.into(),
        name: name.into(),
        key: key.into(),
        ..CommitSnapshotRequest::default()
    }
}

fn stat(key: &str) -> StatSnapshotRequest {
    StatSnapshotRequest { snapshotter: OVERLAY.into(), key: key.into() }
}

fn mounts(key: &str) -> MountsRequest {
    MountsRequest { snapshotter: OVERLAY.into(), key: key.into() }
}

fn remove(key: &str) -> RemoveSnapshotRequest {
    RemoveSnapshotRequest { snapshotter: OVERLAY.into(), key: key.into() }
}

fn usage(key: &str) -> UsageRequest {
    UsageRequest { snapshotter: OVERLAY.into(), key: key.into() }
}

#[test]
fn snapshots_walked() {
    let methods = &[
        "Snapshots.Prepare",
        "Snapshots.View",
        "Snapshots.Mounts",
        "Snapshots.Commit",
        "Snapshots.Remove",
        "Snapshots.Stat",
        "Snapshots.Update",
        "Snapshots.List",
        "Snapshots.Usage",
        "Snapshots.Cleanup",
    ];
    covers(methods).walk(DIFFERENCES, async |side| {
        callers_say_who_and_with_what(side).await;
        snapshots_stand_on_each_other(side).await;
        labels_change_and_filters_choose(side).await;
        what_is_there_is_not_made_again(side).await;
        what_is_removed_is_gone(side).await;
    });
}

async fn callers_say_who_and_with_what(side: &Side<'_>) {
    let mut snapshots = SnapshotsClient::new(side.channel());
    let (code, words) = (Code::FailedPrecondition, "namespace is required");
    let answer = snapshots.prepare(within(None, prepare("a", "", &[])));
    side.refused("prepare without a namespace", answer, code, words).await;
    let answer = snapshots.stat(within(None, stat("a")));
    side.refused("stat without a namespace", answer, code, words).await;
    let answer = snapshots.mounts(within(None, mounts("a")));
    side.refused("mounts without a namespace", answer, code, words).await;
    let list = ListSnapshotsRequest { snapshotter: OVERLAY.into(), ..ListSnapshotsRequest::default() };
    let answer = all(snapshots.list(within(None, list)));
    side.refused("list without a namespace", answer, code, words).await;

    let code = Code::InvalidArgument;
    for (case, snapshotter, words) in [
        ("a snapshotter that is none", "none", "snapshotter not loaded: none: invalid argument"),
        ("no snapshotter", "", "snapshotter argument missing: invalid argument"),
    ] {
        let of = || snapshotter.to_owned();
        let answer =
            snapshots.prepare(ask(PrepareSnapshotRequest { snapshotter: of(), ..prepare("a", "", &[]) }));
        side.refused(case, answer, code, words).await;
        let answer = snapshots.view(ask(ViewSnapshotRequest { snapshotter: of(), ..view("a", "") }));
        side.refused(case, answer, code, words).await;
        let answer = snapshots.mounts(ask(MountsRequest { snapshotter: of(), ..mounts("a") }));
        side.refused(case, answer, code, words).await;
        let answer = snapshots.commit(ask(CommitSnapshotRequest { snapshotter: of(), ..commit("a", "b") }));
        side.refused(case, answer, code, words).await;
        let answer = snapshots.remove(ask(RemoveSnapshotRequest { snapshotter: of(), ..remove("a") }));
        side.refused(case, answer, code, words).await;
        let answer = snapshots.stat(ask(StatSnapshotRequest { snapshotter: of(), ..stat("a") }));
        side.refused(case, answer, code, words).await;
        let answer = all(snapshots.list(ask(ListSnapshotsRequest { snapshotter: of(), filters: vec![] })));
        side.refused(case, answer, code, words).await;
        let answer = snapshots.usage(ask(UsageRequest { snapshotter: of(), ..usage("a") }));
        side.refused(case, answer, code, words).await;
        let answer = snapshots.cleanup(ask(CleanupRequest { snapshotter: of() }));
        side.refused(case, answer, code, words).await;
    }
}

async fn snapshots_stand_on_each_other(side: &Side<'_>) {
    let mut snapshots = SnapshotsClient::new(side.channel());
    let made = side.ok("prepare", snapshots.prepare(ask(prepare("one", "", &[("a", "1")])))).await.mounts;
    side.is("a snapshot without parent is one mount", made.len(), 1);
    let again = side.ok("mounts", snapshots.mounts(ask(mounts("one")))).await.mounts;
    side.is("mounts are told again", &again, &made);
    let info = side.ok("stat", snapshots.stat(ask(stat("one")))).await.info.unwrap_or_default();
    side.is("an active snapshot", (info.name.as_str(), info.kind()), ("one", Kind::Active));
    side.is("with its times", info.created_at.is_some() && info.updated_at.is_some(), true);
    let found = side.ok("usage", snapshots.usage(ask(usage("one")))).await;
    let top = fs::metadata(&made[0].source).map_or(0, |top| i64::try_from(top.blocks() * 512).unwrap_or(0));
    side.is("a new snapshot is the top of its tree", (found.size, found.inodes), (top, 1));

    let answer = snapshots.prepare(ask(prepare("two", "one", &[])));
    side.refused("a parent that is not committed", answer, Code::InvalidArgument, "").await;
    let answer = snapshots.prepare(ask(prepare("two", "none", &[])));
    side.refused("a parent that is not there", answer, Code::NotFound, "none").await;
    let answer = snapshots.view(ask(view("two", "none")));
    side.refused("a view of what is not there", answer, Code::NotFound, "none").await;
    let answer = snapshots.prepare(ask(prepare("one", "", &[])));
    side.refused("a key that is taken", answer, Code::AlreadyExists, "one").await;

    let labels = map(&[("kept", "yes")]);
    side.ok("commit", snapshots.commit(ask(CommitSnapshotRequest { labels, ..commit("base", "one") }))).await;
    let info = side.ok("stat", snapshots.stat(ask(stat("base")))).await.info.unwrap_or_default();
    side.is("a committed snapshot", (info.kind(), info.labels), (Kind::Committed, map(&[("kept", "yes")])));
    side.refused("stat a key that was committed", snapshots.stat(ask(stat("one"))), Code::NotFound, "one")
        .await;
    let answer = snapshots.mounts(ask(mounts("base")));
    side.refused("mounts of what is committed", answer, Code::FailedPrecondition, "").await;
    let answer = snapshots.commit(ask(commit("base", "one")));
    side.refused("commit once more", answer, Code::AlreadyExists, "base").await;
    let answer = snapshots.prepare(ask(prepare("keyless", "", &[("", "v")])));
    side.refused("a label without a key", answer, Code::InvalidArgument, "key").await;
    let (long, too_long) = ("v".repeat(4094), "info.Labels: label key and value");
    let answer = snapshots.prepare(ask(prepare("long", "", &[("key", &long)])));
    side.refused("prepare with a label that is too long", answer, Code::InvalidArgument, too_long).await;
    let answer =
        snapshots.view(ask(ViewSnapshotRequest { labels: map(&[("key", &long)]), ..view("long", "") }));
    side.refused("view with a label that is too long", answer, Code::InvalidArgument, too_long).await;
    let labels = map(&[("key", &long)]);
    let answer = snapshots.commit(ask(CommitSnapshotRequest { labels, ..commit("long", "none") }));
    side.refused("commit with a label that is too long", answer, Code::InvalidArgument, too_long).await;
    let answer = snapshots.commit(ask(commit("other", "none")));
    side.refused("commit what is not there", answer, Code::NotFound, "none").await;
    let answer = snapshots.commit(ask(commit("other", "base")));
    side.refused("commit what is committed", answer, Code::FailedPrecondition, "").await;

    side.ok("prepare on it", snapshots.prepare(ask(prepare("two", "base", &[])))).await;
    let answer = snapshots.commit(ask(commit("base", "two")));
    side.refused("commit to a name that is taken", answer, Code::AlreadyExists, "base").await;
    side.ok("view it", snapshots.view(ask(view("look", "base")))).await;
    let info = side.ok("stat", snapshots.stat(ask(stat("look")))).await.info.unwrap_or_default();
    side.is("a view", (info.kind(), info.parent.as_str()), (Kind::View, "base"));
    for (key, expected) in [("base", (top, 1)), ("two", (top, 1)), ("look", (0, 0))] {
        let found = side.ok("usage", snapshots.usage(ask(usage(key)))).await;
        side.is("what a snapshot holds", (key, (found.size, found.inodes)), (key, expected));
    }
    let answer = snapshots.commit(ask(commit("other", "look")));
    side.refused("commit a view", answer, Code::FailedPrecondition, "").await;
    let answer = snapshots.view(ask(view("look", "base")));
    side.refused("a view of a key that is taken", answer, Code::AlreadyExists, "look").await;
    for (case, answer) in
        [("prepare without a key", prepare("", "", &[])), ("prepare on itself", prepare("base", "base", &[]))]
    {
        let answer = snapshots.prepare(ask(answer)).await;
        side.is(case, answer.is_err(), true);
    }
    // Last: these take a number here, which messages about later snapshots would show.
    let answer = snapshots.prepare(in_lease("none", prepare("leaseless", "", &[])));
    side.refused("prepare in a lease that is not there", answer, Code::NotFound, "lease does not exist")
        .await;
    let answer = snapshots.stat(ask(stat("leaseless")));
    side.refused("stat what was not prepared", answer, Code::NotFound, "leaseless").await;
    let answer = snapshots.commit(in_lease("none", commit("elsewhere", "two")));
    side.refused("commit in a lease that is not there", answer, Code::NotFound, "lease does not exist").await;
    side.ok("stat what was not committed", snapshots.stat(ask(stat("two")))).await;
}

async fn labels_change_and_filters_choose(side: &Side<'_>) {
    let mut snapshots = SnapshotsClient::new(side.channel());
    let update = |key: &str, labels: &[(&str, &str)], paths: &[&str]| {
        let info = Info { name: key.into(), labels: map(labels), ..Info::default() };
        let update_mask = mask(paths).filter(|mask| !mask.paths.is_empty());
        ask(UpdateSnapshotRequest { snapshotter: OVERLAY.into(), info: Some(info), update_mask })
    };
    let steps: &[LabelStep<'_>] = &[
        (&[("a", "9"), ("b.c", "9")], &["labels.b.c"], &[("kept", "yes"), ("b.c", "9")]),
        (&[("kept", "")], &["labels.kept"], &[("b.c", "9")]),
        (&[("tier", "gold"), ("none", "")], &["labels"], &[("tier", "gold")]),
    ];
    for (labels, paths, expected) in steps {
        side.ok("update", snapshots.update(update("base", labels, paths))).await;
        let found = side.ok("stat", snapshots.stat(ask(stat("base")))).await.info.unwrap_or_default();
        side.is("labels change as the mask says", (paths, found.labels), (paths, map(expected)));
    }
    for path in ["name", "parent", "kind", "label", ""] {
        let answer = snapshots.update(update("base", &[], &[path]));
        side.refused("a field that does not change", answer, Code::InvalidArgument, "").await;
    }
    let answer = snapshots.update(update("base", &[("key", &"v".repeat(4094))], &["labels"]));
    side.refused("a label that is too long", answer, Code::InvalidArgument, "label key and value").await;
    let answer = snapshots.update(update("none", &[], &["labels"]));
    side.refused("update what is not there", answer, Code::NotFound, "none").await;
    let answer = snapshots.update(update("", &[], &["labels"]));
    side.refused("update without a name", answer, Code::InvalidArgument, "").await;

    for (filters, expected) in [
        (vec![], vec!["base", "look", "two"]),
        (vec!["name==base"], vec!["base"]),
        (vec!["parent==base"], vec!["look", "two"]),
        (vec!["kind==view"], vec!["look"]),
        (vec!["kind==committed", "kind==active"], vec!["base", "two"]),
        (vec!["labels.tier==gold"], vec!["base"]),
        (vec!["parent"], vec!["base", "look", "two"]),
        (vec!["parent==\"\""], vec!["base"]),
    ] {
        let filters: Vec<String> = filters.iter().map(ToString::to_string).collect();
        let list = ListSnapshotsRequest { snapshotter: OVERLAY.into(), filters: filters.clone() };
        let found = side.ok("list", all(snapshots.list(ask(list)))).await;
        let mut found: Vec<String> =
            found.into_iter().flat_map(|message| message.info).map(|info| info.name).collect();
        found.sort();
        let expected: Vec<String> = expected.iter().map(ToString::to_string).collect();
        side.is("filters choose", (&filters, found), (&filters, expected));
    }
    for (case, filter) in BAD_FILTERS.iter().chain([&BROKEN]) {
        let list = ListSnapshotsRequest { snapshotter: OVERLAY.into(), filters: vec![(*filter).into()] };
        side.refused(case, all(snapshots.list(ask(list))), Code::InvalidArgument, "").await;
    }
}

/// The handshake by which an unpacker learns that a layer is there.
async fn what_is_there_is_not_made_again(side: &Side<'_>) {
    let mut snapshots = SnapshotsClient::new(side.channel());
    let target = [("containerd.io/snapshot.ref", "base")];
    let answer = snapshots.prepare(ask(prepare("extract", "", &target)));
    side.refused("prepare for a target that is there", answer, Code::AlreadyExists, "base").await;
    let answer = snapshots.stat(ask(stat("extract")));
    side.refused("nothing was prepared for it", answer, Code::NotFound, "extract").await;
    let target = [("containerd.io/snapshot.ref", "new")];
    side.ok("prepare for a new target", snapshots.prepare(ask(prepare("extract", "base", &target)))).await;
    side.ok("commit the target", snapshots.commit(ask(commit("new", "extract")))).await;
}

async fn what_is_removed_is_gone(side: &Side<'_>) {
    let mut snapshots = SnapshotsClient::new(side.channel());
    let answer = snapshots.remove(ask(remove("base")));
    side.refused("remove what others stand on", answer, Code::FailedPrecondition, "child").await;
    let answer = snapshots.remove(within(Some("other"), remove("two")));
    side.refused("remove in another namespace", answer, Code::NotFound, "two").await;
    for key in ["two", "look", "new", "base"] {
        side.ok("remove", snapshots.remove(ask(remove(key)))).await;
    }
    let answer = snapshots.remove(ask(remove("base")));
    side.refused("remove what is not there", answer, Code::NotFound, "base").await;
    side.refused("stat what is not there", snapshots.stat(ask(stat("base"))), Code::NotFound, "base").await;
    side.refused(
        "mounts of what is not there",
        snapshots.mounts(ask(mounts("base"))),
        Code::NotFound,
        "base",
    )
    .await;
    side.refused("usage of what is not there", snapshots.usage(ask(usage("base"))), Code::NotFound, "base")
        .await;
    // containerd's overlayfs has none.
    if side.is_ours() {
        side.ok("clean up", snapshots.cleanup(ask(CleanupRequest { snapshotter: OVERLAY.into() }))).await;
    }
}

#[test]
fn diffs_walked() {
    if !is_root("to apply a layer") {
        return;
    }
    covers(&["Diff.Apply", "Diff.Diff"]).walk(DIFFERENCES_OF_DIFFS, async |side| {
        let layer = tar_of(&[("greeting", "hello"), ("dir/other", "there")]);
        let digest = Digest::of(&layer).to_string();
        let mut content = ContentClient::new(side.channel());
        let whole = WriteContentRequest {
            action: WriteAction::Commit.into(),
            r#ref: "layer".into(),
            expected: digest.clone(),
            data: layer.clone().into(),
            ..WriteContentRequest::default()
        };
        side.ok("write the layer", all(content.write(ask(tokio_stream::iter([whole]))))).await;
        let size = i64::try_from(layer.len()).expect("a short layer");
        let layer = Descriptor { media_type: LAYER.into(), digest, size, ..Descriptor::default() };
        layers_are_applied(side, &layer).await;
        trees_are_compared(side, &layer).await;
    });
}

async fn prepared(side: &Side<'_>, key: &str, parent: &str) -> Vec<Mount> {
    let mut snapshots = SnapshotsClient::new(side.channel());
    side.ok("prepare", snapshots.prepare(ask(prepare(key, parent, &[])))).await.mounts
}

async fn layers_are_applied(side: &Side<'_>, layer: &Descriptor) {
    let mut diff = DiffClient::new(side.channel());
    let mounts = prepared(side, "apply", "").await;
    let apply = |layer: Descriptor| ApplyRequest {
        diff: Some(layer),
        mounts: mounts.clone(),
        ..ApplyRequest::default()
    };
    let answer = diff.apply(within(None, apply(layer.clone())));
    side.refused("apply without a namespace", answer, Code::FailedPrecondition, "namespace is required")
        .await;
    let missing = Descriptor { digest: Digest::of(b"none").to_string(), ..layer.clone() };
    side.refused("apply what is not there", diff.apply(ask(apply(missing))), Code::NotFound, "").await;
    let strange = Descriptor { media_type: "text/plain".into(), ..layer.clone() };
    let answer = diff.apply(ask(apply(strange)));
    side.refused("apply what is no layer", answer, Code::Unimplemented, "").await;
    let applied = side.ok("apply", diff.apply(ask(apply(layer.clone())))).await.applied.unwrap_or_default();
    side.is("the layer is described", (applied.digest, applied.size), (layer.digest.clone(), layer.size));
    side.is("as a plain archive", applied.media_type, LAYER);
    let mut snapshots = SnapshotsClient::new(side.channel());
    side.ok("commit", snapshots.commit(ask(commit("applied", "apply")))).await;
}

async fn trees_are_compared(side: &Side<'_>, layer: &Descriptor) {
    let mut diff = DiffClient::new(side.channel());
    let mut snapshots = SnapshotsClient::new(side.channel());
    let lower = side.ok("view", snapshots.view(ask(view("lower", "applied")))).await.mounts;
    let upper = prepared(side, "upper", "applied").await;
    let more = Descriptor { media_type: LAYER.into(), ..layer.clone() };
    let apply =
        ApplyRequest { diff: Some(more), mounts: upper.clone(), sync_fs: true, ..ApplyRequest::default() };
    side.ok("apply again", diff.apply(ask(apply))).await;
    let compare = DiffRequest {
        left: lower,
        right: upper,
        r#ref: "compared".into(),
        labels: map(&[("made", "here")]),
        ..DiffRequest::default()
    };
    let answer = diff.diff(within(None, compare.clone()));
    side.refused("compare without a namespace", answer, Code::FailedPrecondition, "namespace is required")
        .await;
    let strange = DiffRequest { media_type: "text/plain".into(), ..compare.clone() };
    side.refused("compare to what is no layer", diff.diff(ask(strange)), Code::Unimplemented, "").await;
    let mut content = ContentClient::new(side.channel());
    let long = map(&[("key", &"v".repeat(4094))]);
    let refused = DiffRequest { r#ref: String::new(), labels: long, ..compare.clone() };
    let (code, words) = (Code::InvalidArgument, "label key and value");
    side.refused("compare with a label that is too long", diff.diff(ask(refused)), code, words).await;
    let left = side.ok("statuses", content.list_statuses(ask(ListStatusesRequest::default()))).await;
    side.is("an ingest that nobody named is not left", left.statuses.len(), 0);
    let made = side.ok("compare", diff.diff(ask(compare.clone()))).await.diff.unwrap_or_default();
    side.is("a layer is compressed", made.media_type, format!("{LAYER}+gzip"));
    let info = content.info(ask(InfoRequest { digest: made.digest.clone() }));
    let info = side.ok("info of what was made", info).await.info.unwrap_or_default();
    side.is("its size is told", info.size, made.size);
    let bytes = unzipped(side, &mut content, &made.digest).await;
    let labels = (info.labels.get("containerd.io/uncompressed"), info.labels.get("made").map(String::as_str));
    side.is("it has its labels", labels, (Some(&Digest::of(&bytes).to_string()), Some("here")));
    if side.is_modern() {
        // Of what is younger it is said that it is of that time.
        const EPOCH: i64 = 1_000_000_000;
        let epoch = Some(prost_types::Timestamp { seconds: EPOCH, nanos: 0 });
        let tree = |name: &str| {
            let tree = side.dir().join(name);
            fs::create_dir_all(&tree).expect("a writable directory");
            let options = vec!["ro".into(), "rbind".into()];
            let source = tree.display().to_string();
            vec![Mount { r#type: "bind".into(), source, options, ..Mount::default() }]
        };
        let (left, right) = (tree("nothing"), tree("of now"));
        fs::write(side.dir().join("of now/file"), "made now").expect("a writable directory");
        let r#ref = "of a time".to_owned();
        let compare = DiffRequest { left, right, source_date_epoch: epoch, r#ref, ..compare };
        let made = side.ok("compare with a time", diff.diff(ask(compare))).await.diff.unwrap_or_default();
        let bytes = unzipped(side, &mut content, &made.digest).await;
        side.is("nothing is younger", times(&bytes).into_iter().max(), Some(EPOCH));
    }
}

/// The bytes of a blob that is a gzip file.
async fn unzipped(side: &Side<'_>, content: &mut ContentClient<Watched>, digest: &str) -> Vec<u8> {
    let read = ReadContentRequest { digest: digest.into(), ..ReadContentRequest::default() };
    let parts = side.ok("read what was made", all(content.read(ask(read)))).await;
    let bytes: Vec<u8> = parts.iter().flat_map(|part| part.data.to_vec()).collect();
    let file = side.dir().join("made.gz");
    fs::write(&file, bytes).expect("a writable directory");
    let plain = Command::new("gzip").arg("-dc").arg(file).output().expect("gzip runs");
    assert!(plain.status.success(), "{plain:?}");
    plain.stdout
}

/// The times of an archive's entries.
fn times(archive: &[u8]) -> Vec<i64> {
    let octal = |field: &[u8]| {
        let text = String::from_utf8_lossy(field);
        i64::from_str_radix(text.trim_matches(['\0', ' ']), 8).expect("a number of an archive")
    };
    let (mut at, mut times) = (0, Vec::new());
    while archive[at] != 0 {
        times.push(octal(&archive[at + 136..at + 148]));
        let size = usize::try_from(octal(&archive[at + 124..at + 136])).expect("a size");
        at += 512 + size.next_multiple_of(512);
    }
    times
}
