//! Durations in Go's notation (`time.ParseDuration`), which configuration files and labels use.

use std::time::Duration;

/// Parses `500us`, `100ms`, `2s`, `1m`, `1h30m`, `1.5s` or plain `0`. `None` for anything else, negative durations
/// included.
pub fn duration(text: &str) -> Option<Duration> {
    if text == "0" {
        return Some(Duration::ZERO);
    }
    let mut total = Duration::ZERO;
    let mut rest = text;
    while !rest.is_empty() || text.is_empty() {
        let digits = rest.find(|found: char| !found.is_ascii_digit() && found != '.').unwrap_or(rest.len());
        let (number, tail) = rest.split_at(digits);
        let unit_len = tail.find(|found: char| found.is_ascii_digit() || found == '.').unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(unit_len);
        let seconds = match unit {
            "ns" => 1e-9,
            "us" | "µs" | "μs" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return None,
        };
        let number: f64 = number.parse().ok()?;
        total = total.checked_add(Duration::try_from_secs_f64(number * seconds).ok()?)?;
        rest = tail;
    }
    Some(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_as_go_writes_them() {
        for (text, millis) in [("0", 0), ("0s", 0), ("100ms", 100), ("1.5s", 1500), ("4h0m0s", 14_400_000)] {
            assert_eq!(duration(text), Some(Duration::from_millis(millis)), "{text}");
        }
        // The micro sign and the Greek letter mu, which look the same.
        for text in ["500us", "500\u{b5}s", "500\u{3bc}s"] {
            assert_eq!(duration(text), Some(Duration::from_micros(500)), "{text}");
        }
        for text in ["", "5", "s", "1.2.3s", "-1s", "1d", "1s5", "99999999999999999999h"] {
            assert_eq!(duration(text), None, "{text}");
        }
    }
}
