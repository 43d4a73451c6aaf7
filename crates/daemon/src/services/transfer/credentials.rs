//! Credentials from the client of a transfer, requested on a stream that it opened for that.
//!
//! ```text
//! host ─ 401 ─▶ request (host, reference, challenge) ─▶ client
//!   once per host ◀─ none │ user and password │ identity token │ header
//! ```

use std::sync::Arc;

use api::grpc::transfer::{AuthRequest, AuthResponse, AuthType};
use api::shim::pack;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use linux::pipe::SILENCE_MAX;
use registry::{CredentialRequest, CredentialSource, Credentials};
use tokio::sync::Mutex;
use tokio::time::timeout;
use types::{Error, ErrorKind, Result};

use super::read;
use crate::streams::Channel;

/// A source of credentials that asks the client at the other end of the stream.
pub(super) fn source(stream: Channel, reference: String) -> CredentialSource {
    let conversation = Arc::new(Mutex::new(Conversation { stream, reference, unanswered: 0 }));
    CredentialSource::new(move |question| {
        let conversation = conversation.clone();
        async move {
            let host = question.host.clone();
            // One request at a time, because responses do not tell which request they answer.
            let mut conversation = conversation.lock().await;
            let asked = timeout(SILENCE_MAX, conversation.ask(question)).await;
            let answer = asked.map_err(|_| Error::cancelled("nothing came")).and_then(|answer| answer);
            answer.map_err(|error| {
                let kind = match error.kind() {
                    // The client is unavailable, not the host.
                    ErrorKind::Unavailable => ErrorKind::Cancelled,
                    kind => kind,
                };
                Error::new(kind, format!("ask the client for credentials for {host}")).with_source(error)
            })
        }
    })
}

struct Conversation {
    stream: Channel,
    reference: String,
    /// Requests whose caller did not wait for the response.
    unanswered: u32,
}

impl Conversation {
    async fn ask(
        &mut self,
        CredentialRequest { host, challenges }: CredentialRequest,
    ) -> Result<Option<Credentials>> {
        // Skip responses to earlier requests: credentials for one host must not be sent to another.
        while self.unanswered > 0 {
            self.stream.receive().await?;
            self.unanswered -= 1;
        }
        let reference = self.reference.clone();
        let question = AuthRequest { host, reference, wwwauthenticate: challenges };
        self.stream.send(pack(&question)).await?;
        self.unanswered = 1;
        let answer = self.stream.receive().await?;
        self.unanswered = 0;
        match answer {
            Some(answer) => credentials(read(&answer)?),
            None => Ok(None),
        }
    }
}

/// Converts a response. Without a secret there are no credentials, whatever the type: containerd's clients send an
/// empty `REFRESH` in that case.
fn credentials(answer: AuthResponse) -> Result<Option<Credentials>> {
    let AuthResponse { auth_type, secret, username, .. } = answer;
    let kind = AuthType::try_from(auth_type)
        .map_err(|_| Error::invalid_argument(format!("credentials of kind {auth_type}")))?;
    if kind == AuthType::None || secret.is_empty() {
        return Ok(None);
    }
    match kind {
        AuthType::Credentials if !username.is_empty() => {
            Ok(Some(Credentials::Password { user: username, password: secret }))
        }
        // As in containerd, a secret without a user is an identity token.
        AuthType::Credentials | AuthType::Refresh => Ok(Some(Credentials::IdentityToken(secret))),
        AuthType::Header => header(&secret).map(Some),
        AuthType::None => Ok(None),
    }
}

/// Parses the value of an `Authorization` header.
fn header(value: &str) -> Result<Credentials> {
    let (scheme, rest) = value.split_once(' ').unwrap_or((value, ""));
    let rest = rest.trim();
    if scheme.eq_ignore_ascii_case("bearer") && !rest.is_empty() {
        return Ok(Credentials::RegistryToken(rest.to_owned()));
    }
    if scheme.eq_ignore_ascii_case("basic") {
        return basic(rest).ok_or_else(|| Error::invalid_argument("a Basic header that cannot be read"));
    }
    Err(Error::unimplemented("only headers of the schemes Basic and Bearer are supported"))
}

/// Decodes `user:password` (RFC 7617).
fn basic(pair: &str) -> Option<Credentials> {
    let text = String::from_utf8(STANDARD.decode(pair).ok()?).ok()?;
    let (user, password) = text.split_once(':')?;
    Some(Credentials::Password { user: user.to_owned(), password: password.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_type_of_auth_response_is_converted() {
        let check = |kind: AuthType,
                     username: &str,
                     secret: &str,
                     expected: Result<Option<Credentials>, ErrorKind>| {
            let answer = AuthResponse {
                auth_type: kind.into(),
                secret: secret.into(),
                username: username.into(),
                expire_at: None,
            };
            let said = credentials(answer).map_err(|error| error.kind());
            assert_eq!(said, expected, "{kind:?} {username:?} {secret:?}");
        };
        let password = || Ok(Some(Credentials::Password { user: "u".into(), password: "p:q".into() }));
        let exchanged = || Ok(Some(Credentials::IdentityToken("t".into())));
        check(AuthType::None, "", "", Ok(None));
        check(AuthType::None, "u", "p", Ok(None));
        check(AuthType::Credentials, "u", "p:q", password());
        check(AuthType::Credentials, "", "t", exchanged());
        check(AuthType::Credentials, "u", "", Ok(None));
        check(AuthType::Refresh, "", "t", exchanged());
        check(AuthType::Refresh, "", "", Ok(None));
        check(AuthType::Header, "", "Bearer t", Ok(Some(Credentials::RegistryToken("t".into()))));
        check(AuthType::Header, "", "Basic dTpwOnE=", password());
        check(AuthType::Header, "", "basic  dTpwOnE= ", password());
        check(AuthType::Header, "", "", Ok(None));
        for broken in ["Basic", "Basic %", "Basic dQ=="] {
            check(AuthType::Header, "", broken, Err(ErrorKind::InvalidArgument));
        }
        for unknown in ["Bearer", "Negotiate x", "t"] {
            check(AuthType::Header, "", unknown, Err(ErrorKind::Unimplemented));
        }
        let strange = AuthResponse { auth_type: 9, secret: "t".into(), ..AuthResponse::default() };
        assert_eq!(credentials(strange).unwrap_err().kind(), ErrorKind::InvalidArgument);
    }
}
