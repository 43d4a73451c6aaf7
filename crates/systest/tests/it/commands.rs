//! Commands of Docker's: filters of `ps`, `rename`, `update`, `top`, `port`, `events`, shell completion.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use testkit::{Daemon, Finished, eventually, run};
use types::Timestamp;

/// The names that `ps -a` prints with filters, in order.
#[track_caller]
fn names(daemon: &Daemon, words: &[&str]) -> String {
    let format = ["ps", "-a", "--format", "{{.Names}}"];
    daemon.hoist(format.iter().chain(words)).ok().text().replace('\n', " ")
}

#[test]
fn lists_of_containers_are_filtered_as_dockers_are() {
    let daemon = Daemon::with_busybox();
    let run = |words: &[&str]| {
        daemon.hoist(["run", "--network", "none"].iter().chain(words)).ok();
    };
    run(&["-d", "--name", "web-one", "--label", "tier=front", "--label", "x", "busybox", "sleep", "1000"]);
    run(&["-d", "--name", "web-two", "--label", "tier=back", "-v", "crop:/data", "busybox", "sleep", "1000"]);
    daemon
        .hoist(["run", "--network", "none", "--name", "fails", "busybox", "sh", "-c", "exit 3"])
        .expect_code(3);
    daemon.hoist(["tag", "busybox", "other:1"]).ok();
    let ports = ["-p", "127.0.0.1::81/udp", "--expose", "7000"];
    daemon.hoist([&["create", "--name", "waits"][..], &ports, &["other:1", "true"]].concat()).ok();
    daemon.hoist(["pause", "web-two"]).ok();

    let check = |filters: &[&str], expected: &str| {
        let words: Vec<&str> = filters.iter().flat_map(|filter| ["--filter", filter]).collect();
        assert_eq!(names(&daemon, &words), expected, "{filters:?}");
    };
    check(&[], "waits fails web-two web-one");
    check(&["name=web"], "web-two web-one");
    check(&["name=^web-one$"], "web-one");
    check(&["name=^/web-one$", "name=fails"], "fails web-one");
    check(&["label=tier"], "web-two web-one");
    check(&["label=tier=front"], "web-one");
    check(&["label=tier=front", "label=x"], "web-one");
    check(&["label=tier=front", "label=tier=back"], "");
    check(&["label=tier", "name=two"], "web-two");
    check(&["status=exited"], "fails");
    check(&["status=created", "status=paused"], "waits web-two");
    check(&["exited=3"], "fails");
    check(&["exited=0"], "");
    check(&["volume=crop"], "web-two");
    check(&["volume=/data"], "web-two");
    check(&["network=bridge"], "waits");
    check(&["publish=80-90/udp"], "waits");
    check(&["publish=81/tcp"], "");
    check(&["publish=7000"], "");
    check(&["expose=6999-7001/tcp"], "waits");
    check(&["expose=81/udp"], "waits");
    check(&["expose=80"], "");
    check(&["before=fails"], "web-two web-one");
    check(&["since=web-two"], "waits fails");
    check(&["ancestor=busybox"], "waits fails web-two web-one");
    check(&["ancestor=nosuch"], "");
    let id = daemon.hoist(["inspect", "-f", "{{.Id}}", "fails"]).ok().text().to_owned();
    check(&[&format!("id={}", &id[..12])], "fails");
    // A filter for a state shows containers that do not run, without `-a`.
    let exited = daemon.hoist(["ps", "-q", "--no-trunc", "-f", "status=exited"]).ok();
    assert_eq!(exited.text(), id);

    for (filter, why) in [
        ("nosuch=1", "known are ancestor"),
        ("name", "KEY=VALUE"),
        ("status=x", "created"),
        ("since=nosuch", "nosuch"),
    ] {
        daemon.hoist(["ps", "--filter", filter]).expect_code(1).expect_stderr(why);
    }

    let last = |words: &[&str]| names(&daemon, words);
    assert_eq!(last(&["-n", "2"]), "waits fails");
    assert_eq!(last(&["-l"]), "waits");
    assert_eq!(last(&["-n", "-1"]), "waits fails web-two web-one");
    let sizes = daemon.hoist(["ps", "-as", "--format", "{{.Size}}", "-f", "name=web-one"]).ok();
    assert!(sizes.text().contains("B (virtual "), "{sizes}");
    let row = daemon.hoist(["ps", "--format", "json", "-f", "name=web-one"]).ok();
    let row: Value = serde_json::from_str(row.text()).expect("a row is JSON");
    assert_eq!(row["Labels"], "tier=front,x=", "as Docker writes labels");
    let table = daemon.hoist(["ps", "--format", "table {{.ID}}\t{{.Names}}", "-f", "name=web-one"]).ok();
    let lines: Vec<Vec<&str>> = table.stdout.lines().map(|line| line.split_whitespace().collect()).collect();
    assert!(lines[0] == ["CONTAINER", "ID", "NAMES"] && lines[1][1] == "web-one", "{table}");
}

#[test]
fn a_container_is_renamed_while_it_runs() {
    let mut daemon = Daemon::with_busybox();
    for name in ["old", "other"] {
        daemon.hoist(["run", "-d", "--name", name, "--network", "none", "busybox", "sleep", "1000"]).ok();
    }
    daemon.hoist(["rename", "old", "new"]).ok();
    daemon.hoist(["inspect", "old"]).expect_code(1);
    assert_eq!(daemon.hoist(["inspect", "-f", "{{.Name}}", "new"]).ok().text(), "/new");
    daemon.hoist(["rename", "new", "other"]).expect_code(1).expect_stderr("already in use by container");
    daemon.hoist(["rename", "new", "new"]).expect_code(1).expect_stderr("has this name already");
    daemon.hoist(["rename", "new", "no/name"]).expect_code(1).expect_stderr("invalid container name");
    daemon.hoist(["rename", "nosuch", "x1"]).expect_code(1).expect_stderr("No such container: nosuch");
    // The old name can be used again, and the next daemon knows the new one.
    daemon.hoist(["create", "--name", "old", "--network", "none", "busybox", "true"]).ok();
    daemon.kill();
    daemon.start_again();
    assert_eq!(names(&daemon, &["-f", "status=running"]), "other new");
    daemon
        .hoist(["create", "--name", "new", "busybox", "true"])
        .expect_code(125)
        .expect_stderr("already in use");
    daemon.hoist(["rm", "-f", "new"]).ok();
    daemon.hoist(["rename", "other", "new"]).ok();
}

#[test]
fn published_ports_are_shown() {
    let daemon = Daemon::with_busybox();
    let ports = ["-p", "127.0.0.1::80", "-p", "127.0.0.1::53/udp"];
    let words = ["run", "-d", "--name", "web"].iter().chain(&ports).chain(&["busybox", "sleep", "1000"]);
    daemon.hoist(words).ok();
    let all = daemon.hoist(["port", "web"]).ok();
    let lines: Vec<&str> = all.text().lines().collect();
    assert!(lines.len() == 2 && lines[0].starts_with("53/udp -> 127.0.0.1:"), "{all}");
    let outside = lines[1].strip_prefix("80/tcp -> ").expect("the other");
    assert_eq!(daemon.hoist(["port", "web", "80"]).ok().text(), outside);
    assert_eq!(daemon.hoist(["port", "web", "80/tcp"]).ok().text(), outside);
    let refused = daemon.hoist(["port", "web", "81"]).expect_code(1);
    refused.expect_stderr("no public port '81/tcp' published for web");
    daemon.hoist(["port", "web", "x"]).expect_code(1).expect_stderr("invalid port");
    let template = r#"{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}"#;
    let address = daemon.hoist(["inspect", "-f", template, "web"]).ok();
    assert_eq!(
        address.text(),
        daemon.hoist(["inspect", "-f", "{{.NetworkSettings.IPAddress}}", "web"]).ok().text()
    );
    let template = r#"{{(index (index .NetworkSettings.Ports "80/tcp") 0).HostPort}}"#;
    let port = daemon.hoist(["inspect", "-f", template, "web"]).ok();
    assert_eq!(Some(port.text()), outside.split(':').nth(1));
}

#[test]
fn processes_are_shown_without_a_ps_in_the_image() {
    let daemon = Daemon::with_busybox();
    let program = "rm -f /bin/ps /usr/bin/ps; sleep 1111 & exec sleep 2222";
    daemon.hoist(["run", "-d", "--name", "busy", "--network", "none", "busybox", "sh", "-c", program]).ok();
    let commands = || daemon.hoist(["top", "busy", "-eo", "pid,ppid,args"]).ok();
    // A process is listed before it executes its program, as the shell with both words.
    let is_there = |listed: &Finished, wanted: [&str; 2]| {
        listed.stdout.lines().any(|line| line.split_whitespace().skip(2).eq(wanted))
    };
    let both = |listed: &Finished| ["1111", "2222"].iter().all(|time| is_there(listed, ["sleep", time]));
    let listed = eventually("both run", || Some(commands()).filter(both));
    let rows: Vec<Vec<&str>> = listed.stdout.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!((rows.len(), rows[0].as_slice()), (3, &["PID", "PPID", "COMMAND"][..]));
    let pid = daemon.hoist(["inspect", "-f", "{{.State.Pid}}", "busy"]).ok().text().to_owned();
    assert!(rows.iter().any(|row| row[0] == pid), "numbers are the machine's: {listed}");
    let full = daemon.hoist(["top", "busy"]).ok();
    assert!(full.stdout.starts_with("UID") && full.stdout.contains("root"), "{full}");
    daemon.hoist(["top", "busy", "aux"]).ok().expect_code(0);
    daemon.hoist(["top", "busy", "-Z"]).expect_code(1).expect_stderr("-ef, aux");
    daemon.hoist(["kill", "busy"]).ok();
    daemon.hoist(["wait", "busy"]).ok();
    daemon.hoist(["top", "busy"]).expect_code(1).expect_stderr("not running");
}

#[test]
fn limits_and_policies_are_updated_while_it_runs_and_for_the_next_start() {
    let daemon = Daemon::with_busybox();
    let run = ["run", "-d", "--name", "one", "--network", "none", "-m", "64m", "busybox", "sleep", "1000"];
    daemon.hoist(run).ok();
    daemon
        .hoist(["run", "-d", "--rm", "--name", "gone", "--network", "none", "busybox", "sleep", "1000"])
        .ok();
    daemon.hoist(["update", "one"]).expect_code(1);
    let changes = ["-m", "128m", "--cpus", "0.5", "--pids-limit", "77", "--restart", "on-failure:2"];
    let updated = daemon.hoist(["update"].iter().chain(&changes).chain(&["one"])).ok();
    assert_eq!(updated.text(), "one");
    let template = "{{.HostConfig.Memory}} {{.HostConfig.NanoCpus}} {{.HostConfig.PidsLimit}} \
                    {{.HostConfig.RestartPolicy.Name}} {{.HostConfig.RestartPolicy.MaximumRetryCount}}";
    let shown = || daemon.hoist(["inspect", "-f", template, "one"]).ok().text().to_owned();
    assert_eq!(shown(), "134217728 500000000 77 on-failure 2");
    let inside = "cat /sys/fs/cgroup/memory.max /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/pids.max \
                  /sys/fs/cgroup/pids/pids.max 2>/dev/null; true";
    let limits = || daemon.hoist(["exec", "one", "sh", "-c", inside]).ok().text().replace('\n', " ");
    assert_eq!(limits(), "134217728 77");
    daemon.hoist(["stop", "-t", "0", "one"]).ok();
    daemon.hoist(["update", "--pids-limit", "88", "one"]).ok();
    daemon.hoist(["start", "one"]).ok();
    assert_eq!(limits(), "134217728 88");
    let refused = daemon.hoist(["update", "--restart", "always", "gone", "nosuch"]).expect_code(1);
    assert!(refused.stderr.contains("--rm") && refused.stderr.contains("nosuch"), "{refused}");
    // The policy that was set last counts.
    daemon.hoist(["update", "--restart", "always", "one"]).ok();
    let before = daemon.hoist(["inspect", "-f", "{{.State.Pid}}", "one"]).ok().text().to_owned();
    let pid = Pid::from_raw(before.parse().expect("a pid")).expect("it runs");
    kill_process(pid, Signal::KILL).expect("root may");
    eventually("it is started again", || {
        let state = daemon.hoist(["inspect", "-f", "{{.State.Status}} {{.State.Pid}}", "one"]).ok();
        state.text().strip_prefix("running ").filter(|pid| *pid != before).map(drop)
    });
}

/// `events`, read line by line.
pub(crate) struct Listener {
    child: Child,
    lines: Receiver<String>,
}

impl Listener {
    /// Starts `events`, and waits until it has printed an event of a container `probe`.
    pub(crate) fn start(daemon: &Daemon, words: &[&str]) -> Listener {
        let mut child = daemon.command(words).stdout(Stdio::piped()).spawn().expect("hoist starts");
        let out = BufReader::new(child.stdout.take().expect("a pipe"));
        let (send, lines) = channel();
        std::thread::spawn(move || out.lines().map_while(Result::ok).try_for_each(|line| send.send(line)));
        eventually("somebody listens", || {
            let probe = ["run", "--rm", "--name", "probe", "--network", "none", "busybox", "false"];
            daemon.hoist(probe).expect_code(1);
            lines.try_recv().ok()
        });
        Listener { child, lines }
    }

    pub(crate) fn next(&self) -> String {
        let told = self.lines.iter().find(|line| !line.contains("probe"));
        told.expect("it tells until it is ended")
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.child.kill().expect("a child of ours");
        self.child.wait().expect("a child of ours");
    }
}

#[test]
fn what_happens_is_told_as_it_happens() {
    let daemon = Daemon::with_busybox();
    let words =
        ["events", "--format", "{{.Type}} {{.Action}} {{.Actor.Attributes.name}}", "-f", "type=container"];
    let filters = ["-f", "container=told", "-f", "container=probe"];
    let words: Vec<&str> = words.into_iter().chain(filters).collect();
    let listener = Listener::start(&daemon, &words);
    let ends = Listener::start(&daemon, &["system", "events", "--format", "json", "-f", "event=die"]);
    let create =
        ["create", "--name", "told", "--network", "none", "--label", "a=b", "busybox", "sh", "-c", "exit 4"];
    daemon.hoist(create).ok();
    daemon.hoist(["start", "-a", "told"]).expect_code(4);
    daemon.hoist(["rm", "told"]).ok();
    let told: Vec<String> = (0..4).map(|_| listener.next()).collect();
    let expected = ["create", "start", "die", "destroy"].map(|action| format!("container {action} told"));
    assert_eq!(told, expected);
    let died: Value = serde_json::from_str(&ends.next()).expect("a document");
    let attributes = &died["Actor"]["Attributes"];
    assert_eq!((&attributes["exitCode"], &attributes["a"]), (&"4".into(), &"b".into()), "{died}");
    daemon.hoist(["events", "--filter", "nosuch=1"]).expect_code(1).expect_stderr("known are container");
}

#[test]
fn what_has_happened_is_told_later() {
    let mut daemon = Daemon::with_busybox();
    let words = ["events", "--format", "{{.Action}} {{.Actor.Attributes.name}}", "-f", "type=container"];
    let told = |daemon: &Daemon, times: &[&str]| {
        let told = daemon.hoist([&words[..], times].concat()).ok();
        told.stdout.lines().map(str::to_owned).collect::<Vec<_>>()
    };
    let run = |daemon: &Daemon, name: &str, flags: &[&str]| {
        let image = ["--label", "a=b", "busybox", "true"];
        daemon.hoist([&["run", "--network", "none", "--name", name], flags, &image].concat()).ok();
    };
    // No client listens while it happens.
    run(&daemon, "gone", &["--rm"]);
    run(&daemon, "kept", &[]);
    let of = |name: &str, actions: &[&str]| {
        actions.iter().map(|action| format!("{action} {name}")).collect::<Vec<_>>()
    };
    let gone = of("gone", &["create", "start", "die", "destroy"]);
    let kept = of("kept", &["create", "start", "die"]);
    let all = [gone.clone(), kept].concat();
    // The shim publishes the end too, at the same time as a waiting client gets its answer.
    eventually("what was", || (told(&daemon, &["--since", "1h", "--until", "0s"]) == all).then_some(()));
    assert_eq!(told(&daemon, &["--until", "0s"]), all, "as Docker has it");
    assert_eq!(told(&daemon, &["--since", "1970-01-01", "--until", "2000-01-01T00:00:00Z"]), [""; 0]);
    let since_now = daemon
        .hoist(["events", "--since", "1h", "--until", "0s", "--format", "{{.TimeNano}}", "-f", "event=die"])
        .ok();
    let time: u64 = since_now.stdout.lines().next().expect("a line").parse().expect("a time");
    let die = format!("{}.{:09}", time / 1_000_000_000, time % 1_000_000_000);
    let from_die = told(&daemon, &["--since", &die, "--until", "0s"]);
    assert_eq!(from_die, all[2..], "what happened at that time too");
    assert_eq!(told(&daemon, &["--until", &die, "-f", "label=a=b"]), all[..3]);

    // From past events into future ones, until a time.
    let listener = Listener::start(&daemon, &[&words[..], &["--since", &die]].concat());
    // The first of these events shows that it listens.
    let heard: Vec<String> = all[3..].iter().map(|_| listener.next()).collect();
    assert_eq!(heard, all[3..]);
    daemon.hoist(["rm", "kept"]).ok();
    assert_eq!(listener.next(), "destroy kept");
    let until = Timestamp::now().plus(Duration::from_secs(2)).to_string();
    assert_eq!(
        told(&daemon, &["--since", &die, "--until", &until]).last().map(String::as_str),
        Some("destroy kept")
    );
    assert!(Timestamp::now().to_string() >= until, "it was waited for");

    for (flags, words) in
        [(["--since", "yesterday"], "invalid --since \"yesterday\""), (["--until", ""], "invalid --until")]
    {
        daemon.hoist([&["events"], &flags[..]].concat()).expect_code(1).expect_stderr(words);
    }
    daemon
        .hoist(["events", "--since", "1m", "--until", "2m"])
        .expect_code(1)
        .expect_stderr("is after --until");
    // A daemon knows the containers that an earlier one made, also when they are removed.
    run(&daemon, "old", &["--label", "c=d"]);
    drop(listener);
    daemon.kill();
    daemon.start_again();
    assert_eq!(told(&daemon, &["--until", "0s"]), [""; 0], "the past goes with the daemon");
    daemon.hoist(["rm", "old"]).ok();
    assert_eq!(told(&daemon, &["--until", "0s", "-f", "label=c"]), ["destroy old"]);
}

/// Events with long labels fill all buffers between the daemon and a client that does not read.
#[test]
fn who_reads_late_is_told_of_what_is_gone_by_then() {
    let daemon = Daemon::with_busybox();
    let words = ["events", "--format", "{{.Action}} {{.Actor.Attributes.name}}", "-f", "type=container"];
    let (late, prompt) = (Listener::start(&daemon, &words), Listener::start(&daemon, &words));
    let stopped = Pid::from_child(&late.child);
    kill_process(stopped, Signal::STOP).expect("a child of ours");
    let labels: Vec<String> = (0..20).map(|number| format!("l{number}={}", "x".repeat(4000))).collect();
    let labels: Vec<&str> = labels.iter().flat_map(|label| ["--label", label]).collect();
    let mut names: Vec<String> = (0..100).map(|number| format!("long{number}")).collect();
    names.push("last".into());
    for name in &names {
        let create =
            ["create", "--name", name, "--network", "none"].into_iter().chain(labels.iter().copied());
        daemon.hoist(create.chain(["busybox", "true"])).ok();
    }
    let hear = |listener: &Listener, last: &str| {
        let mut told = vec![listener.next()];
        while told.last().is_some_and(|line| line != last) {
            told.push(listener.next());
        }
        told
    };
    hear(&prompt, "create last");
    daemon.hoist(["rm"].into_iter().chain(names.iter().map(String::as_str))).ok();
    hear(&prompt, "destroy last");
    kill_process(stopped, Signal::CONT).expect("a child of ours");
    daemon.hoist(["create", "--name", "end", "--network", "none", "busybox", "true"]).ok();
    let mut told = hear(&late, "create end");
    told.pop();
    let expected = ["create", "destroy"]
        .iter()
        .flat_map(|action| names.iter().map(move |name| format!("{action} {name}")));
    assert_eq!(told, expected.collect::<Vec<_>>());
}

#[test]
fn versions_are_told_in_a_form() {
    let daemon = Daemon::start();
    let server = daemon.hoist(["version", "--format", "{{.Server.Version}}"]).ok();
    assert_eq!(daemon.hoist(["version", "-f", "{{.Client.Version}}"]).ok().text(), server.text());
    let all = daemon.hoist(["version", "--format", "json"]).ok();
    let all: Value = serde_json::from_str(all.text()).expect("a document");
    assert_eq!(all["Server"]["Version"], server.text());
    daemon.hoist(["version", "--format", "{{.Nosuch}}"]).expect_code(1);
}

/// The completions that bash offers for these words, by the installed script.
fn completed(address: &Path, words: &[&str]) -> Vec<String> {
    let script = r#"source <(hoist completion bash)
        COMP_WORDS=(hoist "$@") COMP_CWORD=$#
        _clap_complete_hoist hoist "${COMP_WORDS[COMP_CWORD]}"
        printf '%s\n' "${COMPREPLY[@]}""#;
    let program = testkit::hoist_program();
    let folder = program.parent().expect("a program has a folder");
    let path = format!("{}:/usr/bin:/bin", folder.display());
    let mut bash = Command::new("bash");
    bash.args(["-c", script, "bash"]).args(words).env("PATH", path).env("HOIST_ADDRESS", address);
    run(&mut bash).ok().stdout.lines().filter(|line| !line.is_empty()).map(str::to_owned).collect()
}

#[test]
fn bash_completes_names_of_what_is_there() {
    let daemon = Daemon::with_busybox();
    daemon.hoist(["create", "--name", "web-idle", "-v", "crop:/data", "busybox", "true"]).ok();
    daemon.hoist(["run", "-d", "--name", "web-busy", "--network", "none", "busybox", "sleep", "1000"]).ok();
    let completed = |words: &[&str]| {
        let mut completed = completed(&daemon.socket(), words);
        completed.sort();
        completed
    };
    assert_eq!(completed(&["start", "we"]), ["web-busy", "web-idle"]);
    assert_eq!(completed(&["stop", "-t", "1", "we"]), ["web-busy"], "it alone runs");
    assert_eq!(completed(&["rm", "web-idle", "web-b"]), ["web-busy"]);
    assert_eq!(completed(&["inspect", "b"]), ["busybox:latest"]);
    assert_eq!(completed(&["image", "history", "bus"]), ["busybox:latest"]);
    assert_eq!(completed(&["volume", "rm", "cr"]), ["crop"]);
    assert_eq!(completed(&["renam"]), ["rename"]);
    assert_eq!(completed(&["stop", "--sig"]), ["--signal"]);
}

#[test]
fn completion_starts_no_daemon() {
    let nowhere = tempfile::tempdir().expect("a temporary directory");
    let nowhere = nowhere.path().join("sub/hoist.sock");
    assert_eq!(completed(&nowhere, &["stop", "w"]), [""; 0]);
    assert!(!nowhere.parent().is_some_and(Path::exists), "a daemon would have made the folder");
}

#[test]
fn a_container_is_started_with_our_streams() {
    let daemon = Daemon::with_busybox();
    daemon
        .hoist(["create", "--name", "echo", "-i", "--network", "none", "busybox", "sh", "-c", "cat; exit 7"])
        .ok();
    let mut start = daemon.command(["start", "-ai", "echo"]);
    let mut start = start.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("hoist starts");
    std::io::Write::write_all(&mut start.stdin.take().expect("a pipe"), b"said\n").expect("it reads");
    let done = start.wait_with_output().expect("a child of ours");
    assert_eq!((done.status.code(), String::from_utf8_lossy(&done.stdout).as_ref()), (Some(7), "said\n"));
    daemon.hoist(["start", "-a", "echo", "other"]).expect_code(1).expect_stderr("multiple containers");
}
