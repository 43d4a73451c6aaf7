//! Runs the tests that depend on the host again, in virtual machines with other kinds of hosts.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use stdx::Mutex;
use testkit::{Guest, GuestKind, images, run};

/// What runs in the usual guest: modules and tests of this program that have to do with cgroups, systemd and AppArmor. Each
/// passes on this host too, where other files say the same, or says what it misses.
const TESTS: &[&str] = &[
    "cgroups::",
    "escapes::kernel::cgroups_are_not_written_from_inside",
    "escapes::kernel::devices_of_the_host_are_not_opened",
    "escapes::places::a_cgroup_with_others_below_it_is_not_taken",
    "escapes::places::of_the_hosts_cgroups_a_container_sees_its_own",
    "escapes::entering::an_exec_is_in_every_namespace_and_cgroup_of_the_container",
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
    "runtime_command::a_user_without_privileges_runs_containers",
    "runtime_command::events_come_until_the_container_ends",
    "runtime_exec::an_exec_into_a_missing_cgroup_is_refused",
    "runtime_exec::a_paused_container_is_entered_on_demand_only",
    "runtime_exec::who_enters_is_in_the_cgroups_that_are_named",
    "runtime_flags::a_signal_for_all_reaches_all",
    "runtime_joins::",
    "runtime_leftovers::",
    "runtime_spec::hooks::a_hook_in_the_container_is_in_its_cgroup",
    "runtime_spec::namespaces::user_namespaces_have_several_ranges",
    "runtime_spec::mounts::what_a_tmpfs_copies_is_the_containers_memory",
    "sandboxes::a_pod_has_its_namespaces_from_its_shim_and_ends_with_its_containers",
    "shim::a_container_in_the_pid_namespace_of_another_ends_whole",
    "shim::a_creation_that_fails_late_leaves_no_container",
    "shim::a_host_of_shims_takes_its_cgroups_along",
    "shim::a_shim_of_a_user_without_privileges_runs_containers",
    "shim::bursts_of_version_2_are_counted",
    "shim::lost_memory_is_told_and_counted_in_the_exit_record",
    "shim::metrics_are_those_of_the_hosts_cgroup_version",
    "shim::options_reach_the_shim_and_the_runtime",
    "shim::shims_that_start_together_share_a_cgroup",
    "systemd::",
    "telemetry::figures_have_the_names_that_dashboards_for_containerd_know",
];

#[test]
fn a_host_with_version_2_only_is_no_different() {
    pass_in(GuestKind::Usual, TESTS);
}

/// What [`TESTS`] choose from: all that has to do with the runtime, ways out of containers, and shims. A guest for each line,
/// so that none of them is large.
const ALL: &[&[&str]] = &[
    &["births::", "cgroups::", "escapes::", "labels::", "lifecycle::"],
    &[
        "runtime::",
        "runtime_binds::",
        "runtime_callers::",
        "runtime_classes::",
        "runtime_command::",
        "runtime_devices::",
        "runtime_exec::",
        "runtime_filters::",
    ],
    &[
        "runtime_flags::",
        "runtime_habits::",
        "runtime_joins::",
        "runtime_leftovers::",
        "runtime_rights::",
        "runtime_spec::",
    ],
    &["shim::", "shim_daemons::", "shim_events::", "shim_small::", "shim_streams::", "shim_waits::"],
    &[
        "activation::",
        "attach::",
        "dead_shims::",
        "deaf_shims::",
        "reaper::",
        "sandboxes::",
        "systemd::",
        "terminals::",
    ],
];

/// Modules that have to do with it and are not in [`ALL`].
const ELSEWHERE: &[&str] = &[
    // The runtime of others that they run is a program beside the tests', and guests have only what Debian has.
    "runtimes",
];

/// Whether the tests of a module have to do with the runtime, ways out of containers, or shims, by its name.
fn is_of_runtime_or_shim(module: &str) -> bool {
    let others = [
        "births",
        "cgroups",
        "escapes",
        "labels",
        "lifecycle",
        "reaper",
        "sandboxes",
        "systemd",
        "terminals",
    ];
    module.starts_with("runtime")
        || module.starts_with("shim")
        || module.ends_with("_shims")
        || others.contains(&module)
}

/// A module that is new, or a test that has another name now, is not left out of the guests.
#[test]
fn guests_run_what_there_is() {
    let program = std::env::current_exe().expect("the test program has a path");
    let list = run(Command::new(program).arg("--list")).ok();
    let there: Vec<&str> = list.stdout.lines().filter_map(|line| line.strip_suffix(": test")).collect();
    let all = ALL.concat();
    let missing = |word: &&&str| !there.iter().any(|test| test.starts_with(**word));
    let stale: Vec<&&str> = TESTS.iter().chain(&all).filter(missing).collect();
    assert!(stale.is_empty(), "no test has such a name: {stale:?}");
    let modules: BTreeSet<&str> = there.iter().filter_map(|test| Some(test.split_once("::")?.0)).collect();
    let is_left_out = |module: &&str| {
        is_of_runtime_or_shim(module)
            && !ELSEWHERE.contains(module)
            && !all.iter().any(|word| word.strip_suffix("::") == Some(*module))
    };
    let left_out: Vec<&str> = modules.into_iter().filter(is_left_out).collect();
    assert!(left_out.is_empty(), "in none of the guests of ALL, nor in ELSEWHERE: {left_out:?}");
}

/// For whoever asks for it: `HOIST_GUEST_TESTS=all`. Other words choose tests, in a guest that has what they call. What a
/// test misses there it says, under its name in what is printed.
#[test]
fn all_of_runtime_and_shim_is_no_different_with_version_2_only() {
    match chosen().as_deref() {
        Some("all") => {
            // Whatever becomes of one, the others run.
            let attempt =
                |tests: &&[&str]| attempt(GuestKind::Furnished, &[&["--show-output"], *tests].concat());
            let failed: Vec<String> = ALL.iter().filter_map(|tests| attempt(tests).err()).collect();
            assert!(failed.is_empty(), "{}", failed.join("\n"));
        }
        Some("power") | None => println!("skipped: HOIST_GUEST_TESTS=all asks for it"),
        Some(words) => pass(GuestKind::Furnished, &words.split_whitespace().collect::<Vec<_>>()),
    }
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

/// What few machines have, and a kernel can do by software.
#[test]
fn a_host_with_rdma_limits_it() {
    pass_in(GuestKind::Rdma, &["cgroups::resources_of_rdma_are_limited"]);
}

/// There layers are archives that are mounted, which the kernel of the others cannot, and fs-verity, which the host may
/// not have. And processors that have nothing to do but help a pull.
#[test]
fn a_younger_kernel_watches_over_layers_and_helps_pulls() {
    pass_in(GuestKind::Younger, &["verity::", "memory::a_pull_that_is_helped_takes_bounded_memory"]);
}

/// Minutes on an emulated processor, and so by choice alone. What it is at is printed as it goes.
#[test]
fn a_kernel_that_watches_over_files_does_so_after_a_power_cut() {
    if chosen().as_deref() != Some("power") {
        println!("skipped: takes minutes; HOIST_GUEST_TESTS=power runs it");
        return;
    }
    pass(GuestKind::Younger, &["--nocapture", "power::watched::"]);
}

/// What somebody asks for instead of what runs in CI.
fn chosen() -> Option<String> {
    std::env::var("HOIST_GUEST_TESTS").ok().filter(|words| !words.trim().is_empty())
}

/// These, or those that somebody has chosen.
fn pass_in(kind: GuestKind, tests: &[&str]) {
    match chosen().as_deref() {
        Some("all" | "power") => println!("skipped: a test of its own runs what was chosen"),
        Some(words) => pass(kind, &words.split_whitespace().collect::<Vec<_>>()),
        None => pass(kind, tests),
    }
}

fn pass(kind: GuestKind, tests: &[&str]) {
    if let Err(failure) = attempt(kind, tests) {
        panic!("{failure}");
    }
}

/// What went wrong with these tests in a guest of this kind. Prints what they print.
fn attempt(kind: GuestKind, tests: &[&str]) -> Result<(), String> {
    // An emulated processor is slow enough with a whole one to itself.
    static ALONE: Mutex<()> = Mutex::new(());
    let _alone = ALONE.lock();
    let program = std::env::current_exe().expect("the test program has a path");
    let arguments: Vec<&str> = ["--test-threads=2"].iter().chain(tests).copied().collect();
    let guest = Guest {
        kind,
        program: &program,
        arguments: &arguments,
        programs: &["ctr", "containerd", "docker-registry"].map(|name| Path::new("/usr/bin").join(name)),
        images: &[images::busybox(), images::busybox_archive()],
    };
    let outcome = guest.run();
    if outcome.code != Some(0) {
        let (console, output) = (outcome.console, outcome.output);
        return Err(format!("\n--- console of the guest\n{console}\n--- output in the guest\n{output}"));
    }
    println!("{}", outcome.output);
    // A filter that hits nothing passes too.
    let is_passed = |line: &&str| line.starts_with("test ") && line.ends_with("... ok");
    let passed: Vec<&str> = outcome.output.lines().filter(is_passed).collect();
    let is_filter = |at: &usize| !tests[*at].starts_with("--") && (*at == 0 || tests[*at - 1] != "--skip");
    let mut filters = (0..tests.len()).filter(is_filter).map(|at| tests[at]);
    match filters.find(|word| !passed.iter().any(|line| line.contains(word))) {
        Some(word) => Err(format!("no test of {word} ran\n{}", outcome.output)),
        None => Ok(()),
    }
}
