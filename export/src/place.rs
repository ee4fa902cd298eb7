//! The place that the log has come to, read back from its files: the log is its own cursor.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, Write};
use std::path::Path;

use flowbus_interfaces::{Cursor, FlowLogBegin, StreamItem, flow_log_files};

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
    let mut newest = None;
    for (name, path) in flow_log_files(directory)? {
        // The order of the names is that of a clock, which may have been set; that of the sequence is the order.
        if let Some(begin) = read_begin(&path).filter(|begin| begin.epoch == epoch) {
            newest = newest.max(Some((begin.sequence, name, path)));
        }
    }
    Ok(newest.and_then(|(.., path)| read(&path)).map(|place| place.cursor).unwrap_or_default())
}

/// Ends a file whose writer did not: a torn line is cut off. False where nothing is left of it, and it is removed.
pub(crate) fn mend(path: &Path) -> io::Result<bool> {
    let Some(place) = read(path) else {
        fs::remove_file(path)?;
        return Ok(false);
    };
    if !place.has_ended {
        let mut file = OpenOptions::new().append(true).open(path)?;
        file.set_len(place.bytes)?;
        let prefix = log::prefix(&place.begin.epoch, place.begin.machine.as_deref());
        file.write_all(&log::end_line(&prefix, "interrupted", place.records))?;
        file.sync_data()?;
    }
    Ok(true)
}

/// The lines of a file.
pub(crate) fn open(path: &Path) -> io::Result<Box<dyn BufRead>> {
    let file = File::open(path)?;
    Ok(if path.extension().is_some_and(|extension| extension == "zst") {
        Box::new(BufReader::new(zstd::Decoder::new(file)?))
    } else {
        Box::new(BufReader::with_capacity(256 << 10, file))
    })
}

fn read_begin(path: &Path) -> Option<FlowLogBegin> {
    let mut line = Vec::new();
    open(path).ok()?.read_until(b'\n', &mut line).ok()?;
    serde_json::from_slice(line.strip_suffix(b"\n")?).ok()
}

/// Reads a file up to its last whole line; `None` where it has no first one.
fn read(path: &Path) -> Option<Place> {
    let begin = read_begin(path)?;
    let cursor = begin.from.parse().unwrap_or_default();
    let mut place = Place { begin, cursor, records: 0, bytes: 0, has_ended: false };
    let (mut lines, mut line) = (open(path).ok()?, Vec::new());
    let (mut records, mut bytes) = (0, 0);
    // What cannot be read on ends there.
    while lines.read_until(b'\n', &mut line).is_ok() {
        let Some(text) = line.strip_suffix(b"\n") else { break };
        records += 1;
        bytes += line.len() as u64;
        // Blocks that a crash has left without their content are not lines: they are cut off where no line follows.
        if let Ok(item) = StreamItem::parse(text) {
            place.cursor.advance(&item);
            place.has_ended = matches!(item, StreamItem::End { .. });
            (place.records, place.bytes) = (records, bytes);
        }
        line.clear();
    }
    Some(place)
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
        fs::write(&path, "{\"epoch").unwrap();
        assert!(!mend(&path).unwrap() && !path.exists());
        fs::remove_dir(&directory).unwrap();
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
        fs::remove_dir_all(&directory).unwrap();
    }
}
