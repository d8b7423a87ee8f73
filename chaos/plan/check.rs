//! What a schema can't know of a plan: whether its faults exist, can be aimed where they are, and whether its promises can ever be looked at.

use super::{FailPoint, Metric, Mode, Parameter, Phase, Plan, ProbeKind, Start, Step, Store, Threshold, Topology};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::str::FromStr;
use std::sync::Arc;
use streamshield_faults::faults::{CRASH_POINTS, PASSING, STANDBY_POINTS};
use streamshield_faults::{Family, FaultSpec, Role, Target, Value, check_value, role_names};
use streamshield_files::problem::{Problem, Problems, SourceFile, did_you_mean};
use streamshield_files::schema::{key_place, place};
use streamshield_files::yaml::{Node, Value as Tree};

/// Fewer samples than this have no 99th percentile that is more than their largest.
const SAMPLES_OF_P99: u32 = 100;

/// Conditions, moments and ranges, which are text to the schema.
pub(super) fn texts(root: &Node, file: &Arc<SourceFile>, problems: &mut Problems) {
    for (at, text) in scalars(root, &[]) {
        let path: Vec<&str> = at.iter().map(String::as_str).collect();
        let parsed = match path.as_slice() {
            ["thresholds", _, _] => Threshold::from_str(text).map(drop),
            ["method", _, "at"] => Start::from_str(text).map(drop),
            ["method", _, "random", "pick"] => super::Pick::from_str(text).map(drop),
            _ => Ok(()),
        };
        if let Err(message) = parsed {
            let hint = match path[0] {
                "thresholds" => "write AGGREGATE COMPARISON NUMBER [during PHASE], for example `p99 < 500 during healthy`",
                _ if path[2] == "at" => "write a time since the method began (`10 s`), or `records>=20000`",
                _ => "write a number, or a range such as `2..4`",
            };
            problems.add(Problem::error(message).hint(hint).at(file, place(root, &path)));
        }
    }
}

/// All scalars of a tree with their paths.
fn scalars<'a>(node: &'a Node, path: &[String]) -> Vec<(Vec<String>, &'a str)> {
    let below = |name: String| path.iter().cloned().chain([name]).collect::<Vec<_>>();
    match &node.value {
        Tree::Scalar(scalar) => vec![(path.to_vec(), scalar.text.as_str())],
        Tree::Null => Vec::new(),
        Tree::Sequence(items) => items.iter().enumerate().flat_map(|(index, item)| scalars(item, &below(index.to_string()))).collect(),
        Tree::Mapping(entries) => entries.iter().flat_map(|entry| scalars(&entry.node, &below(entry.key.clone()))).collect(),
    }
}

/// Of a job file: what the stage and the rest of a plan say.
const KEYS_OF_THE_PLAN: [&str; 12] = [
    "name",
    "kafka",
    "sql",
    "sql_file",
    "state_dir",
    "checkpoint",
    "tier",
    "replicas",
    "commit_interval",
    "parallelism",
    "replication_factor",
    "kafka.bootstrap.servers",
];

/// Faults of the store that need no server: its objects are there in a folder, too.
const OF_OBJECTS: [&str; 2] = ["store.corrupt", "store.collect"];

/// Faults of single requests to the store, which can't be told apart on the way to an HDFS.
const OF_REQUESTS: [&str; 4] = ["store.errors", "store.hang", "store.torn_upload", "store.ambiguous_create"];

/// Faults that wait until the worker has ended well or has gone on, or for longer than it is held: what they do comes after the point, always.
pub(super) const NOT_AT_A_POINT: [&str; 12] = [
    "process.stop",
    "process.crash_at",
    "process.crash_loop",
    "process.lose_rows",
    "process.memory_limit",
    "process.file_limit",
    "net.hold_end_txn",
    "broker.delete_records",
    "storage.disk_full",
    "storage.read_only",
    "store.collect",
    "time.jump",
];

/// So do these, unless they kill the worker.
pub(super) const ENDS_WELL: [&str; 2] = ["storage.bit_flip", "storage.truncate"];

/// Stages of the self-verifying job: the four `INSERT`s, and what comes behind the exchange of one of them.
const STAGES: u32 = 5;

pub(super) struct Check<'a> {
    pub plan: &'a Plan,
    pub catalogue: &'a [FaultSpec],
    pub root: &'a Node,
    pub file: &'a Arc<SourceFile>,
    pub problems: &'a mut Problems,
}

impl Check<'_> {
    pub fn run(mut self) {
        self.workload();
        self.topology();
        self.steady_state();
        for index in 0..self.plan.method.len() {
            self.step(index);
        }
        self.thresholds();
        self.proof();
    }

    fn workload(&mut self) {
        let (workload, parallelism) = (&self.plan.workload, self.plan.topology.parallelism);
        if workload.keys < u64::from(parallelism) {
            self.error(
                format!(
                    "{} keys leave some of the {parallelism} partitions without a record, which would hold all windows open",
                    workload.keys
                ),
                &["workload", "keys"],
                "give it as many keys as partitions, or more",
            );
        }
    }

    fn topology(&mut self) {
        let topology = &self.plan.topology;
        if ![0, 1, 3].contains(&topology.brokers) {
            self.error(
                format!("{} brokers are neither enough nor one", topology.brokers),
                &["topology", "brokers"],
                "write 3, 1, or 0 for the embedded one",
            );
        }
        if topology.tier < 3 && topology.workers < 2 {
            self.error(
                format!("tier {} needs another worker to follow, and there is one", topology.tier),
                &["topology", "workers"],
                "give it 2 workers or more, or tier 3",
            );
        }
        for key in topology.job.keys().filter(|key| KEYS_OF_THE_PLAN.contains(&key.as_str())) {
            let span = key_place(self.root, &["topology", "job"], key);
            self.at(format!("`{key}` of the job is the plan's own"), span, "say it by the keys of `topology` and `workload`".into());
        }
        if topology.replicas.is_some_and(|replicas| replicas >= topology.workers) {
            self.error(
                "there are not enough workers for so many followers of each region",
                &["topology", "replicas"],
                "followers live on other workers",
            );
        }
    }

    fn steady_state(&mut self) {
        for (index, probe) in self.plan.steady_state.iter().enumerate() {
            let index = index.to_string();
            match (probe.at_least, probe.at_most) {
                (None, None) => self.error(
                    format!("probe `{}` accepts any value", probe.name),
                    &["steady_state", &index],
                    "give it `at_least`, `at_most` or both",
                ),
                (Some(least), Some(most)) if least > most => self.error(
                    format!("probe `{}` accepts no value: nothing is at least {least} and at most {most}", probe.name),
                    &["steady_state", &index, "at_least"],
                    "swap them",
                ),
                _ => {}
            }
            let wanted_max = match probe.probe {
                ProbeKind::WorkersAlive => Some(f64::from(self.plan.topology.workers)),
                ProbeKind::RegionsActive | ProbeKind::FollowersReady => Some(1.0),
                _ => None,
            };
            if let (Some(least), Some(max)) = (probe.at_least, wanted_max)
                && least > max
            {
                self.error(
                    format!("probe `{}` can never be met: there is at most {max}", probe.name),
                    &["steady_state", &index, "at_least"],
                    "lower it",
                );
            }
            if probe.when == [Mode::During] && self.plan.method.is_empty() {
                self.error(
                    format!("probe `{}` is never looked at: the method is empty", probe.name),
                    &["steady_state", &index, "when"],
                    "add `before` or `after`",
                );
            }
        }
    }

    fn step(&mut self, index: usize) {
        let step = self.plan.method[index].clone();
        let number = index.to_string();
        let path = ["method", number.as_str()];
        let kinds = [
            ("fault", step.fault.is_some()),
            ("random", step.random.is_some()),
            ("load", step.load.is_some()),
            ("pause", step.pause.is_some()),
        ];
        let given: Vec<&str> = kinds.iter().filter(|(_, given)| *given).map(|(name, _)| *name).collect();
        if given.len() != 1 {
            let message = if given.is_empty() {
                "this step does nothing".into()
            } else {
                format!("this step is several at once: {}", given.join(", "))
            };
            self.error(message, &path, "a step has one of `fault`, `random`, `load`, `pause`");
            return;
        }
        self.stray_keys(&step, given[0], &path);
        if let Some(fault) = &step.fault {
            self.fault(fault, step.target.as_ref(), &step.with, step.lasts.is_some(), &path);
            if let Some(when) = &step.when {
                self.waits(fault, &step.with, &path);
                self.when(when, &extended(&path, "when"));
            }
        }
        if step.load.is_some() && step.lasts.is_none() {
            self.error("another rate needs a time limit", &[path[0], path[1], "load"], "add `for: 60 s`");
        }
        if let Some(draw) = &step.random {
            if step.lasts.is_none() {
                self.error("a random draw needs a time limit", &[path[0], path[1], "random"], "add `for: 5 min` to the step");
            }
            if draw.calm >= draw.every {
                self.error(
                    "the calm time leaves no time for faults",
                    &[path[0], path[1], "random", "calm"],
                    "make it shorter than `every`",
                );
            }
            if draw.pick.most as usize > draw.of.len() {
                self.error(
                    format!("can't pick {} of {}", draw.pick.most, draw.of.len()),
                    &[path[0], path[1], "random", "pick"],
                    "lower it, or add to `of`",
                );
            }
            for (which, candidate) in draw.of.iter().enumerate() {
                let which = which.to_string();
                self.fault(&candidate.fault, candidate.target.as_ref(), &candidate.with, true, &[path[0], path[1], "random", "of", &which]);
            }
        }
    }

    /// Keys that this kind of step does not look at.
    fn stray_keys(&mut self, step: &Step, kind: &str, path: &[&str]) {
        let strays = [
            ("when", step.when.is_some() && kind != "fault"),
            ("target", step.target.is_some() && kind != "fault"),
            ("with", !step.with.is_empty() && kind != "fault"),
            ("repeat", step.repeat.is_some() && kind != "fault"),
            ("every", step.every.is_some() && (kind != "fault" || step.repeat.is_none())),
            ("for", step.lasts.is_some() && kind == "pause"),
        ];
        for (key, _) in strays.iter().filter(|(_, stray)| *stray) {
            let hint = match *key {
                "every" if kind == "fault" => "`every` is the time between repeats: add `repeat`".to_string(),
                "every" => "of a random draw it stands inside of `random`".into(),
                "for" => "the pause is its own length".into(),
                _ => "only a step with `fault` has it".into(),
            };
            let span = key_place(self.root, path, key);
            self.at(format!("`{key}` means nothing in a step with `{kind}`"), span, hint);
        }
    }

    fn fault(&mut self, name: &str, target: Option<&Target>, with: &BTreeMap<String, Parameter>, may_last: bool, path: &[&str]) {
        let Some(spec) = self.catalogue.iter().find(|spec| spec.name == name) else {
            let hint = match did_you_mean(name, self.catalogue.iter().map(|spec| spec.name)) {
                Some(near) => format!("did you mean `{near}`?"),
                None => match self
                    .catalogue
                    .iter()
                    .filter(|spec| spec.name.split('.').next() == name.split('.').next())
                    .map(|spec| spec.name)
                    .collect::<Vec<_>>()
                {
                    near if near.is_empty() => "`streamshield chaos list` shows them".into(),
                    near => format!("there are {}", near.join(", ")),
                },
            };
            self.error(format!("there is no fault `{name}`"), &extended(path, "fault"), hint);
            return;
        };
        if !spec.lasts && may_last && path.len() == 2 {
            let span = key_place(self.root, path, "for");
            self.at(format!("`{name}` is over at once"), span, "leave `for` out; `repeat` and `every` do it several times".into());
        }
        self.parameters(spec, with, path);
        if let Some(point) = with.get("point") {
            self.standby_point(&point.0, &extended(&extended(path, "with"), "point"));
        }
        self.target(spec, target, path);
        self.possible(spec, target, path);
    }

    /// Whether a fault can be done while a worker is held at a point.
    fn waits(&mut self, fault: &str, with: &BTreeMap<String, Parameter>, path: &[&str]) {
        let ends_well = ENDS_WELL.contains(&fault) && with.get("end").is_none_or(|end| end.0 != "kill");
        if !ends_well && !NOT_AT_A_POINT.contains(&fault) {
            return;
        }
        let hint = match fault {
            "process.stop" | "process.crash_at" => "use `process.kill`, which kills the worker at the point",
            _ if ends_well => "add `end: kill` under `with`",
            _ => "leave `when` out, or choose a fault that is done at once",
        };
        let span = key_place(self.root, path, "when");
        self.at(format!("`{fault}` can't happen at a point: it waits for what a worker that is held there does not do"), span, hint.into());
    }

    /// Whether somebody ever passes the point that a fault waits for.
    fn when(&mut self, when: &FailPoint, path: &[&str]) {
        let at = extended(path, "fail_point");
        if !CRASH_POINTS.contains(&when.fail_point.as_str()) {
            self.error(format!("there is no fail point `{}`", when.fail_point), &at, format!("there are {}", CRASH_POINTS.join(", ")));
        }
        self.standby_point(&when.fail_point, &at);
        self.target(&PASSING, when.target.as_ref(), path);
        self.possible(&PASSING, when.target.as_ref(), path);
    }

    /// A delta is followed in tier 2 alone.
    fn standby_point(&mut self, point: &str, path: &[&str]) {
        let tier = self.plan.topology.tier;
        if STANDBY_POINTS.contains(&point) && tier != 2 {
            self.error(
                format!("only standbys pass `{point}`, and tier {tier} has none"),
                path,
                "set `topology.tier: 2`, or choose another point",
            );
        }
    }

    fn parameters(&mut self, spec: &FaultSpec, with: &BTreeMap<String, Parameter>, path: &[&str]) {
        let inside = extended(path, "with");
        for (name, parameter) in with {
            let Some(known) = spec.parameters.iter().find(|known| known.name == name) else {
                let hint = match did_you_mean(name, spec.parameters.iter().map(|known| known.name)) {
                    Some(near) => format!("did you mean `{near}`?"),
                    None if spec.parameters.is_empty() => "it has none".into(),
                    None => format!("it has {}", spec.parameters.iter().map(|known| known.name).collect::<Vec<_>>().join(", ")),
                };
                let span = key_place(self.root, &inside, name);
                self.at(format!("`{}` has no parameter `{name}`", spec.name), span, hint);
                continue;
            };
            if let Err(reason) = check_value(known, &Value::Text(parameter.0.clone())) {
                self.error(format!("`{name}`: {reason}"), &extended(&inside, name), known.about);
                continue;
            }
            // The embedded broker is broker 1.
            let brokers = self.plan.topology.brokers.max(1);
            if name == "broker" && parameter.0.parse::<u32>().is_ok_and(|number| number > brokers) {
                self.error(format!("there is no broker `{}`: they are 1 to {brokers}", parameter.0), &extended(&inside, name), known.about);
            }
        }
        for missing in spec.parameters.iter().filter(|known| known.default.is_none() && !with.contains_key(known.name)) {
            self.error(
                format!("`{}` needs `{}`", spec.name, missing.name),
                &extended(path, "fault"),
                format!("add it under `with`: {}", missing.about),
            );
        }
    }

    fn target(&mut self, spec: &FaultSpec, target: Option<&Target>, path: &[&str]) {
        let Some(aim) = target else { return };
        let inside = extended(path, "target");
        if !spec.targets.contains(&aim.role) {
            self.error(
                format!("`{}` can't be aimed at `{}`", spec.name, aim.role),
                &extended(&inside, "role"),
                format!("it can be aimed at {}", role_names(spec.targets)),
            );
            return;
        }
        let Some(name) = &aim.name else { return };
        let topology = &self.plan.topology;
        let reason = match aim.role {
            Role::Worker => (!topology.worker_names().contains(name))
                .then(|| format!("there is no worker `{name}`: they are {}", topology.worker_names().join(", "))),
            Role::Broker => {
                let is_one = name.parse::<u32>().is_ok_and(|number| (1..=topology.brokers).contains(&number));
                (!is_one).then(|| format!("there is no broker `{name}`: they are 1 to {}", topology.brokers))
            }
            Role::Active | Role::Follower | Role::Taker => {
                let region = name.strip_prefix('s').and_then(|rest| rest.split_once('/'));
                match region.and_then(|(stage, partition)| Some((stage.parse::<u32>().ok()?, partition.parse::<u32>().ok()?))) {
                    None => Some(format!("`{name}` is not a region: write `s1/0`, stage and partition")),
                    Some((_, partition)) if partition >= topology.parallelism => {
                        Some(format!("there is no region `{name}`: partitions are 0 to {}", topology.parallelism - 1))
                    }
                    Some((stage, _)) if stage >= STAGES => {
                        // How many stages a job of one's own has is not known here.
                        let message = format!("the self-verifying job has no region `{name}`: its stages are 0 to {}", STAGES - 1);
                        let span = place(self.root, &extended(&inside, "name"));
                        self.problems.add(Problem::warning(message).hint("only with `--job` there may be one").at(self.file, span));
                        None
                    }
                    Some(_) => None,
                }
            }
            _ => Some(format!("`{}` is not several of which one could be named", aim.role)),
        };
        if let Some(reason) = reason {
            self.error(reason, &extended(&inside, "name"), "leave `name` out to have it drawn from the seed");
        }
    }

    /// Whether what it breaks is there at all.
    fn possible(&mut self, spec: &FaultSpec, target: Option<&Target>, path: &[&str]) {
        let topology = &self.plan.topology;
        let at = extended(path, "fault");
        if spec.family == Family::Broker && topology.brokers == 0 {
            self.error(format!("`{}` breaks a broker, and this plan has none of its own", spec.name), &at, "set `topology.brokers: 3`");
        }
        if spec.name == "broker.below_min_isr" && topology.brokers == 1 {
            self.error(format!("`{}` takes two of three brokers away, and this plan has one", spec.name), &at, "set `topology.brokers: 3`");
        }
        // Where the plan does not aim it, it is the usual target.
        let role = target.map_or(spec.targets.first().copied(), |target| Some(target.role));
        if role == Some(Role::Follower) && topology.tier == 3 {
            self.error(format!("`{}` is aimed at a follower, and tier 3 has none", spec.name), &at, "set `topology.tier: 1` or 2");
        }
        let is_of_a_server = role == Some(Role::Store) && !OF_OBJECTS.contains(&spec.name);
        if is_of_a_server && topology.store == Store::Local {
            self.error(
                format!("`{}` breaks a server, and the checkpoints of this plan go to a folder", spec.name),
                &at,
                "set `topology.store: s3`",
            );
        }
        if OF_REQUESTS.contains(&spec.name) && topology.store == Store::Hdfs {
            self.error(
                format!("`{}` breaks single requests, and those to an HDFS can't be told apart", spec.name),
                &at,
                "set `topology.store: s3`, or use `store.away`",
            );
        }
        if spec.name.starts_with("hdfs.") && topology.store == Store::S3 {
            self.error(
                format!("`{}` breaks an HDFS, and the checkpoints of this plan go elsewhere", spec.name),
                &at,
                "set `topology.store: hdfs`",
            );
        }
        if role == Some(Role::Store) && topology.store == Store::None {
            self.error(
                format!("`{}` breaks the store of the checkpoints, and this plan has none", spec.name),
                &at,
                "set `topology.store: s3`",
            );
        }
        if matches!(spec.targets.first(), Some(Role::Follower | Role::Taker)) && topology.workers < 2 {
            self.error(format!("`{}` needs another worker", spec.name), &at, "set `topology.workers: 3`");
        }
    }

    fn thresholds(&mut self) {
        for (metric, conditions) in &self.plan.thresholds {
            for (index, condition) in conditions.iter().enumerate() {
                let index = index.to_string();
                if let Some((message, hint)) = never_evaluated(self.plan, *metric, condition) {
                    self.error(message, &["thresholds", metric.name(), &index], hint);
                }
            }
        }
        let kills: u32 =
            self.plan.method.iter().filter(|step| step.fault.as_deref().is_some_and(is_kill)).map(|step| step.repeat.unwrap_or(1)).sum();
        let draws = self.plan.method.iter().any(|step| step.random.is_some());
        let wants_p99 = self
            .plan
            .thresholds
            .get(&Metric::FailoverMs)
            .is_some_and(|conditions| conditions.iter().any(|one| one.aggregate == super::Aggregate::P99));
        if wants_p99 && !draws && (1..SAMPLES_OF_P99).contains(&kills) {
            let span = key_place(self.root, &["thresholds"], Metric::FailoverMs.name());
            let problem = Problem::warning(format!("the 99th percentile of so few take-overs ({kills} kills) is their longest"));
            self.problems.add(problem.hint("write `max`, or kill more often").at(self.file, span));
        }
    }

    fn proof(&mut self) {
        for (name, times) in &self.plan.proof_of_fault.min_fired {
            let at = ["proof_of_fault", "min_fired"];
            if !self.plan.faults().any(|fault| fault == name) {
                let hint = match did_you_mean(name, self.plan.faults()) {
                    Some(near) => format!("did you mean `{near}`?"),
                    None => "leave it out, or add the fault to the method".into(),
                };
                let span = key_place(self.root, &at, name);
                self.at(format!("`{name}` is not in the method, so it can't fire"), span, hint);
                continue;
            }
            let drawn =
                self.plan.method.iter().filter_map(|step| step.random.as_ref()).any(|draw| draw.of.iter().any(|one| one.fault == *name));
            let planned: u32 =
                self.plan.method.iter().filter(|step| step.fault.as_deref() == Some(name)).map(|step| step.repeat.unwrap_or(1)).sum();
            if !drawn && *times > planned {
                self.error(
                    format!("`{name}` can't fire {times} times: the method has it {planned} times"),
                    &extended(&at, name),
                    "lower it, or raise `repeat`",
                );
            }
        }
        let (proof, types) = (&self.plan.proof_of_fault, self.plan.faults().collect::<BTreeSet<_>>().len());
        if proof.min_types as usize > types {
            self.error(
                format!("{} types of faults can't fire: the method has {types}", proof.min_types),
                &["proof_of_fault", "min_types"],
                "lower it, or add faults to the method",
            );
        }
        if let Some(most) = kills_of_method(self.plan).filter(|most| *most < proof.min_kills) {
            self.error(
                format!("{} processes can't be killed: the method kills {most} at most", proof.min_kills),
                &["proof_of_fault", "min_kills"],
                "lower it, or raise `repeat`",
            );
        }
        if self.plan.proof_of_fault.min_records_during_fault > 0 && self.plan.faults().next().is_none() {
            self.error(
                "no record can flow during a fault: the method has none",
                &["proof_of_fault", "min_records_during_fault"],
                "leave it out",
            );
        }
    }

    fn error(&mut self, message: impl Into<String>, path: &[&str], hint: impl Into<String>) {
        let span = place(self.root, path);
        self.at(message.into(), span, hint.into());
    }

    fn at(&mut self, message: String, span: Range<usize>, hint: String) {
        self.problems.add(Problem::error(message).hint(hint).at(self.file, span));
    }
}

fn extended<'a>(path: &[&'a str], name: &'a str) -> Vec<&'a str> {
    path.iter().copied().chain([name]).collect()
}

/// The fault whose gap is a take-over's: one worker, all at once, and nothing else.
pub(crate) fn is_kill(fault: &str) -> bool {
    fault == "process.kill"
}

/// Whether some kill takes one worker alone: only then there is a take-over to measure.
fn kills_one(plan: &Plan) -> bool {
    let is_of_one = |fault: &str, target: Option<&Target>| is_kill(fault) && target.is_none_or(|target| target.role != Role::AllWorkers);
    plan.topology.workers == 1
        || plan.method.iter().any(|step| {
            let drawn = || step.random.iter().flat_map(|draw| &draw.of).any(|one| is_of_one(&one.fault, one.target.as_ref()));
            step.fault.as_deref().is_some_and(|fault| is_of_one(fault, step.target.as_ref())) || drawn()
        })
}

/// How many processes the method kills at most. None: nobody knows beforehand.
fn kills_of_method(plan: &Plan) -> Option<u32> {
    let mut all = 0_u32;
    for step in &plan.method {
        if let Some(fault) = &step.fault {
            let each = kills(&plan.topology, fault, step.target.as_ref())?;
            all = all.saturating_add(each.saturating_mul(step.repeat.unwrap_or(1)));
        }
        // How often one is drawn, only the seed knows.
        for one in step.random.iter().flat_map(|draw| &draw.of) {
            kills(&plan.topology, &one.fault, one.target.as_ref()).filter(|each| *each == 0)?;
        }
    }
    Some(all)
}

/// How many processes one injection kills at most. None: it may kill again and again, or what it breaks may.
fn kills(topology: &Topology, fault: &str, target: Option<&Target>) -> Option<u32> {
    let takes_all = target.is_some_and(|target| target.role == Role::AllWorkers);
    match fault {
        "process.kill" | "storage.delete_state" if takes_all => Some(topology.workers),
        "process.kill" | "process.crash_at" | "storage.delete_state" | "broker.kill" | "broker.coordinator_kill" => Some(1),
        "process.kill_taker" | "broker.below_min_isr" => Some(2),
        "process.kill_all" => Some(topology.workers),
        "broker.all_away" => Some(topology.brokers),
        "process.stop" | "process.pause" | "process.cpu_limit" | "process.fence" | "process.lose_rows" => Some(0),
        "broker.pause" | "broker.delete_records" => Some(0),
        _ => ["net.", "store.", "hdfs.", "data."].iter().any(|family| fault.starts_with(family)).then_some(0),
    }
}

/// Why nobody will ever know, and what to do.
fn never_evaluated(plan: &Plan, metric: Metric, condition: &Threshold) -> Option<(String, String)> {
    let name = metric.name();
    if !metric.aggregates().contains(&condition.aggregate) {
        let known = metric.aggregates().iter().map(|aggregate| aggregate.name()).collect::<Vec<_>>().join(", ");
        return Some((format!("`{name}` has no {}", condition.aggregate.name()), format!("it has {known}")));
    }
    if condition.phase != Phase::All && !metric.has_phases() {
        return Some((format!("`{name}` is not measured by phase"), format!("leave `during {}` out", condition.phase.name())));
    }
    let never = |why: &str, hint: &str| Some((format!("`{name}` can never be evaluated: {why}"), hint.to_string()));
    match (metric, condition.phase) {
        (_, Phase::Fault) if plan.faults().next().is_none() => never("the method has no fault", "write `during healthy`, or add a fault"),
        (_, Phase::Peak) if plan.method.iter().all(|step| step.load.is_none()) => {
            never("the method has no `load` step", "add `{load: 5, for: 60 s}` to the method")
        }
        (Metric::FailoverMs, _) if !plan.faults().any(is_kill) => {
            never("the method kills no worker", "add `fault: process.kill` to the method")
        }
        (Metric::FailoverMs, _) if !kills_one(plan) => never("every kill takes all workers at once", "aim one at `active`"),
        (Metric::CheckpointSuccess, _) if plan.topology.store == Store::None => never("there is no store", "set `topology.store`"),
        _ => None,
    }
}
