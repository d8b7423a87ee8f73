//! What a print table may say.

use crate::options::OptionReader;
use streamshield_core::table::{OptionError, TableDefinition};

#[derive(Clone, Debug, Default)]
pub(super) struct PrintOptions {
    /// `<identifier>> ` in front of every row.
    pub identifier: Option<String>,
    pub standard_error: bool,
}

impl PrintOptions {
    pub(super) fn read(table: &TableDefinition) -> Result<Self, Vec<OptionError>> {
        let mut options = OptionReader::new(table);
        let read = PrintOptions {
            identifier: options.text("print-identifier").filter(|text| !text.is_empty()).map(str::to_string),
            standard_error: options.boolean("standard-error").unwrap_or(false),
        };
        let errors = options.finish(|_| false);
        if errors.is_empty() { Ok(read) } else { Err(errors) }
    }
}
