//! Commands as Docker's users know them: lists that are filtered, names that change, what runs and what it may use.

use serde_json::Value;
use testkit::Daemon;

/// `ps -a` with filters: the names, in their order.
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
    daemon.hoist(["create", "--name", "waits", "-p", "127.0.0.1::81/udp", "other:1", "true"]).ok();
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
    check(&["before=fails"], "web-two web-one");
    check(&["since=web-two"], "waits fails");
    check(&["ancestor=busybox"], "waits fails web-two web-one");
    check(&["ancestor=nosuch"], "");
    let id = daemon.hoist(["inspect", "-f", "{{.Id}}", "fails"]).ok().text().to_owned();
    check(&[&format!("id={}", &id[..12])], "fails");
    // A state is asked for whether it runs or not.
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
