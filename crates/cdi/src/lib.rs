//! The Container Device Interface: what the makers of devices say a container needs to use them
//! (<https://github.com/cncf-tags/container-device-interface>, `SPEC.md`, versions 0.3 to 1.1).
//!
//! ```text
//! /etc/cdi/*.{json,yaml} ──┐
//!                          ├─▶ Catalog ── VENDOR/CLASS=NAME … ─▶ Edits ── apply ─▶ config.json
//! /var/run/cdi/*.… ────────┘     (a later folder wins)
//! ```
//!
//! - `document`: a file, read and checked; `yaml`: its form that is not JSON;
//! - `catalog`: all files, and the devices in them by name;
//! - `edits`: what is asked for, put into a spec.
//!
//! Files belong to the machine's root, and still are read with bounds: their length, their number, how deep they are.
#![forbid(unsafe_code)]

mod catalog;
mod document;
mod edits;
mod yaml;

pub use self::catalog::{Catalog, FOLDERS};
pub use self::document::{Document, Form, is_qualified};
pub use self::edits::Edits;
