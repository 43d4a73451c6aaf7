//! Seccomp profiles that a client provides: in the format of the OCI spec (`config-linux.md`, "Seccomp"), or in
//! Docker's, which extends it.
//!
//! ```text
//! OCI      {"defaultAction", "architectures": ["SCMP_ARCH_X86_64", …], "syscalls": [{"names", "action", "args"}]}
//! Docker   "archMap": [{"architecture", "subArchitectures"}] instead of "architectures": the host's entry applies
//!          rules have "includes" and "excludes", each {"caps", "arches", "minKernel"}: conditions of the rule
//! ```

use linux::release;
use serde::Deserialize;
use serde_json::Value;
use types::spec::runtime::{LinuxSeccomp, SeccompArg, SeccompRule};
use types::{Error, Platform, Result};

/// The fields that Docker's format adds. Both formats are parsed from the same text.
#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Profile {
    arch_map: Option<Vec<ArchMap>>,
    syscalls: Option<Vec<Rule>>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct ArchMap {
    architecture: String,
    sub_architectures: Option<Vec<String>>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Rule {
    /// A single name, as in old profiles.
    name: String,
    names: Option<Vec<String>>,
    action: String,
    errno_ret: Option<u32>,
    args: Option<Vec<SeccompArg>>,
    includes: Option<Condition>,
    excludes: Option<Condition>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Condition {
    caps: Option<Vec<String>>,
    /// GOARCH names.
    arches: Option<Vec<String>>,
    /// `4.8`
    min_kernel: Option<String>,
}

/// What conditions are evaluated against.
struct Subject<'a> {
    capabilities: &'a [String],
    architecture: &'a str,
    /// Major and minor version of the kernel.
    release: (u32, u32),
}

/// Parses a profile for a container with these capabilities. `InvalidArgument` if it is invalid or could not be loaded.
pub(super) fn read(text: &str, capabilities: &[String]) -> Result<LinuxSeccomp> {
    let platform = Platform::host();
    let (major, minor, _) = release();
    let subject = Subject { capabilities, architecture: &platform.architecture, release: (major, minor) };
    let profile = read_for(text, &subject);
    let checked = profile.and_then(|profile| linux::seccomp::compile(&profile).map(|_| profile));
    checked.map_err(|error| error.context("--security-opt seccomp: the filter of system calls"))
}

fn read_for(text: &str, subject: &Subject<'_>) -> Result<LinuxSeccomp> {
    let bad = |error: serde_json::Error| Error::invalid_argument("it cannot be read").with_source(error);
    let mut document: Value = serde_json::from_str(text).map_err(bad)?;
    let own = Profile::deserialize(&document).map_err(bad)?;
    let fields = document.as_object_mut();
    let fields = fields.ok_or_else(|| Error::invalid_argument("it is no object of JSON"))?;
    // Docker's rules are parsed separately.
    fields.remove("syscalls");
    let mut profile: LinuxSeccomp = serde_json::from_value(document).map_err(bad)?;
    if profile.default_action.is_empty() {
        return Err(Error::invalid_argument("it has no defaultAction"));
    }
    if let Some(maps) = own.arch_map.filter(|maps| !maps.is_empty()) {
        if !profile.architectures.is_empty() {
            return Err(Error::invalid_argument(
                "it has both architectures and archMap; one of them is for it",
            ));
        }
        let native = native(subject.architecture);
        if let Some(map) = maps.into_iter().find(|map| Some(map.architecture.as_str()) == native) {
            profile.architectures.push(map.architecture);
            profile.architectures.extend(map.sub_architectures.unwrap_or_default());
        }
    }
    for rule in own.syscalls.unwrap_or_default() {
        let mut names = rule.names.unwrap_or_default();
        match (names.is_empty(), rule.name.is_empty()) {
            (true, true) => return Err(Error::invalid_argument("one of its rules names no system call")),
            (false, false) => {
                return Err(Error::invalid_argument(format!(
                    "the rule for {} has both name and names; one of them is for it",
                    rule.name
                )));
            }
            (true, false) => names.push(rule.name),
            (false, true) => {}
        }
        let (includes, excludes) = (rule.includes.unwrap_or_default(), rule.excludes.unwrap_or_default());
        if !includes.holds(subject)? || excludes.holds_any(subject)? {
            continue;
        }
        profile.syscalls.push(SeccompRule {
            names,
            action: rule.action,
            errno_ret: rule.errno_ret,
            args: rule.args.unwrap_or_default(),
        });
    }
    Ok(profile)
}

impl Condition {
    /// For `includes`: all of `caps`, one of `arches`, and the kernel version.
    fn holds(&self, subject: &Subject<'_>) -> Result<bool> {
        let arches = self.arches.as_deref().unwrap_or_default();
        let has_caps = self.caps.iter().flatten().all(|cap| subject.has(cap));
        let is_arch = arches.is_empty() || arches.iter().any(|arch| arch == subject.architecture);
        Ok(has_caps && is_arch && self.kernel()?.is_none_or(|least| subject.release >= least))
    }

    /// For `excludes`: any of the conditions.
    fn holds_any(&self, subject: &Subject<'_>) -> Result<bool> {
        let has_cap = self.caps.iter().flatten().any(|cap| subject.has(cap));
        let is_arch = self.arches.iter().flatten().any(|arch| arch == subject.architecture);
        Ok(has_cap || is_arch || self.kernel()?.is_some_and(|least| subject.release >= least))
    }

    fn kernel(&self) -> Result<Option<(u32, u32)>> {
        let Some(text) = self.min_kernel.as_deref().filter(|text| !text.is_empty()) else { return Ok(None) };
        let numbers = text.split_once('.').and_then(|(major, minor)| {
            // The patch level has no influence on the system calls.
            let minor = minor.split('.').next().unwrap_or_default();
            major.parse().ok().zip(minor.parse().ok())
        });
        let bad = || Error::invalid_argument(format!("minKernel {text:?} is no version like 4.8"));
        numbers.map(Some).ok_or_else(bad)
    }
}

impl Subject<'_> {
    fn has(&self, capability: &str) -> bool {
        self.capabilities.iter().any(|own| own.eq_ignore_ascii_case(capability))
    }
}

/// The seccomp name of a GOARCH architecture.
fn native(architecture: &str) -> Option<&'static str> {
    Some(match architecture {
        "amd64" => "SCMP_ARCH_X86_64",
        "386" => "SCMP_ARCH_X86",
        "arm64" => "SCMP_ARCH_AARCH64",
        "arm" => "SCMP_ARCH_ARM",
        "riscv64" => "SCMP_ARCH_RISCV64",
        "ppc64le" => "SCMP_ARCH_PPC64LE",
        "s390x" => "SCMP_ARCH_S390X",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use types::ErrorKind;

    use super::*;

    const SUBJECT: Subject<'_> = Subject { capabilities: &[], architecture: "amd64", release: (5, 10) };

    #[test]
    fn a_seccomp_profile_of_the_oci_spec_is_used_as_it_is() {
        let text = r#"{"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64"], "comment": "x",
                       "syscalls": [{"names": ["mkdir"], "action": "SCMP_ACT_ERRNO", "errnoRet": 7,
                                     "args": [{"index": 0, "value": 1, "op": "SCMP_CMP_EQ"}]}]}"#;
        let profile = read_for(text, &SUBJECT).unwrap();
        assert_eq!(profile, serde_json::from_str(text).unwrap());
        assert_eq!((profile.syscalls.len(), profile.syscalls[0].args.len()), (1, 1));
    }

    #[test]
    fn dockers_seccomp_rules_apply_under_their_conditions() {
        let taken = |rule: &str, subject: &Subject<'_>| {
            let text = format!(
                r#"{{"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [{{"names": ["a"], "action": "SCMP_ACT_ALLOW", {rule}}}]}}"#
            );
            read_for(&text, subject).map(|profile| !profile.syscalls.is_empty())
        };
        let capabilities = ["CAP_BPF".to_owned()];
        let able = Subject { capabilities: &capabilities, ..SUBJECT };
        for (rule, plain, with_capability) in [
            (r#""args": null"#, true, true),
            (r#""includes": {"caps": ["CAP_BPF"]}"#, false, true),
            (r#""includes": {"caps": ["CAP_BPF", "CAP_SYSLOG"]}"#, false, false),
            (r#""excludes": {"caps": ["CAP_BPF", "CAP_SYSLOG"]}"#, true, false),
            (r#""includes": {"arches": ["amd64", "x32"]}, "excludes": {}"#, true, true),
            (r#""includes": {"arches": ["arm"]}"#, false, false),
            (r#""excludes": {"arches": ["amd64"]}"#, false, false),
            (r#""includes": {"minKernel": "5.10"}"#, true, true),
            (r#""includes": {"minKernel": "5.11.3"}"#, false, false),
            (r#""includes": {"minKernel": "6.0"}"#, false, false),
            (r#""excludes": {"minKernel": "4.8"}"#, false, false),
        ] {
            assert_eq!(taken(rule, &SUBJECT).unwrap(), plain, "{rule}");
            assert_eq!(taken(rule, &able).unwrap(), with_capability, "{rule}");
        }
        let refused = taken(r#""includes": {"minKernel": "new"}"#, &SUBJECT).unwrap_err();
        assert!(refused.message().contains("minKernel"), "{refused}");
    }

    #[test]
    fn a_seccomp_arch_map_yields_the_hosts_architectures() {
        let text = r#"{"defaultAction": "SCMP_ACT_ALLOW", "archMap": [
            {"architecture": "SCMP_ARCH_AARCH64", "subArchitectures": ["SCMP_ARCH_ARM"]},
            {"architecture": "SCMP_ARCH_X86_64", "subArchitectures": ["SCMP_ARCH_X86", "SCMP_ARCH_X32"]}]}"#;
        let found =
            |architecture| read_for(text, &Subject { architecture, ..SUBJECT }).unwrap().architectures;
        assert_eq!(found("amd64"), ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"]);
        assert_eq!(found("arm64"), ["SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"]);
    }

    #[test]
    fn invalid_seccomp_profiles_are_refused() {
        for (text, words) in [
            ("{", "cannot be read"),
            ("[]", "no object"),
            ("{}", "no defaultAction"),
            (r#"{"defaultAction": "SCMP_ACT_NOSUCH"}"#, "SCMP_ACT_NOSUCH"),
            (
                r#"{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"action": "SCMP_ACT_ALLOW"}]}"#,
                "names no",
            ),
            (
                r#"{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"name": "a", "names": ["b"], "action": ""}]}"#,
                "both name and names",
            ),
            (
                r#"{"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86"],
                    "archMap": [{"architecture": "SCMP_ARCH_X86"}]}"#,
                "both architectures and archMap",
            ),
        ] {
            let refused = read(text, &[]).unwrap_err();
            assert!(refused.is(ErrorKind::InvalidArgument), "{text}: {refused}");
            assert!(
                refused.chain().contains(words) && refused.chain().contains("--security-opt"),
                "{}",
                refused.chain()
            );
        }
    }
}
