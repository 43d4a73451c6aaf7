//! Which images may come in: rules by repository, signatures by public keys, and programs of others that are
//! asked.
//!
//! ```text
//! name, digest ─▶ Policy: accept · reject · signed ─▶ Payload + signature ─▶ PublicKey
//!              └▶ Verifiers: programs in a directory, each says yes or no
//! ```
//!
//! Nothing here fetches anything: whoever asks brings the signatures that there are. Every byte of them is
//! hostile, so limits stand beside the parsers.
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
