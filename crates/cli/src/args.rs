//! The global flags, which stand before a command.

use std::path::PathBuf;

use clap::Parser;

use crate::commands::{CONTEXT, Command};
use crate::parse;

/// The environment variable with the path of the daemon's socket.
pub(crate) const ADDRESS: &str = "HOIST_ADDRESS";
pub(crate) const ADDRESS_DEFAULT: &str = "/run/hoist/hoist.sock";

/// Run containers.
#[derive(Parser)]
#[command(name = "hoist", version, about, long_about = None, disable_help_subcommand = true, disable_version_flag = true, args_override_self = true)]
pub(crate) struct Cli {
    /// The daemon's socket.
    #[arg(long, short = 'H', visible_alias = "host", global = true, env = ADDRESS, default_value = ADDRESS_DEFAULT)]
    pub(crate) address: String,
    // Global flags of Docker's that scripts use. After a command, the same letters and words are the command's own.
    /// The directory of Docker's config.json, in place of DOCKER_CONFIG
    #[arg(long, value_name = "DIR", hide = true)]
    pub(crate) config: Option<PathBuf>,
    /// Without effect
    #[arg(long = "debug", short = 'D', hide = true)]
    _debug: bool,
    /// Without effect
    #[arg(long = "log-level", short = 'l', value_name = "LEVEL", hide = true)]
    _log_level: Option<String>,
    /// Only `default` is accepted
    #[arg(long = "context", short = 'c', value_name = "NAME", hide = true,
        value_parser = parse::refused_but(&["", "default"], CONTEXT))]
    _context: Option<String>,
    /// Print the version
    #[arg(long, short = 'v', short_alias = 'V', action = clap::ArgAction::Version)]
    version: Option<bool>,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[cfg(test)]
mod tests {
    /// No two commands have the same name, and no two flags of a command the same letter.
    #[test]
    fn commands_and_flags_do_not_collide() {
        <super::Cli as clap::CommandFactory>::command().debug_assert();
    }

    #[test]
    fn global_flags_of_docker_are_accepted() {
        let parse = |line: &str| {
            let words = ["hoist"].into_iter().chain(line.split(' '));
            <super::Cli as clap::Parser>::try_parse_from(words).map(|cli| (cli.address, cli.config))
        };
        for line in
            ["-D -l debug --context default ps -l", "--debug --log-level=info -c default run -l a=b x"]
        {
            assert!(parse(line).is_ok(), "{line}");
        }
        let (address, config) = parse("--host unix:///s --config /c ps").unwrap();
        assert_eq!((address.as_str(), config), ("unix:///s", Some("/c".into())));
        assert_eq!(parse("ps --host /s").unwrap().0, "/s");
        let refused = parse("--context far ps").err().map(|error| error.to_string()).unwrap_or_default();
        assert!(refused.contains("there are no contexts here"), "{refused}");
    }

    #[test]
    fn flags_of_docker_that_cannot_be_name_an_alternative() {
        let parse = |line: &str| {
            let words = ["hoist"].into_iter().chain(line.split(' '));
            <super::Cli as clap::Parser>::try_parse_from(words).map(drop)
        };
        for (line, way_out) in [
            ("run --cpu-rt-period 1 x", "--cpu-quota"),
            ("create --kernel-memory 1m x", "-m includes it"),
            ("update --cpu-rt-runtime 1 x", "--cpu-quota"),
            ("update --kernel-memory 1m x", "-m includes it"),
            ("start --checkpoint c x", "hoist ctr containers restore"),
        ] {
            let refused = parse(line).err().map(|error| error.to_string()).unwrap_or_default();
            assert!(refused.contains(way_out), "{line}: {refused}");
        }
        for line in ["network inspect -v bridge", "network inspect --verbose bridge", "update -m 1g x"] {
            assert!(parse(line).is_ok(), "{line}");
        }
    }

    #[test]
    fn each_argument_that_is_shown_has_a_help_text() {
        let mut all = <super::Cli as clap::CommandFactory>::command();
        all.build();
        let (mut without, mut commands) = (Vec::new(), vec![all]);
        while let Some(command) = commands.pop() {
            let silent = command.get_arguments().filter(|arg| !arg.is_hide_set() && arg.get_help().is_none());
            without.extend(silent.map(|arg| format!("{} {}", command.get_name(), arg.get_id())));
            commands.extend(command.get_subcommands().filter(|command| !command.is_hide_set()).cloned());
        }
        assert!(without.is_empty(), "{without:?}");
    }

    #[test]
    fn the_help_of_run_groups_its_flags() {
        let parsed = <super::Cli as clap::Parser>::try_parse_from(["hoist", "run", "--help"]);
        let help = parsed.err().map(|help| help.to_string()).unwrap_or_default();
        for heading in
            ["Options", "Limits", "Network", "Security", "Health", "Log", "Files", "Devices", "Namespaces"]
        {
            assert!(help.contains(&format!("\n{heading}:\n")), "{heading}: {help}");
        }
        let options = help.split("\n\n").find(|part| part.starts_with("Options:")).unwrap_or_default();
        assert!(options.contains("--detach-keys") && !options.contains("--memory"), "{options}");
    }
}
