//! Mounts of kinds that programs carry out: `fuse.PROGRAM` and `fuse3.PROGRAM`, by mount.fuse(8).
//!
//! The program goes on beside us as long as what it shows is mounted, and sees by itself when that is over.

use std::io::{Read, Seek};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use linux::process::PidFd;
use rustix::fs::{MemfdFlags, memfd_create};
use types::{Context, Error, Mount, Result};

/// What kinds begin with, and who mounts them.
const HELPERS: [(&str, &str); 2] = [("fuse.", "mount.fuse"), ("fuse3.", "mount.fuse3")];
/// Bytes that are shown of what a program complains about.
const WORDS_LEN: u64 = 1000;
/// How long a program may take to mount.
const MOUNT_LIMIT: Duration = Duration::from_secs(60);

/// The program that mounts this kind, and the program that it is to start.
fn helper(kind: &str) -> Option<(&'static str, &str)> {
    HELPERS.iter().find_map(|(prefix, helper)| Some((*helper, kind.strip_prefix(prefix)?)))
}

pub(crate) fn is_fuse(kind: &str) -> bool {
    helper(kind).is_some()
}

/// Has a program show something at `point`. It is mounted when this returns. `DeadlineExceeded` if it does not go into
/// the background in time.
pub(crate) fn mount(mount: &Mount, point: &Path) -> Result<()> {
    let (helper, program) = helper(&mount.kind).expect("asked for kinds of FUSE only");
    let what = || format!("run {helper}");
    // A file: who stays may hold on to it, and a pipe would never end.
    let said: OwnedFd =
        memfd_create("hoist-mount", MemfdFlags::CLOEXEC).map_err(std::io::Error::from).context(what)?;
    let mut said = std::fs::File::from(said);
    let output = || said.try_clone().map(Stdio::from).context(what);
    let mut command = Command::new(helper);
    command.arg(&mount.source).arg(point);
    for option in &mount.options {
        command.arg("-o").arg(option);
    }
    command.arg("-t").arg(program).stdin(Stdio::null()).stdout(output()?).stderr(output()?);
    let mut child = command.spawn().map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => {
            Error::failed_precondition(format!("{helper} is not installed, or not in PATH"))
        }
        kind => Error::new(kind.into(), what()).with_source(error),
    })?;
    let process = PidFd::open(child.id())?;
    if !linux::process::wait_readable(process.as_fd(), Some(MOUNT_LIMIT)).context(what)? {
        process.end();
        child.wait().context(what)?;
        return Err(Error::deadline_exceeded(format!(
            "{helper}: {program} did not mount within {} s and was killed",
            MOUNT_LIMIT.as_secs()
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
