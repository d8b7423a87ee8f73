//! Which tier keeps a promise: from `slo.max_recovery` to the tier, and from the tier to what all workers of a job agree on (architecture §5).
//!
//! A tier is a promise about the output gap after a worker was lost, and a price. So it follows from what the job promises, the cheapest tier that holds it:
//!
//! ```text
//! max_recovery   absent or ≥ 10 s     ≥ 3 s and < 10 s      < 3 s
//! tier           3 checkpoints        2 active-standby      1 active-active
//! gap, p99       < 10 s               < 3 s                 < 1 s
//! ```
//! A tier that the user names wins, unless it can't hold the promise: then it is refused before the job starts, not found out by the first crash.
//!
//! Not here: what the tiers do (`engine`), and who follows whom (`cluster`).

use crate::cluster::{Settings, Tier};
use std::time::Duration;

/// Most replicas that a job may ask for: more than two cost a whole job each and outlive nothing that two do not.
pub const REPLICAS_MAX: u32 = 2;

/// How soon a lost worker is known. To be wrong costs a fence and a take-over, so a worker may miss four heartbeats in Tier 1, where a second is all there is, and
/// the heartbeats of Tier 3 cost a twentieth.
const FASTEST_HEARTBEAT_MS: u64 = 50;
const FASTEST_EXPIRY_MS: u64 = 250;
const FAST_HEARTBEAT_MS: u64 = 100;
const FAST_EXPIRY_MS: u64 = 350;
const SLOW_HEARTBEAT_MS: u64 = 1_000;
const SLOW_EXPIRY_MS: u64 = 5_000;
/// An owner that was asked to hand a region over has a few commits to finish, and a broker that may be slow.
const RELEASE_TIMEOUT_MS: u64 = 10_000;

/// Take-overs are done by then, and so is the restart of a process.
const BALANCE_DELAY_MS: u64 = 2_000;
/// Gigabytes of state come from a store in this time, and whoever has not got them by then has no place to hold.
const WARM_UP_TIMEOUT_MS: u64 = 600_000;
/// Workers that are started together join within less; one that does not come at all delays nothing for longer.
const START_WAIT_MS: u64 = 3_000;
const START_WAIT_UNKNOWN_MS: u64 = 500;

/// In Tier 3 half of the bound is gone when the loss is known (5 s of 10 s), and the other half holds the restore and the replay of what came since the
/// checkpoint. Replay runs several times as fast as the load came in, so ten seconds of it take one or two.
const CHECKPOINT_INTERVAL_TIER_3: Duration = Duration::from_secs(10);
/// In Tiers 1 and 2 a checkpoint only seeds new followers and bounds the log, so it may be rare.
const CHECKPOINT_INTERVAL: Duration = Duration::from_secs(60);

/// What a tier promises: the output gap after the loss of a worker, 99th percentile.
pub fn recovery_bound(tier: Tier) -> Duration {
    match tier {
        Tier::ActiveActive => Duration::from_secs(1),
        Tier::ActiveStandby => Duration::from_secs(3),
        Tier::Checkpoints => Duration::from_secs(10),
    }
}

/// Number and name, as people write them.
pub fn describe(tier: Tier) -> &'static str {
    match tier {
        Tier::ActiveActive => "1 (active-active)",
        Tier::ActiveStandby => "2 (active-standby)",
        Tier::Checkpoints => "3 (checkpoints)",
    }
}

pub fn number(tier: Tier) -> u32 {
    match tier {
        Tier::ActiveActive => 1,
        Tier::ActiveStandby => 2,
        Tier::Checkpoints => 3,
    }
}

pub fn from_number(number: u32) -> Option<Tier> {
    match number {
        1 => Some(Tier::ActiveActive),
        2 => Some(Tier::ActiveStandby),
        3 => Some(Tier::Checkpoints),
        _ => None,
    }
}

/// Why a choice was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TierError {
    /// Another tier would hold it.
    #[error("tier {} recovers within {:?}: too slow for slo.max_recovery of {max_recovery:?}", describe(*tier), recovery_bound(*tier))]
    TooSlow { tier: Tier, max_recovery: Duration, sufficient: Tier },
    #[error(
        "no tier can keep slo.max_recovery of {max_recovery:?}: the fastest, tier {}, recovers within {:?}",
        describe(Tier::ActiveActive),
        recovery_bound(Tier::ActiveActive)
    )]
    Impossible { max_recovery: Duration },
    #[error("tier 3 has no replicas: what a lost worker held comes back from checkpoints")]
    ReplicasInTier3,
    #[error("tier 2 has one standby")]
    TwoStandbys,
}

/// The cheapest tier that holds the promise. A promise that none holds gets the fastest; [`choose`] refuses it.
pub fn tier_for(max_recovery: Option<Duration>) -> Tier {
    let holds = |tier: &Tier| max_recovery.is_none_or(|wanted| wanted >= recovery_bound(*tier));
    [Tier::Checkpoints, Tier::ActiveStandby].into_iter().find(holds).unwrap_or(Tier::ActiveActive)
}

/// The tier of a job: the one that was named, else the one that its promise needs.
pub fn choose(named: Option<Tier>, max_recovery: Option<Duration>) -> Result<Tier, TierError> {
    let sufficient = tier_for(max_recovery);
    let tier = named.unwrap_or(sufficient);
    match max_recovery {
        Some(max_recovery) if max_recovery < recovery_bound(sufficient) => Err(TierError::Impossible { max_recovery }),
        Some(max_recovery) if max_recovery < recovery_bound(tier) => Err(TierError::TooSlow { tier, max_recovery, sufficient }),
        _ => Ok(tier),
    }
}

/// Followers of each region, if the tier can have that many.
pub fn followers(tier: Tier, replicas: Option<u32>) -> Result<u32, TierError> {
    match (tier, replicas) {
        (Tier::Checkpoints, None) => Ok(0),
        (Tier::Checkpoints, Some(_)) => Err(TierError::ReplicasInTier3),
        (Tier::ActiveStandby, Some(replicas)) if replicas > 1 => Err(TierError::TwoStandbys),
        (_, replicas) => Ok(replicas.unwrap_or(1)),
    }
}

/// What all workers of the job agree on.
pub fn settings(tier: Tier, followers: u32) -> Settings {
    let (heartbeat_interval_ms, expiry_ms) = match tier {
        Tier::ActiveActive => (FASTEST_HEARTBEAT_MS, FASTEST_EXPIRY_MS),
        Tier::ActiveStandby => (FAST_HEARTBEAT_MS, FAST_EXPIRY_MS),
        Tier::Checkpoints => (SLOW_HEARTBEAT_MS, SLOW_EXPIRY_MS),
    };
    Settings {
        tier,
        followers,
        heartbeat_interval_ms,
        expiry_ms,
        release_timeout_ms: RELEASE_TIMEOUT_MS,
        workers_expected: 1,
        start_wait_ms: 0,
        balance_delay_ms: BALANCE_DELAY_MS,
        warm_up_timeout_ms: WARM_UP_TIMEOUT_MS,
    }
}

/// The same for a job that several workers start: the first one waits for the others, so that nothing has to be moved right after the start. 0: nobody has said
/// how many there will be.
pub fn expecting(workers: u32, settings: Settings) -> Settings {
    let start_wait_ms = match workers {
        0 => START_WAIT_UNKNOWN_MS,
        1 => 0,
        _ => START_WAIT_MS,
    };
    Settings { workers_expected: workers, start_wait_ms, ..settings }
}

/// Time between two checkpoints of a region unless the job says otherwise.
pub fn checkpoint_interval(tier: Tier) -> Duration {
    match tier {
        Tier::Checkpoints => CHECKPOINT_INTERVAL_TIER_3,
        Tier::ActiveActive | Tier::ActiveStandby => CHECKPOINT_INTERVAL,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIERS: [Tier; 3] = [Tier::ActiveActive, Tier::ActiveStandby, Tier::Checkpoints];

    #[test]
    fn the_promise_chooses_the_cheapest_tier_that_holds_it() {
        let chosen = |ms| choose(None, Some(Duration::from_millis(ms)));
        assert_eq!(choose(None, None), Ok(Tier::Checkpoints));
        assert_eq!(chosen(10_000), Ok(Tier::Checkpoints));
        assert_eq!(chosen(9_999), Ok(Tier::ActiveStandby));
        assert_eq!(chosen(3_000), Ok(Tier::ActiveStandby));
        assert_eq!(chosen(2_999), Ok(Tier::ActiveActive));
        assert_eq!(chosen(1_000), Ok(Tier::ActiveActive));
        assert_eq!(chosen(999), Err(TierError::Impossible { max_recovery: Duration::from_millis(999) }));
    }

    #[test]
    fn a_named_tier_wins_and_is_refused_where_it_is_too_slow() {
        for tier in TIERS {
            assert_eq!(choose(Some(tier), None), Ok(tier));
            assert_eq!(choose(Some(tier), Some(recovery_bound(tier))), Ok(tier));
            let wanted = recovery_bound(tier) - Duration::from_millis(1);
            assert!(choose(Some(tier), Some(wanted)).is_err(), "{tier:?}");
        }
        let error = choose(Some(Tier::Checkpoints), Some(Duration::from_secs(5))).expect_err("too slow");
        assert_eq!(error.to_string(), "tier 3 (checkpoints) recovers within 10s: too slow for slo.max_recovery of 5s");
        assert!(matches!(error, TierError::TooSlow { sufficient: Tier::ActiveStandby, .. }));
    }

    #[test]
    fn only_tier_1_has_a_second_follower_and_tier_3_has_none() {
        assert_eq!([1, 2].map(|replicas| followers(Tier::ActiveActive, Some(replicas))), [Ok(1), Ok(2)]);
        assert_eq!([1, 2].map(|replicas| followers(Tier::ActiveStandby, Some(replicas))), [Ok(1), Err(TierError::TwoStandbys)]);
        assert_eq!(followers(Tier::Checkpoints, Some(1)), Err(TierError::ReplicasInTier3));
        assert_eq!(TIERS.map(|tier| followers(tier, None)), [Ok(1), Ok(1), Ok(0)]);
    }

    #[test]
    fn a_worker_that_misses_two_heartbeats_is_not_expired_and_the_loss_is_known_in_time() {
        for tier in TIERS {
            let settings = settings(tier, 1);
            assert!(settings.expiry_ms > 3 * settings.heartbeat_interval_ms, "{tier:?}");
            assert!(u128::from(settings.expiry_ms) <= recovery_bound(tier).as_millis() / 2, "{tier:?}");
            assert_eq!(from_number(number(tier)), Some(tier));
            assert!(describe(tier).starts_with(&number(tier).to_string()));
        }
    }
}
