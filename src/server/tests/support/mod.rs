//! Runs the program in a folder of its own.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, ChildStderr, Command, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// A job that needs nothing: lines of a file to standard output.
#[allow(dead_code, reason = "each test binary uses a part")]
pub const JOB: &str = "\
name: lines
kafka:
  embedded: true
slots: 1
commit_interval: 50 ms
sql: |
  CREATE TABLE lines (`text` STRING) WITH (
    'connector' = 'filesystem', 'path' = 'lines.jsonl', 'format' = 'json'
  );
  CREATE TABLE shown (`text` STRING) WITH ('connector' = 'print');

  INSERT INTO shown SELECT `text` FROM lines;
";

pub struct Folder {
    pub folder: TempDir,
}

#[allow(dead_code, reason = "each test binary uses a part")]
pub struct Output {
    pub status: Option<i32>,
    pub stdout: String,
    /// Standard output, then standard error.
    pub all: String,
}

#[allow(dead_code, reason = "each test binary uses a part")]
impl Folder {
    pub fn new() -> Folder {
        Folder { folder: tempfile::tempdir().expect("a folder") }
    }

    pub fn with_job(job: &str) -> Folder {
        let folder = Folder::new();
        folder.write("job.yaml", job);
        folder.write("lines.jsonl", "{\"text\": \"one\"}\n{\"text\": \"two\"}\n");
        folder
    }

    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    pub fn write(&self, name: &str, text: &str) {
        std::fs::write(self.folder.path().join(name), text).expect("written");
    }

    /// The program with arguments, ready to be started in this folder.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_streamshield"));
        command.args(arguments).current_dir(self.folder.path()).env_remove("RUST_LOG").env("NO_COLOR", "1").stdin(Stdio::null());
        command
    }

    pub fn run_with(&self, arguments: &[&str], variables: &[(&str, &str)]) -> Output {
        let output = self.command(arguments).envs(variables.iter().copied()).output().expect("the program starts");
        let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
        let all = format!("{stdout}{}", String::from_utf8_lossy(&output.stderr));
        Output { status: output.status.code(), stdout, all }
    }

    pub fn succeeds(&self, arguments: &[&str]) -> String {
        let output = self.run_with(arguments, &[]);
        assert_eq!(output.status, Some(0), "{}", output.all);
        output.all
    }

    pub fn fails(&self, status: i32, arguments: &[&str]) -> String {
        let output = self.run_with(arguments, &[]);
        assert_eq!(output.status, Some(status), "{}", output.all);
        output.all
    }
}

/// A started job; killed when the test ends early.
pub struct Running {
    job: Child,
    errors: Option<BufReader<ChildStderr>>,
}

#[allow(dead_code, reason = "each test binary uses a part")]
impl Running {
    pub fn start(folder: &Folder, arguments: &[&str]) -> Running {
        Running::spawn(&mut folder.command(arguments))
    }

    pub fn spawn(command: &mut Command) -> Running {
        let job = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the program starts");
        Running { job, errors: None }
    }

    /// Reads log lines until one fits; all lines read.
    pub fn wait_for_line(&mut self, fits: impl Fn(&str) -> bool) -> Vec<String> {
        let stderr = &mut self.job.stderr;
        let errors = self.errors.get_or_insert_with(|| BufReader::new(stderr.take().expect("a pipe")));
        let mut lines = Vec::new();
        loop {
            let mut line = String::new();
            assert!(errors.read_line(&mut line).expect("a line") > 0, "the program has ended:\n{}", lines.concat());
            let found = fits(&line);
            lines.push(line);
            if found {
                return lines;
            }
        }
    }

    pub fn http_address(&mut self) -> String {
        let lines = self.wait_for_line(|line| line.contains("serving /metrics"));
        let line = lines.last().expect("the line");
        let at = line.find("127.0.0.1:").expect("an address");
        line[at..].chars().take_while(|c| c.is_ascii_digit() || matches!(c, '.' | ':')).collect()
    }

    pub fn wait_until(&mut self, condition: impl Fn() -> bool) -> bool {
        let deadline = Instant::now() + Duration::from_secs(30);
        while !condition() {
            if Instant::now() > deadline {
                return false;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        true
    }

    pub fn id(&self) -> u32 {
        self.job.id()
    }

    pub fn signal(&self, name: &str) {
        let status = Command::new("kill").args([&format!("-{name}"), &self.job.id().to_string()]).status();
        assert!(status.is_ok_and(|status| status.success()));
    }

    /// Waits for the end: exit code, standard output and what is left of standard error.
    pub fn end(mut self) -> (Option<i32>, String) {
        let mut output = String::new();
        self.job.stdout.take().expect("a pipe").read_to_string(&mut output).expect("read");
        let mut errors = self.errors.take();
        match (&mut errors, self.job.stderr.take()) {
            (Some(errors), _) => drop(errors.read_to_string(&mut output)),
            (None, Some(mut errors)) => drop(errors.read_to_string(&mut output)),
            (None, None) => {}
        }
        (self.job.wait().expect("ended").code(), output)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.job.kill();
        let _ = self.job.wait();
    }
}

/// Status and body of an HTTP answer.
#[allow(dead_code, reason = "each test binary uses a part")]
pub fn get(address: &str, path: &str) -> (u16, String) {
    let Ok(mut stream) = TcpStream::connect(address) else { return (0, String::new()) };
    let _ = stream.set_read_timeout(Some(Duration::from_secs(10)));
    let _ = write!(stream, "GET {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n");
    let mut answer = String::new();
    let _ = stream.read_to_string(&mut answer);
    let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
    (status, answer.split_once("\r\n\r\n").map(|(_, body)| body.to_string()).unwrap_or_default())
}
