//! The engine's extension of a container record.
//!
//! The request is stored as the client sent it: [`Create`], a message of the API. It is the only API message that is
//! stored; its field names are an on-disk format, which the tests in `stored` protect.

use std::time::Duration;

use api::engine::{Create, Restart};
use metadata::Container;
use serde::{Deserialize, Serialize};
use types::spec::image::Healthcheck;
use types::{Error, Opaque, Result, Timestamp};

/// The key and the type of the extension.
pub(crate) const EXTENSION: &str = "hoist.engine.v1";

/// Pause before the first restart; doubled for each further one, up to a minute.
const RESTART_PAUSE: Duration = Duration::from_millis(100);
pub(crate) const RESTART_PAUSE_MAX: Duration = Duration::from_secs(60);
/// A run of this length resets the restart pause.
const LONG_RUN: Duration = Duration::from_secs(10);

/// The extension, stored as JSON.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Extension {
    pub(crate) name: String,
    pub(crate) create: Create,
    /// The image's full name, and the digest that it had at the time.
    pub(crate) image: String,
    pub(crate) image_digest: String,
    /// The image's platform. Empty in records of earlier versions.
    #[serde(default)]
    pub(crate) platform: String,
    /// The whole command line.
    pub(crate) command: Vec<String>,
    pub(crate) stop_signal: String,
    /// The health check, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) health: Option<Healthcheck>,
    #[serde(default)]
    pub(crate) started: Option<Timestamp>,
    #[serde(default)]
    pub(crate) exit: Option<ExitRecord>,
    /// Number of restarts by its policy since it was last started by hand.
    #[serde(default)]
    pub(crate) restarts: u64,
    /// Number of consecutive restarts after a short run.
    #[serde(default)]
    pub(crate) short_runs: u32,
    /// Stopped by a client, so that no policy restarts it.
    #[serde(default)]
    pub(crate) stopped_by_hand: bool,
    /// Paused while its snapshot is copied. A daemon that starts and finds this set resumes it.
    #[serde(default)]
    pub(crate) paused_for_copy: bool,
    /// The digest of what we wrote to its `resolv.conf` last. Empty in records of earlier versions: then the file is
    /// not updated.
    #[serde(default)]
    pub(crate) resolv_conf: String,
    /// Anonymous volumes created for it. Empty in records of earlier versions, whose volumes are left to `volume
    /// prune`.
    #[serde(default)]
    pub(crate) own_volumes: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct ExitRecord {
    pub(crate) code: u32,
    pub(crate) at: Timestamp,
    /// Whether the kernel's OOM killer killed a process of it.
    #[serde(default)]
    pub(crate) oom_killed: bool,
}

impl Extension {
    pub(crate) fn of(container: &Container) -> Result<Extension> {
        let broken = || Error::data_loss(format!("container {} was not made by this engine", container.id));
        let opaque = container.extensions.get(EXTENSION).ok_or_else(broken)?;
        serde_json::from_slice(&opaque.value).map_err(|error| broken().with_source(error))
    }

    pub(crate) fn to_opaque(&self) -> Opaque {
        Opaque { type_url: EXTENSION.into(), value: serde_json::to_vec(self).expect("plain data") }
    }

    /// Records how it ended.
    pub(crate) fn end(&mut self, exit: ExitRecord) {
        if self.started.is_some_and(|started| started.until(exit.at) >= LONG_RUN) {
            self.short_runs = 0;
        }
        self.exit = Some(exit);
    }

    /// Resets the restart state, because it is started by hand.
    pub(crate) fn begin_anew(&mut self) {
        self.stopped_by_hand = false;
        (self.restarts, self.short_runs) = (0, 0);
    }

    pub(crate) fn restart_pause(&self) -> Duration {
        (RESTART_PAUSE * 2_u32.pow(self.short_runs.min(10))).min(RESTART_PAUSE_MAX)
    }

    /// Whether its policy restarts it after this exit.
    pub(crate) fn wants_restart(&self, code: u32) -> bool {
        match self.create.restart {
            Restart::No => false,
            Restart::Always | Restart::UnlessStopped => !self.stopped_by_hand,
            Restart::OnFailure(max) => {
                !self.stopped_by_hand && code != 0 && (max == 0 || self.restarts < max)
            }
        }
    }

    /// Whether a daemon that starts must start this stopped container, as Docker does: `always` applies even to
    /// containers stopped by hand, and a container whose restart was pending is restarted.
    pub(crate) fn wants_start_at_boot(&self) -> bool {
        match self.create.restart {
            Restart::No => false,
            Restart::Always => self.started.is_some(),
            Restart::UnlessStopped => self.started.is_some() && !self.stopped_by_hand,
            Restart::OnFailure(_) => self.exit.is_some_and(|exit| self.wants_restart(exit.code)),
        }
    }
}

#[cfg(test)]
mod stored;

#[cfg(test)]
mod tests {
    use super::*;

    fn extension(restart: Restart) -> Extension {
        let bare = serde_json::json!({
            "name": "x", "image": "", "image_digest": "", "command": [], "stop_signal": "SIGTERM",
            "create": Create { restart, ..Create::default() },
        });
        serde_json::from_value(bare).expect("what every record has")
    }

    fn exit(code: u32, at: Timestamp) -> ExitRecord {
        ExitRecord { code, at, oom_killed: false }
    }

    #[test]
    fn restart_pauses_grow_until_a_long_run() {
        let (mut one, start) = (extension(Restart::Always), Timestamp::now());
        let mut pauses = Vec::new();
        for ran in [1, 1, 9, 10, 1] {
            one.started = Some(start);
            one.end(exit(1, start.plus(Duration::from_secs(ran))));
            pauses.push(one.restart_pause().as_millis());
            one.short_runs += 1;
        }
        assert_eq!(pauses, [100, 200, 400, 100, 200]);
        one.short_runs = u32::MAX;
        assert_eq!(one.restart_pause(), RESTART_PAUSE_MAX);
        one.begin_anew();
        assert_eq!(one.restart_pause(), RESTART_PAUSE);
    }

    #[test]
    fn restart_policies_say_what_starts_with_the_daemon() {
        let check = |restart, code, by_hand, expected| {
            let mut one = extension(restart);
            assert!(!one.wants_start_at_boot(), "it was never started");
            (one.started, one.stopped_by_hand) = (Some(Timestamp::now()), by_hand);
            one.end(exit(code, Timestamp::now()));
            assert_eq!(one.wants_start_at_boot(), expected, "{restart:?} {code} {by_hand}");
        };
        for code in [0, 1] {
            check(Restart::No, code, false, false);
            check(Restart::Always, code, false, true);
            check(Restart::Always, code, true, true);
            check(Restart::UnlessStopped, code, false, true);
            check(Restart::UnlessStopped, code, true, false);
            check(Restart::OnFailure(0), code, false, code != 0);
            check(Restart::OnFailure(1), code, true, false);
        }
    }
}
