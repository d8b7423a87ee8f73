//! Figures of benchmarks and long tests, as JSON under `target/bench/`, so that a program can check them.

use anyhow::{Context, Result};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// The repository's root.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("this crate lies in the repository")
}

/// Writes `target/bench/NAME` in one step: a reader never sees half of it.
pub fn write(name: &str, figures: &Value) -> Result<PathBuf> {
    let folder = root().join("target").join("bench");
    std::fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
    let (path, part) = (folder.join(name), folder.join(format!("{name}.part")));
    std::fs::write(&part, serde_json::to_string_pretty(figures)? + "\n")?;
    std::fs::rename(&part, &path)?;
    println!("figures: {}", path.display());
    Ok(path)
}

/// The value below which a share of the samples lies; nearest rank.
pub fn quantile(samples: &[f64], q: f64) -> Option<f64> {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let rank = (sorted.len() as f64 * q).ceil().max(1.0) as usize;
    sorted.get(rank.min(sorted.len()).checked_sub(1)?).copied()
}

/// To a tenth of a millisecond.
pub fn quantiles(samples: &[f64]) -> Value {
    let of = |q| quantile(samples, q).map(|value| (value * 10.0).round() / 10.0);
    json!({ "p50_ms": of(0.5), "p95_ms": of(0.95), "p99_ms": of(0.99), "max_ms": of(1.0) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_nearest_ranks() {
        let samples: Vec<f64> = (1..=50).map(f64::from).collect();
        assert_eq!([0.5, 0.99, 1.0].map(|q| quantile(&samples, q)), [Some(25.0), Some(50.0), Some(50.0)]);
        assert_eq!(quantile(&[], 0.5), None);
        assert_eq!(quantile(&[0.0304, 0.04], 0.5), Some(0.0304), "shares are small");
    }
}
