//! Where the program, the scripts that start services, and the jars of Kafka are.

use crate::api::FaultError;
use anyhow::{Context, Result};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The program under test: `STREAMSHIELD_BIN`, this program itself, or the one beside this test.
pub fn binary() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("STREAMSHIELD_BIN") {
        return Ok(program_path(path.into()));
    }
    let own = std::env::current_exe()?;
    if own.file_name().is_some_and(|name| name == "streamshield") {
        return Ok(own);
    }
    let mut folder = own;
    folder.pop();
    if folder.ends_with("deps") {
        folder.pop();
    }
    let path = folder.join("streamshield");
    anyhow::ensure!(path.exists(), "{} is not there: `make build` makes it, or set STREAMSHIELD_BIN", path.display());
    Ok(path)
}

/// A program as commands find it that are started in another folder: a path begins here. A mere name does not, it is looked for in `PATH`.
pub fn program_path(program: PathBuf) -> PathBuf {
    if program.components().count() < 2 {
        return program;
    }
    // Without a folder to begin in nothing is found anyhow.
    std::path::absolute(&program).unwrap_or(program)
}

/// The project's folder `scripts`: `STREAMSHIELD_SCRIPTS`, else that of the clone in which this runs or was built.
pub(crate) fn scripts() -> Result<PathBuf, FaultError> {
    let is_it = |folder: &Path| folder.join("kafka.sh").exists();
    if let Some(folder) = std::env::var_os("STREAMSHIELD_SCRIPTS") {
        return Ok(folder.into());
    }
    let here = std::env::current_dir().unwrap_or_default();
    let built = Path::new(env!("CARGO_MANIFEST_DIR"));
    let found = here.ancestors().chain(built.ancestors()).map(|folder| folder.join("scripts")).find(|folder| is_it(folder));
    found.ok_or_else(|| {
        FaultError::NotPossibleHere(
            "the scripts that fetch and start services are not found: run this in a clone of the project, or set STREAMSHIELD_SCRIPTS"
                .into(),
        )
    })
}

/// Runs a script that ends by itself, and returns what it printed.
pub(crate) fn run(script: &Path, arguments: &[&str], environment: &[(&str, String)]) -> Result<String> {
    let mut command = Command::new(script);
    command.args(arguments).envs(environment.iter().map(|(key, value)| (*key, value))).stdin(Stdio::null());
    let output = command.output().with_context(|| script.display().to_string())?;
    let error = String::from_utf8_lossy(&output.stderr);
    anyhow::ensure!(output.status.success(), "{} {}: {}\n{error}", script.display(), arguments.join(" "), output.status);
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_string())
}

/// The same for a program of ours: what it says is for people, in plain text.
pub(crate) fn run_program(program: &Path, arguments: &[&str]) -> Result<String> {
    run(program, arguments, &[("NO_COLOR", "1".into())])
}

/// The jars of Kafka: `STREAMSHIELD_KAFKA_JARS`, else the user's cache, into which they are fetched once.
pub(crate) fn kafka_jars() -> Result<PathBuf, FaultError> {
    if let Some(folder) = std::env::var_os("STREAMSHIELD_KAFKA_JARS") {
        return Ok(folder.into());
    }
    if Command::new("java").arg("-version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_err() {
        return Err(FaultError::NotPossibleHere(
            "a real Kafka needs Java, and there is none: scripts/bootstrap.sh kafka installs it".into(),
        ));
    }
    Ok(run(&scripts()?.join("jars.sh"), &["kafka"], &[])?.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_to_a_program_begins_here_and_a_name_is_looked_for() {
        let here = std::env::current_dir().expect("a folder");
        for relative in ["target/new/streamshield", "./streamshield"] {
            let path = program_path(relative.into());
            assert!(path.is_absolute() && path == here.join(relative), "{}", path.display());
        }
        for kept in ["streamshield", "/usr/local/bin/streamshield"] {
            assert_eq!(program_path(kept.into()), Path::new(kept));
        }
    }
}
