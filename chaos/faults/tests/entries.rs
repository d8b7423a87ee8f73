//! Every entry of the catalogue, as a plan would name it.

use rand::SeedableRng;
use std::collections::BTreeSet;
use streamshield_faults::faults::{CRASH_POINTS, STANDBY_POINTS};
use streamshield_faults::{BuildError, Family, Parameters, Role, Target, Value, build, catalogue, check_value};

fn random() -> rand_chacha::ChaCha8Rng {
    rand_chacha::ChaCha8Rng::seed_from_u64(1)
}

#[test]
fn every_entry_builds_with_its_defaults_and_with_each_of_its_targets() {
    for spec in catalogue() {
        build(spec.name, &Parameters::new(), None, &mut random()).map(drop).unwrap_or_else(|error| panic!("{}: {error}", spec.name));
        for role in spec.targets {
            let target = Target { role: *role, name: None };
            build(spec.name, &Parameters::new(), Some(&target), &mut random())
                .map(drop)
                .unwrap_or_else(|error| panic!("{}: {error}", spec.name));
        }
        for parameter in spec.parameters {
            let default = parameter.default.unwrap_or_else(|| panic!("{}: {} has a default", spec.name, parameter.name));
            assert_eq!(check_value(parameter, &Value::Text(default.into())), Ok(()), "{}: {}", spec.name, parameter.name);
            assert!(!parameter.about.is_empty(), "{}: {}", spec.name, parameter.name);
        }
    }
}

#[test]
fn names_are_unique_and_say_their_family() {
    let names: BTreeSet<&str> = catalogue().iter().map(|spec| spec.name).collect();
    assert_eq!(names.len(), catalogue().len());
    assert!(names.len() >= 24, "{} faults", names.len());
    for spec in catalogue() {
        let prefixes: &[&str] = match spec.family {
            Family::Process => &["process"],
            Family::Network => &["net"],
            Family::Broker => &["broker"],
            Family::Storage => &["storage", "store", "hdfs"],
            Family::Time => &["time"],
            Family::Data => &["data"],
        };
        assert!(spec.name.split_once('.').is_some_and(|(prefix, _)| prefixes.contains(&prefix)), "{}", spec.name);
    }
}

#[test]
fn what_a_plan_gets_wrong_is_said_with_a_hint() {
    let refused = |name: &str, parameters: &[(&str, &str)], target: Option<Target>| -> BuildError {
        let parameters = parameters.iter().map(|(key, value)| (key.to_string(), Value::Text(value.to_string()))).collect();
        build(name, &parameters, target.as_ref(), &mut random()).map(drop).expect_err("it is wrong")
    };
    let unknown = refused("proces.kill", &[], None);
    assert!(unknown.to_string().contains("did you mean process.kill?"), "{unknown}");
    assert!(refused("meteor.strike", &[], None).to_string().ends_with("\"meteor.strike\""));
    let parameter = refused("net.latency", &[("speed", "3")], None);
    assert!(parameter.to_string().contains("latency, jitter, direction, broker"), "{parameter}");
    assert!(matches!(refused("net.latency", &[("latency", "fast")], None), BuildError::BadValue { name: "latency", .. }));
    assert!(matches!(refused("process.crash_at", &[("point", "engine::nowhere")], None), BuildError::BadValue { name: "point", .. }));
    let target = refused("store.away", &[], Some(Target { role: Role::Worker, name: None }));
    assert!(target.to_string().contains("store"), "{target}");
}

#[test]
fn the_points_of_the_catalogue_are_those_of_the_engine() {
    assert_eq!(CRASH_POINTS, streamshield_engine::crash_points::POINTS);
    assert!(STANDBY_POINTS.iter().all(|point| CRASH_POINTS.contains(point)));
}
