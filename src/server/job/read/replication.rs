//! The keys that say how a job outlives its workers: `tier`, `replicas`, `checkpoint`.

use super::{Reader, Section};
use crate::job::checkpoint::{CheckpointSettings, DEFAULT_RETAINED, DEFAULT_UPLOAD_CONCURRENCY, SHORTEST_INTERVAL, StoreUrl};
use crate::job::secret::Secret;
use crate::job::{Replication, Slo, units};
use crate::problem::{Place, Problem};
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::PathBuf;
use streamshield_core::cluster::Tier;
use streamshield_core::tiers::{self, TierError};

impl Reader<'_> {
    /// `tier` and `replicas`; `recovery_place` is that of `slo.max_recovery`.
    pub(super) fn replication(&mut self, root: &mut Section, slo: &Slo, recovery_place: Option<Range<usize>>) -> Replication {
        let named = self.parsed(root, "tier", tier, "1: active-active, 2: active-standby, 3: checkpoints");
        let replicas = self.parsed(root, "replicas", replicas, "1, or 2 in tier 1");
        let tier_place = named.as_ref().map(|(_, place)| place.clone());
        let tier = match tiers::choose(named.map(|(tier, _)| tier), slo.max_recovery) {
            Ok(tier) => tier,
            Err(error) => {
                let place = tier_place.clone().or(recovery_place.clone()).unwrap_or_default();
                self.error(error.to_string(), place, &tier_hint(&error));
                tiers::tier_for(slo.max_recovery)
            }
        };
        let followers = match tiers::followers(tier, replicas.as_ref().map(|(replicas, _)| *replicas)) {
            Ok(followers) => followers,
            Err(error) => {
                let hint = match error {
                    TierError::ReplicasInTier3 => "leave `replicas` out, or set `tier: 1` or a shorter slo.max_recovery",
                    _ => "leave `replicas` out, or set `tier: 1`, where there may be two",
                };
                self.error(error.to_string(), replicas.map(|(_, place)| place).unwrap_or_default(), hint);
                0
            }
        };
        let place = tier_place.or(recovery_place).map(|span| Place { file: self.file.clone(), span });
        Replication { tier, followers, place }
    }

    /// None: no store, so no checkpoints.
    pub(super) fn checkpoint(&mut self, root: &mut Section, tier: Tier) -> Option<CheckpointSettings> {
        let mut section = self.subsection(root, "checkpoint")?;
        let section_place = section.span.clone();
        let names_store = section.entries.iter().any(|entry| entry.key == "store");
        let keys: Vec<_> = section.entries.iter().map(|entry| (entry.key.clone(), entry.key_span.clone())).collect();
        let store = self.store(&mut section);
        let interval = self.checkpoint_interval(&mut section);
        let retain = self.count(&mut section, "retain", 1_000).unwrap_or(DEFAULT_RETAINED);
        let retain_for = self.positive_duration(&mut section, "retain_for").map(|(time, _)| time);
        let options = self.store_options(&mut section);
        let fallback_dir = self.text(&mut section, "fallback_dir").map(|text| PathBuf::from(text.text));
        let upload_concurrency = self.count(&mut section, "upload_concurrency", 64).unwrap_or(DEFAULT_UPLOAD_CONCURRENCY);
        let upload_bandwidth_bytes = self.parsed(&mut section, "upload_bandwidth", bandwidth, "write `50 MB/s`").map(|(bytes, _)| bytes);
        self.unknown(section, "Checkpoint");
        if !names_store {
            let (what, place) = match keys.as_slice() {
                [(key, span)] => (format!("`checkpoint.{key}` has no effect"), span.clone()),
                _ => ("`checkpoint` has no effect".to_string(), section_place),
            };
            self.problems.add(
                Problem::warning(format!("{what}: there is no `checkpoint.store`"))
                    .hint("name one: `store: s3://bucket/prefix`, `gs://…`, `az://…`, `hdfs://…` or `file:///path`")
                    .at(&self.file, place),
            );
            return None;
        }
        let (store, place) = store?;
        Some(CheckpointSettings {
            store,
            place: Place { file: self.file.clone(), span: place },
            interval: interval.unwrap_or_else(|| tiers::checkpoint_interval(tier)),
            retain,
            retain_for,
            options,
            fallback_dir,
            upload_concurrency: upload_concurrency as usize,
            upload_bandwidth_bytes,
        })
    }

    fn store(&mut self, section: &mut Section) -> Option<(StoreUrl, Range<usize>)> {
        let text = self.text(section, "store")?;
        match StoreUrl::parse(&text.text) {
            Ok(store) => Some((store, text.span)),
            Err(wrong) => {
                if wrong.has_secret {
                    self.file.blank(text.span.clone());
                    self.redactor.add(&text.text);
                }
                self.error(format!("`checkpoint.store`: {}", wrong.message), text.span, &wrong.hint);
                None
            }
        }
    }

    fn checkpoint_interval(&mut self, section: &mut Section) -> Option<std::time::Duration> {
        let (interval, place) = self.positive_duration(section, "interval")?;
        if interval < SHORTEST_INTERVAL {
            self.error(
                format!("`checkpoint.interval` of {interval:?} is too short"),
                place,
                "at least `1 s`: results do not wait for checkpoints, they are committed every `commit_interval`",
            );
        }
        Some(interval)
    }

    /// Names are the store's own, values are text: they are the client's to judge.
    fn store_options(&mut self, section: &mut Section) -> BTreeMap<String, Secret> {
        let Some(section) = self.subsection(section, "options") else { return BTreeMap::new() };
        self.properties(section)
    }
}

fn tier(text: &str) -> Result<Tier, String> {
    text.parse().ok().and_then(tiers::from_number).ok_or_else(|| format!("`{text}` is not 1, 2 or 3"))
}

fn replicas(text: &str) -> Result<u32, String> {
    let count = text.parse().ok().filter(|count| (1..=tiers::REPLICAS_MAX).contains(count));
    count.ok_or_else(|| format!("`{text}` is not 1 or 2"))
}

fn tier_hint(error: &TierError) -> String {
    match error {
        TierError::TooSlow { sufficient, .. } => {
            format!("set `tier: {}`, leave `tier` out, or promise less", tiers::number(*sufficient))
        }
        _ => "promise at least `1 s`".into(),
    }
}

/// `50 MB/s`, `1 MiB`.
fn bandwidth(text: &str) -> Result<u64, String> {
    let size = text.trim().strip_suffix("/s").unwrap_or(text);
    match units::bytes(size) {
        Ok(bytes) if bytes >= 64 << 10 => Ok(bytes),
        Ok(_) => Err(format!("`{text}` is less than 64 KiB a second")),
        Err(_) => Err(format!("`{text}` is not a number of bytes per second")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bandwidth_is_bytes_per_second() {
        assert_eq!(bandwidth("50 MB/s"), Ok(50_000_000));
        assert_eq!(bandwidth("1 MiB"), Ok(1 << 20));
        assert!(bandwidth("10 B/s").is_err() && bandwidth("fast").is_err() && bandwidth("5 s").is_err());
    }
}
