//! Labels of AppArmor and SELinux, on hosts that have them: the guests of `guest.rs`.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::json;
use tempfile::TempDir;
use testkit::{eventually, is_root, run};

use crate::runtime_bundle::{Runtime, bundle, same, script};

fn has_apparmor() -> bool {
    let enabled = fs::read_to_string("/sys/module/apparmor/parameters/enabled");
    let has = is_root("a profile") && enabled.is_ok_and(|text| text.starts_with('Y'));
    let must = std::env::var_os("HOIST_GUEST").is_some_and(|guest| guest == "apparmor");
    assert!(has || !must, "the guest has no AppArmor");
    if !has {
        println!("skipped: this host has no AppArmor");
    }
    has
}

/// A profile that allows all but one file, loaded until it is dropped.
struct Profile {
    name: String,
    dir: TempDir,
}

impl Profile {
    fn load(what: &str, forbidden: &str) -> Profile {
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
    // With the other order of privileges too.
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
        runtime.run(&["delete", "--force", &id]).ok();
        let refused = bundle_with("no-such-profile", &runtime);
        assert!(refused.contains("no-such-profile") || runtime.name == "runc", "{}: {refused}", runtime.name);
    }
}

/// What is said of a profile that is not loaded.
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

/// A policy with three types, and all allowed: what is shown is which label things have.
const POLICY: &str = "\
class security class process class system class capability class filesystem class file class dir class fd
class lnk_file class chr_file class blk_file class sock_file class fifo_file
sid kernel sid security sid unlabeled sid fs sid file sid file_labels sid init sid any_socket sid port sid netif
sid netmsg sid node sid igmp_packet sid icmp_socket sid tcp_socket sid sysctl_modprobe sid sysctl sid sysctl_fs
sid sysctl_kernel sid sysctl_net sid sysctl_net_unix sid sysctl_vm sid sysctl_dev sid kmod sid policy
sid scmp_packet sid devnull
class security { load_policy }
class process { transition dyntransition setexec fork }
class system { syslog_read }
class capability { chown }
class filesystem { associate mount relabelfrom relabelto }
class file { read write execute entrypoint execute_no_trans }
class dir { read search }
class fd { use }
class lnk_file { read }
class chr_file { read }
class blk_file { read }
class sock_file { read }
class fifo_file { read }
type host_t;
type container_t;
type files_t;
role system_r;
role system_r types { host_t container_t files_t };
allow host_t container_t:process { transition };
user system_u roles { system_r };
sid kernel system_u:system_r:host_t
sid security system_u:system_r:host_t
sid unlabeled system_u:system_r:host_t
sid fs system_u:system_r:host_t
sid file system_u:system_r:host_t
sid file_labels system_u:system_r:host_t
sid init system_u:system_r:host_t
sid any_socket system_u:system_r:host_t
sid port system_u:system_r:host_t
sid netif system_u:system_r:host_t
sid netmsg system_u:system_r:host_t
sid node system_u:system_r:host_t
sid igmp_packet system_u:system_r:host_t
sid icmp_socket system_u:system_r:host_t
sid tcp_socket system_u:system_r:host_t
sid sysctl_modprobe system_u:system_r:host_t
sid sysctl system_u:system_r:host_t
sid sysctl_fs system_u:system_r:host_t
sid sysctl_kernel system_u:system_r:host_t
sid sysctl_net system_u:system_r:host_t
sid sysctl_net_unix system_u:system_r:host_t
sid sysctl_vm system_u:system_r:host_t
sid sysctl_dev system_u:system_r:host_t
sid kmod system_u:system_r:host_t
sid policy system_u:system_r:host_t
sid scmp_packet system_u:system_r:host_t
sid devnull system_u:system_r:host_t
fs_use_trans tmpfs system_u:system_r:host_t;
fs_use_trans devtmpfs system_u:system_r:host_t;
fs_use_trans devpts system_u:system_r:host_t;
genfscon proc / system_u:system_r:host_t
genfscon sysfs / system_u:system_r:host_t
";

/// Loads [`POLICY`], which lasts until the next boot. In the guest only.
fn load_policy() -> bool {
    let must = std::env::var_os("HOIST_GUEST").is_some_and(|guest| guest == "selinux");
    if !must {
        println!("skipped: the policy of a host is not changed for a test");
        return false;
    }
    let tree = Path::new("/sys/fs/selinux");
    if !tree.join("load").exists() {
        run(Command::new("mount").args(["-t", "selinuxfs", "selinuxfs"]).arg(tree)).ok();
    }
    let dir = TempDir::new().expect("a temporary directory");
    let (source, policy) = (dir.path().join("policy.conf"), dir.path().join("policy"));
    fs::write(&source, POLICY).expect("a writable directory");
    run(Command::new("checkpolicy").args(["-U", "allow", "-c", "33", "-o"]).arg(&policy).arg(&source)).ok();
    let policy = fs::read(policy).expect("checkpolicy writes it");
    fs::write(tree.join("load"), policy).expect("the kernel takes the policy");
    true
}

#[test]
fn labels_of_selinux_are_on_processes_and_file_systems() {
    if !load_policy() {
        return;
    }
    let (process, files) = ("system_u:system_r:container_t", "system_u:system_r:files_t");
    let told = same("cat /proc/self/attr/current; busybox grep ' /dev/shm ' /proc/mounts", |spec| {
        spec["process"]["selinuxLabel"] = json!(process);
        spec["linux"]["mountLabel"] = json!(files);
    });
    assert!(told.contains(process) && told.contains(&format!("context={files}")), "{told}");
    for runtime in Runtime::both() {
        let bundle = bundle(|spec| {
            script(spec, "echo up > /up; sleep 1000");
            spec["process"]["selinuxLabel"] = json!(process);
        });
        let (path, id) = (bundle.path().display().to_string(), runtime.id("labelled"));
        let mut command = runtime.command(&["run", "-d", "--bundle", &path, &id]);
        assert!(command.stdout(std::process::Stdio::null()).status().expect("it runs").success());
        eventually("it is up", || bundle.path().join("rootfs/up").exists().then_some(()));
        let seen = runtime.run(&["exec", &id, "cat", "/proc/self/attr/current", "/proc/1/attr/current"]).ok();
        assert_eq!(seen.stdout.matches(process).count(), 2, "{}: {seen}", runtime.name);
        runtime.run(&["delete", "--force", &id]).ok();
    }
}
