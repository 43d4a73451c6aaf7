//! The argument parser. Flags stand before the words they belong to, or behind them where no words belong to another
//! program; `--flag=value` works too.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::path::PathBuf;

use types::{Error, Result};

pub(super) struct Args {
    words: VecDeque<String>,
    /// Flags may stand behind the words too, as no words belong to another program.
    anywhere: bool,
    /// A `--` was seen: all that follows are words.
    no_more_flags: bool,
}

impl Args {
    /// Leaves out the program's name.
    pub(super) fn new(args: Vec<OsString>) -> Args {
        let words = args.into_iter().skip(1).map(|word| word.to_string_lossy().into_owned()).collect();
        Args { words, anywhere: false, no_more_flags: false }
    }

    /// From here on flags may stand behind words, as in `delete ID --force`.
    pub(super) fn look_anywhere(&mut self) {
        self.anywhere = true;
    }

    /// Takes a boolean flag that stands before the next word. The last occurrence counts. Short flags may not be
    /// joined.
    pub(super) fn flag(&mut self, names: &[&str]) -> bool {
        self.choice(names).unwrap_or(false)
    }

    /// As [`Args::flag`], of a flag that can be cleared too (`--flag=false`). None if it is absent.
    pub(super) fn choice(&mut self, names: &[&str]) -> Option<bool> {
        let mut is_set = None;
        while let Some((index, value)) =
            self.flags().find_map(|index| Some((index, switch(&self.words[index], names)?)))
        {
            is_set = Some(value);
            self.words.remove(index);
        }
        is_set
    }

    /// Takes a flag with its value. The last occurrence counts.
    pub(super) fn value(&mut self, names: &[&str]) -> Option<String> {
        self.values(names).pop()
    }

    /// Takes the flag that names the bundle; the working directory if it is absent or empty.
    pub(super) fn bundle(&mut self) -> PathBuf {
        let named = self.value(&["-b", "--bundle"]).filter(|path| !path.is_empty());
        named.map_or_else(|| PathBuf::from("."), PathBuf::from)
    }

    /// Takes a flag that may occur several times.
    pub(super) fn values(&mut self, names: &[&str]) -> Vec<String> {
        std::iter::from_fn(|| self.next_value(names)).collect()
    }

    fn next_value(&mut self, names: &[&str]) -> Option<String> {
        let found = self.flags().find_map(|index| {
            let (name, joined) = parts(&self.words[index])?;
            names.iter().any(|other| bare(other) == name).then(|| (index, joined.map(str::to_owned)))
        });
        let (index, joined) = found?;
        self.words.remove(index);
        joined.or_else(|| self.words.remove(index))
    }

    pub(super) fn number<T: std::str::FromStr>(&mut self, names: &[&str]) -> Result<Option<T>> {
        // An empty value is as good as none, as with runc.
        let Some(text) = self.value(names).filter(|text| !text.is_empty()) else { return Ok(None) };
        let number = text
            .parse()
            .map_err(|_| Error::invalid_argument(format!("{}: {text:?} is not a number", names[0])))?;
        Ok(Some(number))
    }

    /// The next word that is no flag.
    pub(super) fn word(&mut self) -> Option<String> {
        self.pass_separator();
        self.words.pop_front()
    }

    fn pass_separator(&mut self) {
        if !self.no_more_flags && self.words.front().is_some_and(|word| word == "--") {
            self.words.pop_front();
            self.no_more_flags = true;
        }
    }

    pub(super) fn id(&mut self) -> Result<String> {
        match self.word() {
            Some(word) if word.starts_with('-') && !self.no_more_flags => {
                Err(refused(&format!("unknown flag {word:?}")))
            }
            Some(word) => Ok(word),
            None => Err(refused("the container's id is missing")),
        }
    }

    /// All remaining words.
    pub(super) fn rest(&mut self) -> Vec<String> {
        self.pass_separator();
        self.words.drain(..).collect()
    }

    /// Fails if there is an argument left.
    pub(super) fn end(&mut self) -> Result<()> {
        match self.words.front() {
            Some(word) if word.starts_with('-') && !self.no_more_flags => {
                Err(refused(&format!("unknown flag {word:?}")))
            }
            Some(word) => Err(refused(&format!("unexpected argument {word:?}"))),
            None => Ok(()),
        }
    }

    /// Indices at which flags may stand: before a `--`, and before the first word that is neither a flag nor a flag's
    /// value, unless flags may stand anywhere. Which flags take values is not known here, so that a word behind a flag
    /// may be its value, and is skipped.
    fn flags(&self) -> impl Iterator<Item = usize> + use<> {
        let mut end = 0;
        let mut previous_is_flag = false;
        for word in &self.words {
            let parts = parts(word);
            let is_over = parts.is_none() && !previous_is_flag && !self.anywhere;
            if self.no_more_flags || word == "--" || is_over {
                break;
            }
            previous_is_flag = parts.is_some_and(|(_, value)| value.is_none());
            end += 1;
        }
        0..end
    }
}

/// An error of the command line, which points to the help.
fn refused(what: &str) -> Error {
    Error::invalid_argument(format!("{what}; see --help"))
}

/// The name of a flag without its dashes, and the value that is joined to it. One dash and two are the same, for long
/// names and short ones (Go's package `flag`). None for words, `-` and `--`.
fn parts(word: &str) -> Option<(&str, Option<&str>)> {
    let text = word.strip_prefix("--").or(word.strip_prefix('-')).filter(|text| !text.is_empty())?;
    Some(text.split_once('=').map_or((text, None), |(name, value)| (name, Some(value))))
}

fn bare(name: &str) -> &str {
    name.trim_start_matches('-')
}

/// Whether a word sets or clears the flag of one of these names; None if it is another flag, or none.
fn switch(word: &str, names: &[&str]) -> Option<bool> {
    let (name, value) = parts(word)?;
    if !names.iter().any(|other| bare(other) == name) {
        return None;
    }
    match value {
        None | Some("1" | "t" | "T" | "true" | "TRUE" | "True") => Some(true),
        Some("0" | "f" | "F" | "false" | "FALSE" | "False") => Some(false),
        Some(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(words: &str) -> Args {
        Args::new(std::iter::once("runtime").chain(words.split_whitespace()).map(OsString::from).collect())
    }

    #[test]
    fn flags_are_taken_from_before_the_words_only() {
        let mut args = args("--root /r -d --pid-file=/p id sh -d");
        assert_eq!(args.value(&["--root"]).as_deref(), Some("/r"));
        assert!(args.flag(&["-d", "--detach"]));
        assert!(!args.flag(&["-d", "--detach"]), "the other one belongs to the command");
        assert_eq!(args.value(&["--pid-file"]).as_deref(), Some("/p"));
        assert_eq!(args.id().unwrap(), "id");
        assert_eq!(args.rest(), ["sh", "-d"]);
    }

    #[test]
    fn the_last_of_several_counts() {
        let mut args = args("--root /a -d --root=/b --keep --keep=false -d id");
        assert_eq!(args.value(&["--root"]).as_deref(), Some("/b"));
        assert!(args.flag(&["-d"]) && !args.flag(&["--keep"]));
        assert_eq!(args.id().unwrap(), "id");
    }

    #[test]
    fn one_dash_is_as_good_as_two() {
        let mut args = args("-root /a --d --keep=T -no-pivot=0 --force=maybe id");
        assert_eq!(args.value(&["--root"]).as_deref(), Some("/a"));
        assert!(args.flag(&["-d", "--detach"]) && args.flag(&["--keep"]) && !args.flag(&["--no-pivot"]));
        assert!(!args.flag(&["--force"]));
        assert!(args.id().unwrap_err().to_string().contains("--force=maybe"));
    }

    #[test]
    fn flags_may_stand_behind_words() {
        let mut behind = args("delete id --force -b /bundle");
        assert_eq!(behind.word().as_deref(), Some("delete"));
        assert!(!behind.flag(&["--force"]));
        behind.look_anywhere();
        assert!(behind.flag(&["--force"]));
        assert_eq!(behind.value(&["--bundle", "-b"]).as_deref(), Some("/bundle"));
        assert_eq!(behind.id().unwrap(), "id");
        behind.end().unwrap();
        let mut signal = args("id -9");
        signal.look_anywhere();
        assert!(!signal.flag(&["-a", "--all"]));
        assert_eq!((signal.id().unwrap(), signal.word()), ("id".into(), Some("-9".into())));
    }

    #[test]
    fn arguments_after_two_dashes_are_no_flags() {
        let mut args = args("-d -- -x --force");
        args.look_anywhere();
        assert!(args.flag(&["-d"]) && !args.flag(&["--force"]));
        assert_eq!(args.id().unwrap(), "-x");
        assert_eq!(args.rest(), ["--force"]);
    }

    #[test]
    fn unknown_flags_and_extra_arguments_are_refused() {
        let mut unknown = args("--nosuch id");
        assert!(unknown.id().unwrap_err().to_string().contains("--nosuch"));
        let mut extra = args("id more");
        extra.id().unwrap();
        assert!(extra.end().unwrap_err().to_string().contains("more"));
    }
}
