//! Every fault of the catalogue, once, on three real brokers, three workers and an S3 server, then on an HDFS: each leaves evidence or says why it can't be.
//!
//! Takes about a quarter of an hour: `cargo test --release -p streamshield-faults -p unify --test faults -- --ignored --nocapture tour`.
//! `STREAMSHIELD_TOUR=net.` chooses by the beginning of the name.

use super::support::{Rig, has_kafka};
use anyhow::{Result, ensure};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use streamshield_faults::{DataFeed, Family, FaultError, FaultSpec, Fired, Parameters, StoreKind, Topology, catalogue};

/// For faults that last; longer than a worker's expiry.
const LASTS: Duration = Duration::from_secs(6);
/// Nobody to aim at may be a matter of a moment.
const TRIES: usize = 20;

/// Stands for a workload: it counts.
#[derive(Default)]
struct Counting(AtomicU64);

impl DataFeed for Counting {
    fn begin(&self, fault: &str, _: &Parameters) -> Result<Fired, FaultError> {
        Ok(Fired { hit: vec!["input".into()], evidence: format!("{fault} begins"), count: 0 })
    }

    fn end(&self, fault: &str) -> Result<Fired, FaultError> {
        Ok(Fired { hit: vec!["input".into()], evidence: format!("{fault} ends"), count: self.0.fetch_add(1, Ordering::Relaxed) + 1 })
    }
}

enum Outcome {
    Fired(u64, String),
    NotPossible(String),
    Failed(String),
}

fn visit(rig: &mut Rig, spec: &FaultSpec) -> Result<Outcome> {
    let mut fault = rig.build(spec.name, &[], None)?;
    let mut tries = 0;
    let injected = loop {
        match fault.inject(&rig.stage) {
            Err(FaultError::NoTarget(_)) if tries < TRIES => {
                tries += 1;
                std::thread::sleep(Duration::from_millis(500));
            }
            outcome => break outcome,
        }
    };
    match injected {
        Ok(at_first) => {
            let at_last = if spec.lasts {
                std::thread::sleep(LASTS);
                match fault.undo(&rig.stage) {
                    Ok(fired) => fired,
                    Err(error) => return Ok(Outcome::Failed(format!("not undone: {error}"))),
                }
            } else {
                Fired::default()
            };
            let evidence = [at_first.evidence, at_last.evidence].into_iter().filter(|text| !text.is_empty()).collect::<Vec<_>>();
            Ok(Outcome::Fired(at_first.count.max(at_last.count), evidence.join(" · ")))
        }
        Err(FaultError::NotPossibleHere(why)) => Ok(Outcome::NotPossible(why)),
        Err(error) => {
            // What was set before it failed is taken back.
            let undone = fault.undo(&rig.stage);
            Ok(Outcome::Failed(format!("{error} (undone: {undone:?})")))
        }
    }
}

fn tour(mut rig: Rig, wanted: impl Fn(&FaultSpec) -> bool) -> Result<()> {
    rig.stage.set_data_feed(Arc::new(Counting::default()));
    let mut unseen = Vec::new();
    for spec in catalogue().iter().filter(|spec| wanted(spec)) {
        let started = Instant::now();
        let outcome = visit(&mut rig, spec)?;
        let took = started.elapsed().as_secs_f64();
        let healthy = rig.wait_healthy().map_err(|error| error.context(format!("not healthy after {}", spec.name)))?.as_secs_f64();
        let row = match outcome {
            Outcome::Fired(0, evidence) => {
                unseen.push(spec.name);
                format!("NOT SEEN: {evidence}")
            }
            Outcome::Fired(count, evidence) => format!("{count} | {evidence}"),
            Outcome::NotPossible(why) => format!("not possible here | {why}"),
            Outcome::Failed(why) => {
                unseen.push(spec.name);
                format!("FAILED | {why}")
            }
        };
        println!("| {} | {took:.1} s, healthy after {healthy:.1} s | {row} |", spec.name);
    }
    rig.finish()?;
    ensure!(unseen.is_empty(), "neither seen nor refused: {}", unseen.join(", "));
    Ok(())
}

fn is_chosen(spec: &FaultSpec) -> bool {
    !std::env::var("STREAMSHIELD_TOUR").is_ok_and(|prefix| !spec.name.starts_with(&prefix))
}

#[test]
#[ignore = "takes a quarter of an hour"]
fn tour_of_three_brokers_and_s3() -> Result<()> {
    ensure!(has_kafka(), "the tour is about real brokers");
    let topology = Topology { store: StoreKind::S3, ..Topology::default() };
    let rig = Rig::start("faults-tour", &topology, &[("tier", "1"), ("checkpoint", "{interval: 2 s}")])?;
    tour(rig, is_chosen)
}

#[test]
#[ignore = "starts an HDFS"]
fn tour_of_hdfs() -> Result<()> {
    let topology = Topology { brokers: 0, store: StoreKind::Hdfs, ..Topology::default() };
    let rig = Rig::start("faults-hdfs", &topology, &[("tier", "1"), ("checkpoint", "{interval: 2 s}")])?;
    tour(rig, |spec| spec.family == Family::Storage && !spec.name.starts_with("storage."))
}
