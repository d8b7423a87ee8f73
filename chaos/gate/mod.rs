//! The gate: a release is promoted only if it keeps its promise under fire, and nothing got worse than it was.
//!
//! ```text
//! streamshield gate ─┬─ chaos run PLAN, program and job of the baseline  ─► journal ─┐
//!                    └─ chaos run PLAN, program and job of the candidate ─► journal ─┴─ compare ─► promotion.json, promotion.md
//! ```
//! Both runs have the same plan and seed, one after the other, each in a process of its own: what one leaves behind in memory or in files is not the other's.
//! A figure is worse only if it is so by more than a share *and* by more than what two runs of the same differ by ([`compare::MEASURES`]).

mod compare;
mod run;
mod text;

pub use compare::{Change, Prices, Promotion, compare};
pub use run::{GateError, GateRequest, Side, run};
pub use text::markdown;
