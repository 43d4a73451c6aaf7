//! `hoist.engine.v1`: calls of the engine.

mod docker_event;
mod events;
mod history;

use api::engine::engine_server::Engine as EngineService;
use api::engine::{
    Call, ChangedPath, Changes, Document, Exited, Follow, ImageFollow, ImageStep, Keyring, LogLine, Logs,
    PullStep, PushStep,
};
use engine::Engine;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};
use tracing::instrument::Instrument;
use transfer::Scope;

use super::{Answer, Answers, plain_status};

pub(crate) use history::History;

/// Messages queued for a slow client.
const ANSWERS_WAITING: usize = 64;

pub(super) struct Service(pub(super) Engine, pub(super) History);

type Sender = mpsc::Sender<Result<Document, Status>>;

#[tonic::async_trait]
impl EngineService for Service {
    async fn call(&self, request: Request<Document>) -> Answer<Document> {
        let call: Call = parse(&request.into_inner())?;
        let engine = self.0.clone();
        // Dropped with this call's future, which happens when the client disconnects.
        let (_is_here, is_gone) = oneshot::channel::<()>();
        let gone = async {
            let _ = is_gone.await;
        };
        // In a task of its own, so that the call is not interrupted half way if the client disconnects.
        let answering = async move { Box::pin(engine.answer(call, gone)).await };
        let answered = tokio::spawn(answering.in_current_span()).await;
        let answer = answered.map_err(|panic| Status::internal(format!("the call broke down: {panic}")))?;
        Ok(Response::new(document(&answer.map_err(|error| plain_status(&error))?)))
    }

    type FollowStream = Answers<Document>;

    async fn follow(&self, request: Request<Document>) -> Answer<Self::FollowStream> {
        let follow: Follow = parse(&request.into_inner())?;
        let (send, receive) = mpsc::channel(ANSWERS_WAITING);
        let (engine, history) = (self.0.clone(), self.1.clone());
        let following = async move {
            match follow {
                Follow::Pull { reference, platform, credentials } => {
                    let pulled = pull(&engine, &reference, platform.as_deref(), credentials, &send);
                    while_followed(&send, pulled).await;
                }
                Follow::Push { reference, all_platforms, platforms, referrers, credentials } => {
                    match scope(&platforms, all_platforms) {
                        Ok(scope) => {
                            let pushed = push(&engine, &reference, scope, referrers, credentials, &send);
                            while_followed(&send, Box::pin(pushed)).await;
                        }
                        Err(error) => {
                            tell::<()>(&send, Err(error)).await;
                        }
                    }
                }
                Follow::Wait { id, exec: None } => {
                    while_followed(&send, wait(&engine, &id, None, &send)).await;
                }
                // Not cancelled when the client disconnects: the waiter deletes the exec after its end.
                Follow::Wait { id, exec } => wait(&engine, &id, exec.as_deref(), &send).await,
                Follow::Image(follow) => {
                    while_followed(&send, Box::pin(images(&engine, follow, &send))).await;
                }
                Follow::Logs(wanted) => {
                    while_followed(&send, logs(&engine, wanted, &send)).await;
                }
                Follow::Events(wanted) => {
                    let told = async {
                        if let Err(error) = events::follow(&history, wanted, &send).await {
                            tell::<()>(&send, Err(error)).await;
                        }
                    };
                    while_followed(&send, told).await;
                }
                Follow::Copy(copy) => {
                    let copied = async {
                        tell(&send, Box::pin(engine.copy_files(copy)).await).await;
                    };
                    while_followed(&send, copied).await;
                }
                Follow::Changes(of) => changes(&engine, of, &send).await,
            }
        };
        tokio::spawn(following.in_current_span());
        Ok(Response::new(Box::pin(ReceiverStream::new(receive))))
    }
}

/// Cancels work when its client disconnects. Of a pull, blobs that another pull fetches as well continue, and partial
/// blobs are resumed by the next pull.
async fn while_followed(send: &Sender, work: impl Future<Output = ()>) {
    tokio::select! {
        () = work => {}
        () = send.closed() => {}
    }
}

async fn wait(engine: &Engine, id: &str, exec: Option<&str>, send: &Sender) {
    let waited = engine.wait(id, exec).await;
    tell(send, waited.map(|code| Exited { code })).await;
}

async fn pull(engine: &Engine, reference: &str, platform: Option<&str>, credentials: Keyring, send: &Sender) {
    let (steps, teller) = telling::<PullStep>(send);
    let pulled = engine.pull(reference, platform, credentials, steps).await;
    // Forward all progress before sending the outcome.
    let _ = teller.await;
    let done =
        pulled.map(|image| PullStep::Done { name: image.name, digest: image.target.digest.to_string() });
    tell(send, done).await;
}

/// The part of a multi-platform image to push.
fn scope(platforms: &[String], all: bool) -> types::Result<Scope> {
    Ok(match platforms {
        _ if all => Scope::Whole,
        [] => Scope::Present,
        wanted => Scope::Only(wanted.iter().map(|name| name.parse()).collect::<types::Result<_>>()?),
    })
}

async fn push(
    engine: &Engine,
    reference: &str,
    scope: Scope,
    referrers: bool,
    credentials: Keyring,
    send: &Sender,
) {
    let (steps, teller) = telling::<PushStep>(send);
    let pushed = engine.push(reference, scope, referrers, credentials, steps).await;
    // Forward all progress before sending the outcome.
    let _ = teller.await;
    let done = pushed.map(|pushed| PushStep::Done {
        name: reference.to_owned(),
        digest: pushed.digest.to_string(),
        size: pushed.size,
    });
    tell(send, done).await;
}

async fn images(engine: &Engine, follow: ImageFollow, send: &Sender) {
    let (steps, teller) = telling::<ImageStep>(send);
    let followed = engine.follow_images(follow, steps).await;
    // Forward all progress before sending the outcome.
    let _ = teller.await;
    if let Err(error) = followed {
        tell::<()>(send, Err(error)).await;
    }
}

async fn logs(engine: &Engine, wanted: Logs, send: &Sender) {
    let (lines, teller) = telling::<LogLine>(send);
    if let Err(error) = engine.logs(wanted, lines).await {
        tell::<()>(send, Err(error)).await;
    }
    let _ = teller.await;
}

async fn changes(engine: &Engine, of: Changes, send: &Sender) {
    let (changes, teller) = telling::<ChangedPath>(send);
    let compared = engine.changes(of, changes).await;
    let _ = teller.await;
    if let Err(error) = compared {
        tell::<()>(send, Err(error)).await;
    }
}

/// A channel whose messages are forwarded to the client in order, until it disconnects.
fn telling<T: Serialize + Send + 'static>(send: &Sender) -> (mpsc::Sender<T>, JoinHandle<()>) {
    let (steps, mut receive) = mpsc::channel(ANSWERS_WAITING);
    let onward = send.clone();
    let teller = async move {
        while let Some(step) = receive.recv().await {
            if !tell(&onward, Ok(step)).await {
                return;
            }
        }
    };
    (steps, tokio::spawn(teller))
}

/// Sends a message; false if the client has disconnected.
async fn tell<T: Serialize>(send: &Sender, answer: types::Result<T>) -> bool {
    let answer = answer.map(|answer| document(&answer)).map_err(|error| plain_status(&error));
    send.send(answer).await.is_ok()
}

fn parse<T: DeserializeOwned>(document: &Document) -> Result<T, Status> {
    serde_json::from_slice(&document.json)
        .map_err(|error| Status::invalid_argument(format!("a question that is not understood: {error}")))
}

fn document(answer: &impl Serialize) -> Document {
    Document { json: serde_json::to_vec(answer).expect("answers are plain data") }
}
