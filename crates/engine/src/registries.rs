//! Calls about registries: which hosts serve an image, how each answers, whether credentials are valid.

use std::collections::BTreeMap;

use api::engine::RegistryCall;
use registry::{AuthScheme, Capability, Credentials, Explained, Host, Keyring, Scheme};
use serde_json::{Value, json};
use types::{Error, Reference, Result};

use crate::Engine;

impl Engine {
    pub(crate) async fn answer_about_registries(&self, call: RegistryCall) -> Result<Value> {
        match call {
            RegistryCall::Logins { registry } => {
                let hosts = self
                    .blocking({
                        let registry = registry.clone();
                        move |engine| engine.parts().connections.hosts(&registry)
                    })
                    .await?;
                Ok(hosts.iter().map(|host| json!(host.login_names(&registry))).collect())
            }
            RegistryCall::CheckLogin { registry, credentials } => {
                let credentials = own_credentials(credentials).ok_or_else(|| {
                    Error::invalid_argument(format!("log in to {registry}: there are no credentials"))
                })?;
                self.parts().connections.check_login(&registry, credentials).await?;
                Ok(Value::Null)
            }
            RegistryCall::Explain { reference, credentials } => {
                let reference: Reference = reference.parse()?;
                let remote = self.remote(&reference, credentials).await?;
                Ok(remote.explain().await.iter().map(explained).collect())
            }
            RegistryCall::Tags { reference, credentials } => {
                let reference: Reference = reference.parse()?;
                let remote = self.remote(&reference, credentials).await?;
                Ok(json!(remote.tags().await?))
            }
        }
    }

    /// A repository, under the current configuration of its registry.
    pub(crate) async fn remote(
        &self,
        reference: &Reference,
        credentials: BTreeMap<String, api::engine::Credentials>,
    ) -> Result<registry::Remote> {
        let reference = reference.clone();
        let keyring = own_keyring(credentials);
        self.blocking(move |engine| engine.parts().connections.remote(&reference, &keyring)).await
    }
}

pub(crate) fn own_keyring(wire: BTreeMap<String, api::engine::Credentials>) -> Keyring {
    wire.into_iter().filter_map(|(host, credentials)| Some((host, own_credentials(credentials)?))).collect()
}

fn own_credentials(wire: api::engine::Credentials) -> Option<Credentials> {
    let api::engine::Credentials { user, password, identity_token, registry_token } = wire;
    if !registry_token.is_empty() {
        return Some(Credentials::RegistryToken(registry_token));
    }
    if !identity_token.is_empty() {
        return Some(Credentials::IdentityToken(identity_token));
    }
    (!user.is_empty()).then_some(Credentials::Password { user, password })
}

/// The JSON of a host's examination. It must not contain secrets: headers and keys are only counted.
fn explained(explained: &Explained) -> Value {
    let host = &explained.host;
    let (digest, status, protocol, error) = match &explained.answer {
        Ok(said) => {
            (said.digest.clone(), Some(said.status.to_string()), Some(format!("{:?}", said.version)), None)
        }
        Err(error) => (None, None, None, Some(error.chain())),
    };
    json!({
        "Name": explained.name,
        "Address": format!("{}{}", explained.origin, host.path),
        "Role": if host.is_mirror { "mirror" } else { "registry" },
        "Capabilities": Capability::ALL
            .into_iter()
            .filter(|capability| host.can(*capability))
            .map(Capability::as_str)
            .collect::<Vec<_>>(),
        "ConfiguredBy": host.source.as_ref().map(|source| source.display().to_string()),
        "Tls": tls(host, explained.origin.starts_with("https://")),
        "Headers": host.headers.len(),
        "Proxy": explained.proxy,
        "DialTimeoutSeconds": host.dial_timeout.as_secs_f64(),
        "Resting": explained.is_resting,
        "Auth": match &explained.wants {
            None => "none".to_owned(),
            Some(AuthScheme::Basic) => "basic".to_owned(),
            Some(AuthScheme::Bearer(realm)) => format!("token from {realm}"),
        },
        "Protocol": protocol,
        "Status": status,
        "Digest": digest,
        "Error": error,
    })
}

fn tls(host: &Host, is_spoken: bool) -> String {
    if !is_spoken {
        return match host.scheme {
            Scheme::Either => "none (not answered)".into(),
            _ => "none".into(),
        };
    }
    let (authorities, clients) = (host.tls.authorities(), host.tls.clients());
    let mut words = match (host.tls.is_verified(), authorities.is_empty()) {
        (false, _) => "not verified".to_owned(),
        (true, true) => "verified by system".to_owned(),
        (true, false) => format!("verified by system and {}", authorities.join(", ")),
    };
    if !clients.is_empty() {
        words.push_str(&format!("; client {}", clients.join(", ")));
    }
    words
}
