//! Creation of a task: the bundle, the shim, and the shim's `Create`.
//!
//! Invariants
//! - The id is reserved before anything is made, and free again only if everything was removed.
//! - Clients find the task once its shim has been asked to create it.

use std::path::Path;

use api::shim::task::CreateTaskRequest;
use linux::signal::SIGKILL;
use stdx::{TRACE, traced};
use tracing::field::Empty;
use tracing::info_span;
use types::{ContainerId, Context, Namespace, Opaque, Result, Timestamp};

use super::log::follow_log;
use super::{Key, Reservation, Shims, blocking, unbroken};
use crate::bootstrap::{self, Bootstrap};
use crate::bundle::Bundle;
use crate::connection::Connection;
use crate::program::Program;
use crate::sandbox::Endpoint;
use crate::{Create, Exit, Task, convert};

impl Shims {
    /// Starts a shim and has it create the container. Returns the pid of its first process, which waits for `start`.
    /// Continues if the caller's future is dropped.
    pub async fn create(&self, namespace: &Namespace, id: &ContainerId, create: Create) -> Result<u32> {
        let (shims, key) = (self.clone(), (namespace.clone(), id.clone()));
        let span = info_span!(target: TRACE, "task.create", %namespace, %id, error = Empty);
        traced(span, unbroken(async move { shims.create_one(key, create).await })).await
    }

    async fn create_one(self, key: Key, create: Create) -> Result<u32> {
        let program = Program::find(&self.0.config, &create.runtime)?;
        let reservation = self.reserve(&key)?;
        let bundle = Bundle::at(&self.0.config.bundles, &key.0, &key.1);
        match self.bring_up(&reservation, &bundle, &program, create).await {
            Ok((task, pid)) => {
                reservation.fill(task.clone());
                tokio::spawn(self.clone().watch(task));
                Ok(pid)
            }
            Err(error) => {
                if !self.discard((&key.0, key.1.as_str()), &bundle, Bundle::remove_unborn).await {
                    reservation.keep();
                }
                Err(error)
            }
        }
    }

    async fn bring_up(
        &self,
        reservation: &Reservation,
        bundle: &Bundle,
        program: &Program,
        create: Create,
    ) -> Result<(Task, u32)> {
        let key = &reservation.key;
        let request = create_request(&key.1, bundle, &create);
        {
            let (bundle, program) = (bundle.clone(), program.clone());
            let span = info_span!(target: TRACE, "task.bundle", error = Empty);
            traced(span, blocking(move || bundle.create(&create.spec, &program))).await?;
        }
        create.laps.lap("write the bundle");
        let log = follow_log((&key.0, key.1.as_str()), bundle);
        let span = info_span!(target: TRACE, "task.shim", error = Empty);
        let (bootstrap, noted) = match create.shim {
            Some(endpoint) => (traced(span, join_shim(bundle, endpoint)).await?, Ok(())),
            None => traced(span, self.start_shim(key, bundle, program, create.options)).await?,
        };
        create.laps.lap("start the shim");
        let connection = Connection::new(bootstrap, key.0.clone(), self.0.config.limits);
        let task = Task::new(key.clone(), (bundle.clone(), program.clone()), connection, log);
        let span = info_span!(target: TRACE, "task.make", error = Empty);
        let made = async {
            // Here, so that a shim whose address no later daemon would find does not stay.
            noted?;
            task.connect().await?;
            // In this order, so that the shim gets the create request before requests of clients that find the task in
            // the map.
            let (_, made, ()) = tokio::join!(
                biased;
                task.identify_shim(),
                task.create(&request),
                async { reservation.show(&task) },
            );
            made
        };
        match traced(span, made).await {
            Ok(pid) => {
                create.laps.lap("make the container");
                Ok((task, pid))
            }
            Err(error) => {
                reservation.hide();
                task.dismiss(self.shim_is_shared(&task)).await;
                // Clients that wait for this task must not end up waiting for the next one with this id.
                task.end(Exit { pid: 0, status: 128 + SIGKILL, at: Timestamp::now() });
                Err(error)
            }
        }
    }

    /// Starts a shim, and tells whether its address was noted in the bundle: if not, the caller dismisses it.
    async fn start_shim(
        &self,
        key: &Key,
        bundle: &Bundle,
        program: &Program,
        options: Option<Opaque>,
    ) -> Result<(Bootstrap, Result<()>)> {
        let (shims, key, bundle, program) = (self.clone(), key.clone(), bundle.clone(), program.clone());
        blocking(move || {
            let config = &shims.0.config;
            let bootstrap = bootstrap::start(config, &program, &bundle, (&key.0, key.1.as_str()), options)
                .context(|| "start a shim")?;
            let noted = bundle.write_bootstrap(&bootstrap);
            Ok((bootstrap, noted))
        })
        .await
    }
}

fn create_request(id: &ContainerId, bundle: &Bundle, create: &Create) -> CreateTaskRequest {
    let text = |path: &Path| path.display().to_string();
    CreateTaskRequest {
        id: id.to_string(),
        bundle: text(&bundle.path),
        rootfs: create.rootfs.iter().cloned().map(convert::mount).collect(),
        terminal: create.io.terminal,
        stdin: create.io.stdin.clone(),
        stdout: create.io.stdout.clone(),
        stderr: create.io.stderr.clone(),
        checkpoint: create.checkpoint.as_deref().map(text).unwrap_or_default(),
        parent_checkpoint: String::new(),
        options: create.options.clone().map(convert::any),
    }
}

/// Assigns the container to an existing shim, such as a sandbox's.
async fn join_shim(bundle: &Bundle, endpoint: Endpoint) -> Result<Bootstrap> {
    let bundle = bundle.clone();
    blocking(move || {
        let bootstrap = Bootstrap::at(endpoint)?;
        bundle.write_bootstrap(&bootstrap)?;
        Ok(bootstrap)
    })
    .await
}
