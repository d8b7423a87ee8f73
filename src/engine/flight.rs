//! What a worker's threads are at, on its disk: should the process die without a word, the next one tells the others of it.
//!
//! A region that takes the process down (an abort, a full stack, the kernel for want of memory) can't say that it failed. So a thread notes region
//! and epoch before it lets a region compute, and nothing once that has returned:
//!
//! ```text
//! <state_dir>/slot-0.at       s1/0 17 - 9f86d081884c7d65   at work on epoch 17 of s1/0, which is no source, in this boot of the machine
//! <state_dir>/nursery-0.at                                 blank: brings nothing up that this worker is to own
//! <state_dir>/commit-0.at                                  blank: encodes no rows for an exchange
//! ```
//! What a start finds there is in its `joined`, and is forgotten then: a death counts once. What it means is said by `apply`, in `core`. The notes have
//! to outlive the process and not the machine, whose death is no evidence against a region: nothing is synced, and what was noted before a reboot is not
//! read.
//!
//! Not noted is what is only followed: its owner gets on with it. Nor is the opening of a region's store (there is no epoch yet that would tell whether the
//! region got on between two deaths), the flush of its state, and the reading of a source, which parses as it reads: who dies there names only what other
//! threads were at, if anything.
//!
//! On failure: a note that can't be written is missing. A thread waits for its own note as for any write, so a disk that hangs holds it up; the
//! end of the worker does not wait for such a thread.

use crate::crash_points::parse_region;
use parking_lot::Mutex;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use streamshield_core::cluster::DiedIn;
use streamshield_core::ids::Epoch;
use xxhash_rust::xxh3::xxh3_64;

const EXTENSION: &str = "at";
/// All notes are as long, so a short one leaves nothing of a longer one behind it.
const NOTE_BYTES: usize = 96;
const BOOT_ID_FILE: &str = "/proc/sys/kernel/random/boot_id";
/// How long the end of a worker waits for a thread that is just writing a note: its disk may hang.
const CLOSE_WAIT_MAX: Duration = Duration::from_millis(100);

/// None: nothing is noted, as in a simulation, or after the end.
type NoteFile = Arc<Mutex<Option<File>>>;

/// The notes of one life of a worker.
pub struct FlightRecorder {
    folder: PathBuf,
    boot: u64,
    died_in: Vec<DiedIn>,
    files: Mutex<Vec<(PathBuf, NoteFile)>>,
}

impl FlightRecorder {
    /// Reads what the last process has left in the worker's folder.
    pub fn open(folder: &Path) -> FlightRecorder {
        let boot = xxh3_64(&std::fs::read(BOOT_ID_FILE).unwrap_or_default());
        FlightRecorder::of_boot(folder, boot)
    }

    fn of_boot(folder: &Path, boot: u64) -> FlightRecorder {
        let noted = |path: PathBuf| read_note(&std::fs::read_to_string(path).ok()?, boot);
        let died_in = note_paths(folder).into_iter().filter_map(noted).collect();
        FlightRecorder { folder: folder.to_path_buf(), boot, died_in, files: Mutex::default() }
    }

    /// Where the last process was at work when it ended without a word.
    pub fn died_in(&self) -> &[DiedIn] {
        &self.died_in
    }

    /// Deletes what the last process has left, before it is told: nobody is to tell it once more.
    pub(crate) fn forget(&self) {
        note_paths(&self.folder).iter().for_each(|path| delete(path));
    }

    /// The notes of one thread.
    pub(crate) fn notes(&self, thread: &str) -> Notes {
        let path = self.folder.join(format!("{thread}.{EXTENSION}"));
        let opened = OpenOptions::new().create(true).truncate(true).write(true).open(&path);
        if let Err(error) = &opened {
            tracing::debug!(file = %path.display(), %error, "nothing can be noted");
        }
        let file = Arc::new(Mutex::new(opened.ok()));
        self.files.lock().push((path, file.clone()));
        Notes { file, boot: self.boot, noted: None }
    }

    /// The worker has ended in order, or can tell itself why not: no note of this life is left. A thread that is late notes nothing any more.
    pub fn close(&self) {
        for (path, file) in self.files.lock().drain(..) {
            let free = file.try_lock_for(CLOSE_WAIT_MAX);
            if let Some(file) = free.and_then(|mut file| file.take()) {
                // One that can't be deleted says nothing.
                write_note(&file, None, self.boot);
                delete(&path);
            }
        }
    }
}

/// What one thread is at.
#[derive(Default)]
pub struct Notes {
    file: NoteFile,
    boot: u64,
    noted: Option<DiedIn>,
}

impl Notes {
    /// From now on at work there.
    pub fn at(&mut self, place: DiedIn) {
        if self.noted.replace(place) != Some(place) {
            self.write();
        }
    }

    /// From now on at work on no region.
    pub fn nothing(&mut self) {
        if self.noted.take().is_some() {
            self.write();
        }
    }

    fn write(&self) {
        if let Some(file) = &*self.file.lock() {
            write_note(file, self.noted, self.boot);
        }
    }
}

fn delete(path: &Path) {
    if let Err(error) = std::fs::remove_file(path) {
        tracing::debug!(file = %path.display(), %error, "could not delete a note");
    }
}

fn write_note(file: &File, note: Option<DiedIn>, boot: u64) {
    let mut bytes = [b' '; NOTE_BYTES];
    if let Some(DiedIn { region, epoch, position }) = note {
        let position = position.map_or("-".to_string(), |position| position.to_string());
        let mut rest = &mut bytes[..];
        let _ = write!(rest, "{region} {epoch} {position} {boot:016x}");
    }
    if let Err(error) = file.write_all_at(&bytes, 0) {
        tracing::debug!(%error, "could not note what is worked on");
        // What stands there is not true any more.
        let _ = file.set_len(0);
    }
}

fn read_note(text: &str, boot: u64) -> Option<DiedIn> {
    let words: Vec<&str> = text.split_whitespace().collect();
    let [region, epoch, position, noted_boot] = words[..] else { return None };
    let is_of_this_boot = u64::from_str_radix(noted_boot, 16).ok()? == boot;
    let position = if position == "-" { None } else { Some(position.parse().ok()?) };
    let place = DiedIn { region: parse_region(region)?, epoch: Epoch(epoch.parse().ok()?), position };
    is_of_this_boot.then_some(place)
}

fn note_paths(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    let mut paths: Vec<PathBuf> = entries.filter(|path| path.extension().is_some_and(|extension| extension == EXTENSION)).collect();
    paths.sort();
    paths
}

#[cfg(test)]
mod tests {
    use super::*;
    use streamshield_core::ids::{RegionId, StageId};

    const BOOT: u64 = 7;

    const LONGEST: DiedIn =
        DiedIn { region: RegionId { stage: StageId(u32::MAX), partition: u32::MAX }, epoch: Epoch(u64::MAX), position: Some(i64::MIN) };

    fn place(partition: u32, epoch: u64) -> DiedIn {
        DiedIn { region: RegionId { stage: StageId(1), partition }, epoch: Epoch(epoch), position: None }
    }

    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Folder {
            let path = std::env::temp_dir().join(format!("streamshield-flight-{name}-{}", std::process::id()));
            std::fs::create_dir_all(&path).expect("a folder");
            Folder(path)
        }

        fn found(&self) -> Vec<DiedIn> {
            FlightRecorder::of_boot(&self.0, BOOT).died_in().to_vec()
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn the_next_process_finds_what_each_thread_was_at() {
        let folder = Folder::new("threads");
        let recorder = FlightRecorder::of_boot(&folder.0, BOOT);
        let (mut slot, mut nursery, mut other) = (recorder.notes("slot-0"), recorder.notes("nursery-0"), recorder.notes("slot-1"));
        slot.at(LONGEST);
        slot.at(place(0, 17));
        nursery.at(place(2, 5));
        other.at(place(1, 3));
        other.nothing();
        assert_eq!(folder.found(), [place(2, 5), place(0, 17)]);
        slot.at(place(0, 18));
        assert_eq!(folder.found(), [place(2, 5), place(0, 18)]);
        nursery.nothing();
        slot.nothing();
        assert!(folder.found().is_empty(), "{:?}", folder.found());
    }

    #[test]
    fn the_longest_note_is_read_whole() {
        let folder = Folder::new("longest");
        FlightRecorder::of_boot(&folder.0, u64::MAX).notes("slot-0").at(LONGEST);
        assert_eq!(FlightRecorder::of_boot(&folder.0, u64::MAX).died_in(), [LONGEST]);
    }

    #[test]
    fn an_end_that_can_be_told_leaves_nothing_and_a_thread_that_is_late_adds_nothing() {
        let folder = Folder::new("closed");
        let recorder = FlightRecorder::of_boot(&folder.0, BOOT);
        let mut slot = recorder.notes("slot-0");
        slot.at(place(0, 17));
        recorder.close();
        slot.at(place(0, 18));
        assert!(folder.found().is_empty(), "{:?}", folder.found());
        assert_eq!(note_paths(&folder.0), Vec::<PathBuf>::new());
    }

    #[test]
    fn a_thread_that_hangs_in_its_note_does_not_hold_up_the_end() {
        let folder = Folder::new("hangs");
        let recorder = FlightRecorder::of_boot(&folder.0, BOOT);
        let (mut slot, mut other) = (recorder.notes("slot-0"), recorder.notes("slot-1"));
        slot.at(place(0, 17));
        other.at(place(1, 3));
        let writing = slot.file.lock();
        recorder.close();
        drop(writing);
        assert_eq!(folder.found(), [place(0, 17)]);
    }

    #[test]
    fn what_was_told_is_not_found_again() {
        let folder = Folder::new("told");
        // Of a life with more slots.
        FlightRecorder::of_boot(&folder.0, BOOT).notes("slot-3").at(place(0, 17));
        let recorder = FlightRecorder::of_boot(&folder.0, BOOT);
        recorder.forget();
        assert_eq!((recorder.died_in(), folder.found().len()), (&[place(0, 17)][..], 0));
    }

    #[test]
    fn garbage_and_what_was_noted_before_a_reboot_are_not_read() {
        let folder = Folder::new("garbage");
        FlightRecorder::of_boot(&folder.0, BOOT + 1).notes("slot-0").at(place(0, 17));
        let garbage: [&[u8]; 7] = [b"", b"this is no state", b"s1/0 17 -", b"s1/0 x - 7", b"s1/0 17 x 7", b"s1/0 17 - 7 7", &[0xff; 80]];
        for (number, bytes) in garbage.iter().enumerate() {
            std::fs::write(folder.0.join(format!("slot-{}.at", number + 1)), bytes).expect("written");
        }
        std::fs::create_dir(folder.0.join("folder.at")).expect("made");
        std::fs::write(folder.0.join("slot-9.note"), "s1/0 17 - 0000000000000007").expect("written");
        assert!(folder.found().is_empty(), "{:?}", folder.found());
        assert!(FlightRecorder::of_boot(&folder.0.join("nowhere"), BOOT).died_in().is_empty());
    }

    #[test]
    fn without_a_folder_nothing_is_noted_and_nothing_fails() {
        let mut notes = Notes::default();
        notes.at(place(0, 1));
        notes.nothing();
        FlightRecorder::of_boot(Path::new("/nowhere/at/all"), BOOT).notes("slot-0").at(place(0, 1));
    }
}
