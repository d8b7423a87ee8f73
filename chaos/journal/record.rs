//! Entries: one fact each, written before anything else is done about it.

use super::*;
use crate::plan::{Metric, Threshold};
use crate::verdict::judge;
use std::fs::File;
use std::io::Write;
use std::path::PathBuf;

/// One fact.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Entry {
    Began {
        plan: Box<Plan>,
        plan_name: String,
        seed: u64,
        replay: String,
        version: Versions,
        started_at: String,
    },
    /// A user's job has these in place of the plan's.
    Promise {
        tier: Option<u32>,
        thresholds: BTreeMap<Metric, Vec<Threshold>>,
    },
    Stage {
        at_ms: u64,
        stage: RunStage,
    },
    Reading {
        reading: Reading,
    },
    /// Written before anything is done.
    Injecting {
        injection: Injection,
    },
    /// What came of it. `to_ms`: it is over already.
    Injected {
        id: u32,
        outcome: InjectionOutcome,
        hit: Vec<String>,
        evidence: String,
        count: u64,
        to_ms: Option<u64>,
    },
    /// There was nothing to aim at, and it is tried again.
    TriedInVain {
        id: u32,
        at_ms: u64,
    },
    Undone {
        id: u32,
        at_ms: u64,
        hit: Vec<String>,
        evidence: String,
        count: u64,
    },
    Process {
        event: ProcessEvent,
    },
    OwnerChange {
        change: OwnerChange,
    },
    Sample {
        sample: Sample,
    },
    Note {
        note: Note,
    },
    Failover {
        failover: Failover,
    },
    Latency {
        phase: Phase,
        latency: Latency,
    },
    /// All workers run and have settled, so long after they were asked to start.
    Started {
        after_ms: u64,
    },
    CaughtUp {
        after_ms: u64,
    },
    Checkpoints {
        checkpoints: Checkpoints,
    },
    Records {
        records: Records,
    },
    Host {
        noise: HostNoise,
    },
    Cost {
        cost: Cost,
    },
    Looked {
        invariant: Invariant,
        looked: Looked,
    },
    Finding {
        finding: Finding,
    },
    BrokenOff {
        why: BrokenOff,
    },
    Ended {
        at_ms: u64,
    },
}

impl Journal {
    fn begin(plan: Plan, plan_name: String, seed: u64, replay: String, version: Versions, started_at: String) -> Journal {
        Journal {
            format: FORMAT,
            verdict: Verdict::default(),
            title: plan.title.clone(),
            plan_name,
            seed,
            replay,
            version,
            started_at,
            duration_ms: 0,
            kills: Kills::default(),
            records: Records::default(),
            faults: Vec::new(),
            invariants: Vec::new(),
            thresholds: Vec::new(),
            steady_state: Vec::new(),
            latency: BTreeMap::new(),
            throughput: BTreeMap::new(),
            failovers: Vec::new(),
            start_ms: None,
            catch_up_ms: None,
            checkpoints: Checkpoints::default(),
            host: HostNoise::default(),
            cost: Cost::default(),
            stages: Vec::new(),
            injections: Vec::new(),
            processes: Vec::new(),
            owner_changes: Vec::new(),
            timeline: Vec::new(),
            notes: Vec::new(),
            broken_off: None,
            plan,
            findings: Vec::new(),
            ended: false,
        }
    }

    fn apply(&mut self, entry: Entry) {
        match entry {
            Entry::Began { .. } => {}
            Entry::Promise { tier, thresholds } => {
                self.plan.topology.tier = tier.unwrap_or(self.plan.topology.tier);
                self.plan.thresholds.extend(thresholds);
            }
            Entry::Stage { at_ms, stage } => self.enter(at_ms, stage),
            Entry::Reading { reading } => self.steady_state.push(reading),
            Entry::Injecting { injection } => self.injections.push(injection),
            Entry::Injected { id, outcome, hit, evidence, count, to_ms } => {
                if let Some(injection) = self.injections.iter_mut().find(|injection| injection.id == id) {
                    injection.outcome = outcome;
                    injection.to_ms = to_ms;
                    injection.saw(hit, &evidence, count);
                }
            }
            Entry::TriedInVain { id, at_ms } => {
                if let Some(injection) = self.injections.iter_mut().find(|injection| injection.id == id) {
                    injection.tried_until_ms = Some(at_ms);
                }
            }
            Entry::Undone { id, at_ms, hit, evidence, count } => {
                if let Some(injection) = self.injections.iter_mut().find(|injection| injection.id == id) {
                    injection.to_ms = Some(at_ms);
                    injection.saw(hit, &evidence, count);
                }
            }
            Entry::Process { event } => self.processes.push(event),
            Entry::OwnerChange { change } => self.owner_changes.push(change),
            Entry::Sample { sample } => self.timeline.push(sample),
            Entry::Note { note } => self.notes.push(note),
            Entry::Failover { failover } => self.failovers.push(failover),
            Entry::Latency { phase, latency } => drop(self.latency.insert(phase, latency)),
            Entry::Started { after_ms } => self.start_ms = Some(after_ms),
            Entry::CaughtUp { after_ms } => self.catch_up_ms = Some(after_ms),
            Entry::Checkpoints { checkpoints } => self.checkpoints = checkpoints,
            Entry::Records { records } => self.records = records,
            Entry::Host { noise } => self.host = noise,
            Entry::Cost { cost } => self.cost = cost,
            Entry::Looked { invariant, looked } => self.invariants.push(InvariantResult::new(invariant, looked)),
            Entry::Finding { finding } => self.findings.push(finding),
            Entry::BrokenOff { why } => drop(self.broken_off.get_or_insert(why)),
            Entry::Ended { at_ms } => {
                self.enter(at_ms, RunStage::Done);
                self.duration_ms = at_ms;
                self.ended = true;
            }
        }
    }

    fn enter(&mut self, at_ms: u64, stage: RunStage) {
        if let Some(last) = self.stages.last_mut() {
            last.to_ms.get_or_insert(at_ms);
        }
        if stage != RunStage::Done {
            self.stages.push(StageSpan { stage, from_ms: at_ms, to_ms: None });
        }
        self.duration_ms = self.duration_ms.max(at_ms);
    }
}

impl Injection {
    fn saw(&mut self, hit: Vec<String>, evidence: &str, count: u64) {
        self.hit.extend(hit);
        self.hit.sort();
        self.hit.dedup();
        if !evidence.is_empty() && evidence != self.evidence {
            let separator = if self.evidence.is_empty() { "" } else { "; " };
            self.evidence = format!("{}{separator}{evidence}", self.evidence);
        }
        // What an undo reports includes what was reported at the injection.
        self.count = self.count.max(count);
    }
}

/// The journal of entries that were written, judged.
pub(super) fn replay(text: &str) -> Result<Journal, String> {
    let mut journal: Option<Journal> = None;
    for (number, line) in text.lines().enumerate() {
        let entry: Entry = match serde_json::from_str(line) {
            Ok(entry) => entry,
            // The last line of a run that died may be cut.
            Err(_) if number + 1 == text.lines().count() && journal.is_some() => break,
            Err(error) => return Err(format!("line {}: {error}", number + 1)),
        };
        match (&mut journal, entry) {
            (None, Entry::Began { plan, plan_name, seed, replay, version, started_at }) => {
                journal = Some(Journal::begin(*plan, plan_name, seed, replay, version, started_at));
            }
            (None, _) => return Err("it does not begin with a plan".into()),
            (Some(journal), entry) => journal.apply(entry),
        }
    }
    let mut journal = journal.ok_or("it is empty")?;
    judge(&mut journal);
    Ok(journal)
}

/// Writes entries as they happen.
pub struct Recorder {
    file: File,
    folder: PathBuf,
    journal: Journal,
}

impl Recorder {
    /// Begins `journal.jsonl` in a folder that is made for it.
    pub fn begin(
        folder: &Path,
        plan: &Plan,
        plan_name: &str,
        seed: u64,
        replay: &str,
        version: Versions,
        started_at: &str,
    ) -> std::io::Result<Recorder> {
        std::fs::create_dir_all(folder)?;
        let began = Entry::Began {
            plan: Box::new(plan.clone()),
            plan_name: plan_name.into(),
            seed,
            replay: replay.into(),
            version: version.clone(),
            started_at: started_at.into(),
        };
        let journal = Journal::begin(plan.clone(), plan_name.into(), seed, replay.into(), version, started_at.into());
        let mut recorder = Recorder { file: File::create(folder.join("journal.jsonl"))?, folder: folder.into(), journal };
        recorder.write(&began);
        Ok(recorder)
    }

    pub fn add(&mut self, entry: Entry) {
        self.write(&entry);
        self.journal.apply(entry);
    }

    /// A full disk must not end a run half-way with its faults in place; what is missing in the lines is still in the journal.
    fn write(&mut self, entry: &Entry) {
        let line = serde_json::to_string(entry).expect("plain data always serializes") + "\n";
        let _ = self.file.write_all(line.as_bytes());
    }

    pub fn journal(&self) -> &Journal {
        &self.journal
    }

    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Judges, writes `journal.json`, and returns the journal.
    pub fn end(mut self, at_ms: u64) -> std::io::Result<Journal> {
        self.add(Entry::Ended { at_ms });
        judge(&mut self.journal);
        std::fs::write(self.folder.join("journal.json"), self.journal.text())?;
        Ok(self.journal)
    }
}
