//! Decodes protobuf messages to JSON by tables of their fields: events and metrics, whose many types are needed here
//! for display only.
//!
//! As Go prints them, empty fields are omitted, and names are those of the `.proto` files.

use std::collections::BTreeMap;

use base64::Engine;
use prost_types::Any;
use serde_json::{Map, Value, json};
use types::Timestamp;

/// The depth of nesting that is shown.
const DEPTH_MAX: usize = 16;

#[derive(Clone, Copy)]
enum Kind {
    Number,
    Flag,
    Text,
    Message(Fields),
    Many(&'static Kind),
    /// A map from string to string.
    Labels,
    Time,
    Any,
}

type Fields = &'static [(u32, &'static str, Kind)];

use Kind::{Any as AnyOf, Flag, Labels, Many, Message, Number, Text, Time};

const NAME_AND_LABELS: Fields = &[(1, "name", Text), (2, "labels", Labels)];
const NAME: Fields = &[(1, "name", Text)];
const CONTAINER: Fields = &[(1, "container_id", Text)];
const MOUNT: Fields =
    &[(1, "type", Text), (2, "source", Text), (3, "target", Text), (4, "options", Many(&Text))];
const IO: Fields = &[(1, "stdin", Text), (2, "stdout", Text), (3, "stderr", Text), (4, "terminal", Flag)];
const RUNTIME: Fields = &[(1, "name", Text), (2, "options", AnyOf)];
const MEMORY_ENTRY: Fields =
    &[(1, "limit", Number), (2, "usage", Number), (3, "max", Number), (4, "failcnt", Number)];
const PIDS: Fields = &[(1, "current", Number), (2, "limit", Number)];
const HUGETLB: Fields =
    &[(1, "usage", Number), (2, "max", Number), (3, "failcnt", Number), (4, "pagesize", Text)];
const BLKIO: Fields =
    &[(1, "op", Text), (2, "device", Text), (3, "major", Number), (4, "minor", Number), (5, "value", Number)];

/// Messages, by the last part of their type URL.
const MESSAGES: &[(&str, Fields)] = &[
    ("NamespaceCreate", NAME_AND_LABELS),
    ("NamespaceUpdate", NAME_AND_LABELS),
    ("NamespaceDelete", NAME),
    ("ImageCreate", NAME_AND_LABELS),
    ("ImageUpdate", NAME_AND_LABELS),
    ("ImageDelete", NAME),
    ("ContainerCreate", &[(1, "id", Text), (2, "image", Text), (3, "runtime", Message(RUNTIME))]),
    (
        "ContainerUpdate",
        &[(1, "id", Text), (2, "image", Text), (3, "labels", Labels), (4, "snapshot_key", Text)],
    ),
    ("ContainerDelete", &[(1, "id", Text)]),
    ("ContentCreate", &[(1, "digest", Text), (2, "size", Number), (3, "mediaType", Text)]),
    ("ContentDelete", &[(1, "digest", Text)]),
    ("SnapshotPrepare", &[(1, "key", Text), (2, "parent", Text), (5, "snapshotter", Text)]),
    ("SnapshotCommit", &[(1, "key", Text), (2, "name", Text), (5, "snapshotter", Text)]),
    ("SnapshotRemove", &[(1, "key", Text), (5, "snapshotter", Text)]),
    (
        "TaskCreate",
        &[
            (1, "container_id", Text),
            (2, "bundle", Text),
            (3, "rootfs", Many(&Message(MOUNT))),
            (4, "io", Message(IO)),
            (5, "checkpoint", Text),
            (6, "pid", Number),
        ],
    ),
    ("TaskStart", &[(1, "container_id", Text), (2, "pid", Number)]),
    (
        "TaskDelete",
        &[
            (1, "container_id", Text),
            (2, "pid", Number),
            (3, "exit_status", Number),
            (4, "exited_at", Time),
            (5, "id", Text),
        ],
    ),
    (
        "TaskExit",
        &[
            (1, "container_id", Text),
            (2, "id", Text),
            (3, "pid", Number),
            (4, "exit_status", Number),
            (5, "exited_at", Time),
        ],
    ),
    ("TaskOOM", CONTAINER),
    ("TaskExecAdded", &[(1, "container_id", Text), (2, "exec_id", Text)]),
    ("TaskExecStarted", &[(1, "container_id", Text), (2, "exec_id", Text), (3, "pid", Number)]),
    ("TaskPaused", CONTAINER),
    ("TaskResumed", CONTAINER),
    ("TaskCheckpointed", &[(1, "container_id", Text), (2, "checkpoint", Text)]),
    ("SandboxCreate", &[(1, "sandbox_id", Text)]),
    ("SandboxStart", &[(1, "sandbox_id", Text)]),
    ("SandboxExit", &[(1, "sandbox_id", Text), (2, "exit_status", Number), (3, "exited_at", Time)]),
];

const METRICS_V1: Fields = &[
    (1, "hugetlb", Many(&Message(HUGETLB))),
    (2, "pids", Message(PIDS)),
    (
        3,
        "cpu",
        Message(&[
            (
                1,
                "usage",
                Message(&[
                    (1, "total", Number),
                    (2, "kernel", Number),
                    (3, "user", Number),
                    (4, "per_cpu", Many(&Number)),
                ]),
            ),
            (
                2,
                "throttling",
                Message(&[
                    (1, "periods", Number),
                    (2, "throttled_periods", Number),
                    (3, "throttled_time", Number),
                ]),
            ),
        ]),
    ),
    (
        4,
        "memory",
        Message(&[
            (1, "cache", Number),
            (2, "rss", Number),
            (3, "rss_huge", Number),
            (4, "mapped_file", Number),
            (5, "dirty", Number),
            (6, "writeback", Number),
            (7, "pg_pg_in", Number),
            (8, "pg_pg_out", Number),
            (9, "pg_fault", Number),
            (10, "pg_maj_fault", Number),
            (11, "inactive_anon", Number),
            (12, "active_anon", Number),
            (13, "inactive_file", Number),
            (14, "active_file", Number),
            (15, "unevictable", Number),
            (16, "hierarchical_memory_limit", Number),
            (17, "hierarchical_swap_limit", Number),
            (18, "total_cache", Number),
            (19, "total_rss", Number),
            (33, "usage", Message(MEMORY_ENTRY)),
            (34, "swap", Message(MEMORY_ENTRY)),
            (35, "kernel", Message(MEMORY_ENTRY)),
            (36, "kernel_tcp", Message(MEMORY_ENTRY)),
        ]),
    ),
    (
        5,
        "blkio",
        Message(&[
            (1, "io_service_bytes_recursive", Many(&Message(BLKIO))),
            (2, "io_serviced_recursive", Many(&Message(BLKIO))),
        ]),
    ),
];

const METRICS_V2: Fields = &[
    (1, "pids", Message(PIDS)),
    (
        2,
        "cpu",
        Message(&[
            (1, "usage_usec", Number),
            (2, "user_usec", Number),
            (3, "system_usec", Number),
            (4, "nr_periods", Number),
            (5, "nr_throttled", Number),
            (6, "throttled_usec", Number),
        ]),
    ),
    (
        4,
        "memory",
        Message(&[
            (1, "anon", Number),
            (2, "file", Number),
            (3, "kernel_stack", Number),
            (4, "slab", Number),
            (5, "sock", Number),
            (6, "shmem", Number),
            (11, "inactive_anon", Number),
            (12, "active_anon", Number),
            (13, "inactive_file", Number),
            (14, "active_file", Number),
            (18, "pgfault", Number),
            (19, "pgmajfault", Number),
            (32, "usage", Number),
            (33, "usage_limit", Number),
            (34, "swap_usage", Number),
            (35, "swap_limit", Number),
        ]),
    ),
    (
        6,
        "io",
        Message(&[(
            1,
            "usage",
            Many(&Message(&[
                (1, "major", Number),
                (2, "minor", Number),
                (3, "rbytes", Number),
                (4, "wbytes", Number),
                (5, "rios", Number),
                (6, "wios", Number),
            ])),
        )]),
    ),
    (
        8,
        "memory_events",
        Message(&[
            (1, "low", Number),
            (2, "high", Number),
            (3, "max", Number),
            (4, "oom", Number),
            (5, "oom_kill", Number),
        ]),
    ),
];

/// An `Any` as JSON: the decoded message if its type is known, otherwise its bytes.
pub(super) fn any(any: &Any) -> Value {
    decoded(any, 0)
}

fn decoded(any: &Any, depth: usize) -> Value {
    let unknown =
        || json!({"type_url": any.type_url, "value": base64::prelude::BASE64_STANDARD.encode(&any.value)});
    let name = any.type_url.rsplit(['.', '/']).next().unwrap_or_default();
    let fields = match any.type_url.trim_start_matches("types.containerd.io/") {
        url if url.ends_with("io.containerd.cgroups.v1.Metrics") => METRICS_V1,
        url if url.ends_with("io.containerd.cgroups.v2.Metrics") => METRICS_V2,
        // Go encodes types that are no protobuf messages as JSON.
        url if url.starts_with("opencontainers/") => {
            return serde_json::from_slice(&any.value).unwrap_or_else(|_| unknown());
        }
        _ => match MESSAGES.iter().find(|(known, _)| *known == name) {
            Some((_, fields)) => fields,
            None => return unknown(),
        },
    };
    message(&any.value, fields, depth).map_or_else(unknown, Value::Object)
}

fn message(mut bytes: &[u8], fields: Fields, depth: usize) -> Option<Map<String, Value>> {
    if depth > DEPTH_MAX {
        return None;
    }
    let mut shown = Map::new();
    while !bytes.is_empty() {
        let key = varint(&mut bytes)?;
        let raw = match key & 7 {
            0 => Raw::Number(varint(&mut bytes)?),
            1 => Raw::Number(u64::from_le_bytes(take(&mut bytes, 8)?.try_into().ok()?)),
            2 => {
                let len = usize::try_from(varint(&mut bytes)?).ok()?;
                Raw::Bytes(take(&mut bytes, len)?)
            }
            5 => Raw::Number(u32::from_le_bytes(take(&mut bytes, 4)?.try_into().ok()?).into()),
            _ => return None,
        };
        let number = u32::try_from(key >> 3).ok()?;
        if let Some((_, name, kind)) = fields.iter().find(|(known, ..)| *known == number) {
            put(&mut shown, name, *kind, raw, depth)?;
        }
    }
    Some(shown)
}

enum Raw<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

fn put(shown: &mut Map<String, Value>, name: &str, kind: Kind, raw: Raw<'_>, depth: usize) -> Option<()> {
    match (kind, raw) {
        (Many(Number), Raw::Bytes(mut packed)) => {
            let list = shown.entry(name).or_insert_with(|| Value::Array(Vec::new())).as_array_mut()?;
            while !packed.is_empty() {
                list.push(varint(&mut packed)?.into());
            }
        }
        (Many(inner), raw) => {
            let one = value(*inner, raw, depth)?;
            shown.entry(name).or_insert_with(|| Value::Array(Vec::new())).as_array_mut()?.push(one);
        }
        (Labels, Raw::Bytes(entry)) => {
            let entry = message(entry, &[(1, "k", Text), (2, "v", Text)], depth + 1)?;
            let part = |key: &str| entry.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
            let map = shown.entry(name).or_insert_with(|| Value::Object(Map::new())).as_object_mut()?;
            map.insert(part("k"), part("v").into());
        }
        (kind, raw) => drop(shown.insert(name.to_owned(), value(kind, raw, depth)?)),
    }
    Some(())
}

fn value(kind: Kind, raw: Raw<'_>, depth: usize) -> Option<Value> {
    Some(match (kind, raw) {
        (Number, Raw::Number(number)) => number.into(),
        (Flag, Raw::Number(number)) => (number != 0).into(),
        (Text, Raw::Bytes(bytes)) => String::from_utf8_lossy(bytes).into(),
        (Message(fields), Raw::Bytes(bytes)) => Value::Object(message(bytes, fields, depth + 1)?),
        (Time, Raw::Bytes(bytes)) => {
            let time: prost_types::Timestamp = prost::Message::decode(bytes).ok()?;
            let time =
                Timestamp { seconds: time.seconds, nanos: u32::try_from(time.nanos).ok()? }.to_string();
            super::table::shortest(&time).into()
        }
        (AnyOf, Raw::Bytes(bytes)) => decoded(&prost::Message::decode(bytes).ok()?, depth + 1),
        _ => return None,
    })
}

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    prost::encoding::decode_varint(bytes).ok()
}

fn take<'a>(bytes: &mut &'a [u8], len: usize) -> Option<&'a [u8]> {
    let (taken, rest) = bytes.split_at_checked(len)?;
    *bytes = rest;
    Some(taken)
}

/// A map as Go encodes it: a nil map is `null`.
pub(super) fn map_or_null(map: &BTreeMap<String, Value>) -> Value {
    if map.is_empty() { Value::Null } else { json!(map) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use api::grpc::event::*;
    use api::shim::events::*;
    use api::shim::pack;
    use api::shim::types::Mount;
    use prost::Message as _;

    #[test]
    fn events_read_as_go_prints_them() {
        let io = Some(TaskIo { stdout: "/out".into(), terminal: true, ..TaskIo::default() });
        let created = TaskCreate { container_id: "c".into(), io, pid: 7, ..TaskCreate::default() };
        assert_eq!(
            any(&pack(&created)),
            json!({"container_id": "c", "io": {"stdout": "/out", "terminal": true}, "pid": 7})
        );
        let exited_at = Some(prost_types::Timestamp { seconds: 1_800_000_000, nanos: 5_000_000 });
        let exit = TaskExit { container_id: "c".into(), id: "e".into(), pid: 7, exit_status: 137, exited_at };
        assert_eq!(
            any(&pack(&exit)),
            json!({"container_id": "c", "id": "e", "pid": 7, "exit_status": 137, "exited_at": "2027-01-15T08:00:00.005Z"})
        );
        let container = ContainerCreate { id: "c".into(), ..ContainerCreate::default() };
        assert_eq!(any(&pack(&container)), json!({"id": "c"}));
        let spec = Any {
            type_url: "types.containerd.io/opencontainers/runtime-spec/1/Spec".into(),
            value: b"{\"a\":1}".to_vec(),
        };
        assert_eq!(any(&spec), json!({"a": 1}));
        let unknown = Any { type_url: "x.Y".into(), value: b"abc".to_vec() };
        assert_eq!(any(&unknown), json!({"type_url": "x.Y", "value": "YWJj"}));
    }

    /// Every message with each of its fields. A new field does not compile until it is added here.
    #[test]
    fn the_schema_has_every_field_of_events() {
        fn text() -> (String, Value) {
            ("text".into(), json!("text"))
        }
        fn number<N: From<u8>>() -> (N, Value) {
            (7.into(), json!(7))
        }
        fn labels() -> (BTreeMap<String, String>, Value) {
            ([("a".into(), "b".into())].into(), json!({"a": "b"}))
        }
        fn time() -> (Option<prost_types::Timestamp>, Value) {
            let at = prost_types::Timestamp { seconds: 1_800_000_000, nanos: 0 };
            (Some(at), json!("2027-01-15T08:00:00Z"))
        }
        macro_rules! whole {
            ($name:ident { $($field:ident: $part:expr),* $(,)? }) => {{
                let mut shown = Map::new();
                let message = $name {
                    $($field: {
                        let (value, json) = $part;
                        shown.insert(stringify!($field).to_owned(), json);
                        value
                    }),*
                };
                (pack(&message), Value::Object(shown))
            }};
        }
        let runtime = ContainerRuntime { name: "r".into(), options: None };
        let mount = Mount {
            r#type: "bind".into(),
            source: "/a".into(),
            target: "/b".into(),
            options: vec!["ro".into()],
        };
        let shown = json!([{"type": "bind", "source": "/a", "target": "/b", "options": ["ro"]}]);
        let io = TaskIo { stdin: "0".into(), stdout: "1".into(), stderr: "2".into(), terminal: true };
        let streams = json!({"stdin": "0", "stdout": "1", "stderr": "2", "terminal": true});
        let cases = [
            whole!(NamespaceCreate { name: text(), labels: labels() }),
            whole!(NamespaceUpdate { name: text(), labels: labels() }),
            whole!(NamespaceDelete { name: text() }),
            whole!(ImageCreate { name: text(), labels: labels() }),
            whole!(ImageUpdate { name: text(), labels: labels() }),
            whole!(ImageDelete { name: text() }),
            whole!(ContainerCreate {
                id: text(),
                image: text(),
                runtime: (Some(runtime), json!({"name": "r"}))
            }),
            whole!(ContainerUpdate { id: text(), image: text(), labels: labels(), snapshot_key: text() }),
            whole!(ContainerDelete { id: text() }),
            // The only field whose name on the wire is in camel case.
            (
                pack(&ContentCreate { digest: "d".into(), size: 7, media_type: "m".into() }),
                json!({"digest": "d", "size": 7, "mediaType": "m"}),
            ),
            whole!(ContentDelete { digest: text() }),
            whole!(SnapshotPrepare { key: text(), parent: text(), snapshotter: text() }),
            whole!(SnapshotCommit { key: text(), name: text(), snapshotter: text() }),
            whole!(SnapshotRemove { key: text(), snapshotter: text() }),
            whole!(TaskCreate {
                container_id: text(),
                bundle: text(),
                rootfs: (vec![mount], shown),
                io: (Some(io), streams),
                checkpoint: text(),
                pid: number(),
            }),
            whole!(TaskStart { container_id: text(), pid: number() }),
            whole!(TaskDelete {
                container_id: text(),
                pid: number(),
                exit_status: number(),
                exited_at: time(),
                id: text()
            }),
            whole!(TaskExit {
                container_id: text(),
                id: text(),
                pid: number(),
                exit_status: number(),
                exited_at: time()
            }),
            whole!(TaskOom { container_id: text() }),
            whole!(TaskExecAdded { container_id: text(), exec_id: text() }),
            whole!(TaskExecStarted { container_id: text(), exec_id: text(), pid: number() }),
            whole!(TaskPaused { container_id: text() }),
            whole!(TaskResumed { container_id: text() }),
            whole!(TaskCheckpointed { container_id: text(), checkpoint: text() }),
            whole!(SandboxCreate { sandbox_id: text() }),
            whole!(SandboxStart { sandbox_id: text() }),
            whole!(SandboxExit { sandbox_id: text(), exit_status: number(), exited_at: time() }),
        ];
        for (message, shown) in &cases {
            assert_eq!(any(message), *shown, "{}", message.type_url);
        }
        assert_eq!(cases.len(), MESSAGES.len());
    }

    #[test]
    fn broken_messages_are_shown_as_bytes() {
        let whole = TaskExit { container_id: "container".into(), ..TaskExit::default() }.encode_to_vec();
        for len in 1..whole.len() {
            let broken = Any { type_url: "containerd.events.TaskExit".into(), value: whole[..len].to_vec() };
            assert!(any(&broken)["value"].is_string(), "{len}");
        }
    }
}
