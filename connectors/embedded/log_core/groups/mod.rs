//! Consumer groups with the classic protocol: who is a member, which generation it is, who gets which partitions.
//!
//! Joining and syncing wait for other members. The core can't wait, so a waiting call carries a [`Token`] of the caller's
//! choice, and the answer comes out of [`Groups::take_replies`] under that token, at once or after a later call or tick.
//! Assignments are made by the group's leader, a client; they are opaque bytes here.
//!
//! Not durable: after a restart members get "unknown member" and join again. Offsets are kept in `offsets`.

mod group;

use std::collections::BTreeMap;

use bytes::Bytes;

use super::LogError;
use group::{Group, Member};
pub use group::{GroupPhase, MemberView};

/// The range of session time-outs that is accepted, in ms (Kafka's defaults).
const SESSION_TIMEOUT_MS: std::ops::RangeInclusive<i64> = 100..=1_800_000;

/// Names a call that waits for its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Token(pub u64);

/// Who speaks: a member of a generation, or nobody in particular (generation -1 and no member id).
#[derive(Clone, Copy, Debug)]
pub struct Caller<'a> {
    pub member_id: &'a str,
    pub instance_id: Option<&'a str>,
    pub generation: i32,
}

impl Caller<'_> {
    pub fn is_anonymous(&self) -> bool {
        self.generation < 0 && self.member_id.is_empty()
    }
}

/// A request to join.
#[derive(Clone, Debug)]
pub struct JoinRequest {
    pub group: String,
    pub client_id: String,
    /// Empty on the first try.
    pub member_id: String,
    pub instance_id: Option<String>,
    pub protocol_type: String,
    /// Name and metadata of each assignment strategy that the member speaks, best first.
    pub protocols: Vec<(String, Bytes)>,
    pub session_timeout_ms: i64,
    pub rebalance_timeout_ms: i64,
    /// KIP-394: the first try is answered with an id and has to be repeated, so that lost answers leave no ghosts.
    pub requires_known_member_id: bool,
}

/// The answer to a join.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Joined {
    pub generation: i32,
    pub protocol_type: String,
    pub protocol: String,
    pub leader_id: String,
    pub member_id: String,
    /// For the leader only: id, instance id and metadata of every member.
    pub members: Vec<(String, Option<String>, Bytes)>,
}

/// The answer to a call that waited.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GroupReply {
    /// A refusal carries the member id to use next.
    Join(Result<Joined, (LogError, String)>),
    /// The member's assignment.
    Sync(Result<Bytes, LogError>),
}

/// What tools show of a group.
#[derive(Clone, Debug)]
pub struct GroupView {
    pub phase: GroupPhase,
    pub protocol_type: String,
    pub protocol: String,
    pub members: Vec<MemberView>,
}

/// All groups that have, or lately had, members.
#[derive(Debug)]
pub struct Groups {
    incarnation: u64,
    members_max: usize,
    initial_delay_ms: i64,
    next_member_number: u64,
    groups: BTreeMap<String, Group>,
    replies: Vec<(Token, GroupReply)>,
}

impl Groups {
    pub(super) fn new(incarnation: u64, members_max: usize, initial_delay_ms: i64) -> Groups {
        Groups { incarnation, members_max, initial_delay_ms, next_member_number: 1, groups: BTreeMap::new(), replies: Vec::new() }
    }

    /// Answers that have become due.
    pub fn take_replies(&mut self) -> Vec<(Token, GroupReply)> {
        std::mem::take(&mut self.replies)
    }

    /// Joins; the answer comes under `token`.
    pub fn join(&mut self, now_ms: i64, token: Token, request: JoinRequest) {
        let member_id = request.member_id.clone();
        if let Err((error, member_id)) =
            self.try_join(now_ms, token, request).map_err(|(error, new_id)| (error, new_id.unwrap_or(member_id)))
        {
            self.replies.push((token, GroupReply::Join(Err((error, member_id)))));
        }
    }

    fn try_join(&mut self, now_ms: i64, token: Token, request: JoinRequest) -> Result<(), (LogError, Option<String>)> {
        if !SESSION_TIMEOUT_MS.contains(&request.session_timeout_ms) {
            return Err((LogError::InvalidSessionTimeout, None));
        }
        let new_id = format!("{}-{:x}-{}", request.client_id, self.incarnation, self.next_member_number);
        self.next_member_number += 1;
        let initial_delay_ms = self.initial_delay_ms;
        let group = self.groups.entry(request.group.clone()).or_insert_with(|| Group::new(initial_delay_ms));
        if !group.has_common_protocol(&request.protocol_type, &request.protocols) {
            return Err((LogError::InconsistentGroupProtocol, None));
        }
        let member_id = group.admit(now_ms, &request, new_id, self.members_max)?;
        let member = Member {
            instance_id: request.instance_id,
            client_id: request.client_id,
            protocols: request.protocols,
            session_timeout_ms: request.session_timeout_ms,
            rebalance_timeout_ms: request.rebalance_timeout_ms,
            seen_ms: now_ms,
            joining: Some(token),
            syncing: None,
            assignment: Bytes::new(),
        };
        group.join(now_ms, member_id, request.protocol_type, member, &mut self.replies);
        Ok(())
    }

    /// Takes the leader's assignments, or waits for them; the answer comes under `token`.
    pub fn sync(&mut self, now_ms: i64, token: Token, group: &str, caller: &Caller<'_>, assignments: Vec<(String, Bytes)>) {
        let result = match self.groups.get_mut(group) {
            None => Err(LogError::UnknownMember),
            Some(group) => group.sync(now_ms, token, caller, assignments, &mut self.replies),
        };
        match result {
            Ok(None) => {}
            Ok(Some(assignment)) => self.replies.push((token, GroupReply::Sync(Ok(assignment)))),
            Err(error) => self.replies.push((token, GroupReply::Sync(Err(error)))),
        }
    }

    pub fn heartbeat(&mut self, now_ms: i64, group: &str, caller: &Caller<'_>) -> Result<(), LogError> {
        let group = self.groups.get_mut(group).ok_or(LogError::UnknownMember)?;
        group.heartbeat(now_ms, caller)
    }

    /// A member leaves, named by its id or, if that is empty, by its instance id.
    pub fn leave(&mut self, now_ms: i64, group: &str, member_id: &str, instance_id: Option<&str>) -> Result<(), LogError> {
        let group = self.groups.get_mut(group).ok_or(LogError::UnknownMember)?;
        group.leave(now_ms, member_id, instance_id, &mut self.replies)
    }

    pub fn view(&self, group: &str) -> Option<GroupView> {
        self.groups.get(group).map(Group::view)
    }

    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.groups.keys().map(String::as_str)
    }

    /// Drops members whose session is over and ends rebalances that are due.
    pub(super) fn tick(&mut self, now_ms: i64) {
        for group in self.groups.values_mut() {
            group.tick(now_ms, &mut self.replies);
        }
        self.groups.retain(|_, group| !group.is_abandoned());
    }

    /// May this caller commit offsets? A group without members takes them from anybody.
    pub(super) fn check_commit(&mut self, now_ms: i64, group: &str, caller: &Caller<'_>) -> Result<(), LogError> {
        match self.groups.get_mut(group) {
            Some(group) => group.check_commit(now_ms, caller),
            None if caller.generation < 0 => Ok(()),
            None => Err(LogError::IllegalGeneration),
        }
    }

    pub(super) fn check_member(&mut self, now_ms: i64, group: &str, caller: &Caller<'_>) -> Result<(), LogError> {
        let group =
            self.groups.get_mut(group).ok_or(if caller.generation < 0 { LogError::UnknownMember } else { LogError::IllegalGeneration })?;
        group.check(caller)?;
        group.touch(now_ms, caller.member_id);
        Ok(())
    }

    /// Removes a group without members; says whether there was one.
    pub(super) fn remove_empty(&mut self, group: &str) -> Result<bool, LogError> {
        match self.groups.get(group) {
            None => Ok(false),
            Some(found) if found.phase() != GroupPhase::Empty => Err(LogError::GroupNotEmpty),
            Some(_) => {
                self.groups.remove(group);
                Ok(true)
            }
        }
    }
}
