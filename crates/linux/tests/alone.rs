//! A single-threaded process can be copied, also right after other threads have ended. A program without the test
//! harness, whose threads would prevent that.

use linux::process::{ExitStatus, PidFd, run_in_copy};

/// About one in 1500 joined threads is still counted by the kernel.
const ROUNDS: usize = 5000;

fn main() {
    for round in 0..ROUNDS {
        std::thread::spawn(|| ()).join().expect("it does nothing");
        let copy = run_in_copy(&[], Box::new(|| ())).unwrap_or_else(|error| panic!("round {round}: {error}"));
        let copy = PidFd::open(copy).expect("nobody else waits for it");
        assert_eq!(copy.wait().expect("it ends"), ExitStatus::Code(0));
    }
}
