//! The configuration's `disabled_plugins`, by the names of containerd's plugins.
//!
//! A service of the API can be disabled by itself: it is neither served nor listed. So can the restart monitor, the
//! snapshotter `native`, and plugins that only services need, which disables these as well. Other plugins are always
//! enabled.

use super::introspection::{
    GRPC, PLUGINS, REQUIRES, RESTART, SANDBOX_STORE, SNAPSHOTTER, STREAMING, TRANSFER,
};

/// Plugins that only services need.
const BELOW_SERVICES: [(&str, &str); 3] =
    [(SANDBOX_STORE, "local"), (STREAMING, "manager"), (TRANSFER, "local")];

/// The services of the API, by plugin id.
const SERVICES: &[(&str, &str)] = &[
    ("containers", "containerd.services.containers.v1.Containers"),
    ("content", "containerd.services.content.v1.Content"),
    ("diff", "containerd.services.diff.v1.Diff"),
    ("events", "containerd.services.events.v1.Events"),
    ("healthcheck", "grpc.health.v1.Health"),
    ("images", "containerd.services.images.v1.Images"),
    ("introspection", "containerd.services.introspection.v1.Introspection"),
    ("leases", "containerd.services.leases.v1.Leases"),
    ("mounts", "containerd.services.mounts.v1.Mounts"),
    ("namespaces", "containerd.services.namespaces.v1.Namespaces"),
    ("sandbox-controllers", "containerd.services.sandbox.v1.Controller"),
    ("sandboxes", "containerd.services.sandbox.v1.Store"),
    ("snapshots", "containerd.services.snapshots.v1.Snapshots"),
    ("streaming", "containerd.services.streaming.v1.Streaming"),
    ("tasks", "containerd.services.tasks.v1.Tasks"),
    ("transfer", "containerd.services.transfer.v1.Transfer"),
    ("version", "containerd.services.version.v1.Version"),
];

/// Whether a plugin, named by type and id, can be disabled.
pub(crate) fn is_separable(name: &str) -> bool {
    let is_it = |(kind, id): (&str, &str)| {
        kind == GRPC && service(id).is_some()
            || BELOW_SERVICES.contains(&(kind, id))
            || (kind, id) == RESTART
            || (kind, id) == (SNAPSHOTTER, snapshot::Native::NAME)
    };
    name.rsplit_once('.').is_some_and(is_it)
}

/// Disabled plugins, by type and id.
#[derive(Clone, Debug, Default)]
pub(crate) struct DisabledPlugins(Vec<(String, String)>);

impl DisabledPlugins {
    /// Those of the names that can be disabled, and the plugins that need them.
    pub(crate) fn of(names: &[String]) -> DisabledPlugins {
        let separable = names.iter().filter(|name| is_separable(name));
        let pairs = separable.filter_map(|name| name.rsplit_once('.'));
        let mut disabled_plugins =
            DisabledPlugins(pairs.map(|(kind, id)| (kind.to_owned(), id.to_owned())).collect());
        let services = PLUGINS.iter().filter(|(kind, _)| *kind == GRPC).flat_map(|(_, ids)| *ids);
        let stands_on_one = |id: &&&str| {
            let requires = REQUIRES.iter().filter(|(kind, ids, _)| *kind == GRPC && ids.contains(id));
            let mut required = requires.flat_map(|(.., kinds)| *kinds);
            required
                .any(|kind| BELOW_SERVICES.iter().any(|(of, id)| of == kind && disabled_plugins.has(of, id)))
        };
        let fallen: Vec<_> =
            services.filter(stands_on_one).map(|id| (GRPC.to_owned(), (*id).to_owned())).collect();
        disabled_plugins.0.extend(fallen);
        disabled_plugins
    }

    pub(crate) fn has(&self, kind: &str, id: &str) -> bool {
        self.0.iter().any(|(of, named)| of == kind && named == id)
    }

    pub(crate) fn restart_monitor(&self) -> bool {
        self.has(RESTART.0, RESTART.1)
    }

    pub(crate) fn native_snapshotter(&self) -> bool {
        self.has(SNAPSHOTTER, snapshot::Native::NAME)
    }

    /// The full names of the disabled services of the API.
    pub(super) fn services(&self) -> impl Iterator<Item = &'static str> {
        self.0.iter().filter(|(kind, _)| kind == GRPC).filter_map(|(_, id)| service(id))
    }
}

fn service(id: &str) -> Option<&'static str> {
    SERVICES.iter().find(|(known, _)| *known == id).map(|(_, name)| *name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_listed_service_can_be_disabled() {
        let ids = PLUGINS.iter().filter(|(kind, _)| *kind == GRPC).flat_map(|(_, ids)| *ids);
        let known: Vec<_> = SERVICES.iter().map(|(id, _)| id).collect();
        assert_eq!(known, ids.collect::<Vec<_>>());
    }

    #[test]
    fn disabling_a_plugin_disables_its_dependents_and_needed_plugins_stay() {
        let services = |name: &str| {
            let mut services: Vec<_> = DisabledPlugins::of(&[name.to_owned()]).services().collect();
            services.sort_unstable();
            services
        };
        assert_eq!(services("io.containerd.grpc.v1.tasks"), ["containerd.services.tasks.v1.Tasks"]);
        assert_eq!(services("io.containerd.transfer.v1.local"), ["containerd.services.transfer.v1.Transfer"]);
        let streams =
            ["containerd.services.streaming.v1.Streaming", "containerd.services.transfer.v1.Transfer"];
        assert_eq!(services("io.containerd.streaming.v1.manager"), streams);
        for needed in
            ["io.containerd.content.v1.content", "io.containerd.gc.v1.scheduler", "io.containerd.grpc.v1.cri"]
        {
            assert!(!is_separable(needed), "{needed}");
            assert!(services(needed).is_empty(), "{needed}");
        }
    }
}
