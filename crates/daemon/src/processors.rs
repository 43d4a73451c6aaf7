//! Stream processors: programs that convert layers of an unsupported media type to a supported one, such as encrypted
//! layers to plain ones (containerd's `[stream_processors]`).
//!
//! ```text
//! blob ──▶ stdin │ program │ stdout ──▶ stdin │ next program │ stdout ──▶ unpacked
//!       payload ─┘ fd 3    └─ stderr, for the error
//! ```
//!
//! The program finds the media type of its input in `STREAM_PROCESSOR_MEDIATYPE`. A layer of a supported type also goes
//! through a program that accepts it.
//!
//! Invariants
//! - The end of the output is the end of the layer only if the program exited with success.
//! - A program is killed if it writes nothing for [`STALL_LIMIT`], if its output is no longer read, or if it does not
//!   exit after closing its output. If several wait for each other, the error names the first.
//! - A program's process group is killed with it, because its children may hold pipes that our threads read. A process
//!   that has left the group survives but is not waited for: after the program's exit its output gets [`STALL_LIMIT`]
//!   to end, and its other pipes no time at all.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use metadata::{LayerSource, StreamProcessors};
use prost::Message;
use prost_types::Any;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open};
use serde::Serialize;
use types::descriptor::media_type;
use types::{Context, Descriptor, Error, Result};

use crate::config::StreamProcessor;

/// How long a program may write nothing.
const STALL_LIMIT: Duration = Duration::from_secs(120);
/// The most programs that one layer goes through.
const CHAIN_LEN_MAX: usize = 8;
/// Bytes kept of a program's standard error: its end.
const LOG_LEN_MAX: usize = 4 << 10;
/// Capacity of a pipe: bytes written at once, and bytes of standard error read after the program's exit.
const PIPE_LEN: usize = 64 << 10;
const MEDIA_TYPE_VARIABLE: &str = "STREAM_PROCESSOR_MEDIATYPE";

#[derive(Clone)]
pub(crate) struct Processors {
    programs: Arc<[StreamProcessor]>,
    stall_limit: Duration,
}

impl Processors {
    pub(crate) fn new(programs: &[StreamProcessor]) -> Processors {
        Processors { programs: programs.into(), stall_limit: STALL_LIMIT }
    }

    /// Converts a layer to one that can be unpacked. `payloads` are for the programs, by id. `Unimplemented` if no
    /// program accepts the media type.
    pub(crate) fn open_with(
        &self,
        media_type: &str,
        source: LayerSource,
        payloads: &BTreeMap<String, Any>,
    ) -> Result<LayerSource> {
        self.chain(media_type)?.into_iter().try_fold(source, |source, (processor, media_type)| {
            let payload = payloads.get(&processor.id).map(Message::encode_to_vec);
            let stage = Stage::start(processor, &media_type, source, payload, self.stall_limit);
            Ok(Box::new(stage.context(|| format!("stream processor {}", processor.id))?) as LayerSource)
        })
    }

    /// The programs that a layer goes through, each with its input's media type.
    fn chain(&self, media_type: &str) -> Result<Vec<(&StreamProcessor, String)>> {
        let (mut chain, mut reached) = (Vec::new(), media_type.to_owned());
        let accepting = |reached: &String| self.programs.iter().find(|known| known.accepts.contains(reached));
        while let Some(processor) = accepting(&reached) {
            if chain.len() == CHAIN_LEN_MAX {
                return Err(Error::invalid_argument(format!(
                    "media type {media_type:?} goes through more than {CHAIN_LEN_MAX} stream processors; do \
                     they return to it?"
                )));
            }
            let next = processor.returns.clone();
            chain.push((processor, std::mem::replace(&mut reached, next)));
        }
        if media_type::is_layer(&reached) && !media_type::is_encrypted(&reached) {
            return Ok(chain);
        }
        Err(Error::unimplemented(format!(
            "media type {reached:?}: no stream processor of the configuration accepts it"
        )))
    }
}

impl StreamProcessors for Processors {
    fn names(&self, media_type: &str) -> Option<String> {
        let accepts = |known: &&StreamProcessor| known.accepts.iter().any(|accepted| accepted == media_type);
        let first = self.programs.iter().find(accepts)?.id.clone();
        // If no chain leads to a supported type, names the first program.
        let chain = self.chain(media_type);
        let names =
            chain.map(|chain| chain.iter().map(|(program, _)| program.id.as_str()).collect::<Vec<_>>());
        Some(names.map_or(first, |names| names.join(", ")))
    }

    fn open(&self, layer: &Descriptor, blob: LayerSource) -> Result<LayerSource> {
        self.open_with(&layer.media_type, blob, &payloads(layer))
    }
}

/// The payloads for a layer that the daemon unpacks itself. imgcrypt's decoders expect the layer's descriptor, whose
/// annotations have the wrapped keys; their arguments and environment locate the unwrapping keys, as in pulls by CRI.
/// Other programs get none.
fn payloads(layer: &Descriptor) -> BTreeMap<String, Any> {
    let payload =
        Payload { decrypt_config: DecryptConfig { parameters: BTreeMap::new() }, descriptor: layer };
    let value = serde_json::to_vec(&payload).expect("strings and numbers have a JSON form");
    let payload = Any { type_url: PAYLOAD_TYPE.to_owned(), value };
    DECODERS.map(|id| (id.to_owned(), payload.clone())).into()
}

/// The programs to which imgcrypt's clients send payloads (`PayloadToolIDs`).
const DECODERS: [&str; 2] =
    ["io.containerd.ocicrypt.decoder.v1.tar", "io.containerd.ocicrypt.decoder.v1.tar.gzip"];
/// imgcrypt's `PayloadURI`.
const PAYLOAD_TYPE: &str = "io.containerd.ocicrypt.v1.Payload";

/// imgcrypt's `Payload`.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Payload<'a> {
    decrypt_config: DecryptConfig,
    descriptor: &'a Descriptor,
}

/// Keys, in base64, by wrapping protocol: ocicrypt's `DecryptConfig`.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct DecryptConfig {
    parameters: BTreeMap<String, Vec<String>>,
}

/// A running program.
struct Stage {
    id: String,
    child: Child,
    output: ChildStdout,
    /// Pidfd: readable when the program has ended.
    end: OwnedFd,
    stall_limit: Duration,
    /// Remaining time for its output, once the program has ended.
    patience: Option<Duration>,
    /// Taken when the program has ended.
    threads: Option<Threads>,
}

struct Threads {
    feeder: JoinHandle<io::Result<()>>,
    log: JoinHandle<String>,
    /// Dropping it ends the threads: another process may hold the other ends of their pipes forever.
    going_on: io::PipeWriter,
}

impl Stage {
    fn start(
        processor: &StreamProcessor,
        media_type: &str,
        source: LayerSource,
        payload: Option<Vec<u8>>,
        stall_limit: Duration,
    ) -> Result<Stage> {
        let mut command = Command::new(&processor.path);
        command
            .args(&processor.args)
            .envs(processor.env.iter().filter_map(|pair| pair.split_once('=')))
            .env(MEDIA_TYPE_VARIABLE, media_type)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0);
        let about = || format!("run {}", processor.path.display());
        let (payload, descriptors) = match payload {
            Some(bytes) => {
                let (theirs, ours) = io::pipe().context(about)?;
                (Some((ours, bytes)), vec![(OwnedFd::from(theirs), 3)])
            }
            None => (None, Vec::new()),
        };
        let (told, going_on) = io::pipe().context(about)?;
        let told_too = told.try_clone().context(about)?;
        let mut child = linux::spawn::with_descriptors(command, descriptors).context(about)?;
        let end = match pidfd_open(Pid::from_child(&child), PidfdFlags::empty()) {
            Ok(end) => end,
            Err(error) => {
                let _ = kill_process_group(Pid::from_child(&child), Signal::KILL);
                let _ = child.wait();
                return Err(io::Error::from(error)).context(about);
            }
        };
        let input = child.stdin.take().expect("stdin is a pipe");
        let output = child.stdout.take().expect("stdout is a pipe");
        let errors = child.stderr.take().expect("stderr is a pipe");
        let threads = Threads {
            feeder: std::thread::spawn(move || feed(source, input, payload, &told)),
            log: std::thread::spawn(move || tail(errors, &told_too)),
            going_on,
        };
        let (id, threads) = (processor.id.clone(), Some(threads));
        Ok(Stage { id, child, output, end, stall_limit, patience: None, threads })
    }

    /// Waits for output. Returns whether there is some, or its end, in time.
    fn wait_for_output(&mut self) -> io::Result<bool> {
        let mut left = self.stall_limit;
        loop {
            let limit = self.patience.map_or(left, |patience| patience.min(left));
            let began = Instant::now();
            let end = self.patience.is_none().then_some((self.end.as_fd(), PollFlags::IN));
            let came = wait_for(self.output.as_fd(), end, Some(limit))?;
            let waited = began.elapsed();
            left = left.saturating_sub(waited);
            self.patience = self.patience.map(|patience| patience.saturating_sub(waited));
            match came {
                Came::First => return Ok(true),
                Came::Second => self.patience = Some(self.stall_limit),
                Came::Nothing => return Ok(false),
            }
        }
    }

    /// Waits for the program's end. Returns whether it ended in time.
    fn wait_for_end(&self) -> io::Result<bool> {
        Ok(matches!(wait_for(self.end.as_fd(), None, Some(self.stall_limit))?, Came::First))
    }

    /// Kills its process group. It may have ended already.
    fn kill(&self) {
        let _ = kill_process_group(self.pid(), Signal::KILL);
    }

    fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    /// Reaps the program and interprets its end, or the lack of one in time.
    fn finish(&mut self, has_ended: bool) -> io::Result<()> {
        let Some(threads) = self.threads.take() else { return Ok(()) };
        // Before the program is reaped: until then its pid is not reused.
        self.kill();
        let status = self.child.wait()?;
        drop(threads.going_on);
        let fed =
            threads.feeder.join().unwrap_or_else(|_| Err(io::Error::other("the feeding thread panicked")));
        let log = threads.log.join().unwrap_or_default();
        if has_ended && status.success() {
            return fed;
        }
        // An error of its input comes first: an earlier program may have failed or stalled.
        fed?;
        let (id, limit, log) = (&self.id, self.stall_limit, log.trim());
        if !has_ended && self.patience.is_some() && status.success() {
            let what = format!(
                "stream processor {id}: it ended, and {limit:?} later something that it started has its output open: {log}"
            );
            return Err(io::Error::new(io::ErrorKind::TimedOut, what));
        }
        if !has_ended && self.patience.is_none() {
            let what = format!("stream processor {id}: neither output nor its end came for {limit:?}: {log}");
            return Err(io::Error::new(io::ErrorKind::TimedOut, what));
        }
        Err(io::Error::other(format!("stream processor {id}: {status}: {log}")))
    }
}

impl Read for Stage {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if buf.is_empty() || self.threads.is_none() {
            return Ok(0);
        }
        if !self.wait_for_output()? {
            self.finish(false)?;
        }
        let read = self.output.read(buf)?;
        if read == 0 {
            // If it cannot be waited for, it is killed too.
            let has_ended = self.wait_for_end();
            self.finish(*has_ended.as_ref().unwrap_or(&false))?;
            has_ended?;
        }
        Ok(read)
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        if self.threads.is_some() {
            // The reader has dropped the rest. The program may have ended by itself.
            let _why = self.finish(false);
        }
    }
}

enum Came {
    First,
    Second,
    Nothing,
}

/// Waits until the first descriptor is readable or the second ready, or has hung up. If both are, returns the first.
fn wait_for(
    first: BorrowedFd<'_>,
    second: Option<(BorrowedFd<'_>, PollFlags)>,
    limit: Option<Duration>,
) -> io::Result<Came> {
    let began = Instant::now();
    loop {
        let left = limit.map(|limit| limit.saturating_sub(began.elapsed()));
        let left = left.map(Timespec::try_from).transpose().map_err(io::Error::other)?;
        let mut both = vec![PollFd::from_borrowed_fd(first, PollFlags::IN)];
        both.extend(second.map(|(second, to)| PollFd::from_borrowed_fd(second, to)));
        match poll(&mut both, left.as_ref()) {
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
            Ok(0) => return Ok(Came::Nothing),
            Ok(_) if both[0].revents().is_empty() => return Ok(Came::Second),
            Ok(_) => return Ok(Came::First),
        }
    }
}

fn feed(
    mut source: LayerSource,
    mut input: ChildStdin,
    payload: Option<(io::PipeWriter, Vec<u8>)>,
    told: &io::PipeReader,
) -> io::Result<()> {
    let fed = match payload {
        Some((mut pipe, bytes)) => give(&mut &bytes[..], &mut pipe, told),
        None => Ok(()),
    };
    let fed = unread(fed).and_then(|()| unread(give(&mut source, &mut input, told)));
    // Even after a failure: an earlier program is ended before the one it feeds.
    drop(source);
    fed
}

/// Copies the source to a pipe, until told to stop.
fn give(source: &mut impl Read, pipe: &mut (impl Write + AsFd), told: &io::PipeReader) -> io::Result<()> {
    rustix::io::ioctl_fionbio(&*pipe, true)?;
    let mut buffer = vec![0; PIPE_LEN];
    loop {
        let len = match source.read(&mut buffer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            read => read?,
        };
        let mut rest = &buffer[..len];
        if rest.is_empty() {
            return Ok(());
        }
        while !rest.is_empty() {
            let room = Some((pipe.as_fd(), PollFlags::OUT));
            let Came::Second = wait_for(told.as_fd(), room, None)? else { return Ok(()) };
            match pipe.write(rest) {
                Ok(written) => rest = &rest[written..],
                Err(error)
                    if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
                Err(error) => return Err(error),
            }
        }
    }
}

/// A program need not read all of its input.
fn unread(fed: io::Result<()>) -> io::Result<()> {
    match fed {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => other,
    }
}

/// Reads to the end of standard error and keeps its tail. When told to stop, reads only what is in the pipe.
fn tail(mut errors: impl Read + AsFd, told: &io::PipeReader) -> String {
    let (mut kept, mut buffer) = (Vec::new(), [0; 1024]);
    let (mut is_told, mut left) = (false, PIPE_LEN);
    while left > 0 {
        let (second, limit) = match is_told {
            true => (None, Some(Duration::ZERO)),
            false => (Some((told.as_fd(), PollFlags::IN)), None),
        };
        match wait_for(errors.as_fd(), second, limit) {
            Ok(Came::First) => {}
            Ok(Came::Second) => {
                is_told = true;
                continue;
            }
            Ok(Came::Nothing) | Err(_) => break,
        }
        let Ok(len @ 1..) = errors.read(&mut buffer) else { break };
        kept.extend_from_slice(&buffer[..len]);
        kept.drain(..kept.len().saturating_sub(LOG_LEN_MAX));
        left -= if is_told { len.min(left) } else { 0 };
    }
    String::from_utf8_lossy(&kept).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: &str = "application/vnd.oci.image.layer.v1.tar";

    fn shell(id: &str, accepts: &str, returns: &str, script: &str) -> StreamProcessor {
        StreamProcessor {
            id: id.into(),
            accepts: vec![accepts.into()],
            returns: returns.into(),
            path: "sh".into(),
            args: vec!["-c".into(), script.into()],
            env: vec!["WORD=said".into()],
        }
    }

    fn layer(media_type: &str) -> Descriptor {
        Descriptor::new(media_type, types::Digest::of(b"layer"), 5)
    }

    /// The output of `processors` for `input` of type `x`.
    fn run(processors: &[StreamProcessor], input: &[u8]) -> Result<Vec<u8>> {
        let payload = Any { type_url: "key".into(), value: Vec::new() };
        let payloads = BTreeMap::from([("keyed".to_owned(), payload)]);
        let source = Box::new(io::Cursor::new(input.to_vec()));
        let mut opened = Processors::new(processors).open_with("x", source, &payloads)?;
        let mut output = Vec::new();
        opened.read_to_end(&mut output).context(|| "read")?;
        Ok(output)
    }

    #[test]
    fn a_layer_goes_through_as_many_programs_as_it_takes() {
        let upper = shell("upper", "x", "y", "tr a-z A-Z");
        let ends = shell("ends", "y", PLAIN, "cat; printf \"$WORD $STREAM_PROCESSOR_MEDIATYPE\"");
        let long = vec![b'a'; 1 << 20];
        let output = run(&[upper, ends], &long).unwrap();
        assert_eq!(output.len(), long.len() + "said y".len());
        assert!(output.starts_with(b"AAAA") && output.ends_with(b"said y"));
    }

    #[test]
    fn a_payload_is_on_descriptor_three() {
        let keyed = shell("keyed", "x", PLAIN, "cat <&3; cat");
        assert_eq!(run(&[keyed], b"layer").unwrap(), b"\n\x03keylayer");
    }

    /// The annotations in the payload are those of the layer.
    #[test]
    fn decoders_of_imgcrypt_are_told_of_the_layer_and_others_of_nothing() {
        let mut layer = layer("x");
        let (key, wrapped) = ("org.opencontainers.image.enc.keys.jwe", "c2VjcmV0");
        layer.annotations.insert(key.into(), wrapped.into());
        let given = |id: &str, script: &str| {
            let processors = Processors::new(&[shell(id, "x", PLAIN, script)]);
            let mut opened = processors.open(&layer, Box::new(io::empty())).unwrap();
            let mut output = Vec::new();
            opened.read_to_end(&mut output).map(|_| output)
        };
        for id in ["io.containerd.ocicrypt.decoder.v1.tar", "io.containerd.ocicrypt.decoder.v1.tar.gzip"] {
            let payload = Any::decode(&given(id, "cat <&3").unwrap()[..]).unwrap();
            assert_eq!(payload.type_url, "io.containerd.ocicrypt.v1.Payload");
            let told: serde_json::Value = serde_json::from_slice(&payload.value).unwrap();
            let expected = serde_json::json!({
                "DecryptConfig": {"Parameters": {}},
                "Descriptor": {
                    "mediaType": "x", "digest": layer.digest.to_string(), "size": 5, "annotations": {key: wrapped},
                },
            });
            assert_eq!(told, expected);
        }
        assert_eq!(given("other", "[ -e /dev/fd/3 ] || echo nothing").unwrap(), b"nothing\n");
    }

    #[test]
    fn a_program_that_fails_makes_no_layer() {
        let check = |processors: &[StreamProcessor], words: &[&str]| {
            let message = run(processors, b"layer").unwrap_err().chain();
            assert!(words.iter().all(|word| message.contains(word)), "{message}");
        };
        check(&[shell("fails", "x", PLAIN, "cat; echo why >&2; exit 3")], &["fails", "why", "3"]);
        check(
            &[shell("first", "x", "y", "echo cause >&2; exit 1"), shell("second", "y", PLAIN, "cat")],
            &["first", "cause"],
        );
        check(&[shell("other", "z", PLAIN, "cat")], &["\"x\"", "no stream processor"]);
        check(&[shell("a", "x", "y", "cat"), shell("b", "y", "x", "cat")], &["do they return"]);
        // A program that does not read its input does not make the one before it fail.
        assert_eq!(run(&[shell("lazy", "x", PLAIN, "echo short")], &vec![0; 1 << 20]).unwrap(), b"short\n");
    }

    #[test]
    fn children_of_a_stream_processor_are_killed_with_it() {
        let (tell, told) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let children = shell("children", "x", PLAIN, "sleep 1000 & sleep 1000");
            let opened = Processors::new(&[children]).open(&layer("x"), Box::new(io::empty()));
            drop(opened.unwrap());
            // Even if the program ends by itself and its children hold its standard error.
            let leaves = shell("leaves", "x", PLAIN, "sleep 1000 >&- & echo layer");
            tell.send(run(&[leaves], b"")).unwrap();
        });
        let output = told.recv_timeout(Duration::from_secs(60)).expect("it does not wait for them");
        assert_eq!(output.unwrap(), b"layer\n");
    }

    #[test]
    fn a_program_that_says_nothing_is_killed_when_its_time_is_over() {
        let dir = tempfile::tempdir().unwrap();
        let pid = dir.path().join("pid");
        let noted = |id: &str, accepts: &str, returns: &str, script: &str| {
            shell(id, accepts, returns, &format!("echo $$ > {}; {script}", pid.display()))
        };
        let check = |mut programs: Vec<StreamProcessor>| {
            programs.push(shell("other", "z", PLAIN, "cat"));
            let processors =
                Processors { stall_limit: Duration::from_millis(200), ..Processors::new(&programs) };
            let open = |media_type: &str| {
                let source = Box::new(io::Cursor::new(b"layer".to_vec()));
                processors.open(&layer(media_type), source).unwrap()
            };
            let mut output = Vec::new();
            let error = open("x").read_to_end(&mut output).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::TimedOut, "{error}");
            assert!(error.to_string().starts_with("stream processor stuck:"), "{error}");
            let group = std::fs::read_to_string(&pid).unwrap().trim().parse().ok().and_then(Pid::from_raw);
            let left = rustix::process::test_kill_process_group(group.unwrap());
            assert_eq!(left, Err(rustix::io::Errno::SRCH), "it is gone");
            // The next layer, of another type, succeeds.
            output.clear();
            open("z").read_to_end(&mut output).unwrap();
            assert_eq!(output, b"layer");
        };
        check(vec![noted("stuck", "x", PLAIN, "exec sleep 1000")]);
        check(vec![noted("stuck", "x", PLAIN, "cat; exec sleep 1000 >&-")]);
        // A program that waits for another is not the one to blame.
        check(vec![noted("stuck", "x", "y", "exec sleep 1000"), shell("waits", "y", PLAIN, "cat")]);
    }

    /// A process that left its program's group, as by `setsid`, is not killed with it, but not waited for either.
    #[test]
    fn a_process_that_left_a_stream_processors_group_is_not_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let check = |kept: &str, expected: Result<&[u8], io::ErrorKind>| {
            let (ready, pid) = (dir.path().join("ready"), dir.path().join("pid"));
            let (ready, pid_text) = (ready.display(), pid.display());
            let script = format!(
                "exec 4<&0; rm -f {ready}; mkfifo {ready}
                 setsid sh -c 'echo $$ > {pid_text}; echo > {ready}; exec sleep 1000' {kept} &
                 exec 4<&-; read word < {ready}; echo layer"
            );
            let stall_limit = Duration::from_millis(200);
            let processors =
                Processors { stall_limit, ..Processors::new(&[shell("left", "x", PLAIN, &script)]) };
            let (tell, told) = std::sync::mpsc::channel();
            std::thread::spawn(move || {
                // More than fits into a pipe.
                let source = Box::new(io::Cursor::new(vec![0; 1 << 20]));
                let mut opened = processors.open(&layer("x"), source).unwrap();
                let mut output = Vec::new();
                let read = opened.read_to_end(&mut output);
                drop(opened);
                tell.send(read.map(|_| output)).unwrap();
            });
            let read = told.recv_timeout(Duration::from_secs(60));
            let left = std::fs::read_to_string(&pid).unwrap().trim().parse().ok().and_then(Pid::from_raw);
            let left = pidfd_open(left.unwrap(), PidfdFlags::empty()).expect("it is still there");
            rustix::process::pidfd_send_signal(left, Signal::KILL).expect("it is still there");
            let read = read.unwrap_or_else(|_| panic!("{kept}: it is waited for"));
            if let Err(error) = &read {
                assert!(error.to_string().contains("it ended, and"), "{kept}: {error}");
            }
            assert_eq!(read.as_deref().map_err(io::Error::kind), expected, "{kept}");
        };
        // The process holds in turn: input, output, standard error.
        check("<&4 4<&- >&- 2>&-", Ok(b"layer\n"));
        check("4<&- 2>&-", Err(io::ErrorKind::TimedOut));
        check("4<&- >&-", Ok(b"layer\n"));
        check("<&4", Err(io::ErrorKind::TimedOut));
    }

    #[test]
    fn a_program_that_nobody_reads_is_ended() {
        let endless = shell("endless", "x", PLAIN, "exec cat /dev/zero");
        let processors = Processors::new(&[endless]);
        let mut opened = processors.open(&layer("x"), Box::new(io::empty())).unwrap();
        opened.read_exact(&mut [0; 10]).unwrap();
        // Joins its threads and reaps the program.
        drop(opened);
    }
}
