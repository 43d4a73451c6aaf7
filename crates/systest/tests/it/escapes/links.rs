//! Symlinks in the image where the runtime mounts, opens or creates a file, and links that are swapped in meanwhile.

use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;

use serde_json::{Value, json};
use tempfile::TempDir;

use super::{Race, attempt, until_met};
use crate::runtime_bundle::{Runtime, add_mount, bundle, read_spec, read_text, script};
use crate::runtime_spec::map_users;

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
