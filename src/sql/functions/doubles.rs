//! Rounding of a DOUBLE by its decimal digits, as Flink does with `BigDecimal.valueOf`.
//!
//! 1.005 is a little less than that in binary. By its binary number it is rounded to 1.00, by the digits that tell it from its neighbours
//! to 1.01.

use super::decimals::rounded_quotient;
use super::scalar::{Returns, of_any, overloaded};
use arrow_array::cast::AsArray;
use arrow_array::types::{Float64Type, Int64Type};
use arrow_array::{Array, ArrayRef, Decimal128Array, Float64Array};
use arrow_cast::cast;
use arrow_schema::{ArrowError, DataType};
use datafusion_common::{Result, plan_err};
use datafusion_expr::ScalarUDF;
use std::sync::Arc;

/// Divides and rounds.
type Quotient = fn(i128, i128) -> Option<i128>;

pub(super) fn functions() -> Vec<Arc<ScalarUDF>> {
    use DataType::{Float64, Int64};
    let arguments = || vec![vec![Float64], vec![Float64, Int64]];
    // The second argument of `__decimal_of` is a value of the wanted type.
    let functions = [
        overloaded("__round", arguments(), Float64, |columns| Ok(rounded(columns, rounded_quotient))),
        overloaded("__truncate", arguments(), Float64, |columns| Ok(rounded(columns, i128::checked_div))),
        of_any("__decimal_of", 2..=2, Returns::LikeArgument(1), |columns| decimal_of(columns, false)),
        of_any("__try_decimal_of", 2..=2, Returns::LikeArgument(1), |columns| decimal_of(columns, true)),
    ];
    functions.into_iter().map(Arc::new).collect()
}

/// The fewest digits that tell the number from its neighbours: it is `digits · 10^exponent`. None for NaN and the infinite.
fn digits(number: f64) -> Option<(i128, i64)> {
    let text = format!("{number:e}");
    let (digits, exponent) = text.split_once('e')?;
    let behind_point = digits.split_once('.').map_or(0, |(_, fraction)| fraction.len());
    Some((digits.replace('.', "").parse().ok()?, exponent.parse::<i64>().ok()? - behind_point as i64))
}

/// `digits · 10^exponent` as a whole number. None: it is too long.
fn whole(digits: i128, exponent: i64, quotient: Quotient) -> Option<i128> {
    let power = u32::try_from(exponent.unsigned_abs()).ok().and_then(|exponent| 10i128.checked_pow(exponent));
    match power {
        Some(power) if exponent >= 0 => digits.checked_mul(power),
        Some(power) => quotient(digits, power),
        // A number has 17 digits at most.
        None if exponent < 0 => Some(0),
        None => None,
    }
}

fn rounded(columns: &[ArrayRef], quotient: Quotient) -> ArrayRef {
    let numbers = columns[0].as_primitive::<Float64Type>();
    let places = columns.get(1).map(|column| column.as_primitive::<Int64Type>());
    let rows = (0..numbers.len()).map(|row| {
        let places = places.map_or(Some(0), |places| places.is_valid(row).then(|| places.value(row)))?;
        numbers.is_valid(row).then(|| round(numbers.value(row), places, quotient))
    });
    Arc::new(rows.collect::<Float64Array>())
}

/// To so many places behind the point, or before it if they are negative.
fn round(number: f64, places: i64, quotient: Quotient) -> f64 {
    let Some((digits, exponent)) = digits(number) else { return number };
    let exponent = exponent.saturating_add(places);
    // No digit is behind these places.
    if exponent >= 0 {
        return number;
    }
    let kept = whole(digits, exponent, quotient).and_then(|kept| format!("{kept}e{}", places.saturating_neg()).parse().ok());
    kept.unwrap_or(number)
}

/// NULL where a number has more digits than the type, as in Flink. What is no number at all refuses the row, but not in a TRY_CAST.
fn decimal_of(columns: &[ArrayRef], is_try: bool) -> Result<ArrayRef> {
    let DataType::Decimal128(precision, scale) = columns[1].data_type() else {
        return plan_err!("{} is no decimal", columns[1].data_type());
    };
    let (precision, scale) = (*precision, *scale);
    // Flink makes a FLOAT a DOUBLE first.
    let numbers = cast(&columns[0], &DataType::Float64)?;
    let limit = 10u128.pow(u32::from(precision));
    let decimal = |number: Option<f64>| -> Result<Option<i128>, ArrowError> {
        let Some(number) = number else { return Ok(None) };
        match digits(number) {
            Some((digits, exponent)) => {
                let decimal = whole(digits, exponent + i64::from(scale), rounded_quotient);
                Ok(decimal.filter(|decimal| decimal.unsigned_abs() < limit))
            }
            None if is_try => Ok(None),
            None => Err(ArrowError::CastError(format!("{number} is no DECIMAL"))),
        }
    };
    let decimals = numbers.as_primitive::<Float64Type>().iter().map(decimal).collect::<Result<Decimal128Array, ArrowError>>()?;
    Ok(Arc::new(decimals.with_precision_and_scale(precision, scale)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_double_is_rounded_by_its_digits() {
        for (number, places, expected) in [
            (1.005, 2, 1.01),
            (-1.005, 2, -1.01),
            (2.5, 0, 3.0),
            (0.1 + 0.2, 15, 0.3),
            (1e307, 2, 1e307),
            (1e-307, 2, 0.0),
            (1_250.0, -2, 1_300.0),
            (1_250.0, -9, 0.0),
            (1.5, i64::MIN, 0.0),
            (1.5, i64::MAX, 1.5),
            (f64::INFINITY, 2, f64::INFINITY),
        ] {
            assert_eq!(round(number, places, rounded_quotient), expected, "{number} to {places} places");
        }
        assert!(round(f64::NAN, 2, rounded_quotient).is_nan());
        assert_eq!([4.35, -4.359, 0.999].map(|number| round(number, 2, i128::checked_div)), [4.35, -4.35, 0.99]);
    }

    #[test]
    fn a_decimal_has_the_digits_of_the_double() {
        let wanted = Decimal128Array::from(vec![0; 5]).with_precision_and_scale(5, 2).expect("digits that fit");
        let numbers = Float64Array::from(vec![Some(1.005), Some(-999.994), Some(999.995), Some(1e300), None]);
        let columns: [ArrayRef; 2] = [Arc::new(numbers), Arc::new(wanted)];
        let decimals = decimal_of(&columns, false).expect("decimals");
        let values: Vec<Option<i128>> = decimals.as_primitive::<arrow_array::types::Decimal128Type>().iter().collect();
        assert_eq!(values, [Some(101), Some(-99_999), None, None, None]);
    }

    #[test]
    fn what_is_no_number_is_refused_but_not_where_it_is_tried() {
        let columns = || -> [ArrayRef; 2] {
            let wanted = Decimal128Array::from(vec![0]).with_precision_and_scale(5, 2).expect("digits that fit");
            [Arc::new(Float64Array::from(vec![f64::NAN])), Arc::new(wanted)]
        };
        assert!(decimal_of(&columns(), false).is_err());
        assert!(decimal_of(&columns(), true).expect("a NULL").is_null(0));
    }
}
