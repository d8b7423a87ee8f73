//! Plans of faults, their run against a cluster, the verdict, its reports, and the gate that promotes a release.
//!
//! A chaos test says something only if three things are known: that the faults really happened, that nothing else was wrong, and what the output had to be.
//! So a run does not return "ok" but a journal, and everything that is claimed follows from it.
//!
//! ```text
//! PLAN.yaml ─plan──► Plan ─runner─► stage (brokers, workers, stores) · workload · faults
//!                                      │ entries, as they happen
//!                                      ▼
//!                                   journal ──verdict──► exit code 0 pass · 1 SLO missed · 2 violated · 3 inconclusive · 4 harness
//!                                      └──report──► JUnit, Markdown, HTML
//! gate: the same plan against two builds or jobs, and the comparison that promotes or does not
//! ```
//! - **Safety first, then liveness**: while faults are active only wrong output counts; after everything is undone the job must catch up in time.
//! - **Evidence**: a fault that did not fire, a load that was not reached and a host that was too busy make a run inconclusive, never green.
//!
//! Not here: what a fault is and how it is injected (`streamshield-faults`), the load and its oracle (`streamshield-workload`).

pub mod gate;
pub mod journal;
pub mod mutants;
pub mod plan;
pub mod report;
pub mod runner;
pub mod verdict;

#[cfg(test)]
mod test_kit;
