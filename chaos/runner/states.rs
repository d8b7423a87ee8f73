//! Whether all who have the state of a region have the same (E-4): its owner, its followers, and whoever restores it.
//!
//! ```text
//! the load rests ─► all is out ─► the workers end by themselves ─► digests: live ─► their state is deleted
//!   ─► they start and settle: from checkpoints and the log ─► they end by themselves ─► digests: restored
//!   ─► they start and settle ─► the load goes on
//! ```
//! A store has the state of an epoch, that of its last flush or delta; only stores of one epoch can be compared. While nothing flows no epoch is
//! sealed (who leaves seals only what is open), so a replica stands at its owner's last flush, and what is restored comes to it by the same records.
//! A standby has all deltas, and may be ahead of its owner's last flush: what is restored comes to where the standby was.
//!
//! **On failure** there is nothing to compare, which is said; it is no violation.

use super::shared::Shared;
use super::{Stop, short};
use crate::journal::{Entry, Finding, Injection, InjectionOutcome, Reading};
use crate::plan::{Invariant, Mode};
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use streamshield_faults::stage::binary;

/// As the journal has it: how many stores were compared; without a value: the job keeps no state.
pub(super) const READING: &str = "stores compared at the same epoch";
/// How a note begins that says why.
pub(super) const NOT_COMPARED: &str = "states were not compared";
/// After all is out: the last epochs are committed and followed within this, and the input has nothing more that is on its way.
const QUIET_TIME: Duration = Duration::from_secs(2);
/// As for the end of a run.
const STOP_PATIENCE: Duration = Duration::from_secs(30);
/// Of those that can't be compared, named one by one.
const NAMED_MAX: usize = 8;

/// A region's store, as `streamshield state digest` shows it.
#[derive(Clone, Debug, Deserialize)]
struct Store {
    region: String,
    /// None: nothing was ever written.
    epoch: Option<u64>,
    groups: u64,
    digest: String,
}

/// Workers and what lies in their folders.
type Stores = Vec<(String, Store)>;

#[derive(Debug, Default)]
struct Compared {
    /// Stores that were compared with others of their region and epoch.
    stores: u64,
    /// Those of them that were restored, and compared with a live one.
    restored: u64,
    /// Stores that stand alone at their epoch.
    alone: Vec<String>,
    findings: Vec<Finding>,
}

/// Stops, compares, and starts again. Only a job that had caught up has states that must be equal.
pub(super) fn compare(shared: &Shared<'_>) -> Result<(), Stop> {
    if shared.journal(|journal| journal.catch_up_ms.is_none()) {
        shared.run.note(format!("{NOT_COMPARED}: the job had not caught up"));
        return Ok(());
    }
    // What came meanwhile would move epochs on, and what is restored then stand at a later one.
    shared.load.set_rate(0.0);
    let live = live(shared);
    let has_state = live.as_ref().is_ok_and(|live| !live.is_empty());
    // A job that has stores keeps state, but where nothing was ever written to them nothing can be restored.
    let is_written = live.as_deref().is_ok_and(is_written);
    let (came_back, restored) = if is_written { restored(shared) } else { (true, Ok(Stores::new())) };
    let settled = settle(shared);
    shared.load.set_rate(1.0);
    // As after a rebuild: a job that does not come back from a stop has failed, whatever could be compared.
    let reading = Reading {
        at_ms: shared.now_ms(),
        mode: Mode::After,
        name: "settled after all workers were stopped".into(),
        value: None,
        // It has come back each time, not only in the end.
        met: came_back && settled.is_ok(),
    };
    shared.add(Entry::Reading { reading });
    for why in [live.as_ref().err(), restored.as_ref().err(), settled.as_ref().err()].into_iter().flatten() {
        shared.run.note(format!("{NOT_COMPARED}, or not all: {}", short(why)));
    }
    // What was found counts, whatever came afterwards.
    if let Ok(live) = live {
        let compared = has_state.then(|| compared(&live, restored.as_deref().unwrap_or_default()));
        write(shared, compared, restored.is_ok());
    }
    shared.expect_going()
}

/// What the workers have when all is out; then it is deleted, if there is something.
fn live(shared: &Shared<'_>) -> Result<Stores, String> {
    shared.wait_for(shared.plan.host.catch_up_within.0, || shared.has_taken_all());
    if !shared.sleep(QUIET_TIME) {
        return Err("the run ends".into());
    }
    at_rest(shared, || {
        let live = digests(shared)?;
        if is_written(&live) {
            shared.plan.topology.worker_names().iter().try_for_each(|worker| empty(&shared.stage.state_dir(worker)))?;
        }
        Ok(live)
    })
}

/// Whether the job has come back, and what the workers have built anew since then.
fn restored(shared: &Shared<'_>) -> (bool, Result<Stores, String>) {
    if let Err(why) = settle(shared) {
        return (false, Err(why));
    }
    let restored = at_rest(shared, || digests(shared));
    let is_empty = restored.as_deref().is_ok_and(|stores| !is_written(stores));
    (true, if is_empty { Err("no worker has restored any state".into()) } else { restored })
}

/// Does something while no worker runs: they have ended by themselves, and come back afterwards.
fn at_rest<T>(shared: &Shared<'_>, act: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
    let workers = shared.stage.workers().map_err(|error| error.to_string())?;
    let names = workers.names();
    let id = shared.next_id();
    // Written down as what it is to them, so that nobody takes their ends for unexplained ones.
    let injection = Injection {
        id,
        step: shared.plan.method.len(),
        fault: "process.stop".into(),
        family: "process".into(),
        target: "all_workers".into(),
        parameters: BTreeMap::new(),
        from_ms: shared.now_ms(),
        to_ms: None,
        outcome: InjectionOutcome::Injected,
        hit: names.clone(),
        evidence: "to compare states".into(),
        count: names.len() as u64,
        tried_until_ms: None,
    };
    shared.add(Entry::Injecting { injection });
    shared.say("all workers are stopped, to compare states");
    let end = |name: &String| -> Result<(), String> {
        let process = workers.process(name).map_err(|error| error.to_string())?;
        let ended = process.terminate(STOP_PATIENCE).map_err(|error| format!("{name}: {error:#}"))?;
        if ended.status.success() {
            return Ok(());
        }
        let detail = format!("{} after it was asked to end", ended.status);
        let finding = Finding { invariant: Invariant::CleanLogs, kind: "unexplained-death".into(), place: name.clone(), detail };
        shared.add(Entry::Finding { finding });
        Err(format!("{name} did not end by itself: {}", ended.status))
    };
    // Let go at the end, whatever comes.
    let holds: Result<Vec<_>, _> = names.iter().map(|name| workers.hold(name)).collect();
    let ended: Result<(), String> = std::thread::scope(|scope| {
        let end = &end;
        let threads: Vec<_> = names.iter().map(|name| scope.spawn(move || end(name))).collect();
        threads.into_iter().try_for_each(|thread| thread.join().unwrap_or_else(|_| Err("stopping panicked".into())))
    });
    let done = holds.map_err(|error| error.to_string()).and_then(|holds| {
        let done = ended.and_then(|()| act());
        drop(holds);
        done
    });
    shared.add(Entry::Undone { id, at_ms: shared.now_ms(), hit: Vec::new(), evidence: String::new(), count: 0 });
    done
}

fn settle(shared: &Shared<'_>) -> Result<(), String> {
    let since = Instant::now();
    let settled = shared.wait_for(shared.plan.host.catch_up_within.0, || shared.is_settled_since(since));
    if settled { Ok(()) } else { Err(format!("the job did not settle after all workers were stopped: {}", shared.describe())) }
}

/// Of all workers, as a user gets them.
fn digests(shared: &Shared<'_>) -> Result<Stores, String> {
    let program = own_program()?;
    let mut stores = Stores::new();
    for worker in shared.plan.topology.worker_names() {
        let mut command = Command::new(&program);
        command.args(["state", "digest", "--json"]).arg(shared.stage.state_dir(&worker)).current_dir(shared.stage.folder());
        let output = command.env("NO_COLOR", "1").stdin(Stdio::null()).output().map_err(|error| error.to_string())?;
        if !output.status.success() {
            return Err(format!("streamshield state digest, of {worker}: {}", String::from_utf8_lossy(&output.stderr)));
        }
        let found: Vec<Store> = serde_json::from_slice(&output.stdout).map_err(|error| format!("streamshield state digest: {error}"))?;
        stores.extend(found.into_iter().map(|store| (worker.clone(), store)));
    }
    Ok(stores)
}

/// Ours, where it is one with commands: the one under test may be older than this one.
fn own_program() -> Result<PathBuf, String> {
    match std::env::current_exe() {
        Ok(own) if own.file_name().is_some_and(|name| name == "streamshield") => Ok(own),
        _ => binary().map_err(|error| format!("{error:#}")),
    }
}

/// What is in the folder, not the folder: it may be a disk of its own.
fn empty(folder: &Path) -> Result<(), String> {
    let failed = |error: std::io::Error| format!("{}: {error}", folder.display());
    for entry in std::fs::read_dir(folder).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        let removed = if path.is_dir() { std::fs::remove_dir_all(&path) } else { std::fs::remove_file(&path) };
        removed.map_err(failed)?;
    }
    Ok(())
}

/// Whether there is anything in one of them: a store is there as soon as its region is opened.
fn is_written(stores: &[(String, Store)]) -> bool {
    stores.iter().any(|(_, store)| store.epoch.is_some())
}

fn compared(live: &[(String, Store)], restored: &[(String, Store)]) -> Compared {
    let mut by_epoch: BTreeMap<(&str, u64), Vec<(&str, bool, &Store)>> = BTreeMap::new();
    for (stores, is_restored) in [(live, false), (restored, true)] {
        for (worker, store) in stores {
            // Where nothing was ever written there is nothing of any epoch.
            let Some(epoch) = store.epoch else { continue };
            by_epoch.entry((store.region.as_str(), epoch)).or_default().push((worker.as_str(), is_restored, store));
        }
    }
    let mut compared = Compared::default();
    for ((region, epoch), stores) in by_epoch {
        let named = |one: &(&str, bool, &Store)| format!("{} ({})", one.0, if one.1 { "restored" } else { "live" });
        let contents: BTreeSet<(u64, &str)> = stores.iter().map(|(_, _, store)| (store.groups, store.digest.as_str())).collect();
        if let [only] = stores.as_slice() {
            compared.alone.push(format!("{region} of {} at epoch {epoch}", named(only)));
        } else if contents.len() > 1 {
            let has = |one: &(&str, bool, &Store)| format!("{} has {} groups with digest {}", named(one), one.2.groups, one.2.digest);
            let detail = format!("E-4: epoch {epoch} of {region}: {}", stores.iter().map(has).collect::<Vec<_>>().join(", "));
            compared.findings.push(Finding { invariant: Invariant::StateEqual, kind: "divergence".into(), place: region.into(), detail });
        }
        // That two stores without any group are equal shows nothing.
        if stores.len() > 1 && contents.iter().any(|(groups, _)| *groups > 0) {
            let restored = stores.iter().filter(|(_, is_restored, _)| *is_restored).count();
            compared.stores += stores.len() as u64;
            compared.restored += if restored < stores.len() { restored as u64 } else { 0 };
        }
    }
    compared
}

/// None: the job keeps no state. What was found without what is restored counts, but is no comparison.
fn write(shared: &Shared<'_>, compared: Option<Compared>, is_whole: bool) {
    if is_whole {
        let value = compared.as_ref().map(|compared| compared.stores as f64);
        let reading = Reading { at_ms: shared.now_ms(), mode: Mode::After, name: READING.into(), value, met: true };
        shared.add(Entry::Reading { reading });
    }
    let Some(Compared { stores, restored, alone, findings }) = compared else { return };
    let mut text = format!("{stores} stores were compared with others of their epoch, {restored} of them restored with live ones");
    if !alone.is_empty() {
        let more = if alone.len() > NAMED_MAX { ", …" } else { "" };
        let named = alone.iter().take(NAMED_MAX).cloned().collect::<Vec<_>>().join(", ");
        text += &format!("; {} stand alone at their epoch and were not: {named}{more}", alone.len());
    }
    shared.run.note(text);
    for finding in findings {
        shared.add(Entry::Finding { finding });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store(worker: &str, region: &str, epoch: u64, groups: u64, digest: &str) -> (String, Store) {
        let text = format!(r#"{{"region": "{region}", "epoch": {epoch}, "groups": {groups}, "digest": "{digest}", "tables": []}}"#);
        (worker.into(), serde_json::from_str(&text).expect("a store"))
    }

    #[test]
    fn stores_of_one_epoch_are_compared_whoever_has_them_and_others_are_named() {
        let live = vec![store("w1", "s1/0", 12, 7, "aa"), store("w2", "s1/0", 12, 7, "aa"), store("w2", "s1/1", 9, 3, "bb")];
        let restored = vec![store("w1", "s1/1", 9, 3, "bb"), store("w2", "s1/0", 13, 8, "cc")];
        let compared = compared(&live, &restored);
        assert_eq!((compared.stores, compared.restored), (4, 1));
        assert_eq!(compared.alone, ["s1/0 of w2 (restored) at epoch 13"]);
        assert!(compared.findings.is_empty(), "{compared:?}");
    }

    #[test]
    fn a_store_that_differs_is_a_violation_that_names_region_epoch_and_digests() {
        let live = vec![store("w1", "s1/0", 12, 7, "aa"), store("w2", "s1/0", 12, 7, "aa")];
        let restored = vec![store("w3", "s1/0", 12, 7, "ab")];
        let compared = compared(&live, &restored);
        let [finding] = compared.findings.as_slice() else { panic!("{compared:?}") };
        assert_eq!((finding.invariant, finding.place.as_str()), (Invariant::StateEqual, "s1/0"));
        assert_eq!(
            finding.detail,
            "E-4: epoch 12 of s1/0: w1 (live) has 7 groups with digest aa, w2 (live) has 7 groups with digest aa, \
             w3 (restored) has 7 groups with digest ab"
        );
    }

    #[test]
    fn what_is_empty_or_alone_vouches_for_nothing() {
        let live = vec![store("w1", "s1/0", 12, 0, "00"), store("w1", "s1/1", 4, 5, "aa")];
        let restored = vec![store("w2", "s1/0", 12, 0, "00"), store("w2", "s1/1", 5, 5, "ab")];
        let found = compared(&live, &restored);
        assert_eq!((found.stores, found.restored, found.alone.len()), (0, 0, 2));
        assert!(found.findings.is_empty(), "{found:?}");
        let lost = compared(&live, &[store("w2", "s1/1", 4, 0, "00")]);
        assert_eq!((lost.findings.len(), lost.stores), (1, 2), "one of the two has lost its groups");
        let never_written = || ("w1".to_string(), Store { region: "s1/0".into(), epoch: None, groups: 0, digest: "00".into() });
        assert!(compared(&[never_written()], &[]).alone.is_empty());
        assert!(!is_written(&[]) && !is_written(&[never_written()]) && is_written(&[never_written(), store("w2", "s1/1", 5, 5, "ab")]));
    }
}
