//! Pressure stall information: how long the tasks of a cgroup waited for a resource (psi.rst of the kernel). Version 2
//! only, and not on kernels booted with `psi=0`.
//!
//! ```text
//! some avg10=0.00 avg60=0.12 avg300=0.05 total=123456
//! full avg10=0.00 avg60=0.00 avg300=0.00 total=654
//! ```

use types::Result;

use super::Member;

#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Pressure {
    /// At least one task waited.
    pub some: Stall,
    /// All tasks waited at once.
    pub full: Stall,
}

/// Percentages over the last 10, 60 and 300 seconds, and the total in microseconds since the cgroup was created.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Stall {
    pub avg10: f64,
    pub avg60: f64,
    pub avg300: f64,
    pub total_us: u64,
}

/// None if the kernel does not report pressure.
pub(super) fn read(member: &Member, resource: &str) -> Result<Option<Pressure>> {
    Ok(member.read_optional(&format!("{resource}.pressure"))?.map(|text| parse(&text)))
}

fn parse(text: &str) -> Pressure {
    let mut pressure = Pressure::default();
    for line in text.lines() {
        let mut parts = line.split_whitespace();
        let stall = match parts.next() {
            Some("some") => &mut pressure.some,
            Some("full") => &mut pressure.full,
            _ => continue,
        };
        for (key, value) in parts.filter_map(|part| part.split_once('=')) {
            let average = || value.parse().unwrap_or_default();
            match key {
                "avg10" => stall.avg10 = average(),
                "avg60" => stall.avg60 = average(),
                "avg300" => stall.avg300 = average(),
                "total" => stall.total_us = value.parse().unwrap_or_default(),
                _ => {}
            }
        }
    }
    pressure
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pressure_lines_are_parsed_and_unknown_fields_ignored() {
        let text = "some avg10=0.50 avg60=12.25 avg300=0.00 total=123456\nfull avg10=0.01 avg1=9 total=7\nnew total=1\n";
        let some = Stall { avg10: 0.5, avg60: 12.25, avg300: 0.0, total_us: 123_456 };
        let full = Stall { avg10: 0.01, total_us: 7, ..Stall::default() };
        assert_eq!(parse(text), Pressure { some, full });
        assert_eq!(parse(""), Pressure::default());
    }
}
