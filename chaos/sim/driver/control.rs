//! The control log, folded once more by the checks: owners for O-1, digests for C-1, the cluster's own predicates.
//!
//! The fold is the engine's (`core::cluster`): its meaning is not repeated here, it is judged by what it must never show. What a worker says
//! of its own view comes in its heartbeats, with the offset that it stands at; so every heartbeat of every worker is a comparison.

use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::Arc;
use streamshield_core::cluster::invariants::{Witness, problems};
use streamshield_core::cluster::{Cluster, ControlRecord, Entry as Record};
use streamshield_core::ids::{Digest, Offset, RegionId};
use streamshield_sim::checks::{Check, ControlFold};
use streamshield_sim::world::{Entry, Message};

/// Offsets whose digest is remembered.
const DIGESTS_KEPT: usize = 4_096;

/// The control log as far as it goes.
#[derive(Default)]
pub struct Control {
    pub cluster: Cluster,
    job: String,
    owners: BTreeMap<RegionId, Option<String>>,
    digests: BTreeMap<Offset, Digest>,
    witness: Witness,
    version: u64,
    /// Not reported yet.
    findings: Vec<String>,
    pub heartbeats_compared: u64,
    pub takeovers: u64,
}

pub type SharedControl = Arc<Mutex<Control>>;

impl Control {
    pub fn of(job: &str) -> SharedControl {
        Arc::new(Mutex::new(Control { job: job.to_owned(), ..Default::default() }))
    }

    /// C-1: the digest that everybody must have at this offset, if it is remembered.
    pub fn digest_at(&self, offset: Offset) -> Option<Digest> {
        self.digests.get(&offset).copied()
    }

    fn take(&mut self, message: &Message) -> Vec<(RegionId, Option<String>)> {
        let payload = message.payload.as_deref().unwrap_or_default();
        let record: Option<ControlRecord> = serde_json::from_slice(payload).ok();
        if let Some(record) = &record {
            self.judge(record);
            self.witness.before(&self.cluster, record);
        }
        let append_time_ms = message.has_log_append_time.then_some(message.timestamp_ms);
        self.cluster.apply(Record { offset: message.offset, append_time_ms, payload });
        self.digests.insert(message.offset, self.cluster.digest());
        if self.digests.len() > DIGESTS_KEPT {
            self.digests.pop_first();
        }
        if self.cluster.version() == self.version {
            return Vec::new();
        }
        self.version = self.cluster.version();
        let broken = problems(&self.cluster).into_iter().chain(self.witness.after(&self.cluster));
        self.findings.extend(broken.map(|problem| problem.to_string()));
        let owner = |id: RegionId| self.cluster.region(id)?.owner.map(|owner| owner.slot.transactional_id(&self.job));
        let now: BTreeMap<_, _> = self.cluster.regions().map(|(id, _)| (id, owner(id))).collect();
        let changed: Vec<_> =
            now.iter().filter(|(id, owner)| self.owners.get(id) != Some(owner)).map(|(id, owner)| (*id, owner.clone())).collect();
        self.takeovers += changed.iter().filter(|(id, owner)| owner.is_some() && self.owners.contains_key(id)).count() as u64;
        self.owners = now;
        changed
    }

    fn judge(&mut self, record: &ControlRecord) {
        match record {
            ControlRecord::Heartbeat { incarnation, at, digest } if self.cluster.member(*incarnation).is_some() => {
                let Some(known) = self.digest_at(*at) else { return };
                self.heartbeats_compared += 1;
                if known != *digest {
                    let who = incarnation.0;
                    self.findings.push(format!("C-1: worker {who} is at digest {digest} at control offset {at}, the log says {known}"));
                }
            }
            // Of epoch 0: it has lost its place, by a trim or a fault of its store.
            ControlRecord::NotReady { incarnation, region, epoch } if epoch.0 > 0 => {
                let who = incarnation.0;
                self.findings.push(format!("E-4: the follower of {region} at worker {who} differs from its owner at epoch {epoch}"));
            }
            ControlRecord::Failed { region, reason, .. } if reason.starts_with("panic") => {
                self.findings.push(format!("a region panicked: {region}: {reason}"));
            }
            _ => {}
        }
    }
}

/// The fold for [`streamshield_sim::checks::OwnerCheck`].
pub struct OwnerFold(pub SharedControl);

impl ControlFold for OwnerFold {
    fn apply(&mut self, message: &Message) -> Vec<(RegionId, Option<String>)> {
        self.0.lock().take(message)
    }
}

/// Reports what the fold has found; to be added behind the check that folds.
pub struct ControlCheck(pub SharedControl);

impl Check for ControlCheck {
    fn take(&mut self, _: &Entry) -> Result<(), String> {
        let findings = std::mem::take(&mut self.0.lock().findings);
        if findings.is_empty() { Ok(()) } else { Err(findings.join("; ")) }
    }
}
