//! The kernel's release, for features that cannot be detected otherwise.

use std::sync::OnceLock;

/// Its three numbers; the last one counts stable releases.
pub fn release() -> (u32, u32, u32) {
    static RELEASE: OnceLock<(u32, u32, u32)> = OnceLock::new();
    *RELEASE.get_or_init(|| parse(&rustix::system::uname().release().to_string_lossy()))
}

fn parse(text: &str) -> (u32, u32, u32) {
    // The rest is the distributor's, or a release candidate's number.
    let end = text.find(|character: char| !character.is_ascii_digit() && character != '.');
    let mut numbers = text[..end.unwrap_or(text.len())].split('.').map(str::parse);
    let mut next = || numbers.next().and_then(Result::ok).unwrap_or(0);
    (next(), next(), next())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_of_all_kinds_are_read() {
        for (text, expected) in [
            ("6.12.43+deb13-cloud-amd64", (6, 12, 43)),
            ("6.18.21", (6, 18, 21)),
            ("5.10.0-30-amd64", (5, 10, 0)),
            ("6.8-rc1", (6, 8, 0)),
            ("7", (7, 0, 0)),
            ("unknown", (0, 0, 0)),
        ] {
            assert_eq!(parse(text), expected, "{text}");
        }
        assert!(release() >= (5, 12, 0), "what this runs on at least");
    }
}
