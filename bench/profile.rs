//! Where the processor time of a query goes: fetch, decode, compute, encode, produce and commit, state.
//!
//! `perf` samples the process with a clock, a few hundred times per second and core, without call chains: they would cost more than they tell, since the
//! functions that matter say by their names what they are for. A sample belongs to a phase by its thread first (the client's threads, the
//! committer, RocksDB), and on the slots' threads by the function. The client has a thread per broker and direction under one name; which one it is, is told by
//! the functions that run on it. The start is part of it.

use crate::engines::Engine;
use crate::nexmark::Query;
use anyhow::{Context, Result, ensure};
use comfy_table::{Cell, CellAlignment, Table};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::Path;
use std::process::{Command, Stdio};
use streamshield_tests::support::figures;

const SAMPLES_PER_SECOND: &str = "499";

/// What time is spent on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    Fetch,
    Decode,
    Compute,
    Encode,
    Produce,
    State,
    /// The allocator and the kernel on the slots' threads: whose they are, no function name says.
    Memory,
    Other,
}

const PHASES: [(Phase, &str); 8] = [
    (Phase::Fetch, "fetch"),
    (Phase::Decode, "decode"),
    (Phase::Compute, "compute"),
    (Phase::Encode, "encode"),
    (Phase::Produce, "produce, commit"),
    (Phase::State, "state"),
    (Phase::Memory, "allocator, kernel"),
    (Phase::Other, "other"),
];

/// Functions of a slot's thread by a part of their name; the first that fits.
const FUNCTIONS: [(&str, Phase); 19] = [
    ("formats::json::decode", Phase::Decode),
    ("formats::json::cursor", Phase::Decode),
    ("formats::columns", Phase::Decode),
    ("formats::time::parse", Phase::Decode),
    ("formats::time::days_from_civil", Phase::Decode),
    ("RowDecoder", Phase::Decode),
    ("formats::", Phase::Encode),
    ("KafkaSinkWriter", Phase::Encode),
    ("itoa", Phase::Encode),
    ("rd_kafka_", Phase::Fetch),
    ("streamshield_kafka::", Phase::Fetch),
    ("streamshield_state", Phase::State),
    ("rocksdb", Phase::State),
    ("streamshield_", Phase::Compute),
    ("arrow", Phase::Compute),
    ("datafusion", Phase::Compute),
    ("hashbrown", Phase::Compute),
    ("chrono", Phase::Compute),
    ("foldhash", Phase::Compute),
];

/// What comes before the program on the command line.
fn recording(file: &Path) -> Vec<OsString> {
    let words = ["perf", "record", "--quiet", "-e", "cpu-clock", "-F", SAMPLES_PER_SECOND, "-o"];
    words.into_iter().map(OsString::from).chain([file.into(), "--".into()]).collect()
}

/// The phases of what was recorded, in samples.
fn phases(file: &Path) -> Result<BTreeMap<Phase, u64>> {
    let script = Command::new("perf").args(["script", "-F", "comm,tid,ip,sym", "-i"]).arg(file).stderr(Stdio::null()).output()?;
    ensure!(script.status.success(), "perf script: {}", script.status);
    let phases = count(&String::from_utf8_lossy(&script.stdout));
    ensure!(!phases.is_empty(), "perf has no samples of the process");
    Ok(phases)
}

/// One sample a line: `thread name  tid  address  function`.
fn count(script: &str) -> BTreeMap<Phase, u64> {
    let samples: Vec<(&str, &str, &str)> = script.lines().filter_map(sample).collect();
    let mut produces: BTreeMap<&str, i64> = BTreeMap::new();
    for (_, tid, function) in samples.iter().filter(|(thread, _, _)| thread.starts_with("rdk:broker")) {
        let vote = if function.contains("msgset_reader") || function.contains("fetch") {
            -1
        } else {
            i64::from(function.contains("msgset_writer") || function.contains("msgset_create"))
        };
        *produces.entry(tid).or_default() += vote;
    }
    let mut phases = BTreeMap::new();
    for (thread, tid, function) in samples {
        let phase = match thread {
            _ if thread.starts_with("rdk:broker") => {
                if produces.get(tid).is_some_and(|votes| *votes > 0) {
                    Phase::Produce
                } else {
                    Phase::Fetch
                }
            }
            _ if thread.starts_with("commit-") || thread.starts_with("producer pol") => Phase::Produce,
            _ if thread.starts_with("rocksdb") => Phase::State,
            _ if thread.starts_with("slot-") => {
                FUNCTIONS.iter().find(|(part, _)| function.contains(part)).map_or(Phase::Memory, |(_, phase)| *phase)
            }
            _ => Phase::Other,
        };
        *phases.entry(phase).or_default() += 1;
    }
    phases
}

fn sample(line: &str) -> Option<(&str, &str, &str)> {
    // The name of a thread may have spaces in it: the first word that is a number ends it.
    let line = line.trim();
    let tid_at = line.match_indices(' ').map(|(at, _)| at + 1).find(|&at| line[at..].starts_with(|c: char| c.is_ascii_digit()))?;
    let (thread, rest) = (line[..tid_at].trim_end(), &line[tid_at..]);
    let (tid, rest) = rest.split_once(' ')?;
    let (_, function) = rest.trim_start().split_once(' ').unwrap_or(("", "[unknown]"));
    Some((thread, tid, function))
}

/// Runs each query once more, with `perf` attached, and prints the shares.
pub fn run(servers: &str, queries: &[&Query], topic: &str, folder: &Path) -> Result<()> {
    let mut table = Table::new();
    table.set_header(std::iter::once("share of CPU time").chain(PHASES.map(|(_, name)| name)).chain(["samples"]));
    let mut values = Vec::new();
    for query in queries {
        let phases = crate::nexmark::with_sink(servers, query, Engine::Streamshield, topic, |name, sql| {
            // The measured job has ended: under its name nothing would be done again.
            let name = &format!("{name}-profile");
            let data = folder.join(format!("{name}.perf"));
            let ended = Engine::Streamshield.run_under(&recording(&data), servers, name, sql, folder);
            ended.context("under perf, which Debian has in the package linux-perf")?;
            phases(&data)
        })?;
        let samples: u64 = phases.values().sum();
        let share = |phase| phases.get(&phase).copied().unwrap_or(0) as f64 / samples as f64;
        let numbers = PHASES.iter().map(|(phase, _)| format!("{:.0} %", share(*phase) * 100.0)).chain([samples.to_string()]);
        table
            .add_row(std::iter::once(Cell::new(query.name)).chain(numbers.map(|text| Cell::new(text).set_alignment(CellAlignment::Right))));
        let shares: Map<String, Value> = PHASES.iter().map(|(phase, name)| (name.to_string(), json!(share(*phase)))).collect();
        values.push(json!({"query": query.name, "samples": samples, "shares": shares}));
    }
    println!("{table}");
    figures::write("profile.json", &Value::Array(values))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_belong_to_phases_by_thread_and_function() {
        let script = "\
         slot-0  4711  55d0c0 streamshield_connectors::formats::json::decode::Reader::object\n\
         slot-1  4712  55d0c1 clear_page_erms\n\
         rdk:broker1  4713  55d0c2 rd_kafka_msgset_reader_msg_v2\n\
         rdk:broker1  4713  55d0c2 _int_malloc\n\
         rdk:broker1  4714  55d0c3 rd_kafka_msgset_writer_write_msg_v2\n\
         rdk:broker1  4714  55d0c4 LZ4_compress_fast_extState\n\
         producer pollin  4715  55d0c5 __vdso_clock_gettime\n\
         rocksdb:high  4716  55d0c6 [unknown]\n";
        let expected = [(Phase::Fetch, 2), (Phase::Decode, 1), (Phase::Produce, 3), (Phase::State, 1), (Phase::Memory, 1)];
        assert_eq!(count(script), BTreeMap::from(expected));
    }
}
