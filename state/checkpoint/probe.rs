//! What `check` asks the store before a job starts: can it be reached, and may we do what checkpoints need?

use crate::config::StoreConfig;
use crate::error::{Failure, StoreError, StoreProblem, without_credentials};
use crate::remote::Created;
use crate::store::{ObjectCheckpoints, Shared};
use bytes::Bytes;
use object_store::path::Path;
use std::time::Instant;

/// A store that can be used.
#[derive(Clone, Debug, PartialEq)]
pub struct Probe {
    /// The URL, as it may be shown.
    pub url: String,
    /// Whether it refuses to create what is there already. Without it, writers are kept apart by their names alone.
    pub conditional_writes: bool,
    pub seconds: f64,
}

impl ObjectCheckpoints {
    /// Writes, reads, lists and deletes a small object; says which right is missing.
    pub fn probe(&self) -> Result<Probe, StoreProblem> {
        let begin = Instant::now();
        let config = &self.shared.config;
        let conditional_writes = self.block_on(self.shared.probe()).map_err(|(right, error)| problem(config, right, &error))?;
        Ok(Probe { url: without_credentials(&config.url), conditional_writes, seconds: begin.elapsed().as_secs_f64() })
    }
}

fn problem(config: &StoreConfig, right: &str, error: &StoreError) -> StoreProblem {
    let url = without_credentials(&config.url);
    let (what, hint) = match error.failure {
        Failure::Refused => (
            format!("the checkpoint store {url:?} does not allow to {right}"),
            "give the credentials the rights to read, write, list and delete objects below the prefix".to_owned(),
        ),
        Failure::Missing => (
            format!("the checkpoint store {url:?} is not there"),
            "create the bucket or container, or correct its name or region".to_owned(),
        ),
        Failure::Unsupported => (format!("the checkpoint store {url:?} cannot {right}"), "use another store".to_owned()),
        _ => (
            format!("the checkpoint store {url:?} does not work: tried to {right}"),
            "check the address, the network and the credentials; a job started without it keeps checkpoints in its local folder".to_owned(),
        ),
    };
    StoreProblem::new(what, error.message.clone(), hint)
}

type Failed = (&'static str, StoreError);

impl Shared {
    async fn probe(&self) -> Result<bool, Failed> {
        let folder = self.layout.job_root().clone().join("probe");
        let path = folder.clone().join(format!("{:016x}", rand::random::<u64>()));
        let (first, second) = (Bytes::from_static(b"first"), Bytes::from_static(b"second"));
        match self.remote.create(&path, first.clone()).await.map_err(|error| ("write", error))? {
            Created::Ours => {}
            Created::Other(_) => return Err(("write", StoreError::new(Failure::Away, "an object lies where nobody wrote one"))),
        }
        let result = self.probe_object(&folder, &path, first, second).await;
        let deleted = self.remote.delete(&path).await.map_err(|error| ("delete", error));
        let conditional_writes = result?;
        deleted?;
        Ok(conditional_writes)
    }

    async fn probe_object(&self, folder: &Path, path: &Path, first: Bytes, second: Bytes) -> Result<bool, Failed> {
        let read = self.remote.get(path).await.map_err(|error| ("read", error))?;
        if read != first {
            return Err(("read", StoreError::damaged("what was read is not what was written")));
        }
        let listed = self.remote.list(folder).await.map_err(|error| ("list", error))?;
        if !listed.iter().any(|object| &object.location == path) {
            return Err(("list", StoreError::damaged("what was written is not in the list")));
        }
        match self.remote.create(path, second).await.map_err(|error| ("write", error))? {
            Created::Other(found) if found == first => Ok(true),
            _ => Ok(false),
        }
    }
}
