//! What a daemon says of itself: `version.v1`, `introspection.v1`, `grpc.health.v1`. None of them is in a namespace.

use api::grpc::health::health_client::HealthClient;
use api::grpc::health::{HealthCheckRequest, HealthCheckResponse, ServingStatus};
use api::grpc::introspection::introspection_client::IntrospectionClient;
use api::grpc::introspection::{PluginInfoRequest, PluginsRequest};
use api::grpc::version::version_client::VersionClient;
use testkit::Daemon;
use tonic::{Code, Request};

use super::walk::{BAD_FILTERS, BROKEN, BROKEN_THERE, SAME, Side, covers};

#[test]
fn version_walked() {
    covers(&["Version.Version"]).walk(SAME, async |side| {
        let mut version = VersionClient::new(side.channel());
        let answer = side.ok("version", version.version(Request::new(()))).await;
        let numbers: Vec<&str> = answer.version.trim_start_matches('v').splitn(3, '.').collect();
        let parsed = numbers.len() == 3 && numbers[..2].iter().all(|number| number.parse::<u32>().is_ok());
        side.is("clients parse it", parsed, true);
        side.is("it has a revision", answer.revision.is_empty(), false);
    });
}

#[test]
fn introspection_walked() {
    covers(&["Introspection.Plugins", "Introspection.Server"]).walk(&[BROKEN_THERE], async |side| {
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
        if side.is_ours() {
            let policies = ["no", "always", "on-failure", "unless-stopped"];
            side.is("those of nerdctl", restart[0].capabilities.clone(), policies);
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
    covers(&["Introspection.PluginInfo"]).alone(&Daemon::start(), &async |side: &Side<'_>| {
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
