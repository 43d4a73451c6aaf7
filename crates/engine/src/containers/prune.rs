//! Removing all containers that do not run, and what nothing refers to then.

use serde_json::{Value, json};
use types::{ErrorKind, Result};

use crate::Engine;
use crate::docker_events::Subject;

impl Engine {
    /// Removes containers that do not run, and collects.
    pub(crate) async fn prune(&self, filters: Vec<String>) -> Result<Value> {
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
                // Something of the container may be running.
                Err(error) if error.is(ErrorKind::Unavailable) => {
                    tracing::warn!("prune passes over a container: {}", error.chain());
                }
                // One that cannot be removed is no reason to keep the others.
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
