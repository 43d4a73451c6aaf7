//! Metrics and debug endpoints, read as Prometheus and curl read them.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use api::pprof::Profile;
use prost::Message as _;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use testkit::{Containerd, Daemon, eventually, images, run};

use crate::cgroups::HIERARCHIES;

fn ask(mut stream: impl Read + Write, path: &str) -> (u16, String) {
    // HTTP/1.0 has no chunked answers.
    write!(stream, "GET {path} HTTP/1.0\r\nHost: daemon\r\n\r\n").expect("the daemon listens");
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).expect("the daemon answers");
    let answer = String::from_utf8_lossy(&answer);
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head and a body");
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status");
    (status, body.to_owned())
}

/// The value of the sample whose name and labels contain all of these.
fn value(metrics: &str, parts: &[&str]) -> Option<f64> {
    let mut samples = metrics.lines().filter(|line| !line.starts_with('#'));
    let line = samples.find(|line| parts.iter().all(|part| line.contains(part)))?;
    line.rsplit(' ').next()?.parse().ok()
}

/// The address of the daemon's metrics.
fn address_of(daemon: &Daemon) -> String {
    eventually("metrics are served", || {
        let log = daemon.log();
        let rest = log.split("metrics are served address=").nth(1)?;
        rest.split_whitespace().next().map(str::to_owned)
    })
}

#[test]
fn figures_have_the_names_that_dashboards_for_containerd_know() {
    let _hierarchies = HIERARCHIES.read();
    let daemon = Daemon::start_with(&[], "[metrics]\naddress = \"127.0.0.1:0\"\ngrpc_histogram = true\n");
    let address = address_of(&daemon);
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
    assert_eq!(of_images("grpc_server_msg_received_total{", &[]), Some(1.0), "{metrics}");
    assert_eq!(of_images("grpc_server_msg_sent_total{", &[]), Some(1.0), "{metrics}");
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

/// SIGUSR1, with which containerd writes its stacks. Its default action ends a program.
#[test]
fn a_signal_has_the_daemon_say_what_its_threads_do() {
    let daemon = Daemon::start();
    let pid = i32::try_from(daemon.pid()).ok().and_then(Pid::from_raw).expect("a pid");
    kill_process(pid, Signal::USR1).expect("the daemon is a child of ours");
    eventually("the log has the threads", || {
        let log = daemon.log();
        (log.contains("thread: {") && log.contains("waits_in")).then_some(())
    });
    daemon.ctr(["version"]).ok();
}

/// Name, type and label names of each metric family, without those of Go, of the process, and of CRI.
fn families(metrics: &str) -> BTreeSet<String> {
    let mut kinds = BTreeMap::new();
    let mut found = BTreeSet::new();
    for line in metrics.lines() {
        if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' ')) {
            kinds.insert(name, kind);
        }
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let end = line.find(['{', ' ']).expect("a value follows the name");
        let (name, rest) = line.split_at(end);
        if ["go_", "process_", "promhttp_", "containerd_cri_"].iter().any(|prefix| name.starts_with(prefix)) {
            continue;
        }
        let base = ["_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end));
        let kind = kinds.get(name).or_else(|| base.and_then(|base| kinds.get(base)));
        // The label with a container's runtime is in Hoist's metrics and in containerd 2's.
        let labels = rest.split(['{', ',', '}']).filter_map(|label| label.split_once("=\""));
        let labels: BTreeSet<&str> =
            labels.map(|(label, _)| label).filter(|label| *label != "runtime").collect();
        found.insert(format!("{name} {kind:?} {labels:?}"));
    }
    found
}

/// Both daemons measure the same container, in the same cgroup hierarchies.
#[test]
fn families_of_figures_are_containerds() {
    let _hierarchies = HIERARCHIES.read();
    let port =
        TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr()).expect("a free port").port();
    let table = |port: u16| format!("[metrics]\naddress = \"127.0.0.1:{port}\"\ngrpc_histogram = true\n");
    let containerd = Containerd::start_with(None, &table(port))
        .expect("containerd is there; try: apt-get install containerd");
    let daemon = Daemon::start_with(&[], &table(0));
    let get = |address: &str| ask(TcpStream::connect(address).expect("it listens"), "/v1/metrics").1;
    let archive = images::busybox_archive();
    let script = "dd if=/dev/zero of=/written bs=64k count=16; sync; while true; do sleep 1000; done";
    let image = "docker.io/library/busybox:latest";
    let of = |socket: &std::path::Path, id: &str, runtime: &str, address: &str| {
        let ctr = |args: &[&str]| run(&mut Containerd::client(socket, args)).ok();
        ctr(&["images", "import", &archive.display().to_string()]);
        ctr(&[
            "run",
            "-d",
            "--null-io",
            "--runtime",
            runtime,
            "--memory-limit",
            "33554432",
            image,
            id,
            "sh",
            "-c",
            script,
        ]);
        // A process that the OOM killer kills.
        let eats =
            ["tasks", "exec", "--exec-id", "eats", id, "dd", "if=/dev/zero", "of=/dev/null", "bs=256M"];
        run(&mut Containerd::client(socket, eats)).expect_code(137);
        let container = format!("container_id=\"{id}\"");
        eventually("the container has figures", || {
            value(&get(address), &["container_pids_current", &container]).filter(|count| *count > 0.0)
        });
        let metrics = get(address);
        ctr(&["tasks", "rm", "--force", id]);
        families(&metrics)
    };
    let theirs =
        of(&containerd.socket(), "their-figures", "io.containerd.runc.v2", &format!("127.0.0.1:{port}"));
    let ours = of(&daemon.socket(), "our-figures", "io.containerd.hoist.v2", &address_of(&daemon));
    // Hoist does not support NRI.
    let missing: Vec<_> =
        theirs.difference(&ours).filter(|one| !one.starts_with("containerd_nri_")).collect();
    assert!(missing.is_empty(), "missing: {missing:#?}\nours: {ours:#?}");
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

/// As Debian's `ctr` requests it, while the daemon works.
#[test]
fn a_profile_shows_where_the_daemon_spends_its_time() {
    let socket = std::path::PathBuf::from(format!("/tmp/ht-profile-{}.sock", std::process::id()));
    let daemon = Daemon::start_with(&[], &format!("[debug]\naddress = {socket:?}\n"));
    let get = |path: &str| ask(UnixStream::connect(&socket).expect("the daemon listens"), path);
    for refused in ["seconds=0", "seconds=301", "seconds=soon", "seconds="] {
        let (status, why) = get(&format!("/debug/pprof/profile?{refused}"));
        assert_eq!(status, 400, "{refused}: {why}");
        assert!(why.contains("from 1 to 300"), "{why}");
    }
    // The profile of a client that disconnects is ended.
    let status = || get("/debug/pprof/profile?seconds=1").0;
    let left = eventually("one profile is made at a time", || {
        // Either request may be first. If this one is refused, it is sent again.
        let mut long = UnixStream::connect(&socket).expect("the daemon listens");
        long.write_all(b"GET /debug/pprof/profile?seconds=300 HTTP/1.1\r\nhost: x\r\n\r\n")
            .expect("a request");
        (status() == 503).then_some(long)
    });
    drop(left);
    eventually("it is given up", || (status() == 200).then_some(()));

    let stop = AtomicBool::new(false);
    let profile = std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                get("/v1/metrics");
            }
        });
        let words =
            ["pprof", "--debug-socket", socket.to_str().expect("a path in UTF-8"), "profile", "-s", "2s"];
        let output = Command::new("ctr").args(words).output().expect("ctr is installed");
        stop.store(true, Ordering::Relaxed);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Profile::decode(&*output.stdout).expect("a profile")
    });
    let text = |number: i64| profile.string_table[number as usize].as_str();
    assert_eq!(
        (text(profile.sample_type[1].r#type), text(profile.sample_type[1].unit)),
        ("cpu", "nanoseconds")
    );
    assert_eq!((profile.period, profile.duration_nanos), (10_000_000, 2_000_000_000));
    let program = testkit::hoist_program();
    let of_program: Vec<u64> = profile
        .mapping
        .iter()
        .filter(|mapping| std::path::Path::new(text(mapping.filename)) == program)
        .map(|mapping| mapping.id)
        .collect();
    let is_in_program = |id: u64| {
        let location = &profile.location[id as usize - 1];
        of_program.contains(&location.mapping_id)
    };
    let in_program: i64 = profile
        .sample
        .iter()
        .filter(|sample| sample.location_id.iter().all(|id| is_in_program(*id)))
        .map(|sample| sample.value[0])
        .sum();
    assert!(in_program > 0, "{profile:?}");
    let threads: BTreeSet<&str> =
        profile.sample.iter().flat_map(|sample| &sample.label).map(|label| text(label.str)).collect();
    assert!(threads.iter().any(|name| name.starts_with("tokio")), "{threads:?}");
    drop(daemon);
    std::fs::remove_file(&socket).expect("the socket's file is left, as the API's is");
}
