//! The registry options of a command line: as messages for the daemon, which transfers images, and for the commands of
//! `ctr` that access registries themselves.
//!
//! ```text
//! --user --refresh ─▶ answers on a stream │ credentials of our own client
//! --tlscacert … -k ─▶ a temporary folder with a hosts.toml
//! --http-dump …    ─▶ standard error, from a stream of the daemon │ from our own client
//! ```

use std::time::Duration;

use api::grpc::transfer::{AuthResponse, AuthType, HttpDebug, OciRegistry, RegistryResolver};
use api::shim::pack;
use prost_types::Any;
use registry::{
    CallerOptions, Connections, Credentials, HttpTrace, Keyring, Options, Proxies, Remote, Scheme,
    TraceOptions,
};
use tokio::task::JoinHandle;
use types::{Context, Error, Reference, Result};

use super::command::Call;
use super::connection::Connection;
use super::transfer::OpenStream;
use crate::private_folder::PrivateFolder;

/// How long output about a transfer is awaited after its end.
const TRACE_WAIT_MAX: Duration = Duration::from_secs(5);

/// The flags of all commands that access registries, followed by a command's own flags.
macro_rules! registry_flags {
    ($($own:expr),* $(,)?) => {
        &[
            Flag::switch("plain-http", "use HTTP without TLS"),
            Flag::value("user,u", "credentials for the registry: user[:password]"),
            Flag::value("refresh", "an identity token for the registry"),
            Flag::value("hosts-dir", "a folder of hosts.toml files"),
            Flag::switch("skip-verify,k", "do not verify the registry's certificate"),
            Flag::value("tlscacert", "a file of CA certificates for the registry"),
            Flag::value("tlscert", "the file of the client certificate"),
            Flag::value("tlskey", "the file of the client certificate's key"),
            Flag::switch("http-dump", "print requests to the registry and its answers, without secrets and layers"),
            Flag::switch("http-trace", "print the connections to the registry"),
            $($own,)*
        ]
    };
}
pub(super) use registry_flags;

/// The temporary folder with a hosts.toml, if the command line has such options.
type Hosts = Option<PrivateFolder>;

/// A registry in a request to the daemon's transfer service.
pub(super) struct TransferRegistry {
    pub(super) message: Any,
    shown: Option<JoinHandle<Result<()>>>,
    _hosts: Hosts,
}

impl TransferRegistry {
    /// Opens the streams on which credentials are answered and HTTP traces are printed.
    pub(super) async fn of(
        call: &Call,
        connection: &Connection,
        reference: &str,
    ) -> Result<TransferRegistry> {
        let auth_stream = match credentials(call)? {
            None => String::new(),
            Some(credentials) => {
                let stream = OpenStream::new(connection, "auth").await?;
                let name = stream.name.clone();
                tokio::spawn(stream.answer(answer(credentials)));
                name
            }
        };
        let http_debug = match (call.is("http-dump"), call.is("http-trace")) {
            (false, false) => HttpDebug::Disabled,
            (true, false) => HttpDebug::Debug,
            (false, true) => HttpDebug::Trace,
            (true, true) => HttpDebug::Both,
        };
        let (mut shown, mut logs_stream) = (None, String::new());
        if http_debug != HttpDebug::Disabled {
            let stream = OpenStream::new(connection, "logs").await?;
            logs_stream.clone_from(&stream.name);
            shown = Some(tokio::spawn(stream.receive_bytes(std::io::stderr())));
        }
        let hosts = hosts(call, reference)?;
        let host_dir = hosts.as_ref().map(|folder| folder.path().display().to_string());
        let resolver = RegistryResolver {
            auth_stream,
            host_dir: host_dir.unwrap_or_else(|| call.value("hosts-dir").unwrap_or_default().to_owned()),
            default_scheme: if call.is("plain-http") { "http".to_owned() } else { String::new() },
            http_debug: http_debug.into(),
            logs_stream,
            ..RegistryResolver::default()
        };
        let message = pack(&OciRegistry { reference: reference.to_owned(), resolver: Some(resolver) });
        Ok(TransferRegistry { message, shown, _hosts: hosts })
    }

    /// Waits until the traces are printed.
    pub(super) async fn shown(self) {
        if let Some(shown) = self.shown {
            // Traces that cannot be printed are no failure of the command.
            let _ = tokio::time::timeout(TRACE_WAIT_MAX, shown).await;
        }
    }
}

/// A repository that `ctr` accesses itself.
pub(super) struct DirectRegistry {
    pub(super) remote: Remote,
    pub(super) reference: Reference,
    shown: Option<JoinHandle<()>>,
    _hosts: Hosts,
}

impl DirectRegistry {
    pub(super) fn of(call: &Call, reference: &str) -> Result<DirectRegistry> {
        let named: Reference = reference.parse()?;
        let hosts = hosts(call, reference)?;
        let directory = hosts.as_ref().map(|folder| folder.path().to_owned());
        let directory = directory.or_else(|| call.value("hosts-dir").map(Into::into));
        let options = Options {
            directories: directory.into_iter().collect(),
            proxies: Proxies::from_variables(|name| std::env::var(name).ok())?,
            ..Options::default()
        };
        let keyring: Keyring = credentials(call)?
            .map(|credentials| (named.host().to_owned(), credentials))
            .into_iter()
            .collect();
        let traced = TraceOptions { messages: call.is("http-dump"), connections: call.is("http-trace") };
        let (trace, mut texts) = HttpTrace::new(traced);
        let is_traced = traced.messages || traced.connections;
        let shown = is_traced.then(|| {
            tokio::spawn(async move {
                while let Some(text) = texts.recv().await {
                    eprint!("{text}");
                }
            })
        });
        let caller_options = CallerOptions {
            default_scheme: call.is("plain-http").then_some(Scheme::Http),
            trace: is_traced.then_some(trace),
            ..CallerOptions::default()
        };
        let remote = Connections::new(options).remote_with(&named, &keyring, &caller_options)?;
        Ok(DirectRegistry { remote, reference: named, shown, _hosts: hosts })
    }

    /// Waits until the traces are printed.
    pub(super) async fn shown(self) {
        let DirectRegistry { remote, shown, .. } = self;
        drop(remote);
        if let Some(shown) = shown {
            let _ = tokio::time::timeout(TRACE_WAIT_MAX, shown).await;
        }
    }
}

/// The credentials on the command line.
fn credentials(call: &Call) -> Result<Option<Credentials>> {
    Ok(match (call.value("user"), call.value("refresh")) {
        (Some(user), _) => {
            let (user, password) = match user.split_once(':') {
                Some((user, password)) => (user.to_owned(), password.to_owned()),
                None => (user.to_owned(), password(user)?),
            };
            Some(Credentials::Password { user, password })
        }
        (None, Some(token)) => Some(Credentials::IdentityToken(token.to_owned())),
        (None, None) => None,
    })
}

fn answer(credentials: Credentials) -> AuthResponse {
    let (auth_type, username, secret) = match credentials {
        Credentials::Password { user, password } => (AuthType::Credentials, user, password),
        Credentials::IdentityToken(token) => (AuthType::Refresh, String::new(), token),
        Credentials::RegistryToken(token) => (AuthType::Header, String::new(), format!("Bearer {token}")),
    };
    AuthResponse { auth_type: auth_type.into(), secret, username, expire_at: None }
}

/// Writes the TLS options of the command line to a hosts.toml, which the daemon reads.
fn hosts(call: &Call, reference: &str) -> Result<Hosts> {
    let path = |flag: &str| -> Result<Option<String>> {
        let Some(path) = call.value(flag) else { return Ok(None) };
        let whole = std::fs::canonicalize(path).context(|| format!("--{flag} {path}"))?;
        Ok(Some(whole.display().to_string()))
    };
    let (ca, cert, key) = (path("tlscacert")?, path("tlscert")?, path("tlskey")?);
    if !call.is("skip-verify") && ca.is_none() && cert.is_none() && key.is_none() {
        return Ok(None);
    }
    if call.value("hosts-dir").is_some() {
        return Err(Error::invalid_argument(
            "--hosts-dir configures certificates too: use either it or the TLS flags",
        ));
    }
    let host = reference.parse::<Reference>()?.host().to_owned();
    let mut text = format!("[host.\"https://{host}\"]\n");
    if call.is("skip-verify") {
        text.push_str("  skip_verify = true\n");
    }
    // Every JSON string is a valid TOML string.
    let quoted = |path: &String| serde_json::Value::from(path.as_str()).to_string();
    if let Some(ca) = &ca {
        text.push_str(&format!("  ca = {}\n", quoted(ca)));
    }
    match (&cert, &key) {
        (Some(cert), Some(key)) => {
            let pair = format!("  client = [[{}, {}]]\n", quoted(cert), quoted(key));
            text.push_str(&pair);
        }
        (None, None) => {}
        _ => return Err(Error::invalid_argument("--tlscert and --tlskey belong together")),
    }
    let folder = PrivateFolder::create(&call.socket())?;
    let of_host = folder.path().join(&host);
    std::fs::create_dir(&of_host).context(|| format!("create {}", of_host.display()))?;
    let file = of_host.join("hosts.toml");
    std::fs::write(&file, text).context(|| format!("write {}", file.display()))?;
    Ok(Some(folder))
}

fn password(user: &str) -> Result<String> {
    eprint!("Password for {user}: ");
    let mut line = String::new();
    std::io::stdin().read_line(&mut line).context(|| "read the password")?;
    Ok(line.trim_end_matches(['\r', '\n']).to_owned())
}
