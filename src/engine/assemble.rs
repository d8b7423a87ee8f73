//! From a plan to regions: opens sources, sinks and topics, and spreads regions over slots.

use crate::config::{Environment, JobConfig};
use crate::exchange::Partitioner;
use crate::letters::Letters;
use crate::membership::retrying;
use crate::operators::scan::Scan;
use crate::operators::{Chain, OperatorError};
use crate::plan::{JobPlan, SourceScan, StageInput, StageOutput, StagePlan};
use crate::region::{
    ExchangeInput, ExchangeOutput, Input, OPEN_EPOCH_BYTES_MAX, OPEN_EPOCH_BYTES_MIN, Output, Region, RegionSettings, SourceInput,
};
use crate::runtime::EngineError;
use crate::stateless::NoState;
use crate::topics;
use std::collections::BTreeMap;
use std::sync::Arc;
use streamshield_core::cluster::{Genesis, GenesisSplit, StageShape};
use streamshield_core::ids::{Epoch, RegionId, StageId};
use streamshield_core::ports::Connectors;
use streamshield_core::ports::log::{TopicDescription, TopicPartition, TopicSpec};
use streamshield_core::ports::sink::Sink;
use streamshield_core::ports::source::{Source, SourceErrorKind};
use streamshield_core::ports::state::WindowTableSpec;
use streamshield_core::table::{SinkRequest, SourceRequest};
use streamshield_core::watermark::{UpstreamWatermark, Watermark};

/// Eighths of the memory budget for the state tables.
const TABLES_EIGHTHS: usize = 5;
/// Open epochs may take the budget divided by this.
const OPEN_EPOCHS_SHARE: usize = 16;

/// Of a region that no slot owns.
pub const NOT_ASSIGNED: i64 = -1;

/// A source did not say what it holds, or a sink could not be opened.
pub struct Unready {
    pub error: EngineError,
    /// It may do so in a moment.
    pub retry: bool,
}

impl From<EngineError> for Unready {
    fn from(error: EngineError) -> Self {
        Unready { error, retry: false }
    }
}

impl From<Unready> for EngineError {
    fn from(unready: Unready) -> Self {
        unready.error
    }
}

/// A plan with its tables opened.
pub struct Job {
    pub plan: JobPlan,
    pub config: JobConfig,
    pub sources: BTreeMap<StageId, Arc<dyn Source>>,
    pub sinks: BTreeMap<StageId, Arc<dyn Sink>>,
    /// Topic and group of the Kafka sources, for lag tools.
    pub groups: BTreeMap<StageId, (String, String)>,
}

fn fail(message: impl Into<String>) -> EngineError {
    EngineError { message: message.into(), hint: None }
}

impl Job {
    /// Opens all tables of the plan; nothing is read or written yet.
    pub fn open(plan: JobPlan, config: JobConfig, connectors: &Connectors) -> Result<Job, EngineError> {
        let (mut sources, mut sinks, mut groups) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        for stage in &plan.stages {
            if let StageInput::Source(scan) = &stage.input {
                let connector =
                    connectors.sources.get(scan.table.connector()).ok_or_else(|| fail("an unknown source connector was planned"))?;
                let request = SourceRequest {
                    table: scan.table.clone(),
                    columns: scan.columns.clone(),
                    schema: scan.input_schema.clone(),
                    keep_origins: config.on_bad_record != crate::config::BadRecordPolicy::Skip,
                };
                let source = connector.open(request).map_err(|error| fail(format!("table {}: {error}", scan.table.name)))?;
                if let Some((topic, group)) = connector.group(&scan.table) {
                    let group = if group.is_empty() { config.name.clone() } else { group };
                    groups.insert(stage.id, (topic, group));
                }
                sources.insert(stage.id, source);
            }
            if let StageOutput::Sink(sink) = &stage.output {
                let connector =
                    connectors.sinks.get(sink.table.connector()).ok_or_else(|| fail("an unknown sink connector was planned"))?;
                let request = SinkRequest { table: sink.table.clone(), columns: sink.columns.clone(), schema: sink.schema.clone() };
                sinks.insert(stage.id, connector.open(request).map_err(|error| fail(format!("table {}: {error}", sink.table.name)))?);
            }
        }
        Ok(Job { plan, config, sources, sinks, groups })
    }

    /// Finds the splits of all sources: the genesis of a job that has none.
    pub fn discover(&self) -> Result<Genesis, Unready> {
        let mut splits = BTreeMap::new();
        for (stage, source) in &self.sources {
            let found = source.discover().map_err(|error| {
                let message = format!("the source of stage {} can't be read: {error}", self.plan.stages[stage.0 as usize].name);
                let hint = Some("does the topic or file exist, and may this user read it?".into());
                Unready { retry: error.kind == SourceErrorKind::Retry, error: EngineError { message, hint } }
            })?;
            splits.insert(stage.0, found.iter().map(|split| GenesisSplit { id: split.id, start: split.start, end: split.end }).collect());
        }
        let partitions = |exchange: &crate::plan::ExchangePlan| (exchange.id.0, exchange.partitions.unwrap_or(self.config.parallelism));
        let exchange_partitions = self.plan.exchanges.iter().map(partitions).collect();
        let mut genesis = Genesis { plan: Some(self.plan.fingerprint), splits, exchange_partitions, stages: BTreeMap::new() };
        genesis.stages = self.plan.stages.iter().map(|stage| (stage.id.0, self.shape_of(stage, &genesis))).collect();
        Ok(genesis)
    }

    /// All topics that the job makes for itself, and those of its sinks.
    pub fn topics(&self, genesis: &Genesis) -> Vec<TopicSpec> {
        let mut specs = vec![topics::control_spec(&self.config)];
        for stage in &self.plan.stages {
            specs.push(topics::changelog_spec(&self.config, stage, self.regions_of(stage, genesis)));
        }
        for exchange in &self.plan.exchanges {
            specs.push(topics::exchange_spec(&self.config, exchange, genesis.exchange_partitions[&exchange.id.0]));
        }
        specs.extend(topics::side_specs(&self.config));
        for sink in self.sinks.values() {
            if let Some(spec) = sink.topic()
                && !specs.iter().any(|known| known.name == spec.name)
            {
                specs.push(spec);
            }
        }
        specs
    }

    pub fn regions_of(&self, stage: &StagePlan, genesis: &Genesis) -> u32 {
        match &stage.input {
            StageInput::Source(_) => genesis.splits.get(&stage.id.0).map_or(0, |splits| splits.len() as u32),
            StageInput::Exchange(exchange) => genesis.exchange_partitions.get(&exchange.0).copied().unwrap_or(0),
        }
    }

    fn shape_of(&self, stage: &StagePlan, genesis: &Genesis) -> StageShape {
        let is_source = matches!(stage.input, StageInput::Source(_));
        StageShape { regions: self.regions_of(stage, genesis), stateful: has_state(stage), is_source }
    }

    /// Regions with state share the tables' part of the budget; the rest is for open and sealed epochs, flushes under way and fetch buffers.
    pub fn state_bytes_max(&self, genesis: &Genesis) -> usize {
        let stateful: u32 = self.plan.stages.iter().filter(|stage| has_state(stage)).map(|stage| self.regions_of(stage, genesis)).sum();
        self.config.memory_budget_bytes / 8 * TABLES_EIGHTHS / stateful.max(1) as usize
    }

    /// All regions share a sixteenth of the budget for their open epochs; as many again are sealed, in flight or being encoded.
    pub fn open_bytes_max(&self, genesis: &Genesis) -> usize {
        let regions: u32 = self.plan.stages.iter().map(|stage| self.regions_of(stage, genesis)).sum();
        let share = self.config.memory_budget_bytes / OPEN_EPOCHS_SHARE / regions.max(1) as usize;
        share.clamp(OPEN_EPOCH_BYTES_MIN, OPEN_EPOCH_BYTES_MAX)
    }

    /// One region, fresh, at its start position, without its stored state.
    pub fn region(&self, id: RegionId, genesis: &Genesis, settings: RegionSettings) -> Result<(Region, Vec<WindowTableSpec>), Unready> {
        let stage = &self.plan.stages[id.stage.0 as usize];
        let stop = |error: OperatorError| fail(format!("stage {}: {error}", stage.name));
        let (input, input_schema, upstreams, position) = match &stage.input {
            StageInput::Source(scan) => self.source_input(id, scan, genesis, settings.clock.wall_ms())?,
            StageInput::Exchange(exchange) => {
                let plan = &self.plan.exchanges[exchange.0 as usize];
                let upstream: Vec<RegionId> = plan
                    .upstream
                    .iter()
                    .flat_map(|stage| {
                        (0..self.regions_of(&self.plan.stages[stage.0 as usize], genesis))
                            .map(|partition| RegionId { stage: *stage, partition })
                    })
                    .collect();
                let input = ExchangeInput {
                    partition: TopicPartition::new(topics::exchange(&self.config.name, plan), id.partition as i32),
                    schema: plan.schema.clone(),
                    upstream_index: upstream.iter().enumerate().map(|(index, region)| (*region, index)).collect(),
                    met_end: None,
                };
                (Input::Exchange(input), plan.schema.clone(), vec![UpstreamWatermark::START; upstream.len()], 0)
            }
        };
        let chain = Chain::new(&stage.operators, input_schema).map_err(stop)?;
        let tables = chain.tables();
        let output = self.output(stage, id, genesis)?;
        let region = Region {
            id,
            assignment: NOT_ASSIGNED,
            flushed: settings.clock.steady(),
            settings,
            input,
            tables: tables.iter().map(|table| table.operator).collect(),
            has_tables: !tables.is_empty(),
            chain,
            state: Box::new(NoState),
            output,
            letters: Letters::new(&self.config.name),
            changelog: TopicPartition::new(topics::changelog(&self.config.name, stage), id.partition as i32),
            flushed_epoch: None,
            last_committed: None,
            changelog_from: 0,
            epoch: Epoch(0),
            now_ms: 0,
            position,
            upstreams,
            combined: Watermark::MIN,
            output_watermark: Watermark::MIN,
            announced: UpstreamWatermark::START,
            pending_emit: false,
            open: None,
            flush_in_flight: false,
            flush_wanted: false,
            in_flight: 0,
            committed_position: 0,
            leaving: false,
            released_at: None,
            hurry: false,
            finished: false,
            failed: None,
        };
        Ok((region, tables))
    }

    #[allow(clippy::type_complexity)]
    fn source_input(
        &self,
        id: RegionId,
        scan: &SourceScan,
        genesis: &Genesis,
        wall_ms: i64,
    ) -> Result<(Input, arrow_schema::SchemaRef, Vec<UpstreamWatermark>, i64), EngineError> {
        let split = genesis.splits.get(&id.stage.0).and_then(|splits| splits.get(id.partition as usize)).copied();
        let split = split.ok_or_else(|| fail(format!("{id} has no split in the genesis")))?;
        let running = Scan::new(scan).map_err(|error| fail(format!("table {}: {error}", scan.table.name)))?;
        let schema = running.schema();
        let group = self.groups.get(&id.stage).map(|(topic, group)| (TopicPartition::new(topic.as_str(), split.id as i32), group.clone()));
        let input = SourceInput { split, scan: running, watermark: scan.watermark.clone(), last_rows_ms: wall_ms, finished: false, group };
        Ok((Input::Source(input), schema, vec![UpstreamWatermark::START], split.start))
    }

    fn output(&self, stage: &StagePlan, id: RegionId, genesis: &Genesis) -> Result<Output, Unready> {
        match &stage.output {
            StageOutput::Exchange(exchange) => {
                let plan = &self.plan.exchanges[exchange.0 as usize];
                let partitions = genesis.exchange_partitions[&exchange.0];
                Ok(Output::Exchange(ExchangeOutput {
                    topic: topics::exchange(&self.config.name, plan).into(),
                    schema: plan.schema.clone(),
                    partitioner: Partitioner::new(plan, partitions),
                    pending: vec![Vec::new(); partitions as usize],
                    pending_bytes: 0,
                }))
            }
            StageOutput::Sink(_) => {
                let writer = self.sinks[&stage.id].writer(id);
                Ok(Output::Sink(writer.map_err(|error| Unready { retry: error.retry, error: fail(error.message) })?))
            }
        }
    }
}

pub(crate) fn has_state(stage: &StagePlan) -> bool {
    stage.operators.iter().any(|operator| matches!(operator, crate::plan::Operator::WindowAggregate(_)))
}

/// Creates what is missing and compares what is there.
pub fn ensure_topics(environment: &Environment, specs: &[TopicSpec]) -> Result<(), EngineError> {
    let clock = environment.clock.as_ref();
    let created = retrying(clock, "create the job's topics", || environment.log.create_topics(specs))?;
    if !created.is_empty() {
        tracing::info!(topics = created.join(", "), "created topics");
    }
    for spec in specs.iter().filter(|spec| !created.contains(&spec.name)) {
        let found = retrying(clock, "describe a topic", || environment.log.describe_topic(&spec.name))?;
        let Some(found) = found else { continue };
        if let Some(difference) = difference(spec, &found) {
            return Err(EngineError {
                message: format!("topic {} is not what the job needs: {difference}", spec.name),
                hint: Some("was it made by another job or by hand? Mend its settings, or give the job another name".into()),
            });
        }
    }
    Ok(())
}

/// The largest message that the topics for people and the client take.
pub fn letter_bytes_max(environment: &Environment, config: &JobConfig) -> Result<usize, EngineError> {
    let (clock, log) = (environment.clock.as_ref(), environment.log.as_ref());
    let mut bytes_max = log.message_bytes_max();
    for spec in topics::side_specs(config) {
        // They are made with the broker's limit: only now it is known.
        let found = retrying(clock, "describe a topic", || log.describe_topic(&spec.name))?;
        if let Some(found) = found {
            bytes_max = bytes_max.min(topics::limit_of(&spec.name, &found.configs, log.batch_bytes_max())?);
        }
    }
    Ok(bytes_max)
}

/// How an existing topic contradicts what the job needs; a sink's topic (partitions −1) may have any shape.
pub fn difference(spec: &TopicSpec, found: &TopicDescription) -> Option<String> {
    if spec.partitions >= 0 && spec.configs.contains_key("retention.ms") && found.partitions != spec.partitions {
        return Some(format!("{} partitions instead of {}", found.partitions, spec.partitions));
    }
    let wrong = spec.configs.iter().find(|(key, value)| found.configs.get(*key).is_some_and(|found| found != *value))?;
    Some(format!("{} is {} instead of {}", wrong.0, found.configs[wrong.0], wrong.1))
}
