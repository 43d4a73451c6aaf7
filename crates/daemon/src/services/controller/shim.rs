//! The built-in controller: a sandbox is run by the shim of its runtime.

use std::time::Duration;

use api::grpc::sandbox::Sandbox as WireSandbox;
use api::grpc::sandbox::controller::controller_server::Controller;
use api::grpc::sandbox::controller::{
    ControllerCreateRequest, ControllerCreateResponse, ControllerMetricsRequest, ControllerMetricsResponse,
    ControllerPlatformRequest, ControllerPlatformResponse, ControllerShutdownRequest,
    ControllerShutdownResponse, ControllerStartRequest, ControllerStartResponse, ControllerStatusRequest,
    ControllerStatusResponse, ControllerStopRequest, ControllerStopResponse, ControllerUpdateRequest,
    ControllerUpdateResponse, ControllerWaitRequest, ControllerWaitResponse,
};
use api::grpc::types::Metric;
use metadata::{Caller, Metadata};
use task::{CreateSandbox, Endpoint, Sandboxes};
use tonic::{Request, Response, Status};
use types::{Namespace, SandboxId};

use super::super::{Answer, blocking, caller, convert, required, sandbox, status};

pub(super) struct Shim {
    pub(super) metadata: Metadata,
    pub(super) sandboxes: Sandboxes,
}

impl Shim {
    /// Namespace and sandbox id of a request, and its message.
    fn about<M>(
        &self,
        request: Request<M>,
        id: impl Fn(&M) -> &str,
    ) -> Result<(Namespace, SandboxId, M), Status> {
        let namespace = caller(&request)?.namespace;
        let request = request.into_inner();
        let id = SandboxId::new(id(&request)).map_err(status)?;
        Ok((namespace, id, request))
    }

    /// The sandbox's record: the one in the request, or the stored one.
    async fn record(
        &self,
        caller: &Caller,
        id: &SandboxId,
        given: Option<WireSandbox>,
    ) -> Result<metadata::Sandbox, Status> {
        if let Some(given) = given {
            return sandbox::own(given);
        }
        let (sandboxes, id) = (self.metadata.sandboxes(caller), id.clone());
        blocking(move || sandboxes.get(&id)).await
    }
}

#[tonic::async_trait]
impl Controller for Shim {
    async fn create(&self, request: Request<ControllerCreateRequest>) -> Answer<ControllerCreateResponse> {
        let caller = caller(&request)?;
        let (namespace, id, request) = self.about(request, |asked| &asked.sandbox_id)?;
        let record = self.record(&caller, &id, request.sandbox).await?;
        let create = CreateSandbox {
            spec: record.spec.map(|spec| spec.value).unwrap_or_default(),
            rootfs: convert::own_mounts(request.rootfs),
            runtime: record.runtime.name,
            runtime_options: record.runtime.options,
            options: request.options.map(convert::opaque),
            netns: request.netns_path,
            annotations: request.annotations,
        };
        self.sandboxes.create(&namespace, &id, create).await.map_err(status)?;
        Ok(Response::new(ControllerCreateResponse { sandbox_id: id.into() }))
    }

    async fn start(&self, request: Request<ControllerStartRequest>) -> Answer<ControllerStartResponse> {
        let (namespace, id, _) = self.about(request, |asked| &asked.sandbox_id)?;
        let started = self.sandboxes.start(&namespace, &id).await.map_err(status)?;
        let (address, version) = endpoint(started.endpoint);
        Ok(Response::new(ControllerStartResponse {
            sandbox_id: id.into(),
            pid: started.pid,
            created_at: convert::timestamp(started.created),
            labels: Default::default(),
            address,
            version,
            spec: started.spec.map(convert::any),
        }))
    }

    async fn platform(
        &self,
        request: Request<ControllerPlatformRequest>,
    ) -> Answer<ControllerPlatformResponse> {
        let (namespace, id, _) = self.about(request, |asked| &asked.sandbox_id)?;
        let platform = self.sandboxes.platform(&namespace, &id).await.map_err(status)?;
        Ok(Response::new(ControllerPlatformResponse { platform: Some(convert::platform(platform)) }))
    }

    async fn stop(&self, request: Request<ControllerStopRequest>) -> Answer<ControllerStopResponse> {
        let (namespace, id, asked) = self.about(request, |asked| &asked.sandbox_id)?;
        let patience = Duration::from_secs(asked.timeout_secs.into());
        self.sandboxes.stop(&namespace, &id, patience).await.map_err(status)?;
        Ok(Response::new(ControllerStopResponse {}))
    }

    async fn wait(&self, request: Request<ControllerWaitRequest>) -> Answer<ControllerWaitResponse> {
        let (namespace, id, _) = self.about(request, |asked| &asked.sandbox_id)?;
        let exit = self.sandboxes.wait(&namespace, &id).await.map_err(status)?;
        let exited_at = convert::timestamp(exit.at);
        Ok(Response::new(ControllerWaitResponse { exit_status: exit.status, exited_at }))
    }

    async fn status(&self, request: Request<ControllerStatusRequest>) -> Answer<ControllerStatusResponse> {
        let (namespace, id, asked) = self.about(request, |asked| &asked.sandbox_id)?;
        let found = self.sandboxes.status(&namespace, &id, asked.verbose).await.map_err(status)?;
        let (address, version) = endpoint(found.endpoint);
        Ok(Response::new(ControllerStatusResponse {
            sandbox_id: id.into(),
            pid: found.pid,
            state: found.state,
            info: found.info,
            // As in containerd, 1970 means not yet: Go's clients read an absent time as that.
            created_at: convert::timestamp(found.created.unwrap_or_default()),
            exited_at: convert::timestamp(found.exited.unwrap_or_default()),
            // containerd's clients access it without a check for nil.
            extra: Some(found.extra.map(convert::any).unwrap_or_default()),
            address,
            version,
        }))
    }

    async fn shutdown(
        &self,
        request: Request<ControllerShutdownRequest>,
    ) -> Answer<ControllerShutdownResponse> {
        let (namespace, id, _) = self.about(request, |asked| &asked.sandbox_id)?;
        self.sandboxes.shutdown(&namespace, &id).await.map_err(status)?;
        Ok(Response::new(ControllerShutdownResponse {}))
    }

    async fn metrics(&self, request: Request<ControllerMetricsRequest>) -> Answer<ControllerMetricsResponse> {
        let (namespace, id, _) = self.about(request, |asked| &asked.sandbox_id)?;
        let found = self.sandboxes.metrics(&namespace, &id).await.map_err(status)?;
        let metrics = Metric {
            timestamp: convert::timestamp(found.at),
            id: id.into(),
            data: found.data.map(convert::any),
        };
        Ok(Response::new(ControllerMetricsResponse { metrics: Some(metrics) }))
    }

    /// The store keeps what a client changes in a sandbox's record. The shim API has no call to change a running
    /// sandbox, so this validates the request and does nothing else, as in containerd.
    async fn update(&self, request: Request<ControllerUpdateRequest>) -> Answer<ControllerUpdateResponse> {
        let (namespace, id, asked) = self.about(request, |asked| &asked.sandbox_id)?;
        sandbox::own(required(asked.sandbox, "sandbox")?)?;
        for field in &asked.fields {
            let known =
                ["labels", "extensions", "runtime", "spec"].contains(&field.split('.').next().unwrap_or(""));
            if !known {
                return Err(Status::invalid_argument(format!("sandbox {id}: there is no field {field:?}")));
            }
        }
        self.sandboxes.status(&namespace, &id, false).await.map_err(status)?;
        Ok(Response::new(ControllerUpdateResponse {}))
    }
}

fn endpoint(endpoint: Endpoint) -> (String, u32) {
    (endpoint.address, u32::try_from(endpoint.version).unwrap_or(0))
}
