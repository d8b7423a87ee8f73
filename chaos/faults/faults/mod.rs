//! The faults: a catalogue of what can be broken, and each one's injection, undo and evidence.
//!
//! ```text
//! build(name, parameters, target, random) ─► inject(stage) ─► Fired: what it hit, what shows it, how often
//!                                               │ lasts
//!                                               └─► undo(stage) ─► Fired: what was seen while it lasted
//! ```
//! - [`catalogue`]: the list, with parameters and targets.
//! - `target`: from a role to workers, links and brokers of this moment.
//! - [`ArmedPoint`]: a named place at which a worker waits for a fault.
//! - `process`, `limits`, `network`, `transactions`, `broker`, `records`, `storage`, `store`, `time`, `data`: what is done.
//!
//! **A fault that can't be shown did not happen.** Each one looks for its own evidence: the process that is gone, the error that a write met, the frames that
//! were held. `count` is how often that was seen; it may be zero when a fault that lasts begins, and is asked again when it ends.

mod broker;
mod catalogue;
mod data;
mod limits;
mod network;
mod points;
mod process;
mod records;
mod storage;
mod store;
mod target;
mod time;
mod transactions;

pub use catalogue::{CRASH_POINTS, PASSING, STANDBY_POINTS, catalogue, find};
pub use points::ArmedPoint;

use crate::api::{Fault, FaultError, Fired, Parameters, Target};
use crate::stage::Stage;
use crate::values::{BuildError, Given};
use rand::{RngCore, SeedableRng};
use rand_chacha::ChaCha8Rng;
use target::Setup;

/// A fault that is aimed at a stage.
pub type StageFault = Box<dyn Fault<Stage>>;

/// Builds a fault from a step of a plan; without a target it is aimed at the entry's usual role. All its random choices come from `random`, of which one
/// number is taken whatever the fault is.
pub fn build(name: &str, parameters: &Parameters, target: Option<&Target>, random: &mut dyn RngCore) -> Result<StageFault, BuildError> {
    let seed = random.next_u64();
    let spec = find(name).ok_or_else(|| BuildError::UnknownFault { name: name.into(), nearest: nearest(name) })?;
    let given = Given::check(spec, parameters)?;
    let target = target.cloned().unwrap_or(Target { role: spec.targets[0], name: None });
    target::check(spec, &target)?;
    let setup = Setup { spec, given, target, random: ChaCha8Rng::seed_from_u64(seed) };
    Ok(make(setup))
}

fn make(setup: Setup) -> StageFault {
    let name = setup.spec.name;
    match name {
        "process.kill" | "process.kill_all" => Box::new(process::Kill(setup)),
        "process.kill_taker" => Box::new(process::KillTaker::new(setup)),
        "process.crash_at" => Box::new(process::CrashAt(setup)),
        "process.lose_rows" => Box::new(process::LoseRows(setup)),
        "process.fence" => Box::new(transactions::Fence(setup)),
        "process.stop" => Box::new(process::Stop(setup)),
        "process.pause" => Box::new(process::Pause::new(setup)),
        "process.crash_loop" => Box::new(process::CrashLoop::new(setup)),
        "process.memory_limit" => Box::new(limits::Memory::new(setup)),
        "process.cpu_limit" => Box::new(limits::Cpu::new(setup)),
        "process.file_limit" => Box::new(limits::Files::new(setup)),
        "net.loss" => Box::new(network::Loss::new(setup)),
        "net.hold_end_txn" => Box::new(transactions::HoldEndTxn(setup)),
        "net.drop_response" => Box::new(transactions::DropResponse::new(setup)),
        "broker.delete_records" => Box::new(records::DeleteRecords(setup)),
        "storage.disk_full" => Box::new(storage::DiskFull::new(setup)),
        "storage.read_only" => Box::new(storage::ReadOnly::new(setup)),
        "storage.bit_flip" | "storage.truncate" => Box::new(storage::Damage::new(setup)),
        "storage.delete_state" => Box::new(storage::DeleteState(setup)),
        "store.corrupt" => Box::new(store::Corrupt(setup)),
        "store.collect" => Box::new(store::Collect(setup)),
        "hdfs.name_node_restart" => Box::new(store::NameNodeRestart::new(setup)),
        "time.jump" => Box::new(time::Jump::new(setup)),
        _ if name.starts_with("net.") => Box::new(network::Toxic::new(setup)),
        _ if name.starts_with("broker.") => Box::new(broker::Away::new(setup)),
        _ if name.starts_with("store.") => Box::new(store::Requests::new(setup)),
        // The last family; a test builds every entry.
        _ => Box::new(data::Data::new(setup)),
    }
}

/// The entry whose name looks most like it, if one does.
fn nearest(name: &str) -> Option<&'static str> {
    let distance = |known: &'static str| (edit_distance(name, known), known);
    let (steps, known) = catalogue().iter().map(|spec| distance(spec.name)).min()?;
    (steps <= 4).then_some(known)
}

/// Levenshtein's: characters to insert, delete or replace.
fn edit_distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, to) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(from != *to);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

/// Everything that a fault hit, in one.
#[derive(Default)]
pub(crate) struct Evidence(Fired);

impl Evidence {
    pub fn add(&mut self, hit: impl Into<String>, evidence: impl AsRef<str>, count: u64) {
        self.0.hit.push(hit.into());
        if !self.0.evidence.is_empty() {
            self.0.evidence.push_str("; ");
        }
        self.0.evidence.push_str(evidence.as_ref());
        self.0.count += count;
    }

    pub fn fired(self) -> Fired {
        self.0
    }
}

/// Undone before, or never injected.
pub(crate) fn nothing() -> Result<Fired, FaultError> {
    Ok(Fired::default())
}
