//! Runs the commands of `docs/images.md`, one after another.

use std::process::Command;

use testkit::{Daemon, images, repository, run};

#[test]
fn every_line_of_the_page_works() {
    let daemon = Daemon::start();
    let work = daemon.dir().join("work");
    std::fs::create_dir_all(work.join("rootfs/etc")).expect("a writable directory");
    std::fs::write(work.join("rootfs/etc/issue"), "a root file system\n").expect("a writable directory");
    run(Command::new("tar").args(["-czf", "rootfs.tar.gz", "-C", "rootfs", "."]).current_dir(&work)).ok();
    images::archive(&images::busybox(), "docker-archive", "app:1", &work.join("app.tar"));

    let page = std::fs::read_to_string(repository().join("docs/images.md")).expect("the page is there");
    let lines: Vec<&str> = page.lines().filter_map(|line| line.strip_prefix("    ")).collect();
    assert!(lines.len() > 20, "the page has lost its lines: {lines:?}");
    let program = testkit::hoist_program();
    for line in lines {
        // `hoist` is the program under test.
        let line = format!("set -o pipefail; hoist() {{ '{}' \"$@\"; }}; {line}", program.display());
        let mut command = Command::new("bash");
        command.args(["-c", &line]).current_dir(&work).env("HOIST_ADDRESS", daemon.socket());
        run(command.stdin(std::process::Stdio::null())).ok();
    }
    // The last lines have written these files.
    for left in ["saved.tar", "saved.tar.gz", "layout/index.json", "all.tar"] {
        assert!(work.join(left).is_file(), "{left} is not there");
    }
}
