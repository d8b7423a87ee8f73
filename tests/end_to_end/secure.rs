//! TLS and SASL: a job whose every connection goes to a listener of a real Kafka that takes nothing else, and what is said when it is not let in.

use super::{COUNTS, Stage, TIMEOUT, row, sorted};
use anyhow::{Context, Result, ensure};
use std::net::SocketAddr;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use streamshield_tests::support::broker::{Broker, left_out};
use streamshield_tests::support::client::{create_topic, read_json};
use streamshield_tests::support::figures::root;
use streamshield_tests::support::http::free_address;
use streamshield_tests::support::job::{BOUNDED, kafka_table};
use streamshield_tests::support::process::Process;
use streamshield_tests::support::streamshield::{Run, binary};

const USER: &str = "orders";
const PASSWORD: &str = "right-of-way-7";
const WRONG_PASSWORD: &str = "wide-of-the-mark-7";
/// A question to a cluster that does not let anybody in is given up after 8 s.
const REFUSED_MAX: Duration = Duration::from_secs(20);
/// What `openssl` is to write into certificates, whatever the machine's own settings say.
const EXTENSIONS: &str = "[req]
prompt = no
distinguished_name = name
[name]
CN = test
[ca]
basicConstraints = critical, CA:TRUE
keyUsage = critical, keyCertSign
[broker]
subjectAltName = IP:127.0.0.1, DNS:localhost
";
/// Its standard input ends with the test's process, however that ends.
const GUARD: &str = "cat >/dev/null; exec \"$0\" stop \"$1\" --kill --wipe";

#[test]
fn a_job_speaks_tls_and_sasl_and_says_why_it_is_not_let_in() -> Result<()> {
    // It has a broker of its own, whatever STREAMSHIELD_KAFKA says.
    if std::env::var("STREAMSHIELD_SKIP_KAFKA").is_ok_and(|value| value == "1") {
        left_out("end_to_end::secure::a_job_speaks_tls_and_sasl_and_says_why_it_is_not_let_in");
        return Ok(());
    }
    let folder = tempfile::tempdir()?;
    make_certificates(folder.path())?;
    std::fs::write(folder.path().join("right"), PASSWORD)?;
    std::fs::write(folder.path().join("wrong"), WRONG_PASSWORD)?;
    let kafka = SecureKafka::start(folder.path())?;
    let mut stage = Stage::on(Broker::Kafka { bootstrap_servers: kafka.plain.to_string() }, "secure", folder)?;
    // These mostly wait, so they are started first.
    let wrong_password = Refused::start(&mut stage, &kafka, "password", "ca.pem", "wrong")?;
    let wrong_authority = Refused::start(&mut stage, &kafka, "authority", "other.pem", "right")?;
    runs_to_a_right_end(&mut stage, &kafka)?;
    wrong_password.expect_words("SASL authentication error")?;
    wrong_authority.expect_words("certificate verify failed")
}

/// The job's own connections have the properties under `kafka` (control log, changelog, exchange, sinks, the table `input`), those of the table
/// `elsewhere` have its options only: a broker that is called by another name is another cluster.
fn runs_to_a_right_end(stage: &mut Stage, kafka: &SecureKafka) -> Result<()> {
    stage.send(0, &[row("a", 1, 0), row("b", 2, 500), row("a", 4, 10_000)])?;
    stage.send(1, &[row("a", 10, 1_000)])?;
    let copies = format!("{}-copies", stage.name);
    create_topic(&stage.servers(), &copies, 1)?;
    let servers = format!("localhost:{}", kafka.secure.port());
    let [password, authority] = ["right", "ca.pem"].map(|name| format!("${{file:{}}}", stage.runner.folder.join(name).display()));
    let elsewhere = [
        BOUNDED,
        ("properties.bootstrap.servers", servers.as_str()),
        ("properties.broker.address.family", "v4"),
        ("properties.security.protocol", "SASL_SSL"),
        ("properties.sasl.mechanism", "SCRAM-SHA-512"),
        ("properties.sasl.username", USER),
        ("properties.sasl.password", password.as_str()),
        ("properties.ssl.ca.pem", authority.as_str()),
    ];
    let columns = "k STRING, v BIGINT, ts TIMESTAMP(3), WATERMARK FOR ts AS ts - INTERVAL '1' SECOND";
    let tables = kafka_table("elsewhere", columns, &stage.input, &elsewhere)
        + &kafka_table("copies", "k STRING, ws TIMESTAMP(3), n BIGINT, s BIGINT", &copies, &[]);
    let mut job = stage.job(&[BOUNDED], &format!("{COUNTS} INSERT INTO copies SELECT k, ts, v, v + 0 FROM elsewhere;"));
    job.sql.insert_str(0, &tables);
    job.bootstrap_servers = kafka.access(&stage.runner.folder, "ca.pem", "right");
    stage.runner.finish(&job, TIMEOUT)?;
    assert_eq!(stage.output()?, ["a 00:00:00 2 11", "a 00:00:10 1 4", "b 00:00:00 1 2"]);
    let copied = sorted(read_json(&stage.servers(), &copies)?)?;
    assert_eq!(copied, ["a 00:00:00 1 1", "a 00:00:01 10 10", "a 00:00:10 4 4", "b 00:00:00 2 2"]);
    Ok(())
}

/// A job that is not let in, and `check` of it.
struct Refused {
    run: Run,
    check: Process,
}

impl Refused {
    fn start(stage: &mut Stage, kafka: &SecureKafka, name: &str, authority: &str, password: &str) -> Result<Refused> {
        let mut job = stage.job(&[BOUNDED], COUNTS);
        job.name = format!("{}-{name}", stage.name);
        job.bootstrap_servers = kafka.access(&stage.runner.folder, authority, password);
        let run = stage.runner.start(&job)?;
        let mut check = Command::new(binary()?);
        check.arg("check").arg(format!("{}.yaml", job.name)).current_dir(&stage.runner.folder).env("NO_COLOR", "1");
        let check = Process::start(check, &stage.runner.folder, &format!("{}-check", job.name))?;
        Ok(Refused { run, check })
    }

    /// Both end, and say why.
    fn expect_words(&self, words: &str) -> Result<()> {
        for process in [&self.run.process, &self.check] {
            let ended = process.expect_end(REFUSED_MAX)?;
            let said = process.stdout() + &process.stderr();
            ensure!(!ended.status.success(), "it ended as if all were well:\n{said}");
            let problem = said.split_once('×').map_or("", |(_, problem)| problem).replace('│', " ");
            let problem = problem.split_whitespace().collect::<Vec<_>>().join(" ");
            ensure!(problem.starts_with("connect to") && problem.contains(words), "'{words}' was not said:\n{said}");
            ensure!(!said.contains(PASSWORD) && !said.contains(WRONG_PASSWORD), "a password was said:\n{said}");
        }
        Ok(())
    }
}

/// A Kafka of this test's own, stopped when this is dropped. Jobs use `secure`; by `plain` the test makes topics and looks at them.
struct SecureKafka {
    plain: SocketAddr,
    secure: SocketAddr,
    guard: Child,
}

impl SecureKafka {
    fn start(folder: &Path) -> Result<SecureKafka> {
        let (plain, controller, secure) = (free_address()?, free_address()?, free_address()?);
        let script = root().join("scripts").join("kafka.sh");
        // Where `make clean-kafka` looks.
        let data = root().join("target").join("kafka").join(format!("secure-{}", std::process::id()));
        let mut guard = Command::new("sh");
        // In a group of its own: what ends this process from a terminal does not end it.
        guard.args(["-c", GUARD]).arg(&script).arg(&data).stdin(Stdio::piped()).stdout(Stdio::null()).process_group(0);
        let kafka = SecureKafka { plain, secure, guard: guard.spawn().context("sh can't be started")? };
        // The last line of a name is the one that counts.
        let properties = format!(
            "listeners=PLAINTEXT://{plain},CONTROLLER://{controller},SASL_SSL://{secure}
advertised.listeners=PLAINTEXT://{plain},SASL_SSL://{secure}
controller.quorum.voters=1@{controller}
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,SASL_SSL:SASL_SSL
ssl.keystore.type=PEM
ssl.keystore.location={keystore}
listener.name.sasl_ssl.sasl.enabled.mechanisms=SCRAM-SHA-512
listener.name.sasl_ssl.scram-sha-512.sasl.jaas.config=org.apache.kafka.common.security.scram.ScramLoginModule required;",
            keystore = folder.join("broker.pem").display(),
        );
        let mut start = Command::new(&script);
        start.arg("start").arg(&data).args(["--port", &plain.port().to_string()]).env("KAFKA_EXTRA", properties);
        start.env("KAFKA_SCRAM", format!("SCRAM-SHA-512=[name={USER},password={PASSWORD}]"));
        run(&mut start)?;
        Ok(kafka)
    }

    /// The address with all that a client needs there, as it stands under `kafka` in a job file. Authority and password are files in `folder`.
    fn access(&self, folder: &Path, authority: &str, password: &str) -> String {
        [
            self.secure.to_string(),
            "security.protocol: SASL_SSL".into(),
            "sasl.mechanism: SCRAM-SHA-512".into(),
            format!("sasl.username: {USER}"),
            format!("sasl.password: ${{file:{}}}", folder.join(password).display()),
            format!("ssl.ca.location: {}", folder.join(authority).display()),
        ]
        .join("\n  ")
    }
}

impl Drop for SecureKafka {
    fn drop(&mut self) {
        // Closes its standard input, too.
        let _ = self.guard.wait();
    }
}

/// `ca.pem` has signed what is in `broker.pem` (the key and the certificate), `other.pem` has not.
fn make_certificates(folder: &Path) -> Result<()> {
    std::fs::write(folder.join("openssl.cnf"), EXTENSIONS)?;
    let openssl = |line: &str| run(Command::new("openssl").args(line.split(' ')).current_dir(folder));
    let key = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -config openssl.cnf";
    for name in ["ca", "other"] {
        openssl(&format!("req -x509 {key} -extensions ca -days 2 -subj /CN={name} -keyout {name}.key -out {name}.pem"))?;
    }
    openssl(&format!("req -new {key} -subj /CN=broker -keyout broker.key -out broker.csr"))?;
    let signer = "-CA ca.pem -CAkey ca.key -set_serial 2";
    openssl(&format!("x509 -req -in broker.csr {signer} -days 2 -extfile openssl.cnf -extensions broker -out broker.crt"))?;
    let keystore = std::fs::read_to_string(folder.join("broker.key"))? + &std::fs::read_to_string(folder.join("broker.crt"))?;
    std::fs::write(folder.join("broker.pem"), keystore)?;
    Ok(())
}

/// Runs a program that ends by itself, and well.
fn run(command: &mut Command) -> Result<()> {
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("{:?} can't be started", command.get_program()))?;
    ensure!(output.status.success(), "{command:?}: {}\n{}", output.status, String::from_utf8_lossy(&output.stderr));
    Ok(())
}
