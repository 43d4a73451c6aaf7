//! Containers whose cgroups systemd makes (`--systemd-cgroup`). On a host without systemd the test checks the error;
//! the rest runs in the guest of `guest.rs`.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::json;
use tempfile::TempDir;
use testkit::{Bundle, Finished, ShimHost, eventually, run};

use crate::cgroups::{is_v2, named, read};
use crate::runtime_bundle::read_spec;

/// Whether systemd is the first process (sd_booted(3)).
pub(crate) fn is_booted() -> bool {
    Path::new("/run/systemd/system").is_dir()
}

fn bundle(script: &str, slice: &str) -> Bundle {
    let bundle = Bundle::new(script).with_arguments(&["--systemd-cgroup"]);
    let path = format!("{slice}:box:{}", bundle.id());
    bundle.change(|spec| spec["linux"]["cgroupsPath"] = json!(path))
}

/// Properties of a unit, each as `NAME=VALUE`.
fn show(unit: &str, names: &[&str]) -> Vec<String> {
    let mut systemctl = Command::new("systemctl");
    systemctl.arg("show").arg(unit).args(names.iter().map(|name| format!("--property={name}")));
    let mut lines: Vec<String> = run(&mut systemctl).ok().stdout.lines().map(str::to_owned).collect();
    lines.sort();
    lines
}

fn is_gone(unit: &str) -> bool {
    show(unit, &["LoadState"]) == ["LoadState=not-found"]
}

/// `hoist runtime WORDS` in a mount namespace of its own, after `prepare`.
fn run_apart(bundle: &Bundle, prepare: &str, words: &[&str]) -> Finished {
    let command = bundle.command(words);
    let mut apart = Command::new("busybox");
    apart.args(["unshare", "-m", "sh", "-c", &format!("{prepare}; exec \"$@\""), "sh"]);
    apart.arg(command.get_program()).args(command.get_args()).current_dir(bundle.path());
    run(apart.stdin(Stdio::null()))
}

#[test]
fn without_systemd_the_error_says_what_to_do() {
    let bundle = bundle("true", "test.slice");
    let hide =
        "mkdir -p /run/systemd /run/dbus; mount -t tmpfs none /run/systemd; mount -t tmpfs none /run/dbus";
    let refused = run_apart(&bundle, hide, &["run", bundle.id()]).expect_code(1);
    for words in ["systemd does not answer", "cgroupfs driver"] {
        assert!(refused.stderr.contains(words), "no {words:?}\n{refused}");
    }
    assert_eq!(bundle.run(&["state"]).code, 1, "nothing is left");
    assert!(
        !run(Command::new("find").args(["/sys/fs/cgroup", "-name", bundle.id()]))
            .stdout
            .contains(bundle.id())
    );
}

/// `SystemdCgroup` of containerd's configuration reaches the runtime through the shim.
#[test]
fn the_shims_option_is_the_runtimes_flag() {
    let host = ShimHost::new();
    let id = format!("asked{}", std::process::id());
    let container = host.container(&id, "exec sleep 1000").with(|container| {
        container.options.systemd_cgroup = true;
        container.spec["linux"]["cgroupsPath"] = json!(format!("test-shim.slice:box:{id}"));
        container.spec["linux"]["resources"] = json!({"pids": {"limit": 30}});
    });
    if !is_booted() {
        let refused = container.try_create().unwrap_err().chain();
        assert!(refused.contains("systemd does not answer"), "{refused}");
        return;
    }
    let task = container.run();
    let unit = format!("box-{id}.scope");
    let names = ["ActiveState", "Delegate", "Slice", "TasksMax"];
    let expected = ["ActiveState=active", "Delegate=yes", "Slice=test-shim.slice", "TasksMax=30"];
    assert_eq!(show(&unit, &names), expected);
    let pid = task.state("").expect("it runs").pid;
    let own = fs::read_to_string(format!("/proc/{pid}/cgroup")).expect("it lives");
    assert!(own.contains(&format!("/test.slice/test-shim.slice/{unit}")), "{own}");
    assert_eq!(task.run_exec("e", &format!("grep -q {unit} /proc/self/cgroup")), 0);
    task.end();
    eventually("the scope is gone", || is_gone(&unit).then_some(()));
}

#[test]
fn paths_under_systemd_have_three_parts() {
    for path in ["/hoist/abc", "a:b:c", "a.slice:b", "a.slice:b:c/d"] {
        let bundle = Bundle::new("true").with_arguments(&["--systemd-cgroup"]);
        let bundle = bundle.change(|spec| spec["linux"]["cgroupsPath"] = json!(path));
        bundle.run(&["run"]).expect_code(1).expect_stderr(path);
    }
}

#[test]
fn a_scope_lives_as_long_as_its_container() {
    if !is_booted() {
        return without_systemd_the_error_says_what_to_do();
    }
    let bundle =
        bundle("trap 'exit 4' TERM; touch /up; while true; do usleep 10000; done", "test-inner.slice")
            .with_resources(json!({
                "memory": {"limit": 64 << 20, "reservation": 32 << 20, "swap": 64 << 20},
                "cpu": {"shares": 512, "quota": 15_500, "period": 100_000, "cpus": "0"},
                "pids": {"limit": 30},
                "unified": if is_v2() { json!({"memory.high": "50331648", "memory.min": "4194304"}) } else { json!({}) },
            }))
            .change(|spec| {
                spec["annotations"] = json!({
                    "org.systemd.property.CollectMode": "'inactive-or-failed'",
                    "org.systemd.property.TimeoutStopSec": "uint64 123",
                });
            });
    let unit = format!("box-{}.scope", bundle.id());
    bundle.start();
    eventually("the container is up", || bundle.rootfs().join("up").exists().then_some(()));
    let own = fs::read_to_string(format!("/proc/{}/cgroup", bundle.pid())).expect("it lives");
    let place = format!("/test.slice/test-inner.slice/{unit}");
    // systemd does not manage these controllers of version 1. The container has a cgroup in every other hierarchy.
    let is_ours = |line: &&str| is_v2() || !line.contains(":misc:") && !line.contains(":rdma:");
    assert!(own.lines().filter(is_ours).all(|line| line.ends_with(&place)), "{own}");
    // systemd rounds 15.5 % up to 16 %; the kernel has the exact value.
    let common = [
        "ActiveState=active",
        "CPUQuotaPerSecUSec=160ms",
        "CollectMode=inactive-or-failed",
        "Delegate=yes",
        "DevicePolicy=strict",
        "TimeoutStopUSec=2min 3s",
    ];
    let limits: &[&str] = if is_v2() {
        &[
            "AllowedCPUs=0",
            "CPUWeight=59",
            "MemoryHigh=50331648",
            "MemoryLow=33554432",
            "MemoryMax=67108864",
            "MemoryMin=4194304",
            "MemorySwapMax=0",
        ]
    } else {
        &["CPUShares=512", "MemoryLimit=67108864"]
    };
    let mut expected = [&common[..], limits, &["Slice=test-inner.slice", "TasksMax=30"]].concat();
    expected.sort_unstable();
    let names: Vec<&str> = expected.iter().filter_map(|line| line.split('=').next()).collect();
    assert_eq!(show(&unit, &names), expected);
    let pid = bundle.pid();
    let files: &[(&str, &str)] = if is_v2() {
        &[("cpu.max", "15500 100000"), ("memory.max", "67108864"), ("pids.max", "30"), ("cpuset.cpus", "0")]
    } else {
        &[
            ("cpu.cfs_quota_us", "15500"),
            ("cpu.shares", "512"),
            ("memory.limit_in_bytes", "67108864"),
            ("memory.soft_limit_in_bytes", "33554432"),
            ("pids.max", "30"),
            ("cpuset.cpus", "0"),
        ]
    };
    for (file, text) in files {
        assert_eq!(read(pid, file), *text, "{file}");
    }

    bundle.run(&["update", "--memory", "134217728", "--memory-swap", "134217728", "--pids-limit", "40"]).ok();
    let (property, file) =
        if is_v2() { ("MemoryMax", "memory.max") } else { ("MemoryLimit", "memory.limit_in_bytes") };
    assert_eq!(show(&unit, &[property, "TasksMax"]), [format!("{property}=134217728"), "TasksMax=40".into()]);
    run(Command::new("systemctl").arg("daemon-reload")).ok();
    assert_eq!([read(pid, file), read(pid, "pids.max")], ["134217728", "40"], "they outlive a reload");
    if is_v2() {
        assert_eq!([read(pid, "memory.high"), read(pid, "memory.min")], ["50331648", "4194304"]);
        // An idle cgroup has the weight 0 in systemd.
        let resources = bundle.path().join("resources.json");
        fs::write(&resources, json!({"cpu": {"idle": 1}}).to_string()).expect("writable");
        bundle.run(&["update", "--resources", resources.to_str().expect("UTF-8")]).ok();
        run(Command::new("systemctl").arg("daemon-reload")).ok();
        assert_eq!(
            (show(&unit, &["CPUWeight"]), read(pid, "cpu.idle")),
            (vec!["CPUWeight=idle".into()], "1".into())
        );
        bundle.run(&["update", "--cpu-share", "1024"]).ok();
        assert_eq!(
            (show(&unit, &["CPUWeight"]), read(pid, "cpu.idle"), read(pid, "cpu.weight")),
            (vec!["CPUWeight=100".into()], "0".into(), "100".into())
        );
    }
    let exec = bundle.exec(
        "cut -d: -f3 /proc/self/cgroup | sort -u; cat /sys/fs/cgroup/pids.max /sys/fs/cgroup/pids/pids.max 2>/dev/null; true",
    );
    assert_eq!(exec.ok().stdout, "/\n40\n");

    bundle.run(&["delete"]).expect_code(1);
    run(bundle.command(&["kill", bundle.id()]).arg("TERM")).ok();
    eventually("the container has stopped", || (bundle.state()["status"] == "stopped").then_some(()));
    bundle.run(&["delete"]).ok();
    eventually("the scope is gone", || is_gone(&unit).then_some(()));
    assert_eq!(named(&unit), Vec::<PathBuf>::new(), "in no tree");
}

#[test]
fn a_scope_keeps_what_an_update_leaves_unsaid_and_all_if_it_fails() {
    if !is_booted() {
        return without_systemd_the_error_says_what_to_do();
    }
    let bundle = bundle("sleep 1000", "test.slice").with_resources(json!({
        "memory": {"limit": 64 << 20}, "cpu": {"quota": 50_000, "period": 100_000},
    }));
    bundle.start();
    let unit = format!("box-{}.scope", bundle.id());
    let pid = bundle.pid();
    let quota = || {
        let files: &[&str] = if is_v2() { &["cpu.max"] } else { &["cpu.cfs_quota_us", "cpu.cfs_period_us"] };
        let known = show(&unit, &["CPUQuotaPerSecUSec", "CPUQuotaPeriodUSec"]);
        (files.iter().map(|file| read(pid, file)).collect::<Vec<_>>().join(" "), known)
    };
    let known = |quota: &str, period: &str| {
        vec![format!("CPUQuotaPerSecUSec={quota}"), format!("CPUQuotaPeriodUSec={period}")]
    };
    bundle.run(&["update", "--cpu-period", "200000"]).ok();
    assert_eq!(quota(), ("50000 200000".to_owned(), known("250ms", "200ms")));
    bundle.run(&["update", "--cpu-quota", "20000"]).ok();
    assert_eq!(quota(), ("20000 200000".to_owned(), known("100ms", "200ms")));

    let (property, file) =
        if is_v2() { ("MemoryMax", "memory.max") } else { ("MemoryLimit", "memory.limit_in_bytes") };
    let memory = || (read(pid, file), show(&unit, &[property, "TasksMax"]));
    let before = memory();
    let flags = ["--memory", "48m", "--pids-limit", "9", "--cpuset-cpus", "4000"];
    bundle.run(&[&["update"], &flags[..]].concat()).expect_code(1).expect_stderr("cpuset.cpus");
    assert_eq!(memory(), before);
    bundle.run(&[&["update"], &flags[..4]].concat()).ok();
    let after = vec![format!("{property}=50331648"), "TasksMax=9".to_owned()];
    assert_eq!(memory(), ("50331648".to_owned(), after));
}

/// systemd has the same properties for the scope as for runc's.
#[test]
fn scopes_are_runcs() {
    if !is_booted() {
        return without_systemd_the_error_says_what_to_do();
    }
    const PROPERTIES: [&str; 21] = [
        "AllowedCPUs",
        "BlockIOAccounting",
        "CPUAccounting",
        "CPUQuotaPerSecUSec",
        "CPUQuotaPeriodUSec",
        "CPUShares",
        "CPUWeight",
        "DefaultDependencies",
        "Delegate",
        "DeviceAllow",
        "DevicePolicy",
        "IOAccounting",
        "MemoryAccounting",
        "MemoryHigh",
        "MemoryLimit",
        "MemoryLow",
        "MemoryMax",
        "MemorySwapMax",
        "Slice",
        "TasksAccounting",
        "TasksMax",
    ];
    let [mut ours, mut theirs] = ["hoist", "runc"].map(|name| {
        let bundle = bundle("sleep 1000", "test.slice").with_resources(json!({
            "memory": {"limit": 64 << 20, "reservation": 32 << 20, "swap": 96 << 20},
            "cpu": {"shares": 256, "quota": 25_000, "period": 50_000, "cpus": "0"},
            "pids": {"limit": 30},
            "devices": [
                {"allow": false, "access": "rwm"},
                {"allow": true, "type": "c", "major": 1, "minor": 11, "access": "rw"},
            ],
        }));
        let unit = format!("box-{}.scope", bundle.id());
        let root = bundle.path().join("runc");
        let runc = |words: &[&str]| {
            let mut runc = Command::new("runc");
            runc.arg("--systemd-cgroup").arg("--root").arg(&root).args(words).arg(bundle.id());
            runc.current_dir(bundle.path()).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
            assert!(runc.status().expect("it runs").success(), "runc {words:?}");
        };
        match name {
            "hoist" => bundle.start(),
            _ => runc(&["run", "-d"]),
        }
        // For version 1, runc gives systemd the cpuset as well, which systemd ignores.
        let compared = PROPERTIES.iter().copied().filter(|name| is_v2() || *name != "AllowedCPUs");
        let properties = show(&unit, &compared.collect::<Vec<_>>());
        if name == "runc" {
            runc(&["delete", "--force"]);
        }
        properties
    });
    if is_v2() {
        // Newer versions of runc convert shares to weights by another formula, and this one may be older.
        let take = |properties: &mut Vec<String>| {
            let at = properties.iter().position(|property| property.starts_with("CPUWeight="));
            properties.remove(at.expect("it is always shown"))
        };
        assert_eq!(take(&mut ours), "CPUWeight=35");
        take(&mut theirs);
    }
    // runc leaves out devices without a node on the host, such as this one if its module is not loaded. systemd needs
    // only the numbers.
    for properties in [&mut ours, &mut theirs] {
        properties.retain(|property| property != "DeviceAllow=/dev/char/10:200 rwm");
    }
    assert_eq!(ours, theirs);
}

#[test]
fn systemd_keeps_devices_closed_across_a_reload() {
    if !is_booted() {
        return without_systemd_the_error_says_what_to_do();
    }
    let try_log = "(echo > /log) 2>/dev/null && echo written; cat /dev/null && echo null";
    let rules = json!({"devices": [{"allow": false, "access": "rwm"}]});
    let closed = bundle("mknod /log c 1 11; sleep 1000", "").with_resources(rules).change(|spec| {
        for set in ["bounding", "effective", "permitted"] {
            spec["process"]["capabilities"][set] = json!(["CAP_MKNOD"]);
        }
    });
    closed.start();
    eventually("the device is made", || closed.rootfs().join("log").exists().then_some(()));
    assert_eq!(closed.exec(try_log).ok().stdout, "null\n");
    run(Command::new("systemctl").arg("daemon-reload")).ok();
    assert_eq!(closed.exec(try_log).ok().stdout, "null\n");
}

#[test]
fn a_scope_ends_with_a_container_that_ends_by_itself() {
    if !is_booted() {
        return without_systemd_the_error_says_what_to_do();
    }
    let bundle = bundle("exit 6", "").with_resources(json!({"pids": {"limit": 1}}));
    bundle.run(&["run"]).expect_code(6);
    let unit = format!("box-{}.scope", bundle.id());
    eventually("the scope is gone", || is_gone(&unit).then_some(()));
    // Without its private socket, systemd is called over the bus.
    let hide = "mount -o bind /dev/null /run/systemd/private";
    run_apart(&bundle, hide, &["run", bundle.id()]).expect_code(6);
    eventually("the scope is gone", || is_gone(&unit).then_some(()));
}

#[test]
fn a_scope_belongs_to_one_container() {
    if !is_booted() {
        return without_systemd_the_error_says_what_to_do();
    }
    let first = bundle("sleep 1000", "");
    let path = format!(":box:{}", first.id());
    first.start();
    let second = bundle("true", "").change(|spec| spec["linux"]["cgroupsPath"] = json!(path));
    second.run(&["run"]).expect_code(1).expect_stderr("already");
    assert_eq!(first.state()["status"], "running", "the first one does not notice");
}

/// An unprivileged user, with a bundle and a copy of the program.
struct User {
    home: TempDir,
    id: String,
}

impl User {
    const NUMBER: u32 = 4545;

    /// The command by which root becomes this user. By its path, since busybox's `setpriv` has other flags.
    fn become_it() -> String {
        format!("/usr/bin/setpriv --reuid {0} --regid {0} --clear-groups --", User::NUMBER)
    }

    fn new(script: &str) -> User {
        let user = User {
            home: TempDir::new().expect("a temporary directory"),
            id: Bundle::new("true").id().to_owned(),
        };
        let bin = user.bundle().join("rootfs/bin");
        fs::create_dir_all(&bin).expect("writable");
        testkit::executable_copy(&testkit::hoist_program(), &user.program());
        fs::copy("/bin/busybox", bin.join("busybox")).expect("busybox is installed");
        for applet in ["sh", "cat", "sleep"] {
            symlink("busybox", bin.join(applet)).expect("writable");
        }
        fs::create_dir(user.runtime_dir()).expect("writable");
        user.own_all();
        user.call(&[], &["spec", "--rootless"]).ok();
        let config = user.bundle().join("config.json");
        let mut spec = read_spec(&user.bundle());
        spec["process"]["terminal"] = json!(false);
        spec["process"]["args"] = json!(["sh", "-c", script]);
        spec["linux"]["cgroupsPath"] = json!(format!(":box:{}", user.id));
        spec["linux"]["resources"] = json!({"pids": {"limit": 30}, "memory": {"limit": 64 << 20}});
        fs::write(&config, spec.to_string()).expect("writable");
        user
    }

    fn own_all(&self) {
        let owner = format!("{0}:{0}", User::NUMBER);
        run(Command::new("chown").args(["-R", &owner]).arg(self.home.path())).ok();
    }

    fn bundle(&self) -> PathBuf {
        self.home.path().join("bundle")
    }

    fn program(&self) -> PathBuf {
        self.home.path().join("hoist")
    }

    fn runtime_dir(&self) -> PathBuf {
        self.home.path().join("run")
    }

    fn unit(&self) -> String {
        format!("box-{}.scope", self.id)
    }

    /// The service in which the user's systemd runs.
    fn service(&self) -> String {
        format!("systemd-of-{}.service", self.id)
    }

    /// `WORDS` as this user, with the address of the user's systemd, and in a cgroup from which the user may move
    /// processes.
    fn command(&self, words: &[&str]) -> Command {
        let script = format!(
            "cd /sys/fs/cgroup/user.slice/{}/init.scope 2>/dev/null && echo $$ >cgroup.procs\n\
             cd {}\n\
             exec {} \"$@\"",
            self.service(),
            self.bundle().display(),
            User::become_it()
        );
        let mut command = Command::new("sh");
        command.args(["-c", &script, "sh"]).args(words);
        command.env("XDG_RUNTIME_DIR", self.runtime_dir()).stdin(Stdio::null());
        command
    }

    /// `BEFORE hoist runtime --systemd-cgroup WORDS`.
    fn runtime(&self, before: &[&str], words: &[&str]) -> Command {
        let mut command = self.command(before);
        command.arg(self.program()).args(["runtime", "--systemd-cgroup", "--root"]);
        command.arg(self.home.path().join("state")).args(words);
        command
    }

    fn call(&self, before: &[&str], words: &[&str]) -> Finished {
        run(&mut self.runtime(before, words))
    }
}

/// The user's systemd, which ends when this is dropped.
struct OwnSystemd<'a>(&'a User);

impl OwnSystemd<'_> {
    fn start(user: &User) -> OwnSystemd<'_> {
        let own = OwnSystemd(user);
        let script = user.home.path().join("start");
        // What systemd does by itself for a user of the host.
        let lines = format!(
            "cd /sys/fs/cgroup$(sed s/0::// /proc/self/cgroup)\n\
             chown {0}:{0} . cgroup.procs cgroup.subtree_control cgroup.threads\n\
             cd /\n\
             exec {1} /lib/systemd/systemd --user\n",
            User::NUMBER,
            User::become_it()
        );
        fs::write(&script, lines).expect("writable");
        let mut start = Command::new("systemd-run");
        start.args(["--quiet", &format!("--unit={}", user.service()), "--slice=user.slice"]);
        // Default dependencies would mount a file system over /tmp.
        let properties = ["Type=notify", "Delegate=yes", "DefaultDependencies=no"];
        start.args(properties.map(|property| format!("--property={property}")));
        start.arg(format!("--setenv=XDG_RUNTIME_DIR={}", user.runtime_dir().display()));
        start.args(["--setenv=HOME=/", "/bin/sh", "-e"]).arg(script);
        run(&mut start).ok();
        own
    }

    fn show(&self, property: &str) -> String {
        let words = ["systemctl", "--user", "show", &self.0.unit(), &format!("--property={property}")];
        run(&mut self.0.command(&words)).ok().text().to_owned()
    }
}

impl Drop for OwnSystemd<'_> {
    fn drop(&mut self) {
        run(Command::new("systemctl").args(["stop", &self.0.service()]));
    }
}

/// As podman does by default.
#[test]
fn who_is_not_root_has_scopes_of_its_own_systemd() {
    if !is_booted() || !is_v2() {
        return who_is_not_root_is_told_which_systemd_is_missing();
    }
    let user = User::new("exec sleep 1000");
    let systemd = OwnSystemd::start(&user);
    let mut start = user.runtime(&[], &["run", "--detach", &user.id]);
    let log = user.home.path().join("log");
    start.stdout(Stdio::null()).stderr(fs::File::create(&log).expect("writable"));
    let status = start.status().expect("it runs");
    assert!(status.success(), "{}", fs::read_to_string(&log).unwrap_or_default());
    let state = user.call(&[], &["state", &user.id]).ok();
    let state: serde_json::Value = serde_json::from_str(&state.stdout).expect("JSON");
    let pid = state["pid"].as_u64().expect("a pid");
    let own = fs::read_to_string(format!("/proc/{pid}/cgroup")).expect("it lives");
    let place = format!("/user.slice/{}/user.slice/{}", user.service(), user.unit());
    assert_eq!(own.trim(), format!("0::{place}"));
    assert_eq!((systemd.show("TasksMax"), read(pid, "pids.max")), ("TasksMax=30".into(), "30".into()));
    assert_eq!(read(pid, "memory.max"), (64 << 20).to_string());
    let place = Path::new("/sys/fs/cgroup").join(&place[1..]);
    let members = || fs::read_to_string(place.join("cgroup.procs")).expect("it is there").lines().count();
    let mut entering = user.runtime(&[], &["exec", &user.id, "sleep", "1000"]).spawn().expect("it runs");
    eventually("who enters is in it", || (members() == 2).then_some(()));
    user.call(&[], &["update", "--pids-limit", "40", &user.id]).ok();
    assert_eq!((systemd.show("TasksMax"), read(pid, "pids.max")), ("TasksMax=40".into(), "40".into()));
    user.call(&[], &["kill", &user.id, "KILL"]).ok();
    entering.wait().expect("a child of ours");
    eventually("it has ended", || {
        user.call(&[], &["state", &user.id]).ok().stdout.contains("stopped").then_some(())
    });
    user.call(&[], &["delete", &user.id]).ok();
    eventually("the scope is gone", || (systemd.show("LoadState") == "LoadState=not-found").then_some(()));
    assert_eq!(named(&user.unit()), Vec::<PathBuf>::new());
    // As root of a user namespace: podman calls the runtime in one.
    let mut spec = read_spec(&user.bundle());
    spec["process"]["args"] = json!(["sh", "-c", "cat /proc/self/cgroup"]);
    for ids in ["uidMappings", "gidMappings"] {
        spec["linux"][ids][0]["hostID"] = json!(0);
    }
    fs::write(user.bundle().join("config.json"), spec.to_string()).expect("writable");
    let said = user.call(&["/usr/bin/unshare", "--user", "--map-root-user"], &["run", &user.id]).ok();
    assert!(said.text().contains("0::/"), "{said}");
    eventually("the scope is gone", || (systemd.show("LoadState") == "LoadState=not-found").then_some(()));
}

#[test]
fn who_is_not_root_is_told_which_systemd_is_missing() {
    let user = User::new("true");
    let hidden = user
        .call(&["env", "--unset=XDG_RUNTIME_DIR", "--unset=DBUS_SESSION_BUS_ADDRESS"], &["run", &user.id]);
    hidden.expect_code(1).expect_stderr("XDG_RUNTIME_DIR");
    let words = if is_v2() { "systemd does not answer for this user" } else { "version 2 only" };
    user.call(&[], &["run", &user.id]).expect_code(1).expect_stderr(words);
    assert_eq!(user.call(&[], &["list", "--quiet"]).ok().text(), "", "nothing is left");
}
