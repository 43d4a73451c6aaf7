//! Tables of commands, and a parser of command lines with Go's flags: `-x v`, `--x v`, `--x=v`.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::future::Future;
use std::path::PathBuf;
use std::pin::Pin;
use std::time::Duration;

use api::grpc::{MODULE, VERSION};
use types::{Error, Result};

use super::connection::{Connection, not_reached};

pub(super) type Action = fn(Call) -> Pin<Box<dyn Future<Output = Result<u8>>>>;

pub(super) struct Command {
    /// Separated by `|`; the first is shown in help.
    pub(super) names: &'static str,
    pub(super) usage: &'static str,
    pub(super) about: &'static str,
    pub(super) flags: &'static [Flag],
    /// Whether the words after the first, including flags, belong to a program.
    pub(super) is_program: bool,
    pub(super) what: What,
}

pub(super) enum What {
    Group(&'static [Command]),
    Action(Action),
}

pub(super) struct Flag {
    /// Separated by `,`; the first is the key.
    names: &'static str,
    has_value: bool,
    about: &'static str,
}

impl Flag {
    pub(super) const fn switch(names: &'static str, about: &'static str) -> Flag {
        Flag { names, has_value: false, about }
    }

    pub(super) const fn value(names: &'static str, about: &'static str) -> Flag {
        Flag { names, has_value: true, about }
    }

    fn key(&self) -> &'static str {
        self.names.split(',').next().unwrap_or_default()
    }
}

impl Command {
    pub(super) const fn group(
        names: &'static str,
        about: &'static str,
        verbs: &'static [Command],
    ) -> Command {
        let usage = "command [command options] [arguments...]";
        Command { names, usage, about, flags: &[], is_program: false, what: What::Group(verbs) }
    }

    pub(super) const fn new(
        names: &'static str,
        usage: &'static str,
        about: &'static str,
        flags: &'static [Flag],
        action: Action,
    ) -> Command {
        Command { names, usage, about, flags, is_program: false, what: What::Action(action) }
    }

    fn is_called(&self, word: &str) -> bool {
        self.names.split('|').any(|name| name == word)
    }

    fn help(&self, path: &str) -> String {
        let mut text = format!("NAME:\n   {path} - {}\n\nUSAGE:\n   {path} {}\n", self.about, self.usage);
        if let What::Group(verbs) = self.what {
            text.push_str("\nCOMMANDS:\n");
            for verb in verbs {
                let _ = writeln!(text, "   {:<26} {}", verb.names.replace('|', ", "), verb.about);
            }
        }
        text.push_str("\nOPTIONS:\n");
        for Flag { names, has_value, about } in self.flags {
            let names: Vec<String> = names
                .split(',')
                .map(|name| format!("{}{name}{}", dashes(name), if *has_value { " value" } else { "" }))
                .collect();
            let _ = writeln!(text, "   {:<26} {about}", names.join(", "));
        }
        text.push_str("   --help, -h                 show help\n");
        text
    }
}

fn dashes(name: &str) -> &'static str {
    if name.len() == 1 { "-" } else { "--" }
}

/// A parsed command line.
pub(super) struct Call {
    action: Action,
    flags: BTreeMap<&'static str, Vec<String>>,
    words: Vec<String>,
    usage: String,
}

pub(super) enum Parsed {
    Call(Call),
    Help(String),
}

pub(super) fn parse(root: &'static Command, words: Vec<String>) -> Result<Parsed> {
    let mut words = std::collections::VecDeque::from(words);
    let mut flags: BTreeMap<&'static str, Vec<String>> = BTreeMap::new();
    let (mut command, mut path) = (root, root.names.to_owned());
    let mut rest = Vec::new();
    let mut only_words = false;
    while let Some(word) = words.pop_front() {
        let flag = word.strip_prefix("--").or_else(|| word.strip_prefix('-')).filter(|flag| !flag.is_empty());
        let is_open = !only_words && (rest.is_empty() || !command.is_program);
        match (flag, &command.what) {
            _ if is_open && word == "--" => only_words = true,
            (Some("help" | "h"), _) if is_open => return Ok(Parsed::Help(command.help(&path))),
            (Some("version" | "v"), What::Group(_)) if path == root.names => {
                return Ok(Parsed::Help(format!("ctr {MODULE} {VERSION}\n")));
            }
            (Some(flag), _) if is_open => {
                let (name, inline) =
                    flag.split_once('=').map_or((flag, None), |(name, value)| (name, Some(value)));
                let known =
                    command.flags.iter().find(|flag| flag.names.split(',').any(|known| known == name));
                let Some(known) = known else {
                    let names = command.flags.iter().flat_map(|flag| flag.names.split(','));
                    let near = stdx::nearest(name, names).map(|name| format!("{}{name}", dashes(name)));
                    return Err(refused(&path, &format!("flag {word} is not known here"), near));
                };
                let value = match (inline, known.has_value) {
                    (Some(value), _) => value.to_owned(),
                    (None, false) => "true".to_owned(),
                    (None, true) => words
                        .pop_front()
                        .ok_or_else(|| refused(&path, &format!("flag {word} needs a value"), None))?,
                };
                flags.entry(known.key()).or_default().push(value);
            }
            (_, What::Group(verbs)) => {
                if word == "help" {
                    return Ok(Parsed::Help(command.help(&path)));
                }
                let Some(verb) = verbs.iter().find(|verb| verb.is_called(&word)) else {
                    let names = verbs.iter().flat_map(|verb| verb.names.split('|'));
                    let near = stdx::nearest(&word, names).map(str::to_owned);
                    return Err(refused(&path, &format!("no command {word:?} here"), near));
                };
                command = verb;
                let _ = write!(path, " {}", verb.names.split('|').next().unwrap_or_default());
            }
            (_, What::Action(_)) => rest.push(word),
        }
    }
    match command.what {
        What::Group(_) => Ok(Parsed::Help(command.help(&path))),
        What::Action(action) => {
            Ok(Parsed::Call(Call { action, flags, words: rest, usage: format!("{path} {}", command.usage) }))
        }
    }
}

/// The error of a malformed command line, with the nearest known name and where to find help.
fn refused(path: &str, what: &str, near: Option<String>) -> Error {
    let hint = near.map(|name| format!(" (did you mean {name}?)")).unwrap_or_default();
    Error::invalid_argument(format!("{path}: {what}{hint}; see {path} --help"))
}

impl Call {
    pub(super) async fn run(self) -> Result<u8> {
        let limit = self.duration("timeout")?;
        let action = self.action;
        match limit.filter(|limit| !limit.is_zero()) {
            None => action(self).await,
            Some(limit) => tokio::time::timeout(limit, action(self))
                .await
                .unwrap_or_else(|_| Err(Error::deadline_exceeded(format!("it took longer than {limit:?}")))),
        }
    }

    /// The path of the daemon's socket.
    pub(super) fn socket(&self) -> PathBuf {
        let address = self.value("address").map_or_else(super::default_address, str::to_owned);
        address.strip_prefix("unix://").unwrap_or(&address).into()
    }

    /// Connects to Hoist's own service, for work that containerd's clients do themselves.
    pub(super) async fn engine(&self) -> Result<client::Client> {
        let socket = self.socket();
        client::Client::connect(&socket).await.map_err(|error| not_reached(error, &socket))
    }

    /// Connects to the daemon, with the namespace of the command line.
    pub(super) async fn connect(&self) -> Result<Connection> {
        let socket = self.socket();
        let namespace = self.value("namespace").map(str::to_owned);
        let namespace = namespace.or_else(|| std::env::var("CONTAINERD_NAMESPACE").ok());
        let connecting = Connection::open(&socket, namespace.unwrap_or_else(|| "default".to_owned()));
        match self.duration("connect-timeout")?.filter(|limit| !limit.is_zero()) {
            None => connecting.await,
            Some(limit) => tokio::time::timeout(limit, connecting).await.unwrap_or_else(|_| {
                let socket = socket.display();
                Err(Error::deadline_exceeded(format!("no answer from {socket} within {limit:?}")))
            }),
        }
    }

    pub(super) fn is(&self, flag: &str) -> bool {
        self.value(flag).is_some_and(|value| !matches!(value, "false" | "0" | "f"))
    }

    /// The last value of a flag.
    pub(super) fn value(&self, flag: &str) -> Option<&str> {
        self.flags.get(flag).and_then(|values| values.last()).map(String::as_str)
    }

    pub(super) fn values(&self, flag: &str) -> &[String] {
        self.flags.get(flag).map_or(&[], Vec::as_slice)
    }

    pub(super) fn number<T: std::str::FromStr>(&self, flag: &str) -> Result<Option<T>> {
        let parse = |text: &str| {
            text.parse().map_err(|_| Error::invalid_argument(format!("--{flag} {text}: expected a number")))
        };
        self.value(flag).map(parse).transpose()
    }

    pub(super) fn duration(&self, flag: &str) -> Result<Option<Duration>> {
        let parse = |text: &str| {
            stdx::duration(text).ok_or_else(|| {
                Error::invalid_argument(format!("--{flag} {text}: expected a time such as 30s or 1h30m"))
            })
        };
        self.value(flag).map(parse).transpose()
    }

    /// The arguments that are no flags.
    pub(super) fn words(&self) -> &[String] {
        &self.words
    }

    /// The argument at `at`. `InvalidArgument` names `what` if it is missing.
    pub(super) fn word(&self, at: usize, what: &str) -> Result<&str> {
        self.words
            .get(at)
            .map(String::as_str)
            .ok_or_else(|| Error::invalid_argument(format!("{what} must be provided; usage: {}", self.usage)))
    }

    /// The arguments from `at` on, at least one. `InvalidArgument` names `what` if they are missing.
    pub(super) fn words_from(&self, at: usize, what: &str) -> Result<&[String]> {
        self.word(at, what)?;
        Ok(&self.words[at..])
    }

    /// Parses `key=value` words as labels. A key alone has the value `true`.
    pub(super) fn labels(words: &[String]) -> BTreeMap<String, String> {
        let split = |word: &String| match word.split_once('=') {
            Some((key, value)) => (key.to_owned(), value.to_owned()),
            None => (word.clone(), "true".to_owned()),
        };
        words.iter().map(split).collect()
    }
}

/// Labels as tables show them.
pub(super) fn shown(labels: &BTreeMap<String, String>) -> String {
    let each: Vec<String> = labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
    each.join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(line: &str) -> Result<Call> {
        match parse(&super::super::ROOT, line.split_whitespace().map(str::to_owned).collect())? {
            Parsed::Call(call) => Ok(call),
            Parsed::Help(text) => Err(Error::internal(text)),
        }
    }

    #[test]
    fn flags_are_read_as_go_reads_them() {
        let parsed = call("-n k8s.io --address=/x i ls -q name==a name==b").unwrap();
        assert_eq!((parsed.value("namespace"), parsed.value("address")), (Some("k8s.io"), Some("/x")));
        assert!(parsed.is("quiet") && parsed.words() == ["name==a", "name==b"]);
        // Flags may follow words, except for a program's words.
        assert!(call("images rm a b --sync").unwrap().is("sync"));
        assert!(!call("images rm --sync=false a").unwrap().is("sync"));
        let run = call("run --rm -t --env A=1 -env B=2 image id sh -c --rm=false").unwrap();
        assert_eq!(run.values("env"), ["A=1", "B=2"]);
        assert_eq!(run.words(), ["image", "id", "sh", "-c", "--rm=false"]);
        assert!(run.is("rm"));
        assert_eq!(call("snapshots --snapshotter native rm -- -x").unwrap().words(), ["-x"]);
    }

    #[test]
    fn durations_are_gos() {
        let timeout =
            |text: &str| call(&format!("--timeout {text} version")).unwrap().duration("timeout").ok();
        for (text, micros) in
            [("1.5s", 1_500_000), ("1h30m", 5_400_000_000), ("500us", 500), ("500μs", 500), ("0", 0)]
        {
            assert_eq!(timeout(text), Some(Some(Duration::from_micros(micros))), "{text}");
        }
        for text in ["5", "1.5", "s", "inf", "1e3s", "1d"] {
            assert_eq!(timeout(text), None, "{text}");
        }
    }

    #[test]
    fn unknown_commands_and_flags_are_refused_with_the_nearest_name() {
        for (line, words) in [
            ("imges ls", "did you mean images?"),
            ("images lst", "did you mean list?"),
            ("images ls --quite", "did you mean --quiet?"),
            ("run --gpu 0 x y", "did you mean --gpus?"),
            ("images ls --namespace x", "flag --namespace is not known here"),
            ("--address", "needs a value"),
            // The message has the full command for help.
            ("oci spec --bad", "flag --bad is not known here; see ctr oci spec --help"),
            ("images ls --quite", "(did you mean --quiet?); see ctr images list --help"),
            ("nonsense", "no command \"nonsense\" here; see ctr --help"),
            ("run --env", "flag --env needs a value; see ctr run --help"),
        ] {
            let message = call(line).err().expect("an error").chain();
            assert!(message.contains(words), "{line}: {message}");
        }
    }

    #[test]
    fn help_names_every_command_and_flag() {
        let help = |line: &str| match parse(
            &super::super::ROOT,
            line.split_whitespace().map(str::to_owned).collect(),
        ) {
            Ok(Parsed::Help(text)) => text,
            _ => panic!("{line} shows help"),
        };
        assert!(help("--help").contains("namespaces, namespace, ns"));
        assert!(help("images pull -h").contains("--plain-http"));
        assert!(help("snapshots").contains("--snapshotter value"));
    }
}
