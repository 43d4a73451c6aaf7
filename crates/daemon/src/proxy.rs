//! Proxy plugins: programs that serve one of containerd's services to the daemon, on a unix socket.
//!
//! ```text
//! call ──▶ breaker ──▶ slot ──▶ request ──▶ response
//!             │          │         ├ health checks in intervals; no response ──▶ stuck
//!             │          │         └ time limit exceeded ──▶ stuck
//!             │          └ too many calls wait: refused
//!             └ was stuck a moment ago: refused
//! ```
//!
//! A dead plugin refuses connections at once. A stuck one does not respond, and would block all its callers: therefore
//! the daemon checks its health every few seconds while a call waits. Any response is a sign of life, even that there
//! is no health service, so a call may take long as long as the plugin lives.
//!
//! Invariants
//! - No call waits for an unresponsive plugin longer than [`PULSE_PAUSE`] and [`PULSE_LIMIT`].
//! - A plugin blocks at most [`CALLS_MAX`] of our threads. A call that waits for an event, such as the end of a
//!   sandbox, blocks none and takes no slot.
//! - However many calls wait, a plugin's health is checked once per [`PULSE_PAUSE`].
//! - A plugin has no effect on calls that do not use it.

mod breaker;
mod content;
mod snapshotter;

use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use api::grpc::health::HealthCheckRequest;
use api::grpc::health::health_client::HealthClient;
use metadata::Caller;
use stdx::Mutex;
use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};
use tonic::transport::Channel;
use tonic::{Request, Status};
use types::{Error, ErrorKind, Result};

use self::breaker::{Breaker, Leave};
pub(crate) use self::content::ProxyStore;
pub(crate) use self::snapshotter::ProxySnapshotter;
use crate::config::ProxyPlugin;

/// Pause between the start of a call, or a sign of life, and the next health check.
const PULSE_PAUSE: Duration = Duration::from_secs(3);
/// Time limit of a health check.
const PULSE_LIMIT: Duration = Duration::from_secs(5);
/// The most calls that wait for one plugin. Stores block threads of a pool that is not much larger.
const CALLS_MAX: usize = 32;
/// Time limit of calls without a predictable duration: unpacking, committing, waiting.
pub(crate) const LONG: Duration = Duration::from_secs(24 * 60 * 60);

/// A proxy plugin. Clones share the connection.
#[derive(Clone)]
pub(crate) struct Plugin(Arc<Inner>);

struct Inner {
    config: ProxyPlugin,
    channel: Channel,
    handle: Handle,
    breaker: Mutex<Breaker>,
    slots: Semaphore,
    /// Time and result of the last health check.
    heard: tokio::sync::Mutex<Option<(Instant, bool)>>,
}

/// Builds the client of a service with our message limits.
macro_rules! client {
    ($client:path, $channel:expr) => {{
        use $client as Client;
        Client::new($channel)
            .max_decoding_message_size(api::grpc::MESSAGE_BYTES_MAX)
            .max_encoding_message_size(api::grpc::MESSAGE_BYTES_MAX)
    }};
}
pub(crate) use client;

impl Plugin {
    /// Connects at the first call. Requires a tokio runtime.
    pub(crate) fn new(config: ProxyPlugin) -> Plugin {
        Plugin(Arc::new(Inner {
            channel: client::lazy_channel(&config.address),
            config,
            handle: Handle::current(),
            breaker: Mutex::new(Breaker::default()),
            slots: Semaphore::new(CALLS_MAX),
            heard: tokio::sync::Mutex::default(),
        }))
    }

    pub(crate) fn config(&self) -> &ProxyPlugin {
        &self.0.config
    }

    pub(crate) fn channel(&self) -> Channel {
        self.0.channel.clone()
    }

    /// Time limit of short calls, such as lookups.
    pub(crate) fn short(&self) -> Duration {
        self.0.config.timeout
    }

    /// Makes a call. `Unavailable` if the plugin does not listen, or is known to be stuck; `DeadlineExceeded` if it
    /// turns out to be.
    pub(crate) async fn call<T>(
        &self,
        limit: Duration,
        ask: impl Future<Output = Result<T, Status>>,
    ) -> Result<T> {
        self.guarded(Some(limit), ask).await.map_err(|error| error.context(self.title()))
    }

    /// As [`Plugin::call`], without a time limit.
    pub(crate) async fn wait<T>(&self, ask: impl Future<Output = Result<T, Status>>) -> Result<T> {
        self.guarded(None, ask).await.map_err(|error| error.context(self.title()))
    }

    async fn guarded<T>(
        &self,
        limit: Option<Duration>,
        ask: impl Future<Output = Result<T, Status>>,
    ) -> Result<T> {
        let pass = self.pass()?;
        let slot = limit.map(|_| self.0.slots.try_acquire()).transpose();
        let _slot = slot.map_err(|_| Error::unavailable(format!("{CALLS_MAX} calls wait for it already")))?;
        if pass.is_trial {
            self.pulse().await.inspect_err(|_| pass.stuck())?;
        }
        let over = async {
            match limit {
                Some(limit) => {
                    sleep(limit).await;
                    Error::deadline_exceeded(format!("no answer within {limit:?}"))
                }
                None => std::future::pending().await,
            }
        };
        let answer = tokio::select! {
            answer = ask => answer,
            stuck = self.silence() => {
                pass.stuck();
                return Err(stuck);
            }
            late = over => {
                pass.stuck();
                return Err(late);
            }
        };
        pass.answered();
        answer.map_err(|status| error(&status))
    }

    /// As [`Plugin::call`], from a thread that may block.
    pub(crate) fn block<T, F>(&self, limit: Duration, ask: F) -> Result<T>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, Status>> + Send + 'static,
    {
        let (plugin, (sender, receiver)) = (self.clone(), std::sync::mpsc::sync_channel(1));
        self.0.handle.spawn(async move {
            // The calling thread may be gone.
            let _gone = sender.send(plugin.call(limit, ask).await);
        });
        receiver
            .recv()
            .map_err(|_| Error::unavailable(format!("{}: the daemon is stopping", self.title())))?
    }

    /// Completes when the plugin shows no sign of life. One of the waiting calls checks, for all of them.
    async fn silence(&self) -> Error {
        let mut pause = PULSE_PAUSE;
        loop {
            sleep(pause).await;
            let mut heard = self.0.heard.lock().await;
            let since = heard.map(|(at, is_alive)| (at.elapsed(), is_alive));
            match since {
                Some((ago, true)) if ago < PULSE_PAUSE => {
                    pause = PULSE_PAUSE - ago;
                    continue;
                }
                Some((ago, false)) if ago < PULSE_PAUSE => return silent(),
                _ => {}
            }
            let pulse = self.pulse().await;
            *heard = Some((Instant::now(), pulse.is_ok()));
            if let Err(error) = pulse {
                return error;
            }
            pause = PULSE_PAUSE;
        }
    }

    /// Checks the plugin's health; any response will do. A broken connection is reported by the call itself.
    async fn pulse(&self) -> Result<()> {
        let mut client = HealthClient::new(self.channel());
        let asked = client.check(Request::new(HealthCheckRequest::default()));
        match timeout(PULSE_LIMIT, asked).await {
            Ok(_) => Ok(()),
            Err(_) => Err(silent()),
        }
    }

    fn title(&self) -> String {
        let ProxyPlugin { name, address, .. } = self.config();
        format!("proxy plugin {name} at {}", address.display())
    }

    fn pass(&self) -> Result<Pass<'_>> {
        match self.breaker(|breaker| breaker.ask(Instant::now())) {
            Leave::Go => Ok(Pass { plugin: self, is_trial: false }),
            Leave::Try => Ok(Pass { plugin: self, is_trial: true }),
            Leave::Not(left) => Err(refusal(left)),
        }
    }

    /// The error by which calls are refused, while they are.
    pub(crate) fn refusal(&self) -> Option<Error> {
        let left = self.breaker(|breaker| breaker.refuses_for(Instant::now()))?;
        Some(refusal(left).context(self.title()))
    }

    fn breaker<T>(&self, look: impl FnOnce(&mut Breaker) -> T) -> T {
        look(&mut self.0.breaker.lock())
    }
}

fn silent() -> Error {
    Error::deadline_exceeded("it is there and says nothing; is it stopped?")
}

fn refusal(left: Duration) -> Error {
    Error::unavailable(format!("it did not answer before, and is asked again in {} s", left.as_secs() + 1))
}

/// Permission to make one call.
struct Pass<'a> {
    plugin: &'a Plugin,
    is_trial: bool,
}

impl Pass<'_> {
    fn answered(&self) {
        self.plugin.breaker(Breaker::answered);
    }

    fn stuck(&self) {
        if self.plugin.breaker(|breaker| breaker.stuck(Instant::now())) {
            tracing::warn!("{}: it is stuck; calls are refused for a while", self.plugin.title());
        }
    }
}

impl Drop for Pass<'_> {
    fn drop(&mut self) {
        if self.is_trial {
            // The caller's future was dropped; then the next call tries.
            self.plugin.breaker(Breaker::abandoned);
        }
    }
}

/// Converts a plugin's status, or a connection error.
fn error(status: &Status) -> Error {
    // A status from the wire has no source.
    if std::error::Error::source(status).is_some() {
        return Error::unavailable(format!("the connection failed: {}", chain(status)));
    }
    Error::new(ErrorKind::from_code(i32::from(status.code())), status.message())
}

fn chain(status: &Status) -> String {
    let mut words = Vec::new();
    let mut source = std::error::Error::source(status);
    while let Some(error) = source {
        words.push(error.to_string());
        source = error.source();
    }
    words.dedup();
    words.join(": ")
}

/// A request on behalf of our caller.
pub(crate) fn request_of<M>(caller: &Caller, message: M) -> Request<M> {
    let mut request = request(Some(caller.namespace.as_str()), message);
    if let Some(lease) = caller.lease.as_ref().and_then(|lease| lease.as_str().parse().ok()) {
        request.metadata_mut().insert(api::grpc::LEASE_KEY, lease);
    }
    request
}

/// A request on behalf of a namespace, if known.
pub(crate) fn request<M>(namespace: Option<&str>, message: M) -> Request<M> {
    let mut request = Request::new(message);
    if let Some(namespace) = namespace.and_then(|namespace| namespace.parse().ok()) {
        request.metadata_mut().insert(api::grpc::NAMESPACE_KEY, namespace);
    }
    request
}
