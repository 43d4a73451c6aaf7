//! Images as files: `load`, `import` and `save`.
//!
//! The daemon reads archives from disk, so that standard input is laid down first; it writes them into a pipe
//! of ours, so that files belong to whoever asked for them.

use std::fs::{self, File};
use std::io::{self, IsTerminal};
use std::path::{Path, PathBuf};

use api::engine::ImageCall;
use clap::Args;
use client::Client;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::pipe;
use types::{Context, Error, Result};

use crate::commands::list;
use crate::output::text;
use crate::streams::PrivateFolder;

/// Bytes that are copied at once.
const COPY_LEN: usize = 256 * 1024;

#[derive(Args)]
pub(crate) struct Load {
    /// The archive; standard input without it
    #[arg(long, short)]
    input: Option<String>,
}

#[derive(Args)]
pub(crate) struct Import {
    /// Say how it came to be
    #[arg(long, short, default_value = "")]
    message: String,
    /// The tar, of any compression; `-` is standard input
    file: String,
    /// NAME[:TAG]
    name: Option<String>,
}

#[derive(Args)]
pub(crate) struct Save {
    /// The archive; standard output without it
    #[arg(long, short)]
    output: Option<PathBuf>,
    #[arg(required = true)]
    images: Vec<String>,
}

pub(super) async fn load(client: &Client, flags: Load) -> Result<u8> {
    let source = Source::of(flags.input.as_deref().unwrap_or("-"))?;
    let loaded = client.call(&ImageCall::Load { path: source.text(), embedded: None }.into()).await?;
    for image in list(&loaded) {
        println!("Loaded image: {}", text(image, "Name"));
    }
    Ok(0)
}

pub(super) async fn import(client: &Client, flags: Import) -> Result<u8> {
    let Import { message, file, name } = flags;
    let source = Source::of(&file)?;
    let comment = if message.is_empty() { format!("Imported from {file}") } else { message };
    let imported = client.call(&ImageCall::Import { path: source.text(), name, comment }.into()).await?;
    println!("{}", text(&imported, "Digest"));
    Ok(0)
}

/// Writes the archive whole or not at all.
pub(super) async fn save(client: &Client, flags: Save) -> Result<u8> {
    let Save { output, images: names } = flags;
    if output.is_none() && io::stdout().is_terminal() {
        return Err(Error::invalid_argument(
            "an archive is nothing for a terminal: name a file (-o FILE), or send the output elsewhere",
        ));
    }
    let folder = PrivateFolder::create()?;
    let path = folder.pipe("archive")?;
    let what = || "read the archive";
    let mut from = pipe::OpenOptions::new().open_receiver(&path).context(what)?;
    let draft = output.as_deref().map(Draft::create).transpose()?;
    let copy = async {
        let mut to: Box<dyn tokio::io::AsyncWrite + Unpin> = match &draft {
            Some(draft) => Box::new(tokio::fs::File::from_std(draft.file.try_clone().context(what)?)),
            None => Box::new(tokio::io::stdout()),
        };
        let mut buffer = vec![0; COPY_LEN];
        loop {
            match from.read(&mut buffer).await.context(what)? {
                0 => return to.flush().await.context(|| "write the archive"),
                len => to.write_all(&buffer[..len]).await.context(|| "write the archive")?,
            }
        }
    };
    let pipe = path.display().to_string();
    let ask = async { client.call(&ImageCall::Save { names, pipe }.into()).await.map(drop) };
    // Whichever fails ends the other: a pipe without a reader, or an answer without bytes.
    tokio::try_join!(ask, copy)?;
    draft.map_or(Ok(()), Draft::keep)?;
    Ok(0)
}

/// What the daemon is to read.
struct Source {
    path: PathBuf,
    /// Goes with us, if standard input lies in it.
    _folder: Option<PrivateFolder>,
}

impl Source {
    fn of(file: &str) -> Result<Source> {
        if file != "-" {
            let path = std::path::absolute(file).context(|| format!("find {file}"))?;
            return Ok(Source { path, _folder: None });
        }
        let folder = PrivateFolder::create()?;
        let path = folder.path().join("stdin.tar");
        let mut to = File::create_new(&path).context(|| format!("create {}", path.display()))?;
        io::copy(&mut io::stdin(), &mut to).context(|| "read standard input")?;
        Ok(Source { path, _folder: Some(folder) })
    }

    fn text(&self) -> String {
        self.path.display().to_string()
    }
}

/// A file that gets its name when it is whole.
struct Draft {
    file: File,
    path: PathBuf,
    name: PathBuf,
}

impl Draft {
    fn create(name: &Path) -> Result<Draft> {
        let mut path = name.as_os_str().to_owned();
        path.push(format!(".{}.part", std::process::id()));
        let path = PathBuf::from(path);
        let file = File::create_new(&path).context(|| format!("create {}", path.display()))?;
        Ok(Draft { file, path, name: name.to_owned() })
    }

    fn keep(self) -> Result<()> {
        fs::rename(&self.path, &self.name).context(|| format!("write {}", self.name.display()))
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        // Gone already if it was kept.
        let _ = fs::remove_file(&self.path);
    }
}
