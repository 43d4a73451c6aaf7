//! Commands and flags, with Docker's names.

use clap::{Args, Parser, Subcommand};

/// Run containers.
#[derive(Parser)]
#[command(name = "hoist", version, about, long_about = None, disable_help_subcommand = true, args_override_self = true)]
pub(crate) struct Cli {
    /// The daemon's socket.
    #[arg(long, short = 'H', global = true, env = "HOIST_ADDRESS", default_value = "/run/hoist/hoist.sock")]
    pub(crate) address: String,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Create a container and start it
    Run(Box<Create>),
    /// Create a container
    Create(Box<Create>),
    /// Start containers
    Start {
        #[arg(required = true)]
        containers: Vec<String>,
    },
    /// Stop containers
    Stop {
        /// Seconds before they are killed
        #[arg(long, short = 't', alias = "time")]
        timeout: Option<u64>,
        #[arg(long, short = 's')]
        signal: Option<String>,
        #[arg(required = true)]
        containers: Vec<String>,
    },
    /// Stop containers and start them again
    Restart {
        #[arg(long, short = 't', alias = "time")]
        timeout: Option<u64>,
        #[arg(required = true)]
        containers: Vec<String>,
    },
    /// Send a signal to containers
    Kill {
        #[arg(long, short = 's', default_value = "KILL")]
        signal: String,
        #[arg(required = true)]
        containers: Vec<String>,
    },
    /// Remove containers
    Rm {
        /// Kill those that run
        #[arg(long, short)]
        force: bool,
        #[arg(required = true)]
        containers: Vec<String>,
    },
    /// List containers
    Ps {
        /// Those that do not run too
        #[arg(long, short)]
        all: bool,
        /// Ids only
        #[arg(long, short)]
        quiet: bool,
        #[arg(long)]
        no_trunc: bool,
        /// `json`, `table TEMPLATE`, or a template
        #[arg(long)]
        format: Option<String>,
    },
    /// Show what a container wrote
    Logs {
        /// Go on as it writes
        #[arg(long, short)]
        follow: bool,
        /// The last lines only
        #[arg(long, short = 'n')]
        tail: Option<String>,
        #[arg(long, short)]
        timestamps: bool,
        container: String,
    },
    /// Run a command in a container that runs
    Exec(Exec),
    /// Show everything about containers or images
    Inspect {
        #[arg(long, short)]
        format: Option<String>,
        #[arg(required = true)]
        names: Vec<String>,
    },
    /// Wait for containers to end and print their exit codes
    Wait {
        #[arg(required = true)]
        containers: Vec<String>,
    },
    /// Stop the processes of containers for a while
    Pause {
        #[arg(required = true)]
        containers: Vec<String>,
    },
    /// Let the processes of containers go on
    Unpause {
        #[arg(required = true)]
        containers: Vec<String>,
    },
    /// Show what containers use
    Stats {
        /// One sample
        #[arg(long)]
        no_stream: bool,
        #[arg(long)]
        format: Option<String>,
        containers: Vec<String>,
    },
    /// Fetch an image
    Pull {
        #[arg(long, short)]
        quiet: bool,
        #[arg(long)]
        platform: Option<String>,
        image: String,
    },
    /// List images
    Images {
        #[arg(long, short)]
        quiet: bool,
        #[arg(long)]
        digests: bool,
        #[arg(long)]
        no_trunc: bool,
        #[arg(long)]
        format: Option<String>,
    },
    /// Give an image another name
    Tag {
        /// Name or id
        source: String,
        /// NAME[:TAG]
        target: String,
    },
    /// Remove images
    Rmi {
        #[arg(long, short)]
        force: bool,
        #[arg(required = true)]
        images: Vec<String>,
    },
    /// Load images from an archive: an OCI layout, or what `docker save` writes
    Load {
        /// The archive; standard input without it
        #[arg(long, short)]
        input: Option<String>,
    },
    /// Make an image of one layer from a tar of a root file system
    Import {
        /// Say how it came to be
        #[arg(long, short, default_value = "")]
        message: String,
        /// The tar, of any compression; `-` is standard input
        file: String,
        /// NAME[:TAG]
        name: Option<String>,
    },
    /// Save images to an archive: an OCI layout that `docker load` reads too
    Save {
        /// The archive; standard output without it
        #[arg(long, short)]
        output: Option<std::path::PathBuf>,
        #[arg(required = true)]
        images: Vec<String>,
    },
    /// The whole
    #[command(subcommand)]
    System(System),
    /// Show the whole
    Info {
        #[arg(long, short)]
        format: Option<String>,
    },
    /// Show the versions of the command line and the daemon
    Version,
    /// Print completions for a shell
    Completion { shell: clap_complete::Shell },
}

#[derive(Subcommand)]
pub(crate) enum System {
    /// Show the whole
    Info {
        #[arg(long, short)]
        format: Option<String>,
    },
    /// Show what uses the disk
    Df {
        #[arg(long)]
        format: Option<String>,
    },
    /// Remove containers that do not run, and what nothing needs
    Prune {
        /// Without asking
        #[arg(long, short)]
        force: bool,
    },
    /// Compare records with disk and kernel
    Check {
        /// Remove what belongs to nothing
        #[arg(long)]
        repair: bool,
    },
}

#[derive(Args)]
pub(crate) struct Create {
    /// In the background
    #[arg(long, short)]
    pub(crate) detach: bool,
    /// Keep standard input open
    #[arg(long, short)]
    pub(crate) interactive: bool,
    /// With a terminal
    #[arg(long, short)]
    pub(crate) tty: bool,
    /// Remove it when it ends
    #[arg(long)]
    pub(crate) rm: bool,
    #[arg(long)]
    pub(crate) name: Option<String>,
    #[arg(long, short)]
    pub(crate) env: Vec<String>,
    #[arg(long)]
    pub(crate) env_file: Vec<String>,
    /// HOST-PATH|NAME:PATH[:ro]
    #[arg(long, short)]
    pub(crate) volume: Vec<String>,
    /// type=bind|volume|tmpfs,source=…,target=…[,readonly]
    #[arg(long)]
    pub(crate) mount: Vec<String>,
    #[arg(long)]
    pub(crate) tmpfs: Vec<String>,
    #[arg(long, short)]
    pub(crate) workdir: Option<String>,
    #[arg(long, short)]
    pub(crate) user: Option<String>,
    #[arg(long)]
    pub(crate) hostname: Option<String>,
    #[arg(long)]
    pub(crate) entrypoint: Option<String>,
    #[arg(long, short)]
    pub(crate) label: Vec<String>,
    #[arg(long)]
    pub(crate) read_only: bool,
    #[arg(long)]
    pub(crate) cap_add: Vec<String>,
    #[arg(long)]
    pub(crate) cap_drop: Vec<String>,
    #[arg(long)]
    pub(crate) privileged: bool,
    /// Bytes, or with k, m, g behind
    #[arg(long, short)]
    pub(crate) memory: Option<String>,
    #[arg(long)]
    pub(crate) cpus: Option<String>,
    #[arg(long, allow_negative_numbers = true)]
    pub(crate) pids_limit: Option<i64>,
    /// bridge, host or none
    #[arg(long, alias = "net", default_value = "bridge")]
    pub(crate) network: String,
    /// [[IP:]HOST-PORT:]PORT[/udp]
    #[arg(long, short)]
    pub(crate) publish: Vec<String>,
    /// no, always, unless-stopped or on-failure[:N]
    #[arg(long, default_value = "no")]
    pub(crate) restart: String,
    /// A name, an archive of an image, or oci:DIRECTORY
    pub(crate) image: String,
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub(crate) command: Vec<String>,
}

#[derive(Args)]
pub(crate) struct Exec {
    /// In the background
    #[arg(long, short)]
    pub(crate) detach: bool,
    #[arg(long, short)]
    pub(crate) interactive: bool,
    #[arg(long, short)]
    pub(crate) tty: bool,
    #[arg(long, short)]
    pub(crate) env: Vec<String>,
    #[arg(long, short)]
    pub(crate) workdir: Option<String>,
    #[arg(long, short)]
    pub(crate) user: Option<String>,
    #[arg(long)]
    pub(crate) privileged: bool,
    pub(crate) container: String,
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    pub(crate) command: Vec<String>,
}
