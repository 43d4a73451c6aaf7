//! Reading what the shim logged: Docker's `json-file` lines, over rotated files, and on as they come.

use std::fs::File;
use std::io::{BufRead, BufReader, Seek, SeekFrom};
use std::path::PathBuf;
use std::time::Duration;

use api::engine::LogLine;
use tokio::sync::mpsc;
use types::{Context, Result};

use crate::Engine;
use crate::record::Extension;

/// How often a log that is followed is looked at.
const LOOK_PAUSE: Duration = Duration::from_millis(100);

impl Engine {
    /// Sends a container's output. With `follow`, until it ends.
    pub async fn logs(
        &self,
        text: &str,
        follow: bool,
        tail: Option<u64>,
        to: mpsc::Sender<Result<LogLine>>,
    ) -> Result<()> {
        let text = text.to_owned();
        let container = self.blocking(move |engine| engine.find(&text)).await?;
        let extension = Extension::of(&container)?;
        let path = self.files(container.id.as_str()).join("json.log");
        let first = path.clone();
        let (lines, mut offset) = self.blocking(move |_| read_all(&first, tail)).await?;
        for line in lines {
            if to.send(Ok(line)).await.is_err() {
                return Ok(());
            }
        }
        if !follow {
            return Ok(());
        }
        loop {
            let alive = self.state_of(&container.id, &extension).await.is_alive;
            let current = path.clone();
            let (lines, next) = self.blocking(move |_| read_from(&current, offset)).await?;
            offset = next;
            let is_quiet = lines.is_empty();
            for line in lines {
                if to.send(Ok(line)).await.is_err() {
                    return Ok(());
                }
            }
            if is_quiet && !alive {
                return Ok(());
            }
            if is_quiet {
                tokio::time::sleep(LOOK_PAUSE).await;
            }
        }
    }
}

/// All lines, or the last few, and where the current file ended.
fn read_all(path: &PathBuf, tail: Option<u64>) -> Result<(Vec<LogLine>, u64)> {
    let rotated = PathBuf::from(format!("{}.1", path.display()));
    let (mut lines, _) = read_from(&rotated, 0)?;
    let (current, end) = read_from(path, 0)?;
    lines.extend(current);
    if let Some(tail) = tail {
        let keep = usize::try_from(tail).unwrap_or(usize::MAX).min(lines.len());
        lines.drain(..lines.len() - keep);
    }
    Ok((lines, end))
}

/// Whole lines from an offset on. A file that became shorter was rotated, and is read from its beginning.
fn read_from(path: &PathBuf, offset: u64) -> Result<(Vec<LogLine>, u64)> {
    let what = || format!("read log {}", path.display());
    let mut file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok((Vec::new(), 0)),
        Err(error) => return Err(error).context(what),
    };
    let size = file.metadata().context(what)?.len();
    let mut at = if size < offset { 0 } else { offset };
    file.seek(SeekFrom::Start(at)).context(what)?;
    let mut reader = BufReader::new(file);
    let mut lines = Vec::new();
    let mut text = Vec::new();
    loop {
        text.clear();
        let len = reader.read_until(b'\n', &mut text).context(what)?;
        if len == 0 || text.last() != Some(&b'\n') {
            return Ok((lines, at));
        }
        at += len as u64;
        // A line that a crash damaged is not worth losing the others.
        if let Ok(line) = serde_json::from_slice(&text) {
            lines.push(line);
        }
    }
}
