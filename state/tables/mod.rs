//! Window tables in memory: one slab of groups per window, drained in key order.
//!
//! ```text
//!  Table ── windows: (end, start) → WindowSlab ┬ keys      words, fixed rows or an arena      (keys.rs)
//!        └─ removals not yet on disk           ├ index     hash → group number                (index.rs)
//!                                              ├ columns   one typed slab per state column    (column.rs)
//!                                              └ marks     changed, in flight, used: bitmaps  (marks.rs)
//! ```
//!
//! A group may be in memory, on disk, or both; memory wins. Where it is never shows: a key missing in a window that has
//! groups on disk is looked up before it counts as new, and a drain merges both in key order (E-4).

mod cell;
mod column;
mod delta;
mod drain;
mod evict;
mod index;
mod keys;
mod marks;
mod row_column;
mod segments;
mod slab;
mod spec;
mod string_column;
mod table;

pub(crate) use spec::{RESERVED_OPERATOR, TableSpec};
pub(crate) use table::Table;
