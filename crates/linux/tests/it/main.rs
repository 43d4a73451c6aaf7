//! Tests of `linux` against the kernel. They need root.

mod network;
