//! The log, to standard error.

use std::sync::OnceLock;

use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Registry, fmt, registry, reload};

use crate::config::{Config, Level, LogFormat};

/// What may change while the daemon runs.
static FILTER: OnceLock<reload::Handle<Targets, Registry>> = OnceLock::new();

/// Starts logging. Only the first call has an effect, so that a test may run several daemons.
pub(crate) fn start(config: &Config) {
    let (filter, handle) = reload::Layer::new(filter(config.log_level));
    let filtered = registry().with(filter);
    let started = match config.log_format {
        LogFormat::Text => filtered
            .with(fmt::layer().with_writer(std::io::stderr).with_ansi(false).with_target(false))
            .try_init(),
        LogFormat::Json => {
            filtered.with(fmt::layer().json().flatten_event(true).with_writer(std::io::stderr)).try_init()
        }
    };
    // A second daemon in one process logs where the first does.
    if started.is_ok() {
        let _ = FILTER.set(handle);
    }
}

/// Logs as much as another configuration says.
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
    // What the HTTP stack says about frames drowns everything else.
    let quiet = level.min(LevelFilter::INFO);
    Targets::new()
        .with_default(level)
        .with_targets(["h2", "hyper", "hyper_util", "rustls", "tonic", "tower"].map(|name| (name, quiet)))
}
