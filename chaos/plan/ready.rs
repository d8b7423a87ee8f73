//! The plans that come with the program, by name.

/// By name, the text of the file in `chaos/plans`.
const PLANS: [(&str, &str); 10] = [
    ("smoke", include_str!("../plans/smoke.yaml")),
    ("gate", include_str!("../plans/gate.yaml")),
    ("release", include_str!("../plans/release.yaml")),
    ("peak-traffic", include_str!("../plans/peak-traffic.yaml")),
    ("process", include_str!("../plans/process.yaml")),
    ("network", include_str!("../plans/network.yaml")),
    ("broker", include_str!("../plans/broker.yaml")),
    ("storage", include_str!("../plans/storage.yaml")),
    ("time", include_str!("../plans/time.yaml")),
    ("data", include_str!("../plans/data.yaml")),
];

pub fn names() -> Vec<&'static str> {
    PLANS.map(|(name, _)| name).to_vec()
}

pub fn ready(name: &str) -> Option<&'static str> {
    PLANS.iter().find(|(known, _)| *known == name).map(|(_, text)| *text)
}
