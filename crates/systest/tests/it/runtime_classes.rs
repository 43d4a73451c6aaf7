//! Resctrl (Intel RDT) groups for cache and memory bandwidth, from a container's creation to its end.
//!
//! Few machines have the hardware, and no emulated one does. So a directory stands for the resctrl file system: the
//! runtime finds it in `/proc/self/mountinfo`, over which the test mounts another file. The kernel's part is missing: a
//! group has only the files that the runtime writes, and must be empty to be removed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::{Value, json};
use tempfile::TempDir;
use testkit::{is_root, run};

use crate::checkpoint::{End, state};
use crate::runtime_bundle::{Runtime, bundle, read_text, script};

struct Resctrl(TempDir);

impl Resctrl {
    /// The files of a processor whose L3 cache and memory bandwidth can be allocated.
    fn new() -> Resctrl {
        let resctrl = Resctrl(TempDir::new().expect("a temporary directory"));
        for (file, text) in [
            ("schemata", "    MB:0=100\n    L3:0=fffff\n"),
            ("info/L3/cbm_mask", "fffff\n"),
            ("info/L3/min_cbm_bits", "1\n"),
            ("info/L3/num_closids", "16\n"),
            ("info/MB/bandwidth_gran", "10\n"),
        ] {
            let file = resctrl.path().join(file);
            fs::create_dir_all(file.parent().expect("a path below")).expect("writable");
            fs::write(file, text).expect("writable");
        }
        resctrl
    }

    fn path(&self) -> PathBuf {
        self.0.path().join("resctrl")
    }

    /// The command in a mount namespace of its own, in which `/proc/self/mountinfo` also lists the directory as a
    /// resctrl file system.
    fn told(&self, command: &Command) -> Command {
        let script = "cat /proc/self/mountinfo > $0/mounts && \
                      echo \"1 1 0:1 / $0/resctrl rw - resctrl resctrl rw\" >> $0/mounts && \
                      mount --bind $0/mounts /proc/$$/mountinfo && exec \"$@\"";
        let mut told = Command::new("unshare");
        told.args(["--mount", "--propagation", "private", "sh", "-c", script]).arg(self.0.path());
        told.arg(command.get_program()).args(command.get_args()).stdin(Stdio::null());
        told
    }

    /// Starts a container that sleeps, and returns its pid.
    #[track_caller]
    fn start(&self, runtime: &Runtime, bundle: &Path, id: &str) -> String {
        let mut run =
            self.told(&runtime.command(&["run", "-d", "--bundle", &bundle.display().to_string(), id]));
        assert!(run.stdout(Stdio::null()).status().expect("it runs").success());
        state(runtime, id)["pid"].to_string()
    }
}

fn sleeping(class: &Value) -> TempDir {
    bundle(|spec| {
        script(spec, "sleep 1000");
        spec["linux"]["intelRdt"] = class.clone();
    })
}

#[test]
fn a_class_of_its_own_comes_and_goes_with_its_container() {
    if !is_root("a container") {
        return;
    }
    let (resctrl, runtime) = (Resctrl::new(), Runtime::ours());
    let bundle = sleeping(&json!({"l3CacheSchema": "L3:0=f", "memBwSchema": "MB:0=50"}));
    let id = runtime.id("class");
    let _end = End(&runtime, &id);
    let pid = resctrl.start(&runtime, bundle.path(), &id);
    let class = resctrl.path().join(&id);
    assert_eq!(read_text(&class.join("schemata")), "L3:0=f\nMB:0=50");
    assert_eq!(read_text(&class.join("tasks")), pid);
    // A process that enters is put into the group as well. The runtime then needs no list of mounts.
    runtime.run(&["exec", &id, "true"]).ok();
    assert_ne!(read_text(&class.join("tasks")), pid);

    let update = ["update", "--l3-cache-schema", "L3:0=3", "--mem-bw-schema", "MB:0=20", &id];
    run(&mut resctrl.told(&runtime.command(&update))).ok();
    assert_eq!(read_text(&class.join("schemata")), "L3:0=3\nMB:0=20");
    let told = run(&mut resctrl.told(&runtime.command(&["events", "--stats", &id]))).ok();
    let told: Value = serde_json::from_str(&told.stdout).expect("JSON");
    let expected = json!({
        "l3_cache_info": {"cbm_mask": "fffff", "min_cbm_bits": 1, "num_closids": 16},
        "l3_cache_schema_root": "L3:0=fffff",
        "l3_cache_schema": "L3:0=3",
        "mem_bw_info": {"bandwidth_gran": 10},
        "mem_bw_schema_root": "MB:0=100",
        "mem_bw_schema": "MB:0=20",
        "schemata": ["L3:0=3", "MB:0=20"],
    });
    assert_eq!(told["data"]["intel_rdt"], expected);

    for file in ["schemata", "tasks"] {
        fs::remove_file(class.join(file)).expect("it is there");
    }
    runtime.run(&["delete", "--force", &id]).ok();
    assert!(!class.exists(), "it goes with its container");
}

#[test]
fn a_class_of_others_is_joined_and_stays() {
    if !is_root("a container") {
        return;
    }
    let (resctrl, runtime) = (Resctrl::new(), Runtime::ours());
    let class = resctrl.path().join("shared");
    fs::create_dir_all(class.join("mon_groups")).expect("writable");
    // In the kernel's format.
    fs::write(class.join("schemata"), "    L3:0=0000f\n").expect("writable");
    let shares = |l3: &str| json!({"closID": "shared", "l3CacheSchema": l3, "enableMonitoring": true});
    let bundle = sleeping(&shares("L3:0=f"));
    let id = runtime.id("shared");
    let _end = End(&runtime, &id);
    let pid = resctrl.start(&runtime, bundle.path(), &id);
    let group = class.join("mon_groups").join(&id);
    for dir in [&class, &group] {
        assert_eq!(read_text(&dir.join("tasks")), pid, "{}", dir.display());
    }
    fs::remove_file(group.join("tasks")).expect("it is there");
    runtime.run(&["delete", "--force", &id]).ok();
    assert!(!group.exists() && class.exists(), "what is its own goes, and the class is others'");

    let other = sleeping(&shares("L3:0=3"));
    let words = ["run", "--bundle", &other.path().display().to_string(), &runtime.id("other")];
    let refused = run(&mut resctrl.told(&runtime.command(&words))).expect_code(1);
    refused.expect_stderr("has L3:0=0000f, and not L3:0=3");
    assert_eq!(runtime.run(&["list", "-q"]).ok().text(), "", "nothing is left");
    assert_eq!(read_text(&class.join("schemata")), "L3:0=0000f");
}
