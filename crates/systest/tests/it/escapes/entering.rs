//! Processes that enter a container (`exec`) whose own processes attack them on the way.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use linux::cgroup::Cgroup;
use serde_json::{Value, json};
use tempfile::TempDir;
use testkit::{ShimHost, eventually, is_root};

use super::{Race, Running, add_capabilities, attempt, until_met};
use crate::cgroups;
use crate::runtime_bundle::{Runtime, add_mount, bundle, compile, read_text, script};
use crate::runtime_joins::join;
use crate::runtime_spec::map_users;

/// Calls that a filter refuses: with the first ones it is there when the process that enters is born, with the others that
/// process loads it.
const FILTERED: [&[&str]; 2] = [&["mkdir", "clone3"], &["mkdir", "clone3", "setsid"]];

/// A filter that refuses these calls as a kernel does that lacks them.
fn refusing(calls: &[&str]) -> Value {
    json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
        {"names": calls, "action": "SCMP_ACT_ERRNO", "errnoRet": 38}]})
}

/// What the first process writes to `/seen` while others enter. It makes `/up` when it begins, and adds a line to
/// `/rounds` after each look at all processes.
fn what_an_attacker_sees(runtime: &Runtime, bundle: &TempDir) -> String {
    what_a_neighbour_sees(&Running::start(runtime, bundle), bundle)
}

/// The same of the first process of `attacker`, while others enter a container that may be another one.
fn what_a_neighbour_sees(entered: &Running<'_>, attacker: &TempDir) -> String {
    let root = attacker.path().join("rootfs");
    eventually("the attacker is up", || root.join("up").exists().then_some(()));
    let rounds = || fs::metadata(root.join("rounds")).map_or(0, |file| file.len());
    let path = format!("PATH={}/bin", "/nothing/here:".repeat(3000));
    let begin = rounds();
    eventually("the attacker has looked around", || {
        for _ in 0..5 {
            entered.exec_with(&["--env", &path], &["true"]).ok();
        }
        (rounds() > begin + 20).then_some(())
    });
    fs::read_to_string(root.join("seen")).unwrap_or_default()
}

/// CVE-2016-9962: the container inspects a process that enters it, and takes its descriptors.
#[test]
fn a_hostile_first_process_does_not_look_into_who_enters() {
    let runtime = Runtime::ours();
    for refused in FILTERED {
        let bundle = bundle(|spec| {
            spec["linux"]["seccomp"] = refusing(refused);
            script(
                spec,
                "echo up > /up; while true; do for p in /proc/[0-9]*; do
               case $p in /proc/1) continue ;; esac
               for what in exe cwd root fd/3 fd/4 fd/5 fd/6 fd/7; do
                 seen=$(readlink $p/$what) || continue
                 case $seen in ''|*/busybox|/|/bin|/dev/*|pipe:*|/proc/*) ;; *) echo \"$what $seen\" >> /seen ;; esac
               done
               dd if=$p/mem of=/dev/null bs=1 count=1 && echo mem >> /seen
             done; echo >> /rounds; done 2>/dev/null",
            );
        });
        // The container was given the output file itself.
        let seen = what_an_attacker_sees(&runtime, &bundle);
        let seen: Vec<&str> = seen.lines().filter(|line| !line.contains("/output")).collect();
        assert!(seen.is_empty(), "{refused:?}: {seen:?}");
    }
}

/// Kinds of namespaces: their names in a spec, and in `/proc/PID/ns`.
const NAMESPACES: [(&str, &str); 8] = [
    ("mount", "mnt"),
    ("pid", "pid"),
    ("network", "net"),
    ("ipc", "ipc"),
    ("uts", "uts"),
    ("cgroup", "cgroup"),
    ("user", "user"),
    ("time", "time"),
];

#[test]
fn an_exec_is_in_every_namespace_and_cgroup_of_the_container() {
    let runtime = Runtime::ours();
    // With the namespaces of the default spec, where cgroups are compared by name, and with all kinds.
    for with_all in [false, true] {
        let bundle = bundle(|spec| {
            if with_all {
                let all = NAMESPACES.map(|(kind, _)| json!({"type": kind}));
                spec["linux"]["namespaces"] = json!(all);
                map_users(spec, &[(0, 100_000, 65_536)]);
            }
            script(spec, "sleep 1000");
        });
        let running = Running::start(&runtime, &bundle);
        let look = |process: &str| {
            let links = NAMESPACES.map(|(_, name)| format!("/proc/{process}/ns/{name}")).join(" ");
            let look = format!(
                "for n in {links}; do readlink $n; done; cat /proc/{process}/cgroup; \
                 grep -E '^(Cap|Seccomp:|NoNewPrivs)' /proc/{process}/status"
            );
            running.exec(&["sh", "-c", &look]).ok().stdout
        };
        let own = look("self");
        assert_eq!(look("1"), own);
        for (_, name) in NAMESPACES {
            let link =
                fs::read_link(format!("/proc/self/ns/{name}")).expect("the kernel has such namespaces");
            let is_hosts = own.lines().any(|line| Path::new(line) == link);
            assert!(!(with_all && is_hosts), "{name} is the host's: {own}");
        }
    }
}

/// A bug of youki and early runc: the container's seccomp filter must hold for execs too.
#[test]
fn the_filter_is_on_every_process() {
    let runtime = Runtime::ours();
    for no_new_privileges in [true, false] {
        let bundle = bundle(|spec| {
            spec["process"]["noNewPrivileges"] = json!(no_new_privileges);
            spec["linux"]["seccomp"] = json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
                {"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 95}]});
            script(spec, "sleep 1000");
        });
        let running = Running::start(&runtime, &bundle);
        let process = bundle.path().join("process.json");
        let description = json!({"args": ["sh", "-c", "mkdir /x; grep Seccomp: /proc/self/status"], "cwd": "/",
            "user": {"uid": 0, "gid": 0}, "env": ["PATH=/bin"], "noNewPrivileges": !no_new_privileges});
        fs::write(&process, description.to_string()).expect("a writable bundle");
        for flags in [&[][..], &["--user", "5:5"]] {
            let done = running.exec_with(flags, &["sh", "-c", "mkdir /x; grep Seccomp: /proc/self/status"]);
            assert_eq!(done.expect_stderr("not supported").text(), "Seccomp:\t2", "{flags:?}");
        }
        let words = ["exec", "--process", process.to_str().expect("UTF-8"), &running.id];
        let done = runtime.run(&words).ok();
        assert!(done.stdout.contains('2') && done.stderr.contains("not supported"), "{done}");
    }
}

/// A link in `/dev` through `/proc` leads wherever a process of the container, or the one that enters, has
/// something open.
#[test]
fn terminals_and_streams_are_not_looked_for_through_magic_links() {
    if !is_root("a container") {
        return;
    }
    let host = ShimHost::new();
    let _events = host.listen();
    for (link, works) in [("../tmp", true), ("/proc/self/root/tmp", false), ("/proc/1/root/tmp", false)] {
        let task = host
            .container("links", &format!("busybox ln -s {link} /dev/pts; exec busybox sleep 1000"))
            .with(|container| {
                for mount in container.spec["mounts"].as_array_mut().expect("mounts") {
                    match mount["destination"].as_str() {
                        // The terminals are there, but not where they are looked for.
                        Some("/dev/pts") => mount["destination"] = json!("/tmp"),
                        Some("/tmp") => mount["destination"] = json!("/dev/shm"),
                        _ => {}
                    }
                }
            })
            .run();
        eventually("the link is there", || (task.run_exec("look", "test -L /dev/pts") == 0).then_some(()));
        task.exec("terminal", "exit 3", |exec| exec.terminal = true).unwrap();
        match task.try_start("terminal") {
            Ok(_) => assert!(works && task.wait("terminal") == 3, "{link}"),
            Err(error) => {
                assert!(!works && error.message().contains("/dev/pts"), "{link}: {}", error.chain());
            }
        }
        task.delete("terminal").unwrap();
        task.end();
    }
}

/// CVE-2021-30465's sibling: a tmpfs that takes what it covers reads a directory that another container exchanges
/// for a link to the host.
#[test]
fn a_tmpfs_takes_nothing_of_the_host_along() {
    let runtime = Runtime::ours();
    let host = TempDir::new().expect("a temporary directory");
    fs::write(host.path().join("secret"), "of the host").expect("writable");
    let bundle = bundle(|spec| {
        add_mount(
            spec,
            json!({"destination": "/shared", "type": "tmpfs", "source": "tmpfs", "options": ["tmpcopyup"]}),
        );
        script(spec, "test -L /shared/dir && echo link || cat /shared/dir/secret 2>/dev/null; echo done");
    });
    let shared = bundle.path().join("rootfs/shared");
    fs::create_dir_all(shared.join("dir")).expect("a writable root");
    let (dir, link) = (shared.join("dir"), bundle.path().join("link"));
    symlink(host.path(), &link).expect("writable");
    let race = Race::start(move || {
        let exchange = rustix::fs::RenameFlags::EXCHANGE;
        let _ = rustix::fs::renameat_with(rustix::fs::CWD, &dir, rustix::fs::CWD, &link, exchange);
    });
    until_met(60, || {
        let done = attempt(&runtime, &bundle);
        // What vanished on the way may be an error.
        assert!(done.code != 0 || ["done", "link\ndone"].contains(&done.text()), "{done}");
        // It is a directory as often as the link.
        done.text() != "done"
    });
    race.stop();
}

/// A container that was told to start is never taken for one that may be deleted without a word: whoever tells it may
/// be killed in between.
#[test]
fn a_container_whose_starter_was_killed_is_not_deleted_without_force() {
    let runtime = Runtime::ours();
    let bundle = bundle(|spec| {
        script(spec, "exec sleep 1000");
        spec["hooks"] = json!({"startContainer": [{"path": "/bin/sh", "args": ["sh", "-c", "echo > /begun; exec sleep 1000"]}]});
    });
    let path = bundle.path().display().to_string();
    let id = runtime.id("starter");
    let create = runtime.command(&["create", "--bundle", &path, &id]).stdout(Stdio::null()).status();
    assert!(create.expect("it runs").success());
    let running = Running { runtime: &runtime, id: id.clone() };
    let mut start = runtime.command(&["start", &id]).stdout(Stdio::null()).spawn().expect("it runs");
    eventually("it was told", || bundle.path().join("rootfs/begun").exists().then_some(()));
    start.kill().expect("a child of ours");
    start.wait().expect("a child of ours");
    assert_ne!(runtime.run(&["delete", &id]).code, 0, "it was deleted");
    assert_ne!(runtime.run(&["start", &id]).code, 0, "it was started twice");
    drop(running);
    assert_eq!(runtime.run(&["list", "-q"]).ok().text(), "");
}

/// Looks into all processes but the first: for a file of the host, for other rights than the first has, and for whatever
/// is open.
fn look_at_all(secret: &Path) -> String {
    format!(
        "own=$(grep CapEff /proc/1/status); echo up > /up; while true; do for p in /proc/[0-9]*; do
           case $p in /proc/1) continue ;; esac
           test -e $p/root{} && echo \"root $(cat $p/comm)\" >> /seen
           has=$(grep CapEff $p/status) && test \"$has\" != \"$own\" && echo \"$has\" >> /seen
           for fd in $p/fd/*; do
             to=$(readlink $fd) || continue
             case $to in pipe:*|socket:*|/dev/null|*/output|/proc/*/fd|/proc/*/status|/seen|/rounds) ;; *) echo \"$to\" >> /seen ;; esac
           done
         done; echo >> /rounds; done 2>/dev/null",
        secret.display()
    )
}

/// With `CAP_SYS_PTRACE` a container looks into all that it sees: a process that enters it must not be seen before
/// everything that it has is the container's, but for a filter under which it could not be born.
#[test]
fn who_may_trace_all_finds_nothing_of_the_host_in_who_enters() {
    let runtime = Runtime::ours();
    let host = TempDir::new().expect("a temporary directory");
    let secret = host.path().join("secret");
    fs::write(&secret, "of the host").expect("writable");
    for refused in FILTERED {
        let bundle = bundle(|spec| {
            add_capabilities(spec, &["CAP_SYS_PTRACE"]);
            spec["linux"]["seccomp"] = refusing(refused);
            script(spec, &look_at_all(&secret));
        });
        let seen = what_an_attacker_sees(&runtime, &bundle);
        assert!(seen.is_empty(), "{refused:?}: {seen}");
    }
}

/// So does one that shares the process numbers of the container that is entered.
#[test]
fn a_neighbour_that_may_trace_all_finds_nothing_of_the_host_in_who_enters() {
    let runtime = Runtime::ours();
    let host = TempDir::new().expect("a temporary directory");
    let secret = host.path().join("secret");
    fs::write(&secret, "of the host").expect("writable");
    for refused in FILTERED {
        let calm = bundle(|spec| {
            // With the rights of the neighbour, which looks for others.
            add_capabilities(spec, &["CAP_SYS_PTRACE"]);
            spec["linux"]["seccomp"] = refusing(refused);
            script(spec, "exec busybox sleep 1000");
        });
        let entered = Running::start(&runtime, &calm);
        let state = runtime.run(&["state", &entered.id]).ok();
        let state: Value = serde_json::from_str(&state.stdout).expect("JSON");
        let neighbour = bundle(|spec| {
            add_capabilities(spec, &["CAP_SYS_PTRACE"]);
            join(spec, json!({"type": "pid", "path": format!("/proc/{}/ns/pid", state["pid"])}));
            script(spec, &look_at_all(&secret));
        });
        let _looks = Running::start(&runtime, &neighbour);
        let seen = what_a_neighbour_sees(&entered, &neighbour);
        assert!(seen.is_empty(), "{refused:?}: {seen}");
    }
}

/// Whoever may trace takes from the process that enters what it speaks to its parent with. Of what is said there a
/// parent that believed everybody would take a process of the host for its own, and end it.
#[test]
fn forged_messages_of_an_exec_are_not_believed() {
    let runtime = Runtime::ours();
    let mut victim = Command::new("sleep").arg("1000").spawn().expect("it runs");
    let number = victim.id().to_string();
    let bundle = bundle(|spec| {
        add_capabilities(spec, &["CAP_SYS_PTRACE"]);
        spec["process"]["args"] = json!(["/speaker", number]);
    });
    let root = bundle.path().join("rootfs");
    compile(include_str!("speaker.c"), &root.join("speaker"));
    let running = Running::start(&runtime, &bundle);
    let pid = bundle.path().join("pid");
    let words = ["--detach", "--pid-file", pid.to_str().expect("UTF-8")];
    eventually("it has spoken", || {
        let done = running.exec_with(&words, &["true"]);
        assert!(done.code != 0 || read_text(&pid) != number, "{done}");
        (fs::metadata(root.join("spoken")).map_or(0, |file| file.len()) >= 5).then_some(())
    });
    assert!(victim.try_wait().expect("a child of ours").is_none(), "it was ended");
    victim.kill().expect("a child of ours");
    victim.wait().expect("a child of ours");
}

/// Such a filter cannot be there when the process is born.
#[test]
fn a_filter_under_which_nothing_is_born_is_on_who_enters() {
    let runtime = Runtime::ours();
    for no_new_privileges in [true, false] {
        for calls in [&["clone", "clone3", "fork", "vfork"][..], &["setsid"]] {
            let bundle = bundle(|spec| {
                spec["process"]["noNewPrivileges"] = json!(no_new_privileges);
                spec["linux"]["seccomp"] = json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
                    {"names": calls, "action": "SCMP_ACT_ERRNO", "errnoRet": 95}]});
                script(spec, "exec busybox sleep 1000");
            });
            let running = Running::start(&runtime, &bundle);
            let look =
                "while read -r line; do case $line in Seccomp:*) echo $line;; esac; done < /proc/self/status";
            for flags in [&[][..], &["--user", "5:5"]] {
                let done = running.exec_with(flags, &["sh", "-c", look]).ok();
                assert_eq!(done.text(), "Seccomp: 2", "{calls:?} {flags:?}");
            }
        }
    }
}

/// Whoever brings a process in is one more process of its user, which the limit must not count.
#[test]
fn a_user_has_as_many_processes_as_its_limit_says() {
    let runtime = Runtime::ours();
    let bundle = bundle(|spec| script(spec, "exec busybox sleep 1000"));
    let running = Running::start(&runtime, &bundle);
    let process = bundle.path().join("process.json");
    let description = json!({"args": ["busybox", "sleep", "1000"], "cwd": "/", "user": {"uid": 47_110, "gid": 5},
        "env": ["PATH=/bin"], "rlimits": [{"type": "RLIMIT_NPROC", "soft": 2, "hard": 2}]});
    fs::write(&process, description.to_string()).expect("a writable bundle");
    let output = fs::File::create(bundle.path().join("output")).expect("a writable bundle");
    let enter = || {
        let words = ["exec", "--detach", "--process", process.to_str().expect("UTF-8"), &running.id];
        let mut command = runtime.command(&words);
        command.stdout(output.try_clone().expect("a file")).stderr(output.try_clone().expect("a file"));
        command.status().expect("it runs").success()
    };
    assert!(enter() && enter(), "{}", read_text(&bundle.path().join("output")));
    assert!(!enter(), "the third is one too many");
    let limits = running.exec(&["sh", "-c", "busybox grep -h processes /proc/[0-9]*/limits; true"]).ok();
    let lines = limits.text().lines().filter(|line| line.split_whitespace().nth(3) == Some("2")).count();
    assert_eq!(lines, 2, "{limits}");
}

/// A scheduler that is not passed on at a clone is there all the same.
#[test]
fn who_enters_has_the_scheduler_that_it_was_given() {
    let runtime = Runtime::ours();
    let bundle = bundle(|spec| script(spec, "exec busybox sleep 1000"));
    let running = Running::start(&runtime, &bundle);
    let process = bundle.path().join("process.json");
    for (scheduler, expected) in [
        (json!({"policy": "SCHED_BATCH", "nice": 5, "flags": ["SCHED_FLAG_RESET_ON_FORK"]}), "5 3"),
        (
            json!({"policy": "SCHED_DEADLINE", "runtime": 10_000_000, "deadline": 100_000_000, "period": 100_000_000}),
            "0 6",
        ),
    ] {
        let description = json!({"args": ["sh", "-c", "read -r line < /proc/self/stat; echo $line"], "cwd": "/",
            "env": ["PATH=/bin"], "scheduler": scheduler});
        fs::write(&process, description.to_string()).expect("a writable bundle");
        let said = runtime.run(&["exec", "--process", process.to_str().expect("UTF-8"), &running.id]).ok();
        // Fields of proc_pid_stat(5): nice and policy.
        let fields: Vec<&str> = said.text().split(' ').collect();
        assert_eq!(format!("{} {}", fields[18], fields[40]), expected);
    }
}

/// Goes from one namespace to the next and back, of every kind that it may make.
const RESTLESS: &str = r#"
#define _GNU_SOURCE
#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>
int main(void) {
    int kinds[] = {CLONE_NEWUTS, CLONE_NEWIPC, CLONE_NEWNS, CLONE_NEWCGROUP, CLONE_NEWNET, CLONE_NEWPID};
    char *names[] = {"uts", "ipc", "mnt", "cgroup", "net", "pid"};
    int own[6];
    for (int i = 0; i < 6; i++) {
        char path[64];
        snprintf(path, sizeof path, "/proc/self/ns/%s", names[i]);
        own[i] = open(path, O_RDONLY);
    }
    mkdir("/up", 0755);
    for (;;) {
        for (int i = 0; i < 6; i++) unshare(kinds[i]);
        for (int i = 0; i < 6; i++) setns(own[i], 0);
        chdir("/");
    }
}
"#;

/// A first process that is somewhere else at every moment leads nobody out of the container.
#[test]
fn a_first_process_that_does_not_stay_leads_nobody_out() {
    let runtime = Runtime::ours();
    let bundle = bundle(|spec| {
        add_capabilities(spec, &["CAP_SYS_ADMIN", "CAP_SYS_CHROOT"]);
        spec["process"]["args"] = json!(["/restless"]);
        let namespaces = spec["linux"]["namespaces"].as_array_mut().expect("namespaces");
        namespaces.retain(|namespace| namespace["type"] != "cgroup");
        namespaces.push(json!({"type": "cgroup"}));
    });
    compile(RESTLESS, &bundle.path().join("rootfs/restless"));
    let running = Running::start(&runtime, &bundle);
    eventually("the first process is up", || bundle.path().join("rootfs/up").exists().then_some(()));
    let kinds = ["mnt", "pid", "net", "ipc", "uts", "cgroup"];
    let hosts = kinds.map(|kind| {
        fs::read_link(format!("/proc/self/ns/{kind}")).expect("the kernel has it").display().to_string()
    });
    let look = format!(
        "for n in {}; do readlink /proc/self/ns/$n; done; test -d /up && echo inside; cat /proc/self/cgroup",
        kinds.join(" ")
    );
    let mut entered = 0;
    for _ in 0..60 {
        let done = running.exec(&["sh", "-c", &look]);
        for host in &hosts {
            assert!(!done.stdout.contains(host), "{host}\n{done}");
        }
        if done.code == 0 {
            assert!(done.stdout.contains("\ninside\n") && !done.stdout.contains("/.."), "{done}");
            entered += 1;
        }
    }
    // It may lack a /proc of its own pid namespace at the wrong moment; not always.
    assert!(entered > 0, "nobody came in at all");
}

/// A container whose first process is in a cgroup of somebody else's.
struct Astray<'a> {
    running: Running<'a>,
    first: u32,
    elsewhere: Cgroup,
    /// Where those who enter find what to do.
    _bundle: TempDir,
}

impl<'a> Astray<'a> {
    fn start(runtime: &'a Runtime) -> Astray<'a> {
        let bundle = bundle(|spec| {
            script(spec, "exec busybox sleep 1000");
            // As seen from the host.
            let namespaces = spec["linux"]["namespaces"].as_array_mut().expect("namespaces");
            namespaces.retain(|namespace| namespace["type"] != "cgroup");
        });
        let running = Running::start(runtime, &bundle);
        let state: Value =
            serde_json::from_str(&runtime.run(&["state", &running.id]).ok().stdout).expect("JSON");
        let first = u32::try_from(state["pid"].as_u64().expect("a pid")).expect("a pid");
        let elsewhere = Cgroup::share(&format!("/elsewhere-{}", running.id)).expect("root may make cgroups");
        elsewhere.add(first).expect("root may move");
        let own = Cgroup::open(&format!("/{}", running.id)).expect("it is the container's");
        assert_eq!(own.processes().unwrap(), [0; 0], "it has left");
        Astray { running, first, elsewhere, _bundle: bundle }
    }
}

/// Whatever the test's outcome, nobody is left there.
impl Drop for Astray<'_> {
    fn drop(&mut self) {
        let _ = self.elsewhere.kill();
        let deleted = || self.elsewhere.delete().ok();
        eventually("its processes end", deleted);
    }
}

/// Who enters goes where the container's cgroup is, wherever its first process went, and not at all where only that could
/// show the way: outside nobody's limits would hold.
#[test]
fn a_first_process_that_left_its_cgroup_leads_nobody_out() {
    let runtime = Runtime::ours();
    let astray = Astray::start(&runtime);
    let id = &astray.running.id;
    let look = || astray.running.exec(&["cat", "/proc/self/cgroup"]);
    let said = look().ok();
    assert!(said.text().contains(&format!("/{id}")) && !said.text().contains("elsewhere"), "{said}");
    let tree = cgroups::named(id).into_iter().find(|tree| tree.join("pids.max").exists());
    let Some(tree) = tree.filter(|tree| tree.join("cgroup.subtree_control").exists()) else {
        println!("skipped: cgroups of version 1 are entered though they are divided");
        return;
    };
    let leaf = tree.join("leaf");
    fs::create_dir(&leaf).expect("root may make cgroups");
    fs::write(tree.join("cgroup.subtree_control"), "+pids").expect("nobody is in it");
    look().expect_code(255).expect_stderr("left cgroup");
    fs::write(leaf.join("cgroup.procs"), astray.first.to_string()).expect("root may move");
    let said = look().ok();
    assert!(said.text().contains(&format!("/{id}/leaf")), "{said}");
    // It has stopped itself there, and not the container: nobody waits for it for ever.
    fs::write(leaf.join("cgroup.freeze"), "1").expect("root may");
    let refused = look();
    assert_ne!(refused.code, 0, "{refused}");
}

#[test]
fn a_first_process_that_left_its_cgroup_is_killed_all_the_same() {
    let runtime = Runtime::ours();
    for (command, signal) in [(["delete", "--force"], None), (["kill", "--all"], Some("KILL"))] {
        let astray = Astray::start(&runtime);
        let id = &astray.running.id;
        let words: Vec<&str> = command.into_iter().chain([id.as_str()]).chain(signal).collect();
        runtime.run(&words).ok();
        eventually("it has stopped", || {
            let state = runtime.run(&["state", id]);
            (state.code != 0 || state.stdout.contains("\"stopped\"")).then_some(())
        });
        runtime.run(&["delete", "--force", id]).ok();
        assert_eq!(cgroups::named(id), Vec::<PathBuf>::new(), "nothing is left");
    }
}
