//! `example-sandboxer SOCKET`: a controller of sandboxes that are nothing but records.
//!
//! A real one starts a virtual machine in `start`, and answers with the address of the task service inside: the
//! daemon then creates the tasks of the sandbox's containers there. `docs/extend/sandbox-controller.md` walks
//! through it.

mod serve;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::SystemTime;

use api::grpc::sandbox::controller::controller_server::{Controller, ControllerServer};
use api::grpc::sandbox::controller::*;
use api::grpc::types::Platform;
use prost_types::Timestamp;
use tokio::sync::watch;
use tonic::{Request, Response, Status};

#[derive(Clone)]
struct Sandbox {
    created: Timestamp,
    is_started: bool,
    /// Holds the time of the end, once the sandbox has ended.
    ended: Arc<watch::Sender<Option<Timestamp>>>,
}

#[derive(Default)]
struct Sandboxes(Mutex<BTreeMap<String, Sandbox>>);

impl Sandboxes {
    fn with<T>(&self, id: &str, look: impl FnOnce(&mut Sandbox) -> T) -> Result<T, Status> {
        let mut sandboxes = self.0.lock().expect("no panic holds this lock");
        sandboxes.get_mut(id).map(look).ok_or_else(|| Status::not_found(format!("sandbox {id}")))
    }
}

fn now() -> Timestamp {
    SystemTime::now().into()
}

type Answer<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl Controller for Sandboxes {
    async fn create(&self, request: Request<ControllerCreateRequest>) -> Answer<ControllerCreateResponse> {
        let sandbox_id = request.into_inner().sandbox_id;
        let mut sandboxes = self.0.lock().expect("no panic holds this lock");
        if sandboxes.contains_key(&sandbox_id) {
            return Err(Status::already_exists(format!("sandbox {sandbox_id}")));
        }
        let ended = Arc::new(watch::Sender::new(None));
        sandboxes.insert(sandbox_id.clone(), Sandbox { created: now(), is_started: false, ended });
        Ok(Response::new(ControllerCreateResponse { sandbox_id }))
    }

    async fn start(&self, request: Request<ControllerStartRequest>) -> Answer<ControllerStartResponse> {
        let sandbox_id = request.into_inner().sandbox_id;
        let created = self.with(&sandbox_id, |sandbox| {
            sandbox.is_started = true;
            sandbox.created
        })?;
        Ok(Response::new(ControllerStartResponse {
            sandbox_id,
            pid: std::process::id(),
            created_at: Some(created),
            ..ControllerStartResponse::default()
        }))
    }

    async fn platform(&self, _: Request<ControllerPlatformRequest>) -> Answer<ControllerPlatformResponse> {
        let platform = Platform { os: "linux".into(), architecture: "riscv64".into(), ..Platform::default() };
        Ok(Response::new(ControllerPlatformResponse { platform: Some(platform) }))
    }

    async fn stop(&self, request: Request<ControllerStopRequest>) -> Answer<ControllerStopResponse> {
        self.with(&request.get_ref().sandbox_id, |sandbox| sandbox.ended.send_replace(Some(now())))?;
        Ok(Response::new(ControllerStopResponse {}))
    }

    async fn wait(&self, request: Request<ControllerWaitRequest>) -> Answer<ControllerWaitResponse> {
        let mut ended = self.with(&request.get_ref().sandbox_id, |sandbox| sandbox.ended.subscribe())?;
        let at = ended.wait_for(Option::is_some).await.map(|at| *at);
        let exited_at = at.map_err(|_| Status::not_found("the sandbox is gone"))?;
        Ok(Response::new(ControllerWaitResponse { exit_status: 0, exited_at }))
    }

    async fn status(&self, request: Request<ControllerStatusRequest>) -> Answer<ControllerStatusResponse> {
        let sandbox_id = request.into_inner().sandbox_id;
        let sandbox = self.with(&sandbox_id, |sandbox| sandbox.clone())?;
        let exited_at = *sandbox.ended.borrow();
        let is_ready = sandbox.is_started && exited_at.is_none();
        Ok(Response::new(ControllerStatusResponse {
            sandbox_id,
            pid: std::process::id(),
            state: if is_ready { "SANDBOX_READY" } else { "SANDBOX_NOTREADY" }.into(),
            created_at: Some(sandbox.created),
            exited_at,
            ..ControllerStatusResponse::default()
        }))
    }

    async fn shutdown(
        &self,
        request: Request<ControllerShutdownRequest>,
    ) -> Answer<ControllerShutdownResponse> {
        let id = &request.get_ref().sandbox_id;
        let removed = self.0.lock().expect("no panic holds this lock").remove(id);
        removed.ok_or_else(|| Status::not_found(format!("sandbox {id}")))?;
        Ok(Response::new(ControllerShutdownResponse {}))
    }

    async fn metrics(&self, _: Request<ControllerMetricsRequest>) -> Answer<ControllerMetricsResponse> {
        Err(Status::unimplemented("records have no figures"))
    }

    async fn update(&self, _: Request<ControllerUpdateRequest>) -> Answer<ControllerUpdateResponse> {
        Ok(Response::new(ControllerUpdateResponse {}))
    }
}

fn main() -> std::io::Result<()> {
    let [socket] = serve::paths("example-sandboxer SOCKET");
    serve::serve(&socket, ControllerServer::new(Sandboxes::default()))
}
