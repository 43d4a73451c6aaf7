//! Tasks with containerd's own shim and runc from Debian's packages: interoperability of the shim protocol.

mod stock;
