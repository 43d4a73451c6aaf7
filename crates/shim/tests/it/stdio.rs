//! Standard streams: fifos, files, logs, drivers, terminals.

use api::shim::task;
use types::ErrorKind;

use crate::fixture::{Config, Fifo, Shim, is_possible};

fn created(config: &Config, stdio: impl Fn(&Shim) -> [String; 3]) -> Shim {
    let mut shim = Shim::start(config);
    let stdio = stdio(&shim);
    shim.create(config, [&stdio[0], &stdio[1], &stdio[2]]);
    shim
}

#[test]
fn output_goes_to_fifos_and_input_comes_from_one() {
    if !is_possible() {
        return;
    }
    let config = Config::sh("cat; echo end >&2");
    let mut shim = Shim::start(&config);
    let path = shim.directory.path().to_owned();
    let mut stdin = Fifo::new(&path, "in");
    let mut stdout = Fifo::new(&path, "out");
    let mut stderr = Fifo::new(&path, "err");
    shim.create(&config, [stdin.name(), stdout.name(), stderr.name()]);
    shim.start_process("");
    stdin.write(b"hello\n");
    assert_eq!(stdout.read_until("\n"), "hello\n");
    drop(stdin);
    // The client went; the container's input ends only when it is told so.
    let id = shim.id.clone();
    shim.call::<()>("CloseIO", &task::CloseIoRequest { id, exec_id: String::new(), stdin: true }).unwrap();
    assert_eq!(stderr.read_until("\n"), "end\n");
    assert_eq!(shim.wait(""), 0);
    shim.finish();
}

#[test]
fn a_slow_reader_loses_nothing_and_holds_up_nobody_else() {
    if !is_possible() {
        return;
    }
    let config = Config::sh("head -c 1000000 /dev/zero | tr '\\0' x; echo; echo end");
    let mut shim = Shim::start(&config);
    let path = shim.directory.path().to_owned();
    let mut stdout = Fifo::new(&path, "out");
    shim.create(&config, ["", stdout.name(), ""]);
    shim.start_process("");
    // The pipes are full now or soon; the shim still answers.
    assert_eq!(shim.exec_and_wait("e", "exit 2"), 2);
    let text = stdout.read_until("end\n");
    assert_eq!(text.len(), 1_000_000 + "\nend\n".len());
    assert_eq!(shim.wait(""), 0);
    shim.finish();
}

#[test]
fn output_goes_to_files() {
    if !is_possible() {
        return;
    }
    let mut shim = created(&Config::sh("echo out; echo err >&2"), |shim| {
        let file = |name: &str| format!("file://{}", shim.directory.path().join(name).display());
        [String::new(), file("out"), file("err")]
    });
    shim.start_process("");
    shim.wait("");
    shim.delete("").unwrap();
    let read = |name: &str| std::fs::read_to_string(shim.directory.path().join(name)).unwrap();
    assert_eq!((read("out").as_str(), read("err").as_str()), ("out\n", "err\n"));
}

#[test]
fn a_json_log_has_both_streams_and_rotates() {
    if !is_possible() {
        return;
    }
    let script = "echo first; echo second >&2; i=0; while [ $i -lt 100 ]; do echo line $i; i=$((i+1)); done; printf tail";
    let mut shim = created(&Config::sh(script), |shim| {
        let log = shim.directory.path().join("c.log");
        let uri = format!("json-file://{}?max-size=4k&max-file=3", log.display());
        [String::new(), uri.clone(), uri]
    });
    shim.start_process("");
    shim.wait("");
    shim.delete("").unwrap();
    let read = |name: &str| std::fs::read_to_string(shim.directory.path().join(name)).unwrap_or_default();
    let text = read("c.log.2") + &read("c.log.1") + &read("c.log");
    let lines: Vec<serde_json::Value> =
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(read("c.log").len() <= 4000 && !read("c.log.1").is_empty());
    assert_eq!(lines.last().unwrap()["log"], "tail");
    let numbers: Vec<&str> =
        lines.iter().filter_map(|line| line["log"].as_str()?.strip_prefix("line ")).collect();
    let last = numbers.len();
    assert!(last > 50, "{last} lines");
    for (index, number) in numbers.iter().enumerate() {
        assert_eq!(number.trim_end(), (100 - last + index).to_string());
    }
}

#[test]
fn a_log_is_teed_to_an_attached_client() {
    if !is_possible() {
        return;
    }
    let config = Config::sh("read x; echo got $x");
    let mut shim = Shim::start(&config);
    let path = shim.directory.path().to_owned();
    let mut stdin = Fifo::new(&path, "in");
    let mut attach = Fifo::new(&path, "attach");
    let log = path.join("c.log");
    let uri = format!("json-file://{}?attach={}", log.display(), attach.name());
    shim.create(&config, [stdin.name(), &uri, ""]);
    shim.start_process("");
    stdin.write(b"this\n");
    assert_eq!(attach.read_until("\n"), "got this\n");
    assert_eq!(shim.wait(""), 0);
    shim.finish();
    assert!(std::fs::read_to_string(log).unwrap().contains("got this"));
}

#[test]
fn a_log_driver_takes_the_output() {
    if !is_possible() {
        return;
    }
    use std::os::unix::fs::PermissionsExt;
    let config = Config::sh("echo out; echo err >&2");
    let mut shim = Shim::start(&config);
    let path = shim.directory.path().to_owned();
    let driver = path.join("driver");
    let script = format!(
        "#!/bin/sh\nexec 5>&-\necho \"$CONTAINER_ID $CONTAINER_NAMESPACE $*\" >{0}/args\ncat <&3 >{0}/o\ncat <&4 >{0}/e\n: >{0}/done\n",
        path.display()
    );
    std::fs::write(&driver, script).unwrap();
    std::fs::set_permissions(&driver, std::fs::Permissions::from_mode(0o755)).unwrap();
    let uri = format!("binary://{}?--tag=a%20b", driver.display());
    shim.create(&config, ["", &uri, &uri]);
    shim.start_process("");
    assert_eq!(shim.wait(""), 0);
    testkit::eventually("end of the driver", || path.join("done").exists().then_some(()));
    let read = |name: &str| std::fs::read_to_string(path.join(name)).unwrap();
    assert_eq!((read("o").as_str(), read("e").as_str()), ("out\n", "err\n"));
    assert_eq!(read("args"), format!("{} test --tag a b\n", shim.id));
    shim.finish();
}

#[test]
fn schemes_that_are_not_there_are_refused_by_name() {
    if !is_possible() {
        return;
    }
    let config = Config::sleep();
    let mut shim = Shim::start(&config);
    let error = shim.try_create(&config, ["", "npipe:////./pipe/x", ""]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unimplemented);
    assert!(error.chain().contains("npipe"), "{}", error.chain());
}

#[test]
fn a_terminal_is_one_and_has_the_size_it_is_given() {
    if !is_possible() {
        return;
    }
    let mut config = Config::sh("read x; stty size; stty -a >/dev/null && echo tty");
    config.terminal = true;
    let mut shim = Shim::start(&config);
    let path = shim.directory.path().to_owned();
    let mut stdin = Fifo::new(&path, "in");
    let mut stdout = Fifo::new(&path, "out");
    shim.create(&config, [stdin.name(), stdout.name(), ""]);
    shim.start_process("");
    let id = shim.id.clone();
    let resize = task::ResizePtyRequest { id, exec_id: String::new(), width: 132, height: 43 };
    shim.call::<()>("ResizePty", &resize).unwrap();
    stdin.write(b"go\n");
    let text = stdout.read_until("tty\r\n");
    assert!(text.contains("43 132"), "{text:?}");
    assert_eq!(shim.wait(""), 0);
    shim.finish();
}

#[test]
fn an_added_process_has_streams_and_a_terminal_of_its_own() {
    if !is_possible() {
        return;
    }
    let mut shim = Shim::run(&Config::sleep());
    let path = shim.directory.path().to_owned();
    let mut stdin = Fifo::new(&path, "in");
    let mut stdout = Fifo::new(&path, "out");
    shim.exec("piped", "cat", false, [stdin.name(), stdout.name(), ""]).unwrap();
    shim.start_process("piped");
    stdin.write(b"through\n");
    assert_eq!(stdout.read_until("\n"), "through\n");
    shim.kill("piped", 9, false).unwrap();
    shim.wait("piped");
    shim.delete("piped").unwrap();

    shim.exec("tty", "stty size >/dev/null && echo terminal", true, ["", stdout.name(), ""]).unwrap();
    shim.start_process("tty");
    assert_eq!(stdout.read_until("\n"), "terminal\r\n");
    assert_eq!(shim.wait("tty"), 0);
    shim.finish();
}
