//! The shim's command line, as containerd calls it.
//!
//! ```text
//! containerd-shim-hoist-v2 -namespace NS -address GRPC -publish-binary PATH -id ID [-bundle DIR] [-debug] start|delete
//! containerd-shim-hoist-v2 -info | -v
//! ```

use std::ffi::OsString;
use std::path::PathBuf;

use types::{Error, Result};

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Flags {
    pub namespace: String,
    /// The daemon's gRPC address, from which the socket path is derived.
    pub address: String,
    pub id: String,
    pub bundle: Option<PathBuf>,
    pub debug: bool,
    pub socket: Option<PathBuf>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Command {
    /// Start a shim, or find the pod's, and print its address.
    Start(Flags),
    /// Be the shim. Internal: `start` executes it, with the listening socket as stdin.
    Serve(Flags),
    /// Clean up after a dead shim.
    Delete(Flags),
    Info,
    Version,
}

impl Command {
    /// Parses `args`, without the program's name. Flags may have one dash or two, and `=` or a space before the value.
    pub(crate) fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Command> {
        let mut args = args.into_iter().map(|arg| {
            arg.into_string().map_err(|arg| Error::invalid_argument(format!("argument {arg:?} is not UTF-8")))
        });
        let mut flags = Flags::default();
        let mut word = None;
        while let Some(arg) = args.next().transpose()? {
            let Some(flag) = arg.strip_prefix("--").or_else(|| arg.strip_prefix('-')) else {
                word = Some(arg);
                continue;
            };
            let (name, value) = match flag.split_once('=') {
                Some((name, value)) => (name, Some(value.to_owned())),
                None => (flag, None),
            };
            match name {
                "v" => return Ok(Command::Version),
                "info" => return Ok(Command::Info),
                "debug" => flags.debug = value.is_none_or(|value| value == "true"),
                _ => {
                    let value = value.map_or_else(|| args.next().transpose(), |value| Ok(Some(value)))?;
                    let value = value
                        .ok_or_else(|| Error::invalid_argument(format!("flag -{name} needs a value")))?;
                    flags.set(name, value)?;
                }
            }
        }
        match word.as_deref() {
            Some("start") => Ok(Command::Start(flags.checked()?)),
            Some("serve") => Ok(Command::Serve(flags.checked()?)),
            Some("delete") => Ok(Command::Delete(flags.checked()?)),
            _ => Err(Error::invalid_argument(
                "expected start, delete, -info or -v; containerd calls this program",
            )),
        }
    }
}

impl Flags {
    fn set(&mut self, name: &str, value: String) -> Result<()> {
        match name {
            "namespace" => self.namespace = value,
            "address" => self.address = value,
            "id" => self.id = value,
            "bundle" => self.bundle = Some(value.into()),
            "socket" => self.socket = Some(value.into()),
            // Events are sent over ttrpc instead.
            "publish-binary" => {}
            _ => return Err(Error::invalid_argument(format!("unknown flag -{name}"))),
        }
        Ok(())
    }

    fn checked(self) -> Result<Flags> {
        types::Namespace::new(&self.namespace)?;
        types::ContainerId::new(&self.id)?;
        Ok(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Command> {
        Command::parse(line.split_whitespace().map(OsString::from))
    }

    #[test]
    fn containerds_calls_are_understood() {
        let flags = Flags {
            namespace: "default".into(),
            address: "/run/c.sock".into(),
            id: "redis".into(),
            bundle: Some("/b".into()),
            debug: true,
            socket: None,
        };
        let line =
            "-namespace default -address /run/c.sock -publish-binary /bin/c -id redis -bundle /b -debug";
        assert_eq!(parse(&format!("{line} start")).unwrap(), Command::Start(flags.clone()));
        assert_eq!(parse(&format!("{line} delete")).unwrap(), Command::Delete(flags));
        assert_eq!(parse("-info").unwrap(), Command::Info);
        assert_eq!(parse("-v").unwrap(), Command::Version);
    }

    #[test]
    fn ids_that_are_no_names_are_refused() {
        assert!(parse("-namespace default -id ../x start").is_err());
        assert!(parse("-namespace a/b -id x start").is_err());
        assert!(parse("-id x start").is_err());
        assert!(parse("-namespace default -id x").is_err());
        assert!(parse("-namespace default -id x -colour red start").is_err());
    }
}
