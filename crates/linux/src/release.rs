//! The kernel's version, for what it does not say otherwise.

use std::sync::OnceLock;

/// Its first two numbers.
pub fn release() -> (u32, u32) {
    static RELEASE: OnceLock<(u32, u32)> = OnceLock::new();
    *RELEASE.get_or_init(|| parse(&rustix::system::uname().release().to_string_lossy()))
}

fn parse(text: &str) -> (u32, u32) {
    let mut numbers = text.split(|character: char| !character.is_ascii_digit()).map(str::parse);
    let mut next = || numbers.next().and_then(Result::ok).unwrap_or(0);
    (next(), next())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_of_all_kinds_are_read() {
        for (text, expected) in [
            ("6.12.43+deb13-cloud-amd64", (6, 12)),
            ("5.10.0-30-amd64", (5, 10)),
            ("6.8-rc1", (6, 8)),
            ("7", (7, 0)),
            ("unknown", (0, 0)),
        ] {
            assert_eq!(parse(text), expected, "{text}");
        }
        assert!(release() >= (5, 12), "what this runs on at least");
    }
}
