//! What the kernel can take away from a process: memory and processor time by control groups, open files by a limit.
//!
//! Groups of version 1 and 2 are served; a group is removed when it is dropped, and by the watchdog when the supervisor dies. Processes in it go back to the
//! root group first, since a group that holds one can't be removed.

use super::watchdog::{UndoRecord, Watchdog, quoted};
use crate::api::FaultError;
use anyhow::{Context, Result};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

const CGROUPS: &str = "/sys/fs/cgroup";
/// The period of the processor's quota.
const PERIOD_US: u64 = 100_000;

static NUMBER: AtomicU64 = AtomicU64::new(0);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Resource {
    Memory,
    Cpu,
}

impl Resource {
    fn name(self) -> &'static str {
        match self {
            Resource::Memory => "memory",
            Resource::Cpu => "cpu",
        }
    }
}

/// A control group with a limit.
#[derive(Debug)]
pub(crate) struct ControlGroup {
    pub path: PathBuf,
    resource: Resource,
    is_v2: bool,
    undo: Option<UndoRecord>,
}

impl ControlGroup {
    /// Without a limit yet.
    pub(crate) fn create(resource: Resource, watchdog: &Watchdog) -> Result<ControlGroup, FaultError> {
        let (root, is_v2) = root_of(resource)?;
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = root.join(format!("streamshield-{}-{number}", std::process::id()));
        let group = quoted(&path.display().to_string());
        let out = quoted(&root.join("cgroup.procs").display().to_string());
        let script = format!(
            "[ -d {group} ] || exit 0\nfor pid in $(cat {group}/cgroup.procs); do echo \"$pid\" >{out}; done 2>/dev/null\n\
             n=0; until rmdir {group} || [ $n -gt 100 ]; do n=$((n + 1)); sleep 0.02; done\n\
             [ ! -d {group} ]"
        );
        let undo = watchdog.note_undo("a control group", &script)?;
        if let Err(error) = std::fs::create_dir(&path) {
            undo.forget();
            return Err(FaultError::NotPossibleHere(format!("no control group for {} can be made: {error}", resource.name())));
        }
        Ok(ControlGroup { path, resource, is_v2, undo: Some(undo) })
    }

    pub(crate) fn limit_memory(&self, bytes: u64) -> Result<(), FaultError> {
        let file = if self.is_v2 { "memory.max" } else { "memory.limit_in_bytes" };
        self.write(file, &bytes.to_string())?;
        // Where the kernel counts swap the limit would only push pages there.
        let swap = if self.is_v2 { ("memory.swap.max", 0) } else { ("memory.memsw.limit_in_bytes", bytes) };
        let _ = std::fs::write(self.path.join(swap.0), swap.1.to_string());
        Ok(())
    }

    /// A share of one processor.
    pub(crate) fn limit_cpu(&self, share: f64) -> Result<(), FaultError> {
        let quota_us = ((PERIOD_US as f64 * share) as u64).max(1_000);
        if self.is_v2 {
            return self.write("cpu.max", &format!("{quota_us} {PERIOD_US}"));
        }
        self.write("cpu.cfs_period_us", &PERIOD_US.to_string())?;
        self.write("cpu.cfs_quota_us", &quota_us.to_string())
    }

    fn write(&self, file: &str, value: &str) -> Result<(), FaultError> {
        let path = self.path.join(file);
        std::fs::write(&path, value).map_err(|error| FaultError::NotPossibleHere(format!("{}: {error}", path.display())))
    }

    pub(crate) fn add(&self, pid: u32) -> Result<(), FaultError> {
        Ok(std::fs::write(self.path.join("cgroup.procs"), pid.to_string()).with_context(|| self.path.display().to_string())?)
    }

    /// How often the limit bit: processes killed for memory, periods in which the processor was taken away.
    pub(crate) fn bites(&self) -> u64 {
        let (file, key) = match (self.resource, self.is_v2) {
            (Resource::Memory, true) => ("memory.events", "oom_kill"),
            (Resource::Memory, false) => ("memory.oom_control", "oom_kill"),
            (Resource::Cpu, _) => ("cpu.stat", "nr_throttled"),
        };
        let text = std::fs::read_to_string(self.path.join(file)).unwrap_or_default();
        let found = text.lines().filter_map(|line| line.split_once(' ')).find(|(name, _)| *name == key);
        found.and_then(|(_, value)| value.trim().parse().ok()).unwrap_or(0)
    }

    /// Sets its processes free and removes it. After an error it may be tried again.
    pub(crate) fn remove(&mut self) -> Result<()> {
        if let Some(undo) = &self.undo {
            undo.run()?;
            self.undo = None;
        }
        Ok(())
    }
}

impl Drop for ControlGroup {
    fn drop(&mut self) {
        // The watchdog has another try at it.
        let _ = self.remove();
    }
}

fn root_of(resource: Resource) -> Result<(PathBuf, bool), FaultError> {
    let root = Path::new(CGROUPS);
    let v1 = root.join(resource.name());
    if v1.join("cgroup.procs").exists() {
        return Ok((v1, false));
    }
    let controllers = std::fs::read_to_string(root.join("cgroup.subtree_control")).unwrap_or_default();
    if controllers.split_whitespace().any(|name| name == resource.name()) {
        return Ok((root.to_path_buf(), true));
    }
    Err(FaultError::NotPossibleHere(format!("this host has no control groups for {}", resource.name())))
}

/// Sets the soft limit of another process's open files; the hard one stays, so that it can be raised again.
pub(crate) fn set_open_files_max(pid: u32, limit: u64) -> Result<u64> {
    // SAFETY: all-zero bytes are a valid rlimit.
    let mut before: libc::rlimit = unsafe { std::mem::zeroed() };
    // SAFETY: `before` outlives the call, which only writes it; nothing is set.
    let read = unsafe { libc::prlimit(pid as i32, libc::RLIMIT_NOFILE, std::ptr::null(), &mut before) };
    anyhow::ensure!(read == 0, "the limit of open files of process {pid}: {}", std::io::Error::last_os_error());
    let new = libc::rlimit { rlim_cur: limit.min(before.rlim_max), rlim_max: before.rlim_max };
    // SAFETY: `new` outlives the call, which only reads it.
    let written = unsafe { libc::prlimit(pid as i32, libc::RLIMIT_NOFILE, &new, std::ptr::null_mut()) };
    anyhow::ensure!(written == 0, "the limit of open files of process {pid}: {}", std::io::Error::last_os_error());
    Ok(before.rlim_cur)
}
