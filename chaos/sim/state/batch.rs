//! What a flush or a delta writes, apart from where it is written: entries, removals, their digest, their bytes.

use std::collections::BTreeMap;
use streamshield_core::ids::Digest;
use streamshield_core::ports::state::{StateError, StateErrorKind, Window};
use xxhash_rust::xxh3::xxh3_64_with_seed;

const ENTRY_SEED: u64 = 1;
const REMOVAL_SEED: u64 = 2;
const MAGIC: &[u8; 4] = b"sim1";

/// A group: its operator, window and key.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct GroupKey {
    pub operator: u16,
    pub window: Window,
    pub key: Vec<u8>,
}

/// A group's states, one per column, each as a row of `arrow-row`.
pub(crate) type States = Vec<Vec<u8>>;

/// The groups that exist, in order.
pub(crate) type Groups = BTreeMap<GroupKey, States>;

/// Removals come before entries: what a drain has removed may have been merged again.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Batch {
    /// Per window, the last key that was removed, or none for all of it.
    pub removals: BTreeMap<(u16, Window), Option<Vec<u8>>>,
    pub entries: Groups,
}

impl Batch {
    /// A drain has removed everything up to this key, or the whole window.
    pub fn remove(&mut self, operator: u16, window: Window, through: Option<Vec<u8>>) {
        let removed = self.removals.entry((operator, window)).or_insert_with(|| Some(Vec::new()));
        *removed = match (removed.take(), through) {
            (Some(before), Some(through)) => Some(before.max(through)),
            _ => None,
        };
    }

    /// Takes over the removals of another one, which come after those that are here.
    pub fn remove_all(&mut self, other: &Batch) {
        for ((operator, window), through) in &other.removals {
            self.remove(*operator, *window, through.clone());
        }
    }

    /// Independent of the order in which things happened.
    pub fn digest(&self) -> Digest {
        let mut digest = Digest::default();
        for ((operator, window), through) in &self.removals {
            let mut bytes = prefix(*operator, *window);
            bytes.push(u8::from(through.is_some()));
            bytes.extend_from_slice(through.as_deref().unwrap_or_default());
            digest.fold(xxh3_64_with_seed(&bytes, REMOVAL_SEED));
        }
        for (key, states) in &self.entries {
            let mut bytes = prefix(key.operator, key.window);
            put(&mut bytes, &key.key);
            states.iter().for_each(|state| put(&mut bytes, state));
            digest.fold(xxh3_64_with_seed(&bytes, ENTRY_SEED));
        }
        digest
    }

    pub fn bytes(&self) -> usize {
        let entry = |(key, states): (&GroupKey, &States)| key.key.len() + states.iter().map(Vec::len).sum::<usize>();
        self.entries.iter().map(entry).sum::<usize>() + self.removals.len()
    }

    pub fn apply_to(&self, groups: &mut Groups) {
        for ((operator, window), through) in &self.removals {
            groups.retain(|group, _| {
                let is_in_window = (group.operator, group.window) == (*operator, *window);
                !(is_in_window && through.as_ref().is_none_or(|through| group.key <= *through))
            });
        }
        groups.extend(self.entries.iter().map(|(key, states)| (key.clone(), states.clone())));
    }

    pub fn encode(&self) -> Vec<u8> {
        let mut out = MAGIC.to_vec();
        out.extend_from_slice(&(self.removals.len() as u32).to_le_bytes());
        for ((operator, window), through) in &self.removals {
            out.extend(prefix(*operator, *window));
            out.push(u8::from(through.is_some()));
            put(&mut out, through.as_deref().unwrap_or_default());
        }
        for (key, states) in &self.entries {
            out.extend(prefix(key.operator, key.window));
            put(&mut out, &key.key);
            out.push(states.len() as u8);
            states.iter().for_each(|state| put(&mut out, state));
        }
        out
    }

    pub fn decode(bytes: &[u8]) -> Result<Batch, StateError> {
        let message = "bytes that are no delta of the simulation".to_owned();
        Self::parse(bytes).ok_or(StateError { kind: StateErrorKind::Damaged, message })
    }

    fn parse(bytes: &[u8]) -> Option<Batch> {
        let mut rest = bytes.strip_prefix(MAGIC)?;
        let mut batch = Batch::default();
        let removals = u32::from_le_bytes(take(&mut rest)?);
        for _ in 0..removals {
            let place = take_prefix(&mut rest)?;
            let [has_through] = take::<1>(&mut rest)?;
            let through = take_bytes(&mut rest)?.to_vec();
            batch.removals.insert(place, (has_through == 1).then_some(through));
        }
        while !rest.is_empty() {
            let (operator, window) = take_prefix(&mut rest)?;
            let key = take_bytes(&mut rest)?.to_vec();
            let [count] = take::<1>(&mut rest)?;
            let states = (0..count).map(|_| take_bytes(&mut rest).map(<[u8]>::to_vec)).collect::<Option<States>>()?;
            batch.entries.insert(GroupKey { operator, window, key }, states);
        }
        Some(batch)
    }
}

fn prefix(operator: u16, window: Window) -> Vec<u8> {
    let mut bytes = operator.to_le_bytes().to_vec();
    bytes.extend_from_slice(&window.end_ms.to_le_bytes());
    bytes.extend_from_slice(&window.start_ms.to_le_bytes());
    bytes
}

fn put(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
    out.extend_from_slice(bytes);
}

fn take<const N: usize>(rest: &mut &[u8]) -> Option<[u8; N]> {
    let (front, after) = rest.split_first_chunk::<N>()?;
    *rest = after;
    Some(*front)
}

fn take_prefix(rest: &mut &[u8]) -> Option<(u16, Window)> {
    let operator = u16::from_le_bytes(take(rest)?);
    let end_ms = i64::from_le_bytes(take(rest)?);
    let start_ms = i64::from_le_bytes(take(rest)?);
    Some((operator, Window { end_ms, start_ms }))
}

fn take_bytes<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let length = u32::from_le_bytes(take(rest)?) as usize;
    let (front, after) = rest.split_at_checked(length)?;
    *rest = after;
    Some(front)
}
