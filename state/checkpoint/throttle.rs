//! A token bucket: bytes that uploads of this process may send per second, together.
//!
//! Tokens are taken on credit, in the order of asking: who asks for n bytes waits until the debt of those before has been paid. So a piece larger
//! than a second's worth passes, too, and the average holds from the first byte on.

use parking_lot::Mutex;
use std::time::{Duration, Instant};

#[derive(Debug)]
pub(crate) struct Throttle {
    bytes_per_second: Option<u64>,
    /// When the debt of all who asked so far is paid.
    paid_at: Mutex<Instant>,
}

impl Throttle {
    pub(crate) fn new(bytes_per_second: Option<u64>, now: Instant) -> Throttle {
        Throttle { bytes_per_second, paid_at: Mutex::new(now) }
    }

    /// Takes the tokens; says how long to wait before sending.
    fn take(&self, bytes: u64, now: Instant) -> Duration {
        let Some(rate) = self.bytes_per_second else { return Duration::ZERO };
        let mut paid_at = self.paid_at.lock();
        let begin = (*paid_at).max(now);
        *paid_at = begin + Duration::from_secs_f64(bytes as f64 / rate as f64);
        begin.saturating_duration_since(now)
    }

    /// Waits until these bytes may be sent; says for how long.
    pub(crate) async fn acquire(&self, bytes: u64) -> Duration {
        let wait = self.take(bytes, Instant::now());
        if !wait.is_zero() {
            tokio::time::sleep(wait).await;
        }
        wait
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_average_rate_holds_whatever_the_pieces() {
        let start = Instant::now();
        let throttle = Throttle::new(Some(1_000), start);
        assert_eq!(throttle.take(500, start), Duration::ZERO);
        assert_eq!(throttle.take(5_000, start), Duration::from_millis(500));
        assert_eq!(throttle.take(1, start), Duration::from_millis(5_500));
        let idle = start + Duration::from_secs(60);
        assert_eq!(throttle.take(1_000, idle), Duration::ZERO, "an idle time is not saved up");
        assert_eq!(throttle.take(1_000, idle), Duration::from_secs(1));
    }

    #[test]
    fn without_a_limit_nobody_waits() {
        let throttle = Throttle::new(None, Instant::now());
        assert_eq!(throttle.take(u64::MAX, Instant::now()), Duration::ZERO);
    }
}
