//! containerd's services, called over gRPC.
//!
//! A module for each service calls every method, also with requests that it refuses, and compares the answers with
//! Debian's containerd ([`walk`]). The tests here need more than one service.

mod authority;
mod containers;
mod content;
mod contract;
mod daemon;
mod engine;
mod events;
mod images;
mod leases;
mod mounts;
mod namespaces;
mod sandboxes;
mod snapshots;
mod tasks;
mod topics;
mod transfer;
pub(crate) mod walk;

use api::grpc::images::images_client::ImagesClient;
use api::grpc::images::{GetImageRequest, Image};
use api::grpc::introspection::introspection_client::IntrospectionClient;
use api::grpc::introspection::{PluginInfoRequest, PluginInfoResponse};
use api::grpc::streaming::StreamInit;
use api::grpc::streaming::streaming_client::StreamingClient;
use api::grpc::transfer::transfer_client::TransferClient;
use api::grpc::transfer::{
    AuthRequest, AuthResponse, AuthType, Data, ImageExportStream, ImageStore, OciRegistry, Progress,
    RegistryResolver, TransferOptions, TransferRequest, WindowUpdate,
};
use api::grpc::types::Any;
use api::shim::introspection::{RuntimeInfo, RuntimeRequest};
use api::shim::{pack, unpack};
use testkit::{Daemon, FaultProxy, Registry};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Code, Streaming};

use crate::api::walk::covers;
use crate::typed::{ask, code, on};

/// Opens a named stream. Returns the sender and the receiver of its messages.
async fn open(channel: &Channel, name: &str) -> Result<(mpsc::Sender<Any>, Streaming<Any>), tonic::Status> {
    let (send, receive) = mpsc::channel(16);
    send.send(pack(&StreamInit { id: name.into() })).await.expect("room for one");
    let mut client = StreamingClient::new(channel.clone());
    let mut incoming = client.stream(ask(ReceiverStream::new(receive))).await?.into_inner();
    let acknowledged = incoming.message().await?.expect("an acknowledgement");
    assert_eq!(acknowledged.type_url, "google.protobuf.Empty");
    Ok((send, incoming))
}

async fn transfer(
    channel: &Channel,
    source: Any,
    destination: Any,
    progress: &str,
) -> Result<(), tonic::Status> {
    let options = Some(TransferOptions { progress_stream: progress.into() });
    let request = TransferRequest { source: Some(source), destination: Some(destination), options };
    TransferClient::new(channel.clone()).transfer(ask(request)).await.map(drop)
}

fn store(name: &str) -> Any {
    pack(&ImageStore { name: name.into(), ..ImageStore::default() })
}

async fn image(channel: &Channel, name: &str) -> Result<Image, tonic::Status> {
    let answer = ImagesClient::new(channel.clone()).get(ask(GetImageRequest { name: name.into() })).await?;
    Ok(answer.into_inner().image.expect("an image"))
}

#[test]
fn a_stream_has_its_name_to_itself_until_its_client_goes() {
    covers(&["Streaming.Stream"]);
    let daemon = Daemon::start();
    on(&daemon, async |channel| {
        let first = open(&channel, "one").await.unwrap();
        assert_eq!(code(open(&channel, "one")).await, Code::AlreadyExists);
        assert_eq!(code(open(&channel, "")).await, Code::InvalidArgument);
        assert_eq!(code(open(&channel, &"x".repeat(1000))).await, Code::InvalidArgument);
        drop(first);
        // The end of the stream travels on the same connection, and may reach the daemon before or after the next call.
        while code(open(&channel, "one")).await == Code::AlreadyExists {
            tokio::task::yield_now().await;
        }

        let (send, receive) = mpsc::channel(1);
        send.send(pack(&Data::default())).await.unwrap();
        let mut client = StreamingClient::new(channel.clone());
        let nameless = client.stream(ask(ReceiverStream::new(receive)));
        assert_eq!(code(nameless).await, Code::InvalidArgument);
    });
}

#[test]
fn transfer_pulls_with_progress_and_credentials_tags_and_pushes() {
    covers(&["Transfer.Transfer"]);
    let registry = Registry::start_secured();
    let other = Registry::start();
    let reference = registry.push(&testkit::images::busybox(), testkit::images::TAG, "busybox:1");
    let daemon = Daemon::start();
    // The client names the directory with the registry's CA (`hosts_dir`).
    let hosts = daemon.dir().join("hosts");
    let own = hosts.join(registry.host());
    std::fs::create_dir_all(&own).expect("a writable directory");
    std::fs::copy(registry.ca(), own.join("ca.crt")).expect("a writable directory");
    on(&daemon, async |channel| {
        let (_to_daemon, mut progress) = open(&channel, "progress").await.unwrap();
        let (answers, mut questions) = open(&channel, "auth").await.unwrap();
        let resolver = RegistryResolver {
            auth_stream: "auth".into(),
            host_dir: hosts.display().to_string(),
            ..RegistryResolver::default()
        };
        let source = pack(&OciRegistry { reference: reference.clone(), resolver: Some(resolver) });
        let answering = async {
            let question = questions.message().await.unwrap().expect("a question");
            let question = unpack::<AuthRequest>(&question).unwrap().unwrap();
            assert_eq!(question.host, registry.host());
            let answer = AuthResponse {
                auth_type: AuthType::Credentials.into(),
                username: Registry::USER.into(),
                secret: Registry::PASSWORD.into(),
                expire_at: None,
            };
            answers.send(pack(&answer)).await.unwrap();
        };
        let watching = async {
            let mut events = Vec::new();
            while let Some(step) = progress.message().await.unwrap() {
                events.push(unpack::<Progress>(&step).unwrap().unwrap());
            }
            events
        };
        let destination = pack(&ImageStore {
            name: reference.clone(),
            labels: [("team".into(), "edge".into())].into(),
            ..ImageStore::default()
        });
        let moving = transfer(&channel, source, destination, "progress");
        let (moved, (), events) = tokio::join!(moving, answering, watching);
        moved.unwrap();
        for event in ["fetching image content", "waiting", "complete"] {
            assert!(events.iter().any(|step| step.event == event), "no {event:?} in {events:?}");
        }
        let pulled = image(&channel, &reference).await.unwrap();
        assert_eq!(pulled.labels.get("team").map(String::as_str), Some("edge"));

        transfer(&channel, store(&reference), store("docker.io/library/other:2"), "").await.unwrap();
        let tagged = image(&channel, "docker.io/library/other:2").await.unwrap();
        assert_eq!(tagged.target, pulled.target);

        let copy = format!("{}/copies/busybox:1", other.host());
        let (_to_daemon, mut progress) = open(&channel, "push").await.unwrap();
        let destination = pack(&OciRegistry { reference: copy.clone(), resolver: None });
        let watching = async {
            let mut events = Vec::new();
            while let Some(step) = progress.message().await.unwrap() {
                events.push(unpack::<Progress>(&step).unwrap().unwrap());
            }
            events
        };
        let (moved, events) =
            tokio::join!(transfer(&channel, store(&reference), destination, "push"), watching);
        moved.unwrap();
        assert!(events.iter().any(|step| step.event == "complete" && step.total > 0), "{events:?}");
        let inspect =
            ["inspect", "--tls-verify=false", "--format", "{{.Digest}}", &format!("docker://{copy}")];
        let found = testkit::run(std::process::Command::new("skopeo").args(inspect)).ok();
        assert_eq!(found.text(), pulled.target.unwrap().digest);

        let nowhere = pack(&Data::default());
        assert_eq!(code(transfer(&channel, nowhere, store("x"), "")).await, Code::Unimplemented);
        assert_eq!(code(transfer(&channel, store("none"), store("x"), "")).await, Code::NotFound);
        let unopened = transfer(&channel, store(&reference), store("x"), "unopened");
        assert_eq!(code(unopened).await, Code::NotFound);
    });
}

/// As containerd does, the daemon asks the client for credentials when a host requires them, naming that host.
#[test]
fn transfer_asks_for_credentials_when_a_host_wants_them() {
    covers(&["Transfer.Transfer"]);
    let (upstream, mirror) = (Registry::start_secured(), Registry::start_secured());
    let (unlocked, tokens) = (Registry::start(), Registry::start_with_tokens());
    let busybox = testkit::images::busybox();
    let push = |to: &Registry, name: &str| to.push(&busybox, testkit::images::TAG, name);
    let closed = push(&upstream, "busybox:1");
    let free = push(&unlocked, "busybox:1");
    let (public, private) = (push(&tokens, "public/busybox:1"), push(&tokens, "busybox:1"));
    let daemon = Daemon::start();
    let hosts = daemon.dir().join("hosts");
    let own = hosts.join(upstream.host());
    std::fs::create_dir_all(&own).expect("a writable directory");
    let text = format!(
        "server = \"https://{}\"\nca = {:?}\n[host.\"https://{}\"]\nca = {:?}\n",
        upstream.host(),
        upstream.ca(),
        mirror.host(),
        mirror.ca()
    );
    std::fs::write(own.join("hosts.toml"), text).expect("a writable directory");
    let basic = "Basic dGVzdGVyOnMzY3JldA==";
    on(&daemon, async |channel| {
        let mut at = 0;
        let mut pull = async |reference: &str, kind: AuthType, username: &str, secret: &str| {
            at += 1;
            let (answers, mut questions) = open(&channel, &format!("auth{at}")).await.unwrap();
            let resolver = RegistryResolver {
                auth_stream: format!("auth{at}"),
                host_dir: hosts.display().to_string(),
                ..RegistryResolver::default()
            };
            let source = pack(&OciRegistry { reference: reference.into(), resolver: Some(resolver) });
            let answer = AuthResponse {
                auth_type: kind.into(),
                username: username.into(),
                secret: secret.into(),
                expire_at: None,
            };
            let answering = async {
                let mut asked = Vec::new();
                while let Ok(Some(question)) = questions.message().await {
                    let question = unpack::<AuthRequest>(&question).unwrap().unwrap();
                    assert_eq!(question.reference, reference);
                    asked.push((question.host, question.wwwauthenticate));
                    answers.send(pack(&answer)).await.unwrap();
                }
                asked
            };
            let moving = transfer(&channel, source, store(reference), "");
            let (moved, asked) = tokio::join!(moving, answering);
            (moved.map(drop).map_err(|status| status.code()), asked)
        };
        let whole = |of: &[&Registry], challenge: String| -> Vec<(String, Vec<String>)> {
            of.iter().map(|registry| (registry.host(), vec![challenge.clone()])).collect()
        };
        let both = || whole(&[&mirror, &upstream], "Basic realm=\"tests\"".into());
        let (user, password) = (Registry::USER, Registry::PASSWORD);
        assert_eq!(pull(&closed, AuthType::Credentials, user, password).await, (Ok(()), both()));
        assert_eq!(pull(&closed, AuthType::Header, "", basic).await, (Ok(()), both()));
        let (refused, asked) = pull(&closed, AuthType::None, "", "").await;
        assert_eq!((refused, asked), (Err(Code::PermissionDenied), both()));
        let (broken, asked) = pull(&closed, AuthType::Header, "", "Basic %").await;
        assert_eq!((broken, asked), (Err(Code::InvalidArgument), both()));

        assert_eq!(pull(&free, AuthType::Credentials, user, password).await, (Ok(()), vec![]));

        // A client without credentials answers with an empty token, as containerd's clients do, and gets anonymous
        // access.
        let hosts_of = |asked: Vec<(String, Vec<String>)>| -> Vec<String> {
            asked
                .into_iter()
                .map(|(host, challenges)| {
                    assert!(
                        challenges.iter().all(|challenge| challenge.starts_with("Bearer realm=")),
                        "{challenges:?}"
                    );
                    host
                })
                .collect()
        };
        let (moved, asked) = pull(&public, AuthType::Refresh, "", "").await;
        assert_eq!((moved, hosts_of(asked)), (Ok(()), vec![tokens.host()]));
        let (moved, asked) = pull(&private, AuthType::Refresh, "", Registry::IDENTITY_TOKEN).await;
        assert_eq!((moved, hosts_of(asked)), (Ok(()), vec![tokens.host()]));
        let (moved, _) = pull(&private, AuthType::None, "", "").await;
        assert!(moved.is_err(), "it is not for everybody");
    });
}

#[test]
fn transfer_speaks_to_a_registry_as_the_client_says() {
    covers(&["Transfer.Transfer"]);
    let registry = Registry::start();
    registry.push(&testkit::images::busybox(), testkit::images::TAG, "busybox:1");
    // The host's name does not resolve, so that every request that the daemon makes goes through the proxy.
    let proxy = FaultProxy::start(&registry, |_| Vec::new());
    let daemon = Daemon::start_in(&[], "", &[("HTTP_PROXY", &format!("http://{}", proxy.host()))]);
    let reference = "registry.example/busybox:1";
    let said = |scheme: &str, headers: &[(&str, &str)]| {
        let headers = headers.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect();
        let resolver =
            RegistryResolver { default_scheme: scheme.into(), headers, ..RegistryResolver::default() };
        pack(&OciRegistry { reference: reference.into(), resolver: Some(resolver) })
    };
    on(&daemon, async |channel| {
        let own = said("http", &[("X-Meta-Team", "edge")]);
        transfer(&channel, own, store(reference), "").await.unwrap();
        image(&channel, reference).await.unwrap();
        for (scheme, headers, expected) in [
            ("gopher", &[][..], Code::InvalidArgument),
            ("http", &[("X Meta", "edge")], Code::InvalidArgument),
            ("http", &[("X-Meta", "two\nlines")], Code::InvalidArgument),
        ] {
            let wrong = transfer(&channel, said(scheme, headers), store("x"), "");
            assert_eq!(code(wrong).await, expected, "{scheme} {headers:?}");
        }
    });
    let asked = proxy.log();
    assert!(asked.len() >= 3, "a manifest, a config and a layer: {asked:?}");
    for served in asked {
        assert!(served.asked.path.starts_with("http://registry.example/v2/busybox/"), "{served:?}");
        assert_eq!(served.asked.header("x-meta-team"), Some("edge"), "{served:?}");
    }
}

#[test]
fn transfer_exports_what_save_writes() {
    covers(&["Transfer.Transfer"]);
    let daemon = Daemon::start();
    let archive = daemon.dir().join("busybox.tar");
    testkit::images::archive(&testkit::images::busybox(), "oci-archive", "busybox:1", &archive);
    daemon.hoist(["load", "--input", &archive.display().to_string()]).ok();
    let name = "docker.io/library/busybox:1";
    let saved = daemon.dir().join("saved.tar");
    daemon.hoist(["save", "--output", &saved.display().to_string(), name]).ok();
    on(&daemon, async |channel| {
        let (window, mut incoming) = open(&channel, "archive").await.unwrap();
        let destination =
            pack(&ImageExportStream { stream: "archive".into(), ..ImageExportStream::default() });
        let taking = async {
            let mut bytes = Vec::new();
            loop {
                // The smallest window: the daemon waits for an update of it before it sends more.
                window.send(pack(&WindowUpdate { update: 10_000 })).await.unwrap();
                let mut left = 10_000;
                while left > 0 {
                    let Some(message) = incoming.message().await.unwrap() else { return bytes };
                    let data = unpack::<Data>(&message).unwrap().unwrap().data;
                    assert!(data.len() <= left, "more than the window");
                    left -= data.len();
                    bytes.extend_from_slice(&data);
                }
            }
        };
        let (moved, bytes) = tokio::join!(transfer(&channel, store(name), destination, ""), taking);
        moved.unwrap();
        assert!(bytes == std::fs::read(&saved).unwrap(), "{} bytes differ from what save wrote", bytes.len());
    });
}

#[test]
fn runtimes_say_what_they_are() {
    covers(&["Introspection.PluginInfo"]);
    let daemon = Daemon::start();
    on(&daemon, async |channel| {
        let mut client = IntrospectionClient::new(channel);
        let mut ask_for = async |kind: &str, id: &str, options: Option<Any>| {
            let request = PluginInfoRequest { r#type: kind.into(), id: id.into(), options };
            client.plugin_info(ask(request)).await.map(tonic::Response::into_inner)
        };
        let runtime = |path: &str| {
            Some(pack(&RuntimeRequest { runtime_path: path.into(), ..RuntimeRequest::default() }))
        };
        const RUNTIMES: &str = "io.containerd.runtime.v2";
        for name in ["io.containerd.hoist.v2", ""] {
            let answer = ask_for(RUNTIMES, "task", runtime(name)).await.unwrap();
            assert_eq!(answer.plugin.unwrap().id, "task");
            let info = unpack::<RuntimeInfo>(&answer.extra.unwrap()).unwrap().unwrap();
            assert_eq!(info.name, "io.containerd.hoist.v2");
            assert!(!info.version.unwrap().version.is_empty());
            assert!(info.annotations["containerd.io/log-uri-schemes"].contains("binary"));
            let features = info.features.unwrap();
            assert_eq!(
                features.type_url,
                "types.containerd.io/opencontainers/runtime-spec/1/features/Features"
            );
            let features: serde_json::Value = serde_json::from_slice(&features.value).unwrap();
            let options = features["mountOptions"].as_array().unwrap();
            assert!(options.iter().any(|word| word == "rro"), "{features}");
        }
        assert!(ask_for(RUNTIMES, "task", None).await.unwrap().extra.is_none());
        let code_of = |answer: Result<PluginInfoResponse, tonic::Status>| answer.unwrap_err().code();
        assert_eq!(
            code_of(ask_for(RUNTIMES, "task", runtime("io.containerd.nosuch.v1")).await),
            Code::NotFound
        );
        assert_eq!(code_of(ask_for(RUNTIMES, "task", runtime("no name")).await), Code::InvalidArgument);
        let other = Some(pack(&Data::default()));
        assert_eq!(code_of(ask_for(RUNTIMES, "task", other.clone()).await), Code::Unimplemented);
        assert_eq!(code_of(ask_for("io.containerd.gc.v1", "scheduler", other).await), Code::Unimplemented);
        assert_eq!(code_of(ask_for(RUNTIMES, "nosuch", None).await), Code::NotFound);
    });
}
