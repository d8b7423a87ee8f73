//! From a role to those who have it at this moment.

use crate::api::{FaultError, FaultSpec, Role, Target, role_names};
use crate::stage::{EMBEDDED_BROKER, Stage, admin, process_state};
use crate::values::{BuildError, Given};
use rand::seq::IndexedRandom;
use rand_chacha::ChaCha8Rng;
use streamshield_core::status::{ClusterStatus, RegionView, WorkerStatus};

/// What a fault was built from.
#[derive(Debug)]
pub(crate) struct Setup {
    pub spec: &'static FaultSpec,
    pub given: Given,
    pub target: Target,
    pub random: ChaCha8Rng,
}

/// Whether a fault can ever be aimed so.
pub(crate) fn check(spec: &'static FaultSpec, target: &Target) -> Result<(), BuildError> {
    if !spec.targets.contains(&target.role) {
        return Err(BuildError::BadTarget { fault: spec.name, role: target.role, known: role_names(spec.targets) });
    }
    let Some(name) = &target.name else { return Ok(()) };
    let wrong = |reason| Err(BuildError::BadTargetName { fault: spec.name, name: name.clone(), reason });
    match target.role {
        // A coordinator is named by the worker whose transactions it coordinates.
        Role::Worker | Role::Coordinator if !is_worker_name(name) => wrong("workers are called w1, w2…"),
        Role::Active | Role::Follower | Role::Taker if !is_region_name(name) => {
            wrong("regions are called s0/0, s1/2…: stage and partition")
        }
        Role::Broker if name.parse::<u32>().is_err() => wrong("brokers are called 1, 2…"),
        Role::AllWorkers | Role::AllBrokers | Role::Store | Role::Input => wrong("this role leaves no choice"),
        _ => Ok(()),
    }
}

fn is_worker_name(name: &str) -> bool {
    name.strip_prefix('w').is_some_and(|number| number.parse::<u32>().is_ok())
}

fn is_region_name(name: &str) -> bool {
    let Some((stage, partition)) = name.strip_prefix('s').and_then(|rest| rest.split_once('/')) else { return false };
    stage.parse::<u32>().is_ok() && partition.parse::<u32>().is_ok()
}

impl Setup {
    /// The workers that are meant, at least one.
    pub fn workers(&mut self, stage: &Stage) -> Result<Vec<String>, FaultError> {
        let living = living(stage)?;
        let chosen = match self.target.role {
            Role::AllWorkers => living,
            Role::Worker => match &self.target.name {
                Some(name) => living.into_iter().filter(|worker| worker == name).collect(),
                None => living.choose(&mut self.random).cloned().into_iter().collect(),
            },
            Role::Active => vec![self.region(&stage.cluster_status()?, |region| region.owner.is_some())?.owner.unwrap_or_default()],
            Role::Follower => {
                let region = self.region(&stage.cluster_status()?, |region| !region.followers.is_empty())?;
                region.followers.choose(&mut self.random).map(|follower| follower.worker.clone()).into_iter().collect()
            }
            role => return Err(FaultError::NoTarget(format!("{role} is no worker"))),
        };
        // The view of the job may name one that has died meanwhile.
        let views = stage.workers()?.views();
        let chosen: Vec<String> =
            chosen.into_iter().filter(|name| views.iter().any(|view| view.name == *name && view.pid.is_some())).collect();
        if chosen.is_empty() {
            return Err(FaultError::NoTarget(format!("no living worker is {}", self.target)));
        }
        Ok(chosen)
    }

    /// The one worker that is meant.
    pub fn worker(&mut self, stage: &Stage) -> Result<String, FaultError> {
        let mut workers = self.workers(stage)?;
        Ok(workers.swap_remove(0))
    }

    /// The region by the target's name, or one at random.
    pub fn region(&mut self, status: &ClusterStatus, wanted: impl Fn(&RegionView) -> bool) -> Result<RegionView, FaultError> {
        let named = |region: &&RegionView| self.target.name.as_ref().is_none_or(|name| *name == region.region);
        let regions: Vec<&RegionView> = status.regions.iter().filter(named).filter(|region| wanted(region)).collect();
        let chosen = regions.choose(&mut self.random).map(|region| (*region).clone());
        chosen.ok_or_else(|| FaultError::NoTarget(format!("no region has what is meant by {}", self.target.role)))
    }

    /// The one broker that is meant.
    pub fn broker(&mut self, stage: &Stage) -> Result<u32, FaultError> {
        match (self.target.role, &self.target.name) {
            (Role::Coordinator, _) => self.coordinator(stage),
            (_, Some(name)) => name.parse().map_err(|_| FaultError::NoTarget(format!("there is no broker {name}"))),
            (_, None) => {
                let living: Vec<u32> = stage.brokers().views().iter().filter(|view| view.pid.is_some()).map(|view| view.id).collect();
                let none = || match stage.brokers().is_embedded() {
                    true => FaultError::NotPossibleHere("the embedded broker is a part of this process: it takes real brokers".into()),
                    false => FaultError::NoTarget("no broker runs".into()),
                };
                living.choose(&mut self.random).copied().ok_or_else(none)
            }
        }
    }

    /// The broker that coordinates the transactions of the named worker, or of any; where there is none yet, the leader of the control topic.
    fn coordinator(&mut self, stage: &Stage) -> Result<u32, FaultError> {
        if stage.brokers().is_embedded() {
            return Err(FaultError::NotPossibleHere("the embedded broker is a part of this process: it takes real brokers".into()));
        }
        let status = stage.cluster_status()?;
        let (job, servers) = (stage.job_name()?, stage.bootstrap_servers());
        let is_meant = |worker: &&WorkerStatus| self.target.name.as_ref().is_none_or(|name| *name == worker.worker);
        let workers: Vec<&WorkerStatus> = status.workers.iter().filter(is_meant).collect();
        match (workers.choose(&mut self.random), &self.target.name) {
            (Some(worker), _) => admin::transaction_coordinator(&servers, &format!("{job}-{}-0", worker.incarnation)),
            (None, Some(name)) => Err(FaultError::NoTarget(format!("{name} is no member of the job"))),
            (None, None) => admin::leader_of(&servers, &format!("{job}-control"), 0),
        }
    }

    /// The links that are meant: worker and broker.
    pub fn links(&mut self, stage: &Stage) -> Result<Vec<(String, u32)>, FaultError> {
        if stage.links().is_empty() {
            return Err(FaultError::NotPossibleHere("the stage has no proxies between workers and brokers".into()));
        }
        let all: Vec<(String, u32)> = stage.links().all().map(|(worker, broker, _)| (worker.to_string(), broker)).collect();
        let chosen: Vec<(String, u32)> = match self.target.role {
            Role::AllBrokers | Role::AllWorkers => all,
            Role::Broker | Role::Coordinator => {
                let broker = if stage.brokers().is_embedded() { EMBEDDED_BROKER } else { self.broker(stage)? };
                all.into_iter().filter(|(_, found)| *found == broker).collect()
            }
            role => {
                // The links of a worker are there while it sleeps, too.
                let worker = match (role, self.target.name.clone()) {
                    (Role::Worker, Some(name)) => name,
                    _ => self.worker(stage)?,
                };
                all.into_iter().filter(|(name, _)| *name == worker).collect()
            }
        };
        let only = if self.spec.parameters.iter().any(|parameter| parameter.name == "broker") { self.given.count("broker") } else { 0 };
        let chosen: Vec<_> = chosen.into_iter().filter(|(_, broker)| only == 0 || u64::from(*broker) == only).collect();
        if chosen.is_empty() {
            let of = self.target.name.as_ref().map(|name| format!(" of {name}")).unwrap_or_default();
            return Err(FaultError::NoTarget(format!("there is no link{of} to broker {only}")));
        }
        Ok(chosen)
    }
}

/// Workers that run and are not stopped.
fn living(stage: &Stage) -> Result<Vec<String>, FaultError> {
    let views = stage.workers()?.views();
    let runs = |pid: Option<u32>| pid.is_some_and(|pid| process_state(pid) != Some('T'));
    Ok(views.into_iter().filter(|view| runs(view.pid)).map(|view| view.name).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::faults::catalogue::find;

    #[test]
    fn a_target_that_can_not_exist_is_refused() {
        let kill = find("process.kill").expect("it is in the catalogue");
        let target = |role, name: Option<&str>| Target { role, name: name.map(String::from) };
        for right in [target(Role::Worker, Some("w2")), target(Role::Active, Some("s1/0")), target(Role::AllWorkers, None)] {
            assert_eq!(check(kill, &right), Ok(()), "{right:?}");
        }
        for wrong in [
            target(Role::Store, None),
            target(Role::Worker, Some("worker")),
            target(Role::Active, Some("1-0")),
            target(Role::AllWorkers, Some("w1")),
        ] {
            assert!(check(kill, &wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn a_coordinator_is_named_by_its_worker() {
        let pause = find("broker.pause").expect("it is in the catalogue");
        let of = |name: &str| check(pause, &Target { role: Role::Coordinator, name: Some(name.into()) });
        assert_eq!(of("w2"), Ok(()));
        assert!(of("2").is_err());
    }
}
