//! AppArmor profiles, on hosts that have AppArmor: the guest of `guest.rs`.

use std::fs;
use std::process::Command;

use serde_json::json;
use tempfile::TempDir;
use testkit::{Daemon, is_root, run};

use crate::runtime_bundle::{Runtime, add_mount, bundle, same, script};

pub(crate) fn has_apparmor() -> bool {
    let enabled = fs::read_to_string("/sys/module/apparmor/parameters/enabled");
    let has = is_root("a profile") && enabled.is_ok_and(|text| text.starts_with('Y'));
    let must = std::env::var_os("HOIST_GUEST").is_some_and(|guest| guest == "apparmor");
    assert!(has || !must, "the guest has no AppArmor");
    if !has {
        println!("skipped: this host has no AppArmor");
    }
    has
}

/// An AppArmor profile that denies one file, loaded until this is dropped.
pub(crate) struct Profile {
    pub(crate) name: String,
    dir: TempDir,
}

impl Profile {
    pub(crate) fn load(what: &str, forbidden: &str) -> Profile {
        let name = format!("hoist-{what}-{}", std::process::id());
        let text = format!(
            "profile {name} flags=(attach_disconnected,mediate_deleted) {{\n  file,\n  capability,\n  network,\n  mount,\n  \
             umount,\n  pivot_root,\n  signal,\n  ptrace,\n  unix,\n  deny {forbidden} rwl,\n}}\n"
        );
        let profile = Profile { name, dir: TempDir::new().expect("a temporary directory") };
        fs::write(profile.file(), text).expect("a writable directory");
        profile.tell("--replace");
        profile
    }

    fn file(&self) -> std::path::PathBuf {
        self.dir.path().join("profile")
    }

    fn tell(&self, what: &str) {
        run(Command::new("apparmor_parser").args([what, "--skip-cache"]).arg(self.file())).ok();
    }
}

impl Drop for Profile {
    fn drop(&mut self) {
        self.tell("--remove");
    }
}

#[test]
fn profiles_confine_the_first_process_and_those_of_exec() {
    if !has_apparmor() {
        return;
    }
    let (first, other) = (Profile::load("first", "/secret"), Profile::load("other", "/hidden"));
    let tell = "cat /proc/self/attr/current; echo x > /secret; echo y > /hidden; echo $?";
    let told = same(tell, |spec| spec["process"]["apparmorProfile"] = json!(first.name));
    assert_eq!(told, format!("{} (enforce)\n0\n", first.name), "/hidden alone can be written");
    // Also if privileges are dropped in the other order.
    same(tell, |spec| {
        spec["process"]["apparmorProfile"] = json!(first.name);
        spec["process"]["noNewPrivileges"] = json!(false);
    });
    for runtime in Runtime::both() {
        let bundle = bundle(|spec| {
            script(spec, "sleep 1000");
            spec["process"]["apparmorProfile"] = json!(first.name);
        });
        let (path, id) = (bundle.path().display().to_string(), runtime.id("confined"));
        let mut command = runtime.command(&["run", "-d", "--bundle", &path, &id]);
        assert!(command.stdout(std::process::Stdio::null()).status().expect("it runs").success());
        let seen = |flags: &[&str]| {
            let words = [&["exec"], flags, &[&id, "cat", "/proc/self/attr/current"]].concat();
            runtime.run(&words).ok().text().to_owned()
        };
        assert_eq!(seen(&[]), format!("{} (enforce)", first.name), "{}", runtime.name);
        assert_eq!(
            seen(&["--apparmor", &other.name]),
            format!("{} (enforce)", other.name),
            "{}",
            runtime.name
        );
        // An exec without a profile gets the container's. With Debian's runc it may be unconfined.
        let silent = bundle.path().join("process.json");
        let process = json!({"args": ["/bin/cat", "/proc/self/attr/current"], "cwd": "/"});
        fs::write(&silent, process.to_string()).expect("a writable bundle");
        let entered = runtime.run(&["exec", "--process", &silent.display().to_string(), &id]).ok();
        let is_confined = entered.text() == format!("{} (enforce)", first.name);
        assert!(is_confined || runtime.name == "runc", "{}: {entered}", runtime.name);
        runtime.run(&["delete", "--force", &id]).ok();
        let refused = bundle_with("no-such-profile", &runtime);
        assert!(refused.contains("no-such-profile") || runtime.name == "runc", "{}: {refused}", runtime.name);
    }
}

/// The error for a profile that is not loaded.
fn bundle_with(profile: &str, runtime: &Runtime) -> String {
    let bundle = bundle(|spec| {
        script(spec, "true");
        spec["process"]["apparmorProfile"] = json!(profile);
    });
    let path = bundle.path().display().to_string();
    let refused = runtime.run(&["run", "--bundle", &path, &runtime.id("refused")]);
    assert_ne!(refused.code, 0, "{refused}");
    assert_eq!(runtime.run(&["list", "-q"]).ok().text(), "", "nothing is left");
    refused.stderr
}

/// 32-bit programs create sockets by `socketcall`, whose arguments are in memory, where no seccomp filter sees them.
/// AppArmor does.
#[test]
fn the_default_profile_keeps_containers_from_the_kernels_cryptography() {
    if !has_apparmor() {
        return;
    }
    let daemon = Daemon::with_busybox();
    let name = format!("hoist-default-{}", std::process::id());
    let image = "docker.io/library/busybox:latest";
    let load = ["run", "--rm", "--apparmor-default-profile", &name, image, "box"];
    let confined = daemon.own_ctr([&load[..], &["cat", "/proc/self/attr/current"]].concat()).ok();
    assert_eq!(confined.text(), format!("{name} (enforce)"));
    // Without a seccomp filter, so that only AppArmor can refuse AF_ALG. The program prints the error number.
    let ask = "print socket(S, 38, 5, 0) ? 'made' : 0 + $!";
    let runtime = Runtime::ours();
    let said = |profile: &str| {
        let bundle = bundle(|spec| {
            spec["process"]["args"] = json!(["/usr/bin/perl", "-e", ask]);
            spec["process"]["apparmorProfile"] = json!(profile);
            for path in ["/usr", "/lib", "/lib64"] {
                let shown =
                    json!({"destination": path, "type": "bind", "source": path, "options": ["rbind", "ro"]});
                add_mount(spec, shown);
            }
        });
        let path = bundle.path().display().to_string();
        runtime.run(&["run", "--bundle", &path, &runtime.id("asks")]).ok().text().to_owned()
    };
    let refused = rustix::io::Errno::ACCESS.raw_os_error().to_string();
    let (free, kept) = (said(""), said(&name));
    fs::write("/sys/kernel/security/apparmor/.remove", &name).expect("root may");
    assert_eq!((free == refused, kept == refused), (false, true), "{free} {kept}");
}
