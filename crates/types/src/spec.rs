//! OCI documents: those of images ([`image`]), the configuration of containers ([`runtime`]), and its common defaults
//! ([`defaults`]).

pub mod defaults;
pub mod image;
pub mod runtime;

use serde::{Deserialize, Deserializer};

/// Reads `null` as an absent field. Go programs write `null` for nil slices and maps, and read it so for fields of any
/// type (package `encoding/json`, `Unmarshal`).
pub(crate) fn null_as_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Option::<T>::deserialize(deserializer).map(Option::unwrap_or_default)
}
