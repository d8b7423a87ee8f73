//! Nexmark bids as JSON of 200 bytes, the same for the same seed and index.
//!
//! The shape follows the Nexmark generator: of 50 events 46 are bids; persons and auctions grow with the events, half of the bids go to a
//! hot auction, three of four come from a hot bidder. Event time runs at 10,000 events per second, in the order of the index.

use super::seed::mix;
use std::io::Write;

/// Bytes of one bid as JSON.
pub const BID_BYTES: usize = 200;
/// 2024-01-01T00:00:00Z.
pub const START_MS: i64 = 1_704_067_200_000;
const EVENTS_PER_SECOND: u64 = 10_000;
const CHANNELS: [&str; 4] = ["Apple", "Google", "Facebook", "Baidu"];

/// One bid, for computing expected results.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bid {
    pub auction: u64,
    pub bidder: u64,
    pub price: u64,
    pub time_ms: i64,
}

/// Bids of one seed.
pub struct Bids {
    seed: u64,
    /// The second that `prefix` shows, and its text `2024-01-01 00:00:00.`: formatting is not what is to be measured.
    second: i64,
    prefix: String,
}

impl Bids {
    pub fn new(seed: u64) -> Bids {
        Bids { seed, second: i64::MIN, prefix: String::new() }
    }

    pub fn bid(&self, index: u64) -> Bid {
        let draw = |what: u64| mix(self.seed, index.wrapping_mul(8).wrapping_add(what));
        let (last_auction, last_person) = (1_000 + index * 3 / 46, 1_000 + index / 46);
        let auction =
            if draw(0).is_multiple_of(2) { last_auction / 100 * 100 } else { last_auction.saturating_sub(draw(1) % 100).max(1_000) };
        let bidder = if draw(2) % 4 < 3 { last_person / 100 * 100 + 1 } else { last_person.saturating_sub(draw(3) % 1_000).max(1_000) };
        let price = 100 + draw(4) % 1_000_000;
        Bid { auction, bidder, price, time_ms: START_MS + (index * 1_000 / EVENTS_PER_SECOND) as i64 }
    }

    /// Replaces `buffer` by the bid's JSON.
    pub fn write(&mut self, index: u64, buffer: &mut Vec<u8>) {
        let bid = self.bid(index);
        let second = bid.time_ms.div_euclid(1_000);
        if second != self.second {
            self.second = second;
            self.prefix = second_text(second);
        }
        let channel = CHANNELS[(bid.price % 4) as usize];
        buffer.clear();
        write!(
            buffer,
            r#"{{"auction":{},"bidder":{},"price":{},"channel":"{channel}","url":"https://www.nexmark.com/item.htm?query=1&channel_id={}","dateTime":"{}{:03}","extra":""#,
            bid.auction,
            bid.bidder,
            bid.price,
            bid.price * 7 % 100_000,
            self.prefix,
            bid.time_ms.rem_euclid(1_000)
        )
        .expect("a Vec takes everything");
        let mut noise = mix(self.seed ^ 0x5eed, index);
        while buffer.len() < BID_BYTES - 2 {
            buffer.push(b'a' + (noise % 26) as u8);
            noise = noise.rotate_right(5) ^ 0x1f;
        }
        buffer.extend_from_slice(b"\"}");
    }
}

/// `2024-01-01 00:00:00.` of a second since 1970.
fn second_text(second: i64) -> String {
    let (year, month, day) = civil(second.div_euclid(86_400));
    let of_day = second.rem_euclid(86_400);
    format!("{year:04}-{month:02}-{day:02} {:02}:{:02}:{:02}.", of_day / 3_600, of_day / 60 % 60, of_day % 60)
}

/// A timestamp as Flink's JSON writes it.
pub fn time_text(time_ms: i64) -> String {
    format!("{}{:03}", second_text(time_ms.div_euclid(1_000)), time_ms.rem_euclid(1_000))
}

/// Year, month and day of a day since 1970 (Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms").
fn civil(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468;
    let era = days.div_euclid(146_097);
    let of_era = days.rem_euclid(146_097);
    let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * of_year + 2) / 153;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    (year_of_era + era * 400 + i64::from(month <= 2), month, of_year - (153 * shifted + 2) / 5 + 1)
}

/// `2024-01-01 00:00:00.123` with any fraction, in milliseconds since 1970.
pub fn parse_time(text: &str) -> Option<i64> {
    let text = text.trim_end_matches('Z').replace('T', " ");
    let (date, time) = text.split_once(' ')?;
    let mut date = date.split('-').map(|part| part.parse::<i64>().ok());
    let (year, month, day) = (date.next()??, date.next()??, date.next()??);
    let mut time = time.split(':');
    let (hour, minute, second) = (time.next()?.parse::<i64>().ok()?, time.next()?.parse::<i64>().ok()?, time.next()?.parse::<f64>().ok()?);
    // Days since 1970 (Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms").
    let shifted_year = if month <= 2 { year - 1 } else { year };
    let (era, of_era) = (shifted_year.div_euclid(400), shifted_year.rem_euclid(400));
    let of_year = (153 * (if month > 2 { month - 3 } else { month + 9 }) + 2) / 5 + day - 1;
    let days = era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468;
    Some(((days * 24 + hour) * 60 + minute) * 60_000 + (second * 1_000.0).round() as i64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bid_is_json_of_200_bytes_and_says_what_bid_says() {
        let (mut bids, mut buffer) = (Bids::new(1), Vec::new());
        for index in [0, 1, 999, 123_456, 49_999_999] {
            bids.write(index, &mut buffer);
            let value: serde_json::Value = serde_json::from_slice(&buffer).expect("JSON");
            assert_eq!(buffer.len(), BID_BYTES, "{value}");
            let bid = bids.bid(index);
            assert_eq!(
                (value["auction"].as_u64(), value["bidder"].as_u64(), value["price"].as_u64()),
                (Some(bid.auction), Some(bid.bidder), Some(bid.price))
            );
            assert_eq!(value["dateTime"], time_text(bid.time_ms));
        }
    }

    #[test]
    fn a_time_that_was_written_is_read_as_the_same() {
        for time_ms in [0, START_MS + 123, START_MS + 59 * 86_400_000 + 1, 4_102_444_800_100] {
            assert_eq!(parse_time(&time_text(time_ms)), Some(time_ms));
        }
        assert_eq!(parse_time("2024-01-01T00:00:00Z"), Some(START_MS));
        assert_eq!(parse_time("soon"), None);
    }

    #[test]
    fn dates_are_those_of_the_calendar() {
        assert_eq!(time_text(0), "1970-01-01 00:00:00.000");
        assert_eq!(time_text(START_MS + 59 * 86_400_000 + 1), "2024-02-29 00:00:00.001");
        assert_eq!(time_text(-1), "1969-12-31 23:59:59.999");
    }
}
