//! What a fault is to those who plan and run faults.
//!
//! [`Target`] and [`Role`] are what a plan's file holds: their comments are descriptions in the published JSON Schema of plans.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

/// Kinds of faults, as plans and reports group them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Family {
    Process,
    Network,
    Broker,
    Storage,
    Time,
    Data,
}

/// Roles that a fault may be aimed at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Any worker.
    Worker,
    /// The worker that owns a region.
    Active,
    /// A worker that follows a region.
    Follower,
    /// The worker that is taking a region over.
    Taker,
    AllWorkers,
    Broker,
    AllBrokers,
    /// The broker that leads the control topic, or coordinates transactions.
    Coordinator,
    /// The store of the checkpoints.
    Store,
    /// The input topics.
    Input,
}

/// What a fault is aimed at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Target {
    /// A role, such as `active`: the worker that owns a region.
    pub role: Role,
    /// A worker (`w1`), a broker's number or a region (`s1/0`), where the role leaves a choice. Default: drawn from the seed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

/// As plans write it.
impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.serialize(f)
    }
}

/// As plans write it.
impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.serialize(f)
    }
}

/// For people: the role, and the name if there is one.
impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.name {
            Some(name) => write!(f, "{} {name}", self.role),
            None => self.role.fmt(f),
        }
    }
}

/// Roles as a list for people.
pub fn role_names(roles: &[Role]) -> String {
    roles.iter().map(Role::to_string).collect::<Vec<_>>().join(", ")
}

/// What a parameter of a fault may be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum ParameterKind {
    Duration,
    /// One between these, as a plan would write them.
    DurationOf {
        min: &'static str,
        max: &'static str,
    },
    /// Of bytes, with the usual suffixes.
    Bytes,
    /// From 0 to 1, or `30 %`.
    Share,
    Count {
        min: u64,
        max: u64,
    },
    Choice(&'static [&'static str]),
}

/// A parameter of a fault.
#[derive(Clone, Copy, Debug)]
pub struct Parameter {
    pub name: &'static str,
    pub kind: ParameterKind,
    /// As a plan would write it. None: it must be given.
    pub default: Option<&'static str>,
    pub about: &'static str,
}

/// The value of a parameter, checked against its kind.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Value {
    Number(f64),
    Text(String),
}

/// One entry of the catalogue.
#[derive(Clone, Copy, Debug)]
pub struct FaultSpec {
    /// `family.fault`, for example `process.kill`.
    pub name: &'static str,
    pub family: Family,
    pub about: &'static str,
    pub parameters: &'static [Parameter],
    /// The roles that it can be aimed at, the usual one first.
    pub targets: &'static [Role],
    /// Whether it lasts until it is undone; the others are over when `inject` returns.
    pub lasts: bool,
}

/// What an injection did.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Fired {
    /// What it hit: workers, brokers, regions, links.
    pub hit: Vec<String>,
    /// What shows that it happened: `pid 4711 is gone`, `317 requests refused`.
    pub evidence: String,
    /// How often it fired: deaths, cut connections, refused requests. Zero is not yet, or never.
    pub count: u64,
}

/// Why a fault was not injected.
#[derive(Debug, thiserror::Error)]
pub enum FaultError {
    /// The host can't do this. A run reports it and never counts it as passed.
    #[error("not possible here: {0}")]
    NotPossibleHere(String),
    /// There was nothing to aim at right now, for example no region is being taken over. It may be tried again.
    #[error("no target: {0}")]
    NoTarget(String),
    #[error("the harness failed: {0:#}")]
    Harness(#[from] anyhow::Error),
}

/// One fault, built from a plan, aimed and injected at most once at a time.
///
/// `S` is the stage. A fault that lasts is undone by its time limit, by the end of the run, or by the watchdog when the supervisor dies.
pub trait Fault<S>: Send {
    fn inject(&mut self, stage: &S) -> Result<Fired, FaultError>;
    /// Takes it back, and says what was seen since it was injected. Undoing twice does nothing; after an error it is tried again.
    fn undo(&mut self, stage: &S) -> Result<Fired, FaultError>;
}

/// A method step's parameters by name, checked.
pub type Parameters = BTreeMap<String, Value>;

/// How long a fault lasts when the plan doesn't say.
pub const DEFAULT_LIMIT: Duration = Duration::from_secs(30);
