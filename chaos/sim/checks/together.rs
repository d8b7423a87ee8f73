//! E-3: what belongs to an epoch is committed in one transaction, or not at all.
//!
//! A transaction of a slot holds, for some regions, output and an epoch record each. So output without any epoch record is torn off:
//! this is what a late EndTxn of an earlier transaction would leave (KIP-890). Where the driver can tell which epochs a message belongs to
//! ([`TogetherCheck::with_claims`]), each of them must be there, and be nowhere else.

use super::{Check, is_changelog, recorded};
use crate::world::{Entry, Message, Transaction};
use std::collections::BTreeSet;
use streamshield_core::ids::{Epoch, RegionId};

/// The epochs that a message of an output topic belongs to.
pub type Claims = Box<dyn Fn(&Message) -> Vec<(RegionId, Epoch)> + Send>;

/// See the module text.
pub struct TogetherCheck {
    is_output: Box<dyn Fn(&str) -> bool + Send>,
    claims: Option<Claims>,
}

impl TogetherCheck {
    /// `is_output` names the topics that regions write rows to: exchanges, sinks, side topics.
    pub fn new(is_output: impl Fn(&str) -> bool + Send + 'static) -> TogetherCheck {
        TogetherCheck { is_output: Box::new(is_output), claims: None }
    }

    /// Every topic is output that is neither a changelog nor the job's control log.
    pub fn of_job(job: &str) -> TogetherCheck {
        let control = format!("{job}-control");
        TogetherCheck::new(move |topic| topic != control && !is_changelog(topic))
    }

    pub fn with_claims(self, claims: impl Fn(&Message) -> Vec<(RegionId, Epoch)> + Send + 'static) -> TogetherCheck {
        TogetherCheck { claims: Some(Box::new(claims)), ..self }
    }

    fn check(&self, transaction: &Transaction) -> Result<(), String> {
        let name = format!("transaction {} of {}", transaction.number, transaction.transactional_id);
        let (found, orphans) = recorded(transaction);
        if orphans > 0 {
            return Err(format!("E-3: {name} holds {orphans} parts of a delta without an epoch record behind them"));
        }
        for recorded in &found {
            let wanted = recorded.record.delta.map_or((0, 0), |delta| (delta.chunks, delta.bytes));
            if wanted != (recorded.chunks, recorded.chunk_bytes) {
                return Err(format!(
                    "E-3: {} epoch {} says that {} parts of a delta with {} bytes come before it, {name} holds {} with {}",
                    recorded.record.region, recorded.record.epoch, wanted.0, wanted.1, recorded.chunks, recorded.chunk_bytes
                ));
            }
        }
        let outputs: Vec<_> = transaction.messages.iter().filter(|message| (self.is_output)(&message.partition.topic)).collect();
        if let (Some(first), true) = (outputs.first(), found.is_empty()) {
            return Err(format!("E-3: {name} holds output ({} offset {}) and no epoch record", first.partition, first.offset));
        }
        let Some(claims) = &self.claims else { return Ok(()) };
        let epochs: BTreeSet<_> = found.iter().map(|recorded| (recorded.record.region, recorded.record.epoch)).collect();
        for message in outputs {
            if let Some((region, epoch)) = claims(message).into_iter().find(|claim| !epochs.contains(claim)) {
                let place = format!("{} offset {}", message.partition, message.offset);
                return Err(format!("E-3: {name} holds output of {region} epoch {epoch} ({place}) without its record"));
            }
        }
        Ok(())
    }
}

impl Check for TogetherCheck {
    fn take(&mut self, entry: &Entry) -> Result<(), String> {
        match entry {
            Entry::Ended(transaction) if transaction.is_committed => self.check(transaction),
            // What the log's users write themselves is no output of a region; a plain epoch record would be.
            Entry::Plain(message) if is_changelog(&message.partition.topic) => {
                Err(format!("E-3: {} offset {} was written outside of any transaction", message.partition, message.offset))
            }
            _ => Ok(()),
        }
    }
}
