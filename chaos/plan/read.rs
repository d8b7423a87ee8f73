//! From the file of a plan to a [`Plan`] that may be run, or to everything that is wrong with it.

use super::{Plan, check, ready};
use schemars::generate::SchemaSettings;
use serde_json::Value;
use std::path::Path;
use std::sync::Arc;
use streamshield_faults::FaultSpec;
use streamshield_files::problem::{Problem, Problems, SourceFile, did_you_mean};
use streamshield_files::{schema, yaml};

/// Plans are written by people; more than this is something else.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// A plan with the file that it came from.
pub struct SourcePlan {
    pub plan: Plan,
    /// As the user named it: a path, or the name of a ready plan.
    pub name: String,
    pub text: String,
}

/// Reads a plan from a file, or a ready one by its name. Warnings come with it.
pub fn read(name: &str, catalogue: &[FaultSpec]) -> (Option<SourcePlan>, Problems) {
    let mut problems = Problems::default();
    let text = match source(name) {
        Ok(text) => text,
        Err(problem) => {
            problems.add(problem);
            return (None, problems);
        }
    };
    let file = SourceFile::new(name, text.clone());
    let plan = parse(&file, catalogue, &mut problems);
    (plan.map(|plan| SourcePlan { plan, name: name.into(), text }).filter(|_| !problems.has_errors()), problems)
}

/// A file wins over a ready plan of the same name.
fn source(name: &str) -> Result<String, Problem> {
    let path = Path::new(name);
    if path.is_file() {
        let length = std::fs::metadata(path).map_or(0, |metadata| metadata.len());
        if length > FILE_BYTES_MAX {
            return Err(Problem::error(format!("can't read `{name}`: it has {length} bytes, at most {FILE_BYTES_MAX} are read")));
        }
        return std::fs::read_to_string(path).map_err(|error| Problem::error(format!("can't read `{name}`: {error}")));
    }
    ready::ready(name).map(str::to_string).ok_or_else(|| {
        let names = ready::names();
        let hint = match did_you_mean(name, names.iter().copied()) {
            Some(near) => format!("did you mean the ready plan `{near}`?"),
            None => format!("give a file, or one of the ready plans: {}", names.join(", ")),
        };
        Problem::error(format!("there is no plan `{name}`")).hint(hint)
    })
}

pub(super) fn parse(file: &Arc<SourceFile>, catalogue: &[FaultSpec], problems: &mut Problems) -> Option<Plan> {
    let root = yaml::parse(file).map_err(|problem| problems.add(problem)).ok()?;
    let value = schema::read(&root, &json_schema(), file, problems);
    // Conditions and moments are text to the schema; what is wrong with them is worth the same round.
    check::texts(&root, file, problems);
    if problems.has_errors() {
        return None;
    }
    match serde_json::from_value::<Plan>(value) {
        Ok(plan) => {
            check::Check { plan: &plan, catalogue, root: &root, file, problems }.run();
            Some(plan)
        }
        Err(error) => {
            problems.add(Problem::error(format!("the plan can't be read: {error}")).at(file, root.span.clone()));
            None
        }
    }
}

fn json_schema() -> Value {
    let mut value = SchemaSettings::draft2020_12().into_generator().into_root_schema_for::<Plan>().to_value();
    schema::forbid_null(&mut value);
    value
}

/// The JSON Schema, as `streamshield chaos schema` prints it.
pub fn schema_text() -> String {
    serde_json::to_string_pretty(&json_schema()).expect("a JSON value always serializes") + "\n"
}
