//! Docker commands that Hoist does not have. Each says why, and what to use instead. Commands below a noun are defined
//! with the noun.

use clap::{Args, Subcommand};
use types::Error;

use super::{image, system, volume};

pub(super) const BUILD: &str = "images are not built here: BuildKit runs on this daemon (buildkitd --oci-worker=false \
                     --containerd-worker=true --containerd-worker-addr /run/hoist/hoist.sock, see docs/operate/containerd.md); \
                     `hoist load` takes what was built elsewhere";
const COMPOSE: &str = "there is no compose and no API of Docker's here: dockerd runs on this daemon (dockerd --containerd \
                       /run/hoist/hoist.sock, see docs/operate/containerd.md), and serves both";
const SEARCH: &str =
    "registries are not searched: hoist pull NAME, and `hoist pull -a NAME` for every tag that it has";
pub(super) const CHECKPOINT: &str = "containers are checkpointed by containerd's commands: hoist ctr tasks checkpoint, and restored by \
                          `hoist ctr containers restore`";
pub(super) const CLUSTER: &str = "there are no clusters here: a daemon runs the containers of its own machine; what is secret comes from a \
                       file (-v FILE:/run/secrets/NAME:ro)";
pub(crate) const CONTEXT: &str = "there are no contexts here: -H SOCKET or HOIST_ADDRESS names another daemon, and `ssh HOST hoist …` reaches \
                       one of another machine";
const MANIFEST: &str = "manifests are not put together here: `hoist image convert` makes an image of some platforms of another, and \
                        `hoist ctr content get DIGEST` prints a manifest";
const PLUGIN: &str = "plugins of Docker's do not run here: those of containerd do, by the daemon's configuration \
                      ([proxy_plugins.NAME], see docs/extend), and `hoist ctr plugins ls` lists them";
const TRUST: &str = "images are not signed here: which signatures they must have says [policy] of the daemon's configuration, and \
                     `hoist push --referrers` sends those that others made";

#[derive(Subcommand)]
#[command(defer = true)]
pub(crate) enum Command {
    #[command(hide = true, about = BUILD, aliases = ["buildx", "builder"])]
    Build(Words),
    #[command(hide = true, about = COMPOSE)]
    Compose(Words),
    #[command(hide = true, about = SEARCH)]
    Search(Words),
    #[command(hide = true, about = CHECKPOINT)]
    Checkpoint(Words),
    #[command(hide = true, about = CLUSTER, aliases = ["service", "stack", "node", "secret", "config"])]
    Swarm(Words),
    #[command(hide = true, about = CONTEXT)]
    Context(Words),
    #[command(hide = true, about = MANIFEST)]
    Manifest(Words),
    #[command(hide = true, about = PLUGIN)]
    Plugin(Words),
    #[command(hide = true, about = TRUST)]
    Trust(Words),
}

// All arguments are accepted, as the answer is the same. No doc comment: clap would use it as the help of these
// commands.
#[derive(Args)]
pub(crate) struct Words {
    /// Words and flags of its own
    #[arg(id = "words", trailing_var_arg = true, allow_hyphen_values = true)]
    _words: Vec<String>,
}

/// The reason why Hoist does not have a command. `None` if it has.
pub(super) fn refusal(command: &super::Command) -> Option<Error> {
    let why = match command {
        super::Command::Image(image::Command::Image(image::Noun::Build(_))) => BUILD,
        super::Command::Volume(volume::Command::Update(_)) => CLUSTER,
        super::Command::System(system::Command::System(system::Noun::DialStdio(_))) => CONTEXT,
        super::Command::Absent(command) => match command {
            Command::Build(_) => BUILD,
            Command::Compose(_) => COMPOSE,
            Command::Search(_) => SEARCH,
            Command::Checkpoint(_) => CHECKPOINT,
            Command::Swarm(_) => CLUSTER,
            Command::Context(_) => CONTEXT,
            Command::Manifest(_) => MANIFEST,
            Command::Plugin(_) => PLUGIN,
            Command::Trust(_) => TRUST,
        },
        _ => return None,
    };
    Some(Error::unimplemented(why))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::args::Cli;

    #[test]
    fn absent_docker_commands_name_an_alternative() {
        for (line, way_out) in [
            ("build -t x .", "hoist load"),
            ("buildx build --push .", "buildkitd"),
            ("builder prune -f", "buildkitd"),
            ("compose -f x.yaml up -d", "dockerd --containerd /run/hoist/hoist.sock"),
            ("search busybox", "hoist pull"),
            ("checkpoint create x y", "hoist ctr tasks checkpoint"),
            ("config ls", "-v FILE:"),
            ("secret ls", "-v FILE:"),
            ("swarm init", "no clusters"),
            ("service ls", "no clusters"),
            ("stack deploy", "no clusters"),
            ("node ls", "no clusters"),
            ("context use x", "-H SOCKET"),
            ("manifest inspect x", "hoist image convert"),
            ("plugin", "hoist ctr plugins ls"),
            ("trust sign x", "[policy]"),
            // Below a noun too.
            ("image build -t x .", "buildkitd"),
            ("image build", "buildkitd"),
            ("volume update --availability drain x", "no clusters"),
            ("system dial-stdio", "ssh HOST hoist"),
        ] {
            let parsed = Cli::try_parse_from(["hoist"].into_iter().chain(line.split(' ')));
            let why = parsed.ok().and_then(|Cli { command, .. }| refusal(&command));
            let why = why.unwrap_or_else(|| panic!("{line} is none of these"));
            assert!(why.message().contains(way_out), "{line}: {}", why.message());
        }
    }
}
