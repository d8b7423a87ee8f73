//! What a filesystem table may say.

use crate::formats::{self, FormatScope, columns_of_scope, is_format_option};
use crate::options::OptionReader;
use std::path::PathBuf;
use streamshield_core::table::{OptionError, TableDefinition};

#[derive(Clone, Debug)]
pub(super) struct FilesystemOptions {
    /// A folder, or for a source one file.
    pub path: PathBuf,
}

impl FilesystemOptions {
    pub(super) fn read(table: &TableDefinition) -> Result<Self, Vec<OptionError>> {
        let mut options = OptionReader::new(table);
        let path = options.required("path", "/data/orders").map(str::trim).unwrap_or_default();
        let local = match path.split_once("://") {
            Some(("file", local)) => local,
            Some((scheme, _)) => {
                options.error(
                    "path",
                    format!("'path' = '{path}': '{scheme}://' is not supported"),
                    Some("give a local or mounted folder".into()),
                );
                ""
            }
            None => path,
        };
        let local = PathBuf::from(local);
        let errors = options.finish(|key| is_format_option(table, key));
        if errors.is_empty() { Ok(FilesystemOptions { path: local }) } else { Err(errors) }
    }
}

pub(super) fn check(table: &TableDefinition) -> Vec<OptionError> {
    let mut errors = FilesystemOptions::read(table).err().unwrap_or_default();
    errors.extend(formats::check(table, &columns_of_scope(table, FormatScope::Value), FormatScope::Value));
    errors
}
