//! Who is alive, who owns which region and whom to fence: the fold of a job's control log.
//!
//! There is no leader. Every worker reads the one partition of the control log and folds its records through [`Cluster::apply`]; the fold
//! has no clock, no randomness and no I/O, so at one offset all workers come to the same answer (C-1), and each acts only on what the answer
//! says about itself. Deciding by a leader would need an election, a lease on somebody's clock, and a second log for what the leader did.
//!
//! ```text
//!   worker 1 ──append──▶ ┌──────────────── control log ────────────────┐
//!   worker 2 ──append──▶ │ … heartbeat │ joined │ heartbeat │ fenced │ … ◀── the broker's LogAppendTime: the only clock
//!   worker 3 ──append──▶ └──────────────────────┬──────────────────────┘
//!                                               ▼  each worker, each record
//!      apply:  log clock → who is expired → the record itself → settle: owners for orphans, followers, planned moves
//!                                               ▼
//!      the worker reads what concerns it:  standing · owned · followed · to_fence
//! ```
//!
//! **A region's way from one owner to the next.** When the owner is gone (expired, left, replaced) the region has a new one at that very
//! record, and the old slot is in the region's `must_fence`: the new owner may do nothing until somebody has fenced that slot and said so. When it is
//! handed over on purpose there is nothing to fence:
//!
//! ```text
//!   moving ──▶ target writes `ready` ──▶ owner is asked to release ──▶ `released` ──▶ the target owns it from that record on
//!      │ target gone: called off               │ not in time: the owner is expired as a whole
//! ```
//!
//! Where things are: [`record`] what may lie in the log · `apply` what a record means · `joining` who may join, deaths and quarantine · `clock` time
//! by the log, `expiry` what it does · `state` all that decides, `index` what is derived from it, `digest` its fingerprint · `assign` owners for
//! orphans · `moves` planned moves · `followers` · `fencing` who fences whom · `observed` what decides nothing (reports, comparison of digests,
//! verified snapshots) · `snapshot` how the log stays short · `invariants` what must hold after every record.
//!
//! Invariants: **O-1** (one owner per region and offset; it begins only when all earlier ones are fenced or have released), **C-1** (same offset,
//! same digest), **M-1** (every list here is bounded or has as many entries as there are live members, regions or slots still to be fenced).
//!
//! On failure: a record that is malformed, foreign, late or from somebody who is not a member changes nothing and is counted. A worker whose digest
//! contradicts the majority's finds itself in [`Cluster::contradicts`] and exits.
//!
//! ```
//! use streamshield_core::{cluster::*, ids::*};
//! let settings = Settings { tier: Tier::Checkpoints, followers: 0, heartbeat_interval_ms: 100, expiry_ms: 350, release_timeout_ms: 5_000, workers_expected: 1, start_wait_ms: 0,
//!     balance_delay_ms: 0, warm_up_timeout_ms: 0 };
//! let genesis = Genesis {
//!     plan: Some(PlanFingerprint(1)), splits: Default::default(), exchange_partitions: Default::default(),
//!     stages: [(0, StageShape { regions: 2, stateful: true, is_source: true })].into(),
//! };
//! let joined = |incarnation, worker: &str| ControlRecord::Joined(Joined {
//!     incarnation: Incarnation(incarnation), nonce: incarnation, worker: worker.into(), slots: 1, rack: None, level: FEATURE_LEVEL,
//!     plan: PlanFingerprint(1), settings: settings.clone(), http: None, died_in: Vec::new(),
//! });
//! let mut cluster = Cluster::default();
//! for (offset, record) in [joined(1, "a"), joined(2, "b"), ControlRecord::Genesis(genesis)].iter().enumerate() {
//!     cluster.apply(Entry { offset: offset as i64, append_time_ms: Some(1_000), payload: &record.encode() });
//! }
//! let first = SlotId { incarnation: Incarnation(1), slot: 0 };
//! assert_eq!(cluster.owned(first).len(), 1);
//! // Worker a says that it leaves without having released its region: worker b owns it, once a's producer is fenced.
//! let left = ControlRecord::Left { incarnation: Incarnation(1), clean: false };
//! cluster.apply(Entry { offset: 3, append_time_ms: Some(1_100), payload: &left.encode() });
//! let owned = cluster.owned(SlotId { incarnation: Incarnation(2), slot: 0 });
//! assert_eq!(owned.iter().map(|region| region.fences_open).collect::<Vec<_>>(), [true, false]);
//! assert_eq!(cluster.to_fence(Incarnation(2)), [first]);
//! ```

mod apply;
mod assign;
mod clock;
mod digest;
mod effect;
mod expiry;
mod fencing;
mod followers;
mod index;
pub mod invariants;
mod joining;
mod moves;
mod observed;
mod owners;
mod query;
pub mod record;
mod snapshot;
mod state;

#[cfg(test)]
mod random_test;
#[cfg(test)]
mod scenario_test;

pub use apply::{FAILURES_MAX, shortened};
pub use effect::{Effect, ExpiryCause};
pub use owners::OwnerHistory;
pub use query::{Entry, Owned};
pub use record::{ControlRecord, DiedIn, Genesis, GenesisSplit, Joined, Settings, SlotId, StageShape, Tier};
pub use snapshot::ReplayError;
pub use state::{Deaths, Follower, Loss, Member, Move, Owner, Region, Standing, Takeover, Why};

use index::Index;
use observed::Observed;
use state::State;

/// The highest level that this binary knows: how it reads the log. From the first release on it is raised with every change of what a record means or whom
/// assignment chooses; builds before that must not share a control log.
pub const FEATURE_LEVEL: u32 = 1;

/// What the control log says, up to one offset.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Cluster {
    /// All that decides, and nothing else; what a snapshot holds.
    state: State,
    /// Derived from `state` alone; changed only together with it.
    index: Index,
    /// What this reader has seen and what decides nothing.
    observed: Observed,
}
