//! A tree with places against a JSON Schema: every mistake at once, and the values typed as the schema says.
//!
//! The schema that is published is the one that checks, so an editor and the program agree. Only what schemars writes for plain structures is understood:
//! `$ref`, `properties`, `required`, `additionalProperties`, `items`, `enum`, `oneOf` with `const`, `minimum`, `maximum`, `minItems`, and the formats
//! `duration`, `size` and `share` of [`crate::units`], whose values stay text.
//!
//! ```text
//! Node ──read──► serde_json::Value ──serde──► the reader's own types        place of a part: `place(&root, &["method", "3", "fault"])`
//!          └► problems
//! ```

use crate::problem::{Problem, Problems, SourceFile, did_you_mean};
use crate::units;
use crate::yaml::{Node, Scalar, Value as Tree};
use serde_json::{Map, Value};
use std::ops::Range;
use std::sync::Arc;

/// Reads a tree by a schema. What is wrong is added to the problems and left out of the value.
pub fn read(root: &Node, schema: &Value, file: &Arc<SourceFile>, problems: &mut Problems) -> Value {
    Reader { schema, file, problems }.node(root, schema, "the file", &root.span)
}

/// Where a part of a tree stands, or the nearest part that holds it. Items of a list are named by their number.
pub fn place(root: &Node, path: &[&str]) -> Range<usize> {
    let Some((first, rest)) = path.split_first() else { return root.span.clone() };
    match &root.value {
        Tree::Mapping(entries) => match entries.iter().find(|entry| entry.key == *first) {
            // A key whose value holds more is found by its name: a whole mapping would mark half of the file.
            Some(entry) if rest.is_empty() && !matches!(entry.node.value, Tree::Scalar(_)) => entry.key_span.clone(),
            Some(entry) => place(&entry.node, rest),
            None => root.span.clone(),
        },
        Tree::Sequence(items) => match first.parse::<usize>().ok().and_then(|index| items.get(index)) {
            Some(item) => place(item, rest),
            None => root.span.clone(),
        },
        _ => root.span.clone(),
    }
}

/// The place of the key itself.
pub fn key_place(root: &Node, path: &[&str], key: &str) -> Range<usize> {
    find(root, path)
        .and_then(|node| match &node.value {
            Tree::Mapping(entries) => entries.iter().find(|entry| entry.key == key).map(|entry| entry.key_span.clone()),
            _ => None,
        })
        .unwrap_or_else(|| place(root, path))
}

fn find<'a>(root: &'a Node, path: &[&str]) -> Option<&'a Node> {
    path.iter().try_fold(root, |node, part| match &node.value {
        Tree::Mapping(entries) => entries.iter().find(|entry| entry.key == *part).map(|entry| &entry.node),
        Tree::Sequence(items) => items.get(part.parse::<usize>().ok()?),
        _ => None,
    })
}

/// A key is there with a value or not there at all; schemars has `Option` accept null.
pub fn forbid_null(schema: &mut Value) {
    match schema {
        Value::Object(object) => {
            if let Some(Value::Array(types)) = object.get_mut("type") {
                types.retain(|name| name != "null");
                if let [only] = types.as_slice() {
                    let only = only.clone();
                    object.insert("type".into(), only);
                }
            }
            if let Some(Value::Array(choices)) = object.get_mut("anyOf") {
                choices.retain(|choice| choice.get("type").is_none_or(|name| name != "null"));
                if let [Value::Object(only)] = choices.as_slice() {
                    let only = only.clone();
                    object.remove("anyOf");
                    object.extend(only);
                }
            }
            object.values_mut().for_each(forbid_null);
        }
        Value::Array(items) => items.iter_mut().for_each(forbid_null),
        _ => {}
    }
}

struct Reader<'a> {
    schema: &'a Value,
    file: &'a Arc<SourceFile>,
    problems: &'a mut Problems,
}

impl Reader<'_> {
    fn node(&mut self, node: &Node, schema: &Value, name: &str, name_span: &Range<usize>) -> Value {
        let root = self.schema;
        let schema = resolve(root, schema);
        if takes(schema, "object") {
            return self.object(node, schema, name, name_span);
        }
        if takes(schema, "array") {
            return self.array(node, schema, name, name_span);
        }
        match &node.value {
            Tree::Scalar(scalar) => match scalar_value(scalar, schema) {
                Ok(value) => value,
                Err((message, hint)) => {
                    self.error(format!("{name}: {message}"), node.span.clone(), hint);
                    Value::Null
                }
            },
            Tree::Null => {
                self.error(format!("{name} has no value"), name_span.clone(), "give one, or leave the key out for the default");
                Value::Null
            }
            _ => {
                self.error(format!("{name} must be a single value"), name_span.clone(), "lists and mappings are not taken here");
                Value::Null
            }
        }
    }

    fn object(&mut self, node: &Node, schema: &Value, name: &str, name_span: &Range<usize>) -> Value {
        let Tree::Mapping(entries) = &node.value else {
            self.error(format!("{name} must be a mapping of keys to values"), name_span.clone(), "write `key: value`, one a line");
            return Value::Null;
        };
        let known = schema.get("properties").and_then(Value::as_object);
        let others = schema.get("additionalProperties").filter(|others| others.is_object());
        let mut object = Map::new();
        for entry in entries {
            let inner = known.and_then(|known| known.get(&entry.key)).or(others);
            let Some(inner) = inner else {
                let keys: Vec<&str> = known.into_iter().flat_map(|known| known.keys()).map(String::as_str).collect();
                let hint = match did_you_mean(&entry.key, keys.iter().copied()) {
                    Some(key) => format!("did you mean `{key}`?"),
                    None => format!("known keys: {}", keys.join(", ")),
                };
                self.error(format!("unknown key `{}`", entry.key), entry.key_span.clone(), hint);
                continue;
            };
            let value = self.node(&entry.node, inner, &format!("`{}`", entry.key), &entry.key_span);
            object.insert(entry.key.clone(), value);
        }
        for required in schema.get("required").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str) {
            if !object.contains_key(required) {
                let about = known.and_then(|known| known.get(required)).and_then(|inner| inner.get("description")).and_then(Value::as_str);
                let hint = about.map_or_else(|| format!("add `{required}:`"), |about| format!("`{required}`: {about}"));
                self.error(format!("{name} has no `{required}`"), name_span.clone(), hint);
            }
        }
        Value::Object(object)
    }

    fn array(&mut self, node: &Node, schema: &Value, name: &str, name_span: &Range<usize>) -> Value {
        let Tree::Sequence(items) = &node.value else {
            self.error(format!("{name} must be a list"), name_span.clone(), "write one `- ` line for each item, or `[a, b]`");
            return Value::Null;
        };
        if (items.len() as u64) < schema.get("minItems").and_then(Value::as_u64).unwrap_or(0) {
            self.error(format!("{name} is empty"), name_span.clone(), "add an item, or leave the key out");
        }
        let inner = schema.get("items").unwrap_or(&Value::Null);
        Value::Array(items.iter().map(|item| self.node(item, inner, &format!("an item of {name}"), &item.span)).collect())
    }

    fn error(&mut self, message: String, span: Range<usize>, hint: impl Into<String>) {
        self.problems.add(Problem::error(message).hint(hint).at(self.file, span));
    }
}

fn resolve<'a>(root: &'a Value, schema: &'a Value) -> &'a Value {
    match schema.get("$ref").and_then(Value::as_str).and_then(|reference| reference.strip_prefix('#')) {
        Some(pointer) => root.pointer(pointer).unwrap_or(schema),
        None => schema,
    }
}

fn takes(schema: &Value, kind: &str) -> bool {
    match schema.get("type") {
        Some(Value::String(only)) => only == kind,
        Some(Value::Array(kinds)) => kinds.iter().any(|one| one == kind),
        _ => false,
    }
}

/// Values of a choice.
fn choices(schema: &Value) -> Vec<&str> {
    let listed = schema.get("enum").and_then(Value::as_array).into_iter().flatten();
    let described = schema.get("oneOf").and_then(Value::as_array).into_iter().flatten();
    let constants = described
        .flat_map(|choice| choice.get("const").into_iter().chain(choice.get("enum").and_then(Value::as_array).into_iter().flatten()));
    listed.chain(constants).filter_map(Value::as_str).collect()
}

fn scalar_value(scalar: &Scalar, schema: &Value) -> Result<Value, (String, String)> {
    let text = scalar.text.trim();
    let keep = |result: Result<(), String>, hint: &str| match result {
        Ok(()) => Ok(Value::String(text.to_string())),
        Err(message) => Err((message, hint.to_string())),
    };
    match schema.get("format").and_then(Value::as_str) {
        Some("duration") => return keep(units::duration(text).map(|_| ()), "write a number with a unit: `100 ms`, `5 s`, `1 min`"),
        Some("size") => return keep(units::bytes(text).map(|_| ()), "write bytes with or without a unit: `512 MiB`, `1 GB`"),
        Some("share") => return keep(units::share(text).map(|_| ()), "write `99.9 %` or `0.999`"),
        _ => {}
    }
    let choices = choices(schema);
    if !choices.is_empty() {
        if choices.contains(&text) {
            return Ok(Value::String(text.to_string()));
        }
        let listed = choices.iter().map(|choice| format!("`{choice}`")).collect::<Vec<_>>().join(", ");
        let hint = did_you_mean(text, choices.iter().copied())
            .map_or_else(|| format!("there are {listed}"), |choice| format!("did you mean `{choice}`? There are {listed}"));
        return Err((format!("there is no `{text}`"), hint));
    }
    if takes(schema, "string") {
        return Ok(Value::String(scalar.text.clone()));
    }
    if takes(schema, "boolean") {
        return text
            .parse::<bool>()
            .map(Value::Bool)
            .map_err(|_| (format!("`{text}` is neither true nor false"), "write `true` or `false`".into()));
    }
    number(text, schema)
}

fn number(text: &str, schema: &Value) -> Result<Value, (String, String)> {
    let plain = text.replace('_', "");
    let value = if takes(schema, "integer") {
        plain.parse::<i64>().ok().map(Value::from)
    } else {
        plain.parse::<f64>().ok().filter(|number| number.is_finite()).map(Value::from)
    };
    let (least, most) = (schema.get("minimum").and_then(Value::as_f64), schema.get("maximum").and_then(Value::as_f64));
    let in_range = |value: &Value| {
        value.as_f64().is_some_and(|number| least.is_none_or(|least| number >= least) && most.is_none_or(|most| number <= most))
    };
    value.filter(in_range).ok_or_else(|| {
        let kind = if takes(schema, "integer") { "a whole number" } else { "a number" };
        let range = match (least, most) {
            (Some(least), Some(most)) => format!(" from {least} to {most}"),
            (Some(least), None) => format!(" of at least {least}"),
            (None, Some(most)) => format!(" of at most {most}"),
            (None, None) => String::new(),
        };
        (format!("`{text}` is not {kind}{range}"), format!("write {kind}{range}"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::yaml;
    use serde_json::json;

    fn schema() -> Value {
        json!({
            "type": "object", "additionalProperties": false, "required": ["name"],
            "properties": {
                "name": { "type": "string", "description": "What it is called." },
                "size": { "type": "integer", "minimum": 1, "maximum": 9 },
                "mode": { "$ref": "#/$defs/Mode" },
                "limit": { "type": "string", "format": "duration" },
                "steps": { "type": "array", "minItems": 1, "items": { "type": "object", "additionalProperties": false, "properties": { "on": { "type": "boolean" } } } },
                "with": { "type": "object", "additionalProperties": { "type": ["string", "number", "boolean"] } },
            },
            "$defs": { "Mode": { "oneOf": [{ "const": "fast" }, { "const": "slow" }] } },
        })
    }

    fn read_text(text: &str) -> (Value, Vec<String>) {
        let (file, mut problems) = (SourceFile::new("x.yaml", text), Problems::default());
        let root = yaml::parse(&file).unwrap_or_else(|problem| panic!("{}", problem.message));
        let value = read(&root, &schema(), &file, &mut problems);
        (value, problems.0.into_iter().map(|problem| format!("{} | {}", problem.message, problem.hint.unwrap_or_default())).collect())
    }

    #[test]
    fn values_come_typed_as_the_schema_says() {
        let (value, problems) = read_text("name: 1.10\nsize: 7\nmode: slow\nlimit: 5 s\nsteps: [{on: true}]\nwith: {a: 1.50, b: no}\n");
        assert_eq!(problems, Vec::<String>::new());
        assert_eq!(
            value,
            json!({"name": "1.10", "size": 7, "mode": "slow", "limit": "5 s", "steps": [{"on": true}], "with": {"a": "1.50", "b": "no"}})
        );
    }

    #[test]
    fn all_mistakes_are_reported_at_once_each_with_a_hint() {
        let (_, problems) = read_text("sise: 3\nsize: 10\nmode: fst\nlimit: 5\nsteps: []\nwith: 3\n");
        assert_eq!(
            problems,
            [
                "unknown key `sise` | did you mean `size`?",
                "`size`: `10` is not a whole number from 1 to 9 | write a whole number from 1 to 9",
                "`mode`: there is no `fst` | did you mean `fast`? There are `fast`, `slow`",
                "`limit`: `5` has no unit | write a number with a unit: `100 ms`, `5 s`, `1 min`",
                "`steps` is empty | add an item, or leave the key out",
                "`with` must be a mapping of keys to values | write `key: value`, one a line",
                "the file has no `name` | `name`: What it is called.",
            ]
        );
    }

    #[test]
    fn a_part_is_found_by_its_path_and_a_missing_one_by_what_holds_it() {
        let text = "name: a\nsteps:\n  - on: true\n  - on: false\n";
        let root = yaml::parse(&SourceFile::new("x.yaml", text)).unwrap_or_else(|problem| panic!("{}", problem.message));
        assert_eq!(&text[place(&root, &["steps", "1", "on"])], "false");
        assert_eq!(&text[place(&root, &["steps"])], "steps");
        assert_eq!(&text[key_place(&root, &["steps", "0"], "on")], "on");
        assert!(text[place(&root, &["steps", "1", "off"]).start..].starts_with("on: false"));
    }
}
