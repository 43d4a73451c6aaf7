//! Dispatches each call of the API that has a single answer to its implementation.

use api::engine::{Call, NetworkCall};
use serde_json::Value;
use stdx::Laps;
use task::TerminalSize;
use types::Result;

use crate::Engine;

impl Engine {
    /// Answers one call. `gone` completes when the client has disconnected.
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
                let size = TerminalSize { rows: rows.into(), columns: columns.into() };
                self.resize(&id, exec.as_deref(), size).await
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
}
