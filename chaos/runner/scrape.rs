//! Counters of the workers, which begin anew with each life: summed over all lives, as far as they were seen.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;
use streamshield_faults::stage::get;

const ASK_TIMEOUT: Duration = Duration::from_millis(500);

/// What one life of a worker has counted.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Counters {
    checkpoints_remote: f64,
    checkpoints_local: f64,
    checkpoints_failed: f64,
    diverged: f64,
    compared: f64,
}

/// By worker and process.
#[derive(Debug, Default)]
pub(super) struct Scraped {
    lives: BTreeMap<(String, u32), Counters>,
}

impl Scraped {
    /// A worker that does not answer keeps what it said before.
    pub fn ask(&mut self, worker: &str, pid: u32, address: SocketAddr) {
        if let Ok(answer) = get(address, "/metrics", ASK_TIMEOUT)
            && answer.code == 200
        {
            self.lives.insert((worker.into(), pid), counters(&answer.text()));
        }
    }

    fn sum(&self, of: impl Fn(&Counters) -> f64) -> u64 {
        self.lives.values().map(of).sum::<f64>() as u64
    }

    /// Begun, and those that reached the store.
    pub fn checkpoints(&self) -> (u64, u64) {
        let remote = self.sum(|counters| counters.checkpoints_remote);
        (remote + self.sum(|counters| counters.checkpoints_local + counters.checkpoints_failed), remote)
    }

    /// Followers whose digest differed from their owner's.
    pub fn diverged(&self) -> u64 {
        self.sum(|counters| counters.diverged)
    }

    /// Digests that followers have compared with their owners'.
    pub fn compared(&self) -> u64 {
        self.sum(|counters| counters.compared)
    }
}

/// Of Prometheus' text.
fn counters(text: &str) -> Counters {
    let mut counters = Counters::default();
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let Some((series, value)) = line.rsplit_once(' ') else { continue };
        let Ok(value) = value.parse::<f64>() else { continue };
        let (name, labels) = series.split_once('{').unwrap_or((series, ""));
        match name {
            "streamshield_checkpoints_total" if labels.contains("remote") => counters.checkpoints_remote += value,
            "streamshield_checkpoints_total" if labels.contains("local") => counters.checkpoints_local += value,
            "streamshield_checkpoints_failed_total" => counters.checkpoints_failed += value,
            "streamshield_followers_diverged_total" => counters.diverged += value,
            "streamshield_follower_digests_compared_total" => counters.compared += value,
            _ => {}
        }
    }
    counters
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_of_all_series_are_summed() {
        let text = "# HELP streamshield_checkpoints_total x\nstreamshield_checkpoints_total{durability=\"remote\"} 3\n\
                    streamshield_checkpoints_total{durability=\"local\"} 2\nstreamshield_followers_diverged_total{region=\"s0/1\"} 1\n\
                    streamshield_followers_diverged_total{region=\"s0/2\"} 1\nstreamshield_checkpoints_failed_total 1\n\
                    streamshield_follower_digests_compared_total 7\nstreamshield_other 9\n";
        let expected = Counters { checkpoints_remote: 3.0, checkpoints_local: 2.0, checkpoints_failed: 1.0, diverged: 2.0, compared: 7.0 };
        assert_eq!(counters(text), expected);
        let mut scraped = Scraped::default();
        scraped.lives.insert(("w1".into(), 1), expected);
        scraped.lives.insert(("w1".into(), 2), expected);
        assert_eq!((scraped.checkpoints(), scraped.diverged(), scraped.compared()), ((12, 6), 4, 14));
    }
}
