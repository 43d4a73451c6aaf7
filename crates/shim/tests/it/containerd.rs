//! The shim under Debian's containerd, driven by `ctr`.
