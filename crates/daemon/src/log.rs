//! Logging to standard error.

use std::sync::OnceLock;

use stdx::TRACE;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::{Layer, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Registry, fmt, registry, reload};

use crate::config::{Config, Level, LogFormat};
use crate::traces::{self, Exporter};

/// The filter, which can change while the daemon runs.
static FILTER: OnceLock<reload::Handle<Targets, Registry>> = OnceLock::new();

/// Starts logging, and exporting spans if the configuration names a collector. Only the first call has an effect, so
/// that a test may run several daemons.
pub(crate) fn start(config: &Config) -> Option<Exporter> {
    let (filter, handle) = reload::Layer::new(filter(config.log_level));
    let (spans, exporter) = config.otlp.as_ref().map(traces::start).unzip();
    let spans = spans.map(|spans| spans.with_filter(Targets::new().with_target(TRACE, LevelFilter::TRACE)));
    let lines: Box<dyn Layer<Registry> + Send + Sync> = match config.log_format {
        LogFormat::Text => fmt::layer()
            .with_writer(std::io::stderr)
            .with_ansi(false)
            .with_target(false)
            .with_filter(filter)
            .boxed(),
        LogFormat::Json => {
            fmt::layer().json().flatten_event(true).with_writer(std::io::stderr).with_filter(filter).boxed()
        }
    };
    // A second daemon in one process uses the first one's logger.
    if registry().with(lines).with(spans).try_init().is_ok() {
        let _ = FILTER.set(handle);
    }
    exporter
}

/// Applies the log level of a new configuration.
pub(crate) fn reconfigure(config: &Config) {
    if let Some(handle) = FILTER.get()
        && let Err(error) = handle.reload(filter(config.log_level))
    {
        tracing::warn!("change the log level: {error}");
    }
}

fn filter(level: Level) -> Targets {
    let level = match level {
        Level::Trace => LevelFilter::TRACE,
        Level::Debug => LevelFilter::DEBUG,
        Level::Info => LevelFilter::INFO,
        Level::Warn => LevelFilter::WARN,
        Level::Error => LevelFilter::ERROR,
    };
    // At debug level, the HTTP stack logs every frame.
    let quiet = level.min(LevelFilter::INFO);
    Targets::new()
        .with_default(level)
        .with_target(TRACE, LevelFilter::OFF)
        .with_targets(["h2", "hyper", "hyper_util", "rustls", "tonic", "tower"].map(|name| (name, quiet)))
}
