//! Shell completion: of commands and flags from their definitions, and of names from the daemon.
//!
//! ```text
//! hoist completion bash ─▶ a script, which the shell reads once
//! TAB ─▶ the script ─▶ HOIST_COMPLETE=bash hoist -- hoist stop w ─▶ which argument is it? ─▶ daemon ─▶ web worker
//! ```
//!
//! Completion never starts a daemon, and offers no names if the daemon does not answer at once.

use std::ffi::{OsStr, OsString};
use std::io;
use std::time::Duration;

use api::engine::{Call, ImageCall, NetworkCall, VolumeCall};
use clap::{Arg, Command, CommandFactory};
use clap_complete::engine::{ArgValueCompleter, CompletionCandidate};
use clap_complete::env::{CompleteEnv, Shells};
use client::Client;
use types::{Context, Error, Result};

use crate::args::{ADDRESS, ADDRESS_DEFAULT, Cli};
use crate::commands::list;
use crate::daemon::socket_path;
use crate::output::text;

const PROGRAM: &str = "hoist";

/// The environment variable by which a shell asks for completions. Its value is the shell's name.
const ASKS: &str = "HOIST_COMPLETE";

/// How long a user who presses Tab waits for names.
const ANSWER_MAX: Duration = Duration::from_millis(500);

/// The kind of object that an argument names.
#[derive(Clone, Copy)]
enum Kind {
    Container,
    /// A running container.
    Running,
    Image,
    Volume,
    Network,
    /// A container or an image.
    Any,
}

/// The script that a shell loads to enable completion.
pub(crate) fn script(shell: clap_complete::Shell) -> Result<Vec<u8>> {
    let name = shell.to_string();
    let shells = Shells::builtins();
    let known =
        shells.completer(&name).ok_or_else(|| Error::unimplemented(format!("completions for {name}")))?;
    let mut script = Vec::new();
    known
        .write_registration(ASKS, PROGRAM, PROGRAM, PROGRAM, &mut script)
        .context(|| format!("write the completions for {name}"))?;
    Ok(script)
}

/// Answers a shell that asks for completions. Returns whether one did.
pub(crate) fn answer(words: &[OsString]) -> clap::error::Result<bool> {
    if std::env::var_os(ASKS).is_none() {
        return Ok(false);
    }
    let address = address(words);
    let command = move || {
        let mut command = Cli::command();
        // The nouns' commands are deferred: build them now.
        command.build();
        with_names(command, &address)
    };
    CompleteEnv::with_factory(command).var(ASKS).bin(PROGRAM).try_complete(words, None)
}

/// The daemon's socket: the one on the command line that is completed, or the default.
fn address(words: &[OsString]) -> String {
    let mut words = words.iter().filter_map(|word| word.to_str());
    while let Some(word) = words.next() {
        let typed = match word {
            "-H" | "--address" | "--host" => words.next(),
            _ => word.strip_prefix("--address=").or_else(|| word.strip_prefix("--host=")),
        };
        if let Some(typed) = typed {
            return typed.to_owned();
        }
    }
    std::env::var(ADDRESS).unwrap_or_else(|_| ADDRESS_DEFAULT.to_owned())
}

fn with_names(command: Command, address: &str) -> Command {
    let name = command.get_name().to_owned();
    let offer = |arg: Arg| match kind(&name, &arg) {
        Some(kind) => {
            let address = address.to_owned();
            arg.add(ArgValueCompleter::new(move |typed: &OsStr| candidates(&address, kind, typed)))
        }
        None => arg,
    };
    command.mut_args(offer).mut_subcommands(|command| with_names(command, address))
}

/// The kind of object that an argument of a command names, derived from the argument's id.
fn kind(command: &str, arg: &Arg) -> Option<Kind> {
    if !arg.is_positional() {
        return None;
    }
    Some(match arg.get_id().as_str() {
        "container" | "containers" => match command {
            "stop" | "kill" | "attach" | "exec" | "pause" | "top" | "port" | "stats" => Kind::Running,
            _ => Kind::Container,
        },
        "image" | "images" | "pattern" | "from" | "to" => Kind::Image,
        // For `cp` it is a path in a container.
        "source" if command != "cp" => Kind::Image,
        "volumes" => Kind::Volume,
        "networks" => Kind::Network,
        "names" => Kind::Any,
        _ => return None,
    })
}

fn candidates(address: &str, kind: Kind, typed: &OsStr) -> Vec<CompletionCandidate> {
    let Some(typed) = typed.to_str() else { return Vec::new() };
    // An error message would appear in the middle of the user's command line.
    let names = names(address, kind).unwrap_or_default().into_iter();
    names.filter(|name| name.starts_with(typed)).map(CompletionCandidate::new).collect()
}

fn names(address: &str, kind: Kind) -> Result<Vec<String>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.context(|| "make an executor")?;
    let asking = async {
        tokio::time::timeout(ANSWER_MAX, ask(address, kind))
            .await
            .map_err(io::Error::from)
            .context(|| "ask for names")?
    };
    runtime.block_on(asking)
}

async fn ask(address: &str, kind: Kind) -> Result<Vec<String>> {
    let client = Client::connect(socket_path(address)?).await?;
    let mut names = Vec::new();
    if matches!(kind, Kind::Container | Kind::Running | Kind::Any) {
        let all = !matches!(kind, Kind::Running);
        let containers = Call::List { all, filters: Vec::new(), last: None, sizes: false };
        names.extend(list(&client.call(&containers).await?).iter().map(|row| text(row, "Names")));
    }
    if matches!(kind, Kind::Image | Kind::Any) {
        let images = ImageCall::List { filters: Vec::new(), all: false, tree: false, sizes: false };
        let images = client.call(&Call::Image(images)).await?;
        let name = |row| format!("{}:{}", text(row, "Repository"), text(row, "Tag"));
        names.extend(list(&images).iter().map(name).filter(|name| !name.contains('<')));
    }
    if matches!(kind, Kind::Volume) {
        let volumes = client.call(&Call::Volume(VolumeCall::List { filters: Vec::new() })).await?;
        names.extend(list(&volumes).iter().map(|row| text(row, "Name")));
    }
    if matches!(kind, Kind::Network) {
        let networks = client.call(&Call::Network(NetworkCall::List { filters: Vec::new() })).await?;
        names.extend(list(&networks).iter().map(|row| text(row, "Name")));
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn completion_asks_the_socket_on_the_command_line() {
        let address = |words: &str| address(&words.split(' ').map(OsString::from).collect::<Vec<_>>());
        assert_eq!(address("hoist -- hoist -H /a stop x"), "/a");
        assert_eq!(address("hoist -- hoist --address=/b stop"), "/b");
        assert_eq!(address("hoist -- hoist stop --address /c"), "/c");
        assert_eq!(address("hoist -- hoist --host /d stop"), "/d");
    }

    /// Arguments are recognized by their id, so a new one must use an id that `kind` knows.
    #[test]
    fn completion_knows_every_argument_that_names_an_object() {
        let mut all = Cli::command();
        all.build();
        let mut unknown = Vec::new();
        let mut commands = vec![all];
        while let Some(command) = commands.pop() {
            let positionals = command.get_positionals().filter(|arg| kind(command.get_name(), arg).is_none());
            unknown.extend(positionals.map(|arg| format!("{} {}", command.get_name(), arg.get_id())));
            // Hidden commands are not completed.
            commands.extend(command.get_subcommands().filter(|command| !command.is_hide_set()).cloned());
        }
        unknown.sort();
        unknown.dedup();
        assert_eq!(
            unknown,
            [
                "completion shell",
                "convert target",
                "cp destination",
                "cp source",
                "create name",
                "ctr words",
                "daemon words",
                "import file",
                "import name",
                "import-containerd root",
                "login server",
                "logout server",
                "mount path",
                "port port",
                "rename name",
                "runtime words",
                "tag target",
                "top options",
                "unmount paths",
            ]
        );
    }
}
