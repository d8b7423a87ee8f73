//! Messages to rows: value, key and metadata columns, in the order that was asked for.
//!
//! The value's decoder runs even if no value column is asked for, so that which records are bad does not depend on the
//! query. A column that both key and value carry is taken from the value, as in Flink.

use crate::fetch::FetchedMessage;
use crate::metadata::MetadataBuilder;
use crate::options::{TableOptions, effective};
use crate::source::origin_of;
use arrow_array::{ArrayRef, BooleanArray, RecordBatch, RecordBatchOptions};
use arrow_schema::{ArrowError, DataType, Schema, SchemaRef};
use arrow_select::filter::filter_record_batch;
use std::collections::BTreeMap;
use std::sync::Arc;
use streamshield_connectors::formats::{self, Decoded, FormatScope, RecordDecoder, columns_of_scope};
use streamshield_connectors::options::refuse;
use streamshield_core::ports::log::MessageView;
use streamshield_core::ports::source::BadRecord;
use streamshield_core::table::{ColumnKind, OptionError, SourceRequest};

const TOMBSTONE: &str = "null value (tombstone)";

/// Where a requested column comes from.
enum Place {
    Value(usize),
    Key(usize),
    Metadata(usize),
}

/// Rows of the good messages and what is wrong with the others.
pub(crate) struct Rows {
    pub rows: RecordBatch,
    pub bad: Vec<BadRecord>,
    /// Message of each row; None when every message is a row.
    pub kept: Option<Vec<u32>>,
    pub newest_timestamp_ms: Option<i64>,
}

/// Decodes the messages of one partition.
pub(crate) struct RowDecoder {
    schema: SchemaRef,
    places: Vec<Place>,
    value: Box<dyn RecordDecoder>,
    key: Option<Box<dyn RecordDecoder>>,
    /// Key and declared type of each metadata column.
    metadata: Vec<(String, DataType)>,
    topic: Arc<str>,
    partition: i32,
    with_headers: bool,
}

impl RowDecoder {
    pub fn new(request: &SourceRequest, options: &TableOptions, partition: i32) -> Result<Self, OptionError> {
        let table = effective(&request.table);
        let names = |scope| columns_of_scope(&table, scope).into_iter().map(|column| column.field.name().clone()).collect::<Vec<_>>();
        let in_value = names(FormatScope::Value);
        let in_key = if options.has_key { names(FormatScope::Key) } else { Vec::new() };
        let (mut places, mut value_fields, mut key_fields, mut metadata) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for (column, field) in request.columns.iter().zip(request.schema.fields()) {
            places.push(match &column.kind {
                ColumnKind::Metadata { key, .. } => {
                    metadata.push((key.clone(), field.data_type().clone()));
                    Place::Metadata(metadata.len() - 1)
                }
                _ if in_value.contains(field.name()) => {
                    value_fields.push(Arc::clone(field));
                    Place::Value(value_fields.len() - 1)
                }
                _ if in_key.contains(field.name()) => {
                    key_fields.push(Arc::clone(field));
                    Place::Key(key_fields.len() - 1)
                }
                _ => return Err(refuse("", format!("column '{}' is neither in the value nor in the key", field.name()), None)),
            });
        }
        let topic: Arc<str> = options.topic.as_str().into();
        if let Some((key, _)) = metadata.iter().find(|(key, _)| MetadataBuilder::new(key, &topic, 0).is_none()) {
            return Err(refuse("", format!("the connector 'kafka' has no metadata '{key}'"), None));
        }
        let value = formats::decoder(&table, FormatScope::Value, &Arc::new(Schema::new(value_fields)))?;
        let key = match key_fields.is_empty() {
            true => None,
            false => Some(formats::decoder(&table, FormatScope::Key, &Arc::new(Schema::new(key_fields)))?),
        };
        let with_headers = metadata.iter().any(|(key, _)| key == "headers");
        Ok(RowDecoder { schema: Arc::clone(&request.schema), places, value, key, metadata, topic, partition, with_headers })
    }

    /// Decodes messages, none of which is an error.
    pub fn decode(&mut self, messages: &[FetchedMessage]) -> Result<Rows, ArrowError> {
        let (mut headers, mut ends) = (Vec::new(), Vec::new());
        if self.with_headers {
            for message in messages {
                message.headers_into(&mut headers);
                ends.push(headers.len());
            }
        }
        let mut start = 0;
        let mut views = Vec::with_capacity(messages.len());
        for (index, message) in messages.iter().enumerate() {
            let end = ends.get(index).copied().unwrap_or(0);
            views.push(message.view(&headers[start..end]));
            start = end;
        }
        let newest_timestamp_ms = views.iter().map(|view| view.timestamp_ms).max().filter(|newest| *newest >= 0);
        let (value, key, reasons) = self.decode_scopes(&views)?;
        let kept: Option<Vec<u32>> =
            (!reasons.is_empty()).then(|| (0..views.len() as u32).filter(|index| !reasons.contains_key(&(*index as usize))).collect());
        let metadata = self.metadata_columns(&views, kept.as_deref())?;
        let columns = self
            .places
            .iter()
            .map(|place| match place {
                Place::Value(index) => Arc::clone(value.column(*index)),
                Place::Key(index) => Arc::clone(key.as_ref().unwrap_or(&value).column(*index)),
                Place::Metadata(index) => Arc::clone(&metadata[*index]),
            })
            .collect();
        let count = RecordBatchOptions::new().with_row_count(Some(views.len() - reasons.len()));
        let rows = RecordBatch::try_new_with_options(Arc::clone(&self.schema), columns, &count)?;
        let bad = reasons.into_iter().map(|(index, reason)| self.bad_record(&messages[index], reason)).collect();
        Ok(Rows { rows, bad, kept, newest_timestamp_ms })
    }

    /// Rows of value and key that both are good, and why the other messages are bad.
    fn decode_scopes(
        &mut self,
        views: &[MessageView<'_>],
    ) -> Result<(RecordBatch, Option<RecordBatch>, BTreeMap<usize, String>), ArrowError> {
        let payloads: Vec<_> = views.iter().map(|view| view.payload).collect();
        let value = self.value.decode(&payloads);
        let key = self.key.as_mut().map(|key| key.decode(&views.iter().map(|view| view.key).collect::<Vec<_>>()));
        let mut reasons: BTreeMap<usize, String> = BTreeMap::new();
        for (index, reason) in &value.bad {
            reasons.insert(*index, if payloads[*index].is_none() { TOMBSTONE.to_string() } else { reason.clone() });
        }
        for (index, reason) in key.iter().flat_map(|key| &key.bad) {
            reasons.entry(*index).or_insert_with(|| format!("key: {reason}"));
        }
        let value = both_good(value, &reasons, views.len())?;
        let key = key.map(|key| both_good(key, &reasons, views.len())).transpose()?;
        Ok((value, key, reasons))
    }

    fn metadata_columns(&self, views: &[MessageView<'_>], kept: Option<&[u32]>) -> Result<Vec<ArrayRef>, ArrowError> {
        let mut columns = Vec::with_capacity(self.metadata.len());
        for (key, data_type) in &self.metadata {
            let unknown = || ArrowError::SchemaError(format!("no metadata '{key}'"));
            let mut builder = MetadataBuilder::new(key, &self.topic, self.partition).ok_or_else(unknown)?;
            match kept {
                None => views.iter().for_each(|view| builder.append(view)),
                Some(kept) => kept.iter().for_each(|index| builder.append(&views[*index as usize])),
            }
            columns.push(builder.finish(data_type)?);
        }
        Ok(columns)
    }

    fn bad_record(&self, message: &FetchedMessage, reason: String) -> BadRecord {
        let mut headers = Vec::new();
        message.headers_into(&mut headers);
        BadRecord { origin: origin_of(&self.topic, self.partition as u32, &message.view(&headers)), reason }
    }
}

/// Takes out of one scope's rows those whose message is bad in the other.
fn both_good(decoded: Decoded, reasons: &BTreeMap<usize, String>, messages: usize) -> Result<RecordBatch, ArrowError> {
    if decoded.bad.len() == reasons.len() {
        return Ok(decoded.rows);
    }
    let mut own_bad = decoded.bad.iter().map(|(index, _)| *index).peekable();
    let good_here = (0..messages).filter(|index| own_bad.next_if_eq(index).is_none());
    let mask: BooleanArray = good_here.map(|index| Some(!reasons.contains_key(&index))).collect();
    filter_record_batch(&decoded.rows, &mask)
}
