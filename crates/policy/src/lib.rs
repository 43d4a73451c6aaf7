//! Admission of images: rules by repository, signatures by public keys, and external verifier programs.
//!
//! ```text
//! name, digest ─▶ Policy: accept · reject · signed ─▶ Payload + signature ─▶ PublicKey
//!              └▶ Verifiers: programs in a directory, each accepts or rejects
//! ```
//!
//! Nothing here does network IO: the caller fetches the signatures. Their bytes are untrusted, so each parser states
//! its limits.
#![forbid(unsafe_code)]

mod key;
mod place;
mod reader;
mod rules;
mod signature;
mod verifiers;

pub use key::PublicKey;
pub use reader::Reader;
pub use rules::{Action, Policy, Rule, Verdict};
pub use signature::{
    PAYLOAD_LEN_MAX, PAYLOAD_TYPE, SIGNATURE_ANNOTATION, SIGNATURE_ARTIFACT_TYPE, SignedImage, check,
    parse_payload, tag_of_signatures,
};
pub use verifiers::Verifiers;
