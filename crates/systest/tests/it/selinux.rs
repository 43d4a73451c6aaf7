//! SELinux labels, in the guest of `guest.rs` that has SELinux, enforced under the test's own small policy
//! (`selinux.conf`).

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Once;

use serde_json::{Value, json};
use testkit::run;

use crate::runtime_bundle::{Runtime, bundle, same, script};

/// Confined: may write only files that are labelled for containers.
const LABEL: &str = "system_u:system_r:container_t:s0:c1,c2";

/// Confined as well, but may write files of the host.
const OTHER: &str = "system_u:system_r:other_t:s0";

const FILES: &str = "system_u:object_r:container_file_t:s0:c1,c2";

/// Whether this is the guest, with the test's policy loaded. No policy of another host is touched.
fn has_policy() -> bool {
    static LOADED: Once = Once::new();
    if std::env::var_os("HOIST_GUEST").is_none_or(|guest| guest != "selinux") {
        println!("skipped: not in the guest whose policy may be replaced");
        return false;
    }
    LOADED.call_once(|| {
        let dir = tempfile::TempDir::new().expect("a temporary directory");
        let (text, policy) = (dir.path().join("policy.conf"), dir.path().join("policy"));
        fs::write(&text, include_str!("selinux.conf")).expect("writable");
        let version = fs::read_to_string("/sys/fs/selinux/policyvers").expect("the guest has SELinux");
        let mut compile = Command::new("checkpolicy");
        compile.args(["-M", "-U", "allow", "-c", version.trim(), "-o"]).arg(&policy).arg(&text);
        run(&mut compile).ok();
        fs::write("/sys/fs/selinux/load", fs::read(&policy).expect("just made")).expect("a policy");
        fs::write("/sys/fs/selinux/enforce", "1").expect("the policy allows it");
    });
    true
}

fn label(spec: &mut Value) {
    spec["process"]["selinuxLabel"] = json!(LABEL);
    spec["linux"]["mountLabel"] = json!(FILES);
    // Keys that a process may not see are not in `/proc/keys`.
    let masked = spec["linux"]["maskedPaths"].as_array_mut().expect("a list");
    masked.retain(|path| path != "/proc/keys");
}

#[test]
fn a_container_is_confined_by_its_label() {
    if !has_policy() {
        return;
    }
    let attempt = "cat /proc/self/attr/current; echo; (echo > /not-mine) 2>/dev/null || echo refused; \
                   echo > /dev/shm/mine && echo written; busybox grep -c ' _ses.' /proc/keys";
    let expected = format!("{LABEL}\0\nrefused\nwritten\n1\n");
    assert_eq!(same(attempt, label), expected);
    let with_privileges = |spec: &mut Value| {
        label(spec);
        spec["process"]["noNewPrivileges"] = json!(false);
    };
    assert_eq!(same(attempt, with_privileges), expected);
    // File systems made for the container, and those that cover paths of the host.
    let mounts = r#"busybox sed -n 's/^[^ ]* [^ ]* [^ ]* [^ ]* \([^ ]*\) .*\(context="[^"]*"\).*/\1 \2/p' /proc/self/mountinfo | sort"#;
    let labelled = same(mounts, label);
    for path in ["/dev ", "/dev/pts ", "/dev/shm ", "/proc/acpi "] {
        assert!(labelled.contains(&format!("{path}context=\"{FILES}\"")), "{path}\n{labelled}");
    }
}

#[test]
fn who_enters_is_confined_too() {
    if !has_policy() {
        return;
    }
    // Of keyrings its own: that of another container is seen by all for as long as runc has not closed it.
    let attempt = |id: &str| {
        format!(
            "cat /proc/self/attr/current; echo; (echo > /not-mine) 2>/dev/null || echo refused; \
             busybox grep -c ' _ses.{id}' /proc/keys"
        )
    };
    for runtime in Runtime::both() {
        let bundle = bundle(|spec| {
            label(spec);
            script(spec, "sleep 1000");
        });
        let path = bundle.path().display().to_string();
        let id = runtime.id("confined");
        let started = runtime.command(&["run", "-d", "--bundle", &path, &id]).stdout(Stdio::null()).status();
        assert!(started.expect("it runs").success());
        let attempt = attempt(&id);
        let entered = runtime.run(&["exec", &id, "sh", "-c", &attempt]).ok();
        assert_eq!(entered.stdout, format!("{LABEL}\0\nrefused\n1\n"), "{}", runtime.name);
        let entered = runtime.run(&["exec", "--process-label", OTHER, &id, "sh", "-c", &attempt]);
        assert!(entered.stdout.starts_with(&format!("{OTHER}\0\n")), "{}: {entered}", runtime.name);
        assert!(!entered.stdout.contains("refused"), "{}: {entered}", runtime.name);
        let silent = bundle.path().join("process.json");
        let process = json!({"args": ["/bin/cat", "/proc/self/attr/current"], "cwd": "/"});
        fs::write(&silent, process.to_string()).expect("a writable bundle");
        let entered = runtime.run(&["exec", "--process", &silent.display().to_string(), &id]).ok();
        assert_eq!(entered.text().trim_end_matches('\0'), LABEL, "{}", runtime.name);
        // This file system has no option for a label.
        let state: Value = serde_json::from_str(&runtime.run(&["state", &id]).ok().stdout).expect("JSON");
        let queues = format!("/proc/{}/root/dev/mqueue", state["pid"]);
        let mut found = [0; 128];
        let len = rustix::fs::getxattr(Path::new(&queues), "security.selinux", &mut found[..]);
        let found = String::from_utf8_lossy(&found[..len.expect("it has a label")]);
        assert_eq!(found.trim_end_matches('\0'), FILES, "{}", runtime.name);
        runtime.run(&["delete", "--force", &id]).ok();
    }
}

#[test]
fn a_label_that_the_policy_does_not_know_is_refused() {
    if !has_policy() {
        return;
    }
    let unknown = "system_u:system_r:nobody_t:s0";
    for runtime in Runtime::both() {
        let refused = |change: &dyn Fn(&mut Value)| {
            let bundle = bundle(|spec| {
                script(spec, "true");
                change(spec);
            });
            let path = bundle.path().display().to_string();
            let refused = runtime.run(&["run", "--bundle", &path, &runtime.id("refused")]);
            assert_ne!(refused.code, 0, "{}: {refused}", runtime.name);
            assert_eq!(runtime.run(&["list", "-q"]).ok().text(), "", "{}: nothing is left", runtime.name);
            refused.stderr
        };
        let said = refused(&|spec| spec["process"]["selinuxLabel"] = json!(unknown));
        assert!(said.contains(unknown) || runtime.name == "runc", "{said}");
        refused(&|spec| spec["linux"]["mountLabel"] = json!(unknown));
    }
}
