//! Faults of a worker's own disk: full, read-only, damaged, empty.

use super::target::Setup;
use super::{Evidence, nothing};
use crate::api::{Fault, FaultError, Fired};
use crate::stage::disks::files_below;
use crate::stage::{Hold, Stage};
use anyhow::Context;
use rand::Rng;
use rand::seq::{IndexedRandom, SliceRandom};
use rand_chacha::ChaCha8Rng;
use std::path::{Path, PathBuf};
use std::time::Duration;

const STOP_TIME_MAX: Duration = Duration::from_secs(15);

/// Gives a worker a disk of its own, if it has none. It is away meanwhile.
fn give_disk(stage: &Stage, worker: &str) -> Result<(), FaultError> {
    if stage.has_disk(worker) {
        return Ok(());
    }
    let workers = stage.workers()?;
    let (hold, process) = workers.take(worker)?;
    let before = workers.view(worker)?;
    process.terminate(STOP_TIME_MAX)?;
    let given = stage.with_disk(worker, |_| Ok(()));
    drop(hold);
    given?;
    workers.wait_started_after(worker, before.starts, STOP_TIME_MAX)?;
    Ok(())
}

/// Kills a worker and keeps it away.
fn kill_and_hold(stage: &Stage, worker: &str) -> Result<(Hold, u32), FaultError> {
    let (hold, process) = stage.workers()?.take(worker)?;
    process.kill()?;
    Ok((hold, process.pid))
}

/// How often a worker's log names an error.
fn complaints(stage: &Stage, worker: &str, error: &str) -> u64 {
    stage.log(worker).matches(error).count() as u64
}

const NO_SPACE: &str = "No space left on device";
const READ_ONLY: &str = "Read-only file system";

/// `storage.disk_full`
pub(crate) struct DiskFull {
    setup: Setup,
    /// The worker, and its complaints before.
    full: Option<(String, u64)>,
}

impl DiskFull {
    pub(crate) fn new(setup: Setup) -> DiskFull {
        DiskFull { setup, full: None }
    }
}

impl Fault<Stage> for DiskFull {
    fn inject(&mut self, stage: &Stage) -> Result<Fired, FaultError> {
        let worker = self.setup.worker(stage)?;
        give_disk(stage, &worker)?;
        let before = complaints(stage, &worker, NO_SPACE);
        // Also half filled it is narrow.
        self.full = Some((worker.clone(), before));
        let bytes = stage.with_disk(&worker, |disk| Ok(disk.fill()?))?;
        let error = stage.with_disk(&worker, |disk| Ok(disk.try_write()))?;
        let full = error.as_ref().is_some_and(|error| error.raw_os_error() == Some(libc::ENOSPC));
        let mut evidence = Evidence::default();
        let met = error.map_or("no error".to_string(), |error| error.to_string());
        evidence.add(worker, format!("{bytes} bytes were taken; a write meets: {met}"), u64::from(full));
        Ok(evidence.fired())
    }

    fn undo(&mut self, stage: &Stage) -> Result<Fired, FaultError> {
        let Some((worker, before)) = &self.full else { return nothing() };
        let seen = complaints(stage, worker, NO_SPACE).saturating_sub(*before);
        stage.with_disk(worker, |disk| Ok(disk.empty()?))?;
        let mut evidence = Evidence::default();
        evidence.add(worker, format!("the worker said {seen} times: {NO_SPACE}"), seen);
        self.full = None;
        Ok(evidence.fired())
    }
}

/// `storage.read_only`
pub(crate) struct ReadOnly {
    setup: Setup,
    read_only: Option<(String, u64)>,
}

impl ReadOnly {
    pub(crate) fn new(setup: Setup) -> ReadOnly {
        ReadOnly { setup, read_only: None }
    }
}

impl Fault<Stage> for ReadOnly {
    fn inject(&mut self, stage: &Stage) -> Result<Fired, FaultError> {
        let worker = self.setup.worker(stage)?;
        give_disk(stage, &worker)?;
        let before = complaints(stage, &worker, READ_ONLY);
        let (hold, pid) = kill_and_hold(stage, &worker)?;
        stage.with_disk(&worker, |disk| Ok(disk.set_read_only(true)?))?;
        self.read_only = Some((worker.clone(), before));
        let error = stage.with_disk(&worker, |disk| Ok(disk.try_write()))?;
        drop(hold);
        let seen = error.as_ref().is_some_and(|error| error.raw_os_error() == Some(libc::EROFS));
        let mut evidence = Evidence::default();
        let met = error.map_or("no error".to_string(), |error| error.to_string());
        evidence.add(worker, format!("pid {pid} is gone; a write meets: {met}"), u64::from(seen));
        Ok(evidence.fired())
    }

    fn undo(&mut self, stage: &Stage) -> Result<Fired, FaultError> {
        let Some((worker, before)) = &self.read_only else { return nothing() };
        let seen = complaints(stage, worker, READ_ONLY).saturating_sub(*before);
        stage.with_disk(worker, |disk| Ok(disk.set_read_only(false)?))?;
        let mut evidence = Evidence::default();
        evidence.add(worker, format!("the worker said {seen} times: {READ_ONLY}"), seen);
        self.read_only = None;
        Ok(evidence.fired())
    }
}

/// Which files of a state are meant.
fn is_meant(file: &Path, what: &str) -> bool {
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    let (is_table, is_manifest) = (name.ends_with(".sst"), name.starts_with("MANIFEST-"));
    match what {
        "sst" => is_table,
        "manifest" => is_manifest,
        _ => is_table || is_manifest || name == "CURRENT",
    }
}

/// `storage.bit_flip`, `storage.truncate`
pub(crate) struct Damage {
    setup: Setup,
    /// Workers that were ended, also by tries that found no file then: it is why they are gone.
    ended: Vec<String>,
}

impl Damage {
    pub(crate) fn new(setup: Setup) -> Damage {
        Damage { setup, ended: Vec::new() }
    }

    /// Ends the worker, and keeps it away. One that is stopped writes its state out first, so that there is something to be damaged.
    fn end(&self, stage: &Stage, worker: &str) -> Result<(Hold, u32), FaultError> {
        if self.setup.given.choice("end") == "kill" {
            return kill_and_hold(stage, worker);
        }
        let (hold, process) = stage.workers()?.take(worker)?;
        process.terminate(STOP_TIME_MAX)?;
        Ok((hold, process.pid))
    }

    /// Files that hold something, and how much.
    fn files(&self, stage: &Stage, worker: &str) -> Result<Vec<(PathBuf, u64)>, FaultError> {
        let what = self.setup.given.choice("file");
        let mut files = Vec::new();
        for file in files_below(&stage.state_dir(worker)).into_iter().filter(|file| is_meant(file, what)) {
            let length = file.metadata().with_context(|| file.display().to_string())?.len();
            if length > 0 {
                files.push((file, length));
            }
        }
        if files.is_empty() { Err(FaultError::NoTarget(format!("the state of {worker} has no {what} file"))) } else { Ok(files) }
    }
}

impl Fault<Stage> for Damage {
    fn inject(&mut self, stage: &Stage) -> Result<Fired, FaultError> {
        let worker = self.setup.worker(stage)?;
        let (_hold, pid) = self.end(stage, &worker)?;
        self.ended.push(worker.clone());
        let mut files = self.files(stage, &worker)?;
        let mut evidence = Evidence::default();
        let place = |file: &Path| file.strip_prefix(stage.folder()).unwrap_or(file).display().to_string();
        if self.setup.spec.name == "storage.bit_flip" {
            for _ in 0..self.setup.given.count("flips") {
                let (file, _) = files.choose(&mut self.setup.random).context("there are files")?;
                let told = flip_in_file(file, &mut self.setup.random)?;
                evidence.add(worker.clone(), format!("{}: {told}", place(file)), 1);
            }
        } else {
            files.shuffle(&mut self.setup.random);
            let wanted = usize::try_from(self.setup.given.count("files")).unwrap_or(usize::MAX);
            for (file, length) in files.iter().take(wanted) {
                let rest = self.setup.random.random_range(0..*length);
                std::fs::OpenOptions::new().write(true).open(file).and_then(|file| file.set_len(rest)).with_context(|| place(file))?;
                evidence.add(worker.clone(), format!("{}: {length} → {rest} bytes", place(file)), 1);
            }
        }
        let mut fired = evidence.fired();
        fired.evidence = format!("pid {pid} is gone; {}", fired.evidence);
        fired.hit = std::mem::take(&mut self.ended);
        Ok(fired)
    }

    fn undo(&mut self, _: &Stage) -> Result<Fired, FaultError> {
        Ok(Fired { hit: std::mem::take(&mut self.ended), ..Fired::default() })
    }
}

fn flip_in_file(file: &Path, random: &mut ChaCha8Rng) -> Result<String, FaultError> {
    let mut content = std::fs::read(file).with_context(|| file.display().to_string())?;
    let told = flip(&mut content, random).with_context(|| file.display().to_string())?;
    std::fs::write(file, content).with_context(|| file.display().to_string())?;
    Ok(told)
}

/// Turns one bit, and says which.
pub(crate) fn flip(content: &mut [u8], random: &mut ChaCha8Rng) -> anyhow::Result<String> {
    anyhow::ensure!(!content.is_empty(), "there is no bit in it");
    let (at, bit) = (random.random_range(0..content.len()), random.random_range(0..8));
    let before = content[at];
    content[at] ^= 1 << bit;
    Ok(format!("byte {at}: {before:#04x} → {:#04x}", content[at]))
}

/// `storage.delete_state`
pub(crate) struct DeleteState(pub Setup);

impl Fault<Stage> for DeleteState {
    fn inject(&mut self, stage: &Stage) -> Result<Fired, FaultError> {
        let mut evidence = Evidence::default();
        for worker in self.0.workers(stage)? {
            let (_hold, pid) = kill_and_hold(stage, &worker)?;
            let folder = stage.state_dir(&worker);
            let files = files_below(&folder);
            // What is in it, not the folder: it may be a disk of its own.
            for entry in std::fs::read_dir(&folder).with_context(|| folder.display().to_string())?.flatten() {
                let is_folder = entry.file_type().is_ok_and(|kind| kind.is_dir());
                let removed = if is_folder { std::fs::remove_dir_all(entry.path()) } else { std::fs::remove_file(entry.path()) };
                match removed {
                    // The ballast of a full disk, which was freed meanwhile.
                    Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                    removed => removed.with_context(|| entry.path().display().to_string())?,
                }
            }
            evidence.add(worker, format!("pid {pid} is gone, and {} files of its state", files.len()), 1);
        }
        Ok(evidence.fired())
    }

    fn undo(&mut self, _: &Stage) -> Result<Fired, FaultError> {
        nothing()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;

    #[test]
    fn exactly_one_bit_is_turned() {
        let mut random = ChaCha8Rng::seed_from_u64(7);
        let mut content = vec![0u8; 100];
        let told = flip(&mut content, &mut random).expect("there is a bit");
        assert_eq!(content.iter().map(|byte| byte.count_ones()).sum::<u32>(), 1, "{told}");
        assert!(flip(&mut [], &mut random).is_err());
    }

    #[test]
    fn files_of_a_state_are_known_by_their_names() {
        for (file, what) in [("0-0/000012.sst", "sst"), ("0-0/MANIFEST-000005", "manifest"), ("0-0/CURRENT", "any")] {
            assert!(is_meant(Path::new(file), what), "{file}");
        }
        for (file, what) in [("0-0/000012.sst", "manifest"), ("0-0/LOG", "any"), ("streamshield.json", "any")] {
            assert!(!is_meant(Path::new(file), what), "{file}");
        }
    }
}
