//! Late rows as JSON, for the late topic.

use crate::operators::OperatorError;
use arrow_array::RecordBatch;
use arrow_json::writer::{LineDelimited, WriterBuilder};
use arrow_schema::{ArrowError, SchemaRef};

/// Prefix of columns that no user has made.
const HIDDEN_PREFIX: &str = "__";

/// The columns of a schema that a user knows.
pub fn visible_columns(schema: &SchemaRef) -> Vec<usize> {
    let visible = |column: &usize| !schema.field(*column).name().starts_with(HIDDEN_PREFIX);
    (0..schema.fields().len()).filter(visible).collect()
}

/// One JSON object per row, in the order of the rows; nulls are written.
pub fn json_rows(rows: &RecordBatch) -> Result<Vec<Vec<u8>>, OperatorError> {
    if rows.num_columns() == 0 {
        return Ok(vec![b"{}".to_vec(); rows.num_rows()]);
    }
    let encode = || -> Result<Vec<u8>, ArrowError> {
        let mut writer = WriterBuilder::new().with_explicit_nulls(true).build::<_, LineDelimited>(Vec::new());
        writer.write(rows)?;
        writer.finish()?;
        Ok(writer.into_inner())
    };
    let text = encode().map_err(OperatorError::arrow("late rows"))?;
    // JSON escapes a line feed within a string, so a line is an object.
    Ok(text.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()).map(<[u8]>::to_vec).collect())
}
