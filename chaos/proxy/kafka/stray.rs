//! The stray commit of KIP-890, set up by itself: one EndTxn is held until its producer is in the middle of its next transaction.
//!
//! ```text
//! producer ── EndTxn(commit, transaction 1) ──▶ held                                     ┌──▶ coordinator: commits what it finds
//!          ── time-out, new connection, EndTxn again (or InitProducerId: a new epoch) ──▶│
//!          ── transaction 2: AddPartitions, Produce ────────────────────────────────────▶│ released now, on its own connection
//! ```
//! With the first transaction protocol (librdkafka, also 2.12; Java clients before 4.0) the epoch is the same in both transactions, and the stray
//! commits half of the second. A producer that was replaced meanwhile has a higher epoch, and the stray is refused.

use super::KafkaProxy;
use super::request::Request;
use super::rules::{Action, Rule, RuleHandle};
use crate::counters::Watched;
use kafka_protocol::messages::ApiKey;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What became of a stray commit.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StrayReport {
    /// Whose commit was held; none when there was none yet.
    pub transactional_id: Option<String>,
    pub producer_epoch: Option<i16>,
    /// EndTxn requests of the same id while it was held.
    pub retries: u64,
    /// InitProducerId requests of the same id while it was held: the producer was replaced.
    pub replacements: u64,
    /// Produce requests of the same id while it was held: of the next transaction.
    pub produced: u64,
    pub held: Duration,
    /// It went to the broker.
    pub delivered: bool,
}

#[derive(Clone, Copy, Default)]
struct Seen {
    is_held: bool,
    retries: u64,
    replacements: u64,
    produced: u64,
}

/// Whose commit is held.
#[derive(Default)]
struct Victim {
    found: Mutex<Option<(Request, Instant)>>,
    seen: Watched<Seen>,
}

impl Victim {
    /// The first commit of a matching id is taken, whatever proxy it comes by; everything later of that id is counted.
    fn takes(&self, request: &Request, prefix: &str) -> bool {
        let mut found = self.found.lock();
        let Some((held, _)) = &*found else {
            let is_wanted = request.commits == Some(true) && request.transactional_id.as_ref().is_some_and(|id| id.starts_with(prefix));
            if is_wanted {
                *found = Some((request.clone(), Instant::now()));
                self.seen.add(|seen| seen.is_held = true);
            }
            return is_wanted;
        };
        if held.transactional_id == request.transactional_id {
            self.seen.add(|seen| seen.retries += 1);
        }
        false
    }

    fn is(&self, request: &Request) -> bool {
        self.found.lock().as_ref().is_some_and(|(held, _)| held.transactional_id == request.transactional_id)
    }
}

/// A stray commit that is being prepared, over all proxies by which a producer may reach its coordinator and its leaders. Dropping it
/// releases what is held.
pub struct StrayCommit {
    victim: Arc<Victim>,
    holds: Vec<RuleHandle>,
    _watches: Vec<RuleHandle>,
}

impl StrayCommit {
    /// Holds the next commit of a transactional id with this prefix.
    pub fn prepare<'a>(proxies: impl IntoIterator<Item = &'a KafkaProxy>, prefix: &str) -> StrayCommit {
        let victim = Arc::new(Victim::default());
        let (mut holds, mut watches) = (Vec::new(), Vec::new());
        for proxy in proxies {
            let (taking, prefix) = (Arc::clone(&victim), prefix.to_string());
            holds.push(proxy.add(Rule::new(ApiKey::EndTxn, Action::Hold).when(move |request| taking.takes(request, &prefix))));
            let (produced, replaced) = (Arc::clone(&victim), Arc::clone(&victim));
            let counts_produced = move |request: &Request| {
                let is_its = produced.is(request);
                produced.seen.add(|seen| seen.produced += u64::from(is_its));
                is_its
            };
            let counts_replaced = move |request: &Request| {
                let is_its = replaced.is(request);
                replaced.seen.add(|seen| seen.replacements += u64::from(is_its));
                is_its
            };
            watches.push(proxy.add(Rule::new(ApiKey::Produce, Action::Observe).when(counts_produced)));
            watches.push(proxy.add(Rule::new(ApiKey::InitProducerId, Action::Observe).when(counts_replaced)));
        }
        StrayCommit { victim, holds, _watches: watches }
    }

    /// Waits until a commit is held and its producer writes its next transaction; false when the time is over first.
    pub fn wait_for_next_transaction(&self, timeout: Duration) -> bool {
        self.victim.seen.wait_for(timeout, |seen| seen.is_held && seen.produced > 0)
    }

    /// Delivers it, and waits until the proxy has passed it on.
    pub fn release(&self, timeout: Duration) -> StrayReport {
        let seen = self.victim.seen.get();
        let (id, epoch, held) = match &*self.victim.found.lock() {
            Some((request, since)) => (request.transactional_id.clone(), request.producer_epoch, since.elapsed()),
            None => (None, None, Duration::ZERO),
        };
        let mut delivered = false;
        for hold in self.holds.iter().filter(|hold| hold.counters().fired > 0) {
            hold.release();
            delivered |= hold.wait_for(timeout, |counters| counters.delivered + counters.lost > 0) && hold.counters().delivered > 0;
        }
        let Seen { retries, replacements, produced, .. } = seen;
        StrayReport { transactional_id: id, producer_epoch: epoch, retries, replacements, produced, held, delivered }
    }
}

impl std::fmt::Debug for StrayCommit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StrayCommit").field("holds", &self.holds).finish_non_exhaustive()
    }
}
