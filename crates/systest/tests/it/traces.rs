//! OpenTelemetry traces, as a collector receives them.

use std::convert::Infallible;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex};

use api::grpc::images::images_client::ImagesClient;
use api::grpc::images::{GetImageRequest, ListImagesRequest};
use api::otlp::trace_service_server::{TraceService, TraceServiceServer};
use api::otlp::{ExportTraceServiceRequest, ExportTraceServiceResponse, Span, SpanKind, StatusCode, Value};
use hyper::server::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use testkit::{Daemon, Registry, certify, eventually, images};
use tonic::{Request, Response, Status};
use tower_service::Service;

use crate::cgroups::HIERARCHIES;
use crate::typed::{ask, on};

/// What a collector received: requests, and their headers.
#[derive(Clone, Default)]
struct Told(Arc<Mutex<Vec<(String, ExportTraceServiceRequest)>>>);

impl Told {
    fn take(&self, headers: String, request: ExportTraceServiceRequest) {
        self.0.lock().expect("no panic under the lock").push((headers, request));
    }

    fn spans(&self) -> Vec<Span> {
        let told = self.0.lock().expect("no panic under the lock");
        let resources = told.iter().flat_map(|(_, request)| &request.resource_spans);
        resources.flat_map(|resource| &resource.scope_spans).flat_map(|scope| scope.spans.clone()).collect()
    }

    /// Waits for a span for which `is_right` holds.
    fn span(&self, what: &str, is_right: impl Fn(&Span) -> bool) -> Span {
        eventually(&format!("a span: {what}"), || self.spans().into_iter().find(|span| is_right(span)))
    }

    fn named(&self, name: &str) -> Span {
        self.span(name, |span| span.name == name)
    }
}

fn attribute(span: &Span, key: &str) -> Option<Value> {
    let found = span.attributes.iter().find(|attribute| attribute.key == key)?;
    found.value.clone()?.value
}

fn text(value: &str) -> Option<Value> {
    Some(Value::Text(value.to_owned()))
}

/// A collector for OTLP over HTTP, and its address.
fn http_collector() -> (Told, String) {
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a free port");
    let address = listener.local_addr().expect("a bound socket").to_string();
    let told = Told::default();
    let onward = told.clone();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let told = onward.clone();
            std::thread::spawn(move || take_requests(stream, &told));
        }
    });
    (told, address)
}

/// Reads the requests of a connection until its end.
fn take_requests(stream: TcpStream, told: &Told) -> Option<()> {
    let mut reader = BufReader::new(stream.try_clone().ok()?);
    let mut stream = stream;
    loop {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            if reader.read_line(&mut head).ok()? == 0 {
                return None;
            }
        }
        let head = head.to_ascii_lowercase();
        let len = head.lines().find_map(|line| line.strip_prefix("content-length: "))?;
        let mut body = vec![0; len.parse().ok()?];
        reader.read_exact(&mut body).ok()?;
        told.take(head, ExportTraceServiceRequest::decode(&body[..]).ok()?);
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").ok()?;
    }
}

#[tonic::async_trait]
impl TraceService for Told {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let headers = format!("{:?}", request.metadata());
        self.take(headers, request.into_inner());
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

/// A collector for OTLP over gRPC, and its address.
fn grpc_collector() -> (Told, String) {
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a free port");
    let address = listener.local_addr().expect("a bound socket").to_string();
    let told = Told::default();
    let server = TraceServiceServer::new(told.clone());
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            listener.set_nonblocking(true).expect("a socket of ours");
            let listener = tokio::net::TcpListener::from_std(listener).expect("a socket of ours");
            while let Ok((stream, _)) = listener.accept().await {
                let server = server.clone();
                let answer = hyper::service::service_fn(move |request| {
                    let answer = server.clone().call(request);
                    async move { Ok::<_, Infallible>(answer.await.unwrap_or_else(|never| match never {})) }
                });
                let serving =
                    http2::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), answer);
                tokio::spawn(serving);
            }
        });
    });
    (told, address)
}

/// A TLS server in front of a collector, with this protocol in its ALPN. Returns its address.
fn behind_tls(collector: String, inside: &str, certificates: &Path) -> String {
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a free port");
    let address = listener.local_addr().expect("a bound socket").to_string();
    let chain = CertificateDer::pem_file_iter(certificates.join("tls.pem")).expect("openssl wrote it");
    let chain = chain.collect::<Result<Vec<_>, _>>().expect("PEM");
    let key = PrivateKeyDer::from_pem_file(certificates.join("tls.key")).expect("openssl wrote it");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let config = config.expect("versions of the provider").with_no_client_auth();
    let mut config = config.with_single_cert(chain, key).expect("they belong together");
    config.alpn_protocols = vec![inside.into()];
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            listener.set_nonblocking(true).expect("a socket of ours");
            let listener = tokio::net::TcpListener::from_std(listener).expect("a socket of ours");
            while let Ok((stream, _)) = listener.accept().await {
                let (acceptor, collector) = (acceptor.clone(), collector.clone());
                tokio::spawn(async move {
                    // A client that does not trust the certificate disconnects.
                    let Ok(mut outer) = acceptor.accept(stream).await else { return };
                    let mut inner = tokio::net::TcpStream::connect(collector).await.expect("it listens");
                    let _ = tokio::io::copy_bidirectional(&mut outer, &mut inner).await;
                });
            }
        });
    });
    address
}

/// Spans are exported soon, so that tests need not wait.
const SOON: (&str, &str) = ("OTEL_BSP_SCHEDULE_DELAY", "50");

#[test]
fn calls_pulls_and_starts_are_told_over_http() {
    let _hierarchies = HIERARCHIES.read();
    let registry = Registry::start();
    let reference = registry.push(&images::busybox(), images::TAG, "busybox:1");
    let (told, address) = http_collector();
    let variables = [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", format!("http://{address}")),
        ("OTEL_EXPORTER_OTLP_HEADERS", "x-team=edge%20one".to_owned()),
        ("OTEL_SERVICE_NAME", "engine-of-the-test".to_owned()),
        (SOON.0, SOON.1.to_owned()),
    ];
    let variables: Vec<(&str, &str)> =
        variables.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let daemon = Daemon::start_in(&[], "", &variables);
    let (trace, parent) = ("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331");
    on(&daemon, async |channel| {
        let mut client = ImagesClient::new(channel);
        let mut request = ask(ListImagesRequest::default());
        let of_caller = format!("00-{trace}-{parent}-01").parse().expect("printable text");
        request.metadata_mut().insert("traceparent", of_caller);
        client.list(request).await.expect("a list");
        client.get(ask(GetImageRequest { name: "none".into() })).await.expect_err("there is none");
    });
    let call = told.named("containerd.services.images.v1.Images/List");
    assert_eq!(call.kind(), SpanKind::Server);
    assert_eq!(call.trace_id, u128::from_str_radix(trace, 16).expect("hex").to_be_bytes());
    assert_eq!(call.parent_span_id, u64::from_str_radix(parent, 16).expect("hex").to_be_bytes());
    assert_eq!(attribute(&call, "rpc.system"), text("grpc"));
    assert_eq!(attribute(&call, "rpc.method"), text("List"));
    assert_eq!(attribute(&call, "containerd.namespace"), text("default"));
    assert_eq!(attribute(&call, "rpc.grpc.status_code"), Some(Value::Int(0)));
    assert!(call.status.is_none() && call.end_time_unix_nano >= call.start_time_unix_nano, "{call:?}");
    let refused = told.named("containerd.services.images.v1.Images/Get");
    assert_eq!(attribute(&refused, "rpc.grpc.status_code"), Some(Value::Int(5)));
    // `NotFound` is an error of the client, and no failure of the daemon.
    assert!(refused.status.is_none() && refused.trace_id != call.trace_id, "{refused:?}");

    daemon.hoist(["pull", "-q", &reference]).ok();
    let pull = told.named("pull");
    let within = |outer: &Span| {
        let outer = outer.clone();
        move |span: &Span| span.trace_id == outer.trace_id && span.parent_span_id == outer.span_id
    };
    let asked = told.span("the call that pulled", |span| span.span_id == pull.parent_span_id);
    assert_eq!(asked.name, "hoist.engine.v1.Engine/Follow");
    assert_eq!(attribute(&pull, "reference"), text(&reference));
    for phase in ["pull.resolve", "pull.documents", "pull.layer", "pull.commit"] {
        let span = told.span(phase, |span| span.name == phase && within(&pull)(span));
        assert!(span.start_time_unix_nano >= pull.start_time_unix_nano, "{span:?}");
        assert!(span.end_time_unix_nano <= pull.end_time_unix_nano, "{span:?}");
    }
    daemon.hoist(["pull", "-q", &format!("{}/none:1", registry.host())]);
    let failed = told.span("a pull that failed", |span| span.name == "pull" && span.status.is_some());
    let status = failed.status.unwrap_or_default();
    assert!(
        status.code() == StatusCode::Error && status.message.contains("/none: manifest unknown"),
        "{status:?}"
    );

    daemon.hoist(["run", "--rm", "--network", "none", &reference, "true"]).ok();
    let create = told.named("task.create");
    for phase in ["task.bundle", "task.shim", "task.make"] {
        told.span(phase, |span| span.name == phase && within(&create)(span));
    }
    told.named("task.start");
    told.named("task.delete");

    let requests = told.0.lock().expect("no panic under the lock");
    for (headers, request) in requests.iter() {
        assert!(headers.starts_with("post /v1/traces "), "{headers}");
        assert!(headers.contains("content-type: application/x-protobuf"), "{headers}");
        assert!(headers.contains("x-team: edge one"), "{headers}");
        let resource = request.resource_spans[0].resource.as_ref().expect("who tells");
        let name = resource.attributes.iter().find(|attribute| attribute.key == "service.name");
        let name = name.and_then(|name| name.value.clone()).and_then(|value| value.value);
        assert_eq!(name, text("engine-of-the-test"));
    }
}

#[test]
fn a_collector_may_speak_grpc() {
    let (told, address) = grpc_collector();
    let config = format!(
        "[otlp]\nendpoint = \"http://{address}\"\nprotocol = \"grpc\"\nservice_name = \"of the file\"\n"
    );
    let mut daemon = Daemon::start_in(&[], &config, &[SOON]);
    let list = |daemon: &Daemon| {
        on(daemon, async |channel| {
            ImagesClient::new(channel).list(ask(ListImagesRequest::default())).await.expect("a list");
        });
    };
    list(&daemon);
    told.named("containerd.services.images.v1.Images/List");
    // The last spans are exported when the daemon stops.
    on(&daemon, async |channel| {
        let get = GetImageRequest { name: "none".into() };
        ImagesClient::new(channel).get(ask(get)).await.expect_err("there is none");
    });
    daemon.terminate();
    told.named("containerd.services.images.v1.Images/Get");
    daemon.start_again();
}

#[test]
fn a_collector_is_spoken_to_by_tls() {
    let certificates = tempfile::tempdir().expect("a temporary directory");
    certify(certificates.path());
    let ca = certificates.path().join("ca.pem").display().to_string();
    for protocol in ["http/protobuf", "grpc"] {
        let is_http = protocol == "http/protobuf";
        let (told, plain) = if is_http { http_collector() } else { grpc_collector() };
        let address = behind_tls(plain, if is_http { "http/1.1" } else { "h2" }, certificates.path());
        let config = format!("[otlp]\nendpoint = \"https://{address}\"\nprotocol = \"{protocol}\"\n");
        let list = |daemon: &Daemon| {
            on(daemon, async |channel| {
                ImagesClient::new(channel).list(ask(ListImagesRequest::default())).await.expect("a list");
            });
        };
        // No authority of the system's has signed the certificate.
        let unknown = Daemon::start_in(&[], &config, &[SOON]);
        list(&unknown);
        eventually("it is not trusted", || {
            let log = unknown.log();
            (log.contains("traces are lost") && log.contains("certificate")).then_some(())
        });
        assert!(told.spans().is_empty(), "nothing is told to who is not trusted");
        drop(unknown);

        let by_variable = [SOON, ("OTEL_EXPORTER_OTLP_CERTIFICATE", ca.as_str())];
        let daemon = if is_http {
            Daemon::start_in(&[], &config, &by_variable)
        } else {
            Daemon::start_in(&[], &format!("{config}ca = \"{ca}\"\n"), &[SOON])
        };
        list(&daemon);
        told.named("containerd.services.images.v1.Images/List");
    }
}

#[test]
fn a_collector_that_is_dead_or_stuck_costs_nothing() {
    let free = TcpListener::bind(("127.0.0.1", 0)).expect("a free port");
    let dead = free.local_addr().expect("a bound socket").to_string();
    drop(free);
    // The collector accepts connections, and never answers.
    let stuck = TcpListener::bind(("127.0.0.1", 0)).expect("a free port");
    for address in [dead, stuck.local_addr().expect("a bound socket").to_string()] {
        let variables =
            [("OTEL_EXPORTER_OTLP_ENDPOINT", format!("http://{address}")), (SOON.0, SOON.1.to_owned())];
        let variables: Vec<(&str, &str)> =
            variables.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let mut daemon = Daemon::start_in(&[], "", &variables);
        on(&daemon, async |channel| {
            let mut client = ImagesClient::new(channel);
            for _ in 0..5000 {
                client.list(ask(ListImagesRequest::default())).await.expect("a list");
            }
        });
        eventually("it is said once", || daemon.log().contains("traces are lost").then_some(()));
        assert_eq!(daemon.log().matches("traces are lost").count(), 1);
        assert_eq!(daemon.terminate(), Some(0));
    }
}
