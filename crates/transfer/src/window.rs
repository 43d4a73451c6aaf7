//! Bounds the bytes of layers in memory that wait for the disk or the inflater: a slow consumer slows the socket
//! down.
//!
//! Each layer has a small budget of its own, so it can always make progress. Beyond that it takes bytes from a budget
//! that all layers of the daemon share, but never waits for it: so neither a slow disk nor a silent registry of one
//! layer blocks another.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, SemaphorePermit};

/// Bytes of one layer at most. A longer chunk counts as `OWN_LEN`.
const LAYER_LEN: usize = 1 << 20;
/// Bytes that no other layer can take: the largest chunks that arrive.
const OWN_LEN: usize = 256 << 10;
/// Bytes beyond those, of all layers of the daemon together.
static SHARED: Semaphore = Semaphore::const_new(6 << 20);

/// The budget of one layer.
pub(crate) struct Window {
    layer: Arc<Semaphore>,
    own: Arc<Semaphore>,
    shared: &'static Semaphore,
}

/// Reserved bytes, until dropped.
pub(crate) struct Permit {
    _layer: OwnedSemaphorePermit,
    _part: Part,
}

#[expect(dead_code, reason = "they are held")]
enum Part {
    Shared(SemaphorePermit<'static>),
    Own(OwnedSemaphorePermit),
}

impl Window {
    pub(crate) fn new() -> Window {
        Window::beside(&SHARED)
    }

    fn beside(shared: &'static Semaphore) -> Window {
        let of = |len| Arc::new(Semaphore::new(len));
        Window { layer: of(LAYER_LEN), own: of(OWN_LEN), shared }
    }

    /// Reserves `len` bytes. Waits, if there is no room, until earlier bytes of the same layer are released.
    pub(crate) async fn reserve(&self, len: usize) -> Permit {
        let len = u32::try_from(len.min(OWN_LEN)).expect("below 2³²");
        let taken = |permit: Result<OwnedSemaphorePermit, _>| permit.expect("it is never closed");
        let layer = taken(self.layer.clone().acquire_many_owned(len).await);
        let part = match self.shared.try_acquire_many(len) {
            Ok(shared) => Part::Shared(shared),
            Err(_) => Part::Own(taken(self.own.clone().acquire_many_owned(len).await)),
        };
        Permit { _layer: layer, _part: part }
    }
}

#[cfg(test)]
mod tests {
    use std::future::Future;
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    use super::*;

    const CHUNK_LEN: usize = OWN_LEN / 2;

    fn take(window: &Window) -> Option<Permit> {
        match pin!(window.reserve(CHUNK_LEN)).poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(permit) => Some(permit),
            Poll::Pending => None,
        }
    }

    fn take_all(window: &Window) -> Vec<Permit> {
        std::iter::from_fn(|| take(window)).collect()
    }

    #[test]
    fn a_layer_that_holds_its_whole_window_blocks_no_other() {
        let shared: &'static Semaphore = Box::leak(Box::new(Semaphore::new(4 * CHUNK_LEN)));
        let (stuck, other, third) = (Window::beside(shared), Window::beside(shared), Window::beside(shared));
        let kept = take_all(&stuck);
        assert_eq!(kept.len(), 6, "four that are shared, two of its own");
        for window in [&other, &third] {
            for _ in 0..10 {
                let own = take_all(window);
                assert_eq!(own.len(), 2, "what nobody else can take, again and again");
            }
        }
        drop(kept);
        assert_eq!(take_all(&other).len(), 6, "what is given back is for whoever wants it");
        assert_eq!(shared.available_permits(), 4 * CHUNK_LEN);
    }

    #[test]
    fn one_layer_alone_has_its_bound() {
        let shared: &'static Semaphore = Box::leak(Box::new(Semaphore::new(100 * LAYER_LEN)));
        let window = Window::beside(shared);
        let taken = take_all(&window);
        assert_eq!(taken.len(), LAYER_LEN / CHUNK_LEN);
        // A chunk longer than the whole budget waits for its own layer only.
        drop(taken);
        let long = pin!(window.reserve(usize::MAX)).poll(&mut Context::from_waker(Waker::noop())).is_ready();
        assert!(long);
    }
}
