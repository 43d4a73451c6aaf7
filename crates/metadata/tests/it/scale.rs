//! Many records. Prints figures; asserts only what an unoptimized build on a busy machine keeps.

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
    for elapsed in [list, filter, collect] {
        assert!(elapsed < Duration::from_secs(5), "{elapsed:?}");
    }
}
