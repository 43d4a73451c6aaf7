//! Real servers from a real registry (redis, nginx, python), reached from the host and from other containers.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use testkit::{Daemon, Registry, eventually, images, run};
use types::Digest;

use crate::real_tree::{Seen, see};

/// One registry with all images, for all tests of this file.
fn registry() -> &'static Registry {
    static REGISTRY: OnceLock<Registry> = OnceLock::new();
    REGISTRY.get_or_init(|| {
        let registry = Registry::start();
        registry.push(&images::busybox(), images::TAG, "busybox");
        registry.push(&images::redis(), images::TAG, "redis");
        registry.push(&images::nginx(), images::TAG, "nginx");
        registry.push(&images::python(), images::TAG, "python");
        registry
    })
}

fn free_port() -> u16 {
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("loopback has a free port");
    listener.local_addr().expect("a bound socket has an address").port()
}

#[test]
fn redis_answers_ping_on_a_published_port() {
    let daemon = Daemon::start();
    let image = format!("{}/redis", registry().host());
    let port = free_port().to_string();
    let id = daemon.hoist(["run", "-d", "--name", "cache", "-p", &format!("{port}:6379"), &image]).ok();
    assert_eq!(id.text().len(), 64, "{id}");
    eventually("redis answers PING", || {
        let answer = run(Command::new("redis-cli").args(["-h", "127.0.0.1", "-p", &port, "ping"]));
        (answer.text() == "PONG").then_some(())
    });
    let listed = daemon.hoist(["ps", "--format", "{{.Names}} {{.Ports}}"]).ok();
    assert!(
        listed.stdout.contains("cache") && listed.stdout.contains(&format!("{port}->6379/tcp")),
        "{listed}"
    );
    assert!(daemon.hoist(["logs", "cache"]).ok().stdout.contains("Ready to accept connections"));
    let inside = daemon.hoist(["exec", "cache", "redis-cli", "ping"]).ok();
    assert_eq!(inside.text(), "PONG");
    daemon.hoist(["stop", "cache"]).ok();
    assert!(TcpStream::connect(format!("127.0.0.1:{port}")).is_err(), "the port is free after stop");
    daemon.hoist(["rm", "cache"]).ok();
}

#[test]
fn nginx_serves_a_page() {
    let daemon = Daemon::start();
    let image = format!("{}/nginx", registry().host());
    let port = free_port();
    daemon.hoist(["run", "-d", "--name", "web", "-p", &format!("127.0.0.1:{port}:80"), &image]).ok();
    let page = eventually("nginx serves its page", || get(port));
    assert!(page.contains("served by nginx"), "{page}");
    daemon.hoist(["rm", "-f", "web"]).ok();
}

fn get(port: u16) -> Option<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    stream.write_all(b"GET / HTTP/1.0\r\nHost: localhost\r\n\r\n").ok()?;
    let mut page = String::new();
    stream.read_to_string(&mut page).ok()?;
    page.contains("200 OK").then_some(page)
}

#[test]
fn python_reads_a_volume_and_writes_back() {
    let daemon = Daemon::start();
    let image = format!("{}/python", registry().host());
    let shared = tempfile::TempDir::new().expect("a temporary directory");
    fs::write(shared.path().join("in"), "40").expect("a writable directory");
    let program = "open('/shared/out','w').write(str(int(open('/shared/in').read()) + 2))";
    let volume = format!("{}:/shared", shared.path().display());
    daemon.hoist(["run", "--rm", "-v", &volume, &image, "python3", "-c", program]).ok();
    assert_eq!(fs::read_to_string(shared.path().join("out")).expect("python wrote it"), "42");
    let read_only = format!("{volume}:ro");
    daemon.hoist(["run", "--rm", "-v", &read_only, &image, "python3", "-c", program]).expect_code(1);
}

#[test]
fn python_runs_on_a_terminal() {
    let daemon = Daemon::start();
    let image = format!("{}/python", registry().host());
    daemon.hoist(["pull", "-q", &image]).ok();
    // `script` runs the command on a terminal, and types its own standard input there.
    let command = format!(
        "HOIST_ADDRESS={} {} run --rm -it {image} python3 -c \
         'import os,sys; print(sys.stdin.isatty(), os.isatty(1), input())'",
        daemon.socket().display(),
        testkit::hoist_program().display(),
    );
    let mut child = Command::new("script")
        .args(["--quiet", "--return", "--command", &command, "/dev/null"])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .expect("script is part of Debian");
    child.stdin.as_mut().expect("piped").write_all(b"typed\n").expect("script reads");
    let output = child.wait_with_output().expect("a child of ours");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && text.contains("True True typed"), "{text}");
}

#[test]
fn containers_reach_each_other_and_the_host_through_the_bridge() {
    let daemon = Daemon::start();
    let image = format!("{}/busybox", registry().host());
    let serve = "mkdir /www; echo from the neighbour > /www/index.html; exec httpd -f -p 80 -h /www";
    daemon.hoist(["run", "-d", "--name", "server", &image, "sh", "-c", serve]).ok();
    let address = daemon.hoist(["inspect", "-f", "{{.NetworkSettings.IPAddress}}", "server"]).ok();
    let url = format!("http://{}/", address.text());
    let page = eventually("the neighbour serves", || {
        let page = daemon.hoist(["run", "--rm", &image, "wget", "-q", "-O", "-", &url]);
        (page.code == 0).then_some(page.stdout)
    });
    assert_eq!(page.trim(), "from the neighbour");
    let alone = daemon.hoist(["run", "--rm", "--network", "none", &image, "ip", "-o", "link"]).ok();
    assert_eq!(alone.stdout.lines().count(), 1, "only loopback\n{alone}");
    daemon.hoist(["rm", "-f", "server"]).ok();
}

/// System calls that the default seccomp profile refuses, and some that it allows.
#[test]
fn python_meets_the_filter() {
    let daemon = Daemon::start();
    let image = format!("{}/python", registry().host());
    let program = "import socket, errno\nfor family in (38, 40, socket.AF_INET):\n    try:\n        \
                   socket.socket(family, socket.SOCK_STREAM).close(); print(family, 'open')\n    \
                   except OSError as error: print(family, errno.errorcode[error.errno])\n";
    let seen = daemon.hoist(["run", "--rm", &image, "python3", "-c", program]).ok();
    assert_eq!(seen.stdout, "38 EPERM\n40 EPERM\n2 open\n");
}

/// What an image contains: the metadata of its files, and the digests of their contents.
fn shown(daemon: &Daemon, image: &str) -> BTreeMap<PathBuf, (Seen, Option<Digest>)> {
    let at = daemon.dir().join("shown");
    fs::create_dir_all(&at).expect("a writable directory");
    daemon.hoist([OsStr::new("image"), OsStr::new("mount"), OsStr::new(image), at.as_os_str()]).ok();
    let mut seen = see(&at);
    // No layer says when the root was modified.
    seen.remove(Path::new(""));
    let with_digest = |(name, seen): (PathBuf, Seen)| {
        let digest = seen.len.map(|_| Digest::of(&fs::read(at.join(&name)).expect("a file")));
        (name, (seen, digest))
    };
    let shown = seen.into_iter().map(with_digest).collect();
    daemon.hoist([OsStr::new("image"), OsStr::new("unmount"), at.as_os_str()]).ok();
    shown
}

/// With layers as directories and as archives: every blob and layer has its digest, all files are the same, and the
/// programs run.
#[test]
fn images_of_real_programs_are_whole_in_either_form() {
    let programs: [(&str, &[&str], &str); 3] = [
        ("redis", &["--version"], "Redis server v="),
        ("nginx", &["nginx", "-v"], "nginx version: nginx/"),
        ("python", &["python3", "-c", "import os; print(os.name, 6 * 7)"], "posix 42"),
    ];
    let daemons = ["archives", "directories"]
        .map(|form| Daemon::start_with(&[], &format!("[snapshots]\nlayers = {form:?}\n")));
    for (name, command, said) in programs {
        let image = format!("{}/{name}", registry().host());
        let [archives, directories] = daemons.each_ref().map(|daemon| {
            daemon.hoist(["pull", "-q", &image]).ok();
            let verified = daemon.hoist(["image", "verify", &image]).ok();
            assert!(verified.stdout.contains("0 mended, 0 broken"), "{verified}");
            let run = ["run", "--rm", "--network", "none", &image];
            let ran = daemon.hoist([&run[..], command].concat()).ok();
            assert!(format!("{}{}", ran.stdout, ran.stderr).contains(said), "{ran}");
            shown(daemon, &image)
        });
        assert!(archives.len() > 100, "{image}: {} files are too few", archives.len());
        assert!(archives.keys().eq(directories.keys()), "{image}: one has files that the other has not");
        for (path, seen) in &archives {
            assert_eq!(directories.get(path), Some(seen), "{image}: {}", path.display());
        }
    }
}
