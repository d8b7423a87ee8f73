//! Scenarios as texts: what lies in the log, and what everybody makes of it.
//!
//! A file in `scenarios/` is a list of blocks: commands, `----`, what they must print, an empty line. `STREAMSHIELD_REWRITE=1` writes what they do print into the files, to
//! be read in the diff. After every record all invariants are checked, and every scenario is folded a second time from the middle on, by a joiner.
//!
//! A record line starts with how much later it is appended (`+100`, `+10` when left out, `~` without LogAppendTime).

use super::invariants::{Witness, problems};
use super::*;
use crate::ids::*;
use crate::ports::checkpoint::Durability;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;

#[derive(Default)]
struct Runner {
    cluster: Cluster,
    witness: Witness,
    now_ms: i64,
    log: Vec<(Offset, Option<i64>, Vec<u8>)>,
}

/// Words of a command: the plain ones in order, and `key=value`.
struct Words<'a> {
    plain: Vec<&'a str>,
    named: BTreeMap<&'a str, &'a str>,
}

impl<'a> Words<'a> {
    fn new(line: &'a str) -> Self {
        let (named, plain) = line.split_whitespace().partition::<Vec<_>, _>(|word| word.contains('='));
        Words { plain, named: named.into_iter().filter_map(|word| word.split_once('=')).collect() }
    }
    fn number(&self, at: usize) -> u64 {
        self.plain[at].parse().unwrap_or_else(|_| panic!("a number: {:?}", self.plain))
    }
    fn incarnation(&self, at: usize) -> Incarnation {
        Incarnation(self.number(at))
    }
    fn named(&self, key: &str, default: u64) -> u64 {
        self.named.get(key).map_or(default, |value| value.parse().unwrap())
    }
    fn region(&self, at: usize) -> RegionId {
        let (stage, partition) = self.plain[at].trim_start_matches('s').split_once('/').unwrap();
        RegionId { stage: StageId(stage.parse().unwrap()), partition: partition.parse().unwrap() }
    }
}

fn slot(text: &str) -> SlotId {
    let (incarnation, slot) = text.split_once('-').unwrap();
    SlotId { incarnation: Incarnation(incarnation.parse().unwrap()), slot: slot.parse().unwrap() }
}

/// `s0/1@7`: in epoch 7 of region 1 of stage 0. `s0/1@7:400`: with its input committed up to offset 400.
fn died_in(text: &str) -> DiedIn {
    let (region, place) = text.split_once('@').unwrap();
    let (epoch, position) = place.split_once(':').map_or((place, None), |(epoch, position)| (epoch, Some(position.parse().unwrap())));
    let words = Words { plain: vec![region], named: BTreeMap::new() };
    DiedIn { region: words.region(0), epoch: Epoch(epoch.parse().unwrap()), position }
}

impl Runner {
    fn run(&mut self, line: &str) -> String {
        let (late, command) = match line.split_once(' ') {
            Some((first, rest)) if first.starts_with('+') || first == "~" => (Some(first), rest),
            _ => (None, line),
        };
        let words = Words::new(command);
        let mut out = String::new();
        match words.plain[0] {
            "regions" => self.print_regions(&mut out),
            "members" => self.print_members(&mut out),
            "fences" => self.print_fences(&mut out),
            "takeovers" => self.print_takeovers(&mut out),
            "standing" => writeln!(out, "{:?}", self.cluster.standing(words.incarnation(1))).unwrap(),
            "standing_of" => writeln!(out, "{:?}", self.cluster.standing_of(words.incarnation(1), words.number(2))).unwrap(),
            "clock" => {
                let is_suspended = self.cluster.state.clock.suspension.is_some();
                writeln!(out, "{} ms, expiry suspended: {is_suspended}", self.cluster.log_clock_ms()).unwrap()
            }
            "rest" => {
                let (starts, balances) = (self.cluster.starts_at_ms(), self.cluster.balances_at_ms());
                writeln!(out, "at rest: {}, starts at: {starts:?}, balances at: {balances:?}", self.cluster.is_at_rest()).unwrap()
            }
            "counts" => writeln!(
                out,
                "malformed {}, ignored {}, level {}, highest {:?}",
                self.cluster.malformed(),
                self.cluster.ignored(),
                self.cluster.level(),
                self.cluster.highest_incarnation().map(|incarnation| incarnation.0)
            )
            .unwrap(),
            "end" => writeln!(
                out,
                "finished: {}, hopeless: {}, quarantined: {:?}",
                self.cluster.all_finished(),
                self.cluster.is_hopeless(),
                self.cluster.quarantined().len()
            )
            .unwrap(),
            "settings" => writeln!(out, "{:?}", self.cluster.settings()).unwrap(),
            "reports" => self.cluster.reports().for_each(|(incarnation, report)| writeln!(out, "{}: {report}", incarnation.0).unwrap()),
            "contradicting" => {
                let wrong: Vec<u64> =
                    self.cluster.members().map(|m| m.incarnation).filter(|i| self.cluster.contradicts(*i)).map(|i| i.0).collect();
                writeln!(out, "{wrong:?}").unwrap();
            }
            "trim" => writeln!(out, "{:?}", self.cluster.may_trim_to()).unwrap(),
            "hands_over" => writeln!(out, "{}", self.cluster.has_to_hand_over(words.incarnation(1))).unwrap(),
            "may_raise" => writeln!(out, "{:?}", self.cluster.may_raise_level(words.incarnation(1))).unwrap(),
            "replay" => self.replay(words.named("low", 0) as i64, &mut out),
            "during" => self.pass(&words, &mut out),
            "snapshot" => {
                let mut records = self.cluster.snapshot(words.incarnation(1));
                if let Some(from) = words.named.get("forge") {
                    for record in &mut records {
                        let ControlRecord::Snapshot { text, .. } = record else { continue };
                        *text = text.replace(from, "forged");
                    }
                }
                records.iter().for_each(|record| self.append(Some(10), &record.encode(), &mut out));
            }
            _ => {
                let payload = self.record(&words, command);
                let late_ms = match late {
                    Some("~") => None,
                    Some(text) => Some(text[1..].parse().unwrap()),
                    None => Some(10),
                };
                self.append(late_ms, &payload, &mut out);
            }
        }
        out
    }

    fn record(&self, words: &Words<'_>, command: &str) -> Vec<u8> {
        let assignment = |region: RegionId| {
            let current = self.cluster.region(region).and_then(|region| region.owner).map_or(-1, |owner| owner.assignment);
            words.named.get("assignment").map_or(current, |text| text.parse().unwrap())
        };
        let epoch = Epoch(words.named("epoch", 1));
        let record = match words.plain[0] {
            "genesis" => {
                let stage = |text: &str| {
                    let (regions, kind) = text.split_once(':').unwrap_or((text, "stateful"));
                    StageShape { regions: regions.parse().unwrap(), stateful: kind == "stateful", is_source: kind == "source" }
                };
                let stages = words.plain[1..].iter().enumerate().map(|(number, text)| (number as u32, stage(text))).collect();
                ControlRecord::Genesis(Genesis {
                    plan: Some(PlanFingerprint(1)),
                    splits: BTreeMap::new(),
                    exchange_partitions: BTreeMap::new(),
                    stages,
                })
            }
            "joined" => ControlRecord::Joined(Joined {
                incarnation: words.incarnation(1),
                nonce: words.named("nonce", 0),
                worker: words.plain[2].into(),
                slots: words.named("slots", 1) as u32,
                rack: words.named.get("rack").map(|rack| rack.to_string()),
                level: words.named("level", 1) as u32,
                plan: PlanFingerprint(1),
                settings: Settings {
                    tier: Tier::ActiveStandby,
                    followers: words.named("followers", 0) as u32,
                    heartbeat_interval_ms: words.named("heartbeat", 100),
                    expiry_ms: words.named("expiry", 350),
                    release_timeout_ms: words.named("release", 1_000),
                    workers_expected: words.named("expect", 1) as u32,
                    start_wait_ms: words.named("wait", 0),
                    balance_delay_ms: words.named("balance", 0),
                    warm_up_timeout_ms: words.named("warm", 0),
                },
                http: None,
                died_in: words.named.get("died").map(|text| text.split(',').map(died_in).collect()).unwrap_or_default(),
            }),
            "heartbeat" => {
                let at = words.named.get("at").map_or(self.cluster.applied().unwrap_or(-1), |at| at.parse().unwrap());
                let digest = words.named.get("digest").map_or(self.cluster.digest(), |digest| Digest(digest.parse().unwrap()));
                ControlRecord::Heartbeat { incarnation: words.incarnation(1), at, digest }
            }
            "left" => ControlRecord::Left { incarnation: words.incarnation(1), clean: words.plain.get(2) == Some(&"clean") },
            "drain" | "undrain" => ControlRecord::Drain {
                worker: words.plain[1].into(),
                undo: words.plain[0] == "undrain",
                incarnation: words.named.get("incarnation").map(|text| Incarnation(text.parse().unwrap())),
            },
            "ready" => ControlRecord::Ready { incarnation: words.incarnation(1), region: words.region(2), epoch },
            "released" => {
                let region = words.region(2);
                ControlRecord::Released { incarnation: words.incarnation(1), region, assignment: assignment(region), epoch }
            }
            "failed" => {
                let region = words.region(2);
                let retry = words.plain.get(3) != Some(&"for-good");
                ControlRecord::Failed {
                    incarnation: words.incarnation(1),
                    region,
                    assignment: assignment(region),
                    epoch,
                    reason: "boom".into(),
                    retry,
                }
            }
            "finished" => {
                let region = words.region(2);
                ControlRecord::Finished { incarnation: words.incarnation(1), region, assignment: assignment(region), epoch }
            }
            "begun" => {
                let reads = words.plain.last() == Some(&"reads");
                let regions = (2..words.plain.len() - usize::from(reads)).map(|at| words.region(at)).collect();
                ControlRecord::Begun { incarnation: words.incarnation(1), regions, reads }
            }
            "fenced" => ControlRecord::Fenced { incarnation: words.incarnation(1), slot: slot(words.plain[2]) },
            "confirm" => ControlRecord::Confirm { incarnation: words.incarnation(1), slot: 0 },
            "checkpoint" => {
                let durability = if words.plain[3] == "remote" { Durability::Remote } else { Durability::Local };
                ControlRecord::CheckpointDone { incarnation: words.incarnation(1), region: words.region(2), epoch, durability }
            }
            "report" => ControlRecord::Report { incarnation: words.incarnation(1), report: words.plain[2].into() },
            "raise" => ControlRecord::RaiseLevel { level: words.number(1) as u32 },
            "bytes" => return command[5..].trim_start().as_bytes().to_vec(),
            unknown => panic!("unknown command {unknown:?}"),
        };
        record.encode()
    }

    fn append(&mut self, late_ms: Option<i64>, payload: &[u8], out: &mut String) {
        self.now_ms += late_ms.unwrap_or(0);
        let append_time_ms = late_ms.map(|_| 1_000_000 + self.now_ms);
        let offset = self.log.last().map_or(0, |(offset, _, _)| offset + 1);
        self.log.push((offset, append_time_ms, payload.to_vec()));
        if let Ok(record) = serde_json::from_slice::<ControlRecord>(payload) {
            self.witness.before(&self.cluster, &record);
        }
        for effect in self.cluster.apply(Entry { offset, append_time_ms, payload }) {
            writeln!(out, "{offset}: {effect}").unwrap();
        }
        let problems: Vec<_> = problems(&self.cluster).into_iter().chain(self.witness.after(&self.cluster)).collect();
        assert!(problems.is_empty(), "after offset {offset}: {problems:?}\n{:#?}", self.cluster.state);
    }

    /// `during 400ms 1 2`: these workers' heartbeats, one per interval.
    fn pass(&mut self, words: &Words<'_>, out: &mut String) {
        let until_ms = self.now_ms + words.plain[1].trim_end_matches("ms").parse::<i64>().unwrap();
        while self.now_ms < until_ms {
            for word in 2..words.plain.len() {
                let (at, digest) = (self.cluster.applied().unwrap(), self.cluster.digest());
                let heartbeat = ControlRecord::Heartbeat { incarnation: words.incarnation(word), at, digest };
                self.append(Some(if word == 2 { 100 } else { 0 }), &heartbeat.encode(), out);
            }
        }
    }

    fn entries(&self, low: Offset) -> impl Iterator<Item = Entry<'_>> + Clone {
        let entries = self.log.iter().filter(move |(offset, _, _)| *offset >= low);
        entries.map(|(offset, append_time_ms, payload)| Entry { offset: *offset, append_time_ms: *append_time_ms, payload })
    }

    fn replay(&self, low: Offset, out: &mut String) {
        match Cluster::replay(low, self.entries(low)) {
            Ok(joiner) => {
                assert_eq!(joiner.digest(), self.cluster.digest());
                assert_eq!(joiner.state, self.cluster.state);
                assert_eq!(joiner.index, self.cluster.index);
                writeln!(out, "the same state").unwrap();
            }
            Err(error) => writeln!(out, "{error}").unwrap(),
        }
    }

    fn print_regions(&self, out: &mut String) {
        for (id, region) in self.cluster.regions() {
            write!(out, "{id}:").unwrap();
            match region.owner {
                Some(owner) => write!(out, " {} since {}", owner.slot, owner.assignment).unwrap(),
                None => write!(out, " nobody").unwrap(),
            }
            if let Some(moving) = region.moving {
                write!(out, ", to {}{}", moving.to, if moving.ready { " (ready)" } else { "" }).unwrap();
            }
            if region.owner.is_some_and(|owner| owner.release_since_ms.is_some()) {
                write!(out, ", release").unwrap();
            }
            for follower in &region.followers {
                write!(out, ", follower {}{}", follower.slot, if follower.ready { " (ready)" } else { "" }).unwrap();
                follower.replaces.iter().for_each(|slot| write!(out, " for {slot}").unwrap());
            }
            if !region.must_fence.is_empty() {
                let slots: Vec<String> = region.must_fence.iter().map(SlotId::to_string).collect();
                write!(out, ", fence {}", slots.join(" ")).unwrap();
            }
            let marks = [(region.begun, "begun"), (region.reads, "reads")];
            let notes = marks.into_iter().chain([(region.finished, "finished"), (region.quarantined.is_some(), "quarantined")]);
            notes.filter(|(holds, _)| *holds).for_each(|(_, note)| write!(out, ", {note}").unwrap());
            if region.failures > 0 {
                write!(out, ", failed {}", region.failures).unwrap();
            }
            region.deaths.iter().for_each(|deaths| write!(out, ", {} died in epoch {}", deaths.count, deaths.last.epoch).unwrap());
            region.checkpoint.iter().for_each(|(epoch, durability)| write!(out, ", checkpoint {epoch} {durability:?}").unwrap());
            out.push('\n');
        }
    }

    fn print_members(&self, out: &mut String) {
        for member in self.cluster.members() {
            let drains = if member.draining { ", drains" } else { "" };
            writeln!(out, "{} {} since {}, heard at {} ms{drains}", member.incarnation.0, member.worker, member.joined, member.heard_ms)
                .unwrap();
        }
    }

    fn print_fences(&self, out: &mut String) {
        let text = |slots: Vec<SlotId>| slots.iter().map(SlotId::to_string).collect::<Vec<_>>().join(" ");
        for member in self.cluster.members() {
            let (now, perhaps) = (self.cluster.to_fence(member.incarnation), self.cluster.may_have_to_fence(member.incarnation));
            writeln!(out, "{}: now [{}], perhaps [{}]", member.incarnation.0, text(now), text(perhaps)).unwrap();
        }
    }

    fn print_takeovers(&self, out: &mut String) {
        for takeover in self.cluster.takeovers() {
            let Takeover { region, from, to, why, offset, log_clock_ms } = takeover;
            writeln!(out, "{region}: {from} → {to} at {offset}, {log_clock_ms} ms: {why:?}").unwrap();
        }
    }
}

/// Runs a file; returns it as it should be.
fn run(text: &str) -> (String, Runner) {
    let mut runner = Runner::default();
    let mut wanted = String::new();
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        wanted.push_str(line);
        wanted.push('\n');
        if line.starts_with('#') || line.is_empty() {
            continue;
        }
        let mut out = runner.run(line);
        for command in lines.by_ref().take_while(|line| *line != "----") {
            wanted.push_str(command);
            wanted.push('\n');
            out.push_str(&if command.starts_with('#') { String::new() } else { runner.run(command) });
        }
        wanted.push_str("----\n");
        wanted.push_str(&out);
        wanted.push('\n');
        lines.by_ref().find(|line| line.is_empty());
    }
    (format!("{}\n", wanted.trim_end()), runner)
}

#[test]
fn every_scenario_says_what_happens() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("cluster/scenarios");
    let mut files: Vec<_> = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    assert!(files.len() >= 10, "only {} scenarios in {}", files.len(), folder.display());
    let mut different = Vec::new();
    for file in files {
        println!("{}", file.display());
        let text = std::fs::read_to_string(&file).unwrap();
        let (found, runner) = run(&text);
        a_joiner_in_the_middle_sees_the_same(&runner);
        if found != text {
            if std::env::var_os("STREAMSHIELD_REWRITE").is_some() {
                std::fs::write(&file, &found).unwrap();
            }
            let line = found
                .lines()
                .zip(text.lines())
                .position(|(found, text)| found != text)
                .unwrap_or(text.lines().count().min(found.lines().count()));
            different.push(format!("{}:{}: prints {:?}", file.display(), line + 1, found.lines().nth(line)));
        }
    }
    assert!(different.is_empty(), "scenarios differ (STREAMSHIELD_REWRITE=1 takes over what they print):\n{}", different.join("\n"));
}

/// Whoever starts from a snapshot of any offset ends in the same state.
fn a_joiner_in_the_middle_sees_the_same(runner: &Runner) {
    let mut cluster = Cluster::default();
    for entry in runner.entries(0) {
        cluster.apply(entry);
        let text: String = cluster
            .snapshot(Incarnation(1))
            .into_iter()
            .map(|record| match record {
                ControlRecord::Snapshot { text, .. } => text,
                other => panic!("{other:?}"),
            })
            .collect();
        let mut joiner = snapshot::decode(&text).unwrap();
        runner.entries(entry.offset + 1).for_each(|later| drop(joiner.apply(later)));
        assert_eq!(joiner.digest(), runner.cluster.digest(), "from offset {} on", entry.offset);
        assert_eq!(joiner.state, runner.cluster.state, "from offset {} on", entry.offset);
    }
}
