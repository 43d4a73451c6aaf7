//! Points in time, as the API carries them, and their text (RFC 3339).

use std::fmt;
use std::str::FromStr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// A time in UTC: seconds and nanoseconds since 1970, as in `google.protobuf.Timestamp`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Timestamp {
    pub seconds: i64,
    /// 0 to 999,999,999. They count forward, also for times before 1970.
    pub nanos: u32,
}

const SECONDS_PER_DAY: i64 = 86_400;

impl Timestamp {
    /// The zero value of Go's `time.Time`, 0001-01-01, which Go programs read as "no time". They read an absent
    /// timestamp as 1970.
    pub const NEVER: Timestamp = Timestamp { seconds: -62_135_596_800, nanos: 0 };

    /// The current wall clock time. Domain crates take times as arguments instead of calling this.
    pub fn now() -> Timestamp {
        Timestamp::from(SystemTime::now())
    }

    /// This time plus `by`, saturating at the last representable second.
    #[must_use]
    pub fn plus(self, by: Duration) -> Timestamp {
        let nanos = self.nanos + by.subsec_nanos();
        let carry = i64::from(nanos / 1_000_000_000);
        let seconds = i64::try_from(by.as_secs()).unwrap_or(i64::MAX);
        Timestamp {
            seconds: self.seconds.saturating_add(seconds).saturating_add(carry),
            nanos: nanos % 1_000_000_000,
        }
    }

    /// The duration from this time to `later`; zero if `later` is earlier.
    pub fn until(self, later: Timestamp) -> Duration {
        let nanos = |time: Timestamp| i128::from(time.seconds) * 1_000_000_000 + i128::from(time.nanos);
        let gap = (nanos(later) - nanos(self)).max(0);
        Duration::from_nanos(u64::try_from(gap).unwrap_or(u64::MAX))
    }
}

impl From<SystemTime> for Timestamp {
    fn from(time: SystemTime) -> Timestamp {
        let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
        Timestamp { seconds: i64::try_from(since.as_secs()).unwrap_or(i64::MAX), nanos: since.subsec_nanos() }
    }
}

impl fmt::Display for Timestamp {
    /// RFC 3339 in UTC. A fraction has nine digits; a fraction of zero is omitted.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (year, month, day) = civil_from_days(self.seconds.div_euclid(SECONDS_PER_DAY));
        let second = self.seconds.rem_euclid(SECONDS_PER_DAY);
        let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
        write!(f, "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}")?;
        if self.nanos != 0 {
            write!(f, ".{:09}", self.nanos)?;
        }
        f.write_str("Z")
    }
}

impl FromStr for Timestamp {
    type Err = Error;

    fn from_str(text: &str) -> Result<Timestamp> {
        parse(text).ok_or_else(|| {
            Error::invalid_argument(format!(
                "invalid time {text:?}: expected RFC 3339, like 2026-01-02T03:04:05Z"
            ))
        })
    }
}

impl TryFrom<String> for Timestamp {
    type Error = Error;

    fn try_from(text: String) -> Result<Timestamp> {
        text.parse()
    }
}

impl From<Timestamp> for String {
    fn from(time: Timestamp) -> String {
        time.to_string()
    }
}

fn parse(text: &str) -> Option<Timestamp> {
    let number = |range: std::ops::Range<usize>| -> Option<i64> {
        let digits = text.get(range)?;
        digits.bytes().all(|byte| byte.is_ascii_digit()).then(|| digits.parse().ok())?
    };
    let separator = |at: usize, any_of: &str| text.get(at..=at).filter(|found| any_of.contains(found));
    separator(4, "-")?;
    separator(7, "-")?;
    separator(10, "Tt ")?;
    separator(13, ":")?;
    separator(16, ":")?;
    let (year, month, day) = (number(0..4)?, number(5..7)?, number(8..10)?);
    let (hour, minute, second) = (number(11..13)?, number(14..16)?, number(17..19)?);
    let in_range =
        (1..=12).contains(&month) && (1..=31).contains(&day) && hour < 24 && minute < 60 && second <= 60;
    if !in_range {
        return None;
    }

    let mut rest = text.get(19..)?;
    let mut nanos = 0;
    if let Some(fraction) = rest.strip_prefix('.') {
        let len = fraction.bytes().take_while(u8::is_ascii_digit).count();
        if len == 0 {
            return None;
        }
        let digits: String = fraction[..len].chars().chain("000000000".chars()).take(9).collect();
        nanos = digits.parse().ok()?;
        rest = &fraction[len..];
    }
    let offset = match rest {
        "Z" | "z" => 0,
        _ => {
            let at = text.len() - rest.len();
            let sign = if separator(at, "+-")? == "-" { -1 } else { 1 };
            separator(at + 3, ":")?;
            if text.len() != at + 6 {
                return None;
            }
            sign * (number(at + 1..at + 3)? * 3600 + number(at + 4..at + 6)? * 60)
        }
    };
    let seconds =
        days_from_civil(year, month, day) * SECONDS_PER_DAY + hour * 3600 + minute * 60 + second - offset;
    Some(Timestamp { seconds, nanos })
}

/// Days since 1970-01-01 of a date in the proleptic Gregorian calendar. Years are counted from
/// March, so that the leap day is the last of its year.
fn days_from_civil(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - 719_468
}

/// The inverse of [`days_from_civil`].
fn civil_from_days(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468;
    let era = days.div_euclid(146_097);
    let day_of_era = days.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    (year, month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timestamps_round_trip_through_rfc_3339() {
        let cases = [
            ("1970-01-01T00:00:00Z", 0, 0),
            ("2000-02-29T12:34:56Z", 951_827_696, 0),
            ("2026-11-24T01:56:47.000000005Z", 1_795_485_407, 5),
            ("1969-12-31T23:59:59.500000000Z", -1, 500_000_000),
            ("0001-01-01T00:00:00Z", Timestamp::NEVER.seconds, 0),
        ];
        for (text, seconds, nanos) in cases {
            let time = Timestamp { seconds, nanos };
            assert_eq!(time.to_string(), text);
            assert_eq!(text.parse::<Timestamp>().unwrap(), time);
        }
    }

    #[test]
    fn offsets_and_short_fractions_are_read() {
        let time: Timestamp = "2026-01-02T03:04:05.25+02:00".parse().unwrap();
        assert_eq!(time.to_string(), "2026-01-02T01:04:05.250000000Z");
    }

    #[test]
    fn malformed_timestamps_are_refused() {
        for text in [
            "",
            "yesterday",
            "2026-13-01T00:00:00Z",
            "2026-01-01T00:00:00",
            "2026-01-01T00:00:00.Z",
            "2026-01-01T00:00:00+1:00",
            "2026-01-01T00:00:00+00:00x",
        ] {
            assert!(text.parse::<Timestamp>().is_err(), "{text}");
        }
    }

    #[test]
    fn every_day_of_four_centuries_round_trips() {
        for days in -200_000..200_000 {
            let (year, month, day) = civil_from_days(days);
            assert_eq!(days_from_civil(year, month, day), days);
        }
    }
}
