//! `RAND()` and `UUID()` over the hidden column `__seed`: the same row gives the same value in every replay.

use super::scalar::{Body, scalar};
use arrow_array::cast::AsArray;
use arrow_array::types::UInt64Type;
use arrow_array::{ArrayRef, Float64Array, StringArray};
use arrow_schema::DataType;
use datafusion_expr::ScalarUDF;
use std::sync::Arc;

/// splitmix64 over the row's seed and the call site (Steele, Lea, Flood: "Fast splittable pseudorandom number generators").
fn mix(seed: u64, site: u64) -> u64 {
    let mut z = seed.wrapping_add(site.wrapping_mul(0x9E37_79B9_7F4A_7C15));
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

fn pairs(columns: &[ArrayRef]) -> impl Iterator<Item = (u64, u64)> + '_ {
    let (seeds, sites) = (columns[0].as_primitive::<UInt64Type>(), columns[1].as_primitive::<UInt64Type>());
    (0..seeds.len()).map(move |row| (seeds.value(row), sites.value(row)))
}

pub(super) fn random() -> ScalarUDF {
    let body: Body = |columns| {
        // 53 bits: every value that a DOUBLE in [0, 1) can be, evenly.
        let values = pairs(columns).map(|(seed, site)| (mix(seed, site) >> 11) as f64 / (1u64 << 53) as f64);
        Ok(Arc::new(Float64Array::from_iter_values(values)))
    };
    scalar("__random", vec![DataType::UInt64, DataType::UInt64], DataType::Float64, body)
}

pub(super) fn uuid() -> ScalarUDF {
    let body: Body = |columns| {
        let values = pairs(columns).map(|(seed, site)| {
            let (high, low) = (mix(seed, site), mix(seed.rotate_left(32), site ^ 0xA5A5));
            // Version 4, variant 1 (RFC 9562).
            let (high, low) = (high & !0xF000 | 0x4000, low & !(3 << 62) | (2 << 62));
            format!(
                "{:08x}-{:04x}-{:04x}-{:04x}-{:012x}",
                high >> 32,
                (high >> 16) & 0xFFFF,
                high & 0xFFFF,
                low >> 48,
                low & 0xFFFF_FFFF_FFFF
            )
        });
        Ok(Arc::new(StringArray::from_iter_values(values)))
    };
    scalar("__uuid", vec![DataType::UInt64, DataType::UInt64], DataType::Utf8, body)
}
