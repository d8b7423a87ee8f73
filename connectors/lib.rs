//! The formats and the built-in connectors.
//!
//! - [`formats`]: bytes to rows and back (`json`, `csv`, `raw`), used by every connector that carries records.
//! - [`options`]: typed reading of `WITH (…)`, used by every connector.

pub mod formats;
pub mod options;
