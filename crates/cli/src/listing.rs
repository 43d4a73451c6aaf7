//! What every command that lists things with ids can be told about how it shows them.

use clap::Args;
use serde_json::Value;
use types::Result;

use crate::output::{self, Column, rows, short, text};

#[derive(Args, Default)]
pub(crate) struct Listing {
    /// Ids only
    #[arg(long, short)]
    quiet: bool,
    /// Ids and commands as long as they are
    #[arg(long)]
    no_trunc: bool,
    /// `json`, `table TEMPLATE`, or a template
    #[arg(long)]
    format: Option<String>,
}

impl Listing {
    /// Nothing was said of how it is to look.
    pub(crate) fn is_plain(&self) -> bool {
        !self.quiet && !self.no_trunc && self.format.as_deref().is_none_or(str::is_empty)
    }

    /// Whether a template was given, and has this field.
    pub(crate) fn asks_for(&self, field: &str) -> bool {
        self.format.as_deref().is_some_and(|format| output::names_field(format, field))
    }

    /// An id as it is shown.
    pub(crate) fn id(&self, id: String) -> String {
        if self.no_trunc { id } else { short(&id) }
    }

    /// A text of which a table shows so many letters, with `…` for the rest.
    pub(crate) fn cut(&self, text: String, letters: usize) -> String {
        if self.no_trunc || text.chars().count() <= letters {
            return text;
        }
        text.chars().take(letters - 1).chain(['…']).collect()
    }

    /// Prints rows, each with its `ID` as it is shown.
    pub(crate) fn print(&self, listed: &[Value], columns: &[Column]) -> Result<()> {
        if !self.quiet {
            return rows(listed, columns, self.format.as_deref());
        }
        // A thing of several names stands there once for each.
        let mut ids: Vec<String> = listed.iter().map(|row| text(row, "ID")).collect();
        ids.dedup_by(|id, before| id == before && id != MISSING);
        ids.iter().for_each(|id| println!("{id}"));
        Ok(())
    }
}

/// What stands for the id of a step of an image that is no image by itself.
pub(crate) const MISSING: &str = "<missing>";
