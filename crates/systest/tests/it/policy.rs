//! Image policy and verifiers: no way of bringing an image in passes by them.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;

use api::grpc::images::images_client::ImagesClient;
use api::grpc::images::{CreateImageRequest, Image, ListImagesRequest};
use api::grpc::transfer::transfer_client::TransferClient;
use api::grpc::transfer::{ImageReference, ImageStore, OciRegistry, RegistryResolver, TransferRequest};
use api::grpc::types::Descriptor;
use api::shim::pack;
use serde_json::{Value, json};
use tempfile::TempDir;
use testkit::{Daemon, Fault, FaultProxy, Registry, SilentDisk, images, is_root, run};
use tokio::task::JoinSet;
use tonic::Code;
use types::Digest;

use crate::typed::{self, on};

const PAYLOAD_TYPE: &str = "application/vnd.dev.cosign.simplesigning.v1+json";
const MANIFEST_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";

/// A request to a registry without TLS. Returns where a blob is to be uploaded, if it says so.
fn ask(registry: &Registry, method: &str, path: &str, kind: &str, body: &[u8]) -> Option<String> {
    let mut stream = TcpStream::connect(registry.address()).expect("the registry listens");
    let head = format!(
        "{method} {path} HTTP/1.1\r\nHost: {}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        registry.host(),
        body.len(),
    );
    stream.write_all(&[head.as_bytes(), body].concat()).expect("the registry listens");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("the registry answers");
    assert!(answer.starts_with("HTTP/1.1 20"), "{method} {path}\n{answer}");
    let location = answer.lines().find_map(|line| line.strip_prefix("Location: "))?;
    Some(location.trim().split_once("/v2/").map_or_else(String::new, |(_, rest)| format!("/v2/{rest}")))
}

fn put_blob(registry: &Registry, repository: &str, bytes: &[u8]) -> Value {
    let begun = ask(registry, "POST", &format!("/v2/{repository}/blobs/uploads/"), "text/plain", b"");
    let place = begun.expect("a place to upload to");
    let digest = Digest::of(bytes).to_string();
    ask(registry, "PUT", &format!("{place}&digest={digest}"), "application/octet-stream", bytes);
    json!({"digest": digest, "size": bytes.len()})
}

/// A pair of keys, made by openssl.
struct Signer(TempDir);

impl Signer {
    fn new() -> Signer {
        let dir = TempDir::new().expect("a temporary directory");
        let script = "openssl ecparam -name prime256v1 -genkey -noout -out key.pem && openssl ec -in key.pem -pubout -out key.pub";
        run(Command::new("sh").args(["-c", script]).current_dir(dir.path())).ok();
        Signer(dir)
    }

    fn public(&self) -> PathBuf {
        self.0.path().join("key.pub")
    }

    fn sign(&self, payload: &[u8]) -> String {
        fs::write(self.0.path().join("payload"), payload).expect("a writable directory");
        let script = "openssl dgst -sha256 -sign key.pem payload | base64 -w0";
        run(Command::new("sh").args(["-c", script]).current_dir(self.0.path())).ok().stdout
    }
}

/// What cosign signs: this digest, as an image of this repository.
fn payload(repository: &str, digest: &str) -> Vec<u8> {
    let document = json!({
        "critical": {
            "identity": {"docker-reference": repository},
            "image": {"docker-manifest-digest": digest},
            "type": "cosign container image signature",
        },
        "optional": null,
    });
    serde_json::to_vec(&document).expect("plain data")
}

/// Puts signatures where cosign does. Returns the manifest's descriptor.
fn attach(registry: &Registry, repository: &str, tag: &str, signed: &[(Vec<u8>, String)]) -> Value {
    let layers = signed.iter().map(|(payload, signature)| {
        let mut layer = put_blob(registry, repository, payload);
        layer["mediaType"] = PAYLOAD_TYPE.into();
        layer["annotations"] = json!({"dev.cosignproject.cosign/signature": signature});
        layer
    });
    let layers: Vec<Value> = layers.collect();
    let mut config = put_blob(registry, repository, b"{}");
    config["mediaType"] = "application/vnd.oci.image.config.v1+json".into();
    let manifest =
        json!({"schemaVersion": 2, "mediaType": MANIFEST_TYPE, "config": config, "layers": layers});
    let bytes = serde_json::to_vec(&manifest).expect("plain data");
    ask(registry, "PUT", &format!("/v2/{repository}/manifests/{tag}"), MANIFEST_TYPE, &bytes);
    json!({"mediaType": MANIFEST_TYPE, "digest": Digest::of(&bytes).to_string(), "size": bytes.len()})
}

fn signature_tag(digest: &str) -> String {
    digest.replace(':', "-") + ".sig"
}

/// A registry with busybox under a name, and the digest of that.
fn registry_with(names: &[&str]) -> (Registry, String) {
    let registry = Registry::start();
    for name in names {
        registry.push(&images::busybox(), images::TAG, name);
    }
    let image = format!("docker://{}/{}", registry.host(), names[0]);
    let shown =
        run(Command::new("skopeo").args(["inspect", "--tls-verify=false", "-f", "{{.Digest}}", &image]));
    let digest = shown.ok().text().to_owned();
    (registry, digest)
}

/// A daemon under a policy.
fn daemon(folder: &Path, policy: &str) -> Daemon {
    let path = folder.join("policy.toml");
    fs::write(&path, policy).expect("a writable directory");
    let none = folder.join("no-verifiers");
    Daemon::start_with(&[], &format!("policy = {path:?}\n[image_verifiers]\nbin_dir = {none:?}\n"))
}

#[track_caller]
fn refused(daemon: &Daemon, arguments: &[&str], words: &[&str]) {
    let finished = daemon.hoist(arguments);
    assert!(finished.code != 0, "{finished}");
    for word in words {
        assert!(finished.stderr.contains(word), "no {word:?} in {finished}");
    }
}

#[test]
fn rules_hold_for_every_way_in() {
    let (registry, _) = registry_with(&["good/app", "bad/app"]);
    let host = registry.host();
    let folder = TempDir::new().expect("a temporary directory");
    let policy = format!(
        "default = \"reject\"\n[[rule]]\nscope = \"{host}/good\"\naction = \"accept\"\n[[rule]]\nscope = \"{host}/bad\"\naction = \"reject\"\n"
    );
    let daemon = daemon(folder.path(), &policy);
    let (good, bad) = (format!("{host}/good/app:latest"), format!("{host}/bad/app:latest"));
    let rule = format!("the rule for \"{host}/bad\"");
    daemon.hoist(["pull", "-q", &good]).ok();
    refused(&daemon, &["pull", &bad], &[&rule, &bad]);
    refused(&daemon, &["run", "--rm", &bad, "true"], &[&rule]);
    refused(&daemon, &["tag", &good, &bad], &[&rule]);
    refused(&daemon, &["tag", &good, "elsewhere/app"], &["no rule", "docker.io/elsewhere/app"]);

    let archive = folder.path().join("bad.tar");
    images::archive(&images::busybox(), "docker-archive", &bad, &archive);
    let archive = archive.display().to_string();
    refused(&daemon, &["load", "-i", &archive], &[&rule]);
    let tree = folder.path().join("tree.tar").display().to_string();
    run(Command::new("tar").args(["-cf", &tree, "-C", "/etc", "hostname"])).ok();
    refused(&daemon, &["import", &tree, &bad], &[&rule]);
    daemon.hoist(["create", "--name", "made", &good, "true"]).ok();
    refused(&daemon, &["commit", "made", &bad], &[&rule]);

    for refused in [
        daemon.ctr(["images", "pull", "--plain-http", &bad]),
        daemon.ctr(["images", "tag", &good, &bad]),
        daemon.ctr(["images", "import", &archive]),
    ] {
        assert!(refused.code != 0 && refused.stderr.contains(&rule), "{refused}");
    }
    let named = daemon.ctr(["images", "ls", "-q"]).ok();
    assert_eq!(named.text(), good, "nothing else came in");
    daemon.hoist(["run", "--rm", &good, "true"]).ok();
}

#[test]
fn only_the_right_signature_lets_an_image_in() {
    let (registry, digest) = registry_with(&["team/app", "team/other"]);
    let (host, repository) = (registry.host(), "team/app");
    let (signer, stranger) = (Signer::new(), Signer::new());
    let folder = TempDir::new().expect("a temporary directory");
    let policy =
        format!("[[rule]]\nscope = \"{host}/team\"\naction = \"signed\"\nkeys = [{:?}]\n", signer.public());
    let daemon = daemon(folder.path(), &policy);
    let (name, tag) = (format!("{host}/{repository}"), signature_tag(&digest));
    let rule = format!("the rule for \"{host}/team\"");
    let attempt = |signed: &[(Vec<u8>, String)], words: &[&str]| {
        attach(&registry, repository, &tag, signed);
        refused(&daemon, &["pull", &name], &[words, &[rule.as_str(), "must be signed"]].concat());
    };

    refused(&daemon, &["pull", &name], &[&rule, "must be signed", "there is no signature", &tag]);
    let right = payload(&name, &digest);
    attempt(&[(right.clone(), stranger.sign(&right))], &["by none of the keys"]);
    let tampered = [&right[..], b" "].concat();
    attempt(&[(tampered, signer.sign(&right))], &["by none of the keys"]);
    let other_digest = Digest::of(b"another image").to_string();
    let other = payload(&name, &other_digest);
    attempt(&[(other.clone(), signer.sign(&other))], &[&other_digest, "another image"]);
    let elsewhere = payload(&format!("{host}/team/other"), &digest);
    attempt(&[(elsewhere.clone(), signer.sign(&elsewhere))], &["of an image in", "team/other"]);
    let kind = String::from_utf8_lossy(&right).replace("cosign container", "some other").into_bytes();
    attempt(&[(kind.clone(), signer.sign(&kind))], &["its type is"]);
    attempt(&[(right.clone(), "not base64!".into())], &["not in base64"]);
    assert_eq!(daemon.hoist(["images", "-q"]).ok().text(), "", "nothing came in");

    // One of several is enough.
    let good = (right.clone(), signer.sign(&right));
    attach(&registry, repository, &tag, &[(right.clone(), stranger.sign(&right)), good.clone()]);
    daemon.hoist(["pull", "-q", &name]).ok();
    daemon.hoist(["run", "--rm", &name, "true"]).ok();
    // The same image under another name is another matter, also if its signature is there.
    attach(&registry, "team/other", &tag, &[good]);
    refused(&daemon, &["pull", &format!("{host}/team/other")], &[&rule, "of an image in"]);
    // An archive is asked for the signature that its registry has.
    let archive = folder.path().join("app.tar");
    images::archive(&images::busybox(), "oci-archive", &format!("{name}:2"), &archive);
    let archive = archive.display().to_string();
    let loaded = daemon.hoist(["load", "-i", &archive]);
    assert!(loaded.code == 0 || loaded.stderr.contains(&rule), "{loaded}");
}

/// Each name under which a pull records an image is judged by what its registry shows to who pulls.
#[test]
fn signatures_for_all_names_of_a_pull_are_asked_for_by_who_pulls() {
    let (registry, digest) = registry_with(&["team/app"]);
    let proxy = FaultProxy::start(&registry, |asked| match asked.header("x-pass") {
        Some("open") => Vec::new(),
        _ => vec![Fault::answer(403)],
    });
    let (signer, folder) = (Signer::new(), TempDir::new().expect("a temporary directory"));
    let name = format!("{}/team/app", proxy.host());
    let policy = format!("[[rule]]\nscope = {name:?}\naction = \"signed\"\nkeys = [{:?}]\n", signer.public());
    let daemon = daemon(folder.path(), &policy);
    let right = payload(&name, &digest);
    attach(&registry, "team/app", &signature_tag(&digest), &[(right.clone(), signer.sign(&right))]);
    // Another name of it is another matter for who does not pull, until a pull found the signature.
    let open = format!("{}/team/app:latest", registry.host());
    daemon.hoist(["pull", "-q", &open]).ok();
    let (stable, pull) = (format!("{name}:stable"), format!("hoist pull {name}@{digest}"));
    refused(
        &daemon,
        &["tag", &open, &stable],
        &["that the registry shows", "without credentials", &pull, "403"],
    );
    on(&daemon, async |channel| {
        let resolver = RegistryResolver {
            headers: [("x-pass".into(), "open".into())].into(),
            ..RegistryResolver::default()
        };
        let from = OciRegistry { reference: format!("{name}:latest"), resolver: Some(resolver) };
        let beside = ImageReference { name: format!("{name}:beside"), ..ImageReference::default() };
        let to = ImageStore {
            name: format!("{name}:own"),
            extra_references: vec![beside],
            ..ImageStore::default()
        };
        let request =
            TransferRequest { source: Some(pack(&from)), destination: Some(pack(&to)), options: None };
        TransferClient::new(channel).transfer(typed::ask(request)).await.expect("it is signed");
    });
    daemon.hoist(["tag", &open, &stable]).ok();
    refused(&daemon, &["tag", &open, &format!("{name}/below")], &["without credentials"]);
    daemon.hoist(["rmi", &open]).ok();
    let names = daemon.ctr(["images", "ls", "-q"]).ok();
    assert_eq!(names.text(), format!("{name}:beside\n{name}:own\n{name}:stable"));
}

#[test]
fn signatures_are_found_as_referrers_and_under_another_identity() {
    let (registry, digest) = registry_with(&["copies/app"]);
    let (host, repository) = (registry.host(), "copies/app");
    let signer = Signer::new();
    let folder = TempDir::new().expect("a temporary directory");
    let policy = format!(
        "[[rule]]\nscope = \"{host}/copies\"\naction = \"signed\"\nkeys = [{:?}]\nidentity = \"quay.io/team\"\n",
        signer.public()
    );
    let daemon = daemon(folder.path(), &policy);
    let name = format!("{host}/{repository}");
    let signed = payload("quay.io/team/app:1", &digest);
    let referrer = attach(&registry, repository, "signatures", &[(signed.clone(), signer.sign(&signed))]);
    refused(&daemon, &["pull", &name], &["there is no signature"]);
    list_referrers(&registry, repository, &digest, vec![referrer]);
    daemon.hoist(["pull", "-q", &name]).ok();
}

/// Names a document as a referrer to an image, where a registry without the referrers API has it
/// (distribution-spec 1.1, "Referrers Tag Schema").
fn list_referrers(registry: &Registry, repository: &str, image: &str, mut referrers: Vec<Value>) {
    for referrer in &mut referrers {
        referrer["artifactType"] = "application/vnd.dev.cosign.artifact.sig.v1+json".into();
    }
    let kind = "application/vnd.oci.image.index.v1+json";
    let index = json!({"schemaVersion": 2, "mediaType": kind, "manifests": referrers});
    let bytes = serde_json::to_vec(&index).expect("plain data");
    let tag = image.replace(':', "-");
    ask(registry, "PUT", &format!("/v2/{repository}/manifests/{tag}"), kind, &bytes);
}

#[test]
fn trouble_with_one_place_hides_no_signature_in_another() {
    let (registry, digest) = registry_with(&["team/tagged", "team/referred", "team/other"]);
    let gone = attach(&registry, "team/referred", "gone", &[]);
    let gone_digest = gone["digest"].as_str().expect("text").to_owned();
    let proxy = FaultProxy::start(&registry, move |asked| {
        if asked.manifest() == Some(&gone_digest) {
            vec![Fault::answer(404)]
        } else if asked.path.contains("/referrers/") && !asked.path.contains("/referred/") {
            vec![Fault::answer(501)]
        } else {
            Vec::new()
        }
    });
    let (signer, stranger) = (Signer::new(), Signer::new());
    let folder = TempDir::new().expect("a temporary directory");
    let scope = format!("{}/team", proxy.host());
    let policy =
        format!("[[rule]]\nscope = {scope:?}\naction = \"signed\"\nkeys = [{:?}]\n", signer.public());
    let daemon = daemon(folder.path(), &policy);
    let signed = |by: &Signer, name: &str| {
        let payload = payload(&format!("{scope}/{name}"), &digest);
        (payload.clone(), by.sign(&payload))
    };

    attach(&registry, "team/tagged", &signature_tag(&digest), &[signed(&signer, "tagged")]);
    daemon.hoist(["pull", "-q", &format!("{scope}/tagged")]).ok();
    // One that is gone, one that is no manifest, one by somebody else.
    let other = attach(&registry, "team/referred", "other", &[signed(&stranger, "referred")]);
    let right = attach(&registry, "team/referred", "right", &[signed(&signer, "referred")]);
    let kind = "application/vnd.oci.image.index.v1+json";
    let empty = serde_json::to_vec(&json!({"schemaVersion": 2, "mediaType": kind, "manifests": []}));
    let empty = empty.expect("plain data");
    ask(&registry, "PUT", "/v2/team/referred/manifests/index", kind, &empty);
    let index = json!({"mediaType": kind, "digest": Digest::of(&empty).to_string(), "size": empty.len()});
    list_referrers(&registry, "team/referred", &digest, vec![gone, index, other, right]);
    daemon.hoist(["pull", "-q", &format!("{scope}/referred")]).ok();

    // What is wrong with what could be seen, and that there may be more.
    attach(&registry, "team/other", &signature_tag(&digest), &[signed(&stranger, "other")]);
    refused(&daemon, &["pull", &format!("{scope}/other")], &["by none of the keys", "and not all", "501"]);
}

#[test]
fn as_many_signatures_as_the_manual_says_are_looked_at() {
    let (registry, digest) = registry_with(&["team/few", "team/many"]);
    let (signer, stranger) = (Signer::new(), Signer::new());
    let folder = TempDir::new().expect("a temporary directory");
    let scope = format!("{}/team", registry.host());
    let policy =
        format!("[[rule]]\nscope = {scope:?}\naction = \"signed\"\nkeys = [{:?}]\n", signer.public());
    let daemon = daemon(folder.path(), &policy);
    for (name, before, is_found) in [("few", 63, true), ("many", 64, false)] {
        let (repository, image) = (format!("team/{name}"), format!("{scope}/{name}"));
        let payload = payload(&image, &digest);
        let other = attach(&registry, &repository, "other", &[(payload.clone(), stranger.sign(&payload))]);
        let right = attach(&registry, &repository, "right", &[(payload.clone(), signer.sign(&payload))]);
        let mut referrers = vec![other; before];
        referrers.push(right);
        list_referrers(&registry, &repository, &digest, referrers);
        match is_found {
            true => drop(daemon.hoist(["pull", "-q", &image]).ok()),
            false => refused(&daemon, &["pull", &image], &["in 64 of 65 manifests", "by none of the keys"]),
        }
    }
}

/// More images than there are threads that serve calls.
#[test]
fn verifiers_on_a_disk_that_is_silent_keep_images_out_and_nobody_else_waiting() {
    if !is_root("FUSE") {
        return;
    }
    let folder = TempDir::new().expect("a temporary directory");
    let bin = folder.path().to_owned();
    let silent = SilentDisk::over(&bin);
    let config = format!("[image_verifiers]\nbin_dir = {bin:?}\nper_verifier_timeout = \"5s\"\n");
    let daemon = Daemon::start_with(&[], &config);
    on(&daemon, async |channel| {
        let mut images = ImagesClient::new(channel.clone());
        let image = |number: usize| Image {
            name: format!("silent:{number}"),
            target: Some(Descriptor {
                media_type: MANIFEST_TYPE.into(),
                digest: Digest::of(b"image").to_string(),
                size: 5,
                ..Descriptor::default()
            }),
            ..Image::default()
        };
        let mut waiting = JoinSet::new();
        for number in 0..16 {
            let (mut images, image) = (images.clone(), Some(image(number)));
            let request = CreateImageRequest { image, ..CreateImageRequest::default() };
            waiting.spawn(async move { images.create(typed::ask(request)).await.map(drop) });
        }
        let silent = tokio::task::spawn_blocking(move || {
            silent.is_asked();
            silent
        });
        let _silent = silent.await.expect("the directory is read");
        let list = images.list(typed::ask(ListImagesRequest::default())).await.expect("others are served");
        assert!(list.into_inner().images.is_empty());
        while let Some(answer) = waiting.join_next().await {
            let status = answer.expect("no panic").expect_err("nobody said yes");
            assert_eq!(status.code(), Code::DeadlineExceeded, "{status}");
            assert!(status.message().contains(&*bin.to_string_lossy()), "{status}");
        }
    });
}

#[test]
fn verifiers_of_others_are_asked_once_for_each_way_in() {
    let (registry, digest) = registry_with(&["app"]);
    let image = format!("{}/app:latest", registry.host());
    let folder = TempDir::new().expect("a temporary directory");
    let bin = folder.path().join("bin");
    fs::create_dir(&bin).expect("a writable directory");
    let script = format!(
        "#!/bin/sh\necho \"$2 $4\" >> {0}/asked\ntest ! -e {0}/closed || {{ echo closed today; exit 1; }}\n",
        folder.path().display()
    );
    testkit::executable(&bin.join("door"), &script);
    let daemon = Daemon::start_with(&[], &format!("[image_verifiers]\nbin_dir = {bin:?}\n"));
    let asked = || fs::read_to_string(folder.path().join("asked")).unwrap_or_default();

    daemon.hoist(["pull", "-q", &image]).ok();
    assert_eq!(asked(), format!("{image} {digest}\n"));
    daemon.ctr(["images", "tag", &image, "other:1"]).ok();
    assert!(asked().ends_with(&format!("\nother:1 {digest}\n")), "{}", asked());
    fs::write(folder.path().join("closed"), "").expect("a writable directory");
    refused(&daemon, &["pull", &image], &["\"door\"", "closed today", &image]);
    refused(&daemon, &["tag", &image, "third"], &["\"door\"", "closed today"]);
}
