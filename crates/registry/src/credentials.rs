//! Credentials for registries.

use std::collections::BTreeMap;
use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

/// Credentials for a registry, or for its token server.
#[derive(Clone, PartialEq, Eq, Hash)]
pub enum Credentials {
    Password {
        user: String,
        password: String,
    },
    /// Exchanged for tokens by OAuth 2.0 (`refresh_token`); never sent to the registry itself.
    IdentityToken(String),
    /// Sent to the registry as a bearer token.
    RegistryToken(String),
}

/// Credentials by host name as in references; a mirror has its own.
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
    /// The `Authorization` header for Basic, if these are a name and password.
    pub(crate) fn basic(&self) -> Option<String> {
        let Credentials::Password { user, password } = self else { return None };
        Some(format!("Basic {}", STANDARD.encode(format!("{user}:{password}"))))
    }
}
