//! A blackhole table has no options of its own.

use crate::options::OptionReader;
use streamshield_core::table::{OptionError, TableDefinition};

pub(super) fn check(table: &TableDefinition) -> Vec<OptionError> {
    OptionReader::new(table).finish(|_| false)
}
