//! The whole: what there is, what it uses, what is left over, and each question of the API led to its answer.

use api::engine::Call;
use content::Form;
use linux::cgroup::Cgroup;
use serde_json::{Value, json};
use stdx::Laps;
use types::filter::Filters;
use types::{Digest, ErrorKind, Result};

use crate::Engine;
use crate::record::Extension;

impl Engine {
    /// Answers one question.
    pub async fn answer(&self, call: Call) -> Result<Value> {
        match call {
            Call::Info => self.info().await,
            Call::Create(create) => self.create(*create).await,
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
            Call::Inspect { id } => self.inspect(&id).await,
            Call::Exec(exec) => self.exec(*exec).await,
            Call::StatFile { id, path } => self.stat_file(&id, path).await,
            Call::Commit(commit) => self.commit(*commit).await,
            Call::Resize { id, exec, rows, columns } => {
                self.resize(&id, exec.as_deref(), rows, columns).await
            }
            Call::CloseStdin { id, exec } => self.close_stdin(&id, exec.as_deref()).await,
            Call::Stats { ids } => self.stats(ids).await,
            Call::Image(call) => self.answer_about_images(call).await,
            Call::Registry(call) => self.answer_about_registries(call).await,
            Call::Volume(call) => self.answer_about_volumes(call).await,
            Call::Prune => self.prune().await,
            Call::DiskUsage => self.disk_usage().await,
            Call::Check { repair } => self.check(repair).await,
        }
    }

    /// Above the cgroups of containers. Two daemons on one machine have different ones.
    pub(crate) fn cgroup_parent(&self) -> String {
        let root = self.parts().root.as_os_str().as_encoded_bytes();
        format!("/hoist/{}", Digest::of(root).short())
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

    async fn info(&self) -> Result<Value> {
        let rows = self.list(true, Vec::new(), None, false).await?;
        let rows = rows.as_array().cloned().unwrap_or_default();
        let count = |state: &str| rows.iter().filter(|row| row["State"] == state).count();
        let images = self
            .blocking(|engine| {
                Ok(engine.parts().metadata.images(&engine.0.caller).list(&Filters::all())?.len())
            })
            .await?;
        let kernel = rustix::system::uname();
        Ok(json!({
            "ServerVersion": env!("CARGO_PKG_VERSION"),
            "Containers": rows.len(),
            "ContainersRunning": count("running"),
            "ContainersPaused": count("paused"),
            "Images": images,
            "Driver": self.parts().snapshotter,
            "RootDir": self.parts().root,
            "StateDir": self.parts().state,
            "KernelVersion": kernel.release().to_string_lossy(),
            "Architecture": kernel.machine().to_string_lossy(),
        }))
    }

    /// One sample for each running container, or for those named.
    async fn stats(&self, ids: Vec<String>) -> Result<Value> {
        let parent = self.cgroup_parent();
        self.blocking(move |engine| {
            let wanted: Vec<_> = if ids.is_empty() {
                engine.all()?
            } else {
                ids.iter().map(|id| engine.find(id)).collect::<Result<_>>()?
            };
            let mut rows = Vec::new();
            for container in wanted {
                let Ok(extension) = Extension::of(&container) else { continue };
                let stats = match Cgroup::open(&format!("{parent}/{}", container.id))
                    .and_then(|cgroup| cgroup.stats())
                {
                    Ok(stats) => stats,
                    Err(error) if error.is(ErrorKind::NotFound) => continue,
                    Err(error) => return Err(error),
                };
                rows.push(json!({
                    "ID": container.id.as_str(),
                    "Name": extension.name,
                    "CpuNanos": stats.cpu.usage_ns,
                    "MemoryBytes": stats.memory.working_set(stats.is_v2),
                    "MemoryLimit": stats.memory.usage.limit,
                    "Pids": stats.pids.current,
                    "BlockRead": linux::cgroup::Io::total(&stats.io.bytes, "read"),
                    "BlockWrite": linux::cgroup::Io::total(&stats.io.bytes, "write"),
                }));
            }
            Ok(Value::Array(rows))
        })
        .await
    }

    async fn disk_usage(&self) -> Result<Value> {
        let rows = self.list(true, Vec::new(), None, false).await?;
        let running =
            rows.as_array().map_or(0, |rows| rows.iter().filter(|row| row["State"] == "running").count());
        self.blocking(move |engine| {
            let parts = engine.parts();
            let images = parts.metadata.images(&engine.0.caller).list(&Filters::all())?;
            let content = parts.metadata.content(&engine.0.caller);
            let (mut blobs, mut rebuilt, mut recipes, mut saved) = (0, 0, 0, 0);
            for blob in content.list(&Filters::all())? {
                match content.form(&blob.digest) {
                    Ok(Form::Whole) => blobs += blob.size,
                    Ok(Form::Recipe { len }) => {
                        rebuilt += 1;
                        recipes += len;
                        saved += blob.size.saturating_sub(len);
                    }
                    // It went meanwhile, or its bytes are lost, which `image verify` tells.
                    Err(error) if error.is(ErrorKind::NotFound) || error.is(ErrorKind::DataLoss) => {}
                    Err(error) => return Err(error),
                }
            }
            let snapshots = parts.metadata.snapshots(&engine.0.caller, &parts.snapshotter)?;
            let (mut trees, mut writable) = (0, 0);
            for snapshot in snapshots.list(&Filters::all())? {
                let bytes = match snapshots.usage(&snapshot.key) {
                    Ok(usage) => usage.bytes,
                    // It went meanwhile.
                    Err(error) if error.is(ErrorKind::NotFound) => continue,
                    Err(error) => return Err(error),
                };
                if snapshot.kind == snapshot::Kind::Committed { trees += bytes } else { writable += bytes }
            }
            let containers = engine.all()?.len();
            Ok(json!([
                {"Type": "Images", "Total": images.len(), "Active": images.len(), "SizeBytes": blobs},
                {"Type": "Blobs by recipe", "Total": rebuilt, "Active": "", "SizeBytes": recipes, "SavedBytes": saved},
                {"Type": "Unpacked layers", "Total": "", "Active": "", "SizeBytes": trees},
                {"Type": "Containers", "Total": containers, "Active": running, "SizeBytes": writable},
                engine.volumes_usage()?,
            ]))
        })
        .await
    }

    /// Removes containers that do not run, and collects.
    async fn prune(&self) -> Result<Value> {
        let rows = self.list(true, Vec::new(), None, false).await?;
        let (mut removed, mut first_error) = (Vec::new(), None);
        for row in rows.as_array().into_iter().flatten() {
            if row["State"] == "exited" || row["State"] == "created" {
                let id = row["ID"].as_str().unwrap_or_default();
                match self.remove(id, false, false).await {
                    Ok(_) => removed.push(id.to_owned()),
                    // Somebody has removed it meanwhile, or started it.
                    Err(error)
                        if error.is(ErrorKind::NotFound) || error.is(ErrorKind::FailedPrecondition) => {}
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
        }
        let collected = self.blocking(|engine| engine.parts().metadata.collect()).await?;
        if let Some(error) = first_error {
            return Err(error);
        }
        Ok(
            json!({"ContainersDeleted": removed, "BlobsDeleted": collected.blobs_swept, "SnapshotsDeleted": collected.snapshots_swept}),
        )
    }
}
