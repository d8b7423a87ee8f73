//! Lost packets, by the kernel: a network namespace behind a veth pair, where nftables drops a share of what passes.
//!
//! A proxy ends TCP, so it can't lose a packet; only the kernel can, and only below TCP. What suffers must therefore run inside
//! of the namespace, and the proxies that it talks to listen on the host's end of the pair:
//!
//! ```text
//! host ── proxies on host_address() ── veth ═══════ veth ── inside_address() ── [namespace: worker]
//!                                                nftables: numgen random mod 100 < n → drop, both ways
//! ```
//! The host's own rules and interfaces are not touched. The namespace is deleted with its pair when the value is dropped;
//! [`LossyNetwork::undo_script`] does the same for a watchdog, should the process die. Needs root, `ip` and `nft`.
//!
//! Mind that a lost packet costs a TCP connection at least 200 ms on Linux (RTO_MIN), whatever the link's latency.

use std::net::Ipv4Addr;
use std::process::{Command, Stdio};

/// Interface names have 15 bytes at most, and two letters are ours.
const NAME_BYTES_MAX: usize = 13;

/// Why there is no such network.
#[derive(Debug, thiserror::Error)]
pub enum PacketsError {
    /// The host can't: to be reported, not to be counted as passed.
    #[error("not possible here: {0}")]
    NotPossibleHere(String),
    /// It could, and a step failed. What was made is taken back.
    #[error("{command}: {reason}")]
    Failed { command: String, reason: String },
}

/// Whether this host can lose packets: makes a namespace with a rule, and deletes it again.
pub fn are_lossable() -> Result<(), PacketsError> {
    let name = format!("ssprobe{}", std::process::id() % 100_000);
    match LossyNetwork::create(&name, 255).and_then(|network| network.set_loss(1)) {
        Ok(()) => Ok(()),
        Err(PacketsError::NotPossibleHere(why)) => Err(PacketsError::NotPossibleHere(why)),
        Err(failed) => Err(PacketsError::NotPossibleHere(failed.to_string())),
    }
}

/// A namespace whose link to the host loses packets. Dropping it deletes it.
#[derive(Debug)]
pub struct LossyNetwork {
    name: String,
    subnet: u8,
}

impl LossyNetwork {
    /// Makes it, without loss at first. Names and subnets (198.18.`subnet`.0/30) must differ between networks that live at once.
    pub fn create(name: &str, subnet: u8) -> Result<LossyNetwork, PacketsError> {
        if !rustix::process::geteuid().is_root() {
            return Err(PacketsError::NotPossibleHere("it needs root".into()));
        }
        for program in ["ip", "nft"] {
            if run(program, &["--version"]).or_else(|_| run(program, &["-V"])).is_err() {
                return Err(PacketsError::NotPossibleHere(format!("the program '{program}' is not installed")));
            }
        }
        if name.is_empty() || name.len() > NAME_BYTES_MAX || !name.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
            return Err(PacketsError::Failed {
                command: format!("name '{name}'"),
                reason: format!("1 to {NAME_BYTES_MAX} letters and digits"),
            });
        }
        run("ip", &["netns", "add", name])?;
        // From here on a failure takes back what there is.
        let network = LossyNetwork { name: name.into(), subnet };
        let (host, inside) = network.interfaces();
        let (host_address, inside_address) = (format!("{}/30", network.host_address()), format!("{}/30", network.inside_address()));
        run("ip", &["link", "add", &host, "type", "veth", "peer", "name", &inside, "netns", name])?;
        run("ip", &["address", "add", &host_address, "dev", &host])?;
        run("ip", &["link", "set", &host, "up"])?;
        network.inside(&["ip", "address", "add", &inside_address, "dev", &inside])?;
        network.inside(&["ip", "link", "set", &inside, "up"])?;
        network.inside(&["ip", "link", "set", "lo", "up"])?;
        Ok(network)
    }

    fn interfaces(&self) -> (String, String) {
        (format!("{}-h", self.name), format!("{}-i", self.name))
    }

    /// Where proxies listen that are to be reached from inside.
    pub fn host_address(&self) -> Ipv4Addr {
        Ipv4Addr::new(198, 18, self.subnet, 1)
    }

    /// Where what runs inside is reached from the host.
    pub fn inside_address(&self) -> Ipv4Addr {
        Ipv4Addr::new(198, 18, self.subnet, 2)
    }

    /// A program that will run inside.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name, program]);
        command
    }

    /// The share of packets that is dropped each way, in percent; zero ends it. Replaces what was set.
    pub fn set_loss(&self, percent: u8) -> Result<(), PacketsError> {
        let (_, inside) = self.interfaces();
        let percent = percent.min(100);
        let rules = match percent {
            0 => String::new(),
            _ => format!(
                "table inet loss {{\n  chain input {{ type filter hook input priority 0; policy accept; iifname \"{inside}\" numgen random mod 100 < {percent} counter drop; }}\n  chain output {{ type filter hook output priority 0; policy accept; oifname \"{inside}\" numgen random mod 100 < {percent} counter drop; }}\n}}"
            ),
        };
        // Adding before deleting, so that deleting never fails; nft does all of it or nothing.
        self.inside(&["nft", &format!("add table inet loss\ndelete table inet loss\n{rules}")]).map(drop)
    }

    /// Packets dropped since the loss was set.
    pub fn dropped(&self) -> Result<u64, PacketsError> {
        let Ok(listed) = self.inside(&["nft", "list", "table", "inet", "loss"]) else { return Ok(0) };
        let mut words = listed.split_whitespace();
        let mut dropped = 0;
        while let Some(word) = words.next() {
            if word == "packets" {
                dropped += words.next().and_then(|count| count.parse::<u64>().ok()).unwrap_or(0);
            }
        }
        Ok(dropped)
    }

    /// Shell commands that delete it; running them twice does nothing.
    pub fn undo_script(&self) -> String {
        let (host, _) = self.interfaces();
        format!("ip link delete {host} 2>/dev/null\nip netns delete {} 2>/dev/null\n", self.name)
    }

    fn inside(&self, command: &[&str]) -> Result<String, PacketsError> {
        run("ip", &[&["netns", "exec", self.name.as_str()], command].concat())
    }
}

impl Drop for LossyNetwork {
    fn drop(&mut self) {
        // The pair first: a namespace lives as long as a process in it. Without a pair there is nothing to delete.
        let _ = run("ip", &["link", "delete", &self.interfaces().0]);
        if let Err(error) = run("ip", &["netns", "delete", &self.name]) {
            tracing::warn!(%error, "a network namespace stays behind");
        }
    }
}

fn run(program: &str, arguments: &[&str]) -> Result<String, PacketsError> {
    let command = || format!("{program} {}", arguments.join(" "));
    let output = Command::new(program).args(arguments).stdin(Stdio::null()).output();
    let output = output.map_err(|error| PacketsError::Failed { command: command(), reason: error.to_string() })?;
    if !output.status.success() {
        let reason = String::from_utf8_lossy(&output.stderr).trim().to_string();
        return Err(PacketsError::Failed { command: command(), reason });
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
