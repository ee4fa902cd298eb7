//! The place that the log has come to, read back from its files: the log is its own cursor.

use std::fs::{self, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::path::Path;

use flowbus_interfaces::{
    Cursor, FlowLogBegin, STREAM_LINE_BYTES, StreamItem, flow_log_files, open_flow_log_file,
};

use crate::log;

/// What a file says.
#[derive(Debug)]
struct Place {
    begin: FlowLogBegin,
    /// Behind the last whole line.
    cursor: Cursor,
    /// How many lines there are.
    records: u64,
    /// Up to the end of the last whole line.
    bytes: u64,
    /// The last line is an end.
    has_ended: bool,
}

/// The cursor behind the last line of this epoch. Files of other machines and of earlier boots are of other epochs.
pub(crate) fn newest(directory: &Path, epoch: &str) -> io::Result<Cursor> {
    let mut begins = Vec::new();
    for (_, path) in flow_log_files(directory)? {
        match read_begin(&path) {
            Ok(Some(begin)) if begin.epoch == epoch => begins.push((begin.sequence, path)),
            Ok(_) => {}
            // It never will be readable, and must not end the log.
            Err(error) if is_of_content(&error) => {
                tracing::warn!(%error, path = %path.display(), "a file of the log is damaged, ignoring it: flows in it may be written again");
            }
            Err(error) => return Err(of_file(&path, &error)),
        }
    }
    // The order of the names is that of a clock, which may have been set; that of the sequence is the order.
    let last = begins.iter().map(|&(sequence, _)| sequence).max();
    let mut newest = Cursor::default();
    for (_, path) in begins.iter().filter(|&&(sequence, _)| Some(sequence) == last) {
        let place = read(path).map_err(|error| of_file(path, &error))?;
        newest = place.map_or_else(Cursor::default, |place| place.cursor).max(newest);
    }
    Ok(newest)
}

/// Ends a file whose writer did not: a torn line is cut off. False where it has no whole line, and it is removed.
pub(crate) fn mend(path: &Path) -> io::Result<bool> {
    let Some(place) = read(path)? else {
        fs::remove_file(path)?;
        return Ok(false);
    };
    if !place.has_ended {
        let mut file = open_flow_log_file(path, OpenOptions::new().append(true))?;
        file.set_len(place.bytes)?;
        let prefix = log::prefix(&place.begin.epoch, place.begin.machine.as_deref());
        file.write_all(&log::end_line(&prefix, "interrupted", place.records))?;
        file.sync_data()?;
    }
    Ok(true)
}

/// The lines of a file.
pub(crate) fn open(path: &Path) -> io::Result<Box<dyn BufRead>> {
    let file = open_flow_log_file(path, OpenOptions::new().read(true))?;
    Ok(if path.extension().is_some_and(|extension| extension == "zst") {
        Box::new(BufReader::new(zstd::Decoder::new(file)?))
    } else {
        Box::new(BufReader::with_capacity(256 << 10, file))
    })
}

/// Reads a line, and how long it is: 0 at the end. One that is too long is skipped, and what is kept of it is not whole.
pub(crate) fn next_line(lines: &mut dyn BufRead, line: &mut Vec<u8>) -> io::Result<u64> {
    line.clear();
    let mut length = Read::take(&mut *lines, STREAM_LINE_BYTES as u64).read_until(b'\n', line)?;
    if length == STREAM_LINE_BYTES && !line.ends_with(b"\n") {
        length += lines.skip_until(b'\n')?;
    }
    Ok(length as u64)
}

/// The failure of a decoder or a parser, with which the kernel has nothing to do.
fn is_of_content(error: &io::Error) -> bool {
    error.raw_os_error().is_none()
}

fn of_file(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

/// The first line; `None` where no line is whole.
fn read_begin(path: &Path) -> io::Result<Option<FlowLogBegin>> {
    let mut line = Vec::new();
    next_line(&mut open(path)?, &mut line)?;
    if line.len() < STREAM_LINE_BYTES && !line.ends_with(b"\n") {
        return Ok(None);
    }
    let begin = serde_json::from_slice(&line);
    begin.map(Some).map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "its first line is not a begin"))
}

/// Reads a file up to its last whole line; `None` where it has none.
fn read(path: &Path) -> io::Result<Option<Place>> {
    read_begin(path)?.map(|begin| read_lines(begin, &mut open(path)?)).transpose()
}

fn read_lines(begin: FlowLogBegin, lines: &mut dyn BufRead) -> io::Result<Place> {
    let cursor = begin.from.parse().unwrap_or_default();
    let mut place = Place { begin, cursor, records: 0, bytes: 0, has_ended: false };
    let mut line = Vec::new();
    let (mut records, mut bytes) = (0, 0);
    loop {
        match next_line(lines, &mut line) {
            Ok(0) => break,
            Ok(length) => bytes += length,
            // What cannot be decoded ends there.
            Err(error) if is_of_content(&error) => break,
            Err(error) => return Err(error),
        }
        records += 1;
        // Blocks that a crash has left without their content are not lines: they are cut off where no line follows.
        if let Some(text) = line.strip_suffix(b"\n")
            && let Ok(item) = StreamItem::parse(text)
        {
            place.cursor.advance(&item);
            place.has_ended = matches!(item, StreamItem::End { .. });
            (place.records, place.bytes) = (records, bytes);
        }
    }
    Ok(place)
}

#[cfg(test)]
mod tests {
    use super::*;

    const EPOCH: &str = "00112233445566778899aabbccddeeff";
    const NAME: &str = "flows-20261127T201500.000009Z.ndjson";

    /// A file's lines, of which the first is a begin at this sequence.
    fn lines(sequence: u64, from: &str, rest: &[&str]) -> String {
        let begin = format!(
            r#"{{"machine":"m","epoch":"{EPOCH}","type":"begin","sequence":{sequence},"event_usec":1,"version":"1","host":"h","from":"{from}"}}"#
        );
        let rest = rest.iter().map(|line| format!("{{\"machine\":\"m\",\"epoch\":\"{EPOCH}\",{line}\n"));
        format!("{begin}\n{}", rest.collect::<String>())
    }

    fn directory(name: &str) -> std::path::PathBuf {
        let path = std::env::temp_dir().join(format!("flowbus-place-{name}-{}", std::process::id()));
        fs::create_dir(&path).unwrap();
        path
    }

    #[test]
    fn the_place_is_behind_the_last_whole_line() {
        let directory = directory("last");
        let path = directory.join(NAME);
        let rest = [
            r#""type":"flow","id":5}"#,
            r#""type":"snapshot-end","sequence":20}"#,
            r#""type":"new","sequence":24,"id":11}"#,
        ];
        let text = lines(20, "", &rest);
        for torn in ["", "{\"type\":\"destroy\",\"sequence\":25", "\0\0\0\0", "\0\0\n\0"] {
            fs::write(&path, format!("{text}{torn}")).unwrap();
            assert_eq!(
                newest(&directory, EPOCH).unwrap().to_string(),
                format!("epoch={EPOCH};sequence=24;id=11")
            );
            assert!(mend(&path).unwrap());
            let mended = fs::read_to_string(&path).unwrap();
            let end = mended.strip_prefix(&text).unwrap();
            assert!(
                end.contains(r#""type":"end","reason":"interrupted","#) && end.ends_with("\"records\":4}\n"),
                "{end}"
            );
            assert!(mend(&path).unwrap() && fs::read_to_string(&path).unwrap() == mended, "once");
        }
        assert!(newest(&directory, "another").unwrap().is_fresh());
        for nothing in ["", "{\"epoch", "\0\0"] {
            fs::write(&path, nothing).unwrap();
            assert!(!mend(&path).unwrap() && !path.exists());
        }
        fs::remove_dir(&directory).unwrap();
    }

    #[test]
    fn what_cannot_be_read_is_left_as_it_is() {
        let directory = directory("damaged");
        let path = directory.join(NAME);
        let text = lines(20, "", &[r#""type":"closed","sequence":7,"id":5}"#]);
        for damaged in [format!("\0\0{text}"), "x".repeat(STREAM_LINE_BYTES + 1)] {
            fs::write(&path, &damaged).unwrap();
            assert_eq!(mend(&path).unwrap_err().kind(), io::ErrorKind::InvalidData);
            assert!(newest(&directory, EPOCH).unwrap().is_fresh());
            assert!(fs::read_to_string(&path).unwrap() == damaged);
        }
        // A line that is too long is none, and those behind it are.
        let long = text.replacen('\n', &format!("\n{}\n", "x".repeat(3 * STREAM_LINE_BYTES)), 1);
        fs::write(&path, &long).unwrap();
        assert_eq!(newest(&directory, EPOCH).unwrap().to_string(), format!("epoch={EPOCH};sequence=7;id=0"));
        assert!(mend(&path).unwrap() && fs::read_to_string(&path).unwrap().starts_with(&long));
        // Compressed, it ends where it cannot be decoded.
        let mut half = zstd::encode_all(text.as_bytes(), 3).unwrap();
        half.truncate(half.len() - 2);
        fs::rename(&path, directory.join("aside")).unwrap();
        fs::write(directory.join(format!("{NAME}.zst")), half).unwrap();
        assert!(newest(&directory, EPOCH).is_ok());
        // A link is what the kernel refuses to open.
        std::os::unix::fs::symlink(directory.join("aside"), directory.join(NAME.replace("2026", "2027")))
            .unwrap();
        let error = newest(&directory, EPOCH).unwrap_err();
        assert!(error.to_string().contains("flows-2027"), "{error}");
        fs::remove_dir_all(&directory).unwrap();
    }

    #[test]
    fn a_disk_that_fails_in_the_middle_is_not_the_end_of_a_file() {
        struct Failing;
        impl Read for Failing {
            fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
                Err(rustix::io::Errno::IO.into())
            }
        }
        let text = lines(20, "", &[r#""type":"closed","sequence":7,"id":5}"#]);
        let begin = serde_json::from_str(text.lines().next().unwrap()).unwrap();
        let error = read_lines(begin, &mut BufReader::new(text.as_bytes().chain(Failing))).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(5));
    }

    #[test]
    fn the_newest_file_of_an_epoch_is_that_of_the_highest_sequence() {
        let directory = directory("newest");
        let cursor = format!("epoch={EPOCH};sequence=30;id=7");
        let later = lines(31, &cursor, &[r#""type":"closed","sequence":31,"id":3}"#]);
        fs::write(directory.join(NAME), zstd::encode_all(later.as_bytes(), 3).unwrap()).unwrap();
        fs::rename(directory.join(NAME), directory.join(format!("{NAME}.zst"))).unwrap();
        // The clock was ahead, or another machine wrote it.
        fs::write(directory.join(NAME.replace("2026", "2027")), lines(9, "", &[])).unwrap();
        fs::write(
            directory.join(NAME.replace("2026", "2028")),
            lines(99, "", &[]).replace(EPOCH, &EPOCH.replace('0', "1")),
        )
        .unwrap();
        assert_eq!(newest(&directory, EPOCH).unwrap().to_string(), format!("epoch={EPOCH};sequence=31;id=7"));
        // One that began there too, and has come less far.
        fs::write(directory.join(NAME.replace("2026", "2029")), lines(31, &cursor, &[])).unwrap();
        assert_eq!(newest(&directory, EPOCH).unwrap().to_string(), format!("epoch={EPOCH};sequence=31;id=7"));
        fs::remove_dir_all(&directory).unwrap();
    }
}
