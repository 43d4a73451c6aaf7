//! `cp`: copies files between a container and this machine, by Docker's rules for names.
//!
//! ```text
//! container ─▶ daemon ─ tar ─▶ pipe ─▶ files here, or standard output
//! files here, or standard input ─▶ pipe ─ tar ─▶ daemon ─▶ container
//! ```
//!
//! Both ends write beneath a directory's file descriptor, so that no symlink in the archive leads out of the directory.

mod names;

use std::fs::File;
use std::io::{self, BufWriter, IsTerminal, Read, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use api::engine::{Call, Copy, FileStat, Follow};
use clap::Args;
use client::Client;
use diff::tar::Writer;
use diff::{LayOptions, Owners, lay_down, pack};
use rustix::fs::{FileType, OFlags};
use serde_json::Value;
use tokio::task::spawn_blocking;
use types::{Context, Error, ErrorKind, Result};

use self::names::{End, Source, Target, is_contents, place};
use crate::output::{bytes_bar, printable, size};
use crate::private_folder::PrivateFolder;
use crate::streams::{open_pipe, wait_for_writer};

/// The size of the copy buffer, in bytes.
const BUFFER_LEN: usize = 256 * 1024;

#[derive(Args)]
pub(crate) struct Flags {
    /// Keep owners, or give files in a container to the container's user
    #[arg(long, short)]
    archive: bool,
    /// Follow a symlink given as the source
    #[arg(long, short = 'L')]
    follow_link: bool,
    /// Without a progress bar and the final message
    #[arg(long, short)]
    quiet: bool,
    /// CONTAINER:PATH, a path of this machine, or - for a tar on standard input
    source: String,
    /// CONTAINER:PATH, a path of this machine, or - for a tar on standard output
    destination: String,
}

pub(super) async fn run(client: &Client, flags: Flags) -> Result<u8> {
    for (end, word) in [("source", &flags.source), ("destination", &flags.destination)] {
        if word.is_empty() {
            return Err(Error::invalid_argument(format!(
                "the {end} is empty: expected CONTAINER:PATH, a path of this machine, or -"
            )));
        }
    }
    let copying = Copying { client, archive: flags.archive, follows: flags.follow_link, quiet: flags.quiet };
    match (End::parse(&flags.source), End::parse(&flags.destination)) {
        (End::Container { id, path }, End::Here(to)) => copying.out(id, path, to).await?,
        (End::Here(from), End::Container { id, path }) => copying.send_in(from, id, path).await?,
        (End::Container { .. }, End::Container { .. }) => {
            return Err(Error::invalid_argument("copying between containers is not supported"));
        }
        (End::Here(_), End::Here(_)) => {
            return Err(Error::invalid_argument(
                "one of the two must be in a container: CONTAINER:PATH (a path of this machine that has a colon begins \
                 with / or ./)",
            ));
        }
    }
    Ok(0)
}

struct Copying<'a> {
    client: &'a Client,
    archive: bool,
    follows: bool,
    quiet: bool,
}

impl Copying<'_> {
    async fn out(&self, id: &str, path: &str, to: &str) -> Result<()> {
        if to == "-" && io::stdout().is_terminal() {
            return Err(Error::invalid_argument(
                "cannot write an archive to a terminal: redirect standard output",
            ));
        }
        let mut stat = self.stat(id, path).await?;
        let (mut from, called) = (path.to_owned(), stat.name.clone());
        if let Some(target) = stat.link_target.as_ref().filter(|_| self.follows) {
            from.clone_from(target);
            stat = self.stat(id, target).await?;
        }
        let source = Source {
            name: called.into(),
            is_directory: is(&stat, FileType::Directory),
            contents: is_contents(path),
        };
        let ask = async |called: &str, pipe| {
            let (id, path, called) = (id.to_owned(), from.clone(), called.to_owned());
            self.follow(Copy::Out { id, path, called, pipe }).await
        };
        if to == "-" {
            let called = source.own_name().to_string_lossy().into_owned();
            let write = |mut from: Box<dyn Read + Send>| {
                let mut to = io::stdout().lock();
                let copied = io::copy(&mut from, &mut to).and_then(|_| to.flush());
                copied.context(|| "write the archive")
            };
            return self.receive(async |pipe| ask(&called, pipe).await, write).await;
        }
        let target = Target::here(Path::new(to))?;
        let (folder, called) = place(&source, target)?;
        let owners = if self.archive { Owners::Archive } else { Owners::Maker };
        let called = called.to_str().ok_or_else(|| Error::invalid_argument(format!("{to} is not UTF-8")))?;
        let lay = move |from: Box<dyn Read + Send>| {
            let opened = File::open(&folder).context(|| format!("open {}", folder.display()))?;
            let laid = lay_down(from, LayOptions { folder: PathBuf::new(), owners }, opened.as_fd())
                .map_err(|error| error.context(format!("copy to {}", folder.display())))?;
            for path in laid.left_out {
                let path = path.to_string_lossy();
                eprintln!("hoist: skipped {}: it is a device; use -a to copy devices", printable(&path));
            }
            Ok(laid.size)
        };
        let len = self.receive(async |pipe| ask(called, pipe).await, lay).await?;
        self.say(len, to);
        Ok(())
    }

    async fn send_in(&self, from: &str, id: &str, path: &str) -> Result<()> {
        let mut path = if path.is_empty() { "/".to_owned() } else { path.to_owned() };
        let mut stat = self.find(id, &path).await?;
        if let Some(target) = stat.as_ref().and_then(|stat| stat.link_target.clone()) {
            stat = self.find(id, &target).await?;
            path = target;
        }
        let is_directory = stat.as_ref().is_some_and(|stat| is(stat, FileType::Directory));
        if let Some(stat) = &stat
            && !is_directory
            && !is(stat, FileType::RegularFile)
        {
            return Err(Error::invalid_argument(format!(
                "destination \"{id}:{path}\" must be a directory or a regular file"
            )));
        }
        if from == "-" {
            if io::stdin().is_terminal() {
                return Err(Error::invalid_argument(
                    "cannot read an archive from a terminal: redirect standard input",
                ));
            }
            if !is_directory {
                return Err(Error::invalid_argument(format!(
                    "destination \"{id}:{path}\" must be a directory"
                )));
            }
            let write = |to: &mut dyn Write| {
                let stdin = io::stdin().lock();
                io::copy(&mut io::BufReader::with_capacity(BUFFER_LEN, stdin), to)
                    .context(|| "read standard input")
            };
            return self.send(id, &path, write).await.map(drop);
        }
        let local = names::Local::find(from, self.follows)?;
        let target = Target::of(&path, stat.is_some().then_some(is_directory));
        let (folder, called) = place(&local.source, target)?;
        let folder = folder.to_string_lossy().into_owned();
        let write = move |to: &mut dyn Write| {
            let mut counted = Counted { to, len: 0 };
            let mut writer = Writer::new(BufWriter::with_capacity(BUFFER_LEN, &mut counted), 0);
            pack(local.folder, &local.name, called.as_encoded_bytes(), &mut writer, &|| Ok(()))?;
            writer.finish().context(|| "write to the daemon")?;
            Ok(counted.len)
        };
        let len = self.send(id, &folder, write).await?;
        self.say(len, &format!("{id}:{path}"));
        Ok(())
    }

    async fn stat(&self, id: &str, path: &str) -> Result<FileStat> {
        let question = Call::StatFile { id: id.to_owned(), path: path.to_owned() };
        let answer = self.client.call(&question).await?;
        serde_json::from_value(answer)
            .map_err(|error| Error::internal("the daemon's answer cannot be read").with_source(error))
    }

    /// The metadata of a file. `None` if it does not exist.
    async fn find(&self, id: &str, path: &str) -> Result<Option<FileStat>> {
        match self.stat(id, path).await {
            // A missing container is an error.
            Err(error)
                if error.is(ErrorKind::NotFound) && error.chain().contains("Could not find the file") =>
            {
                Ok(None)
            }
            found => found.map(Some),
        }
    }

    async fn follow(&self, copy: Copy) -> Result<()> {
        let mut answers = self.client.follow(&Follow::Copy(copy)).await?;
        let done = answers.next::<Value>().await?;
        done.map(drop).ok_or_else(|| Error::unavailable("the daemon stopped in the middle of the copy"))
    }

    /// Receives an archive from the daemon. `ask` sends the call, with the path of the pipe.
    async fn receive<T: Send + 'static>(
        &self,
        ask: impl AsyncFnOnce(String) -> Result<()>,
        take: impl FnOnce(Box<dyn Read + Send>) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let folder = PrivateFolder::create(self.client.address())?;
        let path = folder.pipe("archive")?;
        let pipe = open_pipe(&path, OFlags::RDONLY)?;
        let bar = bytes_bar("Copying", None, self.quiet);
        let seen = bar.clone();
        let taking = spawn_blocking(move || {
            wait_for_writer(&pipe)?;
            take(Box::new(seen.wrap_read(pipe)))
        });
        let asked = ask(path.display().to_string()).await;
        if asked.is_err() {
            // Opening the pipe for writing wakes a reader that waits for a writer: it reads the end.
            let _ = open_pipe(&path, OFlags::WRONLY);
        }
        let taken = taking.await;
        bar.finish_and_clear();
        let taken =
            taken.unwrap_or_else(|panic| Err(Error::internal("the copy broke down").with_source(panic)));
        match (asked, taken) {
            (Ok(()), taken) => taken,
            // The daemon could not write because the reader stopped: the reader's error is the cause.
            (Err(error), Err(own)) if is_broken_pipe(&error) => Err(own),
            (Err(error), _) => Err(error),
        }
    }

    /// Sends an archive to the daemon.
    async fn send(
        &self,
        id: &str,
        container_folder: &str,
        write: impl FnOnce(&mut dyn Write) -> Result<u64> + Send + 'static,
    ) -> Result<u64> {
        let folder = PrivateFolder::create(self.client.address())?;
        let path = folder.pipe("archive")?;
        let bar = bytes_bar("Copying", None, self.quiet);
        let failure = Arc::new(OnceLock::new());
        let (to, seen, own) = (path.clone(), bar.clone(), failure.clone());
        let writing = spawn_blocking(move || {
            // Blocks until the daemon opens its end.
            let to = File::options().write(true).open(&to).context(|| "open the pipe to the daemon");
            let mut to = seen.wrap_write(to.ok()?);
            // Store the error before the pipe closes, which ends the daemon's call.
            write(&mut to).map_err(|error| own.set(error)).ok()
        });
        let (id, pipe) = (id.to_owned(), path.display().to_string());
        let copy = Copy::In { id, folder: container_folder.to_owned(), pipe, to_user: self.archive };
        let asked = self.follow(copy).await;
        bar.finish_and_clear();
        let own = failure.get().filter(|own| !is_broken_pipe(own));
        match (asked, own) {
            (_, Some(own)) => Err(Error::new(own.kind(), own.chain())),
            // The daemon may have refused without opening the pipe.
            (Err(error), None) => Err(error),
            (Ok(()), None) => Ok(writing.await.ok().flatten().unwrap_or(0)),
        }
    }

    /// Prints Docker's final message.
    fn say(&self, len: u64, to: &str) {
        if !self.quiet {
            eprintln!("Successfully copied {} to {to}", size(len));
        }
    }
}

fn is(stat: &FileStat, kind: FileType) -> bool {
    FileType::from_raw_mode(stat.mode) == kind
}

fn is_broken_pipe(error: &Error) -> bool {
    error.chain().contains(&io::Error::from_raw_os_error(rustix::io::Errno::PIPE.raw_os_error()).to_string())
}

/// A writer that counts its bytes.
struct Counted<'a> {
    to: &'a mut dyn Write,
    len: u64,
}

impl Write for Counted<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.to.write(bytes)?;
        self.len += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}
