//! The host's kernel, through its files: cgroups, devices, sysctls, and what `/proc` and `/sys` show.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::{Value, json};
use testkit::{Daemon, run};

use super::{add_capabilities, attempt};
use crate::run_flags::says;
use crate::runtime_bundle::{Runtime, bundle, read_text, script};

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
