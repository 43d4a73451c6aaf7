//! The OCI documents: what images say of themselves ([`image`]) and what containers are told to be
//! ([`runtime`]).

pub mod image;
pub mod runtime;
