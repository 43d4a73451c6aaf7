//! What the daemon tells of itself, asked as Prometheus and a person with curl ask.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;

use serde_json::Value;
use testkit::{Daemon, eventually, images};

use crate::cgroups::HIERARCHIES;

fn ask(mut stream: impl Read + Write, path: &str) -> (u16, String) {
    write!(stream, "GET {path} HTTP/1.1\r\nHost: daemon\r\nConnection: close\r\n\r\n")
        .expect("the daemon listens");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("the daemon answers");
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head and a body");
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status");
    (status, body.to_owned())
}

/// The value of a sample whose name and labels have all of these.
fn value(metrics: &str, parts: &[&str]) -> Option<f64> {
    let mut samples = metrics.lines().filter(|line| !line.starts_with('#'));
    let line = samples.find(|line| parts.iter().all(|part| line.contains(part)))?;
    line.rsplit(' ').next()?.parse().ok()
}

#[test]
fn figures_have_the_names_that_dashboards_for_containerd_know() {
    let _hierarchies = HIERARCHIES.read();
    let daemon = Daemon::start_with(&[], "[metrics]\naddress = \"127.0.0.1:0\"\ngrpc_histogram = true\n");
    let address = eventually("metrics are served", || {
        let log = daemon.log();
        let rest = log.split("metrics are served address=").nth(1)?;
        rest.split_whitespace().next().map(str::to_owned)
    });
    let get = |path: &str| ask(TcpStream::connect(&address).expect("the daemon listens"), path);
    daemon.load(&images::busybox_archive());
    daemon.hoist(["run", "-d", "--name", "seen", "--network", "none", "busybox", "sleep", "1000"]).ok();
    let id = daemon.hoist(["inspect", "-f", "{{.Id}}", "seen"]).ok().text().to_owned();
    daemon.ctr(["images", "ls"]).ok();
    daemon.ctr(["containers", "info", "nosuch"]);

    eventually("a collection is counted", || {
        let collections = ["containerd_gc_collections_total{status=\"success\"}"];
        value(&get("/v1/metrics").1, &collections).filter(|count| *count >= 1.0)
    });
    let (status, metrics) = get("/v1/metrics");
    assert_eq!(status, 200);
    let listed = [
        "grpc_method=\"List\"",
        "grpc_service=\"containerd.services.images.v1.Images\"",
        "grpc_type=\"unary\"",
    ];
    let of_images = |name: &str, more: &[&str]| value(&metrics, &[&[name], &listed[..], more].concat());
    assert_eq!(of_images("grpc_server_started_total{", &[]), Some(1.0), "{metrics}");
    assert_eq!(of_images("grpc_server_handled_total{", &["grpc_code=\"OK\""]), Some(1.0), "{metrics}");
    assert_eq!(of_images("grpc_server_handling_seconds_count{", &[]), Some(1.0), "{metrics}");
    let missing = ["grpc_server_handled_total{", "grpc_code=\"NotFound\"", "grpc_method=\"Get\""];
    assert_eq!(value(&metrics, &missing), Some(1.0), "{metrics}");
    assert!(value(&metrics, &["containerd_build_info_total{", "2.3.4+hoist."]).is_some(), "{metrics}");
    assert!(value(&metrics, &["process_resident_memory_bytes"]).is_some(), "{metrics}");
    let container = format!("container_id=\"{id}\"");
    assert!(value(&metrics, &["container_pids_current{", &container]).unwrap_or(0.0) >= 1.0, "{metrics}");
    for family in ["container_memory_", "container_cpu_"] {
        assert!(value(&metrics, &[family, &container]).is_some(), "{family}\n{metrics}");
    }
    assert_eq!(get("/debug/vars").0, 404, "the port shows figures and nothing else");
    daemon.hoist(["rm", "-f", "seen"]).ok();
}

#[test]
fn the_debug_socket_shows_threads_and_memory_to_its_owner_alone() {
    let socket = std::path::PathBuf::from(format!("/tmp/ht-debug-{}.sock", std::process::id()));
    let daemon = Daemon::start_with(&[], &format!("[debug]\naddress = {socket:?}\n"));
    let get = |path: &str| ask(UnixStream::connect(&socket).expect("the daemon listens"), path);
    let (_, threads) = get("/debug/threads");
    let threads: Value = serde_json::from_str(&threads).expect("JSON");
    let names: Vec<&str> =
        threads.as_array().expect("a list").iter().filter_map(|thread| thread["name"].as_str()).collect();
    assert!(names.iter().any(|name| name.starts_with("tokio")), "{names:?}");
    let (_, variables) = get("/debug/vars");
    let variables: Value = serde_json::from_str(&variables).expect("JSON");
    assert!(variables["memory"]["VmRSSBytes"].as_u64().unwrap_or(0) > 1_000_000, "{variables}");
    assert!(get("/v1/metrics").1.contains("process_open_fds"));
    assert_eq!(get("/nosuch").0, 404);
    use std::os::unix::fs::PermissionsExt;
    let mode = std::fs::metadata(&socket).expect("the socket is there").permissions().mode();
    assert_eq!(mode & 0o777, 0o660);
    drop(daemon);
    std::fs::remove_file(&socket).expect("the socket's file is left, as the API's is");
}
