//! What a seed stands for: the job's shape, the faults and when they come.
//!
//! Everything is drawn from a generator of its own before the world exists, so a scenario can be shown without being run. Each kind of fault is off in
//! about half of the seeds (swarm testing): what an even mixture hides is found where one kind dominates.

use rand::Rng;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use std::time::Duration;
use streamshield_core::cluster::{Settings, Tier};
use streamshield_core::tiers;
use streamshield_sim::FaultPlan;
use streamshield_sim::checkpoints::StoreFaults;
use streamshield_sim::schedule::Mischief;
use streamshield_sim::state::DiskFaults;

/// Sets the scenario's numbers apart from the world's.
const SCENARIO_STREAM: u64 = 1;
/// Budgets of a process: one that holds everything, and one that evicts all the time.
const MEMORY_BYTES: [usize; 3] = [64 << 20, 1 << 20, 64 << 10];

/// See the module text.
#[derive(Clone, Debug)]
pub struct Scenario {
    pub seed: u64,
    pub settings: Settings,
    pub workers: usize,
    pub slots: usize,
    /// Partitions of the input, and of the exchange.
    pub splits: i32,
    pub parallelism: u32,
    pub checkpoint_interval: Option<Duration>,
    pub commit_interval: Duration,
    pub flush_interval: Duration,
    pub memory_budget_bytes: usize,
    /// How long faults last.
    pub chaos_ms: i64,
    /// Between two appends to the input.
    pub append_interval_ms: u64,
    pub keys: u64,
    /// Of 100 rows: those that are far too late, and those that are no rows.
    pub late_percent: u32,
    pub bad_percent: u32,
    /// Of 100 appends: those in a transaction, half of which are aborted.
    pub transactional_percent: u32,
    /// The plans that take turns.
    pub faults: Vec<FaultPlan>,
    pub fault_interval_ms: u64,
    pub disk: DiskFaults,
    pub store: StoreFaults,
    pub mischief: Mischief,
    /// Of 10,000 passings of a crash point.
    pub crash_point_rate: u32,
    pub deeds: Deeds,
    pub wall_error_ms: Vec<i64>,
}

/// Mean intervals in ms of what the driver does to workers; 0 for never.
#[derive(Clone, Debug, Default)]
pub struct Deeds {
    /// A worker is told to stop: it drains and leaves, and comes back later.
    pub leave: u64,
    /// An operator drains a worker, or takes it back.
    pub drain: u64,
    /// A worker's way to the broker is cut.
    pub cut: u64,
    /// A machine is gone with its disk.
    pub lose: u64,
    /// The object store is away.
    pub store_away: u64,
    /// While a worker stands still, another process takes its name, on another machine.
    pub twin: u64,
    /// Of 100 take-overs: those whose fencer dies or is cut off right then.
    pub chase_percent: u32,
}

impl Scenario {
    pub fn of(seed: u64) -> Scenario {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        rng.set_stream(SCENARIO_STREAM);
        let rng = &mut rng;
        let tier = [Tier::ActiveActive, Tier::ActiveStandby, Tier::Checkpoints][rng.random_range(0..3)];
        let followers = if tier == Tier::ActiveActive && rng.random_bool(0.2) { 2 } else { tiers::followers(tier, None).unwrap_or(0) };
        let settings = tiers::settings(tier, followers);
        let expiry_ms = settings.expiry_ms;
        let workers = rng.random_range(2..=4);
        let chaos_ms = if tier == Tier::Checkpoints { rng.random_range(10_000..30_000) } else { rng.random_range(4_000..12_000) };
        let faults = faults(rng);
        // Long enough for several expiries and not so many that nothing is ever done.
        let often = |rng: &mut ChaCha8Rng, mean: std::ops::Range<u64>| if rng.random_bool(0.5) { rng.random_range(mean) } else { 0 };
        let pace = if tier == Tier::Checkpoints { 3 } else { 1 };
        let mischief = Mischief {
            crash_interval_ms: often(rng, 1_000..5_000) * pace,
            pause_interval_ms: often(rng, 500..4_000) * pace,
            pause_ms_max: expiry_ms * rng.random_range(1..=4),
            outage_interval_ms: often(rng, 2_000..8_000),
            outage_ms_max: rng.random_range(100..2_500),
        };
        Scenario {
            seed,
            workers,
            slots: rng.random_range(1..=2),
            splits: rng.random_range(2..=3),
            parallelism: rng.random_range(1..=3),
            checkpoint_interval: (rng.random_bool(0.8)).then(|| Duration::from_millis(rng.random_range(500..4_000))),
            commit_interval: Duration::from_millis([20, 100, 100, 300][rng.random_range(0..4)]),
            flush_interval: Duration::from_millis([100, 500, 2_000][rng.random_range(0..3)]),
            memory_budget_bytes: MEMORY_BYTES[rng.random_range(0..MEMORY_BYTES.len())],
            chaos_ms,
            append_interval_ms: rng.random_range(20..200),
            keys: rng.random_range(1..12),
            late_percent: [0, 2, 10][rng.random_range(0..3)],
            bad_percent: [0, 0, 3][rng.random_range(0..3)],
            transactional_percent: [0, 0, 30][rng.random_range(0..3)],
            faults,
            fault_interval_ms: rng.random_range(1_000..5_000),
            disk: DiskFaults {
                synced: [0, 3_000, 10_000][rng.random_range(0..3)],
                write_fails: [0, 0, 50][rng.random_range(0..3)],
                damaged: [0, 0, 500][rng.random_range(0..3)],
            },
            store: StoreFaults {
                damaged: [0, 0, 1_000][rng.random_range(0..3)],
                refused: [0, 200, 2_000][rng.random_range(0..3)],
                call_ms_max: [0, 20, 400][rng.random_range(0..3)],
                retained: rng.random_range(2..=3),
                grace_ms: rng.random_range(1_000..10_000),
            },
            mischief,
            crash_point_rate: [0, 0, 20, 100][rng.random_range(0..4)],
            deeds: Deeds {
                leave: often(rng, 2_000..8_000) * pace,
                drain: often(rng, 2_000..8_000) * pace,
                cut: often(rng, 1_000..6_000) * pace,
                lose: often(rng, 3_000..10_000) * pace,
                store_away: often(rng, 1_000..6_000),
                twin: often(rng, 500..3_000) * pace,
                chase_percent: [0, 0, 10, 40][rng.random_range(0..4)],
            },
            wall_error_ms: (0..workers).map(|_| if rng.random_bool(0.3) { rng.random_range(-3_000..3_000) } else { 0 }).collect(),
            settings,
        }
    }
}

/// One to three plans that take turns; one of four seeds has none at all.
fn faults(rng: &mut ChaCha8Rng) -> Vec<FaultPlan> {
    let count = rng.random_range(0..=3);
    let mut plan = |_| match rng.random_range(0..6u32) {
        0 => FaultPlan::default(),
        1 | 2 => FaultPlan::mild(),
        3 | 4 => FaultPlan::swarm(rng),
        _ => FaultPlan::harsh(),
    };
    (0..count).map(&mut plan).collect()
}
