//! `hoist.engine.v1`: Hoist's own service, whose requests and answers are JSON documents.

use api::engine::engine_client::EngineClient;
use api::engine::{Call, Document, Follow, ImageFollow, ImageStep, Keyring, Logs};
use serde_json::{Value, json};
use testkit::Daemon;
use tonic::{Code, Request};

use super::walk::{Side, all, covers};

fn document(question: &Value) -> Request<Document> {
    Request::new(Document { json: question.to_string().into_bytes() })
}

#[test]
fn engine_walked() {
    covers(&["Engine.Call", "Engine.Follow"]).alone(&Daemon::start(), &async |side: &Side<'_>| {
        let mut engine = EngineClient::new(side.channel());
        let answer = side.ok("call", engine.call(document(&json!(Call::Info)))).await;
        let answer: Value = serde_json::from_slice(&answer.json).expect("a document");
        side.is("an answer is an object", answer.is_object(), true);
        let listed =
            side.ok("list", engine.call(document(&json!({ "question": "list", "all": true })))).await;
        side.is("nothing is there", listed.json, b"[]".to_vec());
        let text = |text: &str| Request::new(Document { json: text.into() });
        for question in ["", "{", "[]", "{\"question\":\"none\"}", "{\"question\":\"start\"}", "\u{0}"] {
            let answer = engine.call(text(question));
            side.refused("a question that is none", answer, Code::InvalidArgument, "not understood").await;
            let answer = all(engine.follow(text(question)));
            side.refused("to follow what is none", answer, Code::InvalidArgument, "not understood").await;
        }
        for question in [
            json!({ "question": "inspect", "id": "none" }),
            json!({ "question": "start", "id": "none", "streams": {} }),
            json!({ "question": "stop", "id": "none" }),
            json!({ "question": "kill", "id": "none", "signal": "KILL" }),
            json!({ "question": "remove", "id": "none", "force": false }),
            json!({ "question": "pause", "id": "none" }),
            json!({ "question": "unpause", "id": "none" }),
            json!({ "question": "stat-file", "id": "none", "path": "/" }),
            json!({ "question": "resize", "id": "none", "rows": 1, "columns": 1 }),
            json!({ "question": "close-stdin", "id": "none" }),
            json!({ "question": "attach", "id": "none", "streams": {} }),
        ] {
            let answer = engine.call(document(&question));
            side.refused("about what is not there", answer, Code::NotFound, "none").await;
        }
        let answer = engine.call(document(&json!({ "question": "inspect", "id": "" })));
        side.refused("about no name", answer, Code::InvalidArgument, "empty").await;
        let missing = Follow::Logs(Logs { id: "none".into(), ..Logs::default() });
        side.refused(
            "logs of what is not there",
            all(engine.follow(document(&json!(missing)))),
            Code::NotFound,
            "none",
        )
        .await;
        let verify = Follow::Image(ImageFollow::Verify { names: vec![], credentials: Keyring::default() });
        let steps = side.ok("follow", all(engine.follow(document(&json!(verify))))).await;
        let last: Option<ImageStep> = steps.last().and_then(|step| serde_json::from_slice(&step.json).ok());
        side.is("the last step says so", matches!(last, Some(ImageStep::Done { .. })), true);
    });
}
