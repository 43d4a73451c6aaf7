//! Sizes in bytes, as users write them.

/// Parses `4096`, `7b`, `64m`, `2 GB`, `1.5GiB`: units are powers of 1024 up to `p`, in either case. Fractions of a
/// byte are cut off. `None` if the text is no size, or is 2⁶³ bytes or more, which no file can have.
pub fn bytes(text: &str) -> Option<u64> {
    counted(text, 1024)
}

/// As [`bytes`], with units that are powers of 1000 whatever their spelling: `10m` and `10MiB` are ten million.
pub fn decimal_bytes(text: &str) -> Option<u64> {
    counted(text, 1000)
}

fn counted(text: &str, base: u64) -> Option<u64> {
    let end = text.find(|letter: char| !letter.is_ascii_digit() && letter != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let power = match unit.trim_start().to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 1,
        "m" | "mb" | "mib" => 2,
        "g" | "gb" | "gib" => 3,
        "t" | "tb" | "tib" => 4,
        "p" | "pb" | "pib" => 5,
        _ => return None,
    };
    let factor = base.pow(power);
    let (whole, part) = number.split_once('.').unwrap_or((number, ""));
    let whole = if whole.is_empty() && !part.is_empty() { "0" } else { whole };
    // The integer part is parsed apart from the fraction, so that large numbers stay exact.
    let (whole, part): (u64, f64) = (whole.parse().ok()?, format!("0.{part}").parse().ok()?);
    let bytes = whole.checked_mul(factor)?.checked_add((part * factor as f64) as u64)?;
    i64::try_from(bytes).is_ok().then_some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_bytes_have_units() {
        for (text, expected) in [
            ("0", 0),
            ("4096", 4096),
            ("7b", 7),
            ("1k", 1 << 10),
            ("64m", 64 << 20),
            ("100MiB", 100 << 20),
            ("1.5k", 1536),
            ("1.5g", 3 << 29),
            (".5g", 1 << 29),
            ("2 GB", 2 << 30),
            ("1T", 1 << 40),
            ("3p", 3 << 50),
            ("0.0001k", 0),
            ("9223372036854775807", i64::MAX.cast_unsigned()),
        ] {
            assert_eq!(bytes(text), Some(expected), "{text}");
        }
        for text in [
            "",
            ".",
            "m",
            "-1",
            "+1",
            "1x",
            "1ib",
            "1.2.3",
            "1e3",
            "1 2",
            " 1",
            "many",
            "NaN",
            "8192p",
            "9223372036854775808",
            "99999999999999g",
        ] {
            assert_eq!(bytes(text), None, "{text}");
        }
    }

    #[test]
    fn units_may_be_powers_of_a_thousand() {
        for (text, expected) in [
            ("4096", 4096),
            ("10m", 10_000_000),
            ("1.5KB", 1500),
            ("10MiB", 10_000_000),
            ("2 g", 2_000_000_000),
            ("3p", 3_000_000_000_000_000),
        ] {
            assert_eq!(decimal_bytes(text), Some(expected), "{text}");
        }
        assert_eq!(decimal_bytes("9224p"), None);
        assert_eq!(decimal_bytes("big"), None);
    }
}
