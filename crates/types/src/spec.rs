//! The OCI documents: what images say of themselves ([`image`]) and what containers are told to be
//! ([`runtime`]), and what all of them are told ([`defaults`]).

pub mod defaults;
pub mod image;
pub mod runtime;

use serde::{Deserialize, Deserializer};

/// Reads `null` as a field that is left out. Programs in Go write it for lists and maps that they have not made, and
/// read it so for fields of any kind (package `encoding/json`, `Unmarshal`).
pub(crate) fn null_as_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Option::<T>::deserialize(deserializer).map(Option::unwrap_or_default)
}
