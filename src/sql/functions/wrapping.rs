//! Narrowing that wraps around as Java's does, for sums of small integers.

use super::scalar::{Body, scalar};
use arrow_array::cast::AsArray;
use arrow_array::types::{Int8Type, Int16Type, Int32Type, Int64Type};
use arrow_schema::DataType;
use datafusion_expr::ScalarUDF;
use std::sync::Arc;

pub(super) fn functions() -> Vec<Arc<ScalarUDF>> {
    let to_int: Body = |columns| Ok(Arc::new(columns[0].as_primitive::<Int64Type>().unary::<_, Int32Type>(|value| value as i32)));
    let to_smallint: Body = |columns| Ok(Arc::new(columns[0].as_primitive::<Int64Type>().unary::<_, Int16Type>(|value| value as i16)));
    let to_tinyint: Body = |columns| Ok(Arc::new(columns[0].as_primitive::<Int64Type>().unary::<_, Int8Type>(|value| value as i8)));
    vec![
        Arc::new(scalar("__wrap_int", vec![DataType::Int64], DataType::Int32, to_int)),
        Arc::new(scalar("__wrap_smallint", vec![DataType::Int64], DataType::Int16, to_smallint)),
        Arc::new(scalar("__wrap_tinyint", vec![DataType::Int64], DataType::Int8, to_tinyint)),
    ]
}
