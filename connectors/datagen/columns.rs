//! The values of a column from its rule and the rows' ordinals.

use crate::generator::EventClock;
use crate::generator::random::{Random, Zipf};
use arrow_array::types::Decimal128Type;
use arrow_array::{
    ArrayRef, BinaryArray, BooleanArray, Date32Array, Float32Array, Float64Array, Int8Array, Int16Array, Int32Array, Int64Array,
    PrimitiveArray, StringArray, Time32MillisecondArray, TimestampMicrosecondArray, TimestampMillisecondArray, TimestampNanosecondArray,
    TimestampSecondArray,
};
use arrow_buffer::{BooleanBuffer, Buffer, NullBuffer, OffsetBuffer, ScalarBuffer};
use arrow_schema::{DataType, FieldRef, TimeUnit};
use std::sync::Arc;

const DAY_MS: i64 = 86_400_000;
/// Streams of one column: its values and its nulls.
const STREAMS: u64 = 2;

/// How a column is made.
#[derive(Clone, Debug)]
pub(super) struct FieldRule {
    pub kind: Kind,
    pub null_rate: f64,
}

#[derive(Clone, Debug)]
pub(super) enum Kind {
    Boolean,
    Integer {
        min: i64,
        max: i64,
        zipf: Option<Zipf>,
    },
    Float {
        min: f64,
        max: f64,
    },
    Decimal {
        min: f64,
        max: f64,
        precision: u8,
        scale: i8,
    },
    /// STRING or BYTES.
    Text {
        length: usize,
        varies: bool,
    },
    /// From start to end, both included.
    Sequence {
        start: i64,
        end: i64,
    },
    /// The event time of the row, or up to so much before.
    Time {
        clock: EventClock,
        back_ms_max: u64,
    },
}

impl FieldRule {
    /// How many rows there can be.
    pub(super) fn length(&self) -> Option<u64> {
        match self.kind {
            Kind::Sequence { start, end } => Some((end as u64).wrapping_sub(start as u64).saturating_add(1)),
            _ => None,
        }
    }

    pub(super) fn clock(&self) -> Option<EventClock> {
        match self.kind {
            Kind::Time { clock, .. } => Some(clock),
            _ => None,
        }
    }

    pub(super) fn bytes(&self) -> usize {
        match self.kind {
            Kind::Text { length, .. } => length + 4,
            _ => 8,
        }
    }

    /// The column's values for the rows with these ordinals.
    pub(super) fn generate(&self, field: &FieldRef, seed: u64, place: u64, ordinals: &[i64]) -> ArrayRef {
        let values = Draw { rule: self, seed, stream: place * STREAMS, ordinals };
        let nulls = values.nulls();
        match field.data_type() {
            DataType::Boolean => {
                Arc::new(BooleanArray::new(BooleanBuffer::from_iter(ordinals.iter().map(|row| values.random(*row).below(2) == 1)), nulls))
            }
            DataType::Int8 => Arc::new(Int8Array::new(values.integers(|value| value as i8), nulls)),
            DataType::Int16 => Arc::new(Int16Array::new(values.integers(|value| value as i16), nulls)),
            DataType::Int32 => Arc::new(Int32Array::new(values.integers(|value| value as i32), nulls)),
            DataType::Int64 => Arc::new(Int64Array::new(values.integers(|value| value), nulls)),
            DataType::Float32 => Arc::new(Float32Array::new(values.floats(|value| value as f32), nulls)),
            DataType::Float64 => Arc::new(Float64Array::new(values.floats(|value| value), nulls)),
            DataType::Decimal128(_, scale) => {
                Arc::new(PrimitiveArray::<Decimal128Type>::new(values.decimals(*scale), nulls).with_data_type(field.data_type().clone()))
            }
            DataType::Utf8 => {
                let (ends, data) = values.texts();
                Arc::new(StringArray::new(ends, data, nulls))
            }
            DataType::Binary => {
                let (ends, data) = values.texts();
                Arc::new(BinaryArray::new(ends, data, nulls))
            }
            DataType::Date32 => Arc::new(Date32Array::new(values.times(|ms| ms.div_euclid(DAY_MS) as i32), nulls)),
            DataType::Time32(_) => Arc::new(Time32MillisecondArray::new(values.times(|ms| ms.rem_euclid(DAY_MS) as i32), nulls)),
            DataType::Timestamp(unit, zone) => match unit {
                TimeUnit::Second => {
                    Arc::new(TimestampSecondArray::new(values.times(|ms| ms.div_euclid(1000)), nulls).with_timezone_opt(zone.clone()))
                }
                TimeUnit::Millisecond => {
                    Arc::new(TimestampMillisecondArray::new(values.times(|ms| ms), nulls).with_timezone_opt(zone.clone()))
                }
                TimeUnit::Microsecond => {
                    Arc::new(TimestampMicrosecondArray::new(values.times(|ms| ms * 1000), nulls).with_timezone_opt(zone.clone()))
                }
                TimeUnit::Nanosecond => Arc::new(
                    TimestampNanosecondArray::new(values.times(|ms| ms.saturating_mul(1_000_000)), nulls).with_timezone_opt(zone.clone()),
                ),
            },
            _ => unreachable!("`check` has refused other types"),
        }
    }
}

/// Draws the values of one column.
struct Draw<'d> {
    rule: &'d FieldRule,
    seed: u64,
    stream: u64,
    ordinals: &'d [i64],
}

impl Draw<'_> {
    fn random(&self, row: i64) -> Random {
        Random::new(self.seed, row, self.stream)
    }

    fn nulls(&self) -> Option<NullBuffer> {
        let rate = self.rule.null_rate;
        let is_value = |row: &i64| Random::new(self.seed, *row, self.stream + 1).unit() >= rate;
        (rate > 0.0).then(|| NullBuffer::from_iter(self.ordinals.iter().map(is_value)))
    }

    fn integer(&self, row: i64) -> i64 {
        match &self.rule.kind {
            Kind::Integer { min, zipf: Some(zipf), .. } => min.wrapping_add_unsigned(zipf.sample(&mut self.random(row)) - 1),
            Kind::Integer { min, max, zipf: None } => self.random(row).between(*min, *max),
            Kind::Sequence { start, .. } => start.wrapping_add(row),
            _ => 0,
        }
    }

    fn integers<T: arrow_buffer::ArrowNativeType>(&self, narrow: impl Fn(i64) -> T) -> ScalarBuffer<T> {
        self.ordinals.iter().map(|row| narrow(self.integer(*row))).collect()
    }

    fn float(&self, row: i64) -> f64 {
        match &self.rule.kind {
            Kind::Float { min, max } => min + (max - min) * self.random(row).unit(),
            _ => self.integer(row) as f64,
        }
    }

    fn floats<T: arrow_buffer::ArrowNativeType>(&self, narrow: impl Fn(f64) -> T) -> ScalarBuffer<T> {
        self.ordinals.iter().map(|row| narrow(self.float(*row))).collect()
    }

    fn decimals(&self, scale: i8) -> ScalarBuffer<i128> {
        let one = 10i128.pow(scale.unsigned_abs().into());
        let decimal = |row: &i64| match &self.rule.kind {
            Kind::Decimal { min, max, precision, scale } => {
                let value = min + (max - min) * self.random(*row).unit();
                let limit = 10i128.pow(u32::from(*precision)) - 1;
                ((value * 10f64.powi(i32::from(*scale))) as i128).clamp(-limit, limit)
            }
            _ => i128::from(self.integer(*row)) * one,
        };
        self.ordinals.iter().map(decimal).collect()
    }

    fn texts(&self) -> (OffsetBuffer<i32>, Buffer) {
        let mut data = Vec::new();
        let mut ends = Vec::with_capacity(self.ordinals.len() + 1);
        ends.push(0);
        for row in self.ordinals {
            match &self.rule.kind {
                Kind::Text { length, varies } => {
                    let mut random = self.random(*row);
                    let length = if *varies { random.below(*length as u64 + 1) as usize } else { *length };
                    random.write_text(&mut data, length);
                }
                _ => data.extend_from_slice(itoa::Buffer::new().format(self.integer(*row)).as_bytes()),
            }
            ends.push(i32::try_from(data.len()).expect("a take is bounded far below 2 GiB"));
        }
        (OffsetBuffer::new(ScalarBuffer::from(ends)), Buffer::from_vec(data))
    }

    fn times<T: arrow_buffer::ArrowNativeType>(&self, convert: impl Fn(i64) -> T) -> ScalarBuffer<T> {
        let time = |row: &i64| match &self.rule.kind {
            Kind::Time { clock, back_ms_max: 0 } => clock.time_ms(*row),
            Kind::Time { clock, back_ms_max } => clock.time_ms(*row) - self.random(*row).below(back_ms_max + 1) as i64,
            _ => 0,
        };
        self.ordinals.iter().map(|row| convert(time(row))).collect()
    }
}
