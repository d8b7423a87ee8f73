//! Fail points that tell: a worker comes to a named place of a commit or of its store, and stays there while a fault is injected.
//!
//! ```text
//! runner                      folder `points` of the stage                     worker
//! arm, reached? ───────────►  4711-engine::before_commit
//!                             4711-engine::before_commit.reached  ◄─────────── the next passing renames it, and waits
//! reached! the fault is injected
//! drop ────────────────────►  deleted  ──────────────────────────────────────► goes on; after two seconds it deletes it and goes on
//! ```
//! Of several steps that wait for the same worker at the same point one has the file; it says whose it is. The others wait until it is gone.
//!
//! Only workers that were started with [`ArmedPoint::environment`] look into that folder.

use super::catalogue::PASSING;
use super::target::{self, Setup};
use crate::api::{FaultError, Parameters, Target};
use crate::stage::Stage;
use crate::values::{BuildError, Given};
use anyhow::Context;
use rand::{RngCore, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::OpenOptions;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

const SIGNAL_VARIABLE: &str = "STREAMSHIELD_SIGNAL_DIR";

static NEXT_OWNER: AtomicU64 = AtomicU64::new(0);

/// A point at which workers are waited for. They go on when this is dropped.
#[must_use = "nobody waits at the point any more when this is dropped"]
pub struct ArmedPoint {
    point: String,
    folder: PathBuf,
    workers: Vec<String>,
    /// What its files hold: another step may wait at the same point.
    owner: String,
    /// Of each life that was armed.
    files: BTreeSet<PathBuf>,
    /// There while the worker that has come is held.
    held: Option<PathBuf>,
}

impl ArmedPoint {
    /// What the workers of a stage need in their environment.
    pub fn environment(stage: &Stage) -> BTreeMap<String, String> {
        BTreeMap::from([(SIGNAL_VARIABLE.to_string(), stage.points_dir().display().to_string())])
    }

    /// Chooses whose passing counts; [`ArmedPoint::reached`] arms them.
    pub fn of(stage: &Stage, point: &str, target: Option<&Target>, random: &mut dyn RngCore) -> Result<ArmedPoint, FaultError> {
        let wrong = |error: BuildError| FaultError::Harness(error.into());
        let seed = random.next_u64();
        let given = Given::check(&PASSING, &Parameters::new()).map_err(wrong)?;
        let target = target.cloned().unwrap_or(Target { role: PASSING.targets[0], name: None });
        target::check(&PASSING, &target).map_err(wrong)?;
        let mut setup = Setup { spec: &PASSING, given, target, random: ChaCha8Rng::seed_from_u64(seed) };
        let workers = setup.workers(stage)?;
        Ok(ArmedPoint::at(point, stage.points_dir(), workers))
    }

    fn at(point: &str, folder: PathBuf, workers: Vec<String>) -> ArmedPoint {
        let owner = NEXT_OWNER.fetch_add(1, Ordering::Relaxed).to_string();
        ArmedPoint { point: point.into(), folder, workers, owner, files: BTreeSet::new(), held: None }
    }

    /// The worker that has come to the point. The others are armed, unless they are already.
    pub fn reached(&mut self, stage: &Stage) -> Result<Option<String>, FaultError> {
        for worker in self.workers.clone() {
            let Ok(process) = stage.workers()?.process(&worker) else { continue };
            if self.is_reached_by(process.pid)? {
                return Ok(Some(worker));
            }
        }
        Ok(None)
    }

    /// Whether the worker that has come still is at the point, or has died there.
    pub fn is_held(&self) -> bool {
        self.held.as_ref().is_some_and(|reached| self.is_mine(reached))
    }

    /// A process that is not there yet is armed, once nobody else waits for it.
    fn is_reached_by(&mut self, pid: u32) -> anyhow::Result<bool> {
        let armed = self.folder.join(format!("{pid}-{}", self.point));
        let reached = self.folder.join(format!("{pid}-{}.reached", self.point));
        if self.is_mine(&reached) {
            self.held = Some(reached);
            return Ok(true);
        }
        if reached.exists() {
            return Ok(false);
        }
        match OpenOptions::new().write(true).create_new(true).open(&armed) {
            Ok(mut file) => {
                let written = file.write_all(self.owner.as_bytes());
                written.with_context(|| armed.display().to_string())?;
                self.files.extend([armed, reached]);
            }
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error).with_context(|| armed.display().to_string()),
        }
        Ok(false)
    }

    fn is_mine(&self, file: &Path) -> bool {
        std::fs::read_to_string(file).is_ok_and(|owner| owner == self.owner)
    }
}

impl Drop for ArmedPoint {
    fn drop(&mut self) {
        // In their order: first what a passing would rename.
        for file in &self.files {
            // Of the two files of a life one is there, or by now one of another step.
            if self.is_mine(file) {
                let _ = std::fs::remove_file(file);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PID: u32 = 4711;

    /// What a worker does that passes the point.
    fn pass(folder: &Path) {
        std::fs::rename(folder.join("4711-p"), folder.join("4711-p.reached")).expect("somebody waits");
    }

    #[test]
    fn two_that_wait_for_the_same_worker_at_the_same_point_both_meet_it() {
        let folder = tempfile::tempdir().expect("a folder");
        let point = || ArmedPoint::at("p", folder.path().into(), Vec::new());
        let (mut first, mut second) = (point(), point());
        let is_reached = |point: &mut ArmedPoint| point.is_reached_by(PID).expect("the folder is there");
        assert!(!is_reached(&mut first) && !is_reached(&mut second));
        pass(folder.path());
        assert!(!is_reached(&mut second) && is_reached(&mut first));
        assert!(first.is_held() && !second.is_held());
        drop(first);
        assert!(!is_reached(&mut second));
        pass(folder.path());
        assert!(is_reached(&mut second) && second.is_held());
        drop(second);
        assert!(folder.path().read_dir().expect("a folder").next().is_none(), "files are left");
    }

    #[test]
    fn a_worker_that_has_gone_on_by_itself_is_not_held_and_leaves_the_point_to_the_next() {
        let folder = tempfile::tempdir().expect("a folder");
        let point = || ArmedPoint::at("p", folder.path().into(), Vec::new());
        let (mut first, mut second) = (point(), point());
        let is_reached = |point: &mut ArmedPoint| point.is_reached_by(PID).expect("the folder is there");
        assert!(!is_reached(&mut first));
        pass(folder.path());
        assert!(is_reached(&mut first) && first.is_held());
        std::fs::remove_file(folder.path().join("4711-p.reached")).expect("it is there");
        assert!(!first.is_held());
        assert!(!is_reached(&mut second));
        drop(first);
        pass(folder.path());
        assert!(is_reached(&mut second), "the first has not taken the second's file away");
    }

    #[test]
    fn one_that_still_waits_arms_the_point_anew() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut point = ArmedPoint::at("p", folder.path().into(), Vec::new());
        assert!(!point.is_reached_by(PID).expect("the folder is there"));
        pass(folder.path());
        // It has come and gone between two looks.
        std::fs::remove_file(folder.path().join("4711-p.reached")).expect("it is there");
        assert!(!point.is_reached_by(PID).expect("the folder is there"));
        pass(folder.path());
        assert!(point.is_reached_by(PID).expect("the folder is there"));
    }
}
