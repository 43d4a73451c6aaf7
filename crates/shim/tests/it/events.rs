//! Events to a daemon that comes and goes.

use crate::fixture::{self, Config, Events, Shim, is_possible};

#[test]
fn a_daemon_that_was_away_gets_all_events_in_order() {
    if !is_possible() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let config = Config::sh("exit 4");
    let mut shim = Shim::start_in(&config, directory, Events::default());
    shim.create(&config, ["", "", ""]);
    shim.start_process("");
    assert_eq!(shim.wait(""), 4);

    let events = Events::listen(&shim.directory.path().join("d.sock.ttrpc"));
    // What a daemon does first when it is back.
    drop(ttrpc::Blocking::connect(&shim.address).unwrap());
    let exit = events.wait_for_exit(&shim.id);
    assert_eq!(exit.exit_status, 4);
    assert_eq!(events.topics(), ["/tasks/create", "/tasks/start", "/tasks/exit"]);
    shim.finish();
}

#[test]
fn events_of_a_shim_that_died_too_are_sent_by_delete() {
    if !is_possible() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let config = Config::sh("exit 4");
    let mut shim = Shim::start_in(&config, directory, Events::default());
    shim.create(&config, ["", "", ""]);
    shim.start_process("");
    assert_eq!(shim.wait(""), 4);
    let spill = shim.bundle().join("events");
    testkit::eventually("events on disk", || spill.exists().then_some(()));
    fixture::kill(shim.pid);

    let events = Events::listen(&shim.directory.path().join("d.sock.ttrpc"));
    assert_eq!(shim.delete_orphan().exit_status, 4);
    assert_eq!(events.wait_for_exit(&shim.id).exit_status, 4);
}
