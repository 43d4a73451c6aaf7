//! Images in and out: registries, archives, many layers, many files, large files.

use testkit::{Daemon, Registry, images};

#[test]
fn a_pulled_image_is_listed_run_and_removed() {
    let registry = Registry::start();
    let reference = registry.push(&images::busybox(), images::TAG, "tools/busybox:1");
    let daemon = Daemon::start();
    let pull = daemon.hoist(["pull", &reference]).ok();
    assert!(pull.stdout.lines().last().is_some_and(|line| line.contains(&reference)), "{pull}");
    assert!(!pull.stderr.contains('\r') && !pull.stdout.contains('\r'), "no bars in a pipe\n{pull}");
    assert!(daemon.hoist(["images"]).ok().stdout.contains("tools/busybox"));
    assert_eq!(daemon.hoist(["run", "--rm", &reference, "echo", "hi"]).ok().stdout, "hi\n");
    daemon.hoist(["rmi", &reference]).ok();
    assert!(!daemon.hoist(["images"]).ok().stdout.contains("tools/busybox"));
    daemon.hoist(["rmi", &reference]).expect_code(1).expect_stderr("tools/busybox");
}

#[test]
fn a_missing_image_is_named_with_the_registry_that_lacks_it() {
    let registry = Registry::start();
    let daemon = Daemon::start();
    let reference = format!("{}/no/such:1", registry.host());
    daemon.hoist(["pull", &reference]).expect_code(1).expect_stderr(&reference);
    daemon.hoist(["run", "--rm", &reference]).expect_code(125).expect_stderr(&registry.host());
    daemon.hoist(["pull", "UPPER/case"]).expect_code(1).expect_stderr("UPPER/case");
}

#[test]
fn archives_of_every_form_can_be_loaded_and_run() {
    let daemon = Daemon::start();
    for form in ["docker-archive", "oci-archive"] {
        let archive = daemon.dir().join(format!("{form}.tar"));
        images::archive(&images::busybox(), form, "from-archive:1", &archive);
        let shown = archive.display().to_string();
        assert_eq!(daemon.hoist(["run", "--rm", &shown, "echo", form]).ok().stdout, format!("{form}\n"));
    }
    let layout = format!("oci:{}", images::busybox().display());
    assert_eq!(daemon.hoist(["run", "--rm", &layout, "echo", "layout"]).ok().stdout, "layout\n");
}

#[test]
fn a_hundred_layers_are_one_tree() {
    let registry = Registry::start();
    let reference = registry.push(&images::hundred_layers(), images::TAG, "layers");
    let daemon = Daemon::start();
    let seen =
        daemon.hoist(["run", "--rm", &reference, "sh", "-c", "cat /last; echo; ls /layer | wc -l"]).ok();
    assert_eq!(seen.text().split_whitespace().collect::<Vec<_>>(), ["99", "99"], "{seen}");
}

#[test]
fn fifty_thousand_files_arrive() {
    let registry = Registry::start();
    let reference = registry.push(&images::many_files(), images::TAG, "files");
    let daemon = Daemon::start();
    let seen = daemon
        .hoist(["run", "--rm", &reference, "sh", "-c", "find /tree -type f | wc -l; cat /tree/499/99"])
        .ok();
    assert_eq!(seen.text().split_whitespace().collect::<Vec<_>>(), ["50000", "99"], "{seen}");
}

#[test]
fn a_layer_of_a_gibibyte_arrives_whole() {
    let registry = Registry::start();
    let reference = registry.push(&images::large_layer(), images::TAG, "large");
    let daemon = Daemon::start();
    let seen = daemon.hoist(["run", "--rm", &reference, "stat", "-c", "%s", "/large"]).ok();
    assert_eq!(seen.text(), "1073741824");
}
