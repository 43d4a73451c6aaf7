//! `-info` and `-v`: name, version and features of this shim.

use std::collections::HashMap;
use std::io::Write;

use api::shim::introspection::{RuntimeInfo, RuntimeVersion};
use prost::Message;
use prost_types::Any;
use types::{Context, Result};

pub(crate) const NAME: &str = "io.containerd.hoist.v2";

/// The type name that containerd's clients give the document of a runtime's `features`.
const FEATURES: &str = "types.containerd.io/opencontainers/runtime-spec/1/features/Features";

/// Prints the features of the embedded runtime. Another runtime, named in the options, reports its own by `features`.
pub(crate) fn print() -> Result<()> {
    let features = runtime::cli::features().to_string().into_bytes();
    let info = RuntimeInfo {
        name: NAME.to_owned(),
        version: Some(RuntimeVersion {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            revision: String::new(),
        }),
        options: None,
        features: Some(Any { type_url: FEATURES.to_owned(), value: features }),
        annotations: HashMap::from([(
            "containerd.io/log-uri-schemes".to_owned(),
            "fifo,file,binary,binary-v2,json-file".to_owned(),
        )]),
    };
    std::io::stdout().write_all(&info.encode_to_vec()).context(|| "print the answer")
}

pub(crate) fn print_version() -> Result<()> {
    let version = env!("CARGO_PKG_VERSION");
    writeln!(std::io::stdout(), "containerd-shim-hoist-v2:\n  Version:  {version}")
        .context(|| "print the version")
}
