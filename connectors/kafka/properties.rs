//! Client properties: the user's pass through, ours can't be overridden, secrets are never shown.
//!
//! Names are librdkafka's. A few properties carry the guarantees (isolation, transactions, positions) and are refused
//! with the reason. A value of a secret property reaches librdkafka and nothing else: no log line, no `Debug`, no error.

use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::error::KafkaError;
use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;
use streamshield_core::ports::log::{LogError, LogErrorKind};

/// Transactions older than this are aborted by the broker.
const TRANSACTION_TIMEOUT_MS: u64 = 30_000;
/// How long one request may take before the connection is given up.
const SOCKET_TIMEOUT_MS: u64 = 10_000;
/// librdkafka demands that `socket.timeout.ms` stays below the transaction's time-out plus this.
const SOCKET_TIMEOUT_MARGIN_MS: u64 = 100;
/// How long a broker may sit on a fetch that it has nothing for.
const FETCH_WAIT: Duration = Duration::from_millis(100);
/// What a broker may answer one fetch with, unless a message may be larger.
const FETCH_BYTES: usize = 16 << 20;
/// Bound of one writer's queue in kilobytes (M-1).
const WRITER_QUEUE_KBYTES: &str = "32768";
/// Bound of one writer's queue in messages (M-1).
const WRITER_QUEUE_MESSAGES: &str = "1000000";

/// Properties that are ours, with the reason.
const OWNED: &[(&str, &str)] = &[
    ("group.instance.id", "streamshield reads by explicit position and is no member of a group"),
    ("isolation.level", "streamshield always reads committed messages"),
    ("enable.auto.commit", "positions are kept in epoch records"),
    ("auto.commit.enable", "positions are kept in epoch records"),
    ("enable.auto.offset.store", "positions are kept in epoch records"),
    ("offset.store.method", "positions are kept in epoch records"),
    ("auto.offset.reset", "a lost position stops the job; the start is set by 'scan.startup.mode'"),
    ("enable.partition.eof", "streamshield needs to see the end of a partition"),
    ("transactional.id", "there is one per slot, named after the job"),
    ("enable.idempotence", "it is always on"),
    ("enable.gapless.guarantee", "transactions guarantee more"),
    ("acks", "it is always 'all'"),
    ("request.required.acks", "it is always 'all'"),
    ("debug", "the lines would hold data, and 'eos' is read to find commits in doubt"),
    ("log_level", "set the level of 'kafka' in the worker's log filter"),
    ("log.queue", "log lines go to the worker's log"),
    ("delivery.report.only.error", "streamshield decides which reports it needs"),
    ("partitioner", "keys go where Java clients put them; see 'sink.partitioner'"),
    ("allow.auto.create.topics", "topics are created with explicit settings"),
    ("plugin.library.paths", "foreign code is not loaded"),
    ("ssl.engine.location", "foreign code is not loaded"),
    ("bootstrap.server", "the name is 'bootstrap.servers'"),
    ("metadata.broker.list", "the name is 'bootstrap.servers'"),
];

/// Names that Java clients know, with what to write here.
const JAVA_NAMES: &[(&str, &str)] = &[
    ("ssl.truststore.location", "use 'ssl.ca.location' with a PEM file"),
    ("ssl.truststore.password", "use 'ssl.ca.location' with a PEM file"),
    ("ssl.truststore.certificates", "use 'ssl.ca.pem'"),
    ("ssl.keystore.key", "use 'ssl.key.pem'"),
    ("ssl.keystore.certificate.chain", "use 'ssl.certificate.pem'"),
    ("ssl.keystore.type", "a keystore is PKCS#12; PEM is set by 'ssl.key.location' and 'ssl.certificate.location'"),
    ("sasl.jaas.config", "use 'sasl.username' and 'sasl.password'"),
    ("sasl.login.callback.handler.class", "OAUTHBEARER is not built in; use PLAIN, SCRAM-SHA-512 or a client certificate"),
    ("key.deserializer", "leave it out: 'key.format' decides"),
    ("value.deserializer", "leave it out: 'value.format' decides"),
    ("key.serializer", "leave it out: 'key.format' decides"),
    ("value.serializer", "leave it out: 'value.format' decides"),
    ("max.poll.records", "leave it out: batches are bounded by the engine"),
    ("buffer.memory", "use 'queue.buffering.max.kbytes'"),
    ("max.request.size", "use 'message.max.bytes'"),
];

const SECRET_WORDS: &[&str] = &["password", "secret", ".pem", "sasl.username", "oauthbearer.config", "jaas", "private.key", "passphrase"];

/// Whether the value of a property must not be shown.
pub fn is_secret(key: &str) -> bool {
    let key = key.to_ascii_lowercase();
    SECRET_WORDS.iter().any(|word| key.contains(word))
}

/// Checked properties of one cluster.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Properties {
    user: BTreeMap<String, String>,
}

impl Properties {
    pub fn new(user: BTreeMap<String, String>) -> Result<Self, LogError> {
        for key in user.keys() {
            if let Some(reason) = refusal(key) {
                return Err(LogError::new(LogErrorKind::Fatal, reason));
            }
        }
        if user.get("bootstrap.servers").is_none_or(|servers| servers.trim().is_empty()) {
            return Err(LogError::new(
                LogErrorKind::Fatal,
                "the property 'bootstrap.servers' is missing: name at least one broker as host:port",
            ));
        }
        let properties = Properties { user };
        accepts(&properties.user)?;
        Ok(properties)
    }

    /// These and others over them (a table's `properties.*`).
    pub fn with(&self, more: &BTreeMap<String, String>) -> Result<Self, LogError> {
        let mut user = self.user.clone();
        user.extend(more.iter().map(|(key, value)| (key.clone(), value.clone())));
        Properties::new(user)
    }

    pub fn servers(&self) -> &str {
        self.user.get("bootstrap.servers").map_or("", String::as_str)
    }

    pub fn has(&self, key: &str, value: &str) -> bool {
        self.user.get(key).is_some_and(|own| own == value)
    }

    /// The largest message that a producer accepts; the default is librdkafka's.
    pub fn message_bytes_max(&self) -> usize {
        self.number("message.max.bytes", 1_000_000) as usize
    }

    /// The largest batch that a producer makes of several messages; the defaults are librdkafka's. It has no such limit per topic.
    pub fn batch_bytes_max(&self) -> usize {
        self.message_bytes_max().min(self.number("batch.size", 1_000_000) as usize)
    }

    fn number(&self, key: &str, default: u64) -> u64 {
        self.user.get(key).and_then(|value| value.parse().ok()).unwrap_or(default)
    }

    pub fn transaction_timeout(&self) -> Duration {
        Duration::from_millis(self.number("transaction.timeout.ms", TRANSACTION_TIMEOUT_MS))
    }

    /// The user's properties over defaults that suit every client; what must hold is set by the callers afterwards.
    fn base(&self, role: &str) -> ClientConfig {
        let mut config = ClientConfig::new();
        let transaction_ms = self.transaction_timeout().as_millis() as u64;
        config.set("client.id", format!("streamshield-{role}"));
        config.set("socket.keepalive.enable", "true").set("socket.connection.setup.timeout.ms", "5000");
        config.set("reconnect.backoff.ms", "50").set("reconnect.backoff.max.ms", "1000");
        config.set("socket.timeout.ms", SOCKET_TIMEOUT_MS.min(transaction_ms + SOCKET_TIMEOUT_MARGIN_MS).to_string());
        config.set("enable.metrics.push", "false").set("log.connection.close", "false");
        for (key, value) in &self.user {
            config.set(key, value);
        }
        config.set("allow.auto.create.topics", "false");
        config.set_log_level(RDKafkaLogLevel::Info);
        config
    }

    /// A client that asks for metadata and offsets.
    pub fn query(&self, isolation: &str) -> ClientConfig {
        let mut config = self.base("query");
        config.remove("group.id");
        config.set("isolation.level", isolation).set("auto.offset.reset", "error");
        config
    }

    /// The consumer of a group that is never joined: reads and writes the group's offsets.
    pub fn group(&self, group: &str) -> ClientConfig {
        let mut config = self.base("group");
        config.set("group.id", group).set("isolation.level", "read_committed").set("auto.offset.reset", "error");
        config.set("enable.auto.commit", "false").set("enable.auto.offset.store", "false");
        config
    }

    /// Librdkafka's administration clients have no way to hand out their log lines: only emergencies are kept.
    pub fn admin(&self) -> ClientConfig {
        let mut config = self.base("admin");
        config.set_log_level(RDKafkaLogLevel::Emerg);
        config
    }

    /// A reader whose partitions may buffer this many bytes each.
    pub fn reader(&self, partition_bytes: usize, wait_max: Option<Duration>) -> ClientConfig {
        let mut config = self.base("reader");
        // librdkafka counts payloads; its own structures weigh about as much again for small messages.
        let queue_kbytes = (partition_bytes / 2 / 1024).clamp(64, 1_000_000);
        let fetch_bytes = (queue_kbytes * 1024).clamp(65_536, 1_048_576).to_string();
        let wait_ms = wait_max.unwrap_or(FETCH_WAIT).as_millis().to_string();
        for (key, value) in [
            ("fetch.wait.max.ms", wait_ms.as_str()),
            ("fetch.min.bytes", "1"),
            ("fetch.queue.backoff.ms", "10"),
            ("fetch.error.backoff.ms", "100"),
        ] {
            self.default(&mut config, key, value);
        }
        if !self.user.contains_key("fetch.message.max.bytes") {
            self.default(&mut config, "max.partition.fetch.bytes", &fetch_bytes);
        }
        // The client refuses to fetch less at once than the largest message has.
        self.default(&mut config, "fetch.max.bytes", &self.message_bytes_max().max(FETCH_BYTES).to_string());
        self.default(&mut config, "group.id", "streamshield");
        config.set("queued.max.messages.kbytes", queue_kbytes.to_string());
        config.set("isolation.level", "read_committed").set("auto.offset.reset", "error").set("check.crcs", "true");
        config.set("enable.auto.commit", "false").set("enable.auto.offset.store", "false").set("enable.partition.eof", "true");
        config.set("max.poll.interval.ms", "86400000");
        config
    }

    /// Sets what the user left open.
    fn default(&self, config: &mut ClientConfig, key: &str, value: &str) {
        if !self.user.contains_key(key) {
            config.set(key, value);
        }
    }

    fn producer(&self, role: &str) -> ClientConfig {
        let mut config = self.base(role);
        if !self.user.contains_key("compression.codec") {
            self.default(&mut config, "compression.type", "lz4");
        }
        config.set("enable.idempotence", "true").set("acks", "all").set("partitioner", "murmur2_random");
        config.remove("group.id");
        config
    }

    /// The transactional producer of a slot.
    pub fn writer(&self, transactional_id: &str) -> ClientConfig {
        let mut config = self.producer("writer");
        let transaction_ms = self.transaction_timeout().as_millis().to_string();
        if !self.user.contains_key("queue.buffering.max.ms") {
            self.default(&mut config, "linger.ms", "5");
        }
        self.default(&mut config, "queue.buffering.max.kbytes", WRITER_QUEUE_KBYTES);
        self.default(&mut config, "queue.buffering.max.messages", WRITER_QUEUE_MESSAGES);
        config.set("transactional.id", transactional_id).set("transaction.timeout.ms", &transaction_ms);
        // A message that outlives its transaction is of no use.
        config.remove("delivery.timeout.ms");
        config.set("message.timeout.ms", &transaction_ms);
        config.set("delivery.report.only.error", "true");
        config.set("debug", "eos").set_log_level(RDKafkaLogLevel::Debug);
        config
    }

    /// A producer that only fences: it never sends a message.
    pub fn fence(&self, transactional_id: &str) -> ClientConfig {
        let mut config = self.producer("fence");
        config.set("transactional.id", transactional_id).set("transaction.timeout.ms", self.transaction_timeout().as_millis().to_string());
        config.remove("delivery.timeout.ms").remove("message.timeout.ms");
        config.set("queue.buffering.max.messages", "1").set("queue.buffering.max.kbytes", "1024");
        config
    }

    /// The producer of single messages outside of transactions.
    pub fn append(&self, timeout: Duration) -> ClientConfig {
        let mut config = self.producer("append");
        config.remove("queue.buffering.max.ms").remove("delivery.timeout.ms");
        config.set("linger.ms", "0").set("message.timeout.ms", timeout.as_millis().to_string());
        config
    }
}

impl fmt::Debug for Properties {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut map = f.debug_map();
        for (key, value) in &self.user {
            map.entry(key, if is_secret(key) { &"***" } else { value });
        }
        map.finish()
    }
}

/// Why a property can't be set by a user.
pub(crate) fn refusal(key: &str) -> Option<String> {
    if let Some((_, reason)) = OWNED.iter().find(|(owned, _)| *owned == key) {
        return Some(format!("the property '{key}' can't be set: {reason}"));
    }
    let (_, hint) = JAVA_NAMES.iter().find(|(java, _)| *java == key)?;
    Some(format!("the property '{key}' is known to Java clients only: {hint}"))
}

/// Lets librdkafka check names and values without connecting; never quotes a secret.
pub(crate) fn accepts(user: &BTreeMap<String, String>) -> Result<(), LogError> {
    for (key, value) in user {
        let mut single = ClientConfig::new();
        single.set(key, value);
        if let Err(error) = single.create_native_config() {
            let detail = match &error {
                KafkaError::ClientConfig(_, description, ..) if !is_secret(key) => format!(": {}", description.trim()),
                _ => String::new(),
            };
            return Err(LogError::new(LogErrorKind::Fatal, format!("the Kafka client refuses the property '{key}'{detail}")));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(pairs: &[(&str, &str)]) -> Result<Properties, LogError> {
        Properties::new(pairs.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect())
    }

    #[test]
    fn owned_properties_are_refused_by_name() {
        for key in ["isolation.level", "transactional.id", "debug", "auto.offset.reset", "enable.auto.commit", "metadata.broker.list"] {
            let error = of(&[("bootstrap.servers", "a:1"), (key, "x")]).expect_err(key);
            assert!(error.message.contains(key) && error.kind == LogErrorKind::Fatal, "{error}");
        }
        assert!(of(&[("client.id", "x")]).is_err(), "no servers");
        assert!(of(&[("metadata.broker.list", "a:1")]).expect_err("an alias").message.contains("'bootstrap.servers'"));
    }

    #[test]
    fn a_java_name_is_answered_with_the_right_one() {
        let error = of(&[("bootstrap.servers", "a:1"), ("sasl.jaas.config", "… password=\"s3cret\"")]).expect_err("Java name");
        assert!(error.message.contains("sasl.username") && !error.message.contains("s3cret"), "{error}");
    }

    #[test]
    fn what_the_client_is_built_without_is_refused_and_not_recommended() {
        let refused = |key: &str, value: &str| of(&[("bootstrap.servers", "a:1"), (key, value)]).expect_err(key).message;
        assert!(refused("sasl.oauthbearer.method", "oidc").contains("'sasl.oauthbearer.method'"));
        let hint = refused("sasl.login.callback.handler.class", "com.example.Login");
        assert!(hint.contains("SCRAM-SHA-512") && !hint.contains("oidc"), "{hint}");
    }

    #[test]
    fn secrets_are_never_shown() {
        let properties = of(&[("bootstrap.servers", "a:1"), ("sasl.password", "s3cret"), ("ssl.key.pem", "s3cret")]).expect("valid");
        assert!(!format!("{properties:?}").contains("s3cret"));
        let error = of(&[("bootstrap.servers", "a:1"), ("ssl.no.such.password", "s3cret")]).expect_err("unknown");
        assert!(error.message.contains("ssl.no.such.password") && !error.message.contains("s3cret"), "{error}");
    }

    #[test]
    fn time_outs_agree_with_the_transaction() {
        let properties = of(&[("bootstrap.servers", "a:1"), ("transaction.timeout.ms", "3000")]).expect("valid");
        let config = properties.writer("id");
        assert_eq!(config.get("socket.timeout.ms"), Some("3100"));
        assert_eq!(config.get("message.timeout.ms"), Some("3000"));
        config.create_native_config().expect("accepted");
        properties.reader(1 << 20, None).create_native_config().expect("accepted");
    }

    #[test]
    fn a_reader_takes_what_the_user_says_of_the_size_of_messages_and_fetches() {
        let reader = |more: &[(&str, &str)]| {
            let config = of(&[&[("bootstrap.servers", "127.0.0.1:1")][..], more].concat()).expect("valid").reader(1 << 20, None);
            config.create_native_config().expect("accepted");
            config
        };
        assert_eq!(reader(&[]).get("fetch.max.bytes"), Some("16777216"));
        // Only a client that is made refuses one that is smaller than the other.
        let mut large = reader(&[("message.max.bytes", "20000000")]);
        assert_eq!(large.get("fetch.max.bytes"), Some("20000000"));
        large.remove("group.id").create::<rdkafka::consumer::BaseConsumer>().expect("made");
        let own = reader(&[("fetch.message.max.bytes", "5000")]);
        assert_eq!((own.get("fetch.message.max.bytes"), own.get("max.partition.fetch.bytes")), (Some("5000"), None));
    }

    #[test]
    fn a_batch_is_bounded_by_the_smaller_of_two_properties() {
        let servers = [("bootstrap.servers", "a:1")];
        let bytes_max = |more: &[(&str, &str)]| of(&[&servers[..], more].concat()).expect("valid").batch_bytes_max();
        assert_eq!(bytes_max(&[]), 1_000_000);
        assert_eq!(bytes_max(&[("message.max.bytes", "5000000")]), 1_000_000);
        assert_eq!(bytes_max(&[("message.max.bytes", "5000000"), ("batch.size", "2000000")]), 2_000_000);
        assert_eq!(bytes_max(&[("batch.size", "20000")]), 20_000);
    }
}
