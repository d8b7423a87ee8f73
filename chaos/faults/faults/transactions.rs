//! Faults of the transaction protocol, which need a proxy that knows requests by name.

use super::catalogue::APIS;
use super::target::Setup;
use super::{Evidence, nothing};
use crate::api::{Fault, FaultError, Fired};
use crate::stage::{Stage, admin};
use anyhow::Context;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use streamshield_proxy::{Action, ApiKey, Request, Rule, RuleHandle};

const LOOK_INTERVAL: Duration = Duration::from_millis(2);
/// The request that opened the next transaction is at the broker before the stray commit follows it.
const AFTER_OPENING: Duration = Duration::from_millis(20);
/// A released frame is at the broker within this, or its connection had ended.
const DELIVERY_TIME_MAX: Duration = Duration::from_secs(5);

/// `net.hold_end_txn`: the reproducer of KIP-890.
///
/// ```text
/// worker ── EndTxn(commit, T1) ──► proxy: held ……………………………………………………… released ──► broker
///        ── time-out, the same on another connection ─────────► broker: T1 is committed
///        ── AddPartitionsToTxn … (T2) ─────────────────────────► broker      │
///        ── Produce (first part of T2) ────────────────────────► broker      │
///        ── Produce (the rest) ──► proxy: delayed         T2 is committed ◄──┘  half done, unless its producer is a new one
/// ```
/// A worker that makes a new producer after a commit in doubt has raised the epoch, and the stray commit is fenced. One that goes on with the old producer
/// has the next transaction committed before it is complete.
pub(crate) struct HoldEndTxn(pub Setup);

/// The producer whose commit is held, known once it is.
type Victim = Arc<Mutex<Option<String>>>;

fn is_victim(victim: &Victim, request: &Request) -> bool {
    let victim = victim.lock().unwrap_or_else(PoisonError::into_inner);
    victim.is_some() && *victim == request.transactional_id
}

/// The rules on all links of a worker.
struct Rules {
    holds: Vec<RuleHandle>,
    openings: Vec<RuleHandle>,
    // Dropped last. A delay that has begun is slept to its end, whatever becomes of its rule.
    _delays: Vec<RuleHandle>,
}

impl HoldEndTxn {
    fn place(&mut self, stage: &Stage, victim: &Victim) -> Result<(Rules, Vec<String>), FaultError> {
        let keep_open = self.0.given.duration("keep_open");
        let (mut rules, mut names) = (Rules { holds: Vec::new(), openings: Vec::new(), _delays: Vec::new() }, Vec::new());
        let has_begun = Arc::new(AtomicBool::new(false));
        for (worker, broker) in self.0.links(stage)? {
            let proxy = stage.links().get(&worker, broker).context("a link stays")?;
            // The first commit on any of the links becomes the victim, and nobody else's is held.
            let first = victim.clone();
            let take = move |request: &Request| {
                let mut victim = first.lock().unwrap_or_else(PoisonError::into_inner);
                let takes = request.commits == Some(true) && victim.is_none();
                if takes {
                    *victim = request.transactional_id.clone();
                }
                takes
            };
            rules.holds.push(proxy.add(Rule::new(ApiKey::EndTxn, Action::Hold).when(take).times(1)));
            let of = victim.clone();
            rules
                .openings
                .push(proxy.add(Rule::new(ApiKey::AddPartitionsToTxn, Action::Observe).when(move |request| is_victim(&of, request))));
            let of = victim.clone();
            rules._delays.push(proxy.add(Rule::new(ApiKey::EndTxn, Action::Delay(keep_open)).when(move |request| is_victim(&of, request))));
            let (of, has_begun) = (victim.clone(), has_begun.clone());
            let is_rest = move |request: &Request| is_victim(&of, request) && has_begun.swap(true, Ordering::SeqCst);
            rules._delays.push(proxy.add(Rule::new(ApiKey::Produce, Action::Delay(keep_open)).when(is_rest)));
            names.push(format!("{worker}-b{broker}"));
        }
        Ok((rules, names))
    }
}

impl Fault<Stage> for HoldEndTxn {
    fn inject(&mut self, stage: &Stage) -> Result<Fired, FaultError> {
        let deadline = Instant::now() + self.0.given.duration("within");
        let victim = Victim::default();
        let (rules, names) = self.place(stage, &victim)?;
        let wait = |wanted: &dyn Fn() -> bool| -> bool {
            while !wanted() {
                if Instant::now() > deadline {
                    return false;
                }
                std::thread::sleep(LOOK_INTERVAL);
            }
            true
        };
        let sum = |of: &[RuleHandle], figure: fn(&RuleHandle) -> u64| of.iter().map(figure).sum::<u64>();
        if !wait(&|| sum(&rules.holds, |rule| rule.counters().held) > 0) {
            return Err(FaultError::NoTarget("the worker commits nothing that could be held".into()));
        }
        let opened_before = sum(&rules.openings, |rule| rule.counters().fired);
        let opened = wait(&|| sum(&rules.openings, |rule| rule.counters().fired) > opened_before);
        if opened {
            std::thread::sleep(AFTER_OPENING);
        }
        for rule in &rules.holds {
            rule.release();
        }
        for rule in rules.holds.iter().filter(|rule| rule.counters().fired > 0) {
            rule.wait_for(DELIVERY_TIME_MAX, |counters| counters.delivered + counters.lost > 0);
        }
        let delivered = sum(&rules.holds, |rule| rule.counters().delivered);
        let producer = victim.lock().unwrap_or_else(PoisonError::into_inner).clone().unwrap_or_default();
        let when = if opened { "into its next transaction" } else { "before a next transaction" };
        let evidence = format!("a commit of {producer} was held and arrived {when} ({delivered} delivered)");
        Ok(Fired { hit: names, evidence, count: if opened { delivered } else { 0 } })
    }

    fn undo(&mut self, _: &Stage) -> Result<Fired, FaultError> {
        nothing()
    }
}

/// `process.fence`
pub(crate) struct Fence(pub Setup);

impl Fault<Stage> for Fence {
    fn inject(&mut self, stage: &Stage) -> Result<Fired, FaultError> {
        let worker = self.0.worker(stage)?;
        let status = stage.cluster_status()?;
        let member = status.workers.iter().find(|member| member.worker == worker);
        let member = member.ok_or_else(|| FaultError::NoTarget(format!("{worker} is no member of the job at the moment")))?;
        // Of its first slot.
        let id = format!("{}-{}-0", stage.job_name()?, member.incarnation);
        admin::fence(&stage.bootstrap_servers(), &id)?;
        Ok(Fired { hit: vec![worker], evidence: format!("the producer of {id} is fenced"), count: 1 })
    }

    fn undo(&mut self, _: &Stage) -> Result<Fired, FaultError> {
        nothing()
    }
}

/// `net.drop_response`
pub(crate) struct DropResponse {
    setup: Setup,
    rules: Vec<(String, RuleHandle)>,
}

impl DropResponse {
    pub(crate) fn new(setup: Setup) -> DropResponse {
        DropResponse { setup, rules: Vec::new() }
    }

    fn evidence(&self) -> Fired {
        let mut evidence = Evidence::default();
        for (name, rule) in &self.rules {
            let fired = rule.counters().fired;
            evidence.add(name.clone(), format!("{name}: {fired} answers to {} lost", self.setup.given.choice("api")), fired);
        }
        evidence.fired()
    }
}

/// In the order of [`APIS`].
const API_KEYS: [ApiKey; APIS.len()] = [
    ApiKey::Produce,
    ApiKey::Fetch,
    ApiKey::EndTxn,
    ApiKey::InitProducerId,
    ApiKey::AddPartitionsToTxn,
    ApiKey::TxnOffsetCommit,
    ApiKey::AddOffsetsToTxn,
    ApiKey::FindCoordinator,
    ApiKey::ListOffsets,
];

impl Fault<Stage> for DropResponse {
    fn inject(&mut self, stage: &Stage) -> Result<Fired, FaultError> {
        let (api, times) = (self.setup.given.choice("api").to_string(), self.setup.given.count("times"));
        let key =
            APIS.iter().zip(API_KEYS).find(|(name, _)| **name == api).map(|(_, key)| key).context("a checked choice is one of them")?;
        for (worker, broker) in self.setup.links(stage)? {
            let proxy = stage.links().get(&worker, broker).context("a link stays")?;
            self.rules.push((format!("{worker}-b{broker}"), proxy.add(Rule::new(key, Action::DropResponse).times(times))));
        }
        Ok(self.evidence())
    }

    fn undo(&mut self, _: &Stage) -> Result<Fired, FaultError> {
        let fired = self.evidence();
        self.rules.clear();
        Ok(fired)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_request_of_the_catalogue_is_the_one_of_its_name() {
        for (name, key) in APIS.iter().zip(API_KEYS) {
            assert_eq!(name.replace('_', ""), format!("{key:?}").to_lowercase(), "{name}");
        }
    }
}
