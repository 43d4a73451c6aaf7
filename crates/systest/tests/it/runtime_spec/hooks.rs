//! Hooks: order, working directory, namespaces and state of each kind, failures and timeouts.

use std::fs;
use std::process::Stdio;

use serde_json::{Value, json};
use testkit::eventually;

use crate::runtime_bundle::{Runtime, bundle, read_spec, read_text, script};

/// The first process enters its cgroup before it runs hooks, although the parent, which creates the cgroup meanwhile, is
/// told nothing of them.
#[test]
fn a_hook_in_the_container_is_in_its_cgroup() {
    let runtime = Runtime::ours();
    let id = runtime.id("early");
    let bundle = bundle(|spec| {
        spec["linux"]["cgroupsPath"] = json!(format!("/{id}"));
        spec["linux"]["namespaces"]
            .as_array_mut()
            .expect("namespaces")
            .retain(|kind| kind["type"] != "cgroup");
        spec["mounts"].as_array_mut().expect("mounts").retain(|mount| mount["type"] != "cgroup");
    });
    let mut spec = read_spec(bundle.path());
    let seen = bundle.path().join("rootfs/seen");
    let text = format!("cat /proc/self/cgroup > {}", seen.display());
    spec["hooks"]["createContainer"] =
        json!([{"path": "/bin/sh", "args": ["sh", "-c", text], "env": ["PATH=/bin:/usr/bin"]}]);
    fs::write(bundle.path().join("config.json"), spec.to_string()).expect("writable");
    let path = bundle.path().display().to_string();
    runtime.run(&["run", "--bundle", &path, &id]).ok();
    let seen = read_text(&seen);
    assert!(!seen.is_empty() && seen.lines().all(|line| line.ends_with(&id)), "{seen}");
}

/// Where hooks find what they name by relative paths: not in the specification, but they are written beside runc.
#[test]
fn hooks_run_in_the_bundle_or_in_the_root() {
    for runtime in Runtime::both() {
        let bundle = bundle(|spec| script(spec, "echo program >> /log"));
        let root = bundle.path().join("rootfs").canonicalize().expect("a root");
        let at_bundle = root.parent().expect("a bundle").display().to_string();
        let at_root = root.display().to_string();
        let mut spec = read_spec(bundle.path());
        let mut expected = vec!["program".to_owned()];
        for (name, log, at) in [
            ("prestart", root.join("log"), at_bundle.as_str()),
            ("createRuntime", root.join("log"), &at_bundle),
            ("createContainer", root.join("log"), &at_root),
            ("startContainer", "/log".into(), "/"),
            ("poststart", root.join("log"), &at_bundle),
            ("poststop", root.join("log"), &at_bundle),
        ] {
            // The program in the root is there once it is mounted.
            let seen = if name == "createContainer" { "; ls bin/busybox proc/self/status" } else { "" };
            let text = format!("echo {name} $(pwd{seen}) >> {}", log.display());
            spec["hooks"][name] =
                json!([{"path": "/bin/sh", "args": ["sh", "-c", text], "env": ["PATH=/bin"]}]);
            let seen = if name == "createContainer" { " bin/busybox proc/self/status" } else { "" };
            expected.push(format!("{name} {at}{seen}"));
        }
        fs::write(bundle.path().join("config.json"), spec.to_string()).expect("writable");
        let path = bundle.path().display().to_string();
        let id = runtime.id("hooks-at");
        runtime.command(&["run", "--bundle", &path, &id]).current_dir("/").status().expect("it runs");
        let log = read_text(&root.join("log"));
        let mut lines: Vec<&str> = log.lines().collect();
        lines.sort_unstable();
        expected.sort_unstable();
        assert_eq!(lines, expected, "{}", runtime.name);
    }
}

/// Every hook in its order, with the state it is told, in the namespaces where it must run.
#[test]
fn hooks_run_in_their_order_and_place() {
    const HOOKS: [&str; 6] =
        ["prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"];
    const PLACE: &str = "$(readlink /proc/self/ns/mnt) $(readlink /proc/self/ns/uts)";
    for runtime in Runtime::both() {
        let bundle = bundle(|spec| {
            script(spec, &format!("echo program {PLACE} >> /log"));
            spec["annotations"] = json!({"org.example": "kept"});
        });
        let root = bundle.path().join("rootfs");
        let mut spec = read_spec(bundle.path());
        for name in HOOKS {
            // In the container's root there is another path to the log, and one program with many names.
            let (log, tr) = match name {
                "startContainer" => ("/log".to_owned(), "busybox tr"),
                _ => (root.join("log").display().to_string(), "tr"),
            };
            let hook = |number: u32| {
                let text =
                    format!("read state; echo $NAMED {PLACE} $(echo \"$state\" | {tr} -d ' \\n') >> {log}");
                let named = format!("NAMED={name}{number}");
                json!({"path": "/bin/sh", "args": ["sh", "-c", text], "env": [named, "PATH=/usr/bin:/bin"]})
            };
            spec["hooks"][name] = json!([hook(0), hook(1)]);
        }
        fs::write(bundle.path().join("config.json"), spec.to_string()).expect("writable");
        let path = bundle.path().display().to_string();
        let id = runtime.id("hooks");
        runtime.run(&["run", "--bundle", &path, &id]).ok();
        let log = read_text(&root.join("log"));
        let lines: Vec<Vec<&str>> = log.lines().map(|line| line.splitn(4, ' ').collect()).collect();

        let of = |kinds: &[&str]| -> Vec<String> {
            kinds.iter().flat_map(|kind| [format!("{kind}0"), format!("{kind}1")]).collect()
        };
        let mut order: Vec<&str> = lines.iter().map(|line| line[0]).collect();
        // The program and the hooks after its start are at work at once.
        let program = order.iter().position(|name| *name == "program").expect("it ran");
        order.remove(program);
        assert!((8..=10).contains(&program), "{}: behind what comes before its start: {log}", runtime.name);
        if runtime.name == "hoist" {
            assert_eq!(order, of(&HOOKS), "{log}");
        } else {
            // Debian's runc does not wait for the start before it tells of it.
            order.retain(|name| !name.starts_with("poststart"));
            let others: Vec<&str> = HOOKS.into_iter().filter(|name| *name != "poststart").collect();
            assert_eq!(order, of(&others), "{log}");
        }

        let inside = &lines[program][1..3];
        let outside: Vec<String> = ["mnt", "uts"]
            .map(|kind| fs::read_link(format!("/proc/self/ns/{kind}")).expect("a namespace"))
            .map(|path| path.display().to_string())
            .into();
        for (name, status) in
            HOOKS.iter().zip(["creating", "creating", "creating", "created", "running", "stopped"])
        {
            for line in lines.iter().filter(|line| line[0].starts_with(name)) {
                let is_inside = matches!(*name, "createContainer" | "startContainer");
                let place =
                    if is_inside { inside.to_vec() } else { outside.iter().map(String::as_str).collect() };
                assert_eq!(line[1..3], place, "{} {name}", runtime.name);
                let state: Value = serde_json::from_str(line[3]).expect("JSON");
                assert_eq!(state["id"], id, "{name}");
                assert_eq!(state["annotations"]["org.example"], "kept", "{name}");
                // As `runtime.md` has it; Debian's runc is of an older mind about some.
                if runtime.name == "hoist" {
                    assert_eq!(state["status"], status, "{name}: {state}");
                }
            }
        }
    }
}

/// `runtime.md`, "Lifecycle": what becomes of `config.json` after the creation changes nothing.
#[test]
fn hooks_are_those_of_the_creation() {
    for runtime in Runtime::both() {
        let bundle = bundle(|spec| script(spec, "echo program >> /log"));
        let root = bundle.path().join("rootfs");
        let mut spec = read_spec(bundle.path());
        let config = bundle.path().join("config.json");
        let mut write = |words: &str| {
            for name in ["startContainer", "poststart", "poststop"] {
                let log = if name == "startContainer" { "/".as_ref() } else { root.as_path() };
                let text = format!("echo {name} {words} >> {}/log", log.display());
                spec["hooks"][name] = json!([{"path": "/bin/sh", "args": ["sh", "-c", text]}]);
            }
            fs::write(&config, spec.to_string()).expect("writable");
        };
        write("then");
        let path = bundle.path().display().to_string();
        let id = runtime.id("hooks-then");
        // The container keeps its streams.
        let mut create = runtime.command(&["create", "--bundle", &path, &id]);
        assert!(create.stdout(Stdio::null()).stderr(Stdio::null()).status().expect("it runs").success());
        write("later");
        runtime.run(&["start", &id]).ok();
        eventually("the program has ended", || {
            runtime.run(&["state", &id]).ok().stdout.contains("stopped").then_some(())
        });
        runtime.run(&["delete", &id]).ok();
        let log = read_text(&root.join("log"));
        let mut lines: Vec<&str> = log.lines().collect();
        lines.sort_unstable();
        let expected = ["poststart then", "poststop then", "program", "startContainer then"];
        assert_eq!(lines, expected, "{}", runtime.name);
    }
}

#[test]
fn a_hook_that_fails_or_lingers_ends_the_birth() {
    for runtime in Runtime::both() {
        for name in ["prestart", "createRuntime", "createContainer", "startContainer", "poststart"] {
            for (text, timeout) in [("echo why >&2; exit 3", 0), ("exec sleep 1000", 1)] {
                let bundle = bundle(|spec| {
                    script(spec, "sleep 1000");
                    spec["hooks"][name] = json!([{"path": "/bin/sh", "args": ["sh", "-c", text], "env": ["PATH=/bin:/usr/bin"]}]);
                    if timeout > 0 {
                        spec["hooks"][name][0]["timeout"] = json!(timeout);
                    }
                });
                let path = bundle.path().display().to_string();
                let id = runtime.id("hook");
                let done = runtime.run(&["run", "--bundle", &path, &id]);
                assert_ne!(done.code, 0, "{} {name} {text}: {done}", runtime.name);
                if runtime.name == "hoist" {
                    let words = if timeout > 0 { "timeout of 1 s" } else { "exit status: 3: why" };
                    assert!(done.stderr.contains(name) && done.stderr.contains(words), "{name}: {done}");
                }
                runtime.run(&["delete", "--force", &id]);
                assert_eq!(runtime.run(&["list", "-q"]).ok().text(), "", "{name}: nothing is left");
            }
        }
    }
}

/// What a container leaves is taken down all the same, and the hook with it.
#[test]
fn a_last_hook_that_fails_or_lingers_is_a_warning() {
    for runtime in Runtime::both() {
        for (text, timeout, words) in
            [("exit 3", 0, "exit status: 3"), ("echo > $0; exec sleep 1000", 1, "timeout of 1 s")]
        {
            let bundle = bundle(|spec| script(spec, "exit 4"));
            let mut spec = read_spec(bundle.path());
            let begun = bundle.path().join("begun").display().to_string();
            let hook = |text: &str| json!({"path": "/bin/sh", "args": ["sh", "-c", text, begun], "env": ["PATH=/bin:/usr/bin"]});
            spec["hooks"]["poststop"] = json!([hook(text), hook("echo > $0.next")]);
            if timeout > 0 {
                spec["hooks"]["poststop"][0]["timeout"] = json!(timeout);
            }
            fs::write(bundle.path().join("config.json"), spec.to_string()).expect("writable");
            let path = bundle.path().display().to_string();
            let done = runtime.run(&["run", "--bundle", &path, &runtime.id("last")]).expect_code(4);
            assert_eq!(runtime.run(&["list", "-q"]).ok().text(), "", "nothing is left");
            assert_eq!(bundle.path().join("begun").exists(), timeout > 0);
            if runtime.name == "hoist" {
                // As the specification has it; Debian's runc leaves it at the first.
                assert!(bundle.path().join("begun.next").exists(), "the next one runs");
                done.expect_stderr("poststop").expect_stderr(words);
            }
        }
    }
}

/// More than a pipe holds, and nobody reads it while the hook runs.
#[test]
fn a_hook_may_say_as_much_as_it_likes() {
    let runtime = Runtime::ours();
    for (end, code) in [("exit 0", 0), ("exit 3", 1)] {
        let bundle = bundle(|spec| {
            script(spec, "true");
            let text = format!("echo first >&2; head -c 300000 /dev/zero >&2; {end}");
            spec["hooks"]["createRuntime"] = json!([{"path": "/bin/sh", "args": ["sh", "-c", text], "env": ["PATH=/bin:/usr/bin"], "timeout": 20}]);
        });
        let path = bundle.path().display().to_string();
        let done = runtime.run(&["run", "--bundle", &path, &runtime.id("hook")]);
        assert_eq!(done.code, code, "{done}");
        assert!(code == 0 || done.stderr.contains("first"), "{done}");
    }
}
