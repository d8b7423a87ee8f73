//! One group's state machine.
//!
//! ```text
//! Empty ──join──▶ Preparing ──all joined, or time is up──▶ Completing ──leader syncs──▶ Stable
//!   ▲                ▲                                        │                           │
//!   └─last one left──┴────── join, leave, session over ───────┴───────────────────────────┘
//! ```

use std::collections::BTreeMap;

use bytes::Bytes;

use super::{Caller, GroupReply, GroupView, JoinRequest, Joined, LogError, Token};

/// Member ids that were given out and not used yet.
const PENDING_MEMBERS_MAX: usize = 1_000;
/// How long such an id is good for.
const PENDING_MS_MAX: i64 = 300_000;
/// How long a further rebalance waits for stragglers after all known members have joined.
const SETTLE_MS: i64 = 50;

/// Where a group is in its rebalance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GroupPhase {
    Empty,
    Preparing,
    Completing,
    Stable,
}

impl GroupPhase {
    /// The name that Kafka's tools show.
    pub fn name(self) -> &'static str {
        match self {
            GroupPhase::Empty => "Empty",
            GroupPhase::Preparing => "PreparingRebalance",
            GroupPhase::Completing => "CompletingRebalance",
            GroupPhase::Stable => "Stable",
        }
    }
}

/// What tools show of a member.
#[derive(Clone, Debug)]
pub struct MemberView {
    pub member_id: String,
    pub instance_id: Option<String>,
    pub client_id: String,
    pub metadata: Bytes,
    pub assignment: Bytes,
}

#[derive(Debug)]
pub(super) struct Member {
    pub instance_id: Option<String>,
    pub client_id: String,
    pub protocols: Vec<(String, Bytes)>,
    pub session_timeout_ms: i64,
    pub rebalance_timeout_ms: i64,
    pub seen_ms: i64,
    /// Waits for the join answer.
    pub joining: Option<Token>,
    /// Waits for the sync answer.
    pub syncing: Option<Token>,
    pub assignment: Bytes,
}

impl Member {
    fn metadata(&self, protocol: &str) -> Bytes {
        self.protocols.iter().find(|(name, _)| name == protocol).map(|(_, metadata)| metadata.clone()).unwrap_or_default()
    }
    fn speaks(&self, protocol: &str) -> bool {
        self.protocols.iter().any(|(name, _)| name == protocol)
    }
}

type Replies = Vec<(Token, GroupReply)>;

#[derive(Debug)]
pub(super) struct Group {
    phase: GroupPhase,
    generation: i32,
    protocol_type: String,
    protocol: String,
    leader_id: String,
    members: BTreeMap<String, Member>,
    /// Member id → when it was given out.
    pending: BTreeMap<String, i64>,
    rebalance_began_ms: i64,
    rebalance_ends_ms: i64,
    initial_delay_ms: i64,
}

impl Group {
    pub fn new(initial_delay_ms: i64) -> Group {
        Group {
            phase: GroupPhase::Empty,
            generation: 0,
            protocol_type: String::new(),
            protocol: String::new(),
            leader_id: String::new(),
            members: BTreeMap::new(),
            pending: BTreeMap::new(),
            rebalance_began_ms: 0,
            rebalance_ends_ms: 0,
            initial_delay_ms,
        }
    }

    pub fn phase(&self) -> GroupPhase {
        self.phase
    }

    /// Nobody is a member and nobody is about to be.
    pub fn is_abandoned(&self) -> bool {
        self.members.is_empty() && self.pending.is_empty()
    }

    pub fn has_common_protocol(&self, protocol_type: &str, protocols: &[(String, Bytes)]) -> bool {
        let all_speak = |name: &str| self.members.values().all(|member| member.speaks(name));
        self.members.is_empty() || (self.protocol_type == protocol_type && protocols.iter().any(|(name, _)| all_speak(name)))
    }

    /// The id under which a join goes on, or a refusal with the id to try again with.
    pub fn admit(
        &mut self,
        now_ms: i64,
        request: &JoinRequest,
        new_id: String,
        members_max: usize,
    ) -> Result<String, (LogError, Option<String>)> {
        let given = request.member_id.as_str();
        if let Some(instance_id) = request.instance_id.as_deref() {
            return match self.member_of_instance(instance_id) {
                Some(old) if given.is_empty() => {
                    // a restarted static member takes its predecessor's place
                    self.replace_static(now_ms, &old, &new_id);
                    Ok(new_id)
                }
                Some(old) if old != given => Err((LogError::FencedInstance, None)),
                _ if given.is_empty() => self.room_for(new_id, members_max),
                Some(_) => Ok(given.to_owned()),
                None => Err((LogError::UnknownMember, None)),
            };
        }
        if given.is_empty() {
            if !request.requires_known_member_id {
                return self.room_for(new_id, members_max);
            }
            while self.pending.len() >= PENDING_MEMBERS_MAX {
                self.pending.pop_first();
            }
            self.pending.insert(new_id.clone(), now_ms);
            return Err((LogError::MemberIdRequired, Some(new_id)));
        }
        if self.members.contains_key(given) {
            return Ok(given.to_owned());
        }
        if self.pending.remove(given).is_none() {
            return Err((LogError::UnknownMember, None));
        }
        self.room_for(given.to_owned(), members_max)
    }

    fn room_for(&self, member_id: String, members_max: usize) -> Result<String, (LogError, Option<String>)> {
        if self.members.len() >= members_max { Err((LogError::GroupMaxSize, None)) } else { Ok(member_id) }
    }

    fn member_of_instance(&self, instance_id: &str) -> Option<String> {
        let is_instance = |member: &Member| member.instance_id.as_deref() == Some(instance_id);
        self.members.iter().find(|(_, member)| is_instance(member)).map(|(id, _)| id.clone())
    }

    fn replace_static(&mut self, now_ms: i64, old_id: &str, new_id: &str) {
        if let Some(mut member) = self.members.remove(old_id) {
            member.seen_ms = now_ms;
            member.joining = None;
            member.syncing = None;
            self.members.insert(new_id.to_owned(), member);
        }
        if self.leader_id == old_id {
            self.leader_id = new_id.to_owned();
        }
    }

    pub fn join(&mut self, now_ms: i64, member_id: String, protocol_type: String, member: Member, replies: &mut Replies) {
        self.protocol_type = protocol_type;
        let known = self.members.get(&member_id);
        let is_unchanged = known.is_some_and(|known| known.protocols == member.protocols);
        let assignment = known.map(|known| known.assignment.clone()).unwrap_or_default();
        let is_leader = self.leader_id == member_id;
        self.members.insert(member_id.clone(), Member { assignment, ..member });
        match self.phase {
            GroupPhase::Preparing => {}
            // a lost answer asked for again, or a follower that looks in: no new generation for that
            GroupPhase::Completing if is_unchanged => self.answer_join(now_ms, &member_id, replies),
            GroupPhase::Stable if is_unchanged && !is_leader => self.answer_join(now_ms, &member_id, replies),
            _ => self.prepare(now_ms, replies),
        }
        self.try_complete(now_ms, replies);
    }

    fn prepare(&mut self, now_ms: i64, replies: &mut Replies) {
        let is_first = self.phase == GroupPhase::Empty;
        for member in self.members.values_mut() {
            if let Some(token) = member.syncing.take() {
                replies.push((token, GroupReply::Sync(Err(LogError::RebalanceInProgress))));
            }
        }
        self.phase = GroupPhase::Preparing;
        self.rebalance_began_ms = now_ms;
        let wait_ms = if is_first { self.initial_delay_ms } else { self.longest_rebalance_ms() };
        self.rebalance_ends_ms = now_ms + wait_ms;
    }

    fn longest_rebalance_ms(&self) -> i64 {
        self.members.values().map(|member| member.rebalance_timeout_ms).max().unwrap_or(0)
    }

    fn try_complete(&mut self, now_ms: i64, replies: &mut Replies) {
        if self.phase != GroupPhase::Preparing {
            return;
        }
        let have_all_joined = self.members.values().all(|member| member.joining.is_some());
        let is_settled = have_all_joined && now_ms >= self.rebalance_began_ms + SETTLE_MS.min(self.initial_delay_ms);
        if !is_settled && now_ms < self.rebalance_ends_ms {
            return;
        }
        self.members.retain(|_, member| member.joining.is_some());
        self.generation += 1;
        let Some((first_id, first)) = self.members.first_key_value() else {
            self.phase = GroupPhase::Empty;
            return;
        };
        if !self.members.contains_key(&self.leader_id) {
            self.leader_id = first_id.clone();
        }
        let common = first.protocols.iter().find(|(name, _)| self.members.values().all(|member| member.speaks(name)));
        self.protocol = common.map(|(name, _)| name.clone()).unwrap_or_default();
        self.phase = GroupPhase::Completing;
        self.rebalance_ends_ms = now_ms + self.longest_rebalance_ms();
        for member_id in self.members.keys().cloned().collect::<Vec<_>>() {
            self.answer_join(now_ms, &member_id, replies);
        }
    }

    fn answer_join(&mut self, now_ms: i64, member_id: &str, replies: &mut Replies) {
        let of_member = |(id, member): (&String, &Member)| (id.clone(), member.instance_id.clone(), member.metadata(&self.protocol));
        let members = if self.leader_id == member_id { self.members.iter().map(of_member).collect() } else { Vec::new() };
        let joined = Joined {
            generation: self.generation,
            protocol_type: self.protocol_type.clone(),
            protocol: self.protocol.clone(),
            leader_id: self.leader_id.clone(),
            member_id: member_id.to_owned(),
            members,
        };
        if let Some(member) = self.members.get_mut(member_id) {
            member.seen_ms = now_ms;
            if let Some(token) = member.joining.take() {
                replies.push((token, GroupReply::Join(Ok(joined))));
            }
        }
    }

    pub fn sync(
        &mut self,
        now_ms: i64,
        token: Token,
        caller: &Caller<'_>,
        assignments: Vec<(String, Bytes)>,
        replies: &mut Replies,
    ) -> Result<Option<Bytes>, LogError> {
        self.check(caller)?;
        self.touch(now_ms, caller.member_id);
        match self.phase {
            GroupPhase::Empty => Err(LogError::UnknownMember),
            GroupPhase::Preparing => Err(LogError::RebalanceInProgress),
            GroupPhase::Stable => Ok(self.members.get(caller.member_id).map(|member| member.assignment.clone())),
            GroupPhase::Completing => {
                if let Some(member) = self.members.get_mut(caller.member_id) {
                    member.syncing = Some(token);
                }
                if self.leader_id == caller.member_id {
                    self.assign(now_ms, assignments, replies);
                }
                Ok(None)
            }
        }
    }

    fn assign(&mut self, now_ms: i64, assignments: Vec<(String, Bytes)>, replies: &mut Replies) {
        let mut assignments: BTreeMap<_, _> = assignments.into_iter().collect();
        for (id, member) in &mut self.members {
            member.assignment = assignments.remove(id).unwrap_or_default();
            member.seen_ms = now_ms;
            if let Some(token) = member.syncing.take() {
                replies.push((token, GroupReply::Sync(Ok(member.assignment.clone()))));
            }
        }
        self.phase = GroupPhase::Stable;
    }

    pub fn heartbeat(&mut self, now_ms: i64, caller: &Caller<'_>) -> Result<(), LogError> {
        self.check(caller)?;
        self.touch(now_ms, caller.member_id);
        if self.phase == GroupPhase::Preparing { Err(LogError::RebalanceInProgress) } else { Ok(()) }
    }

    pub fn leave(&mut self, now_ms: i64, member_id: &str, instance_id: Option<&str>, replies: &mut Replies) -> Result<(), LogError> {
        let by_instance = instance_id.filter(|_| member_id.is_empty()).and_then(|instance_id| self.member_of_instance(instance_id));
        let member_id = by_instance.unwrap_or_else(|| member_id.to_owned());
        if self.pending.remove(&member_id).is_some() {
            return Ok(());
        }
        self.members.remove(&member_id).ok_or(LogError::UnknownMember)?;
        self.after_removal(now_ms, replies);
        Ok(())
    }

    fn after_removal(&mut self, now_ms: i64, replies: &mut Replies) {
        if self.members.is_empty() {
            self.phase = GroupPhase::Empty;
            self.generation += 1;
        } else if self.phase != GroupPhase::Preparing {
            self.prepare(now_ms, replies);
        }
        self.try_complete(now_ms, replies);
    }

    pub fn tick(&mut self, now_ms: i64, replies: &mut Replies) {
        self.pending.retain(|_, since_ms| now_ms < *since_ms + PENDING_MS_MAX);
        let count = self.members.len();
        let is_sync_overdue = self.phase == GroupPhase::Completing && now_ms > self.rebalance_ends_ms;
        self.members.retain(|_, member| {
            let is_waiting = member.joining.is_some() || (member.syncing.is_some() && !is_sync_overdue);
            let keeps = is_waiting || now_ms < member.seen_ms + member.session_timeout_ms;
            if let (false, Some(token)) = (keeps, member.syncing) {
                replies.push((token, GroupReply::Sync(Err(LogError::UnknownMember))));
            }
            keeps
        });
        if self.members.len() < count {
            self.after_removal(now_ms, replies);
        }
        self.try_complete(now_ms, replies);
    }

    pub fn check(&self, caller: &Caller<'_>) -> Result<(), LogError> {
        let holder = caller.instance_id.and_then(|instance_id| self.member_of_instance(instance_id));
        if holder.is_some_and(|holder| holder != caller.member_id) {
            return Err(LogError::FencedInstance);
        }
        if !self.members.contains_key(caller.member_id) {
            return Err(LogError::UnknownMember);
        }
        if caller.generation == self.generation { Ok(()) } else { Err(LogError::IllegalGeneration) }
    }

    pub fn touch(&mut self, now_ms: i64, member_id: &str) {
        if let Some(member) = self.members.get_mut(member_id) {
            member.seen_ms = now_ms;
        }
    }

    pub fn check_commit(&mut self, now_ms: i64, caller: &Caller<'_>) -> Result<(), LogError> {
        if caller.is_anonymous() {
            return if self.phase == GroupPhase::Empty { Ok(()) } else { Err(LogError::UnknownMember) };
        }
        self.check(caller)?;
        self.touch(now_ms, caller.member_id);
        if self.phase == GroupPhase::Completing { Err(LogError::RebalanceInProgress) } else { Ok(()) }
    }

    pub fn view(&self) -> GroupView {
        let member = |(id, member): (&String, &Member)| MemberView {
            member_id: id.clone(),
            instance_id: member.instance_id.clone(),
            client_id: member.client_id.clone(),
            metadata: member.metadata(&self.protocol),
            assignment: member.assignment.clone(),
        };
        GroupView {
            phase: self.phase,
            protocol_type: self.protocol_type.clone(),
            protocol: self.protocol.clone(),
            members: self.members.iter().map(member).collect(),
        }
    }
}
