//! The writers' side, as small as it can be without leaving anything out.
//!
//! **Reading.** Nobody sees a worker read. A worker that acts on the log up to some record could as well have read up to there when that record was the last
//! one; so a worker's step is to catch up with the whole log, at any time or never, and a worker that lags, sleeps or hangs is one that does not take that
//! step yet. Of what it read only what it may act on matters ([`Belief`]).
//!
//! **Time.** The environment may let any worker be silent for too long, alive or not: that is the worst that clocks can do.
//!
//! **Producers.** `InitProducerId` on an id, by whomever, fences the earlier holder; a fenced worker may take its own id back at any time, and then reads
//! its confirm back before it does anything else. Between the two it waits, so they are one step.
//!
//! **Fencing.** Any member's word counts, so any of them may fence, whoever is designated.
//!
//! **Epochs.** A worker that has read a region's end knows the number of the next epoch. It stays right for as long as nobody else commits. So a slot that is able
//! to commit after a later owner has read the end breaks O-1, and two that are able to commit at once would write one number twice, E-1.
//!
//! **Leaving.** A worker says that it has left clean when all that it sealed is committed and none of its slots takes another step: by then it has
//! given up all that it believes. One that crashes may have said before that it leaves; it is fenced.
//!
//! **Log.** States of the log are the product's `Cluster`, told apart by everything that can matter later; offsets and times are left out, and one representative is
//! kept of each.
//!
//! **Left out** is what has no effect: what a worker with a fenced producer believes of regions that were assigned anew since (it has to catch up before it
//! can do anything), and records that the log ignores.

use std::collections::{BTreeMap, HashMap};
use streamshield_core::cluster::invariants::problems;
use streamshield_core::cluster::*;
use streamshield_core::ids::*;

pub const ACTORS_MAX: usize = 5;
pub const REGIONS_MAX: usize = 3;

/// What the environment may do.
#[derive(Clone, Copy, Debug)]
pub struct Scope {
    pub regions: u32,
    pub followers: u32,
    /// That are members at one time.
    pub workers: u32,
    /// Starts of workers, all together.
    pub starts: u8,
    pub crashes: u8,
    pub failures: u8,
    pub drains: u8,
    /// Workers that leave clean.
    pub leaves: u8,
    /// So many have joined and read the log before anything else happens.
    pub joins_up_front: u8,
}

/// A rule that is broken on purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutant {
    /// A new owner does not wait for the fences.
    SkipFenceWait,
    /// A slot begins after InitProducerId without having read its confirm back.
    SkipConfirm,
    /// A `released` counts, whatever assignment it names and whoever sent it.
    CountStaleReleased,
    /// When the owner dies before it has fenced its predecessor, the predecessor is forgotten.
    MustFenceForgets,
    /// `fenced` is written without having fenced.
    FencedWithoutFencing,
    /// The old owner goes on after `released`.
    GoesOnAfterRelease,
    /// A worker says that it has left clean, and goes on.
    GoesOnAfterLeaving,
}

impl Mutant {
    pub const ALL: [Mutant; 7] = [
        Mutant::SkipFenceWait,
        Mutant::SkipConfirm,
        Mutant::CountStaleReleased,
        Mutant::MustFenceForgets,
        Mutant::FencedWithoutFencing,
        Mutant::GoesOnAfterRelease,
        Mutant::GoesOnAfterLeaving,
    ];

    pub fn breaks(self) -> &'static str {
        "O-1"
    }
}

/// What a worker believes of a region that it owned when it last read the log, and what it has done about it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Belief {
    pub owned: bool,
    pub fences_open: bool,
    pub release: bool,
    /// It has read the changelog's end.
    pub taken: bool,
    /// A later owner has read it, too.
    pub superseded: bool,
    /// Which assignment it knows: 0 the latest one, 1 the one before… of those that anybody believes in.
    pub assignment: u8,
}

/// One start of one worker. Its incarnation is its index + 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Actor {
    pub running: bool,
    /// Nobody has called InitProducerId on its id since it did.
    pub is_producer_valid: bool,
    pub beliefs: [Belief; REGIONS_MAX],
}

impl Actor {
    pub fn is_able_to_commit(&self, region: usize) -> bool {
        let belief = self.beliefs[region];
        self.running && self.is_producer_valid && belief.owned && belief.taken
    }
}

/// A record that matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Event {
    /// Of a worker with a new name, or of one that is a member under an earlier incarnation.
    Join {
        actor: u8,
        replaces: Option<u8>,
    },
    /// These are silent for too long, all at one record.
    Expire {
        actors: u8,
    },
    Fenced {
        by: u8,
        actor: u8,
    },
    Ready {
        by: u8,
        region: u8,
    },
    /// By its current assignment, or by an old one.
    Released {
        by: u8,
        region: u8,
        current: bool,
    },
    Failed {
        by: u8,
        region: u8,
        current: bool,
    },
    Left {
        actor: u8,
        clean: bool,
    },
    Drain {
        actor: u8,
        undo: bool,
    },
}

/// One state of the log, with what each actor believes that has read it.
pub struct Head {
    pub cluster: Cluster,
    pub views: [[Belief; REGIONS_MAX]; ACTORS_MAX],
    /// Actors, as masks.
    pub live: u8,
    pub draining: u8,
    pub unfenced: u8,
    /// By region.
    pub waits_for_ready: [u8; REGIONS_MAX],
}

pub struct Heads {
    scope: Scope,
    mutant: Option<Mutant>,
    pub all: Vec<Head>,
    known: HashMap<Vec<u8>, u32>,
    memo: HashMap<(u32, Event), (u32, u8)>,
    pub reassignments: u64,
}

pub fn incarnation(actor: u8) -> Incarnation {
    Incarnation(u64::from(actor) + 1)
}

fn actor_of(incarnation: Incarnation) -> u8 {
    incarnation.0 as u8 - 1
}

pub fn slot_of(actor: u8) -> SlotId {
    SlotId { incarnation: incarnation(actor), slot: 0 }
}

pub fn region_id(region: u8) -> RegionId {
    RegionId { stage: StageId(0), partition: u32::from(region) }
}

impl Heads {
    pub fn new(scope: Scope, mutant: Option<Mutant>) -> (Heads, u32) {
        let mut heads = Heads { scope, mutant, all: Vec::new(), known: HashMap::new(), memo: HashMap::new(), reassignments: 0 };
        let stages = [(0, StageShape { regions: scope.regions, stateful: true, is_source: true })].into();
        let genesis = ControlRecord::Genesis(Genesis {
            plan: Some(PlanFingerprint(1)),
            splits: BTreeMap::new(),
            exchange_partitions: BTreeMap::new(),
            stages,
        });
        let mut cluster = Cluster::default();
        append(&mut cluster, 0, &genesis);
        let first = heads.intern(cluster).expect("a genesis breaks nothing");
        (heads, first)
    }

    /// The head after an event, and the regions that were assigned anew by it, as a mask.
    pub fn after(&mut self, from: u32, event: Event) -> Result<(u32, u8), String> {
        if let Some(known) = self.memo.get(&(from, event)) {
            return Ok(*known);
        }
        let before = &self.all[from as usize].cluster;
        let records = self.records(before, event);
        let mut cluster = before.clone();
        records.iter().for_each(|(late_ms, record)| append(&mut cluster, *late_ms, record));
        self.check_joiner(before, &cluster, &records)?;
        check_foretold_fencers(before, &cluster, event)?;
        let mut reassigned = 0;
        for region in 0..self.scope.regions as u8 {
            let owner = |cluster: &Cluster| cluster.region(region_id(region)).and_then(|region| region.owner).map(|owner| owner.assignment);
            if owner(before) != owner(&cluster) {
                reassigned |= 1 << region;
                self.reassignments += 1;
            }
        }
        let to = self.intern(cluster)?;
        self.memo.insert((from, event), (to, reassigned));
        Ok((to, reassigned))
    }

    fn records(&self, cluster: &Cluster, event: Event) -> Vec<(i64, ControlRecord)> {
        let nobody = || ControlRecord::Drain { worker: "nobody".into(), undo: false, incarnation: None };
        let assignment = |region: u8, current: bool| {
            let owner = cluster.region(region_id(region)).and_then(|region| region.owner);
            owner.filter(|_| current).map_or(-1, |owner| owner.assignment)
        };
        let epoch = Epoch(1);
        let record = match event {
            Event::Join { actor, replaces } => ControlRecord::Joined(Joined {
                incarnation: incarnation(actor),
                nonce: 0,
                worker: worker_of(cluster, replaces.unwrap_or(actor)),
                slots: 1,
                rack: None,
                level: FEATURE_LEVEL,
                plan: PlanFingerprint(1),
                settings: Settings {
                    tier: Tier::Checkpoints,
                    followers: self.scope.followers,
                    heartbeat_interval_ms: 100,
                    expiry_ms: 150,
                    release_timeout_ms: i64::MAX as u64,
                    workers_expected: 1,
                    start_wait_ms: 0,
                    balance_delay_ms: 0,
                    warm_up_timeout_ms: 0,
                },
                http: None,
                died_in: Vec::new(),
            }),
            // The others are heard 100 ms after the silent ones, and once more when 200 ms are over.
            Event::Expire { actors } => {
                let others: Vec<_> =
                    cluster.members().map(|member| member.incarnation).filter(|other| actors >> actor_of(*other) & 1 == 0).collect();
                let heartbeats =
                    others.iter().map(|other| (0, ControlRecord::Heartbeat { incarnation: *other, at: -1, digest: Digest(0) }));
                let mut records = vec![(100, nobody())];
                records.extend(heartbeats.clone());
                records.push((100, nobody()));
                records.extend(heartbeats);
                if self.mutant == Some(Mutant::MustFenceForgets) {
                    records.extend(self.forgotten(cluster, actors, &others));
                }
                return records;
            }
            Event::Fenced { by, actor } => ControlRecord::Fenced { incarnation: incarnation(by), slot: slot_of(actor) },
            Event::Ready { by, region } => ControlRecord::Ready { incarnation: incarnation(by), region: region_id(region), epoch },
            Event::Released { by, region, current } => {
                let owner = cluster.region(region_id(region)).and_then(|region| region.owner);
                match owner.filter(|_| self.mutant == Some(Mutant::CountStaleReleased)) {
                    Some(owner) => ControlRecord::Released {
                        incarnation: owner.slot.incarnation,
                        region: region_id(region),
                        assignment: owner.assignment,
                        epoch,
                    },
                    None => ControlRecord::Released {
                        incarnation: incarnation(by),
                        region: region_id(region),
                        assignment: assignment(region, current),
                        epoch,
                    },
                }
            }
            Event::Failed { by, region, current } => ControlRecord::Failed {
                incarnation: incarnation(by),
                region: region_id(region),
                assignment: assignment(region, current),
                epoch,
                reason: "failed".into(),
                retry: true,
            },
            Event::Left { actor, clean } => ControlRecord::Left { incarnation: incarnation(actor), clean },
            Event::Drain { actor, undo } => ControlRecord::Drain { worker: worker_of(cluster, actor), undo, incarnation: None },
        };
        vec![(0, record)]
    }

    /// What makes the product forget the slots that the expired ones had still to fence.
    fn forgotten(&self, cluster: &Cluster, expired: u8, others: &[Incarnation]) -> Vec<(i64, ControlRecord)> {
        let Some(by) = others.first() else { return Vec::new() };
        let owned =
            cluster.regions().filter(|(_, region)| region.owner.is_some_and(|owner| expired >> actor_of(owner.slot.incarnation) & 1 == 1));
        owned.flat_map(|(_, region)| region.must_fence.clone()).map(|slot| (0, ControlRecord::Fenced { incarnation: *by, slot })).collect()
    }

    /// C-1: whoever starts from a snapshot of the state before sees the same after.
    fn check_joiner(&self, before: &Cluster, after: &Cluster, records: &[(i64, ControlRecord)]) -> Result<(), String> {
        let at = before.applied().expect("there is a genesis");
        let snapshot: Vec<Vec<u8>> = before.snapshot(Incarnation(1)).iter().map(ControlRecord::encode).collect();
        let mut first = before.clone();
        snapshot.iter().for_each(|payload| append_bytes(&mut first, 0, payload));
        let mut log: Vec<(Offset, i64, Vec<u8>)> = Vec::new();
        let mut time_ms = TIME_MS + time_of(before);
        for (late_ms, payload) in
            snapshot.into_iter().map(|payload| (0, payload)).chain(records.iter().map(|(late_ms, record)| (*late_ms, record.encode())))
        {
            time_ms += late_ms;
            log.push((at + 1 + log.len() as i64, time_ms, payload));
        }
        records.iter().for_each(|(late_ms, record)| append(&mut first, *late_ms, record));
        let entries = log.iter().map(|(offset, time_ms, payload)| Entry { offset: *offset, append_time_ms: Some(*time_ms), payload });
        let joiner = Cluster::replay(at + 1, entries).map_err(|error| format!("C-1: {error}"))?;
        if joiner.digest() != first.digest() {
            return Err(format!("C-1: a joiner at {at} sees {joiner:#?}, the others {after:#?}"));
        }
        Ok(())
    }

    fn intern(&mut self, cluster: Cluster) -> Result<u32, String> {
        if let Some(problem) = problems(&cluster).first() {
            return Err(problem.to_string());
        }
        let key = key(&cluster);
        if let Some(known) = self.known.get(&key) {
            return Ok(*known);
        }
        let number = self.all.len() as u32;
        self.known.insert(key, number);
        let mut head = Head { cluster, views: Default::default(), live: 0, draining: 0, unfenced: 0, waits_for_ready: [0; REGIONS_MAX] };
        for member in head.cluster.members() {
            let actor = actor_of(member.incarnation);
            head.live |= 1 << actor;
            head.draining |= u8::from(member.draining) << actor;
            for owned in head.cluster.owned(slot_of(actor)) {
                let belief = &mut head.views[actor as usize][owned.region.partition as usize];
                (belief.owned, belief.fences_open, belief.release) = (true, owned.fences_open, owned.release);
            }
        }
        for (slot, _) in head.cluster.unfenced() {
            head.unfenced |= 1 << actor_of(slot.incarnation);
        }
        for (id, region) in head.cluster.regions() {
            let cold = region.followers.iter().filter(|follower| !follower.ready).map(|follower| follower.slot);
            for slot in cold.chain(region.moving.filter(|moving| !moving.ready).map(|moving| moving.to)) {
                head.waits_for_ready[id.partition as usize] |= 1 << actor_of(slot.incarnation);
            }
        }
        self.all.push(head);
        Ok(number)
    }
}

fn worker_of(cluster: &Cluster, actor: u8) -> String {
    cluster.member(incarnation(actor)).map_or_else(|| actor.to_string(), |member| member.worker.clone())
}

const TIME_MS: i64 = 1_000_000;

fn time_of(cluster: &Cluster) -> i64 {
    cluster.log_clock_ms() as i64
}

/// Every step of the model's time is at most a heartbeat interval, so append time and log clock go together.
fn append(cluster: &mut Cluster, late_ms: i64, record: &ControlRecord) {
    append_bytes(cluster, late_ms, &record.encode());
}

fn append_bytes(cluster: &mut Cluster, late_ms: i64, payload: &[u8]) {
    let offset = cluster.applied().map_or(0, |offset| offset + 1);
    cluster.apply(Entry { offset, append_time_ms: Some(TIME_MS + time_of(cluster) + late_ms), payload });
}

/// Whom a worker was told that it might have to fence is whom it has to fence.
fn check_foretold_fencers(before: &Cluster, after: &Cluster, event: Event) -> Result<(), String> {
    let Event::Expire { actors } = event else { return Ok(()) };
    if actors.count_ones() != 1 {
        return Ok(());
    }
    let slot = slot_of(actors.trailing_zeros() as u8);
    for member in after.members().map(|member| member.incarnation) {
        let (foretold, has_to) = (before.may_have_to_fence(member).contains(&slot), after.to_fence(member).contains(&slot));
        // A mutant forgets slots.
        if foretold != has_to && after.unfenced().any(|(unfenced, _)| unfenced == slot) {
            return Err(format!("foretold: {member:?} was {}told that it might have to fence {slot}", if foretold { "" } else { "not " }));
        }
    }
    Ok(())
}

/// All of the log's state that can matter later, without offsets and times.
fn key(cluster: &Cluster) -> Vec<u8> {
    const NONE: u8 = 0xff;
    let actor = |slot: SlotId| actor_of(slot.incarnation);
    let mut key = vec![cluster.highest_incarnation().map_or(NONE, actor_of)];
    for member in cluster.members() {
        key.extend([actor_of(member.incarnation), u8::from(member.draining)]);
    }
    key.push(NONE);
    for (_, region) in cluster.regions() {
        let release = region.owner.is_some_and(|owner| owner.release_since_ms.is_some());
        key.extend([region.owner.map_or(NONE, |owner| actor(owner.slot)), u8::from(release)]);
        key.push(region.lost.map_or(NONE, |lost| actor(lost.from) * 8 + lost.why as u8));
        key.extend(region.moving.map_or([NONE, 0], |moving| [actor(moving.to), u8::from(moving.ready)]));
        for follower in &region.followers {
            key.extend([actor(follower.slot), u8::from(follower.ready), follower.replaces.map_or(NONE, actor)]);
        }
        key.push(NONE);
        key.push(region.must_fence.iter().fold(0, |mask, slot| mask | 1 << actor(*slot)));
        key.extend([u8::from(region.quarantined.is_some()), region.failures as u8, u8::from(region.finished)]);
    }
    key
}
