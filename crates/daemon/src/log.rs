//! The log, to standard error.

use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{fmt, registry};

use crate::config::{Config, Level, LogFormat};

/// Starts logging. Only the first call has an effect, so that a test may run several daemons.
pub(crate) fn start(config: &Config) {
    let level = match config.log_level {
        Level::Trace => LevelFilter::TRACE,
        Level::Debug => LevelFilter::DEBUG,
        Level::Info => LevelFilter::INFO,
        Level::Warn => LevelFilter::WARN,
        Level::Error => LevelFilter::ERROR,
    };
    // What the HTTP stack says about frames drowns everything else.
    let quiet = level.min(LevelFilter::INFO);
    let filter = Targets::new()
        .with_default(level)
        .with_targets(["h2", "hyper", "hyper_util", "rustls", "tonic", "tower"].map(|name| (name, quiet)));
    let started = match config.log_format {
        LogFormat::Text => registry()
            .with(fmt::layer().with_writer(std::io::stderr).with_ansi(false).with_target(false))
            .with(filter)
            .try_init(),
        LogFormat::Json => registry()
            .with(fmt::layer().json().flatten_event(true).with_writer(std::io::stderr))
            .with(filter)
            .try_init(),
    };
    // A second daemon in one process logs where the first does.
    drop(started);
}
