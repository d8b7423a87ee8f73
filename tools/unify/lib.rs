//! No code here: see the description in `Cargo.toml`.
