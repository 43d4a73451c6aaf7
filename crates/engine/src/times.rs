//! Parses times in Docker's syntax: a calendar time, seconds since the epoch, or a duration before now.

use types::{Error, Result, Timestamp};

const NANOSECONDS: i128 = 1_000_000_000;

/// Parses the value of a flag such as `--since`.
pub fn time(flag: &str, text: Option<String>) -> Result<Option<Timestamp>> {
    let bad = |text: &str| {
        Error::invalid_argument(format!(
            "invalid --{flag} {text:?}: expected a duration like 10m, or a time like 2026-01-02T03:04:05Z"
        ))
    };
    text.map(|text| parse_time(&text).ok_or_else(|| bad(&text))).transpose()
}

/// Parses an RFC 3339 time or a prefix of one, in UTC by default; seconds since the epoch; or a duration before now, in
/// the syntax of Go's `time.ParseDuration` extended by days.
pub(crate) fn parse_time(text: &str) -> Option<Timestamp> {
    calendar(text).or_else(|| from_nanoseconds(decimal(text)?)).or_else(|| {
        let now = Timestamp::now();
        let now = i128::from(now.seconds) * NANOSECONDS + i128::from(now.nanos);
        from_nanoseconds(now.saturating_sub(duration(text)?))
    })
}

fn calendar(text: &str) -> Option<Timestamp> {
    const WHOLE: &str = "0000-00-00T00:00:00";
    if let Ok(time) = text.parse() {
        return Some(time);
    }
    // Only the end may be missing: seconds, minutes or hours.
    let bare = text.strip_suffix(['Z', 'z']).unwrap_or(text);
    let rest = ["0000-00-00", "0000-00-00T00", "0000-00-00T00:00", WHOLE];
    match rest.iter().find(|form| form.len() == bare.len()) {
        Some(form) => format!("{bare}{}Z", &WHOLE[form.len()..]).parse().ok(),
        // With a fraction of a second.
        None => format!("{bare}Z").parse().ok(),
    }
}

/// A decimal number of seconds, in nanoseconds.
fn decimal(text: &str) -> Option<i128> {
    let (is_negative, digits) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    let are_digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    if whole.is_empty() && fraction.is_empty() || !are_digits(whole) || !are_digits(fraction) {
        return None;
    }
    let whole: i64 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
    let fraction: String = fraction.chars().chain("000000000".chars()).take(9).collect();
    let value = i128::from(whole) * NANOSECONDS + fraction.parse::<i128>().ok()?;
    Some(if is_negative { -value } else { value })
}

/// A duration, in nanoseconds.
pub(crate) fn duration(text: &str) -> Option<i128> {
    let (sign, mut rest) = match text.as_bytes().first()? {
        b'-' => (-1, &text[1..]),
        b'+' => (1, &text[1..]),
        _ => (1, text),
    };
    let mut sum: i128 = 0;
    loop {
        let is_number = |c: char| c.is_ascii_digit() || c == '.';
        let (number, unit) = rest.split_at(rest.find(|c| !is_number(c))?);
        let (unit, further) = unit.split_at(unit.find(is_number).unwrap_or(unit.len()));
        let scale: i128 = match unit {
            "ns" => 1,
            "us" | "µs" | "μs" => 1_000,
            "ms" => 1_000_000,
            "s" => NANOSECONDS,
            "m" => 60 * NANOSECONDS,
            "h" => 3600 * NANOSECONDS,
            "d" => 86_400 * NANOSECONDS,
            _ => return None,
        };
        // Saturates at the largest duration.
        sum = sum.saturating_add(decimal(number)?.saturating_mul(scale) / NANOSECONDS);
        if further.is_empty() {
            return Some(sign * sum);
        }
        rest = further;
    }
}

/// Clamped to the range of timestamps.
fn from_nanoseconds(nanoseconds: i128) -> Option<Timestamp> {
    let seconds = nanoseconds.div_euclid(NANOSECONDS).clamp(i64::MIN.into(), i64::MAX.into());
    Some(Timestamp {
        seconds: i64::try_from(seconds).ok()?,
        nanos: u32::try_from(nanoseconds.rem_euclid(NANOSECONDS)).ok()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_of_the_calendar_or_since_1970_or_durations_before_now() {
        let at = |text: &str| parse_time(text).unwrap_or_else(|| panic!("{text}")).to_string();
        for (text, expected) in [
            ("2026-01-02", "2026-01-02T00:00:00Z"),
            ("2026-01-02Z", "2026-01-02T00:00:00Z"),
            ("2026-01-02T03", "2026-01-02T03:00:00Z"),
            ("2026-01-02T03:04", "2026-01-02T03:04:00Z"),
            ("2026-01-02T03:04:05", "2026-01-02T03:04:05Z"),
            ("2026-01-02T03:04:05.5", "2026-01-02T03:04:05.500000000Z"),
            ("2026-01-02T03:04:05+01:00", "2026-01-02T02:04:05Z"),
            ("60", "1970-01-01T00:01:00Z"),
            ("60.25", "1970-01-01T00:01:00.250000000Z"),
        ] {
            assert_eq!(at(text), expected, "{text}");
        }
        let age = |text: &str| {
            parse_time(text).unwrap_or_else(|| panic!("{text}")).until(Timestamp::now()).as_millis()
        };
        for (text, expected) in
            [("1h30m", 5_400_000), ("1.5h", 5_400_000), ("250ms", 250), ("2d", 172_800_000)]
        {
            assert!((expected..expected + 5_000).contains(&age(text)), "{text}");
        }
        let ahead = Timestamp::now().until(parse_time("-1h").unwrap()).as_secs();
        assert!((3595..=3600).contains(&ahead), "{ahead}");
        for wrong in [
            "",
            "-",
            ".",
            "h",
            "1x",
            "yesterday",
            "1h30",
            "1.h.",
            "2026-13-01",
            "2026-01-02T",
            "0x10",
            "1e3",
            "é",
        ] {
            assert_eq!(parse_time(wrong), None, "{wrong}");
        }
        // Saturates instead of overflowing.
        parse_time(&format!("{}d", i64::MAX)).unwrap();
        parse_time(&format!("-{}h", i64::MAX)).unwrap();
        assert_eq!(parse_time(&"9".repeat(40)), None);
    }
}
