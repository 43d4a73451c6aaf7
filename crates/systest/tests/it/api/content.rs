//! `containerd.services.content.v1`: blobs, and the protocol by which they are written.

use api::grpc::content::content_client::ContentClient;
use api::grpc::content::{
    AbortRequest, DeleteContentRequest, Info, InfoRequest, ListContentRequest, ListStatusesRequest,
    ReadContentRequest, StatusRequest, UpdateRequest, WriteAction, WriteContentRequest, WriteContentResponse,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Response, Status, Streaming};
use types::Digest;

use super::walk::{
    BAD_FILTERS, BROKEN, BROKEN_THERE, Difference, LabelStep, Side, There, all, ask, covers, differs,
    in_lease, map, mask, within,
};

const DIFFERENCES: &[Difference] = &[
    differs(
        "to expect what is no digest",
        There::Code(Code::Ok),
        "it looks at the commit only, and finds it wrong",
    ),
    differs(
        "commit with what is no digest",
        There::Code(Code::FailedPrecondition),
        "it compares the text with the digest that it has",
    ),
    differs("an action that is none", There::Code(Code::Ok), "it is answered as if nothing had been asked"),
    differs("a label without a key", There::Code(Code::Unknown), "the same refusal, without a class"),
    BROKEN_THERE,
];

/// One ingest: what we say and what is answered.
struct Conversation {
    questions: mpsc::Sender<WriteContentRequest>,
    answers: Streaming<WriteContentResponse>,
}

impl Conversation {
    /// Says the first word, and gives back its answer.
    async fn open(
        side: &Side<'_>,
        first: WriteContentRequest,
    ) -> Result<(Conversation, WriteContentResponse), Status> {
        let (questions, receiver) = mpsc::channel(1);
        questions.try_send(first).expect("there is room for one");
        let mut client = ContentClient::new(side.channel());
        let answers = client.write(ask(ReceiverStream::new(receiver))).await?.into_inner();
        let mut conversation = Conversation { questions, answers };
        let answer = conversation.answer().await?.into_inner();
        Ok((conversation, answer))
    }

    async fn answer(&mut self) -> Result<Response<WriteContentResponse>, Status> {
        let answer = self.answers.message().await?;
        answer.map(Response::new).ok_or_else(|| Status::unknown("the stream ended without an answer"))
    }

    async fn say(&mut self, question: WriteContentRequest) -> Result<Response<WriteContentResponse>, Status> {
        // If nobody listens, the answer says why.
        let _ended = self.questions.send(question).await;
        self.answer().await
    }

    /// Says no more, and waits until that is known.
    async fn close(self) {
        let Conversation { questions, mut answers } = self;
        drop(questions);
        while let Ok(Some(_)) = answers.message().await {}
    }
}

fn stat(reference: &str) -> WriteContentRequest {
    WriteContentRequest { action: WriteAction::Stat.into(), r#ref: reference.into(), ..Default::default() }
}

fn write(offset: i64, data: &str) -> WriteContentRequest {
    WriteContentRequest {
        action: WriteAction::Write.into(),
        offset,
        data: data.to_owned().into(),
        ..Default::default()
    }
}

/// A commit of so many bytes that are written.
fn commit_of(offset: i64, total: i64, expected: &str) -> WriteContentRequest {
    WriteContentRequest { offset, ..commit(total, expected) }
}

fn commit(total: i64, expected: &str) -> WriteContentRequest {
    WriteContentRequest {
        action: WriteAction::Commit.into(),
        total,
        expected: expected.into(),
        ..Default::default()
    }
}

fn digest(text: &str) -> String {
    Digest::of(text.as_bytes()).to_string()
}

/// Writes a blob whole.
async fn add(side: &Side<'_>, text: &str, labels: &[(&str, &str)]) -> String {
    let (mut ingest, _) =
        Conversation::open(side, stat(&format!("add {}", digest(text)))).await.expect("a new ingest");
    let whole = WriteContentRequest {
        data: text.to_owned().into(),
        labels: map(labels),
        ..commit(i64::try_from(text.len()).expect("a short text"), &digest(text))
    };
    side.ok("write a blob", ingest.say(whole)).await;
    digest(text)
}

#[test]
fn content_walked() {
    let methods = &[
        "Content.Info",
        "Content.Update",
        "Content.List",
        "Content.Delete",
        "Content.Read",
        "Content.Status",
        "Content.ListStatuses",
        "Content.Write",
        "Content.Abort",
    ];
    covers(methods).walk(DIFFERENCES, async |side| {
        namespaces_are_asked_for(side).await;
        an_ingest_goes_by_its_protocol(side).await;
        what_is_not_known_is_below_zero(side).await;
        labels_are_those_of_the_commit(side).await;
        a_message_may_be_large(side).await;
        mistakes_leave_the_ingest(side).await;
        what_is_there_is_not_written_again(side).await;
        ingests_are_listed_and_dropped(side).await;
        ranges_are_read(side).await;
        labels_change_and_filters_choose(side).await;
        what_is_deleted_is_gone(side).await;
    });
}

async fn namespaces_are_asked_for(side: &Side<'_>) {
    let mut content = ContentClient::new(side.channel());
    let (code, words) = (Code::FailedPrecondition, "namespace is required");
    let digest = digest("none");
    let answer = content.info(within(None, InfoRequest { digest: digest.clone() }));
    side.refused("info without a namespace", answer, code, words).await;
    let answer = all(content.list(within(None, ListContentRequest::default())));
    side.refused("list without a namespace", answer, code, words).await;
    let answer = content.delete(within(None, DeleteContentRequest { digest: digest.clone() }));
    side.refused("delete without a namespace", answer, code, words).await;
    let read = ReadContentRequest { digest, ..ReadContentRequest::default() };
    side.refused("read without a namespace", all(content.read(within(None, read))), code, words).await;
    let answer = content.status(within(None, StatusRequest { r#ref: "r".into() }));
    side.refused("status without a namespace", answer, code, words).await;
    let answer = content.list_statuses(within(None, ListStatusesRequest::default()));
    side.refused("statuses without a namespace", answer, code, words).await;
    let answer = content.abort(within(None, AbortRequest { r#ref: "r".into() }));
    side.refused("abort without a namespace", answer, code, words).await;
    let answer = all(content.write(within(None, tokio_stream::iter([stat("r")]))));
    side.refused("write without a namespace", answer, code, words).await;
    let answer = all(content.write(in_lease("none", tokio_stream::iter([stat("leaseless")]))));
    side.refused("write in a lease that is not there", answer, Code::NotFound, "lease does not exist").await;
    let answer = content.status(ask(StatusRequest { r#ref: "leaseless".into() }));
    side.refused("the status of what did not begin", answer, Code::NotFound, "leaseless").await;
}

async fn an_ingest_goes_by_its_protocol(side: &Side<'_>) {
    let first = WriteContentRequest { total: 11, ..stat("steps") };
    let (mut ingest, answer) = Conversation::open(side, first).await.expect("a new ingest");
    side.is("a new ingest is empty", (answer.offset, answer.total), (0, 11));
    side.is("the digest of nothing", answer.digest, digest(""));
    side.is("a status has its times", answer.started_at.is_some() && answer.updated_at.is_some(), true);
    let answer = side.ok("write", ingest.say(write(0, "hello "))).await;
    side.is("a write says how far it is", (answer.action, answer.offset), (WriteAction::Write.into(), 6));
    side.is("and what its bytes are", answer.digest, digest("hello "));
    let answer = side.ok("stat", ingest.say(stat(""))).await;
    side.is("the digest so far", (answer.offset, answer.digest), (6, digest("hello ")));

    let busy = Conversation::open(side, stat("steps"));
    side.refused("write what is being written", busy, Code::Unavailable, "steps").await;
    let mut content = ContentClient::new(side.channel());
    let (mut other, _) = Conversation::open(side, stat("other")).await.expect("a new ingest");
    side.ok("write", other.say(write(0, "other"))).await;
    side.ok("abort what is being written", content.abort(ask(AbortRequest { r#ref: "other".into() }))).await;
    let answer = content.status(ask(StatusRequest { r#ref: "other".into() }));
    side.refused("the status of what was dropped", answer, Code::NotFound, "other").await;
    let committed = other.say(commit_of(5, 5, "")).await;
    side.is("what was dropped is not committed", committed.is_err(), true);
    ingest.close().await;

    let (mut ingest, answer) = resumed(side, WriteContentRequest { total: 11, ..stat("steps") }).await;
    side.is("an ingest goes on where it was", (answer.offset, answer.digest), (6, digest("hello ")));
    let answer = side.ok("write on", ingest.say(write(6, "world"))).await;
    side.is("all bytes are there", answer.offset, 11);
    let answer = side.ok("write from the beginning", ingest.say(write(0, "hello"))).await;
    side.is("a write at the beginning begins anew", answer.offset, 5);
    let answer = side.ok("write nothing", ingest.say(write(5, ""))).await;
    side.is("nothing was written", answer.offset, 5);
    // The last word about size and digest counts.
    let other = WriteContentRequest { total: 99, expected: digest("other"), ..stat("") };
    let answer = side.ok("expect something else", ingest.say(other)).await;
    side.is("what is expected may change", answer.total, 99);
    let last = WriteContentRequest { data: " world".into(), offset: 5, ..commit(11, &digest("hello world")) };
    let answer = side.ok("commit with the last bytes", ingest.say(last)).await;
    side.is("a commit says what it made", (answer.offset, answer.digest), (11, digest("hello world")));
    // containerd waits for more.
    if side.is_ours() {
        let rest = ingest.answers.message().await;
        side.is("a commit ends the stream", rest.is_ok_and(|rest| rest.is_none()), true);
    }
    let answer = content.status(ask(StatusRequest { r#ref: "steps".into() }));
    side.refused("the status of what is committed", answer, Code::NotFound, "steps").await;
}

/// Opens what another conversation had open until now; it takes a moment until its end is known.
async fn resumed(side: &Side<'_>, first: WriteContentRequest) -> (Conversation, WriteContentResponse) {
    loop {
        match Conversation::open(side, first.clone()).await {
            Ok(opened) => return opened,
            Err(status) if status.code() == Code::Unavailable => tokio::task::yield_now().await,
            Err(status) => panic!("cannot be opened again: {status}"),
        }
    }
}

/// A length that a client was not told, and the place where it is.
async fn what_is_not_known_is_below_zero(side: &Side<'_>) {
    let (mut ingest, _) = Conversation::open(side, stat("unknown")).await.expect("a new ingest");
    side.ok("write", ingest.say(write(-1, "un"))).await;
    let answer = side.ok("write on", ingest.say(write(-1, "known"))).await;
    side.is("a write at no offset goes on", (answer.offset, answer.digest), (7, digest("unknown")));
    side.ok("commit", ingest.say(commit_of(-1, -1, &digest("unknown")))).await;
}

/// What earlier messages say of labels is not kept.
async fn labels_are_those_of_the_commit(side: &Side<'_>) {
    let labelled = |key: &str, message: WriteContentRequest| {
        let labels = map(&[(key, "1")]);
        WriteContentRequest { labels, ..message }
    };
    let (mut ingest, _) =
        Conversation::open(side, labelled("first", stat("with labels"))).await.expect("a new ingest");
    side.ok("write with labels", ingest.say(labelled("second", write(0, "with labels")))).await;
    let answer = side.ok("commit without labels", ingest.say(commit_of(11, 11, ""))).await;
    let mut content = ContentClient::new(side.channel());
    let found = side.ok("info", content.info(ask(InfoRequest { digest: answer.digest }))).await;
    side.is("only a commit says labels", found.info.unwrap_or_default().labels, map(&[]));
}

/// Both sides take 16 MiB with what is around the bytes; tonic by itself a quarter of it.
async fn a_message_may_be_large(side: &Side<'_>) {
    let text = "x".repeat(15 << 20);
    let len = i64::try_from(text.len()).expect("it fits");
    let (mut ingest, _) = Conversation::open(side, stat("large")).await.expect("a new ingest");
    let answer = side.ok("write much at once", ingest.say(write(0, &text))).await;
    side.is("all of it is there", (answer.offset, answer.digest), (len, digest(&text)));
    side.ok("commit what is large", ingest.say(commit_of(len, len, &digest(&text)))).await;
    ingest.close().await;
    let (mut ingest, _) = Conversation::open(side, stat("too large")).await.expect("a new ingest");
    let answer = ingest.say(write(0, &"x".repeat(17 << 20)));
    side.refused(
        "write too much at once",
        answer,
        Code::ResourceExhausted,
        "received message larger than max",
    )
    .await;
    ingest.close().await;
}

async fn mistakes_leave_the_ingest(side: &Side<'_>) {
    let answer = Conversation::open(side, stat(""));
    side.refused("a first word without a name", answer, Code::InvalidArgument, "must have a ref").await;
    let answer = Conversation::open(side, WriteContentRequest { expected: "sha256:1".into(), ..stat("r") });
    side.refused("to expect what is no digest", answer, Code::InvalidArgument, "").await;

    let mistakes: &[(&'static str, WriteContentRequest, Code, &str)] = &[
        ("write behind the end", write(9, "x"), Code::OutOfRange, ""),
        ("write into the middle", write(2, "x"), Code::OutOfRange, ""),
        ("commit with another size", commit_of(5, 7, ""), Code::FailedPrecondition, "5"),
        (
            "commit with another digest",
            commit_of(5, 5, &digest("x")),
            Code::FailedPrecondition,
            "unexpected commit digest",
        ),
        ("commit with what is no digest", commit_of(5, 5, "sha256:1"), Code::InvalidArgument, ""),
        (
            "commit behind the end",
            WriteContentRequest { offset: 9, data: "x".into(), ..commit(0, "") },
            Code::OutOfRange,
            "",
        ),
        (
            "commit with a label that is too long",
            WriteContentRequest { labels: map(&[("key", &"v".repeat(4094))]), ..commit_of(5, 5, "") },
            Code::InvalidArgument,
            "label key and value",
        ),
        ("an action that is none", WriteContentRequest { action: 9, ..stat("") }, Code::InvalidArgument, ""),
    ];
    for (case, mistake, code, words) in mistakes {
        let (mut ingest, answer) = resumed(side, stat("mistakes")).await;
        if answer.offset == 0 {
            side.ok("write", ingest.say(write(0, "hello"))).await;
        }
        side.refused(case, ingest.say(mistake.clone()), *code, words).await;
        ingest.close().await;
        let mut content = ContentClient::new(side.channel());
        let status = content.status(ask(StatusRequest { r#ref: "mistakes".into() }));
        let status = side.ok("status after a mistake", status).await.status.unwrap_or_default();
        side.is("a mistake leaves the bytes", (status.r#ref.as_str(), status.offset), ("mistakes", 5));
    }
    let (mut ingest, _) = resumed(side, stat("mistakes")).await;
    let answer = side.ok("commit after all", ingest.say(commit_of(5, 0, ""))).await;
    side.is("without being told it is what it is", answer.digest, digest("hello"));
}

async fn what_is_there_is_not_written_again(side: &Side<'_>) {
    let known = add(side, "known", &[]).await;
    let answer = Conversation::open(side, WriteContentRequest { expected: known.clone(), ..stat("again") });
    side.refused("begin what is there", answer, Code::AlreadyExists, &known).await;
    let (mut ingest, _) = Conversation::open(side, stat("again")).await.expect("a new ingest");
    side.ok("write", ingest.say(write(0, "known"))).await;
    side.refused("commit what is there", ingest.say(commit_of(5, 5, &known)), Code::AlreadyExists, &known)
        .await;
    let mut content = ContentClient::new(side.channel());
    let answer = content.status(ask(StatusRequest { r#ref: "again".into() }));
    side.refused("the ingest of what was there", answer, Code::NotFound, "again").await;
    let late = |request| WriteContentRequest { expected: known.clone(), ..request };
    for (case, said) in [
        ("write what turns out to be there", late(write(0, "kno"))),
        ("ask about what turns out to be there", late(stat(""))),
    ] {
        let (mut ingest, _) = resumed(side, stat("late")).await;
        side.refused(case, ingest.say(said), Code::AlreadyExists, &known).await;
        let answer = content.status(ask(StatusRequest { r#ref: "late".into() }));
        side.refused("the ingest of what was there", answer, Code::NotFound, "late").await;
    }
    // Bytes that another namespace has need not be sent.
    let (send, receive) = mpsc::channel(2);
    send.try_send(WriteContentRequest { expected: known.clone(), total: 5, ..stat("shared") }).expect("room");
    let mut answers = side
        .ok("begin what others have", content.write(within(Some("other"), ReceiverStream::new(receive))))
        .await;
    let answer = answers.message().await.ok().flatten().unwrap_or_default();
    side.is("what others have is complete", answer.offset, 5);
    send.try_send(commit_of(5, 5, &known)).expect("room");
    let answer = answers.message().await.ok().flatten().unwrap_or_default();
    side.is("and can be committed", answer.digest, known);
}

async fn ingests_are_listed_and_dropped(side: &Side<'_>) {
    let mut content = ContentClient::new(side.channel());
    for name in ["list/one", "list/two"] {
        let expecting = WriteContentRequest { total: 9, ..stat(name) };
        let (mut ingest, _) = Conversation::open(side, expecting).await.expect("a new ingest");
        side.ok("write", ingest.say(write(0, "123"))).await;
        ingest.close().await;
    }
    for (filters, expected) in [
        (vec!["ref==\"list/one\""], vec!["list/one"]),
        (vec!["ref~=/^list/"], vec!["list/one", "list/two"]),
        (vec!["ref!=\"list/one\",ref~=/^list/"], vec!["list/two"]),
        (vec!["offset==3"], vec![]),
    ] {
        let list = ListStatusesRequest { filters: filters.iter().map(ToString::to_string).collect() };
        let found = side.ok("list statuses", content.list_statuses(ask(list))).await.statuses;
        let mut found: Vec<String> = found.into_iter().map(|status| status.r#ref).collect();
        found.sort();
        side.is(
            "filters choose ingests",
            (&filters, found),
            (&filters, expected.iter().map(ToString::to_string).collect::<Vec<_>>()),
        );
    }
    for (case, filter) in BAD_FILTERS.iter().chain([&BROKEN]) {
        let answer = content.list_statuses(ask(ListStatusesRequest { filters: vec![(*filter).into()] }));
        side.refused(case, answer, Code::InvalidArgument, "").await;
    }
    let status = side.ok("status", content.status(ask(StatusRequest { r#ref: "list/one".into() }))).await;
    let status = status.status.unwrap_or_default();
    side.is("a status says all", (status.offset, status.total, status.started_at.is_some()), (3, 9, true));
    let (other_size, answer) = resumed(side, WriteContentRequest { total: 8, ..stat("list/two") }).await;
    side.is("an ingest of another size begins anew", answer.offset, 0);
    other_size.close().await;
    side.ok("abort", content.abort(ask(AbortRequest { r#ref: "list/two".into() }))).await;
    side.ok("abort another", content.abort(ask(AbortRequest { r#ref: "list/one".into() }))).await;
    for name in ["list/one", "none"] {
        let answer = content.abort(ask(AbortRequest { r#ref: name.into() }));
        side.refused("abort what is not there", answer, Code::NotFound, name).await;
        let answer = content.status(ask(StatusRequest { r#ref: name.into() }));
        side.refused("the status of what is not there", answer, Code::NotFound, name).await;
    }
    let answer = content.abort(ask(AbortRequest::default()));
    side.refused("abort without a name", answer, Code::NotFound, "").await;
    let answer = content.status(ask(StatusRequest::default()));
    side.refused("the status of no name", answer, Code::NotFound, "").await;
}

async fn ranges_are_read(side: &Side<'_>) {
    let text: String = "0123456789".repeat(150_000);
    let known = add(side, &text, &[]).await;
    let mut content =
        ContentClient::new(side.channel()).max_decoding_message_size(api::grpc::MESSAGE_BYTES_MAX);
    for (offset, size, expected) in [
        (0, 0, &text[..]),
        (-1, 10, &text[..10]),
        (5, 10, &text[5..15]),
        (1_499_990, 0, &text[1_499_990..]),
        (1_499_990, 1_000_000, &text[1_499_990..]),
        (10, -1, &text[10..]),
        (1_500_000, 0, ""),
        (3, 1_200_000, &text[3..1_200_003]),
    ] {
        let read = ReadContentRequest { digest: known.clone(), offset, size };
        let messages = side.ok("read", all(content.read(ask(read)))).await;
        let mut at = 0;
        let counted = messages.iter().all(|message| {
            let expected = at;
            at += i64::try_from(message.data.len()).expect("a short message");
            message.offset == expected
        });
        side.is("offsets count from the reply's beginning", (offset, size, counted), (offset, size, true));
        let bytes: Vec<u8> = messages.iter().flat_map(|message| message.data.iter().copied()).collect();
        side.is(
            "the bytes are those asked for",
            (offset, size, bytes == expected.as_bytes()),
            (offset, size, true),
        );
    }
    let mut refused = async |case, digest: &str, offset, code, words: &str| {
        let read = ReadContentRequest { digest: digest.into(), offset, size: 0 };
        side.refused(case, all(content.read(ask(read))), code, words).await;
    };
    refused("read behind the end", &known, 1_500_001, Code::OutOfRange, "").await;
    refused("read what is not there", &digest("none"), 0, Code::NotFound, &digest("none")).await;
    refused("read what is no digest", "sha256:12", 0, Code::InvalidArgument, "").await;
    refused("read an empty digest", "", 0, Code::InvalidArgument, "").await;
}

async fn labels_change_and_filters_choose(side: &Side<'_>) {
    let mut content = ContentClient::new(side.channel());
    let known = add(side, "labelled", &[("a", "1"), ("b.c/d", "2"), ("none", "")]).await;
    let info = |digest: &str| ask(InfoRequest { digest: digest.into() });
    let found = side.ok("info", content.info(info(&known))).await.info.unwrap_or_default();
    side.is("labels of a commit are kept", found.labels, map(&[("a", "1"), ("b.c/d", "2")]));
    side.is("size and digest", (found.size, found.digest), (8, known.clone()));
    let update = |labels: &[(&str, &str)], paths: &[&str]| {
        let info = Info { digest: known.clone(), size: 99, labels: map(labels), ..Info::default() };
        let update_mask = mask(paths).filter(|mask| !mask.paths.is_empty());
        ask(UpdateRequest { info: Some(info), update_mask })
    };
    let long = "v".repeat(4096);
    let steps: &[LabelStep<'_>] = &[
        (&[("a", "9"), ("b.c/d", "9")], &["labels.b.c/d"], &[("a", "1"), ("b.c/d", "9")]),
        (&[("a", "")], &["labels.a"], &[("b.c/d", "9")]),
        // What the mask leaves out is not looked at.
        (&[("b.c/d", "8"), ("long", &long)], &["labels.b.c/d"], &[("b.c/d", "8")]),
        (&[("x", "1"), ("y", "")], &["labels"], &[("x", "1")]),
        (&[("tier", "gold")], &[], &[("tier", "gold")]),
    ];
    for (labels, paths, expected) in steps {
        let found = side.ok("update", content.update(update(labels, paths))).await.info.unwrap_or_default();
        side.is(
            "labels change as the mask says",
            (paths, found.labels, found.size),
            (paths, map(expected), 8),
        );
    }
    let answer = content.update(update(&[("", "v")], &[]));
    side.refused("a label without a key", answer, Code::InvalidArgument, "key").await;
    for path in ["size", "digest", "label", "created_at", ""] {
        let answer = content.update(update(&[], &[path]));
        side.refused("a field that does not change", answer, Code::InvalidArgument, "").await;
    }
    let answer = content.update(update(&[("key", &"v".repeat(4094))], &["labels"]));
    side.refused("a label that is too long", answer, Code::InvalidArgument, "label key and value").await;
    let missing = Info { digest: digest("none"), ..Info::default() };
    let answer = content.update(ask(UpdateRequest { info: Some(missing), update_mask: None }));
    side.refused("update what is not there", answer, Code::NotFound, &digest("none")).await;
    if side.is_ours() {
        let answer = content.update(ask(UpdateRequest::default()));
        side.refused("update nothing", answer, Code::InvalidArgument, "info is required").await;
    }

    let other = add(side, "not labelled", &[]).await;
    let by_digest = format!("digest==\"{other}\"");
    for (filters, expected) in [
        (vec!["labels.tier==gold"], vec![&known]),
        (vec![by_digest.as_str()], vec![&other]),
        (vec![by_digest.as_str(), "labels.tier"], vec![&known, &other]),
        (vec!["labels.tier!=gold,size==12"], vec![]),
    ] {
        let list = ListContentRequest { filters: filters.iter().map(ToString::to_string).collect() };
        let found = side.ok("list", all(content.list(ask(list)))).await;
        let mut found: Vec<String> =
            found.into_iter().flat_map(|message| message.info).map(|info| info.digest).collect();
        found.sort();
        let mut expected: Vec<String> = expected.into_iter().cloned().collect();
        expected.sort();
        side.is("filters choose blobs", (&filters, found), (&filters, expected));
    }
    for (case, filter) in BAD_FILTERS.iter().chain([&BROKEN]) {
        let answer = all(content.list(ask(ListContentRequest { filters: vec![(*filter).into()] })));
        side.refused(case, answer, Code::InvalidArgument, "").await;
    }
}

async fn what_is_deleted_is_gone(side: &Side<'_>) {
    let mut content = ContentClient::new(side.channel());
    let known = add(side, "to be deleted", &[]).await;
    let delete = |digest: &str| DeleteContentRequest { digest: digest.into() };
    let answer = content.delete(within(Some("nobody"), delete(&known)));
    side.refused("delete in another namespace", answer, Code::NotFound, &known).await;
    let answer = content.info(within(Some("nobody"), InfoRequest { digest: known.clone() }));
    side.refused("a blob of another namespace", answer, Code::NotFound, &known).await;
    side.ok("delete", content.delete(ask(delete(&known)))).await;
    let answer = content.delete(ask(delete(&known)));
    side.refused("delete what is not there", answer, Code::NotFound, &known).await;
    let answer = content.info(ask(InfoRequest { digest: known.clone() }));
    side.refused("info of what is not there", answer, Code::NotFound, &known).await;
    for digest in ["", "sha256:12", "md5:12", "x"] {
        let answer = content.delete(ask(delete(digest)));
        side.refused("delete what is no digest", answer, Code::InvalidArgument, "").await;
        let answer = content.info(ask(InfoRequest { digest: digest.into() }));
        side.refused("info of what is no digest", answer, Code::InvalidArgument, "").await;
    }
}
