//! What this process costs its machine, as the kernel counts it (Linux; elsewhere nothing is known).

use std::time::Duration;

/// Of the times in `/proc/self/stat`: the same on every architecture (USER_HZ).
const TICKS_PER_SECOND: u64 = 100;

/// Processor time between two looks, and memory.
#[derive(Default)]
pub struct ProcessUsage {
    last: Option<(Duration, Duration)>,
}

impl ProcessUsage {
    /// Per cent of one core since the last look; None at the first one. `now` is steady time.
    pub fn cpu_percent(&mut self, now: Duration) -> Option<u32> {
        let used = processor_time(&std::fs::read_to_string("/proc/self/stat").ok()?)?;
        let (then, used_then) = self.last.replace((now, used))?;
        let elapsed = now.saturating_sub(then).as_secs_f64();
        (elapsed > 0.0).then(|| (used.saturating_sub(used_then).as_secs_f64() / elapsed * 100.0).round() as u32)
    }

    pub fn resident_bytes(&self) -> Option<u64> {
        resident_bytes(&std::fs::read_to_string("/proc/self/status").ok()?)
    }
}

/// User and system time of a process. Its name, in parentheses, may hold anything; the times are fields 14 and 15 of the line.
fn processor_time(stat: &str) -> Option<Duration> {
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
    let ticks = fields.next()?.parse::<u64>().ok()? + fields.next()?.parse::<u64>().ok()?;
    Some(Duration::from_millis(ticks * 1_000 / TICKS_PER_SECOND))
}

fn resident_bytes(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.split_whitespace().next()?.parse::<u64>().ok().map(|kib| kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_found_behind_a_name_with_parentheses() {
        let stat = "7 (a) b) S 1 7 7 0 -1 4194304 100 0 0 0 250 50 9 9 20 0 3 0 100 1000 200";
        assert_eq!(processor_time(stat), Some(Duration::from_secs(3)));
        assert_eq!(processor_time("nonsense"), None);
        assert_eq!(resident_bytes("VmPeak:\t 9 kB\nVmRSS:\t    2048 kB\n"), Some(2 << 20));
    }

    #[test]
    fn a_busy_process_is_seen_to_be_busy() {
        let mut usage = ProcessUsage::default();
        assert_eq!(usage.cpu_percent(Duration::ZERO), None);
        let started = std::time::Instant::now();
        let percent = loop {
            std::hint::black_box((0..100_000u64).sum::<u64>());
            let percent = usage.cpu_percent(started.elapsed()).expect("Linux");
            if percent > 0 || started.elapsed() > Duration::from_secs(20) {
                break percent;
            }
        };
        assert!(percent > 0 && usage.resident_bytes().expect("Linux") > 100_000);
    }
}
