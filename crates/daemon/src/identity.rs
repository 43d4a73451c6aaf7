//! Who we are: a name that stays with the root directory, and a version that clients understand.

/// The version that `Version` answers: the level of containerd's API that is served, which is what
/// clients decide on, with our own version as build metadata, which semantic versioning lets them
/// ignore. nerdctl, for one, pulls through the daemon only from 2.0 on.
pub(crate) const VERSION: &str = concat!("2.3.4+hoist.", env!("CARGO_PKG_VERSION"));

/// Our own version alone.
pub(crate) const OWN_VERSION: &str = env!("CARGO_PKG_VERSION");
