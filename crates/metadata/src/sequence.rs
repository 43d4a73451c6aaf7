//! Numbers that are never reused, also across restarts: they make the names in the stores below unique
//! (`<namespace>/<number>/<key>`).
//!
//! A block is claimed in the database before its first number is used, so a crash skips numbers instead of repeating
//! them.

use kv::{Db, Table};
use stdx::Mutex;
use types::Result;

/// The first number of the next block.
const SEQUENCE: Table<String, u64> = Table::new("sequence");
const NAME: &str = "next";
const BLOCK_LEN: u64 = 10_000;

pub(crate) struct Sequence {
    db: Db,
    block: Mutex<std::ops::Range<u64>>,
}

impl Sequence {
    pub(crate) fn open(db: &Db) -> Result<Sequence> {
        Ok(Sequence { db: db.clone(), block: Mutex::new(claim(db)?) })
    }

    pub(crate) fn next(&self) -> Result<u64> {
        let mut block = self.block.lock();
        if block.is_empty() {
            *block = claim(&self.db)?;
        }
        Ok(block.next().expect("a block that was just claimed is not empty"))
    }
}

fn claim(db: &Db) -> Result<std::ops::Range<u64>> {
    db.write(|tx| {
        let start = SEQUENCE.get(tx, NAME)?.unwrap_or(1);
        SEQUENCE.put(tx, NAME, &(start + BLOCK_LEN))?;
        Ok(start..start + BLOCK_LEN)
    })
}
