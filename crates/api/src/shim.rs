//! What containerd and its shims say to each other: the messages of containerd 2.3, written by hand
//! as `prost` structs, byte for byte compatible with the `.proto` files named in each module.
//!
//! - [`bootstrap`]: how a shim is started (stdin and stdout of `shim start`).
//! - [`task`]: `containerd.task.v2.Task` and `containerd.task.v3.Task`, which share their messages.
//! - [`events`]: what a shim publishes, and the call it publishes with.
//! - [`cgroups`]: what `Stats` answers.
//! - [`runc`]: options of the runc-style runtimes.
//! - [`sandbox`]: `containerd.runtime.sandbox.v1.Sandbox`, of shims that run sandboxes.
//! - [`introspection`]: what `shim -info` answers.
//! - [`attach`]: `hoist.shim.v1.Attach`, which is ours.
//! - [`types`]: what several of them share.
//!
//! Nothing here may need tonic: a shim stays in memory once per container.

pub mod attach;
pub mod bootstrap;
pub mod cgroups;
pub mod events;
pub mod introspection;
pub mod runc;
pub mod sandbox;
pub mod task;
pub mod types;

use prost::Message;
use prost_types::Any;
use types::TypeUrl;

/// Packs a message as containerd's `typeurl` does: the bare full name, without a host before it.
pub fn pack<M: Message + TypeUrl>(message: &M) -> Any {
    Any { type_url: M::TYPE_URL.to_owned(), value: message.encode_to_vec() }
}

/// Whether `any` holds an `M`. Both spellings of the type URL occur in the field.
pub fn holds<M: TypeUrl>(any: &Any) -> bool {
    any.type_url.rsplit_once("type.googleapis.com/").map_or(any.type_url.as_str(), |(_, name)| name)
        == M::TYPE_URL
}

/// Unpacks an `M`, or says `None` where `any` holds something else.
pub fn unpack<M: Message + TypeUrl + Default>(any: &Any) -> Option<Result<M, prost::DecodeError>> {
    holds::<M>(any).then(|| M::decode(any.value.as_slice()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_spellings_of_a_type_url_are_known() {
        let exit = events::TaskExit { pid: 7, ..Default::default() };
        let mut any = pack(&exit);
        assert_eq!(any.type_url, "containerd.events.TaskExit");
        assert_eq!(unpack::<events::TaskExit>(&any), Some(Ok(exit.clone())));
        any.type_url = format!("type.googleapis.com/{}", any.type_url);
        assert_eq!(unpack::<events::TaskExit>(&any), Some(Ok(exit)));
        assert_eq!(unpack::<events::TaskStart>(&any), None);
    }
}
