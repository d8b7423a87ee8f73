//! The kinds of tables that the model test runs: key types, and states of every sort.

use crate::fixtures::{OPERATOR, aggregate, field};
use arrow_array::builder::{Int64Builder, ListBuilder};
use arrow_array::cast::AsArray;
use arrow_array::types::{Decimal128Type, Float64Type, Int32Type, Int64Type};
use arrow_array::{Array, ArrayRef, BooleanArray, Decimal128Array, Float64Array, Int32Array, Int64Array, ListArray, StringArray};
use arrow_schema::{DataType, Field};
use std::collections::BTreeSet;
use std::sync::Arc;
use streamshield_core::ports::state::{Drained, Merge, StateError, StateMerger, WindowTableSpec};

/// A key as the model orders it: null first, numbers and strings as usual.
pub type Key = Vec<Option<Value>>;

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Value {
    Number(i64),
    Text(String),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyKind {
    Empty,
    Integer,
    NullableInteger,
    NullableText,
    TwoIntegers,
    TextAndInteger,
}

pub const KEY_KINDS: [KeyKind; 6] =
    [KeyKind::Empty, KeyKind::Integer, KeyKind::NullableInteger, KeyKind::NullableText, KeyKind::TwoIntegers, KeyKind::TextAndInteger];

/// The states of one group, or the values of one row.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct States {
    pub count: i64,
    pub total: Option<i128>,
    pub least: Option<String>,
    pub greatest: Option<i64>,
    pub float_least: Option<f64>,
    pub any: Option<bool>,
    pub distinct: BTreeSet<i64>,
}

impl States {
    pub fn merge(&mut self, other: &States) {
        fn with<T: Clone>(left: &Option<T>, right: &Option<T>, merge: impl Fn(T, T) -> T) -> Option<T> {
            match (left.clone(), right.clone()) {
                (Some(left), Some(right)) => Some(merge(left, right)),
                (left, right) => left.or(right),
            }
        }
        self.count = self.count.wrapping_add(other.count);
        self.total = with(&self.total, &other.total, |left, right| left + right);
        self.least = with(&self.least, &other.least, Ord::min);
        self.greatest = with(&self.greatest, &other.greatest, Ord::max);
        self.float_least = with(&self.float_least, &other.float_least, |left, right| if right < left { right } else { left });
        self.any = with(&self.any, &other.any, |left, right| left | right);
        self.distinct.extend(&other.distinct);
    }
}

fn list_type() -> DataType {
    DataType::List(Arc::new(Field::new("item", DataType::Int64, true)))
}

/// Sets of integers, as sorted lists.
struct SetUnion;

fn set_at(lists: &ListArray, row: usize) -> BTreeSet<i64> {
    lists.value(row).as_primitive::<Int64Type>().values().iter().copied().collect()
}

fn lists<'a>(sets: impl Iterator<Item = &'a BTreeSet<i64>>) -> ArrayRef {
    let mut builder = ListBuilder::new(Int64Builder::new());
    for set in sets {
        set.iter().for_each(|&value| builder.values().append_value(value));
        builder.append(true);
    }
    Arc::new(builder.finish())
}

impl StateMerger for SetUnion {
    fn merge(&self, stored: &[ArrayRef], incoming: &[ArrayRef], groups: &[usize]) -> Result<Vec<ArrayRef>, StateError> {
        let (stored, incoming) = (stored[0].as_list::<i32>(), incoming[0].as_list::<i32>());
        let mut sets: Vec<BTreeSet<i64>> = (0..stored.len()).map(|row| set_at(stored, row)).collect();
        for (row, &group) in groups.iter().enumerate() {
            sets[group].extend(set_at(incoming, row));
        }
        Ok(vec![lists(sets.iter())])
    }
}

const DECIMAL: DataType = DataType::Decimal128(30, 2);

pub fn spec(kind: KeyKind) -> WindowTableSpec {
    let keys = match kind {
        KeyKind::Empty => vec![],
        KeyKind::Integer => vec![field("key", DataType::Int64, false)],
        KeyKind::NullableInteger => vec![field("key", DataType::Int32, true)],
        KeyKind::NullableText => vec![field("key", DataType::Utf8, true)],
        KeyKind::TwoIntegers => vec![field("a", DataType::Int32, true), field("b", DataType::Int64, true)],
        KeyKind::TextAndInteger => vec![field("a", DataType::Utf8, true), field("b", DataType::Int64, true)],
    };
    let aggregates = vec![
        aggregate(Merge::Sum, &[DataType::Int64, DECIMAL]),
        aggregate(Merge::Min, &[DataType::Utf8]),
        aggregate(Merge::Max, &[DataType::Int64]),
        aggregate(Merge::Min, &[DataType::Float64]),
        aggregate(Merge::Max, &[DataType::Boolean]),
        aggregate(Merge::Other(Arc::new(SetUnion)), &[list_type()]),
    ];
    WindowTableSpec { operator: OPERATOR, keys, aggregates }
}

/// One of a few dozen keys of a kind.
pub fn key(kind: KeyKind, number: u8) -> Key {
    let integer = Some(Value::Number(i64::from(number) - 20));
    let nullable = if number == 0 { None } else { integer.clone() };
    let text = match number % 8 {
        0 => None,
        1 => Some(Value::Text(String::new())),
        length => Some(Value::Text("x\0é".repeat(length as usize * 3) + &number.to_string())),
    };
    match kind {
        KeyKind::Empty => vec![],
        KeyKind::Integer => vec![integer],
        KeyKind::NullableInteger => vec![nullable],
        KeyKind::NullableText => vec![text],
        KeyKind::TwoIntegers => vec![Some(Value::Number(i64::from(number % 3))), nullable],
        KeyKind::TextAndInteger => vec![text, nullable],
    }
}

fn numbers(keys: &[Key], column: usize) -> impl Iterator<Item = Option<i64>> + '_ {
    keys.iter().map(move |key| match &key[column] {
        Some(Value::Number(number)) => Some(*number),
        _ => None,
    })
}

pub fn key_arrays(kind: KeyKind, keys: &[Key]) -> Vec<ArrayRef> {
    let long = |column| Arc::new(numbers(keys, column).collect::<Int64Array>()) as ArrayRef;
    let short = |column| Arc::new(numbers(keys, column).map(|n| n.map(|n| n as i32)).collect::<Int32Array>()) as ArrayRef;
    let text = |column: usize| {
        let texts = keys.iter().map(|key| match &key[column] {
            Some(Value::Text(text)) => Some(text.as_str()),
            _ => None,
        });
        Arc::new(texts.collect::<StringArray>()) as ArrayRef
    };
    match kind {
        KeyKind::Empty => vec![],
        KeyKind::Integer => vec![long(0)],
        KeyKind::NullableInteger => vec![short(0)],
        KeyKind::NullableText => vec![text(0)],
        KeyKind::TwoIntegers => vec![short(0), long(1)],
        KeyKind::TextAndInteger => vec![text(0), long(1)],
    }
}

pub fn state_arrays(rows: &[States]) -> Vec<ArrayRef> {
    let totals: Decimal128Array = rows.iter().map(|row| row.total).collect();
    vec![
        Arc::new(Int64Array::from_iter_values(rows.iter().map(|row| row.count))),
        Arc::new(totals.with_data_type(DECIMAL)),
        Arc::new(rows.iter().map(|row| row.least.as_deref()).collect::<StringArray>()),
        Arc::new(rows.iter().map(|row| row.greatest).collect::<Int64Array>()),
        Arc::new(rows.iter().map(|row| row.float_least).collect::<Float64Array>()),
        Arc::new(rows.iter().map(|row| row.any).collect::<BooleanArray>()),
        lists(rows.iter().map(|row| &row.distinct)),
    ]
}

/// A drained portion as the model has it.
pub fn rows(kind: KeyKind, drained: &Drained) -> Vec<(Key, States)> {
    let number = |array: &ArrayRef, row: usize| {
        let value = match array.data_type() {
            DataType::Int32 => i64::from(array.as_primitive::<Int32Type>().value(row)),
            _ => array.as_primitive::<Int64Type>().value(row),
        };
        Some(Value::Number(value))
    };
    let cell = |array: &ArrayRef, row: usize| match array.data_type() {
        _ if array.is_null(row) => None,
        DataType::Utf8 => Some(Value::Text(array.as_string::<i32>().value(row).to_owned())),
        _ => number(array, row),
    };
    let [count, total, least, greatest, float_least, any, distinct] = drained.states.as_slice() else {
        panic!("seven state columns are drained, not {}", drained.states.len());
    };
    assert_eq!(drained.keys.len(), spec(kind).keys.len());
    let states = |row: usize| States {
        count: count.as_primitive::<Int64Type>().value(row),
        total: total.is_valid(row).then(|| total.as_primitive::<Decimal128Type>().value(row)),
        least: least.is_valid(row).then(|| least.as_string::<i32>().value(row).to_owned()),
        greatest: greatest.is_valid(row).then(|| greatest.as_primitive::<Int64Type>().value(row)),
        float_least: float_least.is_valid(row).then(|| float_least.as_primitive::<Float64Type>().value(row)),
        any: any.is_valid(row).then(|| any.as_boolean().value(row)),
        distinct: set_at(distinct.as_list::<i32>(), row),
    };
    (0..count.len()).map(|row| (drained.keys.iter().map(|array| cell(array, row)).collect(), states(row))).collect()
}
