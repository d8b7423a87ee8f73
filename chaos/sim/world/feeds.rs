//! What each reader knows of the log: a prefix of the committed messages, perhaps an old one.
//!
//! A real reader learns of new messages by an answer to its fetch, which comes when it comes, and for each partition on its own. So a
//! feed remembers up to where its reader has heard, and every growth of a partition is heard at once or later, by a draw per reader.

use super::ClientId;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Weak};
use streamshield_core::ids::Offset;
use streamshield_core::ports::log::{TopicPartition, Wakeup};
use streamshield_embedded::log_core::{Event, LogCore};

/// One reader.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct ReaderId(u64);

struct Feed {
    /// Nothing at or after this has been heard of.
    heard: Offset,
    /// When it hears of what came meanwhile.
    hears_ms: Option<i64>,
}

struct Reader {
    client: ClientId,
    wakeup: Weak<Wakeup>,
}

/// The feeds of all readers.
#[derive(Default)]
pub(crate) struct Feeds {
    readers: BTreeMap<ReaderId, Reader>,
    feeds: BTreeMap<TopicPartition, BTreeMap<ReaderId, Feed>>,
    numbers: u64,
    /// Clients that stand still: what they have heard of is what they had.
    frozen: BTreeSet<ClientId>,
}

impl Feeds {
    pub fn add(&mut self, client: ClientId, wakeup: &Arc<Wakeup>) -> ReaderId {
        self.numbers += 1;
        let reader = ReaderId(self.numbers);
        self.readers.insert(reader, Reader { client, wakeup: Arc::downgrade(wakeup) });
        reader
    }

    pub fn remove(&mut self, reader: ReaderId) {
        self.readers.remove(&reader);
        self.feeds.retain(|_, feeds| {
            feeds.remove(&reader);
            !feeds.is_empty()
        });
    }

    pub fn forget_client(&mut self, client: ClientId) {
        let gone: Vec<_> = self.readers.iter().filter(|(_, reader)| reader.client == client).map(|(id, _)| *id).collect();
        gone.into_iter().for_each(|reader| self.remove(reader));
    }

    /// The client stands still, and its readers with it.
    pub fn freeze(&mut self, client: ClientId) {
        self.frozen.insert(client);
    }

    /// The client goes on, with what it knew; what came meanwhile it hears at the times that `late` gives.
    pub fn thaw(&mut self, core: &LogCore, client: ClientId, mut late: impl FnMut() -> i64) {
        if !self.frozen.remove(&client) {
            return;
        }
        for (partition, feeds) in &mut self.feeds {
            let end = stable_end(core, partition);
            let is_its = |reader: &ReaderId| self.readers.get(reader).is_some_and(|reader| reader.client == client);
            for (_, feed) in feeds.iter_mut().filter(|(reader, feed)| is_its(reader) && feed.heard < end) {
                feed.hears_ms = Some(late());
            }
        }
    }

    /// A reader begins with what there is.
    pub fn assign(&mut self, core: &LogCore, reader: ReaderId, partition: &TopicPartition) {
        let feed = Feed { heard: stable_end(core, partition), hears_ms: None };
        self.feeds.entry(partition.clone()).or_default().insert(reader, feed);
        self.wake(reader);
    }

    pub fn unassign(&mut self, reader: ReaderId, partition: &TopicPartition) {
        if let Some(feeds) = self.feeds.get_mut(partition) {
            feeds.remove(&reader);
        }
    }

    /// Up to where a reader has heard.
    pub fn heard(&self, reader: ReaderId, partition: &TopicPartition) -> Option<Offset> {
        self.feeds.get(partition)?.get(&reader).map(|feed| feed.heard)
    }

    /// Up to where the slowest of a client's readers has heard.
    pub fn heard_by(&self, client: ClientId, partition: &TopicPartition) -> Option<Offset> {
        let is_its = |reader: &ReaderId| self.readers.get(reader).is_some_and(|reader| reader.client == client);
        self.feeds.get(partition)?.iter().filter(|(reader, _)| is_its(reader)).map(|(_, feed)| feed.heard).min()
    }

    /// Partitions have grown: each of their readers hears of it now, or at the time that `late` draws. Returns how many hear later.
    pub fn settle(&mut self, core: &LogCore, events: &[Event], mut late: impl FnMut() -> Option<i64>) -> u64 {
        let mut touched = BTreeSet::new();
        for event in events {
            if let Event::BatchAppended { topic, partition, .. } = event {
                touched.insert(TopicPartition::new(Arc::clone(topic), *partition));
            }
        }
        let (mut delayed, mut awake) = (0, BTreeSet::new());
        for partition in touched {
            let Some(feeds) = self.feeds.get_mut(&partition) else { continue };
            let end = stable_end(core, &partition);
            let is_still = |reader: &ReaderId| self.readers.get(reader).is_some_and(|reader| self.frozen.contains(&reader.client));
            let hears = |(reader, feed): &(&ReaderId, &mut Feed)| feed.heard < end && feed.hears_ms.is_none() && !is_still(reader);
            for (reader, feed) in feeds.iter_mut().filter(hears) {
                feed.hears_ms = late();
                if feed.hears_ms.is_some() {
                    delayed += 1;
                } else {
                    feed.heard = end;
                    awake.insert(*reader);
                }
            }
        }
        awake.into_iter().for_each(|reader| self.wake(reader));
        delayed
    }

    /// Lets every reader hear that is to hear by now.
    pub fn refresh(&mut self, core: &LogCore, now_ms: i64) {
        let mut awake = BTreeSet::new();
        for (partition, feeds) in &mut self.feeds {
            let is_still = |reader: &ReaderId| self.readers.get(reader).is_some_and(|reader| self.frozen.contains(&reader.client));
            for (reader, feed) in feeds.iter_mut().filter(|(_, feed)| feed.hears_ms.is_some_and(|due_ms| due_ms <= now_ms)) {
                feed.hears_ms = None;
                if is_still(reader) {
                    continue;
                }
                feed.heard = feed.heard.max(stable_end(core, partition));
                awake.insert(*reader);
            }
        }
        awake.into_iter().for_each(|reader| self.wake(reader));
    }

    pub fn next_refresh_ms(&self) -> Option<i64> {
        self.feeds.values().flat_map(|feeds| feeds.values().filter_map(|feed| feed.hears_ms)).min()
    }

    fn wake(&self, reader: ReaderId) {
        if let Some(wakeup) = self.readers.get(&reader).and_then(|reader| reader.wakeup.upgrade()) {
            wakeup.raise();
        }
    }
}

fn stable_end(core: &LogCore, partition: &TopicPartition) -> Offset {
    core.partition(&partition.topic, partition.partition).map_or(0, |log| log.last_stable_offset())
}
