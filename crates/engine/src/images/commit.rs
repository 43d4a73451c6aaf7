//! `commit`: makes an image from a container: the container's image, a layer of its changes, and its configuration.
//!
//! ```text
//! config ─▶ pause ─▶ layer ─▶ resume ─▶ image
//! ```
//!
//! The record notes that the container is paused: if the daemon is killed meanwhile, the next one resumes it.

use api::engine::Commit;
use metadata::{Container, Image};
use serde_json::{Map, Value, json};
use task::Status;
use transfer::{Described, Layer, NewImage};
use types::filter::Filters;
use types::spec::image::Healthcheck;
use types::{ContainerId, Error, ErrorKind, Platform, Reference, Result, Timestamp};

use super::changes::places;
use super::instruction;
use crate::Engine;
use crate::record::Extension;

impl Engine {
    /// Makes an image from a container.
    pub(crate) async fn commit(&self, commit: Commit) -> Result<Value> {
        let (what, text) = (format!("commit container {}", commit.id), commit.id.clone());
        let container = self.blocking(move |engine| engine.find(&text)).await?;
        let made = self.run_commit(container, commit).await;
        made.map_err(|error| error.context(what))
    }

    async fn run_commit(&self, container: Container, commit: Commit) -> Result<Value> {
        let name = commit.name.as_deref().map(image_name).transpose()?;
        let pause = commit.pause;
        let (container, base, config) = self
            .blocking(move |engine| {
                let extension = Extension::of(&container)?;
                let base = engine.base_of(&extension)?;
                // Before anything is paused or copied, so that errors in `--change` show at once.
                let config = engine.config_of(&base, &extension, &commit)?;
                Ok((container, base, config))
            })
            .await?;
        // One at a time: of several commits that pause one container, the first to end would resume it under the
        // others.
        let alone = if pause { Some(self.0.copy_locks.lock(container.id.as_str()).await) } else { None };
        let is_paused = pause && self.begin_copy(&container.id).await?;
        let copied = self.copy(container.clone(), base).await;
        if is_paused {
            self.end_copy(&container.id).await?;
        }
        drop(alone);
        let (begun, base, layer) = copied?;
        self.blocking(move |engine| {
            let config = with_layer(config, layer.as_ref());
            let new = NewImage { base: &base.manifest, layer, config, name };
            let image = begun.finish(new)?;
            let described = engine.described(&image)?;
            Ok(json!({"Id": described.manifest.config.digest.to_string(), "Name": image.name}))
        })
        .await
    }

    async fn copy(
        &self,
        container: Container,
        base: Described,
    ) -> Result<(transfer::Commit, Described, Option<Layer>)> {
        self.blocking(move |engine| {
            let begun =
                transfer::Commit::begin(&engine.parts().metadata, &engine.0.caller, &container.snapshotter)?;
            let (parent, upper) = engine.tree_of(&container)?;
            let layer = begun.layer(&base.manifest, parent.as_deref(), &upper, places(&container))?;
            engine.check_is_there(&container)?;
            Ok((begun, base, layer))
        })
        .await
    }

    /// Pauses a running container for a copy. False if it does not run.
    async fn begin_copy(&self, id: &ContainerId) -> Result<bool> {
        // Wait for a daemon that has just started to resume what an earlier one paused.
        drop(self.0.locks.lock(id.as_str()).await);
        let Some(task) = self.task_of(id)? else { return Ok(false) };
        match task.state_or_unknown().await?.status {
            Status::Running => {}
            Status::Unknown => {
                return Err(Error::unavailable(
                    "pause it: its shim does not answer, and it may be running; leave that out with --pause=false",
                ));
            }
            _ => return Ok(false),
        }
        let own = id.clone();
        self.blocking(move |engine| engine.change(&own, |extension| extension.paused_for_copy = true))
            .await?;
        match task.pause().await {
            Ok(()) => Ok(true),
            Err(error) => {
                let state = task.state_or_unknown().await;
                let is = |status: Status| state.as_ref().is_ok_and(|state| state.status == status);
                // A client has paused it meanwhile, and it stays so. Without an answer, the pause may be ours.
                let is_answer = !error.is(ErrorKind::Unavailable) && !error.is(ErrorKind::DeadlineExceeded);
                if is_answer && is(Status::Paused) {
                    self.note_end_of_copy(id).await?;
                    return Ok(false);
                }
                self.end_copy(id).await?;
                // The container has ended meanwhile, and its snapshot is still there.
                if is(Status::Stopped) {
                    return Ok(false);
                }
                Err(error.context("pause it; leave that out with --pause=false"))
            }
        }
    }

    /// Resumes a container that was paused for a copy. No error if it is gone.
    pub(crate) async fn end_copy(&self, id: &ContainerId) -> Result<()> {
        if let Some(task) = self.task_of(id)? {
            // A client may have resumed or killed it.
            let _ = task.resume().await;
        }
        self.note_end_of_copy(id).await
    }

    /// Records that a copy no longer needs the container paused. No error if it is gone.
    async fn note_end_of_copy(&self, id: &ContainerId) -> Result<()> {
        let id = id.clone();
        let noted = self
            .blocking(move |engine| engine.change(&id, |extension| extension.paused_for_copy = false))
            .await;
        match noted {
            Err(error) if !error.is(ErrorKind::NotFound) => Err(error),
            _ => Ok(()),
        }
    }

    /// The image that a container was made from, even if it has been renamed.
    fn base_of(&self, extension: &Extension) -> Result<Described> {
        let parts = self.parts();
        let images = parts.metadata.images(&self.0.caller);
        let platform = extension.platform.parse().unwrap_or_else(|_| Platform::host());
        let is_base = |image: &Image| {
            let described =
                transfer::describe(&parts.metadata, &self.0.caller, &image.target, &platform).ok()?;
            (described.manifest.config.digest.to_string() == extension.image_digest).then_some(described)
        };
        let by_name = images.get(&extension.image).ok();
        let found = by_name.as_ref().and_then(is_base);
        let found = match found {
            Some(found) => Some(found),
            None => images.list(&Filters::all())?.iter().find_map(is_base),
        };
        found.ok_or_else(|| {
            Error::failed_precondition(format!(
                "its image {} ({}) is not here any more, and its layers are needed; pull it again",
                extension.image, extension.image_digest
            ))
        })
    }

    /// The config of the new image, still without the new layer.
    fn config_of(&self, base: &Described, extension: &Extension, commit: &Commit) -> Result<Value> {
        let content = self.parts().metadata.content(&self.0.caller);
        let bytes = content.reader(&base.manifest.config.digest)?.read_all(image::DOCUMENT_LEN_MAX)?;
        let mut document: Map<String, Value> = serde_json::from_slice(&bytes)
            .map_err(|error| Error::data_loss("the image's config cannot be read").with_source(error))?;
        // Docker's notes about the build of the base image.
        for key in ["id", "parent", "container", "container_config", "docker_version", "throwaway"] {
            document.remove(key);
        }
        let now = Timestamp::now().to_string();
        document.insert("created".into(), now.clone().into());
        match &commit.author {
            Some(author) => document.insert("author".into(), author.clone().into()),
            None => document.remove("author"),
        };
        let config = instruction::object(&mut document, "config");
        as_it_was_run(config, extension);
        commit.changes.iter().try_for_each(|line| instruction::apply(config, line))?;
        let mut entry = Map::new();
        entry.insert("created".into(), now.into());
        entry.insert("created_by".into(), extension.command.join(" ").into());
        for (key, text) in [("author", &commit.author), ("comment", &commit.message)] {
            if let Some(text) = text {
                entry.insert(key.into(), text.clone().into());
            }
        }
        let history = document.entry("history").or_insert_with(|| json!([]));
        if !history.is_array() {
            *history = json!([]);
        }
        history.as_array_mut().expect("made one above").push(entry.into());
        Ok(document.into())
    }
}

/// Adds the layer to the config, whose last history entry created it.
fn with_layer(mut config: Value, layer: Option<&Layer>) -> Value {
    match layer {
        Some(layer) => {
            if let Some(list) = config["rootfs"]["diff_ids"].as_array_mut() {
                list.push(layer.diff_id.to_string().into());
            }
        }
        None => {
            if let Some(last) = config["history"].as_array_mut().and_then(|list| list.last_mut()) {
                last["empty_layer"] = true.into();
            }
        }
    }
    config
}

/// The options the container was created with become the image's defaults, as in Docker.
fn as_it_was_run(config: &mut Map<String, Value>, extension: &Extension) {
    let create = &extension.create;
    for entry in &create.env {
        if let Some((key, value)) = entry.split_once('=') {
            instruction::set_variable(config, key, value);
        }
    }
    if let Some(entrypoint) = &create.entrypoint {
        let list: Vec<&str> = [entrypoint.as_str()].into_iter().filter(|word| !word.is_empty()).collect();
        config.insert("Entrypoint".into(), json!(list));
    }
    if create.entrypoint.is_some() || !create.command.is_empty() {
        config.insert("Cmd".into(), json!(create.command));
    }
    if let Some(user) = &create.user {
        config.insert("User".into(), user.clone().into());
    }
    if let Some(workdir) = &create.workdir {
        config.insert("WorkingDir".into(), workdir.clone().into());
    }
    if let Some(signal) = &create.extras.stop_signal {
        config.insert("StopSignal".into(), signal.clone().into());
    }
    if create.extras.health.is_some() {
        // A container without a health check yields an image without one, whatever the base image has.
        let none = || Healthcheck { test: vec!["NONE".into()], ..Healthcheck::default() };
        let check = extension.health.clone().unwrap_or_else(none);
        config.insert("Healthcheck".into(), json!(check));
    }
    for (key, value) in &create.labels {
        instruction::object(config, "Labels").insert(key.clone(), value.clone().into());
    }
    for port in &create.ports {
        let protocol = if port.protocol.is_empty() { "tcp" } else { &port.protocol };
        let port = format!("{}/{protocol}", port.container_port);
        instruction::object(config, "ExposedPorts").insert(port, json!({}));
    }
}

fn image_name(text: &str) -> Result<String> {
    let name: Reference = text.parse()?;
    if name.digest().is_some() {
        return Err(Error::invalid_argument(format!(
            "{name} names a digest, which the new image will give itself"
        )));
    }
    Ok(name.to_string())
}
