//! Container names and ids. A name belongs to one container; an id may be abbreviated to any unique prefix.

use metadata::Container;
use types::filter::Filters;
use types::{ContainerId, Error, Result};

use crate::Engine;
use crate::record::Extension;

const ADJECTIVES: [&str; 32] = [
    "able", "bold", "brave", "bright", "calm", "clever", "cosmic", "curious", "eager", "early", "fair",
    "gentle", "grand", "happy", "humble", "jolly", "keen", "kind", "lively", "lucky", "mellow", "merry",
    "noble", "patient", "proud", "quick", "quiet", "sharp", "steady", "swift", "warm", "wise",
];
const NOUNS: [&str; 32] = [
    "anchor", "barge", "beacon", "boom", "bridge", "cable", "capstan", "chain", "cleat", "crane", "davit",
    "derrick", "dock", "ferry", "gantry", "harbor", "hook", "jib", "keel", "lever", "mast", "pier", "pulley",
    "quay", "rigger", "rope", "sail", "sheave", "sling", "spar", "tackle", "winch",
];

impl Engine {
    pub(crate) fn take_names(&self) -> Result<()> {
        for container in self.all()? {
            // Containers of other clients have no name here.
            if let Ok(extension) = Extension::of(&container) {
                self.0.names.lock().insert(extension.name, container.id.to_string());
            }
        }
        Ok(())
    }

    /// Reserves a name, or generates one. `AlreadyExists` names the container that has it.
    pub(crate) fn reserve_name(&self, wanted: Option<&str>, id: &str) -> Result<String> {
        if let Some(name) = wanted {
            let name = name.trim_start_matches('/');
            let rule = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte));
            if !rule || name.len() < 2 || !name.as_bytes()[0].is_ascii_alphanumeric() {
                return Err(Error::invalid_argument(format!(
                    "invalid container name ({name}): only [a-zA-Z0-9][a-zA-Z0-9_.-]+ are allowed"
                )));
            }
            let mut names = self.0.names.lock();
            if let Some(owner) = names.get(name) {
                return Err(Error::already_exists(format!(
                    "the container name {name:?} is already in use by container {owner}; remove or rename that one to use the name"
                )));
            }
            names.insert(name.to_owned(), id.to_owned());
            return Ok(name.to_owned());
        }
        loop {
            let random = u32::from_str_radix(&linux::random::hex(4)?, 16).expect("hex digits") as usize;
            let name = format!("{}_{}", ADJECTIVES[random % 32], NOUNS[random / 32 % 32]);
            let name = if self.is_taken(&name) { format!("{name}_{}", linux::random::hex(2)?) } else { name };
            match self.reserve_name(Some(&name), id) {
                Err(error) if error.is(types::ErrorKind::AlreadyExists) => {}
                other => return other,
            }
        }
    }

    /// Renames a container in its record and releases the old name, which is returned.
    pub(crate) fn rename_record(&self, id: &ContainerId, name: &str) -> Result<String> {
        let before = Extension::of(&self.parts().metadata.containers(&self.0.caller).get(id)?)?.name;
        if before == name {
            return Err(Error::invalid_argument(format!("container {name} has this name already")));
        }
        let name = self.reserve_name(Some(name), id.as_str())?;
        let changed = self.change(id, |extension| extension.name.clone_from(&name));
        self.release_name(if changed.is_ok() { &before } else { &name }, id.as_str());
        match changed {
            Ok(_) => Ok(before),
            Err(error) => Err(error.context(format!("rename container {before}"))),
        }
    }

    fn is_taken(&self, name: &str) -> bool {
        self.0.names.lock().contains_key(name)
    }

    /// Releases a name, unless another container has taken it: deleting a record through the API releases all its
    /// names.
    pub(crate) fn release_name(&self, name: &str, id: &str) {
        let mut names = self.0.names.lock();
        if names.get(name).is_some_and(|owner| owner == id) {
            names.remove(name);
        }
    }

    /// Releases all names of a container whose record is gone.
    pub(crate) fn release_names_of(&self, id: &ContainerId) {
        let mut names = self.0.names.lock();
        names.retain(|_, owner| owner != id.as_str());
    }

    pub(crate) fn is_named(&self, id: &ContainerId) -> bool {
        let names = self.0.names.lock();
        names.values().any(|owner| owner == id.as_str())
    }

    pub(crate) fn all(&self) -> Result<Vec<Container>> {
        self.parts().metadata.containers(&self.0.caller).list(&Filters::all())
    }

    /// Finds a container by name, id or unique prefix of an id.
    pub(crate) fn find(&self, text: &str) -> Result<Container> {
        let containers = self.parts().metadata.containers(&self.0.caller);
        let name = text.trim_start_matches('/');
        if name.is_empty() {
            let why = format!("invalid container name {text:?}: it is empty");
            return Err(Error::invalid_argument(why));
        }
        let named = self.0.names.lock().get(name).cloned();
        if let Some(id) = named {
            return containers.get(&ContainerId::new(id)?);
        }
        let fitting: Vec<ContainerId> =
            containers.ids()?.into_iter().filter(|id| id.as_str().starts_with(name)).collect();
        match &fitting[..] {
            [id] => containers.get(id),
            [] => Err(Error::not_found(format!("No such container: {text}"))),
            _ => {
                let ids: Vec<&str> = fitting.iter().map(short).collect();
                Err(Error::invalid_argument(format!(
                    "{text} is the beginning of several ids: {}",
                    ids.join(", ")
                )))
            }
        }
    }

    /// As [`Engine::find`], only for the engine's containers; also returns the extension.
    pub(crate) async fn find_own(&self, text: &str) -> Result<(Container, Extension)> {
        let text = text.to_owned();
        self.blocking(move |engine| {
            let container = engine.find(&text)?;
            let extension = Extension::of(&container)?;
            Ok((container, extension))
        })
        .await
    }
}

/// An id in its abbreviated form. Ids of other clients may be shorter than that.
pub(crate) fn short(id: &ContainerId) -> &str {
    id.as_str().get(..12).unwrap_or(id.as_str())
}
