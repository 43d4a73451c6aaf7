//! A ttRPC connection to one shim, which reconnects as long as the shim lives.

use std::path::PathBuf;
use std::sync::MutexGuard;
use std::time::Duration;

use api::shim::task::{SERVICE_V2, SERVICE_V3};
use prost::Message;
use stdx::Mutex;
use tokio::time::timeout;
use ttrpc::asynchronous::AsyncClient;
use ttrpc::{NAMESPACE_KEY, Request};
use types::{Error, ErrorKind, Namespace, Result};

use crate::Limits;
use crate::bootstrap::Bootstrap;

pub(crate) struct Connection {
    bootstrap: Bootstrap,
    namespace: Namespace,
    limits: Limits,
    client: Mutex<Option<AsyncClient>>,
}

impl Connection {
    /// The first call connects.
    pub(crate) fn new(bootstrap: Bootstrap, namespace: Namespace, limits: Limits) -> Connection {
        Connection { bootstrap, namespace, limits, client: Mutex::new(None) }
    }

    pub(crate) fn limits(&self) -> &Limits {
        &self.limits
    }

    pub(crate) fn bootstrap(&self) -> &Bootstrap {
        &self.bootstrap
    }

    pub(crate) fn socket(&self) -> PathBuf {
        let address = &self.bootstrap.address;
        PathBuf::from(address.strip_prefix("unix://").unwrap_or(address))
    }

    /// Calls a method of the task service, in the version that the shim speaks.
    pub(crate) async fn call<M: Message + Default>(
        &self,
        method: &str,
        message: &impl Message,
        limit: Option<Duration>,
    ) -> Result<M> {
        let service = if self.bootstrap.version >= 3 { SERVICE_V3 } else { SERVICE_V2 };
        self.call_service(service, method, message, limit).await
    }

    pub(crate) async fn call_service<M: Message + Default>(
        &self,
        service: &str,
        method: &str,
        message: &impl Message,
        limit: Option<Duration>,
    ) -> Result<M> {
        let mut request =
            Request::new(service, method, message).with_metadata(NAMESPACE_KEY, self.namespace.as_str());
        if let Some(limit) = limit {
            request = request.with_timeout(limit);
        }
        let client = self.client().await?;
        client.call(&request).await
    }

    /// The current client, or a new one. `Unavailable` if nothing listens on the socket: then the shim is dead.
    pub(crate) async fn client(&self) -> Result<AsyncClient> {
        if let Some(client) = self.lock().as_ref().filter(|client| !client.is_closed()) {
            return Ok(client.clone());
        }
        let limit = self.limits.load;
        let connecting = timeout(limit, AsyncClient::connect(&self.bootstrap.address)).await;
        let late =
            |_| Err(Error::deadline_exceeded(format!("connect to the shim: took longer than {limit:?}")));
        let client = connecting.unwrap_or_else(late).map_err(|error| match error.kind() {
            // A missing socket means a dead shim; callers would take `NotFound` for a missing task.
            ErrorKind::NotFound => error.with_kind(ErrorKind::Unavailable),
            // It would be taken for a shim that does not read; perhaps it is this daemon that has too many open files.
            ErrorKind::ResourceExhausted => error.with_kind(ErrorKind::Unknown),
            _ => error,
        })?;
        *self.lock() = Some(client.clone());
        Ok(client)
    }

    /// Completes when the connection closes.
    pub(crate) async fn closed(&self) {
        let client = self.lock().clone();
        if let Some(client) = client {
            client.closed().await;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<AsyncClient>> {
        self.client.lock()
    }
}
