//! The folder of a worker's local state: claimed by one process at a time, and of one job for ever.
//!
//! The claim comes before the job's start. A second process on this machine would otherwise fence the first one and only then find
//! that it can't open the state: both would be down. And the state of another job would be thrown away as damaged, one region after the other.
//!
//! ```text
//! <state_dir>/                     a job that runs in one process
//! <state_dir>/<worker>/            one of several workers
//!   streamshield.json              {"job": "orders"}
//!   0-0/ 0-1/ 1-0/ …               a region each
//!   slot-0.at nursery-0.at …       what each thread is at, for the next process if this one dies without a word
//! ```

use crate::problem::Problem;
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};
use std::fs::{DirBuilder, File};
use std::io::ErrorKind;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// How long a predecessor may take to leave.
const CLAIM_TIME_MAX: Duration = Duration::from_secs(3);
const CLAIM_RETRY_INTERVAL: Duration = Duration::from_millis(50);
const OWNER_FILE: &str = "streamshield.json";

/// What the folder says about itself.
#[derive(Serialize, Deserialize)]
struct Owner {
    job: String,
}

/// Why a folder can't be had.
pub enum Refused {
    /// By now: somebody uses it, or the disk says no.
    Now(Problem),
    /// It is another job's, and will be so tomorrow.
    ForGood(Problem),
}

/// A claimed folder; released, and deleted if it is temporary, on drop.
pub struct StateFolder {
    path: PathBuf,
    // An open directory with a lock, which ends with the process whatever happens to it.
    _lock: File,
    _temporary: Option<TempDir>,
}

impl StateFolder {
    /// None: a folder that is deleted at the end.
    pub fn claim(path: Option<PathBuf>, job: &str) -> Result<StateFolder, Refused> {
        let temporary = match path {
            Some(_) => None,
            None => Some(temporary_folder().map_err(Refused::Now)?),
        };
        let path = path.or(temporary.as_ref().map(|folder| folder.path().to_path_buf())).unwrap_or_default();
        let opened = DirBuilder::new().recursive(true).mode(0o700).create(&path).and_then(|()| File::open(&path));
        let lock = opened.map_err(|error| Refused::Now(unusable(&path, &error.to_string())))?;
        wait_for(&lock, &path).map_err(Refused::Now)?;
        if temporary.is_none() {
            check_owner(&path, job)?;
        }
        Ok(StateFolder { path, _lock: lock, _temporary: temporary })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn unusable(&self, reason: &str) -> Problem {
        unusable(&self.path, reason)
    }
}

/// A folder that is deleted on drop.
pub fn temporary_folder() -> Result<TempDir, Problem> {
    let made = tempfile::Builder::new().prefix("streamshield-").tempdir();
    made.map_err(|error| Problem::error(format!("no temporary folder for the state: {error}")))
}

fn wait_for(lock: &File, path: &Path) -> Result<(), Problem> {
    let started = Instant::now();
    while let Err(error) = flock(lock, FlockOperation::NonBlockingLockExclusive) {
        if error != rustix::io::Errno::WOULDBLOCK {
            return Err(unusable(path, &error.to_string()));
        }
        if started.elapsed() > CLAIM_TIME_MAX {
            return Err(Problem::error(format!("another process uses the state folder `{}`", path.display()))
                .hint("does the job run already, or a worker of this name? Stop it first, or give this one another name and `state_dir`"));
        }
        std::thread::sleep(CLAIM_RETRY_INTERVAL);
    }
    Ok(())
}

/// Renamed into place: a crash in between leaves no half-written owner.
fn write_owner(path: &Path, job: &str) -> Result<(), Refused> {
    let text = serde_json::to_string(&Owner { job: job.to_string() }).expect("plain data always serializes");
    let new = path.join(format!("{OWNER_FILE}.new"));
    let written = std::fs::write(&new, text + "\n").and_then(|()| std::fs::rename(&new, path.join(OWNER_FILE)));
    written.map_err(|error| Refused::Now(unusable(path, &error.to_string())))
}

/// The first job to use a folder has it. A folder from before there was the file is taken as it is: its stores tell a foreign plan by themselves.
fn check_owner(path: &Path, job: &str) -> Result<(), Refused> {
    let file = path.join(OWNER_FILE);
    match std::fs::read(&file) {
        Ok(text) => match serde_json::from_slice::<Owner>(&text) {
            Ok(owner) if owner.job == job => Ok(()),
            Ok(owner) => Err(Refused::ForGood(
                Problem::error(format!("the state folder `{}` belongs to job `{}`, this one is `{job}`", path.display(), owner.job))
                    .hint("give each job its own `state_dir`; if the other job is gone for good, delete the folder"),
            )),
            Err(error) => {
                // A damaged folder is rebuilt; whether its stores are this job's, the log says.
                tracing::warn!(file = %file.display(), %error, "the state folder does not say whose it is; it is taken as this job's");
                write_owner(path, job)
            }
        },
        Err(error) if error.kind() == ErrorKind::NotFound => write_owner(path, job),
        Err(error) => Err(Refused::Now(unusable(&file, &error.to_string()))),
    }
}

fn unusable(path: &Path, reason: &str) -> Problem {
    Problem::error(format!("can't use the state folder `{}`: {reason}", path.display()))
        .hint("set `state_dir` to a folder that the job may write")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(refused: Option<Refused>) -> (bool, String) {
        match refused {
            Some(Refused::Now(problem)) => (false, problem.message),
            Some(Refused::ForGood(problem)) => (true, problem.message),
            None => panic!("it was given"),
        }
    }

    #[test]
    fn a_folder_is_claimed_once_and_free_again_after_the_drop() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("a").join("b");
        let claimed = StateFolder::claim(Some(path.clone()), "orders").ok().expect("free");
        let (for_good, message) = refusal(StateFolder::claim(Some(path.clone()), "orders").err());
        assert!(!for_good && message.contains("another process"), "{message}");
        drop(claimed);
        assert!(StateFolder::claim(Some(path), "orders").is_ok());
    }

    #[test]
    fn a_folder_of_another_job_is_refused_and_left_as_it_is() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = Some(folder.path().to_path_buf());
        drop(StateFolder::claim(path.clone(), "orders").ok().expect("free"));
        let (for_good, message) = refusal(StateFolder::claim(path.clone(), "payments").err());
        assert!(for_good && message.contains("belongs to job `orders`"), "{message}");
        assert!(StateFolder::claim(path, "orders").is_ok());
    }

    #[test]
    fn a_folder_from_before_there_were_owners_is_taken() {
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::create_dir(folder.path().join("1-0")).expect("a region");
        assert!(StateFolder::claim(Some(folder.path().to_path_buf()), "orders").is_ok());
        assert!(folder.path().join(OWNER_FILE).exists() && folder.path().join("1-0").exists());
    }
}
