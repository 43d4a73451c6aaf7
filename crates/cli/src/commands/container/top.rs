//! `top`: shows the processes of a container.

use api::engine::Call;
use clap::Args;
use client::Client;
use types::Result;

use crate::commands::list;
use crate::output;

#[derive(Args)]
pub(crate) struct Flags {
    /// Name or id
    container: String,
    /// Options of ps: -ef, aux, or -o COLUMN,…
    #[arg(value_name = "PS-OPTIONS", trailing_var_arg = true, allow_hyphen_values = true)]
    options: Vec<String>,
}

pub(super) async fn run(client: &Client, flags: Flags) -> Result<u8> {
    let answer = client.call(&Call::Top { id: flags.container, options: flags.options }).await?;
    let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
    let titles: Vec<&str> = list(&answer["Titles"]).iter().filter_map(serde_json::Value::as_str).collect();
    let rows: Vec<Vec<String>> =
        list(&answer["Processes"]).iter().map(|row| list(row).iter().map(text).collect()).collect();
    output::grid(&titles, &rows);
    Ok(0)
}
