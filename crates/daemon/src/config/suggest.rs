//! Readable errors of the TOML parser: file, line, and the key that was probably meant.

use std::path::Path;

use types::Error;

pub(super) fn explain(error: &toml::de::Error, text: &str, path: &Path) -> Error {
    let line = error.span().map_or(1, |span| text[..span.start.min(text.len())].matches('\n').count() + 1);
    let message = error.message();
    let hint = nearest(message).map(|key| format!("; did you mean `{key}`?")).unwrap_or_default();
    Error::invalid_argument(format!("{}:{line}: {message}{hint}", path.display()))
}

/// The known key most similar to the unknown one in a message such as "unknown field `a`, expected one of `b`, `c`".
fn nearest(message: &str) -> Option<&str> {
    let (unknown, expected) = message.strip_prefix("unknown field ")?.split_once(',')?;
    let unknown = quoted(unknown).next()?;
    stdx::nearest(unknown, quoted(expected))
}

fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_key_is_found_and_far_ones_are_not_offered() {
        let check = |unknown: &str, key: Option<&str>| {
            let message = format!("unknown field `{unknown}`, expected one of `address`, `uid`, `gid`");
            assert_eq!(nearest(&message), key, "{unknown}");
        };
        check("adress", Some("address"));
        check("colour", None);
        assert_eq!(nearest("invalid type: integer"), None);
    }
}
