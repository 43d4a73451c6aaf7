//! Maps a runtime name to a shim program.

use std::env;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use types::{Error, Result};

use crate::Config;

/// The runtime used when a client names none.
pub const OUR_RUNTIME: &str = "io.containerd.hoist.v2";

/// containerd's default runtime. Our shim serves it if containerd's is not installed.
const RUNC_RUNTIME: &str = "io.containerd.runc.v2";

const OUR_PROGRAM: &str = "containerd-shim-hoist-v2";

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Program {
    pub(crate) path: PathBuf,
}

impl Program {
    /// The shim program for a runtime name, or the program itself if `runtime` is an absolute path.
    pub(crate) fn find(config: &Config, runtime: &str) -> Result<Program> {
        find(config, runtime).map(|path| Program { path })
    }

    /// Whether this is containerd's shim for runc, of any version, under its usual name.
    pub(crate) fn is_runc_shim(&self) -> bool {
        let name = self.path.file_name().and_then(OsStr::to_str).unwrap_or_default();
        name.starts_with("containerd-shim-runc-")
    }

    pub(crate) fn is_ours(&self) -> bool {
        self.path.file_name() == Some(OsStr::new(OUR_PROGRAM))
    }
}

fn find(config: &Config, runtime: &str) -> Result<PathBuf> {
    let path = Path::new(runtime);
    if path.is_absolute() {
        return Ok(path.to_owned());
    }
    if runtime.is_empty() || runtime == OUR_RUNTIME {
        return ours(config);
    }
    let program = program_name(runtime)?;
    match in_path(&program).or_else(|| beside_us(&program)) {
        Some(path) => Ok(path),
        None if runtime == RUNC_RUNTIME => ours(config),
        None => {
            Err(Error::not_found(format!("runtime {runtime:?}: no {program} in PATH or beside the daemon")))
        }
    }
}

fn ours(config: &Config) -> Result<PathBuf> {
    config
        .shim
        .clone()
        .or_else(|| beside_us(OUR_PROGRAM))
        .or_else(|| in_path(OUR_PROGRAM))
        .ok_or_else(|| Error::not_found(format!("no {OUR_PROGRAM} beside the daemon or in PATH")))
}

/// `io.containerd.runc.v2` means `containerd-shim-runc-v2`.
fn program_name(runtime: &str) -> Result<String> {
    let mut parts = runtime.rsplit('.');
    let (version, name) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    let plain = |part: &str| !part.is_empty() && !part.contains('/');
    if plain(version) && plain(name) && runtime.split('.').all(|part| !part.is_empty()) {
        Ok(format!("containerd-shim-{name}-{version}"))
    } else {
        Err(Error::invalid_argument(format!(
            "invalid runtime name {runtime:?}: expected a name such as {OUR_RUNTIME}, or an absolute path"
        )))
    }
}

fn beside_us(program: &str) -> Option<PathBuf> {
    let path = env::current_exe().ok()?.with_file_name(program);
    path.is_file().then_some(path)
}

fn in_path(program: &str) -> Option<PathBuf> {
    linux::search::find(program, &env::var_os("PATH")?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runtime_names_become_programs() {
        let check = |runtime: &str, program: &str| {
            assert_eq!(program_name(runtime).ok().as_deref(), Some(program), "{runtime}");
        };
        check("io.containerd.runc.v2", "containerd-shim-runc-v2");
        check("io.containerd.kata.v2", "containerd-shim-kata-v2");
        check("spin.v1", "containerd-shim-spin-v1");
        for bad in ["", "runc", ".runc.v2", "io..v2", "io.containerd./x.v2", "a.b/c"] {
            assert!(program_name(bad).is_err(), "{bad:?}");
        }
    }
}
