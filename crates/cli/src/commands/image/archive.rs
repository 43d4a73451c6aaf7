//! Image archives: `load`, `import` and `save`.
//!
//! ```text
//! file, address or standard input ─▶ pipe ─▶ daemon ─▶ pipe ─▶ file, folder or standard output
//! ```
//!
//! This program reads, downloads and writes the files itself, with the user's rights, and can show progress. Only for a
//! folder does the daemon get the path.

use std::fs::{self, File};
use std::io::{self, BufReader, IsTerminal, Read, Seek, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Component, Path, PathBuf};

use api::engine::ImageFollow;
use clap::Args;
use client::Client;
use diff::tar::{Kind, Reader};
use indicatif::ProgressBar;
use registry::{Connections, Options, Proxies};
use rustix::fs::OFlags;
use serde_json::Value;
use tokio::task::spawn_blocking;
use types::{Context, Error, Result};

use super::long::outcome;
use crate::commands::list;
use crate::output::{self, text};
use crate::parse::refused;
use crate::private_folder::PrivateFolder;
use crate::streams::{open_pipe, wait_for_writer};

/// The size of the copy buffer, in bytes.
const COPY_LEN: usize = 256 * 1024;
/// The largest archive, in bytes, that is downloaded.
const DOWNLOAD_LEN_MAX: u64 = 64 << 30;

#[derive(Args)]
pub(crate) struct Load {
    /// The archive, or the folder of an OCI layout [default: standard input]
    #[arg(long, short)]
    input: Option<String>,
    /// Without a progress bar
    #[arg(long, short)]
    quiet: bool,
    #[arg(long = "platform", hide = true, value_parser = refused(
        "an archive is loaded with all its platforms; `hoist image convert --platform` makes an image of some of them then",
    ))]
    _platform: Vec<String>,
}

#[derive(Args)]
pub(crate) struct Import {
    /// A message for the image's history
    #[arg(long, short, default_value = "")]
    message: String,
    /// An instruction of a Dockerfile to apply, such as 'CMD ["sh"]'
    #[arg(long, short)]
    change: Vec<String>,
    /// The platform of the image [default: this machine's]
    #[arg(long)]
    platform: Option<String>,
    /// A folder, or a tar, plain or in gzip or zstd: a file, its address (`https://…`), or `-` for standard input
    file: String,
    /// NAME[:TAG]
    name: Option<String>,
}

#[derive(Args)]
pub(crate) struct Save {
    /// The archive, or a folder for an OCI layout (`DIR/`) [default: standard output]
    #[arg(long, short)]
    output: Option<PathBuf>,
    /// Only these platforms
    #[arg(long, value_delimiter = ',', conflicts_with = "all_platforms")]
    platform: Vec<String>,
    /// All platforms, which must be present
    #[arg(long)]
    all_platforms: bool,
    /// Names or ids
    #[arg(required = true)]
    images: Vec<String>,
}

pub(super) async fn load(client: &Client, flags: Load) -> Result<u8> {
    let input = flags.input.as_deref().unwrap_or("-");
    let source = Source::of(input)?;
    let fallback = Path::new(input).file_stem().and_then(std::ffi::OsStr::to_str).filter(|_| input != "-");
    let fallback = fallback.map(str::to_owned);
    let ask = async |path| outcome(client, ImageFollow::Load { path, embedded: None, fallback }).await;
    let loaded = source.hand_over(client, ("Loading", flags.quiet), ask).await?;
    for image in list(&loaded) {
        println!("Loaded image: {}", text(image, "Name"));
    }
    Ok(0)
}

pub(super) async fn import(client: &Client, flags: Import) -> Result<u8> {
    let Import { message, change: changes, platform, file, name } = flags;
    let is_address = ["http://", "https://"].iter().any(|scheme| file.starts_with(scheme));
    let source = if is_address { Source::download(&file).await? } else { Source::of(&file)? };
    let comment = if message.is_empty() { format!("Imported from {file}") } else { message };
    let ask =
        async |path| outcome(client, ImageFollow::Import { path, name, comment, changes, platform }).await;
    let imported = source.hand_over(client, ("Importing", false), ask).await?;
    println!("{}", text(&imported, "Id"));
    Ok(0)
}

pub(super) async fn save(client: &Client, flags: Save) -> Result<u8> {
    let Save { output, platform: platforms, all_platforms, images: names } = flags;
    let ask = async |pipe| {
        let follow = ImageFollow::Save { names, pipe, platforms, all_platforms };
        outcome(client, follow).await.map(drop)
    };
    receive(client, "Saving", output, ask).await
}

/// Writes an archive that the daemon sends: to standard output, or to a file, which is complete or does not appear.
/// `ask` sends the call, with the path of the pipe.
pub(in crate::commands) async fn receive(
    client: &Client,
    what: &'static str,
    output: Option<PathBuf>,
    ask: impl AsyncFnOnce(String) -> Result<()>,
) -> Result<u8> {
    if output.is_none() && io::stdout().is_terminal() {
        return Err(Error::invalid_argument(
            "cannot write an archive to a terminal: name a file (-o FILE), or redirect standard output",
        ));
    }
    let folder = PrivateFolder::create(client.address())?;
    let path = folder.pipe("archive")?;
    let from = open_pipe(&path, OFlags::RDONLY)?;
    let bar = output::bytes_bar(what, None, output.is_none());
    let draft = output.map(Draft::create).transpose()?;
    let (seen, to) =
        (bar.clone(), draft.as_ref().map(|draft| (draft.path.clone(), draft.kind == DraftKind::Folder)));
    let copying = spawn_blocking(move || {
        wait_for_writer(&from)?;
        write(&mut seen.wrap_read(from), to)
    });
    let copy = async {
        let copied = copying.await;
        copied.unwrap_or_else(|panic| Err(Error::internal("the copy broke down").with_source(panic)))
    };
    // The first error ends both: a write to a pipe without a reader, or the refusal of a call that will send nothing.
    let received = tokio::try_join!(ask(path.display().to_string()), copy);
    bar.finish_and_clear();
    received?;
    draft.map_or(Ok(()), Draft::keep)?;
    Ok(0)
}

/// The archive that the daemon is to read.
enum Source {
    /// A folder, which the daemon reads itself.
    Folder(PathBuf),
    Stream {
        from: File,
        /// The length of a file; unknown for a pipe.
        len: Option<u64>,
        /// The name in messages.
        name: String,
    },
}

impl Source {
    fn of(file: &str) -> Result<Source> {
        if file == "-" {
            if io::stdin().is_terminal() {
                return Err(Error::invalid_argument(
                    "cannot read an archive from a terminal: name a file, or redirect standard input",
                ));
            }
            let stdin = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 0).map_err(io::Error::from);
            return Source::stream(File::from(stdin.context(|| "open standard input")?), "standard input");
        }
        let path = Path::new(file);
        if path.is_dir() {
            return Ok(Source::Folder(std::path::absolute(path).context(|| format!("find {file}"))?));
        }
        Source::stream(File::open(path).context(|| format!("open {file}"))?, file)
    }

    /// Downloads an archive completely before the daemon gets it, so that an interrupted download imports nothing.
    async fn download(address: &str) -> Result<Source> {
        let proxies = Proxies::from_variables(|name| std::env::var(name).ok())?;
        let connections = Connections::new(Options { proxies, ..Options::default() });
        let mut download = connections.download(address).await?;
        let what = || format!("keep {address} until it is here");
        let mut to = nameless_file()?;
        let bar = output::bytes_bar("Downloading", download.size(), false);
        let fetch = async {
            let mut len = 0;
            while let Some(bytes) = download.next().await? {
                len += bytes.len() as u64;
                if len > DOWNLOAD_LEN_MAX {
                    return Err(Error::resource_exhausted(format!(
                        "{address} is larger than {DOWNLOAD_LEN_MAX} bytes; fetch it by other means and import the file"
                    )));
                }
                to.write_all(&bytes).context(what)?;
                bar.set_position(len);
            }
            Ok(())
        };
        let fetched: Result<()> = fetch.await;
        bar.finish_and_clear();
        fetched?;
        to.rewind().context(what)?;
        Source::stream(to, address)
    }

    fn stream(from: File, name: &str) -> Result<Source> {
        let metadata = from.metadata().context(|| "stat the archive")?;
        let len = metadata.is_file().then_some(metadata.len());
        Ok(Source::Stream { from, len, name: name.to_owned() })
    }

    /// Gives the daemon the path of the folder or of a pipe, and waits for the answer to `ask`.
    async fn hand_over(
        self,
        client: &Client,
        (what, quiet): (&'static str, bool),
        ask: impl AsyncFnOnce(String) -> Result<Value>,
    ) -> Result<Value> {
        let (mut from, len, name) = match self {
            Source::Folder(path) => return ask(path.display().to_string()).await,
            Source::Stream { from, len, name } => (from, len, name),
        };
        let folder = PrivateFolder::create(client.address())?;
        let path = folder.pipe("archive")?;
        let bar = output::bytes_bar(what, len, quiet);
        let (to, seen) = (path.clone(), bar.clone());
        let copying = spawn_blocking(move || {
            // Blocks until the daemon opens its end.
            let mut to = File::options().write(true).open(&to).context(|| "open the pipe to the daemon")?;
            copy(&mut from, &mut to, &seen)
        });
        let answer = ask(path.display().to_string()).await;
        bar.finish_and_clear();
        match answer {
            Err(error) => {
                if copying.is_finished() {
                    // A read error here is the cause of the daemon's error about the archive.
                    copying.await.unwrap_or(Ok(()))?;
                }
                // The daemon's message has the path of the pipe: replace it by the archive's name.
                let text = error.chain().replace(&path.display().to_string(), &name);
                Err(Error::new(error.kind(), text))
            }
            answered => answered,
        }
    }
}

/// Creates an unnamed file, which is deleted with this process, in a directory for large files.
fn nameless_file() -> Result<File> {
    let folder = std::env::var_os("TMPDIR").filter(|folder| !folder.is_empty());
    let folder = folder.map_or_else(|| PathBuf::from("/var/tmp"), PathBuf::from);
    let path = folder.join(format!("hoist-import-{}", std::process::id()));
    let made = File::options().read(true).write(true).create_new(true).mode(0o600).open(&path);
    made.and_then(|file| fs::remove_file(&path).map(|()| file)).context(|| format!("make {}", path.display()))
}

/// Copies to the end, or until the reader closes the pipe.
fn copy(from: &mut File, to: &mut File, bar: &ProgressBar) -> Result<()> {
    let mut buffer = vec![0; COPY_LEN];
    loop {
        let len = from.read(&mut buffer).context(|| "read the archive")?;
        if len == 0 {
            bar.set_message("Unpacking");
            return Ok(());
        }
        match to.write_all(&buffer[..len]) {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
            written => written.context(|| "write to the daemon")?,
        }
        bar.inc(len as u64);
    }
}

/// Writes an archive to a file, a folder or standard output.
fn write(from: &mut dyn Read, to: Option<(PathBuf, bool)>) -> Result<()> {
    let what = || "write the archive";
    match to {
        None => {
            let mut to = io::stdout().lock();
            io::copy(from, &mut to).and_then(|_| to.flush()).context(what)
        }
        Some((folder, true)) => extract(from, &folder),
        Some((file, false)) => {
            let mut to = File::options().write(true).open(&file).context(what)?;
            io::copy(from, &mut to).context(what).map(drop)
        }
    }
}

/// Extracts the files of an archive into a folder.
fn extract(from: &mut dyn Read, folder: &Path) -> Result<()> {
    let what = || format!("write {}", folder.display());
    let mut archive = Reader::new(BufReader::new(from));
    while let Some(entry) = archive.next_entry().context(what)? {
        let name = String::from_utf8_lossy(&entry.path).into_owned();
        let name = Path::new(&name);
        if !name.components().all(|part| matches!(part, Component::Normal(_))) {
            return Err(Error::data_loss(format!("the daemon sent a file {}", name.display())));
        }
        let path = folder.join(name);
        match entry.kind {
            Kind::Directory => fs::create_dir_all(&path).context(what)?,
            _ => {
                let mut to = File::create_new(&path).context(what)?;
                let mut buffer = vec![0; COPY_LEN];
                loop {
                    match archive.read_data(&mut buffer).context(what)? {
                        0 => break,
                        len => to.write_all(&buffer[..len]).context(what)?,
                    }
                }
            }
        }
    }
    // Read the padding at the end, so that the daemon's writes do not fail.
    archive.drain().context(what)
}

/// A file or folder under a temporary name, which is renamed when it is complete. A device or a pipe is written to
/// directly.
struct Draft {
    path: PathBuf,
    name: PathBuf,
    kind: DraftKind,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum DraftKind {
    File,
    Folder,
    Device,
}

impl Draft {
    /// Creates a folder if one of the name exists or the name ends with a slash; otherwise a file.
    fn create(name: PathBuf) -> Result<Draft> {
        // Write to the target of a symlink, so that the symlink stays.
        let name = fs::canonicalize(&name).unwrap_or(name);
        if fs::metadata(&name).is_ok_and(|there| !there.is_file() && !there.is_dir()) {
            return Ok(Draft { path: name.clone(), name, kind: DraftKind::Device });
        }
        let is_folder = name.is_dir() || name.as_os_str().as_encoded_bytes().ends_with(b"/");
        if is_folder && fs::read_dir(&name).is_ok_and(|mut entries| entries.next().is_some()) {
            return Err(Error::already_exists(format!("folder {} is not empty", name.display())));
        }
        // Drops a slash at the end.
        let name: PathBuf = name.components().collect();
        let mut path = name.as_os_str().to_owned();
        path.push(format!(".{}.part", std::process::id()));
        let path = PathBuf::from(path);
        let made = if is_folder { fs::create_dir(&path) } else { File::create_new(&path).map(drop) };
        made.context(|| format!("create {}", path.display()))?;
        let kind = if is_folder { DraftKind::Folder } else { DraftKind::File };
        Ok(Draft { path, name, kind })
    }

    fn keep(self) -> Result<()> {
        if self.kind == DraftKind::Device {
            return Ok(());
        }
        fs::rename(&self.path, &self.name).context(|| format!("write {}", self.name.display()))
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        // After a success the path is gone, and this fails.
        let _ = match self.kind {
            DraftKind::File => fs::remove_file(&self.path),
            DraftKind::Folder => fs::remove_dir_all(&self.path),
            DraftKind::Device => Ok(()),
        };
    }
}
