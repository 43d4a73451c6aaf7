//! Who somebody is to a registry.

use std::collections::BTreeMap;
use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

/// What a registry, or the server of its tokens, knows somebody by.
#[derive(Clone, PartialEq, Eq, Hash)]
pub enum Credentials {
    Password {
        user: String,
        password: String,
    },
    /// Exchanged for tokens by the OAuth protocol; it is itself never shown to the registry.
    IdentityToken(String),
    /// Shown to the registry as it is.
    RegistryToken(String),
}

/// Credentials by host, as hosts stand in references; a mirror's are its own.
pub type Keyring = BTreeMap<String, Credentials>;

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Credentials::Password { user, .. } => write!(f, "Password({user})"),
            Credentials::IdentityToken(_) => f.write_str("IdentityToken"),
            Credentials::RegistryToken(_) => f.write_str("RegistryToken"),
        }
    }
}

impl Credentials {
    /// The header of a name and a password, for those who have them.
    pub(crate) fn basic(&self) -> Option<String> {
        let Credentials::Password { user, password } = self else { return None };
        Some(format!("Basic {}", STANDARD.encode(format!("{user}:{password}"))))
    }
}
