//! What streamshield does: runs a [`plan::JobPlan`] in epochs over a log.

pub mod plan;
