//! What stands before every command.

use clap::Parser;

use crate::commands::Command;

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

#[cfg(test)]
mod tests {
    /// No two commands of all rooms have the same name, and no two flags of one the same letter.
    #[test]
    fn commands_and_flags_do_not_collide() {
        <super::Cli as clap::CommandFactory>::command().debug_assert();
    }
}
