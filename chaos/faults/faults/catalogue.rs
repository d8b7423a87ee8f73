//! The catalogue: every fault, what it may be aimed at, and what can be said about it. `streamshield chaos list` prints it.

use crate::api::{Family, FaultSpec, Parameter, ParameterKind, Role};

/// The points of `STREAMSHIELD_CRASH_AT`, in the order of a commit; those of deltas are passed by standbys.
pub const CRASH_POINTS: [&str; 8] = [
    "engine::before_begin",
    "engine::after_produce",
    "engine::before_commit",
    "engine::after_commit",
    "state::apply_flush",
    "state::after_flush",
    "state::apply_delta",
    "state::after_delta",
];

/// Those of them that only standbys pass: tier 2 has some.
pub const STANDBY_POINTS: [&str; 2] = ["state::apply_delta", "state::after_delta"];

/// Requests whose answers can be lost.
pub(crate) const APIS: [&str; 9] = [
    "produce",
    "fetch",
    "end_txn",
    "init_producer_id",
    "add_partitions_to_txn",
    "txn_offset_commit",
    "add_offsets_to_txn",
    "find_coordinator",
    "list_offsets",
];

const WORKERS: &[Role] = &[Role::Active, Role::Worker, Role::Follower, Role::AllWorkers];
const ONE_WORKER: &[Role] = &[Role::Active, Role::Worker, Role::Follower];
const LINKS: &[Role] = &[Role::Active, Role::Worker, Role::Follower, Role::AllWorkers, Role::Broker, Role::Coordinator, Role::AllBrokers];
const LINKS_AND_STORE: &[Role] =
    &[Role::Active, Role::Worker, Role::Follower, Role::AllWorkers, Role::Broker, Role::Coordinator, Role::AllBrokers, Role::Store];
const ONE_BROKER: &[Role] = &[Role::Broker, Role::Coordinator];
const STORE: &[Role] = &[Role::Store];
const INPUT: &[Role] = &[Role::Input];

const fn parameter(name: &'static str, kind: ParameterKind, default: &'static str, about: &'static str) -> Parameter {
    Parameter { name, kind, default: Some(default), about }
}

const fn count(min: u64, max: u64) -> ParameterKind {
    ParameterKind::Count { min, max }
}

const fn duration(min: &'static str, max: &'static str) -> ParameterKind {
    ParameterKind::DurationOf { min, max }
}

const RESTART_AFTER: Parameter =
    parameter("restart_after", ParameterKind::Duration, "0", "how long it stays away at least, before it is started again");
const WITHIN: Parameter = parameter("within", ParameterKind::Duration, "60 s", "how long to wait until it has happened");
// Together well below the minute after which a worker that has been asleep ends itself.
const SLEEP: Parameter = parameter("pause", duration("0 s", "10 s"), "3 s", "for which the follower is paused at least");
const WITHIN_SLEEP: Parameter =
    parameter("within", duration("0 s", "30 s"), "30 s", "how long it stays paused then, until there is a later checkpoint");
const BROKER: Parameter = parameter("broker", count(0, 9), "0", "only the links to this broker; 0: to all");
const DIRECTION: Parameter = parameter(
    "direction",
    ParameterKind::Choice(&["both", "requests", "responses"]),
    "both",
    "requests go from the worker to the brokers, responses come back",
);
const HOW: Parameter = parameter("how", ParameterKind::Choice(&["kill", "pause"]), "kill", "SIGKILL, or SIGSTOP until the end");
const END: Parameter =
    parameter("end", ParameterKind::Choice(&["stop", "kill"]), "stop", "a stopped worker writes its state out first, a killed one doesn't");
const SHARE_OF_RECORDS: Parameter = parameter("share", ParameterKind::Share, "1 %", "of the records that are sent meanwhile");
const TIMES: Parameter = parameter("times", count(1, 1_000_000), "1", "how often, on each link");

const fn spec(
    name: &'static str,
    family: Family,
    about: &'static str,
    parameters: &'static [Parameter],
    targets: &'static [Role],
    lasts: bool,
) -> FaultSpec {
    FaultSpec { name, family, about, parameters, targets, lasts }
}

/// No fault: a step that waits until a worker passes a point is aimed like one.
pub static PASSING: FaultSpec = spec("fail_point", Family::Process, "a worker passes a point", &[], WORKERS, false);

/// All faults, by family.
pub fn catalogue() -> &'static [FaultSpec] {
    &CATALOGUE
}

/// The entry of a name.
pub fn find(name: &str) -> Option<&'static FaultSpec> {
    CATALOGUE.iter().find(|spec| spec.name == name)
}

static CATALOGUE: [FaultSpec; 49] = [
    spec("process.kill", Family::Process, "SIGKILL; the worker is started again", &[RESTART_AFTER], WORKERS, false),
    spec("process.kill_all", Family::Process, "SIGKILL to all workers at the same moment", &[RESTART_AFTER], &[Role::AllWorkers], false),
    spec(
        "process.kill_taker",
        Family::Process,
        "SIGKILL to a region's owner, and to the worker that takes the region over, as soon as it is known",
        &[WITHIN],
        &[Role::Active, Role::Taker],
        false,
    ),
    spec(
        "process.crash_at",
        Family::Process,
        "a worker is restarted so that it aborts at a named point of a commit, of a flush, or of a standby's delta (tier 2)",
        &[
            parameter("point", ParameterKind::Choice(&CRASH_POINTS), "engine::before_commit", "where it dies"),
            parameter("passing", count(1, 1_000_000), "3", "at which passing of that point"),
            WITHIN,
        ],
        ONE_WORKER,
        false,
    ),
    spec(
        "process.stop",
        Family::Process,
        "SIGTERM: it seals, commits, hands over and ends by itself",
        &[parameter("within", ParameterKind::Duration, "15 s", "after which it is killed"), RESTART_AFTER],
        WORKERS,
        false,
    ),
    spec("process.pause", Family::Process, "SIGSTOP until the end, then SIGCONT: beyond its expiry it is a zombie", &[], WORKERS, true),
    spec(
        "process.crash_loop",
        Family::Process,
        "every step of one region panics, on whichever worker it is; all workers are restarted to begin and to end it",
        &[WITHIN],
        &[Role::Active],
        true,
    ),
    spec(
        "process.lose_rows",
        Family::Process,
        "a worker is restarted so that replicas on it leave rows out: their state is not their owners', which must be noticed",
        &[parameter("passing", count(1, 1_000_000), "30", "at which step with rows it begins"), WITHIN],
        &[Role::Follower, Role::Worker],
        false,
    ),
    spec(
        "process.fence",
        Family::Process,
        "somebody else takes the worker's transactional id, as a tool for hanging transactions does: its producer is fenced, and it is the owner all the same",
        &[],
        ONE_WORKER,
        false,
    ),
    spec(
        "process.memory_limit",
        Family::Process,
        "the worker is restarted in a control group that gives it too little memory: the kernel kills it, again and again",
        &[parameter("memory", ParameterKind::Bytes, "24 MiB", "what it may use"), WITHIN],
        ONE_WORKER,
        true,
    ),
    spec(
        "process.cpu_limit",
        Family::Process,
        "the worker gets a share of one processor",
        &[parameter("share", ParameterKind::Share, "4 %", "of one processor; more than it needs is no limit")],
        WORKERS,
        true,
    ),
    spec(
        "process.file_limit",
        Family::Process,
        "the worker is restarted with few file descriptors",
        &[parameter("files", count(4, 1_000_000), "32", "how many it may have open"), WITHIN],
        ONE_WORKER,
        true,
    ),
    spec(
        "net.latency",
        Family::Network,
        "bytes arrive later",
        &[
            parameter("latency", ParameterKind::Duration, "100 ms", "in each direction that is chosen"),
            parameter("jitter", ParameterKind::Duration, "20 ms", "by which it varies in both ways"),
            DIRECTION,
            BROKER,
        ],
        LINKS_AND_STORE,
        true,
    ),
    spec(
        "net.bandwidth",
        Family::Network,
        "bytes arrive at a bounded rate",
        &[parameter("rate", ParameterKind::Bytes, "128 KiB", "per second and connection"), DIRECTION, BROKER],
        LINKS_AND_STORE,
        true,
    ),
    spec(
        "net.loss",
        Family::Network,
        "the kernel drops packets between a worker and its proxies; TCP sends them again after 200 ms at best",
        &[parameter("share", ParameterKind::Share, "5 %", "of the packets, both ways"), BROKER],
        LINKS,
        true,
    ),
    spec(
        "net.partition",
        Family::Network,
        "nothing gets through; what was on its way arrives when it heals, or connections are refused",
        &[
            DIRECTION,
            parameter("mode", ParameterKind::Choice(&["stall", "refuse"]), "stall", "refuse resets what lives, in both directions"),
            BROKER,
        ],
        LINKS,
        true,
    ),
    spec(
        "net.reset",
        Family::Network,
        "living connections are reset, again and again",
        &[parameter("share", ParameterKind::Share, "50 %", "of the connections, in each second"), BROKER],
        LINKS,
        true,
    ),
    spec(
        "net.half_open",
        Family::Network,
        "bytes are taken and vanish, and nobody is told: the other end seems to live",
        &[parameter("direction", ParameterKind::Choice(&["responses", "requests", "both"]), "responses", "what vanishes"), BROKER],
        LINKS,
        true,
    ),
    spec(
        "net.slow_drip",
        Family::Network,
        "a few bytes at a time: frames are cut into pieces",
        &[
            parameter("bytes", ParameterKind::Bytes, "64", "at a time"),
            parameter("pause", ParameterKind::Duration, "5 ms", "between two pieces"),
            DIRECTION,
            BROKER,
        ],
        LINKS,
        true,
    ),
    spec(
        "net.cut_frame",
        Family::Network,
        "each connection is reset after a number of bytes, most likely in the middle of a frame",
        &[parameter("after", ParameterKind::Bytes, "200 KiB", "carried in one direction"), DIRECTION, BROKER],
        LINKS,
        true,
    ),
    spec(
        "net.flap",
        Family::Network,
        "down and up by turns; down refuses connections",
        &[
            parameter("down", duration("10 ms", "1 h"), "2 s", "how long it is down"),
            parameter("up", duration("10 ms", "1 h"), "2 s", "how long it is up"),
            BROKER,
        ],
        LINKS,
        true,
    ),
    spec(
        "net.hold_end_txn",
        Family::Network,
        "a commit waits in the network until it was repeated and the next transaction of the same producer is under way, and arrives then (KIP-890)",
        &[
            WITHIN,
            parameter(
                "keep_open",
                ParameterKind::Duration,
                "1 s",
                "for which the rest of the next transaction and its end are delayed, so that the commit meets it",
            ),
        ],
        ONE_WORKER,
        false,
    ),
    spec(
        "net.drop_response",
        Family::Network,
        "the broker does what it was asked, and the worker never hears of it",
        &[parameter("api", ParameterKind::Choice(&APIS), "end_txn", "whose answer is lost"), TIMES, BROKER],
        LINKS,
        true,
    ),
    spec("broker.kill", Family::Broker, "SIGKILL until the end, then it is started again", &[], ONE_BROKER, true),
    spec("broker.pause", Family::Broker, "SIGSTOP until the end: it holds its connections and says nothing", &[], ONE_BROKER, true),
    spec(
        "broker.coordinator_kill",
        Family::Broker,
        "SIGKILL to the coordinator of a worker's transactions",
        &[],
        &[Role::Coordinator],
        true,
    ),
    spec("broker.all_away", Family::Broker, "no broker is there", &[HOW], &[Role::AllBrokers], true),
    spec(
        "broker.below_min_isr",
        Family::Broker,
        "two of three brokers are gone: the third refuses what it can't replicate",
        &[HOW],
        &[Role::AllBrokers],
        true,
    ),
    spec(
        "broker.delete_records",
        Family::Broker,
        "records that a paused follower has not read yet are deleted, up to what the region's newest checkpoint in the store makes dispensable",
        &[SLEEP, WITHIN_SLEEP],
        &[Role::Follower],
        false,
    ),
    spec("storage.disk_full", Family::Storage, "the disk of the worker's state is full; freed at the end", &[], ONE_WORKER, true),
    spec(
        "storage.read_only",
        Family::Storage,
        "the worker is killed and finds the disk of its state read-only, as after a crash of the machine",
        &[],
        ONE_WORKER,
        true,
    ),
    spec(
        "storage.bit_flip",
        Family::Storage,
        "bits of a worker's state are turned while it is away",
        &[
            parameter("file", ParameterKind::Choice(&["sst", "manifest", "any"]), "sst", "in which files"),
            parameter("flips", count(1, 1_000), "3", "how many bits"),
            END,
        ],
        ONE_WORKER,
        false,
    ),
    spec(
        "storage.truncate",
        Family::Storage,
        "files of a worker's state are cut short while it is away",
        &[
            parameter("file", ParameterKind::Choice(&["sst", "manifest", "any"]), "manifest", "which files"),
            parameter("files", count(1, 100), "1", "how many"),
            END,
        ],
        ONE_WORKER,
        false,
    ),
    spec("storage.delete_state", Family::Storage, "a killed worker comes back without its state", &[], WORKERS, false),
    spec("store.away", Family::Storage, "the store of the checkpoints refuses connections", &[], STORE, true),
    spec(
        "store.errors",
        Family::Storage,
        "a share of the requests to the store is answered by an error",
        &[
            parameter("share", ParameterKind::Share, "30 %", "of the requests"),
            parameter("status", count(400, 599), "503", "what is answered"),
        ],
        STORE,
        true,
    ),
    spec("store.hang", Family::Storage, "the store takes requests and does not answer", &[], STORE, true),
    spec(
        "store.torn_upload",
        Family::Storage,
        "uploads break off in the middle",
        &[
            parameter("after", ParameterKind::Bytes, "1 KiB", "so much of each body arrives"),
            parameter("share", ParameterKind::Share, "50 %", "of the uploads"),
        ],
        STORE,
        true,
    ),
    spec(
        "store.ambiguous_create",
        Family::Storage,
        "the store does what it was asked, and the answer to the upload is lost",
        &[parameter("share", ParameterKind::Share, "50 %", "of the uploads")],
        STORE,
        true,
    ),
    spec(
        "store.corrupt",
        Family::Storage,
        "a bit of each of some stored objects is turned; by default of newest manifests that have an older one behind them, which a restore must find",
        &[
            parameter(
                "what",
                ParameterKind::Choice(&["newest", "newest_files", "files", "manifests"]),
                "newest",
                "which objects; newest_files are those that the newest checkpoint of a region alone has; files may be shared by all of them, which are lost then",
            ),
            parameter("objects", count(1, 1_000), "3", "how many"),
        ],
        STORE,
        false,
    ),
    spec(
        "store.collect",
        Family::Storage,
        "somebody collects garbage behind the workers' backs (`checkpoints gc`): once to mark it, once more after the grace to delete it",
        &[parameter("grace", ParameterKind::Duration, "2 s", "longer than any upload takes")],
        STORE,
        false,
    ),
    spec(
        "hdfs.name_node_restart",
        Family::Storage,
        "the HDFS's name node is ended, and started again at the end; its data node lives on",
        &[],
        STORE,
        true,
    ),
    spec(
        "time.jump",
        Family::Time,
        "the wall clock of one worker is wrong; it is restarted first, with a clock that can be set",
        &[
            // An answer's date tells seconds, and may be old by some.
            parameter("by", duration("10 s", "100000 h"), "2 h", "how far"),
            parameter("direction", ParameterKind::Choice(&["forward", "back"]), "forward", "in which direction"),
        ],
        ONE_WORKER,
        true,
    ),
    spec("data.undecodable", Family::Data, "records that are no rows", &[SHARE_OF_RECORDS], INPUT, true),
    spec(
        "data.oversized",
        Family::Data,
        "records that are no rows, with a value larger than a dead letter may be",
        &[SHARE_OF_RECORDS],
        INPUT,
        true,
    ),
    spec("data.null_key", Family::Data, "records whose key is null", &[SHARE_OF_RECORDS], INPUT, true),
    spec(
        "data.far_future",
        Family::Data,
        "records with an event time ten years ahead, which must not take the watermark with them",
        &[SHARE_OF_RECORDS],
        INPUT,
        true,
    ),
    spec(
        "data.hot_key",
        Family::Data,
        "one key gets most of the records",
        &[parameter("share", ParameterKind::Share, "80 %", "of the records")],
        INPUT,
        true,
    ),
    spec("data.late", Family::Data, "records that come an hour after their windows were closed", &[SHARE_OF_RECORDS], INPUT, true),
];
