//! `container prune`: removes all containers that do not run, and collects garbage.

use serde_json::{Value, json};
use types::{ErrorKind, Result};

use crate::Engine;
use crate::docker_events::Subject;

impl Engine {
    /// Removes the containers that do not run and match the filters, and collects garbage.
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
                // Another client has removed or started it meanwhile.
                Err(error) if error.is(ErrorKind::NotFound) || error.is(ErrorKind::FailedPrecondition) => {}
                // A process of the container may be running.
                Err(error) if error.is(ErrorKind::Unavailable) => {
                    tracing::warn!("prune passes over a container: {}", error.chain());
                }
                // A failed removal does not keep the others from being removed.
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
