//! `containerd.services.sandbox.v1.Controller`: running sandboxes. The request's `sandboxer` selects the built-in
//! controller [`shim`] or a proxy plugin.

mod shim;

use std::time::{Duration, Instant};

use api::grpc::event::{self, topic};
use api::grpc::sandbox::controller::controller_client::ControllerClient;
use api::grpc::sandbox::controller::controller_server::Controller;
use api::grpc::sandbox::controller::{
    ControllerCreateRequest, ControllerCreateResponse, ControllerMetricsRequest, ControllerMetricsResponse,
    ControllerPlatformRequest, ControllerPlatformResponse, ControllerShutdownRequest,
    ControllerShutdownResponse, ControllerStartRequest, ControllerStartResponse, ControllerStatusRequest,
    ControllerStatusResponse, ControllerStopRequest, ControllerStopResponse, ControllerUpdateRequest,
    ControllerUpdateResponse, ControllerWaitRequest, ControllerWaitResponse,
};
use api::shim::types::TypeUrl;
use events::{Envelope, Exchange};
use metadata::Caller;
use prost::Message;
use tokio::time::sleep;
use tonic::{Request, Status};
use types::{ErrorKind, Namespace, Opaque, Timestamp};

use self::shim::Shim;
use super::{Answer, caller, status};
use crate::config::ProxyKind;
use crate::proxy::{self, LONG, Plugin};
use crate::wiring::Parts;

/// Name of the built-in controller.
pub(super) const SHIM: &str = "shim";

/// Pause before a plugin that disconnected is asked again for the end of a sandbox, and how long it may stay away.
const ASKED_AGAIN: Duration = Duration::from_secs(5);
const AWAY_MAX: Duration = Duration::from_secs(60 * 60);

pub(super) struct Service {
    shim: Shim,
    proxies: Vec<Plugin>,
    exchange: Exchange,
}

impl Service {
    pub(super) fn new(parts: &Parts) -> Service {
        let is_ours = |plugin: &&Plugin| plugin.config().kind == ProxyKind::Sandbox;
        Service {
            shim: Shim { metadata: parts.metadata.clone(), sandboxes: parts.shims.sandboxes() },
            proxies: parts.proxies.iter().filter(is_ours).cloned().collect(),
            exchange: parts.exchange.clone(),
        }
    }

    /// The plugin with this name; `None` for the built-in controller.
    fn proxy(&self, name: &str) -> Result<Option<&Plugin>, Status> {
        if name == SHIM {
            return Ok(None);
        }
        if name.is_empty() {
            return Err(Status::invalid_argument("sandbox controller name can not be empty"));
        }
        let found = self.proxies.iter().find(|plugin| plugin.config().name == name);
        found.map(Some).ok_or_else(|| {
            let proxies = self.proxies.iter().map(|plugin| plugin.config().name.as_str());
            let known: Vec<&str> = std::iter::once(SHIM).chain(proxies).collect();
            Status::not_found(format!(
                "failed to get sandbox controller by {name}; there is {}: not found",
                known.join(", ")
            ))
        })
    }

    /// Publishes the event of a plugin's action, because the plugin itself publishes none.
    fn tell(&self, plugin: &Plugin, caller: Caller, method: &str, id: String) {
        match method {
            "create" => {
                let event = event::SandboxCreate { sandbox_id: id };
                publish(&self.exchange, caller.namespace, topic::SANDBOX_CREATE, &event);
            }
            "start" => {
                let event = event::SandboxStart { sandbox_id: id.clone() };
                publish(&self.exchange, caller.namespace.clone(), topic::SANDBOX_START, &event);
                tokio::spawn(tell_end(self.exchange.clone(), plugin.clone(), caller, id));
            }
            _ => {}
        }
    }
}

/// Publishes the end of a plugin's sandbox, once. Asks again if the plugin is restarted.
async fn tell_end(exchange: Exchange, plugin: Plugin, caller: Caller, id: String) {
    let sandboxer = plugin.config().name.clone();
    let message = ControllerWaitRequest { sandbox_id: id.clone(), sandboxer };
    let mut away_since = None;
    loop {
        let mut client = proxy::client!(ControllerClient, plugin.channel());
        let asked = Instant::now();
        let error = match plugin.wait(client.wait(proxy::request_of(&caller, message.clone()))).await {
            Ok(exit) => {
                let ControllerWaitResponse { exit_status, exited_at } = exit.into_inner();
                let event = event::SandboxExit { sandbox_id: id, exit_status, exited_at };
                publish(&exchange, caller.namespace, topic::SANDBOX_EXIT, &event);
                return;
            }
            Err(error) => error,
        };
        // The call waited for long, so the plugin had come back in between.
        if asked.elapsed() > 2 * ASKED_AGAIN {
            away_since = None;
        }
        let is_away = error.is(ErrorKind::Unavailable) || error.is(ErrorKind::DeadlineExceeded);
        if !is_away || away_since.get_or_insert(asked).elapsed() > AWAY_MAX {
            tracing::warn!(namespace = %caller.namespace, id, "the end of a sandbox: {}", error.chain());
            return;
        }
        sleep(ASKED_AGAIN).await;
    }
}

fn publish<M: Message + TypeUrl>(exchange: &Exchange, namespace: Namespace, topic: &str, message: &M) {
    let event = Opaque { type_url: M::TYPE_URL.to_owned(), value: message.encode_to_vec() };
    exchange.publish(Envelope { timestamp: Timestamp::now(), namespace, topic: topic.to_owned(), event });
}

/// Short calls have the plugin's time limit; calls that last as long as the sandbox have none.
macro_rules! ask {
    (short, $plugin:expr, $asked:expr) => {
        $plugin.call($plugin.short(), $asked)
    };
    (long, $plugin:expr, $asked:expr) => {
        $plugin.call(LONG, $asked)
    };
    (endless, $plugin:expr, $asked:expr) => {
        $plugin.wait($asked)
    };
}

macro_rules! dispatch {
    ($($limit:ident $method:ident($request:ty) -> $response:ty;)+) => {
        #[tonic::async_trait]
        impl Controller for Service {
            $(
                async fn $method(&self, request: Request<$request>) -> Answer<$response> {
                    let caller = caller(&request)?;
                    let Some(plugin) = self.proxy(&request.get_ref().sandboxer)? else {
                        return self.shim.$method(request).await;
                    };
                    let message = request.into_inner();
                    let id = message.sandbox_id.clone();
                    let mut client = proxy::client!(ControllerClient, plugin.channel());
                    let asked = client.$method(proxy::request_of(&caller, message));
                    let answer = ask!($limit, plugin, asked).await.map_err(status)?;
                    self.tell(plugin, caller, stringify!($method), id);
                    Ok(answer)
                }
            )+
        }
    };
}

dispatch! {
    long create(ControllerCreateRequest) -> ControllerCreateResponse;
    long start(ControllerStartRequest) -> ControllerStartResponse;
    short platform(ControllerPlatformRequest) -> ControllerPlatformResponse;
    long stop(ControllerStopRequest) -> ControllerStopResponse;
    endless wait(ControllerWaitRequest) -> ControllerWaitResponse;
    short status(ControllerStatusRequest) -> ControllerStatusResponse;
    long shutdown(ControllerShutdownRequest) -> ControllerShutdownResponse;
    short metrics(ControllerMetricsRequest) -> ControllerMetricsResponse;
    long update(ControllerUpdateRequest) -> ControllerUpdateResponse;
}
