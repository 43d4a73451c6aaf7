//! TLS as configured by `certs.d`: authorities, client certificates, and the HTTP version.

use std::fs;

use http::Version;
use types::{ErrorKind, Result};

use crate::hosts::Configured;
use crate::secured::{Authority, Secured, TlsFront};
use crate::server::{Reply, Server};

const H2: &[u8] = b"h2";
const HTTP_1: &[u8] = b"http/1.1";

/// Resolves a name at a server with the TLS options `further`, and `files` beside hosts.toml.
async fn ask(server: &Secured, further: &str, files: impl Fn(&std::path::Path)) -> Result<()> {
    let configured = Configured::new(&format!("server = \"https://{}\"\n{further}", server.host()));
    files(&configured.own());
    configured.remote().resolve().await.map(drop)
}

#[tokio::test]
async fn http_2_is_spoken_where_the_host_can() {
    let authority = Authority::new("ca");
    for (protocols, version) in [
        (&[H2, HTTP_1][..], Version::HTTP_2),
        (&[H2], Version::HTTP_2),
        (&[HTTP_1], Version::HTTP_11),
        (&[], Version::HTTP_11),
    ] {
        let server = Secured::start(&authority, protocols, None).await;
        ask(&server, "ca = \"own.pem\"", |own| drop(authority.write(own.join("own.pem")))).await.unwrap();
        let versions: Vec<Version> = server.spoken().iter().map(|spoken| spoken.version).collect();
        assert_eq!(versions, [version], "{protocols:?}");
    }
}

#[tokio::test]
async fn an_untrusted_certificate_is_refused_without_a_retry() {
    let server = Secured::start(&Authority::new("ca"), &[HTTP_1], None).await;
    let other = Authority::new("other");
    let error = ask(&server, "ca = \"other.pem\"", |own| drop(other.write(own.join("other.pem")))).await;
    let error = error.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::FailedPrecondition);
    let words = format!("nobody known here vouches for the certificate of {}", server.host());
    assert!(error.chain().contains(&words), "{}", error.chain());
    // The error says where to put the authority, also with a hosts.toml, and when system authorities are reloaded.
    let directory = format!("/etc/hoist/certs.d/{}/ca.crt", server.host());
    for words in [directory.as_str(), "ca = \"ca.crt\"", "once the daemon is restarted"] {
        assert!(error.chain().contains(words), "{}", error.chain());
    }
    assert!(server.spoken().is_empty());
}

#[tokio::test]
async fn skip_verify_takes_any_certificate() {
    let server = Secured::start(&Authority::new("ca"), &[HTTP_1], None).await;
    ask(&server, "skip_verify = true", |_| {}).await.unwrap();
    assert_eq!(server.spoken().len(), 1);
}

#[tokio::test]
async fn a_client_shows_the_certificate_that_the_host_accepts() {
    let (authority, ours, theirs) = (Authority::new("ca"), Authority::new("ours"), Authority::new("theirs"));
    let server = Secured::start(&authority, &[H2], Some(&ours)).await;
    let (ca, own_ca) = ("ca = \"ca.pem\"\n", "ca.pem");
    let both = |own: &std::path::Path| {
        authority.write(own.join(own_ca));
        theirs.sign_into(own, "wrong");
        ours.sign_into(own, "right");
        let (certificate, key) = ours.sign("both");
        fs::write(own.join("both.pem"), certificate + &key).unwrap();
    };
    for client in [
        "client = [[\"right.cert\", \"right.key\"]]",
        "client = [[\"wrong.cert\", \"wrong.key\"], [\"right.cert\", \"right.key\"]]",
        "client = \"both.pem\"",
        "client = [\"both.pem\"]",
    ] {
        ask(&server, &format!("{ca}{client}"), both).await.unwrap();
    }
    assert!(server.spoken().iter().all(|spoken| spoken.client.is_some()));
    assert_eq!(server.spoken().len(), 4);

    let server = Secured::start(&authority, &[HTTP_1], Some(&ours)).await;
    for without in ["", "client = [[\"wrong.cert\", \"wrong.key\"]]"] {
        let error = ask(&server, &format!("{ca}{without}"), both).await.unwrap_err();
        let words = format!("{} refuses our TLS", server.host());
        assert!(error.chain().contains(&words), "{without}: {}", error.chain());
    }
    assert!(server.spoken().is_empty());
    let mixed = "client = [[\"right.cert\", \"wrong.key\"]]";
    let configured = Configured::new("");
    both(&configured.own());
    fs::write(configured.own().join("hosts.toml"), mixed).unwrap();
    let reference = "r.test/x".parse().unwrap();
    let error = configured.connections.remote(&reference, &registry::Keyring::new()).err().unwrap();
    assert!(error.chain().contains("do not belong together"), "{}", error.chain());
}

#[tokio::test]
async fn dockers_files_do_without_hosts_toml() {
    let (authority, ours) = (Authority::new("ca"), Authority::new("ours"));
    let server = Secured::start(&authority, &[HTTP_1], Some(&ours)).await;
    let configured = Configured::new("");
    let own = configured.directory.path().join(server.host());
    fs::create_dir(&own).unwrap();
    authority.write(own.join("ca.crt"));
    ours.sign_into(&own, "client");
    let reference = format!("{}/x", server.host()).parse().unwrap();
    let remote = configured.connections.remote(&reference, &registry::Keyring::new()).unwrap();
    remote.resolve().await.unwrap();
    assert!(server.spoken()[0].client.is_some());
}

#[tokio::test]
async fn a_client_is_not_shown_to_a_host_that_a_redirect_leads_to() {
    let (authority, ours) = (Authority::new("ca"), Authority::new("ours"));
    // Both request a certificate; the second must not get ours.
    let elsewhere = Secured::start(&authority, &[HTTP_1], Some(&ours)).await;
    let target = format!("https://{}/stored", elsewhere.host());
    let first = Server::start(move |_, _| Reply::new(307, "").header("Location", target.clone()));
    let configured = Configured::new(&format!(
        "server = \"http://{}\"\nca = \"ca.pem\"\nclient = [[\"right.cert\", \"right.key\"]]",
        first.host()
    ));
    authority.write(configured.own().join("ca.pem"));
    ours.sign_into(&configured.own(), "right");
    configured.remote().resolve().await.unwrap_err();
    assert!(elsewhere.spoken().is_empty());
}

/// CVE-2026-48978: a registry makes the client send the password unencrypted to a URL of the registry's choice, for
/// example inside the client's network.
#[tokio::test]
async fn a_token_is_not_asked_for_outside_of_tls() {
    let inner = Server::start(|_, _| Reply::new(200, r#"{"token":"t"}"#));
    let realm = format!("http://{}/token", inner.host());
    let server = Server::start(move |_, _| {
        Reply::new(401, "").header("WWW-Authenticate", format!(r#"Bearer realm="{realm}",service="theirs""#))
    });
    let authority = Authority::new("ca");
    let front = TlsFront::start(&authority, server.host().parse().unwrap()).await;
    let configured = Configured::new(&format!("server = \"https://{}\"\nca = \"ca.pem\"", front.address));
    authority.write(configured.own().join("ca.pem"));
    let keyring = registry::Keyring::from([("r.test".to_owned(), crate::user())]);
    let error = configured.remote_as(&keyring).resolve().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::PermissionDenied, "{}", error.chain());
    assert!(error.chain().contains("which is not https"), "{}", error.chain());
    assert!(inner.seen().is_empty(), "{:?}", inner.seen());
}

#[tokio::test]
async fn a_host_without_tls_is_told_from_one_that_is_down() {
    let plain = Server::start(|_, _| Reply::new(200, ""));
    let configured = Configured::new(&format!("server = \"https://{}\"", plain.host()));
    let error = configured.remote().resolve().await.unwrap_err();
    // The test's server hangs up on TLS.
    assert!(error.chain().contains(&plain.host()), "{}", error.chain());
}
