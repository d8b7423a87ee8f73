//! Runs the program in a folder of its own.

use std::path::Path;
use std::process::{Command, Stdio};
use tempfile::TempDir;

/// A job that needs nothing: lines of a file to standard output.
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
