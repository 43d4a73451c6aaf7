//! Many records. Prints figures; asserts only what an unoptimized build on a busy machine can keep.

use std::time::{Duration, Instant};

use types::{Digest, Filters};

use crate::fixture::{Fixture, default, image, labels};

const IMAGES: usize = 20_000;

#[test]
fn lists_and_collections_of_many_images_are_quick() {
    let fixture = Fixture::new();
    std::thread::scope(|scope| {
        for thread in 0..32 {
            let fixture = &fixture;
            scope.spawn(move || {
                for number in (thread..IMAGES).step_by(32) {
                    let name = format!("registry.example/team/image-{number:06}:latest");
                    let digest = Digest::of(name.as_bytes());
                    let tags =
                        labels(&[("tier", if number % 100 == 0 { "gold" } else { "tin" }), ("x", "y")]);
                    fixture.store.images(default()).create(image(&name, &digest, tags), None).unwrap();
                }
            });
        }
    });
    let timed = |what: &str, body: &dyn Fn() -> usize| -> Duration {
        let start = Instant::now();
        let count = body();
        let elapsed = start.elapsed();
        println!("{what}: {count} of {IMAGES} in {elapsed:?}");
        elapsed
    };
    let images = fixture.store.images(default());
    let list = timed("list", &|| images.list(&Filters::all()).unwrap().len());
    let filters = Filters::parse(&["labels.tier==gold,name~=image-0"]).unwrap();
    let filter = timed("filter", &|| images.list(&filters).unwrap().len());
    let collect = timed("collect", &|| fixture.store.collect().unwrap().images);
    // Without optimizations, beside other tests: what is quadratic takes hours.
    let limit = Duration::from_secs(if cfg!(debug_assertions) { 30 } else { 5 });
    for elapsed in [list, filter, collect] {
        assert!(elapsed < limit, "{elapsed:?}");
    }
}

/// How long writers wait while many objects are marked and half of them removed: turns are bounded, whatever writers
/// did meanwhile. Prints figures; `cargo test --release` shows meaningful ones.
#[test]
fn writers_do_not_wait_for_a_collection() {
    const OBJECTS: usize = if cfg!(debug_assertions) { 10_000 } else { 100_000 };
    const WRITERS: usize = 8;
    let fixture = Fixture::new();
    // Every second one has expired.
    let expired = labels(&[("containerd.io/gc.expire", "2001-01-01T00:00:00Z")]);
    std::thread::scope(|scope| {
        for thread in 0..64 {
            let (fixture, expired) = (&fixture, &expired);
            scope.spawn(move || {
                for number in (thread..OBJECTS).step_by(64) {
                    let name = format!("registry.example/team/image-{number:06}:latest");
                    let image_labels = if number % 2 == 0 { expired.clone() } else { labels(&[]) };
                    let image = image(&name, &Digest::of(name.as_bytes()), image_labels);
                    fixture.store.images(default()).create(image, None).unwrap();
                }
            });
        }
    });
    let done = std::sync::atomic::AtomicBool::new(false);
    let write_until_done = |prefix: &str| {
        let (mut longest, mut count) = (Duration::ZERO, 0_u32);
        while !done.load(std::sync::atomic::Ordering::Relaxed) {
            let name = format!("{prefix}-{count}");
            let image = image(&name, &Digest::of(name.as_bytes()), labels(&[]));
            let start = Instant::now();
            fixture.store.images(default()).create(image, None).unwrap();
            longest = longest.max(start.elapsed());
            count += 1;
        }
        (longest, count)
    };
    let start = Instant::now();
    let (collected, waits) = std::thread::scope(|scope| {
        let write = &write_until_done;
        let writers: Vec<_> =
            (0..WRITERS).map(|writer| scope.spawn(move || write(&format!("during-{writer}")))).collect();
        let collected = fixture.store.collect().unwrap();
        done.store(true, std::sync::atomic::Ordering::Relaxed);
        let waits: Vec<_> = writers.into_iter().map(|writer| writer.join().unwrap()).collect();
        (collected, waits)
    });
    let took = start.elapsed();
    assert_eq!(collected.images, OBJECTS / 2);
    let (longest, count) = waits
        .iter()
        .fold((Duration::ZERO, 0), |(longest, count), (wait, writes)| (longest.max(*wait), count + writes));
    let turns = collected.turns;
    println!("collection of {OBJECTS}: {took:?}, {turns:?}, longest wait of {count} writes {longest:?}");
    assert!(count as usize > WRITERS, "the writers hardly did anything");
    assert!(turns.records_max <= 128 + 64, "{turns:?}");
    assert!(turns.count as usize >= OBJECTS / 2 / 128, "{turns:?}");
    let mean = turns.time / turns.count;
    if cfg!(debug_assertions) {
        // The mean, as the machine may interrupt a turn for any time.
        assert!(mean < Duration::from_millis(100), "{turns:?}");
    } else {
        assert!(turns.longest < Duration::from_millis(10), "{turns:?}");
    }
}
