//! Faults of brokers: one, two or all of them are dead or asleep for a while.

use super::process::pause;
use super::target::Setup;
use super::{Evidence, nothing};
use crate::api::{Fault, FaultError, Fired};
use crate::stage::{BROKER_START_TIME_MAX, Process, Stage, process_state};
use rand::seq::IndexedRandom;
use std::sync::Arc;

/// All entries of the family that take brokers away.
pub(crate) struct Away {
    setup: Setup,
    killed: Vec<u32>,
    paused: Vec<(u32, Arc<Process>)>,
}

impl Away {
    pub(crate) fn new(setup: Setup) -> Away {
        Away { setup, killed: Vec::new(), paused: Vec::new() }
    }

    fn chosen(&mut self, stage: &Stage) -> Result<Vec<u32>, FaultError> {
        let all = stage.brokers().ids();
        match self.setup.spec.name {
            "broker.all_away" | "broker.below_min_isr" if stage.brokers().is_embedded() => {
                Err(FaultError::NotPossibleHere("the embedded broker is a part of this process: it takes real brokers".into()))
            }
            "broker.all_away" => Ok(all),
            "broker.below_min_isr" if all.len() < 3 => {
                Err(FaultError::NotPossibleHere(format!("with {} broker there are no replicas: it takes three", all.len())))
            }
            "broker.below_min_isr" => Ok(all.choose_multiple(&mut self.setup.random, 2).copied().collect()),
            _ => Ok(vec![self.setup.broker(stage)?]),
        }
    }

    fn pauses(&self) -> bool {
        match self.setup.spec.name {
            "broker.pause" => true,
            "broker.all_away" | "broker.below_min_isr" => self.setup.given.choice("how") == "pause",
            _ => false,
        }
    }
}

impl Fault<Stage> for Away {
    fn inject(&mut self, stage: &Stage) -> Result<Fired, FaultError> {
        let mut evidence = Evidence::default();
        let mut dying = Vec::new();
        // All are looked up before the first signal: where one does not run, the others are left alone.
        let mut victims = Vec::new();
        for broker in self.chosen(stage)? {
            victims.push((broker, stage.brokers().process(broker)?));
        }
        for (broker, process) in victims {
            if self.pauses() {
                let stopped = pause(&process)?;
                evidence.add(
                    format!("broker {broker}"),
                    format!("broker {broker}: pid {} is in state {stopped}", process.pid),
                    u64::from(stopped == 'T'),
                );
                self.paused.push((broker, process));
            } else {
                process.signal(libc::SIGKILL);
                self.killed.push(broker);
                dying.push((broker, process));
            }
        }
        for (broker, process) in dying {
            let ended = process.kill()?;
            evidence.add(format!("broker {broker}"), format!("broker {broker}: pid {} is gone ({})", process.pid, ended.status), 1);
        }
        Ok(evidence.fired())
    }

    fn undo(&mut self, stage: &Stage) -> Result<Fired, FaultError> {
        if self.killed.is_empty() && self.paused.is_empty() {
            return nothing();
        }
        let mut evidence = Evidence::default();
        for (broker, process) in self.paused.drain(..) {
            let slept = process_state(process.pid) == Some('T');
            process.signal(libc::SIGCONT);
            evidence.add(format!("broker {broker}"), format!("broker {broker} goes on"), u64::from(slept));
        }
        // First all, then the waiting: two of three need each other for their quorum.
        for broker in &self.killed {
            stage.brokers().start_one(*broker)?;
        }
        for broker in &self.killed {
            stage.brokers().wait_ready(*broker, BROKER_START_TIME_MAX)?;
            evidence.add(format!("broker {broker}"), format!("broker {broker} serves again"), 1);
        }
        self.killed.clear();
        Ok(evidence.fired())
    }
}
