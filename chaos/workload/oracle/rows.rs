//! Rows of the outputs, as the job's JSON has them.

use serde::Deserialize;
use std::borrow::Cow;

#[derive(Debug, Deserialize)]
pub struct PassedRow<'a> {
    #[serde(borrow)]
    pub k: Option<Cow<'a, str>>,
    pub n: i64,
    pub seq: i64,
    pub v: i64,
    pub due_ms: i64,
}

#[derive(Debug, Deserialize)]
pub struct WindowRow<'a> {
    #[serde(borrow)]
    pub k: Option<Cow<'a, str>>,
    #[serde(borrow)]
    pub window_end: Cow<'a, str>,
    pub n: u64,
    pub s: i64,
    pub due_ms: i64,
}

#[derive(Debug, Deserialize)]
pub struct TransferRow<'a> {
    pub n: i64,
    #[serde(borrow)]
    pub account: Cow<'a, str>,
    pub amount: i64,
}

#[derive(Debug, Deserialize)]
pub struct MarkerRow {
    pub n: i64,
    pub part: i32,
}
