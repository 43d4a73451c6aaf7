//! Arguments, taken one by one. Flags come before the words they belong to; `--flag=value` works too.

use std::collections::VecDeque;
use std::ffi::OsString;

use types::{Error, Result};

pub(super) struct Args(VecDeque<String>);

impl Args {
    /// Leaves out the program's name.
    pub(super) fn new(args: Vec<OsString>) -> Args {
        Args(args.into_iter().skip(1).map(|word| word.to_string_lossy().into_owned()).collect())
    }

    /// Takes a flag that stands before the next word. Of several the last one counts. Short flags may not be joined.
    pub(super) fn flag(&mut self, names: &[&str]) -> bool {
        let is_named = |word: &str| {
            let name = word.strip_suffix("=true").or(word.strip_suffix("=false")).unwrap_or(word);
            names.contains(&name)
        };
        let mut is_set = false;
        while let Some(index) = self.leading_flags().find(|index| is_named(&self.0[*index])) {
            is_set = self.0.remove(index).is_some_and(|word| !word.ends_with("=false"));
        }
        is_set
    }

    /// Takes a flag with its value. Of several the last one counts.
    pub(super) fn value(&mut self, names: &[&str]) -> Option<String> {
        self.values(names).pop()
    }

    /// Takes a flag that may be there several times.
    pub(super) fn values(&mut self, names: &[&str]) -> Vec<String> {
        std::iter::from_fn(|| self.next_value(names)).collect()
    }

    fn next_value(&mut self, names: &[&str]) -> Option<String> {
        let found = self.leading_flags().find_map(|index| {
            let word = &self.0[index];
            let joined = names.iter().find_map(|name| word.strip_prefix(name)?.strip_prefix('='));
            if let Some(value) = joined {
                return Some((index, Some(value.to_owned())));
            }
            names.contains(&word.as_str()).then_some((index, None))
        });
        let (index, joined) = found?;
        self.0.remove(index);
        joined.or_else(|| self.0.remove(index))
    }

    pub(super) fn number<T: std::str::FromStr>(&mut self, names: &[&str]) -> Result<Option<T>> {
        let Some(text) = self.value(names) else { return Ok(None) };
        let number = text
            .parse()
            .map_err(|_| Error::invalid_argument(format!("{}: {text:?} is not a number", names[0])))?;
        Ok(Some(number))
    }

    /// The next word that is no flag.
    pub(super) fn word(&mut self) -> Option<String> {
        if self.0.front().is_some_and(|word| word == "--") {
            self.0.pop_front();
        }
        self.0.pop_front()
    }

    pub(super) fn id(&mut self) -> Result<String> {
        match self.word() {
            Some(word) if word.starts_with('-') => {
                Err(Error::invalid_argument(format!("unknown flag {word:?}; see --help")))
            }
            Some(word) => Ok(word),
            None => Err(Error::invalid_argument("the container's id is missing; see --help")),
        }
    }

    /// All words that are left.
    pub(super) fn rest(&mut self) -> Vec<String> {
        if self.0.front().is_some_and(|word| word == "--") {
            self.0.pop_front();
        }
        self.0.drain(..).collect()
    }

    /// Nothing may be left.
    pub(super) fn end(&mut self) -> Result<()> {
        match self.0.front() {
            Some(word) => Err(Error::invalid_argument(format!("unexpected argument {word:?}; see --help"))),
            None => Ok(()),
        }
    }

    /// Where flags may be: everything before the first word that neither is a flag nor a flag's value. Which
    /// flags have values is not known here, so a word behind a flag may be either, and is passed over.
    fn leading_flags(&self) -> impl Iterator<Item = usize> + use<> {
        let mut end = 0;
        let mut previous_is_flag = false;
        for word in &self.0 {
            let is_flag = word.starts_with('-') && word.len() > 1;
            if word == "--" || !(is_flag || previous_is_flag) {
                break;
            }
            previous_is_flag = is_flag && !word.contains('=');
            end += 1;
        }
        0..end
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
    fn what_is_left_over_is_refused() {
        let mut unknown = args("--nosuch id");
        assert!(unknown.id().unwrap_err().to_string().contains("--nosuch"));
        let mut extra = args("id more");
        extra.id().unwrap();
        assert!(extra.end().unwrap_err().to_string().contains("more"));
    }
}
