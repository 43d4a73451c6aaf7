//! Random bytes (getrandom(2)).

use std::io;

use rustix::io::retry_on_intr;
use rustix::rand::{GetRandomFlags, getrandom};
use types::{Error, Result};

/// `len` random bytes as lower case hexadecimal digits: an unguessable and, if long enough, unique name.
///
/// # Errors
/// `Internal`, if the kernel has none.
pub fn hex(len: usize) -> Result<String> {
    let mut bytes = vec![0_u8; len];
    let mut filled = 0;
    while filled < len {
        let more = retry_on_intr(|| getrandom(&mut bytes[filled..], GetRandomFlags::empty()));
        filled += more.map_err(|errno| {
            Error::internal("take random bytes from the kernel").with_source(io::Error::from(errno))
        })?;
    }
    let digits = bytes.iter().flat_map(|byte| [byte >> 4, byte & 0xf]);
    Ok(digits.map(|digit| char::from(b"0123456789abcdef"[usize::from(digit)])).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_byte_is_two_digits_and_no_two_names_are_one() {
        for len in [0, 1, 16, 1000] {
            let text = hex(len).unwrap();
            assert_eq!(text.len(), 2 * len);
            assert!(text.bytes().all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f')), "{text}");
        }
        assert_ne!(hex(16).unwrap(), hex(16).unwrap());
    }
}
