//! Guards that can be switched off, so that a gate can prove that it would notice.
//!
//! A gate that reports no violation is only worth something if it reports one when there is one. So each guard that an
//! invariant rests on has a mutant: the same program with that guard off, and the gate has to fail with it.
//!
//! ```text
//! cargo build --features mutants      the only build that knows them; it says so at its start
//! STREAMSHIELD_MUTANT=skip-fence      the guard that is off; several with commas; an unknown name is refused
//! ```
//! Without the feature [`is_on`] is the constant `false`, and the environment is not read. The list with what should notice
//! each of them is `chaos/MUTANTS.md`.

/// Names the mutants that a process runs with.
pub const VARIABLE: &str = "STREAMSHIELD_MUTANT";

/// One guard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mutant {
    pub name: &'static str,
    /// What is broken when it is on.
    pub breaks: &'static str,
    /// The invariants (architecture §11), or checks of a chaos run, of which at least one must be seen violated.
    pub caught_by: &'static [&'static str],
}

/// All of them.
pub const MUTANTS: &[Mutant] = &[
    Mutant { name: "skip-fence", breaks: "who takes over says that it has fenced, and has not", caught_by: &["O-1", "E-1", "E-2"] },
    Mutant { name: "end-as-read", breaks: "what was read so far is taken for the end of a changelog", caught_by: &["O-1", "E-1", "E-2"] },
    Mutant { name: "skip-confirm", breaks: "a new producer emits before its confirmation was read back", caught_by: &["O-1", "E-1"] },
    Mutant {
        name: "emit-before-catch-up",
        breaks: "a region works before its changelog was applied to the end",
        caught_by: &["E-1", "E-2"],
    },
    Mutant {
        name: "apply-before-commit",
        breaks: "a flush reaches the local store before its epoch is committed",
        caught_by: &["E-3", "E-4", "clean_logs"],
    },
    Mutant { name: "ignore-fenced", breaks: "a commit that was fenced counts as done", caught_by: &["E-1", "E-2", "E-3"] },
    Mutant { name: "keep-producer", breaks: "a doubtful commit counts as done, and its producer goes on", caught_by: &["E-3"] },
    Mutant { name: "double-emit", breaks: "an epoch in doubt is written again without asking the log", caught_by: &["E-1", "E-2"] },
    Mutant { name: "digest-not-compared", breaks: "a follower never compares its state with its owner's", caught_by: &["E-4"] },
    Mutant { name: "restore-without-checksum", breaks: "a damaged checkpoint is restored", caught_by: &["K-1", "E-4", "liveness"] },
    Mutant {
        name: "gc-without-epoch-check",
        breaks: "garbage collection asks nobody and deletes what newer manifests name",
        caught_by: &["K-1"],
    },
    Mutant { name: "purge-early", breaks: "changelog and exchange are trimmed before a checkpoint covers them", caught_by: &["K-2"] },
    Mutant { name: "lateness-by-batch", breaks: "a whole batch is judged late by its last watermark", caught_by: &["E-4", "E-5"] },
    Mutant { name: "drop-dead-letter", breaks: "dead letters and late rows are not in the transaction", caught_by: &["E-3"] },
];

/// Whether this guard is off.
#[cfg(not(feature = "mutants"))]
#[inline(always)]
pub const fn is_on(_name: &str) -> bool {
    false
}

#[cfg(feature = "mutants")]
pub use armed::{arm_from_environment, is_on};

#[cfg(feature = "mutants")]
mod armed {
    use super::{MUTANTS, VARIABLE};
    use std::sync::OnceLock;

    static ON: OnceLock<Vec<&'static str>> = OnceLock::new();

    /// Whether this guard is off.
    pub fn is_on(name: &str) -> bool {
        debug_assert!(MUTANTS.iter().any(|mutant| mutant.name == name), "{name} is not in the list");
        // A process that did not arm them, a test for example, is one with all its guards.
        ON.get_or_init(|| parse(&std::env::var(VARIABLE).unwrap_or_default()).unwrap_or_default()).contains(&name)
    }

    /// Reads the variable; which guards are off from here on. A name that is not known is an error, and the process should not go on.
    pub fn arm_from_environment() -> Result<&'static [&'static str], String> {
        let names = parse(&std::env::var(VARIABLE).unwrap_or_default())?;
        Ok(ON.get_or_init(|| names))
    }

    fn parse(text: &str) -> Result<Vec<&'static str>, String> {
        let find = |name: &str| {
            let known = MUTANTS.iter().find(|mutant| mutant.name == name).map(|mutant| mutant.name);
            known.ok_or_else(|| {
                let names: Vec<&str> = MUTANTS.iter().map(|mutant| mutant.name).collect();
                format!("{VARIABLE}={text}: there is no mutant '{name}'; there are {}", names.join(", "))
            })
        };
        text.split(',').map(str::trim).filter(|name| !name.is_empty()).map(find).collect()
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn a_name_that_is_not_known_is_refused_with_those_that_are() {
            assert_eq!(parse(" skip-fence , end-as-read"), Ok(vec!["skip-fence", "end-as-read"]));
            assert_eq!(parse(""), Ok(vec![]));
            assert!(parse("skip-fnce").expect_err("unknown").contains("skip-fence"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_each_is_caught_by_something() {
        for (number, mutant) in MUTANTS.iter().enumerate() {
            assert!(MUTANTS[..number].iter().all(|other| other.name != mutant.name), "{}", mutant.name);
            assert!(!mutant.caught_by.is_empty() && !mutant.breaks.is_empty());
        }
    }

    #[test]
    fn the_list_in_the_folder_chaos_is_this_one() {
        let list = include_str!("../../chaos/MUTANTS.md");
        for mutant in MUTANTS {
            let row = list.lines().find(|line| line.starts_with(&format!("| `{}` |", mutant.name)));
            let row = row.unwrap_or_else(|| panic!("chaos/MUTANTS.md has no row for {}", mutant.name));
            assert!(row.contains(mutant.breaks) && mutant.caught_by.iter().all(|id| row.contains(id)), "{row}");
        }
    }

    #[cfg(not(feature = "mutants"))]
    #[test]
    fn without_the_feature_every_guard_is_on() {
        const { assert!(!is_on("skip-fence")) }
    }
}
