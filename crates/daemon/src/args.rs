//! The daemon's command line. Options have containerd's names where it has an option with that meaning.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use types::{Error, Result};

use crate::config::{Flavor, Level, LogFormat};

const HELP: &str = "\
Usage: hoist daemon [OPTIONS] [COMMAND]

Keeps images and runs containers. Serves containerd's API on a unix socket.

Commands:
  config default   Print the configuration that is used without a file
  config dump      Print the configuration as it is in use
  config migrate   Print the configuration files, those of containerd too, merged into one with the current keys
  config check     Check the configuration files
  import-containerd DIR  Take over images and blobs of the containerd whose root is DIR, while no daemon runs
  unmount          Take down what is mounted below the root and state directories, while no daemon and no container runs
  shim DIR         Write containerd-shim-hoist-v2 to DIR, for use under another containerd
  publish          Publish the event on standard input, with --topic and --namespace
  oci-hook PROGRAM [ARGUMENT...]  Run a container's hook, with {{id}} and the like filled in

Options:
  -c, --config FILE      Configuration [default: /etc/hoist/config.toml, if it is there]
      --dry-run          Only print what import-containerd would take over
      --root DIR         The directory of images, containers and volumes [default: /var/lib/hoist]
      --state DIR        The directory of what a reboot clears: sockets, bundles [default: /run/hoist]
  -a, --address SOCKET   Where the API is served [default: hoist.sock in the state directory]
  -l, --log-level LEVEL  trace, debug, info, warn or error [default: info]
      --log-format FORM  text or json [default: text]
  -v, --version          Print the version
  -h, --help             Print this
";

/// The help text, for the name the program was called by.
pub(crate) fn help(flavor: Flavor) -> String {
    match flavor {
        Flavor::Hoist => HELP.to_owned(),
        Flavor::Containerd => HELP
            .replace("hoist daemon", "containerd")
            .replace("/etc/hoist/config.toml", &flavor.default_file().display().to_string())
            .replace("/var/lib/hoist", "/var/lib/containerd")
            .replace("/run/hoist", "/run/containerd")
            .replace("hoist.sock", "containerd.sock"),
    }
}

/// The parsed command line. `None` leaves a value to the configuration.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Args {
    /// The name the program was called by.
    pub(crate) flavor: Flavor,
    pub(crate) command: Command,
    pub(crate) config: Option<PathBuf>,
    pub(crate) root: Option<PathBuf>,
    pub(crate) state: Option<PathBuf>,
    pub(crate) address: Option<PathBuf>,
    pub(crate) log_level: Option<Level>,
    pub(crate) log_format: Option<LogFormat>,
    pub(crate) dry_run: bool,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) enum Command {
    #[default]
    Serve,
    ConfigDefault,
    ConfigDump,
    ConfigMigrate,
    ConfigCheck,
    /// Imports the images of another containerd, whose root this is.
    Import(PathBuf),
    /// Unmounts what the last daemon left mounted.
    Unmount,
    /// Writes the shim to this directory.
    Shim(PathBuf),
    /// Publishes an event.
    Publish {
        namespace: String,
        topic: String,
    },
    /// Expands the arguments of a hook, and executes it.
    OciHook(Vec<OsString>),
    Version,
    Help,
}

impl Args {
    /// `args[0]` is the program's name.
    pub(crate) fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Args> {
        let mut args = args.into_iter();
        let name = args.next().unwrap_or_default();
        let is_containerd = Path::new(&name).file_name().is_some_and(|name| name == "containerd");
        let flavor = if is_containerd { Flavor::Containerd } else { Flavor::Hoist };
        let mut parsed = Args { flavor, ..Args::default() };
        let mut words = Vec::new();
        let (mut namespace, mut topic) = (String::new(), String::new());
        while let Some(arg) = args.next() {
            let Some(text) = arg.to_str() else {
                return Err(refused(&format!("unexpected argument {arg:?}")));
            };
            let (name, inline) = match text.split_once('=') {
                Some((name, value)) if name.starts_with("--") => (name, Some(OsString::from(value))),
                _ => (text, None),
            };
            let mut value = || {
                inline
                    .clone()
                    .or_else(|| args.next())
                    .ok_or_else(|| refused(&format!("option {name} needs a value")))
            };
            match name {
                "-c" | "--config" => parsed.config = Some(value()?.into()),
                "--root" => parsed.root = Some(value()?.into()),
                "--state" => parsed.state = Some(value()?.into()),
                "-a" | "--address" => parsed.address = Some(value()?.into()),
                "-l" | "--log-level" => parsed.log_level = Some(Level::of_logrus(&text_of(&value()?))?),
                "--log-format" => parsed.log_format = Some(text_of(&value()?).parse()?),
                "--namespace" => namespace = text_of(&value()?),
                "--topic" => topic = text_of(&value()?),
                "--dry-run" => parsed.dry_run = true,
                // These take precedence over everything else on the command line.
                "-v" | "--version" => return Ok(Args { command: Command::Version, ..parsed }),
                "-h" | "--help" => return Ok(Args { command: Command::Help, ..parsed }),
                _ if name.starts_with('-') => {
                    return Err(refused(&format!("unknown option {text}")));
                }
                // All further arguments are the hook's.
                "oci-hook" if words.is_empty() => {
                    let mut words: Vec<OsString> = args.collect();
                    if words.first().is_some_and(|word| word == "-h" || word == "--help") {
                        return Ok(Args { command: Command::Help, ..parsed });
                    }
                    if words.first().is_some_and(|word| word == "--") {
                        words.remove(0);
                    }
                    parsed.command = Command::OciHook(words);
                    return Ok(parsed);
                }
                word => words.push(word.to_owned()),
            }
        }
        parsed.command = match words.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
            [] => Command::Serve,
            ["help" | "h"] | ["config", "help" | "h"] => Command::Help,
            ["config", "default"] => Command::ConfigDefault,
            ["config", "dump"] => Command::ConfigDump,
            ["config", "migrate"] => Command::ConfigMigrate,
            ["config", "check"] => Command::ConfigCheck,
            ["import-containerd", root] => Command::Import(root.into()),
            ["import-containerd"] => {
                return Err(missing("hoist system import-containerd /var/lib/containerd"));
            }
            ["publish"] => Command::Publish { namespace, topic },
            ["unmount"] => Command::Unmount,
            ["shim", dir] => Command::Shim(dir.into()),
            ["shim"] => return Err(missing("hoist daemon shim /usr/local/bin")),
            words => return Err(refused(&format!("unknown command {:?}", words.join(" ")))),
        };
        Ok(parsed)
    }
}

/// An invalid command line; refers to the help text.
fn refused(what: &str) -> Error {
    Error::invalid_argument(format!("{what}; try --help"))
}

/// A command without its argument; `example` shows it.
fn missing(example: &str) -> Error {
    Error::invalid_argument(format!("DIR is missing: {example}"))
}

fn text_of(value: &OsStr) -> String {
    value.to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Args> {
        Args::parse(["hoist"].into_iter().chain(line.split_whitespace()).map(OsString::from))
    }

    #[test]
    fn options_may_stand_before_and_after_commands_and_with_or_without_an_equals_sign() {
        let expected = Args {
            command: Command::ConfigCheck,
            config: Some("/c".into()),
            root: Some("/r".into()),
            log_level: Some(Level::Debug),
            ..Default::default()
        };
        assert_eq!(parse("-c /c config check --root=/r --log-level debug").unwrap(), expected);
        assert_eq!(parse("").unwrap(), Args::default());
        let called = Args::parse(["/usr/bin/containerd", "config", "migrate"].map(OsString::from)).unwrap();
        assert_eq!((called.flavor, called.command), (Flavor::Containerd, Command::ConfigMigrate));
        assert_eq!(parse("shim /usr/local/bin").unwrap().command, Command::Shim("/usr/local/bin".into()));
        let import = parse("import-containerd /var/lib/containerd --dry-run").unwrap();
        assert_eq!((import.command, import.dry_run), (Command::Import("/var/lib/containerd".into()), true));
        let publish = parse("-a /s publish --topic /tasks/exit --namespace n").unwrap();
        let command = Command::Publish { namespace: "n".into(), topic: "/tasks/exit".into() };
        assert_eq!((publish.address, publish.command), (Some("/s".into()), command));
        for line in ["oci-hook x --root {{id}}", "oci-hook -- x --root {{id}}"] {
            let hook = ["x", "--root", "{{id}}"].map(OsString::from);
            assert_eq!(parse(line).unwrap().command, Command::OciHook(hook.into()), "{line}");
        }
        assert_eq!(parse("unmount --root /r").unwrap().command, Command::Unmount);
        for (word, level) in [
            ("trace", Level::Trace),
            ("debug", Level::Debug),
            ("INFO", Level::Info),
            ("warn", Level::Warn),
            ("warning", Level::Warn),
            ("Warning", Level::Warn),
            ("error", Level::Error),
            ("fatal", Level::Error),
            ("panic", Level::Error),
        ] {
            let parsed = parse(&format!("-l {word}")).map(|args| args.log_level);
            assert_eq!(parsed.ok(), Some(Some(level)), "{word}");
        }
        for (alone, way_out) in [
            ("import-containerd", "DIR is missing: hoist system import-containerd /var/lib/containerd"),
            ("shim", "DIR is missing: hoist daemon shim /usr/local/bin"),
        ] {
            assert_eq!(parse(alone).unwrap_err().message(), way_out);
        }
        for (line, way_out) in [
            ("--root", "option --root needs a value; try --help"),
            ("--rot /x", "unknown option --rot; try --help"),
            ("serve it", "unknown command \"serve it\"; try --help"),
        ] {
            assert_eq!(parse(line).unwrap_err().message(), way_out);
        }
        for bad in ["import-containerd", "--rot /x", "--root", "serve", "config", "shim", "--log-level loud"]
        {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn help_and_version_take_precedence() {
        let commands = [
            "unmount",
            "import-containerd /x",
            "import-containerd",
            "config default",
            "config",
            "publish",
            "shim /x",
            "",
        ];
        for command in commands {
            for (flag, shown) in [
                ("--help", Command::Help),
                ("-h", Command::Help),
                ("--version", Command::Version),
                ("-v", Command::Version),
            ] {
                for line in [format!("{command} {flag}"), format!("{flag} {command} --root /r")] {
                    assert_eq!(parse(&line).unwrap().command, shown, "{line}");
                }
            }
        }
        for line in ["--help oci-hook x", "oci-hook --help", "oci-hook -h", "help", "h", "config help"] {
            assert_eq!(parse(line).unwrap().command, Command::Help, "{line}");
        }
        // As an argument of the hook or the value of an option, `--help` is not ours.
        let hook = ["x", "--help"].map(OsString::from);
        assert_eq!(parse("oci-hook x --help").unwrap().command, Command::OciHook(hook.into()));
        assert_eq!(parse("--root --help").unwrap().root, Some("--help".into()));
    }

    #[test]
    fn help_tells_the_defaults_of_the_name_that_the_program_was_called_by() {
        for (flavor, known, foreign) in [
            (Flavor::Hoist, ["/var/lib/hoist]", "/run/hoist]", "hoist.sock"], "/containerd]"),
            (Flavor::Containerd, ["/var/lib/containerd]", "/run/containerd]", "containerd.sock"], "/hoist]"),
        ] {
            let help = help(flavor);
            assert!(known.iter().all(|text| help.contains(text)) && !help.contains(foreign), "{help}");
        }
    }
}
