//! The plans that come with the program, by name.

/// By name, the text of the file in `chaos/plans`.
const PLANS: [(&str, &str); 21] = [
    ("smoke", include_str!("../plans/smoke.yaml")),
    ("calm", include_str!("../plans/calm.yaml")),
    ("gate", include_str!("../plans/gate.yaml")),
    ("campaign", include_str!("../plans/campaign.yaml")),
    ("release", include_str!("../plans/release.yaml")),
    ("peak-traffic", include_str!("../plans/peak-traffic.yaml")),
    ("process", include_str!("../plans/process.yaml")),
    ("network", include_str!("../plans/network.yaml")),
    ("broker", include_str!("../plans/broker.yaml")),
    ("storage", include_str!("../plans/storage.yaml")),
    ("hdfs", include_str!("../plans/hdfs.yaml")),
    ("time", include_str!("../plans/time.yaml")),
    ("data", include_str!("../plans/data.yaml")),
    ("mutants/data", include_str!("../plans/mutants/data.yaml")),
    ("mutants/restore", include_str!("../plans/mutants/restore.yaml")),
    ("mutants/zombies", include_str!("../plans/mutants/zombies.yaml")),
    ("mutants/confirm", include_str!("../plans/mutants/confirm.yaml")),
    ("mutants/doubt", include_str!("../plans/mutants/doubt.yaml")),
    ("mutants/replicas", include_str!("../plans/mutants/replicas.yaml")),
    ("mutants/garbage", include_str!("../plans/mutants/garbage.yaml")),
    ("mutants/checkpoints", include_str!("../plans/mutants/checkpoints.yaml")),
];

pub fn names() -> Vec<&'static str> {
    PLANS.map(|(name, _)| name).to_vec()
}

pub fn ready(name: &str) -> Option<&'static str> {
    PLANS.iter().find(|(known, _)| *known == name).map(|(_, text)| *text)
}
