//! Container Device Interface (CDI): files in which device vendors describe what a container needs to use their devices
//! (<https://github.com/cncf-tags/container-device-interface>, `SPEC.md`, versions 0.3 to 1.1).
//!
//! ```text
//! /etc/cdi/*.{json,yaml} ──┐
//!                          ├─▶ Catalog ── VENDOR/CLASS=NAME … ─▶ Edits ── apply ─▶ config.json
//! /var/run/cdi/*.… ────────┘     (a later folder wins)
//! ```
//!
//! - `document`: one CDI file, parsed and validated; `yaml`: parser of its YAML form;
//! - `catalog`: all CDI files, and their devices by qualified name;
//! - `edits`: the edits of the requested devices, applied to a spec.
//!
//! CDI files are written by root. They are nevertheless read with limits on length, number and nesting.
#![forbid(unsafe_code)]

mod catalog;
mod document;
mod edits;
mod yaml;

pub use self::catalog::{Catalog, FOLDERS};
pub use self::document::{Document, Form, is_qualified};
pub use self::edits::Edits;
