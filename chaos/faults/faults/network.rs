//! Faults of the network: what a link's proxy, or the kernel beside it, does to the bytes.

use super::target::Setup;
use super::{Evidence, nothing};
use crate::api::{Fault, FaultError, Fired, Role};
use crate::stage::Stage;
use crate::stage::watchdog::UndoRecord;
use anyhow::Context;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use streamshield_proxy::{Counters, Direction, Door, Drip, Flapping, Link, Passage, Strain, StrainHandle, Toxics};

/// Which link of a stage.
#[derive(Clone, Debug)]
enum Place {
    Broker(String, u32),
    Store,
}

impl Place {
    fn link<'a>(&self, stage: &'a Stage) -> Result<&'a Link, FaultError> {
        match self {
            Place::Broker(worker, broker) => Ok(stage.links().get(worker, *broker).context("a link stays")?),
            Place::Store => stage.store().link(),
        }
    }

    fn name(&self) -> String {
        match self {
            Place::Broker(worker, broker) => format!("{worker}-b{broker}"),
            Place::Store => "store".into(),
        }
    }
}

/// All faults that are a setting of a link: latency, bandwidth, partition, reset, half-open, drip, flap, cut frames.
pub(crate) struct Toxic {
    setup: Setup,
    /// Each link with its counters from before, and what it suffers from until the handle is dropped.
    set: Vec<(Place, Counters, StrainHandle)>,
}

impl Toxic {
    pub(crate) fn new(setup: Setup) -> Toxic {
        Toxic { setup, set: Vec::new() }
    }

    fn places(&mut self, stage: &Stage) -> Result<Vec<Place>, FaultError> {
        if self.setup.target.role == Role::Store {
            return Ok(vec![Place::Store]);
        }
        Ok(self.setup.links(stage)?.into_iter().map(|(worker, broker)| Place::Broker(worker, broker)).collect())
    }

    fn directions(&self) -> &'static [Direction] {
        match self.setup.given.choice("direction") {
            "requests" => &[Direction::Requests],
            "responses" => &[Direction::Responses],
            _ => &[Direction::Requests, Direction::Responses],
        }
    }

    /// Of the faults that change bytes on their way.
    fn toxics(&self) -> Toxics {
        let given = &self.setup.given;
        match self.setup.spec.name {
            "net.latency" => Toxics { latency: given.duration("latency"), jitter: given.duration("jitter"), ..Toxics::default() },
            "net.bandwidth" => Toxics { bytes_per_second: Some(given.bytes("rate")), ..Toxics::default() },
            "net.slow_drip" => {
                let bytes = usize::try_from(given.bytes("bytes")).unwrap_or(usize::MAX).max(1);
                Toxics { drip: Some(Drip { bytes, pause: given.duration("pause") }), ..Toxics::default() }
            }
            "net.cut_frame" => Toxics { cut_after_bytes: Some(given.bytes("after")), ..Toxics::default() },
            "net.half_open" => Toxics { passage: Passage::Swallows, ..Toxics::default() },
            _ => Toxics { passage: Passage::Stalls, ..Toxics::default() },
        }
    }

    fn strain(&self) -> Strain {
        let given = &self.setup.given;
        match self.setup.spec.name {
            "net.reset" => Strain { reset_share: given.share("share"), ..Strain::default() },
            "net.flap" => {
                let flapping = Flapping { down: given.duration("down"), up: given.duration("up") };
                Strain { flapping: Some(flapping), ..Strain::default() }
            }
            "net.partition" if given.choice("mode") == "refuse" => Strain { door: Door::Refuse, ..Strain::default() },
            _ => Strain::of(self.directions(), self.toxics()),
        }
    }

    /// What of a link's counters shows this fault.
    fn count(&self, before: &Counters, now: &Counters) -> (u64, &'static str) {
        let both = |of: fn(&streamshield_proxy::Flow) -> u64| {
            let sum = |counters: &Counters| of(&counters.requests) + of(&counters.responses);
            sum(now) - sum(before)
        };
        match self.setup.spec.name {
            "net.latency" => (both(|flow| flow.delayed), "pieces delayed"),
            "net.bandwidth" | "net.slow_drip" => (both(|flow| flow.paced), "pieces paced"),
            "net.half_open" => (both(|flow| flow.swallowed_bytes), "bytes vanished"),
            "net.cut_frame" => (both(|flow| flow.cut), "connections cut"),
            "net.reset" => (now.reset - before.reset, "connections reset"),
            "net.partition" if self.setup.given.choice("mode") == "stall" => {
                (both(|flow| flow.stalled), "directions of connections stalled")
            }
            _ => (now.shut - before.shut, "times shut"),
        }
    }

    fn evidence(&self, stage: &Stage) -> Result<Fired, FaultError> {
        let mut evidence = Evidence::default();
        for (place, before, _) in &self.set {
            let (count, what) = self.count(before, &place.link(stage)?.counters());
            evidence.add(place.name(), format!("{}: {count} {what}", place.name()), count);
        }
        Ok(evidence.fired())
    }
}

impl Fault<Stage> for Toxic {
    fn inject(&mut self, stage: &Stage) -> Result<Fired, FaultError> {
        for place in self.places(stage)? {
            let link = place.link(stage)?;
            let before = link.counters();
            let strain = link.strain(self.strain());
            self.set.push((place, before, strain));
        }
        self.evidence(stage)
    }

    fn undo(&mut self, stage: &Stage) -> Result<Fired, FaultError> {
        let fired = self.evidence(stage)?;
        // Only what this one has set ends with the handles: another fault may be at work on the same link.
        self.set.clear();
        Ok(fired)
    }
}

/// `net.loss`: by the kernel, in a table of its own, for packets from and to the ports of the proxies alone.
pub(crate) struct Loss {
    setup: Setup,
    dropping: Option<(String, Vec<String>, UndoRecord)>,
}

static TABLE: AtomicU64 = AtomicU64::new(0);
/// Of the random number that decides about a packet.
const LOSS_STEPS: f64 = 1_000.0;

impl Loss {
    pub(crate) fn new(setup: Setup) -> Loss {
        Loss { setup, dropping: None }
    }
}

impl Fault<Stage> for Loss {
    fn inject(&mut self, stage: &Stage) -> Result<Fired, FaultError> {
        let links = self.setup.links(stage)?;
        let mut ports = Vec::new();
        for (worker, broker) in &links {
            ports.push(stage.links().get(worker, *broker).context("a link stays")?.address().port().to_string());
        }
        let table = format!("streamshield_{}_{}", std::process::id(), TABLE.fetch_add(1, Ordering::Relaxed));
        let steps = (self.setup.given.share("share") * LOSS_STEPS).round() as u64;
        let (ports, loss) = (ports.join(", "), format!("numgen random mod {LOSS_STEPS} < {steps} counter drop"));
        let rules = format!(
            "table inet {table} {{\n  chain input {{\n    type filter hook input priority 0; policy accept;\n    \
             tcp dport {{ {ports} }} {loss}\n    tcp sport {{ {ports} }} {loss}\n  }}\n}}\n"
        );
        let script = format!("nft list table inet {table} >/dev/null 2>&1 || exit 0; nft delete table inet {table}");
        let undo = stage.watchdog().note_undo("lost packets", &script)?;
        if let Err(error) = nft(&rules) {
            undo.forget();
            return Err(FaultError::NotPossibleHere(format!("the kernel drops no packets for us: {error:#}")));
        }
        let names: Vec<String> = links.iter().map(|(worker, broker)| format!("{worker}-b{broker}")).collect();
        self.dropping = Some((table, names.clone(), undo));
        Ok(Fired { hit: names, evidence: format!("packets are dropped at ports {ports}"), count: 0 })
    }

    fn undo(&mut self, _: &Stage) -> Result<Fired, FaultError> {
        let Some((table, names, undo)) = &self.dropping else { return nothing() };
        let dropped = dropped(table);
        undo.run()?;
        let fired = Fired { hit: names.clone(), evidence: format!("{dropped} packets were dropped"), count: dropped };
        self.dropping = None;
        Ok(fired)
    }
}

fn nft(rules: &str) -> anyhow::Result<()> {
    let mut child =
        Command::new("nft").args(["-f", "-"]).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().context("nft")?;
    std::io::Write::write_all(&mut child.stdin.take().context("nft has a standard input")?, rules.as_bytes())?;
    let output = child.wait_with_output()?;
    anyhow::ensure!(output.status.success(), "nft: {}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(())
}

/// Packets that the rules of a table have dropped.
fn dropped(table: &str) -> u64 {
    let output = Command::new("nft").args(["list", "table", "inet", table]).stdin(Stdio::null()).output();
    let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    packets_in(&text)
}

fn packets_in(listing: &str) -> u64 {
    let counts = listing.split("counter packets ").skip(1).filter_map(|rest| rest.split_whitespace().next()?.parse::<u64>().ok());
    counts.sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dropped_packets_are_summed_over_all_rules() {
        let listing = "table inet t {\n chain input {\n tcp dport { 1, 2 } numgen random mod 1000 < 50 counter packets 12 bytes 900 drop\n \
                       tcp sport { 1, 2 } numgen random mod 1000 < 50 counter packets 30 bytes 1800 drop\n }\n}";
        assert_eq!(packets_in(listing), 42);
    }
}
