//! The size of the shim: its program, its memory while a container sleeps, and that this does not grow.

use testkit::memory::rollup;
use testkit::{ShimHost, ShimTask, eventually, is_root, shim_program};

/// Bytes.
const BINARY_MAX: u64 = 2_000_000;
const PSS_MAX: u64 = 400_000;
/// Mostly pages of the program's file, of which an idle shim keeps few.
const RSS_MAX: u64 = 1_500_000;
/// Room for fragmentation: allocations that outlive those around them.
const GROWTH_MAX: u64 = 64 << 10;

#[test]
fn the_program_is_small() {
    let len = std::fs::metadata(shim_program()).unwrap().len();
    assert!(len <= BINARY_MAX, "{len} bytes");
}

/// PSS divides shared pages by the number of their users, so ten shims are measured.
#[test]
fn a_shim_with_a_sleeping_container_holds_little_and_has_one_thread() {
    if !is_root("containers") {
        return;
    }
    let host = ShimHost::new();
    let _events = host.listen();
    let tasks: Vec<ShimTask> =
        (0..10).map(|number| host.container(&format!("small{number}"), "exec sleep 1000").run()).collect();
    let pids: Vec<u32> = tasks.iter().map(ShimTask::shim_pid).collect();
    let mean = |key: &str| pids.iter().map(|pid| rollup(*pid, key)).sum::<u64>() / pids.len() as u64;
    println!("at first: PSS {} bytes, RSS {} bytes", mean("Pss"), mean("Rss"));
    // An idle shim gives up the pages of its program after a moment.
    let rss = eventually("shims are at rest", || Some(mean("Rss")).filter(|rss| *rss <= RSS_MAX));
    let pss = mean("Pss");
    println!("at rest: PSS {pss} bytes, RSS {rss} bytes");
    for pid in &pids {
        assert_eq!(std::fs::read_dir(format!("/proc/{pid}/task")).unwrap().count(), 1);
    }
    assert!(pss <= PSS_MAX, "PSS {pss} bytes");
    for task in &tasks {
        assert_eq!(task.run_exec("woken", "exit 7"), 7);
    }
    tasks.iter().for_each(ShimTask::end);
}

/// `cargo xtask soak` does the same for longer, and with more containers.
#[test]
fn work_leaves_no_memory_no_descriptor_and_no_child() {
    if !is_root("a container") {
        return;
    }
    let host = ShimHost::new();
    let _events = host.listen();
    let log = host.dir().join("log");
    let task = host.container("work", "exec sleep 1000").run();
    let work = |execs: u32, lines: u32| {
        for number in 0..execs {
            assert_eq!(task.run_exec(&format!("e{number}"), "exit 0"), 0);
        }
        let script = format!("yes a line of the log that is of no use | head -n {lines}");
        let target = format!("json-file://{}?max-size=1m&max-file=2", log.display());
        task.exec("log", &script, |exec| exec.stdout = target).unwrap();
        task.start("log");
        assert_eq!(task.wait("log"), 0);
        task.delete("log").unwrap();
    };
    let pid = task.shim_pid();
    work(1, 1);
    let before = (rollup(pid, "Private_Dirty"), descriptors(pid));
    work(200, 500_000);
    // The shim closes the connections of the last calls a moment later.
    eventually("no descriptor is left", || (descriptors(pid) <= before.1).then_some(()));
    println!("private memory: {} bytes, with more work {}", before.0, rollup(pid, "Private_Dirty"));
    // An idle shim returns free pages of its heap.
    let after = || Some(rollup(pid, "Private_Dirty")).filter(|after| *after <= before.0 + GROWTH_MAX);
    eventually("no memory is left", after);
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
    assert_eq!(children.split_whitespace().count(), 1, "only the container's first process");
    task.end();
}

fn descriptors(pid: u32) -> usize {
    std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count()
}
