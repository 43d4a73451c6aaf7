//! Process creation beyond `std::process`: with descriptors under fixed numbers, in the foreground of a terminal, or
//! with no signal blocked.
#![expect(unsafe_code, reason = "descriptors and groups are put in place between fork and exec")]

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};

/// Runs `command` with each descriptor under its number. Numbers are 3 or higher, and occur once each. No signal is
/// blocked in it.
pub fn with_descriptors(mut command: Command, descriptors: Vec<(OwnedFd, RawFd)>) -> io::Result<Child> {
    assert!(descriptors.iter().all(|(_, number)| *number > 2), "0, 1 and 2 are set by Command");
    let above = descriptors.iter().map(|(_, number)| number + 1).max().unwrap_or(3);
    // Moved above all target numbers, so that no dup2 closes a descriptor that is still needed.
    let moved = descriptors
        .iter()
        .map(|(fd, number)| Ok((duplicate_above(fd, above)?, *number)))
        .collect::<io::Result<Vec<_>>>()?;
    // SAFETY: the closure runs in the child between fork and exec and calls only functions that are
    // async-signal-safe; it allocates nothing, since an error of that kind carries a number only.
    unsafe {
        command.pre_exec(move || {
            unblock_all();
            for (fd, number) in &moved {
                if libc::dup2(fd.as_raw_fd(), *number) < 0 {
                    return Err(io::Error::last_os_error());
                }
            }
            Ok(())
        });
    }
    command.spawn()
}

/// Runs `command` in its own process group, the foreground one if standard input is the controlling terminal: typed
/// input, and the signals of its keys, reach it and not the caller. No signal is blocked in it.
pub fn in_foreground(mut command: Command) -> io::Result<Child> {
    // SAFETY: the closure runs in the child between fork and exec, and calls only functions that are
    // async-signal-safe (signal-safety(7)); it allocates nothing. The set is initialised before it is read.
    unsafe {
        command.pre_exec(|| {
            if libc::setpgid(0, 0) < 0 {
                return Err(io::Error::last_os_error());
            }
            // A background process that takes the foreground is stopped by SIGTTOU (tcsetpgrp(3)).
            let mut set = std::mem::zeroed::<libc::sigset_t>();
            libc::sigemptyset(&raw mut set);
            libc::sigaddset(&raw mut set, libc::SIGTTOU);
            libc::sigprocmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut());
            // Fails without a terminal, which has no foreground.
            libc::tcsetpgrp(0, libc::getpid());
            // Drops the caller's signal mask.
            unblock_all();
            Ok(())
        });
    }
    command.spawn()
}

/// Makes a program start with no signal blocked: it would inherit the caller's mask (signal(7)), which few programs
/// reset.
pub fn unblock_signals(command: &mut Command) {
    // Without a closure between fork and exec the standard library uses a faster way.
    if !has_blocked() {
        return;
    }
    // SAFETY: the closure runs in the child between fork and exec, calls only functions that are async-signal-safe, and
    // allocates nothing.
    unsafe {
        command.pre_exec(|| {
            unblock_all();
            Ok(())
        });
    }
}

/// Whether the calling thread blocks any signal.
fn has_blocked() -> bool {
    // SAFETY: the set is initialised before it is read, and lives across the calls; without a new set nothing is changed.
    unsafe {
        let mut blocked = std::mem::zeroed::<libc::sigset_t>();
        libc::sigemptyset(&raw mut blocked);
        libc::sigprocmask(libc::SIG_BLOCK, std::ptr::null(), &raw mut blocked);
        (1..=64).any(|signal| libc::sigismember(&raw const blocked, signal) == 1)
    }
}

/// Unblocks all signals of the calling thread. Async-signal-safe (signal-safety(7)).
fn unblock_all() {
    // SAFETY: the set is initialised before it is read, and lives across the call.
    unsafe {
        let mut none = std::mem::zeroed::<libc::sigset_t>();
        libc::sigemptyset(&raw mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut());
    }
}

fn duplicate_above(fd: &OwnedFd, above: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: fcntl with F_DUPFD_CLOEXEC reads no memory; what it returns is new and nobody else's.
    unsafe {
        let duplicate = libc::fcntl(fd.as_raw_fd(), libc::F_DUPFD_CLOEXEC, above);
        if duplicate < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(OwnedFd::from_raw_fd(duplicate))
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::process::ExitStatusExt;

    use super::*;

    #[test]
    fn a_program_in_the_foreground_leads_its_group() {
        let mut command = Command::new("sh");
        // The fifth field is the group (proc(5)); the name in brackets has no blank.
        command.args(["-c", "read -r _ _ _ _ group _ < /proc/$$/stat; test $group = $$ && kill $$"]);
        // In a thread of its own, as the mask is inherited.
        let end = std::thread::spawn(|| {
            let _blocked = crate::signal::forwarded_signals().unwrap();
            in_foreground(command).unwrap().wait().unwrap()
        });
        assert_eq!(end.join().unwrap().signal(), Some(libc::SIGTERM));
    }

    /// Their caller has signals blocked, as the shim, and the runtime in the foreground.
    #[test]
    fn a_program_begins_with_no_signal_blocked() {
        let ended = |start: fn(Command) -> io::Result<Child>| {
            let mut command = Command::new("sh");
            command.args(["-c", "kill $$"]);
            // In a thread of its own, as the mask is inherited.
            let end = std::thread::spawn(move || {
                let _blocked = crate::signal::forwarded_signals().unwrap();
                start(command).unwrap().wait().unwrap()
            });
            end.join().unwrap().signal()
        };
        let plain = |mut command: Command| {
            unblock_signals(&mut command);
            command.spawn()
        };
        assert_eq!(ended(plain), Some(libc::SIGTERM));
        let with_one = |command| with_descriptors(command, vec![(io::pipe()?.1.into(), 3)]);
        assert_eq!(ended(with_one), Some(libc::SIGTERM));
    }

    #[test]
    fn a_program_finds_its_descriptors_under_their_numbers() {
        let (reader, writer) = io::pipe().unwrap();
        let (mut output, theirs) = io::pipe().unwrap();
        let mut command = Command::new("sh");
        command.args(["-c", "cat <&4 >&3"]);
        let mut child = with_descriptors(command, vec![(theirs.into(), 3), (reader.into(), 4)]).unwrap();
        let mut writer = writer;
        writer.write_all(b"through").unwrap();
        drop(writer);
        assert!(child.wait().unwrap().success());
        let mut text = String::new();
        output.read_to_string(&mut text).unwrap();
        assert_eq!(text, "through");
    }
}
