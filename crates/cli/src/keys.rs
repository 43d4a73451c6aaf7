//! Detach keys, which end the client and leave the container running, in Docker's notation: `ctrl-p,ctrl-q`.
//!
//! A typed prefix of the sequence is held back until the next key decides.

use std::str::FromStr;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DetachKeys(Vec<u8>);

impl Default for DetachKeys {
    /// Ctrl-P Ctrl-Q.
    fn default() -> DetachKeys {
        DetachKeys(vec![16, 17])
    }
}

impl FromStr for DetachKeys {
    type Err = String;

    /// Parses Docker's notation. An empty text means no sequence.
    fn from_str(text: &str) -> Result<DetachKeys, String> {
        let key = |word: &str| {
            let (control, name) = word.strip_prefix("ctrl-").map_or((false, word), |name| (true, name));
            match (control, name.as_bytes()) {
                (false, [key]) if key.is_ascii() => Ok(*key),
                (true, [key @ (b'a'..=b'z' | b'@' | b'[' | b'\\' | b']' | b'^' | b'_')]) => Ok(key & 0x1f),
                _ => Err(format!("{word:?} is neither a letter nor ctrl- and one of a-z @ [ \\ ] ^ _")),
            }
        };
        text.split(',').filter(|_| !text.is_empty()).map(key).collect::<Result<_, _>>().map(DetachKeys)
    }
}

/// The filter between the user's keys and the container.
pub(crate) struct DetachFilter {
    keys: DetachKeys,
    /// How many keys of the sequence have been typed.
    typed: usize,
}

impl DetachFilter {
    pub(crate) fn new(keys: DetachKeys) -> DetachFilter {
        DetachFilter { keys, typed: 0 }
    }

    /// Returns the bytes to pass on, including earlier ones that were held back, and whether the sequence is complete.
    pub(crate) fn pass(&mut self, typed: &[u8]) -> (Vec<u8>, bool) {
        let keys = &self.keys.0;
        let mut onward = Vec::with_capacity(typed.len());
        for byte in typed {
            if self.typed > 0 && keys.get(self.typed) != Some(byte) {
                onward.extend_from_slice(&keys[..self.typed]);
                self.typed = 0;
            }
            if keys.get(self.typed) == Some(byte) {
                self.typed += 1;
                if self.typed == keys.len() {
                    return (onward, true);
                }
            } else {
                onward.push(*byte);
            }
        }
        (onward, false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn detach_keys_are_parsed_as_dockers() {
        let read = |text: &str| text.parse::<DetachKeys>().map(|keys| keys.0);
        assert_eq!(read("ctrl-p,ctrl-q"), Ok(DetachKeys::default().0));
        assert_eq!(
            read("a,ctrl-@,ctrl-[,ctrl-\\,ctrl-],ctrl-^,ctrl-_"),
            Ok(vec![b'a', 0, 27, 28, 29, 30, 31])
        );
        assert_eq!(read(""), Ok(vec![]));
        for text in ["ctrl-", "ctrl-P", "ctrl-1", "ab", "a,,b", "ctrl-p,", "é"] {
            assert!(read(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_partial_detach_sequence_is_passed_on() {
        let check = |keys: &str, pieces: &[&str], onward: &str, detached: bool| {
            let mut sieve = DetachFilter::new(keys.parse().unwrap());
            let mut passed = Vec::new();
            let mut last = false;
            for piece in pieces {
                let (bytes, found) = sieve.pass(piece.as_bytes());
                passed.extend(bytes);
                last = found;
            }
            assert_eq!((String::from_utf8(passed).unwrap().as_str(), last), (onward, detached), "{pieces:?}");
        };
        check("x,y", &["abc"], "abc", false);
        check("x,y", &["axyz"], "a", true);
        check("x,y", &["ax", "y"], "a", true);
        check("x,y", &["ax", "b"], "axb", false);
        check("x,y", &["xxy"], "x", true);
        check("x,x,y", &["xxx"], "xx", false);
        check("x", &["abx"], "ab", true);
        check("", &["\u{10}\u{11}"], "\u{10}\u{11}", false);
    }
}
