//! The static programs that `build.rs` embeds. Each is empty in a build without them.

use daemon::{Embedded, Programs};

static SHIM: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/shim"));
static HELLO: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/hello"));

pub(crate) fn programs() -> Programs {
    let present = |bytes: &'static [u8], version| (!bytes.is_empty()).then_some(Embedded { bytes, version });
    Programs { shim: present(SHIM, env!("SHIM_VERSION")), hello: present(HELLO, env!("HELLO_VERSION")) }
}
