//! Privileges: setuid programs, groups and capabilities of the caller, root of a user namespace.

use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::process::{Command, Stdio};

use serde_json::json;
use tempfile::TempDir;
use testkit::{eventually, run};

use super::{Running, add_capabilities, attempt};
use crate::runtime_bundle::{Runtime, add_mount, bundle, compile, read_text, script};

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
