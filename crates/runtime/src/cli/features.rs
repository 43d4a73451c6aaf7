//! The features of this runtime (runtime-spec `features.md`), taken from the tables that the code itself uses.

use linux::ns::NsKind;
use serde_json::{Value, json};
use types::spec::runtime::VERSION;

use crate::checkpoint::CONFIG_ANNOTATION;
use crate::hooks;
use crate::scheduling::{MEMORY_FLAGS, MEMORY_MODES};

/// The document that `features` prints.
pub fn features() -> Value {
    let namespaces: Vec<&str> = NsKind::ALL.iter().map(|kind| kind.name()).collect();
    let words = |table: &[(&'static str, u32)]| table.iter().map(|(word, _)| *word).collect::<Vec<_>>();
    json!({
        "ociVersionMin": "1.0.0",
        "ociVersionMax": VERSION,
        "hooks": hooks::NAMES,
        "mountOptions": linux::mount::option_words(),
        "linux": {
            "namespaces": namespaces,
            "capabilities": linux::cap::all_names(),
            "cgroup": {"v1": true, "v2": true, "systemd": true, "systemdUser": true, "rdma": true},
            "seccomp": {
                "enabled": true,
                "actions": linux::seccomp::ACTIONS.map(|(word, _)| word),
                "operators": linux::seccomp::operators(),
                "archs": linux::seccomp::architecture_names(),
                "knownFlags": linux::seccomp::FLAGS.map(|(word, _)| word),
                "supportedFlags": linux::seccomp::FLAGS.map(|(word, _)| word),
            },
            // These say whether the runtime supports them, not whether this host's kernel does.
            "apparmor": {"enabled": true},
            "selinux": {"enabled": true},
            "intelRdt": {"enabled": true, "schemata": true, "monitoring": true},
            "memoryPolicy": {"modes": words(&MEMORY_MODES), "flags": words(&MEMORY_FLAGS)},
            "mountExtensions": {"idmap": {"enabled": true}},
            "netDevices": {"enabled": true},
        },
        // containerd checks for this annotation before it offers checkpoints to its clients.
        "annotations": {"org.opencontainers.runc.checkpoint.enabled": "true"},
        // The first names a file by which criu can be made to execute programs. The second is a prefix: each annotation
        // that begins with it sets a property of the container's systemd unit.
        "potentiallyUnsafeConfigAnnotations": [CONFIG_ANNOTATION, linux::cgroup::UNIT_PROPERTY_ANNOTATIONS],
    })
}
