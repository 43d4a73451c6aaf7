//! Public keys: ECDSA on P-256, as `cosign generate-key-pair` and `openssl ecparam` make them.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ring::signature::{ECDSA_P256_SHA256_ASN1, UnparsedPublicKey};
use types::{Error, Result};

/// The DER before the point in a `SubjectPublicKeyInfo` of a P-256 key (RFC 5480): algorithm `id-ecPublicKey`, curve
/// `prime256v1`, and a bit string of 65 bytes without unused bits.
const P256_PREFIX: [u8; 26] = [
    0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a, 0x86,
    0x48, 0xce, 0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00,
];
/// An uncompressed point: `04`, x, y (SEC 1, section 2.3.3).
const POINT_LEN: usize = 65;

/// A key that verifies signatures.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublicKey([u8; POINT_LEN]);

impl PublicKey {
    /// Parses `-----BEGIN PUBLIC KEY-----`.
    ///
    /// `InvalidArgument` if the text is not a PEM public key, `Unimplemented` for other kinds of keys.
    pub fn from_pem(text: &str) -> Result<PublicKey> {
        let broken = || Error::invalid_argument("it has no public key in PEM form");
        let (_, rest) = text.split_once("-----BEGIN PUBLIC KEY-----").ok_or_else(broken)?;
        let (body, _) = rest.split_once("-----END PUBLIC KEY-----").ok_or_else(broken)?;
        let body: String = body.split_whitespace().collect();
        let der = STANDARD.decode(body).map_err(|error| broken().with_source(error))?;
        let other = || {
            Error::unimplemented(
                "the key is not one of ECDSA on the curve P-256, the only kind that is known here",
            )
        };
        let point = der.strip_prefix(&P256_PREFIX).ok_or_else(other)?;
        match <[u8; POINT_LEN]>::try_from(point) {
            Ok(point) if point[0] == 4 => Ok(PublicKey(point)),
            _ => Err(other()),
        }
    }

    /// Whether `signature` (ECDSA with SHA-256, in DER) of `message` was made with this key.
    pub fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, &self.0).verify(message, signature).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use types::ErrorKind;

    use super::*;

    #[test]
    fn only_keys_of_the_known_kind_are_read() {
        let good = "-----BEGIN PUBLIC KEY-----\n\
                    MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEaxfR8uEsQkf4vOblY6RA8ncDfYEt\n\
                    6zOg9KE5RdiYwpZP40Li/hp/m47n60p8D54WK84zV2sxXs7LtkBoN79R9Q==\n\
                    -----END PUBLIC KEY-----\n";
        PublicKey::from_pem(good).unwrap();
        for (bad, kind) in [
            ("", ErrorKind::InvalidArgument),
            ("-----BEGIN PUBLIC KEY-----\n!\n-----END PUBLIC KEY-----", ErrorKind::InvalidArgument),
            // Ed25519 (RFC 8410).
            (
                "-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEAGb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE=\n-----END PUBLIC KEY-----",
                ErrorKind::Unimplemented,
            ),
            (&good.replace("7LtkBoN79R9Q==", "7Ltk9R9Q=="), ErrorKind::Unimplemented),
        ] {
            assert_eq!(PublicKey::from_pem(bad).unwrap_err().kind(), kind, "{bad}");
        }
    }
}
