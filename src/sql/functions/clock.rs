//! Functions that read the clock or a generator: placeholders in the logical plan, hidden columns in the physical one.
//!
//! A plan must give the same rows in every replay, so none of them may ask the machine, and none may be folded while
//! planning. They are volatile functions that can't be evaluated; [`crate::lower`] replaces each by an expression over `__now` or
//! `__seed`, which the engine fills from the epoch's record.

use arrow_schema::{DataType, TimeUnit};
use datafusion_common::{Result, ScalarValue, exec_err};
use datafusion_expr::{ColumnarValue, Expr, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility, cast, lit};
use std::sync::Arc;

pub(crate) const PROCTIME: &str = "proctime";

/// What a placeholder stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Reading {
    /// The epoch's clock as an instant, TIMESTAMP_LTZ(3).
    Now,
    /// The epoch's clock in the session's zone, TIMESTAMP(3).
    LocalNow,
    Date,
    Time,
    /// Seconds since 1970.
    UnixSeconds,
    Random,
    Uuid,
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct Placeholder {
    name: &'static str,
    reading: Reading,
    signature: Signature,
}

const PLACEHOLDERS: &[(&str, Reading)] = &[
    (PROCTIME, Reading::Now),
    ("now", Reading::Now),
    ("current_timestamp", Reading::Now),
    ("current_row_timestamp", Reading::Now),
    ("localtimestamp", Reading::LocalNow),
    ("current_date", Reading::Date),
    ("today", Reading::Date),
    ("current_time", Reading::Time),
    ("localtime", Reading::Time),
    ("__unix_timestamp_now", Reading::UnixSeconds),
    ("rand", Reading::Random),
    ("random", Reading::Random),
    ("uuid", Reading::Uuid),
];

pub(super) fn functions() -> Vec<Arc<ScalarUDF>> {
    let placeholder = |(name, reading): &(&'static str, Reading)| {
        Arc::new(ScalarUDF::new_from_impl(Placeholder { name, reading: *reading, signature: Signature::nullary(Volatility::Volatile) }))
    };
    PLACEHOLDERS.iter().map(placeholder).collect()
}

fn now_type() -> DataType {
    DataType::Timestamp(TimeUnit::Millisecond, Some("UTC".into()))
}

impl ScalarUDFImpl for Placeholder {
    fn name(&self) -> &str {
        self.name
    }
    fn signature(&self) -> &Signature {
        &self.signature
    }
    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        Ok(match self.reading {
            Reading::Now => now_type(),
            Reading::LocalNow => DataType::Timestamp(TimeUnit::Millisecond, None),
            Reading::Date => DataType::Date32,
            Reading::Time => DataType::Time32(TimeUnit::Millisecond),
            Reading::UnixSeconds => DataType::Int64,
            Reading::Random => DataType::Float64,
            Reading::Uuid => DataType::Utf8,
        })
    }
    fn return_field_from_args(&self, _: datafusion_expr::ReturnFieldArgs) -> Result<arrow_schema::FieldRef> {
        Ok(Arc::new(arrow_schema::Field::new(self.name, self.return_type(&[])?, false)))
    }
    fn invoke_with_args(&self, _: ScalarFunctionArgs) -> Result<ColumnarValue> {
        exec_err!("{} reads the epoch and has no value while planning", self.name)
    }
}

/// Which hidden columns an expression reads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Readings {
    pub now: bool,
    pub seed: bool,
}

/// The expression that a placeholder stands for. `site` counts the call sites, so that two `RAND()` of a row differ.
pub(crate) fn replace(expression: &Expr, now: &Expr, seed: &Expr, site: &mut u64, readings: &mut Readings) -> Option<Expr> {
    let Expr::ScalarFunction(call) = expression else { return None };
    let placeholder = call.func.inner().as_any_placeholder()?;
    match placeholder.reading {
        Reading::Random | Reading::Uuid => readings.seed = true,
        _ => readings.now = true,
    }
    let milliseconds = || cast(now.clone(), DataType::Int64);
    let mut seeded = |make: fn() -> ScalarUDF| {
        *site += 1;
        make().call(vec![seed.clone(), Expr::Literal(ScalarValue::UInt64(Some(*site)), None)])
    };
    Some(match placeholder.reading {
        Reading::Now => now.clone(),
        Reading::LocalNow => cast(now.clone(), DataType::Timestamp(TimeUnit::Millisecond, None)),
        Reading::Date => cast(now.clone(), DataType::Date32),
        Reading::Time => cast(cast(milliseconds() % lit(86_400_000i64), DataType::Int32), DataType::Time32(TimeUnit::Millisecond)),
        Reading::UnixSeconds => milliseconds() / lit(1000i64),
        Reading::Random => seeded(super::seeded::random),
        Reading::Uuid => seeded(super::seeded::uuid),
    })
}

/// Finds our own placeholder behind a function.
trait AsPlaceholder {
    fn as_any_placeholder(&self) -> Option<&Placeholder>;
}

impl AsPlaceholder for Arc<dyn ScalarUDFImpl> {
    fn as_any_placeholder(&self) -> Option<&Placeholder> {
        (self.as_ref() as &dyn std::any::Any).downcast_ref()
    }
}
