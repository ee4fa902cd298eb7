//! Where a monitor is among the daemon's changes, kept in a file from one run to the next.

use std::fs::{self, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use flowbus_interfaces::{Cursor, StreamItem};
use nix::fcntl::OFlag;
use tokio::time::Instant;

use crate::error::Error;

/// How old the file may become. Each replacement of a file costs its file system a write.
const PACE: Duration = Duration::from_secs(1);
/// The most bytes that are read, more than a cursor has.
const LARGEST: u64 = 256;

/// The file and what belongs into it.
pub(super) struct CursorFile {
    path: PathBuf,
    cursor: Cursor,
    /// The place that the file has.
    kept: Cursor,
    written: Instant,
}

impl CursorFile {
    /// Reads the file, which need not be there.
    pub(super) fn open(path: &Path) -> Result<Self, Error> {
        let failed = |source| Error::CursorFile { path: path.to_owned(), source };
        let text = match read(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
            text => text.map_err(failed)?,
        };
        // Without the text: it may be that of another file, which whoever reads the message may not read.
        let wrong = |_| failed(io::Error::new(io::ErrorKind::InvalidData, "its text is not a cursor"));
        let cursor: Cursor = text.trim_ascii().parse().map_err(wrong)?;
        Ok(Self { path: path.to_owned(), kept: cursor.clone(), cursor, written: Instant::now() })
    }

    pub(super) fn cursor(&self) -> &Cursor {
        &self.cursor
    }

    /// Takes note of an item that was printed. What was before the first stream of an epoch is not asked for, also where that stream is
    /// interrupted.
    pub(super) fn advance(&mut self, item: &StreamItem<'_>) {
        if let StreamItem::Begin { epoch, sequence, newest_id: Some(id), .. } = item
            && !self.cursor.goes_on(epoch, *sequence)
        {
            self.cursor = Cursor::after(epoch, *sequence, *id);
        }
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
        replace(Path::new(&new), format!("{}\n", self.cursor).as_bytes())
            .and_then(|()| fs::rename(&new, &self.path))
            .map_err(|source| Error::CursorFile { path: self.path.clone(), source })?;
        self.kept = self.cursor.clone();
        self.written = Instant::now();
        Ok(())
    }
}

/// The beginning of a file. A link is not followed, and nothing is waited for.
fn read(path: &Path) -> io::Result<String> {
    let flags = OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK;
    let file = OpenOptions::new().read(true).custom_flags(flags.bits()).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a file"));
    }
    let mut text = String::new();
    file.take(LARGEST).read_to_string(&mut text)?;
    Ok(text)
}

/// Writes a file in the place of one that a kill left. Whatever else has its name, such as a link, is removed and not written to.
fn replace(path: &Path, text: &[u8]) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?.write_all(text)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt as _, symlink};

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
        // A stream that says which flows were before it leaves a place behind them, whatever interrupts it.
        let again = begin.replace("0011", "1100").replace("20}", "20,\"newest_id\":9}");
        file.advance(&StreamItem::parse(again.as_bytes()).unwrap());
        assert_eq!(file.cursor().to_string(), "epoch=11002233445566778899aabbccddeeff;sequence=20;id=9");
        file.advance(&StreamItem::parse(again.replace("20", "30").as_bytes()).unwrap());
        assert!(file.cursor().to_string().ends_with(";sequence=20;id=9"), "{}", file.cursor());
        fs::write(&path, "").unwrap();
        assert!(CursorFile::open(&path).unwrap().cursor().is_fresh(), "a file that a crash has left empty");
        fs::write(&path, "s=1;i=2").unwrap();
        let error = CursorFile::open(&path).err().unwrap().to_string();
        assert!(error.contains("flowctl-cursor") && error.contains("not a cursor"), "{error}");
        assert!(!error.contains("s=1"), "{error}");
        fs::remove_file(&path).unwrap();
    }

    #[test]
    fn a_link_in_its_place_is_neither_read_nor_written_through() {
        let path = std::env::temp_dir().join(format!("flowctl-cursor-link-{}", std::process::id()));
        let (new, other) = (path.with_extension("new"), path.with_extension("other"));
        fs::write(&other, "of somebody else").unwrap();
        symlink(&other, &path).unwrap();
        assert!(CursorFile::open(&path).is_err());
        fs::remove_file(&path).unwrap();
        symlink(&other, &new).unwrap();
        let mut file = CursorFile::open(&path).unwrap();
        let begin = r#"{"type":"begin","epoch":"00112233445566778899aabbccddeeff","sequence":20}"#;
        file.advance(&StreamItem::parse(begin.as_bytes()).unwrap());
        file.write().unwrap();
        assert_eq!(fs::read_to_string(&other).unwrap(), "of somebody else");
        let written = fs::symlink_metadata(&path).unwrap();
        assert!(written.is_file() && written.mode() & 0o777 == 0o600);
        fs::remove_file(&path).unwrap();
        fs::remove_file(&other).unwrap();
    }
}
