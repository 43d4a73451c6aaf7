//! Layer slots: how many layers are in flight at once, of all pulls of the daemon, as its configuration says, and
//! never more than suit the machine, since each takes memory for its files, and processor time to be hashed and
//! inflated.
//!
//! Slots are granted in the order of arrival. A layer keeps its slot while its registry host keeps sending, or while
//! no other layer waits; otherwise it gives way, keeps its bytes so far, and queues behind the waiting layers. So a
//! slow or silent host does not block layers from other hosts.

use std::future::Future;
use std::num::NonZeroUsize;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use registry::Pace;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout};

/// Layers in flight at most, however many processors there are, to bound their memory.
const LAYERS_MAX: usize = 16;
/// Layers per processor: most of them wait for their hosts.
const LAYERS_A_PROCESSOR: usize = 8;

/// How many layers of all pulls of a daemon are in flight at most.
pub fn layers_at_once() -> usize {
    layers_with(std::thread::available_parallelism().map_or(1, NonZeroUsize::get))
}

const fn layers_with(processors: usize) -> usize {
    let many = processors.saturating_mul(LAYERS_A_PROCESSOR);
    if many < LAYERS_MAX { many } else { LAYERS_MAX }
}

/// How long a slow host may hold a slot before waiting layers go first. It doubles each time: up to `TURN_MAX` if the
/// host keeps the minimum pace of a stream, and else without a bound, so that a late host is served in the end, and
/// one that stalls is reported as an error by the stream.
const TURN: Duration = Duration::from_secs(2);
const TURN_MAX: Duration = Duration::from_secs(32);
/// Bytes per second of a turn with which a host keeps its slot.
const ENOUGH: u64 = 128 << 10;

/// Clones share the slots.
#[derive(Clone)]
pub(crate) struct LayerSlots(Arc<Shared>);

struct Shared {
    count: usize,
    free: Arc<Semaphore>,
    /// How many layers wait for a slot.
    waiting: AtomicUsize,
    /// How many layers are giving way and have not released their slot yet.
    leaving: AtomicUsize,
}

/// The right of a layer to be in flight, until dropped.
pub(crate) struct LayerSlot {
    /// `None` only while it waits for another slot.
    permit: Option<OwnedSemaphorePermit>,
    slots: LayerSlots,
    turn: Duration,
    /// Of the current turn: how long the host was waited for, and the bytes that it sent.
    waited: Duration,
    brought: u64,
    /// Whether the host kept the minimum pace of a stream in the turn before.
    kept_pace: bool,
    is_leaving: bool,
}

impl LayerSlots {
    pub(crate) fn new(count: usize) -> LayerSlots {
        let (waiting, leaving) = (AtomicUsize::new(0), AtomicUsize::new(0));
        LayerSlots(Arc::new(Shared { count, free: Arc::new(Semaphore::new(count)), waiting, leaving }))
    }

    /// The number of slots, free or taken.
    pub(crate) fn count(&self) -> usize {
        self.0.count
    }

    /// Waits for a slot, in the order of arrival.
    pub(crate) async fn take(&self) -> LayerSlot {
        self.take_for(TURN).await
    }

    async fn take_for(&self, turn: Duration) -> LayerSlot {
        let _waiting = Waiting::on(&self.0);
        let permit = self.0.free.clone().acquire_owned().await.expect("nobody closes it");
        let (waited, brought) = (Duration::ZERO, 0);
        LayerSlot {
            permit: Some(permit),
            slots: self.clone(),
            turn,
            waited,
            brought,
            kept_pace: true,
            is_leaving: false,
        }
    }

    /// Whether one more layer must give way: as many do as wait.
    fn should_yield(&self) -> bool {
        let Shared { waiting, leaving, .. } = &*self.0;
        let should_yield = leaving.fetch_add(1, Ordering::Relaxed) < waiting.load(Ordering::Relaxed);
        if !should_yield {
            leaving.fetch_sub(1, Ordering::Relaxed);
        }
        should_yield
    }
}

/// Counts a waiting layer, until it is dropped, also on cancellation.
struct Waiting<'a>(&'a Shared);

impl Waiting<'_> {
    fn on(slots: &Shared) -> Waiting<'_> {
        slots.waiting.fetch_add(1, Ordering::Relaxed);
        Waiting(slots)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}

impl LayerSlot {
    /// Waits for the host's answer. `None` if the layer should give way: the host sends too little while other layers
    /// wait for a slot, or other pulls wait for this layer. `should_yield` answers the latter, given whether the host
    /// has stalled.
    pub(crate) async fn wait_for<T>(
        &mut self,
        host: impl Future<Output = T>,
        should_yield: impl Fn(bool) -> bool,
    ) -> Option<T> {
        let mut host = pin!(host);
        loop {
            let begun = Instant::now();
            let came = timeout(self.turn.saturating_sub(self.waited), host.as_mut()).await;
            self.waited += begun.elapsed();
            if let Ok(came) = came {
                return Some(came);
            }
            let is_slow = self.brought < ENOUGH * self.turn.as_secs();
            self.kept_pace = self.brought >= Pace::default().len_min(self.turn);
            (self.waited, self.brought) = (Duration::ZERO, 0);
            if is_slow && (self.is_leaving || self.slots.should_yield()) {
                self.is_leaving = true;
                return None;
            }
            if is_slow && should_yield(self.is_stalled()) {
                return None;
            }
        }
    }

    /// Counts bytes that the host sent.
    pub(crate) fn brought(&mut self, len: usize) {
        self.brought += len as u64;
    }

    /// Whether the host fell below the minimum pace of a stream in the turn before.
    pub(crate) fn is_stalled(&self) -> bool {
        !self.kept_pace
    }

    /// Releases the slot, and waits for another, in the order of arrival.
    pub(crate) async fn give_way(&mut self) {
        let (slots, longer) = (self.slots.clone(), self.turn.saturating_mul(2));
        let turn = if self.kept_pace { longer.min(TURN_MAX) } else { longer };
        self.leave();
        *self = slots.take_for(turn).await;
    }

    /// Releases the slot, for a caller that has to wait for something else first.
    pub(crate) fn leave(&mut self) {
        self.permit = None;
        if std::mem::take(&mut self.is_leaving) {
            self.slots.0.leaving.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

impl Drop for LayerSlot {
    fn drop(&mut self) {
        self.leave();
    }
}

/// Waits for `wait`, polling `host` meanwhile so that other streams on its connection make progress. Returns the
/// host's answer, if it came.
pub(crate) async fn listening<T, U>(
    host: impl Future<Output = T>,
    wait: impl Future<Output = U>,
) -> (U, Option<T>) {
    let (mut host, mut wait) = (pin!(host), pin!(wait));
    let mut came = None;
    loop {
        tokio::select! {
            waited = &mut wait => return (waited, came),
            answer = &mut host, if came.is_none() => came = Some(answer),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use super::*;

    /// No other pull waits for the layer.
    const NOBODY: fn(bool) -> bool = |_| false;

    fn slots(count: usize) -> &'static LayerSlots {
        Box::leak(Box::new(LayerSlots::new(count)))
    }

    #[test]
    fn layers_are_bounded_by_processors() {
        assert_eq!([1, 2, 3, 64, usize::MAX].map(layers_with), [8, 16, 16, 16, 16]);
    }

    #[tokio::test(start_paused = true)]
    async fn no_more_layers_are_in_flight_than_slots() {
        let slots = slots(layers_with(1));
        let mut held = Vec::new();
        for _ in 0..8 {
            held.push(slots.take().await);
        }
        let next = timeout(100 * TURN, slots.take()).await;
        assert!(next.is_err(), "a ninth waits until one of the eight has ended");
        held.pop();
        drop(timeout(TURN, slots.take()).await.expect("there is a slot"));
    }

    /// Time is paused: it advances as soon as all tasks wait for it.
    #[tokio::test(start_paused = true)]
    async fn a_silent_host_loses_its_slot_to_waiting_layers() {
        let slots = slots(1);
        let mut silent = slots.take().await;
        let long = timeout(100 * TURN, silent.wait_for(pending::<()>(), NOBODY)).await;
        assert!(long.is_err(), "nobody else wants the slot");

        let next = tokio::spawn(slots.take());
        assert!(silent.wait_for(pending::<()>(), NOBODY).await.is_none());
        let again = tokio::spawn(async move {
            silent.give_way().await;
            silent
        });
        let next = next.await.expect("no panic");
        drop(next);
        let again = again.await.expect("no panic");
        assert_eq!(again.turn, 2 * TURN);
    }

    #[tokio::test(start_paused = true)]
    async fn a_host_is_listened_to_while_others_go_first() {
        let slots = slots(1);
        let mut silent = slots.take().await;
        let next = tokio::spawn(slots.take());
        let (answer, mut answers) = tokio::sync::mpsc::channel(1);
        let mut host = pin!(async {
            tokio::time::sleep(3 * TURN).await;
            answer.send("here").await.expect("somebody listens");
            7
        });
        assert!(silent.wait_for(host.as_mut(), NOBODY).await.is_none());
        let (((), came), ()) = tokio::join!(listening(host.as_mut(), silent.give_way()), async {
            let next = next.await.expect("no panic");
            assert_eq!(answers.recv().await, Some("here"));
            drop(next);
        });
        assert_eq!(came, Some(7));
    }

    #[tokio::test(start_paused = true)]
    async fn a_host_that_sends_keeps_its_slot() {
        let slots = slots(1);
        let mut busy = slots.take().await;
        let waiting = tokio::spawn(slots.take());
        for _ in 0..20 {
            let came = async {
                tokio::time::sleep(TURN / 3).await;
            };
            assert!(busy.wait_for(came, NOBODY).await.is_some());
            busy.brought(128 << 10);
        }
        let slow = async {
            tokio::time::sleep(2 * TURN).await;
        };
        busy.brought(1 << 10);
        assert!(busy.wait_for(slow, NOBODY).await.is_none(), "too little is no reason to stay");
        drop(busy);
        drop(waiting.await.expect("no panic"));
    }

    #[tokio::test(start_paused = true)]
    async fn no_more_layers_give_way_than_wait() {
        let slots = slots(3);
        let mut silent = [slots.take().await, slots.take().await, slots.take().await];
        let next = tokio::spawn(slots.take());
        let [first, second, third] = &mut silent;
        let gave_way = tokio::select! {
            () = async { assert!(first.wait_for(pending::<()>(), NOBODY).await.is_none()) } => 0,
            () = async { assert!(second.wait_for(pending::<()>(), NOBODY).await.is_none()) } => 1,
            () = async { assert!(third.wait_for(pending::<()>(), NOBODY).await.is_none()) } => 2,
        };
        for (at, slot) in silent.iter_mut().enumerate().filter(|(at, _)| *at != gave_way) {
            assert!(timeout(10 * TURN, slot.wait_for(pending::<()>(), NOBODY)).await.is_err(), "{at} stays");
        }
        drop(silent);
        drop(next.await.expect("no panic"));
    }

    /// The turn length for a host that sent this many bytes in each second of seven turns, and gave way after each.
    async fn turn_after(each_second: u64) -> Duration {
        let slots = slots(1);
        let mut slow = slots.take().await;
        for _ in 0..7 {
            let next = tokio::spawn(async { drop(slots.take().await) });
            slow.brought((each_second * slow.turn.as_secs()) as usize);
            assert!(slow.wait_for(pending::<()>(), NOBODY).await.is_none());
            slow.give_way().await;
            next.await.expect("no panic");
        }
        slow.turn
    }

    #[tokio::test(start_paused = true)]
    async fn a_crawling_host_gets_turns_as_long_as_the_stream_timeout() {
        assert_eq!(turn_after(5 << 10).await, TURN_MAX);
        let pace = Pace::default();
        assert!(turn_after(3 << 10).await > pace.window * pace.failures_max);
    }

    #[tokio::test(start_paused = true)]
    async fn a_layer_that_gives_way_is_counted_once() {
        let slots = slots(1);
        let mut silent = slots.take().await;
        let waiting = [Waiting::on(&slots.0), Waiting::on(&slots.0)];
        assert!(silent.wait_for(pending::<()>(), NOBODY).await.is_none());
        assert!(silent.wait_for(pending::<()>(), NOBODY).await.is_none());
        drop(silent);
        drop(waiting);
        assert_eq!(slots.0.leaving.load(Ordering::Relaxed), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_cancelled_layer_does_not_count_as_waiting() {
        let slots = slots(1);
        let mut silent = slots.take().await;
        assert!(timeout(TURN, slots.take()).await.is_err());
        assert!(timeout(10 * TURN, silent.wait_for(pending::<()>(), NOBODY)).await.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_fetch_yields_to_pulls_that_want_the_layer() {
        let mut slot = slots(1).take().await;
        let stalled = |is_stalled| is_stalled;
        slot.brought(64 << 10);
        let long = timeout(TURN * 3 / 2, slot.wait_for(pending::<()>(), stalled)).await;
        assert!(long.is_err(), "it keeps the pace of a stream");
        assert!(slot.wait_for(pending::<()>(), stalled).await.is_none());
    }
}
