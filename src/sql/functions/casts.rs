//! Casts that DataFusion's optimizer does not see through.
//!
//! It compares what was cast with a literal as if the cast had kept all digits. Where one may lose some (a decimal to fewer digits), or the literal has more
//! than what is cast (a time), the cast is a function.

use super::scalar::{Returns, of_any};
use arrow_array::ArrayRef;
use arrow_cast::{CastOptions, cast_with_options};
use arrow_schema::DataType;
use datafusion_common::{Result, ScalarValue};
use datafusion_expr::{Expr, ScalarUDF};
use std::sync::Arc;

pub(super) fn functions() -> Vec<Arc<ScalarUDF>> {
    [false, true].map(|is_try| Arc::new(cast_function(is_try))).into()
}

/// The second argument is a value of the wanted type.
fn cast_function(is_try: bool) -> ScalarUDF {
    match is_try {
        true => of_any("__try_cast", 2..=2, Returns::LikeArgument(1), |columns| cast_like(columns, true)),
        false => of_any("__cast", 2..=2, Returns::LikeArgument(1), |columns| cast_like(columns, false)),
    }
}

/// A cast that DataFusion's optimizer does not see through.
pub(crate) fn cast_by_function(value: Expr, to: &DataType, is_try: bool) -> Result<Expr> {
    Ok(cast_function(is_try).call(vec![value, Expr::Literal(ScalarValue::new_zero(to)?, None)]))
}

/// What does not fit is NULL if it becomes a decimal, as in Flink, or in a TRY_CAST; else the row is refused.
fn cast_like(columns: &[ArrayRef], is_try: bool) -> Result<ArrayRef> {
    let to = columns[1].data_type();
    let options = CastOptions { safe: is_try || matches!(to, DataType::Decimal128(..)), ..CastOptions::default() };
    Ok(cast_with_options(&columns[0], to, &options)?)
}
