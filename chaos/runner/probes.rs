//! Probes of the steady state: measured, compared, written down.

use super::shared::Shared;
use crate::journal::{Entry, Reading};
use crate::plan::{Mode, Probe, ProbeKind};
use crate::verdict::rounded;
use std::cell::Cell;
use streamshield_core::status::{ClusterStatus, FollowerRole, RegionState};
use streamshield_workload::{Flow, Observer};

/// What the latency is taken from.
const LATENCY_WINDOW_MS: i64 = 5_000;

/// Waits until each probe of a mode is met, as long as it may take. What was not met, in words.
pub(super) fn look(shared: &Shared<'_>, mode: Mode) -> Vec<String> {
    let mut unmet = Vec::new();
    for probe in shared.plan.steady_state.iter().filter(|probe| probe.when.contains(&mode)) {
        let last = Cell::new(None);
        let met = shared.wait_for(probe.within.0, || {
            last.set(measure(shared, probe.probe, mode));
            last.get().is_some_and(|value| probe.is_met(value))
        });
        write(shared, probe, mode, last.get(), met);
        if !met {
            unmet.push(format!("{}: {}", probe.name, last.get().map_or("nobody answered".into(), rounded)));
        }
    }
    unmet
}

/// One look at the probes `during`, of which only what is not met is written: there is one each second. What is seen once a fault has begun meanwhile may be
/// its doing.
pub(super) fn look_once(shared: &Shared<'_>, is_calm: impl Fn() -> bool) {
    for probe in shared.plan.steady_state.iter().filter(|probe| probe.when.contains(&Mode::During)) {
        let value = measure(shared, probe.probe, Mode::During);
        if !value.is_some_and(|value| probe.is_met(value)) && is_calm() {
            write(shared, probe, Mode::During, value, false);
        }
    }
}

fn write(shared: &Shared<'_>, probe: &Probe, mode: Mode, value: Option<f64>, met: bool) {
    shared.add(Entry::Reading { reading: Reading { at_ms: shared.now_ms(), mode, name: probe.name.clone(), value, met } });
}

/// None: nobody answers, or not for all.
fn measure(shared: &Shared<'_>, kind: ProbeKind, mode: Mode) -> Option<f64> {
    // Whoever has just got a region measures it within a second or two. Who looks but once does not wait for that.
    let is_known = |status: &ClusterStatus| mode == Mode::During || shared.unmeasured(status).is_none();
    let lag = |of: fn(&ClusterStatus) -> u64| shared.latest(|status| is_known(status).then(|| of(status) as f64)).flatten();
    match kind {
        ProbeKind::LagRecords => lag(|status| status.totals.lag_records),
        ProbeKind::LagMs => lag(|status| status.regions.iter().filter_map(|region| region.lag_ms).max().unwrap_or(0)),
        ProbeKind::LatencyP99Ms => {
            let to_ms = shared.wall_ms(shared.now_ms());
            let seen = |observer: &Observer| observer.look(|seen| seen.latency_ms(Flow::Passed, 0.99, to_ms - LATENCY_WINDOW_MS, to_ms));
            let reported = || shared.latest(|status| status.workers.iter().filter_map(|worker| worker.latency_p99_ms).max())?;
            shared.observer.map_or_else(reported, seen).map(|ms| ms as f64)
        }
        ProbeKind::WorkersAlive => {
            let views = shared.stage.workers().ok()?.views();
            Some(views.iter().filter(|view| view.pid.is_some()).count() as f64)
        }
        ProbeKind::RegionsActive => shared.latest(|status| {
            let active = status.regions.iter().filter(|region| region.state == RegionState::Active).count();
            share(active, status.regions.len())
        }),
        ProbeKind::FollowersReady => shared.latest(|status| {
            let follows = |role| role != FollowerRole::Successor;
            let ready = status
                .regions
                .iter()
                .flat_map(|region| &region.followers)
                .filter(|follower| follower.ready && follows(follower.role))
                .count();
            let wanted = status.followers_wanted.min(shared.plan.topology.workers.saturating_sub(1)) as usize;
            share(ready, status.regions.len() * wanted)
        }),
    }
}

/// Of nothing, everything is there.
fn share(part: usize, whole: usize) -> f64 {
    if whole == 0 { 1.0 } else { part as f64 / whole as f64 }
}
