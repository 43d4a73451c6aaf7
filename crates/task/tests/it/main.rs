//! Tasks with containerd's own shim and runc, from Debian's packages: the protocol as others speak it.

mod stock;
