//! Known ways out of a container, each tried for real.
//!
//! Each test repeats an attack (CVE numbers name the reports) and looks for a trace of success on the host, or in what
//! the container saw. A bundle may also be refused, as long as nothing of the host has changed.

mod entering;
mod places;
mod shim;
mod traced;

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::{Value, json};
use tempfile::TempDir;
use testkit::{Daemon, Finished, MountsBelow, eventually, run};

use crate::run_flags::says;
use crate::runtime_bundle::{Runtime, add_mount, bundle, compile, read_spec, read_text, script};
use crate::runtime_spec::map_users;

/// Runs a bundle with a deadline, and returns its output.
#[track_caller]
fn attempt(runtime: &Runtime, bundle: &TempDir) -> Finished {
    let path = bundle.path().display().to_string();
    let done = runtime.run(&["run", "--bundle", &path, &runtime.id("escape")]);
    assert_eq!(runtime.run(&["list", "-q"]).ok().text(), "", "nothing is left\n{done}");
    done
}

pub(crate) fn add_capabilities(spec: &mut Value, names: &[&str]) {
    for set in ["bounding", "effective", "permitted"] {
        let list = spec["process"]["capabilities"][set].as_array_mut().expect("capabilities");
        list.extend(names.iter().map(|name| json!(name)));
    }
}

/// A container that runs until it is dropped.
struct Running<'a> {
    runtime: &'a Runtime,
    id: String,
}

impl<'a> Running<'a> {
    fn start(runtime: &'a Runtime, bundle: &TempDir) -> Running<'a> {
        let id = runtime.id("running");
        let path = bundle.path().display().to_string();
        let output = bundle.path().join("output");
        let output = File::create(output).expect("a writable bundle");
        let mut create = runtime.command(&["run", "--detach", "--bundle", &path, &id]);
        create.stdout(output.try_clone().expect("a file")).stderr(output);
        let status = create.status().expect("it runs");
        assert!(status.success(), "{}", read_text(&bundle.path().join("output")));
        Running { runtime, id }
    }

    #[track_caller]
    fn exec(&self, words: &[&str]) -> Finished {
        self.exec_with(&[], words)
    }

    #[track_caller]
    fn exec_with(&self, flags: &[&str], words: &[&str]) -> Finished {
        self.runtime.run(&[&["exec"], flags, &[&self.id], words].concat())
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.runtime.run(&["delete", "--force", &self.id]);
    }
}

/// CVE-2019-5736: a process of the container opens the program of one that enters it, and writes to it once it no
/// longer runs.
#[test]
fn the_runtimes_program_is_not_written_through_proc() {
    let dir = TempDir::new().expect("a temporary directory");
    // A copy for this test: a program that runs cannot be written to (ETXTBSY).
    let program = dir.path().join("hoist");
    testkit::executable_copy(&testkit::hoist_program(), &program);
    let sum = || run(Command::new("sha256sum").arg(&program)).ok().stdout;
    let before = sum();
    let runtime = Runtime::at(program.clone());
    // Without `CAP_SYS_PTRACE`, which containers lack by default, the container could not open the program at all.
    let bundle = bundle(|spec| {
        add_capabilities(spec, &["CAP_SYS_PTRACE", "CAP_DAC_OVERRIDE"]);
        script(
            spec,
            // A subshell, which ends if the process that it inspects has ended.
            "echo up > /up; while true; do (for p in /proc/[0-9]*; do
               case $(readlink $p/exe) in */busybox|'') continue ;; esac
               exec 3< $p/exe
               echo > /opened
               until test -e /end; do echo overwritten >> /proc/self/fd/3 && echo > /won; echo >> /tries; done
               exit
             done); done 2>/dev/null",
        );
    });
    let rootfs = bundle.path().join("rootfs");
    let running = Running::start(&runtime, &bundle);
    eventually("the attacker is up", || rootfs.join("up").exists().then_some(()));
    // A long search in PATH keeps the process in the container before its exec.
    let path = format!("PATH={}/bin", "/nothing/here:".repeat(3000));
    eventually("the attacker has opened the program", || {
        running.exec_with(&["--env", &path], &["true"]).ok();
        rootfs.join("opened").exists().then_some(())
    });
    // The program does not run any more.
    let tries = || fs::metadata(rootfs.join("tries")).map_or(0, |file| file.len());
    let begin = tries();
    eventually("the attacker has tried", || (tries() > begin + 100).then_some(()));
    assert!(!rootfs.join("won").exists(), "the program was open for writing");
    assert_eq!(sum(), before);
    drop(running);
}

/// As above, with `/proc/self/exe` as the program in the image.
#[test]
fn the_runtimes_program_as_entry_point_is_not_writable() {
    let program = testkit::hoist_program();
    let before = (program.metadata().expect("it is there").size(), read_head(&program));
    let runtime = Runtime::ours();
    let bundle = bundle(|spec| spec["process"]["args"] = json!(["/bin/entry", "--version"]));
    symlink("/proc/self/exe", bundle.path().join("rootfs/bin/entry")).expect("a writable root");
    attempt(&runtime, &bundle);
    assert_eq!((program.metadata().expect("it is there").size(), read_head(&program)), before);
}

fn read_head(path: &Path) -> Vec<u8> {
    use std::io::Read;
    let mut head = Vec::new();
    File::open(path).expect("it is there").take(4096).read_to_end(&mut head).expect("readable");
    head
}

/// CVE-2024-21626: a leaked descriptor of a host's directory, used as the working directory and in the path of the
/// program.
#[test]
fn descriptors_of_the_host_lead_nowhere() {
    let host = TempDir::new().expect("a temporary directory");
    fs::write(host.path().join("secret"), "of the host").expect("writable");
    fs::copy("/bin/busybox", host.path().join("cat")).expect("busybox is installed");
    let runtime = Runtime::ours();
    for fd in 3..24 {
        // As the cwd, directly and by a link in the image.
        for cwd in [format!("/proc/self/fd/{fd}"), "/link".to_owned()] {
            let bundle = bundle(|spec| {
                spec["process"]["cwd"] = json!(cwd);
                spec["process"]["args"] = json!(["cat", "secret", "../../../etc/hostname"]);
            });
            symlink(format!("/proc/self/fd/{fd}"), bundle.path().join("rootfs/link")).expect("writable");
            let done = with_leaked_directory(&runtime, &bundle, host.path());
            assert!(done.code != 0 && done.stdout.is_empty(), "cwd {cwd}, fd {fd}: {done}");
        }
        let bundle = bundle(|spec| {
            spec["process"]["args"] = json!([format!("/proc/self/fd/{fd}/cat"), "/proc/self/cmdline"]);
        });
        let done = with_leaked_directory(&runtime, &bundle, host.path());
        assert!(done.code != 0 && done.stdout.is_empty(), "program by fd {fd}: {done}");
    }
}

/// Runs a bundle with a directory of the host open under every descriptor that a careless runtime could pass on.
fn with_leaked_directory(runtime: &Runtime, bundle: &TempDir, host: &Path) -> Finished {
    let path = bundle.path().display().to_string();
    leak_to(&runtime.command(&["run", "--bundle", &path, &runtime.id("leak")]), host)
}

/// As [`with_leaked_directory`], for any command of the runtime.
fn leak_to(ours: &Command, host: &Path) -> Finished {
    let words: Vec<String> = std::iter::once(ours.get_program())
        .chain(ours.get_args())
        .map(|word| format!("'{}'", word.to_string_lossy()))
        .collect();
    // The shell keeps what it opens open for the program that it executes.
    let open = format!("exec 5<'{0}' 7<'{0}' 9<'{0}'; exec {1}", host.display(), words.join(" "));
    run(Command::new("bash").args(["-c", &open]).stdin(Stdio::null()))
}

#[test]
fn an_exec_gets_no_descriptor_of_the_host_either() {
    let runtime = Runtime::ours();
    let bundle = bundle(|spec| script(spec, "sleep 1000"));
    symlink("/proc/self/fd/7", bundle.path().join("rootfs/link")).expect("a writable root");
    let host = TempDir::new().expect("a temporary directory");
    fs::write(host.path().join("secret"), "of the host").expect("writable");
    fs::copy("/bin/busybox", host.path().join("cat")).expect("busybox is installed");
    let running = Running::start(&runtime, &bundle);
    let leak = |flags: &[&str], words: &[&str]| {
        leak_to(&runtime.command(&[&["exec"], flags, &[&running.id], words].concat()), host.path())
    };
    for fd in 3..24 {
        let cwd = ["--cwd", &format!("/proc/self/fd/{fd}")];
        for words in [&["ls", "../.."][..], &["cat", "secret", "../../../etc/hostname"]] {
            let done = leak(&cwd, words);
            assert!(done.code != 0 && done.stdout.is_empty(), "fd {fd}: {done}");
        }
        for program in ["cat", "../../../../../../../bin/busybox"] {
            let done = leak(&[], &[&format!("/proc/self/fd/{fd}/{program}"), "/proc/self/cmdline"]);
            assert!(done.code != 0 && done.stdout.is_empty(), "program by fd {fd}: {done}");
        }
    }
    assert_ne!(leak(&["--cwd", "/link"], &["true"]).code, 0);
    let open = leak(&[], &["ls", "/proc/self/fd"]).ok();
    // Descriptor 3 is the directory that `ls` reads.
    assert_eq!(open.text().split_whitespace().collect::<Vec<_>>(), ["0", "1", "2", "3"]);
}

/// CVE-2025-31133: paths are masked by a bind mount of the container's `/dev/null`, which may be a link.
#[test]
fn masks_are_not_made_of_what_the_image_calls_null() {
    let runtime = Runtime::ours();
    let change = |spec: &mut Value| {
        // The image's own /dev, with the attacker's files.
        spec["mounts"]
            .as_array_mut()
            .expect("mounts")
            .retain(|mount| !mount["destination"].as_str().is_some_and(|to| to.starts_with("/dev")));
        spec["linux"]["maskedPaths"] = json!(["/proc/timer_list"]);
        script(spec, "cat /proc/timer_list; cat /proc/self/mountinfo");
    };
    for target in ["/proc/sys/kernel/core_pattern", "/proc/sysrq-trigger", "/etc/anything"] {
        let bundle = bundle(change);
        let root = bundle.path().join("rootfs");
        fs::create_dir_all(root.join("dev")).expect("a writable root");
        fs::create_dir_all(root.join("etc")).expect("a writable root");
        fs::write(root.join("etc/anything"), "not null").expect("a writable root");
        symlink(target, root.join("dev/null")).expect("a writable root");
        let done = attempt(&runtime, &bundle);
        assert_ne!(done.code, 0, "{target}: a container without its mask ran\n{done}");
    }
    // While another process swaps the link.
    let bundle = bundle(change);
    let dev = bundle.path().join("rootfs/dev");
    fs::create_dir_all(&dev).expect("a writable root");
    symlink("/proc/sys/kernel/core_pattern", dev.join("evil")).expect("a writable root");
    let race = Race::start(move || {
        let _ = fs::rename(dev.join("evil"), dev.join("null"));
        let _ = fs::remove_file(dev.join("null"));
        let _ = symlink("/proc/sys/kernel/core_pattern", dev.join("evil"));
    });
    until_met(25, || {
        let done = attempt(&runtime, &bundle);
        let mask = done.stdout.lines().find(|line| line.contains(" /proc/timer_list "));
        // The mask is still the null device if the race has removed its file meanwhile.
        let is_masked = mask.is_some_and(|line| line.contains("/dev/null") && !line.contains(" - proc "));
        let is_refused = ["null", "mask /proc/timer_list"].iter().any(|word| done.stderr.contains(word));
        assert!(is_masked || done.code != 0 && is_refused, "{done}");
        done.code != 0
    });
    race.stop();
}

/// Repeats an attempt at least `least` times, until one has met the race and one has not: if all do, or none, the test
/// has shown nothing.
#[track_caller]
fn until_met(least: u32, mut attempt: impl FnMut() -> bool) {
    let (mut met, mut missed) = (0u32, 0u32);
    while met + missed < least || met == 0 || missed == 0 {
        assert!(met + missed < 500, "{met} of 500 attempts met the race");
        if attempt() {
            met += 1;
        } else {
            missed += 1;
        }
    }
    println!("{met} of {} attempts met the race", met + missed);
}

/// Repeats an action on its own thread.
struct Race {
    stop: std::sync::Arc<AtomicBool>,
    thread: std::thread::JoinHandle<()>,
}

impl Race {
    fn start(mut act: impl FnMut() + Send + 'static) -> Race {
        let stop = std::sync::Arc::new(AtomicBool::new(false));
        let asked = std::sync::Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            while !asked.load(Ordering::Relaxed) {
                act();
            }
        });
        Race { stop, thread }
    }

    fn stop(self) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("the thread does not panic");
    }
}

/// CVE-2025-52565: the terminal is bind-mounted on `/dev/console`, which may be a link.
#[test]
fn the_console_is_not_bound_over_what_a_link_names() {
    let runtime = Runtime::ours();
    let bundle = bundle(|spec| {
        spec["process"]["terminal"] = json!(true);
        spec["mounts"].as_array_mut().expect("mounts").retain(|mount| mount["destination"] != "/dev");
        script(spec, "cat /proc/self/mountinfo");
    });
    let dev = bundle.path().join("rootfs/dev");
    fs::create_dir_all(&dev).expect("a writable root");
    symlink("/proc/sysrq-trigger", dev.join("console")).expect("a writable root");
    let done = attempt(&runtime, &bundle);
    assert_ne!(done.code, 0, "{done}");
    done.expect_stderr("console");
    // While another process swaps the link.
    let (link, console) = (dev.join("evil"), dev.join("console"));
    let race = Race::start(move || {
        let _ = fs::remove_file(&console);
        let _ = symlink("/proc/sysrq-trigger", &link);
        let _ = fs::rename(&link, &console);
    });
    until_met(40, || {
        let done = attempt(&runtime, &bundle);
        assert!(done.code == 0 || done.stderr.contains("console"), "{done}");
        // The kernel detaches a mount when the race removes the file under it.
        let terminals = done.stdout.lines().filter(|line| line.contains(" - devpts "));
        let places = terminals.filter_map(|line| line.split(' ').nth(4));
        assert!(places.clone().all(|place| ["/dev/pts", "/dev/console"].contains(&place)), "{done}");
        done.code != 0
    });
    race.stop();
}

/// CVE-2026-88265: the runtime opens null-device streams again inside the container, where the image may have a link
/// instead, to a host's file that is mounted there; the opened file is then chowned to the user.
#[test]
fn streams_are_not_made_of_what_the_image_calls_null() {
    let runtime = Runtime::ours();
    let host = TempDir::new().expect("a temporary directory");
    let victim = host.path().join("victim");
    fs::write(&victim, "of the host").expect("writable");
    let make = || {
        bundle(|spec| {
            spec["mounts"]
                .as_array_mut()
                .expect("mounts")
                .retain(|mount| !mount["destination"].as_str().is_some_and(|to| to.starts_with("/dev")));
            add_mount(
                spec,
                json!({"destination": "/victim", "type": "bind", "source": victim, "options": ["bind"]}),
            );
            spec["linux"]["maskedPaths"] = json!([]);
            spec["process"]["user"] = json!({"uid": 1000, "gid": 1000});
            script(spec, "echo written >&0; echo written >&1; echo written >&2; true");
        })
    };
    let null = || File::options().read(true).write(true).open("/dev/null").expect("the host's");
    let end = |bundle: &TempDir| {
        let path = bundle.path().display().to_string();
        let mut command = runtime.command(&["run", "--bundle", &path, &runtime.id("null")]);
        command.stdin(null()).stdout(null()).stderr(null()).status().expect("it runs")
    };
    // Nothing but the link can keep the container from running.
    let status = end(&make());
    assert!(status.success(), "without a link: {status}");
    let bundle = make();
    let dev = bundle.path().join("rootfs/dev");
    fs::create_dir_all(&dev).expect("a writable root");
    symlink("/victim", dev.join("null")).expect("a writable root");
    // The container may fail to start.
    end(&bundle);
    assert_eq!(read_text(&victim), "of the host");
    assert_eq!(fs::metadata(&victim).expect("it is there").uid(), 0);
}

/// CVE-2026-135844: a huge `/etc/passwd`, in which the runtime looks up its user's home.
#[test]
fn users_of_an_image_are_not_read_without_end() {
    let bundle = bundle(|spec| {
        spec["process"]["env"] = json!(["PATH=/bin"]);
        script(spec, "echo home $HOME");
    });
    let etc = bundle.path().join("rootfs/etc");
    fs::create_dir_all(&etc).expect("a writable root");
    let users = File::create(etc.join("passwd")).expect("a writable root");
    users.set_len(1 << 40).expect("a file that takes no room");
    assert_eq!(attempt(&Runtime::ours(), &bundle).ok().text().trim(), "home /");
}

/// CVE-2019-19921, CVE-2025-52881: the runtime's writes to `/proc` are redirected.
#[test]
fn writes_to_proc_are_not_led_elsewhere() {
    let runtime = Runtime::ours();
    // A /proc that the image provides, with links at the files that the runtime writes.
    let bundle_with = |make: &dyn Fn(&Path)| {
        let bundle = bundle(|spec| {
            spec["mounts"].as_array_mut().expect("mounts").retain(|mount| mount["destination"] != "/proc");
            spec["linux"]["sysctl"] = json!({"net.ipv4.ip_forward": "1"});
            spec["linux"]["maskedPaths"] = json!([]);
            spec["linux"]["readonlyPaths"] = json!([]);
            spec["process"]["oomScoreAdj"] = json!(500);
            script(spec, "true");
        });
        make(&bundle.path().join("rootfs"));
        bundle
    };
    let fake = bundle_with(&|root| {
        fs::create_dir_all(root.join("proc/sys/net/ipv4")).expect("a writable root");
        fs::create_dir_all(root.join("proc/self")).expect("a writable root");
        symlink("/victim", root.join("proc/sys/net/ipv4/ip_forward")).expect("a writable root");
        symlink("/victim", root.join("proc/self/oom_score_adj")).expect("a writable root");
        fs::write(root.join("victim"), "untouched").expect("a writable root");
    });
    attempt(&runtime, &fake).expect_stderr("proc");
    assert_eq!(read_text(&fake.path().join("rootfs/victim")), "untouched");

    // A mount over a file of the real /proc.
    for (source, destination) in [
        ("/victim", "/proc/self/attr/exec"),
        ("/victim", "/proc/sys/net/ipv4/ip_forward"),
        ("/", "/proc/sys"),
        ("/", "/proc/self"),
        ("/", "/proc"),
    ] {
        let bundle = bundle(|spec| {
            add_mount(
                spec,
                json!({"destination": destination, "type": "bind", "source": format!("rootfs{source}"), "options": ["bind"]}),
            );
            spec["linux"]["sysctl"] = json!({"net.ipv4.ip_forward": "1"});
            script(spec, "true");
        });
        fs::write(bundle.path().join("rootfs/victim"), "untouched").expect("a writable root");
        let done = attempt(&runtime, &bundle);
        assert_ne!(done.code, 0, "{destination}: {done}");
        assert_eq!(read_text(&bundle.path().join("rootfs/victim")), "untouched", "{destination}");
    }
    // A /proc that is a link to another directory of the image.
    let linked = bundle(|spec| script(spec, "true"));
    fs::create_dir(linked.path().join("rootfs/elsewhere")).expect("a writable root");
    symlink("elsewhere", linked.path().join("rootfs/proc")).expect("a writable root");
    attempt(&runtime, &linked).expect_stderr("not a directory");
}

/// CVE-2019-16884, CVE-2021-30465, CVE-2023-27561, CVE-2023-28642: mount targets behind links in the image.
#[test]
fn mounts_stay_inside_the_image_whatever_its_links_say() {
    let runtime = Runtime::ours();
    let host = TempDir::new().expect("a temporary directory");
    let victim = host.path().join("victim");
    fs::create_dir(&victim).expect("a writable directory");
    let up = "../".repeat(30);
    for link in [
        victim.display().to_string(),
        format!("{up}{}", victim.display()),
        format!("/proc/1/root{}", victim.display()),
        format!("/proc/self/cwd/{up}{}", victim.display()),
    ] {
        let bundle = bundle(|spec| {
            add_mount(spec, json!({"destination": "/volume", "type": "tmpfs", "source": "tmpfs"}));
            add_mount(
                spec,
                json!({"destination": "/volume/deep/file", "type": "bind", "source": "/etc/hostname", "options": ["bind"]}),
            );
            script(spec, "echo written > /volume/mark; cat /proc/self/mountinfo");
        });
        symlink(&link, bundle.path().join("rootfs/volume")).expect("a writable root");
        attempt(&runtime, &bundle);
        assert_eq!(fs::read_dir(&victim).expect("it is there").count(), 0, "{link}");
        let mounts = fs::read_to_string("/proc/self/mountinfo").expect("proc");
        assert!(!mounts.contains(&*victim.to_string_lossy()), "{link}: mounted on the host");
    }
    // Over /proc, by a link.
    let bundle = bundle(|spec| {
        add_mount(spec, json!({"destination": "/volume", "type": "tmpfs", "source": "tmpfs"}));
        script(spec, "cat /proc/self/mountinfo");
    });
    symlink("/proc/self", bundle.path().join("rootfs/volume")).expect("a writable root");
    let done = attempt(&runtime, &bundle);
    assert_ne!(done.code, 0, "{done}");
}

/// CVE-2026-41579: without a mount at `/dev`, the image's own may be a link.
#[test]
fn devices_are_not_made_where_a_link_leads() {
    let runtime = Runtime::ours();
    let host = TempDir::new().expect("a temporary directory");
    let victim = host.path().join("victim");
    fs::create_dir(&victim).expect("a writable directory");
    let up = "../".repeat(30);
    for link in [
        victim.display().to_string(),
        format!("{up}{}", victim.display()),
        format!("/proc/1/root{}", victim.display()),
        format!("/proc/self/cwd/{up}{}", victim.display()),
    ] {
        for terminal in [false, true] {
            let bundle = bundle(|spec| {
                let mounts = spec["mounts"].as_array_mut().expect("mounts");
                mounts
                    .retain(|mount| !mount["destination"].as_str().is_some_and(|at| at.starts_with("/dev")));
                spec["linux"]["devices"] =
                    json!([{"path": "/dev/deep/more", "type": "c", "major": 1, "minor": 3}]);
                spec["process"]["terminal"] = json!(terminal);
                script(spec, "echo written > /dev/mark; true");
            });
            symlink(&link, bundle.path().join("rootfs/dev")).expect("a writable root");
            // The container may fail to start.
            attempt(&runtime, &bundle);
            assert_eq!(fs::read_dir(&victim).expect("it is there").count(), 0, "{link}");
        }
    }
}

/// CVE-2021-30465, CVE-2024-45310: a mount target is swapped for a link between the check and the mount, so that
/// something is mounted, or created, on the host.
#[test]
fn a_target_that_is_swapped_during_create_leads_nowhere() {
    let runtime = Runtime::ours();
    let host = TempDir::new().expect("a temporary directory");
    let victim = host.path().join("victim");
    fs::create_dir(&victim).expect("a writable directory");
    let bundle = bundle(|spec| {
        let bind = json!(["bind"]);
        add_mount(spec, json!({"destination": "/shared/dir/one", "type": "tmpfs", "source": "tmpfs"}));
        // A file as the target, which is created, and a directory.
        for (name, source) in
            [("file", "/etc/hostname"), ("deep/two", "/etc"), ("deep/file", "/etc/hostname")]
        {
            let destination = format!("/shared/dir/{name}");
            add_mount(
                spec,
                json!({"destination": destination, "type": "bind", "source": source, "options": bind}),
            );
        }
        script(spec, "true");
    });
    let shared = bundle.path().join("rootfs/shared");
    // The path inside the root to which the link leads.
    let inside = bundle.path().join("rootfs").join(victim.strip_prefix("/").expect("an absolute path"));
    fs::create_dir_all(shared.join("dir")).expect("a writable root");
    let up = "../".repeat(30);
    symlink(format!("{up}{}", victim.display()), shared.join("link")).expect("a writable root");
    let race = Race::start(move || {
        let (dir, link, aside) = (shared.join("dir"), shared.join("link"), shared.join("aside"));
        // The runtime may have created a missing directory, which is in the way of later swaps.
        let _ = fs::remove_dir_all(&aside);
        let _ = fs::rename(&dir, &aside);
        let _ = fs::rename(&link, &dir);
        let _ = fs::rename(&dir, &link);
        let _ = fs::rename(&aside, &dir);
    });
    until_met(80, || {
        // The link may lead to a path of that name inside the root.
        let done = attempt(&runtime, &bundle);
        assert!(done.code == 0 || done.stderr.contains("/shared/dir"), "{done}");
        assert_eq!(fs::read_dir(&victim).expect("it is there").count(), 0, "made on the host");
        let mounts = fs::read_to_string("/proc/self/mountinfo").expect("proc");
        assert!(!mounts.contains(&*victim.to_string_lossy()), "mounted on the host");
        done.code != 0 || fs::remove_dir_all(&inside).is_ok()
    });
    race.stop();
}

/// As above, for the source of a bind mount inside the root, where the link leads to nothing.
#[test]
fn a_source_in_the_root_that_is_swapped_during_create_shows_nothing_of_the_host() {
    let runtime = Runtime::ours();
    let host = TempDir::new().expect("a temporary directory");
    fs::write(host.path().join("secret"), "of the host").expect("writable");
    fs::set_permissions(host.path(), fs::Permissions::from_mode(0o755)).expect("ours");
    for with_user in [false, true] {
        let bundle = bundle(|spec| {
            if with_user {
                map_users(spec, &[(0, 100_000, 65_536)]);
            }
            script(spec, "cat /shown/*");
        });
        let shared = bundle.path().join("rootfs/shared");
        let (dir, link) = (shared.join("dir"), shared.join("link"));
        fs::create_dir_all(&dir).expect("a writable root");
        fs::write(dir.join("file"), "of the image").expect("a writable root");
        symlink(host.path(), &link).expect("a writable root");
        let mut spec = read_spec(bundle.path());
        let source = dir.display().to_string();
        add_mount(
            &mut spec,
            json!({"destination": "/shown", "type": "bind", "source": source, "options": ["rbind"]}),
        );
        fs::write(bundle.path().join("config.json"), spec.to_string()).expect("a writable bundle");
        let race = Race::start(move || {
            let exchange = rustix::fs::RenameFlags::EXCHANGE;
            let _ = rustix::fs::renameat_with(rustix::fs::CWD, &dir, rustix::fs::CWD, &link, exchange);
        });
        until_met(40, || {
            let done = attempt(&runtime, &bundle);
            match done.code {
                0 => assert_eq!(done.stdout, "of the image", "{with_user}: {done}"),
                _ => assert!(
                    done.stdout.is_empty() && done.stderr.contains("/shared/dir"),
                    "{with_user}: {done}"
                ),
            }
            done.code != 0
        });
        race.stop();
    }
}

/// What a container mounts in a volume is not mounted on the host, whatever the volume's propagation there.
#[test]
fn mounts_made_inside_are_not_seen_on_the_host() {
    let runtime = Runtime::ours();
    let host = TempDir::new().expect("a temporary directory");
    let _mounts = MountsBelow(host.path().to_owned());
    fs::create_dir(host.path().join("below")).expect("writable");
    run(Command::new("mount").arg("--bind").arg(host.path()).arg(host.path())).ok();
    run(Command::new("mount").arg("--make-shared").arg(host.path())).ok();
    for options in [&["rbind"][..], &["bind"], &["rbind", "rslave"], &["rbind", "rprivate"]] {
        let bundle = bundle(|spec| {
            add_capabilities(spec, &["CAP_SYS_ADMIN"]);
            add_mount(
                spec,
                json!({"destination": "/volume", "type": "bind", "source": host.path(), "options": options}),
            );
            script(spec, "mount -t tmpfs tmpfs /volume/below && touch /volume/below/inside && echo done");
        });
        let done = attempt(&runtime, &bundle);
        let seen = host.path().join("below/inside").exists();
        run(Command::new("umount").arg(host.path().join("below")));
        assert_eq!(done.text(), "done", "{options:?}: {done}");
        assert!(!seen, "{options:?}");
    }
}

/// What the first process writes to `/seen` while others enter. It makes `/up` when it begins, and adds a line to
/// `/rounds` after each look at all processes.
fn what_an_attacker_sees(runtime: &Runtime, bundle: &TempDir) -> String {
    let root = bundle.path().join("rootfs");
    let running = Running::start(runtime, bundle);
    eventually("the attacker is up", || root.join("up").exists().then_some(()));
    let rounds = || fs::metadata(root.join("rounds")).map_or(0, |file| file.len());
    let path = format!("PATH={}/bin", "/nothing/here:".repeat(3000));
    let begin = rounds();
    eventually("the attacker has looked around", || {
        for _ in 0..5 {
            running.exec_with(&["--env", &path], &["true"]).ok();
        }
        (rounds() > begin + 20).then_some(())
    });
    fs::read_to_string(root.join("seen")).unwrap_or_default()
}

/// CVE-2016-9962: the container inspects a process that enters it, and takes its descriptors.
#[test]
fn a_hostile_first_process_does_not_look_into_who_enters() {
    let runtime = Runtime::ours();
    let bundle = bundle(|spec| {
        script(
            spec,
            "echo up > /up; while true; do for p in /proc/[0-9]*; do
               case $p in /proc/1) continue ;; esac
               for what in exe cwd root fd/3 fd/4 fd/5 fd/6 fd/7; do
                 seen=$(readlink $p/$what) || continue
                 case $seen in ''|*/busybox|/|/bin|/dev/*|pipe:*|/proc/*) ;; *) echo \"$what $seen\" >> /seen ;; esac
               done
               dd if=$p/mem of=/dev/null bs=1 count=1 && echo mem >> /seen
             done; echo >> /rounds; done 2>/dev/null",
        );
    });
    // The container was given the output file itself.
    let seen = what_an_attacker_sees(&runtime, &bundle);
    let seen: Vec<&str> = seen.lines().filter(|line| !line.contains("/output")).collect();
    assert!(seen.is_empty(), "{seen:?}");
}

/// Kinds of namespaces: their names in a spec, and in `/proc/PID/ns`.
const NAMESPACES: [(&str, &str); 8] = [
    ("mount", "mnt"),
    ("pid", "pid"),
    ("network", "net"),
    ("ipc", "ipc"),
    ("uts", "uts"),
    ("cgroup", "cgroup"),
    ("user", "user"),
    ("time", "time"),
];

#[test]
fn an_exec_is_in_every_namespace_and_cgroup_of_the_container() {
    let runtime = Runtime::ours();
    // With the namespaces of the default spec, where cgroups are compared by name, and with all kinds.
    for with_all in [false, true] {
        let bundle = bundle(|spec| {
            if with_all {
                let all = NAMESPACES.map(|(kind, _)| json!({"type": kind}));
                spec["linux"]["namespaces"] = json!(all);
                map_users(spec, &[(0, 100_000, 65_536)]);
            }
            script(spec, "sleep 1000");
        });
        let running = Running::start(&runtime, &bundle);
        let look = |process: &str| {
            let links = NAMESPACES.map(|(_, name)| format!("/proc/{process}/ns/{name}")).join(" ");
            let look = format!(
                "for n in {links}; do readlink $n; done; cat /proc/{process}/cgroup; \
                 grep -E '^(Cap|Seccomp:|NoNewPrivs)' /proc/{process}/status"
            );
            running.exec(&["sh", "-c", &look]).ok().stdout
        };
        let own = look("self");
        assert_eq!(look("1"), own);
        for (_, name) in NAMESPACES {
            let link =
                fs::read_link(format!("/proc/self/ns/{name}")).expect("the kernel has such namespaces");
            let is_hosts = own.lines().any(|line| Path::new(line) == link);
            assert!(!(with_all && is_hosts), "{name} is the host's: {own}");
        }
    }
}

/// Setuid programs of volumes and images.
#[test]
fn setuid_files_of_volumes_and_images_give_nothing() {
    let runtime = Runtime::ours();
    let volume = TempDir::new().expect("a temporary directory");
    let suid = volume.path().join("whoami");
    compile("#include <stdio.h>\n#include <unistd.h>\nint main() { printf(\"%d\", geteuid()); }", &suid);
    fs::set_permissions(&suid, fs::Permissions::from_mode(0o4755)).expect("ours");
    fs::set_permissions(volume.path(), fs::Permissions::from_mode(0o755)).expect("ours");
    let check = |no_new_privileges: bool, options: &[&str]| {
        let bundle = bundle(|spec| {
            spec["process"]["user"] = json!({"uid": 1000, "gid": 1000});
            spec["process"]["noNewPrivileges"] = json!(no_new_privileges);
            add_mount(
                spec,
                json!({"destination": "/volume", "type": "bind", "source": volume.path(), "options": options}),
            );
            spec["process"]["args"] = json!(["/volume/whoami"]);
        });
        attempt(&runtime, &bundle).ok().text().to_owned()
    };
    assert_eq!(check(false, &["rbind"]), "0", "the attack works where nothing forbids it");
    assert_eq!(check(false, &["rbind", "nosuid"]), "1000");
    assert_eq!(check(false, &["rbind", "rnosuid"]), "1000");
    assert_eq!(check(true, &["rbind"]), "1000");
}

/// CVE-2022-29162, like CVE-2018-15664: groups and capabilities that the spec does not name.
#[test]
fn groups_and_capabilities_of_the_caller_stay_outside() {
    let runtime = Runtime::ours();
    let bundle = bundle(|spec| {
        script(spec, "id -G; grep -E '^Cap(Inh|Amb)' /proc/self/status; sleep 1000");
        spec["process"]["user"] = json!({"uid": 1000, "gid": 1000});
    });
    let path = bundle.path().display().to_string();
    let id = runtime.id("groups");
    let ours = runtime.command(&["run", "-d", "--bundle", &path, &id]);
    let mut command = Command::new("/usr/bin/setpriv");
    command.args(["--groups", "4242,4343", "--inh-caps", "+chown,+sys_admin"]);
    command.arg(ours.get_program()).args(ours.get_args()).stdin(Stdio::null());
    let output = bundle.path().join("output");
    let file = File::create(&output).expect("a writable bundle");
    assert!(command.stdout(file).status().expect("setpriv is part of Debian").success());
    let _running = Running { runtime: &runtime, id: id.clone() };
    let said = eventually("the container has spoken", || {
        let text = read_text(&output);
        text.contains("CapAmb").then_some(text)
    });
    assert_eq!(said, "1000\nCapInh:\t0000000000000000\nCapAmb:\t0000000000000000");
    // The same for an exec.
    let exec = runtime.command(&["exec", &id, "sh", "-c", "id -G; grep CapInh /proc/self/status"]);
    let mut command = Command::new("/usr/bin/setpriv");
    command.args(["--groups", "4242,4343", "--inh-caps", "+chown,+sys_admin"]);
    command.arg(exec.get_program()).args(exec.get_args()).stdin(Stdio::null());
    assert_eq!(run(&mut command).ok().text(), "1000\nCapInh:\t0000000000000000");
}

/// Like CVE-2014-3499: keys of the caller's session keyring.
#[test]
fn the_session_keyring_is_the_containers_own() {
    let runtime = Runtime::ours();
    let bundle = bundle(|spec| {
        spec["linux"]["maskedPaths"] = json!([]);
        script(spec, "cat /proc/keys");
    });
    let path = bundle.path().display().to_string();
    for (flags, own) in [(&[][..], true), (&["--no-new-keyring"], false)] {
        let id = runtime.id("keyring");
        let keys = runtime.run(&[&["run", "--bundle", &path], flags, &[&id]].concat()).ok();
        assert_eq!(keys.stdout.contains(&format!("_ses.{id}.")), own, "{flags:?} {keys}");
    }
    // An exec is in the session keyring of the first process, not in the caller's.
    let bundle = self::bundle(|spec| {
        spec["linux"]["maskedPaths"] = json!([]);
        script(spec, "/session > /first; sleep 1000");
    });
    let path = bundle.path().display().to_string();
    let (program, first) = (bundle.path().join("rootfs/session"), bundle.path().join("rootfs/first"));
    compile(SESSION, &program);
    let outside = run(&mut Command::new(&program)).ok();
    for (flags, own) in [(&[][..], true), (&["--no-new-keyring"], false)] {
        let id = runtime.id("entered");
        let words = [&["run", "-d", "--bundle", &path], flags, &[&id]].concat();
        assert!(runtime.command(&words).stdout(Stdio::null()).status().expect("it runs").success());
        let _running = Running { runtime: &runtime, id: id.clone() };
        let first = eventually("the first process has spoken", || {
            fs::read_to_string(&first).ok().filter(|text| text.ends_with('\n'))
        });
        fs::remove_file(bundle.path().join("rootfs/first")).expect("just read");
        let entered = runtime.run(&["exec", &id, "/session"]).ok();
        assert_eq!(entered.stdout, first, "{flags:?}");
        assert_eq!(entered.stdout != outside.stdout, own, "{flags:?} {entered}");
        if own {
            // An exec does not change the permissions that the container has set on the keyring.
            runtime.run(&["exec", &id, "/session", "close"]).ok();
            let keys = runtime.run(&["exec", &id, "busybox", "grep", "_ses.", "/proc/keys"]).ok();
            assert!(keys.stdout.contains(" 3f090000 "), "{keys}");
        }
    }
}

/// As after a restore, since criu does not restore keyrings: the first exec makes the keyring.
#[test]
fn those_who_enter_are_in_one_keyring_though_nobody_made_it() {
    let runtime = Runtime::ours();
    let bundle = bundle(|spec| script(spec, "sleep 1000"));
    compile(SESSION, &bundle.path().join("rootfs/session"));
    let running = Running::start(&runtime, &bundle);
    let id = running.id.clone();
    let file = runtime.root().join(&id).join("state.json");
    let mut state: Value = serde_json::from_str(&read_text(&file)).expect("state is JSON");
    state["keyring_name"] = json!(format!("_ses.{id}.another"));
    fs::write(&file, state.to_string()).expect("root may write it");
    let mut first = runtime.command(&["exec", &id, "sh", "-c", "/session; exec sleep 1000"]);
    let mut first = first.stdout(Stdio::piped()).spawn().expect("it runs");
    let mut keyring = String::new();
    BufReader::new(first.stdout.take().expect("a pipe")).read_line(&mut keyring).expect("it speaks");
    assert_eq!(running.exec(&["/session"]).ok().stdout, keyring);
    drop(running);
    first.wait().expect("a child of ours");
}

/// runc puts all containers of the same id and user namespace into one keyring.
#[test]
fn no_container_joins_the_keyring_of_another() {
    let runtimes = [Runtime::ours(), Runtime::ours()];
    let id = runtimes[0].id("same");
    let bundles = ["one", "other"].map(|name| {
        let bundle = bundle(|spec| {
            spec["linux"]["maskedPaths"] = json!([]);
            spec["linux"]["cgroupsPath"] = json!(format!("/{id}-{name}"));
            script(spec, "sleep 1000");
        });
        compile(SESSION, &bundle.path().join("rootfs/session"));
        compile(JOIN, &bundle.path().join("rootfs/join"));
        bundle
    });
    let mut running = Vec::new();
    for (runtime, bundle) in runtimes.iter().zip(&bundles) {
        let path = bundle.path().display().to_string();
        let mut command = runtime.command(&["run", "-d", "--bundle", &path, &id]);
        assert!(command.stdout(Stdio::null()).status().expect("it runs").success());
        running.push(Running { runtime, id: id.clone() });
    }
    let keyrings = [0, 1].map(|index| running[index].exec(&["/session"]).ok().stdout);
    assert_ne!(keyrings[0], keyrings[1]);
    let own = format!(" _ses.{id}");
    let seen = running[1].exec(&["busybox", "grep", "-c", &own, "/proc/keys"]).ok();
    assert_eq!(seen.text(), "1", "the other's is not to be seen");
    for name in [own.trim_start(), "_ses."] {
        let joined = running[1].exec(&["/join", name]).ok();
        assert_ne!(joined.stdout, keyrings[0], "{name}");
    }
}

/// A program that joins the session keyring of a name, and prints its serial number.
const JOIN: &str = r#"
#include <stdio.h>
#include <sys/syscall.h>
#include <unistd.h>
int main(int argc, char **argv) { return printf("%ld\n", syscall(SYS_keyctl, 1, argv[1])) < 0; }
"#;

/// A program that prints the serial number of its session keyring. With an argument, it restricts the keyring to be
/// seen and searched by its owner.
const SESSION: &str = r#"
#include <stdio.h>
#include <sys/syscall.h>
#include <unistd.h>
int main(int argc, char **argv) {
    if (argc > 1 && syscall(SYS_keyctl, 5, -3, 0x3f090000) < 0) return 1;
    return printf("%ld\n", syscall(SYS_keyctl, 0, -3, 0)) < 0;
}
"#;

/// CVE-2022-0492: a cgroup's release_agent is a program that the kernel runs on the host.
#[test]
fn cgroups_are_not_written_from_inside() {
    let runtime = Runtime::ours();
    let attack = "cd /sys/fs/cgroup; for f in $(busybox find . -name release_agent -o -name cgroup.procs -o -name tasks \
                    -o -name notify_on_release -o -name devices.allow); do
                    echo /evil > $f && echo WON $f; done 2>/dev/null
                  for d in . */; do mkdir $d/evil && echo WON $d; done 2>/dev/null
                  mount -o remount,rw /sys/fs/cgroup 2>/dev/null && echo WON remount
                  mkdir /tmp; mount -t cgroup -o memory cgroup /tmp 2>/dev/null && echo WON mount
                  mount -t cgroup2 cgroup /tmp 2>/dev/null && echo WON mount2
                  busybox unshare -UrmC true 2>/dev/null && busybox unshare -UrmC sh -c 'mount -t cgroup -o rdma cgroup /tmp' 2>/dev/null && echo WON userns
                  echo done";
    let done = attempt(&runtime, &bundle(|spec| script(spec, attack)));
    assert_eq!(done.ok().text(), "done");
}

#[test]
fn devices_of_the_host_are_not_opened() {
    let runtime = Runtime::ours();
    let disk = fs::read_to_string("/proc/partitions").expect("proc");
    let disk = disk.lines().nth(2).expect("a disk").split_whitespace().collect::<Vec<_>>();
    let (major, minor) = (disk[0], disk[1]);
    let bundle = bundle(|spec| {
        // Most engines grant `CAP_MKNOD` by default.
        add_capabilities(spec, &["CAP_MKNOD"]);
        script(
            spec,
            &format!(
                "mknod /dev/disk b {major} {minor}; dd if=/dev/disk of=/dev/null bs=512 count=1 2>/dev/null && echo WON disk
                 mknod /dev/kmsg2 c 1 11; dd if=/dev/kmsg2 of=/dev/null bs=64 count=1 2>/dev/null && echo WON kmsg
                 mknod /dev/mem2 c 1 1; dd if=/dev/mem2 of=/dev/null bs=64 count=1 2>/dev/null && echo WON mem
                 cat /dev/null && echo done"
            ),
        );
    });
    assert_eq!(attempt(&runtime, &bundle).ok().text(), "done");
}

/// Sysctls without a namespace are the host's, by whatever spelling.
#[test]
fn sysctls_of_the_host_are_refused() {
    let runtime = Runtime::ours();
    let before = read_text(Path::new("/proc/sys/kernel/core_pattern"));
    for key in [
        "kernel.core_pattern",
        "kernel/core_pattern",
        "net/../kernel/core_pattern",
        "net.ipv4/../../kernel/core_pattern",
        "kernel.modprobe",
        "vm.overcommit_memory",
        "fs.suid_dumpable",
        "kernel.msgmax/../core_pattern",
        "fs.mqueue/../suid_dumpable",
    ] {
        let bundle = bundle(|spec| {
            spec["linux"]["sysctl"] = json!({key: "|/evil"});
            script(spec, "true");
        });
        let done = attempt(&runtime, &bundle);
        assert_ne!(done.code, 0, "{key}: {done}");
        done.expect_stderr("sysctl");
    }
    assert_eq!(read_text(Path::new("/proc/sys/kernel/core_pattern")), before);
    // The same from inside the container.
    let bundle = bundle(|spec| {
        let attack = "for f in kernel/core_pattern kernel/modprobe vm/panic_on_oom; do
                        echo x > /proc/sys/$f && echo WON $f; done 2>/dev/null
                      echo c > /proc/sysrq-trigger 2>/dev/null && echo WON sysrq
                      umount /proc/sys 2>/dev/null && echo WON umount
                      mount -o remount,rw /proc/sys 2>/dev/null && echo WON remount
                      echo done";
        script(spec, attack);
    });
    assert_eq!(attempt(&runtime, &bundle).ok().text(), "done");
}

/// Host names and sysctls of a namespace that is the caller's, left out of the spec or named by its path. The caller
/// has its own namespaces, in case the runtime sets them after all.
#[test]
fn namespaces_of_the_caller_are_not_the_containers_to_set() {
    type Change = fn(&mut Value);
    let rows: [(&str, &str, Change, &str); 7] = [
        (
            "network",
            "/proc/self/ns/net",
            |spec| spec["linux"]["sysctl"] = json!({"net.ipv4.ip_default_ttl": "11"}),
            "sysctl net.ipv4.ip_default_ttl needs a network namespace",
        ),
        (
            "ipc",
            "/proc/self/ns/ipc",
            |spec| spec["linux"]["sysctl"] = json!({"kernel.msgmax": "11"}),
            "sysctl kernel.msgmax needs a ipc namespace",
        ),
        (
            "uts",
            "/proc/self/ns/uts",
            |spec| spec["linux"]["sysctl"] = json!({"kernel.domainname": "evil"}),
            "sysctl kernel.domainname needs a uts namespace",
        ),
        (
            "user",
            "/proc/self/ns/user",
            |spec| spec["linux"]["sysctl"] = json!({"user.max_time_namespaces": "11"}),
            "sysctl user.max_time_namespaces needs a user namespace",
        ),
        (
            "uts",
            "/proc/self/ns/uts",
            |spec| spec["hostname"] = json!("evil"),
            "hostname needs a uts namespace",
        ),
        (
            "uts",
            "/proc/self/ns/uts",
            |spec| spec["domainname"] = json!("evil"),
            "domainname needs a uts namespace",
        ),
        ("uts", "", |spec| spec["domainname"] = json!("evil"), "domainname needs a uts namespace"),
    ];
    let runtime = Runtime::ours();
    for (kind, path, change, words) in rows {
        let bundle = bundle(|spec| {
            spec["hostname"] = json!("");
            let namespaces = spec["linux"]["namespaces"].as_array_mut().expect("namespaces");
            namespaces.retain(|namespace| namespace["type"] != kind);
            if !path.is_empty() {
                namespaces.push(json!({"type": kind, "path": path}));
            }
            change(spec);
            script(spec, "true");
        });
        let bundle_path = bundle.path().display().to_string();
        let ours = runtime.command(&["run", "--bundle", &bundle_path, &runtime.id("caller")]);
        let look = "cat /proc/sys/net/ipv4/ip_default_ttl /proc/sys/kernel/msgmax /proc/sys/kernel/hostname \
                    /proc/sys/kernel/domainname; ";
        let mut unshare = Command::new("unshare");
        unshare.args(["--net", "--ipc", "--uts", "sh", "-c"]);
        unshare.arg(format!("{look} \"$@\"; code=$?; echo ---; {look} exit $code")).arg("sh");
        unshare.arg(ours.get_program()).args(ours.get_args()).stdin(Stdio::null());
        let done = run(&mut unshare).expect_code(1).expect_stderr(words);
        let (before, after) = done.stdout.split_once("---\n").expect("both looks");
        assert_eq!(before, after, "{kind} {path:?}");
        assert!(before.starts_with("64\n"), "{before}");
    }
}

/// CVE-2018-10892 (`/proc/acpi`), CVE-2019-14891, other users' keys, thermal data: files of `/proc` and `/sys` that
/// show or change the host.
#[test]
fn masked_paths_tell_nothing_and_stay_masked() {
    let runtime = Runtime::ours();
    let bundle = bundle(|spec| {
        let masked = spec["linux"]["maskedPaths"].as_array_mut().expect("masked paths");
        masked.push(json!("/proc/acpi"));
        masked.push(json!("/sys/devices/virtual/powercap"));
        let attack = "for p in acpi asound scsi; do test -d /proc/$p && test -n \"$(ls -A /proc/$p)\" && echo WON $p; done
                      for p in kcore keys latency_stats timer_list sched_debug; do
                        test -e /proc/$p && test -n \"$(dd if=/proc/$p bs=1 count=1 2>/dev/null)\" && echo WON $p; done
                      test -n \"$(ls -A /sys/firmware)\" && echo WON firmware
                      umount /proc/kcore 2>/dev/null && echo WON umount
                      touch /sys/firmware/x 2>/dev/null && echo WON write
                      for p in bus fs irq; do touch /proc/$p/x 2>/dev/null && echo WON $p; done
                      echo done";
        script(spec, attack);
    });
    assert_eq!(attempt(&runtime, &bundle).ok().text(), "done");
}

/// Paths that Docker masks, and `hoist run` too, as far as the host has them: masked directories are empty, and masked
/// files read as empty.
#[test]
fn what_docker_masks_is_masked() {
    let processors = fs::read_dir("/sys/devices/system/cpu").expect("sysfs").flatten();
    let heat = processors.map(|entry| entry.path().join("thermal_throttle").display().to_string());
    let masked = "/proc/acpi /proc/asound /proc/interrupts /proc/kcore /proc/keys /proc/latency_stats \
                  /proc/sched_debug /proc/scsi /proc/timer_list /proc/timer_stats /sys/devices/virtual/powercap \
                  /sys/firmware";
    let masked = masked.split_whitespace().map(str::to_owned).chain(heat);
    let paths: Vec<String> = masked.filter(|path| Path::new(path).exists()).collect();
    let look = "if test -d $p; then ls -A $p; else head -c 1 $p; fi 2>/dev/null | wc -c";
    let look = format!("for p in {}; do test $({look}) = 0 || echo $p; done; echo done", paths.join(" "));
    let daemon = Daemon::with_busybox();
    assert_eq!(says(&daemon, &[], &look), "done");
    let open = says(&daemon, &["--security-opt", "systempaths=unconfined"], &look);
    assert!(open.contains("/proc/interrupts\n"), "who asks for it sees them: {open}");
}

/// A bug of youki and early runc: the container's seccomp filter must hold for execs too.
#[test]
fn the_filter_is_on_every_process() {
    let runtime = Runtime::ours();
    for no_new_privileges in [true, false] {
        let bundle = bundle(|spec| {
            spec["process"]["noNewPrivileges"] = json!(no_new_privileges);
            spec["linux"]["seccomp"] = json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
                {"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 95}]});
            script(spec, "sleep 1000");
        });
        let running = Running::start(&runtime, &bundle);
        let process = bundle.path().join("process.json");
        let description = json!({"args": ["sh", "-c", "mkdir /x; grep Seccomp: /proc/self/status"], "cwd": "/",
            "user": {"uid": 0, "gid": 0}, "env": ["PATH=/bin"], "noNewPrivileges": !no_new_privileges});
        fs::write(&process, description.to_string()).expect("a writable bundle");
        for flags in [&[][..], &["--user", "5:5"]] {
            let done = running.exec_with(flags, &["sh", "-c", "mkdir /x; grep Seccomp: /proc/self/status"]);
            assert_eq!(done.expect_stderr("not supported").text(), "Seccomp:\t2", "{flags:?}");
        }
        let words = ["exec", "--process", process.to_str().expect("UTF-8"), &running.id];
        let done = runtime.run(&words).ok();
        assert!(done.stdout.contains('2') && done.stderr.contains("not supported"), "{done}");
    }
}

/// Root of a user namespace is an unprivileged user outside of it.
#[test]
fn root_of_a_user_namespace_is_not_root_of_the_host() {
    let runtime = Runtime::ours();
    let host = TempDir::new().expect("a temporary directory");
    let secret = host.path().join("secret");
    fs::write(&secret, "of root").expect("writable");
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o600)).expect("ours");
    fs::set_permissions(host.path(), fs::Permissions::from_mode(0o777)).expect("ours");
    let bundle = bundle(|spec| {
        spec["linux"]["namespaces"].as_array_mut().expect("namespaces").push(json!({"type": "user"}));
        for kind in ["uidMappings", "gidMappings"] {
            spec["linux"][kind] = json!([{"containerID": 0, "hostID": 100_000, "size": 65_536}]);
        }
        add_capabilities(
            spec,
            &["CAP_DAC_OVERRIDE", "CAP_CHOWN", "CAP_SETUID", "CAP_SYS_ADMIN", "CAP_MKNOD"],
        );
        add_mount(
            spec,
            json!({"destination": "/host", "type": "bind", "source": host.path(), "options": ["rbind"]}),
        );
        script(
            spec,
            "id -u; cat /host/secret 2>/dev/null && echo WON read; busybox chown 0 /host/secret 2>/dev/null && echo WON chown
             mknod /host/disk b 8 0 2>/dev/null && echo WON mknod; touch /host/made
             mount -o remount,rw,dev /dev/shm 2>/dev/null; echo done",
        );
    });
    assert_eq!(attempt(&runtime, &bundle).ok().text(), "0\ndone");
    assert_eq!(fs::metadata(host.path().join("made")).expect("made inside").uid(), 100_000);
}

/// Only the standard streams may be open in the first process.
#[test]
fn the_first_process_has_its_streams_and_nothing_else() {
    let runtime = Runtime::ours();
    let host = TempDir::new().expect("a temporary directory");
    let leaked = File::open(host.path()).expect("a directory");
    assert!(leaked.as_raw_fd() > 2);
    let bundle = bundle(|spec| script(spec, "ls /proc/self/fd"));
    let done = with_leaked_directory(&runtime, &bundle, host.path()).ok();
    assert_eq!(
        done.text().split_whitespace().collect::<Vec<_>>(),
        ["0", "1", "2", "3"],
        "3 is what ls reads"
    );
}

#[test]
fn a_pipe_in_place_of_the_list_of_users_keeps_nobody_waiting() {
    let bundle = bundle(|spec| {
        script(spec, "echo ran");
        let hook = json!([{"path": "/bin/true", "timeout": 5}]);
        spec["hooks"] = json!({"startContainer": hook, "createRuntime": hook, "poststop": hook});
    });
    let etc = bundle.path().join("rootfs/etc");
    fs::create_dir(&etc).unwrap();
    for name in ["passwd", "group"] {
        run(Command::new("mkfifo").arg(etc.join(name))).ok();
    }
    assert_eq!(attempt(&Runtime::ours(), &bundle).ok().text(), "ran");
}
