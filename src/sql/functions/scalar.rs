//! A scalar function as a name, types and a body over arrays.

use super::decimals::Operation;
use arrow_array::ArrayRef;
use arrow_schema::DataType;
use datafusion_common::{Result, plan_err};
use datafusion_expr::{ColumnarValue, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, TypeSignature, Volatility};

/// Gets all arguments as arrays of the batch's length.
pub(super) type Body = fn(&[ArrayRef]) -> Result<ArrayRef>;

#[derive(Debug, PartialEq, Eq, Hash)]
struct Scalar {
    name: &'static str,
    signature: Signature,
    returns: Returns,
    body: BodyOf,
}

#[derive(Debug, PartialEq, Eq, Hash)]
pub(super) enum Returns {
    Always(DataType),
    /// The type of one of the arguments.
    LikeArgument(usize),
    /// Of decimals that are calculated with.
    Decimal(Operation),
}

/// Functions are equal by name.
#[derive(Clone, Copy)]
struct BodyOf(Body);

impl std::fmt::Debug for BodyOf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("body")
    }
}
impl PartialEq for BodyOf {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}
impl Eq for BodyOf {}
impl std::hash::Hash for BodyOf {
    fn hash<H: std::hash::Hasher>(&self, _: &mut H) {}
}

/// A function with one list of argument types.
pub(super) fn scalar(name: &'static str, arguments: Vec<DataType>, returns: DataType, body: Body) -> ScalarUDF {
    overloaded(name, vec![arguments], returns, body)
}

/// A function with several.
pub(super) fn overloaded(name: &'static str, signatures: Vec<Vec<DataType>>, returns: DataType, body: Body) -> ScalarUDF {
    let signatures =
        signatures.into_iter().map(|arguments| if arguments.is_empty() { TypeSignature::Nullary } else { TypeSignature::Exact(arguments) });
    let signature = Signature::one_of(signatures.collect(), Volatility::Immutable);
    ScalarUDF::new_from_impl(Scalar { name, signature, returns: Returns::Always(returns), body: BodyOf(body) })
}

/// A function whose body casts its arguments by itself.
pub(super) fn of_any(name: &'static str, arities: std::ops::RangeInclusive<usize>, returns: Returns, body: Body) -> ScalarUDF {
    let signature = Signature::one_of(arities.map(TypeSignature::Any).collect(), Volatility::Immutable);
    ScalarUDF::new_from_impl(Scalar { name, signature, returns, body: BodyOf(body) })
}

impl ScalarUDFImpl for Scalar {
    fn name(&self) -> &str {
        self.name
    }
    fn signature(&self) -> &Signature {
        &self.signature
    }
    fn return_type(&self, arguments: &[DataType]) -> Result<DataType> {
        match &self.returns {
            Returns::Always(data_type) => Ok(data_type.clone()),
            Returns::LikeArgument(index) => match arguments.get(*index) {
                Some(data_type) => Ok(data_type.clone()),
                None => plan_err!("{} lacks an argument", self.name),
            },
            Returns::Decimal(operation) => super::decimals::result_type(*operation, arguments),
        }
    }
    fn invoke_with_args(&self, arguments: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let all_scalar = !arguments.args.is_empty() && arguments.args.iter().all(|argument| matches!(argument, ColumnarValue::Scalar(_)));
        let rows = if all_scalar { 1 } else { arguments.number_rows };
        let arrays = arguments.args.into_iter().map(|argument| argument.into_array(rows)).collect::<Result<Vec<_>>>()?;
        let result = (self.body.0)(&arrays)?;
        if all_scalar {
            return Ok(ColumnarValue::Scalar(datafusion_common::ScalarValue::try_from_array(&result, 0)?));
        }
        Ok(ColumnarValue::Array(result))
    }
}
