//! External programs that accept or reject an image, by containerd's protocol for image verifiers (`bindir`).
//!
//! ```text
//! PROGRAM -name NAME -digest DIGEST -stdin-media-type application/vnd.oci.descriptor.v1+json
//!     stdin   the image's descriptor as JSON
//!     exit    0 to accept; anything else rejects
//!     stdout  the reason
//! ```
//!
//! The programs of a directory run one after another, in the order of their names; all must accept. A program that
//! cannot be started, or times out, rejects. A missing or empty directory accepts; one that cannot be read in time
//! rejects.

use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, Command};
use types::{Context, Descriptor, Error, Result};

const DESCRIPTOR_TYPE: &str = "application/vnd.oci.descriptor.v1+json";
/// Bytes of a reason that are kept; the rest of the output is discarded.
const REASON_LEN_MAX: usize = 16 * 1024;

/// The directory of verifier programs, and their limits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verifiers {
    /// May be on a slow network file system.
    pub directory: PathBuf,
    /// How many programs run at most, in the order of their names. `None` for all.
    pub count_max: Option<usize>,
    pub timeout: Duration,
}

impl Verifiers {
    /// Runs these programs. `PermissionDenied`, naming the program and its reason, if one rejects.
    pub async fn check(&self, programs: &[PathBuf], name: &str, image: &Descriptor) -> Result<()> {
        for program in programs {
            self.ask(program, name, image).await?;
        }
        Ok(())
    }

    /// The programs to run, in order. Blocks on the directory: see [`Reader`](crate::Reader).
    pub(crate) fn read(&self) -> Result<Vec<PathBuf>> {
        let what = || format!("read the image verifiers in {}", self.directory.display());
        let entries = match std::fs::read_dir(&self.directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.context(what)?,
        };
        let mut programs = Vec::new();
        for entry in entries {
            programs.push(entry.context(what)?.path());
        }
        programs.sort();
        programs.truncate(self.count_max.unwrap_or(usize::MAX));
        Ok(programs)
    }

    async fn ask(&self, program: &Path, name: &str, image: &Descriptor) -> Result<()> {
        let shown = program.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let denied = |why: String| {
            Error::permission_denied(format!("the image verifier {shown:?} does not let {name} in: {why}"))
        };
        let child = Command::new(program)
            .args(["-name", name, "-digest", &image.digest.to_string()])
            .args(["-stdin-media-type", DESCRIPTOR_TYPE])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .kill_on_drop(true)
            .spawn();
        let child = child.map_err(|error| denied("it cannot be started".into()).with_source(error))?;
        let mut group = Group(child);
        let descriptor = serde_json::to_vec(image).expect("plain data");
        let answered = tokio::time::timeout(self.timeout, converse(&mut group, &descriptor)).await;
        let (status, reason) = answered
            .map_err(|_| denied(format!("it gave no answer within {:?}", self.timeout)))?
            .map_err(|error| denied("its input or output failed".into()).with_source(error))?;
        if status.success() {
            return Ok(());
        }
        let reason = String::from_utf8_lossy(&reason).trim().replace(char::is_control, " ");
        Err(denied(format!("{status}: {reason}")))
    }
}

/// A program that leads a process group, which is killed when this is dropped before the program was reaped.
struct Group(Child);

impl Drop for Group {
    fn drop(&mut self) {
        // `None` once reaped. A zombie keeps its pid until then, so the signal cannot hit another process.
        if let Some(group) = self.0.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw) {
            let _ = kill_process_group(group, Signal::KILL);
        }
    }
}

/// Writes the descriptor, reads the output to its end, and waits for the program.
async fn converse(
    Group(child): &mut Group,
    descriptor: &[u8],
) -> io::Result<(std::process::ExitStatus, Vec<u8>)> {
    let mut stdin = child.stdin.take().expect("piped");
    let (stdout, stderr) = (child.stdout.take().expect("piped"), child.stderr.take().expect("piped"));
    let feed = async {
        // A program may decide without reading its input.
        let _ = stdin.write_all(descriptor).await;
        drop(stdin);
    };
    let ((), said, complained) = tokio::join!(feed, read_some(stdout), read_some(stderr));
    let status = child.wait().await?;
    let mut reason = said?;
    // Some programs report the reason on stderr.
    if reason.iter().all(u8::is_ascii_whitespace) {
        reason = complained?;
    }
    Ok((status, reason))
}

/// Reads to the end, and keeps the first [`REASON_LEN_MAX`] bytes.
async fn read_some(mut from: impl AsyncRead + Unpin) -> io::Result<Vec<u8>> {
    let mut kept = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        let len = from.read(&mut buffer).await?;
        if len == 0 {
            return Ok(kept);
        }
        let room = REASON_LEN_MAX - kept.len();
        kept.extend_from_slice(&buffer[..len.min(room)]);
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{BufRead, BufReader};

    use tempfile::TempDir;
    use types::{Digest, ErrorKind};

    use super::*;

    const NAME: &str = "quay.io/team/app:1";

    fn check(programs: &[(&str, &str)], count_max: Option<usize>) -> Result<TempDir> {
        let dir = TempDir::new().unwrap();
        for (name, script) in programs {
            let path = dir.path().join(name);
            testkit::executable(&path, &format!("#!/bin/sh\ncd {}\n{script}\n", dir.path().display()));
        }
        let verifiers =
            Verifiers { directory: dir.path().into(), count_max, timeout: Duration::from_secs(20) };
        let image = Descriptor::new("application/x", Digest::of(b"image"), 5);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(verifiers.check(&verifiers.read()?, NAME, &image)).map(|()| dir)
    }

    fn refused(programs: &[(&str, &str)], words: &[&str]) {
        let error = check(programs, None).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::PermissionDenied, "{error:?}");
        for word in words {
            assert!(error.chain().contains(word), "{error:?} has no {word:?}");
        }
    }

    #[test]
    fn programs_get_the_arguments_and_input_of_containerds_protocol() {
        let dir = check(&[("one", "echo \"$@\" > .arguments; cat > .input")], None).unwrap();
        let arguments = std::fs::read_to_string(dir.path().join(".arguments")).unwrap();
        let digest = Digest::of(b"image");
        assert_eq!(
            arguments.trim(),
            format!("-name {NAME} -digest {digest} -stdin-media-type {DESCRIPTOR_TYPE}")
        );
        let input: Descriptor =
            serde_json::from_slice(&std::fs::read(dir.path().join(".input")).unwrap()).unwrap();
        assert_eq!(input, Descriptor::new("application/x", digest, 5));
    }

    #[test]
    fn all_must_accept() {
        check(&[], None).unwrap();
        check(&[("a", "exit 0"), ("b", "exit 0")], None).unwrap();
        refused(&[("a", "exit 0"), ("b", "echo not today; exit 3")], &["\"b\"", NAME, "3", "not today"]);
        refused(&[("a", "echo to the wrong stream >&2; exit 1")], &["to the wrong stream"]);
        check(&[("a", "exit 0"), ("b", "exit 1")], Some(1)).unwrap();
        check(&[("b", "exit 1")], Some(0)).unwrap();
        refused(&[("a", "kill -9 $$")], &["signal: 9"]);
    }

    #[test]
    fn a_program_that_cannot_run_rejects() {
        let dir = TempDir::new().unwrap();
        std::fs::write(dir.path().join("text"), "no program").unwrap();
        let timeout = Duration::from_secs(20);
        let ask = |directory: &Path, timeout| {
            let verifiers = Verifiers { directory: directory.into(), count_max: None, timeout };
            let image = Descriptor::new("application/x", Digest::of(b"image"), 5);
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(verifiers.check(&verifiers.read()?, NAME, &image))
        };
        assert!(ask(dir.path(), timeout).unwrap_err().chain().contains("cannot be started"));
        ask(&dir.path().join("nosuch"), timeout).unwrap();

        let slow = TempDir::new().unwrap();
        testkit::executable(&slow.path().join("slow"), "#!/bin/sh\nsleep 1000 & sleep 1000\n");
        let error = ask(slow.path(), Duration::from_millis(200)).unwrap_err();
        assert!(error.message().contains("no answer within 200ms"), "{error:?}");
    }

    #[test]
    fn a_cancelled_check_kills_the_process_group_of_a_verifier() {
        let dir = TempDir::new().unwrap();
        let (program, alive) = (dir.path().join("verify"), dir.path().join("alive"));
        assert!(std::process::Command::new("mkfifo").arg(&alive).status().unwrap().success());
        let script = format!(
            "#!/bin/sh\nsh -c 'echo started; exec sleep 1000' > {} 2> /dev/null &\nsleep 1000\n",
            alive.display()
        );
        testkit::executable(&program, &script);
        let verifiers =
            Verifiers { directory: dir.path().into(), count_max: None, timeout: Duration::from_secs(60) };
        let image = Descriptor::new("application/x", Digest::of(b"image"), 5);
        // Its background child holds the write end of the pipe as long as it lives.
        let (say_started, started) = tokio::sync::oneshot::channel();
        let (say_ended, ended) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let mut lines = BufReader::new(File::open(alive).unwrap()).lines();
            assert_eq!(lines.next().unwrap().unwrap(), "started");
            say_started.send(()).unwrap();
            assert!(lines.next().is_none());
            say_ended.send(()).unwrap();
        });
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            tokio::select! {
                answered = verifiers.ask(&program, NAME, &image) => panic!("{answered:?}"),
                started = started => started.unwrap(),
            }
        });
        ended.recv_timeout(Duration::from_secs(20)).expect("all of it is killed");
    }

    #[test]
    fn a_program_that_never_stops_talking_is_cut_off() {
        let error = check(&[("a", "head -c 10000000 /dev/zero | tr '\\0' x; exit 1")], None).unwrap_err();
        assert!(error.message().len() < REASON_LEN_MAX + 1000);
        // It need not read its input either.
        check(&[("a", "exec 0<&-; exit 0")], None).unwrap();
    }
}
