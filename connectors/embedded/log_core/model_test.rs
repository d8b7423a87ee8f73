//! Random histories against a model that knows nothing of logs: it keeps, per record, which transaction it belongs to and how
//! that ended, and says from this alone who may see what.

use std::collections::BTreeMap;

use proptest::prelude::*;
use proptest::test_runner::{RngSeed, TestRunner};

use super::test_kit::*;
use super::*;

const PRODUCERS: usize = 3;
const PARTITIONS: i32 = 2;
const IDS: [&str; PRODUCERS] = ["x", "y", "z"];
const TIMEOUT_MS: i64 = 1000;

#[derive(Clone, Debug)]
enum Step {
    Write { producer: usize, partition: i32, count: usize },
    WritePlain { partition: i32 },
    Repeat { producer: usize },
    End { producer: usize, commit: bool },
    Fence { producer: usize },
    Wait { ms: i64 },
    Restart,
    Trim { partition: i32, share: u8 },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let producer = 0..PRODUCERS;
    let partition = 0..PARTITIONS;
    let step = prop_oneof![
        6 => (producer.clone(), partition.clone(), 1..4usize).prop_map(|(producer, partition, count)| Step::Write { producer, partition, count }),
        2 => partition.clone().prop_map(|partition| Step::WritePlain { partition }),
        1 => producer.clone().prop_map(|producer| Step::Repeat { producer }),
        3 => (producer.clone(), any::<bool>()).prop_map(|(producer, commit)| Step::End { producer, commit }),
        1 => producer.prop_map(|producer| Step::Fence { producer }),
        1 => (1..700i64).prop_map(|ms| Step::Wait { ms }),
        1 => Just(Step::Restart),
        1 => (partition, any::<u8>()).prop_map(|(partition, share)| Step::Trim { partition, share }),
    ];
    prop::collection::vec(step, 1..120)
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Fate {
    Plain,
    Open,
    Committed,
    Aborted,
}

#[derive(Debug)]
struct ModelProducer {
    granted: (i64, i16),
    /// The transaction's number and start, while one is open.
    open: Option<(usize, i64)>,
    sequences: BTreeMap<i32, i32>,
    last: Option<(i32, bytes::Bytes, i64)>,
}

/// The model beside the core that it judges.
struct World {
    core: LogCore,
    now_ms: i64,
    fates: Vec<Fate>,
    /// Per partition: offset, key, transaction.
    records: Vec<Vec<(i64, String, usize)>>,
    starts: Vec<i64>,
    producers: Vec<ModelProducer>,
    journal: Vec<Event>,
}

impl World {
    fn new() -> World {
        let mut core = core();
        core.create_topic(TOPIC, PARTITIONS, BTreeMap::new()).expect("a new topic");
        let producers = IDS.map(|id| core.init_producer_id(NOW_MS, Some(id), TIMEOUT_MS, None).expect("granted"));
        World {
            now_ms: NOW_MS,
            fates: vec![Fate::Plain],
            records: vec![Vec::new(); PARTITIONS as usize],
            starts: vec![0; PARTITIONS as usize],
            producers: producers.map(|granted| ModelProducer { granted, open: None, sequences: BTreeMap::new(), last: None }).into(),
            journal: core.take_events(),
            core,
        }
    }

    fn run(&mut self, step: &Step) {
        match *step {
            Step::Write { producer, partition, count } => self.write(producer, partition, count),
            Step::WritePlain { partition } => {
                let key = format!("plain{}", self.records[partition as usize].len());
                let batch = batch_of(NOBODY, self.now_ms, &[(&key, Some("v"))]);
                let produced = self.core.produce(self.now_ms, None, TOPIC, partition, &batch).expect("appended");
                self.records[partition as usize].push((produced.base_offset, key, 0));
            }
            Step::Repeat { producer } => self.repeat(producer),
            Step::End { producer, commit } => {
                let open = self.producers[producer].open.take();
                let ended = self.core.end_transaction(self.now_ms, IDS[producer], self.producers[producer].granted, commit);
                if let Some((number, _)) = open {
                    assert_eq!(ended, Ok(()));
                    self.fates[number] = if commit { Fate::Committed } else { Fate::Aborted };
                }
            }
            Step::Fence { producer } => self.fence(producer),
            Step::Wait { ms } => self.wait(ms),
            Step::Restart => self.restart(),
            Step::Trim { partition, share } => {
                let end = self.core.partition(TOPIC, partition).expect("it exists").high_watermark();
                let to = end * i64::from(share) / 255;
                let start = self.core.trim(TOPIC, partition, to).expect("in range");
                let known = &mut self.starts[partition as usize];
                *known = (*known).max(to);
                assert_eq!(start, *known);
            }
        }
        self.journal.extend(self.core.take_events());
    }

    fn write(&mut self, who: usize, partition: i32, count: usize) {
        let producer = &mut self.producers[who];
        let (number, _) = *producer.open.get_or_insert_with(|| {
            self.fates.push(Fate::Open);
            (self.fates.len() - 1, self.now_ms)
        });
        let added = self.core.add_partitions_to_transaction(self.now_ms, IDS[who], producer.granted, &[(TOPIC.to_owned(), partition)]);
        assert_eq!(added, Ok(()));
        let sequence = producer.sequences.entry(partition).or_insert(0);
        let sender = Sender { id: producer.granted.0, epoch: producer.granted.1, sequence: *sequence, is_transactional: true };
        let keys: Vec<_> = (0..count).map(|at| format!("{number}.{sequence}.{at}")).collect();
        let records: Vec<_> = keys.iter().map(|key| (key.as_str(), Some("v"))).collect();
        let batch = batch_of(sender, self.now_ms, &records);
        *sequence += count as i32;
        let produced = self.core.produce(self.now_ms, Some(IDS[who]), TOPIC, partition, &batch).expect("appended");
        producer.last = Some((partition, batch, produced.base_offset));
        for (offset, key) in (produced.base_offset..).zip(keys) {
            self.records[partition as usize].push((offset, key, number));
        }
    }

    /// A batch that comes twice is answered alike, and is in the log once.
    fn repeat(&mut self, who: usize) {
        let producer = &self.producers[who];
        if let (Some((partition, batch, base_offset)), Some(_)) = (&producer.last, producer.open) {
            let answer = self.core.produce(self.now_ms, Some(IDS[who]), TOPIC, *partition, batch);
            assert!(
                answer.map(|produced| produced.base_offset) == Ok(*base_offset) || answer == Err(LogError::InvalidTransactionState),
                "{answer:?}"
            );
        }
    }

    fn fence(&mut self, who: usize) {
        let old = self.producers[who].granted;
        let granted = self.core.init_producer_id(self.now_ms, Some(IDS[who]), TIMEOUT_MS, None).expect("granted");
        assert!(granted.1 > old.1);
        assert_eq!(self.core.end_transaction(self.now_ms, IDS[who], old, true), Err(LogError::ProducerFenced));
        self.aborted(who);
        self.producers[who].granted = granted;
    }

    fn aborted(&mut self, who: usize) {
        let producer = &mut self.producers[who];
        if let Some((number, _)) = producer.open.take() {
            self.fates[number] = Fate::Aborted;
        }
        producer.sequences.clear();
        producer.last = None;
    }

    /// Transactions that ran out of time are aborted; their producers take the id again.
    fn wait(&mut self, ms: i64) {
        self.now_ms += ms;
        self.core.tick(self.now_ms);
        for (who, id) in IDS.into_iter().enumerate() {
            let Some((_, since_ms)) = self.producers[who].open else { continue };
            if self.now_ms - since_ms > TIMEOUT_MS {
                let granted = self.producers[who].granted;
                assert_eq!(self.core.end_transaction(self.now_ms, id, granted, true), Err(LogError::ProducerFenced));
                self.fence(who);
            }
        }
    }

    /// What the journal says is what was served.
    fn restart(&mut self) {
        self.journal.extend(self.core.take_events());
        let mut replayed = core();
        self.journal.iter().for_each(|event| replayed.apply(event));
        assert_eq!(replayed.snapshot(), self.core.snapshot());
        let mut restored = core();
        self.core.snapshot().iter().for_each(|event| restored.apply(event));
        self.core = restored;
        self.journal = self.core.snapshot();
    }

    fn check(&self) {
        for (partition, records) in (0..).zip(&self.records) {
            let is_open = |number: &usize| self.fates[*number] == Fate::Open;
            let log = self.core.partition(TOPIC, partition).expect("it exists");
            let first_open = records.iter().find(|(_, _, number)| is_open(number)).map(|(offset, _, _)| *offset);
            let start = self.starts[partition as usize];
            let stable = first_open.unwrap_or_else(|| log.high_watermark()).max(start);
            assert_eq!(log.last_stable_offset(), stable, "last stable offset of partition {partition}");
            let left = || records.iter().filter(move |(offset, _, _)| *offset >= start);
            let is_committed = |(offset, _, number): &&(i64, String, usize)| {
                *offset < stable && matches!(self.fates[*number], Fate::Plain | Fate::Committed)
            };
            let committed: Vec<_> = left().filter(is_committed).map(|(offset, key, _)| (*offset, key.clone())).collect();
            let all: Vec<_> = left().map(|(offset, key, _)| (*offset, key.clone())).collect();
            for bytes_max in [1, 200, usize::MAX] {
                assert_eq!(visible(&self.core, partition, Isolation::ReadCommitted, bytes_max), committed, "committed, {bytes_max} bytes");
                assert_eq!(visible(&self.core, partition, Isolation::ReadUncommitted, bytes_max), all, "all, {bytes_max} bytes");
            }
        }
    }
}

/// Repeats a run: the seed that it printed.
const SEED_VARIABLE: &str = "LOG_CORE_SEED";

#[test]
fn readers_see_what_the_model_says() {
    let given = std::env::var(SEED_VARIABLE).ok().and_then(|seed| seed.parse().ok());
    let seed: u64 = given.unwrap_or_else(|| std::time::UNIX_EPOCH.elapsed().unwrap_or_default().as_nanos() as u64);
    println!("{SEED_VARIABLE}={seed} repeats this run");
    let config = ProptestConfig { cases: 400, failure_persistence: None, rng_seed: RngSeed::Fixed(seed), ..ProptestConfig::default() };
    let outcome = TestRunner::new(config).run(&steps(), |steps| {
        let mut world = World::new();
        for step in &steps {
            world.run(step);
            world.check();
        }
        Ok(())
    });
    if let Err(failure) = outcome {
        panic!("{SEED_VARIABLE}={seed}: {failure}");
    }
}
