//! Platforms: parsing and printing them, and choosing the best image for one.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use crate::spec::image::Platform;
use crate::{Error, Result};

/// More features of an operating system than this do not make an image a better match.
const FEATURES_COUNTED: u32 = 64;

impl Platform {
    /// The platform that this program was built for, in the names that images use.
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

    /// How well an image for `other` runs on this platform: 0 is not at all, more is better. The image must not need a
    /// feature of the operating system that this platform lacks; of two images that differ in nothing else, the one
    /// that uses more features is better. Versions of the operating system matter for Windows only, as in containerd's
    /// package `platforms`.
    pub fn fit(&self, other: &Platform) -> u32 {
        let features: BTreeSet<&String> = other.os_features.iter().collect();
        if !features.iter().all(|feature| self.os_features.contains(feature)) || !self.takes_version_of(other)
        {
            return 0;
        }
        match self.machine_fit(other) {
            0 => 0,
            fit => fit * FEATURES_COUNTED + (features.len() as u32).min(FEATURES_COUNTED - 1),
        }
    }

    /// As [`Platform::fit`], by operating system, architecture and variant alone.
    fn machine_fit(&self, other: &Platform) -> u32 {
        let (ours, theirs) = (self.clone().normal(), other.clone().normal());
        if ours.os != theirs.os {
            return 0;
        }
        match (ours.architecture.as_str(), theirs.architecture.as_str()) {
            ("amd64", "386") => 1,
            (a, b) if a != b => 0,
            ("arm", _) => {
                // A newer CPU runs code for an older variant.
                let number = |variant: &str| variant.trim_start_matches('v').parse::<u32>().unwrap_or(7);
                let (machine, image) = (number(&ours.variant), number(&theirs.variant));
                if image <= machine { 10 + image } else { 0 }
            }
            _ if ours.variant == theirs.variant => 20,
            _ if theirs.variant.is_empty() => 15,
            _ => 0,
        }
    }

    /// Whether the version of this operating system runs images for the version of `other`, if both have one. Windows
    /// runs images of its own build; from Server 2022 on, also images of older builds down to that of Server 2022
    /// (Microsoft: "Windows container version compatibility").
    fn takes_version_of(&self, other: &Platform) -> bool {
        const SERVER_2022: u16 = 20348;
        let build = |version: &str| -> Option<(u8, u8, u16)> {
            let mut numbers = version.split('.');
            let mut next = || numbers.next();
            Some((next()?.parse().ok()?, next()?.parse().ok()?, next()?.parse().ok()?))
        };
        if self.os != "windows" || other.os_version.is_empty() {
            return true;
        }
        let Some((major, minor, ours)) = build(&self.os_version) else { return true };
        build(&other.os_version).is_some_and(|(their_major, their_minor, theirs)| {
            let is_taken =
                if ours < SERVER_2022 { theirs == ours } else { (SERVER_2022..=ours).contains(&theirs) };
            (major, minor) == (their_major, their_minor) && is_taken
        })
    }

    /// As [`Platform::canonical`], but with a variant for every arm64: a form for comparisons.
    fn normal(self) -> Platform {
        let mut platform = self.canonical();
        if platform.architecture == "i686" {
            platform.architecture = "386".into();
        }
        if platform.architecture == "arm64" && platform.variant.is_empty() {
            platform.variant = "v8".into();
        }
        platform
    }

    /// Replaces alternative names by the usual ones, as containerd's package `platforms` does (`Normalize`): this is
    /// what it writes into indexes. An image without an operating system is for Linux.
    #[must_use]
    pub fn canonical(mut self) -> Platform {
        self.os = match self.os.to_lowercase().as_str() {
            "" => "linux".into(),
            "macos" => "darwin".into(),
            other => other.into(),
        };
        let (architecture, variant) = (self.architecture.to_lowercase(), self.variant.to_lowercase());
        let (architecture, variant) = match (architecture.as_str(), variant.as_str()) {
            ("i386", _) => ("386", ""),
            ("x86_64" | "x86-64" | "amd64", "v1") => ("amd64", ""),
            ("x86_64" | "x86-64" | "amd64", variant) => ("amd64", variant),
            ("aarch64" | "arm64", "8" | "v8" | "v8.0") => ("arm64", ""),
            ("aarch64" | "arm64", "9" | "9.0" | "v9.0") => ("arm64", "v9"),
            ("aarch64" | "arm64", variant) => ("arm64", variant),
            ("armhf", _) | ("arm", "" | "7") => ("arm", "v7"),
            ("armel", _) | ("arm", "6") => ("arm", "v6"),
            ("arm", "5") => ("arm", "v5"),
            ("arm", "8") => ("arm", "v8"),
            others => others,
        };
        (self.architecture, self.variant) = (architecture.to_owned(), variant.to_owned());
        self.os_features.sort();
        self.os_features.dedup();
        self
    }
}

impl FromStr for Platform {
    type Err = Error;

    fn from_str(text: &str) -> Result<Platform> {
        let invalid = || {
            Error::invalid_argument(format!(
                "invalid platform {text:?}: expected OS[(VERSION+FEATURE)]/ARCHITECTURE[/VARIANT], like linux/arm64"
            ))
        };
        let is_known = |part: &&str| {
            !part.is_empty()
                && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
        };
        let (os, rest) = text.split_once('/').ok_or_else(invalid)?;
        let (os, options) = match os.split_once('(') {
            Some((os, options)) => (os, options.strip_suffix(')').ok_or_else(invalid)?),
            None => (os, ""),
        };
        let mut options = options.split('+');
        let version = options.next().unwrap_or_default();
        let features: Vec<&str> = options.collect();
        let (architecture, variant) =
            rest.split_once('/').map_or((rest, None), |(all, more)| (all, Some(more)));
        let parts = [os, architecture].into_iter().chain(variant).chain(features.iter().copied());
        if !parts.chain(Some(version).filter(|version| !version.is_empty())).all(|part| is_known(&part)) {
            return Err(invalid());
        }
        let platform = Platform {
            architecture: architecture.into(),
            os: os.into(),
            variant: variant.unwrap_or_default().into(),
            os_version: version.into(),
            os_features: features.into_iter().map(str::to_owned).collect(),
        };
        Ok(platform.normal())
    }
}

/// The form that `FromStr` parses: all fields, as containerd's package `platforms` writes them.
impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.os)?;
        if !self.os_version.is_empty() || !self.os_features.is_empty() {
            let features: BTreeSet<&String> = self.os_features.iter().collect();
            write!(f, "({}", self.os_version)?;
            features.into_iter().try_for_each(|feature| write!(f, "+{feature}"))?;
            f.write_str(")")?;
        }
        write!(f, "/{}", self.architecture)?;
        if self.variant.is_empty() { Ok(()) } else { write!(f, "/{}", self.variant) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_platform_that_fits_best_is_found() {
        let fit = |ours: &str, theirs: &str| ours.parse::<Platform>().unwrap().fit(&theirs.parse().unwrap());
        assert!(fit("linux/amd64", "linux/amd64") > fit("linux/amd64", "linux/386"));
        assert_eq!(fit("linux/amd64", "linux/arm64"), 0);
        assert_eq!(fit("linux/amd64", "windows/amd64"), 0);
        assert!(fit("linux/arm64", "linux/arm64/v8") > 0);
        assert!(fit("linux/arm/v7", "linux/arm/v7") > fit("linux/arm/v7", "linux/arm/v6"));
        assert_eq!(fit("linux/arm/v6", "linux/arm/v7"), 0);
    }

    #[test]
    fn an_image_needs_no_os_feature_that_the_platform_lacks() {
        let fit = |ours: &str, theirs: &str| ours.parse::<Platform>().unwrap().fit(&theirs.parse().unwrap());
        assert_eq!(fit("linux/amd64", "linux(+erofs)/amd64"), 0);
        assert_eq!(fit("linux(+other)/amd64", "linux(+erofs)/amd64"), 0);
        assert!(
            fit("linux(+erofs)/amd64", "linux(+erofs)/amd64") > fit("linux(+erofs)/amd64", "linux/amd64")
        );
        assert!(fit("linux(+erofs)/amd64", "linux/amd64") > 0);
        assert!(fit("linux(+a+b)/amd64", "linux(+a+b)/amd64") > fit("linux(+a+b)/amd64", "linux(+b)/amd64"));
        // The architecture counts before the features.
        assert!(fit("linux(+a)/amd64", "linux/amd64") > fit("linux(+a)/amd64", "linux(+a)/386"));
        assert_eq!(fit("linux(+a)/amd64", "linux(+a)/arm64"), 0);
    }

    #[test]
    fn os_versions_matter_for_windows_alone() {
        let fits = |ours: &str, theirs: &str| {
            let read = |version: &str| format!("windows({version})/amd64").parse::<Platform>().unwrap();
            read(ours).fit(&read(theirs)) > 0
        };
        for (ours, theirs, expected) in [
            ("10.0.17763.1", "10.0.17763.9", true),
            ("10.0.17763", "10.0.20348", false),
            ("10.0.20348", "10.0.17763", false),
            ("10.0.26100", "10.0.20348", true),
            ("10.0.20348", "10.0.26100", false),
            ("10.0.20348", "11.0.20348", false),
            ("", "10.0.20348", true),
            ("10.0.20348", "", true),
            ("10.0.20348", "new", false),
        ] {
            assert_eq!(fits(ours, theirs), expected, "{ours} for {theirs}");
        }
        let [ours, theirs] =
            ["linux(6.1)/amd64", "linux(5.4)/amd64"].map(|text| text.parse::<Platform>().unwrap());
        assert!(ours.fit(&theirs) > 0);
    }

    /// The expected values are containerd 2.3's.
    #[test]
    fn platforms_have_one_spelling() {
        let platform = |os: &str, architecture: &str, variant: &str| Platform {
            os: os.into(),
            architecture: architecture.into(),
            variant: variant.into(),
            ..Platform::default()
        };
        for ((os, architecture, variant), expected) in [
            (("", "", ""), ("linux", "", "")),
            (("Linux", "AMD64", "V1"), ("linux", "amd64", "")),
            (("linux", "x86_64", "v3"), ("linux", "amd64", "v3")),
            (("macos", "aarch64", "v8"), ("darwin", "arm64", "")),
            (("linux", "arm64", "9"), ("linux", "arm64", "v9")),
            (("linux", "i386", "x"), ("linux", "386", "")),
            (("linux", "i686", "x"), ("linux", "i686", "x")),
            (("linux", "armhf", "v6"), ("linux", "arm", "v7")),
            (("linux", "armel", ""), ("linux", "arm", "v6")),
            (("linux", "arm", ""), ("linux", "arm", "v7")),
            (("linux", "arm", "5"), ("linux", "arm", "v5")),
            (("linux", "riscv64", ""), ("linux", "riscv64", "")),
        ] {
            let found = platform(os, architecture, variant).canonical();
            let (os, architecture, variant) = expected;
            assert_eq!(found, platform(os, architecture, variant));
        }
        let features = vec!["b".to_owned(), "a".to_owned(), "b".to_owned()];
        let found = Platform { os_features: features, ..Platform::default() }.canonical();
        assert_eq!(found.os_features, ["a", "b"]);
    }

    #[test]
    fn a_platform_round_trips_through_its_text() {
        for text in
            ["linux/amd64", "linux/arm/v6", "windows(10.0.17763+win32k)/amd64", "linux(+a+b)/arm64/v8"]
        {
            assert_eq!(text.parse::<Platform>().unwrap().to_string(), text);
        }
        for text in ["linux", "linux/", "/amd64", "linux(a/amd64", "linux(+)/amd64", "linux/a/b/c", "linux/*"]
        {
            assert!(text.parse::<Platform>().is_err(), "{text}");
        }
    }
}
