//! FUSE mounts: the types `fuse.PROGRAM` and `fuse3.PROGRAM`, mounted by mount.fuse(8).
//!
//! The program runs in the background while its file system is mounted, and ends by itself after the unmount.

use std::io::{Read, Seek};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use linux::process::PidFd;
use rustix::fs::{MemfdFlags, memfd_create};
use types::{Context, Error, Mount, Result};

/// Prefixes of mount types, and the programs that mount them.
const HELPERS: [(&str, &str); 2] = [("fuse.", "mount.fuse"), ("fuse3.", "mount.fuse3")];
/// Most bytes of a program's output that an error shows.
const WORDS_LEN: u64 = 1000;
/// Longest time that a program may take to mount.
const MOUNT_LIMIT: Duration = Duration::from_secs(60);

/// The mount program for a type, and the FUSE program that it starts.
fn helper(kind: &str) -> Option<(&'static str, &str)> {
    HELPERS.iter().find_map(|(prefix, helper)| Some((*helper, kind.strip_prefix(prefix)?)))
}

pub(crate) fn is_fuse(kind: &str) -> bool {
    helper(kind).is_some()
}

/// Mounts a FUSE file system at `point`. `DeadlineExceeded` if its program does not go into the background in time,
/// `FailedPrecondition` if it fails or is not installed.
pub(crate) fn mount(mount: &Mount, point: &Path) -> Result<()> {
    mount_within(mount, point, MOUNT_LIMIT)
}

fn mount_within(mount: &Mount, point: &Path, limit: Duration) -> Result<()> {
    if !mount.target.is_empty() {
        return Err(Error::invalid_argument(format!(
            "{} on {:?} below its point: nothing is there yet; leave the target empty",
            mount.kind, mount.target
        )));
    }
    let (helper, program) = helper(&mount.kind).expect("asked for kinds of FUSE only");
    let what = || format!("run {helper}");
    // Not a pipe: the background program keeps its output open, so that reading a pipe would not end.
    let said: OwnedFd =
        memfd_create("hoist-mount", MemfdFlags::CLOEXEC).map_err(std::io::Error::from).context(what)?;
    let mut said = std::fs::File::from(said);
    let output = || said.try_clone().map(Stdio::from).context(what);
    let mut command = Command::new(helper);
    command.arg(&mount.source).arg(point);
    for option in &mount.options {
        command.arg("-o").arg(option);
    }
    command.process_group(0).arg("-t").arg(program).stdin(Stdio::null()).stdout(output()?).stderr(output()?);
    let mut child = command.spawn().map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => {
            Error::failed_precondition(format!("{helper} is not installed, or not in PATH"))
        }
        kind => Error::new(kind.into(), what()).with_source(error),
    })?;
    let process = PidFd::open(child.id())?;
    if !linux::process::wait_readable(process.as_fd(), Some(limit)).context(what)? {
        // The program is a child of the helper.
        linux::process::kill_group(child.id());
        process.end();
        return Err(Error::deadline_exceeded(format!(
            "{helper}: {program} did not mount within {} s and was killed",
            limit.as_secs()
        )));
    }
    let status = child.wait().context(what)?;
    if status.success() {
        return Ok(());
    }
    let mut words = Vec::new();
    said.rewind().and_then(|()| said.take(WORDS_LEN).read_to_end(&mut words)).context(what)?;
    let words = String::from_utf8_lossy(&words).trim().replace('\n', "; ");
    Err(Error::failed_precondition(format!("{helper}: {program}: {status}: {words}")))
}

#[cfg(test)]
mod tests {
    use types::ErrorKind;

    use super::*;

    /// Mounts with a program that runs this script.
    fn mounted_by(script: &str, target: &str) -> Result<()> {
        let folder = tempfile::tempdir().unwrap();
        let program = folder.path().join("program");
        testkit::executable(&program, &format!("#!/bin/sh\n{script}\n"));
        let mount = Mount {
            kind: format!("fuse.{}", program.display()),
            source: "source".into(),
            target: target.into(),
            options: Vec::new(),
        };
        mount_within(&mount, folder.path(), Duration::from_secs(2))
    }

    #[test]
    fn a_fuse_program_that_does_not_mount_is_killed_or_its_output_is_shown() {
        if Command::new("mount.fuse").stderr(Stdio::null()).status().is_err() {
            println!("skipped: mount.fuse is not installed");
            return;
        }
        let note = tempfile::NamedTempFile::new().unwrap();
        let hangs = format!("echo $$ > {}; exec sleep 1000", note.path().display());
        let error = mounted_by(&hangs, "").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::DeadlineExceeded, "{}", error.chain());
        let pid: u32 = std::fs::read_to_string(note.path()).unwrap().trim().parse().unwrap();
        let ends =
            |process: PidFd| linux::process::wait_readable(process.as_fd(), Some(MOUNT_LIMIT)).unwrap();
        assert!(PidFd::open(pid).map_or_else(|error| error.is(ErrorKind::NotFound), ends), "it goes too");
        let error = mounted_by("echo what is missing >&2; exit 3", "").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::FailedPrecondition);
        assert!(error.chain().contains("what is missing"), "{}", error.chain());
    }

    #[test]
    fn a_target_below_an_empty_point_is_refused() {
        assert_eq!(mounted_by("exit 0", "below").unwrap_err().kind(), ErrorKind::InvalidArgument);
    }
}
