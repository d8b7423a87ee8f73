//! Timestamps of any unit as milliseconds, the one unit of windows and watermarks.

use arrow_array::cast::AsArray;
use arrow_array::types::{TimestampMicrosecondType, TimestampMillisecondType, TimestampNanosecondType, TimestampSecondType};
use arrow_array::{Array, ArrayRef, PrimitiveArray};
use arrow_buffer::{NullBuffer, ScalarBuffer};
use arrow_schema::{DataType, TimeUnit};
use std::sync::Arc;

/// A timestamp column in milliseconds since 1970, rounded down. Null slots hold some value.
#[derive(Clone, Debug)]
pub struct Milliseconds {
    pub values: ScalarBuffer<i64>,
    pub nulls: Option<NullBuffer>,
}

/// None when the column is no timestamp. A column in milliseconds is not copied.
pub fn milliseconds(column: &ArrayRef) -> Option<Milliseconds> {
    let DataType::Timestamp(unit, _) = column.data_type() else { return None };
    let values = match unit {
        TimeUnit::Second => column.as_primitive::<TimestampSecondType>().values().iter().map(|s| s.saturating_mul(1_000)).collect(),
        TimeUnit::Millisecond => column.as_primitive::<TimestampMillisecondType>().values().clone(),
        TimeUnit::Microsecond => column.as_primitive::<TimestampMicrosecondType>().values().iter().map(|us| us.div_euclid(1_000)).collect(),
        TimeUnit::Nanosecond => {
            column.as_primitive::<TimestampNanosecondType>().values().iter().map(|ns| ns.div_euclid(1_000_000)).collect()
        }
    };
    Some(Milliseconds { values, nulls: column.nulls().cloned() })
}

/// A timestamp column of a type, without nulls. None when the type is no timestamp.
pub fn timestamps(milliseconds: ScalarBuffer<i64>, data_type: &DataType) -> Option<ArrayRef> {
    let DataType::Timestamp(unit, zone) = data_type else { return None };
    let zone = zone.clone();
    Some(match unit {
        TimeUnit::Second => {
            let values: ScalarBuffer<i64> = milliseconds.iter().map(|ms| ms.div_euclid(1_000)).collect();
            Arc::new(PrimitiveArray::<TimestampSecondType>::new(values, None).with_timezone_opt(zone))
        }
        TimeUnit::Millisecond => Arc::new(PrimitiveArray::<TimestampMillisecondType>::new(milliseconds, None).with_timezone_opt(zone)),
        TimeUnit::Microsecond => {
            let values: ScalarBuffer<i64> = milliseconds.iter().map(|ms| ms.saturating_mul(1_000)).collect();
            Arc::new(PrimitiveArray::<TimestampMicrosecondType>::new(values, None).with_timezone_opt(zone))
        }
        TimeUnit::Nanosecond => {
            let values: ScalarBuffer<i64> = milliseconds.iter().map(|ms| ms.saturating_mul(1_000_000)).collect();
            Arc::new(PrimitiveArray::<TimestampNanosecondType>::new(values, None).with_timezone_opt(zone))
        }
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use arrow_array::{TimestampMicrosecondArray, TimestampNanosecondArray, TimestampSecondArray};

    #[test]
    fn times_before_1970_are_rounded_down_in_every_unit() {
        let columns: [ArrayRef; 3] = [
            Arc::new(TimestampSecondArray::from(vec![-1])),
            Arc::new(TimestampMicrosecondArray::from(vec![-999_001])),
            Arc::new(TimestampNanosecondArray::from(vec![-999_000_001])),
        ];
        for column in columns {
            assert_eq!(milliseconds(&column).unwrap().values.as_ref(), &[-1_000], "{}", column.data_type());
        }
    }

    #[test]
    fn a_timestamp_column_is_made_in_every_unit() {
        for unit in [TimeUnit::Second, TimeUnit::Millisecond, TimeUnit::Microsecond, TimeUnit::Nanosecond] {
            let data_type = DataType::Timestamp(unit, Some("UTC".into()));
            let column = timestamps(vec![-5_000, 7_000].into(), &data_type).unwrap();
            assert_eq!(column.data_type(), &data_type);
            assert_eq!(milliseconds(&column).unwrap().values.as_ref(), &[-5_000, 7_000]);
        }
        assert!(timestamps(vec![1].into(), &DataType::Int64).is_none());
    }
}
