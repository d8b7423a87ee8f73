//! Nexmark bids as JSON of 200 bytes, the same for the same seed and index.
//!
//! The shape follows the Nexmark generator: of 50 events 46 are bids; persons and auctions grow with the events, half of the bids go to a
//! hot auction, three of four come from a hot bidder. Event time runs at 10,000 events per second, in the order of the index.

use std::io::Write;
use streamshield_workload::schedule::mix;
use streamshield_workload::time::time_text;

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
            self.prefix = time_text(second * 1_000);
            self.prefix.truncate(self.prefix.len() - 3);
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
}
