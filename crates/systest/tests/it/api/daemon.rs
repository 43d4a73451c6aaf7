//! The services that describe the daemon: `version.v1`, `introspection.v1`, `grpc.health.v1`. Their calls need no
//! namespace.

use std::os::unix::fs::MetadataExt;

use api::grpc::containers::containers_client::ContainersClient;
use api::grpc::containers::{CreateContainerRequest, GetContainerRequest};
use api::grpc::health::health_client::HealthClient;
use api::grpc::health::{HealthCheckRequest, HealthCheckResponse, ServingStatus};
use api::grpc::introspection::introspection_client::IntrospectionClient;
use api::grpc::introspection::{PluginInfoRequest, PluginsRequest};
use api::grpc::leases::CreateRequest;
use api::grpc::leases::leases_client::LeasesClient;
use api::grpc::namespaces::namespaces_client::NamespacesClient;
use api::grpc::namespaces::{CreateNamespaceRequest, Namespace};
use api::grpc::version::version_client::VersionClient;
use api::shim::introspection::RuntimeRequest;
use api::shim::pack;
use testkit::Daemon;
use tonic::{Code, Request, Status};

use super::containers::container;
use super::walk::{BAD_FILTERS, BROKEN, BROKEN_THERE, Difference, SAME, There, ask, covers, differs_in};
use crate::typed::on;

const DIFFERENCES_OF_VERSIONS: &[Difference] = &[differs_in(
    1,
    "clients parse it",
    There::Value("false"),
    "Debian's mark of what it left out is in it, with a tilde",
)];

#[test]
fn version_walked() {
    covers(&["Version.Version"]).walk(DIFFERENCES_OF_VERSIONS, async |side| {
        let mut version = VersionClient::new(side.channel());
        let answer = side.ok("version", version.version(Request::new(()))).await;
        let parsed = semver(&answer.version);
        side.is("clients parse it", parsed.is_some(), true);
        if side.is_ours() {
            // A constraint such as `>= 2.0` holds for no version with a mark of one that comes before a release.
            let (numbers, before) = parsed.expect("it was parsed above");
            side.is("it meets what clients ask for", (numbers >= [2, 3, 0], before.as_str()), (true, ""));
        }
        side.is("it has a revision", answer.revision.is_empty(), false);
    });
}

/// The numbers of a version by semver.org's grammar, and what it comes before; a `v` in front is usual.
fn semver(text: &str) -> Option<([u64; 3], String)> {
    let parts = |text: &str, is_part: fn(&str) -> bool| {
        let is_word = |part: &str| {
            !part.is_empty() && part.chars().all(|char| char.is_ascii_alphanumeric() || char == '-')
        };
        text.split('.').all(|part| is_word(part) && is_part(part))
    };
    let is_number = |text: &str| text.chars().all(|char| char.is_ascii_digit());
    fn no_zero_ahead(part: &str) -> bool {
        !part.starts_with('0') || part == "0" || !part.chars().all(|char| char.is_ascii_digit())
    }
    let text = text.strip_prefix('v').unwrap_or(text);
    let (text, build) = text.split_once('+').map_or((text, None), |(text, build)| (text, Some(build)));
    let (core, before) = text.split_once('-').map_or((text, None), |(core, before)| (core, Some(before)));
    let is_well = build.is_none_or(|build| parts(build, |_| true))
        && before.is_none_or(|before| parts(before, no_zero_ahead))
        && parts(core, no_zero_ahead);
    let numbers: Option<Vec<u64>> =
        core.split('.').map(|part| part.parse().ok().filter(|_| is_number(part))).collect();
    let numbers = <[u64; 3]>::try_from(numbers?).ok()?;
    is_well.then(|| (numbers, before.unwrap_or_default().to_owned()))
}

#[test]
fn versions_are_told_from_other_texts() {
    for (text, expected) in [
        ("2.3.4", Some(([2, 3, 4], ""))),
        ("v2.3.4+hoist.0.1.0", Some(([2, 3, 4], ""))),
        ("1.0.0-rc.1+x-y", Some(([1, 0, 0], "rc.1"))),
        ("1.0.0-0a", Some(([1, 0, 0], "0a"))),
        ("1.0.0-01", None),
        ("1.0", None),
        ("1.0.0.0", None),
        ("01.0.0", None),
        ("1.0.0+", None),
        ("1.0.0-a..b", None),
        ("1.6.20~ds1", None),
        ("+1.0.0", None),
        ("2.3.4+a_b", None),
    ] {
        let expected = expected.map(|(numbers, before)| (numbers, before.to_owned()));
        assert_eq!(semver(text), expected, "{text}");
    }
}

/// Programs look for these words, and clients of 2.x show what the daemon says and nothing more.
#[test]
fn refusals_end_with_the_words_of_their_class() {
    let methods = &["Containers.Create", "Containers.Get", "Namespaces.Create", "Leases.Create"];
    covers(methods).walk(SAME, async |side| {
        let says = |case: &'static str, refused: Option<Status>, words: &str| {
            let message = refused.map(|status| status.message().to_owned()).unwrap_or_default();
            side.is(case, (message.ends_with(words), &message), (true, &message));
        };
        let mut containers = ContainersClient::new(side.channel());
        let create = || CreateContainerRequest { container: Some(container("once")) };
        let get = |id: &str| GetContainerRequest { id: id.into() };
        side.ok("create", containers.create(ask(create()))).await;
        side.ok("get", containers.get(ask(get("once")))).await;
        says("twice", containers.create(ask(create())).await.err(), ": already exists");
        says("what is not there", containers.get(ask(get("none"))).await.err(), ": not found");
        says("what cannot be there", containers.get(ask(get("a/b"))).await.err(), ": not found");
        let answer = containers.create(ask(CreateContainerRequest { container: Some(container("a/b")) }));
        says("what cannot be made", answer.await.err(), ": invalid argument");
        let mut namespaces = NamespacesClient::new(side.channel());
        let create = || CreateNamespaceRequest {
            namespace: Some(Namespace { name: "once".into(), ..Namespace::default() }),
        };
        side.ok("create a namespace", namespaces.create(ask(create()))).await;
        says("a namespace twice", namespaces.create(ask(create())).await.err(), ": already exists");
        let mut leases = LeasesClient::new(side.channel());
        let create = || CreateRequest { id: "once".into(), ..CreateRequest::default() };
        side.ok("create a lease", leases.create(ask(create()))).await;
        says("a lease twice", leases.create(ask(create())).await.err(), ": already exists");
    });
}

/// As grpc-go takes it: 16 MiB of one call.
#[test]
fn metadata_of_calls_may_be_large() {
    covers(&["Version.Version"]).walk(SAME, async |side| {
        let mut version = VersionClient::new(side.channel());
        let with = |len: usize| {
            let mut request = Request::new(());
            request.metadata_mut().insert("x-much", "x".repeat(len).parse().expect("printable text"));
            request
        };
        for len in [17 << 10, 1 << 20, 15 << 20] {
            side.ok("much metadata", version.version(with(len))).await;
        }
        side.is("too much is refused", version.version(with(17 << 20)).await.is_err(), true);
        side.ok("others go on", VersionClient::new(side.channel()).version(Request::new(()))).await;
    });
}

const DIFFERENCES_OF_PLUGINS: &[Difference] = &[
    BROKEN_THERE,
    differs_in(
        1,
        "what the restart monitor is",
        There::Value("io.containerd.internal.v1"),
        "its plugins had no type of their own then",
    ),
];

/// A name that outlives the process, and where that is.
#[test]
fn a_server_is_the_same_after_a_restart_and_says_which_process_it_is() {
    covers(&["Introspection.Server"]);
    let mut daemon = Daemon::start();
    let server = |daemon: &Daemon| {
        on(daemon, async |channel| {
            IntrospectionClient::new(channel).server(Request::new(())).await.expect("an answer").into_inner()
        })
    };
    let mut told = Vec::new();
    for _ in 0..2 {
        let server = server(&daemon);
        assert_eq!(server.pid, u64::from(daemon.pid()));
        let namespace = std::fs::metadata(format!("/proc/{}/ns/pid", server.pid)).expect("it runs");
        assert_eq!(server.pidns, namespace.ino());
        assert!(server.deprecations.is_empty(), "nothing of it is to go: {server:?}");
        told.push(server);
        daemon.kill();
        daemon.start_again();
    }
    assert_eq!(told[0].uuid, told[1].uuid);
    assert_ne!(told[0].pid, told[1].pid);
}

#[test]
fn introspection_walked() {
    covers(&["Introspection.Plugins", "Introspection.Server"]).walk(DIFFERENCES_OF_PLUGINS, async |side| {
        let mut introspection = IntrospectionClient::new(side.channel());
        let server = side.ok("server", introspection.server(Request::new(()))).await;
        side.is("a daemon has a name", server.uuid.len(), 36);
        let again = side.ok("server again", introspection.server(Request::new(()))).await;
        side.is("it keeps it", again.uuid, server.uuid);

        let mut plugins = async |filters: &[&str]| {
            let filters = filters.iter().map(ToString::to_string).collect();
            side.ok("plugins", introspection.plugins(Request::new(PluginsRequest { filters }))).await.plugins
        };
        let all = plugins(&[]).await;
        // What nerdctl, BuildKit, dockerd and cAdvisor look for.
        for (kind, id) in [
            ("io.containerd.content.v1", "content"),
            ("io.containerd.snapshotter.v1", "overlayfs"),
            ("io.containerd.snapshotter.v1", "native"),
            ("io.containerd.differ.v1", "walking"),
            ("io.containerd.runtime.v2", "task"),
            ("io.containerd.gc.v1", "scheduler"),
            ("io.containerd.grpc.v1", "containers"),
            ("io.containerd.grpc.v1", "images"),
            ("io.containerd.grpc.v1", "snapshots"),
            ("io.containerd.grpc.v1", "tasks"),
            ("io.containerd.grpc.v1", "leases"),
            ("io.containerd.grpc.v1", "version"),
        ] {
            let found = all.iter().find(|plugin| plugin.r#type == kind && plugin.id == id);
            side.is("a plugin that clients look for", (kind, id, found.is_some()), (kind, id, true));
            let failed = found.and_then(|plugin| plugin.init_err.clone());
            side.is("it is well", failed, None);
        }
        // dockerd and BuildKit take what a runtime runs on from here, and programs that measure where the trees are.
        let runtimes = plugins(&["type==io.containerd.runtime.v1", "type==io.containerd.runtime.v2"]).await;
        let platforms = runtimes.iter().any(|runtime| !runtime.platforms.is_empty());
        side.is("a runtime says its platforms", platforms, true);
        let trees = plugins(&["type==io.containerd.snapshotter.v1,id==overlayfs"]).await;
        side.is("a snapshotter says its platforms", trees[0].platforms.is_empty(), false);
        side.is("and where its trees are", trees[0].exports.contains_key("root"), true);
        // nerdctl asks it which restart policies there are; containerd says so since 1.7.
        let restart = plugins(&["id==restart"]).await;
        side.is("restart policies", restart.len(), 1);
        side.is("what the restart monitor is", &*restart[0].r#type, "io.containerd.monitor.container.v1");
        if side.is_modern() {
            let policies = ["no", "always", "on-failure", "unless-stopped"];
            side.is("those of nerdctl", restart[0].capabilities.clone(), policies);
        }
        // Whom a plugin builds on is the same in all versions for these.
        for (filter, requires) in [
            ("type==io.containerd.gc.v1,id==scheduler", &["io.containerd.metadata.v1"][..]),
            ("type==io.containerd.grpc.v1,id==images", &["io.containerd.service.v1"]),
            ("type==io.containerd.grpc.v1,id==version", &[]),
        ] {
            let found = plugins(&[filter]).await;
            side.is(
                "what it requires",
                (filter, found[0].requires.clone()),
                (filter, requires.iter().map(ToString::to_string).collect()),
            );
        }
        if side.is_modern() {
            // nerdctl chooses how it logs by the first, BuildKit how it commits by the second.
            let runtime = plugins(&["type==io.containerd.runtime.v2,id==task"]).await;
            let schemes = runtime[0].exports.get("log-uri-schemes").cloned().unwrap_or_default();
            side.is("a runtime says how it logs", &*schemes, "fifo,binary,binary-v2,file");
            let requires =
                ["io.containerd.shim.v1", "io.containerd.mount-manager.v1", "io.containerd.warning.v1"];
            side.is("and what it requires", runtime[0].requires.clone(), requires);
            let can = trees[0].capabilities.iter().any(|can| can == "rebase");
            side.is("a snapshot may have its parent when it is committed", can, true);
        }
        let chosen = plugins(&["type==io.containerd.snapshotter.v1,id==native"]).await;
        side.is("filters choose", chosen.len(), 1);
        let chosen = plugins(&["id==native", "id==overlayfs"]).await;
        side.is("any of filters chooses", chosen.len(), 2);
        for (case, filter) in BAD_FILTERS.iter().chain([&BROKEN]) {
            let answer =
                introspection.plugins(Request::new(PluginsRequest { filters: vec![(*filter).into()] }));
            side.refused(case, answer, Code::InvalidArgument, "").await;
        }
    });
}

#[test]
fn plugin_info_walked() {
    covers(&["Introspection.PluginInfo"]).walk_since(2, SAME, async |side| {
        let mut introspection = IntrospectionClient::new(side.channel());
        let ask = |kind: &str, id: &str| {
            Request::new(PluginInfoRequest { r#type: kind.into(), id: id.into(), options: None })
        };
        let answer =
            side.ok("a plugin", introspection.plugin_info(ask("io.containerd.gc.v1", "scheduler"))).await;
        side.is("it is the one", answer.plugin.map(|plugin| plugin.id), Some("scheduler".to_owned()));
        for (kind, id) in [("io.containerd.gc.v1", "none"), ("none", "scheduler"), ("", "")] {
            let answer = introspection.plugin_info(ask(kind, id));
            side.refused("a plugin that is none", answer, Code::NotFound, "not found").await;
        }
        let options = Some(pack(&RuntimeRequest::default()));
        let kind = "io.containerd.gc.v1".to_owned();
        let asked = PluginInfoRequest { r#type: kind, id: "scheduler".into(), options };
        let answer = introspection.plugin_info(Request::new(asked));
        side.refused("a plugin without more to say", answer, Code::Unimplemented, "extra information").await;
    });
}

#[test]
fn health_walked() {
    covers(&["Health.Check"]).walk(SAME, async |side| {
        let mut health = HealthClient::new(side.channel());
        let answer = side.ok("check", health.check(Request::new(HealthCheckRequest::default()))).await;
        side.is("a daemon that answers is well", answer.status(), ServingStatus::Serving);
        let unknown = HealthCheckRequest { service: "none".into() };
        let answer = health.check(Request::new(unknown));
        side.refused("a service that is none", answer, Code::NotFound, "").await;
    });
}

#[test]
fn health_is_watched() {
    covers(&["Health.Watch"]).walk(SAME, async |side| {
        let mut health = HealthClient::new(side.channel());
        for (service, expected) in [("", ServingStatus::Serving), ("none", ServingStatus::ServiceUnknown)] {
            let request = Request::new(HealthCheckRequest { service: service.into() });
            let mut watch = side.ok("watch", health.watch(request)).await;
            let first: Option<HealthCheckResponse> = watch.message().await.expect("an answer");
            side.is(
                "it is said at once",
                (service, first.map(|first| first.status())),
                (service, Some(expected)),
            );
        }
        // Whoever watches is told of changes, of which there are none while the daemon runs.
        let mut watch = side.ok("watch on", health.watch(Request::new(HealthCheckRequest::default()))).await;
        watch.message().await.expect("an answer");
        let more = tokio::time::timeout(std::time::Duration::from_millis(200), watch.message()).await;
        side.is("a watch goes on", more.is_err(), true);
    });
}
