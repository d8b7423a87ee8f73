//! Strings and byte strings, in an arena.

use super::cell::Kernel;
use super::column::{Column, Validity, take, take_validity};
use super::segments::{Arena, Bitmap, Segments, Span};
use crate::error::internal;
use arrow_array::ArrayRef;
use arrow_array::builder::{BinaryBuilder, BinaryViewBuilder, LargeBinaryBuilder, LargeStringBuilder, StringBuilder, StringViewBuilder};
use arrow_array::cast::AsArray;
use arrow_schema::DataType;
use std::sync::Arc;
use streamshield_core::ports::state::StateError;

/// Merged by the order of their bytes, which for UTF-8 is the order of code points.
pub(crate) struct StringColumn {
    data_type: DataType,
    kernel: Kernel,
    spans: Segments<Span>,
    arena: Arena,
    validity: Validity,
}

impl StringColumn {
    pub fn new(data_type: &DataType, kernel: Kernel) -> Self {
        StringColumn {
            data_type: data_type.clone(),
            kernel,
            spans: Segments::new(),
            arena: Arena::default(),
            validity: Validity::default(),
        }
    }

    fn get(&self, group: u32) -> Option<&[u8]> {
        self.validity.get(group).then(|| self.arena.get(self.spans.get(group as usize)))
    }

    fn merge_values<'a>(&mut self, groups: &[u32], values: impl Iterator<Item = Option<&'a [u8]>>, first_new: usize) {
        // Whether a group has a value decides here, so the bits are always kept.
        self.validity.bits(first_new);
        for (&group, value) in groups.iter().zip(values) {
            let replaces = match (self.get(group), value) {
                (_, None) => self.kernel == Kernel::Replace,
                (None, Some(_)) => true,
                (Some(stored), Some(value)) => match self.kernel {
                    Kernel::Min => value < stored,
                    Kernel::Max => stored < value,
                    Kernel::Sum | Kernel::Replace => true,
                },
            };
            if replaces {
                let span = self.spans.get_mut(group as usize);
                *span = self.arena.replace(*span, value.unwrap_or(&[]));
                let bits = self.validity.bits(first_new);
                if value.is_some() {
                    bits.set(group as usize);
                } else {
                    bits.clear(group as usize);
                }
            }
        }
        if self.arena.is_mostly_garbage() {
            self.arena.rewrite(&mut self.spans);
        }
    }
}

impl Column for StringColumn {
    fn grow(&mut self, count: usize) {
        self.spans.extend(count, Span::default());
        self.validity.grow(count);
    }

    fn merge(&mut self, groups: &[u32], incoming: &ArrayRef, first_new: usize) -> Result<(), StateError> {
        match &self.data_type {
            DataType::Utf8 => self.merge_values(groups, incoming.as_string::<i32>().iter().map(|v| v.map(str::as_bytes)), first_new),
            DataType::LargeUtf8 => self.merge_values(groups, incoming.as_string::<i64>().iter().map(|v| v.map(str::as_bytes)), first_new),
            DataType::Utf8View => self.merge_values(groups, incoming.as_string_view().iter().map(|v| v.map(str::as_bytes)), first_new),
            DataType::Binary => self.merge_values(groups, incoming.as_binary::<i32>().iter(), first_new),
            DataType::LargeBinary => self.merge_values(groups, incoming.as_binary::<i64>().iter(), first_new),
            DataType::BinaryView => self.merge_values(groups, incoming.as_binary_view().iter(), first_new),
            other => return Err(internal(format!("{other} is no string type"))),
        }
        Ok(())
    }

    fn gather(&self, groups: &[u32]) -> Result<ArrayRef, StateError> {
        let values = || groups.iter().map(|&group| self.get(group));
        let texts = || values().map(|value| value.map(std::str::from_utf8).transpose()).collect::<Result<Vec<_>, _>>();
        let not_text = |error| internal(format!("a string state is not UTF-8: {error}"));
        macro_rules! build {
            ($builder:expr, $values:expr) => {{
                let mut builder = $builder;
                builder.extend($values);
                Arc::new(builder.finish()) as ArrayRef
            }};
        }
        Ok(match &self.data_type {
            DataType::Utf8 => build!(StringBuilder::new(), texts().map_err(not_text)?),
            DataType::LargeUtf8 => build!(LargeStringBuilder::new(), texts().map_err(not_text)?),
            DataType::Utf8View => build!(StringViewBuilder::new(), texts().map_err(not_text)?),
            DataType::Binary => build!(BinaryBuilder::new(), values()),
            DataType::LargeBinary => build!(LargeBinaryBuilder::new(), values()),
            DataType::BinaryView => build!(BinaryViewBuilder::new(), values()),
            other => return Err(internal(format!("{other} is no string type"))),
        })
    }

    fn write(&self, group: u32, out: &mut Vec<u8>) {
        let value = self.get(group);
        out.push(u8::from(value.is_some()));
        let value = value.unwrap_or(&[]);
        out.extend_from_slice(&(value.len() as u32).to_le_bytes());
        out.extend_from_slice(value);
    }

    fn push_written(&mut self, bytes: &mut &[u8]) -> Result<(), StateError> {
        let is_valid = take_validity(bytes)?;
        let mut len = [0; 4];
        len.copy_from_slice(take(bytes, 4)?);
        let value = take(bytes, u32::from_le_bytes(len) as usize)?;
        self.spans.push(self.arena.push(value));
        self.validity.push(is_valid);
        Ok(())
    }

    fn written_bytes(&self) -> Option<usize> {
        None
    }

    fn retain(&mut self, keep: &Bitmap) {
        self.spans.retain(keep);
        self.validity.retain(keep);
        self.arena.rewrite(&mut self.spans);
    }

    fn bytes(&self) -> usize {
        self.spans.bytes() + self.arena.bytes() + self.validity.bytes()
    }
}
