//! Bind mounts of the runtime spec: mapped owners, targets, sources inside the root, locked attributes.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::{Value, json};
use tempfile::TempDir;
use testkit::{Bundle, MountsBelow, run};

use crate::escapes::add_capabilities;
use crate::runtime_bundle::{Runtime, add_mount, bundle, give, give_to, read_spec, script};
use crate::runtime_joins::join;
use crate::runtime_spec::{chown, map_users, mappable_disk, open_dir, ours};

#[test]
fn owners_of_a_mount_are_mapped() {
    let host = mappable_disk();
    let file = host.path().join("file");
    fs::write(&file, "").expect("writable");
    chown(&file, 5000);
    chown(&host.path(), 5000);
    let volume = |options: &[&str]| json!({"destination": "/v", "type": "bind", "source": host.path(), "options": options});
    // By maps of the mount itself, in a container without a user namespace.
    let said = ours("stat -c %u /v/file; touch /v/made", |spec| {
        let mut mount = volume(&["rbind"]);
        for kind in ["uidMappings", "gidMappings"] {
            mount[kind] = json!([{"containerID": 5000, "hostID": 0, "size": 1}]);
        }
        add_mount(spec, mount);
    });
    assert_eq!(said, "0");
    assert_eq!(fs::metadata(host.path().join("made")).expect("made").uid(), 5000);
    fs::remove_file(host.path().join("made")).expect("ours");
    // By those of the container's user namespace, one mount and a tree of them.
    chown(&file, 3);
    chown(&host.path(), 0);
    let (further, below) = (host.path().join("further"), host.path().join("below"));
    for dir in [&further, &below] {
        fs::create_dir(dir).expect("writable");
    }
    fs::write(further.join("file"), "").expect("writable");
    chown(&further.join("file"), 4);
    run(Command::new("mount").arg("--bind").arg(&further).arg(&below)).ok();
    let rows = [("idmap", "65534"), ("ridmap", "4")].map(|(option, owner_below)| {
        let look = "stat -c %u /v/file; touch /v/made; stat -c %u /v/made /v/below/file";
        let said = ours(look, |spec| {
            map_users(spec, &[(0, 100_000, 1000)]);
            add_mount(spec, volume(&["rbind", option]));
        });
        let made = host.path().join("made");
        assert_eq!(fs::metadata(&made).expect("made").uid(), 0, "{option}: on disk it is root's");
        fs::remove_file(made).expect("ours");
        (option, said, owner_below)
    });
    run(Command::new("umount").arg(&below)).ok();
    for (option, said, owner_below) in rows {
        assert_eq!(said, format!("3\n0\n{owner_below}"), "{option}");
    }
    // Without a word about maps there is nothing to map by.
    let bundle = bundle(|spec| add_mount(spec, volume(&["rbind", "idmap"])));
    let runtime = Runtime::ours();
    let path = bundle.path().display().to_string();
    let refused = runtime.run(&["run", "--bundle", &path, &runtime.id("idmap")]);
    refused.expect_code(1).expect_stderr("uidMappings");
}

/// In the words of `mount`: dockerd looks for them, and tells its users which of the two is wrong.
#[test]
fn a_file_and_a_directory_are_not_mounted_on_one_another() {
    let host = open_dir();
    let file = host.path().join("file");
    fs::write(&file, "").expect("writable");
    for (source, destination) in [(file.as_path(), "/tmp/dir"), (host.path(), "/tmp/plain")] {
        let bundle = bundle(|spec| {
            script(spec, "true");
            add_mount(
                spec,
                json!({"destination": destination, "type": "bind", "source": source, "options": ["bind"]}),
            );
        });
        fs::create_dir_all(bundle.path().join("rootfs/tmp/dir")).expect("writable");
        fs::write(bundle.path().join("rootfs/tmp/plain"), "").expect("writable");
        let runtime = Runtime::ours();
        let path = bundle.path().display().to_string();
        let refused = runtime.run(&["run", "--bundle", &path, &runtime.id("kinds")]);
        refused.expect_code(1).expect_stderr("not a directory");
    }
}

/// Its place is made inside the root, with those above it, and the link stays.
#[test]
fn a_file_is_mounted_where_a_link_to_nothing_leads() {
    let host = open_dir();
    let file = host.path().join("file");
    fs::write(&file, "of the host\n").expect("writable");
    let out = host.path().join("out");
    let outside = out.display().to_string();
    for (links, place) in [
        (&[("hosts", "/tmp/hosts")][..], "/tmp/hosts"),
        (&[("hosts", "/jump/baz/hosts"), ("jump", "/tmp/foo/bar")][..], "/tmp/foo/bar/baz/hosts"),
        (&[("hosts", outside.as_str())][..], outside.as_str()),
    ] {
        let bundle = bundle(|spec| {
            let look = format!("cat /hosts {place}; busybox awk '{{ print $5 }}' /proc/self/mountinfo");
            script(spec, &look);
            add_mount(
                spec,
                json!({"destination": "/hosts", "type": "bind", "source": file, "options": ["bind"]}),
            );
        });
        for (name, target) in links {
            std::os::unix::fs::symlink(target, bundle.path().join("rootfs").join(name)).expect("writable");
        }
        let runtime = Runtime::ours();
        let path = bundle.path().display().to_string();
        let done = runtime.run(&["run", "--bundle", &path, &runtime.id("links")]).ok();
        assert!(done.stdout.starts_with("of the host\nof the host\n"), "{links:?}: {done}");
        assert!(done.stdout.lines().any(|line| line == place), "{links:?}: {done}");
        assert!(!out.exists(), "made on the host");
    }
}

/// As runc takes them: there are callers that write the path which the root has on the host.
#[test]
fn destinations_with_the_path_of_the_root_are_in_the_root() {
    let host = open_dir();
    fs::write(host.path().join("file"), "of the host\n").expect("writable");
    let bundle = bundle(|spec| {
        script(spec, "cat /m/file; busybox awk '$5 ~ \"^/m\" { print $5, $6 }' /proc/self/mountinfo");
    });
    let rootfs = bundle.path().join("rootfs");
    let mut spec = read_spec(bundle.path());
    for (at, mount) in [
        ("m", json!({"type": "bind", "source": host.path(), "options": ["bind", "ro"]})),
        ("x/..//mt", json!({"type": "tmpfs", "source": "tmpfs", "options": ["ro"]})),
    ] {
        let mut mount = mount;
        mount["destination"] = json!(rootfs.join(at));
        add_mount(&mut spec, mount);
    }
    fs::write(bundle.path().join("config.json"), spec.to_string()).expect("writable");
    let runtime = Runtime::ours();
    let path = bundle.path().display().to_string();
    let done = runtime.run(&["run", "--bundle", &path, &runtime.id("strip")]).ok();
    let said: Vec<&str> = done.text().lines().map(|line| line.split(',').next().unwrap_or(line)).collect();
    assert_eq!(said, ["of the host", "/m ro", "/mt ro"]);
    assert!(!rootfs.join(&path[1..]).exists(), "a path of the host is made in the root");
}

/// What a bind mount shows of the root has the mounts before it, as with runc, which looks for each when its turn comes; also
/// in places that are there by such a mount alone. The links in it do not lead out.
#[test]
fn sources_in_the_root_have_the_mounts_before_them() {
    let disk = mappable_disk();
    let attempt = |options: &[&str], with_user: bool, mapped: bool| {
        let bundle = bundle(|spec| {
            script(spec, "cat /final/x/y/file /again/file; ls /shown/kept; ls /shown/secret");
            if with_user {
                map_users(spec, &[(0, 100_000, 65_536)]);
            }
        });
        let rootfs = bundle.path().join("rootfs");
        let runtime = Runtime::ours();
        let id = runtime.id("order");
        let host = disk.path().join(&id);
        for (dir, below) in [("a", "x"), ("b", "y"), ("c", "z"), ("kept", "kept")] {
            fs::create_dir_all(host.join(dir).join(below)).expect("writable");
            fs::write(host.join(dir).join("file"), format!("{dir}\n")).expect("writable");
        }
        // On the host it leads to something else than in the container.
        fs::create_dir_all(host.join("out/secret")).expect("writable");
        std::os::unix::fs::symlink(host.join("out"), rootfs.join("link")).expect("writable");
        let led = rootfs.join(&host.display().to_string()[1..]).join("out");
        fs::create_dir_all(led.join("kept")).expect("writable");
        let mut spec = read_spec(bundle.path());
        for (source, destination) in [
            (host.join("a"), "/mnt"),
            (host.join("b"), "/mnt/x"),
            (host.join("c"), "/mnt/x/y"),
            (rootfs.join("mnt"), "/final"),
            (rootfs.join("final/./x/z/../y"), "/again"),
            (rootfs.join("link"), "/shown"),
        ] {
            let is_inside = source.starts_with(&rootfs) && !source.ends_with("link");
            let options = if is_inside { options } else { &["rbind", "rprivate"][..] };
            let mut mount = json!({
                "destination": destination,
                "type": "bind",
                "source": source,
                "options": options,
            });
            if mapped && is_inside {
                for kind in ["uidMappings", "gidMappings"] {
                    mount[kind] = json!([{"containerID": 0, "hostID": 100_000, "size": 65_536}]);
                }
            }
            add_mount(&mut spec, mount);
        }
        fs::write(bundle.path().join("config.json"), spec.to_string()).expect("writable");
        let path = bundle.path().display().to_string();
        runtime.run(&["run", "--bundle", &path, &id])
    };
    for with_user in [false, true] {
        let done = attempt(&["rbind", "rprivate"], with_user, false);
        assert_eq!(done.stdout, "c\nc\n", "{with_user}: {done}");
        assert!(done.code != 0 && done.stderr.contains("secret"), "{with_user}: {done}");
    }
    let done = attempt(&["rbind", "idmap"], false, true);
    assert_eq!(done.stdout, "c\nc\n", "{done}");
    // One mount alone, of which the mounts below are not shown.
    let done = attempt(&["bind"], false, false);
    done.expect_code(1).expect_stderr("/final/x/y");
}

/// Whatever the mount passes through on its way into a user namespace.
#[test]
fn a_slave_in_a_user_namespace_gets_mounts_of_the_host_and_gives_none() {
    for runtime in Runtime::both() {
        let host = open_dir();
        let _mounts = MountsBelow(host.path().to_owned());
        let mount = |words: &[&str], at: &Path| run(Command::new("mount").args(words).arg(at)).ok();
        mount(&["-t", "tmpfs", "-o", "mode=755", "tmpfs"], host.path());
        mount(&["--make-shared"], host.path());
        let [outer, inner] = ["outer", "inner"].map(|name| host.path().join(name));
        for dir in [&outer, &inner] {
            fs::create_dir(dir).expect("writable");
        }
        let bundle = bundle(|spec| {
            map_users(spec, &[(0, 100_000, 65_536)]);
            add_capabilities(spec, &["CAP_SYS_ADMIN"]);
            script(spec, "exec sleep 1000");
            add_mount(
                spec,
                json!({"destination": "/m", "type": "bind", "source": host.path(), "options": ["rbind", "rslave"]}),
            );
        });
        let (path, id) = (bundle.path().display().to_string(), runtime.id("slave"));
        let mut start = runtime.command(&["run", "--detach", "--bundle", &path, &id]);
        let is_started =
            start.stdout(Stdio::null()).stderr(Stdio::null()).status().expect("it runs").success();
        assert!(is_started, "{}", runtime.name);
        mount(&["-t", "tmpfs", "-o", "mode=755", "tmpfs"], &outer);
        fs::write(outer.join("file"), "of the host\n").expect("writable");
        let enter = |look: &str| runtime.run(&["exec", &id, "sh", "-c", look]);
        let arrived = enter("cat /m/outer/file");
        let made = enter("mount -t tmpfs tmpfs /m/inner && touch /m/inner/file && ls /m/inner");
        let is_seen = fs::exists(inner.join("file")).expect("it can be looked at");
        run(Command::new("umount").arg(&outer)).ok();
        let gone = enter("ls /m/outer; ls /m/inner");
        runtime.run(&["delete", "--force", &id]).ok();
        assert_eq!(arrived.ok().text(), "of the host", "{}", runtime.name);
        assert_eq!(made.ok().text(), "file", "{}", runtime.name);
        assert!(!is_seen, "{}: a mount of the container is on the host", runtime.name);
        assert_eq!(gone.ok().text(), "file", "{}: that of the host went with it", runtime.name);
    }
}

/// A user namespace takes nothing away that is locked for it, and says so: what is not named stays. Debian's runc 1.1 keeps
/// silent about some of it.
#[test]
fn what_a_source_has_is_locked_in_a_user_namespace() {
    let host = open_dir();
    let _mounts = MountsBelow(host.path().to_owned());
    run(Command::new("mount").args(["-t", "tmpfs", "-o", "mode=755", "tmpfs"]).arg(host.path())).ok();
    let below = host.path().join("below");
    fs::create_dir(&below).expect("writable");
    run(Command::new("mount").args(["-t", "tmpfs", "-o", "mode=755", "tmpfs"]).arg(&below)).ok();
    // Of the mount alone: a file system that is read-only as a whole stays so anyway.
    let remount = |at: &Path, flags: &str| {
        let flags = format!("remount,bind,suid,dev,exec,{flags}");
        run(Command::new("mount").args(["-o", &flags]).arg(at)).ok();
    };
    let source = host.path().display().to_string();
    let attempt = |options: &str, with_user: bool| {
        let options: Vec<&str> = options.split(',').collect();
        let bundle = bundle(|spec| {
            script(spec, "busybox awk '$5 == \"/m\" { print $6 }' /proc/self/mountinfo");
            if with_user {
                map_users(spec, &[(0, 100_000, 65_536)]);
            }
            add_mount(
                spec,
                json!({"destination": "/m", "type": "bind", "source": source, "options": options}),
            );
        });
        let runtime = Runtime::ours();
        let path = bundle.path().display().to_string();
        runtime.run(&["run", "--bundle", &path, &runtime.id("locked")])
    };
    // Nor by a program that may mount there, or by a mount of the spec that changes the one before.
    remount(host.path(), "ro,relatime");
    let later = |change: &dyn Fn(&mut Value)| {
        let bundle = bundle(|spec| {
            map_users(spec, &[(0, 100_000, 65_536)]);
            add_capabilities(spec, &["CAP_SYS_ADMIN"]);
            add_mount(
                spec,
                json!({"destination": "/m", "type": "bind", "source": source, "options": ["rbind"]}),
            );
            change(spec);
        });
        let runtime = Runtime::ours();
        let path = bundle.path().display().to_string();
        runtime.run(&["run", "--bundle", &path, &runtime.id("later")])
    };
    let look =
        "busybox mount -o remount,bind,nosuid /m && ! busybox mount -o remount,bind,rw /m && ! touch /m/new";
    let by_program = later(&|spec| script(spec, look));
    let by_spec = later(&|spec| {
        script(spec, "true");
        add_mount(spec, json!({"destination": "/m", "type": "bind", "options": ["bind", "remount", "rw"]}));
    });
    let mut all = Vec::new();
    for (flags, options) in [
        ("ro,relatime", "bind,rw,nosuid,nodev,rprivate"),
        ("rw,nodev,relatime", "bind,dev"),
        ("rw,nosuid,relatime", "bind,suid"),
        ("rw,noexec,relatime", "bind,exec"),
        ("rw,noatime", "bind,strictatime"),
        ("rw,relatime", "bind,nodiratime"),
        ("ro,relatime", "rbind,rrw"),
    ] {
        remount(host.path(), flags);
        all.push((flags, options, attempt(options, true), attempt(options, false)));
    }
    remount(host.path(), "rw,relatime");
    remount(&below, "ro,relatime");
    all.push(("rw, ro below", "rbind,rrw", attempt("rbind,rrw", true), attempt("rbind,rrw", false)));
    remount(host.path(), "ro,noexec,noatime");
    let kept = [attempt("bind,nosuid,rprivate", true), attempt("bind,atime,symfollow", true)];
    assert_eq!(by_program.code, 0, "{by_program}");
    assert_ne!(by_spec.code, 0, "{by_spec}");
    for (flags, options, refused, taken) in all {
        let text = format!("{flags}: {options}: {refused}");
        assert_eq!(refused.code, 1, "{text}");
        assert!(refused.stderr.contains("operation not permitted"), "{text}");
        assert!(refused.stderr.contains("to \"/m\""), "{text}");
        assert_eq!(taken.code, 0, "{flags}: {options}: {taken}");
    }
    let kept = kept.map(|done| done.ok().text().to_owned());
    assert_eq!(kept, ["ro,nosuid,noexec,noatime", "ro,noexec,noatime"]);
}

/// The trees that the kernel locks for a container pass through a place in the directory of its state: whoever has that in
/// its root does not find them there, as they are without the options of the spec.
#[test]
fn a_root_with_the_state_directory_in_it_shows_each_source_once() {
    const MAP: [(u32, u32, u32); 1] = [(0, 100_000, 65_536)];
    let shown = open_dir();
    chown(shown.path(), MAP[0].1);
    let mount =
        json!({"destination": "/mnt", "type": "bind", "source": shown.path(), "options": ["rbind", "ro"]});
    // The host's root.
    let (runtime, whole) = (Runtime::ours(), bundle(|_| ()));
    let id = runtime.id("whole");
    let state = runtime.root().join(&id).display().to_string();
    let mut spec = read_spec(whole.path());
    map_users(&mut spec, &MAP);
    spec["root"] = json!({"path": "/", "readonly": true});
    script(&mut spec, "cat /proc/self/mountinfo");
    add_mount(&mut spec, mount.clone());
    fs::write(whole.path().join("config.json"), spec.to_string()).expect("writable");
    let path = whole.path().display().to_string();
    let done = runtime.run(&["run", "--bundle", &path, &id]).ok();
    assert!(done.stdout.contains(" /mnt ro"), "{done}");
    assert!(!done.stdout.contains(&state), "{state}: {done}");
    // A root of its own, in which everybody passes through the directory of states.
    let part = bundle(|spec| map_users(spec, &MAP));
    let rootfs = part.path().join("rootfs");
    let runtime = Runtime::within(&rootfs);
    fs::set_permissions(runtime.root(), fs::Permissions::from_mode(0o755)).expect("ours");
    let id = runtime.id("part");
    let inside = runtime.root().strip_prefix(&rootfs).expect("it is below").join(&id);
    let inside = inside.display();
    let mut spec = read_spec(part.path());
    let look =
        format!("for tree in /{inside}/*; do touch $tree/made; done; ls -d /{inside}; ! touch /mnt/made");
    script(&mut spec, &look);
    add_mount(&mut spec, mount);
    fs::write(part.path().join("config.json"), spec.to_string()).expect("writable");
    let path = part.path().display().to_string();
    let done = runtime.run(&["run", "--bundle", &path, &id]).ok();
    assert_eq!(done.text(), format!("/{inside}"), "it can look there: {done}");
    assert!(!shown.path().join("made").exists(), "written to through the stage: {done}");
}

/// Also where the child may not look itself, where owners are mapped, and where other mounts lie below one that is bound
/// alone: of these it has no mount in its own copy of the host's that it could bind.
#[test]
fn what_the_caller_alone_can_show_is_locked_in_a_user_namespace() {
    const MAP: [(u32, u32, u32); 1] = [(0, 100_000, 65_536)];
    let disk = mappable_disk();
    let (closed, open) = (TempDir::new().expect("a temporary directory"), open_dir());
    let _mounts = [&closed, &open].map(|dir| MountsBelow(dir.path().to_owned()));
    let hidden = closed.path().join("hidden");
    fs::create_dir(&hidden).expect("writable");
    let mount = |words: &[&str], at: &Path| run(Command::new("mount").args(words).arg(at)).ok();
    for at in [hidden.as_path(), open.path()] {
        mount(&["-t", "tmpfs", "-o", "mode=755", "tmpfs"], at);
    }
    fs::create_dir(open.path().join("below")).expect("writable");
    mount(&["-t", "tmpfs", "tmpfs"], &open.path().join("below"));
    let owner = Bundle::new("exec sleep 1000").change(|spec| map_users(spec, &MAP));
    give_to(owner.path(), MAP[0].1);
    owner.start();
    let user = json!({"type": "user", "path": format!("/proc/{}/ns/user", owner.pid())});
    let look = "cat /m/file; busybox mount -o remount,bind,nosuid /m && ! busybox mount -o remount,bind,rw /m && \
                ! touch /m/new && echo locked";
    let runtime = Runtime::ours();
    for (source, options) in [
        (disk.path(), &["rbind", "idmap"][..]),
        (hidden, &["rbind"][..]),
        (open.path().to_owned(), &["bind"][..]),
    ] {
        fs::write(source.join("file"), "of the host\n").expect("writable");
        mount(&["-o", "remount,bind,ro"], &source);
        for is_joined in [false, true] {
            let bundle = bundle(|spec| {
                if is_joined {
                    join(spec, user.clone());
                } else {
                    map_users(spec, &MAP);
                }
                add_capabilities(spec, &["CAP_SYS_ADMIN"]);
                script(spec, look);
                add_mount(
                    spec,
                    json!({"destination": "/m", "type": "bind", "source": source, "options": options}),
                );
            });
            give(&bundle, MAP[0].1);
            let path = bundle.path().display().to_string();
            let done = runtime.run(&["run", "--bundle", &path, &runtime.id("alone")]);
            let text = format!("{options:?}, joined: {is_joined}: {done}");
            assert_eq!(done.stdout, "of the host\nlocked\n", "{text}");
        }
    }
}
