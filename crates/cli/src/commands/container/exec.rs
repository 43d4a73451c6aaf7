//! `exec`: runs a command in a running container.

use std::io::IsTerminal;
use std::ops::ControlFlow;

use api::engine::Call;
use clap::Args;
use client::Client;
use types::{Error, Result};

use super::attend::{self, DetachFlags, Process};
use crate::output::{said, text};
use crate::parse;
use crate::private_folder::PrivateFolder;
use crate::streams::Attached;

#[derive(Args)]
pub(crate) struct Flags {
    /// Run in the background
    #[arg(long, short)]
    pub(crate) detach: bool,
    /// Keep standard input open
    #[arg(long, short)]
    pub(crate) interactive: bool,
    /// Allocate a terminal
    #[arg(long, short)]
    pub(crate) tty: bool,
    /// KEY=VALUE, or KEY with its value in this environment
    #[arg(long, short)]
    pub(crate) env: Vec<String>,
    /// A file with lines of KEY=VALUE or KEY
    #[arg(long, value_name = "FILE")]
    pub(crate) env_file: Vec<String>,
    /// The working directory
    #[arg(long, short)]
    pub(crate) workdir: Option<String>,
    /// NAME|UID[:GROUP|GID]
    #[arg(long, short)]
    pub(crate) user: Option<String>,
    /// Grant nearly all rights of the machine's root
    #[arg(long)]
    pub(crate) privileged: bool,
    #[command(flatten)]
    pub(crate) leaving: DetachFlags,
    /// A container's name or id; then the program and its arguments
    // One list of words: all words after the container are the program's, also those that look like flags.
    #[arg(id = "container", num_args = 2.., required = true, trailing_var_arg = true, value_names = ["CONTAINER", "COMMAND"])]
    pub(crate) words: Vec<String>,
}

pub(super) async fn run(client: &Client, flags: Flags) -> Result<u8> {
    if flags.tty && flags.interactive && !flags.detach && !std::io::stdin().is_terminal() {
        return Err(Error::invalid_argument("the input device is not a terminal; leave out -t, or -i"));
    }
    let mut env = Vec::new();
    for file in &flags.env_file {
        env.extend(parse::env_file("--env-file", file)?);
    }
    for entry in &flags.env {
        env.push(parse::env(entry)?);
    }
    let mut signals = attend::listen(flags.tty)?;
    let prepare =
        || Attached::prepare(PrivateFolder::create(client.address())?, flags.interactive, flags.tty);
    let attached = (!flags.detach).then(prepare).transpose()?;
    let mut words = flags.words.into_iter();
    let call = Call::Exec(Box::new(api::engine::Exec {
        id: words.next().expect("clap asks for one"),
        command: words.collect(),
        env,
        workdir: flags.workdir,
        user: flags.user,
        tty: flags.tty,
        privileged: flags.privileged,
        detach: flags.detach,
        streams: attached.as_ref().map(|attached| attached.streams.clone()).unwrap_or_default(),
    }));
    let answer = match signals.unless_one_comes(client.call(&call)).await {
        ControlFlow::Break(code) => return Ok(code),
        ControlFlow::Continue(Ok(answer)) => answer,
        ControlFlow::Continue(Err(error)) => {
            if let Some(attached) = attached {
                attached.abandon();
            }
            let code = crate::run_code(&error);
            if code == 125 {
                return Err(error);
            }
            eprintln!("hoist: {}", said(&error));
            return Ok(code);
        }
    };
    let Some(attached) = attached else { return Ok(0) };
    let process = Process {
        container: &text(&answer, "Id"),
        exec: Some(text(&answer, "ExecId")),
        tty: flags.tty,
        ends_input: true,
        detach_keys: flags.leaving.detach_keys,
        // As with `docker exec`, a signal ends this client, and the process goes on.
        takes_signals: false,
    };
    process.attend(client, attached, signals).await
}
