//! Credentials in the file that `docker login` and `podman login` write.
//!
//! ```json
//! { "auths": { "registry.example": { "auth": "base64 of user:password" },
//!              "https://index.docker.io/v1/": { "identitytoken": "…" } },
//!   "credHelpers": { "registry.example": "NAME" },
//!   "credsStore": "NAME" }
//! ```
//!
//! For a host with a helper, or if there is a store, `docker-credential-NAME` is run: a program of the user's
//! session, so this runs in the client, never in the daemon. Sizes of helper output and files are bounded; no message
//! contains a secret.

use std::fs;
use std::io::{ErrorKind as IoErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::Command;
use types::{Context, Error, Result};

use crate::credentials::Credentials;
use crate::tls::Pem;

/// A helper may prompt the user, or use the network.
const HELPER_TIMEOUT: Duration = Duration::from_secs(60);
const HELPER_OUTPUT_LEN_MAX: u64 = 64 << 10;
/// Helpers print this if they have no credentials; there is no exit code for it.
const NOT_FOUND: &str = "credentials not found";
/// The user name that marks the secret as an identity token.
const TOKEN_USER: &str = "<token>";

/// A credentials file.
#[derive(Debug)]
pub struct DockerConfig {
    file: PathBuf,
    document: Map<String, Value>,
}

/// Credentials, and where they are stored.
#[derive(Debug)]
pub struct Found {
    pub credentials: Credentials,
    pub kept_in: KeptIn,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeptIn {
    File(PathBuf),
    /// The helper program's name.
    Helper(String),
}

impl std::fmt::Display for KeptIn {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            KeptIn::File(file) => write!(f, "{}", file.display()),
            KeptIn::Helper(program) => f.write_str(program),
        }
    }
}

impl DockerConfig {
    /// Reads a file; a missing one counts as empty.
    pub fn read(file: &Path) -> Result<DockerConfig> {
        let pem = match Pem::read(file) {
            Err(error) if error.is(types::ErrorKind::NotFound) => {
                return Ok(DockerConfig { file: file.to_owned(), document: Map::new() });
            }
            other => other?,
        };
        DockerConfig::parse(file, pem.bytes())
    }

    /// Parses `text` as the content of `file`, for example that of `DOCKER_AUTH_CONFIG`.
    pub fn parse(file: &Path, text: &[u8]) -> Result<DockerConfig> {
        let file = file.to_owned();
        if text.trim_ascii().is_empty() {
            return Ok(DockerConfig { file, document: Map::new() });
        }
        // The JSON parser's message may quote a password.
        let bad =
            |line: usize| Error::invalid_argument(format!("{}:{line}: not a JSON object", file.display()));
        let document = serde_json::from_slice(text).map_err(|error| bad(error.line()))?;
        Ok(DockerConfig { file, document })
    }

    /// Credentials for a registry, by its name in references. Podman's entries for a path below the registry take
    /// precedence.
    pub async fn find(&self, registry: &str, repository: &str) -> Result<Option<Found>> {
        if let Some(helper) = self.helper(registry)?
            && let Some(credentials) = helper.get(key(registry)).await?
        {
            return Ok(Some(Found { credentials, kept_in: KeptIn::Helper(helper.program) }));
        }
        let mut name = format!("{registry}/{repository}");
        loop {
            if let Some((key, entry)) = self.entry(&name)
                && let Some(credentials) = self.credentials(key, entry)?
            {
                return Ok(Some(Found { credentials, kept_in: KeptIn::File(self.file.clone()) }));
            }
            let Some((shorter, _)) = name.rsplit_once('/') else { return Ok(None) };
            name.truncate(shorter.len());
        }
    }

    /// Stores credentials for a registry, and returns where. The rest of the file stays.
    pub async fn store(&mut self, registry: &str, credentials: &Credentials) -> Result<KeptIn> {
        let helper = self.helper(registry)?;
        let (user, secret) = match credentials {
            Credentials::Password { user, password } => (user.as_str(), password),
            Credentials::IdentityToken(token) => (TOKEN_USER, token),
            Credentials::RegistryToken(_) => {
                return Err(Error::invalid_argument("a token for one registry is not kept"));
            }
        };
        let entry = match &helper {
            Some(helper) => {
                helper.store(key(registry), user, secret).await?;
                json!({})
            }
            None if user == TOKEN_USER => json!({"identitytoken": secret}),
            None => json!({"auth": STANDARD.encode(format!("{user}:{secret}"))}),
        };
        let auths = self.document.entry("auths").or_insert_with(|| json!({}));
        let auths = auths.as_object_mut().ok_or_else(|| {
            Error::invalid_argument(format!("{}: auths is not an object", self.file.display()))
        })?;
        auths.insert(key(registry).to_owned(), entry);
        self.write()?;
        Ok(helper.map_or_else(|| KeptIn::File(self.file.clone()), |helper| KeptIn::Helper(helper.program)))
    }

    /// Removes the credentials of a registry. Returns whether there were any.
    pub async fn erase(&mut self, registry: &str) -> Result<bool> {
        let mut was_there = false;
        if let Some(helper) = self.helper(registry)? {
            was_there = helper.get(key(registry)).await?.is_some();
            if was_there {
                helper.erase(key(registry)).await?;
            }
        }
        if let Some(Value::Object(auths)) = self.document.get_mut("auths") {
            let before = auths.len();
            auths.retain(|key, _| !is_for_all_of(key, registry));
            if auths.len() < before {
                was_there = true;
                self.write()?;
            }
        }
        Ok(was_there)
    }

    fn entry(&self, name: &str) -> Option<(&str, &Value)> {
        let auths = self.document.get("auths")?.as_object()?;
        let exact = auths.get_key_value(name).or_else(|| auths.get_key_value(key(name)));
        let found = exact.or_else(|| auths.iter().find(|(key, _)| is_for_all_of(key, name)));
        found.map(|(key, entry)| (key.as_str(), entry))
    }

    fn credentials(&self, key: &str, entry: &Value) -> Result<Option<Credentials>> {
        let text = |name: &str| entry[name].as_str().filter(|text| !text.is_empty()).map(str::to_owned);
        if let Some(token) = text("identitytoken") {
            return Ok(Some(Credentials::IdentityToken(token)));
        }
        if let Some(token) = text("registrytoken") {
            return Ok(Some(Credentials::RegistryToken(token)));
        }
        if let (Some(user), Some(password)) = (text("username"), text("password")) {
            return Ok(Some(Credentials::Password { user, password }));
        }
        let Some(encoded) = text("auth") else { return Ok(None) };
        let plain = STANDARD.decode(encoded.trim()).ok().and_then(|bytes| String::from_utf8(bytes).ok());
        let pair = plain.as_deref().and_then(|plain| plain.split_once(':'));
        let (user, password) = pair.ok_or_else(|| {
            Error::invalid_argument(format!(
                "{}: the auth of {key} is not base64 of user:password; log in again",
                self.file.display()
            ))
        })?;
        let password = password.trim_end_matches('\0').to_owned();
        Ok(Some(Credentials::Password { user: user.to_owned(), password }))
    }

    fn helper(&self, registry: &str) -> Result<Option<Helper>> {
        let helpers = self.document.get("credHelpers");
        let own = helpers.and_then(|helpers| helpers.get(registry).or_else(|| helpers.get(key(registry))));
        let Some(named) = own.or_else(|| self.document.get("credsStore")) else { return Ok(None) };
        let name = named.as_str().unwrap_or_default();
        if named.is_string() && name.is_empty() {
            return Ok(None);
        }
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
        if !named.is_string() || !name.bytes().all(is_plain) {
            return Err(Error::invalid_argument(format!(
                "{}: {named} is no name of a credential helper",
                self.file.display()
            )));
        }
        Ok(Some(Helper { program: format!("docker-credential-{name}") }))
    }

    /// Replaces the file atomically, readable by its owner only. A symbolic link stays one.
    fn write(&self) -> Result<()> {
        let file = fs::canonicalize(&self.file).unwrap_or_else(|_| self.file.clone());
        let what = || format!("write {}", file.display());
        let folder = file.parent().unwrap_or(Path::new("/"));
        fs::DirBuilder::new().recursive(true).mode(0o700).create(folder).context(what)?;
        let mut text = serde_json::to_string_pretty(&self.document).expect("it was read as JSON");
        text.push('\n');
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        // Named by process id, as other processes may log in meanwhile; `stdx::replace` allows one writer only.
        let beside = folder.join(format!(".{name}.{}", std::process::id()));
        let opened = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&beside);
        let written = opened.and_then(|mut new| {
            new.write_all(text.as_bytes())?;
            new.sync_all()?;
            fs::rename(&beside, &file)?;
            fs::File::open(folder)?.sync_all()
        });
        if written.is_err() {
            // It does not exist if it could not be created.
            let _ = fs::remove_file(&beside);
        }
        written.context(what)
    }
}

/// The registry's key in the file.
fn key(registry: &str) -> &str {
    if registry == "docker.io" { "https://index.docker.io/v1/" } else { registry }
}

/// The registry that a key of the file is for; a key may be a URL.
fn host_of(key: &str) -> &str {
    let bare = key.strip_prefix("https://").or_else(|| key.strip_prefix("http://")).unwrap_or(key);
    match bare.split('/').next().unwrap_or_default() {
        "index.docker.io" | "registry-1.docker.io" => "docker.io",
        host => host,
    }
}

/// Whether a key of the file is for a whole registry, and not for a path in it as podman writes them.
fn is_for_all_of(key: &str, registry: &str) -> bool {
    let is_address = key.starts_with("https://") || key.starts_with("http://");
    let path = key.split_once('/').map_or("", |(_, path)| path.trim_end_matches('/'));
    host_of(key) == registry && (is_address || matches!(path, "" | "v1" | "v2"))
}

/// The program `docker-credential-NAME`.
struct Helper {
    program: String,
}

impl Helper {
    async fn get(&self, server: &str) -> Result<Option<Credentials>> {
        let said = match self.run("get", server).await {
            Err(error) if error.message().to_ascii_lowercase().contains(NOT_FOUND) => return Ok(None),
            other => other?,
        };
        let bad = || Error::invalid_argument(format!("{} get: its answer is not understood", self.program));
        let answer: Value = serde_json::from_slice(&said).map_err(|_| bad())?;
        let (Some(user), Some(secret)) = (answer["Username"].as_str(), answer["Secret"].as_str()) else {
            return Err(bad());
        };
        Ok(match (user, secret) {
            ("", "") => None,
            (TOKEN_USER, token) => Some(Credentials::IdentityToken(token.to_owned())),
            (user, password) => {
                Some(Credentials::Password { user: user.to_owned(), password: password.to_owned() })
            }
        })
    }

    async fn store(&self, server: &str, user: &str, secret: &str) -> Result<()> {
        let entry = json!({"ServerURL": server, "Username": user, "Secret": secret});
        self.run("store", &entry.to_string()).await.map(drop)
    }

    async fn erase(&self, server: &str) -> Result<()> {
        self.run("erase", server).await.map(drop)
    }

    /// Runs the helper with one line of input. If it fails, the error has its output.
    async fn run(&self, verb: &str, input: &str) -> Result<Vec<u8>> {
        let what = format!("{} {verb}", self.program);
        let mut command = Command::new(&self.program);
        command.arg(verb).stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn().map_err(|error| match error.kind() {
            IoErrorKind::NotFound => Error::not_found(format!(
                "{} is not in PATH, and config.json names it: install it, or take its name out",
                self.program
            )),
            _ => Error::unavailable(what.clone()).with_source(error),
        })?;
        let (mut stdin, stdout) = (child.stdin.take().expect("piped"), child.stdout.take().expect("piped"));
        let talk = async {
            // A helper that does not read its input reports why by its exit status.
            let _ = stdin.write_all(input.as_bytes()).await;
            drop(stdin);
            let mut said = Vec::new();
            stdout.take(HELPER_OUTPUT_LEN_MAX + 1).read_to_end(&mut said).await?;
            if said.len() as u64 > HELPER_OUTPUT_LEN_MAX {
                return Ok((None, said));
            }
            child.wait().await.map(|status| (Some(status), said))
        };
        let ended = tokio::time::timeout(HELPER_TIMEOUT, talk).await;
        let ended = ended
            .map_err(|_| Error::deadline_exceeded(format!("{what}: no end within {HELPER_TIMEOUT:?}")))?;
        match ended.context(|| what.clone())? {
            (None, _) => Err(Error::resource_exhausted(format!("{what}: it says more than 64 KiB"))),
            (Some(status), said) if status.success() => Ok(said),
            (Some(status), said) => {
                let words = String::from_utf8_lossy(&said);
                let words: String = words.chars().filter(|found| !found.is_control()).take(200).collect();
                Err(Error::unavailable(format!("{what}: {words} ({status})")))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;

    fn config(text: &str) -> Result<DockerConfig> {
        DockerConfig::parse(Path::new("/home/u/config.json"), text.as_bytes())
    }

    async fn found(text: &str, registry: &str, repository: &str) -> Result<Option<Credentials>> {
        Ok(config(text)?.find(registry, repository).await?.map(|found| found.credentials))
    }

    fn password(user: &str, password: &str) -> Credentials {
        Credentials::Password { user: user.into(), password: password.into() }
    }

    #[tokio::test]
    async fn every_form_of_entry_is_read() {
        let text = r#"{"auths": {
            "https://index.docker.io/v1/": {"auth": "dTpw"},
            "plain.example": {"auth": "dTpwOnE="},
            "https://address.example/v2/": {"auth": "dTpw"},
            "port.example:5000": {"username": "u", "password": "w"},
            "identity.example": {"auth": "dTo=", "identitytoken": "id"},
            "bearer.example": {"registrytoken": "t"},
            "podman.example": {"auth": "dTpw"},
            "podman.example/team": {"auth": "dDp0"},
            "podman.example/team/app": {"auth": "YTph"},
            "part.example/team": {"auth": "dDp0"},
            "bare.example/v1/": {"auth": "dTpw"},
            "empty.example": {}
        }, "HttpHeaders": {"a": "b"}}"#;
        for (registry, repository, expected) in [
            ("docker.io", "library/redis", Some(password("u", "p"))),
            ("plain.example", "x", Some(password("u", "p:q"))),
            ("address.example", "x", Some(password("u", "p"))),
            ("port.example:5000", "x", Some(password("u", "w"))),
            ("port.example", "x", None),
            ("identity.example", "x", Some(Credentials::IdentityToken("id".into()))),
            ("bearer.example", "x", Some(Credentials::RegistryToken("t".into()))),
            ("podman.example", "other/app", Some(password("u", "p"))),
            ("podman.example", "team/other", Some(password("t", "t"))),
            ("podman.example", "team/app", Some(password("a", "a"))),
            ("part.example", "team/app", Some(password("t", "t"))),
            ("part.example", "other/app", None),
            ("bare.example", "x", Some(password("u", "p"))),
            ("empty.example", "x", None),
            ("unknown.example", "x", None),
        ] {
            assert_eq!(found(text, registry, repository).await.unwrap(), expected, "{registry}/{repository}");
        }
        assert_eq!(found("", "docker.io", "x").await.unwrap(), None);
    }

    #[tokio::test]
    async fn unreadable_entries_are_reported_without_their_secrets() {
        for (text, words) in [
            ("{\n\"auths\": s3cret}", "config.json:2: not a JSON object"),
            ("[]", "not a JSON object"),
            (r#"{"auths": {"r.example": {"auth": "s3cret!"}}}"#, "the auth of r.example is not base64"),
            (r#"{"credsStore": "../evil"}"#, "no name of a credential helper"),
            (r#"{"credHelpers": {"r.example": 5}}"#, "no name of a credential helper"),
            (r#"{"credsStore": "no-such-helper"}"#, "docker-credential-no-such-helper is not in PATH"),
        ] {
            let error = found(text, "r.example", "x").await.unwrap_err().chain();
            assert!(error.contains(words) && !error.contains("s3cret"), "{text}: {error}");
        }
    }

    #[tokio::test]
    async fn a_login_changes_one_entry_and_leaves_the_rest() {
        use std::os::unix::fs::PermissionsExt;
        let dir = TempDir::new().unwrap();
        let file = dir.path().join("new/config.json");
        let mut config = DockerConfig::read(&file).unwrap();
        assert!(!config.erase("r.example").await.unwrap());
        assert!(!file.exists(), "nothing to forget is nothing to write");
        config.store("docker.io", &password("u", "p")).await.unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&file), mode(file.parent().unwrap())), (0o600, 0o700));

        let text = r#"{"auths": {"o.example": {"auth": "dTpw", "email": "e"}, "r.example/team": {"auth": "dDp0"}},
            "psFormat": "x", "plugins": {"a": {}}}"#;
        fs::write(&file, text).unwrap();
        let mut config = DockerConfig::read(&file).unwrap();
        assert_eq!(config.store("r.example", &password("u", "q")).await.unwrap(), KeptIn::File(file.clone()));
        config.store("docker.io", &Credentials::IdentityToken("id".into())).await.unwrap();
        let written: Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
        assert_eq!(
            written,
            json!({
                "auths": {
                    "o.example": {"auth": "dTpw", "email": "e"},
                    "r.example": {"auth": "dTpx"},
                    "r.example/team": {"auth": "dDp0"},
                    "https://index.docker.io/v1/": {"identitytoken": "id"},
                },
                "psFormat": "x",
                "plugins": {"a": {}},
            })
        );
        let mut config = DockerConfig::read(&file).unwrap();
        assert!(config.erase("docker.io").await.unwrap() && config.erase("r.example").await.unwrap());
        assert!(!config.erase("r.example").await.unwrap());
        let written: Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
        let left = json!({"o.example": {"auth": "dTpw", "email": "e"}, "r.example/team": {"auth": "dDp0"}});
        assert_eq!(written["auths"], left, "the part of a registry is another entry");
        let left = fs::read_dir(file.parent().unwrap()).unwrap().count();
        assert_eq!(left, 1, "nothing is left beside the file");
    }

    /// A helper that runs this script.
    fn helper(dir: &TempDir, script: &str) -> Helper {
        let program = dir.path().join("docker-credential-of-test");
        testkit::executable(&program, &format!("#!/bin/sh\n{script}\n"));
        Helper { program: program.display().to_string() }
    }

    #[tokio::test]
    async fn helpers_are_understood_and_bounded() {
        let dir = TempDir::new().unwrap();
        for (script, expected) in [
            (r#"echo '{"Username":"u","Secret":"p"}'"#, Ok(Some(password("u", "p")))),
            (
                r#"echo '{"Username":"<token>","Secret":"t"}'"#,
                Ok(Some(Credentials::IdentityToken("t".into()))),
            ),
            (
                r#"[ "$1 $(cat)" = "get r.example" ] && echo '{"Username":"a","Secret":"b"}'"#,
                Ok(Some(password("a", "b"))),
            ),
            (r#"echo '{"Username":"","Secret":""}'"#, Ok(None)),
            ("echo 'credentials not found in native keychain'; exit 1", Ok(None)),
            ("echo 'the keychain is locked'; exit 1", Err("get: the keychain is locked (exit status: 1)")),
            ("echo s3cret", Err("its answer is not understood")),
            (r#"echo '{"Username":"u"}'"#, Err("its answer is not understood")),
            ("exec cat /dev/zero", Err("it says more than 64 KiB")),
            ("kill -9 $$", Err("signal: 9")),
        ] {
            let found = helper(&dir, script).get("r.example").await;
            match (found, expected) {
                (Ok(found), Ok(expected)) => assert_eq!(found, expected, "{script}"),
                (Err(error), Err(words)) => {
                    let said = error.chain();
                    assert!(said.contains(words) && !said.contains("s3cret"), "{script}: {said}");
                }
                (found, expected) => panic!("{script}: {found:?} where {expected:?} is expected"),
            }
        }
    }

    /// Time is paused: it advances while the test only waits for the helper.
    #[tokio::test(start_paused = true)]
    async fn a_helper_that_does_not_end_is_ended() {
        let dir = TempDir::new().unwrap();
        let stuck = helper(&dir, "exec sleep 1000");
        let error = stuck.get("r.example").await.unwrap_err();
        assert_eq!(error.kind(), types::ErrorKind::DeadlineExceeded, "{}", error.chain());
    }

    #[tokio::test]
    async fn a_link_stays_a_link() {
        let dir = TempDir::new().unwrap();
        let (file, link) = (dir.path().join("real.json"), dir.path().join("config.json"));
        fs::write(&file, "{}").unwrap();
        std::os::unix::fs::symlink(&file, &link).unwrap();
        DockerConfig::read(&link).unwrap().store("r.example", &password("u", "p")).await.unwrap();
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        assert!(fs::read_to_string(&file).unwrap().contains("dTpw"));
    }
}
