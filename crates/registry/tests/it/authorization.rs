//! Tokens: requested by GET and by form, with the needed scopes, reused until they expire, and sent to no other host.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use http::Method;
use registry::{
    Body, CallerOptions, Capability, CredentialRequest, CredentialSource, Credentials, Keyring, Remote,
    Request,
};
use types::{ErrorKind, Reference, Result};

use crate::hosts::Configured;
use crate::server::{Reply, Seen, Server};
use crate::{BASIC, user};

const MANIFEST: &str = r#"{"schemaVersion":2}"#;

/// A registry that issues tokens by `give`, accepts only the latest, and challenges with `scope`.
fn registry(scope: &'static str, give: impl Fn(&Seen) -> Reply + Send + Sync + 'static) -> Server {
    let given = AtomicUsize::new(0);
    Server::start(move |request, _| {
        if request.path.starts_with("/token") {
            given.fetch_add(1, Ordering::SeqCst);
            return give(request);
        }
        let number = given.load(Ordering::SeqCst);
        match request.header("authorization") {
            Some(header) if number > 0 && header.starts_with("Bearer ") => Reply::new(200, MANIFEST),
            _ => {
                let realm = format!("http://{}/token", request.header("host").unwrap());
                let header = format!(r#"Bearer realm="{realm}",service="here",scope="{scope}""#);
                Reply::new(401, "").header("WWW-Authenticate", header)
            }
        }
    })
}

fn remote(server: &Server, credentials: Option<Credentials>) -> Remote {
    let configured = Configured::new(&format!("server = \"http://{}\"", server.host()));
    let credentials = credentials.map(|credentials| ("r.test".to_owned(), credentials));
    configured.remote_as(&Keyring::from_iter(credentials))
}

fn asked_for_tokens(server: &Server) -> Vec<Seen> {
    server.seen().iter().filter(|seen| seen.path.starts_with("/token")).cloned().collect()
}

#[tokio::test]
async fn anonymous_clients_get_a_token_too() {
    let server = registry("", |request| {
        assert_eq!(request.header("authorization"), None);
        Reply::new(200, r#"{"access_token":"t"}"#)
    });
    remote(&server, None).resolve().await.unwrap();
    assert_eq!(asked_for_tokens(&server)[0].path, "/token?service=here&scope=repository:some/image:pull");
}

#[tokio::test]
async fn an_identity_token_is_posted_to_its_realm_only() {
    let server = registry("", |request| {
        assert_eq!((request.method.as_str(), request.header("authorization")), ("POST", None));
        assert_eq!(request.header("content-type"), Some("application/x-www-form-urlencoded"));
        Reply::new(200, r#"{"access_token":"t"}"#)
    });
    remote(&server, Some(Credentials::IdentityToken("id en".into()))).resolve().await.unwrap();
    let asked = asked_for_tokens(&server);
    let body = String::from_utf8(asked[0].body.clone()).unwrap();
    assert_eq!(
        body,
        "grant_type=refresh_token&refresh_token=id%20en&client_id=hoist&service=here&scope=repository:some/image:pull"
    );
    assert!(server.seen().iter().all(|seen| seen.header("authorization").is_none_or(|it| it == "Bearer t")));
}

#[tokio::test]
async fn a_password_is_posted_where_get_is_not_known() {
    let server = registry("", |request| match request.method.as_str() {
        "GET" => Reply::new(405, ""),
        _ => Reply::new(200, r#"{"access_token":"t"}"#),
    });
    remote(&server, Some(user())).resolve().await.unwrap();
    let body = String::from_utf8(asked_for_tokens(&server)[1].body.clone()).unwrap();
    assert!(body.starts_with("grant_type=password&username=u&password=p&"), "{body}");
}

#[tokio::test]
async fn a_registry_token_is_shown_as_it_is() {
    let server = Server::start(|request, _| {
        assert_eq!(request.header("authorization"), Some("Bearer own"));
        Reply::new(200, MANIFEST)
    });
    remote(&server, Some(Credentials::RegistryToken("own".into()))).resolve().await.unwrap();
}

/// A registry that accepts user `u` with password `p`, and then answers by `answer`.
fn closed(answer: fn() -> Reply) -> Server {
    Server::start(move |request, _| match request.header("authorization") {
        Some(BASIC) => answer(),
        _ => Reply::new(401, "").header("WWW-Authenticate", "Basic realm=\"here\""),
    })
}

#[tokio::test]
async fn a_credential_source_is_asked_once_for_each_host_that_challenges() {
    let (open, mirror) = (Server::start(|_, _| Reply::new(404, "")), closed(|| Reply::new(404, "")));
    let own = closed(|| Reply::new(200, MANIFEST));
    let configured = Configured::new(&format!(
        "server = \"http://{}\"\n[host.\"http://{}\"]\n[host.\"http://{}\"]",
        own.host(),
        open.host(),
        mirror.host()
    ));
    let questions = Arc::new(Mutex::new(Vec::new()));
    let ask = |answer: fn() -> Result<Option<Credentials>>| {
        let questions = questions.clone();
        let source = CredentialSource::new(move |question| {
            questions.lock().unwrap().push(question);
            std::future::ready(answer())
        });
        CallerOptions { credential_source: Some(source), ..CallerOptions::default() }
    };
    let asked = || std::mem::take(&mut *questions.lock().unwrap());
    let reference: Reference = "r.test/some/image:1".parse().unwrap();
    let remote_of = |keyring: &Keyring, options| {
        configured.connections.remote_with(&reference, keyring, &options).unwrap()
    };
    let question =
        |of: &Server| CredentialRequest { host: of.host(), challenges: vec!["Basic realm=\"here\"".into()] };

    let remote = remote_of(&Keyring::new(), ask(|| Ok(Some(user()))));
    remote.resolve().await.unwrap();
    assert_eq!(asked(), [question(&mirror), question(&own)], "of the open one nobody is asked");
    remote.resolve().await.unwrap();
    assert_eq!(asked(), [], "what was said once is known");

    // That there are no credentials is remembered, too.
    let nobody = remote_of(&Keyring::new(), ask(|| Ok(None)));
    for _ in 0..2 {
        assert_eq!(nobody.resolve().await.unwrap_err().kind(), ErrorKind::PermissionDenied);
    }
    assert_eq!(asked().len(), 2);

    let known = Keyring::from([("r.test".to_owned(), user())]);
    let away = remote_of(&known, ask(|| Err(types::Error::cancelled("nobody is there"))));
    away.resolve().await.unwrap();
    assert_eq!(
        asked(),
        [question(&mirror)],
        "of what is known nobody is asked; who cannot be asked is passed by"
    );
}

#[tokio::test]
async fn a_token_is_asked_for_with_all_that_a_request_needs() {
    let server = registry("repository:some/image:pull,push", |_| Reply::new(200, r#"{"token":"t"}"#));
    let mut request = Request::new(Method::POST, "blobs/uploads/?mount=x&from=other/image", Capability::Push);
    request.reads.push("other/image".to_owned());
    remote(&server, Some(user())).send(&request).await.unwrap();
    let asked = asked_for_tokens(&server);
    assert_eq!(
        asked[0].path,
        "/token?service=here&scope=repository:other/image:pull&scope=repository:some/image:pull,push&account=u"
    );
    assert_eq!(asked[0].header("authorization"), Some(BASIC));
}

#[tokio::test]
async fn a_token_serves_other_pulls_of_the_same_person_until_it_expires() {
    let server = registry("", |_| Reply::new(200, r#"{"token":"t","expires_in":300}"#));
    let configured = Configured::new(&format!("server = \"http://{}\"", server.host()));
    let one = Keyring::from([("r.test".to_owned(), user())]);
    configured.remote_as(&one).resolve().await.unwrap();
    let later = configured.remote_as(&one);
    later.resolve().await.unwrap();
    assert_eq!(asked_for_tokens(&server).len(), 1);
    let other = Credentials::Password { user: "v".into(), password: "p".into() };
    configured.remote_as(&Keyring::from([("r.test".to_owned(), other)])).resolve().await.unwrap();
    assert_eq!(asked_for_tokens(&server).len(), 2, "another person has another token");
    tokio::time::pause();
    tokio::time::advance(std::time::Duration::from_secs(296)).await;
    tokio::time::resume();
    later.resolve().await.unwrap();
    assert_eq!(asked_for_tokens(&server).len(), 3, "it is renewed before it is refused");
    assert_eq!(server.seen().iter().filter(|seen| seen.header("authorization").is_none()).count(), 3);
}

#[tokio::test]
async fn many_requests_at_once_ask_for_one_token() {
    let server = registry("", |_| Reply::new(200, r#"{"token":"t"}"#));
    let remote = remote(&server, None);
    let mut all = tokio::task::JoinSet::new();
    for _ in 0..8 {
        let remote = remote.clone();
        all.spawn(async move { remote.resolve().await });
    }
    for done in all.join_all().await {
        done.unwrap();
    }
    assert_eq!(asked_for_tokens(&server).len(), 1);
}

#[tokio::test]
async fn a_token_that_is_refused_before_its_time_is_renewed_once() {
    let server = Server::start(|request, before| {
        if request.path.starts_with("/token") {
            return Reply::new(200, format!(r#"{{"token":"t{before}","expires_in":300}}"#));
        }
        // The first token is accepted once.
        match (request.header("authorization"), before) {
            (Some("Bearer t1"), 2) | (Some("Bearer t4"), _) => Reply::new(200, MANIFEST),
            _ => {
                let realm = format!("http://{}/token", request.header("host").unwrap());
                Reply::new(401, "").header("WWW-Authenticate", format!("Bearer realm=\"{realm}\""))
            }
        }
    });
    let remote = remote(&server, None);
    remote.resolve().await.unwrap();
    remote.resolve().await.unwrap();
    assert_eq!(asked_for_tokens(&server).len(), 2);
}

#[tokio::test]
async fn a_refusal_names_the_host_to_log_in_to() {
    let server = registry("", |_| {
        Reply::new(401, r#"{"errors":[{"code":"UNAUTHORIZED","message":"incorrect password"}]}"#)
    });
    let error = remote(&server, Some(user())).resolve().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unauthenticated);
    for words in
        ["/token gives no token for r.test/some/image as u", "incorrect password", "hoist login r.test"]
    {
        assert!(error.chain().contains(words), "{:?} has no {words:?}", error.chain());
    }
    // A wrong password is not sent twice.
    let basic = Server::start(|_, _| Reply::new(401, "").header("WWW-Authenticate", "Basic"));
    let remote = remote(&basic, Some(user()));
    for sent in [2, 3] {
        let error = remote.resolve().await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::PermissionDenied);
        assert_eq!(basic.seen().len(), sent);
    }
}

#[tokio::test]
async fn a_mirror_gets_its_own_credentials_and_not_the_registrys() {
    let mirror = Server::start(|request, _| {
        assert!(request.header("authorization").is_none_or(|header| header == "Basic bTpt"), "m:m");
        Reply::new(401, "").header("WWW-Authenticate", "Basic")
    });
    let own = Server::start(|request, _| match request.header("authorization") {
        Some(BASIC) => Reply::new(200, MANIFEST),
        _ => Reply::new(401, "").header("WWW-Authenticate", "Basic"),
    });
    let configured =
        Configured::new(&format!("server = \"http://{}\"\n[host.\"http://{}\"]", own.host(), mirror.host()));
    // The registry is on another address, and its credentials are under its name.
    let mut keyring = Keyring::from([(own.host(), user())]);
    configured.remote_as(&keyring).resolve().await.unwrap();
    assert_eq!(mirror.seen().len(), 1);
    let own = Credentials::Password { user: "m".into(), password: "m".into() };
    keyring.insert(mirror.host(), own);
    configured.remote_as(&keyring).resolve().await.unwrap();
    assert_eq!(mirror.seen().len(), 3);
}

#[tokio::test]
async fn a_login_is_checked_with_the_registry_itself() {
    let server = Server::start(|request, _| {
        assert_eq!(request.path, "/v2/");
        match request.header("authorization") {
            Some(BASIC) => Reply::new(200, "{}"),
            _ => Reply::new(401, "").header("WWW-Authenticate", "Basic"),
        }
    });
    let host = server.host();
    let connections = registry::Connections::default();
    connections.check_login(&host, user()).await.unwrap();
    let wrong = Credentials::Password { user: "u".into(), password: "q".into() };
    let error = connections.check_login(&host, wrong).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unauthenticated);
    assert!(error.chain().contains("does not take this name and password"), "{}", error.chain());
}

/// A host that challenges for credentials, with a token realm of its own.
fn prying() -> Server {
    Server::start(|request, _| {
        if request.path.starts_with("/token") {
            return Reply::new(200, r#"{"token":"t"}"#);
        }
        let realm = format!("http://{}/token", request.header("host").unwrap());
        Reply::new(401, "").header("WWW-Authenticate", format!(r#"Bearer realm="{realm}",service="theirs""#))
    })
}

#[tokio::test]
async fn a_redirect_target_cannot_ask_for_credentials() {
    let stranger = prying();
    let (target, upload) = (stranger.host(), stranger.host());
    let server = Server::start(move |request, _| match request.path.contains("/manifests/") {
        true => Reply::new(200, MANIFEST),
        false => Reply::new(307, "").header("Location", format!("http://{target}/stored")),
    });
    for credentials in [user(), Credentials::IdentityToken("id".into())] {
        let remote = remote(&server, Some(credentials));
        let location = format!("http://{upload}/upload");
        for request in [
            Request::new(Method::GET, "blobs/sha256:00", Capability::Pull),
            Request::at(Method::PUT, location, Capability::Push).body(Body::Bytes("x".into())),
        ] {
            let error = remote.send(&request).await.err().unwrap();
            assert_eq!(error.kind(), ErrorKind::PermissionDenied);
            let line = error.chain();
            assert!(line.contains(&format!("{upload}, to which r.test led, said 401")), "{line}");
        }
        // Its challenge does not count as the registry's.
        remote.resolve().await.unwrap();
    }
    assert_eq!(asked_for_tokens(&stranger).len(), 0, "{:?}", asked_for_tokens(&stranger));
    let seen = [stranger.seen().clone(), server.seen().clone()].concat();
    assert_eq!(seen.len(), 2 * (2 + 2), "each is asked once: {seen:?}");
    assert!(seen.iter().all(|seen| seen.header("authorization").is_none()), "{seen:?}");
}

#[tokio::test]
async fn a_posted_token_is_not_carried_along_a_redirect() {
    let stranger = prying();
    let target = stranger.host();
    let server =
        registry("", move |_| Reply::new(307, "").header("Location", format!("http://{target}/token")));
    let identity = Credentials::IdentityToken("id".into());
    let error = remote(&server, Some(identity)).resolve().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::PermissionDenied, "{}", error.chain());
    assert!(error.chain().contains(&stranger.host()), "{}", error.chain());
    assert_eq!(stranger.seen().len(), 0, "{:?}", stranger.seen());
}
