//! Platforms: reading their names, and which of several fits.

use std::fmt;
use std::str::FromStr;

use crate::spec::image::Platform;
use crate::{Error, Result};

impl Platform {
    /// What this program was built for, in the names of images.
    pub fn host() -> Platform {
        let (architecture, variant) = match std::env::consts::ARCH {
            "x86_64" => ("amd64", ""),
            "x86" => ("386", ""),
            "aarch64" => ("arm64", "v8"),
            "arm" => ("arm", "v7"),
            "powerpc64" => ("ppc64le", ""),
            other => (other, ""),
        };
        Platform {
            architecture: architecture.into(),
            os: "linux".into(),
            variant: variant.into(),
            ..Platform::default()
        }
    }

    /// How well an image for `other` runs here: 0 not at all, more is better.
    pub fn fit(&self, other: &Platform) -> u32 {
        let (ours, theirs) = (self.clone().normal(), other.clone().normal());
        if ours.os != theirs.os {
            return 0;
        }
        match (ours.architecture.as_str(), theirs.architecture.as_str()) {
            ("amd64", "386") => 1,
            (a, b) if a != b => 0,
            ("arm", _) => {
                // An older variant runs on a newer machine.
                let number = |variant: &str| variant.trim_start_matches('v').parse::<u32>().unwrap_or(7);
                let (machine, image) = (number(&ours.variant), number(&theirs.variant));
                if image <= machine { 10 + image } else { 0 }
            }
            _ if ours.variant == theirs.variant => 20,
            _ if theirs.variant.is_empty() => 15,
            _ => 0,
        }
    }

    /// Other spellings of the same.
    fn normal(mut self) -> Platform {
        let architecture = match self.architecture.as_str() {
            "x86_64" | "x86-64" => "amd64",
            "i386" | "i686" => "386",
            "aarch64" => "arm64",
            "armhf" => "arm",
            other => other,
        };
        self.architecture = architecture.to_owned();
        if self.architecture == "arm64" && self.variant.is_empty() {
            self.variant = "v8".into();
        }
        if self.architecture == "amd64" && self.variant == "v1" {
            self.variant.clear();
        }
        self
    }
}

impl FromStr for Platform {
    type Err = Error;

    fn from_str(text: &str) -> Result<Platform> {
        let parts: Vec<&str> = text.split('/').collect();
        let known = parts.iter().all(|part| {
            !part.is_empty()
                && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
        });
        let (os, architecture, variant) = match parts[..] {
            [os, architecture] if known => (os, architecture, ""),
            [os, architecture, variant] if known => (os, architecture, variant),
            _ => {
                return Err(Error::invalid_argument(format!(
                    "invalid platform {text:?}: expected OS/ARCHITECTURE[/VARIANT], like linux/arm64"
                )));
            }
        };
        let platform = Platform {
            architecture: architecture.into(),
            os: os.into(),
            variant: variant.into(),
            ..Platform::default()
        };
        Ok(platform.normal())
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        if self.variant.is_empty() { Ok(()) } else { write!(f, "/{}", self.variant) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_of_several_is_known() {
        let fit = |ours: &str, theirs: &str| ours.parse::<Platform>().unwrap().fit(&theirs.parse().unwrap());
        assert!(fit("linux/amd64", "linux/amd64") > fit("linux/amd64", "linux/386"));
        assert_eq!(fit("linux/amd64", "linux/arm64"), 0);
        assert_eq!(fit("linux/amd64", "windows/amd64"), 0);
        assert!(fit("linux/arm64", "linux/arm64/v8") > 0);
        assert!(fit("linux/arm/v7", "linux/arm/v7") > fit("linux/arm/v7", "linux/arm/v6"));
        assert_eq!(fit("linux/arm/v6", "linux/arm/v7"), 0);
        assert!("linux".parse::<Platform>().is_err());
    }
}
