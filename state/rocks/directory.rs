//! The directory of a region's store: private, ours, and never reached through a link.

use crate::error::io;
use std::fs::{self, DirBuilder, Permissions};
use std::io::ErrorKind;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use streamshield_core::ids::RegionId;
use streamshield_core::ports::state::StateError;

const PRIVATE: u32 = 0o700;

/// What was found in a store's directory.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// Nothing of worth: no directory, an empty one, or a store whose creation was interrupted.
    Nothing,
    Store,
    /// Data without the file that says what is valid.
    Remains,
}

fn failed(what: &str, path: &Path, error: &std::io::Error) -> StateError {
    io(format!("{what} {}: {error}", path.display()))
}

/// Beside the stores of the regions, whose names are numbers.
pub(super) fn scratch_path(state_dir: &Path) -> PathBuf {
    state_dir.join("scratch")
}

/// `<state_dir>/<stage>-<partition>`: numbers only, so no name leads elsewhere.
pub(super) fn region_path(state_dir: &Path, region: RegionId) -> PathBuf {
    state_dir.join(format!("{}-{}", region.stage.0, region.partition))
}

/// Creates a private directory, or takes over one that is there.
pub(super) fn create(path: &Path) -> Result<(), StateError> {
    refuse_link(path)?;
    let created = DirBuilder::new().recursive(true).mode(PRIVATE).create(path);
    created.map_err(|error| failed("cannot create the state directory", path, &error))
}

/// Closes a store's directory to other users.
pub(super) fn make_private(path: &Path) -> Result<(), StateError> {
    fs::set_permissions(path, Permissions::from_mode(PRIVATE)).map_err(|error| failed("cannot restrict the permissions of", path, &error))
}

pub(super) fn refuse_link(path: &Path) -> Result<(), StateError> {
    match fs::symlink_metadata(path) {
        Ok(found) if found.is_symlink() => Err(io(format!("{} is a symbolic link: refused", path.display()))),
        Ok(found) if !found.is_dir() => Err(io(format!("{} is not a directory", path.display()))),
        Ok(_) => Ok(()),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(error) => Err(failed("cannot examine", path, &error)),
    }
}

/// Looks at a store's directory before RocksDB does: without its `CURRENT` it would quietly start an empty store
/// among the old files.
pub(super) fn inspect(path: &Path) -> Result<Found, StateError> {
    refuse_link(path)?;
    let entries = match fs::read_dir(path) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Found::Nothing),
        Err(error) => return Err(failed("cannot list", path, &error)),
    };
    let (mut has_current, mut has_tables) = (false, false);
    for entry in entries {
        let entry = entry.map_err(|error| failed("cannot list", path, &error))?;
        let kind = entry.file_type().map_err(|error| failed("cannot examine", &entry.path(), &error))?;
        if kind.is_symlink() {
            return Err(io(format!("{} is a symbolic link: refused", entry.path().display())));
        }
        let name = entry.file_name();
        has_current |= name == "CURRENT";
        has_tables |= Path::new(&name).extension().is_some_and(|extension| extension == "sst");
    }
    Ok(match (has_current, has_tables) {
        (true, _) => Found::Store,
        (false, true) => Found::Remains,
        (false, false) => Found::Nothing,
    })
}

/// Deletes a store's directory; links in it are deleted, not followed.
pub(super) fn delete(path: &Path) -> Result<(), StateError> {
    refuse_link(path)?;
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(failed("cannot delete", path, &error)),
        _ => Ok(()),
    }
}

/// Moves `from` to `to`, in place of what is there. A crash on the way leaves the old, nothing, or the new, never a mixture: `scratch` lies on the
/// file system of `to` and takes what is unfinished or of no use any more.
pub(super) fn replace(to: &Path, from: &Path, scratch: &Path) -> Result<(), StateError> {
    refuse_link(to)?;
    let name = to.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let (incoming, outgoing) = (scratch.join(format!("{name}.incoming")), scratch.join(format!("{name}.outgoing")));
    delete(&incoming)?;
    delete(&outgoing)?;
    match fs::rename(from, &incoming) {
        Err(error) if error.kind() == ErrorKind::CrossesDevices => {
            copy_files(from, &incoming)?;
            delete(from)?;
        }
        moved => moved.map_err(|error| failed("cannot move", from, &error))?,
    }
    match fs::rename(to, &outgoing) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(failed("cannot move away", to, &error)),
        _ => {}
    }
    fs::rename(&incoming, to).map_err(|error| failed("cannot create", to, &error))?;
    delete(&outgoing)
}

/// Copies a store's files, which has no folders in it.
fn copy_files(from: &Path, to: &Path) -> Result<(), StateError> {
    create(to)?;
    for entry in fs::read_dir(from).map_err(|error| failed("cannot list", from, &error))? {
        let entry = entry.map_err(|error| failed("cannot list", from, &error))?;
        fs::copy(entry.path(), to.join(entry.file_name())).map_err(|error| failed("cannot copy", &entry.path(), &error))?;
    }
    Ok(())
}
