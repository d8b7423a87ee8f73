//! The job's log: a Kafka cluster, or the embedded broker.

use crate::job::{Cluster, Job};
use crate::problem::Problem;
use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};
use streamshield_core::ports::log::{LogError, LogErrorKind};
use streamshield_embedded::{Config, EmbeddedBroker, Handle};
use streamshield_kafka::KafkaLog;

/// While the cluster is away at the start, a log line comes this often.
const AWAY_LOG_INTERVAL: Duration = Duration::from_secs(10);
const RECONNECT_INTERVAL: Duration = Duration::from_millis(500);

/// A connected log; the embedded broker ends with it.
pub struct Connected {
    pub log: Arc<KafkaLog>,
    broker: Option<Handle>,
}

impl Connected {
    /// Where the embedded broker listens, if this process has it.
    pub fn broker_address(&self) -> Option<String> {
        self.broker.as_ref().map(Handle::bootstrap_servers)
    }

    /// Ends the embedded broker, its log synced.
    pub fn close(self) {
        drop(self.log);
        if let Some(Err(error)) = self.broker.map(Handle::shutdown) {
            tracing::error!(%error, "the embedded broker ended badly");
        }
    }
}

/// For what can be known without a cluster: checks the client properties and connects to nothing.
pub fn unconnected(job: &Job) -> Result<Arc<KafkaLog>, Problem> {
    let properties = match &job.cluster {
        Cluster::Kafka(_) => client_properties(job),
        Cluster::Embedded { .. } => embedded_properties(SocketAddr::from((Ipv4Addr::LOCALHOST, 9092)).to_string()),
    };
    KafkaLog::elsewhere(properties).map_err(|error| refused(job, &error))
}

/// Starts the embedded broker or connects to the cluster. While that is away it tries again until `give_up` says so.
pub fn connect(job: &Job, give_up: &dyn Fn() -> bool) -> Result<Option<Connected>, Problem> {
    let (properties, broker) = match &job.cluster {
        Cluster::Kafka(_) => (client_properties(job), None),
        Cluster::Embedded { data_dir, listen } => {
            let mut config = Config { data_dir: data_dir.clone(), ..Config::default() };
            config.listen = listen.unwrap_or(config.listen);
            let broker =
                EmbeddedBroker::start(config).map_err(|error| Problem::error(format!("can't start the embedded broker: {error}")))?;
            (embedded_properties(broker.bootstrap_servers()), Some(broker))
        }
    };
    let mut away_said: Option<Instant> = None;
    while !give_up() {
        match KafkaLog::connect(properties.clone()) {
            Ok(log) => return Ok(Some(Connected { log, broker })),
            Err(error) if error.kind == LogErrorKind::Retry => {
                if away_said.is_none_or(|said| said.elapsed() > AWAY_LOG_INTERVAL) {
                    tracing::warn!(%error, "the cluster does not answer, trying again");
                    away_said = Some(Instant::now());
                }
                std::thread::sleep(RECONNECT_INTERVAL);
            }
            Err(error) => return Err(refused(job, &error)),
        }
    }
    Ok(None)
}

/// Connects to the cluster of a job that runs elsewhere: an embedded broker can be reached if the job gives it an address.
pub fn reach(job: &Job) -> Result<Arc<KafkaLog>, Problem> {
    let properties = match &job.cluster {
        Cluster::Kafka(_) => client_properties(job),
        Cluster::Embedded { listen: Some(address), .. } if address.port() != 0 => embedded_properties(address.to_string()),
        Cluster::Embedded { .. } => {
            return Err(Problem::error("the job's broker is inside of its process, at an address that nobody else knows").hint(
                "give it one, as `kafka: {embedded: true, listen: 127.0.0.1:9092}`, or ask a worker: --metrics-addr, /api/v1/cluster",
            ));
        }
    };
    KafkaLog::connect(properties).map_err(|error| match error.kind {
        LogErrorKind::Retry => Problem::error(format!("the cluster does not answer: {}", error.message)),
        _ => refused(job, &error),
    })
}

/// Connects to the cluster once, for questions. Ok(None) where there is nobody to ask, with the reason.
pub fn ask(job: &Job) -> Result<Result<Arc<KafkaLog>, String>, Problem> {
    if let Cluster::Embedded { .. } = job.cluster {
        return Ok(Err("the embedded broker starts with the job".into()));
    }
    match KafkaLog::connect(client_properties(job)) {
        Ok(log) => Ok(Ok(log)),
        Err(error) if error.kind == LogErrorKind::Retry => Ok(Err(error.message)),
        Err(error) => Err(refused(job, &error)),
    }
}

fn refused(job: &Job, error: &LogError) -> Problem {
    let place = job.file.text.find("\nkafka:").map_or(0, |at| at + 1);
    Problem::error(error.message.clone()).at(&job.file, place..place + "kafka".len())
}

fn client_properties(job: &Job) -> BTreeMap<String, String> {
    match &job.cluster {
        Cluster::Kafka(properties) => properties.iter().map(|(key, value)| (key.clone(), value.reveal().to_string())).collect(),
        Cluster::Embedded { .. } => BTreeMap::new(),
    }
}

fn embedded_properties(servers: String) -> BTreeMap<String, String> {
    BTreeMap::from([("bootstrap.servers".to_string(), servers)])
}
