//! The functions that a query may call: DataFusion's, and Flink's where the name or the meaning differs.
//!
//! - [`clock`]: functions that read the epoch's clock or seed;
//! - [`seeded`]: what `RAND()` and `UUID()` become;
//! - [`datetime`], with Java's date patterns in [`pattern`]; [`strings`]; [`encodings`]; [`wrapping`]; [`decimals`]; [`doubles`]; [`casts`].
//!
//! The session's time zone is UTC.
//!
//! Names are not case-sensitive. Aggregates whose state grows with their input are refused where they are planned.

pub(crate) mod casts;
pub(crate) mod clock;
mod datetime;
pub(crate) mod decimals;
mod doubles;
mod encodings;
mod pattern;
mod scalar;
mod seeded;
mod strings;
mod wrapping;

use crate::error::{Checked, place_of};
use datafusion_common::ScalarValue;
use datafusion_expr::expr::ScalarFunction;
use datafusion_expr::{AggregateUDF, Expr, ScalarUDF};
use std::collections::BTreeMap;
use std::sync::Arc;

/// All functions by lower-case name.
pub(crate) struct Functions {
    pub scalars: BTreeMap<String, Arc<ScalarUDF>>,
    pub aggregates: BTreeMap<String, Arc<AggregateUDF>>,
}

impl Functions {
    pub fn new() -> Self {
        let mut scalars = BTreeMap::new();
        let theirs =
            datafusion_functions::all_default_functions().into_iter().chain(datafusion_functions_nested::all_default_nested_functions());
        // Ours come last: they replace what has the same name.
        let ours = clock::functions().into_iter().chain(datetime::functions()).chain(strings::functions());
        let ours = ours
            .chain(encodings::functions())
            .chain(wrapping::functions())
            .chain(decimals::functions())
            .chain(doubles::functions())
            .chain(casts::functions());
        for function in theirs.chain(ours) {
            for name in function.aliases() {
                scalars.insert(name.to_lowercase(), Arc::clone(&function));
            }
            scalars.insert(function.name().to_lowercase(), function);
        }
        // Flink's SHA functions give hexadecimal digits, its GREATEST and LEAST give NULL if an argument is; `rewrite` calls DataFusion's by
        // these names.
        for name in ["sha224", "sha256", "sha384", "sha512", "greatest", "least"] {
            if let Some(function) = scalars.get(name).cloned() {
                scalars.insert(format!("__{name}"), function);
            }
        }
        let mut aggregates = BTreeMap::new();
        for function in datafusion_functions_aggregate::all_default_aggregate_functions() {
            for name in function.aliases() {
                aggregates.insert(name.to_lowercase(), Arc::clone(&function));
            }
            aggregates.insert(function.name().to_lowercase(), function);
        }
        Functions { scalars, aggregates }
    }
}

/// Refuses a call for an argument that is written out and that its body would refuse in each row: every record would be a bad one.
pub(crate) fn check_literals(call: &ScalarFunction) -> Checked<()> {
    let literal = |index: usize| match call.args.get(index) {
        Some(Expr::Literal(value, _)) => Some(value),
        _ => None,
    };
    let text = |index: usize| literal(index).and_then(|value| value.try_as_str().flatten());
    let checked = match (call.func.name(), literal(1)) {
        ("to_timestamp_ltz", Some(ScalarValue::Int32(Some(precision)))) => datetime::check_precision(i64::from(*precision)),
        ("to_timestamp_ltz", Some(ScalarValue::Int64(Some(precision)))) => datetime::check_precision(*precision),
        ("date_format" | "to_timestamp" | "to_timestamp_ltz" | "to_date" | "unix_timestamp" | "from_unixtime", _) => {
            text(1).map_or(Ok(()), datetime::check_pattern)
        }
        ("__timestamp_diff" | "__timestamp_add" | "__floor_to" | "__ceil_to", _) => text(0).map_or(Ok(()), datetime::check_unit),
        ("regexp_extract" | "regexp_replace" | "regexp_like" | "regexp_match" | "regexp_count" | "regexp_instr", _) => {
            text(1).map_or(Ok(()), strings::check_expression)
        }
        ("json_value", _) => text(1).map_or(Ok(()), strings::check_path),
        ("str_to_map", _) => [text(1), text(2)].into_iter().flatten().try_for_each(strings::check_separator),
        ("convert_tz", _) => [text(1), text(2)].into_iter().flatten().try_for_each(datetime::check_zone),
        _ => Ok(()),
    };
    checked.map_err(|fault| match place_of(&call.args) {
        Some(place) => fault.at(place),
        None => fault,
    })
}
