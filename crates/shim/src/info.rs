//! `-info` and `-v`: what this shim is.

use std::collections::HashMap;
use std::io::Write;

use api::shim::introspection::{RuntimeInfo, RuntimeVersion};
use prost::Message;
use types::{Context, Result};

pub(crate) const NAME: &str = "io.containerd.hoist.v2";

pub(crate) fn print() -> Result<()> {
    let info = RuntimeInfo {
        name: NAME.to_owned(),
        version: Some(RuntimeVersion {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            revision: String::new(),
        }),
        options: None,
        features: None,
        annotations: HashMap::from([(
            "containerd.io/log-uri-schemes".to_owned(),
            "fifo,file,binary,json-file".to_owned(),
        )]),
    };
    std::io::stdout().write_all(&info.encode_to_vec()).context(|| "print the answer")
}

pub(crate) fn print_version() -> Result<()> {
    let version = env!("CARGO_PKG_VERSION");
    writeln!(std::io::stdout(), "containerd-shim-hoist-v2:\n  Version:  {version}")
        .context(|| "print the version")
}
