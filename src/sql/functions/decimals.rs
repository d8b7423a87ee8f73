//! Arithmetic of decimals with Flink's types and rounding, where DataFusion's has others.
//!
//! - Division: Arrow's gives four digits more than the dividend has and cuts off the rest. The share `errors * 1.0 / total` would have five,
//!   and be rounded towards zero.
//! - Sums, differences and products that may need more than 38 digits: Flink gives up digits behind the point, Arrow those before it.
//!
//! All else is Arrow's own.

use super::scalar::{Body, Returns, of_any};
use arrow_array::cast::AsArray;
use arrow_array::types::{ArrowPrimitiveType, Decimal128Type, Decimal256Type};
use arrow_array::{ArrayRef, Decimal128Array};
use arrow_cast::cast;
use arrow_schema::{ArrowError, DataType};
use datafusion_common::{DFSchema, Result, plan_err};
use datafusion_expr::planner::{ExprPlanner, PlannerResult, RawBinaryExpr};
use datafusion_expr::{ExprSchemable, Operator, ScalarUDF};
use sqlparser::ast::BinaryOperator;
use std::sync::Arc;

pub(crate) const PRECISION_MAX: u8 = 38;
pub(crate) const BIGINT_DIGITS: u8 = 19;
/// From so many digits of its argument on DataFusion's SUM has 38: it adds ten.
pub(crate) const SUM_DIGITS_MAX: u8 = PRECISION_MAX - 10;

/// 256 bits: of a dividend with the digits of its quotient, and of a product with all of its digits, 128 are too few.
type Wide = <Decimal256Type as ArrowPrimitiveType>::Native;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Operation {
    Add,
    Subtract,
    Multiply,
    Divide,
}

pub(super) fn functions() -> Vec<Arc<ScalarUDF>> {
    let add: Body = |columns| calculate(Operation::Add, Wide::checked_add, columns);
    let subtract: Body = |columns| calculate(Operation::Subtract, Wide::checked_sub, columns);
    let functions = [
        of_any("__decimal_add", 2..=2, Returns::Decimal(Operation::Add), add),
        of_any("__decimal_subtract", 2..=2, Returns::Decimal(Operation::Subtract), subtract),
        multiplication(),
        of_any("__decimal_divide", 2..=2, Returns::Decimal(Operation::Divide), divide),
    ];
    functions.into_iter().map(Arc::new).collect()
}

fn multiplication() -> ScalarUDF {
    let multiply: Body = |columns| calculate(Operation::Multiply, Wide::checked_mul, columns);
    of_any("__decimal_multiply", 2..=2, Returns::Decimal(Operation::Multiply), multiply)
}

/// The function for what Arrow calculates otherwise.
pub(crate) fn function_for(operator: Operator, left: &DataType, right: &DataType) -> Option<&'static str> {
    let (operation, name) = match operator {
        Operator::Plus => (Operation::Add, "__decimal_add"),
        Operator::Minus => (Operation::Subtract, "__decimal_subtract"),
        Operator::Multiply => (Operation::Multiply, "__decimal_multiply"),
        Operator::Divide => return Some("__decimal_divide"),
        // A remainder is never longer than the shorter argument.
        _ => return None,
    };
    let (precision, _) = full_digits(operation, left, right).ok()?;
    (precision > i32::from(PRECISION_MAX)).then_some(name)
}

/// Plans products with more than 38 digits behind the point: DataFusion refuses them before any type can be mended.
#[derive(Debug)]
pub(crate) struct LongProducts;

impl ExprPlanner for LongProducts {
    fn plan_binary_op(&self, expr: RawBinaryExpr, schema: &DFSchema) -> Result<PlannerResult<RawBinaryExpr>> {
        if expr.op != BinaryOperator::Multiply {
            return Ok(PlannerResult::Original(expr));
        }
        let (Ok(left), Ok(right)) = (expr.left.get_type(schema), expr.right.get_type(schema)) else {
            return Ok(PlannerResult::Original(expr));
        };
        let scale = full_digits(Operation::Multiply, &left, &right).map_or(0, |(_, scale)| scale);
        if !is_exact(&left, &right) || scale <= i32::from(PRECISION_MAX) {
            return Ok(PlannerResult::Original(expr));
        }
        Ok(PlannerResult::Planned(multiplication().call(vec![expr.left, expr.right])))
    }
}

/// Precision and scale. A whole number is a decimal of the digits that its type can have.
fn digits(data_type: &DataType) -> Option<(u8, i8)> {
    Some(match data_type {
        DataType::Int8 => (3, 0),
        DataType::Int16 => (5, 0),
        DataType::Int32 => (10, 0),
        DataType::Int64 => (BIGINT_DIGITS, 0),
        DataType::Decimal128(precision, scale) => (*precision, *scale),
        _ => return None,
    })
}

/// Is it calculated with decimals? With whole numbers alone, or with a DOUBLE, it is not.
pub(crate) fn is_exact(left: &DataType, right: &DataType) -> bool {
    let is_decimal = |data_type: &DataType| matches!(data_type, DataType::Decimal128(..));
    (is_decimal(left) || is_decimal(right)) && digits(left).is_some() && digits(right).is_some()
}

/// Can a cast from or to a decimal give another number, or none?
pub(crate) fn loses_digits(from: &DataType, to: &DataType) -> bool {
    let (Some((p1, s1)), Some((p2, s2))) = (digits(from), digits(to)) else { return false };
    let [p1, s1, p2, s2] = [i32::from(p1), i32::from(s1), i32::from(p2), i32::from(s2)];
    // Of the numbers with all digits of a whole number's type some are too large for it.
    let before_point = if matches!(to, DataType::Decimal128(..)) { p2 - s2 } else { p2 - 1 };
    is_exact(from, to) && (s1 > s2 || p1 - s1 > before_point)
}

/// Precision and scale of the result if there were no limit, as in Flink's `LogicalTypeMerging`.
fn full_digits(operation: Operation, left: &DataType, right: &DataType) -> Result<(i32, i32)> {
    let (Some((p1, s1)), Some((p2, s2))) = (digits(left), digits(right)) else {
        return plan_err!("{left} and {right} are no decimals");
    };
    let [p1, s1, p2, s2] = [i32::from(p1), i32::from(s1), i32::from(p2), i32::from(s2)];
    Ok(match operation {
        Operation::Add | Operation::Subtract => {
            let scale = s1.max(s2);
            ((p1 - s1).max(p2 - s2) + scale + 1, scale)
        }
        Operation::Multiply => (p1 + p2 + 1, s1 + s2),
        Operation::Divide => {
            let scale = (s1 + p2 + 1).max(6);
            (p1 - s1 + s2 + scale, scale)
        }
    })
}

/// Brings them to 38 digits, as Flink's `adjustPrecisionScale`.
fn adjusted((precision, scale): (i32, i32)) -> (u8, i8) {
    let most = i32::from(PRECISION_MAX);
    if precision <= most {
        return (precision as u8, scale as i8);
    }
    // The digits before the point come first, but six behind it are kept.
    let before_point = precision - scale;
    (PRECISION_MAX, (most - before_point).max(scale.min(6)) as i8)
}

pub(super) fn result_type(operation: Operation, arguments: &[DataType]) -> Result<DataType> {
    let [left, right] = arguments else { return plan_err!("an operator has two arguments, not {}", arguments.len()) };
    let (precision, scale) = adjusted(full_digits(operation, left, right)?);
    Ok(DataType::Decimal128(precision, scale))
}

/// The column as a decimal, and its scale.
fn decimals(column: &ArrayRef) -> Result<(ArrayRef, i32)> {
    let Some((precision, scale)) = digits(column.data_type()) else { return plan_err!("{} is no decimal", column.data_type()) };
    Ok((cast(column, &DataType::Decimal128(precision, scale))?, i32::from(scale)))
}

/// NULL where the quotient has more digits than its type, as in Flink. A division by zero refuses the row.
fn divide(columns: &[ArrayRef]) -> Result<ArrayRef> {
    let (precision, scale) = adjusted(full_digits(Operation::Divide, columns[0].data_type(), columns[1].data_type())?);
    let ((dividends, dividend_scale), (divisors, divisor_scale)) = (decimals(&columns[0])?, decimals(&columns[1])?);
    // At most 44, and never negative: the quotient's digits behind the point are at least those that fit beside its others.
    let shift = u32::try_from(i32::from(scale) + divisor_scale - dividend_scale).unwrap_or(0);
    let (factor, wide_factor) = (10i128.checked_pow(shift), Wide::from_i128(10).wrapping_pow(shift));
    let limit = 10u128.pow(u32::from(precision));
    let pairs = dividends.as_primitive::<Decimal128Type>().iter().zip(divisors.as_primitive::<Decimal128Type>().iter());
    let quotient = |pair: (Option<i128>, Option<i128>)| match pair {
        (Some(_), Some(0)) => Err(ArrowError::DivideByZero),
        (Some(dividend), Some(divisor)) => {
            let quotient = match factor.and_then(|factor| dividend.checked_mul(factor)) {
                Some(dividend) => rounded_quotient(dividend, divisor),
                // A dividend that is too long for 256 bits has a quotient that is too long for any decimal.
                None => {
                    let dividend = Wide::from_i128(dividend).checked_mul(wide_factor);
                    dividend.and_then(|dividend| rounded_wide_quotient(dividend, Wide::from_i128(divisor)))
                }
            };
            Ok(quotient.filter(|quotient| quotient.unsigned_abs() < limit))
        }
        _ => Ok(None),
    };
    let quotients = pairs.map(quotient).collect::<Result<Decimal128Array, ArrowError>>()?;
    Ok(Arc::new(quotients.with_precision_and_scale(precision, scale)?))
}

/// A sum, difference or product with all of its digits, rounded to those of its type. NULL where it has more than its type, as in Flink.
fn calculate(operation: Operation, combine: fn(Wide, Wide) -> Option<Wide>, columns: &[ArrayRef]) -> Result<ArrayRef> {
    let full = full_digits(operation, columns[0].data_type(), columns[1].data_type())?;
    let (precision, scale) = adjusted(full);
    let ((left, left_scale), (right, right_scale)) = (decimals(&columns[0])?, decimals(&columns[1])?);
    // At most 39: 256 bits hold each value on the way.
    let power = |from: i32| u32::try_from(full.1 - from).unwrap_or(0);
    // What is added has the same digits behind the point first.
    let factor = |scale: i32| match operation {
        Operation::Multiply => Wide::ONE,
        _ => Wide::from_i128(10).wrapping_pow(power(scale)),
    };
    let (left_factor, right_factor) = (factor(left_scale), factor(right_scale));
    let dropped = power(i32::from(scale));
    let (divisor, wide_divisor) = (10i128.checked_pow(dropped), Wide::from_i128(10).wrapping_pow(dropped));
    let limit = 10u128.pow(u32::from(precision));
    let pairs = left.as_primitive::<Decimal128Type>().iter().zip(right.as_primitive::<Decimal128Type>().iter());
    let results = pairs.map(|(left, right)| {
        let (left, right) = (Wide::from_i128(left?).checked_mul(left_factor)?, Wide::from_i128(right?).checked_mul(right_factor)?);
        let exact = combine(left, right)?;
        let rounded = match (exact.to_i128(), divisor) {
            (Some(exact), Some(divisor)) => rounded_quotient(exact, divisor),
            _ => rounded_wide_quotient(exact, wide_divisor),
        };
        rounded.filter(|result| result.unsigned_abs() < limit)
    });
    Ok(Arc::new(results.collect::<Decimal128Array>().with_precision_and_scale(precision, scale)?))
}

/// Half is rounded away from zero. Most dividends fit: 256 bits take several times as long.
pub(super) fn rounded_quotient(dividend: i128, divisor: i128) -> Option<i128> {
    let quotient = dividend.checked_div(divisor)?;
    let rest = dividend - quotient * divisor;
    if rest.unsigned_abs() * 2 < divisor.unsigned_abs() {
        return Some(quotient);
    }
    quotient.checked_add(if dividend.is_negative() == divisor.is_negative() { 1 } else { -1 })
}

fn rounded_wide_quotient(dividend: Wide, divisor: Wide) -> Option<i128> {
    let quotient = dividend.checked_div(divisor)?;
    let rest = dividend.wrapping_sub(quotient.wrapping_mul(divisor));
    if rest.wrapping_add(rest).wrapping_abs() < divisor.wrapping_abs() {
        return quotient.to_i128();
    }
    let away = if dividend.is_negative() == divisor.is_negative() { 1 } else { -1 };
    quotient.wrapping_add(Wide::from_i128(away)).to_i128()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decimal(value: i128, precision: u8, scale: i8) -> ArrayRef {
        Arc::new(Decimal128Array::from(vec![value]).with_precision_and_scale(precision, scale).expect("digits that fit"))
    }

    /// The quotient's type and its digits without the point.
    fn quotient(left: ArrayRef, right: ArrayRef) -> (DataType, Option<i128>) {
        let quotient = divide(&[left, right]).expect("a quotient");
        (quotient.data_type().clone(), quotient.as_primitive::<Decimal128Type>().iter().next().flatten())
    }

    #[test]
    fn a_quotient_has_flinks_type_and_is_rounded_half_away_from_zero() {
        let two_thirds = DataType::Decimal128(8, 6);
        assert_eq!(quotient(decimal(20, 3, 1), decimal(3, 2, 0)), (two_thirds.clone(), Some(666_667)));
        assert_eq!(quotient(decimal(-20, 3, 1), decimal(3, 2, 0)), (two_thirds.clone(), Some(-666_667)));
        assert_eq!(quotient(decimal(20, 3, 1), decimal(-3, 2, 0)), (two_thirds, Some(-666_667)));
        assert_eq!(quotient(decimal(5, 10, 0), decimal(2, 10, 0)), (DataType::Decimal128(21, 11), Some(250_000_000_000)));
        // Digits that 128 bits do not hold on the way.
        let (long, thirds) = (2 * 10i128.pow(33), (2 * 10i128.pow(36) + 1) / 3);
        assert_eq!(quotient(decimal(long, 38, 0), decimal(3000, 38, 0)), (DataType::Decimal128(38, 6), Some(thirds)));
        assert_eq!(quotient(decimal(-long, 38, 0), decimal(3000, 38, 0)), (DataType::Decimal128(38, 6), Some(-thirds)));
        // More than 38 digits: those before the point are kept.
        let wide = DataType::Decimal128(38, 18);
        assert_eq!(quotient(decimal(10, 20, 0), decimal(3, 20, 0)), (wide, Some(3_333_333_333_333_333_333)));
    }

    #[test]
    fn a_quotient_that_is_too_long_is_null_and_a_division_by_zero_is_refused() {
        let most = 10i128.pow(38) - 1;
        let (longest, shortest) = (decimal(most, 38, 0), decimal(1, 38, 38));
        assert_eq!(quotient(Arc::clone(&longest), Arc::clone(&shortest)), (DataType::Decimal128(38, 6), None));
        assert_eq!(quotient(decimal(0, 38, 0), shortest), (DataType::Decimal128(38, 6), Some(0)));
        assert!(divide(&[longest, decimal(0, 38, 38)]).is_err());
    }

    #[test]
    fn a_cast_that_keeps_every_decimal_loses_no_digits() {
        use DataType::{Decimal128, Float64, Int8, Int32, Int64, Utf8};
        for (from, to) in [
            (Int64, Decimal128(19, 0)),
            (Int32, Decimal128(12, 2)),
            (Decimal128(10, 2), Decimal128(10, 2)),
            (Decimal128(10, 2), Decimal128(38, 4)),
            (Decimal128(9, 0), Int32),
            (Decimal128(18, 0), Int64),
            // No decimal is cast, or not by its digits.
            (Int64, Int32),
            (Utf8, Decimal128(10, 2)),
            (Float64, Decimal128(10, 2)),
            (Decimal128(10, 2), Float64),
            (Decimal128(10, 2), Utf8),
        ] {
            assert!(!loses_digits(&from, &to), "{from} to {to}");
        }
        for (from, to) in [
            (Decimal128(10, 2), Int64),
            (Decimal128(10, 0), Int32),
            (Decimal128(3, 0), Int8),
            (Decimal128(10, 2), Decimal128(38, 1)),
            (Decimal128(10, 2), Decimal128(10, 3)),
            (Int64, Decimal128(18, 0)),
        ] {
            assert!(loses_digits(&from, &to), "{from} to {to}");
        }
    }

    fn result(operation: Operation, combine: fn(Wide, Wide) -> Option<Wide>, left: ArrayRef, right: ArrayRef) -> (DataType, Option<i128>) {
        let result = calculate(operation, combine, &[left, right]).expect("a result");
        (result.data_type().clone(), result.as_primitive::<Decimal128Type>().iter().next().flatten())
    }

    #[test]
    fn what_needs_more_than_38_digits_gives_up_those_behind_the_point() {
        let product = |left, right| result(Operation::Multiply, Wide::checked_mul, left, right);
        let six = DataType::Decimal128(38, 6);
        // 0.001 · 0.0005 = 0.0000005, which is half of the last digit.
        let (thousandth, half) = (10i128.pow(17), 5 * 10i128.pow(16));
        assert_eq!(product(decimal(thousandth, 38, 20), decimal(half, 38, 20)), (six.clone(), Some(1)));
        assert_eq!(product(decimal(-thousandth, 38, 20), decimal(half, 38, 20)), (six.clone(), Some(-1)));
        assert_eq!(product(decimal(thousandth, 38, 20), decimal(half - 1, 38, 20)), (six.clone(), Some(0)));
        let most = 10i128.pow(38) - 1;
        assert_eq!(product(decimal(most, 38, 20), decimal(most, 38, 20)), (six, None));
        // Nearly 1 · nearly 1, with all of 76 digits on the way.
        assert_eq!(product(decimal(most, 38, 38), decimal(-most, 38, 38)), (DataType::Decimal128(38, 37), Some(-10i128.pow(37))));
        assert_eq!(product(decimal(7, 20, 0), decimal(-6, 20, 2)), (DataType::Decimal128(38, 2), Some(-42)));

        let sum = |left, right| result(Operation::Add, Wide::checked_add, left, right);
        let (long, short) = (10i128.pow(37), 5 * 10i128.pow(31));
        assert_eq!(sum(decimal(long, 38, 0), decimal(short, 38, 38)), (DataType::Decimal128(38, 6), None));
        assert_eq!(sum(decimal(9, 38, 0), decimal(short, 38, 38)), (DataType::Decimal128(38, 6), Some(9_000_001)));
        assert_eq!(sum(decimal(most, 38, 2), decimal(1, 38, 2)), (DataType::Decimal128(38, 2), None));
        let difference = result(Operation::Subtract, Wide::checked_sub, decimal(most, 38, 2), decimal(1, 38, 2));
        assert_eq!(difference, (DataType::Decimal128(38, 2), Some(most - 1)));
    }
}
