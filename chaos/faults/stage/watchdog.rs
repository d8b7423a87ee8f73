//! Nothing survives the supervisor: a small process that waits for its death, ends what it had started and undoes what it had broken.
//!
//! A run that is killed with SIGKILL has no destructors. Brokers would go on, a paused worker would stay paused, a packet filter would drop packets of whoever
//! comes next. So everything that could be left behind is written down *before* it happens, and a shell that the run can't take with it reads the other end of
//! a pipe:
//!
//! ```text
//! supervisor ── pipe (closes with it) ──► sh: read … end of file
//!     │                                        │  1. children/PID  → kill -9, if the process still is the one that was meant
//!     ├─ writes children/PID, undo/NNN.sh      │  2. undo/NNN.sh   → the newest first
//!     └─ removes them when it is done          ▼
//! ```
//! An orderly end goes the same way: it closes the pipe, and waits. So what cleans up after a crash is what cleans up every day.
//!
//! The watchdog has a session of its own and ignores the signals of a terminal; its standard error is the file `watchdog.log` of the run's folder.

use super::process::lock;
use anyhow::{Context, Result};
use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// Unmounting and killing take milliseconds; a record that hangs must not keep the run.
const END_TIME_MAX: Duration = Duration::from_secs(60);

/// `$1` is the folder. A child's file holds the ticks at which it was started: the 20th field after the name in its `stat`.
const SCRIPT: &str = r#"
trap '' HUP INT TERM QUIT
while read -r line; do :; done
folder=$1
lives() { # lives FILE: whether the process that was meant is there, and is no zombie
  read -r wanted <"$1" || return 1
  stat=$(cat "/proc/${1##*/}/stat" 2>/dev/null) || return 1
  set -- ${stat##*) }
  [ "${20}" = "$wanted" ] && [ "$1" != Z ]
}
for file in "$folder"/children/*; do
  [ -f "$file" ] && lives "$file" && kill -KILL "${file##*/}"
done
for file in "$folder"/children/*; do
  [ -f "$file" ] || continue
  tries=0
  while [ "$tries" -lt 100 ] && lives "$file"; do
    tries=$((tries + 1))
    sleep 0.05
  done
  rm -f "$file"
done
for name in $(ls -r "$folder/undo"); do
  sh "$folder/undo/$name" && rm -f "$folder/undo/$name"
done
exit 0
"#;

/// The running watchdog of one stage.
#[derive(Debug)]
pub struct Watchdog {
    folder: PathBuf,
    process: Mutex<Option<(Child, ChildStdin)>>,
    records: Mutex<u64>,
}

/// Something to be undone, known to the watchdog. Dropping it does not undo.
#[derive(Debug)]
#[must_use = "without it nobody takes the record back"]
pub struct UndoRecord {
    file: PathBuf,
}

impl UndoRecord {
    /// Undone by other means: the watchdog forgets it.
    pub fn forget(self) {
        let _ = fs::remove_file(&self.file);
    }

    /// Undoes it now, as the watchdog would. After an error the record is still there.
    pub fn run(&self) -> Result<()> {
        let output = Command::new("sh").arg(&self.file).stdin(Stdio::null()).output()?;
        anyhow::ensure!(
            output.status.success(),
            "undoing failed ({}): {}\n{}",
            output.status,
            fs::read_to_string(&self.file).unwrap_or_default(),
            String::from_utf8_lossy(&output.stderr)
        );
        let _ = fs::remove_file(&self.file);
        Ok(())
    }
}

impl Watchdog {
    pub fn start(folder: &Path) -> Result<Watchdog> {
        for name in ["children", "undo"] {
            fs::create_dir_all(folder.join(name)).with_context(|| folder.join(name).display().to_string())?;
        }
        let log = fs::File::create(folder.join("watchdog.log"))?;
        let mut command = Command::new("sh");
        command.args(["-c", SCRIPT, "watchdog"]).arg(folder);
        command.stdin(Stdio::piped()).stdout(log.try_clone()?).stderr(log);
        // SAFETY: setsid is safe to call between fork and exec; it touches no memory.
        unsafe {
            command.pre_exec(|| match libc::setsid() {
                -1 => Err(std::io::Error::last_os_error()),
                _ => Ok(()),
            });
        }
        let mut child = command.spawn().context("a shell can't be started")?;
        // The standard library opens it so that no other child inherits it: then it closes with this process alone.
        let pipe = child.stdin.take().context("the watchdog has a standard input")?;
        Ok(Watchdog { folder: folder.to_path_buf(), process: Mutex::new(Some((child, pipe))), records: Mutex::new(0) })
    }

    pub fn pid(&self) -> Option<u32> {
        lock(&self.process).as_ref().map(|(child, _)| child.id())
    }

    /// A process that must not outlive this one.
    pub fn note_child(&self, pid: u32, started_ticks: u64) -> Result<()> {
        write_whole(&self.child_file(pid), &format!("{started_ticks}\n"))
    }

    pub fn forget_child(&self, pid: u32) {
        let _ = fs::remove_file(self.child_file(pid));
    }

    fn child_file(&self, pid: u32) -> PathBuf {
        self.folder.join("children").join(pid.to_string())
    }

    /// Notes how something is undone, before it is done. The script must do nothing where nothing was done.
    pub fn note_undo(&self, what: &str, script: &str) -> Result<UndoRecord> {
        let number = {
            let mut records = lock(&self.records);
            *records += 1;
            *records
        };
        let file = self.folder.join("undo").join(format!("{number:06}.sh"));
        write_whole(&file, &format!("# {}\n{script}\n", what.replace('\n', " ")))?;
        Ok(UndoRecord { file })
    }

    /// Lets it end and undo what there is, and waits for that.
    pub fn end(&self) -> Result<()> {
        let Some((mut child, pipe)) = lock(&self.process).take() else { return Ok(()) };
        drop(pipe);
        let deadline = Instant::now() + END_TIME_MAX;
        while child.try_wait()?.is_none() {
            if Instant::now() > deadline {
                child.kill()?;
                child.wait()?;
                anyhow::bail!("the watchdog did not end in {END_TIME_MAX:?}; see {}", self.folder.join("undo").display());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        let _ = self.end();
    }
}

/// Never half a record: the watchdog may read at any moment.
fn write_whole(file: &Path, text: &str) -> Result<()> {
    let part = file.with_file_name(format!("../{}.part", file.file_name().unwrap_or_default().to_string_lossy()));
    fs::write(&part, text).with_context(|| part.display().to_string())?;
    fs::rename(&part, file).with_context(|| file.display().to_string())
}

/// A word of a shell script.
pub fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}
