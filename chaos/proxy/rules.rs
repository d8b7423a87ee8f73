//! Rules: which requests, what happens to them, and the handle that ends it. The same for every protocol.

use crate::counters::{RuleCounters, Watched};
use parking_lot::Mutex;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// A protocol, as far as its rules differ.
pub trait Kind: Send + Sync + 'static {
    type Request;
    type Action: Copy + Debug + PartialEq + Send + Sync;
    /// What requests are sorted by before they are looked at.
    type Key: Copy + Debug + PartialEq + Send + Sync;

    fn key_of(request: &Self::Request) -> Self::Key;
    /// Whether a rule with this action lets others have the request, too.
    fn only_observes(action: Self::Action) -> bool;
}

type Predicate<R> = Arc<dyn Fn(&R) -> bool + Send + Sync>;

/// Which requests an action is for.
pub struct Rule<K: Kind> {
    key: K::Key,
    action: K::Action,
    when: Option<Predicate<K::Request>>,
    share: f64,
    times: Option<u64>,
}

impl<K: Kind> Rule<K> {
    pub(crate) fn of(key: K::Key, action: K::Action) -> Rule<K> {
        Rule { key, action, when: None, share: 1.0, times: None }
    }

    /// Only for those that it says yes to. It runs on the proxy's threads and must not block.
    pub fn when(self, when: impl Fn(&K::Request) -> bool + Send + Sync + 'static) -> Rule<K> {
        Rule { when: Some(Arc::new(when)), ..self }
    }

    /// Only for a share of them, from 0 to 1, drawn from the proxy's seed.
    pub fn share(self, share: f64) -> Rule<K> {
        Rule { share: share.clamp(0.0, 1.0), ..self }
    }

    /// At most so many times.
    pub fn times(self, times: u64) -> Rule<K> {
        Rule { times: Some(times), ..self }
    }
}

/// A rule in place.
pub(crate) struct Placed<K: Kind> {
    number: u64,
    rule: Rule<K>,
    random: Mutex<ChaCha8Rng>,
    pub counters: Watched<RuleCounters>,
    /// How many releases there were; the last one is the handle's end.
    releases: watch::Sender<Releases>,
}

#[derive(Clone, Copy, Default)]
struct Releases {
    count: u64,
    is_over: bool,
}

impl<K: Kind> Placed<K> {
    pub fn action(&self) -> K::Action {
        self.rule.action
    }

    /// Decides on a request, and counts.
    fn fires(&self, request: &K::Request, bytes: usize) -> bool {
        if self.rule.when.as_ref().is_some_and(|when| !when(request)) {
            return false;
        }
        let drawn = self.rule.share >= 1.0 || self.random.lock().random_bool(self.rule.share);
        let mut fires = false;
        self.counters.add(|counters| {
            counters.matched += 1;
            fires = drawn && self.rule.times.is_none_or(|times| counters.fired < times);
            counters.fired += u64::from(fires);
            counters.bytes += if fires { bytes as u64 } else { 0 };
        });
        fires
    }

    /// Waits for the next release.
    pub async fn held(&self) {
        let mut releases = self.releases.subscribe();
        let before = *releases.borrow();
        let mut counted = Counted { counters: &self.counters, is_released: false };
        self.counters.add(|counters| counters.held += 1);
        // The sender is this rule's own.
        let _ = releases.wait_for(|now| now.is_over || now.count > before.count).await;
        counted.is_released = true;
    }

    /// Waits for the handle's end.
    pub async fn over(&self) {
        let _ = self.releases.subscribe().wait_for(|now| now.is_over).await;
    }
}

/// Takes what was held off the count of the held, also when its connection ends first.
struct Counted<'a> {
    counters: &'a Watched<RuleCounters>,
    is_released: bool,
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.counters.add(|counters| {
            counters.held -= 1;
            *(if self.is_released { &mut counters.released } else { &mut counters.lost }) += 1;
        });
    }
}

/// All rules of a proxy, in the order in which they were added.
pub(crate) struct Rules<K: Kind> {
    seed: u64,
    placed: Mutex<Places<K>>,
}

struct Places<K: Kind> {
    last_number: u64,
    rules: Vec<Arc<Placed<K>>>,
}

impl<K: Kind> Rules<K> {
    pub fn new(seed: u64) -> Arc<Rules<K>> {
        Arc::new(Rules { seed, placed: Mutex::new(Places { last_number: 0, rules: Vec::new() }) })
    }

    pub fn add(self: &Arc<Self>, rule: Rule<K>) -> RuleHandle<K> {
        let mut placed = self.placed.lock();
        placed.last_number += 1;
        let number = placed.last_number;
        let mut random = ChaCha8Rng::seed_from_u64(self.seed);
        // Links draw from the lower half of the streams.
        random.set_stream(1 << 63 | number);
        let rule = Arc::new(Placed {
            number,
            rule,
            random: Mutex::new(random),
            counters: Watched::default(),
            releases: watch::Sender::new(Releases::default()),
        });
        placed.rules.push(Arc::clone(&rule));
        RuleHandle { rules: Arc::clone(self), placed: rule }
    }

    /// Whether any rule is for these.
    pub fn are_for(&self, key: K::Key) -> bool {
        self.placed.lock().rules.iter().any(|placed| placed.rule.key == key)
    }

    /// The first rule that is for the request and fires. Rules that only observe stand in nobody's way.
    pub fn decide(&self, request: &K::Request, bytes: usize) -> Option<Arc<Placed<K>>> {
        let key = K::key_of(request);
        let placed: Vec<_> = self.placed.lock().rules.iter().filter(|placed| placed.rule.key == key).cloned().collect();
        placed.into_iter().find(|placed| placed.fires(request, bytes) && !K::only_observes(placed.action()))
    }
}

/// A rule that is in place. Dropping it takes it away and releases what it holds.
pub struct RuleHandle<K: Kind> {
    rules: Arc<Rules<K>>,
    placed: Arc<Placed<K>>,
}

impl<K: Kind> RuleHandle<K> {
    pub fn counters(&self) -> RuleCounters {
        self.placed.counters.get()
    }

    /// Lets go of everything that is held now; what comes later is held again, if the rule still fires. How many.
    pub fn release(&self) -> u64 {
        let held = self.counters().held;
        self.placed.releases.send_modify(|releases| releases.count += 1);
        held
    }

    /// Waits until so many are held at once; false when the time is over first.
    pub fn wait_held(&self, count: u64, timeout: Duration) -> bool {
        self.wait_for(timeout, |counters| counters.held >= count)
    }

    /// Waits until it has fired so often; false when the time is over first.
    pub fn wait_fired(&self, count: u64, timeout: Duration) -> bool {
        self.wait_for(timeout, |counters| counters.fired >= count)
    }

    pub fn wait_for(&self, timeout: Duration, wanted: impl Fn(&RuleCounters) -> bool) -> bool {
        self.placed.counters.wait_for(timeout, wanted)
    }
}

impl<K: Kind> Drop for RuleHandle<K> {
    fn drop(&mut self) {
        self.rules.placed.lock().rules.retain(|placed| placed.number != self.placed.number);
        self.placed.releases.send_modify(|releases| releases.is_over = true);
    }
}

impl<K: Kind> std::fmt::Debug for RuleHandle<K> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let rule = &self.placed.rule;
        f.debug_struct("RuleHandle").field("key", &rule.key).field("action", &rule.action).field("counters", &self.counters()).finish()
    }
}

impl<K: Kind> std::fmt::Debug for Rules<K> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Rules").field("seed", &self.seed).finish_non_exhaustive()
    }
}
