//! The values of each column, made a column at a time.

use super::model::{Event, Model, Stream};
use crate::generator::random::Random;
use arrow_array::{
    ArrayRef, Int64Array, StringArray, TimestampMicrosecondArray, TimestampMillisecondArray, TimestampNanosecondArray, TimestampSecondArray,
};
use arrow_buffer::{Buffer, OffsetBuffer, ScalarBuffer};
use arrow_schema::{DataType, FieldRef, TimeUnit};
use std::ops::Range;
use std::sync::Arc;
use streamshield_core::ids::Offset;
use streamshield_core::ports::source::SplitId;

/// Bytes that an event has on average, to which `extra` fills it up.
const BID_BYTES: usize = 100;
const AUCTION_BYTES: usize = 500;
const PERSON_BYTES: usize = 200;

const CHANNELS: u64 = 10_000;
const HOT_CHANNELS: [&str; 4] = ["Google", "Facebook", "Baidu", "Apple"];
const FIRST_NAMES: [&str; 11] = ["Peter", "Paul", "Luke", "John", "Saul", "Vicky", "Kate", "Julie", "Sarah", "Deiter", "Walter"];
const LAST_NAMES: [&str; 9] = ["Shultz", "Abrams", "Spencer", "White", "Bartels", "Walton", "Smith", "Jones", "Noris"];
const CITIES: [&str; 10] =
    ["Phoenix", "Los Angeles", "San Francisco", "Boise", "Portland", "Bend", "Redmond", "Seattle", "Kent", "Cheyenne"];
const STATES: [&str; 6] = ["AZ", "CA", "ID", "OR", "WA", "WY"];

/// A column of one of the three tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ColumnName {
    Auction,
    Bidder,
    Price,
    Channel,
    Url,
    DateTime,
    Extra,
    AuctionId,
    ItemName,
    Description,
    InitialBid,
    Reserve,
    Expires,
    Seller,
    Category,
    PersonId,
    Name,
    EmailAddress,
    CreditCard,
    City,
    State,
}

impl ColumnName {
    /// The columns of a kind of event, in Nexmark's order.
    pub(super) fn all_of(event: Event) -> &'static [(&'static str, ColumnName)] {
        use ColumnName::*;
        match event {
            Event::Bid => &[
                ("auction", Auction),
                ("bidder", Bidder),
                ("price", Price),
                ("channel", Channel),
                ("url", Url),
                ("dateTime", DateTime),
                ("extra", Extra),
            ],
            Event::Auction => &[
                ("id", AuctionId),
                ("itemName", ItemName),
                ("description", Description),
                ("initialBid", InitialBid),
                ("reserve", Reserve),
                ("dateTime", DateTime),
                ("expires", Expires),
                ("seller", Seller),
                ("category", Category),
                ("extra", Extra),
            ],
            Event::Person => &[
                ("id", PersonId),
                ("name", Name),
                ("emailAddress", EmailAddress),
                ("creditCard", CreditCard),
                ("city", City),
                ("state", State),
                ("dateTime", DateTime),
                ("extra", Extra),
            ],
        }
    }

    pub(super) fn sql_type(self) -> &'static str {
        use ColumnName::*;
        match self {
            Auction | Bidder | Price | AuctionId | InitialBid | Reserve | Seller | Category | PersonId => "BIGINT",
            DateTime | Expires => "TIMESTAMP(3)",
            _ => "STRING",
        }
    }

    /// Timestamps may have any precision, with or without time zone.
    pub(super) fn accepts(self, data_type: &DataType) -> bool {
        match self.sql_type() {
            "BIGINT" => *data_type == DataType::Int64,
            "STRING" => *data_type == DataType::Utf8,
            _ => matches!(data_type, DataType::Timestamp(..)),
        }
    }
}

/// One column of some rows of a split.
pub(super) fn generate(model: &Model, field: &FieldRef, split: SplitId, rows: Range<Offset>) -> ArrayRef {
    let named = ColumnName::all_of(model.event).iter().find(|(name, _)| name == field.name());
    let column = named.map(|(_, column)| *column).expect("`check` has refused other names");
    let events = rows.map(|row| model.event_of_row(split, row));
    match column.sql_type() {
        "BIGINT" => Arc::new(Int64Array::from_iter_values(events.map(|event| number(model, column, event)))),
        "STRING" => texts(events, |event, out| write_text(model, column, event, out)),
        _ => times(field, events.map(|event| time_ms(model, column, event))),
    }
}

fn number(model: &Model, column: ColumnName, event: i64) -> i64 {
    match column {
        ColumnName::Auction => model.auction_of_bid(event),
        ColumnName::Bidder => model.bidder(event),
        ColumnName::AuctionId => model.auction(event),
        ColumnName::Seller => model.seller(event),
        ColumnName::Category => model.category(event),
        ColumnName::PersonId => model.person(event),
        ColumnName::Reserve => {
            // The reserve lies above the initial bid, which is the first price of the same stream.
            let mut random = model.random(event, Stream::Price);
            model.price(&mut random) + model.price(&mut random)
        }
        _ => model.price(&mut model.random(event, Stream::Price)),
    }
}

fn time_ms(model: &Model, column: ColumnName, event: i64) -> i64 {
    let time = model.time_ms(event);
    if column == ColumnName::Expires { time + model.open_ms(event) } else { time }
}

fn write_text(model: &Model, column: ColumnName, event: i64, out: &mut Vec<u8>) {
    let random = |stream| model.random(event, stream);
    match column {
        ColumnName::Channel => match channel(model, event) {
            Channel::Hot(index) => out.extend_from_slice(HOT_CHANNELS[index].as_bytes()),
            Channel::Other(number) => {
                out.extend_from_slice(b"channel-");
                write_number(out, number);
            }
        },
        ColumnName::Url => write_url(model, event, out),
        ColumnName::ItemName => random(Stream::Text).write_text(out, 20),
        ColumnName::Description => {
            let mut text = random(Stream::Text);
            text.next();
            text.next();
            text.write_text(out, 100);
        }
        ColumnName::Name => {
            let mut name = random(Stream::Name);
            out.extend_from_slice(one_of(&FIRST_NAMES, &mut name));
            out.push(b' ');
            out.extend_from_slice(one_of(&LAST_NAMES, &mut name));
        }
        ColumnName::EmailAddress => {
            let mut mail = random(Stream::Mail);
            mail.write_text(out, 7);
            out.push(b'@');
            mail.write_text(out, 5);
            out.extend_from_slice(b".com");
        }
        ColumnName::CreditCard => {
            let mut card = random(Stream::Card);
            for block in 0..4 {
                if block > 0 {
                    out.push(b' ');
                }
                let digits = card.below(10_000);
                out.extend([digits / 1000, digits / 100 % 10, digits / 10 % 10, digits % 10].map(|digit| b'0' + digit as u8));
            }
        }
        ColumnName::City => out.extend_from_slice(one_of(&CITIES, &mut random(Stream::Place))),
        ColumnName::State => {
            let mut place = random(Stream::Place);
            place.next();
            out.extend_from_slice(one_of(&STATES, &mut place));
        }
        _ => write_extra(model, event, &mut random(Stream::Extra), out),
    }
}

enum Channel {
    Hot(usize),
    Other(u64),
}

/// Half of the bids come through four channels, the rest through ten thousand.
fn channel(model: &Model, event: i64) -> Channel {
    let mut random = model.random(event, Stream::Channel);
    if random.below(2) > 0 {
        Channel::Hot(random.below(HOT_CHANNELS.len() as u64) as usize)
    } else {
        Channel::Other(random.below(CHANNELS))
    }
}

/// A channel's url is always the same one; nine of ten name the channel in it.
fn write_url(model: &Model, event: i64, out: &mut Vec<u8>) {
    let number = match channel(model, event) {
        Channel::Hot(index) => CHANNELS + index as u64,
        Channel::Other(number) => number,
    };
    let mut random = model.random(-1 - number as i64, Stream::Channel);
    out.extend_from_slice(b"https://www.nexmark.com/");
    for _ in 0..3 {
        random.write_text(out, 5);
        out.push(b'/');
    }
    out.extend_from_slice(b"item.htm?query=1");
    if number < CHANNELS && random.below(10) > 0 {
        out.extend_from_slice(b"&channel_id=");
        write_number(out, number);
    }
}

/// Fills the event up to its usual size, give or take a fifth.
fn write_extra(model: &Model, _event: i64, random: &mut Random, out: &mut Vec<u8>) {
    let others = match model.event {
        Event::Bid => BID_BYTES - 4 * 8,
        Event::Auction => AUCTION_BYTES - (7 * 8 + 120),
        Event::Person => PERSON_BYTES - (2 * 8 + 65),
    };
    let spread = others / 5;
    let length = others - spread + random.below(2 * spread as u64 + 1) as usize;
    random.write_text(out, length);
}

fn one_of<'w>(words: &[&'w str], random: &mut Random) -> &'w [u8] {
    words[random.below(words.len() as u64) as usize].as_bytes()
}

fn write_number(out: &mut Vec<u8>, number: u64) {
    out.extend_from_slice(itoa::Buffer::new().format(number).as_bytes());
}

/// A text column from a function that appends one value.
pub(crate) fn texts<T>(items: impl Iterator<Item = T>, mut write: impl FnMut(T, &mut Vec<u8>)) -> ArrayRef {
    let mut data = Vec::with_capacity(items.size_hint().0 * 32);
    let mut ends = Vec::with_capacity(items.size_hint().0 + 1);
    ends.push(0);
    for item in items {
        write(item, &mut data);
        ends.push(i32::try_from(data.len()).expect("a take is bounded far below 2 GiB"));
    }
    Arc::new(StringArray::new(OffsetBuffer::new(ScalarBuffer::from(ends)), Buffer::from_vec(data), None))
}

/// A timestamp column of the field's precision and zone from milliseconds.
pub(crate) fn times(field: &FieldRef, millis: impl Iterator<Item = i64>) -> ArrayRef {
    let DataType::Timestamp(unit, zone) = field.data_type() else { unreachable!("`check` has refused other types") };
    match unit {
        TimeUnit::Second => {
            Arc::new(TimestampSecondArray::from_iter_values(millis.map(|ms| ms.div_euclid(1000))).with_timezone_opt(zone.clone()))
        }
        TimeUnit::Millisecond => Arc::new(TimestampMillisecondArray::from_iter_values(millis).with_timezone_opt(zone.clone())),
        TimeUnit::Microsecond => {
            Arc::new(TimestampMicrosecondArray::from_iter_values(millis.map(|ms| ms * 1000)).with_timezone_opt(zone.clone()))
        }
        TimeUnit::Nanosecond => Arc::new(
            TimestampNanosecondArray::from_iter_values(millis.map(|ms| ms.saturating_mul(1_000_000))).with_timezone_opt(zone.clone()),
        ),
    }
}
