//! Tests of the extension's on-disk format, against `tests/data/record.json`: each version must read what earlier ones
//! wrote. This includes [`Create`], which is also a message of the API: renaming one of its fields would lose it in all
//! existing containers.
//!
//! A new field needs a default, is added to the file, and keeps its name and meaning from then on.

use std::collections::BTreeMap;

use api::engine::{Device, Dns, Extras, Health, Log, Mount, Port, Streams, Ulimit};
use serde_json::Value;

use super::*;

const STORED: &str = include_str!("../../tests/data/record.json");

fn stored() -> Value {
    serde_json::from_str(STORED).expect("JSON")
}

fn words(text: &str) -> Vec<String> {
    text.split(' ').map(str::to_owned).collect()
}

fn map(key: &str, value: &str) -> BTreeMap<String, String> {
    BTreeMap::from([(key.to_owned(), value.to_owned())])
}

fn time(text: &str) -> Timestamp {
    text.parse().expect("a time")
}

/// Every field has a distinct value, and none its default.
fn extension() -> Extension {
    Extension {
        name: "web".into(),
        create: create(),
        image: "registry.example/app:1".into(),
        image_digest: "sha256:00".into(),
        platform: "linux/arm64".into(),
        command: words("/entry serve --all"),
        stop_signal: "SIGINT".into(),
        health: Some(Healthcheck {
            test: words("CMD probe"),
            interval: 11,
            timeout: 12,
            start_period: 13,
            start_interval: 14,
            retries: 15,
        }),
        started: Some(time("2026-01-02T03:04:05Z")),
        exit: Some(ExitRecord { code: 137, at: time("2026-01-02T03:04:06Z"), oom_killed: true }),
        restarts: 21,
        short_runs: 22,
        stopped_by_hand: true,
        paused_for_copy: true,
        resolv_conf: "sha256:01".into(),
        own_volumes: words("made-for-web"),
    }
}

fn create() -> Create {
    Create {
        image: "app:1".into(),
        platform: Some("linux/amd64".into()),
        snapshotter: Some("native".into()),
        name: Some("web-asked".into()),
        command: words("serve --all"),
        entrypoint: Some("/entry".into()),
        env: words("A=b"),
        workdir: Some("/work".into()),
        user: Some("1000:1000".into()),
        hostname: Some("host-of-web".into()),
        tty: true,
        interactive: true,
        stdin_once: true,
        auto_remove: true,
        read_only: true,
        privileged: true,
        cap_add: words("NET_ADMIN"),
        cap_drop: words("MKNOD"),
        memory: Some(64 << 20),
        milli_cpus: Some(1500),
        pids_limit: Some(100),
        mounts: vec![Mount {
            kind: "volume".into(),
            source: "data".into(),
            target: "/data".into(),
            read_only: true,
            options: words("nocopy"),
            make_source: true,
        }],
        network: "bridge".into(),
        ports: vec![Port {
            host_ip: "127.0.0.1".into(),
            host_port: Some(8000),
            host_port_last: Some(8010),
            container_port: 80,
            protocol: "tcp".into(),
        }],
        publish_all: true,
        restart: Restart::OnFailure(3),
        labels: map("label", "of-web"),
        extras: extras(),
        start: true,
        streams: Streams { stdin: "/in".into(), stdout: "/out".into(), stderr: "/err".into() },
        called_at: Some(1_000_000_000),
    }
}

fn extras() -> Extras {
    Extras {
        ulimits: vec![Ulimit { name: "nofile".into(), soft: Some(1024), hard: None }],
        shm_bytes: Some(1 << 20),
        sysctls: map("net.core.somaxconn", "64"),
        devices: vec![Device {
            source: "/dev/null".into(),
            target: "/dev/nothing".into(),
            access: "rw".into(),
        }],
        cdi: words("vendor.example/class=one"),
        pid: "host".into(),
        ipc: "private".into(),
        security: words("no-new-privileges"),
        uts: "private".into(),
        domainname: "example.org".into(),
        annotations: map("note", "for-hooks"),
        cgroup_parent: "/slice".into(),
        device_rules: vec!["c 1:3 rwm".into()],
        swappiness: Some(60),
        oom_kill_disable: true,
        mac_address: "02:00:00:00:00:01".into(),
        runtime: "io.containerd.hoist.v2".into(),
        oom_score_adj: Some(-5),
        cpu_shares: Some(512),
        cpu_period: Some(50_000),
        cpu_quota: Some(25_000),
        cpuset: "0-1".into(),
        cpuset_mems: "0".into(),
        blkio_weight: Some(300),
        memory_reservation: Some(32 << 20),
        memory_swap: Some(128 << 20),
        stop_signal: Some("SIGQUIT".into()),
        hosts: vec![("other".into(), "192.0.2.1".into())],
        dns: Dns { servers: words("192.0.2.53"), search: words("example.net"), options: words("ndots:2") },
        init: true,
        health: Some(Health {
            is_off: true,
            command: Some("check".into()),
            interval: 1,
            timeout: 2,
            start_period: 3,
            start_interval: 4,
            retries: 5,
        }),
        groups: words("audio"),
        exposed: words("90/udp"),
        stop_timeout: Some(7),
        volumes_from: words("other:ro"),
        log: Log { driver: "local".into(), options: map("max-size", "1m") },
    }
}

#[test]
fn a_written_record_has_the_stored_format() {
    assert_eq!(serde_json::to_value(extension()).unwrap(), stored());
}

#[test]
fn what_is_stored_is_read_field_by_field() {
    let read: Extension = serde_json::from_str(STORED).unwrap();
    // A field that is not read would be written as its default.
    assert_eq!(serde_json::to_value(&read).unwrap(), stored());
    assert_eq!(read.create.extras, extras());
    assert_eq!(format!("{read:?}"), format!("{:?}", extension()));
}

/// A record of the first version has only these fields.
#[test]
fn fields_missing_in_an_early_record_get_defaults() {
    let early = serde_json::json!({
        "name": "web", "create": {"image": "app:1"}, "image": "app:1", "image_digest": "sha256:00",
        "command": ["serve"], "stop_signal": "SIGTERM",
    });
    let read: Extension = serde_json::from_value(early).unwrap();
    assert_eq!((read.create.image.as_str(), read.create.restart), ("app:1", Restart::No));
    assert!(read.create.extras == Extras::default() && read.create.network.is_empty());
    assert!(read.started.is_none() && read.exit.is_none() && read.health.is_none());
    assert!(read.platform.is_empty() && read.resolv_conf.is_empty() && read.own_volumes.is_empty());
    assert!(!read.stopped_by_hand && !read.paused_for_copy && read.restarts == 0 && read.short_runs == 0);
}
