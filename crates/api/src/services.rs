//! The table of services and their calls. Clients and servers are generated from it, and the lists of calls in tests,
//! metrics and documentation are checked against it.
//!
//! To add a service: write its messages as `prost` structs in a module, add its rows here (types without `::` are
//! looked up in that module, `Empty` is `()`), and end the module with
//! ```ignore
//! #[cfg(feature = "grpc")]
//! crate::grpc::service!("hoist.engine.v1.Engine");
//! ```
//!
//! which defines `engine_client::EngineClient` and `engine_server::{Engine, EngineServer}`.
//!
//! Data only, without a `use` of the crate: the build script and `cargo xtask api` include this file.

/// Which side sends a stream: `Up` the client, `Down` the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(dead_code, reason = "a shape may have no row at the time")]
pub enum Shape {
    Unary,
    Up,
    Down,
    Both,
}
#[allow(unused_imports, reason = "a shape may have no row at the time")]
use Shape::{Both, Down, Unary, Up};

/// Shape, name, request type, response type.
pub type Row = (Shape, &'static str, &'static str, &'static str);

/// The services of the daemon: package, service, module of the messages, calls.
#[rustfmt::skip]
pub const SERVICES: &[(&str, &str, &str, &[Row])] = &[
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

/// The version of containerd that introduced a call: the entry with the longest prefix of its full name. A call without
/// an entry is not containerd's.
#[allow(dead_code, reason = "the build script has no use for it")]
pub const SINCE: &[(&str, &str)] = &[
    ("containerd.services.", "1.0"),
    ("containerd.services.containers.v1.Containers.ListStream", "1.2"),
    ("containerd.services.introspection.v1.Introspection.PluginInfo", "2.0"),
    ("containerd.services.introspection.v1.Introspection.Server", "1.3"),
    ("containerd.services.leases.v1.Leases.AddResource", "1.3"),
    ("containerd.services.leases.v1.Leases.DeleteResource", "1.3"),
    ("containerd.services.leases.v1.Leases.ListResources", "1.3"),
    ("containerd.services.mounts.", "2.2"),
    ("containerd.services.sandbox.", "1.7"),
    ("containerd.services.sandbox.v1.Controller.Metrics", "2.0"),
    ("containerd.services.sandbox.v1.Controller.Update", "2.0"),
    ("containerd.services.snapshots.v1.Snapshots.Cleanup", "1.4"),
    ("containerd.services.streaming.", "1.7"),
    ("containerd.services.transfer.", "1.7"),
    ("grpc.health.", "1.0"),
];

/// Services of other programs, which the daemon calls.
#[rustfmt::skip]
pub const CALLED: &[(&str, &str, &str, &[Row])] = &[
    ("opentelemetry.proto.collector.trace.v1", "TraceService", "crate::otlp", &[
        (Unary, "Export", "ExportTraceServiceRequest", "ExportTraceServiceResponse"),
    ]),
];

/// Answers that the daemon encodes record by record (`grpc::encoded`), as they may hold many records.
pub const ENCODED: &[&str] = &["ListContainersResponse", "ListImagesResponse"];
