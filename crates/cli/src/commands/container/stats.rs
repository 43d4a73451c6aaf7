//! `stats`: shows the resource usage of containers.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use api::engine::Call;
use clap::Args;
use client::Client;
use serde_json::Value;
use types::Result;

use crate::commands::list;
use crate::output::{self, memory, rows, short, size, text};

#[derive(Args)]
pub(crate) struct Flags {
    /// Also containers that do not run
    #[arg(long, short)]
    all: bool,
    /// Show full ids
    #[arg(long)]
    no_trunc: bool,
    /// Print one sample and exit
    #[arg(long)]
    no_stream: bool,
    /// `json`, `table TEMPLATE`, or a template
    #[arg(long)]
    format: Option<String>,
    /// Names or ids [default: all that run]
    containers: Vec<String>,
}

pub(super) async fn run(client: &Client, flags: Flags) -> Result<u8> {
    let Flags { all, no_trunc, no_stream, format, containers: ids } = flags;
    let id_shown = |id: String| if no_trunc { id } else { short(&id) };
    const INTERVAL: Duration = Duration::from_millis(500);
    let mut before = client.call(&Call::Stats { ids: ids.clone(), all }).await?;
    let mut seen = Instant::now();
    loop {
        tokio::time::sleep(INTERVAL).await;
        let mut now = client.call(&Call::Stats { ids: ids.clone(), all }).await?;
        // Sampling many containers takes time, which rates must not ignore.
        let elapsed = seen.elapsed();
        for row in now.as_array_mut().into_iter().flatten() {
            let earlier = list(&before).iter().find(|old| old["ID"] == row["ID"]);
            let used = |row: &Value| row["CpuNanos"].as_u64().unwrap_or(0);
            let spent = used(row).saturating_sub(earlier.map_or(used(row), used));
            let number = |key: &str| row[key].as_u64().unwrap_or(0);
            let percent = spent as f64 / elapsed.as_nanos() as f64 * 100.0;
            let (usage, limit) = (number("MemoryBytes"), number("MemoryLimit"));
            let share = if limit == 0 { 0.0 } else { usage as f64 / limit as f64 * 100.0 };
            let block = format!("{} / {}", size(number("BlockRead")), size(number("BlockWrite")));
            let net = format!("{} / {}", size(number("NetReceived")), size(number("NetSent")));
            row["CPUPerc"] = format!("{percent:.2}%").into();
            row["MemUsage"] = format!("{} / {}", memory(usage), memory(limit)).into();
            row["MemPerc"] = format!("{share:.2}%").into();
            (row["BlockIO"], row["NetIO"]) = (block.into(), net.into());
            if row["Container"] == row["ID"] {
                row["Container"] = id_shown(text(row, "ID")).into();
            }
            row["ID"] = id_shown(text(row, "ID")).into();
        }
        let columns: &[output::Column] = &[
            ("CONTAINER ID", |row| text(row, "ID")),
            ("NAME", |row| text(row, "Name")),
            ("CPU %", |row| text(row, "CPUPerc")),
            ("MEM USAGE / LIMIT", |row| text(row, "MemUsage")),
            ("MEM %", |row| text(row, "MemPerc")),
            ("NET I/O", |row| text(row, "NetIO")),
            ("BLOCK I/O", |row| text(row, "BlockIO")),
            ("PIDS", |row| text(row, "PIDs")),
        ];
        if !no_stream && std::io::stdout().is_terminal() {
            print!("\x1b[H\x1b[J");
        }
        rows(list(&now), columns, format.as_deref())?;
        if no_stream {
            return Ok(0);
        }
        before = client.call(&Call::Stats { ids: ids.clone(), all }).await?;
        seen = Instant::now();
    }
}
