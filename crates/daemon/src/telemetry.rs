//! Telemetry: Prometheus metrics, thread states and CPU profiles.
//!
//! ```text
//! metrics.address (TCP)   GET /v1/metrics
//! debug.address (socket)  GET /v1/metrics, /debug/vars, /debug/threads, /debug/pprof/profile
//! ```
//!
//! Metrics have containerd's names, and those of Go's Prometheus middleware for gRPC. Both addresses are off by
//! default. Of Go's profiles only the CPU profile exists; the others are about Go's runtime.
//!
//! - `calls`: metrics of gRPC calls.
//! - `ends`: detects the end of a call.
//! - `containers`: metrics of cgroups, queried from the shims on request.
//! - `histogram`: histograms of durations.
//! - `http`: the HTTP server.
//! - `message_counter`: counts messages of calls.
//! - `process`: metrics of the daemon's process.
//! - `profile`: CPU profiles.
//! - `text`: the exposition format.

mod calls;
mod containers;
pub(crate) mod ends;
mod histogram;
mod http;
mod message_counter;
mod process;
mod profile;
mod text;

use std::sync::atomic::Ordering;

pub(crate) use calls::Calls;
pub(crate) use histogram::Histogram;
pub(crate) use http::serve;

use crate::collector::Collector;
use text::Text;

/// Logs the state of each thread, as in `/debug/threads`.
pub(crate) fn log_threads() {
    for thread in process::threads().as_array().into_iter().flatten() {
        tracing::info!("thread: {thread}");
    }
}

/// The components that metrics are read from.
#[derive(Clone)]
pub(crate) struct Sources {
    pub(crate) calls: Option<Calls>,
    pub(crate) collector: Collector,
    pub(crate) metadata: metadata::Metadata,
    pub(crate) shims: task::Shims,
}

impl Sources {
    /// All metrics, in the exposition format.
    async fn metrics(&self) -> String {
        let mut text = Text::default();
        containers::write(&mut text, &self.metadata, &self.shims).await;
        text.family("containerd_build_info_total", "counter", "containerd build information");
        let build = [("revision", crate::identity::OWN_VERSION), ("version", crate::identity::VERSION)];
        text.sample("containerd_build_info_total", &build, 1.0);
        self.write_collections(&mut text);
        if let Some(calls) = &self.calls {
            calls.write(&mut text);
        }
        process::write(&mut text);
        text.into_string()
    }

    fn write_collections(&self, text: &mut Text) {
        let figures = self.collector.figures();
        let read = |figure: &std::sync::atomic::AtomicU64| figure.load(Ordering::Relaxed) as f64;
        let (done, failed) = (read(&figures.collections), read(&figures.failures));
        text.family("containerd_gc_collections_total", "counter", "counter of gc collections");
        text.sample("containerd_gc_collections_total", &[("status", "success")], done);
        text.sample("containerd_gc_collections_total", &[("status", "fail")], failed);
        text.family("containerd_gc_gc_seconds", "histogram", "gc timer");
        figures.times().write(text, "containerd_gc_gc_seconds", &[]);
        text.family("hoist_gc_removed_total", "counter", "records removed by gc");
        text.sample("hoist_gc_removed_total", &[], read(&figures.removed));
    }
}
