//! Power is lost at every storage operation; the medium kept all, none or some of the unsynced operations.

use kv::{Db, Options, Table};

use kv::testing::{Fault, Storage};

const PAIRS: Table<(String, u64), u64> = Table::new("pairs");
const ROUNDS: u64 = 6;

fn open(storage: &Storage) -> types::Result<Db> {
    let storage = storage.clone();
    Db::open_on(move || Ok(storage.clone()), Options::default())
}

/// Each round adds a pair and deletes that of two rounds before; every other round is relaxed. Returns the last round
/// that was acknowledged as durable.
fn run(db: &Db) -> Option<u64> {
    let mut durable = None;
    for number in 0..ROUNDS {
        let body = |tx: &mut kv::WriteTxn<'_>| {
            for side in ["left", "right"] {
                PAIRS.put(tx, (side, number), &number)?;
                if number >= 2 {
                    PAIRS.delete(tx, (side, number - 2))?;
                }
            }
            Ok(())
        };
        let is_relaxed = number % 2 == 1;
        let answer = if is_relaxed { db.write_relaxed(body) } else { db.write(body) };
        if answer.is_err() {
            break;
        }
        if !is_relaxed {
            durable = Some(number);
        }
    }
    durable
}

/// The state after round `number`, or before the first.
fn state_after(number: Option<u64>) -> Vec<u64> {
    number.map_or(Vec::new(), |number| (number.saturating_sub(1)..=number).collect())
}

fn check(image: Vec<u8>, durable: Option<u64>, what: &str) {
    let db = open(&Storage::of(image)).unwrap_or_else(|error| panic!("{what}: {}", error.chain()));
    let keys = |side: &str| -> Vec<u64> {
        let all = db.read(|tx| PAIRS.keys(tx, (side,))).unwrap();
        all.into_iter().map(|(_, number)| number).collect()
    };
    let left = keys("left");
    assert_eq!(left, keys("right"), "{what}: a write is whole or not there");
    let allowed =
        (durable.map_or(0, |number| number + 1)..=ROUNDS).map(|done| state_after(done.checked_sub(1)));
    assert!(allowed.into_iter().any(|state| state == left), "{what}: {left:?} with {durable:?} answered");
}

/// A reproducible pseudo-random sequence.
fn coin(seed: u64) -> impl FnMut(usize) -> bool {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    move |_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state & 1 == 0
    }
}

#[test]
fn a_crash_leaves_every_answered_write_and_a_prefix_of_the_rest() {
    for at in 0.. {
        let storage = Storage::default();
        drop(open(&storage).unwrap());
        storage.fail(Fault::From(at));
        let durable = open(&storage).ok().and_then(|db| run(&db));
        check(storage.after_crash(|_| false), durable, &format!("crash {at}, nothing kept"));
        check(storage.after_crash(|_| true), durable, &format!("crash {at}, all kept"));
        for seed in 0..6 {
            check(storage.after_crash(coin(seed)), durable, &format!("crash {at}, some kept ({seed})"));
        }
        for kept in 1..4 {
            check(
                storage.after_crash(|index| index < kept),
                durable,
                &format!("crash {at}, first {kept} kept"),
            );
        }
        if !storage.has_struck() {
            assert!(at > 20, "only {at} operations were tried");
            return;
        }
    }
}
