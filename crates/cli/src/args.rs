//! What stands before every command.

use clap::Parser;

use crate::commands::Command;

/// The variable that names the daemon's socket.
pub(crate) const ADDRESS: &str = "HOIST_ADDRESS";
pub(crate) const ADDRESS_DEFAULT: &str = "/run/hoist/hoist.sock";

/// Run containers.
#[derive(Parser)]
#[command(name = "hoist", version, about, long_about = None, disable_help_subcommand = true, disable_version_flag = true, args_override_self = true)]
pub(crate) struct Cli {
    /// The daemon's socket.
    #[arg(long, short = 'H', global = true, env = ADDRESS, default_value = ADDRESS_DEFAULT)]
    pub(crate) address: String,
    /// Print the version
    #[arg(long, short = 'v', short_alias = 'V', action = clap::ArgAction::Version)]
    version: Option<bool>,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[cfg(test)]
mod tests {
    /// No two commands of all rooms have the same name, and no two flags of one the same letter.
    #[test]
    fn commands_and_flags_do_not_collide() {
        <super::Cli as clap::CommandFactory>::command().debug_assert();
    }
}
