//! The folder of the local state: claimed by one process at a time.
//!
//! The claim comes before the job's start. A second process on this machine would otherwise fence the first one and only then find
//! that it can't open the state: both would be down.

use crate::problem::Problem;
use rustix::fs::{FlockOperation, flock};
use std::fs::{DirBuilder, File};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// How long a predecessor may take to leave.
const CLAIM_TIME_MAX: Duration = Duration::from_secs(3);
const CLAIM_RETRY_INTERVAL: Duration = Duration::from_millis(50);

/// A claimed folder; released, and deleted if it is temporary, on drop.
pub struct StateFolder {
    path: PathBuf,
    // An open directory with a lock: nothing of ours lies in the folder.
    _lock: File,
    _temporary: Option<TempDir>,
}

impl StateFolder {
    /// None: a folder that is deleted at the end.
    pub fn claim(path: Option<PathBuf>) -> Result<StateFolder, Problem> {
        let temporary = match path {
            Some(_) => None,
            None => Some(
                tempfile::Builder::new()
                    .prefix("streamshield-")
                    .tempdir()
                    .map_err(|error| Problem::error(format!("no temporary folder for the state: {error}")))?,
            ),
        };
        let path = path.or(temporary.as_ref().map(|folder| folder.path().to_path_buf())).unwrap_or_default();
        let opened = DirBuilder::new().recursive(true).mode(0o700).create(&path).and_then(|()| File::open(&path));
        let lock = opened.map_err(|error| unusable(&path, &error.to_string()))?;
        let started = Instant::now();
        while let Err(error) = flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            if error != rustix::io::Errno::WOULDBLOCK {
                return Err(unusable(&path, &error.to_string()));
            }
            if started.elapsed() > CLAIM_TIME_MAX {
                return Err(Problem::error(format!("another process uses the state folder `{}`", path.display()))
                    .hint("does the job run already? Stop it first, or give this one another name and `state_dir`"));
            }
            std::thread::sleep(CLAIM_RETRY_INTERVAL);
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

fn unusable(path: &Path, reason: &str) -> Problem {
    Problem::error(format!("can't use the state folder `{}`: {reason}", path.display()))
        .hint("set `state_dir` to a folder that the job may write")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_claimed_once_and_free_again_after_the_drop() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("a").join("b");
        let claimed = StateFolder::claim(Some(path.clone())).ok().expect("free");
        let problem = StateFolder::claim(Some(path.clone())).err().expect("claimed");
        assert!(problem.message.contains("another process"), "{}", problem.message);
        drop(claimed);
        assert!(StateFolder::claim(Some(path)).is_ok());
    }
}
