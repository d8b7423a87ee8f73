//! What a Nexmark table may say.

use super::columns::ColumnName;
use super::model::{EVENTS_PER_GROUP, Event};
use crate::formats::sql_type;
use crate::generator::{EventClock, Shape, StartTime, start_time};
use crate::options::{OptionReader, nearest, refuse};
use streamshield_core::table::{ColumnKind, OptionError, TableDefinition};

/// Event time advances by this much per event unless the table says otherwise: 10,000 events per second, as in Nexmark.
const DEFAULT_INTERVAL_NS: i64 = 100_000;

#[derive(Clone, Debug)]
pub(super) struct NexmarkOptions {
    pub event: Event,
    pub shape: Shape,
    pub clock: EventClock,
    /// Events come out of order by up to this much.
    pub skew_ms: u64,
    /// With one of these, bids go to this many auctions with this skew, instead of to those that are open.
    pub number_of_keys: Option<u64>,
    pub zipf_exponent: f64,
}

impl NexmarkOptions {
    pub(super) fn read(table: &TableDefinition) -> Result<Self, Vec<OptionError>> {
        let mut options = OptionReader::new(table);
        let event = match options.choice("nexmark.table", &["bid", "auction", "person"]) {
            Some("auction") => Event::Auction,
            Some("person") => Event::Person,
            _ => Event::Bid,
        };
        let shape = Shape::read(&mut options, None);
        let interval_ns = interval_ns(&mut options, event, &shape);
        let clock = match start_time(&mut options, "event-time.start") {
            StartTime::At(start_ms) => EventClock::new(start_ms, interval_ns),
            StartTime::Now => EventClock::from_now(interval_ns),
        };
        let skew_ms = options.duration("event-time.skew").map_or(0, |skew| skew.as_millis() as u64);
        let number_of_keys = options.number::<u64>("number-of-keys", "a number of auctions");
        if number_of_keys == Some(0) {
            options.error("number-of-keys", "'number-of-keys' must be at least 1".into(), None);
        }
        let exponent = options.number::<f64>("keys.zipf", "an exponent such as 1.2");
        if exponent.is_some_and(|exponent| !(0.0..=10.0).contains(&exponent)) {
            options.error("keys.zipf", "'keys.zipf' must be from 0 (uniform) to 10".into(), None);
        }
        if event != Event::Bid && (number_of_keys.is_some() || exponent.is_some()) {
            let key = if exponent.is_some() { "keys.zipf" } else { "number-of-keys" };
            options.error(key, format!("'{key}' is about the auctions of bids; this table reads events of kind '{}'", event.name()), None);
        }
        let columns = check_columns(table, event);
        options.add(columns);
        let read = NexmarkOptions {
            event,
            shape,
            clock,
            skew_ms,
            number_of_keys: number_of_keys.or(exponent.map(|_| 1000)),
            zipf_exponent: exponent.filter(|exponent| exponent.is_finite()).unwrap_or(0.0).clamp(0.0, 10.0),
        };
        let errors = options.finish(|_| false);
        if errors.is_empty() { Ok(read) } else { Err(errors) }
    }
}

/// Event time between two events of any kind: said outright, or so that event time keeps pace with `rows-per-second`.
fn interval_ns(options: &mut OptionReader<'_>, event: Event, shape: &Shape) -> i64 {
    let interval = options.duration("event-time.interval").map(|interval| i64::try_from(interval.as_nanos()).unwrap_or(i64::MAX));
    let per_second = options.number::<f64>("event-time.events-per-second", "a number of events");
    if interval.is_some() && per_second.is_some() {
        options.error("event-time.events-per-second", "'event-time.interval' says the same in another way: keep one of them".into(), None);
    }
    if interval == Some(0) || per_second.is_some_and(|rate| !rate.is_finite() || rate <= 0.0) {
        let key = if interval == Some(0) { "event-time.interval" } else { "event-time.events-per-second" };
        options.error(key, format!("'{key}' must be more than 0"), None);
    }
    let events_per_second = per_second.or_else(|| Some(shape.rows_per_second? * EVENTS_PER_GROUP as f64 / event.per_group() as f64));
    interval.or_else(|| events_per_second.map(|rate| (1e9 / rate) as i64)).unwrap_or(DEFAULT_INTERVAL_NS).max(1)
}

fn check_columns(table: &TableDefinition, event: Event) -> Vec<OptionError> {
    let mut errors = Vec::new();
    let known = ColumnName::all_of(event);
    for column in &table.columns {
        let name = column.field.name();
        match &column.kind {
            ColumnKind::Computed => {}
            ColumnKind::Metadata { key, .. } => errors.push(refuse("", format!("nexmark has no metadata '{key}' (column '{name}')"), None)),
            ColumnKind::Physical => match known.iter().find(|(known, _)| known == name) {
                None => {
                    let names: Vec<&str> = known.iter().map(|(name, _)| *name).collect();
                    let hint = match nearest(name, names.iter().copied()) {
                        Some(near) => format!("did you mean '{near}'?"),
                        None => format!("its columns are {}", crate::options::list(&names)),
                    };
                    errors.push(refuse("nexmark.table", format!("events of kind '{}' have no column '{name}'", event.name()), Some(hint)));
                }
                Some((_, column_name)) if !column_name.accepts(column.field.data_type()) => {
                    let message =
                        format!("column '{name}' is {} in Nexmark, not {}", column_name.sql_type(), sql_type(column.field.data_type()));
                    errors.push(refuse("nexmark.table", message, None));
                }
                Some(_) => {}
            },
        }
    }
    errors
}
