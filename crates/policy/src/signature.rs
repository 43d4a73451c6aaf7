//! Signatures that cosign makes with a key: a small JSON document (the payload) names the signed image, and a
//! signature covers its bytes (cosign's `SIGNATURE_SPEC.md`, "simple signing").
//!
//! ```text
//! tag sha256-HEX.sig, or referrer ─▶ manifest ─▶ per layer: blob = payload, annotation = signature in base64
//! ```

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use types::{Digest, Error, Reference, Result};

use crate::{PublicKey, place};

/// The media type of a payload, which is a layer of the signatures' manifest.
pub const PAYLOAD_TYPE: &str = "application/vnd.dev.cosign.simplesigning.v1+json";
/// The annotation of that layer that holds the signature.
pub const SIGNATURE_ANNOTATION: &str = "dev.cosignproject.cosign/signature";
/// The artifact type of a signature manifest that is a referrer.
pub const SIGNATURE_ARTIFACT_TYPE: &str = "application/vnd.dev.cosign.artifact.sig.v1+json";
/// Bytes of a payload at most.
pub const PAYLOAD_LEN_MAX: u64 = 64 << 10;

/// Bytes of a base64 signature at most. One of P-256 in DER is at most 72 bytes.
const SIGNATURE_LEN_MAX: usize = 1024;
/// Accepted `type` fields: cosign's, and that of the older atomic simple signing.
const KINDS: [&str; 2] = ["cosign container image signature", "atomic container signature"];

/// The image that a payload names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SignedImage {
    /// Canonical, with registry, without tag and digest.
    pub repository: String,
    pub digest: Digest,
}

#[derive(Deserialize)]
struct Payload {
    critical: Critical,
}

#[derive(Deserialize)]
struct Critical {
    identity: Identity,
    image: Image,
    #[serde(rename = "type")]
    kind: String,
}

#[derive(Deserialize)]
struct Identity {
    #[serde(rename = "docker-reference")]
    reference: String,
}

#[derive(Deserialize)]
struct Image {
    #[serde(rename = "docker-manifest-digest")]
    digest: String,
}

/// The tag of an image's signatures in its repository.
pub fn tag_of_signatures(image: &Digest) -> String {
    format!("{}-{}.sig", image.algorithm().name(), image.hex())
}

/// Checks that one of the keys signed this payload, and that the payload names this image. `PermissionDenied`
/// otherwise.
pub fn check(
    payload: &[u8],
    signature: &str,
    keys: &[PublicKey],
    repository: &str,
    image: &Digest,
) -> Result<()> {
    let denied = |why: String| Error::permission_denied(why);
    if payload.len() as u64 > PAYLOAD_LEN_MAX || signature.len() > SIGNATURE_LEN_MAX {
        return Err(denied("a signature is too large".into()));
    }
    let signature = STANDARD
        .decode(signature.trim())
        .map_err(|error| denied("a signature is not in base64".into()).with_source(error))?;
    // Verified before parsing: until then the payload is untrusted.
    if !keys.iter().any(|key| key.verifies(payload, &signature)) {
        return Err(denied("a signature is by none of the keys".into()));
    }
    let signed = parse_payload(payload)?;
    if signed.digest != *image {
        return Err(denied(format!("a signature is of {}, which is another image", signed.digest)));
    }
    if signed.repository != repository {
        return Err(denied(format!(
            "a signature is of an image in {}, not in {repository}",
            signed.repository
        )));
    }
    Ok(())
}

/// Parses a payload. `PermissionDenied` if it is malformed.
pub fn parse_payload(bytes: &[u8]) -> Result<SignedImage> {
    let broken = |why: &str| Error::permission_denied(format!("a signed payload cannot be used: {why}"));
    if bytes.len() as u64 > PAYLOAD_LEN_MAX {
        return Err(broken("it is too large"));
    }
    let Payload { critical } =
        serde_json::from_slice(bytes).map_err(|error| broken("it is no such document").with_source(error))?;
    if !KINDS.contains(&critical.kind.as_str()) {
        return Err(broken(&format!("its type is {:?}", critical.kind)));
    }
    let reference: Reference = critical
        .identity
        .reference
        .parse()
        .map_err(|error| broken("it names no repository").with_source(error))?;
    let digest: Digest =
        critical.image.digest.parse().map_err(|error| broken("it names no digest").with_source(error))?;
    Ok(SignedImage { repository: place::of(&reference), digest })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_repository_is_known_however_the_payload_writes_it() {
        let image = Digest::of(b"image");
        for (written, expected) in [
            ("index.docker.io/team/app", "docker.io/team/app"),
            ("index.docker.io/library/redis:7", "docker.io/library/redis"),
            ("redis", "docker.io/library/redis"),
            ("quay.io:443/team/app", "quay.io/team/app"),
            ("QUAY.IO/team/app", "quay.io/team/app"),
            ("quay.io:444/team/app", "quay.io:444/team/app"),
        ] {
            let payload = serde_json::json!({"critical": {
                "identity": {"docker-reference": written},
                "image": {"docker-manifest-digest": image.to_string()},
                "type": KINDS[0],
            }});
            let signed = parse_payload(payload.to_string().as_bytes()).unwrap();
            assert_eq!(
                signed,
                SignedImage { repository: expected.into(), digest: image.clone() },
                "{written}"
            );
        }
    }
}
