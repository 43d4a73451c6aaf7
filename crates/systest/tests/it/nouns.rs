//! Docker's nouns, `container` and `network`, and the errors of each for unknown names.

use serde_json::Value;
use testkit::Daemon;

#[test]
fn networks_are_listed_and_shown_with_who_is_on_them() {
    let daemon = Daemon::with_busybox();
    let shown = |words: &[&str]| daemon.hoist(words).ok().text().to_owned();
    let listed = shown(&["network", "ls", "--format", "{{.Name}} {{.Driver}} {{.Scope}}"]);
    assert_eq!(listed, "bridge bridge local\nhost host local\nnone null local");
    assert!(shown(&["network", "ls"]).starts_with("NETWORK ID     NAME     DRIVER   SCOPE\n"));
    let id = shown(&["network", "ls", "-q", "--no-trunc"]).lines().next().expect("a row").to_owned();
    assert_eq!(id.len(), 64);
    assert_eq!(shown(&["network", "inspect", "-f", "{{.Name}} {{len .Containers}}", &id[..12]]), "bridge 0");

    daemon.hoist(["run", "-d", "--name", "web", "busybox", "sleep", "1000"]).ok();
    daemon.hoist(["run", "-d", "--name", "alone", "--network", "none", "busybox", "sleep", "1000"]).ok();
    daemon.hoist(["create", "--name", "idle", "busybox", "sleep", "1000"]).ok();
    let all: Value = serde_json::from_str(&shown(&["network", "inspect", "bridge", "none"])).expect("JSON");
    let of_web = |field: &str| shown(&["inspect", "-f", &format!("{{{{.NetworkSettings.{field}}}}}"), "web"]);
    let on_bridge = all[0]["Containers"].as_object().expect("an object");
    assert_eq!(on_bridge.len(), 1, "who does not run is on none: {all}");
    let web = &on_bridge[&shown(&["inspect", "-f", "{{.Id}}", "web"])];
    assert_eq!((&web["Name"], &web["MacAddress"]), (&"web".into(), &of_web("MacAddress").into()));
    let address = web["IPv4Address"].as_str().expect("text").to_owned();
    assert_eq!(address.split('/').next(), Some(of_web("IPAddress").as_str()));
    let range = &all[0]["IPAM"]["Config"][0];
    assert_eq!(range["Gateway"], of_web("Gateway"));
    assert!(range["Subnet"].as_str().is_some_and(|subnet| subnet.contains(".0/")), "{all}");
    assert!(all[0]["Options"]["com.docker.network.bridge.name"].is_string(), "{all}");
    let alone = all[1]["Containers"].as_object().expect("an object").values();
    assert_eq!(alone.map(|one| &one["Name"]).collect::<Vec<_>>(), ["alone"]);
}

/// As with Docker, containers are looked up first.
#[test]
fn whatever_has_a_name_is_shown_by_it() {
    let daemon = Daemon::with_busybox();
    daemon.hoist(["create", "--name", "busybox", "--network", "none", "busybox", "true"]).ok();
    for volume in ["busybox", "alone"] {
        daemon.hoist(["volume", "create", volume]).ok();
    }
    let shown = |words: &[&str]| daemon.hoist([&["inspect"], words].concat());
    let document = |words: &[&str]| serde_json::from_str::<Value>(&shown(words).ok().stdout).expect("JSON");
    assert_eq!(document(&["busybox"])[0]["Name"], "/busybox");
    assert_eq!(document(&["--type", "container", "busybox"])[0]["Name"], "/busybox");
    assert_eq!(document(&["--type=image", "busybox"])[0]["Os"], "linux");
    assert_eq!(document(&["--type", "volume", "busybox"])[0]["Driver"], "local");
    assert_eq!(document(&["alone", "bridge"])[0]["Name"], "alone");
    assert_eq!(document(&["alone", "bridge"])[1]["Driver"], "bridge");
    for (words, why) in [
        (&["nosuch"][..], "no such container, image, network or volume: nosuch"),
        (&["--type", "network", "alone"], "no such network: alone"),
        (&["--type", "bogus", "alone"], "bogus"),
    ] {
        shown(words).expect_code(1).expect_stderr(why);
    }
}

#[test]
fn containers_have_their_noun() {
    let daemon = Daemon::with_busybox();
    let noun = |words: &[&str]| daemon.hoist(["container"].iter().chain(words));
    noun(&["run", "-d", "--name", "web", "--network", "none", "busybox", "sleep", "1000"]).ok();
    for list in ["ls", "list", "ps"] {
        assert_eq!(noun(&[list, "--format", "{{.Names}}"]).ok().text(), "web", "{list}");
    }
    assert_eq!(noun(&["inspect", "-f", "{{.State.Status}}", "web"]).ok().text(), "running");
    noun(&["inspect", "busybox"]).expect_code(1).expect_stderr("no such container: busybox");
    noun(&["stop", "-t", "0", "web"]).ok();
    let id = noun(&["inspect", "-f", "{{.Id}}", "web"]).ok();
    let pruned = noun(&["prune", "-f"]).ok();
    assert!(pruned.stdout.contains(id.text()), "{pruned}");
    assert_eq!(noun(&["ls", "-aq"]).ok().text(), "");
    noun(&["run", "--network", "none", "busybox", "/nothing"]).expect_code(127);
    // Each command has a help text of its own.
    for (words, help) in [(&["run"][..], "Create a container and start it"), (&["start"], "Start containers")]
    {
        assert!(noun(&[words, &["--help"]].concat()).ok().stdout.starts_with(help), "{words:?}");
    }
}

/// Unknown names are in the error of every command.
#[test]
fn names_that_are_not_known_are_told() {
    let daemon = Daemon::with_busybox();
    let commands = "start|stop|restart|kill|rm|logs|attach|exec nobody true|wait|rename nobody other|update -m 9m|port|top|\
                    pause|unpause|stats --no-stream|cp nobody:/x /tmp/x|commit|diff|inspect|container inspect|tag nobody other|\
                    rmi|save -o /dev/null|history|image inspect|push|volume inspect|volume rm|network inspect|\
                    run --network nobody busybox";
    for command in commands.split('|') {
        let words: Vec<&str> = command.split_whitespace().collect();
        let named = words.iter().any(|word| word.contains("nobody"));
        let words = words.into_iter().chain((!named).then_some("nobody"));
        let refused = daemon.hoist(words);
        assert_ne!(refused.code, 0, "{command}");
        assert_eq!(refused.stderr.matches("nobody").count(), 1, "once, and not more often: {refused}");
    }
}

/// What `docker system prune` removes, with its flags.
#[test]
fn a_prune_removes_what_its_flags_say() {
    let daemon = Daemon::with_busybox();
    let image = ["--network", "none", "busybox"];
    let run = |name: &str, flags: &[&str]| {
        let ran = daemon
            .hoist([&["run", "--name", name], flags, &image, &["sh", "-c", "echo x > /scratch/y"]].concat());
        ran.ok();
    };
    let names =
        |words: &[&str]| daemon.hoist(words).ok().text().lines().map(str::to_owned).collect::<Vec<_>>();
    let containers = || names(&["ps", "-a", "--format", "{{.Names}}"]);
    let volumes = || names(&["volume", "ls", "-q"]).len();
    let images = || names(&["images", "--format", "{{.Repository}}"]);
    let prune = |flags: &[&str]| daemon.hoist([&["system", "prune", "-f"], flags].concat());
    run("kept", &["--label", "keep", "-v", "/scratch"]);
    run("old", &["--label", "a=b", "-v", "/scratch"]);
    run("named", &["-v", "crop:/scratch"]);
    daemon.hoist(["commit", "old", "other:1"]).ok();

    // Refused before anything is removed.
    prune(&["--volumes", "--filter", "until=1h"]).expect_code(1).expect_stderr("--volumes");
    prune(&["--filter", "name=old"]).expect_code(1).expect_stderr("known are label, label!, until");
    prune(&["--filter", "until=soon"]).expect_code(1).expect_stderr("until=soon");
    prune(&["--filter", "until=1h"]).ok();
    assert_eq!(containers(), ["named", "old", "kept"], "they are younger");
    let pruned = prune(&["--filter", "label!=keep", "--filter", "label=a=b"]).ok();
    assert!(pruned.stdout.starts_with("Deleted Containers:\n"), "{pruned}");
    assert!(pruned.stdout.contains("Total reclaimed space: "), "{pruned}");
    assert_eq!((containers(), volumes(), images().len()), (vec!["named".into(), "kept".into()], 3, 2));
    assert_eq!(
        daemon.hoist(["container", "prune", "-f", "--filter", "label!=keep"]).ok().stdout.lines().count(),
        4
    );
    assert_eq!(containers(), ["kept"]);

    prune(&["--volumes", "--filter", "label!=keep"]).ok();
    assert_eq!((containers().len(), volumes(), images().len()), (1, 2, 2), "one is used, one has a name");
    let pruned = prune(&["-a", "--filter", "label!=keep"]).ok();
    assert!(pruned.stdout.contains("Deleted Images:\nUntagged: other:1\nDeleted: sha256:"), "{pruned}");
    assert_eq!(images(), ["busybox"], "a container was made from it");
    prune(&["--all", "--volumes"]).ok();
    assert_eq!((containers().len(), volumes(), images().len()), (0, 1, 0));
    assert_eq!(prune(&["-a"]).ok().text(), "Total reclaimed space: 0B");
    // Without `--force` the command asks first.
    let asked = daemon.hoist(["system", "prune", "-a", "--volumes"]).expect_code(1).stderr.clone();
    for words in ["does not run", "volume without a name", "no container was made from", "Go on?"] {
        assert!(asked.contains(words), "{words}: {asked}");
    }
}

#[test]
fn a_noun_alone_shows_what_there_is() {
    let daemon = Daemon::start();
    for (words, shown) in [
        (&[][..], "\n  run "),
        (&["container"], "\n  prune "),
        (&["volume"], "\n  create "),
        (&["network"], "\n  inspect "),
        (&["image"], "\n  history "),
        (&["system"], "\n  df "),
    ] {
        let help = daemon.hoist(words).ok();
        assert!(help.stdout.contains(shown) && help.stderr.is_empty(), "{words:?}: {help}");
    }
    daemon.hoist(["nosuch"]).expect_code(1);
    daemon.hoist(["container", "nosuch"]).expect_code(1);
}

/// As a script passes it whose variable is empty.
#[test]
fn an_empty_format_is_the_usual_one() {
    let daemon = Daemon::with_busybox();
    daemon.hoist(["create", "--name", "box", "-v", "crop:/data", "busybox", "true"]).ok();
    for words in [
        &["ps", "-a"][..],
        &["images"],
        &["volume", "ls"],
        &["network", "ls"],
        &["image", "history", "busybox"],
        &["system", "df"],
        &["system", "df", "-v"],
        &["version"],
        &["diff", "box"],
        &["stats", "-a", "--no-stream"],
        &["inspect", "box"],
        &["image", "inspect", "busybox"],
        &["image", "ls-files", "busybox"],
        &["events", "--until", "1s"],
    ] {
        let plain = daemon.hoist(words).ok().stdout;
        let of_empty = daemon.hoist([words, &["--format", ""]].concat()).ok().stdout;
        assert_eq!(of_empty, plain, "{words:?}");
        assert!(plain.lines().count() > 1 || words[0] == "diff", "{words:?}: {plain}");
    }
    let info = daemon.hoist(["info", "--format", ""]).ok();
    assert!(info.stdout.contains("Storage Driver: "), "{info}");
}
