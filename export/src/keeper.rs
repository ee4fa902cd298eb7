//! What happens to files that are complete: they are compressed, and the oldest go at the bounds.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use flowbus_interfaces::{FlowLogName, flow_log_files, open_flow_log_file};

use crate::config::LogOptions;
use crate::log::now_usec;
use crate::place;

/// The end of the name of a file while it is compressed.
const NEW: &str = ".new";

/// Keeps the log's complete files in order, on a thread of its own while there is something to do.
#[derive(Debug)]
pub(crate) struct Keeper {
    options: LogOptions,
    working: Option<JoinHandle<Kept>>,
    /// There was something to do while the thread was at work.
    is_due: bool,
    kept: Kept,
}

/// What the log is after the files were looked through.
#[derive(Clone, Debug, Default)]
struct Kept {
    /// The bytes of all complete files.
    bytes: u64,
    /// How many were removed at the bounds.
    removed: u64,
    known: Known,
}

/// What is known of closed files that are not compressed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Known {
    /// Those that cannot be completed, which was said.
    failing: BTreeSet<PathBuf>,
    /// Those that have their end, and wait to be compressed.
    waiting: BTreeSet<PathBuf>,
}

impl Known {
    /// Forgets the files that are gone.
    fn retain(&mut self, files: &[(FlowLogName, PathBuf)]) {
        for paths in [&mut self.failing, &mut self.waiting] {
            paths.retain(|path| files.iter().any(|(_, other)| other == path));
        }
    }
}

impl Keeper {
    pub(crate) fn new(options: LogOptions) -> Self {
        Self { options, working: None, is_due: false, kept: Kept::default() }
    }

    /// Looks through the files, all of which but `open` are complete.
    pub(crate) fn look(&mut self, open: &Path) {
        self.is_due = self.working.as_ref().is_some_and(|working| !working.is_finished());
        if self.is_due {
            return;
        }
        self.finish();
        // Listed here and not by the thread, which would take the files that begin while it works for complete ones.
        let files = match flow_log_files(&self.options.directory) {
            Ok(files) => files,
            Err(error) => return tracing::warn!(%error, "the log's files cannot be listed, ignoring"),
        };
        let (options, open) = (self.options.clone(), open.to_owned());
        let known = std::mem::take(&mut self.kept.known);
        let work = move || keep(&options, &open, &files, known);
        match thread::Builder::new().name("keeper".to_owned()).spawn(work) {
            Ok(working) => self.working = Some(working),
            Err(error) => tracing::warn!(%error, "complete files cannot be compressed now, ignoring"),
        }
    }

    /// Looks through the files where that could not be done before, or the open one has grown to what the bound leaves.
    pub(crate) fn check(&mut self, open: &Path, bytes: u64) {
        match &self.working {
            Some(working) if !working.is_finished() => return,
            _ => self.finish(),
        }
        let is_above = self.kept.bytes > 0 && self.kept.bytes + bytes > self.options.maximum_bytes;
        if self.is_due || is_above {
            self.look(open);
        }
    }

    /// How many files were removed at the bounds.
    pub(crate) const fn removed(&self) -> u64 {
        self.kept.removed
    }

    /// Waits for the thread.
    pub(crate) fn finish(&mut self) {
        if let Some(kept) = self.working.take().and_then(|working| working.join().ok()) {
            self.kept = Kept { removed: self.kept.removed + kept.removed, ..kept };
        }
    }
}

fn keep(options: &LogOptions, open: &Path, files: &[(FlowLogName, PathBuf)], mut known: Known) -> Kept {
    remove_leftovers(&options.directory);
    known.retain(files);
    for (name, path) in files.iter().filter(|(name, path)| path != open && !name.is_compressed) {
        match finish(*name, path, options.compress_after(), &mut known.waiting) {
            Ok(()) => drop(known.failing.remove(path)),
            Err(error) if known.failing.insert(path.clone()) => {
                tracing::warn!(%error, path = %path.display(), "a file of the log cannot be completed, leaving it unchanged, retrying with each new file");
            }
            Err(_) => {}
        }
    }
    let kept = bound(options, open, files).unwrap_or_else(|error| {
        tracing::warn!(%error, "the oldest files of the log cannot be removed, ignoring");
        Kept::default()
    });
    Kept { known, ..kept }
}

/// What a kill has left: a file half compressed, and one whose compressed form is there.
fn remove_leftovers(directory: &Path) {
    for entry in directory.read_dir().into_iter().flatten().flatten() {
        let (name, path) = (entry.file_name(), entry.path());
        let Some(name) = name.to_str() else { continue };
        let half = name.strip_suffix(NEW).is_some_and(|name| name.parse::<FlowLogName>().is_ok());
        let twice = name
            .parse::<FlowLogName>()
            .is_ok_and(|name| !name.is_compressed && compressed(name, &path).exists());
        if half || twice {
            let _ = fs::remove_file(path);
        }
    }
}

/// The compressed form of a file.
fn compressed(name: FlowLogName, path: &Path) -> PathBuf {
    path.with_file_name(FlowLogName { is_compressed: true, ..name }.to_string())
}

/// Ends a file where its writer did not, and compresses it once it is old enough.
fn finish(
    name: FlowLogName,
    path: &Path,
    compress_after: Duration,
    waiting: &mut BTreeSet<PathBuf>,
) -> io::Result<()> {
    if !waiting.contains(path) && !place::mend(path)? {
        return Ok(());
    }
    // A clock that was set back leaves a time in the future: the file waits until that has passed.
    if fs::metadata(path)?.modified()?.elapsed().unwrap_or_default() < compress_after {
        waiting.insert(path.to_owned());
        return Ok(());
    }
    waiting.remove(path);
    let closed = compressed(name, path);
    let mut new = closed.clone().into_os_string();
    new.push(NEW);
    let compress = || {
        let target = OpenOptions::new().write(true).create(true).truncate(true).mode(0o640).open(&new)?;
        let mut encoder = zstd::Encoder::new(target, 3)?;
        encoder.include_checksum(true)?;
        io::copy(&mut open_flow_log_file(path, OpenOptions::new().read(true))?, &mut encoder)?;
        encoder.finish()?.sync_data()?;
        fs::rename(&new, &closed)?;
        // After a crash one of the two is there.
        path.parent().map_or(Ok(()), |directory| File::open(directory)?.sync_all())
    };
    compress().inspect_err(|_| drop(fs::remove_file(&new)))?;
    fs::remove_file(path)
}

/// Removes the oldest files until the log is within its bounds; of those that are too old one at a time, as the clock may have jumped.
fn bound(options: &LogOptions, open: &Path, known: &[(FlowLogName, PathBuf)]) -> io::Result<Kept> {
    let mut files = Vec::new();
    let mut bytes = 0;
    for (name, path) in known {
        // Each has one form or the other by now, unless nothing was in it.
        for path in [path.clone(), compressed(*name, path)] {
            match fs::metadata(&path) {
                Ok(metadata) => {
                    bytes += metadata.len();
                    files.push((*name, path, metadata.len()));
                    break;
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
    }
    let now = now_usec();
    let age = u64::try_from(options.maximum_age().as_micros()).unwrap_or(u64::MAX);
    let oldest = now.saturating_sub(age);
    // All of a file is older than the begin of the next.
    let old = match files.as_slice() {
        [(name, ..), (next, ..), ..] if next.begin_usec < oldest => Some(*name),
        _ => None,
    };
    // A name in the future is that of a clock which was ahead, and would stay to the last.
    files.sort_by_key(|(name, ..)| name.begin_usec <= now);
    let mut removed = 0;
    for (name, path, length) in &files {
        if path == open || bytes <= options.maximum_bytes && Some(*name) != old {
            continue;
        }
        fs::remove_file(path)?;
        bytes -= length;
        removed += 1;
        tracing::info!(path = %path.display(), bytes = length, "the oldest file of the log was removed at its bound");
    }
    let open = fs::metadata(open).map_or(0, |metadata| metadata.len());
    Ok(Kept { bytes: bytes.saturating_sub(open), removed, ..Kept::default() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listed(directory: &Path) -> Vec<(FlowLogName, PathBuf)> {
        flow_log_files(directory).unwrap()
    }

    #[test]
    fn the_oldest_files_go_at_the_bounds_and_no_other_file() {
        let directory = std::env::temp_dir().join(format!("flowbus-keeper-{}", std::process::id()));
        fs::create_dir(&directory).unwrap();
        let name = |begin_usec| FlowLogName { begin_usec, is_compressed: true }.to_string();
        let now = now_usec();
        let old = now - 3_600_000_000;
        for begin in [old - 2, old - 1, old, now - 2, now - 1, now] {
            fs::write(directory.join(name(begin)), [0; 100]).unwrap();
        }
        fs::write(directory.join("notes"), [0; 1000]).unwrap();
        let config = |text: &str| {
            let path = directory.join("x.toml");
            fs::write(&path, format!("[log]\ndirectory = {directory:?}\n{text}")).unwrap();
            crate::config::Config::load(&path).unwrap().log.unwrap()
        };
        let open = directory.join(name(now));
        // The last old one lasted until what is not old began.
        for (removed, bytes) in [(1, 400), (1, 300), (0, 300)] {
            let kept = bound(&config("maximum_age_sec = 1800"), &open, &listed(&directory)).unwrap();
            assert_eq!((kept.removed, kept.bytes), (removed, bytes));
        }
        let mut options = config("");
        options.maximum_bytes = 300;
        assert_eq!(bound(&options, &open, &listed(&directory)).unwrap().removed, 1);
        options.maximum_bytes = 0;
        assert_eq!(
            bound(&options, &open, &listed(&directory)).unwrap().removed,
            2,
            "not the one that is written"
        );
        assert!(open.exists() && directory.join("notes").exists());
        // The clock was set back.
        let begins = [now - 1, now + 3_600_000_000, now + 3_600_000_001];
        begins.iter().for_each(|begin| fs::write(directory.join(name(*begin)), [0; 100]).unwrap());
        options.maximum_bytes = 300;
        assert_eq!(bound(&options, &open, &listed(&directory)).unwrap().removed, 1);
        assert!(begins.map(|begin| directory.join(name(begin)).exists()) == [true, false, true]);
        options.maximum_bytes = 0;
        assert_eq!(bound(&options, &open, &listed(&directory)).unwrap().removed, 2);
        fs::remove_dir_all(&directory).unwrap();
    }

    #[test]
    fn a_file_that_cannot_be_completed_is_left_and_the_others_are_compressed() {
        let directory = std::env::temp_dir().join(format!("flowbus-completed-{}", std::process::id()));
        fs::create_dir(&directory).unwrap();
        let path = directory.join("x.toml");
        fs::write(&path, format!("[log]\ndirectory = {directory:?}\n")).unwrap();
        let options = crate::config::Config::load(&path).unwrap().log.unwrap();
        let now = now_usec();
        let name = |begin_usec| directory.join(FlowLogName { begin_usec, is_compressed: false }.to_string());
        let [damaged, whole, open] = [name(now - 2), name(now - 1), name(now)];
        fs::write(&damaged, "\0\n{}\n").unwrap();
        let begin =
            r#"{"epoch":"e","type":"begin","sequence":1,"event_usec":1,"version":"1","host":"h","from":""}"#;
        fs::write(&whole, format!("{begin}\n")).unwrap();
        fs::write(&open, "").unwrap();
        let files = listed(&directory);
        // The next one begins while the thread works.
        let next = name(now + 1);
        fs::write(&next, format!("{begin}\n")).unwrap();
        let mut full = options.clone();
        full.maximum_bytes = 0;
        let kept = keep(&full, &open, &files, Known::default());
        assert!(fs::read_to_string(&next).unwrap() == format!("{begin}\n") && !whole.exists());
        fs::remove_file(&next).unwrap();
        fs::write(&whole, format!("{begin}\n")).unwrap();
        fs::write(&damaged, "\0\n{}\n").unwrap();
        let kept = keep(&options, &open, &files, kept.known);
        assert_eq!(kept.known.failing, BTreeSet::from([damaged.clone()]));
        assert_eq!(fs::read_to_string(&damaged).unwrap(), "\0\n{}\n");
        assert!(!whole.exists() && whole.with_extension("ndjson.zst").exists() && open.exists());
        fs::remove_file(&damaged).unwrap();
        assert_eq!(keep(&options, &open, &listed(&directory), kept.known).known, Known::default());
        fs::remove_dir_all(&directory).unwrap();
    }

    #[test]
    fn a_file_that_is_to_stay_gets_its_end_at_once_and_is_compressed_when_it_is_old() {
        let directory = std::env::temp_dir().join(format!("flowbus-waiting-{}", std::process::id()));
        fs::create_dir(&directory).unwrap();
        let config = directory.join("x.toml");
        fs::write(&config, format!("[log]\ndirectory = {directory:?}\ncompress_after_sec = 600\n")).unwrap();
        let options = crate::config::Config::load(&config).unwrap().log.unwrap();
        let now = now_usec();
        let name = |begin_usec| directory.join(FlowLogName { begin_usec, is_compressed: false }.to_string());
        let [path, open] = [name(now - 1), name(now)];
        let begin =
            r#"{"epoch":"e","type":"begin","sequence":1,"event_usec":1,"version":"1","host":"h","from":""}"#;
        fs::write(&path, format!("{begin}\n{{\"epoch\":\"e\",\"ty")).unwrap();
        fs::write(&open, "").unwrap();
        let ages = [0, 599, 601].map(Duration::from_secs);
        let mut known = Known::default();
        for (age, waits) in ages.into_iter().zip([true, true, false]) {
            if known.waiting.contains(&path) {
                let file = File::open(&path).unwrap();
                file.set_modified(std::time::SystemTime::now() - age).unwrap();
            }
            known = keep(&options, &open, &listed(&directory), known).known;
            assert_eq!(known.waiting.contains(&path), waits, "{age:?}");
            assert_eq!(
                (path.exists(), path.with_extension("ndjson.zst").exists()),
                (waits, !waits),
                "{age:?}"
            );
            if waits {
                assert!(fs::read_to_string(&path).unwrap().contains("\"reason\":\"interrupted\""));
            }
        }
        fs::remove_dir_all(&directory).unwrap();
    }
}
