//! The embedded key-value engine: one file, ACID transactions, typed tables. The only crate that
//! knows the engine (redb).
//!
//! ```text
//! db.read(|tx| …)             a snapshot; never waits for a writer
//! db.write(|tx| …)            returns when the change is on disk; callers at the same time share one fsync
//! db.write_queued(|tx| …, …)  as `write`, for a caller that holds no thread until it is answered
//! db.write_relaxed(|tx| …)    returns when the change can be read; on disk no later than the next `write`
//! ```
//!
//! Invariants
//! - Writes run one after another, each seeing all before it. An `Err` from the closure undoes that
//!   closure and nothing else.
//! - After a crash the file holds every answered `write`, and a prefix of the writes in flight, each
//!   whole or not at all.
//! - Keys are tuples, in the order of their parts ([`key`]); values carry a version byte ([`codec`]).
//!
//! Bytes and tables: `docs/design/metadata.md`.
#![forbid(unsafe_code)]

pub mod codec;
pub mod key;

#[cfg(feature = "testing")]
pub mod testing;

mod commit;
mod db;
mod error;
mod reserve;
mod scan;
mod table;
mod transaction;

pub use codec::{Reader, StoredLabels, Value, Writer};
pub use db::{Db, Driver, Options, SCHEMA_VERSION};
pub use key::{Key, KeyOf, KeyReader, PrefixOf};
pub use table::Table;
pub use transaction::{Read, ReadTxn, WriteTxn};
