//! The system tests live in `tests/it`: one program that drives the real `hoist` and the real peers.
#![forbid(unsafe_code)]
