//! In-memory storage for tests: it can fail, and knows what a crash could leave behind.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard};

use redb::StorageBackend;

/// In-memory storage. Outlives the database on it.
#[derive(Clone, Debug, Default)]
pub struct Storage(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    bytes: Vec<u8>,
    /// The bytes as of the last sync, and the operations since.
    synced: Vec<u8>,
    unsynced: Vec<Operation>,
    operations: usize,
    syncs: usize,
    fault: Option<Fault>,
}

#[derive(Clone, Debug)]
enum Operation {
    Write { offset: usize, bytes: Vec<u8> },
    SetLen(usize),
}

#[derive(Clone, Copy, Debug)]
pub enum Fault {
    /// The n-th operation fails, those after it do not.
    Once(usize),
    /// The n-th operation and all after it fail.
    From(usize),
    /// The n-th operation panics.
    Panic(usize),
}

impl Storage {
    pub fn of(bytes: Vec<u8>) -> Storage {
        let state = State { bytes: bytes.clone(), synced: bytes, ..State::default() };
        Storage(Arc::new(Mutex::new(state)))
    }

    /// Arms a fault; operations count from here.
    pub fn fail(&self, fault: Fault) {
        let mut state = self.state();
        state.operations = 0;
        state.fault = Some(fault);
    }

    pub fn heal(&self) {
        self.state().fault = None;
    }

    /// Operations since a fault was armed.
    pub fn operations(&self) -> usize {
        self.state().operations
    }

    /// How many syncs there were.
    pub fn syncs(&self) -> usize {
        self.state().syncs
    }

    /// Whether the armed fault has been injected.
    pub fn has_struck(&self) -> bool {
        let state = self.state();
        state
            .fault
            .is_some_and(|(Fault::Once(at) | Fault::From(at) | Fault::Panic(at))| state.operations > at)
    }

    /// The bytes that could be on the medium after a crash: all synced operations, and those since the last sync for
    /// which `keep` returns true.
    pub fn after_crash(&self, mut keep: impl FnMut(usize) -> bool) -> Vec<u8> {
        let state = self.state();
        let mut bytes = state.synced.clone();
        for (index, operation) in state.unsynced.iter().enumerate() {
            if keep(index) {
                operation.apply(&mut bytes);
            }
        }
        bytes
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().expect("no test panics while it holds the storage")
    }

    fn step(&self) -> io::Result<MutexGuard<'_, State>> {
        let mut state = self.state();
        let number = state.operations;
        state.operations += 1;
        let fault = state.fault;
        let fails = match fault {
            None => false,
            Some(Fault::Once(at)) => number == at,
            Some(Fault::From(at)) => number >= at,
            Some(Fault::Panic(at)) if number == at => {
                drop(state);
                panic!("injected");
            }
            Some(Fault::Panic(_)) => false,
        };
        if fails { Err(io::Error::other("injected")) } else { Ok(state) }
    }
}

impl Operation {
    fn apply(&self, to: &mut Vec<u8>) {
        match self {
            Operation::SetLen(len) => to.resize(*len, 0),
            Operation::Write { offset, bytes } => {
                let end = offset + bytes.len();
                if to.len() < end {
                    to.resize(end, 0);
                }
                to[*offset..end].copy_from_slice(bytes);
            }
        }
    }
}

impl State {
    fn perform(&mut self, operation: Operation) {
        operation.apply(&mut self.bytes);
        self.unsynced.push(operation);
    }
}

impl StorageBackend for Storage {
    fn len(&self) -> io::Result<u64> {
        Ok(self.state().bytes.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let state = self.step()?;
        let start = usize::try_from(offset).expect("a small file");
        let from = state.bytes.get(start..start + out.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
        out.copy_from_slice(from);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let len = usize::try_from(len).expect("a small file");
        self.step()?.perform(Operation::SetLen(len));
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut state = self.step()?;
        state.syncs += 1;
        state.synced = state.bytes.clone();
        state.unsynced.clear();
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let offset = usize::try_from(offset).expect("a small file");
        self.step()?.perform(Operation::Write { offset, bytes: data.to_vec() });
        Ok(())
    }
}
