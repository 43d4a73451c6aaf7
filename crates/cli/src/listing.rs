//! Output flags of all commands that list objects with ids.

use clap::Args;
use serde_json::Value;
use types::Result;

use crate::output::{self, Column, rows, short, text};

#[derive(Args, Default)]
pub(crate) struct Listing {
    /// Only show ids
    #[arg(long, short)]
    quiet: bool,
    /// Do not truncate ids and commands
    #[arg(long)]
    no_trunc: bool,
    /// `json`, `table TEMPLATE`, or a template
    #[arg(long)]
    format: Option<String>,
}

impl Listing {
    /// Whether no flag about the output is given.
    pub(crate) fn is_plain(&self) -> bool {
        !self.quiet && !self.no_trunc && self.format.as_deref().is_none_or(str::is_empty)
    }

    /// Whether a template is given that uses this field.
    pub(crate) fn asks_for(&self, field: &str) -> bool {
        self.format.as_deref().is_some_and(|format| output::names_field(format, field))
    }

    /// An id, in short form unless `--no-trunc` is given.
    pub(crate) fn id(&self, id: String) -> String {
        if self.no_trunc { id } else { short(&id) }
    }

    /// A text cut to a number of letters, with `…` at the end, unless `--no-trunc` is given.
    pub(crate) fn cut(&self, text: String, letters: usize) -> String {
        if self.no_trunc || text.chars().count() <= letters {
            return text;
        }
        text.chars().take(letters - 1).chain(['…']).collect()
    }

    /// Prints rows; with `--quiet` only their ids.
    pub(crate) fn print(&self, listed: &[Value], columns: &[Column]) -> Result<()> {
        if !self.quiet {
            return rows(listed, columns, self.format.as_deref());
        }
        // An object with several names has several rows, but one id.
        let mut ids: Vec<String> = listed.iter().map(|row| text(row, "ID")).collect();
        ids.dedup_by(|id, before| id == before && id != MISSING);
        ids.iter().for_each(|id| println!("{id}"));
        Ok(())
    }
}

/// Printed in place of the id of a build step that is no image of its own.
pub(crate) const MISSING: &str = "<missing>";
