//! State columns: one value per group, merged a batch at a time.
//!
//! A column knows its [`Kernel`], so one virtual call merges a whole batch and the loop inside is monomorphic. Groups are
//! added without a value; the merge that added them gives them one (or null).
//!
//! On disk a fixed-width value is a byte 0 (null) or 1 and then the little-endian value, zeros for null; a string is the byte, a length of
//! four bytes, and the bytes. Equal states have equal bytes, which the digest needs.

use super::cell::{Cell, Kernel};
use super::row_column::RowColumn;
use super::segments::{Bitmap, Segments};
use super::string_column::StringColumn;
use crate::error::{arrow, damaged, internal};
use arrow_array::cast::AsArray;
use arrow_array::{Array, ArrayRef, BooleanArray, make_array};
use arrow_buffer::{BooleanBuffer, Buffer, NullBuffer};
use arrow_data::ArrayData;
use arrow_schema::DataType;
use std::sync::Arc;
use streamshield_core::ports::state::StateError;

pub(crate) trait Column: Send {
    /// Adds groups without a value.
    fn grow(&mut self, count: usize);
    /// Row `i` of `incoming` goes into group `groups[i]`. Groups from `first_new` on were added by the same call of the table.
    fn merge(&mut self, groups: &[u32], incoming: &ArrayRef, first_new: usize) -> Result<(), StateError>;
    fn gather(&self, groups: &[u32]) -> Result<ArrayRef, StateError>;
    /// Appends the value of one group as it is on disk.
    fn write(&self, group: u32, out: &mut Vec<u8>);
    /// Writes the values of these groups as they are on disk, each `stride` bytes behind the one before. Only where all have the same width.
    fn write_fixed(&self, groups: &[u32], stride: usize, out: &mut [u8]) {
        let mut value = vec![];
        for (&group, out) in groups.iter().zip(out.chunks_mut(stride)) {
            value.clear();
            self.write(group, &mut value);
            out[..value.len()].copy_from_slice(&value);
        }
    }
    /// Takes the value of a new group from the front of `bytes`.
    fn push_written(&mut self, bytes: &mut &[u8]) -> Result<(), StateError>;
    /// Bytes on disk, if all values have the same.
    fn written_bytes(&self) -> Option<usize>;
    fn retain(&mut self, keep: &Bitmap);
    fn bytes(&self) -> usize;
}

/// A column for values of this type, or why there is none.
pub(crate) fn new_column(data_type: &DataType, kernel: Kernel) -> Result<Box<dyn Column>, StateError> {
    use DataType::*;
    let sums = matches!(data_type, Int8 | Int16 | Int32 | Int64 | UInt8 | UInt16 | UInt32 | UInt64 | Float32 | Float64 | Duration(_))
        || data_type.is_decimal();
    if kernel == Kernel::Sum && !sums {
        return Err(internal(format!("state of type {data_type} cannot be summed")));
    }
    Ok(match data_type {
        Int8 => PrimitiveColumn::<i8>::boxed(data_type, kernel),
        Int16 => PrimitiveColumn::<i16>::boxed(data_type, kernel),
        Int32 | Date32 | Time32(_) | Decimal32(_, _) => PrimitiveColumn::<i32>::boxed(data_type, kernel),
        Int64 | Date64 | Time64(_) | Timestamp(_, _) | Duration(_) | Decimal64(_, _) => PrimitiveColumn::<i64>::boxed(data_type, kernel),
        UInt8 => PrimitiveColumn::<u8>::boxed(data_type, kernel),
        UInt16 => PrimitiveColumn::<u16>::boxed(data_type, kernel),
        UInt32 => PrimitiveColumn::<u32>::boxed(data_type, kernel),
        UInt64 => PrimitiveColumn::<u64>::boxed(data_type, kernel),
        Float32 => PrimitiveColumn::<f32>::boxed(data_type, kernel),
        Float64 => PrimitiveColumn::<f64>::boxed(data_type, kernel),
        Decimal128(_, _) => PrimitiveColumn::<i128>::boxed(data_type, kernel),
        Decimal256(_, _) => PrimitiveColumn::<arrow_buffer::i256>::boxed(data_type, kernel),
        Boolean => Box::new(BooleanColumn { cells: PrimitiveColumn::new(&UInt8, kernel) }),
        Utf8 | LargeUtf8 | Utf8View | Binary | LargeBinary | BinaryView => Box::new(StringColumn::new(data_type, kernel)),
        _ if kernel == Kernel::Replace => Box::new(RowColumn::new(data_type)?),
        _ => return Err(internal(format!("state of type {data_type} has no minimum or maximum"))),
    })
}

/// Which groups have a value. Absent while all have one.
#[derive(Default)]
pub(crate) struct Validity {
    bits: Option<Bitmap>,
    len: usize,
}

impl Validity {
    pub fn grow(&mut self, count: usize) {
        self.len += count;
        if let Some(bits) = &mut self.bits {
            bits.extend(count, false);
        }
    }

    /// The bits, made on the first null: until then all groups but the new ones have a value.
    pub fn bits(&mut self, first_new: usize) -> &mut Bitmap {
        let len = self.len;
        self.bits.get_or_insert_with(|| {
            let mut bits = Bitmap::new(first_new, true);
            bits.extend(len - first_new, false);
            bits
        })
    }

    pub fn existing_bits(&mut self) -> Option<&mut Bitmap> {
        self.bits.as_mut()
    }

    #[inline]
    pub fn get(&self, group: u32) -> bool {
        self.bits.as_ref().is_none_or(|bits| bits.get(group as usize))
    }

    pub fn push(&mut self, is_valid: bool) {
        if !is_valid {
            self.bits(self.len);
        }
        self.len += 1;
        if let Some(bits) = &mut self.bits {
            bits.extend(1, is_valid);
        }
    }

    pub fn gather(&self, groups: &[u32]) -> Option<NullBuffer> {
        let bits = self.bits.as_ref()?;
        let nulls = NullBuffer::from(BooleanBuffer::collect_bool(groups.len(), |row| bits.get(groups[row] as usize)));
        (nulls.null_count() > 0).then_some(nulls)
    }

    pub fn retain(&mut self, keep: &Bitmap) {
        self.len = keep.count();
        if let Some(bits) = &mut self.bits {
            bits.retain(keep);
            if bits.count() == self.len {
                self.bits = None;
            }
        }
    }

    pub fn bytes(&self) -> usize {
        self.bits.as_ref().map_or(0, Bitmap::bytes)
    }
}

/// Splits `count` bytes off the front.
pub(crate) fn take<'a>(bytes: &mut &'a [u8], count: usize) -> Result<&'a [u8], StateError> {
    let (front, rest) =
        bytes.split_at_checked(count).ok_or_else(|| damaged(format!("a state ends {} bytes early", count - bytes.len())))?;
    *bytes = rest;
    Ok(front)
}

pub(crate) fn take_validity(bytes: &mut &[u8]) -> Result<bool, StateError> {
    match take(bytes, 1)? {
        [0] => Ok(false),
        [1] => Ok(true),
        other => Err(damaged(format!("{other:?} where 0 or 1 belongs"))),
    }
}

/// Integers, floats, decimals, dates, times.
struct PrimitiveColumn<T> {
    data_type: DataType,
    kernel: Kernel,
    cells: Segments<T>,
    validity: Validity,
}

impl<T: Cell> PrimitiveColumn<T> {
    fn new(data_type: &DataType, kernel: Kernel) -> Self {
        PrimitiveColumn { data_type: data_type.clone(), kernel, cells: Segments::new(), validity: Validity::default() }
    }

    fn boxed(data_type: &DataType, kernel: Kernel) -> Box<dyn Column> {
        Box::new(Self::new(data_type, kernel))
    }

    fn merge_cells(&mut self, groups: &[u32], values: &[T], nulls: Option<&NullBuffer>, first_new: usize) {
        let PrimitiveColumn { kernel, cells, validity, .. } = self;
        match kernel {
            Kernel::Sum => apply(cells, validity, groups, values, nulls, first_new, |stored, value| stored.add(value)),
            Kernel::Min => apply(
                cells,
                validity,
                groups,
                values,
                nulls,
                first_new,
                |stored, value| {
                    if value.is_before(stored) { value } else { stored }
                },
            ),
            Kernel::Max => apply(
                cells,
                validity,
                groups,
                values,
                nulls,
                first_new,
                |stored, value| {
                    if stored.is_before(value) { value } else { stored }
                },
            ),
            Kernel::Replace => {
                apply(cells, validity, groups, values, nulls, first_new, |_, value| value);
                // Null is a value here: it replaces what was there.
                if let Some(nulls) = nulls {
                    let bits = validity.bits(first_new);
                    for (row, &group) in groups.iter().enumerate() {
                        if nulls.is_null(row) {
                            bits.clear(group as usize);
                        }
                    }
                }
            }
        }
    }

    fn gather_cells(&self, groups: &[u32]) -> Vec<T> {
        let cell = |&group: &u32| {
            if self.validity.get(group) { self.cells.get(group as usize) } else { T::default() }
        };
        if self.validity.bits.is_none() {
            return groups.iter().map(|&group| self.cells.get(group as usize)).collect();
        }
        groups.iter().map(cell).collect()
    }
}

/// Runs a kernel over a batch: three loops, so that the common one tests no validity.
#[inline]
fn apply<T: Cell>(
    cells: &mut Segments<T>,
    validity: &mut Validity,
    groups: &[u32],
    values: &[T],
    nulls: Option<&NullBuffer>,
    first_new: usize,
    merge: impl Fn(T, T) -> T,
) {
    let rows = || groups.iter().map(|&group| group as usize).zip(values);
    match (nulls, validity.existing_bits()) {
        (None, None) => {
            for (group, &value) in rows() {
                let cell = cells.get_mut(group);
                *cell = merge(*cell, value);
            }
        }
        (None, Some(bits)) => {
            for (group, &value) in rows() {
                let cell = cells.get_mut(group);
                *cell = merge(*cell, value);
                bits.set(group);
            }
        }
        (Some(nulls), _) => {
            let bits = validity.bits(first_new);
            for (row, (group, &value)) in rows().enumerate() {
                if nulls.is_valid(row) {
                    let cell = cells.get_mut(group);
                    *cell = merge(*cell, value);
                    bits.set(group);
                }
            }
        }
    }
}

impl<T: Cell> Column for PrimitiveColumn<T> {
    fn grow(&mut self, count: usize) {
        self.cells.extend(count, T::identity(self.kernel));
        self.validity.grow(count);
    }

    fn merge(&mut self, groups: &[u32], incoming: &ArrayRef, first_new: usize) -> Result<(), StateError> {
        let data = incoming.to_data();
        let nulls = data.nulls().filter(|nulls| nulls.null_count() > 0);
        self.merge_cells(groups, &data.buffer::<T>(0)[..data.len()], nulls, first_new);
        Ok(())
    }

    fn gather(&self, groups: &[u32]) -> Result<ArrayRef, StateError> {
        let data = ArrayData::builder(self.data_type.clone())
            .len(groups.len())
            .add_buffer(Buffer::from_vec(self.gather_cells(groups)))
            .nulls(self.validity.gather(groups))
            .build()
            .map_err(arrow)?;
        Ok(make_array(data))
    }

    fn write(&self, group: u32, out: &mut Vec<u8>) {
        let is_valid = self.validity.get(group);
        out.push(u8::from(is_valid));
        if is_valid { self.cells.get(group as usize) } else { T::default() }.write(out);
    }

    fn write_fixed(&self, groups: &[u32], stride: usize, out: &mut [u8]) {
        for (&group, out) in groups.iter().zip(out.chunks_mut(stride)) {
            let is_valid = self.validity.get(group);
            out[0] = u8::from(is_valid);
            let cell = if is_valid { self.cells.get(group as usize) } else { T::default() };
            cell.put(&mut out[1..1 + T::BYTES]);
        }
    }

    fn push_written(&mut self, bytes: &mut &[u8]) -> Result<(), StateError> {
        let is_valid = take_validity(bytes)?;
        let cell = T::read(take(bytes, T::BYTES)?);
        self.cells.push(if is_valid { cell } else { T::identity(self.kernel) });
        self.validity.push(is_valid);
        Ok(())
    }

    fn written_bytes(&self) -> Option<usize> {
        Some(1 + T::BYTES)
    }

    fn retain(&mut self, keep: &Bitmap) {
        self.cells.retain(keep);
        self.validity.retain(keep);
    }

    fn bytes(&self) -> usize {
        self.cells.bytes() + self.validity.bytes()
    }
}

/// Booleans, a byte each: false is before true.
struct BooleanColumn {
    cells: PrimitiveColumn<u8>,
}

impl Column for BooleanColumn {
    fn grow(&mut self, count: usize) {
        self.cells.grow(count);
    }

    fn merge(&mut self, groups: &[u32], incoming: &ArrayRef, first_new: usize) -> Result<(), StateError> {
        let array = incoming.as_boolean();
        let values: Vec<u8> = array.values().iter().map(u8::from).collect();
        let nulls = array.nulls().filter(|nulls| nulls.null_count() > 0);
        self.cells.merge_cells(groups, &values, nulls, first_new);
        Ok(())
    }

    fn gather(&self, groups: &[u32]) -> Result<ArrayRef, StateError> {
        let values = self.cells.gather_cells(groups);
        let bits = BooleanBuffer::collect_bool(values.len(), |row| values[row] == 1);
        Ok(Arc::new(BooleanArray::new(bits, self.cells.validity.gather(groups))))
    }

    fn write(&self, group: u32, out: &mut Vec<u8>) {
        self.cells.write(group, out);
    }

    fn write_fixed(&self, groups: &[u32], stride: usize, out: &mut [u8]) {
        self.cells.write_fixed(groups, stride, out);
    }

    fn push_written(&mut self, bytes: &mut &[u8]) -> Result<(), StateError> {
        self.cells.push_written(bytes)
    }

    fn written_bytes(&self) -> Option<usize> {
        self.cells.written_bytes()
    }

    fn retain(&mut self, keep: &Bitmap) {
        self.cells.retain(keep);
    }

    fn bytes(&self) -> usize {
        self.cells.bytes()
    }
}
