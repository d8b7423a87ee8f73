//! The simulation: the real engine on one thread, over a log, disks and an object store whose every whim comes from a seed.
//!
//! A test with real processes meets a race once in a thousand runs and can't repeat it. Here nothing has a thread, a socket or a
//! clock: whatever happens "later" happens because virtual time was moved on, whatever goes wrong was drawn from the seed, and the same
//! seed gives the same run to the bit, which [`world::Sim::trace_hash`] proves. So a run that breaks an invariant is repeated by its number.
//!
//! ```text
//!           schedule: whose turn it is, who crashes, who stands still; moves the time on
//!                │ turn
//!                ▼
//!  workers (engine) ── ports ──▶ log/          SimLog, SimReader, SimWriter, SimFencer ─┐
//!                          ├──▶ state/         SimState over a SimDisk                  ├──▶ world: seed, time, faults, trace
//!                          └──▶ checkpoints    SimCheckpoints over a SimStore          ─┘        │
//!                                                                    the broker's own log core ──┤
//!                                                                                                ▼ what was committed, in order
//!                                                                    checks/: E-1 E-2 E-3 E-5 O-1 by the log alone
//! ```
//!
//! | module | what |
//! |---|---|
//! | [`world`] | the world that all share: random numbers, time, the broker's log core, faults, the ledger of transactions, the trace |
//! | [`log`] | the log port as one worker sees it |
//! | [`state`] | the state port on a disk that forgets what was not synced |
//! | [`checkpoints`] | the checkpoint port with outages, slowness and damage |
//! | [`schedule`] | a seeded order of turns, crashes and pauses |
//! | [`checks`] | invariants that the log alone must show |
//!
//! What is faithful: the decisions of the broker (it *is* the embedded broker's log core) and what our Kafka client promises about them
//! (`connectors/kafka`): a writer that was in doubt is spent, a fence that succeeded is a proof, a position that is gone stays gone. What is
//! left out: the wire, several brokers, a record's way through librdkafka's queues.

pub mod checkpoints;
pub mod checks;
pub mod log;
pub mod schedule;
pub mod state;
pub mod world;

pub use checkpoints::{SimCheckpoints, SimStore};
pub use log::SimLog;
pub use state::{SimDisk, SimState};
pub use world::{ClientId, FaultPlan, Sim};
