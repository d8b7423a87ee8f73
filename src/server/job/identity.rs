//! Who a worker is: a name that outlives its process.
//!
//! A worker that comes back under its name replaces the one that died at once, and finds its own state folder. So the name must be the same at each start and
//! belong to one process only: in Kubernetes it is the pod's, under the supervisor the child's number.
//!
//! ```text
//! --worker  →  STREAMSHIELD_WORKER  →  POD_NAME  →  HOSTNAME  →  the kernel's host name
//! ```

use super::checkpoint::FALLBACK_FOLDER;

pub const WORKER_VARIABLE: &str = "STREAMSHIELD_WORKER";
pub const RACK_VARIABLE: &str = "STREAMSHIELD_RACK";
pub const EXPECTED_VARIABLE: &str = "STREAMSHIELD_EXPECTED_WORKERS";

/// A worker that runs its job alone, or the first of several on one machine.
const ALONE: &str = "0";

const NAME_BYTES_MAX: usize = 63;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Stable over restarts, and nobody else's.
    pub name: String,
    /// Where it stands: followers are put elsewhere.
    pub rack: Option<String>,
    /// Started by `run` for the whole job: its state folder is the job's own.
    pub is_alone: bool,
    /// How many workers the job is started with, this one included; 0: nobody has said.
    pub workers_expected: u32,
}

impl Identity {
    /// `streamshield run` without `--workers`.
    pub fn alone() -> Identity {
        Identity { name: ALONE.into(), rack: rack_from_environment(), is_alone: true, workers_expected: 1 }
    }

    /// `streamshield worker`: what the command line says, else what the environment does. Err says what is wrong.
    pub fn of_worker(name: Option<&str>, rack: Option<&str>, workers_expected: u32) -> Result<Identity, String> {
        let name = match name {
            Some(name) => name.to_string(),
            None => name_from_environment(&|variable| std::env::var(variable).ok()).ok_or("this machine has no name")?,
        };
        check_name(&name)?;
        let rack = rack.map(str::to_string).filter(|rack| !rack.is_empty());
        Ok(Identity { name, rack, is_alone: false, workers_expected })
    }
}

fn rack_from_environment() -> Option<String> {
    std::env::var(RACK_VARIABLE).ok().filter(|rack| !rack.is_empty())
}

fn name_from_environment(get: &dyn Fn(&str) -> Option<String>) -> Option<String> {
    let given = [WORKER_VARIABLE, "POD_NAME", "HOSTNAME"].into_iter().find_map(|variable| get(variable).filter(|name| !name.is_empty()));
    // Shells do not always export HOSTNAME.
    given.or_else(|| std::fs::read_to_string("/proc/sys/kernel/hostname").ok().map(|name| name.trim().to_string()))
}

/// Whether a text may be the name of a worker: it becomes a folder.
pub fn check_name(name: &str) -> Result<(), String> {
    let wrong = |reason: &str| Err(format!("`{name}` can't be the name of a worker: {reason}"));
    match name.chars().find(|c| !(c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-'))) {
        Some(character) => wrong(&format!("it has `{character}`")),
        None if name.is_empty() => wrong("it is empty"),
        None if name.len() > NAME_BYTES_MAX => wrong("it is longer than 63 characters"),
        None if !name.starts_with(|c: char| c.is_ascii_alphanumeric()) => wrong("it starts with neither a letter nor a digit"),
        None if name == FALLBACK_FOLDER => wrong("the folder of this name is for checkpoints"),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_variable_that_is_set_names_the_worker() {
        let named = |set: &'static [(&'static str, &'static str)]| {
            name_from_environment(&|variable| set.iter().find(|(name, _)| *name == variable).map(|(_, value)| value.to_string()))
        };
        assert_eq!(named(&[("HOSTNAME", "host"), ("POD_NAME", "pod-1")]).as_deref(), Some("pod-1"));
        assert_eq!(named(&[("POD_NAME", "pod-1"), (WORKER_VARIABLE, "w")]).as_deref(), Some("w"));
        assert_eq!(named(&[(WORKER_VARIABLE, ""), ("HOSTNAME", "host")]).as_deref(), Some("host"));
        assert!(named(&[]).is_some_and(|name| !name.is_empty()));
    }

    #[test]
    fn a_name_that_would_lead_elsewhere_is_refused() {
        for name in ["orders-2", "node.rack_1", "0"] {
            assert_eq!(check_name(name), Ok(()), "{name}");
        }
        for name in ["", "..", "a/b", ".hidden", "checkpoints", &"x".repeat(64), "ä"] {
            assert!(check_name(name).is_err(), "{name}");
        }
    }
}
