//! What the job says of itself, asked of its workers over HTTP.
//!
//! Any worker answers for all, but one that is cut off from the brokers answers with what it knew before. So all that live are asked, and the newest answer,
//! by its place in the control log, is the one that counts.

use super::ports;
use super::process;
use super::workers::WorkerView;
use anyhow::{Context, Result, ensure};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;
use streamshield_core::status::{ClusterStatus, FollowerRole, RegionState};

/// A worker on loopback that has not answered by then does not answer.
const ASK_TIMEOUT: Duration = Duration::from_millis(1_500);

/// Asks one worker.
pub fn ask(address: SocketAddr) -> Result<ClusterStatus> {
    let answer = ports::get(address, "/api/v1/cluster", ASK_TIMEOUT)?;
    ensure!(answer.code == 200, "/api/v1/cluster answers {}: {}", answer.code, answer.text());
    Ok(serde_json::from_slice(&answer.body)?)
}

/// The newest view that a worker has.
pub(crate) fn newest(workers: &[WorkerView]) -> Result<ClusterStatus> {
    // A stopped process accepts connections and says nothing.
    let asked = workers.iter().filter(|worker| worker.pid.is_some_and(|pid| process::state(pid) != Some('T')));
    let answers: Vec<Result<ClusterStatus>> = std::thread::scope(|scope| {
        let threads: Vec<_> = asked.map(|worker| scope.spawn(|| ask(worker.http))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap_or_else(|_| Err(anyhow::anyhow!("asking panicked")))).collect()
    });
    let why = answers.iter().filter_map(|answer| answer.as_ref().err()).map(|error| format!("{error:#}")).collect::<Vec<_>>().join("; ");
    let newest = answers.into_iter().flatten().max_by_key(|status| status.offset);
    newest.with_context(|| format!("no worker answers: {why}"))
}

/// Nothing is on its way: all run, all is active, all followers are ready.
pub fn is_settled(status: &ClusterStatus, workers: usize) -> bool {
    let wanted = (status.followers_wanted as usize).min(workers.saturating_sub(1));
    status.workers.len() == workers
        && status.workers.iter().all(|worker| worker.state.as_deref() == Some("running"))
        && !status.regions.is_empty()
        && status.regions.iter().all(|region| {
            let settled = |role| role != FollowerRole::Successor;
            let ready = region.followers.iter().filter(|follower| follower.ready && settled(follower.role)).count();
            region.state == RegionState::Active && ready >= wanted && region.followers.iter().all(|follower| settled(follower.role))
        })
}

/// Who owns what: region → worker.
pub fn owners(status: &ClusterStatus) -> BTreeMap<String, String> {
    status.regions.iter().filter_map(|region| Some((region.region.clone(), region.owner.clone()?))).collect()
}

/// For the words of a failure.
pub fn describe(status: &ClusterStatus) -> String {
    let mut text = format!("control log at {:?}\n", status.offset);
    for worker in &status.workers {
        let state = worker.state.as_deref().unwrap_or("?");
        text += &format!("worker {} ({}): {state}, owns {}\n", worker.worker, worker.incarnation, worker.regions_owned);
    }
    for region in &status.regions {
        let name = |follower: &streamshield_core::status::FollowerView| {
            format!("{}{}", follower.worker, if follower.ready { "" } else { " (not ready)" })
        };
        let followers: Vec<String> = region.followers.iter().map(name).collect();
        text += &format!(
            "{} {:?} of {}, epoch {:?}, lag {:?}, followed by {}{}\n",
            region.region,
            region.state,
            region.owner.as_deref().unwrap_or("nobody"),
            region.epoch,
            region.lag_records,
            followers.join(", "),
            region.stopped.as_ref().map(|reason| format!(", stopped: {reason}")).unwrap_or_default()
        );
    }
    text
}
