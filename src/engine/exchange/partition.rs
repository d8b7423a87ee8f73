//! Splits rows by the hash of their key.
//!
//! The hash has a fixed seed and is defined here, not by a library: region state and exchange topics outlive every release, and a key that
//! changed its partition would find its window empty. So values are hashed as follows, and the golden test may never change.
//!
//! | value | hashed as |
//! |---|---|
//! | null | a constant |
//! | integers, dates, times, timestamps, booleans | 64 bits, sign-extended |
//! | floats | bits of the DOUBLE; −0 as 0, all NaN alike |
//! | decimals | lower, then upper 64 bits of the unscaled value |
//! | strings, bytes | XXH3-64 of the bytes |
//! | lists, maps | length, then the elements |
//! | structs | the fields |
//!
//! Hashes are folded by the SplitMix64 finalizer; the partition is the upper half of `hash × partitions`.

use crate::operators::OperatorError;
use crate::operators::expression::mix;
use crate::operators::window_aggregate::take_columns;
use crate::plan::ExchangePlan;
use arrow_array::cast::AsArray;
use arrow_array::types::*;
use arrow_array::{Array, ArrayRef, ArrowPrimitiveType, PrimitiveArray, RecordBatch, UInt32Array};
use arrow_schema::{DataType, IntervalUnit, TimeUnit};
use xxhash_rust::xxh3::xxh3_64;

const NULL: u64 = 0x6e75_6c6c_6e75_6c6c;

/// Splits the rows of one exchange.
pub struct Partitioner {
    keys: Vec<usize>,
    partitions: u32,
    hashes: Vec<u64>,
    targets: Vec<u32>,
}

impl Partitioner {
    const NAME: &str = "Exchange";

    /// `partitions` of the exchange's topic; at least 1.
    pub fn new(plan: &ExchangePlan, partitions: u32) -> Self {
        Partitioner { keys: plan.keys.clone(), partitions: partitions.max(1), hashes: Vec::new(), targets: Vec::new() }
    }

    /// The rows of each partition that gets any, by ascending partition, in the order of the batch.
    pub fn split(&mut self, rows: &RecordBatch) -> Result<Vec<(u32, RecordBatch)>, OperatorError> {
        let count = rows.num_rows();
        if count == 0 {
            return Ok(Vec::new());
        }
        if self.partitions == 1 || self.keys.is_empty() {
            return Ok(vec![(0, rows.clone())]);
        }
        self.hashes.clear();
        self.hashes.resize(count, 0);
        for key in &self.keys {
            hash_column(rows.column(*key), &mut self.hashes)?;
        }
        let partitions = self.partitions;
        self.targets.clear();
        self.targets.extend(self.hashes.iter().map(|hash| partition_of(*hash, partitions)));
        let mut ends = vec![0u32; partitions as usize];
        self.targets.iter().for_each(|target| ends[*target as usize] += 1);
        if let Some(only) = ends.iter().position(|rows| *rows as usize == count) {
            return Ok(vec![(only as u32, rows.clone())]);
        }
        let mut next = 0;
        for end in &mut ends {
            next += *end;
            *end = next - *end;
        }
        let mut order = vec![0u32; count];
        for (row, target) in self.targets.iter().enumerate() {
            let place = &mut ends[*target as usize];
            order[*place as usize] = row as u32;
            *place += 1;
        }
        // One take for all; each partition's rows are a slice of it.
        let columns = take_columns(rows.columns(), &UInt32Array::from(order))?;
        let sorted = RecordBatch::try_new(rows.schema(), columns).map_err(OperatorError::arrow(Self::NAME))?;
        let mut start = 0;
        let mut split = Vec::new();
        for (partition, end) in ends.iter().map(|end| *end as usize).enumerate() {
            if end > start {
                split.push((partition as u32, sorted.slice(start, end - start)));
            }
            start = end;
        }
        Ok(split)
    }
}

/// The partition of a key's hash.
pub fn partition_of(hash: u64, partitions: u32) -> u32 {
    ((u128::from(hash) * u128::from(partitions)) >> 64) as u32
}

/// Folds a column into the hashes of its rows.
pub fn hash_column(column: &ArrayRef, hashes: &mut [u64]) -> Result<(), OperatorError> {
    use DataType::*;
    match column.data_type() {
        Int8 => integers::<Int8Type>(column, hashes, |value| value as u64),
        Int16 => integers::<Int16Type>(column, hashes, |value| value as u64),
        Int32 => integers::<Int32Type>(column, hashes, |value| value as u64),
        Int64 => integers::<Int64Type>(column, hashes, |value| value as u64),
        UInt8 => integers::<UInt8Type>(column, hashes, u64::from),
        UInt16 => integers::<UInt16Type>(column, hashes, u64::from),
        UInt32 => integers::<UInt32Type>(column, hashes, u64::from),
        UInt64 => integers::<UInt64Type>(column, hashes, |value| value),
        Float32 => integers::<Float32Type>(column, hashes, |value| float_bits(f64::from(value))),
        Float64 => integers::<Float64Type>(column, hashes, float_bits),
        Date32 => integers::<Date32Type>(column, hashes, |value| value as u64),
        Date64 => integers::<Date64Type>(column, hashes, |value| value as u64),
        Time32(TimeUnit::Second) => integers::<Time32SecondType>(column, hashes, |value| value as u64),
        Time32(_) => integers::<Time32MillisecondType>(column, hashes, |value| value as u64),
        Time64(TimeUnit::Microsecond) => integers::<Time64MicrosecondType>(column, hashes, |value| value as u64),
        Time64(_) => integers::<Time64NanosecondType>(column, hashes, |value| value as u64),
        Timestamp(TimeUnit::Second, _) => integers::<TimestampSecondType>(column, hashes, |value| value as u64),
        Timestamp(TimeUnit::Millisecond, _) => integers::<TimestampMillisecondType>(column, hashes, |value| value as u64),
        Timestamp(TimeUnit::Microsecond, _) => integers::<TimestampMicrosecondType>(column, hashes, |value| value as u64),
        Timestamp(TimeUnit::Nanosecond, _) => integers::<TimestampNanosecondType>(column, hashes, |value| value as u64),
        Interval(IntervalUnit::YearMonth) => integers::<IntervalYearMonthType>(column, hashes, |value| value as u64),
        Decimal128(..) => integers::<Decimal128Type>(column, hashes, |value| mix(value as u64).wrapping_add((value >> 64) as u64)),
        Boolean => fold(column, hashes, |row| u64::from(column.as_boolean().value(row))),
        Utf8 => fold(column, hashes, |row| xxh3_64(column.as_string::<i32>().value(row).as_bytes())),
        LargeUtf8 => fold(column, hashes, |row| xxh3_64(column.as_string::<i64>().value(row).as_bytes())),
        Binary => fold(column, hashes, |row| xxh3_64(column.as_binary::<i32>().value(row))),
        LargeBinary => fold(column, hashes, |row| xxh3_64(column.as_binary::<i64>().value(row))),
        FixedSizeBinary(_) => fold(column, hashes, |row| xxh3_64(column.as_fixed_size_binary().value(row))),
        List(_) => {
            let list = column.as_list::<i32>();
            let elements = element_hashes(list.values())?;
            fold(column, hashes, |row| sequence(&elements[list.value_offsets()[row] as usize..list.value_offsets()[row + 1] as usize]));
        }
        Map(..) => {
            let map = column.as_map();
            let entries: ArrayRef = std::sync::Arc::new(map.entries().clone());
            let elements = element_hashes(&entries)?;
            fold(column, hashes, |row| sequence(&elements[map.value_offsets()[row] as usize..map.value_offsets()[row + 1] as usize]));
        }
        Struct(_) => {
            let mut fields = vec![0; column.len()];
            for field in column.as_struct().columns() {
                hash_column(field, &mut fields)?;
            }
            fold(column, hashes, |row| fields[row]);
        }
        other => return Err(OperatorError::plan(Partitioner::NAME, format!("no key can be of type {other}"))),
    }
    Ok(())
}

fn integers<T: ArrowPrimitiveType>(column: &ArrayRef, hashes: &mut [u64], bits: impl Fn(T::Native) -> u64) {
    let column: &PrimitiveArray<T> = column.as_primitive();
    match column.nulls().filter(|nulls| nulls.null_count() > 0) {
        None => hashes.iter_mut().zip(column.values()).for_each(|(hash, value)| *hash = mix(hash.wrapping_add(bits(*value)))),
        Some(_) => fold(column, hashes, |row| bits(column.value(row))),
    }
}

fn fold(column: &dyn Array, hashes: &mut [u64], value: impl Fn(usize) -> u64) {
    for (row, hash) in hashes.iter_mut().enumerate() {
        *hash = mix(hash.wrapping_add(if column.is_valid(row) { value(row) } else { NULL }));
    }
}

fn element_hashes(values: &ArrayRef) -> Result<Vec<u64>, OperatorError> {
    let mut hashes = vec![0; values.len()];
    hash_column(values, &mut hashes)?;
    Ok(hashes)
}

fn sequence(elements: &[u64]) -> u64 {
    elements.iter().fold(mix(elements.len() as u64), |hash, element| mix(hash.wrapping_add(*element)))
}

fn float_bits(value: f64) -> u64 {
    if value.is_nan() {
        f64::NAN.to_bits()
    } else if value == 0.0 {
        0
    } else {
        value.to_bits()
    }
}

#[cfg(test)]
#[path = "partition_test.rs"]
mod tests;
