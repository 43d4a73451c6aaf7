//! `containerd.services.events.v1`

use std::time::Duration;

use api::grpc::event::{ContainerCreate, ContainerRuntime, ImageCreate, ImageDelete};
use api::grpc::events::events_client::EventsClient;
use api::grpc::events::{ForwardRequest, PublishRequest, SubscribeRequest};
use api::grpc::types::{Any, Envelope};
use api::shim::pack;
use prost_types::Timestamp;
use tonic::{Code, Request, Streaming};

use super::walk::{
    BAD_FILTERS, BROKEN, BROKEN_THERE, Difference, Side, There, Watched, all, ask, covers, differs,
    differs_in, within,
};

const DIFFERENCES: &[Difference] = &[
    differs("a filter that is none", There::Code(Code::Unknown), "the same refusal, without a class"),
    differs_in(2, "forward without a time", There::Code(Code::Ok), "it takes it for 1970"),
    BROKEN_THERE,
];

fn event(name: &str) -> Option<Any> {
    Some(pack(&ImageCreate { name: name.into(), ..ImageCreate::default() }))
}

pub(super) fn publish(topic: &str) -> PublishRequest {
    PublishRequest { topic: topic.into(), event: event(topic.rsplit('/').next().unwrap_or_default()) }
}

#[test]
fn events_walked() {
    covers(&["Events.Publish", "Events.Forward", "Events.Subscribe"]).walk(DIFFERENCES, async |side| {
        what_is_published_is_heard(side).await;
        filters_look_into_events(side).await;
        what_is_published_is_checked(side).await;
    });
}

/// Subscribes, and gives back the stream once it is known to hear: Go's server says nothing before the first event.
pub(super) async fn listen(events: &EventsClient<Watched>, filters: &[&str]) -> Streaming<Envelope> {
    // A filter that is there besides, for the event at the beginning and the one at the end.
    let marks = (!filters.is_empty()).then_some("topic~=/^.mark/");
    let filters = filters.iter().copied().chain(marks).map(ToOwned::to_owned).collect();
    let mut client = events.clone();
    let listening =
        tokio::spawn(async move { client.subscribe(Request::new(SubscribeRequest { filters })).await });
    let mut client = events.clone();
    while !listening.is_finished() {
        client.publish(ask(publish("/mark/begin"))).await.expect("events can be published");
    }
    let mut stream = listening.await.expect("no panic").expect("a subscription").into_inner();
    // Our server answers at once: the mark is waited for on both sides.
    client.publish(ask(publish("/mark/begin"))).await.expect("events can be published");
    stream.message().await.expect("the stream lasts").expect("an event");
    stream
}

async fn what_is_published_is_heard(side: &Side<'_>) {
    let mut events = EventsClient::new(side.channel());
    let heard_by: &[(&[&str], &[&str])] = &[
        (&[], &["/walk/one", "/walk/two", "/walk/three", "/walk/sent"]),
        (&["topic==\"/walk/two\""], &["/walk/two"]),
        (&["topic~=/^.walk.t/"], &["/walk/two", "/walk/three"]),
        (&["namespace==other"], &["/walk/three", "/walk/sent"]),
        (&["event.name==one", "event.name==three"], &["/walk/one", "/walk/three"]),
        (&["topic==\"/walk/one\",namespace==other"], &[]),
    ];
    let mut listeners = Vec::new();
    for (filters, _) in heard_by {
        listeners.push(listen(&events, filters).await);
    }
    side.ok("publish", events.publish(ask(publish("/walk/one")))).await;
    side.ok("publish", events.publish(ask(publish("/walk/two")))).await;
    side.ok("publish elsewhere", events.publish(within(Some("other"), publish("/walk/three")))).await;
    let timestamp = Some(Timestamp { seconds: 1, nanos: 2 });
    let sent =
        Envelope { timestamp, namespace: "other".into(), topic: "/walk/sent".into(), event: event("sent") };
    side.ok("forward", events.forward(ask(ForwardRequest { envelope: Some(sent.clone()) }))).await;
    side.ok("publish the end", events.publish(ask(publish("/mark/end")))).await;
    for ((filters, expected), stream) in heard_by.iter().zip(listeners) {
        let heard = heard(stream).await;
        if let Some(event) = heard.iter().find(|event| event.topic == "/walk/sent") {
            side.is("what is forwarded comes as it was", event, &sent);
        }
        let topics: Vec<String> = heard.into_iter().map(|event| event.topic).collect();
        let expected: Vec<String> = expected.iter().map(ToString::to_string).collect();
        side.is("filters choose", (filters, topics), (filters, expected));
    }
}

/// What is heard up to the mark at the end, without the marks at the beginning.
async fn heard(mut stream: Streaming<Envelope>) -> Vec<Envelope> {
    let mut heard = Vec::new();
    loop {
        let event = stream.message().await.expect("the stream lasts").expect("an event");
        match event.topic.as_str() {
            "/mark/end" => return heard,
            "/mark/begin" => {}
            _ => heard.push(event),
        }
    }
}

/// Which paths have a value, in an event with a message inside, which has an event inside.
async fn filters_look_into_events(side: &Side<'_>) {
    let mut events = EventsClient::new(side.channel());
    let options = pack(&ImageDelete { name: "inner".into() });
    let runtime = ContainerRuntime { name: "outer".into(), options: Some(options) };
    let made = ContainerCreate { id: "one".into(), runtime: Some(runtime), ..ContainerCreate::default() };
    let labeled = ImageCreate { name: "two".into(), labels: [("a.b".into(), String::new())].into() };
    let paths: &[(&str, &[&str])] = &[
        ("event.id==one", &["/walk/made"]),
        ("event.id.more==one", &["/walk/made"]),
        ("event.image", &[]),
        ("topic~=walk,event.image!=x", &["/walk/made", "/walk/labeled"]),
        ("event.runtime", &[]),
        ("event.runtime.name==outer", &["/walk/made"]),
        ("event.\"runtime.name\"==outer", &[]),
        ("event.runtime.options", &[]),
        ("event.runtime.options.name==inner", &["/walk/made"]),
        ("event.runtime.options.image", &[]),
        ("event.labels.a.b", &["/walk/labeled"]),
        ("event.labels.a", &[]),
        ("topic.more==\"/walk/made\"", &["/walk/made"]),
    ];
    let mut listeners = Vec::new();
    for (filter, _) in paths {
        listeners.push(listen(&events, &[filter]).await);
    }
    let publish_as = |topic: &str, event| PublishRequest { topic: topic.into(), event: Some(event) };
    side.ok("publish", events.publish(ask(publish_as("/walk/made", pack(&made))))).await;
    side.ok("publish", events.publish(ask(publish_as("/walk/labeled", pack(&labeled))))).await;
    side.ok("publish the end", events.publish(ask(publish("/mark/end")))).await;
    for ((filter, expected), stream) in paths.iter().zip(listeners) {
        let topics: Vec<String> = heard(stream).await.into_iter().map(|event| event.topic).collect();
        let expected: Vec<String> = expected.iter().map(ToString::to_string).collect();
        side.is("paths into events", (filter, topics), (filter, expected));
    }
}

async fn what_is_published_is_checked(side: &Side<'_>) {
    let mut events = EventsClient::new(side.channel());
    let answer = events.publish(within(None, publish("/walk/one")));
    side.refused("publish without a namespace", answer, Code::FailedPrecondition, "namespace is required")
        .await;
    for topic in ["", "/", "walk/one", "/walk/", "//one", "/walk/a b"] {
        let answer = events.publish(ask(publish(topic)));
        side.refused("publish with a topic that is none", answer, Code::InvalidArgument, "").await;
    }
    let envelope = Envelope {
        timestamp: Some(Timestamp { seconds: 1, nanos: 0 }),
        namespace: "other".into(),
        topic: "/walk/one".into(),
        event: event("one"),
    };
    let forward = |envelope: Envelope| ask(ForwardRequest { envelope: Some(envelope) });
    let answer = events.forward(forward(Envelope { namespace: String::new(), ..envelope.clone() }));
    side.refused("forward without a namespace", answer, Code::InvalidArgument, "").await;
    let answer = events.forward(forward(Envelope { namespace: "a/b".into(), ..envelope.clone() }));
    side.refused("forward with a namespace that is none", answer, Code::InvalidArgument, "").await;
    let answer = events.forward(forward(Envelope { topic: "one".into(), ..envelope.clone() }));
    side.refused("forward with a topic that is none", answer, Code::InvalidArgument, "").await;
    let answer = events.forward(forward(Envelope { timestamp: None, ..envelope }));
    side.refused("forward without a time", answer, Code::InvalidArgument, "").await;
    if side.is_ours() {
        let answer = events.forward(ask(ForwardRequest::default()));
        side.refused("forward nothing", answer, Code::InvalidArgument, "envelope is required").await;
    }
    for (case, filter) in BAD_FILTERS {
        let subscribe = SubscribeRequest { filters: vec![(*filter).into()] };
        side.refused(case, all(events.subscribe(ask(subscribe))), Code::InvalidArgument, "").await;
    }
    // A peer that takes it has nothing to say for ever: the call alone is looked at.
    let subscribe = SubscribeRequest { filters: vec![BROKEN.1.into()] };
    let mut events = events.clone();
    let answer = async move {
        let answer = tokio::time::timeout(Duration::from_millis(200), events.subscribe(ask(subscribe))).await;
        answer.map_or(Ok(()), |answer| answer.map(drop))
    };
    side.refused(BROKEN.0, answer, Code::InvalidArgument, "").await;
}
