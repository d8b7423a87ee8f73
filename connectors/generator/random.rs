//! Numbers that look random and are a function of `(seed, row, stream)`.
//!
//! Every column of a row draws from a stream of its own, so that a value does not depend on which other columns are asked
//! for. The generator is SplitMix64 (Steele, Lea, Flood: "Fast Splittable Pseudorandom Number Generators", 2014).

const GOLDEN: u64 = 0x9E37_79B9_7F4A_7C15;

/// A stream of numbers for one value.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64, row: i64, stream: u64) -> Self {
        Random(mix(seed.wrapping_add(stream.wrapping_mul(GOLDEN))) ^ mix((row as u64).wrapping_mul(0xD6E8_FEB8_6659_FD93)))
    }

    #[inline]
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(GOLDEN);
        mix(self.0)
    }

    /// Uniform in `[0, bound)`; 0 when the bound is 0. (Lemire's multiplication; its bias of bound/2^64 does not matter here.)
    #[inline]
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        ((u128::from(self.next()) * u128::from(bound)) >> 64) as u64
    }

    /// Uniform in `[0, 1)`.
    #[inline]
    pub(crate) fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Uniform in `[low, high]`.
    pub(crate) fn between(&mut self, low: i64, high: i64) -> i64 {
        let width = (high as u64).wrapping_sub(low as u64).wrapping_add(1);
        let step = if width == 0 { self.next() } else { self.below(width) };
        (low as u64).wrapping_add(step) as i64
    }

    /// Appends lower-case letters and digits.
    pub(crate) fn write_text(&mut self, out: &mut Vec<u8>, length: usize) {
        const LETTERS: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz012345";
        let mut left = length;
        while left > 0 {
            let mut word = self.next();
            for _ in 0..left.min(12) {
                out.push(LETTERS[(word & 31) as usize]);
                word >>= 5;
            }
            left -= left.min(12);
        }
    }
}

#[inline]
fn mix(mut word: u64) -> u64 {
    word = (word ^ (word >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    word = (word ^ (word >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    word ^ (word >> 31)
}

/// Ranks 1 to n with probability proportional to rank^−exponent, without a table: rejection-inversion after Hörmann and
/// Derflinger, "Rejection-Inversion to Generate Variates from Monotone Discrete Distributions", 1996.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Zipf {
    items: u64,
    exponent: f64,
    low: f64,
    high: f64,
    accept: f64,
}

impl Zipf {
    /// An exponent of 0 is uniform; larger is more skewed.
    pub(crate) fn new(items: u64, exponent: f64) -> Self {
        let mut zipf = Zipf { items: items.max(1), exponent, low: 0.0, high: 0.0, accept: 0.0 };
        zipf.low = zipf.integral(1.5) - 1.0;
        zipf.high = zipf.integral(zipf.items as f64 + 0.5);
        zipf.accept = 2.0 - zipf.inverse(zipf.integral(2.5) - zipf.weight(2.0));
        zipf
    }

    pub(crate) fn sample(&self, random: &mut Random) -> u64 {
        if self.exponent == 0.0 {
            return 1 + random.below(self.items);
        }
        loop {
            let area = self.high + random.unit() * (self.low - self.high);
            let point = self.inverse(area);
            let rank = point.round().clamp(1.0, self.items as f64);
            if rank - point <= self.accept || area >= self.integral(rank + 0.5) - self.weight(rank) {
                return rank as u64;
            }
        }
    }

    fn weight(&self, rank: f64) -> f64 {
        rank.powf(-self.exponent)
    }

    /// ∫ x^−exponent, zero at 1.
    fn integral(&self, x: f64) -> f64 {
        let log = x.ln();
        let power = (1.0 - self.exponent) * log;
        if power.abs() < 1e-8 { log * (1.0 + power / 2.0) } else { power.exp_m1() / (1.0 - self.exponent) }
    }

    fn inverse(&self, area: f64) -> f64 {
        let scaled = (area * (1.0 - self.exponent)).max(-1.0);
        let log = if scaled.abs() < 1e-8 { area * (1.0 - scaled / 2.0) } else { scaled.ln_1p() / (1.0 - self.exponent) };
        log.exp()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_zipf_distribution_has_the_shares_of_its_exponent() {
        for exponent in [0.0, 0.5, 1.0, 1.2, 2.0] {
            let items = 50u64;
            let zipf = Zipf::new(items, exponent);
            let draws = 200_000;
            let mut counts = vec![0u64; items as usize + 1];
            for row in 0..draws {
                counts[zipf.sample(&mut Random::new(7, row, 1)) as usize] += 1;
            }
            let total: f64 = (1..=items).map(|rank| (rank as f64).powf(-exponent)).sum();
            for rank in [1, 2, 5, 50] {
                let expected = draws as f64 * (rank as f64).powf(-exponent) / total;
                let found = counts[rank as usize] as f64;
                // Six standard deviations of a binomial count.
                assert!((found - expected).abs() < 6.0 * expected.sqrt() + 1.0, "s = {exponent}, rank {rank}: {found} against {expected}");
            }
        }
    }

    #[test]
    fn a_range_is_met_to_its_ends() {
        let drawn: std::collections::BTreeSet<i64> = (0..1000).map(|row| Random::new(1, row, 0).between(-2, 2)).collect();
        assert_eq!(drawn.into_iter().collect::<Vec<_>>(), [-2, -1, 0, 1, 2]);
        Random::new(1, 1, 1).between(i64::MIN, i64::MAX);
    }
}
