//! Starting programs with descriptors under fixed numbers, which `std::process` has no way to do.
#![expect(unsafe_code, reason = "descriptors are put in place between fork and exec")]

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};

/// Runs `command` with each descriptor under the number beside it. Numbers are 3 or higher, and
/// each occurs once.
pub fn with_descriptors(mut command: Command, descriptors: Vec<(OwnedFd, RawFd)>) -> io::Result<Child> {
    assert!(descriptors.iter().all(|(_, number)| *number > 2), "0, 1 and 2 are set by Command");
    let above = descriptors.iter().map(|(_, number)| number + 1).max().unwrap_or(3);
    // Out of the way of the numbers they will get, so that no dup2 closes one that is still needed.
    let moved = descriptors
        .iter()
        .map(|(fd, number)| Ok((duplicate_above(fd, above)?, *number)))
        .collect::<io::Result<Vec<_>>>()?;
    // SAFETY: the closure runs in the child between fork and exec and calls only dup2, which is
    // async-signal-safe; it allocates nothing, since an error of that kind carries a number only.
    unsafe {
        command.pre_exec(move || {
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

    use super::*;

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
