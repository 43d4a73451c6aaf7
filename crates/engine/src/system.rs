//! The whole: each question of the API led to its answer, and what nobody needs removed.

use api::engine::{Call, Extras, NetworkCall};
use linux::cgroup::Cgroup;
use serde_json::{Value, json};
use stdx::Laps;
use types::{Digest, ErrorKind, Result};

use crate::Engine;
use crate::told::Subject;

impl Engine {
    /// Answers one question. `gone` is when nobody waits for the answer any more.
    pub async fn answer(&self, call: Call, gone: impl Future<Output = ()> + Send) -> Result<Value> {
        match call {
            Call::Info => self.info().await,
            Call::Create(create) => Box::pin(self.create(*create, gone)).await,
            Call::Start { id, streams } => self.start(&id, &streams, &Laps::start()).await,
            Call::Stop { id, timeout_seconds, signal } => {
                self.stop_container(&id, timeout_seconds, signal.as_deref()).await
            }
            Call::Kill { id, signal } => self.kill(&id, &signal).await,
            Call::Remove { id, force, volumes } => self.remove(&id, force, volumes).await,
            Call::Rename { id, name } => self.rename(&id, &name).await,
            Call::Update { id, update } => self.update(&id, update).await,
            Call::Top { id, options } => self.top(&id, &options).await,
            Call::Pause { id } => self.pause(&id, true).await,
            Call::Unpause { id } => self.pause(&id, false).await,
            Call::List { all, filters, last, sizes } => self.list(all, filters, last, sizes).await,
            Call::Inspect { id, sizes } => self.inspect(&id, sizes).await,
            Call::Attach { id, streams } => self.attach(&id, streams).await,
            Call::Exec(exec) => self.exec(*exec).await,
            Call::StatFile { id, path } => self.stat_file(&id, path).await,
            Call::Commit(commit) => self.commit(*commit).await,
            Call::Resize { id, exec, rows, columns } => {
                self.resize(&id, exec.as_deref(), rows, columns).await
            }
            Call::CloseStdin { id, exec } => self.close_stdin(&id, exec.as_deref()).await,
            Call::Stats { ids, all } => self.stats(ids, all).await,
            Call::Image(call) => self.answer_about_images(call).await,
            Call::Registry(call) => self.answer_about_registries(call).await,
            Call::Volume(call) => self.answer_about_volumes(call).await,
            Call::Network(NetworkCall::List { filters }) => self.list_networks(&filters),
            Call::Network(NetworkCall::Inspect { name }) => self.inspect_network(&name).await,
            Call::Prune { filters } => self.prune(filters).await,
            Call::DiskUsage { verbose } => self.disk_usage(verbose).await,
            Call::Check { repair } => self.check(repair).await,
        }
    }

    /// Above the cgroups of containers. Two daemons on one machine have different ones.
    pub(crate) fn cgroup_parent(&self) -> String {
        let root = self.parts().root.as_os_str().as_encoded_bytes();
        format!("/hoist/{}", Digest::of(root).short())
    }

    /// The cgroup of a container, below the hierarchies' roots.
    pub(crate) fn cgroup_of(&self, id: &str, extras: &Extras) -> String {
        match extras.cgroup_parent.trim_matches('/') {
            "" => format!("{}/{id}", self.cgroup_parent()),
            parent => format!("/{parent}/{id}"),
        }
    }

    /// Takes that one away, unless something is in it.
    pub(crate) fn remove_cgroup_parent(&self) -> Result<()> {
        match Cgroup::open(&self.cgroup_parent()) {
            Ok(parent) => parent.remove_if_empty(),
            // No container was ever started, or this host has no cgroups.
            Err(error) if error.is(ErrorKind::NotFound) || error.is(ErrorKind::FailedPrecondition) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Removes containers that do not run, and collects.
    async fn prune(&self, filters: Vec<String>) -> Result<Value> {
        let listed = self.list_to_prune(filters).await?;
        let (mut removed, mut first_error, mut bytes) = (Vec::new(), None, 0);
        for one in &listed {
            if one.state.is_alive() {
                continue;
            }
            let id = one.container.id.as_str();
            match self.remove(id, false, false).await {
                Ok(_) => {
                    bytes += one.sizes.map_or(0, |sizes| sizes.written);
                    removed.push(id.to_owned());
                }
                // Somebody has removed it meanwhile, or started it.
                Err(error) if error.is(ErrorKind::NotFound) || error.is(ErrorKind::FailedPrecondition) => {}
                // Something of it may be running.
                Err(error) if error.is(ErrorKind::Unavailable) => {
                    tracing::warn!("prune passes over a container: {}", error.chain());
                }
                // That is no reason to keep the others.
                Err(error) => {
                    first_error.get_or_insert(error.context(format!("remove container {id}")));
                }
            }
        }
        let collected = self.blocking(|engine| {
            let before = engine.bytes_held()?;
            engine.parts().metadata.collect()?;
            Ok(before.saturating_sub(engine.bytes_held()?))
        });
        bytes += collected.await?;
        if let Some(error) = first_error {
            return Err(error);
        }
        self.tell_prune(Subject::Container, bytes);
        Ok(json!({"ContainersDeleted": removed, "SpaceReclaimed": bytes}))
    }
}
