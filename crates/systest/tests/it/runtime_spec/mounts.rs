//! Mounts: options, propagation of the root, cgroup file systems, tmpfs with the files below it (`tmpcopyup`).

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};
use testkit::{MountsBelow, run};

use super::{chown, open_dir, ours};
use crate::runtime_bundle::{Runtime, add_mount, bundle, same, script};

#[test]
fn options_of_mounts_are_runcs() {
    // What each mount below /m is told by the kernel, and its file system, without the numbers of peer groups, and without
    // the mode that is a tmpfs's anyway.
    let look = "busybox awk '$5 ~ \"^/m\" { gsub(\"[0-9]\", \"\", $7); sub(\",mode=755\", \"\", $NF); \
                                         print $5, $6, $7, $NF }' /proc/self/mountinfo | sort";
    let host = open_dir();
    let _mounts = MountsBelow(host.path().to_owned());
    fs::create_dir(host.path().join("below")).expect("writable");
    run(Command::new("mount").args(["-t", "tmpfs", "tmpfs"]).arg(host.path().join("below"))).ok();
    run(Command::new("mount").arg("--bind").arg(host.path()).arg(host.path())).ok();
    run(Command::new("mount").args(["--make-shared"]).arg(host.path())).ok();
    let source = host.path().display().to_string();
    // What is to be taken away must be there.
    let flagged = open_dir();
    let _flagged_mounts = MountsBelow(flagged.path().to_owned());
    let flags = "nosuid,nodev,noexec,noatime,nodiratime,nosymfollow,mode=755";
    let mount_flagged =
        |at: &Path| run(Command::new("mount").args(["-t", "tmpfs", "-o", flags, "tmpfs"]).arg(at)).ok();
    mount_flagged(flagged.path());
    fs::create_dir(flagged.path().join("below")).expect("writable");
    mount_flagged(&flagged.path().join("below"));
    let cleared = flagged.path().display().to_string();
    let said = same(look, |spec| {
        spec["linux"]["rootfsPropagation"] = json!("rslave");
        let sets = [
            "rbind,ro",
            "rbind,rro",
            "rbind,rnosuid,rnodev,rnoexec",
            "bind,nosuid,nodev,noexec",
            "rbind,rshared",
            "rbind,rslave",
            "rbind,rprivate",
            "bind,shared",
            "bind,slave",
            "rbind,noatime",
            "rbind,rnoatime,nodiratime",
            "rbind,nosymfollow",
            "rbind,rro,rw",
            "bind,ro,rw",
            "bind,sync",
            "bind,private",
            "bind,unbindable",
            "rbind,runbindable",
            "rbind,rnosymfollow",
            "rbind,rnodiratime",
            "rbind,rnoatime",
            "rbind,rstrictatime",
            "bind,mand,acl,iversion,silent,defaults",
        ];
        let clearing = [
            "bind",
            "rbind,rdev",
            "rbind,rexec",
            "rbind,rsuid",
            "rbind,rsymfollow",
            "rbind,rrelatime",
            "rbind,rstrictatime",
            "rbind,rdiratime",
            "rbind,rdev,rexec,rsuid,rrw",
            "bind,ro",
            "rbind,ro,nosuid",
            "bind,noexec,rprivate",
            "bind,relatime",
            "bind,strictatime",
            "bind,nodiratime",
        ];
        let all = sets
            .iter()
            .map(|options| (&source, options))
            .chain(clearing.iter().map(|options| (&cleared, options)));
        for (number, (source, options)) in all.enumerate() {
            let options: Vec<&str> = options.split(',').collect();
            let destination = format!("/m{number}");
            add_mount(
                spec,
                json!({"destination": destination, "type": "bind", "source": source, "options": options}),
            );
        }
        let in_memory = [
            "strictatime,mode=711",
            "ro,size=4k",
            "dirsync,sync",
            "sync,async",
            "lazytime",
            "lazytime,nolazytime",
            "mand",
            "mand,nomand",
            // Without effect.
            "acl",
            "noacl",
            "iversion",
            "noiversion",
            "silent",
            "loud",
        ];
        for (number, options) in in_memory.iter().enumerate() {
            let options: Vec<&str> = options.split(',').collect();
            let destination = format!("/mt{number}");
            add_mount(
                spec,
                json!({"destination": destination, "type": "tmpfs", "source": "tmpfs", "options": options}),
            );
        }
    });
    assert!(said.contains("/m1 ro") && said.contains("shared:") && said.contains("unbindable"), "{said}");
}

#[test]
fn the_root_has_the_propagation_that_is_asked_for() {
    let look = "busybox awk '$5 == \"/\" { gsub(\"[0-9]\", \"\", $7); print $7 }' /proc/self/mountinfo";
    // On mounts that are shared, as systemd has them, and on those that are not.
    for (propagation, shared, expected) in [
        ("", "make-private", "-\n"),
        ("slave", "make-private", "-\n"),
        ("", "make-shared", "master:\n"),
        ("private", "make-shared", "-\n"),
        ("rprivate", "make-shared", "-\n"),
        ("slave", "make-shared", "master:\n"),
        ("rslave", "make-shared", "master:\n"),
    ] {
        let bundle = bundle(|spec| {
            script(spec, look);
            spec["linux"]["rootfsPropagation"] = json!(propagation);
        });
        let _mount = MountsBelow(bundle.path().to_owned());
        let path = bundle.path().display().to_string();
        run(Command::new("mount").args(["--bind", &path, &path, &format!("--{shared}")])).ok();
        let said = Runtime::both().map(|runtime| {
            let ended = runtime.run(&["run", "--bundle", &path, &runtime.id("root")]);
            (runtime.name, ended.ok().stdout)
        });
        for (name, said) in said {
            // Debian's runc then asks it of the host's root alone, and the mount that the root lies in is made private.
            if name == "runc" && (propagation, shared) == ("slave", "make-shared") {
                continue;
            }
            assert_eq!(said, expected, "{name}: {propagation:?}, {shared}");
        }
    }
    // Debian's runc leaves it private, or fails.
    for (propagation, expected) in [
        ("shared", "shared:"),
        ("rshared", "shared:"),
        ("unbindable", "unbindable"),
        ("runbindable", "unbindable"),
    ] {
        assert_eq!(ours(look, |spec| spec["linux"]["rootfsPropagation"] = json!(propagation)), expected);
    }
    let bundle = bundle(|spec| spec["linux"]["rootfsPropagation"] = json!("everywhere"));
    let path = bundle.path().display().to_string();
    let runtime = Runtime::ours();
    runtime.run(&["run", "--bundle", &path, &runtime.id("wrong")]).expect_code(1).expect_stderr("everywhere");
}

/// The tree of version 2 alone, also where it stands beside those of version 1; of it the container's own part, where
/// runc shows the host's.
#[test]
fn a_mount_of_version_2_shows_that_alone() {
    let mount = |spec: &mut Value| {
        add_mount(
            spec,
            json!({"destination": "/mnt", "type": "cgroup2", "source": "cgroup2", "options": ["ro", "nosuid"]}),
        );
    };
    let line = same("grep ' /mnt' /proc/self/mounts; test -e /mnt/cgroup.procs; echo $?", mount);
    assert!(
        line.starts_with("cgroup2 /mnt cgroup2 ro,nosuid,relatime") && line.ends_with(" 0 0\n0\n"),
        "{line}"
    );
    let members = ours("cat /mnt/cgroup.procs", mount).lines().count();
    assert!((1..=2).contains(&members), "the shell and what it runs: {members}");
}

#[test]
fn a_tmpfs_takes_what_it_covers() {
    let bundle = bundle(|spec| {
        add_mount(
            spec,
            json!({"destination": "/kept", "type": "tmpfs", "source": "tmpfs", "options": ["tmpcopyup"]}),
        );
        script(
            spec,
            "cat /kept/deep/file; echo new > /kept/new; stat -c '%a %u' /kept/deep; readlink /kept/link",
        );
    });
    let kept = bundle.path().join("rootfs/kept");
    fs::create_dir_all(kept.join("deep")).expect("writable");
    fs::write(kept.join("deep/file"), "of the image\n").expect("writable");
    fs::set_permissions(kept.join("deep"), fs::Permissions::from_mode(0o755)).expect("ours");
    chown(&kept.join("deep"), 7);
    std::os::unix::fs::symlink("deep/file", kept.join("link")).expect("writable");
    let path = bundle.path().display().to_string();
    for runtime in Runtime::both() {
        let done = runtime.run(&["run", "--bundle", &path, &runtime.id("copyup")]).ok();
        assert_eq!(done.text(), "of the image\n755 7\ndeep/file", "{}", runtime.name);
    }
    assert!(!kept.join("new").exists(), "the image is as it was");
}

/// The first process enters its cgroup as late as it can: before it takes memory for what the image holds.
#[test]
fn what_a_tmpfs_copies_is_the_containers_memory() {
    const LEN: usize = 16 << 20;
    let bundle = bundle(|spec| {
        // Before any mount that shows the cgroup.
        spec["mounts"].as_array_mut().expect("mounts").insert(
            0,
            json!({"destination": "/kept", "type": "tmpfs", "source": "tmpfs", "options": ["tmpcopyup"]}),
        );
        let files =
            ["memory/memory.usage_in_bytes", "memory.current"].map(|file| format!("/sys/fs/cgroup/{file}"));
        script(spec, &format!("cat {} 2>/dev/null || true", files.join(" ")));
    });
    let kept = bundle.path().join("rootfs/kept");
    fs::create_dir(&kept).expect("writable");
    fs::write(kept.join("file"), vec![1; LEN]).expect("writable");
    let runtime = Runtime::ours();
    let path = bundle.path().display().to_string();
    let done = runtime.run(&["run", "--bundle", &path, &runtime.id("charged")]).ok();
    let used: usize = done.text().parse().expect("the bytes of one tree");
    assert!(used >= LEN, "{used}");
}
