//! The protocol between containerd and its shims: the messages of containerd 2.3, written by hand as `prost` structs,
//! and compatible on the wire with the `.proto` files that each module names.
//!
//! - [`bootstrap`]: how a shim is started (stdin and stdout of `shim start`).
//! - [`task`]: `containerd.task.v2.Task` and `containerd.task.v3.Task`, which share their messages.
//! - [`events`]: the events that a shim publishes, and the call by which it does.
//! - [`cgroups`]: the answer to `Stats`.
//! - [`runc`]: options of runc and compatible runtimes.
//! - [`sandbox`]: `containerd.runtime.sandbox.v1.Sandbox`, for shims that run sandboxes.
//! - [`introspection`]: the answer to `shim -info`.
//! - [`attach`]: `hoist.shim.v1.Attach`, a service of our own.
//! - [`types`]: messages that several services share.
//!
//! Nothing here may depend on tonic: a shim stays in memory once for each container.

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

/// Packs a message as containerd's `typeurl` does: its type URL is the bare full name, without a host.
pub fn pack<M: Message + TypeUrl>(message: &M) -> Any {
    Any { type_url: M::TYPE_URL.to_owned(), value: message.encode_to_vec() }
}

/// Whether `any` holds an `M`. The type URL may have a host, none, or only the slash behind it.
pub fn holds<M: TypeUrl>(any: &Any) -> bool {
    any.type_url.rsplit('/').next() == Some(M::TYPE_URL)
}

/// Unpacks an `M`. `None` if `any` holds another type.
pub fn unpack<M: Message + TypeUrl + Default>(any: &Any) -> Option<Result<M, prost::DecodeError>> {
    holds::<M>(any).then(|| M::decode(any.value.as_slice()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn type_urls_are_known_with_any_host_and_without() {
        let exit = events::TaskExit { pid: 7, ..Default::default() };
        let bare = pack(&exit);
        assert_eq!(bare.type_url, "containerd.events.TaskExit");
        for host in ["", "/", "type.googleapis.com/", "types.containerd.io/"] {
            let any = Any { type_url: format!("{host}{}", bare.type_url), ..bare.clone() };
            assert_eq!(unpack::<events::TaskExit>(&any), Some(Ok(exit.clone())), "{host}");
            assert_eq!(unpack::<events::TaskStart>(&any), None, "{host}");
        }
    }
}
