//! Which event stands where, and whom it refers to.
//!
//! Events come in groups of 50: one person, three auctions, 46 bids. Group `g` belongs to split `g mod splits`; event
//! `g × 50 + i` is the i-th of its group and has the event time of its number. Everything else follows by arithmetic:
//! the n-th bid of a split stands in the split's group `n / 46`, and the persons and auctions that exist by then are
//! those of the groups up to it. So tables of different kinds over the same options refer to each other's rows, in any
//! number of splits, and any row can be made without the ones before it.
//!
//! Ratios (as in Nexmark): half of the bids go to the hot auction, one in a hundred; three quarters of the bidders are
//! the hot person; auctions mostly have hot sellers; the rest is uniform over what is recent.

use super::options::NexmarkOptions;
use crate::generator::EventClock;
use crate::generator::random::{Random, Zipf};
use streamshield_core::ids::Offset;
use streamshield_core::ports::source::SplitId;

pub(super) const PERSONS_PER_GROUP: i64 = 1;
pub(super) const AUCTIONS_PER_GROUP: i64 = 3;
pub(super) const BIDS_PER_GROUP: i64 = 46;
pub(super) const EVENTS_PER_GROUP: i64 = PERSONS_PER_GROUP + AUCTIONS_PER_GROUP + BIDS_PER_GROUP;

const FIRST_PERSON: i64 = 1000;
const FIRST_AUCTION: i64 = 1000;
const FIRST_CATEGORY: i64 = 10;
const CATEGORIES: u64 = 5;
/// Auctions that are open at a time, and persons that are active.
const OPEN_AUCTIONS: i64 = 100;
const ACTIVE_PERSONS: i64 = 1000;
/// Every so many ids there is a hot one.
const HOT_EVERY: i64 = 100;
/// One in so many bids, bidders, sellers is not for the hot one.
const HOT_AUCTION_RATIO: u64 = 2;
const HOT_BIDDER_RATIO: u64 = 4;
const HOT_SELLER_RATIO: u64 = 4;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Event {
    Bid,
    Auction,
    Person,
}

impl Event {
    pub(super) fn name(self) -> &'static str {
        match self {
            Event::Bid => "bid",
            Event::Auction => "auction",
            Event::Person => "person",
        }
    }

    /// How many of a group are of this kind.
    pub(super) fn per_group(self) -> i64 {
        match self {
            Event::Person => PERSONS_PER_GROUP,
            Event::Auction => AUCTIONS_PER_GROUP,
            Event::Bid => BIDS_PER_GROUP,
        }
    }

    /// Where in a group they begin.
    fn first_in_group(self) -> i64 {
        match self {
            Event::Person => 0,
            Event::Auction => PERSONS_PER_GROUP,
            Event::Bid => PERSONS_PER_GROUP + AUCTIONS_PER_GROUP,
        }
    }
}

/// What each stream of random numbers is for.
#[derive(Clone, Copy)]
pub(super) enum Stream {
    Skew = 1,
    Auction,
    Bidder,
    Price,
    Channel,
    Extra,
    Text,
    Expiry,
    Seller,
    Category,
    Name,
    Mail,
    Card,
    Place,
}

pub(super) struct Model {
    pub event: Event,
    splits: i64,
    seed: u64,
    clock: EventClock,
    skew_ms: u64,
    keys: Option<Zipf>,
}

impl Model {
    pub(super) fn new(options: &NexmarkOptions) -> Self {
        Model {
            event: options.event,
            splits: i64::from(options.shape.splits),
            seed: options.shape.seed,
            clock: options.clock,
            skew_ms: options.skew_ms,
            keys: options.number_of_keys.map(|keys| Zipf::new(keys, options.zipf_exponent)),
        }
    }

    /// The number of the event that is row `row` of a split.
    pub(super) fn event_of_row(&self, split: SplitId, row: Offset) -> i64 {
        let per_group = self.event.per_group();
        let group = row.div_euclid(per_group) * self.splits + i64::from(split);
        group * EVENTS_PER_GROUP + self.event.first_in_group() + row.rem_euclid(per_group)
    }

    /// The first row of a split whose event number is at least this.
    pub(super) fn row_at_event(&self, split: SplitId, event: i64) -> Offset {
        let per_group = self.event.per_group();
        let (group, in_group) = (event.div_euclid(EVENTS_PER_GROUP), event.rem_euclid(EVENTS_PER_GROUP));
        // The split's groups before this one are complete.
        let groups_before =
            (group - i64::from(split)).div_euclid(self.splits) + i64::from((group - i64::from(split)).rem_euclid(self.splits) != 0);
        let own = (group - i64::from(split)).rem_euclid(self.splits) == 0;
        let begun = if own { (in_group - self.event.first_in_group()).clamp(0, per_group) } else { 0 };
        (groups_before.max(0) * per_group + begun).max(0)
    }

    pub(super) fn random(&self, event: i64, stream: Stream) -> Random {
        Random::new(self.seed, event, stream as u64)
    }

    /// Event time: that of the number, minus the skew's share.
    pub(super) fn time_ms(&self, event: i64) -> i64 {
        let time = self.clock.time_ms(event);
        if self.skew_ms == 0 { time } else { time - self.random(event, Stream::Skew).below(self.skew_ms + 1) as i64 }
    }

    pub(super) fn person(&self, event: i64) -> i64 {
        FIRST_PERSON + event.div_euclid(EVENTS_PER_GROUP)
    }

    pub(super) fn auction(&self, event: i64) -> i64 {
        FIRST_AUCTION + last_auction(event)
    }

    /// The auction that a bid is for.
    pub(super) fn auction_of_bid(&self, event: i64) -> i64 {
        let mut random = self.random(event, Stream::Auction);
        if let Some(keys) = &self.keys {
            return FIRST_AUCTION + keys.sample(&mut random) as i64 - 1;
        }
        let last = last_auction(event);
        if random.below(HOT_AUCTION_RATIO) > 0 {
            return FIRST_AUCTION + last / HOT_EVERY * HOT_EVERY;
        }
        let oldest = (last - OPEN_AUCTIONS).max(0);
        FIRST_AUCTION + oldest + random.below((last - oldest + 1) as u64) as i64
    }

    pub(super) fn bidder(&self, event: i64) -> i64 {
        let mut random = self.random(event, Stream::Bidder);
        self.somebody(event, HOT_BIDDER_RATIO, 1, &mut random)
    }

    pub(super) fn seller(&self, event: i64) -> i64 {
        let mut random = self.random(event, Stream::Seller);
        self.somebody(event, HOT_SELLER_RATIO, 0, &mut random)
    }

    /// A person that exists by this event, mostly the hot one.
    fn somebody(&self, event: i64, hot_ratio: u64, hot_offset: i64, random: &mut Random) -> i64 {
        let last = event.div_euclid(EVENTS_PER_GROUP);
        if random.below(hot_ratio) > 0 {
            return FIRST_PERSON + (last / HOT_EVERY * HOT_EVERY + hot_offset).min(last);
        }
        let oldest = (last - ACTIVE_PERSONS).max(0);
        FIRST_PERSON + oldest + random.below((last - oldest + 1) as u64) as i64
    }

    pub(super) fn category(&self, event: i64) -> i64 {
        FIRST_CATEGORY + self.random(event, Stream::Category).below(CATEGORIES) as i64
    }

    /// Prices are spread evenly over six powers of ten.
    pub(super) fn price(&self, random: &mut Random) -> i64 {
        (10f64.powf(random.unit() * 6.0) * 100.0).round() as i64
    }

    /// How long an auction stays open: until about the time when as many have begun as are open at a time.
    pub(super) fn open_ms(&self, event: i64) -> i64 {
        let events = OPEN_AUCTIONS * EVENTS_PER_GROUP / AUCTIONS_PER_GROUP;
        let horizon_ms = (self.clock.time_ms(event + events) - self.clock.time_ms(event)).max(1);
        1 + self.random(event, Stream::Expiry).below(horizon_ms as u64 * 2) as i64
    }
}

/// The newest auction by this event, counted from 0.
fn last_auction(event: i64) -> i64 {
    let (group, in_group) = (event.div_euclid(EVENTS_PER_GROUP), event.rem_euclid(EVENTS_PER_GROUP));
    // Before the group's first auction the newest is the last one of the group before.
    let in_group = (in_group - PERSONS_PER_GROUP).clamp(-1, AUCTIONS_PER_GROUP - 1);
    (group * AUCTIONS_PER_GROUP + in_group).max(0)
}
