//! A long, heavy load that checks for leaks: of file descriptors, mounts, cgroups, processes, memory or files.
//!
//! ```text
//! soak [containers=N] [execs=N] [log=MB] [together=N]
//! ```
//!
//! - `execs` and `log`: one shim, called directly. Compares the resources that it holds before and after.
//! - `containers`: `hoist run --rm`, four at a time. Compares the resources of the daemon and the machine before and
//!   after.
//! - `together`: starts so many containers at the same time, lists them, and removes them.
//!
//! Each part is skipped at 0. The exit code tells whether something grew that must not.

use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use testkit::memory::rollup;
use testkit::{Daemon, ShimHost, ShimTask, eventually, images, run};

/// By how many bytes the private memory of a shim, or of the daemon with its threads, may vary for the allocator's
/// pages.
const SLACK: u64 = 128 << 10;
const DAEMON_SLACK: u64 = 8 << 20;
/// By how many bytes the database may grow for free pages.
const DATABASE_SLACK: u64 = 4 << 20;
/// Files that are not deleted by then count as leaked.
const DELETION_MAX: Duration = Duration::from_secs(300);
const AT_ONCE: usize = 4;
/// The container of the shim that `execs` and `log` use.
const SOAKED: &str = "soak";
/// MB of log that one call writes.
const PIECE_MB: usize = 20;
const DATABASE: &str = "meta.db";

struct Amounts {
    containers: usize,
    execs: usize,
    log_mb: usize,
    together: usize,
}

impl Amounts {
    fn parse(words: &[String]) -> Result<Amounts, String> {
        let mut amounts = Amounts { containers: 2000, execs: 10_000, log_mb: 1000, together: 200 };
        for word in words {
            let usage = || format!("{word:?}: expected containers=N, execs=N, log=MB or together=N");
            let (name, number) = word.split_once('=').ok_or_else(usage)?;
            let number = number.parse().map_err(|_| usage())?;
            match name {
                "containers" => amounts.containers = number,
                "execs" => amounts.execs = number,
                "log" => amounts.log_mb = number,
                "together" => amounts.together = number,
                _ => return Err(usage()),
            }
        }
        Ok(amounts)
    }
}

/// Runs the parts. `Ok(false)` if something grew; the error is a usage text.
pub(crate) fn soak(words: &[String]) -> Result<bool, String> {
    let amounts = Amounts::parse(words)?;
    let mut sound = true;
    if amounts.execs > 0 || amounts.log_mb > 0 {
        sound &= soak_shim(&amounts);
    }
    if amounts.containers > 0 || amounts.together > 0 {
        sound &= soak_daemon(&amounts);
    }
    Ok(sound)
}

/// The resources of one shim and its container.
#[derive(Clone, Copy)]
struct ShimResources {
    pss: u64,
    rss: u64,
    private: u64,
    descriptors: usize,
    children: usize,
    mounts: usize,
    /// All cgroups of all hierarchies, empty ones included.
    cgroups: usize,
    /// The size of the container's bundle.
    bundle_bytes: u64,
}

impl ShimResources {
    fn of(host: &ShimHost, shim: u32) -> ShimResources {
        let trees = std::fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten();
        let cgroups = trees.map(|tree| directories(&tree.path().join(host.cgroup().trim_start_matches('/'))));
        let children = std::fs::read_to_string(format!("/proc/{shim}/task/{shim}/children"));
        ShimResources {
            pss: rollup(shim, "Pss"),
            rss: rollup(shim, "Rss"),
            private: rollup(shim, "Private_Dirty"),
            descriptors: descriptors(shim),
            children: children.unwrap_or_default().split_whitespace().count(),
            mounts: mounts_in(&[host.dir().display().to_string()]),
            cgroups: cgroups.sum(),
            bundle_bytes: bytes_below(&host.bundle(SOAKED)),
        }
    }

    fn print(&self, when: &str) {
        println!(
            "  {when:<28} PSS {:>5} KiB   RSS {:>5} KiB   private {:>4} KiB   {:>3} descriptors   {} children   \
             {} mounts   {} cgroups   {} bytes of its bundle",
            self.pss >> 10,
            self.rss >> 10,
            self.private >> 10,
            self.descriptors,
            self.children,
            self.mounts,
            self.cgroups,
            self.bundle_bytes
        );
    }

    fn grew_from(&self, before: &ShimResources) -> bool {
        self.private > before.private + SLACK
            || self.descriptors > before.descriptors
            || self.children > before.children
            || self.mounts > before.mounts
            || self.cgroups > before.cgroups
            || self.bundle_bytes > before.bundle_bytes
    }
}

fn soak_shim(amounts: &Amounts) -> bool {
    println!("one shim, {} processes one after the other, {} MB of log", amounts.execs, amounts.log_mb);
    let host = ShimHost::new();
    let _events = host.listen();
    let task = host.container(SOAKED, "exec sleep 1000000").run();
    let shim = task.shim_pid();
    ShimResources::of(&host, shim).print("at first");
    // The heap reaches its size once each kind of work has been done.
    exec_many(&task, 100);
    let first_mb = amounts.log_mb.min(PIECE_MB);
    write_log(&host, &task, first_mb);
    ShimResources::of(&host, shim).print(&format!("after 100, and {first_mb} MB of log"));
    let before = at_rest(&host, shim, usize::MAX);

    let start = Instant::now();
    exec_many(&task, amounts.execs);
    rate("processes", amounts.execs, start.elapsed());
    let start = Instant::now();
    write_log(&host, &task, amounts.log_mb);
    rate("MB of log", amounts.log_mb, start.elapsed());

    ShimResources::of(&host, shim).print("after all");
    let after = at_rest(&host, shim, before.descriptors);
    task.end();
    let grew = after.grew_from(&before);
    if grew {
        println!("  IT GREW");
    }
    !grew
}

/// The resources of an idle shim: once idle it returns free heap and the pages of its program to the kernel.
fn at_rest(host: &ShimHost, shim: u32, descriptors_max: usize) -> ShimResources {
    std::thread::park_timeout(Duration::from_secs(3));
    let held = settled(host, shim, descriptors_max);
    held.print("at rest");
    held
}

/// Waits a moment for the connections of finished calls to close.
fn settled(host: &ShimHost, shim: u32, descriptors_max: usize) -> ShimResources {
    let until = Instant::now() + Duration::from_secs(5);
    loop {
        let held = ShimResources::of(host, shim);
        if held.descriptors <= descriptors_max || Instant::now() > until {
            return held;
        }
        std::thread::yield_now();
    }
}

fn exec_many(task: &ShimTask, count: usize) {
    for number in 0..count {
        assert_eq!(task.run_exec(&format!("e{number}"), "exit 0"), 0);
    }
}

/// Writes `mb` MB of log, in pieces, as a call to the shim has a timeout.
fn write_log(host: &ShimHost, task: &ShimTask, mb: usize) {
    let log = format!("json-file://{}?max-size=10m&max-file=2", host.dir().join("log").display());
    for begun in (0..mb).step_by(PIECE_MB) {
        // 64 bytes for each line, with the newline.
        let piece = PIECE_MB.min(mb - begun);
        let script = format!("yes {} | head -c {piece}000000", "x".repeat(63));
        task.exec("log", &script, |exec| exec.stdout.clone_from(&log)).expect("an exec");
        task.start("log");
        assert_eq!(task.wait("log"), 0);
        task.delete("log").expect("it has ended");
    }
}

/// The resources of a daemon on the machine.
struct DaemonResources {
    descriptors: usize,
    rss: u64,
    shims: usize,
    zombies: usize,
    mounts: usize,
    /// Empty cgroups of containers in all hierarchies: these have leaked.
    cgroups: usize,
    state_bytes: u64,
    /// Files of the root directory except the database.
    root_bytes: u64,
    database_bytes: u64,
    check: String,
}

impl DaemonResources {
    fn of(daemon: &Daemon) -> DaemonResources {
        let processes = processes();
        let address = daemon.socket().display().to_string();
        let is_shim =
            |process: &&Process| process.command.contains(&address) && process.command.contains(" serve");
        let shims: Vec<u32> = processes.iter().filter(is_shim).map(|process| process.pid).collect();
        let parents = || shims.iter().copied().chain([daemon.pid()]);
        let is_left = |process: &&Process| parents().any(|parent| process.is_zombie_of(parent));
        let dirs = [daemon.root().display().to_string(), daemon.state().display().to_string()];
        DaemonResources {
            descriptors: descriptors(daemon.pid()),
            rss: rollup(daemon.pid(), "Rss"),
            shims: shims.len(),
            zombies: processes.iter().filter(is_left).count(),
            mounts: mounts_in(&dirs),
            cgroups: empty_cgroups(Path::new("/sys/fs/cgroup")),
            state_bytes: bytes_below(&daemon.state()),
            root_bytes: bytes_below(&daemon.root()),
            database_bytes: std::fs::metadata(daemon.root().join(DATABASE)).map_or(0, |file| file.len()),
            check: {
                let check = daemon.hoist(["system", "check"]);
                if check.code == 0 { String::new() } else { check.stdout + &check.stderr }
            },
        }
    }

    fn print(&self, when: &str) {
        println!(
            "  {when:<28} {} descriptors   RSS {:.1} MB   {} shims   {} zombies   {} mounts   {} empty cgroups   \
             bytes: {} of state, {} of root, {} of the database",
            self.descriptors,
            self.rss as f64 / 1e6,
            self.shims,
            self.zombies,
            self.mounts,
            self.cgroups,
            self.state_bytes,
            self.root_bytes,
            self.database_bytes
        );
        if !self.check.is_empty() {
            println!("  system check: {}", self.check.trim());
        }
    }

    fn grew_from(&self, before: &DaemonResources) -> bool {
        self.descriptors > before.descriptors
            || self.rss > before.rss + DAEMON_SLACK
            || self.shims > before.shims
            || self.zombies > before.zombies
            || self.mounts > before.mounts
            || self.cgroups > before.cgroups
            || self.state_bytes > before.state_bytes
            || self.root_bytes > before.root_bytes
            || self.database_bytes > before.database_bytes + DATABASE_SLACK
            || !self.check.is_empty()
    }

    /// Waits a moment for the daemon's background work. The daemon returns memory to the kernel after two seconds
    /// without a call, and ends idle threads later; taking these figures is a call, so each attempt starts the wait
    /// anew.
    fn settled(daemon: &Daemon, before: &DaemonResources) -> DaemonResources {
        let look = || {
            std::thread::park_timeout(Duration::from_secs(15));
            DaemonResources::of(daemon)
        };
        let first = look();
        if first.grew_from(before) { look() } else { first }
    }
}

fn soak_daemon(amounts: &Amounts) -> bool {
    let daemon = Daemon::start();
    let archive = daemon.dir().join("busybox.tar");
    images::archive(&images::busybox(), "docker-archive", "busybox:latest", &archive);
    daemon.hoist(["load".as_ref(), "-i".as_ref(), archive.as_os_str()]).ok();
    run_many(&daemon, 40, |number| run_rm(&format!("warm{number}")));
    std::thread::park_timeout(Duration::from_secs(15));
    let before = DaemonResources::of(&daemon);
    before.print("before");

    println!("{} containers, {AT_ONCE} at a time", amounts.containers);
    let start = Instant::now();
    run_many(&daemon, amounts.containers, |number| run_rm(&format!("c{number}")));
    rate("containers", amounts.containers, start.elapsed());

    println!("{} containers at the same time", amounts.together);
    if amounts.together > 0 {
        together(&daemon, amounts.together);
    }
    let shims = || DaemonResources::of(&daemon).shims;
    eventually("the last shims are gone", || (shims() <= before.shims).then_some(()));
    wait_for_deletions(&daemon);
    let after = DaemonResources::settled(&daemon, &before);
    after.print("after");
    let grew = after.grew_from(&before);
    if grew {
        println!("  IT GREW");
    }
    !grew
}

/// The number of mounts in any of these directories.
fn mounts_in(dirs: &[String]) -> usize {
    let mounts = std::fs::read_to_string("/proc/self/mounts").expect("the kernel's file");
    mounts.lines().filter(|line| dirs.iter().any(|dir| line.contains(dir))).count()
}

/// The number of directories in a tree, with its root; 0 if it does not exist.
fn directories(dir: &Path) -> usize {
    let Ok(entries) = std::fs::read_dir(dir) else { return 0 };
    let is_dir = |entry: &std::fs::DirEntry| entry.file_type().is_ok_and(|kind| kind.is_dir());
    1 + entries.flatten().filter(is_dir).map(|entry| directories(&entry.path())).sum::<usize>()
}

/// The number of container cgroups below a directory that have neither processes nor children. A cgroup that is removed
/// meanwhile was in use.
fn empty_cgroups(dir: &Path) -> usize {
    let Ok(entries) = std::fs::read_dir(dir) else { return 0 };
    let is_dir = |entry: &std::fs::DirEntry| entry.file_type().is_ok_and(|kind| kind.is_dir());
    let below: Vec<_> = entries.flatten().filter(is_dir).map(|entry| entry.path()).collect();
    let is_empty = || std::fs::read(dir.join("cgroup.procs")).is_ok_and(|processes| processes.is_empty());
    match &below[..] {
        [] => usize::from(is_of_container(dir) && is_empty()),
        below => below.iter().map(|dir| empty_cgroups(dir)).sum(),
    }
}

/// Whether the name of a cgroup is a container id of `hoist run`. Parent cgroups stay, and other users of the machine
/// have cgroups too.
fn is_of_container(dir: &Path) -> bool {
    let name = dir.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    name.len() == 64 && name.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// Waits until the files of removed snapshots are deleted, which happens in the background, and prints how long it
/// took.
fn wait_for_deletions(daemon: &Daemon) {
    let removed = daemon.root().join("snapshots/overlayfs/removed");
    let trees = || std::fs::read_dir(&removed).map_or(0, Iterator::count);
    let (left, start) = (trees(), Instant::now());
    while trees() > 0 && start.elapsed() < DELETION_MAX {
        std::thread::park_timeout(Duration::from_millis(100));
    }
    println!("  trees left to delete: {left}, gone after {:.1} s", start.elapsed().as_secs_f64());
}

fn run_rm(name: &str) -> Vec<String> {
    ["run", "--rm", "--network", "none", "--name", name, "busybox", "true"].map(String::from).into()
}

fn together(daemon: &Daemon, count: usize) {
    let start = Instant::now();
    run_many(daemon, count, |number| {
        let name = format!("t{number}");
        ["run", "-d", "--network", "none", "--name", &name, "busybox", "sleep", "1000000"]
            .map(String::from)
            .into()
    });
    rate("started", count, start.elapsed());
    let start = Instant::now();
    let listed = daemon.hoist(["ps", "-q"]).ok();
    println!("  ps of {} in {:.0} ms", listed.stdout.lines().count(), start.elapsed().as_secs_f64() * 1e3);
    assert_eq!(listed.stdout.lines().count(), count);
    let address = daemon.socket().display().to_string();
    let shims = processes()
        .into_iter()
        .filter(|process| process.command.contains(&address) && process.command.contains(" serve"));
    let pss: u64 = shims.map(|shim| rollup(shim.pid, "Pss")).sum();
    println!(
        "  shims: PSS {:.3} MB each; daemon: RSS {:.1} MB",
        pss as f64 / count as f64 / 1e6,
        rollup(daemon.pid(), "Rss") as f64 / 1e6
    );
    let start = Instant::now();
    run_many(daemon, count, |number| ["rm", "-f", &format!("t{number}")].map(String::from).into());
    rate("stopped and removed", count, start.elapsed());
}

/// Runs `hoist` with the arguments for each number, a few at a time. Each run must succeed.
fn run_many(daemon: &Daemon, count: usize, words: impl Fn(usize) -> Vec<String> + Sync) {
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= count {
                        return;
                    }
                    daemon.hoist(words(number)).ok();
                }
            });
        }
    });
}

fn rate(what: &str, count: usize, elapsed: Duration) {
    let seconds = elapsed.as_secs_f64();
    println!("  {count} {what} in {seconds:.1} s: {:.1} a second", count as f64 / seconds);
}

struct Process {
    pid: u32,
    parent: u32,
    state: char,
    command: String,
}

impl Process {
    fn is_zombie_of(&self, parent: u32) -> bool {
        self.state == 'Z' && self.parent == parent
    }
}

fn processes() -> Vec<Process> {
    let entries = std::fs::read_dir("/proc").expect("the kernel's directory").flatten();
    entries.filter_map(|entry| process(entry.file_name().to_str()?.parse().ok()?)).collect()
}

/// `None` if the process has ended.
fn process(pid: u32) -> Option<Process> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = stat[stat.rfind(')')? + 2..].split(' ');
    let state = fields.next()?.chars().next()?;
    let parent = fields.next()?.parse().ok()?;
    let command = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    Some(Process { pid, parent, state, command: String::from_utf8_lossy(&command).replace('\0', " ") })
}

fn descriptors(pid: u32) -> usize {
    std::fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count)
}

/// Bytes of the files in a tree, and one for each other entry: a directory never shrinks.
fn bytes_below(dir: &Path) -> u64 {
    let mut find = Command::new("find");
    find.arg(dir)
        .args(["(", "-name", "*.sock*", "-o", "-name", DATABASE, ")", "-prune", "-o", "-printf", "%y %s\n"]);
    // An entry that is deleted meanwhile is an error of `find`, and no leak.
    let entries = run(&mut find).stdout;
    let bytes = |entry: &str| {
        entry.strip_prefix("f ").map_or(0, |len| len.parse::<u64>().expect("find prints bytes"))
    };
    entries.lines().map(|entry| bytes(entry) + 1).sum()
}
