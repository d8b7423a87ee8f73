//! Faults of the store of the checkpoints: away, failing, silent, torn uploads, lost answers, damaged objects.

use super::storage::flip;
use super::target::Setup;
use super::{Evidence, nothing};
use crate::api::{Fault, FaultError, Fired};
use crate::stage::{Stage, StoreKind, binary, run_program};
use anyhow::Context;
use rand::seq::SliceRandom;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use streamshield_proxy::{Counters, Door, HttpAction, HttpRequest, HttpRule, HttpRuleHandle, Strain, StrainHandle};

/// What of the store's proxy is set; it ends with its handle.
enum Set {
    Door { before: Counters, _shut: StrainHandle },
    Rule(HttpRuleHandle),
}

/// `store.away`, `store.errors`, `store.hang`, `store.torn_upload`, `store.ambiguous_create`
pub(crate) struct Requests {
    setup: Setup,
    set: Option<Set>,
}

impl Requests {
    pub(crate) fn new(setup: Setup) -> Requests {
        Requests { setup, set: None }
    }

    fn rule(&self) -> HttpRule {
        let given = &self.setup.given;
        let uploads = |request: &HttpRequest| request.method == "PUT";
        match self.setup.spec.name {
            "store.errors" => {
                let status = u16::try_from(given.count("status")).unwrap_or(503);
                HttpRule::new(HttpAction::Status(status)).share(given.share("share"))
            }
            "store.torn_upload" => {
                HttpRule::new(HttpAction::TearUpload { after_bytes: given.bytes("after") }).when(uploads).share(given.share("share"))
            }
            "store.ambiguous_create" => HttpRule::new(HttpAction::LoseAnswer).when(uploads).share(given.share("share")),
            _ => HttpRule::new(HttpAction::Hang),
        }
    }

    fn what(&self) -> &'static str {
        match self.setup.spec.name {
            "store.errors" => "requests answered with an error",
            "store.torn_upload" => "uploads torn",
            "store.ambiguous_create" => "answers to uploads lost",
            _ => "requests left without an answer",
        }
    }

    fn evidence(&self, stage: &Stage) -> Result<Fired, FaultError> {
        let mut evidence = Evidence::default();
        match &self.set {
            Some(Set::Door { before, .. }) => {
                let now = stage.store().link()?.counters();
                evidence.add(
                    "store",
                    format!("shut {} times, {} connections reset", now.shut - before.shut, now.reset - before.reset),
                    now.shut - before.shut,
                );
            }
            Some(Set::Rule(rule)) => {
                let counters = rule.counters();
                // A body that is not longer than what is let through arrives whole.
                let fired = if self.setup.spec.name == "store.torn_upload" { counters.torn } else { counters.fired };
                evidence.add("store", format!("{fired} {}", self.what()), fired);
            }
            None => {}
        }
        Ok(evidence.fired())
    }
}

impl Fault<Stage> for Requests {
    fn inject(&mut self, stage: &Stage) -> Result<Fired, FaultError> {
        self.set = Some(if self.setup.spec.name == "store.away" {
            let link = stage.store().link()?;
            let before = link.counters();
            let shut = link.strain(Strain { door: Door::Refuse, ..Strain::default() });
            // The proxy's own thread shuts it.
            link.wait_for(std::time::Duration::from_secs(5), |now| now.shut > before.shut);
            Set::Door { before, _shut: shut }
        } else {
            Set::Rule(stage.store().http()?.add(self.rule()))
        });
        self.evidence(stage)
    }

    fn undo(&mut self, stage: &Stage) -> Result<Fired, FaultError> {
        let fired = self.evidence(stage)?;
        self.set = None;
        Ok(fired)
    }
}

/// `store.corrupt`
///
/// A restore refuses what does not match its checksums and takes the next older checkpoint (K-1). So by default what is damaged is newest manifests that have
/// an older one behind them. Whoever damages files may damage all checkpoints of a region at once, since they share them: then the state lives on in the
/// workers alone, and with them dies.
pub(crate) struct Corrupt(pub Setup);

/// Manifests by their folder, the oldest first: names sort by age.
fn manifests(objects: &[String]) -> BTreeMap<&str, BTreeSet<&String>> {
    let mut folders: BTreeMap<&str, BTreeSet<&String>> = BTreeMap::new();
    for object in objects {
        if let Some((folder, _)) = object.rsplit_once("/manifests/") {
            folders.entry(folder).or_default().insert(object);
        }
    }
    folders
}

/// The newest manifest of each folder that holds several.
fn newest_of_several(objects: &[String]) -> Vec<String> {
    let several = manifests(objects).into_values().filter(|manifests| manifests.len() > 1);
    several.filter_map(|manifests| manifests.last().map(|name| (*name).clone())).collect()
}

/// What a manifest names.
fn files_of(manifest: &[u8]) -> BTreeSet<String> {
    let manifest: Value = serde_json::from_slice(manifest).unwrap_or_default();
    let files = manifest["checkpoint"]["files"].as_array().into_iter().flatten();
    files.filter_map(|file| file["object"].as_str().map(String::from)).collect()
}

impl Corrupt {
    fn objects(&self, stage: &Stage) -> Result<Vec<String>, FaultError> {
        let objects = stage.store().objects()?;
        let within = |folder: &str| objects.iter().filter(|name| name.contains(folder)).cloned().collect();
        Ok(match self.0.given.choice("what") {
            // Blocks have no names of ours.
            _ if stage.store().kind() == StoreKind::Hdfs => objects,
            "files" => within("/files/"),
            "manifests" => within("/manifests/"),
            "newest_files" => self.files_of_newest(stage, &objects)?,
            _ => newest_of_several(&objects),
        })
    }

    /// Of each region with several checkpoints, the files that only its newest one names.
    fn files_of_newest(&self, stage: &Stage, objects: &[String]) -> Result<Vec<String>, FaultError> {
        let mut found = Vec::new();
        for (folder, manifests) in manifests(objects) {
            let mut named = Vec::new();
            for manifest in manifests {
                match stage.store().read(manifest) {
                    Ok(content) => named.push(files_of(&content)),
                    // Garbage collection may have been faster.
                    Err(FaultError::NoTarget(_)) => {}
                    Err(error) => return Err(error),
                }
            }
            let newest = named.pop().unwrap_or_default();
            if !named.is_empty() {
                let alone = newest.into_iter().filter(|file| named.iter().all(|older| !older.contains(file)));
                found.extend(alone.map(|file| format!("{folder}/files/{file}")));
            }
        }
        Ok(found)
    }
}

impl Fault<Stage> for Corrupt {
    fn inject(&mut self, stage: &Stage) -> Result<Fired, FaultError> {
        let store = stage.store();
        let mut objects = self.objects(stage)?;
        objects.shuffle(&mut self.0.random);
        let wanted = usize::try_from(self.0.given.count("objects")).unwrap_or(usize::MAX);
        let mut evidence = Evidence::default();
        for object in objects.into_iter().take(wanted) {
            // Garbage collection may have been faster.
            let mut content = match store.read(&object) {
                Err(FaultError::NoTarget(_)) => continue,
                read => read?,
            };
            let Ok(told) = flip(&mut content, &mut self.0.random) else { continue };
            store.overwrite(&object, &content)?;
            evidence.add(object.clone(), format!("{object}: {told}"), 1);
        }
        let fired = evidence.fired();
        if fired.count == 0 {
            return Err(FaultError::NoTarget(format!("the store has no {} objects yet", self.0.given.choice("what"))));
        }
        Ok(fired)
    }

    fn undo(&mut self, _: &Stage) -> Result<Fired, FaultError> {
        nothing()
    }
}

/// `store.collect`
pub(crate) struct Collect(pub Setup);

/// How many objects the program says that it has deleted: none where it has only marked them.
fn deleted(said: &str) -> Option<u64> {
    said.split_whitespace().next()?.parse().ok()
}

impl Fault<Stage> for Collect {
    fn inject(&mut self, stage: &Stage) -> Result<Fired, FaultError> {
        let workers = stage.workers()?.names();
        let job = stage.job_file(workers.first().context("a stage has workers")?).display().to_string();
        let grace = format!("{} ms", self.0.given.duration("grace").as_millis());
        let said = run_program(&binary()?, &["checkpoints", "gc", &job, "--grace", &grace])?;
        let count = deleted(&said).with_context(|| format!("no number of deleted objects: {said}"))?;
        Ok(Fired { hit: vec!["store".into()], evidence: said, count })
    }

    fn undo(&mut self, _: &Stage) -> Result<Fired, FaultError> {
        nothing()
    }
}

/// `hdfs.name_node_restart`
pub(crate) struct NameNodeRestart {
    is_away: bool,
}

impl NameNodeRestart {
    pub(crate) fn new(_: Setup) -> NameNodeRestart {
        NameNodeRestart { is_away: false }
    }
}

impl Fault<Stage> for NameNodeRestart {
    fn inject(&mut self, stage: &Stage) -> Result<Fired, FaultError> {
        // What stops half-way has to come back, too.
        self.is_away = stage.store().kind() == StoreKind::Hdfs;
        stage.store().set_name_node(false)?;
        Ok(Fired { hit: vec!["store".into()], evidence: "the name node is gone".into(), count: 1 })
    }

    fn undo(&mut self, stage: &Stage) -> Result<Fired, FaultError> {
        if !self.is_away {
            return nothing();
        }
        stage.store().set_name_node(true)?;
        self.is_away = false;
        Ok(Fired { hit: vec!["store".into()], evidence: "it serves again, with its data".into(), count: 1 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_manifests_with_an_older_one_behind_them_are_damaged() {
        let names = ["j/0-0/manifests/1-5.json", "j/0-0/manifests/2-5.json", "j/0-1/manifests/7-5.json", "j/0-1/files/9-a", "j/clock"];
        assert_eq!(newest_of_several(&names.map(String::from)), ["j/0-0/manifests/2-5.json"]);
    }

    #[test]
    fn the_files_of_a_checkpoint_are_those_that_its_manifest_names() {
        let manifest =
            br#"{"version": 1, "checkpoint": {"files": [{"name": "000012.sst", "object": "1-a-000012.sst"}, {"object": "1-b-CURRENT"}]}}"#;
        assert_eq!(files_of(manifest), BTreeSet::from(["1-a-000012.sst".to_string(), "1-b-CURRENT".to_string()]));
        assert_eq!(files_of(b"cut"), BTreeSet::new());
    }

    #[test]
    fn a_collection_that_has_only_marked_has_deleted_nothing() {
        let said = |count: u64| format!("{count} objects deleted; what is needless since now goes when the grace is over");
        assert_eq!((deleted(&said(0)), deleted(&said(17)), deleted("")), (Some(0), Some(17), None));
    }
}
