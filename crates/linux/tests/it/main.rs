//! The kernel's answers to what `linux` asks of it. These tests need root.

mod network;
