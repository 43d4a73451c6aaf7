//! Output of commands in Docker's terms: headings, fields, templates, sizes.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use testkit::layout::tar_of;
use testkit::{Daemon, Layout, eventually};

/// The cells of the first line.
fn headings(daemon: &Daemon, words: &[&str]) -> Vec<String> {
    let shown = daemon.hoist(words).ok();
    let first = shown.stdout.lines().next().unwrap_or_default();
    first.split("   ").map(str::trim).filter(|cell| !cell.is_empty()).map(str::to_owned).collect()
}

#[test]
fn headings_are_dockers() {
    let daemon = Daemon::with_busybox();
    // Without rows, columns are as wide as their headings.
    let empty = "CONTAINER ID   IMAGE   COMMAND   CREATED   STATUS   PORTS   NAMES\n";
    assert_eq!(daemon.hoist(["ps"]).ok().stdout, empty);
    let run = ["run", "-d", "--name", "one", "-v", "crop:/data", "--network", "none", "busybox"];
    daemon.hoist(run.iter().chain(&["sleep", "1000"])).ok();
    let cases: &[(&[&str], &[&str])] = &[
        (&["ps"], &["CONTAINER ID", "IMAGE", "COMMAND", "CREATED", "STATUS", "PORTS", "NAMES"]),
        (&["ps", "-s"], &["CONTAINER ID", "IMAGE", "COMMAND", "CREATED", "STATUS", "PORTS", "NAMES", "SIZE"]),
        (&["images"], &["IMAGE", "ID", "DISK USAGE", "CONTENT SIZE", "EXTRA"]),
        (&["image", "ls", "--no-trunc"], &["REPOSITORY", "TAG", "IMAGE ID", "CREATED", "SIZE"]),
        (&["images", "--digests"], &["REPOSITORY", "TAG", "DIGEST", "IMAGE ID", "CREATED", "SIZE"]),
        (&["images", "--format", "table"], &["REPOSITORY", "TAG", "IMAGE ID", "CREATED", "SIZE"]),
        (
            &["stats", "--no-stream"],
            &["CONTAINER ID", "NAME", "CPU %", "MEM USAGE / LIMIT", "MEM %", "NET I/O", "BLOCK I/O", "PIDS"],
        ),
        (&["volume", "ls"], &["DRIVER", "VOLUME NAME"]),
        (&["history", "busybox"], &["IMAGE", "CREATED", "CREATED BY", "SIZE", "COMMENT"]),
        (&["system", "df"], &["TYPE", "TOTAL", "ACTIVE", "SIZE", "RECLAIMABLE"]),
        (
            &[
                "stats",
                "--no-stream",
                "--format",
                "table {{.Container}}\t{{.MemPerc}}\t{{.NetIO}}\t{{.PIDs}}",
            ],
            &["CONTAINER", "MEM %", "NET I/O", "PIDS"],
        ),
        (
            &["ps", "--format", r#"table {{.ID}}\t{{.Label "com.docker.some-thing"}}\t{{upper .Status}}"#],
            &["CONTAINER ID", "some thing", "STATUS"],
        ),
        (&["system", "df", "--format", "table {{.Type}}\t{{.TotalCount}}"], &["TYPE", "TOTAL"]),
    ];
    for (words, expected) in cases {
        assert_eq!(headings(&daemon, words), *expected, "{words:?}");
    }
    let image = daemon.hoist(["images"]).ok();
    let row: Vec<&str> = image.stdout.lines().nth(1).expect("a row").split_whitespace().collect();
    assert_eq!((row[0], row.last()), ("busybox:latest", Some(&"U")), "a container was made of it: {image}");
}

#[test]
fn templates_know_dockers_fields() {
    let daemon = Daemon::with_busybox();
    let run = ["run", "-d", "--name", "one", "--label", "tier=front", "--network", "none", "busybox"];
    daemon.hoist(run.iter().chain(&["sleep", "1000"])).ok();
    let fields = |words: &[&str], fields: &str| -> BTreeMap<String, String> {
        let shown = fields.split(' ').map(|field| {
            let template = format!("{{{{.{field}}}}}");
            let shown = daemon.hoist(words.iter().copied().chain(["--format", &template])).ok();
            (field.to_owned(), shown.text().lines().next().unwrap_or_default().to_owned())
        });
        shown.collect()
    };
    let row = fields(
        &["ps"],
        "ID Names Image Command CreatedAt RunningFor Platform Ports State Status Size Labels Mounts LocalVolumes \
         Networks HealthStatus",
    );
    // As with Docker, only templates that name a size need no `--size`.
    let json = daemon.hoist(["ps", "-s", "--format", "json"]).ok();
    let json: Value = serde_json::from_str(json.text()).expect("a row is JSON");
    for (field, shown) in &row {
        assert_eq!(json[field].as_str(), Some(shown.as_str()), "{field} is the same text in both");
    }
    let of_row = |field: &str| row[field].as_str();
    assert_eq!((of_row("Labels"), of_row("HealthStatus"), of_row("LocalVolumes")), ("tier=front", "", "0"));
    assert!(of_row("Platform").starts_with("linux/"), "{row:?}");
    assert!(of_row("CreatedAt").ends_with(" +0000 UTC"), "{row:?}");
    fields(&["images"], "ID Repository Tag Digest CreatedSince CreatedAt Size");
    fields(&["history", "busybox"], "ID CreatedSince CreatedAt CreatedBy Size Comment");
    fields(&["system", "df"], "Type TotalCount Active Size Reclaimable");
    let stats = fields(
        &["stats", "--no-stream", "one"],
        "BlockIO CPUPerc Container ID MemPerc MemUsage Name NetIO PIDs",
    );
    let of_stats = |field: &str| stats[field].as_str();
    assert_eq!((of_stats("Container"), of_stats("Name"), of_stats("PIDs")), ("one", "one", "1"));
    assert_eq!(of_stats("NetIO"), "0B / 0B", "it has no network");
    assert_eq!(of_stats("ID"), of_row("ID"));
}

/// The image's config, with the flags of the command line.
#[test]
fn a_container_is_shown_with_its_images_config() {
    let daemon = Daemon::with_busybox();
    let changes = [
        "-c",
        "ENV A=image B=image",
        "-c",
        "LABEL of=image both=image",
        "-c",
        "USER 5:6",
        "-c",
        "WORKDIR /srv",
        "-c",
        "ENTRYPOINT [\"env\"]",
        "-c",
        "CMD [\"ls\"]",
        "-c",
        "EXPOSE 80",
        "-c",
        "VOLUME /data",
        "-c",
        "STOPSIGNAL SIGINT",
    ];
    daemon.hoist(["create", "--name", "base", "busybox", "true"]).ok();
    daemon.hoist([&["commit"], &changes[..], &["base", "made"]].concat()).ok();
    let config = |name: &str, flags: &[&str], words: &[&str]| {
        daemon
            .hoist([&["create", "--network", "none", "--name", name], flags, &["made"], words].concat())
            .ok();
        let shown: Value = serde_json::from_str(&daemon.hoist(["inspect", name]).ok().stdout).expect("JSON");
        shown[0]["Config"].clone()
    };
    let plain = config("plain", &[], &[]);
    let env = plain["Env"].as_array().expect("a list");
    assert!(env.contains(&"A=image".into()) && env.contains(&"B=image".into()), "{plain}");
    for (field, expected) in [
        ("Cmd", json!(["ls"])),
        ("Entrypoint", json!(["env"])),
        ("User", json!("5:6")),
        ("WorkingDir", json!("/srv")),
        ("ExposedPorts", json!({"80/tcp": {}})),
        ("Volumes", json!({"/data": {}})),
        ("StopSignal", json!("SIGINT")),
    ] {
        assert_eq!(plain[field], expected, "{field}");
    }
    let flags =
        ["-e", "A=own", "--label", "both=own", "-u", "7", "-w", "/", "--entrypoint", "sh", "-p", "90/udp"];
    let own = config("own", &flags, &[]);
    let env = own["Env"].as_array().expect("a list");
    assert!(
        env[0] == "A=own" && env.contains(&"B=image".into()) && !env.contains(&"A=image".into()),
        "{own}"
    );
    assert_eq!((&own["Labels"]["of"], &own["Labels"]["both"]), (&json!("image"), &json!("own")));
    assert_eq!(
        (&own["Entrypoint"], &own["Cmd"]),
        (&json!(["sh"]), &Value::Null),
        "it drops the image's command"
    );
    assert_eq!((&own["User"], &own["WorkingDir"]), (&json!("7"), &json!("/")));
    assert_eq!(own["ExposedPorts"], json!({"80/tcp": {}, "90/udp": {}}));
    assert_eq!(config("words", &[], &["pwd"])["Cmd"], json!(["pwd"]));
    // Without its image, the container still shows its own flags.
    daemon.hoist(["rmi", "-f", "made"]).ok();
    daemon.hoist(["inspect", "own"]).ok();
}

/// Templates from users' scripts.
#[test]
fn templates_that_people_write_are_filled() {
    let daemon = Daemon::with_busybox();
    let run = ["run", "-d", "--name", "web", "-e", "A=1", "-p", "127.0.0.1::80", "--label", "tier=front"];
    daemon.hoist(run.iter().chain(&["busybox", "sleep", "1000"])).ok();
    let shown = |words: &[&str]| daemon.hoist(words).ok().text().to_owned();
    let inspect = |template: &str| shown(&["inspect", "-f", template, "web"]);
    let address = inspect("{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}");
    assert!(address.parse::<std::net::Ipv4Addr>().is_ok(), "{address}");
    let named =
        inspect("{{range $name, $net := .NetworkSettings.Networks}}{{$name}}={{$net.IPAddress}}{{end}}");
    assert_eq!(named, format!("bridge={address}"));
    let ports = "{{range $p, $conf := .NetworkSettings.Ports}}{{$p}} -> {{(index $conf 0).HostPort}}{{end}}";
    let outside = shown(&["port", "web", "80"]);
    assert_eq!(inspect(ports), format!("80/tcp -> {}", outside.rsplit(':').next().expect("a port")));
    let state = r#"{{if eq .State.Status "running"}}up{{else}}down{{end}}"#;
    assert_eq!(inspect(state), "up");
    assert!(
        inspect("{{range .Config.Env}}{{println .}}{{end}}").starts_with("A=1\nPATH="),
        "the image's too"
    );
    assert_eq!(inspect("{{.State.Error}}|{{.State.Dead}}|{{.Driver}}|{{.Config.User}}"), "|false|overlayfs|");
    assert_eq!(inspect("{{json .Config.Entrypoint}} {{.HostConfig.LogConfig.Type}}"), "null json-file");
    assert_eq!(
        inspect("{{json .HostConfig.PortBindings}}"),
        r#"{"80/tcp":[{"HostIp":"127.0.0.1","HostPort":""}]}"#
    );
    assert_eq!(inspect("{{.Config.Cmd}}"), "[sleep 1000]");
    assert_eq!(
        inspect(r#"{{printf "%.4s %s" .Id .Name}}"#),
        format!("{} /web", inspect("{{slice .Id 0 4}}"))
    );
    assert_eq!(inspect("{{with .Config.Labels}}{{.tier}}{{end}}"), "front");
    assert_eq!(inspect(r#"{{index .Config.Labels "nosuch"}}"#), "");
    assert_eq!(inspect(r#"{{and .State.Running (not .State.Paused)}}"#), "true");
    assert_eq!(shown(&["inspect", "-f", "{{index .RepoTags 0}}", "busybox:latest"]), "busybox:latest");
    assert_eq!(
        shown(&["ps", "--format", r#"{{.Label "tier"}} {{upper .Names}} {{title .State}}"#]),
        "front WEB Running"
    );
    assert_eq!(shown(&["ps", "--format", r#"{{index (split .Image ":") 0}}"#]), "busybox");
    assert_eq!(
        shown(&["ps", "--format", r#"{{pad .Names 2 0 | printf "%s|"}}{{truncate .Names 2}}"#]),
        "web|we"
    );
    let options = shown(&["info", "--format", "{{json .SecurityOptions}}"]);
    let options: Vec<String> = serde_json::from_str(&options).expect("a list");
    assert!(options.contains(&"name=seccomp,profile=builtin".to_owned()), "{options:?}");
    let wrong = daemon.hoist(["ps", "--format", "{{.Nosuch}}"]).expect_code(1);
    wrong.expect_stderr("there is no field Nosuch; there are Command, ");
    daemon
        .hoist(["volume", "ls", "--format", "{{nosuch .Name}}"])
        .expect_code(1)
        .expect_stderr("known are and, ");
}

/// A row of `system df`: the total, how many are in use, the bytes, and how many of them are reclaimable.
fn usage(daemon: &Daemon, kind: &str) -> (u64, u64, u64, u64) {
    let shown = daemon.hoist(["system", "df", "--format", "json"]).ok();
    let mut rows = shown.stdout.lines().map(|line| serde_json::from_str::<Value>(line).expect("JSON"));
    let row = rows.find(|row| row["Type"] == kind).expect("a row");
    let number = |key: &str| row[key].as_u64().expect("a number");
    (number("TotalCount"), number("Active"), number("SizeBytes"), number("ReclaimableBytes"))
}

#[test]
fn what_is_in_use_is_told_from_what_can_go() {
    let daemon = Daemon::with_busybox();
    let layout = Layout::new();
    let image =
        layout.image_of("amd64", &[tar_of(&[("unused", &"x".repeat(100_000))])], &serde_json::json!({}));
    layout.tag(&image, "docker.io/library/unused:1");
    daemon.load(layout.path());
    let (total, active, bytes, reclaimable) = usage(&daemon, "Images");
    assert_eq!((total, active, bytes), (2, 0, reclaimable), "no container, no use");

    let run = ["run", "--network", "none", "-v", "crop:/data", "busybox", "sh", "-c"];
    let write = "dd if=/dev/zero of=/big bs=100k count=1 2>/dev/null; cp /big /data; echo said";
    daemon.hoist(run.iter().chain(&[write])).ok();
    daemon.hoist(["volume", "create", "empty"]).ok();
    let (total, active, bytes, reclaimable) = usage(&daemon, "Images");
    assert_eq!((total, active), (2, 1));
    assert!(reclaimable > 0 && reclaimable < bytes, "busybox's stays: {reclaimable} of {bytes}");
    let (_, active, bytes, reclaimable) = usage(&daemon, "Unpacked layers");
    assert!(active == 1 && reclaimable < bytes, "{active} {reclaimable} of {bytes}");
    // The container has ended, so its files and logs are reclaimable. Its volume is not.
    let (total, active, bytes, reclaimable) = usage(&daemon, "Containers");
    assert!((total, active, bytes) == (1, 0, reclaimable) && bytes >= 100_000, "{bytes}");
    let (total, active, bytes, reclaimable) = usage(&daemon, "Logs");
    assert!((total, active, bytes) == (1, 0, reclaimable) && bytes > 0, "{bytes}");
    let (total, active, bytes, reclaimable) = usage(&daemon, "Local Volumes");
    assert!((total, active) == (2, 1) && bytes >= 100_000 && reclaimable < bytes, "{reclaimable} of {bytes}");

    daemon.hoist(["run", "-d", "--name", "up", "--network", "none", "busybox", "sleep", "1000"]).ok();
    let (total, active, ..) = usage(&daemon, "Containers");
    assert_eq!((total, active), (2, 1));
    let shown = daemon.hoist(["system", "df", "--format", "{{.Type}}: {{.Reclaimable}}"]).ok();
    assert!(shown.stdout.contains("Containers: 1") && shown.stdout.contains("%)"), "{shown}");
}

/// Two images with a common layer, one of them with two names; a container, and a volume.
#[test]
fn what_each_takes_is_told_apart_from_what_it_shares() {
    let daemon = Daemon::start();
    let layout = Layout::new();
    let file = |name: &str, bytes: usize| tar_of(&[(name, &"x".repeat(bytes))]);
    let (base, own) = (file("base", 300_000), file("own", 200_000));
    let one = layout.image_of("amd64", std::slice::from_ref(&base), &serde_json::json!({}));
    let other = layout.image_of("amd64", &[base, own], &serde_json::json!({}));
    layout.tag(&one, "docker.io/library/one:1");
    layout.tag(&other, "docker.io/library/other:1");
    daemon.load(layout.path());
    daemon.hoist(["tag", "one:1", "again:1"]).ok();
    daemon.hoist(["create", "--name", "idle", "-v", "crop:/data", "other:1", "/nothing"]).ok();
    let shown =
        |format: &str| daemon.hoist(["system", "df", "-v", "--format", format]).ok().text().to_owned();
    let all: Value = serde_json::from_str(&shown("json")).expect("one document");
    let row = |kind: &str, key: &str, name: &str| {
        let rows = all[kind].as_array().expect("a list").iter();
        rows.clone().find(|row| row[key] == name).unwrap_or_else(|| panic!("{kind} {name}: {all}")).clone()
    };
    let bytes = |name: &str| {
        let row = row("Images", "Repository", name);
        ["DiskBytes", "SharedBytes", "UniqueBytes"].map(|key| row[key].as_u64().expect("a number"))
    };
    let ([size, shared, unique], [other, other_shared, other_unique]) = (bytes("one"), bytes("other"));
    assert_eq!((size, other), (shared + unique, other_shared + other_unique));
    assert_eq!(shared, other_shared);
    assert!(shared >= 300_000 && unique < 100_000, "the layer is shared, the documents are not: {all}");
    assert!((200_000..600_000).contains(&other_unique), "{all}");
    assert_eq!(bytes("again"), [size, shared, unique], "another name is the same image");
    assert_eq!(row("Images", "Repository", "other")["Containers"], "1");
    assert_eq!(row("Images", "Repository", "one")["Containers"], "0");
    let idle = row("Containers", "Names", "idle");
    assert_eq!((&idle["Status"], &idle["LocalVolumes"]), (&"Created".into(), &"1".into()));
    assert_eq!(row("Volumes", "Name", "crop")["Links"], "1");
    assert_eq!(shown("{{range .Volumes}}{{.Name}}{{end}} {{len .Images}}"), "crop 3");
    let table = daemon.hoist(["system", "df", "-v"]).ok();
    let headings: Vec<&str> = table.stdout.lines().filter(|line| line.to_uppercase() == **line).collect();
    let words = |line: &str| {
        line.split("   ")
            .map(|cell| cell.trim().to_owned())
            .filter(|cell| !cell.is_empty())
            .collect::<Vec<_>>()
            .join("|")
    };
    let headings: Vec<String> = headings.into_iter().filter(|line| !line.is_empty()).map(words).collect();
    assert_eq!(
        headings,
        [
            "REPOSITORY|TAG|IMAGE ID|CREATED|SIZE|SHARED SIZE|UNIQUE SIZE|CONTAINERS",
            "CONTAINER ID|IMAGE|COMMAND|LOCAL VOLUMES|SIZE|CREATED|STATUS|NAMES",
            "VOLUME NAME|LINKS|SIZE",
        ],
        "{table}"
    );
}

#[test]
fn those_that_do_not_run_use_nothing() {
    let daemon = Daemon::with_busybox();
    daemon.hoist(["run", "-d", "--name", "up", "--network", "none", "busybox", "sleep", "1000"]).ok();
    daemon.hoist(["create", "--name", "idle", "busybox", "true"]).ok();
    let shown = |arguments: &[&str]| {
        let template = "{{.Name}} {{.CPUPerc}} {{.MemUsage}} {{.MemPerc}} {{.NetIO}} {{.BlockIO}} {{.PIDs}}";
        let command = ["stats", "--no-stream", "--format", template];
        let shown = daemon.hoist(command.iter().chain(arguments)).ok();
        let mut rows: Vec<String> = shown.stdout.lines().map(str::to_owned).collect();
        rows.sort();
        rows
    };
    let idle = "idle 0.00% 0B / 0B 0.00% 0B / 0B 0B / 0B 0";
    assert!(matches!(&shown(&[])[..], [up] if up.starts_with("up ")));
    assert!(matches!(&shown(&["-a"])[..], [first, up] if first == idle && up.starts_with("up ")));
    assert_eq!(shown(&["idle"]), [idle], "who is asked for by name is shown");
    daemon.hoist(["stats", "--no-stream", "nobody"]).expect_code(1).expect_stderr("nobody");
    let id = daemon.hoist(["inspect", "-f", "{{.Id}}", "up"]).ok();
    let long = daemon.hoist(["stats", "--no-stream", "--no-trunc", "--format", "{{.ID}}"]).ok();
    assert_eq!(long.text(), id.text());
}

#[test]
fn what_goes_over_the_network_is_counted() {
    let daemon = Daemon::with_busybox();
    daemon.hoist(["run", "-d", "--name", "talks", "busybox", "sleep", "1000"]).ok();
    let gateway = daemon.hoist(["inspect", "-f", "{{.NetworkSettings.Gateway}}", "talks"]).ok();
    daemon.hoist(["exec", "talks", "ping", "-c", "3", "-s", "1000", gateway.text()]).ok();
    let shown =
        daemon.hoist(["stats", "--no-stream", "--format", "{{.NetReceived}} {{.NetSent}}", "talks"]).ok();
    let bytes: Vec<u64> = shown.text().split(' ').map(|text| text.parse().expect("a number")).collect();
    assert!(bytes.iter().all(|bytes| *bytes >= 3000), "{shown}");
}

#[test]
fn the_whole_is_counted() {
    let daemon = Daemon::with_busybox();
    let counts = || {
        let template =
            "{{.Containers}} {{.ContainersRunning}} {{.ContainersPaused}} {{.ContainersStopped}} {{.Images}}";
        daemon.hoist(["system", "info", "--format", template]).ok().text().to_owned()
    };
    assert_eq!(counts(), "0 0 0 0 1");
    for name in ["one", "two"] {
        daemon.hoist(["run", "-d", "--name", name, "--network", "none", "busybox", "sleep", "1000"]).ok();
    }
    daemon.hoist(["create", "--name", "three", "--network", "none", "busybox", "true"]).ok();
    daemon.hoist(["pause", "two"]).ok();
    daemon.hoist(["tag", "busybox", "other:1"]).ok();
    assert_eq!(counts(), "3 1 1 1 2");
    daemon.hoist(["kill", "one"]).ok();
    daemon.hoist(["wait", "one"]).ok();
    eventually("it is counted among those that ended", || (counts() == "3 0 1 2 2").then_some(()));
    let told = daemon.hoist(["info"]).ok();
    for line in ["Containers: 3", " Paused: 1", "Images: 2", "OSType: linux", "Logging Driver: json-file"] {
        assert!(told.stdout.lines().any(|told| told == line), "{line}\n{told}");
    }
    let template = "{{.Driver}} {{.OSType}} {{.NCPU}} {{.MemTotal}} {{.CgroupVersion}} {{.KernelVersion}} {{.DockerRootDir}}";
    let machine = daemon.hoist(["info", "-f", template]).ok();
    let words: Vec<&str> = machine.text().split(' ').collect();
    assert!(
        words.len() == 7 && words[2] != "0" && words[6] == daemon.root().display().to_string(),
        "{machine}"
    );
}

#[test]
fn what_has_not_been_and_what_has_no_name_is_shown_as_docker_shows_it() {
    let daemon = Daemon::with_busybox();
    let flags = ["-v", "/anonymous", "-v", "named:/named", "--expose", "80", "--network", "none"];
    daemon.hoist(["create", "--name", "one"].iter().chain(&flags).chain(&["busybox", "sleep", "1000"])).ok();
    let shown = |format: &str| daemon.hoist(["inspect", "-f", format, "one"]).ok().text().to_owned();
    let never = "0001-01-01T00:00:00Z";
    assert_eq!(shown("{{.State.StartedAt}} {{.State.FinishedAt}}"), format!("{never} {never}"));
    assert_eq!(shown("{{json .HostConfig.Binds}}"), r#"["named:/named"]"#);
    assert_eq!(shown("{{len .NetworkSettings.Networks.none.NetworkID}}"), "64");
}
