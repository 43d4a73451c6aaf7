//! Writes the gRPC clients and servers from one table: a line for each call.
//!
//! To add a service of your own: write its messages as `prost` structs in a module, add its rows
//! here (types without `::` are looked up in that module, `Empty` is `()`), and end the module with
//!
//! ```ignore
//! #[cfg(feature = "grpc")]
//! crate::grpc::service!("hoist.engine.v1.Engine");
//! ```
//!
//! which gives it `engine_client::EngineClient` and `engine_server::{Engine, EngineServer}`.

#[cfg(feature = "grpc")]
mod descriptors;

fn main() {
    println!("cargo::rerun-if-changed=build");
    #[cfg(feature = "grpc")]
    grpc::write();
}

#[cfg(feature = "grpc")]
mod grpc {
    use tonic_build::manual::{Builder, Method, Service};

    /// Which side sends a stream: `Up` the client, `Down` the server.
    #[derive(Clone, Copy)]
    #[allow(dead_code, reason = "a shape may have no row at the time")]
    pub(crate) enum Shape {
        Unary,
        Up,
        Down,
        Both,
    }
    #[allow(unused_imports, reason = "a shape may have no row at the time")]
    use Shape::{Both, Down, Unary, Up};

    /// Shape, name, request, response.
    pub(crate) type Row = (Shape, &'static str, &'static str, &'static str);

    /// Package, service, module of the messages, calls.
    #[rustfmt::skip]
    const SERVICES: &[(&str, &str, &str, &[Row])] = &[
        ("hoist.engine.v1", "Engine", "crate::engine", &[
            (Unary, "Call", "Document", "Document"),
            (Down, "Follow", "Document", "Document"),
        ]),
        ("containerd.services.containers.v1", "Containers", "crate::grpc::containers", &[
            (Unary, "Get", "GetContainerRequest", "GetContainerResponse"),
            (Unary, "List", "ListContainersRequest", "ListContainersResponse"),
            (Down, "ListStream", "ListContainersRequest", "ListContainerMessage"),
            (Unary, "Create", "CreateContainerRequest", "CreateContainerResponse"),
            (Unary, "Update", "UpdateContainerRequest", "UpdateContainerResponse"),
            (Unary, "Delete", "DeleteContainerRequest", "Empty"),
        ]),
        ("containerd.services.content.v1", "Content", "crate::grpc::content", &[
            (Unary, "Info", "InfoRequest", "InfoResponse"),
            (Unary, "Update", "UpdateRequest", "UpdateResponse"),
            (Down, "List", "ListContentRequest", "ListContentResponse"),
            (Unary, "Delete", "DeleteContentRequest", "Empty"),
            (Down, "Read", "ReadContentRequest", "ReadContentResponse"),
            (Unary, "Status", "StatusRequest", "StatusResponse"),
            (Unary, "ListStatuses", "ListStatusesRequest", "ListStatusesResponse"),
            (Both, "Write", "WriteContentRequest", "WriteContentResponse"),
            (Unary, "Abort", "AbortRequest", "Empty"),
        ]),
        ("containerd.services.diff.v1", "Diff", "crate::grpc::diff", &[
            (Unary, "Apply", "ApplyRequest", "ApplyResponse"),
            (Unary, "Diff", "DiffRequest", "DiffResponse"),
        ]),
        ("containerd.services.events.v1", "Events", "crate::grpc::events", &[
            (Unary, "Publish", "PublishRequest", "Empty"),
            (Unary, "Forward", "ForwardRequest", "Empty"),
            (Down, "Subscribe", "SubscribeRequest", "types::Envelope"),
        ]),
        ("grpc.health.v1", "Health", "crate::grpc::health", &[
            (Unary, "Check", "HealthCheckRequest", "HealthCheckResponse"),
            (Down, "Watch", "HealthCheckRequest", "HealthCheckResponse"),
        ]),
        ("containerd.services.images.v1", "Images", "crate::grpc::images", &[
            (Unary, "Get", "GetImageRequest", "GetImageResponse"),
            (Unary, "List", "ListImagesRequest", "ListImagesResponse"),
            (Unary, "Create", "CreateImageRequest", "CreateImageResponse"),
            (Unary, "Update", "UpdateImageRequest", "UpdateImageResponse"),
            (Unary, "Delete", "DeleteImageRequest", "Empty"),
        ]),
        ("containerd.services.introspection.v1", "Introspection", "crate::grpc::introspection", &[
            (Unary, "Plugins", "PluginsRequest", "PluginsResponse"),
            (Unary, "Server", "Empty", "ServerResponse"),
            (Unary, "PluginInfo", "PluginInfoRequest", "PluginInfoResponse"),
        ]),
        ("containerd.services.leases.v1", "Leases", "crate::grpc::leases", &[
            (Unary, "Create", "CreateRequest", "CreateResponse"),
            (Unary, "Delete", "DeleteRequest", "Empty"),
            (Unary, "List", "ListRequest", "ListResponse"),
            (Unary, "AddResource", "AddResourceRequest", "Empty"),
            (Unary, "DeleteResource", "DeleteResourceRequest", "Empty"),
            (Unary, "ListResources", "ListResourcesRequest", "ListResourcesResponse"),
        ]),
        ("containerd.services.mounts.v1", "Mounts", "crate::grpc::mounts", &[
            (Unary, "Activate", "ActivateRequest", "ActivateResponse"),
            (Unary, "Deactivate", "DeactivateRequest", "Empty"),
            (Unary, "Info", "InfoRequest", "InfoResponse"),
            (Unary, "Update", "UpdateRequest", "UpdateResponse"),
            (Down, "List", "ListRequest", "ListMessage"),
        ]),
        ("containerd.services.namespaces.v1", "Namespaces", "crate::grpc::namespaces", &[
            (Unary, "Get", "GetNamespaceRequest", "GetNamespaceResponse"),
            (Unary, "List", "ListNamespacesRequest", "ListNamespacesResponse"),
            (Unary, "Create", "CreateNamespaceRequest", "CreateNamespaceResponse"),
            (Unary, "Update", "UpdateNamespaceRequest", "UpdateNamespaceResponse"),
            (Unary, "Delete", "DeleteNamespaceRequest", "Empty"),
        ]),
        ("grpc.reflection.v1", "ServerReflection", "crate::grpc::reflection", &[
            (Both, "ServerReflectionInfo", "ServerReflectionRequest", "ServerReflectionResponse"),
        ]),
        ("grpc.reflection.v1alpha", "ServerReflection", "crate::grpc::reflection", &[
            (Both, "ServerReflectionInfo", "ServerReflectionRequest", "ServerReflectionResponse"),
        ]),
        ("containerd.services.sandbox.v1", "Store", "crate::grpc::sandbox", &[
            (Unary, "Create", "StoreCreateRequest", "StoreCreateResponse"),
            (Unary, "Update", "StoreUpdateRequest", "StoreUpdateResponse"),
            (Unary, "Delete", "StoreDeleteRequest", "StoreDeleteResponse"),
            (Unary, "List", "StoreListRequest", "StoreListResponse"),
            (Unary, "Get", "StoreGetRequest", "StoreGetResponse"),
        ]),
        ("containerd.services.sandbox.v1", "Controller", "crate::grpc::sandbox::controller", &[
            (Unary, "Create", "ControllerCreateRequest", "ControllerCreateResponse"),
            (Unary, "Start", "ControllerStartRequest", "ControllerStartResponse"),
            (Unary, "Platform", "ControllerPlatformRequest", "ControllerPlatformResponse"),
            (Unary, "Stop", "ControllerStopRequest", "ControllerStopResponse"),
            (Unary, "Wait", "ControllerWaitRequest", "ControllerWaitResponse"),
            (Unary, "Status", "ControllerStatusRequest", "ControllerStatusResponse"),
            (Unary, "Shutdown", "ControllerShutdownRequest", "ControllerShutdownResponse"),
            (Unary, "Metrics", "ControllerMetricsRequest", "ControllerMetricsResponse"),
            (Unary, "Update", "ControllerUpdateRequest", "ControllerUpdateResponse"),
        ]),
        ("containerd.services.snapshots.v1", "Snapshots", "crate::grpc::snapshots", &[
            (Unary, "Prepare", "PrepareSnapshotRequest", "PrepareSnapshotResponse"),
            (Unary, "View", "ViewSnapshotRequest", "ViewSnapshotResponse"),
            (Unary, "Mounts", "MountsRequest", "MountsResponse"),
            (Unary, "Commit", "CommitSnapshotRequest", "Empty"),
            (Unary, "Remove", "RemoveSnapshotRequest", "Empty"),
            (Unary, "Stat", "StatSnapshotRequest", "StatSnapshotResponse"),
            (Unary, "Update", "UpdateSnapshotRequest", "UpdateSnapshotResponse"),
            (Down, "List", "ListSnapshotsRequest", "ListSnapshotsResponse"),
            (Unary, "Usage", "UsageRequest", "UsageResponse"),
            (Unary, "Cleanup", "CleanupRequest", "Empty"),
        ]),
        ("containerd.services.streaming.v1", "Streaming", "crate::grpc::streaming", &[
            (Both, "Stream", "types::Any", "types::Any"),
        ]),
        ("containerd.services.tasks.v1", "Tasks", "crate::grpc::tasks", &[
            (Unary, "Create", "CreateTaskRequest", "CreateTaskResponse"),
            (Unary, "Start", "StartRequest", "StartResponse"),
            (Unary, "Delete", "DeleteTaskRequest", "DeleteResponse"),
            (Unary, "DeleteProcess", "DeleteProcessRequest", "DeleteResponse"),
            (Unary, "Get", "GetRequest", "GetResponse"),
            (Unary, "List", "ListTasksRequest", "ListTasksResponse"),
            (Unary, "Kill", "KillRequest", "Empty"),
            (Unary, "Exec", "ExecProcessRequest", "Empty"),
            (Unary, "ResizePty", "ResizePtyRequest", "Empty"),
            (Unary, "CloseIO", "CloseIORequest", "Empty"),
            (Unary, "Pause", "PauseTaskRequest", "Empty"),
            (Unary, "Resume", "ResumeTaskRequest", "Empty"),
            (Unary, "ListPids", "ListPidsRequest", "ListPidsResponse"),
            (Unary, "Checkpoint", "CheckpointTaskRequest", "CheckpointTaskResponse"),
            (Unary, "Update", "UpdateTaskRequest", "Empty"),
            (Unary, "Metrics", "MetricsRequest", "MetricsResponse"),
            (Unary, "Wait", "WaitRequest", "WaitResponse"),
        ]),
        ("containerd.services.transfer.v1", "Transfer", "crate::grpc::transfer", &[
            (Unary, "Transfer", "TransferRequest", "Empty"),
        ]),
        ("containerd.services.version.v1", "Version", "crate::grpc::version", &[
            (Unary, "Version", "Empty", "VersionResponse"),
        ]),
    ];

    pub(crate) fn write() {
        let services: Vec<Service> = SERVICES.iter().map(service).collect();
        Builder::new().build_transport(false).compile(&services);
        super::descriptors::write(SERVICES);
    }

    fn service((package, name, module, rows): &(&str, &str, &str, &[Row])) -> Service {
        let mut service = Service::builder().package(*package).name(*name);
        for row in *rows {
            service = service.method(method(module, *row));
        }
        service.build()
    }

    fn method(module: &str, (shape, name, request, response): Row) -> Method {
        let mut method = Method::builder()
            .name(snake_case(name))
            .route_name(name)
            .input_type(path(module, request))
            .output_type(path(module, response))
            .codec_path("tonic_prost::ProstCodec");
        if matches!(shape, Up | Both) {
            method = method.client_streaming();
        }
        if matches!(shape, Down | Both) {
            method = method.server_streaming();
        }
        method.build()
    }

    fn path(module: &str, name: &str) -> String {
        match name {
            "Empty" => "crate::grpc::Empty".to_owned(),
            name if name.contains("::") => format!("crate::grpc::{name}"),
            name => format!("{module}::{name}"),
        }
    }

    /// `CloseIO` becomes `close_io`.
    pub(crate) fn snake_case(name: &str) -> String {
        let mut snake = String::new();
        let mut after_lower = false;
        for letter in name.chars() {
            if letter.is_uppercase() && after_lower {
                snake.push('_');
            }
            after_lower = letter.is_lowercase();
            snake.extend(letter.to_lowercase());
        }
        snake
    }
}
