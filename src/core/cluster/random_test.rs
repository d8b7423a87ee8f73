//! Any bytes and any records from anybody, in any order: nothing panics, all invariants hold after every record, and whoever starts from a snapshot sees the same.
//!
//! A failing case is printed by proptest with the seed that replays it.

use super::invariants::{Witness, problems};
use super::*;
use crate::ids::*;
use crate::ports::checkpoint::Durability;
use proptest::prelude::*;
use std::collections::BTreeMap;

fn incarnation() -> impl Strategy<Value = Incarnation> {
    (1u64..9).prop_map(Incarnation)
}

fn slot() -> impl Strategy<Value = SlotId> {
    (incarnation(), 0u32..3).prop_map(|(incarnation, slot)| SlotId { incarnation, slot })
}

fn region() -> impl Strategy<Value = RegionId> {
    (0u32..2, 0u32..4).prop_map(|(stage, partition)| RegionId { stage: StageId(stage), partition })
}

fn joined() -> impl Strategy<Value = ControlRecord> {
    let rack = prop_oneof![Just(None), Just(Some("x".to_string())), Just(Some("y".to_string()))];
    // Few epochs, so that some die again and again in the same one.
    let died_in = (region(), 1u64..3, prop::option::of(0i64..2));
    let died_in = died_in.prop_map(|(region, epoch, position)| DiedIn { region, epoch: Epoch(epoch), position });
    let died_in = prop::collection::vec(died_in, 0..4);
    (incarnation(), 0u64..2, 0u8..5, 0u32..4, rack, 1u32..3, 0u32..3, died_in).prop_map(
        |(incarnation, nonce, worker, slots, rack, level, followers, died_in)| {
            ControlRecord::Joined(Joined {
                incarnation,
                nonce,
                worker: format!("worker-{worker}"),
                slots,
                rack,
                level,
                plan: PlanFingerprint(1),
                settings: Settings {
                    tier: Tier::ActiveActive,
                    followers,
                    heartbeat_interval_ms: 100,
                    expiry_ms: 350,
                    release_timeout_ms: 1_000,
                    workers_expected: 2,
                    start_wait_ms: 300,
                    balance_delay_ms: 200,
                    warm_up_timeout_ms: 500,
                },
                http: None,
                died_in,
            })
        },
    )
}

fn genesis() -> impl Strategy<Value = ControlRecord> {
    prop::collection::vec((0u32..5, any::<bool>()), 1..3).prop_map(|stages| {
        let shape = |(regions, is_source): (u32, bool)| StageShape { regions, stateful: !is_source, is_source };
        let stages = stages.into_iter().enumerate().map(|(number, stage)| (number as u32, shape(stage))).collect();
        ControlRecord::Genesis(Genesis {
            plan: Some(PlanFingerprint(1)),
            splits: BTreeMap::new(),
            exchange_partitions: BTreeMap::new(),
            stages,
        })
    })
}

/// What may be said by somebody; assignments are filled in by [`Fold::say`].
#[derive(Clone, Debug)]
enum Say {
    Record(ControlRecord),
    /// By the owner, with the assignment that is in force.
    ByOwner(RegionId, u8),
    /// By whoever follows it.
    ReadyByFollower(RegionId),
    /// By the designated fencer.
    FencedByFencer,
    Bytes(Vec<u8>),
}

fn say() -> impl Strategy<Value = Say> {
    let epoch = Epoch(7);
    let record = prop_oneof![
        2 => genesis(),
        8 => joined(),
        12 => (incarnation(), -1i64..40, any::<u64>()).prop_map(|(incarnation, at, digest)| ControlRecord::Heartbeat { incarnation, at, digest: Digest(digest) }),
        1 => (incarnation(), any::<bool>()).prop_map(|(incarnation, clean)| ControlRecord::Left { incarnation, clean }),
        2 => (0u8..5, any::<bool>(), prop::option::of(incarnation())).prop_map(|(worker, undo, incarnation)| ControlRecord::Drain { worker: format!("worker-{worker}"), undo, incarnation }),
        4 => (incarnation(), region()).prop_map(move |(incarnation, region)| ControlRecord::Ready { incarnation, region, epoch }),
        3 => (incarnation(), region(), -1i64..60).prop_map(move |(incarnation, region, assignment)| ControlRecord::Released { incarnation, region, assignment, epoch }),
        2 => (incarnation(), region(), -1i64..60, any::<bool>()).prop_map(move |(incarnation, region, assignment, retry)| ControlRecord::Failed { incarnation, region, assignment, epoch, reason: "é".repeat(700), retry }),
        1 => (incarnation(), region(), -1i64..60).prop_map(move |(incarnation, region, assignment)| ControlRecord::Finished { incarnation, region, assignment, epoch }),
        2 => (incarnation(), region(), any::<bool>()).prop_map(|(incarnation, region, reads)| ControlRecord::Begun { incarnation, regions: vec![region], reads }),
        3 => (incarnation(), slot()).prop_map(|(incarnation, slot)| ControlRecord::Fenced { incarnation, slot }),
        1 => (incarnation(), region(), 0u64..5).prop_map(|(incarnation, region, epoch)| ControlRecord::CheckpointDone { incarnation, region, epoch: Epoch(epoch), durability: Durability::Local }),
        1 => (incarnation(), ".*").prop_map(|(incarnation, report)| ControlRecord::Report { incarnation, report }),
        1 => (0u32..4).prop_map(|level| ControlRecord::RaiseLevel { level }),
        1 => (incarnation(), 0i64..20, 0u32..3, 0u32..3, ".*").prop_map(|(incarnation, at, part, parts, text)| ControlRecord::Snapshot { incarnation, at, part, parts, text }),
    ];
    prop_oneof![
        30 => record.prop_map(Say::Record),
        8 => (region(), 0u8..4).prop_map(|(region, what)| Say::ByOwner(region, what)),
        6 => region().prop_map(Say::ReadyByFollower),
        3 => Just(Say::FencedByFencer),
        1 => prop::collection::vec(any::<u8>(), 0..40).prop_map(Say::Bytes),
    ]
}

fn append_time() -> impl Strategy<Value = Option<i64>> {
    prop_oneof![1 => Just(None), 20 => (0i64..150).prop_map(Some), 1 => (-1_000i64..5_000).prop_map(Some), 1 => any::<i64>().prop_map(Some)]
}

#[derive(Default)]
struct Fold {
    cluster: Cluster,
    witness: Witness,
    time_ms: i64,
    log: Vec<(Option<i64>, Vec<u8>)>,
}

impl Fold {
    fn say(&self, say: &Say) -> Vec<u8> {
        let owner = |region: RegionId| self.cluster.region(region).and_then(|region| region.owner);
        let (epoch, reason) = (Epoch(9), String::new());
        let nothing = ControlRecord::RaiseLevel { level: 0 };
        let record = match say {
            Say::Record(record) => record.clone(),
            Say::ByOwner(region, what) => owner(*region).map_or(nothing, |owner| {
                let (incarnation, region, assignment) = (owner.slot.incarnation, *region, owner.assignment);
                match what {
                    0 => ControlRecord::Failed { incarnation, region, assignment, epoch, reason, retry: true },
                    1 => ControlRecord::Finished { incarnation, region, assignment, epoch },
                    _ => ControlRecord::Released { incarnation, region, assignment, epoch },
                }
            }),
            Say::ReadyByFollower(region) => {
                let known = self.cluster.region(*region);
                let slots = known.into_iter().flat_map(|region| {
                    region.moving.map(|moving| moving.to).into_iter().chain(region.followers.iter().map(|follower| follower.slot))
                });
                slots.last().map_or(nothing, |slot| ControlRecord::Ready { incarnation: slot.incarnation, region: *region, epoch })
            }
            Say::FencedByFencer => {
                let fencer = self.cluster.unfenced().find_map(|(slot, fencer)| Some((slot, fencer?)));
                fencer.map_or(nothing, |(slot, incarnation)| ControlRecord::Fenced { incarnation, slot })
            }
            Say::Bytes(bytes) => return bytes.clone(),
        };
        record.encode()
    }

    fn append(&mut self, say: &Say, late_ms: Option<i64>) {
        let payload = self.say(say);
        self.time_ms = self.time_ms.saturating_add(late_ms.unwrap_or(0));
        let append_time_ms = late_ms.map(|_| self.time_ms);
        if let Ok(record) = serde_json::from_slice::<ControlRecord>(&payload) {
            self.witness.before(&self.cluster, &record);
        }
        self.cluster.apply(Entry { offset: self.log.len() as i64, append_time_ms, payload: &payload });
        self.log.push((append_time_ms, payload));
    }

    fn entries(&self) -> impl Iterator<Item = Entry<'_>> + Clone {
        self.log.iter().enumerate().map(|(offset, (append_time_ms, payload))| Entry {
            offset: offset as i64,
            append_time_ms: *append_time_ms,
            payload,
        })
    }
}

/// Whom a worker is told to be ready for is whom it has to fence, should nothing else change.
fn foretold_fencers_are_right(cluster: &Cluster) -> Result<(), TestCaseError> {
    for gone in cluster.members().map(|member| member.incarnation) {
        let owns = |region: &Region| region.owner.is_some_and(|owner| owner.slot.incarnation == gone);
        // What is deadly goes to nobody if its owner is expired; one that leaves was alive, and it is tried again.
        let owns_deadly = cluster.regions().any(|(_, region)| region.is_deadly() && owns(region));
        for is_expired in [false, true] {
            let mut later = cluster.clone();
            let record = match is_expired {
                true => {
                    later.change_member(gone, |member| member.heard_ms = 0);
                    ControlRecord::RaiseLevel { level: 0 }
                }
                false => ControlRecord::Left { incarnation: gone, clean: false },
            };
            let offset = cluster.applied().map_or(0, |offset| offset + 1);
            later.apply(Entry { offset, append_time_ms: None, payload: &record.encode() });
            if later.member(gone).is_some() || later.members().len() + 1 < cluster.members().len() || (owns_deadly && !is_expired) {
                // Nobody can be expired yet; or the record ended a suspension of expiry, and others went as well.
                continue;
            }
            for member in later.members().map(|member| member.incarnation) {
                let foretold: Vec<SlotId> = cluster.may_have_to_fence(member).into_iter().filter(|slot| slot.incarnation == gone).collect();
                let has_to: Vec<SlotId> = later.to_fence(member).into_iter().filter(|slot| slot.incarnation == gone).collect();
                prop_assert_eq!(foretold, has_to, "{:?} if {:?} were gone, expired: {}", member, gone, is_expired);
            }
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn whatever_is_said_the_invariants_hold_and_joiners_see_the_same(says in prop::collection::vec((say(), append_time()), 1..90), cut in 0usize..90) {
        let mut fold = Fold::default();
        let mut joiner = None;
        for (number, (say, late_ms)) in says.iter().enumerate() {
            fold.append(say, *late_ms);
            let found: Vec<_> = problems(&fold.cluster).into_iter().chain(fold.witness.after(&fold.cluster)).collect();
            prop_assert!(found.is_empty(), "after {:?}: {:?}", say, found);
            if number == cut {
                foretold_fencers_are_right(&fold.cluster)?;
                let text: String = fold.cluster.snapshot(Incarnation(1)).into_iter().filter_map(|record| match record {
                    ControlRecord::Snapshot { text, .. } => Some(text),
                    _ => None,
                }).collect();
                joiner = Some(snapshot::decode(&text).expect("an own snapshot"));
            }
        }
        let again = Cluster::replay(0, fold.entries()).expect("the whole log");
        prop_assert_eq!(again.digest(), fold.cluster.digest());
        prop_assert_eq!(&again, &fold.cluster);
        if let Some(mut joiner) = joiner {
            for entry in fold.entries() {
                joiner.apply(entry);
            }
            prop_assert_eq!(joiner.digest(), fold.cluster.digest());
            prop_assert_eq!(&joiner.state, &fold.cluster.state);
        }
    }

    #[test]
    fn any_text_as_a_snapshot_is_refused_or_right(text in ".*") {
        prop_assert!(snapshot::decode(&text).is_err());
    }
}
