//! Tests of the shim program from outside: a daemon of our own starts it, talks the task API to it,
//! and takes its events. They need root and Debian's `busybox-static`.

mod containerd;
mod events;
mod fixture;
mod lifecycle;
mod memory;
mod stdio;
