//! The database: opening, reading, writing, copying, shrinking.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use redb::backends::FileBackend;
use redb::{
    Database, ReadableDatabase as _, ReadableTable as _, ReadableTableMetadata as _, StorageBackend,
    TableHandle as _,
};
use stdx::Mutex;
use types::{Context as _, Error, Result};

use crate::commit::{Answer, Begun, Turns};
use crate::error::engine;
use crate::reserve::{Reserve, Reserved};
use crate::table::Table;
use crate::transaction::{Definition, ReadTxn, WriteTxn};

/// The layout of the file as a whole: which tables there are and what their keys and values are.
/// A program refuses a file with a higher number.
pub const SCHEMA_VERSION: u64 = 1;

const SCHEMA: Table<String, u64> = Table::new("schema");

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// Memory for pages, in bytes.
    pub cache_bytes: usize,
    /// Verify every page when opening, not only after a crash.
    pub verify: bool,
}

impl Default for Options {
    fn default() -> Options {
        Options { cache_bytes: 8 << 20, verify: false }
    }
}

/// An open database. Clones share it; the file closes with the last one.
#[derive(Clone)]
pub struct Db(Arc<Inner>);

struct Inner {
    name: String,
    backing: Backing,
    options: Options,
    reserve: Option<Arc<Reserve>>,
    /// `None` only while it is being opened anew.
    engine: Mutex<Option<Arc<Database>>>,
    turns: Turns,
    last_scan: Mutex<LastScan>,
}

/// How to open the storage, and its length in bytes.
struct Backing {
    open: Box<dyn Fn(Options) -> Result<Database> + Send + Sync>,
    len: Box<dyn Fn() -> io::Result<u64> + Send + Sync>,
}

/// File length and record count at the last scan for free space; zero if none has run.
#[derive(Clone, Copy, Default)]
struct LastScan {
    bytes: u64,
    records: u64,
}

impl Db {
    /// Opens the file at `path`, or makes it.
    ///
    /// `FailedPrecondition` if another process has it open or a newer program wrote it, `DataLoss`
    /// if it is damaged. A file left by a crash is repaired first.
    pub fn open(path: impl AsRef<Path>, options: Options) -> Result<Db> {
        Db::open_file(path.as_ref(), None, options)
    }

    /// As [`Db::open`], with 4 MiB preallocated in the file `reserve` for when the disk is full, if there is space
    /// for them now. On a full disk records can then still be removed; writes that add to the records fail with
    /// `ResourceExhausted` until there is space again. The reserve must be on the same file system as `path`.
    pub fn open_reserved(path: impl AsRef<Path>, reserve: &Path, options: Options) -> Result<Db> {
        // The reserve is optional: a full disk may have no free inode for it.
        let reserve = Reserve::open(reserve).ok().map(Arc::new);
        Db::open_file(path.as_ref(), reserve, options)
    }

    fn open_file(path: &Path, reserve: Option<Arc<Reserve>>, options: Options) -> Result<Db> {
        let path = path.to_owned();
        let is_there = path.try_exists().context(|| format!("look for {}", path.display()))?;
        if !is_there {
            make_database(&path, reserve.clone(), options)
                .context(|| format!("create {}", path.display()))?;
        }
        let name = path.display().to_string();
        let (kept, measured) = (reserve.clone(), path.clone());
        let backing = Backing {
            open: Box::new(move |options| open_file(&path, reserve.clone(), options)),
            len: Box::new(move || Ok(std::fs::metadata(&measured)?.len())),
        };
        Db::open_with(name, backing, kept, options)
    }

    /// Opens a database on storage that the caller supplies, for tests with failing storage.
    #[doc(hidden)]
    pub fn open_on<B: StorageBackend>(
        storage: impl Fn() -> io::Result<B> + Send + Sync + 'static,
        options: Options,
    ) -> Result<Db> {
        let storage = Arc::new(storage);
        let measured = Arc::clone(&storage);
        let backing = Backing {
            open: Box::new(move |options| open_storage(storage().context(|| "open storage")?, options)),
            len: Box::new(move || measured()?.len()),
        };
        Db::open_with("storage".to_owned(), backing, None, options)
    }

    fn open_with(
        name: String,
        backing: Backing,
        reserve: Option<Arc<Reserve>>,
        options: Options,
    ) -> Result<Db> {
        let engine = (backing.open)(options).context(|| format!("open {name}"))?;
        let engine = Mutex::new(Some(Arc::new(engine)));
        let (turns, last_scan) = (Turns::default(), Mutex::default());
        let db = Db(Arc::new(Inner { name, backing, options, reserve, engine, turns, last_scan }));
        db.check_schema()?;
        Ok(db)
    }

    fn check_schema(&self) -> Result<()> {
        match self.read(|tx| SCHEMA.get(tx, "version"))? {
            Some(SCHEMA_VERSION) => Ok(()),
            None => self.write(|tx| SCHEMA.put(tx, "version", &SCHEMA_VERSION)),
            Some(version) => Err(Error::failed_precondition(format!(
                "{} has schema version {version}, this program knows {SCHEMA_VERSION}: use the program that wrote it, or a newer one",
                self.0.name
            ))),
        }
    }

    /// Whether `other` is a clone of this handle.
    pub fn is_same(&self, other: &Db) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// Runs `body` on a snapshot of all that was committed before. After a storage failure one `read` may fail for
    /// each failure; the next one works again.
    pub fn read<T>(&self, body: impl FnOnce(&ReadTxn) -> Result<T>) -> Result<T> {
        let read = match self.0.begin_read() {
            Err(error) => match self.flush() {
                Ok(()) => self.0.begin_read(),
                Err(_) => Err(error),
            },
            begun => begun,
        };
        let read = read.and_then(|transaction| body(&ReadTxn::new(transaction)));
        if read.as_ref().is_err_and(crate::error::is_of_storage) {
            // The engine closes itself when storage fails, though the failure may be transient. A flush opens it
            // again; if that fails, the next caller gets the error.
            let _ = self.flush();
        }
        read
    }

    /// Runs `body` alone among writers and returns when its changes are on disk. An `Err` from
    /// `body` leaves no change behind.
    ///
    /// If the commit itself fails, the change may or may not be there after a restart.
    ///
    /// `body` must not call `write` again.
    pub fn write<T>(&self, body: impl FnOnce(&mut WriteTxn<'_>) -> Result<T>) -> Result<T> {
        self.0.turns.write(Answer::OnDisk, || self.0.begin_write(), body)
    }

    /// As [`Db::write`], but returns when the changes can be read: they are on disk no later than
    /// those of the next `write`, and a crash before that undoes them, in order. For a record that
    /// only counts once a later `write` refers to it.
    pub fn write_relaxed<T>(&self, body: impl FnOnce(&mut WriteTxn<'_>) -> Result<T>) -> Result<T> {
        self.0.turns.write(Answer::Readable, || self.0.begin_write(), body)
    }

    /// As [`Db::write`], but does not block the caller: `body` runs in a batch with other queued writes, and `tell`
    /// is called when its changes are on disk, or when it has failed. If a [`Driver`] is returned the caller must run
    /// it: no other thread will.
    ///
    /// Queued writes run in the order in which they were queued. `tell` runs on the committing thread: it must be
    /// quick and must not write; a write in it is refused. The queue is unbounded, so callers must bound how many
    /// writes they queue.
    pub fn write_queued<T: Send + 'static>(
        &self,
        body: impl FnOnce(&mut WriteTxn<'_>) -> Result<T> + Send + 'static,
        tell: impl FnOnce(Result<T>) + Send + 'static,
    ) -> Option<Driver> {
        self.0.turns.enqueue(body, tell).then(|| Driver(Some(self.clone())))
    }

    /// Waits until every write that had its turn before this call can be read.
    pub fn flush(&self) -> Result<()> {
        self.write(|_| Ok(()))
    }

    /// Waits until every write that was answered before this call is on disk, relaxed ones too.
    pub fn sync(&self) -> Result<()> {
        if self.0.turns.has_relaxed() {
            // Rewrites the version with the same value: the engine syncs only if something was written.
            self.write(|tx| SCHEMA.put(tx, "version", &SCHEMA_VERSION))?;
        }
        Ok(())
    }

    /// Shrinks the file if it has at least `least` bytes, less than a quarter of them in use, and no reader or writer
    /// is active. Returns by how many bytes the file shrank.
    ///
    /// New readers and writers wait meanwhile. Measuring what is in use walks all records, so it is skipped until the
    /// file has doubled or lost half of its records since the last measurement.
    pub fn compact(&self, least: u64) -> Result<u64> {
        let before = self.0.len()?;
        if before < least {
            return Ok(0);
        }
        let done = self.0.turns.idle(|| self.0.compact(before)).unwrap_or(Ok(()));
        done.context(|| format!("give back what is free in {}", self.0.name))?;
        Ok(before.saturating_sub(self.0.len()?))
    }

    /// Writes a copy of the last commit to a new file at `path`, while reads and writes go on.
    pub fn copy_to(&self, path: &Path) -> Result<()> {
        let source = self.0.engine()?.begin_read().map_err(engine)?;
        let partial = path.with_extension("partial");
        self.copy_tables(&source, &partial)
            .context(|| format!("copy {} to {}", self.0.name, path.display()))?;
        std::fs::rename(&partial, path)
            .and_then(|()| sync_parent(path))
            .context(|| format!("rename {} to {}", partial.display(), path.display()))
    }

    fn copy_tables(&self, source: &redb::ReadTransaction, path: &Path) -> Result<()> {
        make_file(path).context(|| format!("create {}", path.display()))?;
        let target = open_file(path, None, self.0.options)?;
        let transaction = target.begin_write().map_err(engine)?;
        for handle in source.list_tables().map_err(engine)? {
            let definition = Definition::new(handle.name());
            let from = source.open_table(definition).map_err(engine)?;
            let mut to = transaction.open_table(definition).map_err(engine)?;
            for entry in from.iter().map_err(engine)? {
                let (key, value) = entry.map_err(engine)?;
                to.insert(key.value(), value.value()).map_err(engine)?;
            }
        }
        transaction.commit().map_err(engine)
    }
}

/// Runs queued writes. At most one driver exists at a time, while writes are queued.
#[must_use = "writes that are queued wait for it"]
pub struct Driver(Option<Db>);

impl Driver {
    /// Runs queued writes until the queue is empty. Blocks.
    pub fn run(mut self) {
        if let Some(Db(inner)) = &self.0 {
            inner.turns.drive(|| inner.begin_write());
        }
        self.0 = None;
    }
}

impl Drop for Driver {
    /// Fails the writes still queued if [`Driver::run`] did not finish; the next write queued gets a new driver.
    fn drop(&mut self) {
        if let Some(Db(inner)) = &self.0 {
            inner.turns.abandon();
        }
    }
}

impl Inner {
    fn engine(&self) -> Result<Arc<Database>> {
        let slot = self.engine.lock();
        slot.clone().ok_or_else(|| Error::unavailable(format!("{} could not be opened again", self.name)))
    }

    fn begin_read(&self) -> Result<redb::ReadTransaction> {
        self.engine()?.begin_read().map_err(engine)
    }

    /// Begins a batch. The caller holds the write turn, so no other batch is open.
    fn begin_write(&self) -> Result<Begun> {
        let transaction = self.begin_transaction()?;
        let is_whole = self.reserve.as_ref().is_none_or(|reserve| reserve.settle());
        Ok(Begun { transaction, no_room: (!is_whole).then(|| no_room(&self.name)) })
    }

    fn begin_transaction(&self) -> Result<redb::WriteTransaction> {
        let begun = match self.engine() {
            Ok(engine) => engine.begin_write(),
            Err(_) => return self.open_again()?.begin_write().map_err(engine),
        };
        match begun {
            // The engine closes itself when storage fails. A full disk passes, so try once more.
            Err(redb::TransactionError::Storage(redb::StorageError::PreviousIo)) => {
                self.open_again()?.begin_write().map_err(engine)
            }
            begun => begun.map_err(engine),
        }
    }

    fn len(&self) -> Result<u64> {
        (self.backing.len)().context(|| format!("measure {}", self.name))
    }

    /// The caller holds the write turn, and no batch is open.
    fn compact(&self, len: u64) -> Result<()> {
        // New readers wait for this lock although there is IO under it: pages cannot be read while they move.
        let mut slot = self.engine.lock();
        // `None` also if a reader holds a clone of the engine.
        let Some(database) = slot.as_mut().and_then(Arc::get_mut) else { return Ok(()) };
        let records = records(database)?;
        let mut last_scan = self.last_scan.lock();
        if len < last_scan.bytes.saturating_mul(2) && records > last_scan.records / 2 {
            return Ok(());
        }
        *last_scan = LastScan { bytes: len, records };
        if used(database)? > len / 4 {
            return Ok(());
        }
        match database.compact() {
            Ok(_) => last_scan.bytes = self.len()?,
            // A read transaction is open: try again at the next call.
            Err(redb::CompactionError::TransactionInProgress) => *last_scan = LastScan::default(),
            Err(error) => return Err(engine(error)),
        }
        Ok(())
    }

    fn open_again(&self) -> Result<Arc<Database>> {
        let mut slot = self.engine.lock();
        if let Some(broken) = slot.take()
            && let Err(in_use) = Arc::try_unwrap(broken)
        {
            *slot = Some(in_use);
            return Err(Error::unavailable(format!("{} waits for readers before it opens again", self.name)));
        }
        if let Some(reserve) = &self.reserve {
            reserve.open_up();
        }
        let fresh =
            Arc::new((self.backing.open)(self.options).context(|| format!("open {} again", self.name))?);
        self.turns.replay(&fresh).context(|| format!("take up what {} had not on disk", self.name))?;
        *slot = Some(Arc::clone(&fresh));
        Ok(fresh)
    }
}

fn records(database: &Database) -> Result<u64> {
    let read = database.begin_read().map_err(engine)?;
    let mut records = 0;
    for handle in read.list_tables().map_err(engine)? {
        records += read.open_table(Definition::new(handle.name())).map_err(engine)?.len().map_err(engine)?;
    }
    Ok(records)
}

/// Bytes of keys, values and the trees above them, excluding free space within and between pages. Walks all of them.
fn used(database: &Database) -> Result<u64> {
    let write = database.begin_write().map_err(engine)?;
    let stats = write.stats().map_err(engine)?;
    write.abort().map_err(engine)?;
    Ok(stats.stored_bytes().saturating_add(stats.metadata_bytes()))
}

/// The error for a change that adds to the records while the disk is full.
fn no_room(name: &str) -> Error {
    Error::resource_exhausted(format!(
        "no space left on device: {name} takes removals, and nothing new before there is room"
    ))
}

fn open_storage(storage: impl StorageBackend, options: Options) -> Result<Database> {
    Database::builder()
        .set_cache_size(options.cache_bytes)
        .set_check_integrity_on_open(options.verify)
        .create_with_backend(storage)
        .map_err(engine)
}

fn open_file(path: &Path, reserve: Option<Arc<Reserve>>, options: Options) -> Result<Database> {
    let file = OpenOptions::new().read(true).write(true).open(path);
    let file = file.context(|| format!("open {}", path.display()))?;
    let file = FileBackend::new(file).map_err(engine)?;
    open_storage(Reserved { file, reserve }, options)
}

/// Creates an empty database under a temporary name and renames it: a half-written file could not be told from a
/// complete one.
fn make_database(path: &Path, reserve: Option<Arc<Reserve>>, options: Options) -> Result<()> {
    let mut new = path.as_os_str().to_owned();
    new.push(".new");
    let new = PathBuf::from(new);
    make_file(&new).context(|| format!("create {}", new.display()))?;
    drop(open_file(&new, reserve, options)?);
    std::fs::rename(&new, path)
        .and_then(|()| sync_parent(path))
        .context(|| format!("name {}", path.display()))
}

/// Makes an empty file, accessible to its owner only, and syncs its directory.
fn make_file(path: &Path) -> io::Result<()> {
    let is_new = !path.try_exists()?;
    OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    if is_new { sync_parent(path) } else { Ok(()) }
}

fn sync_parent(path: &Path) -> io::Result<()> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    File::open(parent.unwrap_or(Path::new(".")))?.sync_all()
}
