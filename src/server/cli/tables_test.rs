use super::*;
use insta::assert_snapshot;
use streamshield_core::cluster::Tier;
use streamshield_core::ids::Epoch;
use streamshield_core::status::{CheckpointView, PhasesMs, Totals};

fn worker(name: &str, owned: u32) -> WorkerStatus {
    WorkerStatus {
        worker: name.into(),
        incarnation: 7,
        slots: 2,
        heard_ms_ago: 80,
        regions_owned: owned,
        regions_followed: 1,
        state: Some("running".into()),
        records_in: 1_000,
        rows_out: 10,
        latency_p99_ms: Some(240),
        cpu_percent: Some(35),
        resident_bytes: Some(300 << 20),
        ..Default::default()
    }
}

fn region(name: &str, owner: Option<&str>, state: RegionState) -> RegionView {
    RegionView {
        region: name.into(),
        stage: "orders".into(),
        stateful: true,
        owner: owner.map(str::to_string),
        state,
        epoch: Some(120),
        lag_records: Some(15),
        lag_ms: Some(40),
        watermark_ms: Some(1_700_000_000_000),
        state_bytes: 5 << 20,
        followers: Vec::new(),
        checkpoint: None,
        stopped: None,
        failures: 0,
    }
}

fn follower(worker: &str, ready: bool, epochs_behind: u64, diverged: Option<u64>) -> FollowerView {
    FollowerView {
        worker: worker.into(),
        role: FollowerRole::Replica,
        epoch: Some(120 - epochs_behind),
        epochs_behind: Some(epochs_behind),
        ready,
        diverged,
    }
}

#[test]
fn a_job_is_shown_with_workers_regions_followers_and_take_overs() {
    let mut followed = region("s1/0", Some("orders-0"), RegionState::Active);
    followed.followers = vec![follower("orders-1", true, 2, None), follower("orders-2", false, 9, Some(111))];
    followed.checkpoint = Some(CheckpointView { epoch: Epoch(100), durability: Durability::Local, age_ms: Some(61_000) });
    let quarantined = RegionState::Quarantined { reason: "a record that is no row: ".to_string() + &"x".repeat(200) };
    let takeover = Takeover {
        region: "s1/0".into(),
        from: "1700000000000-0".into(),
        to: "orders-0".into(),
        cause: TakeoverCause::Expired,
        offset: 500,
        at_ms: 10_000,
        phases_ms: PhasesMs { detect: Some(380), fence: Some(40), catch_up: Some(12), confirm: Some(9), first_commit: Some(110) },
    };
    let status = ClusterStatus {
        job: "orders".into(),
        tier: Some(Tier::ActiveActive),
        followers_wanted: 2,
        level: 1,
        offset: Some(900),
        log_clock_ms: 75_000,
        at_rest: false,
        starts_in_ms: None,
        balances_in_ms: Some(1_400),
        totals: Totals {
            records_in: 2_000,
            rows_out: 20,
            lag_records: 15,
            state_bytes: 5 << 20,
            watermark_ms: Some(1_700_000_000_000),
            ..Default::default()
        },
        workers: vec![worker("orders-0", 1), WorkerStatus { draining: true, rack: Some("b".into()), ..worker("orders-1", 1) }],
        regions: vec![
            followed,
            region("s1/1", Some("orders-1"), RegionState::Moving { to: "orders-0".into() }),
            region("s1/2", None, quarantined),
        ],
        takeovers: vec![takeover],
        malformed_records: 0,
    };
    assert_snapshot!(cluster(&status));
}

#[test]
fn a_job_without_workers_says_so() {
    let status = ClusterStatus { job: "orders".into(), offset: Some(3), ..Default::default() };
    assert!(cluster(&status).contains("no worker is alive"));
}

#[test]
fn times_and_sizes_are_read_at_a_glance() {
    let times = [0, 9_999, 12_300, 300_000, 10_800_000, 260_000_000].map(|ms| milliseconds(Some(ms)));
    assert_eq!(times, ["0 ms", "9999 ms", "12.3 s", "5 min", "3 h", "3 d"]);
    assert_eq!([5, 2048, 3 << 20, 5 << 30].map(bytes), ["5 B", "2 KiB", "3.0 MiB", "5.0 GiB"]);
}
