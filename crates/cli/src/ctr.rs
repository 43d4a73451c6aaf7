//! `ctr`: a command line compatible with containerd's `ctr`, for scripts, over containerd's API.
//!
//! ```text
//! words ─▶ [`command`] (a table of nouns and verbs) ─▶ one file for each noun ─▶ gRPC ─▶ columns that scripts parse
//! ```
//!
//! It does and prints what containerd's `ctr` does, except for white space in tables. A command or flag that is missing
//! here is refused by name; none is ignored. Flags may stand anywhere before `--`, except for `run`, `tasks exec` and
//! `containers create`, where the first word that is no flag begins the container's own words.

mod apparmor;
mod checkpoint;
mod cni;
mod command;
mod connection;
mod containers;
mod content;
mod events;
mod images;
mod inspect;
mod layers;
mod leases;
mod namespaces;
mod objects;
mod plugins;
mod registries;
mod restore;
mod run;
mod sandboxes;
mod schema;
mod server;
mod snapshots;
mod spec;
mod table;
mod tasks;
mod transfer;
mod version;

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

use command::{Command, Flag, What};

use crate::output::said;

/// The sockets of containerd and of Hoist.
const CONTAINERDS: &str = "/run/containerd/containerd.sock";
const HOISTS: &str = crate::args::ADDRESS_DEFAULT;

const GLOBAL: &[Flag] = &[
    Flag::switch("debug", "print more about errors"),
    Flag::value("address,a", "the daemon's socket [$CONTAINERD_ADDRESS]"),
    Flag::value("timeout", "how long a command may take, such as 30s"),
    Flag::value("connect-timeout", "how long it may take to reach the daemon"),
    Flag::value("namespace,n", "the namespace [$CONTAINERD_NAMESPACE]"),
];

const NOUNS: &[Command] = &[
    Command::group("plugins|plugin", "the parts of the daemon", plugins::VERBS),
    version::COMMAND,
    Command::group("containers|c|container", "containers' records", containers::VERBS),
    Command::group("content", "blobs", content::VERBS),
    events::COMMAND,
    Command::group("images|image|i", "images", images::VERBS),
    Command::group("leases", "leases", leases::VERBS),
    Command::group("namespaces|namespace|ns", "namespaces", namespaces::VERBS),
    run::COMMAND,
    Command {
        flags: snapshots::GROUP_FLAGS,
        ..Command::group("snapshots|snapshot", "snapshots", snapshots::VERBS)
    },
    Command::group("tasks|t|task", "containers that run", tasks::VERBS),
    Command::group("sandboxes|sandbox|sb|s", "pods", sandboxes::VERBS),
    Command::group("oci", "OCI documents", &[spec::COMMAND]),
    server::INFO,
    server::DEPRECATIONS,
];

const ROOT: Command = Command {
    names: "ctr",
    usage: "[global options] command [command options] [arguments...]",
    about: "a client for containerd's API",
    flags: GLOBAL,
    is_program: false,
    what: What::Group(NOUNS),
};

/// Runs one command. `args[0]` is the program's name.
pub fn main(args: Vec<OsString>) -> ExitCode {
    crate::lost_output::end_without_panic("ctr");
    let words = args.into_iter().skip(1).map(|word| word.to_string_lossy().into_owned()).collect();
    let call = match command::parse(&ROOT, words) {
        Ok(command::Parsed::Call(call)) => call,
        Ok(command::Parsed::Help(text)) => {
            print!("{text}");
            return ExitCode::SUCCESS;
        }
        Err(error) => {
            eprintln!("ctr: {}", said(&error));
            return ExitCode::FAILURE;
        }
    };
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().expect("an executor can be made");
    let (socket, is_named) =
        (call.socket(), call.value("address").is_some() || address_of_environment().is_some());
    let outcome = runtime.block_on(call.run());
    // A read of standard input may still block a thread; do not wait for it.
    runtime.shutdown_background();
    match outcome {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("ctr: {}", said(&error));
            if let Some(hint) = connection::way_out(&error, &socket, is_named) {
                eprintln!("hint: {hint}");
            }
            ExitCode::FAILURE
        }
    }
}

fn address_of_environment() -> Option<String> {
    std::env::var("CONTAINERD_ADDRESS").ok()
}

/// The daemon's socket if no flag names one.
fn default_address() -> String {
    if let Some(address) = address_of_environment() {
        return address;
    }
    let called = std::env::args_os().next().unwrap_or_default();
    let addresses = addresses(Path::new(&called));
    let there = addresses.iter().find(|address| Path::new(address).exists());
    (*there.unwrap_or(&addresses[0])).to_owned()
}

/// The sockets to look for, in order. `hoist ctr` means Hoist's daemon, also beside a containerd; a program called `ctr`
/// stands in for containerd's.
fn addresses(called: &Path) -> [&'static str; 2] {
    if called.file_name().is_some_and(|name| name == "ctr") {
        [CONTAINERDS, HOISTS]
    } else {
        [HOISTS, CONTAINERDS]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_of_the_program_says_which_daemon_is_meant() {
        assert_eq!(addresses(Path::new("hoist"))[0], HOISTS);
        assert_eq!(addresses(Path::new("/usr/local/bin/ctr"))[0], CONTAINERDS);
    }
}
