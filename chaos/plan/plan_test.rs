use super::read::parse;
use super::*;
use streamshield_faults::{Family, FaultSpec, Parameter as FaultParameter, ParameterKind, Role};
use streamshield_files::problem::{Problems, SourceFile, render};

const CATALOGUE: [FaultSpec; 4] = [
    FaultSpec {
        name: "process.kill",
        family: Family::Process,
        about: "SIGKILL",
        parameters: &[],
        targets: &[Role::Worker, Role::Active, Role::Follower],
        lasts: false,
    },
    FaultSpec {
        name: "net.latency",
        family: Family::Network,
        about: "slow",
        parameters: &[
            FaultParameter { name: "delay", kind: ParameterKind::Duration, default: None, about: "added to each message" },
            FaultParameter { name: "jitter", kind: ParameterKind::Duration, default: Some("0 ms"), about: "more or less" },
            FaultParameter {
                name: "direction",
                kind: ParameterKind::Choice(&["both", "up", "down"]),
                default: Some("both"),
                about: "of the link",
            },
        ],
        targets: &[Role::Worker],
        lasts: true,
    },
    FaultSpec { name: "broker.kill", family: Family::Broker, about: "SIGKILL", parameters: &[], targets: &[Role::Broker], lasts: true },
    FaultSpec { name: "store.away", family: Family::Storage, about: "away", parameters: &[], targets: &[Role::Store], lasts: true },
];

fn problems_of(text: &str) -> String {
    problems_by(&CATALOGUE, text)
}

fn problems_by(catalogue: &[FaultSpec], text: &str) -> String {
    let (file, mut problems) = (SourceFile::new("plan.yaml", text), Problems::default());
    parse(&file, catalogue, &mut problems);
    problems.0.iter().map(|problem| render(problem, &str::to_string, false)).collect::<Vec<_>>().join("\n")
}

const GOOD: &str = "version: 1
title: everything
seed: 42
topology: {brokers: 3, workers: 3, tier: 1, store: s3, checkpoint_interval: 5 s}
workload: {rate: 2000, records: 200_000, keys: 500}
steady_state:
  - {name: lag, probe: lag_records, at_most: 2000, when: [before, after]}
method:
  - {at: records>=20000, fault: process.kill, target: {role: active}, repeat: 20, every: 8 s}
  - {fault: net.latency, target: {role: worker, name: w2}, with: {delay: 200 ms, direction: up}, for: 30 s, background: true}
  - {random: {of: [{fault: process.kill}, {fault: broker.kill}], pick: 1..2, every: 20 s, calm: 10 s}, for: 2 min}
  - {load: 5, for: 60 s}
  - {pause: 5 s}
thresholds:
  latency_ms: [p99 < 500 during healthy, p(99)<3000 during fault, p99 < 5000 during peak]
  failover_ms: [p50 < 900]
proof_of_fault: {min_fired: {process.kill: 20}, min_records_during_fault: 5000}
";

#[test]
fn a_good_plan_is_read_to_the_last_key() {
    let (file, mut problems) = (SourceFile::new("plan.yaml", GOOD), Problems::default());
    let plan = parse(&file, &CATALOGUE, &mut problems).expect("a plan");
    assert_eq!(problems_of(GOOD), "");
    assert_eq!(
        (plan.seed, plan.workload.records, plan.method.len(), plan.invariants.len()),
        (Some(42), Some(200_000), 5, Invariant::ALL.len())
    );
    assert_eq!(plan.method[0].at, Some(Start::Records(20_000)));
    assert_eq!(plan.method[2].random.as_ref().map(|draw| draw.pick), Some(Pick { least: 1, most: 2 }));
    assert_eq!(plan.faults().collect::<Vec<_>>(), ["process.kill", "net.latency", "process.kill", "broker.kill"]);
    let again: Plan = serde_json::from_str(&serde_json::to_string(&plan).expect("JSON")).expect("the journal holds the plan");
    assert_eq!(serde_json::to_value(&again).ok(), serde_json::to_value(&plan).ok());
}

#[test]
fn mistakes_that_a_schema_knows_are_shown_at_their_place() {
    insta::assert_snapshot!(problems_of(
        "version: 1
titel: x
topology: {brokers: three, workers: 99, stores: s3}
workload: {rate: 0}
method:
  - {fault: process.kill, evry: 3 s}
  - {pause: 5}
  - {at: records>20, pause: 5 s}
thresholds: {latency: [p99 < 5], latency_ms: [p98 < 5]}
invariants: [no_loss, no_dup]
"
    ));
}

#[test]
fn faults_and_targets_that_can_not_be_are_shown_at_their_place() {
    insta::assert_snapshot!(problems_of(
        "version: 1
title: wrong aims
topology: {brokers: 0, workers: 3, store: none}
workload: {rate: 100}
method:
  - {fault: proces.kill}
  - {fault: process.kill, target: {role: worker, name: w7}, for: 5 s}
  - {fault: process.kill, target: {role: active, name: s0/9}}
  - {fault: process.kill, target: {role: broker}}
  - {fault: broker.kill}
  - {fault: store.away}
  - {fault: net.latency, with: {jiter: 3 s, direction: sideways}}
  - {fault: net.latency, with: {delay: 30}}
  - {fault: process.kill, pause: 3 s}
  - {repeat: 3}
  - {fault: process.kill, every: 3 s}
  - {random: {of: [{fault: process.kil}], pick: 3, every: 5 s, calm: 10 s}}
"
    ));
}

#[test]
fn promises_that_nobody_could_check_are_refused() {
    insta::assert_snapshot!(problems_of(
        "version: 1
title: empty promises
topology: {workers: 1, tier: 1, store: none}
workload: {rate: 100, keys: 2}
steady_state:
  - {name: anything, probe: lag_records}
  - {name: impossible, probe: workers_alive, at_least: 4}
  - {name: never, probe: lag_ms, at_most: 5, when: [during]}
thresholds:
  latency_ms: [p99 < 5 during fault, p99 < 5 during peak, value < 3]
  failover_ms: [p99 < 5, max < 3 during healthy]
  checkpoint_success: [value > 0.9]
  catch_up_s: [value < 30 during after]
proof_of_fault: {min_fired: {process.kill: 3}, min_records_during_fault: 5}
"
    ));
}

#[test]
fn more_deaths_than_are_planned_can_not_be_asked_for() {
    let text = "version: 1\ntitle: x\nworkload: {rate: 100}\nmethod: [{fault: process.kill, repeat: 3, every: 5 s}]\n";
    assert_eq!(problems_of(text), "");
    let asked = format!("{text}proof_of_fault: {{min_fired: {{process.kill: 4}}}}\n");
    assert!(problems_of(&asked).contains("can't fire 4 times"), "{}", problems_of(&asked));
}

#[test]
fn a_fault_may_wait_for_a_worker_at_a_named_point() {
    let step = "{fault: net.reset, when: {fail_point: \"engine::before_commit\", target: {role: worker, name: w2}}, for: 5 s}";
    let text = format!("version: 1\ntitle: x\nworkload: {{rate: 100}}\nmethod: [{step}]\n");
    let (file, mut problems) = (SourceFile::new("plan.yaml", text.as_str()), Problems::default());
    let plan = parse(&file, streamshield_faults::catalogue(), &mut problems).expect("a plan");
    assert!(problems.0.is_empty());
    let when = plan.method[0].when.as_ref().expect("it waits");
    assert_eq!((when.fail_point.as_str(), when.within), ("engine::before_commit", Time::seconds(60)));
    assert_eq!(when.target.as_ref().map(Target::to_string).as_deref(), Some("worker w2"));
}

#[test]
fn a_point_that_nobody_passes_is_refused() {
    let waits = |when: &str| format!("{{fault: net.reset, when: {{{when}}}, for: 5 s}}");
    let delta = "fail_point: \"state::apply_delta\"";
    let crash = "{fault: process.crash_at, with: {point: \"state::after_delta\"}}";
    let drawn = format!("{{random: {{of: [{crash}], every: 5 s, calm: 1 s}}, for: 1 min}}");
    for (tier, step, problem) in [
        (1, waits("fail_point: \"engine::nowhere\""), "there is no fail point `engine::nowhere`"),
        (1, waits("fail_point: \"engine::nowhere\""), "there are engine::before_begin, engine::after_produce"),
        (1, waits("fail_point: \"engine::before_commit\", target: {role: broker}"), "`fail_point` can't be aimed at `broker`"),
        (1, waits("fail_point: \"engine::before_commit\", target: {role: worker, name: w7}"), "there is no worker `w7`"),
        (3, waits("fail_point: \"engine::before_commit\", target: {role: follower}"), "tier 3 has none"),
        (1, waits(delta), "only standbys pass `state::apply_delta`, and tier 1 has none"),
        (3, crash.to_string(), "only standbys pass `state::after_delta`, and tier 3 has none"),
        (1, drawn.clone(), "only standbys pass `state::after_delta`, and tier 1 has none"),
        (1, "{pause: 5 s, when: {fail_point: \"engine::before_commit\"}}".to_string(), "`when` means nothing in a step with `pause`"),
    ] {
        let problems = problems_with(&format!("tier: {tier}"), &step, "");
        assert!(problems.contains(problem), "{step}: {problems}");
    }
    for step in [waits(delta), crash.to_string(), drawn] {
        assert_eq!(problems_with("tier: 2", &step, ""), "", "{step}");
    }
}

#[test]
fn a_fault_that_waits_for_the_worker_itself_can_not_wait_for_a_point() {
    let at_point = |fault: &str, with: &str| format!("{{fault: {fault}{with}, when: {{fail_point: \"engine::before_commit\"}}}}");
    for (fault, hint) in [
        ("process.stop", "use `process.kill`"),
        ("process.crash_at", "use `process.kill`"),
        ("process.lose_rows", "leave `when` out"),
        ("net.hold_end_txn", "leave `when` out"),
        ("storage.bit_flip", "add `end: kill`"),
    ] {
        let problems = problems_with("tier: 1", &at_point(fault, ""), "");
        assert!(problems.contains(&format!("`{fault}` can't happen at a point")) && problems.contains(hint), "{problems}");
    }
    assert!(check::NOT_AT_A_POINT.iter().chain(&check::ENDS_WELL).all(|fault| streamshield_faults::find(fault).is_some()));
    for (fault, with) in [("process.kill", ""), ("storage.bit_flip", ", with: {end: kill}")] {
        assert_eq!(problems_with("tier: 1", &at_point(fault, with), ""), "", "{fault}");
    }
}

/// By the real catalogue.
fn problems_with(topology: &str, method: &str, rest: &str) -> String {
    let text = format!("version: 1\ntitle: x\ntopology: {{{topology}}}\nworkload: {{rate: 100}}\nmethod: [{method}]\n{rest}\n");
    problems_by(streamshield_faults::catalogue(), &text)
}

#[test]
fn what_the_topology_does_not_have_can_not_be_broken() {
    for (topology, step, problem) in [
        ("brokers: 1", "{fault: broker.below_min_isr}", "and this plan has one"),
        ("tier: 3", "{fault: process.kill, target: {role: follower}}", "tier 3 has none"),
        ("tier: 3, store: s3", "{fault: broker.delete_records}", "tier 3 has none"),
        ("brokers: 3", "{fault: net.reset, with: {broker: 7}}", "there is no broker `7`: they are 1 to 3"),
        ("brokers: 0", "{fault: net.reset, with: {broker: 2}}", "there is no broker `2`: they are 1 to 1"),
        ("tier: 1", "{fault: process.kill, target: {role: active, name: s9/0}}", "its stages are 0 to 4"),
        ("store: local", "{fault: net.latency, target: {role: store}, for: 5 s}", "the checkpoints of this plan go to a folder"),
        ("store: none", "{fault: net.latency, target: {role: store}, for: 5 s}", "this plan has none"),
        ("store: hdfs", "{fault: store.torn_upload, for: 5 s}", "those to an HDFS can't be told apart"),
    ] {
        let problems = problems_with(topology, step, "");
        assert!(problems.contains(problem), "{step}: {problems}");
    }
    for (topology, step) in [
        ("brokers: 3", "{fault: broker.below_min_isr}"),
        ("tier: 2, store: s3", "{fault: broker.delete_records}"),
        ("brokers: 3", "{fault: net.reset, with: {broker: 3}}"),
        ("brokers: 0", "{fault: net.reset, with: {broker: 1}}"),
        ("store: hdfs", "{fault: net.latency, target: {role: store}, for: 5 s}"),
        ("store: hdfs", "{fault: store.away, for: 5 s}"),
        ("store: s3", "{fault: store.torn_upload, for: 5 s}"),
        ("store: local", "{fault: net.latency, for: 5 s}"),
        ("tier: 3", "{fault: process.kill, target: {role: active, name: s4/3}}"),
    ] {
        assert_eq!(problems_with(topology, step, ""), "", "{step}");
    }
}

#[test]
fn a_plan_has_as_many_workers_as_a_stage_may_have() {
    for (workers, is_fine) in [(9, true), (10, false)] {
        let topology = streamshield_faults::Topology { workers, ..streamshield_faults::Topology::default() };
        assert_eq!(topology.check().is_ok(), is_fine);
        assert_eq!(problems_with(&format!("workers: {workers}"), "", "").is_empty(), is_fine);
    }
}

#[test]
fn promises_that_the_method_can_not_keep_are_refused() {
    let (all, one) = ("{fault: process.kill, target: {role: all_workers}}", "{fault: process.kill}");
    let failover = "thresholds: {failover_ms: [max < 900]}";
    assert!(problems_with("workers: 3", all, failover).contains("every kill takes all workers at once"));
    assert_eq!(problems_with("workers: 3", &format!("{all}, {one}"), failover), "");
    let kills = "{fault: process.kill, repeat: 3}, {fault: process.kill_taker}, {fault: net.reset}";
    let asked = |count: u32| format!("proof_of_fault: {{min_kills: {count}}}");
    assert_eq!(problems_with("workers: 3", kills, &asked(5)), "");
    let problems = problems_with("workers: 3", kills, &asked(6));
    assert!(problems.contains("6 processes can't be killed: the method kills 5 at most"), "{problems}");
    let more = format!("{kills}, {{fault: process.memory_limit}}");
    assert_eq!(problems_with("workers: 3", &more, &asked(60)), "", "nobody knows how often the kernel kills");
    let types = |count: u32| problems_with("workers: 3", kills, &format!("proof_of_fault: {{min_types: {count}}}"));
    assert_eq!(types(3), "");
    assert!(types(4).contains("4 types of faults can't fire: the method has 3"), "{}", types(4));
}

#[test]
fn the_ready_plans_are_good_by_the_real_catalogue() {
    for name in ready_names() {
        let (plan, problems) = read(name, streamshield_faults::catalogue());
        let shown: Vec<String> = problems.0.iter().map(|problem| render(problem, &str::to_string, false)).collect();
        assert!(plan.is_some() && shown.is_empty(), "{name}:\n{}", shown.join("\n"));
    }
}

#[test]
fn the_gate_has_as_many_types_of_faults_and_kills_as_it_promises() {
    let (gate, _) = read("gate", streamshield_faults::catalogue());
    let gate = gate.expect("a good plan").plan;
    let types: std::collections::BTreeSet<&str> = gate.faults().collect();
    let proof = &gate.proof_of_fault;
    assert!(types.len() >= 16 && proof.min_types >= 16 && proof.min_kills >= 30 && proof.min_records >= 1_000_000, "{types:?}");
}

#[test]
fn the_published_schema_is_the_one_that_checks() {
    let published =
        std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/chaos-plan.schema.json")).expect("it is published");
    assert!(published == schema_text(), "docs/chaos-plan.schema.json is old: `streamshield chaos schema` prints it");
}
