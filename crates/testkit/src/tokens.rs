//! A token server for `docker-registry`'s `auth: token`: it issues JSON Web Tokens, signed with a key whose certificate
//! the registry has.
//!
//! A client with [`Registry::USER`](crate::Registry::USER)'s password or the identity token gets all that it asks for;
//! an anonymous one may pull what is below `public/`.

use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use serde_json::{Value, json};

use crate::{Registry, run};

const ISSUER: &str = "tests";

/// A running token server. Dropping it stops it.
pub(crate) struct TokenServer {
    address: SocketAddr,
    stopping: Arc<AtomicBool>,
    serving: Option<JoinHandle<()>>,
}

impl TokenServer {
    /// Makes a key in `dir` and serves.
    pub(crate) fn start(dir: &Path) -> TokenServer {
        let script = "openssl req -x509 -newkey rsa:2048 -nodes -keyout token.key -out token.pem -days 30 \
                      -subj /CN=tokens && openssl x509 -in token.pem -outform DER -out token.der";
        run(Command::new("sh").args(["-c", script]).current_dir(dir)).ok();
        let signer = Signer {
            key: dir.join("token.key"),
            certificate: fs::read(dir.join("token.der")).expect("openssl wrote it"),
        };
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("loopback has a free port");
        let address = listener.local_addr().expect("a bound socket has an address");
        let stopping = Arc::new(AtomicBool::new(false));
        let stop = stopping.clone();
        let serving = std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if stop.load(Ordering::SeqCst) {
                    return;
                }
                // The client may have closed the connection.
                let _ = serve(&stream, &signer);
            }
        });
        TokenServer { address, stopping, serving: Some(serving) }
    }

    /// The part of the registry's configuration that makes it accept this server's tokens.
    pub(crate) fn configuration(&self, dir: &Path) -> String {
        format!(
            "auth:\n  token: {{ realm: \"http://{}/token\", service: {ISSUER}, issuer: {ISSUER}, \
             rootcertbundle: {}/token.pem }}\n",
            self.address,
            dir.display()
        )
    }
}

impl Drop for TokenServer {
    fn drop(&mut self) {
        self.stopping.store(true, Ordering::SeqCst);
        // Wakes the thread that accepts. If connecting fails, it has ended.
        let _ = TcpStream::connect(self.address);
        if let Some(serving) = self.serving.take() {
            // A panic of the thread was printed.
            let _ = serving.join();
        }
    }
}

struct Signer {
    key: PathBuf,
    certificate: Vec<u8>,
}

impl Signer {
    fn sign(&self, claims: &Value) -> String {
        let header = json!({"typ": "JWT", "alg": "RS256", "x5c": [STANDARD.encode(&self.certificate)]});
        let encode = |part: &Value| URL_SAFE_NO_PAD.encode(part.to_string());
        let text = format!("{}.{}", encode(&header), encode(claims));
        let mut openssl = Command::new("openssl");
        openssl.args(["dgst", "-sha256", "-sign"]).arg(&self.key);
        let mut child = openssl
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .expect("openssl starts");
        child.stdin.take().expect("piped").write_all(text.as_bytes()).expect("openssl reads");
        let signature = child.wait_with_output().expect("openssl ends").stdout;
        format!("{text}.{}", URL_SAFE_NO_PAD.encode(signature))
    }
}

fn serve(stream: &TcpStream, signer: &Signer) -> io::Result<()> {
    let mut lines = BufReader::new(stream);
    let mut first = String::new();
    lines.read_line(&mut first)?;
    let (mut password, mut len) = (None, 0);
    loop {
        let mut line = String::new();
        lines.read_line(&mut line)?;
        let Some((name, value)) = line.trim().split_once(": ") else { break };
        match name.to_ascii_lowercase().as_str() {
            "authorization" => password = value.strip_prefix("Basic ").map(str::to_owned),
            "content-length" => len = value.parse().unwrap_or(0),
            _ => {}
        }
    }
    let mut form = vec![0; len];
    lines.read_exact(&mut form)?;
    let query = first.split(' ').nth(1).and_then(|path| path.split_once('?')).map_or("", |(_, query)| query);
    let form = String::from_utf8_lossy(&form).into_owned();
    let parameters: Vec<(String, String)> = query
        .split('&')
        .chain(form.split('&'))
        .filter_map(|pair| pair.split_once('='))
        .map(decoded)
        .collect();
    let has = |key: &str, value: &str| parameters.iter().any(|(name, found)| name == key && found == value);
    let known = STANDARD.encode(format!("{}:{}", Registry::USER, Registry::PASSWORD));
    let (status, body) = if password.as_ref().is_some_and(|given| *given != known)
        || (first.starts_with("POST") && !has("refresh_token", Registry::IDENTITY_TOKEN))
    {
        (401, json!({"errors": [{"code": "UNAUTHORIZED", "message": "this is not somebody we know"}]}))
    } else {
        let is_known = password.is_some() || first.starts_with("POST");
        let scopes =
            parameters.iter().filter(|(name, _)| name == "scope").flat_map(|(_, scope)| scope.split(' '));
        let access: Vec<Value> = scopes.filter_map(|scope| grant(scope, is_known)).collect();
        (200, json!({"token": signer.sign(&claims(&access)), "expires_in": 300}))
    };
    let (mut stream, body) = (stream, body.to_string());
    write!(
        stream,
        "HTTP/1.1 {status} Said\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
}

fn claims(access: &[Value]) -> Value {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs();
    json!({
        "iss": ISSUER, "aud": ISSUER, "sub": "", "jti": now.to_string(),
        "iat": now, "nbf": now - 60, "exp": now + 300, "access": access,
    })
}

/// The access that the scope `repository:NAME:pull,push` gets: what it asks for, or what an anonymous client may do of
/// it.
fn grant(scope: &str, is_known: bool) -> Option<Value> {
    let (resource, actions) = scope.rsplit_once(':')?;
    let (kind, name) = resource.split_once(':')?;
    let is_allowed = |action: &str| is_known || (action == "pull" && name.starts_with("public/"));
    let actions: Vec<&str> = actions.split(',').filter(|action| is_allowed(action)).collect();
    Some(json!({"type": kind, "name": name, "actions": actions}))
}

fn decoded((name, value): (&str, &str)) -> (String, String) {
    let mut bytes = Vec::new();
    let mut rest = value.as_bytes();
    while let [first, after @ ..] = rest {
        let code = (*first == b'%').then(|| after.get(..2)).flatten();
        let code = code.and_then(|code| u8::from_str_radix(std::str::from_utf8(code).ok()?, 16).ok());
        bytes.push(code.unwrap_or(if *first == b'+' { b' ' } else { *first }));
        rest = if code.is_some() { &after[2..] } else { after };
    }
    (name.to_owned(), String::from_utf8_lossy(&bytes).into_owned())
}
