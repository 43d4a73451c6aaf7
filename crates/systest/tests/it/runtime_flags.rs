//! Flags of runc's without a test elsewhere: Hoist knows each flag of Debian's runc, and whether it takes a value; and
//! `run --keep` and `kill --all`.

use std::fs;
use std::process::Stdio;

use tempfile::TempDir;
use testkit::{eventually, run};

use crate::checkpoint::End;
use crate::runtime_bundle::{Runtime, bundle, script};

/// A flag, by all its names, and the value that stands behind it.
struct Flag {
    names: Vec<String>,
    value: Option<String>,
}

impl Flag {
    /// Reads a line of runc's help, such as `--bundle value, -b value  path to …`, or what is none.
    fn parse(line: &str) -> Option<Flag> {
        let (names, about) = line.trim().split_once("  ")?;
        if !names.starts_with('-') {
            return None;
        }
        let value = names.contains(" value").then(|| {
            let default = about.rsplit_once("(default: ").and_then(|(_, rest)| rest.strip_suffix(')'));
            default.map_or("1", |text| text.trim_matches('"')).to_owned()
        });
        let names = names.split(", ").filter_map(|name| name.split(' ').next()).map(str::to_owned).collect();
        Some(Flag { names, value })
    }

    /// The flags that `runc WORDS --help` tells.
    fn of(words: &[&str]) -> Vec<Flag> {
        let help = run(std::process::Command::new("runc").args(words).arg("--help")).ok().stdout;
        help.lines().filter_map(Flag::parse).collect()
    }
}

/// What ours says where it takes a flag for something else: for none, for one without a value, for one with.
const COMPLAINTS: &[&str] =
    &["unknown flag", "unknown command", "unexpected argument", "is missing", "container 1 "];

#[test]
fn every_flag_of_runc_is_known() {
    let dir = TempDir::new().expect("a temporary directory");
    let ours = Runtime::ours();
    let complaint = |words: &[&str]| {
        let done = run(ours.command(words).current_dir(dir.path()));
        let log = fs::read_to_string(dir.path().join("1")).unwrap_or_default();
        let _ = fs::remove_file(dir.path().join("1"));
        let said = done.stderr + &log;
        COMPLAINTS.iter().any(|words| said.contains(words)).then_some(said)
    };
    let help = run(std::process::Command::new("runc").arg("--help")).ok().stdout;
    let (_, list) = help.split_once("COMMANDS:").expect("runc lists its commands");
    let (list, _) = list.split_once("GLOBAL").expect("and then its flags");
    let commands: Vec<&str> = list.lines().filter_map(|line| line.split_whitespace().next()).collect();
    let commands: Vec<&str> = commands.into_iter().filter(|name| *name != "help,").collect();
    assert!(commands.len() >= 17, "{commands:?}");
    let mut wrong = Vec::new();
    let mut count = 0;
    for command in std::iter::once("").chain(commands) {
        let subject: &[&str] = match command {
            "" => &["state", "nosuch"],
            "list" | "spec" | "features" => &[],
            "exec" => &["nosuch", "true"],
            "ps" => &["nosuch", "-e"],
            "kill" => &["nosuch", "KILL"],
            _ => &["nosuch"],
        };
        let before: Vec<&str> = Some(command).filter(|name| !name.is_empty()).into_iter().collect();
        let refused = complaint(&[&before, &["--nosuch"][..], subject].concat());
        assert!(refused.is_some(), "{command} --nosuch is one");
        for flag in Flag::of(&before) {
            for name in &flag.names {
                let words = [name.as_str()].into_iter().chain(flag.value.as_deref());
                let words = before.iter().copied().chain(words).chain(subject.iter().copied());
                let words: Vec<&str> = words.collect();
                count += 1;
                wrong.extend(complaint(&words).map(|said| format!("{}: {said}", words.join(" "))));
                let _ = fs::remove_file(dir.path().join("config.json"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(count > 100, "{count} flags in runc's help");
}

/// Behind the container too, with one dash or two, and with runc's words for yes and no.
#[test]
fn flags_are_written_as_with_runc() {
    let bundle = bundle(|spec| script(spec, "sleep 1000"));
    let path = bundle.path().display().to_string();
    let rows: [(&str, &str, bool); 11] = [
        ("create ID --bundle PATH", "delete ID --force", true),
        ("create -bundle PATH ID", "kill ID KILL --all", true),
        ("create --b PATH ID", "delete --f=1 ID", true),
        ("create -b=PATH ID", "delete -force=T ID", true),
        ("run --detach=True ID -b PATH", "delete --force=maybe ID", false),
        ("run -d -b PATH ID", "delete --force=false ID", false),
        ("run -d -b PATH ID", "delete ID --nosuch", false),
        ("run -d -b PATH ID", "pause ID more", false),
        ("run -d -b PATH -- ID", "--log-format xml delete -f ID", false),
        ("run -d -b PATH ID", "--log PATH/nosuch/log delete -f ID", false),
        ("run -d -b PATH ID", "update --cpu-period= --memory 64.5m ID", true),
    ];
    for runtime in Runtime::both() {
        for (first, second, is_right) in rows {
            let id = runtime.id("words");
            let _end = End(&runtime, &id);
            let words = |line: &str| -> Vec<String> {
                line.split(' ').map(|word| word.replace("PATH", &path).replace("ID", &id)).collect()
            };
            let command = |line: &str| {
                let words = words(line);
                runtime.command(&words.iter().map(String::as_str).collect::<Vec<_>>())
            };
            let begun = command(first).stdout(Stdio::null()).stderr(Stdio::null()).status().expect("it runs");
            assert!(begun.success(), "{}: {first}", runtime.name);
            let done = run(&mut command(second));
            assert_eq!(done.code == 0, is_right, "{}: {second}: {done}", runtime.name);
        }
        let id = runtime.id("here");
        let _end = End(&runtime, &id);
        let mut create = runtime.command(&["create", "--bundle", "", &id]);
        create.current_dir(&path).stdout(Stdio::null()).stderr(Stdio::null());
        assert!(create.status().expect("it runs").success(), "{}: an empty path is here", runtime.name);
        assert_eq!(runtime.run(&[]).code, 0, "{}: without a command it tells its commands", runtime.name);
    }
}

#[test]
fn ids_are_runcs() {
    let bundle = bundle(|spec| script(spec, "sleep 1000"));
    let path = bundle.path().display().to_string();
    let own = std::process::id().to_string();
    let long = "x".repeat(100);
    for runtime in Runtime::both() {
        for id in ["_ID_", ".ID", "ID+1", "-ID", "ID..1", &long] {
            let id = id.replace("ID", &own);
            let mut create = runtime.command(&["create", "--bundle", &path, "--", &id]);
            let made = create.stdout(Stdio::null()).stderr(Stdio::null()).status().expect("it runs");
            assert!(made.success(), "{}: {id}", runtime.name);
            assert_eq!(runtime.run(&["list", "--quiet"]).ok().text(), id, "{}", runtime.name);
            runtime.run(&["delete", "--force", "--", &id]).ok();
        }
        for id in ["", ".", "..", "a/b", "a b", "a:b", "\u{e4}", "a\n"] {
            let refused = runtime.run(&["create", "--bundle", &path, id]);
            assert!(refused.code != 0 && refused.stderr.contains("id"), "{} {id:?}: {refused}", runtime.name);
        }
    }
}

#[test]
fn what_is_kept_is_there() {
    for runtime in Runtime::both() {
        let bundle = bundle(|spec| script(spec, "exit 7"));
        let path = bundle.path().display().to_string();
        for (flags, is_kept) in [(&["--keep"][..], true), (&[], false)] {
            let id = runtime.id("kept");
            let _end = End(&runtime, &id);
            runtime.run(&[&["run"], flags, &["--bundle", &path, &id]].concat()).expect_code(7);
            let state = runtime.run(&["state", &id]);
            assert_eq!(state.code == 0, is_kept, "{}: {state}", runtime.name);
            if is_kept {
                assert!(state.stdout.contains("\"stopped\""), "{}: {state}", runtime.name);
                runtime.run(&["delete", &id]).ok();
                runtime.run(&["state", &id]).expect_code(1).expect_stderr("does not exist");
            }
        }
    }
}

/// In a container that shares the host's processes, so that the end of the first one is not that of the others.
#[test]
fn a_signal_for_all_reaches_all() {
    const PROGRAM: &str = "
        (trap 'echo child >> /said' USR1; echo child >> /ready; while true; do sleep 0.1; done) &
        trap 'echo first >> /said' USR1; echo first >> /ready; while true; do sleep 0.1; done";
    for runtime in Runtime::both() {
        let bundle = bundle(|spec| {
            script(spec, PROGRAM);
            let namespaces = spec["linux"]["namespaces"].as_array_mut().expect("namespaces");
            namespaces.retain(|namespace| namespace["type"] != "pid");
        });
        let path = bundle.path().display().to_string();
        let lines = |name: &str| {
            let text = fs::read_to_string(bundle.path().join("rootfs").join(name)).unwrap_or_default();
            let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
            lines.sort();
            lines.join(" ")
        };
        let id = runtime.id("all");
        let _end = End(&runtime, &id);
        let mut started = runtime.command(&["run", "-d", "--bundle", &path, &id]);
        assert!(started.stdout(Stdio::null()).stderr(Stdio::null()).status().expect("it runs").success());
        eventually("both listen", || (lines("ready") == "child first").then_some(()));
        runtime.run(&["kill", &id, "USR1"]).ok();
        eventually("the first one has heard it", || lines("said").contains("first").then_some(()));
        for (count, flag) in ["--all", "-a"].into_iter().enumerate() {
            runtime.run(&["kill", flag, &id, "USR1"]).ok();
            let expected = "child ".repeat(count + 1) + &["first"; 3][..count + 2].join(" ");
            eventually("all have heard it", || (lines("said") == expected).then_some(()));
        }
        let child = format!("/proc/{}", child_of(&runtime, &id));
        assert!(fs::exists(&child).expect("procfs"), "{child}");
        runtime.run(&["kill", "-a", &id, "KILL"]).ok();
        let ended = || !is_running(&child);
        eventually("the child has ended too", || ended().then_some(()));
        let is_stopped = || runtime.run(&["state", &id]).ok().stdout.contains("stopped");
        eventually("the first has, too", || is_stopped().then_some(()));
        runtime.run(&["delete", &id]).ok();
    }
}

/// The other shell of a container, beside its first process.
fn child_of(runtime: &Runtime, id: &str) -> String {
    let state: serde_json::Value =
        serde_json::from_str(&runtime.run(&["state", id]).ok().stdout).expect("state is JSON");
    let pid = state["pid"].to_string();
    let is_shell =
        |pid: &String| fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.trim() == "sh");
    eventually("it has a child", || {
        let listed = runtime.run(&["ps", "-f", "json", id]).ok().stdout;
        let pids: Vec<u32> = serde_json::from_str(&listed).expect("a list of numbers");
        pids.iter().map(u32::to_string).filter(|other| *other != pid).find(is_shell)
    })
}

/// Whether a process is there and no zombie.
fn is_running(dir: &str) -> bool {
    let stat = fs::read_to_string(format!("{dir}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z'))
}
