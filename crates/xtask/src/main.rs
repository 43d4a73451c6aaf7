//! `cargo xtask`: builds, tests, checks and benchmarks of this repository.
//!
//! ```text
//! build    the product: static shim and hello, then hoist with both embedded
//! run      build, then `hoist run --rm hello` (or the words that follow)
//! test     all tests: unit, contract and system, as root; those about layers with both storage formats of layers
//! check    format, lints, walls: needs no root
//! ci       check and test
//! bench    build, then measure Hoist beside the other runtimes in PATH
//! soak     build, then run a heavy load and check that nothing grows (containers=N execs=N log=MB together=N)
//! api      write docs/api.md: every call and its tests (see `api`)
//! config   write docs/config.md: every key of the daemon's configuration
//! fuzz     feed the parsers of untrusted bytes with generated input (see `fuzz`)
//! ```
//!
//! If a program is missing, xtask names it and the command that installs it.

use std::env;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

mod api;
#[cfg(test)]
mod conformance;
mod fuzz;
#[cfg(test)]
mod links;
mod packages;
mod testing;
#[cfg(test)]
mod tidy;
#[cfg(test)]
mod walls;

/// The target of the static programs: musl if it is installed; otherwise glibc, linked statically, which works the same
/// and is larger.
const MUSL: &str = "x86_64-unknown-linux-musl";

/// The number of tests that run at once, if the user sets it (`rustc --test`).
const THREADS: &str = "RUST_TEST_THREADS";

const WORTH_TELLING: Duration = Duration::from_secs(10);

fn main() -> ExitCode {
    let args: Vec<String> = env::args().skip(1).collect();
    let (task, rest) = match args.split_first() {
        Some((task, rest)) => (task.as_str(), rest),
        None => ("help", &[][..]),
    };
    let outcome = match task {
        "build" => build().map(|_| ()),
        "run" => run(rest),
        "test" => test(rest),
        "check" => check(),
        "ci" => check_style().and_then(|()| test(rest)),
        "bench" => bench(rest),
        "soak" => bench(&[&["soak".to_owned()], rest].concat()),
        "api" => api::write(),
        "config" => config(),
        "fuzz" => fuzz::fuzz(rest),
        _ => Err("usage: cargo xtask build | run [HOIST ARGS] | test [CARGO TEST ARGS] | check | ci | bench | soak | \
                  api | config | fuzz [seconds=N] [TARGET…]"
            .into()),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("xtask {task}: {message}");
            ExitCode::FAILURE
        }
    }
}

type Outcome<T = ()> = Result<T, String>;

fn workspace_root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).expect("crates/xtask is two levels deep").into()
}

fn target_dir() -> PathBuf {
    env::var_os("CARGO_TARGET_DIR").map_or_else(|| workspace_root().join("target"), PathBuf::from)
}

/// Builds `hoist` with the shim and `hello` embedded, and returns its path.
fn build() -> Outcome<PathBuf> {
    packages::need("cc", "gcc", "a C compiler and linker")?;
    let target = static_target();
    let mut small = cargo("build");
    small.args(["--profile", "shim", "--package", "shim", "--package", "hello", "--target", target]);
    if target != MUSL {
        small.env("RUSTFLAGS", "-C target-feature=+crt-static");
    }
    step("build the shim and hello", &mut small)?;

    let built = target_dir().join(target).join("shim");
    let mut hoist = cargo("rustc");
    hoist.args(["--release", "--package", "hoist", "--bin", "hoist"]);
    if has_static_libc() {
        // Link the C library statically: one file runs on every distribution, and starts without a dynamic loader.
        hoist.args(["--", "-C", "target-feature=+crt-static"]);
    }
    hoist
        .env("HOIST_SHIM", built.join("containerd-shim-hoist-v2"))
        .env("HOIST_HELLO", built.join("hoist-hello"));
    step("build hoist", &mut hoist)?;
    Ok(target_dir().join("release/hoist"))
}

fn static_target() -> &'static str {
    let sysroot = Command::new("rustc").args(["--print", "sysroot"]).output();
    let sysroot =
        sysroot.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned()).unwrap_or_default();
    let installed = || Path::new(&sysroot).join("lib/rustlib").join(MUSL).is_dir();
    if installed() {
        return MUSL;
    }
    // A failure is no error: without rustup or network, glibc serves.
    let _ = Command::new("rustup").args(["target", "add", MUSL]).status();
    if installed() { MUSL } else { "x86_64-unknown-linux-gnu" }
}

/// Whether the static C library is installed: Debian has `libc.a` with the headers, Fedora in a package of its own.
fn has_static_libc() -> bool {
    let found = Command::new("cc").arg("-print-file-name=libc.a").output();
    // If `cc` does not find the file, it prints the bare name.
    found.is_ok_and(|found| String::from_utf8_lossy(&found.stdout).contains('/'))
}

fn run(words: &[String]) -> Outcome {
    packages::need_root("run containers")?;
    let hoist = build()?;
    let hello = ["run", "--rm", "hello"].map(String::from);
    let words = if words.is_empty() { &hello[..] } else { words };
    step("run", Command::new(hoist).args(words))
}

fn test(filter: &[String]) -> Outcome {
    packages::need_root("run the system tests")?;
    packages::need_for_tests()?;
    let hoist = build()?;
    // The system tests run the same program that users get.
    let tests = |words: &[&str]| {
        let mut tests = cargo_test();
        if !testing::names_packages(words) {
            tests.arg("--workspace");
        }
        if !testing::names_targets(words) {
            // Without documentation tests: there are none, and the search for them takes a minute. `--all-targets` would
            // compile each program once more, as a test program, if it has no tests either, and for `hoist` without
            // optimizations all that is in it.
            tests.arg("--tests");
        }
        tests.arg("--no-fail-fast").args(words).env("HOIST_BIN", &hoist);
        tests
    };
    if !filter.is_empty() {
        let words: Vec<&str> = filter.iter().map(String::as_str).collect();
        let selected = testing::selection(&words);
        let again = |failed: &[&str]| tests(&testing::alone(&selected, failed));
        let flaky = testing::run("run the tests", &mut [("run the tests", tests(&words))], again)?;
        println!("\n==== {}", flaky.verdict());
        return Ok(());
    }
    // Before any runs, so that none waits for the other's build.
    step("build the tests", &mut tests(&["--no-run"]))?;
    let mut side_by_side = [
        ("run the tests in guests", tests(&["--test", "it", "--", GUESTS, "--test-threads=1"])),
        ("run the tests on this host", tests(&["--", "--skip", GUESTS])),
    ];
    let again = |failed: &[&str]| tests(&testing::alone(&[], failed));
    let flaky = testing::run("run the tests", &mut side_by_side, again)?;
    let more = test_directories(&hoist).map_err(|error| format!("{error}; before: {}", flaky.verdict()))?;
    println!("\n==== {}", flaky.and(more).verdict());
    Ok(())
}

/// The module of system tests that run in virtual machines, one after another. Each takes minutes. Among the others they
/// would take all threads of their program, of which one runs a test and the rest wait for it.
const GUESTS: &str = "guest::";

/// Modules of system tests that depend on the storage format of layers.
const ABOUT_LAYERS: &[&str] = &["images::", "commit::", "copy::", "lifecycle::", "gc::", "volumes::"];

/// Runs those tests with layers unpacked to directories, as on kernels that cannot mount layer archives.
fn test_directories(hoist: &Path) -> Outcome<testing::Flaky> {
    let tests = |words: &[&str]| {
        let mut tests = cargo_test();
        tests.arg("--no-fail-fast").args(words);
        tests.env("HOIST_BIN", hoist).env("HOIST_TEST_LAYERS", "directories");
        tests
    };
    let what = "run the tests about layers on directories";
    // Select from the whole workspace: built alone, the package's dependencies have fewer features and are compiled
    // anew.
    let selected = ["--workspace", "--test", "it"];
    let words = [&selected[..], &["--"], ABOUT_LAYERS].concat();
    testing::run(what, &mut [(what, tests(&words))], |failed| tests(&testing::alone(&selected, failed)))
}

fn check() -> Outcome {
    check_style()?;
    step("check the walls", cargo("test").args(["--package", "xtask"]))
}

/// Checks format, lints and dependencies. The walls are checked by unit tests, which `test` runs too.
fn check_style() -> Outcome {
    step("check the format", cargo("fmt").args(["--all", "--check"]))?;
    step("lint", cargo("clippy").args(["--workspace", "--all-targets", "--", "--deny", "warnings"]))?;
    if packages::in_path("cargo-deny") {
        step("check the dependencies", cargo("deny").args(["check", "bans", "licenses", "sources"]))?;
        // The advisory database is remote. A machine without network access must not fail for that.
        match step("fetch what is known of vulnerabilities", cargo("deny").args(["fetch", "db"])) {
            Ok(()) => step("look for vulnerabilities", cargo("deny").args(["check", "advisories"]))?,
            Err(error) => println!("skipped: vulnerabilities of dependencies are not looked for: {error}"),
        }
    } else {
        println!("skipped: cargo-deny is not installed (cargo install cargo-deny)");
    }
    Ok(())
}

/// Writes `docs/config.md`. The daemon knows the keys and their defaults, so its own test writes the page that it
/// checks.
fn config() -> Outcome {
    let mut test = cargo("test");
    test.args(["--package", "daemon", "--lib", "config::page::"]).env("HOIST_WRITE_PAGE", "1");
    step("write docs/config.md", &mut test)
}

fn bench(args: &[String]) -> Outcome {
    packages::need_root("measure containers")?;
    let hoist = build()?;
    step("build the benchmark", cargo("build").args(["--release", "--package", "bench"]))?;
    step("measure", Command::new(target_dir().join("release/bench")).args(args).env("HOIST_BIN", hoist))
}

fn cargo(verb: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.arg(verb).current_dir(workspace_root());
    command
}

/// `cargo test` with the signal dispositions of a shell. Some callers ignore signals, which children inherit (Python
/// two, `nohup` one), and tests check how programs react to signals.
fn cargo_test() -> Command {
    let cargo = cargo("test");
    let mut command = Command::new("env");
    command
        .arg("--default-signal")
        .arg(cargo.get_program())
        .args(cargo.get_args())
        .current_dir(workspace_root())
        // Missing programs have been reported before (`packages`).
        .env(stdx::testing::NO_SKIP, "1");
    if env::var_os(THREADS).is_none() {
        // System tests spend half of their time waiting for disks and processes.
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        command.env(THREADS, (2 * processors).to_string());
    }
    command
}

fn step(what: &str, command: &mut Command) -> Outcome {
    let begun = Instant::now();
    let status = command.status().map_err(|error| format!("{what}: cannot start {command:?}: {error}"))?;
    tell_time(what, begun);
    if status.success() { Ok(()) } else { Err(format!("{what}: {status}")) }
}

/// Prints how long a step took, if it was long, so that slow steps are noticed.
fn tell_time(what: &str, begun: Instant) {
    let took = begun.elapsed();
    if took >= WORTH_TELLING {
        eprintln!("==== {what}: {} s", took.as_secs());
    }
}
