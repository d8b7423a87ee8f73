//! Reads a format's options: which format a scope has, under which prefix its options stand, and their values.

use super::FormatScope;
use super::csv::CsvOptions;
use super::json::JsonOptions;
use super::raw::RawOptions;
use crate::options::{OptionReader, list, nearest, refuse};
use arrow_schema::SchemaRef;
use streamshield_core::table::{Column, ColumnKind, OptionError, TableDefinition};

const FORMATS: [&str; 3] = ["json", "csv", "raw"];

pub(super) enum FormatKind {
    Json(JsonOptions),
    Csv(CsvOptions),
    Raw(RawOptions),
}

impl FormatKind {
    pub(super) fn name(&self) -> &'static str {
        match self {
            FormatKind::Json(_) => "json",
            FormatKind::Csv(_) => "csv",
            FormatKind::Raw(_) => "raw",
        }
    }
}

/// The format of one scope of one table.
pub(super) struct Settings {
    pub format: FormatKind,
    /// The option that names the format, for errors.
    pub format_key: &'static str,
    scope: FormatScope,
}

impl Settings {
    pub(super) fn read(table: &TableDefinition, scope: FormatScope) -> Result<Settings, Vec<OptionError>> {
        let Some((format_key, name)) = format_name(table, scope) else {
            let key = if scope == FormatScope::Key { "key.format" } else { "format" };
            return Err(vec![refuse("", format!("table '{}' has no '{key}'", table.name), Some(format!("add '{key}' = 'json'")))]);
        };
        let mut options = OptionReader::new(table);
        let prefix = option_prefix(table, scope).unwrap_or_default();
        let format = match name {
            "json" => FormatKind::Json(JsonOptions::read(&mut options, &prefix)),
            "csv" => FormatKind::Csv(CsvOptions::read(&mut options, &prefix)),
            "raw" => FormatKind::Raw(RawOptions::read(&mut options, &prefix)),
            unknown => {
                let hint = nearest(unknown, FORMATS).map(|near| format!("did you mean '{near}'?"));
                return Err(vec![refuse(format_key, format!("there is no format '{unknown}'; known are {}", list(&FORMATS)), hint)]);
            }
        };
        let errors = options.finish(|_| true);
        if errors.is_empty() { Ok(Settings { format, format_key, scope }) } else { Err(errors) }
    }

    /// Each field's name in the record: its own, without `key.fields-prefix` in a key.
    pub(super) fn record_names(&self, table: &TableDefinition, schema: &SchemaRef) -> Vec<String> {
        let prefix = table.option("key.fields-prefix").filter(|_| self.scope == FormatScope::Key).unwrap_or("");
        schema.fields().iter().map(|field| field.name().strip_prefix(prefix).unwrap_or(field.name()).to_string()).collect()
    }

    /// How many columns the scope has, and each field's place among them.
    pub(super) fn places(&self, table: &TableDefinition, schema: &SchemaRef) -> Result<(usize, Vec<usize>), OptionError> {
        let columns = columns_of_scope(table, self.scope);
        let place = |name: &str| columns.iter().position(|column| column.field.name() == name);
        let unknown = |name: &str| refuse("", format!("column '{name}' is no column of this format in table '{}'", table.name), None);
        let places =
            schema.fields().iter().map(|field| place(field.name()).ok_or_else(|| unknown(field.name()))).collect::<Result<_, _>>()?;
        Ok((columns.len(), places))
    }
}

/// The physical columns that a scope carries, in table order: the key has those of `key.fields` (the primary key of
/// `upsert-kafka`), the value has all, or all but the key's where `value.fields-include` = 'EXCEPT_KEY'.
pub fn columns_of_scope(table: &TableDefinition, scope: FormatScope) -> Vec<Column> {
    let in_key = |column: &Column| match table.option("key.fields") {
        Some(fields) => fields.split(';').any(|field| field.trim() == column.field.name()),
        None => table.connector() == "upsert-kafka" && table.primary_key.contains(column.field.name()),
    };
    let value_without_key = table.option("value.fields-include").is_some_and(|text| text.eq_ignore_ascii_case("EXCEPT_KEY"));
    let wanted = |column: &&Column| match scope {
        _ if column.kind != ColumnKind::Physical => false,
        FormatScope::Key => in_key(column),
        FormatScope::Value => !(value_without_key && in_key(column)),
    };
    table.columns.iter().filter(wanted).cloned().collect()
}

/// `value.json.`, `json.` or `key.json.`: what the names of the scope's format options begin with.
pub(super) fn option_prefix(table: &TableDefinition, scope: FormatScope) -> Option<String> {
    let (key, name) = format_name(table, scope)?;
    Some(format!("{}{name}.", key.strip_suffix("format").unwrap_or_default()))
}

fn format_name(table: &TableDefinition, scope: FormatScope) -> Option<(&'static str, &str)> {
    let keys: &[&'static str] = match scope {
        FormatScope::Value => &["value.format", "format"],
        FormatScope::Key => &["key.format"],
    };
    keys.iter().find_map(|key| Some((*key, table.option(key)?)))
}

/// Options that stand under the format's prefix and that it does not know.
pub(super) fn unknown_options(table: &TableDefinition, scope: FormatScope) -> Vec<OptionError> {
    let Some((_, name)) = format_name(table, scope) else { return Vec::new() };
    let prefix = option_prefix(table, scope).unwrap_or_default();
    let known: &[&str] = match name {
        "json" => &JsonOptions::KEYS,
        "csv" => &CsvOptions::KEYS,
        "raw" => &RawOptions::KEYS,
        _ => return Vec::new(),
    };
    let mut errors = Vec::new();
    for key in table.options.keys() {
        let Some(option) = key.strip_prefix(&prefix) else { continue };
        if !known.contains(&option) {
            let hint = nearest(option, known.iter().copied()).map(|near| format!("did you mean '{prefix}{near}'?"));
            errors.push(refuse(key, format!("the format '{name}' has no option '{option}'"), hint));
        }
    }
    errors
}
