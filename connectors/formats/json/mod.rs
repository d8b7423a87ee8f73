//! JSON: one object per record.
//!
//! - [`decode`]: objects to rows, in one pass over the bytes and without a tree. Flink's reading of types.
//! - `keys`: which column a field fills.
//! - [`encode`]: rows to objects.
//! - [`cursor`]: JSON's grammar: the one place that knows what is valid, over `scan`, which looks at several bytes at a time.
//!
//! Why a reader of our own and not arrow-json's: there one bad record poisons the whole batch and bytes of one record can
//! complete another, so that every batch would have to be guarded, cut and read again; types would have to be read as text
//! first where Flink differs (BYTES is base64, DECIMAL rounds, an object in a STRING keeps its text); and this is the hottest code
//! of a job. `decode_test.rs` compares the two on random records.

mod cursor;
mod decode;
mod encode;
mod keys;
mod scan;

pub use decode::JsonDecoder;
pub use encode::JsonEncoder;
pub(super) use encode::write_base64;

use super::time::TimestampStandard;
use crate::options::OptionReader;
use arrow_schema::DataType;
use streamshield_core::table::is_supported_type;

/// Options of the format, with Flink's names and defaults.
#[derive(Clone, Debug, Default)]
pub struct JsonOptions {
    /// A field that does not fit its column is NULL instead of making the record bad.
    pub ignore_parse_errors: bool,
    /// A field that is not there makes the record bad instead of being NULL.
    pub fail_on_missing_field: bool,
    pub timestamps: TimestampStandard,
    pub ignore_null_fields: bool,
}

impl JsonOptions {
    pub(super) const KEYS: [&'static str; 7] = [
        "ignore-parse-errors",
        "fail-on-missing-field",
        "timestamp-format.standard",
        "map-null-key.mode",
        "map-null-key.literal",
        "encode.decimal-as-plain-number",
        "encode.ignore-null-fields",
    ];

    pub(super) fn read(options: &mut OptionReader<'_>, prefix: &str) -> Self {
        let [ignore, missing, standard, null_key, null_literal, plain, ignore_nulls] = Self::KEYS.map(|key| format!("{prefix}{key}"));
        // Keys of a MAP are never null here, and decimals are always written plainly: these are checked and change nothing.
        options.choice(&null_key, &["FAIL", "DROP", "LITERAL"]);
        options.text(&null_literal);
        options.boolean(&plain);
        let read = JsonOptions {
            ignore_parse_errors: options.boolean(&ignore).unwrap_or(false),
            fail_on_missing_field: options.boolean(&missing).unwrap_or(false),
            timestamps: match options.choice(&standard, &["SQL", "ISO-8601"]) {
                Some("ISO-8601") => TimestampStandard::Iso8601,
                _ => TimestampStandard::Sql,
            },
            ignore_null_fields: options.boolean(&ignore_nulls).unwrap_or(false),
        };
        if read.ignore_parse_errors && read.fail_on_missing_field {
            options.error(&missing, format!("'{missing}' and '{ignore}' can't both be 'true'"), None);
        }
        read
    }
}

/// Whether JSON can carry a column of this type: all supported types, with text as the keys of a MAP.
pub(super) fn supports(data_type: &DataType) -> bool {
    match data_type {
        DataType::List(item) => supports(item.data_type()),
        DataType::Struct(fields) => fields.iter().all(|field| supports(field.data_type())),
        DataType::Map(entries, _) => match entries.data_type() {
            DataType::Struct(fields) => fields.len() == 2 && *fields[0].data_type() == DataType::Utf8 && supports(fields[1].data_type()),
            _ => false,
        },
        scalar => is_supported_type(scalar),
    }
}

#[cfg(test)]
mod bench_test;
#[cfg(test)]
mod decode_test;
#[cfg(test)]
mod encode_test;
