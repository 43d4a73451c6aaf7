//! The runtime's command line as callers of runc use it: flags that pass descriptors and pids, logs, events. Callers of
//! runc that run it are in `runtime_callers.rs`.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use rustix::process::Signal;
use serde_json::{Value, json};
use tempfile::TempDir;
use testkit::{Finished, eventually, run};

use crate::runtime_bundle::{Runtime, add_mount, bundle, read_text, script};
use crate::runtime_joins::join;

/// Receives one descriptor (SCM_RIGHTS) from a socket, and the bytes that come with it.
pub(crate) fn receive(listener: &UnixListener) -> (Vec<u8>, OwnedFd) {
    let (stream, _) = listener.accept().expect("the runtime connects");
    let mut bytes = vec![0; 4096];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let len = {
        let mut parts = [std::io::IoSliceMut::new(&mut bytes)];
        recvmsg(&stream, &mut parts, &mut ancillary, RecvFlags::CMSG_CLOEXEC).expect("a message").bytes
    };
    bytes.truncate(len);
    let fd = ancillary.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    });
    (bytes, fd.expect("a descriptor"))
}

#[test]
fn a_detached_container_is_handed_over() {
    for runtime in Runtime::both() {
        let dir = TempDir::new().expect("a temporary directory");
        let bundle = bundle(|spec| {
            script(spec, "busybox stty size; test -t 0 && echo on a terminal; sleep 1000");
            spec["process"]["terminal"] = json!(true);
            spec["process"]["consoleSize"] = json!({"height": 17, "width": 71});
        });
        let path = bundle.path().display().to_string();
        let (console, pid_file) = (dir.path().join("console"), dir.path().join("pid"));
        let listener = UnixListener::bind(&console).expect("a free name");
        let id = runtime.id("handed");
        let flags = ["--bundle", &path, "--console-socket", console.to_str().expect("UTF-8")];
        let without = runtime.run(&["create", "--bundle", &path, &id]);
        assert_ne!(without.code, 0, "{}: a terminal needs someone to take it\n{without}", runtime.name);
        let words =
            [&["create"], &flags[..], &["--pid-file", pid_file.to_str().expect("UTF-8"), &id]].concat();
        let mut create = runtime.command(&words).spawn().expect("it runs");
        let (_, master) = receive(&listener);
        assert!(create.wait().expect("a child of ours").success());
        let state: Value = serde_json::from_str(&runtime.run(&["state", &id]).ok().stdout).expect("JSON");
        assert_eq!(read_text(&pid_file), state["pid"].to_string(), "{}", runtime.name);
        runtime.run(&["start", &id]).ok();
        let mut lines = BufReader::new(File::from(master)).lines();
        for expected in ["17 71", "on a terminal"] {
            let line = lines.next().expect("the container speaks").expect("text");
            assert_eq!(line.trim_end(), expected, "{}", runtime.name);
        }
        // An exec with a terminal of its own.
        let words =
            [&["exec", "-d", "-t"], &flags[2..], &[&id, "sh", "-c", "echo entered; sleep 1000"]].concat();
        let mut exec = runtime.command(&words).spawn().expect("it runs");
        let (_, master) = receive(&listener);
        assert!(exec.wait().expect("a child of ours").success());
        let mut line = String::new();
        BufReader::new(File::from(master)).read_line(&mut line).expect("the process speaks");
        assert_eq!(line.trim_end(), "entered", "{}", runtime.name);
        runtime.run(&["delete", "--force", &id]).ok();
    }
}

/// Errors contain runc's words. Hoist's also say where the mistake is, and what to do.
#[test]
fn mistakes_are_told_in_words_that_programs_look_for() {
    let empty = TempDir::new().expect("a temporary directory");
    let nowhere = empty.path().display().to_string();
    let lives = bundle(|spec| script(spec, "sleep 1000"));
    let path = lives.path().display().to_string();
    for runtime in Runtime::both() {
        let id = runtime.id("mistake");
        for command in ["create", "run"] {
            let done = runtime.run(&[command, "--bundle", &nowhere, &id]).expect_code(1);
            done.expect_stderr("JSON specification file config.json not found");
        }
        for command in ["start", "state", "kill", "delete", "pause", "resume", "ps"] {
            runtime.run(&[command, &id]).expect_code(1).expect_stderr("does not exist");
        }
        runtime.run(&["exec", &id, "true"]).expect_code(255).expect_stderr("does not exist");
        let mut run = runtime.command(&["run", "--detach", "--bundle", &path, &id]);
        assert!(run.stdout(Stdio::null()).stderr(Stdio::null()).status().expect("it runs").success());
        runtime.run(&["create", "--bundle", &path, &id]).expect_code(1).expect_stderr("already exists");
        runtime.run(&["exec", &id, "/nosuch"]).expect_code(255).expect_stderr("/nosuch");
        runtime.run(&["delete", "--force", &id]).ok();
    }
    let ours = Runtime::ours();
    let done = ours.run(&["run", "--bundle", &nowhere, "x"]).expect_stderr(&nowhere);
    done.expect_stderr("--bundle").expect_stderr("spec");
    let text = "{\n  \"ociVersion\": \"1.0.2\",\n  oops\n}\n";
    fs::write(empty.path().join("config.json"), text).expect("writable");
    let done = ours.run(&["run", "--bundle", &nowhere, "x"]).expect_code(1);
    done.expect_stderr(&nowhere).expect_stderr("line 3");
    ours.run(&["start"]).expect_code(1).expect_stderr("id is missing").expect_stderr("--help");
}

#[test]
fn a_pidfd_is_handed_over() {
    let runtime = Runtime::ours();
    let dir = TempDir::new().expect("a temporary directory");
    let socket = dir.path().join("pidfd");
    let listener = UnixListener::bind(&socket).expect("a free name");
    let socket = socket.to_str().expect("UTF-8");
    let pid_file = dir.path().join("pid");
    let pid_path = pid_file.to_str().expect("UTF-8");
    let bundle = bundle(|spec| script(spec, "sleep 1000"));
    let path = bundle.path().display().to_string();
    // Runs a command that sends a pidfd, of the process that the pid file names.
    let take = |words: &[&str]| {
        let mut started = runtime.command(words).stdout(Stdio::null()).spawn().expect("it runs");
        let (_, pidfd) = receive(&listener);
        assert!(started.wait().expect("a child of ours").success(), "{words:?}");
        let number = std::os::fd::AsRawFd::as_raw_fd(&pidfd);
        let told = fs::read_to_string(format!("/proc/self/fdinfo/{number}")).expect("it is open");
        let pid = read_text(&pid_file);
        assert!(told.contains(&format!("Pid:\t{pid}\n")), "{words:?}: {pid} {told}");
        (pidfd, pid)
    };
    for command in [&["run", "-d"][..], &["create"]] {
        let id = runtime.id("pidfd");
        let flags = ["--bundle", &path, "--pid-file", pid_path, "--pidfd-socket", socket, &id];
        let (pidfd, pid) = take(&[command, &flags].concat());
        let state: Value = serde_json::from_str(&runtime.run(&["state", &id]).ok().stdout).expect("JSON");
        assert_eq!(state["pid"].to_string(), pid);
        if command == ["create"] {
            runtime.run(&["start", &id]).ok();
        }
        let enter = ["exec", "-d", "--pid-file", pid_path, "--pidfd-socket", socket, &id, "sleep", "1000"];
        let (entered, entered_pid) = take(&enter);
        assert_ne!(entered_pid, pid);
        let poll = |pidfd: &OwnedFd| {
            let mut polled = [rustix::event::PollFd::new(pidfd, rustix::event::PollFlags::IN)];
            rustix::event::poll(&mut polled, None).expect("a pidfd");
        };
        rustix::process::pidfd_send_signal(&entered, Signal::KILL).expect("it runs");
        poll(&entered);
        rustix::process::pidfd_send_signal(&pidfd, Signal::KILL).expect("it runs");
        eventually("the container has ended", || {
            runtime.run(&["state", &id]).ok().stdout.contains("stopped").then_some(())
        });
        runtime.run(&["delete", &id]).ok();
    }
}

#[test]
fn descriptors_are_passed_on_when_asked() {
    for runtime in Runtime::both() {
        let look = "cat <&4; ls /proc/self/fd | busybox tr '\\n' ' '";
        let bundle = bundle(|spec| script(spec, look));
        let path = bundle.path().display().to_string();
        fs::write(bundle.path().join("passed"), "through the fourth\n").expect("writable");
        let check = |words: &[&str]| {
            let mut open = Command::new("bash");
            open.args(["-c", "exec 3</dev/null 4<\"$0/passed\" 5</etc; exec \"$@\"", &path]);
            let command = runtime.command(words);
            let done =
                run(open.arg(command.get_program()).args(command.get_args()).stdin(Stdio::null())).ok();
            let expected = "through the fourth\n0 1 2 3 4 5";
            assert_eq!(done.text(), expected, "{} {words:?}: 5 is what ls reads", runtime.name);
        };
        check(&["run", "--preserve-fds", "2", "--bundle", &path, &runtime.id("fds")]);
        let long = crate::runtime_bundle::bundle(|spec| script(spec, "exec sleep 1000"));
        let (long, id) = (long.path().display().to_string(), runtime.id("long"));
        let mut start = runtime.command(&["run", "-d", "--bundle", &long, &id]);
        assert!(start.stdout(Stdio::null()).status().expect("it runs").success());
        check(&["exec", "--preserve-fds", "2", &id, "sh", "-c", look]);
        runtime.run(&["delete", "--force", &id]).ok();
    }
}

/// A descriptor that is not open might be one that the runtime opens for itself (CVE-2024-21626).
#[test]
fn descriptors_that_are_not_open_are_not_passed_on() {
    let runtime = Runtime::ours();
    let hopeful = bundle(|spec| script(spec, "echo ran"));
    let path = hopeful.path().display().to_string();
    let done = runtime.run(&["run", "--preserve-fds", "4", "--bundle", &path, &runtime.id("none")]);
    assert!(done.code != 0 && done.stdout.is_empty(), "{done}");
    done.expect_stderr("descriptor 3 is not open");
    assert_eq!(runtime.run(&["list", "-q"]).ok().text(), "");
    let bundle = bundle(|spec| script(spec, "exec sleep 1000"));
    let path = bundle.path().display().to_string();
    let id = runtime.id("enter");
    runtime.command(&["run", "-d", "--bundle", &path, &id]).stdout(Stdio::null()).status().expect("it runs");
    let done = runtime.run(&["exec", "--preserve-fds", "1", &id, "true"]);
    runtime.run(&["delete", "--force", &id]).ok();
    done.expect_stderr("descriptor 3 is not open");
}

/// The program does not read its terminal, so that the runtime cannot write to it. Signals still reach the program.
#[test]
fn a_terminal_that_is_full_holds_up_no_signal_and_no_end() {
    let runtime = Runtime::ours();
    let bundle = bundle(|spec| {
        script(spec, "trap 'exit 9' USR1; stty raw; echo > /up; while true; do sleep 0.05; done");
        spec["process"]["terminal"] = json!(true);
    });
    let path = bundle.path().display().to_string();
    let up = bundle.path().join("rootfs/up");
    let id = runtime.id("full");
    let mut command = runtime.command(&["run", "--bundle", &path, &id]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().expect("it runs");
    let mut input = child.stdin.take().expect("piped");
    eventually("the container is up", || up.exists().then_some(()));
    rustix::io::ioctl_fionbio(&input, true).expect("a pipe");
    let mut given = 0;
    eventually("the pipe is full, and the terminal behind it", || {
        given += input.write(&[b'x'; 4096]).unwrap_or(0);
        (given >= (64 << 10) + 4096).then_some(())
    });
    run(Command::new("kill").args(["-USR1", &child.id().to_string()])).ok();
    assert_eq!(child.wait().expect("a child of ours").code(), Some(9));
    assert_eq!(runtime.run(&["list", "-q"]).ok().text(), "");
}

#[test]
fn signals_reach_the_process_in_the_foreground() {
    let bundle = bundle(|spec| {
        script(spec, "trap 'echo heard; exit 9' USR1; echo > /up; while true; do sleep 0.05; done");
    });
    let path = bundle.path().display().to_string();
    let up = bundle.path().join("rootfs/up");
    for runtime in Runtime::both() {
        let _ = fs::remove_file(&up);
        let mut command = runtime.command(&["run", "--bundle", &path, &runtime.id("signal")]);
        let mut child = command.stdout(Stdio::piped()).spawn().expect("it runs");
        eventually("the container is up", || up.exists().then_some(()));
        run(Command::new("kill").args(["-USR1", &child.id().to_string()])).ok();
        let mut said = String::new();
        child.stdout.take().expect("piped").read_to_string(&mut said).expect("text");
        let code = child.wait().expect("a child of ours").code();
        assert_eq!((said.as_str(), code), ("heard\n", Some(9)), "{}", runtime.name);
    }
}

#[test]
fn events_come_until_the_container_ends() {
    for runtime in Runtime::both() {
        let bundle = bundle(|spec| {
            script(
                spec,
                "until test -e /eat; do sleep 0.05; done; sh -c 'x=0123456789; while true; do x=$x$x$x; done'; sleep 1000",
            );
            spec["linux"]["resources"]["memory"] = json!({"limit": 33_554_432});
        });
        let path = bundle.path().display().to_string();
        let id = runtime.id("events");
        runtime
            .command(&["run", "-d", "--bundle", &path, &id])
            .stdout(Stdio::null())
            .status()
            .expect("it runs");
        let mut events = runtime.command(&["events", "--interval", "100ms", &id]);
        let mut events = events.stdout(Stdio::piped()).spawn().expect("it runs");
        let lines = BufReader::new(events.stdout.take().expect("piped")).lines();
        let mut lines =
            lines.map(|line| -> Value { serde_json::from_str(&line.expect("text")).expect("JSON") });
        let mut wait_for = |kind: &str| {
            let event =
                lines.find(|event| event["type"] == kind).unwrap_or_else(|| panic!("no event {kind}"));
            assert_eq!(event["id"], id, "{}", runtime.name);
        };
        wait_for("stats");
        fs::write(bundle.path().join("rootfs/eat"), "").expect("writable");
        wait_for("oom");
        runtime.run(&["delete", "--force", &id]).ok();
        // `events` of Debian's runc does not end with the container.
        if runtime.name == "runc" {
            events.kill().expect("a child of ours");
        }
        assert!(lines.all(|event| event["id"] == id), "{}", runtime.name);
        events.wait().expect("a child of ours");
    }
}

#[test]
fn errors_are_where_drivers_look_for_them() {
    let dir = TempDir::new().expect("a temporary directory");
    for runtime in Runtime::both() {
        // An error message that cannot be written does not change the exit code.
        let full = File::options().write(true).open("/dev/full").expect("a device of Linux");
        let unheard = runtime.command(&["state", "nosuch"]).stderr(full).status().expect("it runs");
        assert_eq!(unheard.code(), Some(1), "{}", runtime.name);
        let log = dir.path().join(runtime.name);
        let path = log.to_str().expect("UTF-8");
        let failed = runtime.run(&["--log", path, "--log-format", "json", "state", "nosuch"]);
        assert_ne!(failed.code, 0, "{failed}");
        assert!(failed.stderr.contains("not exist"), "{}: {failed}", runtime.name);
        let text = read_text(&log);
        let last: Value = serde_json::from_str(text.lines().last().expect("a line")).expect("JSON");
        assert_eq!(last["level"], "error", "{}", runtime.name);
        assert!(last["msg"].as_str().is_some_and(|words| words.contains("not exist")), "{last}");
        assert!(last["time"].as_str().is_some_and(|time| time.contains('T')), "{last}");
        fs::remove_file(&log).expect("just written");
        runtime.run(&["--log", path, "state", "nosuch"]);
        let text = read_text(&log);
        assert!(text.contains("level=error msg=") && text.starts_with("time="), "{}: {text}", runtime.name);
        fs::remove_file(&log).expect("just written");
    }
}

/// `--debug` logs what is created, which hooks run, and how the container ends.
#[test]
fn steps_are_told_on_demand() {
    let dir = TempDir::new().expect("a temporary directory");
    let runtime = Runtime::ours();
    let bundle = bundle(|spec| {
        script(spec, "exit 3");
        spec["hooks"] =
            json!({"createRuntime": [{"path": "/bin/true"}], "poststop": [{"path": "/bin/false"}]});
    });
    let bundle = bundle.path().display().to_string();
    let told = |flags: &[&str]| {
        let log = dir.path().join("log");
        let path = log.to_str().expect("UTF-8");
        let run = ["--log", path, "run", "--bundle", &bundle, &runtime.id("told")];
        runtime.run(&[flags, &run].concat()).expect_code(3);
        let text = read_text(&log);
        fs::remove_file(&log).expect("just written");
        text
    };
    let json = told(&["--debug", "--log-format", "json"]);
    let lines = json.lines().map(|line| serde_json::from_str::<Value>(line).expect("JSON"));
    let steps: Vec<Value> = lines.filter(|line| line["level"] == "debug").collect();
    let mut words = steps.iter().map(|step| step["msg"].as_str().expect("words"));
    for expected in [
        "namespaces: new",
        "cgroup ",
        "the first process is ",
        "run hook createRuntime #0 (/bin/true)",
        "hook createRuntime #0 has succeeded",
        "waits to be started",
        "the program is executed",
        "has ended: Code(3)",
        "its cgroup is gone",
        "run hook poststop (/bin/false)",
    ] {
        assert!(words.any(|words| words.contains(expected)), "no {expected:?} at its place\n{json}");
    }
    let text = told(&["--debug", "--log-format", "text"]);
    assert_eq!(text.matches("level=debug msg=").count(), steps.len(), "{text}");
    let few = told(&[]);
    assert!(!few.contains("debug") && few.contains("level=warning"), "{few}");
}

/// Callers that do not need the pid name the null device.
#[test]
fn a_device_as_pid_file_is_written_to() {
    let runtime = Runtime::ours();
    let bundle = bundle(|spec| script(spec, "true"));
    let (path, device) = (bundle.path().display().to_string(), bundle.path().join("null"));
    run(Command::new("mknod").arg(&device).args(["c", "1", "3"])).ok();
    let file = device.display().to_string();
    runtime.run(&["run", "--bundle", &path, "--pid-file", &file, &runtime.id("pidless")]).ok();
    let kind = fs::metadata(&device).expect("it is there").file_type();
    assert!(std::os::unix::fs::FileTypeExt::is_char_device(&kind), "{kind:?}");
}

/// `list` warns of a state that cannot be read, ignores other files, and lists the other containers.
#[test]
fn what_cannot_be_read_is_told_beside_the_list() {
    for runtime in Runtime::both() {
        fs::create_dir(runtime.root().join("broken")).expect("a writable directory");
        fs::write(runtime.root().join("broken/state.json"), "{").expect("a writable directory");
        fs::write(runtime.root().join("file"), "").expect("a writable directory");
        let bundle = bundle(|spec| script(spec, "true"));
        let (path, id) = (bundle.path().display().to_string(), runtime.id("whole"));
        let mut create = runtime.command(&["create", "--bundle", &path, &id]);
        assert!(create.stdout(Stdio::null()).stderr(Stdio::null()).status().expect("it runs").success());
        for words in [&["list"][..], &["list", "--format", "json"]] {
            let listed = runtime.run(words).ok().expect_stderr("broken");
            assert!(listed.stdout.contains(&id) && !listed.stdout.contains("file"), "{listed}");
        }
        let ids = runtime.run(&["list", "--quiet"]).ok().stdout;
        assert!(ids.contains(&id) && !ids.contains("file"), "{}: {ids}", runtime.name);
        runtime.run(&["delete", "--force", &id]).ok();
    }
}

#[test]
fn tables_have_runcs_columns() {
    for runtime in Runtime::both() {
        let bundle = bundle(|spec| script(spec, "sleep 1000"));
        let path = bundle.path().display().to_string();
        let id = runtime.id("table");
        runtime
            .command(&["run", "-d", "--bundle", &path, &id])
            .stdout(Stdio::null())
            .status()
            .expect("it runs");
        let listed = runtime.run(&["list"]).ok();
        let rows: Vec<Vec<&str>> =
            listed.text().lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(rows[0], ["ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER"], "{}", runtime.name);
        assert_eq!(
            (rows[1][0], rows[1][2], rows[1][3], rows[1][5]),
            (id.as_str(), "running", path.as_str(), "root")
        );
        // runc returns before its first process executes the program.
        let processes = eventually("the program runs", || {
            Some(runtime.run(&["ps", &id]).ok()).filter(|found| found.stdout.contains("sleep 1000"))
        });
        assert!(processes.text().lines().next().is_some_and(|line| line.starts_with("UID")), "{processes}");
        assert_eq!(
            processes.text().lines().filter(|line| line.contains("sleep 1000")).count(),
            1,
            "{processes}"
        );
        let asked = runtime.run(&["ps", &id, "-o", "pid,comm"]).ok();
        let words: Vec<&str> = asked.text().split_whitespace().collect();
        assert_eq!((words[0], words[1], words.last()), ("PID", "COMMAND", Some(&"sleep")), "{asked}");
        runtime.run(&["delete", "--force", &id]).ok();
    }
}

/// A user without privileges runs a container in a user namespace of its own.
#[test]
fn a_user_without_privileges_runs_containers() {
    let home = TempDir::new().expect("a temporary directory");
    fs::set_permissions(home.path(), fs::Permissions::from_mode(0o755)).expect("ours");
    let program = home.path().join("hoist");
    testkit::executable_copy(&testkit::hoist_program(), &program);
    let bundle = home.path().join("bundle");
    fs::create_dir_all(bundle.join("rootfs/bin")).expect("writable");
    fs::copy("/bin/busybox", bundle.join("rootfs/bin/busybox")).expect("busybox is installed");
    for applet in ["sh", "id", "cat", "ls", "sleep", "touch"] {
        symlink("busybox", bundle.join("rootfs/bin").join(applet)).expect("writable");
    }
    run(Command::new("chown").args(["-R", "4242:4242"]).arg(home.path())).ok();
    let as_user = |words: &[&str]| -> Finished {
        let mut command = Command::new("/usr/bin/setpriv");
        command
            .args(["--reuid", "4242", "--regid", "4242", "--clear-groups", "--"])
            .arg(&program)
            .arg("runtime");
        command.arg("--root").arg(home.path().join("state")).args(words);
        command.current_dir(&bundle).stdin(Stdio::null());
        run(&mut command)
    };
    as_user(&["spec", "--rootless"]).ok();
    let mut spec = crate::runtime_bundle::read_spec(&bundle);
    spec["process"]["terminal"] = json!(false);
    spec["root"]["readonly"] = json!(false);
    script(
        &mut spec,
        "id -u; cat /proc/self/uid_map; touch /made; cat /volume/file; cat /etc/shadow 2>/dev/null; echo $$",
    );
    add_mount(
        &mut spec,
        json!({"destination": "/volume", "type": "bind", "source": "volume", "options": ["rbind", "ro"]}),
    );
    fs::create_dir(bundle.join("volume")).expect("writable");
    fs::write(bundle.join("volume/file"), "of the user\n").expect("writable");
    fs::write(bundle.join("config.json"), spec.to_string()).expect("writable");
    let id = format!("rootless-{}", std::process::id());
    let said = as_user(&["run", &id]).ok();
    let words: Vec<&str> = said.text().split_whitespace().collect();
    assert_eq!(words, ["0", "0", "4242", "1", "of", "the", "user", "1"], "{said}");
    assert_eq!(said.stderr, "", "that it has no cgroup is nothing to who asked for no limits");
    use std::os::unix::fs::MetadataExt;
    assert_eq!(fs::metadata(bundle.join("rootfs/made")).expect("made").uid(), 4242);
    // The host's cgroups are part of its `/sys`, and some may belong to the user. The topmost mount of each is
    // read-only.
    let modes = "busybox awk '$2 ~ \"^/sys/fs/cgroup\" { mode[$2] = substr($4, 1, 2) } \
                 END { for (at in mode) print mode[at] }' /proc/mounts | busybox sort -u";
    script(&mut spec, modes);
    fs::write(bundle.join("config.json"), spec.to_string()).expect("writable");
    assert_eq!(as_user(&["run", &id]).ok().text(), "ro");
    // The same user's create, exec, kill and delete.
    script(&mut spec, "sleep 1000");
    fs::write(bundle.join("config.json"), spec.to_string()).expect("writable");
    let mut detached = Command::new("/usr/bin/setpriv");
    detached
        .args(["--reuid", "4242", "--regid", "4242", "--clear-groups", "--"])
        .arg(&program)
        .arg("runtime");
    detached.arg("--root").arg(home.path().join("state")).args(["run", "-d", &id]).current_dir(&bundle);
    let status = detached.stdin(Stdio::null()).stdout(Stdio::null()).status().expect("it runs");
    assert!(status.success());
    assert_eq!(as_user(&["exec", &id, "id", "-u"]).ok().text(), "0");
    let state: Value = serde_json::from_str(&as_user(&["state", &id]).ok().stdout).expect("JSON");
    assert_eq!((&state["status"], &state["owner"]), (&json!("running"), &json!("#4242")));
    // Commands that need a cgroup are refused, and the container runs on.
    for words in [&["pause", &id][..], &["ps", &id], &["events", "--stats", &id]] {
        as_user(words).expect_code(1).expect_stderr("cgroup");
    }
    as_user(&["resume", &id]).expect_code(1).expect_stderr("is not paused");
    assert_eq!(as_user(&["exec", &id, "id", "-u"]).ok().text(), "0");
    // Another container in the same user namespace, in which the host's `/sys` cannot be mounted.
    let mut joins = spec.clone();
    script(&mut joins, "id -u; ls /sys/class >/dev/null && echo seen");
    join(&mut joins, json!({"type": "user", "path": format!("/proc/{}/ns/user", state["pid"])}));
    for maps in ["uidMappings", "gidMappings"] {
        joins["linux"].as_object_mut().expect("an object").remove(maps);
    }
    fs::write(bundle.join("config.json"), joins.to_string()).expect("writable");
    assert_eq!(as_user(&["run", &format!("{id}-joins")]).ok().text(), "0\nseen");
    as_user(&["kill", "--all", &id, "KILL"]).ok();
    eventually("it has ended", || as_user(&["state", &id]).ok().stdout.contains("stopped").then_some(()));
    as_user(&["kill", "--all", &id, "KILL"]).ok();
    as_user(&["delete", &id]).ok();
    let mut limited = spec.clone();
    limited["linux"]["resources"] = json!({"pids": {"limit": 100}});
    fs::write(bundle.join("config.json"), limited.to_string()).expect("writable");
    let refused = as_user(&["run", &id]).expect_code(1);
    refused
        .expect_stderr("cannot set pids limit: container could not join or create cgroup")
        .expect_stderr("cgroupsPath");
    // Without a cgroup, only a pid namespace of its own shows which processes belong to the container.
    let mut shared = spec.clone();
    script(&mut shared, "echo ran");
    shared["linux"]["namespaces"]
        .as_array_mut()
        .expect("a list")
        .retain(|namespace| namespace["type"] != "pid");
    // Without privileges, a new proc can only be mounted in a pid namespace of one's own.
    for mount in shared["mounts"].as_array_mut().expect("a list") {
        if mount["type"] == "proc" {
            *mount = json!({"destination": "/proc", "type": "bind", "source": "/proc", "options": ["rbind"]});
        }
    }
    fs::write(bundle.join("config.json"), shared.to_string()).expect("writable");
    as_user(&["run", &id]).ok().expect_stderr("no cgroup and no private pid namespace");
    // As with runc, a cgroup that exists and belongs to root is refused.
    let name = format!("/{id}-others");
    linux::cgroup::Cgroup::share(&name).expect("root makes cgroups");
    script(&mut spec, "echo ran");
    spec["linux"]["cgroupsPath"] = json!(name);
    fs::write(bundle.join("config.json"), spec.to_string()).expect("writable");
    let without = as_user(&["run", &id]);
    // The cgroup belongs to the user, but its parent does not: the kernel refuses to move processes into it
    // (cgroup-v2.rst, "Delegation Containment").
    let unified = linux::cgroup::Cgroup::open(&name).expect("it is there").unified_path().map(Path::to_owned);
    let apart = unified.map(|path| {
        run(Command::new("chown").args(["-R", "4242"]).arg(&path)).ok();
        (as_user(&["run", &id]), path)
    });
    linux::cgroup::Cgroup::open(&name).and_then(|cgroup| cgroup.delete()).expect("it is empty");
    let refused = without.expect_code(1).expect_stderr("unable to apply cgroup configuration");
    refused.expect_stderr("permission denied").expect_stderr(&name);
    if let Some((apart, path)) = apart {
        let words = format!("cgroup {}", path.display());
        assert!(apart.code != 0 && apart.stderr.contains(&words), "{apart}");
    }
}

/// The same values as runc's, under the name `runc`, except those that differ on purpose.
#[test]
fn what_spec_writes_is_runcs() {
    fn differences(path: &str, ours: &Value, theirs: &Value, found: &mut Vec<String>) {
        match (ours, theirs) {
            (Value::Object(ours), Value::Object(theirs)) => {
                let keys: BTreeSet<&String> = ours.keys().chain(theirs.keys()).collect();
                for key in keys {
                    let side =
                        |map: &serde_json::Map<String, Value>| map.get(key).cloned().unwrap_or_default();
                    differences(&format!("{path}/{key}"), &side(ours), &side(theirs), found);
                }
            }
            // Arrays are compared as sets; mounts are named by their destination.
            (Value::Array(ours), Value::Array(theirs)) => {
                for (has, other, name) in [(ours, theirs, "ours"), (theirs, ours, "runc")] {
                    let more = has.iter().filter(|word| !other.contains(word));
                    found.extend(more.map(|word| format!("{path}: {name} {}", name_of(word))));
                }
            }
            _ if ours == theirs => {}
            _ => found.push(format!("{path}: {ours} {theirs}")),
        }
    }
    /// The destination of a mount, or the value itself.
    fn name_of(value: &Value) -> String {
        value["destination"].as_str().map_or_else(|| value.to_string(), str::to_owned)
    }
    // With the options of each mount sorted.
    let sorted = |mut spec: Value| {
        for mount in spec["mounts"].as_array_mut().expect("mounts") {
            if let Some(options) = mount["options"].as_array_mut() {
                options.sort_by_key(ToString::to_string);
            }
        }
        spec
    };
    let (_programs, called_runc) = called_runc();
    let write = |program: &Path, words: &[&str]| {
        let dir = TempDir::new().expect("a temporary directory");
        run(Command::new(program).args(words).current_dir(dir.path())).ok();
        sorted(crate::runtime_bundle::read_spec(dir.path()))
    };
    // Newer runcs have left out the ambient capabilities as well. The powercap files show how much power the host uses.
    let on_purpose = [
        "/linux/maskedPaths: ours \"/sys/devices/virtual/powercap\"",
        "/ociVersion: \"1.3.0\" \"1.0.2-dev\"",
        "/process/capabilities/ambient: null [\"CAP_AUDIT_WRITE\",\"CAP_KILL\",\"CAP_NET_BIND_SERVICE\"]",
    ];
    for rootless in [&["spec"][..], &["spec", "--rootless"]] {
        let theirs = write(Path::new("runc"), rootless);
        let mut found = Vec::new();
        differences("", &write(&called_runc, rootless), &theirs, &mut found);
        assert_eq!(found, on_purpose, "{rootless:?}");
        let hoist = testkit::hoist_program();
        let mut own = write(&hoist, &[&["runtime"], rootless].concat());
        assert_eq!(own["hostname"], "hoist");
        own["hostname"] = json!("runc");
        assert_eq!(own, write(&called_runc, rootless));
    }
}

/// Without `--root`, other programs find the states in runc's directory.
#[test]
fn states_are_where_runc_has_them_under_its_name() {
    let (_programs, runc) = called_runc();
    let (_others, by_name) = called("hoist-runtime");
    let bundle = bundle(|spec| script(spec, "sleep 1000"));
    let path = bundle.path().display().to_string();
    let hoist = testkit::hoist_program();
    for (program, first, root) in [
        (&runc, &[][..], "/run/runc"),
        (&hoist, &["runtime"], "/run/hoist/runtime"),
        (&by_name, &[][..], "/run/hoist/runtime"),
    ] {
        let id = format!("root-{}-{}", root.len(), std::process::id());
        let command = |words: &[&str]| {
            let mut command = Command::new(program);
            command.args(first).args(words).stdin(Stdio::null());
            command
        };
        let mut start = command(&["run", "-d", "--bundle", &path, &id]);
        assert!(start.stdout(Stdio::null()).stderr(Stdio::null()).status().expect("it runs").success());
        assert!(Path::new(root).join(&id).join("state.json").exists(), "{root}");
        // The directory may also contain runc's containers, which Hoist ignores.
        assert!(run(&mut command(&["list", "-q"])).ok().stdout.lines().any(|line| line == id));
        run(&mut command(&["delete", "--force", &id])).ok();
        // For an unprivileged user.
        let home = TempDir::new().expect("a temporary directory");
        let mut list = Command::new("/usr/bin/setpriv");
        list.args([
            "--reuid",
            "4242",
            "--regid",
            "4242",
            "--clear-groups",
            "strace",
            "-f",
            "-e",
            "trace=%file",
        ]);
        list.arg(program).args(first).args(["state", "nosuch"]).env("XDG_RUNTIME_DIR", home.path());
        let place = home.path().join(root.strip_prefix("/run/").expect("below it")).join("nosuch");
        run(list.stdin(Stdio::null())).expect_stderr(&place.display().to_string());
    }
}

/// Hoist's program under the name `runc`, in a directory that can be put first in PATH.
pub(crate) fn called_runc() -> (TempDir, PathBuf) {
    called("runc")
}

fn called(name: &str) -> (TempDir, PathBuf) {
    let dir = TempDir::new().expect("a temporary directory");
    let program = dir.path().join(name);
    symlink(testkit::hoist_program(), &program).expect("writable");
    (dir, program)
}

#[test]
fn the_shim_by_the_name_of_runc_is_the_runtime() {
    let dir = TempDir::new().unwrap();
    let hoist = testkit::hoist_program();
    run(Command::new(&hoist).args(["daemon", "shim"]).arg(dir.path())).ok();
    let shim = dir.path().join("containerd-shim-hoist-v2");
    let runc = dir.path().join("runc");
    symlink(&shim, &runc).unwrap();
    let version = run(Command::new(&runc).arg("--version")).ok();
    assert!(version.stdout.starts_with("runc version 1."), "{version}");

    // The first process executes a sealed copy of the runtime until it executes the container's program.
    let bundle = bundle(|spec| script(spec, "echo $_HOIST_SEALED ran"));
    let path = bundle.path().display().to_string();
    let root = dir.path().join("root");
    for (number, words) in
        [vec![runc.as_os_str()], vec![hoist.as_os_str(), "runtime".as_ref()]].iter().enumerate()
    {
        let id = format!("small-{}-{number}", std::process::id());
        let command = |args: &[&str]| {
            let mut command = Command::new(words[0]);
            command.args(&words[1..]).arg("--root").arg(&root).args(args).stdin(Stdio::null());
            command
        };
        let call = |args: &[&str]| run(&mut command(args));
        assert_eq!(call(&["run", "--bundle", &path, &id]).ok().text(), "ran");
        // The container keeps the standard streams open, so the test does not wait for their end.
        let mut create = command(&["create", "--bundle", &path, &id]);
        assert!(create.stdout(Stdio::null()).stderr(Stdio::null()).status().unwrap().success());
        let pid: Value = serde_json::from_str(&call(&["state", &id]).ok().stdout).unwrap();
        let program = fs::read_link(format!("/proc/{}/exe", pid["pid"])).unwrap();
        assert!(!program.starts_with(&hoist) && program != hoist, "{}", program.display());
        call(&["delete", "--force", &id]).ok();
    }
}
