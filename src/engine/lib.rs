//! What streamshield does: runs a [`plan::JobPlan`] in epochs over a log.

pub mod config;
pub mod plan;
pub mod runtime;
