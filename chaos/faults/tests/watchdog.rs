//! The death of the supervisor: nothing that it had started or broken stays.

use super::support::{Rig, has_kafka, is_gone, small, wait_until};
use anyhow::{Context, Result, ensure};
use std::path::Path;
use std::process::{Command, Stdio};
use streamshield_faults::stage::process_state;
use streamshield_faults::{Role, Topology};

const FILE: &str = "STREAMSHIELD_WATCHDOG_TEST";

/// Is not a test by itself: the process that the test below kills. It writes down what it has started, and waits for its end.
#[test]
#[ignore = "is started by a_killed_supervisor_leaves_nothing_behind"]
fn a_supervisor_that_waits_to_be_killed() -> Result<()> {
    let Some(file) = std::env::var_os(FILE) else { return Ok(()) };
    let topology = if has_kafka() { Topology { brokers: 1, workers: 2, ..Topology::default() } } else { small() };
    let mut rig = Rig::start("faults-watchdog", &topology, &[("tier", "1")])?;
    let (_pause, _) = rig.inject("process.pause", &[], Some((Role::Worker, Some("w1"))))?;
    let (_latency, _) = rig.inject("net.latency", &[], Some((Role::Worker, Some("w2"))))?;
    // Where the host allows them: a control group, a packet filter and a disk, which would outlive everybody.
    let mut others = Vec::new();
    for name in ["process.cpu_limit", "net.loss", "storage.disk_full"] {
        let mut fault = rig.build(name, &[], Some((Role::Worker, Some("w2"))))?;
        println!("{name}: {:?}", fault.inject(&rig.stage));
        others.push(fault);
    }
    let mut pids: Vec<u32> = rig.stage.workers()?.views().iter().filter_map(|view| view.pid).collect();
    pids.extend(rig.stage.brokers().views().iter().filter_map(|view| view.pid));
    pids.push(rig.stage.watchdog_pid().context("it has a watchdog")?);
    let part = Path::new(&file).with_extension("part");
    let folder = rig.stage.folder().display().to_string();
    std::fs::write(&part, format!("{folder}\n{}", pids.iter().map(u32::to_string).collect::<Vec<_>>().join("\n")))?;
    std::fs::rename(&part, &file)?;
    loop {
        std::thread::park();
    }
}

#[test]
fn a_killed_supervisor_leaves_nothing_behind() -> Result<()> {
    let temporary = tempfile::tempdir()?;
    let file = temporary.path().join("started");
    let output = std::fs::File::create(temporary.path().join("output"))?;
    let mut supervisor = Command::new(std::env::current_exe()?)
        .args(["--ignored", "--exact", "--nocapture", "watchdog::a_supervisor_that_waits_to_be_killed"])
        .env(FILE, &file)
        .env("TMPDIR", temporary.path())
        .stdin(Stdio::null())
        .stdout(output.try_clone()?)
        .stderr(output)
        .spawn()?;
    let said = || std::fs::read_to_string(temporary.path().join("output")).unwrap_or_default();
    wait_until("the supervisor has started all", || file.exists() || !matches!(supervisor.try_wait(), Ok(None))).with_context(said)?;
    let text = std::fs::read_to_string(&file).with_context(said)?;
    println!("{}", said());
    let mut lines = text.lines();
    let folder = std::path::PathBuf::from(lines.next().context("its folder")?);
    let pids: Vec<u32> = lines.map(str::parse).collect::<Result<_, _>>()?;
    ensure!(pids.len() >= 3 && pids.iter().all(|pid| !is_gone(*pid)), "{pids:?}");
    ensure!(pids.iter().any(|pid| process_state(*pid) == Some('T')), "nobody sleeps, so nobody can be shown not to");
    let undo = || std::fs::read_dir(folder.join("undo")).map_or(0, |entries| entries.count());
    println!("{} records of what has to be undone", undo());

    supervisor.kill()?;
    supervisor.wait()?;
    wait_until("all processes are gone", || pids.iter().all(|pid| is_gone(*pid)))?;
    wait_until("all is undone", || undo() == 0)?;
    let mounts = std::fs::read_to_string("/proc/mounts").unwrap_or_default();
    ensure!(!mounts.contains(&folder.display().to_string()), "a disk stays mounted:\n{mounts}");
    let id = supervisor.id();
    for root in ["/sys/fs/cgroup/cpu", "/sys/fs/cgroup/memory", "/sys/fs/cgroup"] {
        for entry in std::fs::read_dir(root).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            ensure!(!name.starts_with(&format!("streamshield-{id}-")), "{root}/{name} stays");
        }
    }
    if let Ok(tables) = Command::new("nft").args(["list", "tables"]).output() {
        let tables = String::from_utf8_lossy(&tables.stdout).into_owned();
        ensure!(!tables.contains(&format!("streamshield_{id}_")), "a packet filter stays: {tables}");
    }
    Ok(())
}
