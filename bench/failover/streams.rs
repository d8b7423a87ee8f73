//! The peer: three instances of the same job on Kafka Streams, killed in the same way.
//!
//! What is its own: results come with each commit and the last one of a window counts, so the output is compared by the last value of each group. Which
//! instance owns what is read from the output, where each record names its maker.

use super::kills::Kill;
use super::observer::{Observer, Rows, StreamsResult};
use super::{OUTPUT_QUIET_MAX, SETTLE_TIMEOUT, START_TIMEOUT, Series, WARM_UP, load_of, remove_topics, report};
use anyhow::{Context, Result, ensure};
use rand::Rng;
use rdkafka::message::Message;
use serde_json::{Value, json};
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};
use streamshield_tests::load::feeder::Feeder;
use streamshield_tests::load::verify::{Counts, Verdict, expected};
use streamshield_tests::load::{Key, Load, WINDOW_MS};
use streamshield_tests::support::client::Output;
use streamshield_tests::support::figures;
use streamshield_tests::support::process::Process;
use streamshield_tests::support::seed::generator;
use streamshield_workload::time::wall_ms;

const INSTANCES: usize = 3;
const GAP_MAX: Duration = Duration::from_secs(180);
const UP_TO_DATE: Duration = Duration::from_millis(1_500);
/// Changelog records that a standby may be behind: a fraction of a second of them.
const STANDBY_LAG_MAX: u64 = 5_000;

/// The instances; a place may be empty for a while.
struct Instances<'a> {
    servers: &'a str,
    load: &'a Load,
    session_timeout_ms: u32,
    transaction_timeout_ms: u32,
    folder: PathBuf,
    places: Vec<Option<(String, Process)>>,
    starts: usize,
}

pub fn measure(servers: &str, series: &Series, events_per_second: u64, seed: u64, folder: &Path) -> Result<Value> {
    let prepared = Command::new(script()).arg("prepare").status()?;
    ensure!(prepared.success(), "scripts/streams.sh prepare: {prepared}");
    let mut load = load_of(series, events_per_second, seed);
    let session_timeout_ms = series.session_timeout_ms.context("a time-out")?;
    load.name += &format!("-{session_timeout_ms}");
    load.create_topics(servers)?;
    let places = (0..INSTANCES).map(|_| None).collect();
    let mut instances = Instances {
        servers,
        load: &load,
        session_timeout_ms,
        transaction_timeout_ms: series.transaction_timeout_ms,
        folder: folder.to_path_buf(),
        places,
        starts: 0,
    };
    (0..INSTANCES).try_for_each(|place| instances.start(place))?;
    instances.wait_settled(START_TIMEOUT)?;
    let feeder = Feeder::start(servers, &load)?;
    let observer = Observer::start(servers, &load, Rows::Streams)?;
    std::thread::sleep(WARM_UP);
    let mut random = generator(seed);
    let mut kills = Vec::new();
    for number in 0..series.kills {
        let pause = Duration::from_millis(random.random_range(1_000..1_500));
        let kill = one(&mut instances, &observer, pause, number).with_context(|| format!("kill {}", number + 1))?;
        println!("{}", report::line(&kill));
        kills.push(kill);
    }
    drop(observer);
    let fed = feeder.finish()?;
    let expected = expected(&load, &fed);
    let verdict = wait_and_compare(servers, &load, &expected, fed.sent)?;
    instances.stop()?;
    let mut value = report::summary(series, &kills, &verdict);
    value["detection"] =
        json!(format!("session.timeout.ms {session_timeout_ms}, heartbeat.interval.ms {}", (session_timeout_ms / 3).max(30)));
    value["transaction_timeout_ms"] = json!(series.transaction_timeout_ms);
    value["generator_late_ms_max"] = json!(fed.late_ms_max);
    value["seed"] = json!(seed);
    remove_topics(servers, &load)?;
    Ok(value)
}

fn script() -> PathBuf {
    figures::root().join("scripts").join("streams.sh")
}

fn one(instances: &mut Instances<'_>, observer: &Observer, pause: Duration, number: u32) -> Result<Kill> {
    instances.wait_settled(SETTLE_TIMEOUT)?;
    observer.wait_up_to_date(UP_TO_DATE, SETTLE_TIMEOUT)?;
    std::thread::sleep(pause);
    let maker = |partition| observer.newest(partition).and_then(|newest| newest.instance).map(|maker| maker.to_string());
    let victim = maker(number % observer.partitions()).context("no output")?;
    let affected: Vec<u32> = (0..observer.partitions()).filter(|partition| maker(*partition).as_deref() == Some(&victim)).collect();
    let killed_wall_ms = wall_ms();
    let (place, at) = instances.kill(&victim)?;
    let ms = |then: Instant| then.saturating_duration_since(at).as_secs_f64() * 1e3;
    let mut gaps_ms = BTreeMap::new();
    let mut fresh = BTreeMap::new();
    while gaps_ms.len() < affected.len() || fresh.len() < observer.partitions() as usize {
        for partition in 0..observer.partitions() {
            let by_another = |instance: &Option<std::sync::Arc<str>>| instance.as_deref() != Some(victim.as_str());
            if affected.contains(&partition)
                && let Some(arrival) = observer.first(partition, |arrival| arrival.at > at && by_another(&arrival.instance))
            {
                gaps_ms.entry(format!("1_{partition}")).or_insert_with(|| ms(arrival.at));
            }
            if let Some(arrival) = observer.first(partition, |arrival| arrival.window_end_ms > killed_wall_ms) {
                fresh.entry(partition).or_insert_with(|| ms(arrival.at));
            }
        }
        std::thread::sleep(Duration::from_millis(5));
        ensure!(at.elapsed() < GAP_MAX, "no output of {} partitions after {GAP_MAX:?}", affected.len() - gaps_ms.len());
    }
    instances.start(place)?;
    let fresh_ms = fresh.into_values().fold(0.0, f64::max);
    Ok(Kill { number, victim, gaps_ms, fresh_ms, others_ms: None, phases: None })
}

impl Instances<'_> {
    fn start(&mut self, place: usize) -> Result<()> {
        self.starts += 1;
        let name = format!("i{}-{}", place + 1, self.starts);
        let mut command = Command::new(script());
        let state = self.folder.join(format!("state-{place}"));
        command.arg("run").arg(self.servers).arg(&self.load.name).arg(state).arg(self.load.input()).arg(self.load.output());
        command.arg(self.load.partitions.to_string()).arg(self.session_timeout_ms.to_string());
        command.arg(self.transaction_timeout_ms.to_string()).arg(&name);
        let process = Process::start(command, &self.folder, &name)?;
        self.places[place] = Some((name, process));
        Ok(())
    }

    /// SIGKILL; gives the place that is free now, and the moment right before.
    fn kill(&mut self, name: &str) -> Result<(usize, Instant)> {
        let at_place = |entry: &Option<(String, Process)>| entry.as_ref().is_some_and(|(known, _)| known == name);
        let place = self.places.iter().position(at_place).with_context(|| format!("no instance {name}"))?;
        let (_, process) = self.places[place].take().context("found above")?;
        let at = Instant::now();
        process.kill()?;
        Ok((place, at))
    }

    /// All run, and every task has a standby that is up to date.
    fn wait_settled(&mut self, timeout: Duration) -> Result<()> {
        let deadline = Instant::now() + timeout;
        loop {
            let mut standbys = 0;
            let mut settled = true;
            for (name, process) in self.places.iter().flatten() {
                if let Some(ended) = process.wait(Duration::ZERO) {
                    anyhow::bail!("instance {name} ended by itself: {}\n{}", ended.status, process.last_words());
                }
                let text = process.stdout();
                let words: Vec<&str> = text.lines().last().unwrap_or_default().split(' ').collect();
                let [state, lag, count] = words[..] else {
                    settled = false;
                    continue;
                };
                settled &= state == "RUNNING" && lag.parse().is_ok_and(|lag: u64| lag <= STANDBY_LAG_MAX);
                standbys += count.parse().unwrap_or(0);
            }
            if settled && standbys >= self.load.partitions {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "Kafka Streams has not settled in {timeout:?}: {standbys} standbys");
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    fn stop(&mut self) -> Result<()> {
        for (_, process) in self.places.iter().flatten() {
            process.signal(libc::SIGTERM);
        }
        for (_, process) in self.places.iter().flatten() {
            process.expect_end(Duration::from_secs(30))?;
        }
        Ok(())
    }
}

/// Reads until the last values are the expected ones, or nothing more comes.
fn wait_and_compare(servers: &str, load: &Load, expected: &Counts, records: u64) -> Result<Verdict> {
    let mut verdict = Verdict { records, ..Verdict::default() };
    let mut found: HashMap<(Key, i64), (u64, i64)> = HashMap::with_capacity(expected.len());
    let mut right = 0;
    // An error says that it was quiet: the comparison tells what is missing.
    let waited = Output::follow(servers, &load.output())?.visit_until(OUTPUT_QUIET_MAX, &mut |message, _| {
        if let Some(message) = message
            && let Ok(result) = StreamsResult::parse(message.key().unwrap_or_default(), message.payload().unwrap_or_default())
            && let Some(key) = Key::parse(result.key)
        {
            verdict.rows += 1;
            let group = (key, result.window_start_ms + WINDOW_MS);
            let wanted = expected.get(&group).copied();
            verdict.foreign += u64::from(wanted.is_none());
            let before = found.insert(group, (result.count, result.sum));
            right += i64::from(wanted == Some((result.count, result.sum))) - i64::from(before.is_some() && before == wanted);
        }
        right == expected.len() as i64
    });
    if let Err(error) = waited {
        println!("{error:#}");
    }
    for (group, &(count, sum)) in expected {
        let (counted, summed) = found.get(group).copied().unwrap_or_default();
        verdict.lost += count.saturating_sub(counted);
        verdict.doubled += counted.saturating_sub(count);
        verdict.wrong += u64::from(counted == count && summed != sum);
    }
    Ok(verdict)
}
