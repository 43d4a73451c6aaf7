//! Hosts and credentials of registries, against Debian's `docker-registry`: mirrors by `hosts.toml`, TLS by `certs.d`,
//! logins, tokens, and the errors of each.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use testkit::bulk::{Bulk, Compression, Shape};
use testkit::{Daemon, Fault, FaultProxy, Finished, Registry, Terminal, images, run};

/// A daemon that reads directories of registries below its own, and a user with logins of their own.
struct Site {
    daemon: Daemon,
    directories: tempfile::TempDir,
}

impl Site {
    fn new() -> Site {
        let directories = tempfile::TempDir::new().expect("a temporary directory");
        let config =
            format!("[registry]\nconfig_path = \"{}\"\n", directories.path().join("certs.d").display());
        Site { daemon: Daemon::start_with(&[], &config), directories }
    }

    /// Writes a file for a registry.
    fn write(&self, registry: &str, file: &str, content: impl AsRef<[u8]>) {
        let own = self.directories.path().join("certs.d").join(registry);
        fs::create_dir_all(&own).expect("a writable directory");
        fs::write(own.join(file), content).expect("a writable directory");
    }

    fn logins(&self) -> PathBuf {
        self.directories.path().join("docker/config.json")
    }

    fn logins_say(&self) -> String {
        fs::read_to_string(self.logins()).unwrap_or_default()
    }

    /// `hoist ARGS` of the user, with a folder of credential helpers in `PATH`.
    fn command(&self, args: &[&str]) -> Command {
        let mut command = self.daemon.command(args);
        let path = std::env::var("PATH").unwrap_or_default();
        let helpers = self.directories.path().join("bin");
        command.env("PATH", format!("{}:{path}", helpers.display()));
        command.env("DOCKER_CONFIG", self.logins().parent().expect("it is in a folder"));
        command.env("HOME", self.directories.path()).env_remove("XDG_RUNTIME_DIR");
        command
    }

    fn hoist(&self, args: &[&str]) -> Finished {
        run(&mut self.command(args))
    }

    fn login(&self, registry: &str, password: &str) -> Finished {
        let script = "printf '%s\\n' \"$1\" | \"$0\" login --username tester --password-stdin \"$2\"";
        let own = self.command(&[]);
        let mut shell = Command::new("sh");
        shell.arg("-c").arg(script).arg(own.get_program()).args([password, registry]);
        for (name, value) in own.get_envs() {
            match value {
                Some(value) => shell.env(name, value),
                None => shell.env_remove(name),
            };
        }
        run(&mut shell)
    }

    fn explain(&self, reference: &str) -> Vec<Value> {
        let said = self.hoist(&["registry", "explain", "--format", "json", reference]);
        said.stdout.lines().map(|line| serde_json::from_str(line).expect("a JSON object a line")).collect()
    }
}

/// An address where nothing listens.
fn nowhere() -> String {
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("loopback has a free port");
    listener.local_addr().expect("a bound socket has an address").to_string()
}

#[test]
fn mirrors_serve_a_registry_that_is_not_there() {
    let (empty, full) = (Registry::start(), Registry::start());
    full.push(&images::busybox(), images::TAG, "some/busybox:1");
    let site = Site::new();
    let dead = nowhere();
    site.write(
        "registry.invalid",
        "hosts.toml",
        format!(
            "server = \"http://{dead}\"\n\n[host.\"http://{dead}/a\"]\n[host.\"http://{}\"]\n\
             capabilities = [\"pull\", \"resolve\"]\n[host.\"http://{}\"]\n",
            empty.host(),
            full.host()
        ),
    );
    let reference = "registry.invalid/some/busybox:1";
    site.hoist(&["pull", reference]).ok();
    let seen = site.daemon.hoist(["run", "--rm", reference, "echo", "from a mirror"]).ok();
    assert_eq!(seen.stdout, "from a mirror\n");

    let rows = site.explain(reference);
    let roles: Vec<_> = rows.iter().map(|row| (row["Role"].as_str(), row["Error"].is_null())).collect();
    let mirror = Some("mirror");
    assert_eq!(roles, [(mirror, false), (mirror, false), (mirror, true), (Some("registry"), false)]);
    assert!(rows[0]["Error"].as_str().is_some_and(|said| said.contains("Connection refused")), "{rows:?}");
    assert!(rows[1]["Error"].as_str().is_some_and(|said| said.contains("manifest unknown")), "{rows:?}");
    assert_eq!(rows[2]["Address"], format!("http://{}/v2", full.host()));
    assert!(rows[2]["Digest"].as_str().is_some_and(|digest| digest.starts_with("sha256:")), "{rows:?}");
    assert_eq!(rows[1]["Capabilities"], serde_json::json!(["pull", "resolve"]));
    assert!(
        rows[1]["ConfiguredBy"].as_str().is_some_and(|file| file.ends_with("registry.invalid/hosts.toml"))
    );

    let table = site.hoist(&["registry", "explain", reference]).ok();
    for words in
        ["ORDER", "ROLE", "TLS", "CREDENTIALS", "ANSWER", "mirror", "200 OK", "nothing listens there"]
    {
        assert!(table.stdout.contains(words), "{table}");
    }
    assert_eq!(table.stdout.lines().count(), 5, "{table}");

    let failed = site.hoist(&["pull", "registry.invalid/some/other:1"]).expect_code(1);
    let line = failed.stderr.lines().find(|line| line.starts_with("hoist: ")).unwrap_or_default();
    for words in [&*dead, &empty.host(), &full.host(), "Connection refused", "manifest unknown"] {
        assert!(line.contains(words), "{words}\n{failed}");
    }

    // A mistake in the file is told, and nobody else is asked.
    site.write("registry.invalid", "hosts.toml", "\n[host.\"http://x\"]\ncapabilites = []\n");
    site.hoist(&["pull", reference]).expect_code(1).expect_stderr(
        "registry.invalid/hosts.toml:3: unknown key `capabilites`; did you mean `capabilities`?",
    );
}

#[test]
fn a_mirror_whose_bytes_are_wrong_fails_no_pull_and_is_asked_last_afterwards() {
    let registry = Registry::start();
    registry.push(&images::busybox(), images::TAG, "some/busybox:1");
    let mirror = FaultProxy::start(&registry, |asked| match asked.blob() {
        Some(_) => vec![Fault::Corrupt(1000), Fault::Corrupt(500_000)],
        None => Vec::new(),
    });
    let site = Site::new();
    let hosts = format!("server = 'http://{}'\n[host.'http://{}']\n", registry.host(), mirror.host());
    site.write("registry.invalid", "hosts.toml", hosts);
    let reference = "registry.invalid/some/busybox:1";
    site.hoist(&["pull", reference]).ok();
    let seen = site.daemon.hoist(["run", "--rm", reference, "echo", "the right bytes"]).ok();
    assert_eq!(seen.stdout, "the right bytes\n");
    assert!(!mirror.log().is_empty(), "it was asked first");

    site.hoist(&["rmi", reference]).ok();
    mirror.clear();
    site.hoist(&["pull", reference]).ok();
    assert_eq!(mirror.log().len(), 0, "who lied is remembered");
}

#[test]
fn a_login_is_checked_kept_used_and_forgotten() {
    let registry = Registry::start_secured();
    let reference = registry.push(&images::busybox(), images::TAG, "private/busybox:1");
    let (site, host) = (Site::new(), registry.host());
    site.login(&host, Registry::PASSWORD).expect_code(1).expect_stderr("vouches for the certificate of");
    let port = registry.address().port();
    site.write(&format!("127.0.0.1_{port}_"), "ca.crt", fs::read(registry.ca()).expect("openssl wrote it"));

    site.login(&host, "wrong").expect_code(1).expect_stderr("does not take this name and password");
    assert_eq!(site.logins_say(), "", "what is wrong is not kept");
    let refused = site.hoist(&["pull", &reference]).expect_code(1);
    refused.expect_stderr(&format!("hoist login {host}"));

    fs::create_dir_all(site.logins().parent().expect("it is in a folder")).expect("a writable directory");
    fs::write(site.logins(), r#"{"psFormat": "kept"}"#).expect("a writable directory");
    assert_eq!(site.login(&host, Registry::PASSWORD).ok().stdout, "Login Succeeded\n");
    let mode = fs::metadata(site.logins()).expect("the login is there").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let kept: Value = serde_json::from_str(&site.logins_say()).expect("JSON");
    assert_eq!(kept["psFormat"], "kept");
    assert!(kept["auths"][&host]["auth"].is_string(), "{kept}");
    site.hoist(&["pull", &reference]).ok();
    let copy = format!("{host}/copies/busybox:1");
    site.hoist(&["tag", &reference, &copy]).ok();
    site.hoist(&["push", &copy]).ok();
    let rows = site.explain(&reference);
    assert_eq!(rows[0]["Auth"], "basic");
    assert_eq!(rows[0]["CredentialsFrom"], site.logins().display().to_string());
    assert!(rows[0]["Tls"].as_str().is_some_and(|tls| tls.ends_with("ca.crt")), "{rows:?}");
    let all = format!("{rows:?}");
    assert!(!all.contains(Registry::PASSWORD) && !all.contains("dGVzdGVy"), "no secret is shown: {all}");

    // Others read what we keep.
    let inspect = run(Command::new("skopeo")
        .args(["inspect", "--tls-verify=false", "--authfile"])
        .arg(site.logins())
        .arg(format!("docker://{copy}")));
    inspect.ok();

    site.hoist(&["logout", &host]).ok();
    assert!(site.hoist(&["logout", &host]).ok().stdout.contains("Not logged in"));
    site.hoist(&["pull", &reference]).expect_code(1).expect_stderr("hoist login");
    site.hoist(&["push", &copy]).expect_code(1).expect_stderr("hoist login");
}

#[test]
fn a_login_at_a_terminal_hides_the_password() {
    let registry = Registry::start_with_tokens();
    let (site, host) = (Site::new(), registry.host());
    let mut terminal = Terminal::run(site.command(&["login", &host]));
    terminal.wait_for("Username: ");
    terminal.type_in(&format!("{}\n", Registry::USER));
    terminal.wait_for("Password: ");
    // A mistake and its correction among it.
    terminal.type_in(&format!("{}x\u{7f}\n", Registry::PASSWORD));
    terminal.wait_for("Login Succeeded");
    assert!(terminal.seen().contains(Registry::USER) && !terminal.seen().contains(Registry::PASSWORD));
    assert_eq!(terminal.end(), (Some(0), true));
    assert!(site.logins_say().contains(&host));

    let mut terminal = Terminal::run(site.command(&["login", "--username", Registry::USER, &host]));
    terminal.wait_for("Password: ");
    terminal.type_in("half\u{3}");
    terminal.wait_for("interrupted");
    let (code, shows) = terminal.end();
    assert!(code != Some(0) && shows, "{code:?}: whoever gives up gets the terminal back as it was");

    let mut nobody = site.command(&["login", &host]);
    run(nobody.stdin(Stdio::null())).expect_code(1).expect_stderr("--password-stdin");
}

#[test]
fn the_first_place_that_has_a_login_counts() {
    let registry = Registry::start_with_tokens();
    let reference = registry.push(&images::busybox(), images::TAG, "private/busybox:1");
    let (site, host) = (Site::new(), registry.host());
    let home = site.directories.path().to_owned();
    let session = home.join("session");
    let login = serde_json::json!({"auths": {&host: {"auth": "dGVzdGVyOnMzY3JldA=="}}}).to_string();
    let files = [
        site.logins(),
        home.join("podman.json"),
        session.join("containers/auth.json"),
        home.join(".config/containers/auth.json"),
    ];
    for file in &files {
        fs::create_dir_all(file.parent().expect("it is in a folder")).expect("a writable directory");
        fs::write(file, &login).expect("a writable directory");
    }
    let from = |variable: Option<&str>| {
        let mut command = site.command(&["registry", "explain", "--format", "json", &reference]);
        command.env("REGISTRY_AUTH_FILE", &files[1]).env("XDG_RUNTIME_DIR", &session);
        variable.map(|text| command.env("DOCKER_AUTH_CONFIG", text));
        let said = run(&mut command).ok();
        let row: Value = serde_json::from_str(&said.stdout).expect("JSON");
        row["CredentialsFrom"].as_str().unwrap_or("nowhere").to_owned()
    };
    assert_eq!(from(Some(&login)), "DOCKER_AUTH_CONFIG");
    // One that has nothing for this registry is no place; neither is an empty one.
    for nothing in [None, Some(""), Some(r#"{"auths": {"elsewhere.example": {"auth": "dTpw"}}}"#)] {
        assert_eq!(from(nothing), files[0].display().to_string(), "{nothing:?}");
    }
    for (file, next) in files.iter().zip(&files[1..]) {
        fs::remove_file(file).expect("it was written");
        assert_eq!(from(None), next.display().to_string());
    }
    fs::remove_file(&files[3]).expect("it was written");
    let mut wrong = site.command(&["pull", &reference]);
    wrong.env("DOCKER_AUTH_CONFIG", "{\n s3cret");
    let said = run(&mut wrong).expect_code(1).expect_stderr("DOCKER_AUTH_CONFIG:2: not a JSON object");
    assert!(!said.stderr.contains("s3cret"), "{said}");
}

/// Keeps what it is given in a folder, as `docker-credential-*` programs do.
const HELPER: &str = r#"#!/bin/sh
set -eu
kept="$HOME/kept"
case "$1" in
store) cat > "$kept" ;;
get) cat > /dev/null; [ -f "$kept" ] || { echo "credentials not found in native keychain"; exit 1; }; cat "$kept" ;;
erase) cat > /dev/null; rm "$kept" ;;
esac
"#;

#[test]
fn a_credential_helper_keeps_logins_where_one_is_set() {
    let registry = Registry::start_with_tokens();
    let reference = registry.push(&images::busybox(), images::TAG, "private/busybox:1");
    let (site, host) = (Site::new(), registry.host());
    let helper = site.directories.path().join("bin/docker-credential-of-test");
    fs::create_dir_all(helper.parent().expect("it is in a folder")).expect("a writable directory");
    fs::create_dir_all(site.logins().parent().expect("it is in a folder")).expect("a writable directory");
    fs::write(site.logins(), r#"{"credsStore": "of-test"}"#).expect("a writable directory");
    site.login(&host, Registry::PASSWORD)
        .expect_code(1)
        .expect_stderr("docker-credential-of-test is not in PATH");
    testkit::executable(&helper, HELPER);

    site.hoist(&["pull", &reference]).expect_code(1).expect_stderr("hoist login");
    site.login(&host, Registry::PASSWORD).ok();
    assert!(!site.logins_say().contains("auth\""), "no secret is in the file: {}", site.logins_say());
    site.hoist(&["pull", &reference]).ok();
    assert_eq!(site.explain(&reference)[0]["CredentialsFrom"], "docker-credential-of-test");
    site.hoist(&["logout", &host]).ok();
    assert!(!site.directories.path().join("kept").exists());
    site.hoist(&["pull", &reference]).expect_code(1);

    testkit::executable(&helper, "#!/bin/sh\necho the keychain is locked\nexit 1\n");
    site.hoist(&["pull", &reference])
        .expect_code(1)
        .expect_stderr("docker-credential-of-test get: the keychain is locked");
}

#[test]
fn every_tag_of_a_repository_is_pulled() {
    let registry = Registry::start();
    let repository = format!("{}/some/busybox", registry.host());
    let daemon = Daemon::start();
    daemon.hoist(["pull", "-a", &repository]).expect_code(1).expect_stderr("list the tags of");
    for tag in ["1", "2"] {
        registry.push(&images::busybox(), images::TAG, &format!("some/busybox:{tag}"));
    }
    let pulled = daemon.hoist(["pull", "-a", &repository]).ok();
    for line in ["1: Digest: sha256:", "2: Digest: sha256:", "Status: Downloaded newer image for "] {
        assert!(pulled.stdout.contains(line), "{line}: {pulled}");
    }
    assert_eq!(daemon.hoist(["pull", "-q", "-a", &repository]).ok().text(), repository);
    let listed = daemon.hoist(["images", "--format", "{{.Repository}}:{{.Tag}}"]).ok();
    let mut names: Vec<&str> = listed.text().lines().collect();
    names.sort_unstable();
    assert_eq!(names, [format!("{repository}:1"), format!("{repository}:2")]);
}

#[test]
fn tokens_are_got_by_nobody_by_password_and_by_identity() {
    let registry = Registry::start_with_tokens();
    let layout = images::busybox();
    let open = registry.push(&layout, images::TAG, "public/busybox:1");
    let private = registry.push(&layout, images::TAG, "private/busybox:1");
    let (site, host) = (Site::new(), registry.host());
    site.hoist(&["pull", &open]).ok();
    site.hoist(&["pull", &private]).expect_code(1).expect_stderr(&format!("hoist login {host}"));
    site.login(&host, "wrong").expect_code(1).expect_stderr("this is not somebody we know");
    site.login(&host, Registry::PASSWORD).ok();
    site.hoist(&["pull", &private]).ok();
    let auth = site.explain(&private)[0]["Auth"].as_str().unwrap_or_default().to_owned();
    assert!(auth.starts_with("token from http://127.0.0.1:"), "{auth}");

    site.hoist(&["rmi", &private]).ok();
    let identity =
        format!(r#"{{"auths": {{"{host}": {{"identitytoken": "{}"}}}}}}"#, Registry::IDENTITY_TOKEN);
    fs::write(site.logins(), identity).expect("a writable directory");
    site.hoist(&["pull", &private]).ok();
    // What podman keeps serves too.
    site.hoist(&["logout", &host]).ok();
    let podman = site.directories.path().join(".config/containers/auth.json");
    fs::create_dir_all(podman.parent().expect("it is in a folder")).expect("a writable directory");
    let mut login = Command::new("skopeo");
    login.args(["login", "--tls-verify=false", "--authfile"]).arg(&podman);
    login.args(["--username", Registry::USER, "--password", Registry::PASSWORD, &host]);
    run(&mut login).ok();
    site.hoist(&["pull", &private]).ok();
    assert_eq!(site.explain(&private)[0]["CredentialsFrom"], podman.display().to_string());
}

#[test]
fn a_pull_that_fails_says_why_in_one_line() {
    let registry = Registry::start();
    registry.push(&images::busybox(), images::TAG, "some/busybox:1");
    let site = Site::new();
    let check = |reference: &str, words: &[&str]| {
        let failed = site.hoist(&["pull", reference]).expect_code(1);
        let lines: Vec<&str> = failed.stderr.lines().filter(|line| line.starts_with("hoist: ")).collect();
        assert_eq!(lines.len(), 1, "{failed}");
        for word in words {
            assert!(lines[0].contains(word), "{word}\n{failed}");
        }
    };
    let (host, dead) = (registry.host(), nowhere());
    check(
        &format!("{host}/some/busybox:2"),
        &[&host, "has no 2 in", "manifest unknown", "check the name and the tag"],
    );
    check(&format!("{dead}/some/busybox:1"), &[&dead, "Connection refused", "check host and port"]);
    check(&format!("{host}/UPPER"), &["invalid image reference"]);
    site.write("127.0.0.1_1_", "hosts.toml", format!("server = \"https://{host}\""));
    check("127.0.0.1:1/some/busybox:1", &[&host, "does not speak TLS", "hosts.toml"]);
}

/// A pull that nobody waits for any more ends, whoever else pulls the same goes on with it, and what came is not
/// fetched again.
#[test]
fn a_pull_ends_with_the_last_who_follows_it() {
    let registry = Registry::start();
    let large = Bulk::make(Shape { len: 32 << 20, files: 10, compression: Compression::None });
    registry.push(large.layout.path(), images::TAG, "large:1");
    let is_slow = Arc::new(AtomicBool::new(true));
    let proxy = FaultProxy::start(&registry, {
        let is_slow = is_slow.clone();
        move |asked| match asked.blob() {
            Some(_) if is_slow.load(Ordering::SeqCst) => {
                vec![Fault::Throttle { bytes: 2048, every: Duration::from_millis(10) }]
            }
            _ => Vec::new(),
        }
    });
    let daemon = Daemon::start();
    let reference = format!("{}/large:1", proxy.host());
    let pull = || {
        let mut command = daemon.command(["pull", "-q", &reference]);
        command.stdout(Stdio::null()).spawn().expect("hoist starts")
    };
    let port = proxy.host().rsplit_once(':').expect("a port").1.parse::<u16>().expect("a number");
    // Ends of ours that are connected to it (`/proc/net/tcp`: state 01).
    let connections = || {
        let table = fs::read_to_string("/proc/net/tcp").expect("a table");
        table.lines().filter(|line| line.contains(&format!(":{port:04X} 01 "))).count()
    };
    let (mut one, mut other) = (pull(), pull());
    testkit::eventually("bytes come", || (proxy.blob_bytes() > 1 << 16).then_some(()));
    kill_process(Pid::from_child(&one), Signal::TERM).expect("a child of ours");
    one.wait().expect("a child of ours");
    let before = proxy.blob_bytes();
    testkit::eventually("the other goes on", || (proxy.blob_bytes() > before + (1 << 16)).then_some(()));
    kill_process(Pid::from_child(&other), Signal::TERM).expect("a child of ours");
    other.wait().expect("a child of ours");
    testkit::eventually("the daemon hangs up", || (connections() == 0).then_some(()));
    assert_eq!(daemon.hoist(["images", "-q"]).ok().text(), "");

    is_slow.store(false, Ordering::SeqCst);
    assert!(pull().wait().expect("a child of ours").success());
    daemon.hoist(["run", "--rm", "--network", "none", &reference, "sh", "-c", ":"]).ok();
}
