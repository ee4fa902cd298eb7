//! Where a monitor is among the daemon's changes, kept in a file from one run to the next.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use flowbus_interfaces::{Cursor, StreamItem};
use tokio::time::Instant;

use crate::error::Error;

/// How old the file becomes. Each replacement of a file costs its file system a write.
const PACE: Duration = Duration::from_secs(1);

/// The file and what belongs into it.
pub(super) struct CursorFile {
    path: PathBuf,
    cursor: Cursor,
    /// What the file has.
    kept: Cursor,
    written: Instant,
}

impl CursorFile {
    /// Reads the file, which need not be there.
    pub(super) fn open(path: &Path) -> Result<Self, Error> {
        let failed = |source| Error::CursorFile { path: path.to_owned(), source };
        let text = match fs::read_to_string(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
            text => text.map_err(failed)?,
        };
        let wrong = |error| failed(io::Error::new(io::ErrorKind::InvalidData, error));
        let cursor: Cursor = text.trim_ascii().parse().map_err(wrong)?;
        Ok(Self { path: path.to_owned(), kept: cursor.clone(), cursor, written: Instant::now() })
    }

    pub(super) fn cursor(&self) -> &Cursor {
        &self.cursor
    }

    /// Takes note of an item that was printed.
    pub(super) fn advance(&mut self, item: &StreamItem<'_>) {
        self.cursor.advance(item);
    }

    /// When the file is to be written; `None` while it has the place.
    pub(super) fn due(&self) -> Option<Instant> {
        (self.cursor != self.kept).then(|| self.written + PACE)
    }

    /// Writes the file, if the place has moved. All up to the place has left this process.
    pub(super) fn write(&mut self) -> Result<(), Error> {
        if self.cursor == self.kept {
            return Ok(());
        }
        let mut new = self.path.clone().into_os_string();
        new.push(".new");
        // Readers and kills find the old file or the new one.
        fs::write(&new, format!("{}\n", self.cursor))
            .and_then(|()| fs::rename(&new, &self.path))
            .map_err(|source| Error::CursorFile { path: self.path.clone(), source })?;
        self.kept = self.cursor.clone();
        self.written = Instant::now();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_place_is_read_as_it_was_kept() {
        let path = std::env::temp_dir().join(format!("flowctl-cursor-{}", std::process::id()));
        let _ = fs::remove_file(&path);
        let mut file = CursorFile::open(&path).unwrap();
        assert!(file.cursor().is_fresh() && file.due().is_none());
        let begin = r#"{"type":"begin","epoch":"00112233445566778899aabbccddeeff","sequence":20}"#;
        file.advance(&StreamItem::parse(begin.as_bytes()).unwrap());
        assert!(file.due().is_some());
        file.write().unwrap();
        assert!(file.due().is_none());
        assert_eq!(CursorFile::open(&path).unwrap().cursor().to_string(), file.cursor().to_string());
        fs::write(&path, "").unwrap();
        assert!(CursorFile::open(&path).unwrap().cursor().is_fresh(), "a file that a crash has left empty");
        fs::write(&path, "s=1;i=2").unwrap();
        let error = CursorFile::open(&path).err().unwrap().to_string();
        assert!(error.contains("flowctl-cursor") && error.contains("is not a cursor"), "{error}");
        fs::remove_file(&path).unwrap();
    }
}
