//! `containerd.services.tasks.v1`: running containers. Forwards calls to shims.

use std::borrow::Cow;
use std::path::PathBuf;

use api::grpc::tasks::tasks_server::Tasks;
use api::grpc::tasks::{
    CheckpointTaskRequest, CheckpointTaskResponse, CloseIORequest, CreateTaskRequest, CreateTaskResponse,
    DeleteProcessRequest, DeleteResponse, DeleteTaskRequest, ExecProcessRequest, GetRequest, GetResponse,
    KillRequest, ListPidsRequest, ListPidsResponse, ListTasksRequest, ListTasksResponse, MetricsRequest,
    MetricsResponse, PauseTaskRequest, ResizePtyRequest, ResumeTaskRequest, StartRequest, StartResponse,
    UpdateTaskRequest, WaitRequest, WaitResponse,
};
use api::grpc::types::{Metric, Process as WireProcess, ProcessInfo, Status as WireStatus};
use metadata::{Caller, Container, Metadata};
use task::{Create, Endpoint, Exec, Exit, Io, Process, Shims, Task, TerminalSize};
use tokio::task::JoinSet;
use tonic::{Code, Request, Response, Status};
use types::{ContainerId, ErrorKind, ExecId, FieldPath, Fields, Filters, Namespace, SandboxId, Timestamp};

use super::{Answer, blocking, caller, container_id, convert, known, required, status, unbroken};
use crate::checkpoint;
use crate::task_resources::TaskResources;

/// Clones share state.
#[derive(Clone)]
pub(super) struct Service {
    pub(super) metadata: Metadata,
    pub(super) shims: Shims,
    pub(super) task_resources: TaskResources,
}

impl Service {
    /// The task of a request, and the message. If there is none, `NotFound` names the container if that is missing as
    /// well.
    async fn task<M>(&self, request: Request<M>, id: impl Fn(&M) -> &str) -> Result<(Task, M), Status> {
        let caller = caller(&request)?;
        let request = request.into_inner();
        let id = container_id(&caller, id(&request))?;
        match self.shims.task(&caller.namespace, &id) {
            Err(error) if error.is(ErrorKind::NotFound) => {
                let containers = self.metadata.containers(caller);
                blocking(move || containers.get(&id)).await?;
                Err(status(error))
            }
            task => Ok((task.map_err(status)?, request)),
        }
    }

    /// The shim of the container's sandbox: the sandbox of this id, or else the address that a sandbox controller gave
    /// the client.
    fn shim_of(
        &self,
        namespace: &Namespace,
        sandbox: &str,
        request: &CreateTaskRequest,
    ) -> Result<Option<Endpoint>, Status> {
        if !sandbox.is_empty() {
            let sandbox = SandboxId::new(sandbox).map_err(status)?;
            if let Some(endpoint) = self.shims.sandboxes().endpoint(namespace, &sandbox) {
                return Ok(Some(endpoint));
            }
        }
        let (address, version) = task_api(request);
        if address.is_empty() {
            return Ok(None);
        }
        let Ok(version @ 0..=3) = i32::try_from(version) else {
            let message = format!("version {version} of the task API at {address}: only 2 and 3 are known");
            return Err(Status::invalid_argument(message));
        };
        Ok(Some(Endpoint { address, version }))
    }

    /// The directory of images to restore the task from, if requested.
    async fn restored(
        &self,
        caller: &Caller,
        id: &ContainerId,
        request: &mut CreateTaskRequest,
    ) -> Result<Option<PathBuf>, Status> {
        if let Some(path) = checkpoint::criu_image_path(request.options.as_ref()).map_err(status)? {
            return Ok(Some(path));
        }
        let Some(descriptor) = request.checkpoint.take() else { return Ok(None) };
        if self.shims.has(&caller.namespace, id) {
            return Err(Status::already_exists(format!("task {id}: already exists")));
        }
        let descriptor = convert::own_descriptor(descriptor).map_err(status)?;
        let (task_resources, caller, id) = (self.task_resources.clone(), caller.clone(), id.clone());
        blocking(move || task_resources.checkpoints().bring(&caller, &id, descriptor)).await.map(Some)
    }

    /// Creates a container's task with its mounts and checkpoint, which are released if it fails.
    async fn create_task(
        self,
        caller: Caller,
        id: ContainerId,
        container: Container,
        mut request: CreateTaskRequest,
    ) -> Result<u32, Status> {
        let shim = self.shim_of(&caller.namespace, &container.sandbox_id, &request)?;
        let spec = required(container.spec, "container spec")?.value;
        let checkpoint = self.restored(&caller, &id, &mut request).await?;
        let options = request.options.filter(|options| !options.type_url.is_empty()).map(convert::opaque);
        let rootfs = convert::own_mounts(request.rootfs);
        // As in containerd, `runtime_path` may also be a runtime name.
        let runtime =
            if request.runtime_path.is_empty() { container.runtime.name } else { request.runtime_path };
        let (rootfs, is_activated) =
            self.task_resources.activate(&caller, &id, &runtime, rootfs).await.map_err(status)?;
        let is_restored = checkpoint.is_some();
        let create = Create {
            spec,
            rootfs,
            io: Io {
                stdin: request.stdin,
                stdout: request.stdout,
                stderr: request.stderr,
                terminal: request.terminal,
            },
            runtime,
            options: options.or(container.runtime.options),
            checkpoint,
            shim,
            ..Create::default()
        };
        let created = self.shims.create(&caller.namespace, &id, create).await;
        if let Err(error) = &created {
            if is_activated {
                self.task_resources.deactivate(&caller.namespace, &id).await;
            }
            // The existing task with this id may need its images.
            if is_restored && !error.is(ErrorKind::AlreadyExists) {
                self.task_resources.forget_checkpoint(&caller.namespace, &id).await;
            }
        }
        created.map_err(status)
    }

    async fn delete_task(&self, task: Task) -> Result<Exit, Status> {
        let service = self.clone();
        unbroken(async move {
            let exit = service.shims.delete(task.namespace(), task.id()).await.map_err(status)?;
            service.task_resources.release(task.namespace(), task.id()).await;
            Ok(exit)
        })
        .await
    }
}

/// The address of an existing task API and its version: from fields of the request, or, for clients before containerd
/// 2.3, from runc's options. Empty if neither is set.
fn task_api(request: &CreateTaskRequest) -> (String, u32) {
    if !request.task_api_address.is_empty() {
        return (request.task_api_address.clone(), request.task_api_version);
    }
    match request.options.as_ref().and_then(api::shim::unpack::<api::shim::runc::Options>) {
        Some(Ok(options)) => (options.task_api_address, options.task_api_version),
        // The shim will report what is wrong with them.
        Some(Err(_)) | None => Default::default(),
    }
}

#[tonic::async_trait]
impl Tasks for Service {
    async fn create(&self, request: Request<CreateTaskRequest>) -> Answer<CreateTaskResponse> {
        let caller = caller(&request)?;
        let request = request.into_inner();
        let id = container_id(&caller, &request.container_id)?;
        let containers = self.metadata.containers(&caller);
        let container = {
            let id = id.clone();
            blocking(move || containers.get(&id)).await?
        };
        let pid = unbroken(self.clone().create_task(caller, id.clone(), container, request)).await?;
        Ok(Response::new(CreateTaskResponse { container_id: id.into(), pid }))
    }

    async fn start(&self, request: Request<StartRequest>) -> Answer<StartResponse> {
        let (task, request) = self.task(request, |request| &request.container_id).await?;
        let pid = task.start(exec(&request.exec_id)?.as_ref()).await.map_err(status)?;
        Ok(Response::new(StartResponse { pid }))
    }

    async fn delete(&self, request: Request<DeleteTaskRequest>) -> Answer<DeleteResponse> {
        let (caller, id) = (caller(&request)?, request.get_ref().container_id.clone());
        let found = self.task(request, |request| &request.container_id).await;
        if found.as_ref().is_err_and(|error| error.code() == Code::NotFound)
            && let Ok(id) = container_id(&caller, &id)
            && !self.shims.has(&caller.namespace, &id)
        {
            // The checkpoint of a task that died with its shim.
            self.task_resources.forget_checkpoint(&caller.namespace, &id).await;
        }
        let (task, request) = found?;
        let exit = self.delete_task(task).await?;
        Ok(Response::new(deleted(request.container_id, exit)))
    }

    async fn delete_process(&self, request: Request<DeleteProcessRequest>) -> Answer<DeleteResponse> {
        let (task, request) = self.task(request, |request| &request.container_id).await?;
        let exit = match exec(&request.exec_id)? {
            Some(id) => task.delete_exec(&id).await.map_err(status)?,
            // The first process is deleted with its task, and while it runs gives the same error.
            None => self.delete_task(task).await?,
        };
        Ok(Response::new(deleted(request.exec_id, exit)))
    }

    async fn get(&self, request: Request<GetRequest>) -> Answer<GetResponse> {
        let (task, request) = self.task(request, |request| &request.container_id).await?;
        let process = match exec(&request.exec_id)? {
            None => task.state_or_unknown().await,
            Some(exec) => task.state(Some(&exec)).await,
        };
        Ok(Response::new(GetResponse { process: Some(wire(process.map_err(status)?)) }))
    }

    /// containerd ignores the filter; we apply it.
    async fn list(&self, request: Request<ListTasksRequest>) -> Answer<ListTasksResponse> {
        let namespace = caller(&request)?.namespace;
        let filters = Filters::parse(&[request.into_inner().filter]).map_err(status)?;
        let states = self.shims.states(Some(&namespace)).await;
        let is_wanted =
            |process: &Process| filters.matches(&Named { namespace: &namespace, id: &process.container });
        let tasks = states.into_iter().map(|(_, process)| process).filter(is_wanted).map(wire).collect();
        Ok(Response::new(ListTasksResponse { tasks }))
    }

    async fn kill(&self, request: Request<KillRequest>) -> Answer<()> {
        let (task, request) = self.task(request, |request| &request.container_id).await?;
        let exec = exec(&request.exec_id)?;
        let killed = self.shims.kill(&task, exec.as_ref(), request.signal, request.all).await;
        killed.map(Response::new).map_err(status)
    }

    async fn exec(&self, request: Request<ExecProcessRequest>) -> Answer<()> {
        if request.get_ref().exec_id.is_empty() {
            return Err(Status::invalid_argument("exec id cannot be empty"));
        }
        let (task, request) = self.task(request, |request| &request.container_id).await?;
        let id = ExecId::new(&request.exec_id).map_err(status)?;
        let io = Io {
            stdin: request.stdin,
            stdout: request.stdout,
            stderr: request.stderr,
            terminal: request.terminal,
        };
        let spec = convert::opaque(required(request.spec, "spec of the process")?);
        task.exec(&id, Exec { spec, io }).await.map(Response::new).map_err(status)
    }

    async fn resize_pty(&self, request: Request<ResizePtyRequest>) -> Answer<()> {
        let (task, request) = self.task(request, |request| &request.container_id).await?;
        let exec = exec(&request.exec_id)?;
        let size = TerminalSize { rows: request.height, columns: request.width };
        task.resize(exec.as_ref(), size).await.map(Response::new).map_err(status)
    }

    async fn close_io(&self, request: Request<CloseIORequest>) -> Answer<()> {
        let (task, request) = self.task(request, |request| &request.container_id).await?;
        let exec = exec(&request.exec_id)?;
        if request.stdin {
            task.close_stdin(exec.as_ref()).await.map_err(status)?;
        } else if exec.is_some() {
            // Nothing to close, but the process must exist.
            task.state(exec.as_ref()).await.map_err(status)?;
        }
        Ok(Response::new(()))
    }

    async fn pause(&self, request: Request<PauseTaskRequest>) -> Answer<()> {
        let (task, _) = self.task(request, |request| &request.container_id).await?;
        task.pause().await.map(Response::new).map_err(status)
    }

    async fn resume(&self, request: Request<ResumeTaskRequest>) -> Answer<()> {
        let (task, _) = self.task(request, |request| &request.container_id).await?;
        task.resume().await.map(Response::new).map_err(status)
    }

    async fn list_pids(&self, request: Request<ListPidsRequest>) -> Answer<ListPidsResponse> {
        let (task, _) = self.task(request, |request| &request.container_id).await?;
        let found = task.pids().await.map_err(status)?;
        let wire =
            |found: task::ProcessId| ProcessInfo { pid: found.pid, info: found.details.map(convert::any) };
        Ok(Response::new(ListPidsResponse { processes: found.into_iter().map(wire).collect() }))
    }

    async fn checkpoint(&self, request: Request<CheckpointTaskRequest>) -> Answer<CheckpointTaskResponse> {
        let caller = caller(&request)?;
        let (task, request) = self.task(request, |request| &request.container_id).await?;
        let wanted = checkpoint::image_path(request.options.as_ref()).map_err(status)?;
        let options = request.options.map(convert::opaque);
        if let Some(path) = wanted {
            task.checkpoint(&path, options).await.map_err(status)?;
            return Ok(Response::new(CheckpointTaskResponse::default()));
        }
        let (containers, id) = (self.metadata.containers(&caller), task.id().clone());
        let checkpoints = self.task_resources.checkpoints().clone();
        let (spec, folder) = blocking(move || Ok((containers.get(&id)?.spec, checkpoints.folder()?))).await?;
        let spec = required(spec, "container spec")?;
        task.checkpoint(folder.path(), options).await.map_err(status)?;
        let checkpoints = self.task_resources.checkpoints().clone();
        let stored = blocking(move || checkpoints.store(&caller, folder.path(), spec)).await?;
        let descriptors = stored.iter().map(convert::descriptor).collect();
        Ok(Response::new(CheckpointTaskResponse { descriptors }))
    }

    async fn update(&self, request: Request<UpdateTaskRequest>) -> Answer<()> {
        let (task, request) = self.task(request, |request| &request.container_id).await?;
        let resources = request.resources.map(convert::opaque);
        task.update(resources, request.annotations).await.map(Response::new).map_err(status)
    }

    /// A task whose shim does not answer in time is left out.
    async fn metrics(&self, request: Request<MetricsRequest>) -> Answer<MetricsResponse> {
        let namespace = caller(&request)?.namespace;
        let filters = Filters::parse(&request.into_inner().filters).map_err(status)?;
        let mut asks = JoinSet::new();
        for task in self.shims.tasks(Some(&namespace)) {
            if filters.matches(&Named { namespace: &namespace, id: task.id() }) {
                asks.spawn(async move { (task.id().to_string(), task.stats().await) });
            }
        }
        let mut metrics = Vec::new();
        while let Some(asked) = asks.join_next().await {
            let Ok((id, stats)) = asked else { continue };
            match stats {
                Ok(stats) => metrics.push(Metric {
                    timestamp: convert::timestamp(Timestamp::now()),
                    id,
                    data: stats.map(convert::any),
                }),
                // The task is being created, or was deleted meanwhile.
                Err(error) if error.is(ErrorKind::NotFound) => {}
                Err(error) => tracing::warn!(%namespace, %id, "metrics: {}", error.chain()),
            }
        }
        metrics.sort_by(|a, b| a.id.cmp(&b.id));
        Ok(Response::new(MetricsResponse { metrics }))
    }

    async fn wait(&self, request: Request<WaitRequest>) -> Answer<WaitResponse> {
        let (task, request) = self.task(request, |request| &request.container_id).await?;
        let exit = task.wait(exec(&request.exec_id)?.as_ref()).await.map_err(status)?;
        Ok(Response::new(WaitResponse { exit_status: exit.status, exited_at: convert::timestamp(exit.at) }))
    }
}

/// Parses an exec id. `None` means the first process.
fn exec(id: &str) -> Result<Option<ExecId>, Status> {
    if id.is_empty() {
        return Ok(None);
    }
    known(ExecId::new(id), || format!("process does not exist {id}")).map(Some)
}

fn deleted(id: String, exit: Exit) -> DeleteResponse {
    DeleteResponse { id, pid: exit.pid, exit_status: exit.status, exited_at: convert::timestamp(exit.at) }
}

fn wire(process: Process) -> WireProcess {
    let status = match process.status {
        task::Status::Unknown => WireStatus::Unknown,
        task::Status::Created => WireStatus::Created,
        task::Status::Running => WireStatus::Running,
        task::Status::Stopped => WireStatus::Stopped,
        task::Status::Paused => WireStatus::Paused,
        task::Status::Pausing => WireStatus::Pausing,
    };
    let container_id = process.container.to_string();
    WireProcess {
        id: process.exec.map_or_else(|| container_id.clone(), String::from),
        container_id,
        pid: process.pid,
        status: status.into(),
        stdin: process.io.stdin,
        stdout: process.io.stdout,
        stderr: process.io.stderr,
        terminal: process.io.terminal,
        exit_status: process.exit.map_or(0, |exit| exit.status),
        exited_at: convert::timestamp(process.exit.map_or(Timestamp::NEVER, |exit| exit.at)),
    }
}

/// A task's fields for filters.
struct Named<'a> {
    namespace: &'a Namespace,
    id: &'a ContainerId,
}

impl Fields for Named<'_> {
    fn field(&self, path: &FieldPath) -> Option<Cow<'_, str>> {
        match path.head() {
            "id" => Some(Cow::Borrowed(self.id.as_str())),
            "namespace" => Some(Cow::Borrowed(self.namespace.as_str())),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use api::shim::{pack, runc::Options};

    use super::*;

    #[test]
    fn the_address_of_the_request_comes_before_that_of_the_options() {
        let options =
            Options { task_api_address: "unix:///old".into(), task_api_version: 2, ..Options::default() };
        let mut request = CreateTaskRequest { options: Some(pack(&options)), ..CreateTaskRequest::default() };
        assert_eq!(task_api(&request), ("unix:///old".into(), 2));
        request.task_api_address = "unix:///new".into();
        request.task_api_version = 3;
        assert_eq!(task_api(&request), ("unix:///new".into(), 3));
        request = CreateTaskRequest::default();
        assert_eq!(task_api(&request), (String::new(), 0));
    }
}
