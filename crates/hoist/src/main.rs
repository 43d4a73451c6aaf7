//! `hoist`: every part of the runtime but the shim, in one program.
//!
//! The name by which the program is called selects the part, then the first arguments:
//!
//! ```text
//! hoistd, containerd      ─▶ daemon
//! runc, hoist-runtime     ─▶ OCI runtime
//! ctr                     ─▶ containerd's command line
//! hoist daemon …          ─▶ daemon
//! hoist --address SOCKET publish …  ─▶ daemon: a shim knows only the path of the daemon's program
//! hoist system import-containerd …, hoist system unmount …  ─▶ daemon: they work while no daemon runs
//! hoist runtime …         ─▶ OCI runtime
//! hoist ctr …             ─▶ containerd's command line
//! hoist help daemon …     ─▶ the same three with --help
//! hoist …                 ─▶ command line
//! ```
//!
//! The part is selected before any thread starts: the OCI runtime clones itself and must be single-threaded.
//!
//! `cargo xtask build` links the C library statically, so that the one file runs on every distribution.

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

mod embedded;

fn main() -> ExitCode {
    #[cfg(all(target_env = "gnu", target_feature = "crt-static"))]
    linux::host_lookup::resolve_without_plugins();

    let mut args: Vec<OsString> = std::env::args_os().collect();
    match part(&mut args) {
        Part::Daemon => daemon::main(args, embedded::programs()),
        // The embedded shim is an OCI runtime too, and starts in a tenth of the time.
        Part::Runtime => match embedded::programs().shim {
            Some(small) => runtime::cli::main_in(small.bytes, args),
            None => runtime::cli::main(args),
        },
        Part::CommandLine => cli::main(args),
        Part::Ctr => cli::ctr::main(args),
    }
}

enum Part {
    CommandLine,
    Ctr,
    Daemon,
    Runtime,
}

/// Selects the part, and removes from the arguments the words that selected it.
fn part(args: &mut Vec<OsString>) -> Part {
    let called = args.first().map(Path::new).and_then(Path::file_name).unwrap_or_default();
    match called.to_str() {
        Some("hoistd" | "containerd") => return Part::Daemon,
        Some("ctr") => return Part::Ctr,
        _ if runtime::cli::is_called(args) => return Part::Runtime,
        _ => {}
    }
    // A shim publishes an event this way: it knows only the path of the daemon's program.
    if args.get(1).is_some_and(|word| word == "--address")
        && args.get(3).is_some_and(|word| word == "publish")
    {
        return Part::Daemon;
    }
    // `hoist help daemon` is `hoist daemon --help`.
    if args.get(1).is_some_and(|word| word == "help") && named(args.get(2)).is_some() {
        args.remove(1);
        args.push("--help".into());
    }
    if let Some(part) = named(args.get(1)) {
        args.remove(1);
        return part;
    }
    match without_daemon(args) {
        Some((part, words)) => {
            *args = words;
            part
        }
        None => Part::CommandLine,
    }
}

/// The part that the first argument names.
fn named(word: Option<&OsString>) -> Option<Part> {
    match word?.to_str()? {
        "daemon" => Some(Part::Daemon),
        "ctr" => Some(Part::Ctr),
        "runtime" => Some(Part::Runtime),
        _ => None,
    }
}

/// Whether the command is one of those that the daemon's program runs while no daemon serves, and the arguments for
/// that program. Global flags may stand before the command. `--help` of these commands belongs to the command line.
fn without_daemon(args: &[OsString]) -> Option<(Part, Vec<OsString>)> {
    let (mut at, mut address) = (1_usize, None);
    loop {
        let word = args.get(at)?.to_str()?;
        let inline = word.strip_prefix("--address=").or_else(|| word.strip_prefix("--host="));
        match (word, inline) {
            ("-H" | "--address" | "--host", _) => {
                address = Some(args.get(at + 1)?.clone());
                at += 2;
            }
            (_, Some(named)) => {
                address = Some(named.into());
                at += 1;
            }
            // The other global flags mean nothing to the daemon's program, which has flags of its own.
            ("-D" | "--debug", _) => at += 1,
            _ if cli::FLAGS_WITH_VALUES.contains(&word) => at += 2,
            _ => break,
        }
    }
    let [noun, command, rest @ ..] = args.get(at..)? else { return None };
    let is_meant = noun == "system" && (command == "import-containerd" || command == "unmount");
    if !is_meant {
        return None;
    }
    let mut words = vec![args[0].clone()];
    if rest.iter().any(|word| word == "-h" || word == "--help") {
        words.extend([noun.clone(), command.clone(), "--help".into()]);
        return Some((Part::CommandLine, words));
    }
    words.extend(address.into_iter().flat_map(|address| [OsString::from("--address"), address]));
    words.extend_from_slice(&args[at + 1..]);
    Some((Part::Daemon, words))
}
