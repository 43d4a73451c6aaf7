//! The tests that depend on what the host has, once more on hosts of other kinds.

use std::path::Path;
use std::sync::{Mutex, PoisonError};

use testkit::{Guest, GuestKind, images};

/// What runs in the usual guest: modules and tests of this program. Each passes on this host too, where other
/// files say the same, or says what it misses.
const TESTS: &[&str] = &[
    "cgroups::",
    "labels::",
    "lifecycle::a_container_goes_through_its_states",
    "lifecycle::a_container_that_eats_too_much_is_killed_and_says_so",
    "lifecycle::exec_runs_beside_the_first_process",
    "lifecycle::flags_shape_the_container",
    "lifecycle::stats_and_lists_are_tables_or_json",
    "mounts::an_image_is_checked_while_it_is_read",
    "runtime::a_container_meets_its_limits",
    "runtime::a_life_from_create_to_delete_is_runcs",
    "runtime::file_systems_are_runcs",
    "systemd::",
    "telemetry::figures_have_the_names_that_dashboards_for_containerd_know",
];

#[test]
fn a_host_with_version_2_only_is_no_different() {
    pass_in(GuestKind::Usual, TESTS);
}

/// In a guest of their own: criu has the emulated processor busy for minutes.
#[test]
fn a_kernel_that_criu_knows_has_checkpoints() {
    pass_in(GuestKind::Usual, &["checkpoint::", "checkpoint_images::ctr_", "checkpoint_options::"]);
}

#[test]
fn a_host_with_version_1_in_the_hands_of_systemd_is_no_different() {
    pass_in(
        GuestKind::CgroupsV1,
        &[
            "cgroups::",
            "systemd::",
            "runtime::a_container_meets_its_limits",
            "runtime::file_systems_are_runcs",
        ],
    );
}

#[test]
fn a_host_with_selinux_confines_containers_by_it() {
    pass_in(GuestKind::SeLinux, &["selinux::"]);
}

/// There layers are archives that are mounted, which the kernel of the others cannot, and fs-verity, which the host may
/// not have.
#[test]
fn a_kernel_that_watches_over_files_watches_over_layers() {
    pass_in(GuestKind::Younger, &["verity::"]);
}

fn pass_in(kind: GuestKind, tests: &[&str]) {
    // An emulated processor is slow enough with a whole one to itself.
    static ALONE: Mutex<()> = Mutex::new(());
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let program = std::env::current_exe().expect("the test program has a path");
    let chosen = std::env::var("HOIST_GUEST_TESTS").ok();
    let chosen: Vec<&str> = chosen.iter().flat_map(|words| words.split_whitespace()).collect();
    let tests = if chosen.is_empty() { tests } else { &chosen };
    let arguments: Vec<&str> = ["--test-threads=2"].iter().chain(tests).copied().collect();
    let guest = Guest {
        kind,
        program: &program,
        arguments: &arguments,
        programs: &[Path::new("/usr/bin/ctr"), Path::new("/usr/bin/docker-registry")],
        images: &[images::busybox(), images::busybox_archive()],
    };
    let outcome = guest.run();
    assert_eq!(
        outcome.code,
        Some(0),
        "\n--- console of the guest\n{}\n--- output in the guest\n{}",
        outcome.console,
        outcome.output
    );
    println!("{}", outcome.output);
    // A filter that hits nothing passes too.
    let passed =
        outcome.output.lines().filter(|line| line.starts_with("test ") && line.ends_with("... ok")).count();
    assert!(passed >= tests.len(), "only {passed} tests ran\n{}", outcome.output);
}
