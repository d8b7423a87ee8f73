//! Division of decimals with Flink's types and rounding.
//!
//! Arrow's gives four digits more than the dividend has and cuts off the rest: the share `errors * 1.0 / total` would have five, and be rounded
//! towards zero.

use super::scalar::{Returns, of_any};
use arrow_array::cast::AsArray;
use arrow_array::types::{ArrowPrimitiveType, Decimal128Type, Decimal256Type};
use arrow_array::{ArrayRef, Decimal128Array};
use arrow_cast::cast;
use arrow_schema::{ArrowError, DataType};
use datafusion_common::{Result, plan_err};
use datafusion_expr::ScalarUDF;
use std::sync::Arc;

pub(crate) const PRECISION_MAX: u8 = 38;

/// 256 bits: of a dividend with the digits of its quotient, 128 are too few.
type Wide = <Decimal256Type as ArrowPrimitiveType>::Native;

pub(super) fn functions() -> Vec<Arc<ScalarUDF>> {
    vec![Arc::new(of_any("__decimal_divide", 2..=2, Returns::Quotient, divide))]
}

/// Precision and scale. A whole number is a decimal of the digits that its type can have.
fn digits(data_type: &DataType) -> Option<(u8, i8)> {
    Some(match data_type {
        DataType::Int8 => (3, 0),
        DataType::Int16 => (5, 0),
        DataType::Int32 => (10, 0),
        DataType::Int64 => (19, 0),
        DataType::Decimal128(precision, scale) => (*precision, *scale),
        _ => return None,
    })
}

/// Is it a division of decimals? One of whole numbers, or with a DOUBLE, is not.
pub(crate) fn is_exact(left: &DataType, right: &DataType) -> bool {
    let is_decimal = |data_type: &DataType| matches!(data_type, DataType::Decimal128(..));
    (is_decimal(left) || is_decimal(right)) && digits(left).is_some() && digits(right).is_some()
}

/// Precision and scale of a quotient, as Flink's `LogicalTypeMerging.findDivisionDecimalType`.
fn quotient_digits(left: &DataType, right: &DataType) -> Result<(u8, i8)> {
    let (Some((p1, s1)), Some((p2, s2))) = (digits(left), digits(right)) else {
        return plan_err!("{left} is not divided by {right} as a decimal");
    };
    let [p1, s1, p2, s2, most] = [i32::from(p1), i32::from(s1), i32::from(p2), i32::from(s2), i32::from(PRECISION_MAX)];
    let scale = (s1 + p2 + 1).max(6);
    let precision = p1 - s1 + s2 + scale;
    if precision <= most {
        return Ok((precision as u8, scale as i8));
    }
    // The digits before the point come first, but six behind it are kept.
    let before_point = precision - scale;
    Ok((PRECISION_MAX, (most - before_point).max(6) as i8))
}

pub(super) fn quotient_type(arguments: &[DataType]) -> Result<DataType> {
    let [left, right] = arguments else { return plan_err!("a division has two arguments, not {}", arguments.len()) };
    let (precision, scale) = quotient_digits(left, right)?;
    Ok(DataType::Decimal128(precision, scale))
}

/// The column as a decimal, and its scale.
fn decimals(column: &ArrayRef) -> Result<(ArrayRef, i32)> {
    let Some((precision, scale)) = digits(column.data_type()) else { return plan_err!("{} is no decimal", column.data_type()) };
    Ok((cast(column, &DataType::Decimal128(precision, scale))?, i32::from(scale)))
}

/// NULL where the quotient has more digits than its type, as in Flink. A division by zero refuses the row.
fn divide(columns: &[ArrayRef]) -> Result<ArrayRef> {
    let (precision, scale) = quotient_digits(columns[0].data_type(), columns[1].data_type())?;
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
                None => Wide::from_i128(dividend).checked_mul(wide_factor).and_then(|dividend| rounded_wide_quotient(dividend, divisor)),
            };
            Ok(quotient.filter(|quotient| quotient.unsigned_abs() < limit))
        }
        _ => Ok(None),
    };
    let quotients = pairs.map(quotient).collect::<Result<Decimal128Array, ArrowError>>()?;
    Ok(Arc::new(quotients.with_precision_and_scale(precision, scale)?))
}

/// Half is rounded away from zero. Most dividends fit: 256 bits take several times as long.
fn rounded_quotient(dividend: i128, divisor: i128) -> Option<i128> {
    let quotient = dividend.checked_div(divisor)?;
    let rest = dividend - quotient * divisor;
    if rest.unsigned_abs() * 2 < divisor.unsigned_abs() {
        return Some(quotient);
    }
    quotient.checked_add(if dividend.is_negative() == divisor.is_negative() { 1 } else { -1 })
}

fn rounded_wide_quotient(dividend: Wide, divisor: i128) -> Option<i128> {
    let divisor = Wide::from_i128(divisor);
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
}
