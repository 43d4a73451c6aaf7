//! `run` and `create`: flags to a question, and the image fetched if it is not here.

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

use super::attend::{self, Leaving, Passing, Process};
use super::extras::ExtraFlags;
use super::limits::LimitFlags;
use super::refused::{NO_CGROUPS_OF_THE_MACHINE, NO_USERS_OF_ITS_OWN, Refused};
use super::timing;
use crate::commands::image::long::outcome;
use crate::commands::registry::TrustFlag;
use crate::commands::{list, registry};
use crate::output::text;
use crate::parse;
use crate::streams::{Attached, PrivateFolder};

/// The image that comes with the program.
const EMBEDDED: &str = "hello";

#[derive(Args)]
pub(crate) struct Flags {
    /// Print help
    // Without a letter: as Docker's, -h is the name of the machine that is seen inside.
    #[arg(long, action = clap::ArgAction::Help)]
    help: Option<bool>,
    /// In the background
    #[arg(long, short)]
    pub(crate) detach: bool,
    /// stdin, stdout or stderr, and no other stream; otherwise all
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
    /// With a terminal
    #[arg(long, short)]
    pub(crate) tty: bool,
    /// Remove it when it ends
    #[arg(long)]
    pub(crate) rm: bool,
    /// Print to standard error where the time of the start went
    #[arg(long)]
    pub(crate) timing: bool,
    /// Instead of one that is made up
    #[arg(long)]
    pub(crate) name: Option<String>,
    /// KEY=VALUE, or KEY for the value that it has here
    #[arg(long, short)]
    pub(crate) env: Vec<String>,
    /// A file with such lines
    #[arg(long)]
    pub(crate) env_file: Vec<String>,
    /// [HOST-PATH|NAME:]PATH[:ro]; a volume without a name goes with the container. Of a path, how it propagates too: `:rslave`
    #[arg(long, short, help_heading = "Files")]
    pub(crate) volume: Vec<String>,
    /// type=bind|volume|tmpfs,source=…,target=…[,readonly], of a tmpfs tmpfs-size and tmpfs-mode, of a bind bind-propagation
    #[arg(long, help_heading = "Files")]
    pub(crate) mount: Vec<String>,
    /// PATH[:OPTIONS]: a path that is kept in memory, with options like size=64m, mode=700, exec
    #[arg(long, help_heading = "Files")]
    pub(crate) tmpfs: Vec<String>,
    /// The directory in which it begins
    #[arg(long, short)]
    pub(crate) workdir: Option<String>,
    /// NAME|UID[:GROUP|GID]
    #[arg(long, short, help_heading = "Security")]
    pub(crate) user: Option<String>,
    /// Its name for itself; otherwise the beginning of its id
    #[arg(long, short = 'h', help_heading = "Network")]
    pub(crate) hostname: Option<String>,
    /// Program in place of the entrypoint of the image
    #[arg(long)]
    pub(crate) entrypoint: Option<String>,
    /// KEY=VALUE
    #[arg(long, short)]
    pub(crate) label: Vec<String>,
    /// A file with such lines; those with a # before them are left out
    #[arg(long, value_name = "FILE")]
    pub(crate) label_file: Vec<String>,
    /// Nothing but its volumes can be written to
    #[arg(long, help_heading = "Files")]
    pub(crate) read_only: bool,
    /// Who keeps the root file system: overlayfs, native, or a proxy plugin of the daemon's configuration
    #[arg(long, help_heading = "Files")]
    pub(crate) snapshotter: Option<String>,
    /// A capability more, or all
    #[arg(long, help_heading = "Security")]
    pub(crate) cap_add: Vec<String>,
    /// A capability less, or all
    #[arg(long, help_heading = "Security")]
    pub(crate) cap_drop: Vec<String>,
    /// Nearly all that the machine's root may do
    #[arg(long, help_heading = "Security")]
    pub(crate) privileged: bool,
    /// bridge, host, none, or container:NAME for that of another
    #[arg(long, alias = "net", default_value = "bridge", help_heading = "Network")]
    pub(crate) network: String,
    /// [[IP:]HOST-PORT:]PORT[/udp]; 8000-8010:80 is any of these that is free, 8000-8010:8000-8010 each of them
    #[arg(long, short, help_heading = "Network")]
    pub(crate) publish: Vec<String>,
    /// Each port that the image exposes, on one of this machine that is free
    #[arg(long, short = 'P', help_heading = "Network")]
    pub(crate) publish_all: bool,
    /// no, always, unless-stopped or on-failure[:N]
    #[arg(long, default_value = "no")]
    pub(crate) restart: String,
    /// When to fetch the image: always, missing or never
    #[arg(long, default_value = "missing", hide_possible_values = true)]
    pub(crate) pull: Pull,
    /// Without the progress of a pull
    #[arg(long, short)]
    pub(crate) quiet: bool,
    /// OS/ARCHITECTURE[/VARIANT]: which of an image's platforms, in place of this machine's
    #[arg(long)]
    pub(crate) platform: Option<String>,
    /// A new file, for the container's id
    #[arg(long, value_name = "FILE")]
    pub(crate) cidfile: Option<String>,
    /// Whose cgroups it sees: its own, which is private
    #[arg(long = "cgroupns", value_name = "MODE", help_heading = "Namespaces",
        value_parser = parse::refused_but(&["", "private"], NO_CGROUPS_OF_THE_MACHINE))]
    _cgroupns: Option<String>,
    /// Whose users it has: the machine's, which is host
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
    pub(crate) leaving: Leaving,
    #[command(flatten)]
    pub(crate) passing: Passing,
    /// A name, an archive of an image, or oci:DIRECTORY; and program and arguments in place of the image's command
    // One list: what comes after the image is the container's, whatever it looks like.
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

    /// Whether standard output and standard error are.
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

/// When an image is fetched, and whether that is shown.
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
    // On the heap: it holds all that was said of the container.
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

/// Makes the container; of one that is started to be stayed with, the streams too. If that is broken off, the daemon starts
/// nothing, and neither the pipes nor the file for the id stay.
async fn make(
    client: &Client,
    flags: Flags,
    start: bool,
    laps: &Laps,
) -> Result<(Created, Option<Attached>)> {
    let fetching = Fetching { when: flags.pull, quiet: flags.quiet };
    // Made first: a container whose id cannot be told is not made.
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

/// A file for the id of a container, which goes if there will be none.
struct IdFile {
    path: PathBuf,
    file: File,
    is_empty: bool,
}

impl IdFile {
    /// `AlreadyExists` if it is there: another container may have it.
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

/// Creates the container; pulls its image, or takes the embedded one, if it is not here, or in any case.
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

/// An archive or a layout in the place of a name is loaded first.
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
    // The embedded image tells how long its start took.
    let called_at = || u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).ok()?.as_nanos()).ok();
    let called_at = if image == EMBEDDED { called_at() } else { None };
    // Who starts it in the background has nothing to say to it.
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
        // Docker's word for the one that there is without a word.
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
