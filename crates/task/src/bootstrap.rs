//! Runs a shim's program: `start` leaves a shim running and prints its address, `delete` cleans up after a dead shim.
//!
//! Standard output is the result; standard error goes to the daemon's log.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::MutexGuard;
use std::time::{Duration, Instant};

use api::shim::bootstrap::{self as wire, BootstrapParams, BootstrapResult};
use api::shim::introspection;
use api::shim::task::DeleteResponse;
use prost::Message;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use serde::{Deserialize, Serialize};
use stdx::Mutex;
use types::{Context, Error, Namespace, Opaque, Result};

use crate::bundle::Bundle;
use crate::program::Program;
use crate::task::ends_soon;
use crate::{Config, Endpoint, Exit, RuntimeInfo, convert};

/// How long `start` may take. Generous for a program that executes itself twice.
const START_LIMIT: Duration = Duration::from_secs(10);
/// Longest accepted standard output of a shim's program, in bytes.
const OUTPUT_LEN_MAX: usize = 1 << 20;

/// How to reach a shim.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Bootstrap {
    /// Version of the task API: 2 or 3.
    pub(crate) version: i32,
    pub(crate) address: String,
    #[serde(default)]
    pub(crate) protocol: String,
}

impl Bootstrap {
    pub(crate) fn from_json(text: &[u8]) -> Result<Bootstrap> {
        let bootstrap: Bootstrap = serde_json::from_slice(text)
            .map_err(|error| Error::data_loss("not a bootstrap file").with_source(error))?;
        bootstrap.checked()
    }

    pub(crate) fn to_json(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("numbers and strings have a JSON form")
    }

    /// For a shim that another component, such as the sandbox controller, has started.
    pub(crate) fn at(endpoint: Endpoint) -> Result<Bootstrap> {
        let Endpoint { address, version } = endpoint;
        ttrpc::socket_path(&address)?;
        Bootstrap { version, address, protocol: "ttrpc".to_owned() }.checked()
    }

    /// Parses what `start` printed: a protobuf message (containerd 2.3), JSON (1.7), or the bare address (1.6).
    fn from_output(output: &[u8]) -> Result<Bootstrap> {
        if output.is_empty() {
            return Err(Error::unavailable("the shim's start printed no address"));
        }
        let text = std::str::from_utf8(output).map(str::trim);
        let bootstrap = match text {
            Ok(json) if json.starts_with('{') => return Bootstrap::from_json(json.as_bytes()),
            Ok(address) if address.starts_with("unix:") || address.starts_with('/') => {
                Bootstrap { version: 2, address: address.to_owned(), protocol: "ttrpc".to_owned() }
            }
            _ => {
                let result = BootstrapResult::decode(output).map_err(|error| {
                    Error::unavailable("the output of the shim's start cannot be parsed").with_source(error)
                })?;
                Bootstrap { version: result.version, address: result.address, protocol: result.protocol }
            }
        };
        bootstrap.checked()
    }

    fn checked(self) -> Result<Bootstrap> {
        match self.protocol.as_str() {
            "" | "ttrpc" => {}
            other => return Err(Error::unimplemented(format!("shims over {other:?}"))),
        }
        match self.version {
            2 | 3 => Ok(self),
            other => Err(Error::unimplemented(format!("version {other} of the task API"))),
        }
    }
}

/// Runs `start` in the bundle. Blocks.
pub(crate) fn start(
    config: &Config,
    program: &Program,
    bundle: &Bundle,
    (namespace, id): (&Namespace, &str),
    options: Option<Opaque>,
) -> Result<Bootstrap> {
    let input = match program.is_runc_shim().then(|| shim_input(program)) {
        None | Some(ShimInput::Params) => start_params(config, (namespace, id), options).encode_to_vec(),
        Some(ShimInput::Options) => {
            options.map(|options| convert::any(options).encode_to_vec()).unwrap_or_default()
        }
        Some(ShimInput::Unknown) => Vec::new(),
    };
    let mut command = command(config, program, bundle, (namespace, id));
    command.arg("start");
    Bootstrap::from_output(&run(command, &input, START_LIMIT)?)
}

/// What `start` of containerd's own shims expects on standard input. Nothing in their protocol tells which it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ShimInput {
    /// Before 2.3: the runtime options alone, or nothing. The rest is passed by arguments and environment.
    Options,
    /// 2.3 and later: bootstrap parameters, which contain the options.
    Params,
    /// Its version is not known: it gets an empty input, which any version accepts, and `start` does not see the
    /// options.
    Unknown,
}

/// Identifies a program's file: device, inode, and ctime in seconds and nanoseconds.
type Identity = (u64, u64, i64, i64);

/// Results for programs that were asked for their version.
static SHIM_INPUTS: Mutex<BTreeMap<PathBuf, (Identity, ShimInput)>> = Mutex::new(BTreeMap::new());

fn shim_inputs() -> MutexGuard<'static, BTreeMap<PathBuf, (Identity, ShimInput)>> {
    SHIM_INPUTS.lock()
}

/// Asks a program for its version, once per file identity. Blocks.
fn shim_input(program: &Program) -> ShimInput {
    // Running the program will report why it cannot be read.
    let Ok(file) = std::fs::metadata(&program.path) else { return ShimInput::Unknown };
    let identity = (file.dev(), file.ino(), file.ctime(), file.ctime_nsec());
    if let Some((of, shim_input)) = shim_inputs().get(&program.path)
        && *of == identity
    {
        return *shim_input;
    }
    let mut command = Command::new(&program.path);
    command.arg("-v").env_remove("NOTIFY_SOCKET");
    let shim_input = match run(command, &[], START_LIMIT) {
        Ok(output) => shim_input_of(&String::from_utf8_lossy(&output)),
        // Not cached, so that the program is asked again: the failure may be the host's.
        Err(error) => {
            tracing::warn!("ask {} for its version: {}", program.path.display(), error.chain());
            return ShimInput::Unknown;
        }
    };
    shim_inputs().insert(program.path.clone(), (identity, shim_input));
    shim_input
}

/// Parses the output of `-v`: the line `Version:  v2.3.4`, or `1.6.20~ds1` in a distribution's package.
fn shim_input_of(text: &str) -> ShimInput {
    let version = text.lines().find_map(|line| line.trim().strip_prefix("Version:"));
    let version = version.map_or("", |version| version.trim().trim_start_matches('v'));
    let mut numbers = version.split(|letter: char| !letter.is_ascii_digit()).map(str::parse::<u32>);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(major)), Some(Ok(minor))) if (major, minor) >= (2, 3) => ShimInput::Params,
        (Some(Ok(_)), Some(Ok(_))) => ShimInput::Options,
        _ => ShimInput::Unknown,
    }
}

/// Runs `delete`, which ends what is left of the container. Blocks.
pub(crate) fn delete(
    config: &Config,
    program: &Program,
    bundle: &Bundle,
    (namespace, id): (&Namespace, &str),
) -> Result<Exit> {
    let mut command = command(config, program, bundle, (namespace, id));
    command.arg("-bundle").arg(&bundle.path).arg("delete");
    let output = run(command, &[], config.limits.cleanup)?;
    let response = DeleteResponse::decode(output.as_slice()).map_err(|error| {
        Error::unknown("the output of the shim's delete cannot be parsed").with_source(error)
    })?;
    Ok(convert::exit(response.pid, response.exit_status, response.exited_at))
}

/// Runs `delete` where a container may never have existed. A failure counts only if our shim has noted something to
/// clean up: shims of other makers fail where there was no container. Blocks.
pub(crate) fn delete_noted(
    config: &Config,
    program: &Program,
    bundle: &Bundle,
    (namespace, id): (&Namespace, &str),
) -> Result<()> {
    match delete(config, program, bundle, (namespace, id)) {
        Err(error) if bundle.has_notes()? => Err(error),
        Err(error) => {
            tracing::debug!(%namespace, id, "shim delete: {}", error.chain());
            Ok(())
        }
        Ok(_) => Ok(()),
    }
}

/// Asks a shim's program for its runtime information (`-info`). Blocks.
pub(crate) fn info(program: &Program, options: Option<Opaque>) -> Result<RuntimeInfo> {
    let mut command = Command::new(&program.path);
    command.arg("-info").env_remove("NOTIFY_SOCKET");
    let input = options.map(|options| convert::any(options).encode_to_vec()).unwrap_or_default();
    let output = run(command, &input, START_LIMIT)?;
    let info = introspection::RuntimeInfo::decode(output.as_slice()).map_err(|error| {
        Error::unimplemented(format!("{} does not support -info", program.path.display())).with_source(error)
    })?;
    let version = info.version.unwrap_or_default();
    Ok(RuntimeInfo {
        name: info.name,
        version: version.version,
        revision: version.revision,
        options: info.options.map(convert::opaque),
        features: info.features.map(convert::opaque),
        annotations: info.annotations.into_iter().collect(),
    })
}

fn command(
    config: &Config,
    program: &Program,
    bundle: &Bundle,
    (namespace, id): (&Namespace, &str),
) -> Command {
    let mut command = Command::new(&program.path);
    command
        .current_dir(&bundle.path)
        .arg("-namespace")
        .arg(namespace.as_str())
        .arg("-address")
        .arg(&config.grpc_address)
        .arg("-publish-binary")
        .arg(&config.publisher)
        .arg("-id")
        .arg(id)
        .env("TTRPC_ADDRESS", &config.ttrpc_address)
        .env("GRPC_ADDRESS", &config.grpc_address)
        .env("NAMESPACE", namespace.as_str())
        .env("MAX_SHIM_VERSION", "2")
        .env("GOMAXPROCS", "2")
        .env_remove("NOTIFY_SOCKET")
        .envs(config.env.iter().map(|(name, value)| (name, value)));
    if config.debug {
        command.arg("-debug");
    }
    command
}

fn start_params(
    config: &Config,
    (namespace, id): (&Namespace, &str),
    options: Option<Opaque>,
) -> BootstrapParams {
    let text = |path: &Path| path.display().to_string();
    BootstrapParams {
        instance_id: id.to_string(),
        namespace: namespace.to_string(),
        log_level: if config.debug { wire::LOG_LEVEL_DEBUG } else { wire::LOG_LEVEL_INFO },
        containerd_version: config.version.clone(),
        containerd_ttrpc_address: text(&config.ttrpc_address),
        containerd_grpc_address: text(&config.grpc_address),
        containerd_binary: text(&config.publisher),
        extensions: options
            .map(|options| wire::Extension { value: Some(convert::any(options)) })
            .into_iter()
            .collect(),
        socket_dir: fits_a_socket(&config.sockets).then(|| text(&config.sockets)),
    }
}

/// Whether the path of a shim's socket in this directory fits into `sun_path`: containerd's shims name it by a hash of
/// 64 hex digits. If it does not, the shim is left to use its default directory.
fn fits_a_socket(dir: &Path) -> bool {
    const PATH_LEN_MAX: usize = 107;
    dir.as_os_str().len() + "/".len() + 64 <= PATH_LEN_MAX
}

/// Programs that were killed but have not died, because they wait inside the kernel. Reaped once they have.
static UNREAPED: Mutex<Vec<Child>> = Mutex::new(Vec::new());

/// Runs a program to its end and returns its standard output. Waits for the program, not for the end of its output: the
/// shim that it leaves running may have inherited the pipe.
fn run(mut command: Command, input: &[u8], limit: Duration) -> Result<Vec<u8>> {
    let name = command.get_program().to_string_lossy().into_owned();
    unreaped().retain_mut(|child| matches!(child.try_wait(), Ok(None)));
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context(|| format!("run {name}"))?;
    let (output, log) = match talk(&mut child, input, limit) {
        Ok(said) => said,
        Err(error) => {
            kill(child);
            return Err(error.context(format!("run {name}")));
        }
    };
    let status = child.wait().context(|| format!("wait for {name}"))?;
    let log = String::from_utf8_lossy(&log);
    let log = log.trim();
    if status.success() {
        log.lines().for_each(|line| tracing::debug!(program = name, "{line}"));
        return Ok(output);
    }
    let words = if log.is_empty() { String::from_utf8_lossy(&output) } else { log.into() };
    Err(Error::unknown(format!("{name}: {status}: {}", words.trim())))
}

/// Kills a program and reaps it, unless it waits inside the kernel.
fn kill(mut child: Child) {
    // The kill fails if the program has ended by itself, which is fine.
    let _ = child.kill();
    let is_over = pidfd(&child).is_ok_and(|pidfd| ends_soon(&pidfd));
    if !is_over || child.try_wait().is_err() {
        unreaped().push(child);
    }
}

fn unreaped() -> MutexGuard<'static, Vec<Child>> {
    UNREAPED.lock()
}

fn pidfd(child: &Child) -> Result<OwnedFd> {
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw).expect("a child has a pid");
    pidfd_open(pid, PidfdFlags::empty()).map_err(io::Error::from).context(|| "open a pidfd")
}

/// Writes the input and reads output and log until the program ends.
fn talk(child: &mut Child, input: &[u8], limit: Duration) -> Result<(Vec<u8>, Vec<u8>)> {
    let deadline = Instant::now() + limit;
    let exit = pidfd(child)?;
    let mut stdin = Some(unblocked(child.stdin.take().expect("stdin is a pipe"))?);
    let mut rest = input;
    let mut stdout = Pipe::new(child.stdout.take().expect("stdout is a pipe"))?;
    let mut stderr = Pipe::new(child.stderr.take().expect("stderr is a pipe"))?;
    let mut ended = false;
    while !ended {
        if let Some(pipe) = &mut stdin
            && !feed(pipe, &mut rest)?
        {
            stdin = None;
        }
        ended = wait(&exit, stdin.as_ref(), [&stdout, &stderr], deadline)?;
        stdout.drain()?;
        stderr.drain()?;
    }
    Ok((stdout.bytes, stderr.bytes))
}

/// Writes as much as the pipe takes now. False once everything is written.
fn feed(pipe: &mut File, rest: &mut &[u8]) -> Result<bool> {
    while !rest.is_empty() {
        match pipe.write(rest) {
            Ok(len) => *rest = &rest[len..],
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(true),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // A program need not read its input.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => break,
            Err(error) => return Err(error).context(|| "write its input"),
        }
    }
    Ok(false)
}

/// Waits until there is output, space for input, or the program ends. Returns whether it ended.
fn wait(exit: &impl AsFd, stdin: Option<&File>, pipes: [&Pipe; 2], deadline: Instant) -> Result<bool> {
    let left = deadline.saturating_duration_since(Instant::now());
    let limit = Timespec::try_from(left).expect("a deadline is not that far");
    let mut fds = vec![PollFd::new(exit, PollFlags::IN)];
    fds.extend(stdin.map(|stdin| PollFd::new(stdin, PollFlags::OUT)));
    for pipe in pipes.into_iter().filter(|pipe| pipe.open) {
        fds.push(PollFd::new(&pipe.source, PollFlags::IN));
    }
    match poll(&mut fds, Some(&limit)) {
        Ok(0) => Err(Error::deadline_exceeded("it took too long")),
        Ok(_) => Ok(!fds[0].revents().is_empty()),
        Err(rustix::io::Errno::INTR) => Ok(false),
        Err(error) => Err(io::Error::from(error)).context(|| "wait for it"),
    }
}

fn unblocked(pipe: impl Into<OwnedFd>) -> Result<File> {
    let pipe = File::from(pipe.into());
    rustix::io::ioctl_fionbio(&pipe, true).map_err(io::Error::from).context(|| "make a pipe non-blocking")?;
    Ok(pipe)
}

/// A non-blocking pipe and the bytes read from it so far.
struct Pipe {
    source: File,
    bytes: Vec<u8>,
    open: bool,
}

impl Pipe {
    fn new(source: impl Into<OwnedFd>) -> Result<Pipe> {
        let source = unblocked(source)?;
        Ok(Pipe { source, bytes: Vec::new(), open: true })
    }

    fn drain(&mut self) -> Result<()> {
        let mut buffer = [0; 4096];
        while self.open {
            match self.source.read(&mut buffer) {
                Ok(0) => self.open = false,
                Ok(len) if self.bytes.len() + len > OUTPUT_LEN_MAX => {
                    return Err(Error::resource_exhausted("it prints without end"));
                }
                Ok(len) => self.bytes.extend_from_slice(&buffer[..len]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error).context(|| "read its output"),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use types::ErrorKind;

    #[test]
    fn every_format_of_a_shims_bootstrap_output_is_parsed() {
        let check = |output: &[u8], version: i32, address: &str| {
            let found = Bootstrap::from_output(output).unwrap();
            assert_eq!((found.version, found.address.as_str()), (version, address));
        };
        check(b"unix:///run/s/1", 2, "unix:///run/s/1");
        check(br#"{"version":3,"address":"unix:///run/s/2","protocol":"ttrpc"}"#, 3, "unix:///run/s/2");
        let message = BootstrapResult {
            version: 3,
            address: "unix:///run/s/3".into(),
            protocol: "ttrpc".into(),
            ..Default::default()
        };
        check(&message.encode_to_vec(), 3, "unix:///run/s/3");
        for bad in [&b""[..], b"panic: x", br#"{"version":9,"address":"x"}"#, br#"{"version":3}"#] {
            assert!(Bootstrap::from_output(bad).is_err(), "{bad:?}");
        }
    }

    /// containerd's own shims all have the same name: before 2.3 they expect the options alone on standard input, later
    /// bootstrap parameters.
    #[test]
    fn containerds_shims_get_the_input_that_their_version_expects() {
        let dir = tempfile::tempdir().unwrap();
        let program = Program { path: dir.path().join("containerd-shim-runc-v2") };
        let bundle = Bundle { path: dir.path().to_owned() };
        let config = Config {
            bundles: dir.path().into(),
            sandboxes: dir.path().into(),
            sockets: dir.path().into(),
            grpc_address: dir.path().join("d.sock"),
            ttrpc_address: dir.path().join("d.sock.ttrpc"),
            publisher: "/bin/false".into(),
            shim: None,
            version: "2.3.4".into(),
            env: Vec::new(),
            limits: crate::Limits::default(),
            debug: false,
        };
        let install = |version: &str| {
            let new = dir.path().join("new");
            let script = format!(
                "#!/bin/sh\ncd {}\nif [ \"$1\" = -v ]; then\necho x >> asked\nprintf 'shim:\\n  Version:  {version}\\n'\nexit\nfi\n\
                 cat > heard\necho unix:///s\n",
                dir.path().display()
            );
            testkit::executable(&new, &script);
            std::fs::rename(new, &program.path).unwrap();
        };
        let namespace = Namespace::new("n").unwrap();
        let heard = |options: Option<&Opaque>| {
            let begun = start(&config, &program, &bundle, (&namespace, "c1"), options.cloned());
            assert_eq!(begun.unwrap().address, "unix:///s");
            std::fs::read(dir.path().join("heard")).unwrap()
        };
        let options = Opaque { type_url: "options".into(), value: vec![1, 2] };
        let alone = convert::any(options.clone()).encode_to_vec();
        for version in ["1.6.20~ds1", "v2.0.0", "2.2.7-rc.1+unknown"] {
            install(version);
            assert_eq!(heard(Some(&options)), alone, "{version}");
            assert!(heard(None).is_empty(), "{version}");
        }
        for version in ["v2.3.4", "2.4.0-beta+unknown", "10.0"] {
            install(version);
            let params = BootstrapParams::decode(heard(Some(&options)).as_slice()).unwrap();
            assert_eq!((params.instance_id.as_str(), params.namespace.as_str()), ("c1", "n"), "{version}");
            assert_eq!(params.socket_dir, Some(dir.path().display().to_string()), "{version}");
            assert_eq!(params.extensions.len(), 1, "{version}");
        }
        for version in ["", "unknown", "v2"] {
            install(version);
            assert!(heard(Some(&options)).is_empty(), "{version}");
        }
        let asked = std::fs::read_to_string(dir.path().join("asked")).unwrap();
        assert_eq!(asked.lines().count(), 9, "once for each");
    }

    /// `sun_path` has 108 bytes, including the terminating zero (unix(7)).
    #[test]
    fn a_shim_is_given_no_directory_that_is_too_deep_for_its_socket() {
        let of = |len: usize| Path::new("/").join("x".repeat(len - 1));
        assert!(fits_a_socket(&of(42)));
        assert!(!fits_a_socket(&of(43)));
    }

    fn sh(script: &str, limit: Duration) -> Result<Vec<u8>> {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        run(command, b"input", limit)
    }

    #[test]
    fn a_program_that_leaves_a_child_with_its_output_is_not_waited_for_longer() {
        let output = sh("cat; sleep 1000 & echo done", Duration::from_secs(60)).unwrap();
        assert_eq!(output, b"inputdone\n");
    }

    #[test]
    fn failures_carry_what_the_program_said() {
        let error = sh("echo why >&2; exit 3", Duration::from_secs(60)).unwrap_err();
        assert!(error.chain().contains("why"), "{error:?}");
    }

    #[test]
    fn a_program_that_does_not_read_is_not_waited_for() {
        let flood = |script: &str, limit| {
            let mut command = Command::new("sh");
            command.args(["-c", script]);
            // More than a pipe holds.
            run(command, &vec![b'x'; 1 << 20], limit)
        };
        let error = flood("exec sleep 1000", Duration::from_millis(10)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::DeadlineExceeded);
        let output = flood("head -c 3; echo done", Duration::from_secs(60)).unwrap();
        assert_eq!(output, b"xxxdone\n");
        let output = flood("wc -c", Duration::from_secs(60)).unwrap();
        assert_eq!(output.trim_ascii(), b"1048576");
    }

    #[test]
    fn a_program_that_hangs_is_killed() {
        let error = sh("exec sleep 1000", Duration::from_millis(10)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::DeadlineExceeded);
    }
}
