//! Prometheus's text exposition format, version 0.0.4.

use std::fmt::Write;

#[derive(Default)]
pub(super) struct Text(String);

impl Text {
    /// Begins a metric family.
    pub(super) fn family(&mut self, name: &str, kind: &str, help: &str) {
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    pub(super) fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: f64) {
        self.0.push_str(name);
        for (at, (label, value)) in labels.iter().enumerate() {
            let _ = write!(self.0, "{}{label}=\"", if at == 0 { "{" } else { "," });
            for character in value.chars() {
                match character {
                    '\\' => self.0.push_str("\\\\"),
                    '"' => self.0.push_str("\\\""),
                    '\n' => self.0.push_str("\\n"),
                    other => self.0.push(other),
                }
            }
            self.0.push('"');
        }
        // `Display` writes whole numbers without a fraction, and others exactly.
        let _ = writeln!(self.0, "{} {value}", if labels.is_empty() { "" } else { "}" });
    }

    pub(super) fn into_string(self) -> String {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_labels_and_values_are_written_as_the_format_says() {
        let mut text = Text::default();
        text.family("x_total", "counter", "how many");
        text.sample("x_total", &[], 3.0);
        text.sample("x_total", &[("a", "q\"\\\n"), ("b", "")], 0.5);
        let expected = "# HELP x_total how many\n# TYPE x_total counter\nx_total 3\nx_total{a=\"q\\\"\\\\\\n\",b=\"\"} 0.5\n";
        assert_eq!(text.into_string(), expected);
    }
}
