//! The runtime's system calls, by strace(1): rules for every path and every step, also where no single escape is known.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::{Value, json};
use tempfile::TempDir;
use testkit::run;

use crate::runtime_bundle::{Runtime, add_mount, bundle, read_text};

/// The calls of a container's life but for its program's, by process.
struct Traced {
    /// Of its first process, until it executes the program.
    first: Vec<String>,
    /// Of all that make, start, enter, signal and delete it.
    others: Vec<String>,
    /// Of those, the calls of the intermediate process that enters, and of the process that it brings in, until that
    /// executes the program.
    entering: [Vec<String>; 2],
}

/// What who enters becomes.
const ENTERED: &str = r#"execve("/bin/true", ["/bin/true", "entered"]"#;

/// Creates, starts, enters, signals and deletes a container, whose program goes on: it is the first of its pid
/// namespace, and handles no signal.
fn trace(bundle: &TempDir) -> Traced {
    let (runtime, traces) = (Runtime::ours(), TempDir::new().expect("a temporary directory"));
    let (id, path) = (runtime.id("traced"), bundle.path().display().to_string());
    // Nobody takes the terminal, which goes with the connection.
    let console = traces.path().join("console");
    let _listener = UnixListener::bind(&console).expect("a new directory");
    let create = ["create", "--console-socket", console.to_str().expect("UTF-8"), "--bundle", &path, &id];
    let files = TempDir::new().expect("a temporary directory");
    // One trace, which ends when all that it follows has: the first process waits between the commands.
    let mut strace = Command::new("strace");
    strace.args(["-ff", "-y", "-qq", "-s", "4096", "-o"]).arg(files.path().join("calls"));
    strace.args(["sh", "-ec", "for words; do eval \"$words\"; done", "sh"]);
    let enter = ["exec", &id, "/bin/true", "entered"];
    let (one, all) = (["kill", &id, "TERM"], ["kill", "--all", &id, "CONT"]);
    for words in [&create[..], &["start", &id], &enter, &one, &all, &["delete", "--force", &id]] {
        let command = runtime.command(words);
        let words = std::iter::once(command.get_program()).chain(command.get_args());
        let quoted = words.map(|word| format!("'{}'", word.to_str().expect("UTF-8")));
        strace.arg(quoted.collect::<Vec<_>>().join(" "));
    }
    run(strace.stdin(Stdio::null())).ok();
    let mut traced = Traced { first: Vec::new(), others: Vec::new(), entering: Default::default() };
    for file in fs::read_dir(files.path()).expect("it is there") {
        let text = read_text(&file.expect("it is there").path());
        let lines = text.lines().map(str::to_owned);
        if text.contains("\npivot_root(") {
            let end = text.lines().position(|line| line.starts_with("execve("));
            traced.first = lines.take(end.expect("it gets to its program") + 1).collect();
            continue;
        }
        if text.contains("\nclone(child_stack=NULL, flags=CLONE_PARENT") {
            traced.entering[0] = lines.clone().collect();
        } else if let Some(end) = text.lines().position(|line| line.starts_with(ENTERED)) {
            traced.entering[1] = lines.clone().take(end + 1).collect();
        }
        traced.others.extend(lines);
    }
    let all = [&traced.first, &traced.others, &traced.entering[0], &traced.entering[1]];
    assert!(all.iter().all(|calls| !calls.is_empty()), "somebody changed the root, somebody entered it");
    traced
}

/// Name of a call, and its arguments.
fn parts(line: &str) -> Option<(&str, &str)> {
    let (name, rest) = line.split_once('(')?;
    let (arguments, _) = rest.rsplit_once(") ")?;
    Some((name, arguments))
}

fn texts(arguments: &str) -> Vec<&str> {
    arguments.split('"').skip(1).step_by(2).collect()
}

/// Calls that stay at the name they are given, whatever it is.
const NEVER_FOLLOW: [&str; 8] =
    ["mkdirat", "mknodat", "readlinkat", "renameat2", "symlinkat", "umount2", "unlinkat", "linkat"];

/// What is wrong with a call, if it leads through the root file system by a name that somebody there can change.
fn fault(root: &str, line: &str) -> Option<&'static str> {
    let (name, arguments) = parts(line)?;
    let mut texts = texts(arguments);
    if name == "readlink" {
        // The rest is the answer.
        texts.truncate(1);
    }
    let inside = format!("{root}/");
    if texts.iter().any(|text| text.starts_with(&inside)) {
        return Some("it is named by its path on the host");
    }
    // A descriptor, and behind it a name.
    let (_, place) = arguments.split_once('<').filter(|(number, _)| number.parse::<u32>().is_ok())?;
    let (place, _) = place.split_once(">, ")?;
    let target = *texts.last().filter(|_| place == root || place.starts_with(&inside))?;
    match name {
        "openat2" if arguments.contains("RESOLVE_IN_ROOT") || arguments.contains("RESOLVE_BENEATH") => None,
        // Nothing is looked for: it is about the descriptor.
        _ if matches!(target, "" | ".") => None,
        _ if target.contains('/') && name != "symlinkat" => Some("more than a name is looked for"),
        _ if NEVER_FOLLOW.contains(&name) || arguments.contains("NOFOLLOW") => None,
        _ => Some("a link would be followed"),
    }
}

#[test]
fn faults_of_calls_are_seen() {
    let fault = |line: &str| fault("/b/rootfs", line).is_some();
    assert!(fault(r#"open("/b/rootfs/etc", O_RDONLY) = 3</b/rootfs/etc>"#));
    assert!(fault(r#"openat(3</b/rootfs>, "etc", O_RDONLY) = 4</b/rootfs/etc>"#));
    assert!(fault(r#"openat(3</b/rootfs>, "etc/x", O_RDONLY|O_NOFOLLOW) = 4</b/rootfs/etc/x>"#));
    assert!(fault(
        r#"openat2(3</b/rootfs/a>, "x", {flags=O_RDONLY, resolve=RESOLVE_NO_MAGICLINKS}, 24) = 4</>"#
    ));
    assert!(!fault(
        r#"openat2(3</b/rootfs>, "/x/y", {flags=O_RDONLY, resolve=RESOLVE_IN_ROOT}, 24) = -1 ENOENT (No)"#
    ));
    assert!(!fault(r#"openat(3</b/rootfs>, "etc", O_RDONLY|O_NOFOLLOW) = 4</b/rootfs/etc>"#));
    assert!(!fault(r#"readlink("/proc/self/fd/4", "/b/rootfs/etc", 256) = 13"#));
    assert!(!fault(r#"move_mount(5</>, "", 4</b/rootfs/etc>, "", MOVE_MOUNT_F_EMPTY_PATH) = 0"#));
    assert!(!fault(r#"open("/b/rootfs", O_PATH) = 3</b/rootfs>"#));
}

#[test]
fn no_path_of_the_root_is_opened_by_name() {
    for is_mapped in [false, true] {
        check_paths(is_mapped);
    }
}

/// `is_mapped`: with a user namespace.
fn check_paths(is_mapped: bool) {
    let outside = TempDir::new().expect("a temporary directory");
    fs::write(outside.path().join("file"), "").expect("a writable directory");
    let source = |name: &str| outside.path().join(name).display().to_string();
    let bundle = bundle(|spec| {
        spec["process"]["terminal"] = json!(true);
        spec["process"]["args"] = json!(["/bin/sleep", "1000"]);
        spec["root"]["readonly"] = json!(true);
        let mount = |destination: &str, kind: &str, source: String, options: &[&str]| json!({ "destination": destination, "type": kind, "source": source, "options": options });
        add_mount(spec, mount("/new/deep/dir", "bind", source(""), &["rbind", "rro"]));
        add_mount(spec, mount("/new/file", "bind", source("file"), &["bind", "ro"]));
        add_mount(spec, mount("/bin", "tmpfs", "tmpfs".to_owned(), &["tmpcopyup"]));
        // In a user namespace the host's are shown.
        let own = if is_mapped { "/dev/full" } else { "/dev/sub/own" };
        spec["linux"]["devices"] = json!([{ "path": own, "type": "c", "major": 1, "minor": 7 }]);
        if is_mapped {
            map(spec);
        }
        spec["linux"]["maskedPaths"] = json!(["/proc/kcore", "/proc/acpi", "/new/file", "/new/deep"]);
        spec["linux"]["readonlyPaths"] = json!(["/proc/sys", "/bin"]);
    });
    let rootfs = fs::canonicalize(bundle.path().join("rootfs")).expect("it is there");
    let rootfs = rootfs.to_str().expect("UTF-8");
    let Traced { first, others, .. } = trace(&bundle);
    // Behind that the root is its own.
    let before = first.iter().take_while(|line| !line.starts_with("pivot_root("));
    let all: Vec<&String> = others.iter().chain(before).collect();
    let faults = all.iter().filter_map(|line| Some(format!("{}: {line}", fault(rootfs, line)?)));
    assert_eq!(faults.collect::<Vec<_>>(), [""; 0]);
    let opened = format!("open(\"{rootfs}\", ");
    assert_eq!(all.iter().filter(|line| line.starts_with(&opened)).count(), 1, "once, by its path");
    let beneath = all.iter().filter(|line| line.contains(&format!("<{rootfs}")));
    assert!(beneath.count() > 50, "the root is built");
}

/// Nobody moves a process that already runs, which would take a lock that all of the machine's forks wait for, and leave
/// what it did before to another's account.
#[test]
fn processes_are_born_in_their_cgroup() {
    let trees = ["/sys/fs/cgroup/cgroup.controllers", "/sys/fs/cgroup/unified/cgroup.controllers"];
    if !trees.iter().any(|tree| Path::new(tree).exists()) {
        println!("skipped: this host has no cgroups of version 2");
        return;
    }
    for is_mapped in [false, true] {
        check_births(is_mapped);
    }
}

fn check_births(is_mapped: bool) {
    let traced = trace(&bundle(|spec| {
        spec["process"]["terminal"] = json!(true);
        spec["process"]["args"] = json!(["/bin/sleep", "1000"]);
        if is_mapped {
            map(spec);
        }
    }));
    let births = traced.others.iter().filter(|line| line.starts_with("clone3("));
    let births: Vec<&String> = births.filter(|line| line.contains("CLONE_INTO_CGROUP")).collect();
    assert_eq!(births.len(), 2, "the first process, and the one on the way in: {births:?}");
}

/// Calls that send a signal to whoever has a number, which may be another's since it was read.
const TO_NUMBERS: [&str; 5] = ["kill", "tkill", "tgkill", "rt_sigqueueinfo", "rt_tgsigqueueinfo"];

#[test]
fn signals_go_to_descriptors_of_processes() {
    let Traced { first, others, .. } = trace(&bundle(|spec| {
        spec["process"]["terminal"] = json!(true);
        spec["process"]["args"] = json!(["/bin/sleep", "1000"]);
    }));
    let by_number = |line: &&String| parts(line).is_some_and(|(name, _)| TO_NUMBERS.contains(&name));
    assert_eq!(first.iter().chain(&others).find(by_number), None);
    for signal in ["SIGTERM", "SIGCONT", "SIGKILL"] {
        let is_sent = |line: &String| line.starts_with("pidfd_send_signal(") && line.contains(signal);
        assert!(others.iter().any(is_sent), "{signal} is sent");
    }
}

/// A row of the table in `docs/design/init.md`, and the beginnings of the calls that make it up, in their order.
type Step = (&'static str, &'static [&'static str]);

const STEPS: [Step; 19] = [
    ("1", &["prctl(PR_SET_PDEATHSIG, SIGKILL"]),
    // Only with a user namespace: see `MAPPED`.
    ("2", &[]),
    ("3", &["setns(", "prctl(PR_SET_DUMPABLE, SUID_DUMP_DISABLE"]),
    ("4", &["setsid(", "keyctl(KEYCTL_JOIN_SESSION_KEYRING"]),
    ("5", &["move_mount("]),
    ("6", &["recvmsg(", "unshare(CLONE_NEWCGROUP"]),
    // The mount that shows the cgroup was not the last of them.
    ("5", &["move_mount(", "mknodat(", "symlinkat("]),
    ("7", &["ioctl("]),
    ("8", &["recvmsg(", "sendto(", "read(", "wait4("]),
    ("9", &["pivot_root(", "umount2("]),
    ("10", &["sethostname(", "setdomainname("]),
    ("11", &["mount_setattr(", "move_mount("]),
    ("12", &["sched_setaffinity(", "dup2(", "close_range("]),
    ("13", &["prlimit64(", "prctl(PR_SET_NO_NEW_PRIVS", "setgroups(", "chdir(", "setresuid(", "capset("]),
    ("14", &["faccessat2(", "rt_sigaction(", "prctl(PR_SET_PDEATHSIG, 0", "seccomp("]),
    ("15", &["write("]),
    ("16", &["read("]),
    ("17", &["wait4("]),
    ("18", &["execve("]),
];

/// Those that are others in a user namespace. The network is a new one, since the caller's is not to be joined from there.
const MAPPED: [Step; 3] = [
    ("2", &["read("]),
    ("3", &["setresuid(0, 0, 0", "prctl(PR_SET_DUMPABLE, SUID_DUMP_DISABLE"]),
    // The host's devices are shown.
    ("5", &["move_mount(", "symlinkat("]),
];

/// Those of an intermediate process that enters.
const BETWEEN: [Step; 5] = [
    ("3", &["recvmsg(", "prctl(PR_SET_DUMPABLE, SUID_DUMP_DISABLE", "sched_setaffinity(", "setns("]),
    ("4", &["keyctl(KEYCTL_JOIN_SESSION_KEYRING"]),
    ("12", &["openat2(", "dup2(", "close_range("]),
    ("13", &["prlimit64(", "prctl(PR_SET_NO_NEW_PRIVS", "setgroups(", "chdir(", "setresuid(", "capset("]),
    ("14", &["faccessat2(", "rt_sigaction(", "seccomp(", "clone(", "exit_group("]),
];

/// Those of the process that it brings in.
const ENTERS: [Step; 2] = [("4", &["read(", "setsid("]), ("18", &[ENTERED])];

/// What these take, with memory for it, and the time where the kernel must be asked for it (vdso(7)). Whoever adds one says
/// in the page what for.
const CALLS: &str = "
    brk madvise mmap mprotect mremap munmap clock_gettime close fcntl fstat getpid getppid getuid umask
    prctl recvmsg sendto setns setsid keyctl
    open openat openat2 stat newfstatat readlink readlinkat statfs fstatfs open_tree fsopen fsconfig fsmount move_mount mount_setattr
    mkdirat mknodat symlinkat fchown fchmod read write unshare ioctl sendmsg
    clone pipe2 pidfd_open ppoll wait4 rt_sigprocmask
    fchdir pivot_root umount2 sethostname setdomainname
    dup2 close_range prlimit64 setgroups setresgid setresuid capset chdir getcwd seccomp sched_setaffinity
    faccessat2 rt_sigaction execve
";

/// And to bring up the loopback of a new network.
const CALLS_OF_NETWORK: &str = "socket bind setsockopt recvfrom";

/// Of an intermediate process and of whom it brings in: nothing that makes, mounts or waits for anything.
const CALLS_OF_ENTERING: &str = "
    brk madvise mmap mprotect mremap munmap clock_gettime close fcntl fstat fchown umask
    prctl recvmsg read write setns setsid keyctl open openat2 stat
    dup2 close_range prlimit64 setgroups setresgid setresuid capset chdir getcwd seccomp sched_setaffinity
    faccessat2 clone exit_group rt_sigaction rt_sigprocmask execve
";

#[test]
fn the_first_process_does_what_its_page_lists() {
    let Traced { first, .. } = trace(&bundle(|spec| {
        a_bit_of_everything(spec);
        let namespaces = spec["linux"]["namespaces"].as_array_mut().expect("namespaces");
        namespaces.retain(|namespace| namespace["type"] != "network");
        namespaces.push(json!({ "type": "network", "path": "/proc/self/ns/net" }));
    }));
    check_calls(&first, &STEPS, &[CALLS]);

    // As it was when this was built: where the tests run there may be no sources.
    let page = include_str!("../../../../../docs/design/init.md");
    let rows = page.lines().filter_map(|line| line.strip_prefix("| ")?.split_once(" |"));
    let rows = rows.map(|(number, _)| number).filter(|number| number.parse::<u8>().is_ok());
    assert_eq!(rows.collect::<BTreeSet<_>>(), STEPS.map(|(number, _)| number).into());
}

#[test]
fn in_a_user_namespace_the_first_process_does_what_its_page_lists() {
    let Traced { first, .. } = trace(&bundle(|spec| {
        a_bit_of_everything(spec);
        map(spec);
    }));
    let [second, third, fifth] = MAPPED;
    // The fifth comes twice, and differs where the devices are.
    let mut steps = STEPS;
    for step in &mut steps {
        match step.0 {
            "2" => *step = second,
            "3" => *step = third,
            "5" if step.1.len() > 1 => *step = fifth,
            _ => {}
        }
    }
    check_calls(&first, &steps, &[CALLS, CALLS_OF_NETWORK]);
}

/// Neither the one on the way in nor the one that comes of it does more, with mapped users or without.
#[test]
fn who_enters_does_what_its_page_lists() {
    for is_mapped in [false, true] {
        let Traced { entering: [between, enters], .. } = trace(&bundle(|spec| {
            a_bit_of_everything(spec);
            if is_mapped {
                map(spec);
            }
        }));
        check_calls(&between, &BETWEEN, &[CALLS_OF_ENTERING]);
        check_calls(&enters, &ENTERS, &[CALLS_OF_ENTERING]);
        // By its name it finds nothing but its place, and what it is to execute, in a root that is the container's by then.
        let setns = between.iter().position(|line| line.starts_with("setns(")).expect("it joins");
        let named = |line: &&String| parts(line).is_some_and(|(name, _)| NAMED.contains(&name));
        assert_eq!(between[..setns].iter().find(named), None, "mapped: {is_mapped}");
    }
}

/// Also a filter that asks a supervisor is there before the process is born: whoever may trace finds none that it could take
/// over.
#[test]
fn who_enters_is_born_under_a_filter_that_asks_a_supervisor() {
    let dir = TempDir::new().expect("a temporary directory");
    let socket = dir.path().join("supervisor");
    // It is told, and has nothing to answer.
    let _supervisor = UnixListener::bind(&socket).expect("a new directory");
    for no_new_privileges in [true, false] {
        let Traced { entering: [between, enters], .. } = trace(&bundle(|spec| {
            a_bit_of_everything(spec);
            spec["process"]["noNewPrivileges"] = json!(no_new_privileges);
            let filter = &mut spec["linux"]["seccomp"];
            filter["listenerPath"] = json!(socket);
            filter["syscalls"][0]["action"] = json!("SCMP_ACT_NOTIFY");
        }));
        let loads =
            |calls: &[String]| calls.iter().any(|line| line.starts_with("seccomp(SECCOMP_SET_MODE_FILTER"));
        assert_eq!((loads(&between), loads(&enters)), (true, false), "{}", enters.join("\n"));
        let steps: &[Step] = if no_new_privileges { &BETWEEN } else { &[] };
        check_calls(&between, steps, &[CALLS_OF_ENTERING]);
        check_calls(&enters, &ENTERS, &[CALLS_OF_ENTERING]);
    }
}

/// What a filter refuses is refused from the exec on: of what the kernel must be asked for before, hardly anything is asked
/// for under it.
#[test]
fn under_its_filter_nobody_asks_for_more_than_every_filter_allows() {
    for no_new_privileges in [true, false] {
        let Traced { first, entering: [between, enters], .. } = trace(&bundle(|spec| {
            spec["process"]["args"] = json!(["/bin/sleep", "1000"]);
            spec["process"]["terminal"] = json!(true);
            spec["process"]["noNewPrivileges"] = json!(no_new_privileges);
            let rule = json!({ "names": ["setsid"], "action": "SCMP_ACT_ERRNO" });
            spec["linux"]["seccomp"] = json!({ "defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule] });
        }));
        let is_load = |line: &String| line.starts_with("seccomp(SECCOMP_SET_MODE_FILTER");
        assert!(!between.iter().any(is_load), "who must begin a session is not under it before");
        for calls in [&first, &enters] {
            let at = calls.iter().position(is_load).expect("it is loaded");
            let names = calls[at + 1..].iter().filter_map(|line| Some(parts(line)?.0));
            let names: BTreeSet<&str> = names.collect();
            // With what memory takes.
            let known = "capset close read write execve brk madvise mmap mprotect mremap munmap";
            let known: BTreeSet<&str> = known.split(' ').collect();
            assert_eq!(names.difference(&known).collect::<Vec<_>>(), [&""; 0]);
            assert_eq!(names.contains("capset"), !no_new_privileges, "{names:?}");
        }
    }
}

/// Calls that look for a path.
const NAMED: [&str; 8] =
    ["open", "openat", "openat2", "stat", "newfstatat", "readlink", "readlinkat", "faccessat2"];

/// The steps are there, one behind the other, and no calls but these.
#[track_caller]
fn check_calls(made: &[String], steps: &[Step], known: &[&str]) {
    let mut at = 0;
    for (step, calls) in steps {
        for call in *calls {
            let found = made[at..].iter().position(|line| line.starts_with(call));
            let found = found
                .unwrap_or_else(|| panic!("step {step}: no {call} behind call {at}: {}", made.join("\n")));
            at += found + 1;
        }
    }
    let names: BTreeSet<&str> = made.iter().filter_map(|line| Some(parts(line)?.0)).collect();
    let known: BTreeSet<&str> = known.iter().flat_map(|calls| calls.split_whitespace()).collect();
    assert_eq!(names.difference(&known).collect::<Vec<_>>(), [&""; 0]);
}

/// What the steps are for.
fn a_bit_of_everything(spec: &mut Value) {
    spec["process"]["terminal"] = json!(true);
    spec["process"]["args"] = json!(["/bin/sleep", "1000"]);
    spec["process"]["user"] = json!({ "uid": 7, "gid": 7, "additionalGids": [8] });
    spec["hostname"] = json!("traced");
    spec["domainname"] = json!("example");
    let namespaces = spec["linux"]["namespaces"].as_array_mut().expect("namespaces");
    namespaces.retain(|namespace| namespace["type"] != "cgroup");
    namespaces.push(json!({ "type": "cgroup" }));
    let hook = json!([{ "path": "/bin/true" }]);
    spec["hooks"] = json!({ "createRuntime": hook, "createContainer": hook, "startContainer": hook });
    let rule = json!({ "names": ["acct"], "action": "SCMP_ACT_ERRNO" });
    spec["linux"]["seccomp"] = json!({ "defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule] });
}

/// With a user namespace, whose root is a user of the host that has no rights.
fn map(spec: &mut Value) {
    let namespaces = spec["linux"]["namespaces"].as_array_mut().expect("namespaces");
    namespaces.push(json!({ "type": "user" }));
    for kind in ["uidMappings", "gidMappings"] {
        spec["linux"][kind] = json!([{ "containerID": 0, "hostID": 100_000, "size": 65_536 }]);
    }
}
