//! Figures of benchmarks and long tests, as JSON under `target/bench/`, so that a program can check them.

use anyhow::{Context, Result};
use serde_json::Value;
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
