//! Flags of checkpoint and restore, by the real criu in the guest of `guest.rs`: page servers and lazy pages, external
//! resources that are kept, security labels, cgroups.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::{MetadataExt, symlink};
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use api::shim::runc::CheckpointOptions;
use api::shim::task;
use api::shim::types::Status;
use linux::cgroup::Cgroup;
use serde_json::{Value, json};
use tempfile::TempDir;
use testkit::{ShimHost, eventually, run};
use types::ErrorKind;

use crate::activation::Supervisor;
use crate::checkpoint::{Counter, End, criu_works, limit_of_pids, logs, packed, quiet, state};
use crate::labels::{Profile, has_apparmor};
use crate::runtime_bundle::{Runtime, add_mount, bundle, script};

/// A process of the test, killed when dropped.
struct Beside(Child);

impl Beside {
    /// Starts a command, and waits for a byte on its standard output, by which it says that it is ready.
    fn start(command: &mut Command) -> Beside {
        let errors = File::create("/dev/null").expect("a device");
        let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(errors).spawn();
        let mut child = child.expect("it starts");
        let ready = child.stdout.as_mut().expect("piped").read(&mut [0]);
        assert_eq!(ready.expect("a pipe"), 1, "{command:?} ended before it was ready: {:?}", child.wait());
        Beside(child)
    }

    /// Waits for the process's own end.
    #[track_caller]
    fn end(mut self) {
        let status = self.0.wait().expect("a child of ours");
        assert!(status.success(), "{status}");
    }
}

impl Drop for Beside {
    fn drop(&mut self) {
        // The process may have ended.
        let _ended = self.0.kill().and_then(|()| self.0.wait());
    }
}

/// A free TCP port.
fn port() -> String {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a network");
    listener.local_addr().expect("bound").port().to_string()
}

fn has_pages(images: &Path) -> bool {
    let names = fs::read_dir(images).expect("made").flatten().map(|entry| entry.file_name());
    names.into_iter().any(|name| name.to_string_lossy().starts_with("pages-"))
}

#[test]
fn memory_goes_to_a_page_server() {
    if !criu_works() {
        return;
    }
    for runtime in Runtime::both() {
        let counter = Counter::new(|_| {});
        let id = runtime.id("paged");
        let _end = End(&runtime, &id);
        counter.run(&runtime, &id);
        let (images, work, pages) =
            (counter.images("images"), counter.images("work"), counter.images("pages"));
        let port = port();
        fs::create_dir(&pages).expect("writable");
        let mut server = Command::new("criu");
        server.args(["page-server", "--address", "127.0.0.1", "--port", &port, "--images-dir", &pages]);
        let server = Beside::start(server.args(["--status-fd", "1"]));
        let to = format!("127.0.0.1:{port}");
        let words = ["checkpoint", "--image-path", &images, "--work-path", &work, "--page-server", &to, &id];
        let saved = runtime.run(&words);
        assert_eq!(saved.code, 0, "{}: {saved}\n{}", runtime.name, logs(&words));
        server.end();
        assert!(has_pages(Path::new(&pages)) && !has_pages(Path::new(&images)), "{}", runtime.name);
        // A restore needs the pages and the other images in one directory.
        for page in fs::read_dir(&pages).expect("made").flatten() {
            fs::copy(page.path(), Path::new(&images).join(page.file_name())).expect("writable");
        }
        let before = counter.count();
        fs::write(counter.bundle.path().join("rootfs/count"), "0").expect("a writable root");
        quiet(
            &runtime,
            &["restore", "-d", "--bundle", &counter.path, "--image-path", &images, "--work-path", &work, &id],
        );
        assert!(counter.wait_beyond(0) >= before, "{}: it goes on", runtime.name);
        assert_eq!(counter.begun(), 1, "{}: it did not begin anew", runtime.name);
    }
}

/// The checkpointed process keeps its memory until a restore elsewhere has fetched all of it (lazy pages).
#[test]
fn memory_comes_when_it_is_needed() {
    if !criu_works() {
        return;
    }
    for runtime in Runtime::both() {
        let name = runtime.name;
        let counter = Counter::new(|_| {});
        let (id, again) = (runtime.id("lazy"), runtime.id("lazy"));
        let _ends = (End(&runtime, &id), End(&runtime, &again));
        counter.run(&runtime, &id);
        let (images, work) = (counter.images("images"), counter.images("work"));
        let (fetched, port) = (counter.images("fetched"), port());
        fs::create_dir(&fetched).expect("writable");
        let from = format!("127.0.0.1:{port}");
        let mut checkpoint = runtime.command(&["checkpoint", "--lazy-pages", "--page-server", &from]);
        checkpoint.args(["--status-fd", "1", "--image-path", &images, "--work-path", &work, &id]);
        let checkpoint = Beside::start(&mut checkpoint);
        let before = counter.count();
        fs::write(counter.bundle.path().join("rootfs/count"), "0").expect("a writable root");
        let mut fetcher = Command::new("criu");
        fetcher.args(["lazy-pages", "--page-server", "--address", "127.0.0.1", "--port", &port]);
        fetcher.args(["--images-dir", &images, "--work-dir", &fetched, "--status-fd", "1"]);
        let fetcher = Beside::start(&mut fetcher);
        let words = ["--bundle", &counter.path, "--image-path", &images, "--work-path", &fetched, &again];
        quiet(&runtime, &[&["restore", "-d", "--lazy-pages"], &words[..]].concat());
        assert!(counter.wait_beyond(0) >= before, "{name}: it goes on");
        assert_eq!(counter.begun(), 1, "{name}: it did not begin anew");
        fetcher.end();
        checkpoint.end();
        assert_eq!(state(&runtime, &again)["status"], "running", "{name}");
        counter.wait_beyond(counter.count());
    }
}

/// An open file whose name was removed, while another link to it is left.
#[test]
fn files_whose_name_is_gone_are_kept_under_another() {
    if !criu_works() {
        return;
    }
    let runtime = Runtime::ours();
    let program = "open my $f, '<', '/named' or die; link '/named', '/other' or die; unlink '/named' or die;
                   open my $s, '>', '/said'; syswrite $s, \"up\\n\"; sleep 1 until -e '/go';
                   my $line = <$f>; syswrite $s, $line; sleep 1000";
    let bundle = with_perl(program, |_| {});
    let root = bundle.path().join("rootfs");
    fs::write(root.join("named"), "of the file\n").expect("a writable root");
    let path = bundle.path().display().to_string();
    let [images, work] = ["images", "work"].map(|name| bundle.path().join(name).display().to_string());
    let id = runtime.id("renamed");
    let _end = End(&runtime, &id);
    quiet(&runtime, &["run", "-d", "--bundle", &path, &id]);
    let said = || fs::read_to_string(root.join("said")).unwrap_or_default();
    eventually("the program is up", || (said() == "up\n").then_some(()));
    let words = ["checkpoint", "--image-path", &images, "--work-path", &work, &id];
    let refused = runtime.run(&words);
    assert_ne!(refused.code, 0, "{refused}");
    let log = fs::read_to_string(Path::new(&work).join("dump.log")).expect("criu's log");
    assert!(log.contains("link-remap"), "{log}");
    if Path::new(&images).exists() {
        fs::remove_dir_all(&images).expect("a directory of ours");
    }
    let saved = runtime.run(&[&words[..1], &["--link-remap", "--tcp-skip-in-flight"], &words[1..]].concat());
    assert_eq!(saved.code, 0, "{saved}\n{}", logs(&words));
    fs::write(root.join("go"), "").expect("a writable root");
    let words = ["restore", "-d", "--bundle", &path, "--image-path", &images, "--work-path", &work, &id];
    quiet(&runtime, &words);
    eventually("it reads on", || (said() == "up\nof the file\n").then_some(()));
}

/// Pages that a later image has too are freed in the earlier one (`--auto-dedup`).
#[test]
fn memory_that_is_saved_anew_is_taken_out_of_the_image_before() {
    if !criu_works() {
        return;
    }
    for runtime in Runtime::both() {
        let name = runtime.name;
        let counter = Counter::new(|_| {});
        let id = runtime.id("thin");
        let _end = End(&runtime, &id);
        counter.run(&runtime, &id);
        let (first, second, work) =
            (counter.images("first"), counter.images("second"), counter.images("work"));
        let words = ["checkpoint", "--pre-dump", "--image-path", &first, "--work-path", &work, &id];
        let saved = runtime.run(&words);
        assert_eq!(saved.code, 0, "{name}: {saved}\n{}", logs(&words));
        let before = room_of_pages(&first);
        counter.wait_beyond(counter.count());
        let words = ["checkpoint", "--auto-dedup", "--parent-path", "../first", "--image-path", &second];
        let saved = runtime.run(&[&words[..], &["--work-path", &work, &id]].concat());
        assert_eq!(saved.code, 0, "{name}: {saved}\n{}", logs(&[&work]));
        let after = room_of_pages(&first);
        assert!(after < before, "{name}: {after} blocks of {before}");
        let number = counter.count();
        let words =
            ["restore", "-d", "--bundle", &counter.path, "--image-path", &second, "--work-path", &work];
        quiet(&runtime, &[&words[..], &[&id]].concat());
        counter.wait_beyond(number);
    }
}

/// Disk blocks of the memory pages in a directory of images.
fn room_of_pages(images: &str) -> u64 {
    let entries = fs::read_dir(images).expect("made").flatten();
    let pages = entries.filter(|entry| entry.file_name().to_string_lossy().starts_with("pages-"));
    pages.map(|entry| entry.metadata().expect("it is there").blocks()).sum()
}

/// A container whose program is a script for the guest's perl, and writes its results to `/said`.
fn with_perl(text: &str, change: impl Fn(&mut Value)) -> TempDir {
    let bundle = bundle(|spec| {
        spec["process"]["args"] = json!(["/usr/bin/perl", "-e", text]);
        add_mount(
            spec,
            json!({"destination": "/usr", "type": "bind", "source": "/usr", "options": ["rbind", "ro"]}),
        );
        change(spec);
    });
    for name in ["lib", "lib64"] {
        symlink(format!("usr/{name}"), bundle.path().join("rootfs").join(name)).expect("writable");
    }
    bundle
}

/// Runs the bundle, and checkpoints and restores it. Without the flag the checkpoint must fail and the container go on;
/// with it, the restored container must write what `after` looks for. `prepare` prepares the host for a container and
/// for its restore.
fn check_kept(
    bundle: &TempDir,
    flag: &str,
    refusal: &str,
    prepare: impl Fn(),
    after: impl Fn(&Runtime, &str, &str),
) {
    let path = bundle.path().display().to_string();
    let said = bundle.path().join("rootfs/said");
    let read = || fs::read_to_string(&said).unwrap_or_default();
    for runtime in Runtime::both() {
        let name = runtime.name;
        let _ = fs::remove_file(&said);
        let (id, images, work) =
            (runtime.id("kept"), format!("{path}/images-{name}"), format!("{path}/work-{name}"));
        let _end = End(&runtime, &id);
        prepare();
        quiet(&runtime, &["run", "-d", "--bundle", &path, &id]);
        eventually("it has begun", || (read().lines().count() > 2).then_some(()));
        let words = ["checkpoint", "--image-path", &images, "--work-path", &work, &id];
        let refused = runtime.run(&words);
        assert_ne!(refused.code, 0, "{name} {flag}: {refused}");
        let log = fs::read_to_string(Path::new(&work).join("dump.log")).expect("criu has written it");
        assert!(log.contains(refusal), "{name} {flag}: {}", logs(&words));
        assert_eq!(state(&runtime, &id)["status"], "running", "{name} {flag}");
        let lines = read().lines().count();
        eventually("it goes on as it was", || (read().lines().count() > lines).then_some(()));
        fs::remove_dir_all(&images).expect("made by criu");
        let saved = runtime.run(&[&words[..1], &[flag], &words[1..]].concat());
        assert_eq!(saved.code, 0, "{name} {flag}: {saved}\n{}", logs(&words));
        prepare();
        let lines = read().lines().count();
        let words =
            ["restore", "-d", flag, "--bundle", &path, "--image-path", &images, "--work-path", &work, &id];
        quiet(&runtime, &words);
        eventually("it goes on where it was", || (read().lines().count() > lines + 2).then_some(()));
        after(&runtime, &id, &read());
        runtime.run(&["delete", "--force", &id]).ok();
    }
}

/// criu's images have no keyrings, yet the restored container has its own.
#[test]
fn who_enters_what_was_restored_is_in_its_keyring() {
    if !criu_works() {
        return;
    }
    let bundle =
        with_perl("$| = 1; open SAID, '>', '/said'; syswrite SAID, \"here\n\"; sleep 1 while 1", |_| {});
    let path = bundle.path().display().to_string();
    let runtime = Runtime::ours();
    let (id, images) = (runtime.id("keys"), format!("{path}/images"));
    let _end = End(&runtime, &id);
    quiet(&runtime, &["run", "-d", "--bundle", &path, &id]);
    eventually("it has begun", || bundle.path().join("rootfs/said").exists().then_some(()));
    let words = ["checkpoint", "--image-path", &images, &id];
    assert_eq!(runtime.run(&words).code, 0, "{}", logs(&words));
    quiet(&runtime, &["restore", "-d", "--bundle", &path, "--image-path", &images, &id]);
    // keyctl(KEYCTL_GET_KEYRING_ID, KEY_SPEC_SESSION_KEYRING, 0)
    let ask = ["/usr/bin/perl", "-e", "print syscall(250, 0, -3, 0)"];
    let inside = || runtime.run(&[&["exec", &id], &ask[..]].concat()).ok().stdout;
    let first = inside();
    assert_eq!(inside(), first, "what was restored keeps it while nobody enters");
    assert_ne!(run(Command::new(ask[0]).args(&ask[1..])).ok().stdout, first);
}

#[test]
fn locks_are_kept() {
    if !criu_works() {
        return;
    }
    let bundle = with_perl(
        "$| = 1; open LOCK, '>', '/lock'; flock LOCK, 2; open SAID, '>>', '/said'; \
         while (1) { syswrite SAID, \"has it\\n\"; select undef, undef, undef, 0.1 }",
        |_| {},
    );
    check_kept(
        &bundle,
        "--file-locks",
        "lock",
        || {},
        |runtime, id, _| {
            let attempt = "open LOCK, '>', '/lock'; exit(flock(LOCK, 6) ? 0 : 7)";
            let refused = runtime.run(&["exec", id, "/usr/bin/perl", "-e", attempt]);
            assert_eq!(refused.code, 7, "{}: it is taken: {refused}", runtime.name);
        },
    );
}

/// Both ends of the connection are in the container, whose network namespace is a joined one.
#[test]
fn connections_are_kept() {
    if !criu_works() {
        return;
    }
    let network = format!("hoist-tcp-{}", std::process::id());
    // A checkpoint leaves the network namespace without traffic, so that the peer does not see the end of the
    // connection.
    let make_anew = || {
        run(Command::new("ip").args(["netns", "del", &network]));
        run(Command::new("ip").args(["netns", "add", &network])).ok();
        run(Command::new("ip").args(["-n", &network, "link", "set", "lo", "up"])).ok();
    };
    let bundle = bundle(|spec| {
        script(
            spec,
            "sleep 1000 | busybox nc -l -p 7000 >> /said & until busybox grep -q :1B58 /proc/net/tcp /proc/net/tcp6; do sleep 0.1; done; \
             i=0; while true; do i=$((i+1)); echo $i; sleep 0.1; done | busybox nc 127.0.0.1 7000",
        );
        let namespaces = spec["linux"]["namespaces"].as_array_mut().expect("runc writes namespaces");
        let own =
            namespaces.iter_mut().find(|namespace| namespace["type"] == "network").expect("one of networks");
        own["path"] = json!(format!("/run/netns/{network}"));
    });
    check_kept(&bundle, "--tcp-established", "Connected TCP socket", make_anew, |runtime, _, said| {
        let numbers: Vec<u32> = said.lines().filter_map(|line| line.parse().ok()).collect();
        assert!(
            numbers.windows(2).all(|pair| pair[1] == pair[0] + 1),
            "{}: nothing is lost: {numbers:?}",
            runtime.name
        );
    });
    run(Command::new("ip").args(["netns", "del", &network])).ok();
}

#[test]
fn sockets_that_lead_outside_are_kept() {
    if !criu_works() {
        return;
    }
    let outside = TempDir::new().expect("a temporary directory");
    let socket = UnixDatagram::bind(outside.path().join("log")).expect("a free name");
    socket.set_nonblocking(true).expect("a socket of ours");
    // The container's sends do not wait for room in the queue of this socket.
    let socket_path = outside.path().join("log");
    let bundle = with_perl(
        &format!(
            "use Socket; socket LOG, PF_UNIX, SOCK_DGRAM, 0; connect LOG, pack_sockaddr_un('{}'); \
             open SAID, '>>', '/said'; \
             while (1) {{ my $sent = send LOG, 'here', MSG_DONTWAIT; \
             syswrite SAID, defined $sent || $! == 11 ? \"sent\\n\" : \"lost: $!\\n\"; select undef, undef, undef, 0.1 }}",
            socket_path.display()
        ),
        |spec| {
            // The kernel names a socket's peer only in the same network namespace.
            let namespaces = spec["linux"]["namespaces"].as_array_mut().expect("a list");
            namespaces.retain(|namespace| namespace["type"] != "network");
            add_mount(
                spec,
                json!({"destination": outside.path(), "type": "bind", "source": outside.path(), "options": ["bind"]}),
            );
        },
    );
    check_kept(
        &bundle,
        "--ext-unix-sk",
        "socket",
        || {},
        |runtime, _, said| {
            assert!(!said.contains("lost"), "{}: {said}", runtime.name);
            while socket.recv(&mut [0; 16]).is_ok() {}
            eventually("it is heard outside", || socket.recv(&mut [0; 16]).ok());
        },
    );
}

#[test]
fn a_restored_container_gets_another_label() {
    if !criu_works() || !has_apparmor() {
        return;
    }
    let (first, other) = (Profile::load("saved", "/secret"), Profile::load("restored", "/hidden"));
    for runtime in Runtime::both() {
        // Without an open file: the second restore would not find one whose name a checkpoint had removed.
        let counter = Counter::new(|spec| {
            script(spec, "echo 3 > /count; exec sleep 1000");
            spec["process"]["apparmorProfile"] = json!(first.name);
        });
        let id = runtime.id("labelled");
        let _end = End(&runtime, &id);
        counter.run(&runtime, &id);
        let (images, work) = (counter.images("images"), counter.images("work"));
        let words = ["checkpoint", "--image-path", &images, "--work-path", &work, &id];
        let saved = runtime.run(&words);
        assert_eq!(saved.code, 0, "{}: {saved}\n{}", runtime.name, logs(&words));
        let given = format!("apparmor:{}", other.name);
        for (flags, label) in [(&[][..], &first.name), (&["--lsm-profile", &given], &other.name)] {
            let words = ["--bundle", &counter.path, "--image-path", &images, "--work-path", &work, &id];
            quiet(&runtime, &[&["restore", "-d"], flags, &words[..]].concat());
            let pid = state(&runtime, &id)["pid"].clone();
            let found = fs::read_to_string(format!("/proc/{pid}/attr/current")).expect("it lives");
            assert_eq!(found.trim_end(), format!("{label} (enforce)"), "{}", runtime.name);
            runtime.run(&["delete", "--force", &id]).ok();
        }
    }
}

/// The mount of the readiness socket (`NOTIFY_SOCKET`) is in no bundle.
#[test]
fn a_container_that_says_when_it_is_ready_is_saved() {
    if !criu_works() {
        return;
    }
    let bundle = with_perl(
        "$| = 1; use Socket; socket TO, PF_UNIX, SOCK_DGRAM, 0; \
         send TO, 'READY=1', 0, pack_sockaddr_un($ENV{NOTIFY_SOCKET}); close TO; open SAID, '>>', '/said'; \
         while (1) { syswrite SAID, \"on\n\"; select undef, undef, undef, 0.1 }",
        |_| {},
    );
    let path = bundle.path().display().to_string();
    let said = || fs::read_to_string(bundle.path().join("rootfs/said")).unwrap_or_default().lines().count();
    let (runtime, supervisor) = (Runtime::ours(), Supervisor::new());
    let (images, work) = (format!("{path}/images"), format!("{path}/work"));
    let hear = || {
        assert_eq!(supervisor.hear(), "READY=1");
        assert!(supervisor.hear().starts_with("MAINPID="));
        assert_eq!(supervisor.hear(), "BARRIER=1");
    };
    let spawn = |words: &[&str]| {
        let mut command = runtime.command(words);
        command.env("NOTIFY_SOCKET", supervisor.address()).stdout(Stdio::null()).stderr(Stdio::null());
        command.spawn().expect("it runs")
    };
    let id = runtime.id("ready");
    let _end = End(&runtime, &id);
    let mut started = spawn(&["run", "-d", "--bundle", &path, &id]);
    hear();
    assert!(started.wait().expect("a child of ours").success());
    eventually("it has begun", || (said() > 2).then_some(()));
    let words = ["checkpoint", "--image-path", &images, "--work-path", &work, &id];
    let saved = runtime.run(&words);
    assert_eq!(saved.code, 0, "{saved}\n{}", logs(&words));
    for is_awaited in [true, false] {
        let before = said();
        let words = ["restore", "-d", "--bundle", &path, "--image-path", &images, "--work-path", &work, &id];
        if is_awaited {
            let mut restored = spawn(&words);
            hear();
            assert!(restored.wait().expect("a child of ours").success(), "{}", logs(&words));
        } else {
            quiet(&runtime, &words);
        }
        eventually("it goes on", || (said() > before + 2).then_some(()));
        runtime.run(&["delete", "--force", &id]).ok();
    }
}

/// `strict` means into no cgroup that existed before. Debian's runc ignores the word.
#[test]
fn cgroups_are_managed_strictly() {
    if !criu_works() {
        return;
    }
    for runtime in Runtime::both() {
        let counter = Counter::new(|spec| spec["linux"]["resources"]["pids"] = json!({"limit": 77}));
        let id = runtime.id("strict");
        let _end = End(&runtime, &id);
        counter.run(&runtime, &id);
        let (images, work) = (counter.images("images"), counter.images("work"));
        let strictly = ["--manage-cgroups-mode", "strict", "--image-path", &images, "--work-path", &work];
        let saved = runtime.run(&[&["checkpoint"], &strictly[..], &[&id]].concat());
        assert_eq!(saved.code, 0, "{}: {saved}\n{}", runtime.name, logs(&strictly));
        let words = [&["restore", "-d", "--bundle", &counter.path], &strictly[..], &[&id]].concat();
        if runtime.name == "hoist" {
            let other = Cgroup::share(&format!("/{id}")).expect("root may make cgroups");
            runtime.run(&words).expect_code(1).expect_stderr("is there already");
            for tree in other.locations().into_values() {
                let rules = fs::read_to_string(tree.join("devices.list")).unwrap_or_default();
                assert!(matches!(rules.trim(), "" | "a *:* rwm"), "{rules}");
            }
            other.delete().expect("what was there stays");
        }
        quiet(&runtime, &words);
        let pid = state(&runtime, &id)["pid"].clone();
        let cgroup = fs::read_to_string(format!("/proc/{pid}/cgroup")).expect("it lives");
        assert!(cgroup.contains(&id), "{}: {cgroup}", runtime.name);
        assert_eq!(limit_of_pids(&cgroup), "77", "{}", runtime.name);
        runtime.run(&["delete", "--force", &id]).ok();
    }
}

/// In every mode of criu's for cgroups, the restored processes are in the container's cgroup, with its limits; and in a
/// network namespace with nothing but a loopback device.
#[test]
fn a_restored_container_is_in_its_cgroup_and_in_an_empty_network() {
    if !criu_works() {
        return;
    }
    let runtime = Runtime::ours();
    let counter = Counter::new(|spec| spec["linux"]["resources"]["pids"] = json!({"limit": 77}));
    let id = runtime.id("saved");
    let _end = End(&runtime, &id);
    counter.run(&runtime, &id);
    for mode in ["", "soft", "full", "ignore"] {
        let (images, work) = (counter.images(&format!("images-{mode}")), counter.images("work"));
        let words = [
            "checkpoint",
            "--leave-running",
            "--manage-cgroups-mode",
            mode,
            "--empty-ns",
            "network",
            "--image-path",
            &images,
            "--work-path",
            &work,
            &id,
        ];
        let saved = runtime.run(&words);
        assert_eq!(saved.code, 0, "{mode}: {saved}\n{}", logs(&words));
    }
    runtime.run(&["delete", "--force", &id]).ok();
    for mode in ["", "soft", "full", "ignore"] {
        let (images, work) = (counter.images(&format!("images-{mode}")), counter.images("work"));
        let id = runtime.id("restored");
        let _end = End(&runtime, &id);
        let words = [
            "restore",
            "-d",
            "--manage-cgroups-mode",
            mode,
            "--empty-ns",
            "network",
            "--bundle",
            &counter.path,
            "--image-path",
            &images,
            "--work-path",
            &work,
            &id,
        ];
        quiet(&runtime, &words);
        let pid = state(&runtime, &id)["pid"].clone();
        let cgroup = fs::read_to_string(format!("/proc/{pid}/cgroup")).expect("it lives");
        assert!(cgroup.contains(&id), "{mode}: {cgroup}");
        assert_eq!(limit_of_pids(&cgroup), "77", "{mode}");
        let devices = runtime.run(&["exec", &id, "ls", "/sys/class/net"]).ok();
        assert_eq!(devices.text(), "lo", "{mode}");
        runtime.run(&["delete", "--force", &id]).ok();
    }
}

/// A perl script that holds a lock, a connection, and a socket to the outside, and says so.
fn with_ties(outside: &Path) -> String {
    format!(
        "use Socket; $| = 1; open LOCK, '>', '/tmp/lock'; flock LOCK, 2; \
         socket LOG, PF_UNIX, SOCK_DGRAM, 0; connect LOG, pack_sockaddr_un('{}') or die $!; \
         socket NEAR, PF_INET, SOCK_STREAM, 0; bind NEAR, sockaddr_in(0, INADDR_LOOPBACK); listen NEAR, 1; \
         socket FAR, PF_INET, SOCK_STREAM, 0; connect FAR, getsockname NEAR or die $!; accept HERE, NEAR; \
         print \"ready\\n\"; sleep 1 while 1",
        outside.display()
    )
}

/// Options of the shim's call mean what the flags of `checkpoint` mean, with the built-in runtime: each allows one kind
/// of resource, without which the checkpoint fails and the container goes on.
#[test]
fn options_of_the_call_let_pass_what_flags_do() {
    if !criu_works() {
        return;
    }
    let host = ShimHost::new();
    let said = host.dir().join("said");
    let socket = host.dir().join("log");
    let _heard = UnixDatagram::bind(&socket).expect("a free name");
    let task = host
        .container("tied", "")
        .stdout(format!("file://{}", said.display()))
        .with(|container| {
            container.spec["process"]["args"] = json!(["/usr/bin/perl", "-e", with_ties(&socket)]);
            container.spec["root"]["readonly"] = false.into();
            for path in [Path::new("/usr"), Path::new("/lib"), Path::new("/lib64"), host.dir()] {
                let shown =
                    json!({"destination": path, "type": "bind", "source": path, "options": ["rbind"]});
                add_mount(&mut container.spec, shown);
            }
        })
        .run();
    eventually("it has all of them", || {
        fs::read_to_string(&said).is_ok_and(|text| text == "ready\n").then_some(())
    });
    let work = host.dir().join("work");
    let all = CheckpointOptions {
        open_tcp: true,
        external_unix_sockets: true,
        terminal: true,
        file_locks: true,
        empty_namespaces: vec!["network".into()],
        cgroups_mode: "soft".into(),
        work_path: work.display().to_string(),
        ..CheckpointOptions::default()
    };
    let images = host.dir().join("images");
    let checkpoint = |options: &CheckpointOptions| {
        let path = images.display().to_string();
        let request = task::CheckpointTaskRequest { id: task.id.clone(), path, options: packed(options) };
        task.call::<()>("Checkpoint", &request)
    };
    let log = || fs::read_to_string(work.join("dump.log")).unwrap_or_default();
    for (options, refusal) in [
        (CheckpointOptions { open_tcp: false, ..all.clone() }, "Connected TCP socket"),
        (CheckpointOptions { external_unix_sockets: false, ..all.clone() }, "socket"),
        (CheckpointOptions { file_locks: false, ..all.clone() }, "lock"),
    ] {
        let refused = checkpoint(&options).unwrap_err().chain();
        assert!(refused.contains("dump.log") && log().contains(refusal), "{options:?}: {refused}\n{}", log());
        assert_eq!(task.status(""), Status::Running, "{options:?}");
    }
    for (options, name) in [
        (CheckpointOptions { cgroups_mode: "hard".into(), ..all.clone() }, "hard"),
        (CheckpointOptions { empty_namespaces: vec!["pid".into()], ..all.clone() }, "pid"),
    ] {
        let refused = checkpoint(&options).unwrap_err();
        assert!(
            refused.is(ErrorKind::InvalidArgument) && refused.chain().contains(name),
            "{}",
            refused.chain()
        );
    }
    checkpoint(&all).unwrap_or_else(|error| panic!("{}\n{}", error.chain(), log()));
    assert!(has_pages(&images));
    assert_eq!(task.status(""), Status::Running, "`exit` was not asked for");
    checkpoint(&CheckpointOptions { exit: true, ..all })
        .unwrap_or_else(|error| panic!("{}\n{}", error.chain(), log()));
    assert_eq!(task.wait(""), 137, "criu has ended it");
    task.delete("").expect("it has ended");
}
