//! Values of fixed width that a state column may hold, and what merging means for each.

use arrow_buffer::{ArrowNativeType, i256};

/// What a column does with a new value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kernel {
    Sum,
    Min,
    Max,
    /// The aggregate's own merger computes the new value.
    Replace,
}

pub(crate) trait Cell: ArrowNativeType {
    const BYTES: usize;
    /// `identity(kernel)` merged with `x` is `x`, to the bit: so a group without a value needs no branch.
    fn identity(kernel: Kernel) -> Self;
    fn add(self, other: Self) -> Self;
    /// A total order, so that the result does not depend on the order of merging (E-4).
    fn is_before(self, other: Self) -> bool;
    fn write(self, out: &mut Vec<u8>);
    /// Into exactly [`Self::BYTES`] bytes.
    fn put(self, out: &mut [u8]);
    /// From exactly [`Self::BYTES`] bytes.
    fn read(bytes: &[u8]) -> Self;
}

macro_rules! integer_cell {
    ($($native:ty => $bytes:literal),*) => {$(
        impl Cell for $native {
            const BYTES: usize = $bytes;
            fn identity(kernel: Kernel) -> Self {
                match kernel {
                    Kernel::Sum | Kernel::Replace => Self::default(),
                    Kernel::Min => Self::MAX,
                    Kernel::Max => Self::MIN,
                }
            }
            #[inline]
            fn add(self, other: Self) -> Self {
                self.wrapping_add(other)
            }
            #[inline]
            fn is_before(self, other: Self) -> bool {
                self < other
            }
            fn write(self, out: &mut Vec<u8>) {
                out.extend_from_slice(&self.to_le_bytes());
            }
            #[inline]
            fn put(self, out: &mut [u8]) {
                out.copy_from_slice(&self.to_le_bytes());
            }
            fn read(bytes: &[u8]) -> Self {
                let mut array = [0; $bytes];
                array.copy_from_slice(bytes);
                Self::from_le_bytes(array)
            }
        }
    )*};
}
integer_cell!(i8 => 1, i16 => 2, i32 => 4, i64 => 8, i128 => 16, i256 => 32, u8 => 1, u16 => 2, u32 => 4, u64 => 8);

macro_rules! float_cell {
    ($($native:ty => $bytes:literal),*) => {$(
        impl Cell for $native {
            const BYTES: usize = $bytes;
            fn identity(kernel: Kernel) -> Self {
                match kernel {
                    // 0.0 would turn a sum of −0.0 into 0.0.
                    Kernel::Sum | Kernel::Replace => -0.0,
                    Kernel::Min => Self::NAN,
                    Kernel::Max => Self::NEG_INFINITY,
                }
            }
            #[inline]
            fn add(self, other: Self) -> Self {
                self + other
            }
            /// Every NaN counts as one value above all others; −0.0 comes before 0.0.
            #[inline]
            fn is_before(self, other: Self) -> bool {
                match (self.is_nan(), other.is_nan()) {
                    (true, _) => false,
                    (false, true) => true,
                    (false, false) => self.total_cmp(&other).is_lt(),
                }
            }
            fn write(self, out: &mut Vec<u8>) {
                out.extend_from_slice(&self.to_le_bytes());
            }
            #[inline]
            fn put(self, out: &mut [u8]) {
                out.copy_from_slice(&self.to_le_bytes());
            }
            fn read(bytes: &[u8]) -> Self {
                let mut array = [0; $bytes];
                array.copy_from_slice(bytes);
                Self::from_le_bytes(array)
            }
        }
    )*};
}
float_cell!(f32 => 4, f64 => 8);

#[cfg(test)]
mod tests {
    use super::*;

    fn merged(kernel: Kernel, values: &[f64]) -> u64 {
        let value = values.iter().fold(f64::identity(kernel), |stored, &value| match kernel {
            Kernel::Min if value.is_before(stored) => value,
            Kernel::Max if stored.is_before(value) => value,
            Kernel::Sum => stored.add(value),
            _ => stored,
        });
        value.to_bits()
    }

    #[test]
    fn the_identity_leaves_every_float_as_it_is() {
        for value in [0.0, -0.0, 1.5, f64::INFINITY, f64::NEG_INFINITY, f64::MIN_POSITIVE] {
            for kernel in [Kernel::Sum, Kernel::Min, Kernel::Max] {
                assert_eq!(merged(kernel, &[value]), value.to_bits(), "{kernel:?} of {value}");
            }
        }
        assert!(f64::from_bits(merged(Kernel::Min, &[f64::NAN])).is_nan());
        assert!(f64::from_bits(merged(Kernel::Max, &[f64::NAN, 1.0])).is_nan());
    }

    #[test]
    fn the_minimum_of_floats_does_not_depend_on_their_order() {
        let values = [1.0, f64::NAN, -0.0, 0.0, -f64::NAN, f64::INFINITY];
        for kernel in [Kernel::Min, Kernel::Max] {
            let forward = merged(kernel, &values);
            let backward: Vec<f64> = values.iter().rev().copied().collect();
            let same = f64::from_bits(forward).is_nan() && f64::from_bits(merged(kernel, &backward)).is_nan();
            assert!(same || forward == merged(kernel, &backward));
        }
    }
}
