//! Helpers for tests of the OCI runtime: Hoist's and Debian's runc with roots of their own, and bundles for them.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use serde_json::{Value, json};
use tempfile::TempDir;
use testkit::{Finished, run};

const CRUN: &str = "umount -l /sys/fs/cgroup && mount -t cgroup2 cgroup2 /sys/fs/cgroup && \
                    exec crun --cgroup-manager=disabled \"$@\"";

/// One of the runtimes, on a root of its own.
pub(crate) struct Runtime {
    pub(crate) name: &'static str,
    program: PathBuf,
    root: TempDir,
}

impl Runtime {
    pub(crate) fn both() -> [Runtime; 2] {
        assert!(Command::new("runc").arg("--version").output().is_ok(), "try: apt-get install runc");
        let runc = Runtime { name: "runc", program: "runc".into(), ..Runtime::ours() };
        [Runtime::ours(), runc]
    }

    pub(crate) fn ours() -> Runtime {
        Runtime::at(testkit::hoist_program())
    }

    /// Debian's crun, which of the host's cgroups sees version 2 alone, and leaves that alone: 1.8 does not run where
    /// both versions are.
    pub(crate) fn crun() -> Runtime {
        assert!(Command::new("crun").arg("--version").output().is_ok(), "try: apt-get install crun");
        Runtime { name: "crun", program: "unshare".into(), ..Runtime::ours() }
    }

    /// Ours, in a file of its own.
    pub(crate) fn at(program: PathBuf) -> Runtime {
        Runtime { name: "hoist", program, root: TempDir::new().expect("a temporary directory") }
    }

    /// Ours, with its root in a directory.
    pub(crate) fn within(dir: &Path) -> Runtime {
        Runtime { root: TempDir::new_in(dir).expect("a writable directory"), ..Runtime::ours() }
    }

    /// Where the states of its containers are.
    pub(crate) fn root(&self) -> &Path {
        self.root.path()
    }

    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        match self.name {
            "hoist" => drop(command.arg("runtime")),
            "crun" => drop(command.args(["--mount", "--propagation", "private", "sh", "-c", CRUN, "crun"])),
            _ => {}
        }
        command.arg("--root").arg(self.root.path()).args(args).stdin(std::process::Stdio::null());
        command
    }

    #[track_caller]
    pub(crate) fn run(&self, args: &[&str]) -> Finished {
        run(&mut self.command(args))
    }

    /// A name that nobody else uses: cgroups are the machine's.
    pub(crate) fn id(&self, what: &str) -> String {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        format!("{what}-{}-{}-{count}", self.name, std::process::id())
    }
}

/// A bundle with busybox and the spec that `runc spec` writes, changed by `change`.
pub(crate) fn bundle(change: impl Fn(&mut Value)) -> TempDir {
    let bundle = TempDir::new().expect("a temporary directory");
    let bin = bundle.path().join("rootfs/bin");
    fs::create_dir_all(&bin).expect("a writable directory");
    fs::copy("/bin/busybox", bin.join("busybox")).expect("busybox-static is installed");
    for applet in [
        "sh", "cat", "chmod", "dd", "echo", "grep", "hostname", "id", "ls", "mkdir", "mknod", "mount", "mv",
        "readlink", "rm", "sleep", "sort", "stat", "touch", "true", "umount", "uname",
    ] {
        symlink("busybox", bin.join(applet)).expect("a writable directory");
    }
    run(Command::new("runc").arg("spec").current_dir(bundle.path())).ok();
    let mut spec = read_spec(bundle.path());
    spec["process"]["terminal"] = json!(false);
    spec["root"]["readonly"] = json!(false);
    change(&mut spec);
    fs::write(bundle.path().join("config.json"), spec.to_string()).expect("a writable directory");
    if let Some(root) = spec["linux"]["uidMappings"][0]["hostID"].as_u64() {
        give(&bundle, u32::try_from(root).expect("a user"));
    }
    bundle
}

/// Makes the bundle's root file system that of a user, who is root in some user namespace.
pub(crate) fn give(bundle: &TempDir, user: u32) {
    give_to(bundle.path(), user);
}

/// The same by the bundle's path.
pub(crate) fn give_to(bundle: &Path, user: u32) {
    fs::set_permissions(bundle, fs::Permissions::from_mode(0o755)).expect("ours");
    let rootfs = bundle.join("rootfs");
    run(Command::new("chown").args(["-hR", &format!("{user}:{user}")]).arg(rootfs)).ok();
}

pub(crate) fn read_spec(bundle: &Path) -> Value {
    serde_json::from_slice(&fs::read(bundle.join("config.json")).expect("a spec")).expect("JSON")
}

/// Runs the script under both and compares what it says.
#[track_caller]
pub(crate) fn same(script: &str, change: impl Fn(&mut Value)) -> String {
    let bundle = bundle(|spec| {
        spec["process"]["args"] = json!(["sh", "-c", script]);
        change(spec);
    });
    let path = bundle.path().display().to_string();
    let [ours, theirs] = Runtime::both().map(|runtime| {
        let done = runtime.run(&["run", "--bundle", &path, &runtime.id("same")]);
        (done.code, done.stdout, done.stderr)
    });
    assert_eq!((ours.0, &ours.1), (theirs.0, &theirs.1), "\n--- ours {ours:?}\n--- runc {theirs:?}");
    ours.1
}

/// What one document has and another has not, by path: fields, words of lists, and what is true. Numbers and texts
/// may differ.
pub(crate) fn missing(theirs: &Value, ours: &Value) -> Vec<String> {
    fn collect(path: &str, theirs: &Value, ours: &Value, missing: &mut Vec<String>) {
        match (theirs, ours) {
            (Value::Object(theirs), Value::Object(ours)) => {
                for (key, value) in theirs {
                    let path = format!("{path}/{key}");
                    match ours.get(key) {
                        Some(own) => collect(&path, value, own, missing),
                        None => missing.push(path),
                    }
                }
            }
            (Value::Array(theirs), Value::Array(ours)) => {
                let lacking = |word: &&Value| word.is_string() && !ours.contains(word);
                missing.extend(theirs.iter().filter(lacking).map(|word| format!("{path}: {word}")));
                match (theirs.first(), ours.first()) {
                    (Some(theirs), Some(ours)) => collect(&format!("{path}/0"), theirs, ours, missing),
                    (Some(_), None) => missing.push(format!("{path}: it is empty")),
                    (None, _) => {}
                }
            }
            (Value::Bool(false) | Value::Null, _)
            | (Value::Bool(true), Value::Bool(true))
            | (Value::Number(_), Value::Number(_))
            | (Value::String(_), Value::String(_)) => {}
            _ => missing.push(format!("{path}: {theirs} and {ours}")),
        }
    }
    let mut missing = Vec::new();
    collect("", theirs, ours, &mut missing);
    missing
}

pub(crate) fn script(spec: &mut Value, text: &str) {
    spec["process"]["args"] = json!(["sh", "-c", text]);
}

pub(crate) fn add_mount(spec: &mut Value, mount: Value) {
    spec["mounts"].as_array_mut().expect("mounts").push(mount);
}

/// Makes a static program of a C source, for what busybox has no applet for.
pub(crate) fn compile(source: &str, to: &Path) {
    let file = to.with_extension("c");
    fs::write(&file, source).expect("a writable directory");
    run(Command::new("cc").args(["-static", "-w", "-o"]).arg(to).arg(&file)).ok();
    fs::remove_file(file).expect("just written");
}

/// Text of a file, without the white space around it.
pub(crate) fn read_text(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display())).trim().to_owned()
}
