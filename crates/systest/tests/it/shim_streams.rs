//! Standard streams of the shim: every kind of log URI, terminals, readers that close, full disks.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use api::shim::task;
use rustix::fs::{CWD, FileType, Mode, OFlags, mknodat};
use testkit::{ShimHost, eventually, is_root, run};

fn fifo(host: &ShimHost, name: &str) -> PathBuf {
    let path = host.dir().join(name);
    mknodat(CWD, &path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
    path
}

/// Opens a fifo without waiting for the other end. Reads and writes then block as usual.
fn open(path: &Path, access: OFlags) -> File {
    let fd = rustix::fs::open(path, access | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty()).unwrap();
    rustix::io::ioctl_fionbio(&fd, false).unwrap();
    fd.into()
}

fn text(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

/// Each output has a URI of its own. A log driver gets them as descriptors 3 and 4.
#[test]
fn every_kind_of_log_gets_the_output() {
    if !is_root("containers") {
        return;
    }
    let host = ShimHost::new();
    let at = |name: &str| host.dir().join(name);
    let driver = at("driver");
    // The driver closes descriptor 5 when it is ready.
    let script = format!(
        "#!/bin/busybox sh\nexec 5>&-\ncat <&4 > {}\n{{ echo \"$CONTAINER_NAMESPACE $CONTAINER_ID $1 $2\"; cat <&3; }} > {}\n",
        at("driven.err").display(),
        at("driven").display()
    );
    testkit::executable(&driver, &script);
    let streams = ["out", "err"];
    for (id, scheme, query) in [
        ("plain", "", ""),
        ("named", "fifo://", ""),
        ("file", "file://", ""),
        ("json", "json-file://", "?max-size=1m"),
    ] {
        let paths = streams.map(|stream| {
            let name = format!("{id}.{stream}");
            match scheme {
                "" | "fifo://" => fifo(&host, &name),
                // The shim creates missing directories, as containerd's does.
                "file://" => at("not/there").join(name),
                _ => at(&name),
            }
        });
        let readers = paths.each_ref().map(|path| path.exists().then(|| open(path, OFlags::RDONLY)));
        let [stdout, stderr] = paths.each_ref().map(|path| format!("{scheme}{}{query}", path.display()));
        let task = host.container(id, "echo hello; echo wrong >&2").stdout(stdout).stderr(stderr).run();
        assert_eq!(task.wait(""), 0);
        for (reader, expected) in readers.into_iter().zip(["hello\n", "wrong\n"]) {
            let Some(reader) = reader else { continue };
            let mut line = String::new();
            BufReader::new(reader).read_line(&mut line).unwrap();
            assert_eq!(line, expected, "{id}");
        }
        task.delete("").unwrap();
        task.shutdown().unwrap();
    }
    assert_eq!(streams.map(|stream| text(&at(&format!("not/there/file.{stream}")))), ["hello\n", "wrong\n"]);
    for (stream, begin) in [
        ("out", r#"{"log":"hello\n","stream":"stdout","time":"#),
        ("err", r#"{"log":"wrong\n","stream":"stderr","time":"#),
    ] {
        let found = text(&at(&format!("json.{stream}")));
        assert!(found.starts_with(begin), "{found}");
        assert_eq!(found.lines().count(), 1, "{found}");
    }
    // containerd names one URI for both outputs: they get one driver, or one file.
    let uri = format!("binary://{}?--tag=x", driver.display());
    let task = host.container("driver", "echo hello; echo wrong >&2").stdout(uri.clone()).stderr(uri).run();
    assert_eq!(task.wait(""), 0);
    task.delete("").unwrap();
    task.shutdown().unwrap();
    eventually("the driver wrote what it got", || {
        let written = [text(&at("driven")), text(&at("driven.err"))];
        (written == ["test driver --tag x\nhello\n", "wrong\n"]).then_some(())
    });
    let uri = format!("json-file://{}", at("both.log").display());
    let script = "echo hello; echo wrong >&2";
    let task = host.container("both", script).stdout(uri.clone()).stderr(uri).run();
    assert_eq!(task.wait(""), 0);
    task.delete("").unwrap();
    let both = text(&at("both.log"));
    for begin in [r#"{"log":"hello\n","stream":"stdout","#, r#"{"log":"wrong\n","stream":"stderr","#] {
        assert_eq!(both.lines().filter(|line| line.starts_with(begin)).count(), 1, "{both}");
    }
    task.shutdown().unwrap();
}

/// A log file that is a fifo without a reader, by mistake or by malice.
#[test]
fn a_log_file_that_is_a_fifo_holds_up_nobody() {
    if !is_root("a container") {
        return;
    }
    let host = ShimHost::new();
    let fifo = fifo(&host, "fifo");
    for scheme in ["file", "json-file"] {
        let refused =
            host.container(scheme, "true").stdout(format!("{scheme}://{}", fifo.display())).try_create();
        assert!(refused.unwrap_err().chain().contains("fifo"), "{scheme}");
    }
    // A fifo whose reader goes away.
    let reader = open(&fifo, OFlags::RDONLY);
    let script = "while :; do echo 0123456789012345678901234567890123456789; done";
    let task = host.container("read", script).stdout(format!("file://{}", fifo.display())).run();
    // More than a pipe holds.
    let mut lines = BufReader::new(&reader).lines();
    assert!(lines.by_ref().take(5_000).all(|line| line.is_ok()));
    task.kill("", 9).unwrap();
    assert_eq!(task.wait(""), 137, "the shim answers while nobody reads");
    drop(reader);
    task.delete("").unwrap();
}

#[test]
fn a_log_driver_that_does_not_start_is_an_error_and_leaves_nothing() {
    if !is_root("a container") {
        return;
    }
    let host = ShimHost::new();
    let missing =
        host.container("missing", "true").stdout("binary:///nowhere/driver").try_create().unwrap_err();
    assert!(missing.message().contains("/nowhere/driver"), "{missing:?}");
    // A driver that ends counts as ready with the first scheme, and not with the second.
    let said = "binary-v2:///bin/sh?-c=printf+x+>%265;+exec+5>%26-;+cat+<%263+>/dev/null";
    for (uri, is_ready) in [("binary:///bin/true", true), ("binary-v2:///bin/true", false), (said, true)] {
        let task = host.container("driven", "true").stdout(uri).try_create();
        assert_eq!(task.is_ok(), is_ready, "{uri}");
        match task {
            Ok(task) => {
                task.kill("", 9).unwrap();
                task.wait("");
                task.delete("").unwrap();
            }
            Err(error) => assert!(error.chain().contains("did not say that it is ready"), "{error:?}"),
        }
    }
}

/// A driver may be slow, for example because its server is far away. The daemon sees the shim end, and no line is lost.
#[test]
fn a_log_driver_writes_what_it_has_when_its_shim_was_told_to_go() {
    if !is_root("a container") {
        return;
    }
    let host = ShimHost::new();
    let _events = host.listen();
    let (driver, written, door) =
        (host.dir().join("driver"), host.dir().join("written"), fifo(&host, "door"));
    let script = format!(
        "#!/bin/busybox sh\nexec 5>&-\ntext=$(cat <&3)\ncat {}\necho \"$text\" > {}\n",
        door.display(),
        written.display()
    );
    testkit::executable(&driver, &script);
    let task = host.container("slow", "echo hello").stdout(format!("binary://{}", driver.display())).run();
    assert_eq!(task.wait(""), 0);
    task.delete("").unwrap();
    let mut open = UnixStream::connect(ttrpc::socket_path(&task.address).unwrap()).unwrap();
    task.shutdown().unwrap();
    open.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    assert!(matches!(open.read(&mut [0]), Ok(0)), "it hangs up");
    let access = OFlags::WRONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    drop(eventually("the driver goes on", || rustix::fs::open(&door, access, Mode::empty()).ok()));
    eventually("it wrote what it had", || (text(&written) == "hello\n").then_some(()));
}

#[test]
fn a_terminal_is_sized_and_its_input_reaches_the_program() {
    if !is_root("a container") {
        return;
    }
    let host = ShimHost::new();
    let (stdin, stdout) = (fifo(&host, "in"), fifo(&host, "out"));
    let mut output = BufReader::new(open(&stdout, OFlags::RDONLY));
    let script = "tty; read word; stty size; echo got $word; read word";
    let task = host
        .container("tty", script)
        .stdout(&stdout)
        .with(|container| {
            container.request.terminal = true;
            container.request.stdin = stdin.display().to_string();
            container.spec["process"]["terminal"] = true.into();
        })
        .run();
    let mut input = open(&stdin, OFlags::WRONLY);
    let mut line = || {
        let mut line = String::new();
        output.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    };
    assert!(line().starts_with("/dev/"));
    let resize = |width, height| {
        let request = task::ResizePtyRequest { id: task.id.clone(), exec_id: String::new(), width, height };
        task.call::<()>("ResizePty", &request).unwrap();
    };
    resize(91, 37);
    input.write_all(b"typed\n").unwrap();
    assert_eq!(line(), "typed", "the terminal echoes");
    assert_eq!(line(), "37 91");
    assert_eq!(line(), "got typed");
    // Sizes beyond the largest of a terminal are reduced to it.
    resize(1_000_000, 1_000_000);
    task.end();
}

#[test]
fn the_end_of_input_comes_with_close_io_and_not_before() {
    if !is_root("a container") {
        return;
    }
    let host = ShimHost::new();
    let (stdin, log) = (fifo(&host, "in"), host.dir().join("log"));
    let task = host
        .container("input", "cat; echo end")
        .stdout(format!("file://{}", log.display()))
        .with(|container| container.request.stdin = stdin.display().to_string())
        .run();
    for word in ["first\n", "second\n"] {
        // The input does not end when a client closes the fifo.
        open(&stdin, OFlags::WRONLY).write_all(word.as_bytes()).unwrap();
        eventually("the word arrives", || text(&log).ends_with(word).then_some(()));
    }
    let close = task::CloseIoRequest { id: task.id.clone(), exec_id: String::new(), stdin: true };
    task.call::<()>("CloseIO", &close).unwrap();
    assert_eq!(task.wait(""), 0);
    assert_eq!(text(&log), "first\nsecond\nend\n");
    task.end();
}

/// More than a pipe holds, to a program that reads slowly.
#[test]
fn much_input_arrives_whole() {
    if !is_root("a container") {
        return;
    }
    const LINES: usize = 400_000;
    let host = ShimHost::new();
    let (stdin, log) = (fifo(&host, "in"), host.dir().join("log"));
    let task = host
        .container("much", "wc -c")
        .stdout(format!("file://{}", log.display()))
        .with(|container| container.request.stdin = stdin.display().to_string())
        .run();
    let mut input = open(&stdin, OFlags::WRONLY);
    input.write_all("a line of input\n".repeat(LINES).as_bytes()).unwrap();
    drop(input);
    let close = task::CloseIoRequest { id: task.id.clone(), exec_id: String::new(), stdin: true };
    task.call::<()>("CloseIO", &close).unwrap();
    assert_eq!(task.wait(""), 0);
    assert_eq!(text(&log).trim(), (LINES * 16).to_string());
    task.end();
}

#[test]
fn a_reader_that_vanished_is_followed_by_another_without_loss() {
    if !is_root("a container") {
        return;
    }
    let host = ShimHost::new();
    let stdout = fifo(&host, "out");
    let mut first = BufReader::new(open(&stdout, OFlags::RDONLY));
    let script = "i=0; while [ $i -lt 50000 ]; do echo line $i; i=$((i+1)); done";
    let task = host.container("vanish", script).stdout(&stdout).run();
    let mut line = String::new();
    first.read_line(&mut line).unwrap();
    assert_eq!(line, "line 0\n");
    // What this reader has buffered is lost with it; the rest is in the fifo.
    let taken = first.buffer().to_vec();
    drop(first);
    let mut rest = String::new();
    let second = std::thread::spawn({
        let stdout = stdout.clone();
        move || {
            let mut text = String::new();
            // It ends when the shim closes its end, at the process's delete.
            open(&stdout, OFlags::RDONLY).read_to_string(&mut text).unwrap();
            text
        }
    });
    assert_eq!(task.wait(""), 0);
    task.delete("").unwrap();
    rest.push_str(&line);
    rest.push_str(&String::from_utf8(taken).unwrap());
    rest.push_str(&second.join().unwrap());
    let lines: Vec<&str> = rest.lines().collect();
    assert_eq!(lines.len(), 50_000);
    assert!(lines.iter().enumerate().all(|(number, line)| *line == format!("line {number}")));
    task.shutdown().unwrap();
}

/// The container runs on, and the log contains the lines that fit, each of them whole.
#[test]
fn a_full_disk_costs_lines_and_not_the_container() {
    if !is_root("a container") {
        return;
    }
    let host = ShimHost::new();
    let disk = host.dir().join("disk");
    std::fs::create_dir(&disk).unwrap();
    run(Command::new("mount").args(["-t", "tmpfs", "-o", "size=64k", "tmpfs"]).arg(&disk)).ok();
    let log = disk.join("log");
    let script = "i=0; while [ $i -lt 10000 ]; do echo this is line number $i; i=$((i+1)); done; touch /shared/written; \
                  while [ ! -e /shared/go ]; do usleep 5000; done; echo space again; exit 3";
    let shared = host.dir().join("shared");
    std::fs::create_dir(&shared).unwrap();
    let task = host
        .container("full", script)
        .stdout(format!("json-file://{}", log.display()))
        .with(|container| {
            let mounts = container.spec["mounts"].as_array_mut().unwrap();
            mounts.push(serde_json::json!({
                "destination": "/tmp", "type": "bind", "source": shared, "options": ["rbind"],
            }));
            let script = script.replace("/shared/", "/tmp/");
            container.spec["process"] = testkit::process(&script);
        })
        .run();
    // The pipe holds less than what was lost.
    eventually("the container is not held up by the full disk", || {
        shared.join("written").exists().then_some(())
    });
    assert!(std::fs::metadata(&log).unwrap().len() > 60_000, "the disk is full");
    run(Command::new("mount").args(["-o", "remount,size=1m"]).arg(&disk)).ok();
    std::fs::write(shared.join("go"), "").unwrap();
    assert_eq!(task.wait(""), 3);
    task.delete("").unwrap();
    let text = text(&log);
    for line in text.lines() {
        let parsed: Result<serde_json::Value, _> = serde_json::from_str(line);
        assert!(parsed.is_ok(), "not a whole line: {line:?}");
    }
    assert!(text.contains("space again"), "what fits later is written");
    assert!(text.lines().count() < 10_000, "the disk was full");
    run(Command::new("umount").arg(&disk)).ok();
    task.shutdown().unwrap();
}
