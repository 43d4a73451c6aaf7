//! `run` and `create`: builds the request from the flags, and pulls the image if it is missing.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{IsTerminal, Write as _};
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use api::engine::{Call, Create, Created, ImageFollow, Streams};
use clap::Args;
use client::Client;
use stdx::Laps;
use types::{Context, Error, ErrorKind, Result};

use super::attend::{self, DetachFlags, Process, SignalFlags};
use super::extras::ExtraFlags;
use super::limits::LimitFlags;
use super::refused::{NO_CGROUPS_OF_THE_MACHINE, NO_USERS_OF_ITS_OWN, Refused};
use super::timing;
use crate::commands::image::long::outcome;
use crate::commands::registry::TrustFlag;
use crate::commands::{list, registry};
use crate::output::text;
use crate::parse;
use crate::private_folder::PrivateFolder;
use crate::streams::Attached;

/// The image that is embedded in the program.
const EMBEDDED: &str = "hello";

#[derive(Args)]
pub(crate) struct Flags {
    /// Print help
    // Without a letter: `-h` is Docker's short form of `--hostname`.
    #[arg(long, action = clap::ArgAction::Help)]
    help: Option<bool>,
    /// Run in the background
    #[arg(long, short)]
    pub(crate) detach: bool,
    /// Attach stdin, stdout or stderr only; default is all
    #[arg(
        long,
        short,
        value_name = "STREAM",
        ignore_case = true,
        hide_possible_values = true,
        conflicts_with = "detach"
    )]
    pub(crate) attach: Vec<Stream>,
    /// Keep standard input open
    #[arg(long, short)]
    pub(crate) interactive: bool,
    /// Allocate a terminal
    #[arg(long, short)]
    pub(crate) tty: bool,
    /// Remove the container when it ends
    #[arg(long)]
    pub(crate) rm: bool,
    /// Print to standard error how long each step of the start took
    #[arg(long)]
    pub(crate) timing: bool,
    /// The container's name, instead of a random one
    #[arg(long)]
    pub(crate) name: Option<String>,
    /// KEY=VALUE, or KEY with its value in this environment
    #[arg(long, short)]
    pub(crate) env: Vec<String>,
    /// A file with lines of KEY=VALUE or KEY
    #[arg(long)]
    pub(crate) env_file: Vec<String>,
    /// [HOST-PATH|NAME:]PATH[:ro]; without HOST-PATH or NAME an anonymous volume. A bind's propagation is an option
    /// too: `:rslave`
    #[arg(long, short, help_heading = "Files")]
    pub(crate) volume: Vec<String>,
    /// type=bind|volume|tmpfs,source=…,target=…[,readonly], of a tmpfs tmpfs-size and tmpfs-mode, of a bind bind-propagation
    #[arg(long, help_heading = "Files")]
    pub(crate) mount: Vec<String>,
    /// PATH[:OPTIONS]: a tmpfs, with options such as size=64m, mode=700, exec
    #[arg(long, help_heading = "Files")]
    pub(crate) tmpfs: Vec<String>,
    /// The working directory
    #[arg(long, short)]
    pub(crate) workdir: Option<String>,
    /// NAME|UID[:GROUP|GID]
    #[arg(long, short, help_heading = "Security")]
    pub(crate) user: Option<String>,
    /// The host name [default: the beginning of the container's id]
    #[arg(long, short = 'h', help_heading = "Network")]
    pub(crate) hostname: Option<String>,
    /// Program that replaces the image's entrypoint
    #[arg(long)]
    pub(crate) entrypoint: Option<String>,
    /// KEY=VALUE
    #[arg(long, short)]
    pub(crate) label: Vec<String>,
    /// A file with lines of KEY=VALUE; lines that begin with # are ignored
    #[arg(long, value_name = "FILE")]
    pub(crate) label_file: Vec<String>,
    /// Mount the root file system read-only; volumes stay writable
    #[arg(long, help_heading = "Files")]
    pub(crate) read_only: bool,
    /// The snapshotter of the root file system: overlayfs, native, or a proxy plugin in the daemon's configuration
    #[arg(long, help_heading = "Files")]
    pub(crate) snapshotter: Option<String>,
    /// Add a capability, or all
    #[arg(long, help_heading = "Security")]
    pub(crate) cap_add: Vec<String>,
    /// Drop a capability, or all
    #[arg(long, help_heading = "Security")]
    pub(crate) cap_drop: Vec<String>,
    /// Grant nearly all rights of the machine's root
    #[arg(long, help_heading = "Security")]
    pub(crate) privileged: bool,
    /// bridge, host, none, or container:NAME for another container's network
    #[arg(long, alias = "net", default_value = "bridge", help_heading = "Network")]
    pub(crate) network: String,
    /// [[IP:]HOST-PORT:]PORT[/udp]; 8000-8010:80 is any free port of these, 8000-8010:8000-8010 is each of them
    #[arg(long, short, help_heading = "Network")]
    pub(crate) publish: Vec<String>,
    /// Publish each port that the image exposes on a free port of this machine
    #[arg(long, short = 'P', help_heading = "Network")]
    pub(crate) publish_all: bool,
    /// no, always, unless-stopped or on-failure[:N]
    #[arg(long, default_value = "no")]
    pub(crate) restart: String,
    /// When to fetch the image: always, missing or never
    #[arg(long, default_value = "missing", hide_possible_values = true)]
    pub(crate) pull: Pull,
    /// Do not show the progress of a pull
    #[arg(long, short)]
    pub(crate) quiet: bool,
    /// OS/ARCHITECTURE[/VARIANT]: the platform of the image, instead of this machine's
    #[arg(long)]
    pub(crate) platform: Option<String>,
    /// Write the container's id to a new file
    #[arg(long, value_name = "FILE")]
    pub(crate) cidfile: Option<String>,
    /// The cgroup namespace: only private is possible
    #[arg(long = "cgroupns", value_name = "MODE", help_heading = "Namespaces",
        value_parser = parse::refused_but(&["", "private"], NO_CGROUPS_OF_THE_MACHINE))]
    _cgroupns: Option<String>,
    /// The user namespace: only host is possible
    #[arg(long = "userns", value_name = "MODE", help_heading = "Namespaces",
        value_parser = parse::refused_but(&["", "host"], NO_USERS_OF_ITS_OWN))]
    _userns: Option<String>,
    #[command(flatten)]
    pub(crate) limits: LimitFlags,
    #[command(flatten)]
    pub(crate) extras: ExtraFlags,
    #[command(flatten)]
    _trust: TrustFlag,
    #[command(flatten)]
    _refused: Refused,
    #[command(flatten)]
    pub(crate) leaving: DetachFlags,
    #[command(flatten)]
    pub(crate) passing: SignalFlags,
    /// An image's name, an image archive, or oci:DIRECTORY; then the program and its arguments, instead of the image's
    /// command
    // One list of words: all words after the image are the container's, also those that look like flags.
    #[arg(id = "image", required = true, trailing_var_arg = true, value_names = ["IMAGE", "COMMAND"])]
    pub(crate) words: Vec<String>,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Stream {
    Stdin,
    Stdout,
    Stderr,
}

impl Flags {
    fn attaches(&self, stream: Stream) -> bool {
        self.attach.is_empty() || self.attach.contains(&stream)
    }

    /// Whether standard output and standard error are attached.
    fn shown(&self) -> [bool; 2] {
        [Stream::Stdout, Stream::Stderr].map(|stream| self.attaches(stream))
    }

    fn image(&self) -> &str {
        self.words.first().expect("clap asks for one")
    }
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Pull {
    Always,
    Missing,
    Never,
}

/// When an image is pulled, and whether progress is shown.
#[derive(Clone, Copy)]
struct Fetching {
    when: Pull,
    quiet: bool,
}

pub(super) async fn run(client: &Client, flags: Flags, start: bool) -> Result<u8> {
    let (laps, timing) = (Laps::start(), flags.timing);
    let (detach, tty) = (flags.detach || !start, flags.tty);
    if tty && flags.interactive && !detach && !std::io::stdin().is_terminal() {
        return Err(Error::invalid_argument("the input device is not a terminal; leave out -t, or -i"));
    }
    if !detach && flags.shown() == [false, false] {
        return Err(Error::invalid_argument(
            "-a stdin alone: add -a stdout or -a stderr; to leave a container to itself once it has its input, use -di, and \
             `hoist attach`",
        ));
    }
    let (detach_keys, takes_signals) = (flags.leaving.detach_keys.clone(), flags.passing.sig_proxy);
    let mut signals = attend::listen(tty)?;
    // Boxed, as the future holds the whole configuration of the container.
    let making = Box::pin(make(client, flags, start, &laps));
    let (created, attached) = match signals.unless_one_comes(making).await {
        ControlFlow::Break(code) => return Ok(code),
        ControlFlow::Continue(made) => made?,
    };
    created.warnings.iter().for_each(|warning| eprintln!("WARNING: {warning}"));
    let code = match attached {
        Some(attached) => {
            let process = Process {
                container: &created.id,
                exec: None,
                tty,
                ends_input: true,
                detach_keys,
                takes_signals,
            };
            let code = process.attend(client, attached, signals).await?;
            laps.lap(timing::RUN);
            code
        }
        None => {
            println!("{}", created.id);
            0
        }
    };
    if timing {
        timing::print(&laps, &created);
    }
    Ok(code)
}

/// Creates the container; if it is to be started and attached, also the streams. If a signal cancels this, the daemon
/// starts nothing, and the pipes and the id file are removed.
async fn make(
    client: &Client,
    flags: Flags,
    start: bool,
    laps: &Laps,
) -> Result<(Created, Option<Attached>)> {
    let fetching = Fetching { when: flags.pull, quiet: flags.quiet };
    // Before the container: if the id file cannot be created, no container is.
    let id_file = flags.cidfile.clone().filter(|path| !path.is_empty());
    let id_file = id_file.map(|path| IdFile::make(path.into())).transpose()?;
    let image = find_source(client, flags.image()).await?;
    let stays = start && !flags.detach;
    let types = flags.interactive && flags.attaches(Stream::Stdin);
    let prepare =
        || Attached::prepare_some(PrivateFolder::create(client.address())?, types, flags.tty, flags.shown());
    let attached = stays.then(prepare).transpose()?;
    let mut create = create(flags, image)?;
    create.start = start;
    create.streams = attached.as_ref().map(|attached| attached.streams.clone()).unwrap_or_default();
    let created = match create_or_pull(client, create, fetching, laps).await {
        Ok(created) => created,
        Err(error) => {
            if let Some(attached) = attached {
                attached.abandon();
            }
            return Err(error);
        }
    };
    if let Some(file) = id_file {
        file.write(&created.id)?;
    }
    Ok((created, attached))
}

/// The file of `--cidfile`, which is removed unless the container is created.
struct IdFile {
    path: PathBuf,
    file: File,
    is_empty: bool,
}

impl IdFile {
    /// Creates the file. `AlreadyExists` if it exists: it may hold the id of another container.
    fn make(path: PathBuf) -> Result<IdFile> {
        let file = File::create_new(&path);
        let file = file.context(|| format!("make {} for the container's id", path.display()))?;
        Ok(IdFile { path, file, is_empty: true })
    }

    fn write(mut self, id: &str) -> Result<()> {
        self.is_empty = false;
        self.file.write_all(id.as_bytes()).context(|| format!("write {}", self.path.display()))
    }
}

impl Drop for IdFile {
    fn drop(&mut self) {
        if self.is_empty {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// Creates the container. Pulls the image, or loads the embedded one, if it is missing or `--pull always` is given.
async fn create_or_pull(client: &Client, create: Create, fetching: Fetching, laps: &Laps) -> Result<Created> {
    let call = Call::Create(Box::new(create.clone()));
    laps.lap(timing::PIPES);
    if fetching.when == Pull::Always && create.image != EMBEDDED {
        registry::pull::pull(client, &create.image, create.platform.clone(), fetching.quiet).await?;
        laps.lap(timing::FETCH);
    }
    let is_missing = |error: &Error| error.is(ErrorKind::NotFound) && error.chain().contains("No such image");
    let answer = match client.call(&call).await {
        Err(error) if fetching.when == Pull::Missing && is_missing(&error) => {
            if create.image == EMBEDDED {
                let embedded = Some(EMBEDDED.into());
                outcome(client, ImageFollow::Load { path: String::new(), embedded, fallback: None }).await?;
            } else {
                if !fetching.quiet {
                    eprintln!("Unable to find image '{}' locally", create.image);
                }
                registry::pull::pull(client, &create.image, create.platform.clone(), fetching.quiet).await?;
            }
            laps.lap(timing::FETCH);
            client.call(&call).await?
        }
        other => other?,
    };
    laps.lap(timing::ASK);
    serde_json::from_value(answer)
        .map_err(|error| Error::internal("read the daemon's answer").with_source(error))
}

/// Loads the image if the argument is an archive or a layout. Returns the image's name.
async fn find_source(client: &Client, image: &str) -> Result<String> {
    let layout = image.strip_prefix("oci:");
    let is_file = image.starts_with(['/', '.']) || layout.is_some();
    if !is_file {
        return Ok(image.to_owned());
    }
    let path = std::path::absolute(layout.unwrap_or(image)).context(|| format!("find {image}"))?;
    let loaded = {
        let fallback = path.file_stem().and_then(std::ffi::OsStr::to_str).map(str::to_owned);
        let load = ImageFollow::Load { path: path.display().to_string(), embedded: None, fallback };
        outcome(client, load).await?
    };
    let name = list(&loaded).first().map(|image| text(image, "Name"));
    name.ok_or_else(|| Error::invalid_argument(format!("{image} holds no image")))
}

fn create(flags: Flags, image: String) -> Result<Create> {
    // The embedded image prints how long its start took.
    let called_at = || u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).ok()?.as_nanos()).ok();
    let called_at = if image == EMBEDDED { called_at() } else { None };
    // A detached container's input is not ours to end.
    let stdin_once = flags.interactive && !flags.detach && flags.attaches(Stream::Stdin);
    let mut env = Vec::new();
    for file in &flags.env_file {
        env.extend(parse::env_file("--env-file", file)?);
    }
    for entry in &flags.env {
        env.push(parse::env(entry)?);
    }
    let mut mounts = flags.volume.iter().map(|text| parse::volume(text)).collect::<Result<Vec<_>>>()?;
    for text in &flags.mount {
        mounts.push(parse::mount(text)?);
    }
    for text in &flags.tmpfs {
        mounts.push(parse::tmpfs(text)?);
    }
    let mut ports = Vec::new();
    for text in &flags.publish {
        ports.extend(parse::ports(text)?);
    }
    let mut labels = BTreeMap::new();
    for file in &flags.label_file {
        let about = || format!("--label-file: read {file}");
        let content = std::fs::read_to_string(file).context(about)?;
        labels.extend(parse::labels(&content).map_err(|error| error.context(about()))?);
    }
    labels.extend(parse::label_words(&flags.label));
    let limits = flags.limits.read()?;
    Ok(Create {
        image,
        platform: flags.platform,
        name: flags.name,
        command: flags.words.into_iter().skip(1).collect(),
        entrypoint: flags.entrypoint,
        env,
        workdir: flags.workdir,
        user: flags.user,
        hostname: flags.hostname,
        tty: flags.tty,
        interactive: flags.interactive,
        stdin_once,
        auto_remove: flags.rm,
        read_only: flags.read_only,
        snapshotter: flags.snapshotter,
        privileged: flags.privileged,
        cap_add: flags.cap_add,
        cap_drop: flags.cap_drop,
        memory: limits.memory,
        milli_cpus: limits.milli_cpus,
        pids_limit: limits.pids_limit,
        mounts,
        // Docker's alias of the default network.
        network: if flags.network == "default" { "bridge".into() } else { flags.network },
        ports,
        publish_all: flags.publish_all,
        extras: flags.extras.read(&limits)?,
        restart: parse::restart(&flags.restart)?,
        labels,
        start: false,
        streams: Streams::default(),
        called_at,
    })
}
