//! The walls between crates: which crate may depend on which.
//!
//! Dependencies point down. Every crate above `types` and `stdx` may use them, so the table does not repeat them. A
//! crate or a dependency that is not in the table fails the test.

/// Rank, crate, and the crates of this workspace that it may name in `[dependencies]`.
const WALLS: &[(u8, &str, &[&str])] = &[
    (0, "stdx", &[]),
    (0, "types", &[]),
    (0, "ttrpc", &[]),
    (0, "api", &["ttrpc"]),
    (0, "bolt", &[]),
    (1, "cdi", &[]),
    (0, "h2_authority", &[]),
    (1, "linux", &[]),
    (1, "kv", &[]),
    (1, "events", &[]),
    (1, "client", &["api"]),
    (1, "erofs", &[]),
    (1, "inflate", &[]),
    (1, "recompress", &[]),
    (2, "content", &["linux", "recompress"]),
    (2, "snapshot", &["kv", "linux", "erofs"]),
    (2, "metadata", &["kv", "events", "content", "snapshot"]),
    (3, "mounts", &["linux", "metadata"]),
    (3, "image", &["content"]),
    (3, "diff", &["linux", "erofs", "inflate"]),
    (3, "registry", &[]),
    (3, "policy", &[]),
    (
        4,
        "transfer",
        &["content", "snapshot", "metadata", "image", "diff", "registry", "policy", "events", "linux"],
    ),
    (5, "runtime", &["linux"]),
    (5, "shim", &["api", "ttrpc", "linux", "runtime"]),
    (5, "task", &["api", "ttrpc", "linux", "events"]),
    (5, "network", &["linux"]),
    (
        6,
        "engine",
        &[
            "task", "transfer", "metadata", "image", "snapshot", "content", "network", "events", "linux",
            "api", "diff", "registry", "cdi",
        ],
    ),
    (
        7,
        "daemon",
        &[
            "api",
            "ttrpc",
            "h2_authority",
            "bolt",
            "linux",
            "kv",
            "events",
            "content",
            "snapshot",
            "metadata",
            "image",
            "diff",
            "registry",
            "policy",
            "transfer",
            "task",
            "network",
            "engine",
            "client",
            "mounts",
            "cdi",
        ],
    ),
    (7, "cli", &["client", "api", "cdi", "image", "linux", "registry", "diff"]),
    (8, "hello", &["linux"]),
    (8, "hoist", &["cli", "daemon", "linux", "runtime"]),
    (
        9,
        "fuzzed",
        &[
            "h2_authority",
            "bolt",
            "cdi",
            "content",
            "diff",
            "erofs",
            "image",
            "kv",
            "metadata",
            "policy",
            "recompress",
            "registry",
            "snapshot",
            "transfer",
            "ttrpc",
        ],
    ),
    (9, "testkit", &["client", "api", "content", "diff", "snapshot", "ttrpc", "linux"]),
    (9, "systest", &["testkit", "client", "api", "ttrpc", "linux"]),
    (9, "bench", &["testkit", "client", "api", "linux", "runtime", "diff"]),
    (9, "xtask", &[]),
];

/// Crates that every crate above them may use.
const EVERYWHERE: &[&str] = &["types", "stdx"];

#[test]
fn dependencies_point_down() {
    let metadata = cargo_metadata::MetadataCommand::new().no_deps().exec().expect("cargo metadata runs");
    let ours: Vec<&str> = metadata.packages.iter().map(|package| package.name.as_str()).collect();
    let mut broken = Vec::new();
    for package in &metadata.packages {
        let name = package.name.as_str();
        let Some((rank, _, allowed)) = WALLS.iter().find(|(_, known, _)| *known == name) else {
            broken.push(format!("{name} is not in the table of crates/xtask/src/walls.rs"));
            continue;
        };
        for dependency in &package.dependencies {
            let used = dependency.name.as_str();
            let product =
                dependency.kind == cargo_metadata::DependencyKind::Normal && dependency.path.is_some();
            if !product || !ours.contains(&used) {
                continue;
            }
            let below = WALLS.iter().any(|(other, known, _)| *known == used && other <= rank);
            if !below || !(EVERYWHERE.contains(&used) || allowed.contains(&used)) {
                broken.push(format!("{name} may not use {used}"));
            }
        }
    }
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

#[test]
fn every_row_of_the_table_is_a_crate() {
    let metadata = cargo_metadata::MetadataCommand::new().no_deps().exec().expect("cargo metadata runs");
    for (_, name, _) in WALLS {
        assert!(metadata.packages.iter().any(|package| package.name.as_str() == *name), "{name} is no crate");
    }
}
