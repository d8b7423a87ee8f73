//! From the tree of a job file to a [`Job`]: every key read once, every mistake reported.

mod hidden;
mod replication;

use super::interpolate::Interpolation;
use super::secret::{Redactor, Secret, is_secret_by_name};
use super::yaml::{self, Entry, Node, Scalar, Value};
use super::{
    Cluster, DEFAULT_COMMIT_INTERVAL, DEFAULT_FLUSH_INTERVAL, DEFAULT_MEMORY_BUDGET_BYTES, DEFAULT_PARALLELISM, Job, Slo, SqlText, schema,
    units,
};
use crate::problem::{Place, Problem, Problems, SourceFile, did_you_mean};
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use streamshield_engine::config::{BadRecordPolicy, LateRowPolicy};

/// A job file is written by people; more than this is something else.
const FILE_BYTES_MAX: u64 = 16 << 20;

/// Reads a job file. A job is returned only if there are no errors; warnings come with it.
pub fn read(path: &Path, redactor: &Redactor) -> (Option<Job>, Problems) {
    let mut problems = Problems::default();
    let job = read_source(path, &mut problems).and_then(|file| {
        let root = match yaml::parse(&file) {
            Ok(root) => root,
            Err(problem) => {
                hidden::hide_lines(&file, redactor);
                problems.add(problem);
                return None;
            }
        };
        hidden::hide(&root, &file, redactor);
        Reader { file, folder: path.parent().unwrap_or(Path::new("")).to_path_buf(), redactor: redactor.clone(), problems: &mut problems }
            .job(root)
    });
    (job.filter(|_| !problems.has_errors()), problems)
}

fn read_source(path: &Path, problems: &mut Problems) -> Option<Arc<SourceFile>> {
    let text = std::fs::metadata(path).and_then(|metadata| {
        if metadata.len() > FILE_BYTES_MAX {
            return Err(std::io::Error::other(format!("it has {} bytes, at most {FILE_BYTES_MAX} are read", metadata.len())));
        }
        std::fs::read_to_string(path)
    });
    match text {
        Ok(text) => Some(SourceFile::new(path.display().to_string(), text)),
        Err(error) => {
            problems.add(Problem::error(format!("can't read `{}`: {error}", path.display())));
            None
        }
    }
}

struct Reader<'a> {
    file: Arc<SourceFile>,
    folder: PathBuf,
    redactor: Redactor,
    problems: &'a mut Problems,
}

/// The entries of one mapping that have not been read yet.
struct Section {
    entries: Vec<Entry>,
    span: Range<usize>,
}

impl Section {
    fn take(&mut self, key: &str) -> Option<Entry> {
        let index = self.entries.iter().position(|entry| entry.key == key)?;
        Some(self.entries.remove(index))
    }
}

/// A value after interpolation, with its place.
struct Text {
    text: String,
    span: Range<usize>,
    interpolated: bool,
}

impl Reader<'_> {
    fn job(&mut self, root: Node) -> Option<Job> {
        let mut root = self.section(root, "a job file")?;
        let name = self.text(&mut root, "name");
        let name_place = name.as_ref().map(|name| Place { file: self.file.clone(), span: name.span.clone() });
        let name = name.and_then(|name| self.checked_name(name));
        let (slo, [promise_place, recovery_place]) = self.slo(&mut root);
        let replication = self.replication(&mut root, &slo, recovery_place);
        let cluster = self.cluster(&mut root);
        let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get());
        let slots = self.count(&mut root, "slots", 256).map(|slots| slots as usize);
        let parallelism = self.count(&mut root, "parallelism", 4096).unwrap_or(DEFAULT_PARALLELISM);
        let commit_interval = self.positive_duration(&mut root, "commit_interval");
        let flush_interval = self.positive_duration(&mut root, "flush_interval").map_or(DEFAULT_FLUSH_INTERVAL, |(interval, _)| interval);
        let memory_budget_bytes = self.memory_budget(&mut root).unwrap_or(DEFAULT_MEMORY_BUDGET_BYTES);
        let checkpoint = self.checkpoint(&mut root, replication.tier);
        let state_dir = self.text(&mut root, "state_dir").map(|text| PathBuf::from(text.text));
        let sql = self.sql(&mut root);
        let on_bad_record = self
            .choice(&mut root, "on_bad_record", "OnBadRecord")
            .and_then(|value| bad_record_policy(&value))
            .unwrap_or(BadRecordPolicy::Fail);
        let late_rows =
            self.choice(&mut root, "late_rows", "LateRows").and_then(|value| late_row_policy(&value)).unwrap_or(LateRowPolicy::Drop);
        let replication_factor = self.count(&mut root, "replication_factor", 32767).map(|count| count as i32);
        self.unknown(root, "");
        Some(Job {
            file: self.file.clone(),
            // `SET 'pipeline.name'` may still give one.
            name: name.unwrap_or_default(),
            name_place,
            slo,
            replication,
            checkpoint,
            cluster: cluster?,
            slots: slots.unwrap_or(cores),
            slots_by_default: slots.is_none(),
            parallelism,
            commit_interval: commit_interval.as_ref().map_or(DEFAULT_COMMIT_INTERVAL, |(interval, _)| *interval),
            latency_place: commit_interval.map(|(_, span)| span).or(promise_place).map(|span| Place { file: self.file.clone(), span }),
            flush_interval,
            memory_budget_bytes,
            state_dir,
            sql: sql?,
            on_bad_record,
            late_rows,
            replication_factor,
            redactor: self.redactor.clone(),
        })
    }

    fn checked_name(&mut self, name: Text) -> Option<String> {
        match check_name(&name.text) {
            Ok(()) => Some(name.text),
            Err(reason) => {
                self.error(
                    format!("`{}` can't be the name of a job: {reason}", name.text),
                    name.span,
                    "it becomes part of topic names and folders: lower-case letters, digits, `.`, `_` and `-`, at most 63",
                );
                None
            }
        }
    }

    /// The promises, and where `max_latency` and `max_recovery` stand.
    fn slo(&mut self, root: &mut Section) -> (Slo, [Option<Range<usize>>; 2]) {
        let Some(mut section) = self.subsection(root, "slo") else { return (Slo::default(), [None, None]) };
        let completeness = self.parsed(&mut section, "completeness", units::share, "write `99.9 %` or `0.999`").map(|(share, _)| share);
        let (max_latency, latency_place) = self.positive_duration(&mut section, "max_latency").unzip();
        let (max_recovery, recovery_place) = self.positive_duration(&mut section, "max_recovery").unzip();
        self.unknown(section, "Slo");
        (Slo { completeness, max_latency, max_recovery }, [latency_place, recovery_place])
    }

    fn cluster(&mut self, root: &mut Section) -> Option<Cluster> {
        let place = root.span.start..root.span.start;
        let Some(mut section) = self.subsection(root, "kafka") else {
            if !self.problems.has_errors() {
                self.error(
                    "`kafka` is missing".into(),
                    place,
                    "name a cluster (`kafka: {bootstrap.servers: …}`) or take the broker inside (`kafka: {embedded: true}`)",
                );
            }
            return None;
        };
        if section.entries.iter().any(|entry| entry.key == "embedded") {
            let (embedded, _) = self.parsed(&mut section, "embedded", boolean, "write `true` or `false`")?;
            if embedded {
                return self.embedded(section);
            }
        }
        for key in ["data_dir", "listen"] {
            if let Some(entry) = section.take(key) {
                self.error(
                    format!("`kafka.{key}` is for the embedded broker only"),
                    entry.key_span,
                    "add `embedded: true`, or leave it out",
                );
            }
        }
        let span = section.span.clone();
        let properties = self.properties(section);
        if !properties.contains_key("bootstrap.servers") && !self.problems.has_errors() {
            self.error(
                "`kafka.bootstrap.servers` is missing".into(),
                span,
                "for example `bootstrap.servers: localhost:9092`; or `embedded: true` for a broker inside of this process",
            );
        }
        Some(Cluster::Kafka(properties))
    }

    /// Keys that are another program's, with values as text. A secret that stands there in plain sight is warned about; [`hidden`] has hidden it.
    fn properties(&mut self, section: Section) -> BTreeMap<String, Secret> {
        let mut properties = BTreeMap::new();
        for entry in section.entries {
            let key = entry.key.clone();
            let Some(value) = self.entry_text(entry) else { continue };
            if is_secret_by_name(&key) && !value.interpolated {
                let hint = format!("write `{key}: ${{env:NAME}}` or `${{file:/path}}`");
                self.problems
                    .add(Problem::warning(format!("`{key}` stands in the job file as plain text")).hint(hint).at(&self.file, value.span));
            }
            properties.insert(key, Secret::new(value.text));
        }
        properties
    }

    fn embedded(&mut self, mut section: Section) -> Option<Cluster> {
        let data_dir = self.text(&mut section, "data_dir").map(|text| PathBuf::from(text.text));
        let listen = self.parsed(
            &mut section,
            "listen",
            |text| text.parse().map_err(|_| format!("`{text}` is not an address")),
            "write `127.0.0.1:9092`",
        );
        for entry in section.entries {
            self.error(
                format!("`kafka.{}` does not go with `embedded: true`", entry.key),
                entry.key_span,
                "the embedded broker has `data_dir` and `listen`",
            );
        }
        Some(Cluster::Embedded { data_dir, listen: listen.map(|(listen, _)| listen) })
    }

    fn memory_budget(&mut self, root: &mut Section) -> Option<u64> {
        const SMALLEST_BYTES: u64 = 16 << 20;
        let (bytes, span) = self.parsed(root, "memory_budget", units::bytes, "write `512 MiB`")?;
        if bytes < SMALLEST_BYTES {
            self.error("`memory_budget` is too small".into(), span, "at least `16 MiB`");
            return None;
        }
        Some(bytes)
    }

    fn sql(&mut self, root: &mut Section) -> Option<SqlText> {
        match (root.take("sql"), root.take("sql_file")) {
            (Some(entry), Some(file)) => {
                self.error("`sql` and `sql_file` are both given".into(), file.key_span, "keep one of them");
                if let Value::Scalar(scalar) = &entry.node.value {
                    // For its secrets, which are hidden on the way.
                    self.sql_text(&self.file.clone(), scalar);
                }
                None
            }
            (None, None) => {
                let start = root.span.start;
                if !self.problems.has_errors() {
                    self.error(
                        "there is no SQL".into(),
                        start..start,
                        "give the statements under `sql: |`, or name a file with `sql_file:`",
                    );
                }
                None
            }
            (Some(entry), None) => match entry.node.value {
                Value::Scalar(scalar) => Some(self.sql_text(&self.file.clone(), &scalar)),
                _ => {
                    self.error("`sql` must be text".into(), entry.key_span, "put `|` behind the key and indent the statements");
                    None
                }
            },
            (None, Some(entry)) => {
                let name = self.entry_text(entry)?;
                let path = self.folder.join(&name.text);
                match std::fs::read_to_string(&path) {
                    Ok(text) => {
                        let file = SourceFile::new(path.display().to_string(), text);
                        let scalar = Scalar { places: (0..=file.text.len()).collect(), text: file.text.clone() };
                        Some(self.sql_text(&file, &scalar))
                    }
                    Err(error) => {
                        self.error(
                            format!("can't read `{}`: {error}", path.display()),
                            name.span,
                            "a relative path starts at the job file's folder",
                        );
                        None
                    }
                }
            }
        }
    }

    fn sql_text(&mut self, file: &Arc<SourceFile>, scalar: &Scalar) -> SqlText {
        let resolved = Interpolation { file, redactor: &self.redactor }.sql(scalar, self.problems);
        SqlText { text: resolved.text, file: file.clone(), places: resolved.places }
    }

    fn section(&mut self, node: Node, what: &str) -> Option<Section> {
        match node.value {
            Value::Mapping(entries) => Some(Section { entries, span: node.span }),
            _ => {
                self.error(format!("{what} must be a mapping of keys to values"), node.span, "write `key: value`, one a line");
                None
            }
        }
    }

    fn subsection(&mut self, section: &mut Section, key: &str) -> Option<Section> {
        let entry = section.take(key)?;
        let key_span = entry.key_span;
        let mut inner = self.section(entry.node, &format!("`{key}`"))?;
        inner.span = key_span;
        Some(inner)
    }

    fn text(&mut self, section: &mut Section, key: &str) -> Option<Text> {
        let entry = section.take(key)?;
        self.entry_text(entry)
    }

    fn entry_text(&mut self, entry: Entry) -> Option<Text> {
        match entry.node.value {
            Value::Scalar(scalar) => {
                let errors_before = self.problems.0.len();
                let resolved = Interpolation { file: &self.file, redactor: &self.redactor }.value(&scalar, &entry.key, self.problems);
                (self.problems.0.len() == errors_before).then_some(Text {
                    text: resolved.text,
                    span: entry.node.span,
                    interpolated: resolved.interpolated,
                })
            }
            Value::Null => {
                self.error(format!("`{}` has no value", entry.key), entry.key_span, "give one, or leave the key out for the default");
                None
            }
            _ => {
                self.error(format!("`{}` must be a single value", entry.key), entry.key_span, "lists and mappings are not taken here");
                None
            }
        }
    }

    fn parsed<T>(
        &mut self,
        section: &mut Section,
        key: &str,
        parse: impl Fn(&str) -> Result<T, String>,
        hint: &str,
    ) -> Option<(T, Range<usize>)> {
        let text = self.text(section, key)?;
        match parse(&text.text) {
            Ok(value) => Some((value, text.span)),
            Err(reason) => {
                self.error(format!("`{key}`: {reason}"), text.span, hint);
                None
            }
        }
    }

    fn positive_duration(&mut self, section: &mut Section, key: &str) -> Option<(Duration, Range<usize>)> {
        self.parsed(section, key, units::positive_duration, "write a number with a unit: `100 ms`, `5 s`, `1 min`")
    }

    fn count(&mut self, section: &mut Section, key: &str, max: u32) -> Option<u32> {
        let parse = |text: &str| {
            text.parse::<u32>()
                .ok()
                .filter(|count| (1..=max).contains(count))
                .ok_or_else(|| format!("`{text}` is not a number from 1 to {max}"))
        };
        self.parsed(section, key, parse, "write a whole number").map(|(count, _)| count)
    }

    fn choice(&mut self, section: &mut Section, key: &str, definition: &str) -> Option<String> {
        let values = schema::values_of(definition);
        let text = self.text(section, key)?;
        if values.contains(&text.text) {
            return Some(text.text);
        }
        let listed = values.iter().map(|value| format!("`{value}`")).collect::<Vec<_>>().join(", ");
        let hint = match did_you_mean(&text.text, values.iter().map(String::as_str)) {
            Some(value) => format!("did you mean `{value}`? There are {listed}"),
            None => format!("there are {listed}"),
        };
        self.error(format!("`{key}` can't be `{}`", text.text), text.span, &hint);
        None
    }

    /// What is left of a section is unknown.
    fn unknown(&mut self, section: Section, definition: &str) {
        let keys = schema::keys_of(definition);
        for entry in section.entries {
            let hint = match did_you_mean(&entry.key, keys.iter().map(String::as_str)) {
                Some(key) => format!("did you mean `{key}`?"),
                None => format!("known keys: {}", keys.join(", ")),
            };
            self.error(format!("unknown key `{}`", entry.key), entry.key_span, &hint);
        }
    }

    fn error(&mut self, message: String, span: Range<usize>, hint: &str) {
        self.problems.add(Problem::error(message).hint(hint).at(&self.file, span));
    }
}

/// Whether a text may be a job's name.
pub fn check_name(name: &str) -> Result<(), String> {
    let starts_well = name.starts_with(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit());
    match name.chars().find(|c| !(c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '.' | '_' | '-'))) {
        Some(character) => Err(format!("it has `{character}`")),
        None if name.is_empty() => Err("it is empty".into()),
        None if name.len() > 63 => Err("it is too long".into()),
        None if !starts_well => Err("it starts with neither a letter nor a digit".into()),
        None if name.contains("..") => Err("it has `..`".into()),
        None => Ok(()),
    }
}

fn boolean(text: &str) -> Result<bool, String> {
    match text {
        "true" => Ok(true),
        "false" => Ok(false),
        _ => Err(format!("`{text}` is neither true nor false")),
    }
}

fn bad_record_policy(value: &str) -> Option<BadRecordPolicy> {
    match value {
        "fail" => Some(BadRecordPolicy::Fail),
        "dead_letter" => Some(BadRecordPolicy::DeadLetter),
        "skip" => Some(BadRecordPolicy::Skip),
        _ => None,
    }
}

fn late_row_policy(value: &str) -> Option<LateRowPolicy> {
    match value {
        "drop" => Some(LateRowPolicy::Drop),
        "side_topic" => Some(LateRowPolicy::SideTopic),
        _ => None,
    }
}
