//! Health checks: of images and of flags, their results, and their events.

use serde_json::{Value, json};
use testkit::{Daemon, Layout, eventually};

use crate::archives::shell_layer;
use crate::commands::Listener;

/// A container whose health is the content of a file, with frequent probes.
const RUN: [&str; 10] = [
    "run",
    "-d",
    "--network",
    "none",
    "--health-cmd",
    "echo asked; test -e /tmp/well",
    "--health-interval",
    "20ms",
    "--health-retries",
    "2",
];

fn state(daemon: &Daemon, name: &str) -> Value {
    let shown: Value = serde_json::from_str(&daemon.hoist(["inspect", name]).ok().stdout).expect("JSON");
    shown[0]["State"].clone()
}

fn becomes(daemon: &Daemon, name: &str, status: &str) {
    eventually(status, || (state(daemon, name)["Health"]["Status"] == status).then_some(()));
}

fn status(daemon: &Daemon) -> String {
    daemon.hoist(["ps", "--format", "{{.Status}}"]).ok().text().to_owned()
}

#[test]
fn probes_say_who_is_well_also_to_the_next_daemon() {
    let mut daemon = Daemon::with_busybox();
    let words = ["events", "--format", "{{.Action}} {{.Actor.Attributes.name}}", "-f", "type=container"];
    let filters = ["-f", "event=die", "-f", "event=health_status"];
    let listener = Listener::start(&daemon, &[&words[..], &filters].concat());
    daemon.hoist([&RUN[..], &["--name", "box", "busybox", "sleep", "1000"]].concat()).ok();
    becomes(&daemon, "box", "unhealthy");
    assert!(status(&daemon).ends_with(" (unhealthy)"), "{}", status(&daemon));
    daemon.hoist(["exec", "box", "touch", "/tmp/well"]).ok();
    becomes(&daemon, "box", "healthy");
    assert!(status(&daemon).ends_with(" (healthy)"), "{}", status(&daemon));
    assert_eq!(listener.next(), "health_status: unhealthy box");
    assert_eq!(listener.next(), "health_status: healthy box");
    drop(listener);
    let health = eventually("five probes", || {
        let health = state(&daemon, "box")["Health"].clone();
        (health["Log"].as_array().is_some_and(|log| log.len() == 5)).then_some(health)
    });
    assert_eq!(health["FailingStreak"], 0);
    assert_eq!(health["Log"][4]["ExitCode"], 0);
    assert_eq!(health["Log"][4]["Output"], "asked\n");
    for (filter, expected) in [("healthy", "box"), ("unhealthy", ""), ("none", "")] {
        let listed = daemon.hoist(["ps", "--filter", &format!("health={filter}"), "--format", "{{.Names}}"]);
        assert_eq!(listed.ok().text(), expected, "{filter}");
    }
    daemon.hoist(["ps", "--filter", "health=odd"]).expect_code(1).expect_stderr("unhealthy");

    // The next daemon knows the results, and goes on probing.
    daemon.kill();
    daemon.start_again();
    assert_eq!(state(&daemon, "box")["Health"]["Status"], "healthy");
    daemon.hoist(["exec", "box", "rm", "/tmp/well"]).ok();
    becomes(&daemon, "box", "unhealthy");
    daemon.hoist(["kill", "box"]).ok();
    daemon.hoist(["wait", "box"]).ok();
    assert_eq!(state(&daemon, "box")["Health"]["Status"], "unhealthy", "as it was last seen");
    daemon.hoist(["start", "box"]).ok();
    daemon.hoist(["rm", "-f", "box"]).ok();
}

#[test]
fn a_probe_that_takes_too_long_fails_and_is_ended() {
    let daemon = Daemon::with_busybox();
    let flags = [
        "--health-cmd",
        "echo begun; sleep 1000 & wait",
        "--health-timeout",
        "100ms",
        "--health-retries",
        "1",
    ];
    let rest = ["--name", "slow", "busybox", "sleep", "2000"];
    daemon.hoist([&RUN[..4], &flags, &["--health-interval", "20ms"], &rest].concat()).ok();
    becomes(&daemon, "slow", "unhealthy");
    let probe = state(&daemon, "slow")["Health"]["Log"][0].clone();
    assert_eq!(probe["ExitCode"], -1);
    let output = probe["Output"].as_str().unwrap_or_default();
    assert!(output.contains("exceeded timeout") && output.contains("begun"), "{output}");
    // The daemon runs one probe at a time, and kills its children with it.
    eventually("more have failed", || {
        (state(&daemon, "slow")["Health"]["FailingStreak"].as_u64()? > 4).then_some(())
    });
    let left = daemon.hoist(["top", "slow"]).ok().stdout.matches("sleep 1000").count();
    assert!(left <= 2, "{}", daemon.hoist(["top", "slow"]).ok().stdout);
    daemon.hoist(["rm", "-f", "slow"]).ok();
}

#[test]
fn a_probe_that_is_ended_leaves_no_session_behind() {
    let daemon = Daemon::with_busybox();
    let probe = "setsid sh -c 'setsid sleep 1000 & wait' & sleep 1000";
    let flags = ["--health-cmd", probe, "--health-timeout", "300ms", "--health-interval", "20ms"];
    let rest = ["--name", "slow", "busybox", "sleep", "2000"];
    daemon.hoist([&RUN[..4], &flags, &rest].concat()).ok();
    eventually("more have failed", || {
        (state(&daemon, "slow")["Health"]["FailingStreak"].as_u64()? > 4).then_some(())
    });
    let left = daemon.hoist(["top", "slow"]).ok();
    // The processes of the one probe that runs.
    assert!(left.stdout.matches("setsid sleep 1000").count() <= 2, "{left}");
    assert!(left.stdout.matches("sleep 1000").count() <= 5, "{left}");
    daemon.hoist(["rm", "-f", "slow"]).ok();
}

#[test]
#[cfg_attr(not(target_arch = "x86_64"), ignore = "its image is for x86")]
fn what_an_image_says_of_its_health_counts_unless_told_otherwise() {
    let (layout, daemon) = (Layout::new(), Daemon::start());
    let check =
        json!({"Test": ["CMD", "true"], "Interval": 20_000_000, "Timeout": 3_000_000_000_u64, "Retries": 7});
    let config = json!({"config": {"Cmd": ["sleep", "1000"], "Env": ["PATH=/bin"], "Healthcheck": check}});
    layout.tag(&layout.image_of("amd64", &[shell_layer()], &config), "well:1");
    let archive = daemon.dir().join("well.tar");
    layout.archive(&archive);
    daemon.load(&archive);
    let run = |name: &str, flags: &[&str]| {
        daemon.hoist([&["run", "-d", "--network", "none", "--name", name], flags, &["well:1"]].concat())
    };
    run("one", &["--health-retries", "2"]).ok();
    becomes(&daemon, "one", "healthy");
    let shown: Value = serde_json::from_str(&daemon.hoist(["inspect", "one"]).ok().stdout).expect("JSON");
    let own = &shown[0]["Config"]["Healthcheck"];
    assert_eq!(
        (&own["Retries"], &own["Interval"], &own["Test"]),
        (&json!(2), &check["Interval"], &check["Test"])
    );
    let of_image = |name: &str| {
        let shown =
            daemon.hoist(["inspect", "--type", "image", "-f", "{{json .Config.Healthcheck}}", name]).ok();
        serde_json::from_str::<Value>(shown.text()).expect("JSON")
    };
    let commit = |words: &[&str]| daemon.hoist([&["commit"], words].concat());
    commit(&["one", "made:1"]).ok();
    let mut merged = check.clone();
    merged["Retries"] = json!(2);
    assert_eq!(of_image("made:1"), merged, "what the flags say goes into the image");
    commit(&["-c", "HEALTHCHECK --interval=2s CMD true", "one", "made:2"]).ok();
    assert_eq!(of_image("made:2"), json!({"Test": ["CMD-SHELL", "true"], "Interval": 2_000_000_000}));
    commit(&["-c", "HEALTHCHECK --often CMD true", "one", "made:3"]).expect_code(1).expect_stderr("--often");
    daemon.hoist(["rm", "-f", "one"]).ok();
    run("none", &["--no-healthcheck"]).ok();
    assert_eq!(state(&daemon, "none")["Health"], Value::Null);
    assert!(!status(&daemon).contains('('), "{}", status(&daemon));
    assert_eq!(daemon.hoist(["ps", "--filter", "health=none", "--format", "{{.Names}}"]).ok().text(), "none");
    commit(&["none", "made:4"]).ok();
    assert_eq!(of_image("made:4"), json!({"Test": ["NONE"]}));
    daemon.hoist(["rm", "-f", "none"]).ok();
    run("odd", &["--health-interval", "1us"]).expect_code(125).expect_stderr("--health-interval");
    assert_ne!(run("both", &["--no-healthcheck", "--health-cmd", "x"]).code, 0);
}

/// An image without a shell, whose check needs one.
#[test]
#[cfg_attr(not(target_arch = "x86_64"), ignore = "its image is for x86")]
fn a_program_that_is_not_there_is_not_well() {
    let (layout, daemon) = (Layout::new(), Daemon::start());
    let check =
        json!({"Test": ["CMD", "/nosuch"], "Interval": 20_000_000, "Retries": 1, "StartPeriod": null});
    let config = json!({"config": {"Cmd": ["sleep", "1000"], "Env": ["PATH=/bin"], "Healthcheck": check}});
    layout.tag(&layout.image_of("amd64", &[shell_layer()], &config), "lost:1");
    let archive = daemon.dir().join("lost.tar");
    layout.archive(&archive);
    daemon.load(&archive);
    daemon.hoist(["run", "-d", "--network", "none", "--name", "lost", "lost:1"]).ok();
    becomes(&daemon, "lost", "unhealthy");
    let probe = state(&daemon, "lost")["Health"]["Log"][0].clone();
    assert_eq!(probe["ExitCode"], -1);
    assert!(probe["Output"].as_str().is_some_and(|output| output.contains("/nosuch")), "{probe}");
    daemon.hoist(["rm", "-f", "lost"]).ok();
}
