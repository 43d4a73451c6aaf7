//! `hoist login`: checks credentials with the registry, then stores them where Docker does.

use std::io::{BufRead, IsTerminal, Read, Write};

use api::engine::{Call, RegistryCall};
use clap::Args;
use client::Client;
use registry::{Credentials, DockerConfig, KeptIn};
use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcsetattr};
use types::{Context, Error, Result};

use crate::credentials;

/// The longest password or token, in bytes.
const SECRET_LEN_MAX: u64 = 64 << 10;

#[derive(Args)]
pub(crate) struct Flags {
    /// The user name [default: asked for]
    #[arg(long, short)]
    username: Option<String>,
    /// The password, which every process of this machine can see; --password-stdin is safer
    #[arg(long, short)]
    password: Option<String>,
    /// Take the password from standard input
    #[arg(long, conflicts_with = "password", requires = "username")]
    password_stdin: bool,
    /// The registry's host [default: Docker Hub]
    server: Option<String>,
}

pub(super) async fn run(client: &Client, flags: Flags) -> Result<u8> {
    let registry = credentials::registry_name(flags.server.as_deref())?;
    let user = match flags.username {
        Some(user) => user,
        None => ask("Username: ", true)?,
    };
    let password = match (flags.password, flags.password_stdin) {
        (Some(password), _) => {
            eprintln!("WARNING! A password on the command line is seen by others. Use --password-stdin.");
            password
        }
        (None, true) => read_secret()?,
        (None, false) => ask("Password: ", false)?,
    };
    if user.is_empty() || password.is_empty() {
        return Err(Error::invalid_argument(format!(
            "log in to {registry}: a name and a password are needed"
        )));
    }
    let offered = api::engine::Credentials {
        user: user.clone(),
        password: password.clone(),
        ..api::engine::Credentials::default()
    };
    let question = RegistryCall::CheckLogin { registry: registry.clone(), credentials: offered };
    client.call(&Call::Registry(question)).await.context(|| format!("log in to {registry}"))?;
    let mut config = DockerConfig::read(&credentials::docker_file()?)?;
    let kept = config.store(&registry, &Credentials::Password { user, password }).await?;
    if let KeptIn::File(file) = &kept {
        eprintln!(
            "The password is kept unencrypted in {}; a credential helper (credsStore) keeps it better.",
            file.display()
        );
    }
    println!("Login Succeeded");
    Ok(0)
}

/// Reads the password from standard input, without the newline that `echo` adds.
fn read_secret() -> Result<String> {
    let mut secret = String::new();
    let mut input = std::io::stdin().lock().take(SECRET_LEN_MAX);
    input.read_to_string(&mut secret).context(|| "read the password from standard input")?;
    let end = secret.trim_end_matches(['\r', '\n']).len();
    secret.truncate(end);
    Ok(secret)
}

/// Prompts the user at the terminal.
fn ask(prompt: &str, is_shown: bool) -> Result<String> {
    let stdin = std::io::stdin();
    if !stdin.is_terminal() {
        return Err(Error::invalid_argument(
            "standard input is no terminal to prompt at; use --username and --password-stdin",
        ));
    }
    // Before the prompt, so that a password typed at once is not shown.
    let hidden = (!is_shown).then(EchoOff::begin).transpose()?;
    eprint!("{prompt}");
    std::io::stderr().flush().context(|| "write to the terminal")?;
    let input = stdin.lock().take(SECRET_LEN_MAX);
    let line = if hidden.is_some() { read_unseen(input) } else { read_line(input) };
    if hidden.is_some() {
        eprintln!();
    }
    line
}

fn read_line(mut input: impl BufRead) -> Result<String> {
    let mut line = String::new();
    input.read_line(&mut line).context(|| "read from the terminal")?;
    Ok(line.trim_end_matches(['\r', '\n']).to_owned())
}

/// Reads a line key by key, and handles the keys that the terminal handles otherwise: erase and interrupt.
#[expect(
    clippy::unbuffered_bytes,
    reason = "a key counts when it is typed, and what follows the line is not ours"
)]
fn read_unseen(input: impl Read) -> Result<String> {
    let mut line = Vec::new();
    for key in input.bytes() {
        match key.context(|| "read from the terminal")? {
            b'\r' | b'\n' | END_OF_INPUT => break,
            INTERRUPT => return Err(Error::cancelled("interrupted")),
            BACKSPACE | DELETE => drop(line.pop()),
            KILL_LINE => line.clear(),
            other => line.push(other),
        }
    }
    String::from_utf8(line).map_err(|_| Error::invalid_argument("the password is not UTF-8"))
}

/// Control characters of the terminal (termios(3)).
const INTERRUPT: u8 = 0x03;
const END_OF_INPUT: u8 = 0x04;
const BACKSPACE: u8 = 0x08;
const KILL_LINE: u8 = 0x15;
const DELETE: u8 = 0x7f;

/// A terminal without echo until dropped. Keys arrive one by one and raise no signals, so that an interrupt at the
/// prompt also restores the echo.
struct EchoOff(Termios);

impl EchoOff {
    fn begin() -> Result<EchoOff> {
        let what = || "hide what is typed";
        let before = tcgetattr(std::io::stdin()).map_err(std::io::Error::from).context(what)?;
        let mut silent = before.clone();
        silent.local_modes.remove(LocalModes::ECHO | LocalModes::ICANON | LocalModes::ISIG);
        tcsetattr(std::io::stdin(), OptionalActions::Now, &silent)
            .map_err(std::io::Error::from)
            .context(what)?;
        Ok(EchoOff(before))
    }
}

impl Drop for EchoOff {
    fn drop(&mut self) {
        // If the terminal is gone, there is nothing to restore.
        let _ = tcsetattr(std::io::stdin(), OptionalActions::Now, &self.0);
    }
}
