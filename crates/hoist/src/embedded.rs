//! The static programs that `build.rs` put inside this one. Empty when it was built without them.

static SHIM: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/shim"));
static HELLO: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/hello"));

pub(crate) fn programs() -> daemon::Programs {
    let present = |bytes: &'static [u8]| (!bytes.is_empty()).then_some(bytes);
    daemon::Programs { shim: present(SHIM), hello: present(HELLO) }
}
