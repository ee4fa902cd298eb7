//! The lines of a file, compressed or not.

use std::cell::Cell;
use std::fs::File;
use std::io::{self, Read};
use std::rc::Rc;

use flowbus_interfaces::STREAM_LINE_BYTES;
use memchr::memchr;

/// How much of one line is passed over: behind that there is no line, but a file made to be endless.
const PASSED_BYTES: usize = 64 * STREAM_LINE_BYTES;
/// How much is read at once.
const READ_BYTES: usize = 256 * 1024;

/// What comes next in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Line<'a> {
    /// A line without its end.
    Whole(&'a [u8]),
    /// A line that is too long, and was passed over.
    TooLong,
    /// The file ends in the middle of a line.
    Torn,
}

/// Reads a file line by line.
pub(super) struct Lines {
    source: Box<dyn Read>,
    buffer: Vec<u8>,
    /// How much of the buffer was handed out.
    done: usize,
    /// How much of it was read.
    filled: usize,
}

impl Lines {
    /// Opens a file. What is read of it is added to `bytes`.
    pub(super) fn open(file: File, is_compressed: bool, bytes: Rc<Cell<u64>>) -> io::Result<Self> {
        let counted = Counted { file, bytes };
        let source: Box<dyn Read> =
            if is_compressed { Box::new(zstd::Decoder::new(counted)?) } else { Box::new(counted) };
        Ok(Self::new(source))
    }

    fn new(source: Box<dyn Read>) -> Self {
        Self { source, buffer: Vec::new(), done: 0, filled: 0 }
    }

    /// The next line; `None` at the end.
    pub(super) fn next(&mut self) -> io::Result<Option<Line<'_>>> {
        let mut searched = self.done;
        let mut too_long = false;
        let mut passed = 0;
        loop {
            if let Some(length) = memchr(b'\n', &self.buffer[searched..self.filled]) {
                let line = self.done..searched + length;
                self.done = line.end + 1;
                return Ok(Some(if too_long { Line::TooLong } else { Line::Whole(&self.buffer[line]) }));
            }
            if self.filled - self.done > STREAM_LINE_BYTES {
                too_long = true;
                passed += self.filled - self.done;
                self.done = self.filled;
                if passed > PASSED_BYTES {
                    return Err(io::Error::new(io::ErrorKind::InvalidData, "a line does not end"));
                }
            }
            searched = self.filled - self.done;
            if !self.fill()? {
                let is_torn = too_long || self.filled > self.done;
                self.done = self.filled;
                return Ok(is_torn.then_some(Line::Torn));
            }
        }
    }

    /// Moves what is left to the front and reads more; false at the end.
    fn fill(&mut self) -> io::Result<bool> {
        self.buffer.copy_within(self.done..self.filled, 0);
        self.filled -= self.done;
        self.done = 0;
        if self.buffer.len() < self.filled + READ_BYTES {
            self.buffer.resize(self.filled + READ_BYTES, 0);
        }
        loop {
            match self.source.read(&mut self.buffer[self.filled..]) {
                Ok(length) => {
                    self.filled += length;
                    return Ok(length > 0);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
}

/// A file of which the bytes that were read are counted.
struct Counted {
    file: File,
    bytes: Rc<Cell<u64>>,
}

impl Read for Counted {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.file.read(buffer)?;
        self.bytes.set(self.bytes.get() + length as u64);
        Ok(length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Hands out a few bytes at a time.
    struct Slow(Vec<u8>, usize);

    impl Read for Slow {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let length = self.1.min(buffer.len()).min(self.0.len());
            buffer[..length].copy_from_slice(&self.0[..length]);
            self.0.drain(..length);
            Ok(length)
        }
    }

    fn read(text: Vec<u8>, step: usize) -> Vec<String> {
        let mut lines = Lines::new(Box::new(Slow(text, step)));
        let mut read = Vec::new();
        while let Some(line) = lines.next().unwrap() {
            read.push(match line {
                Line::Whole(line) => String::from_utf8(line[..line.len().min(9)].to_vec()).unwrap(),
                other => format!("{other:?}"),
            });
        }
        read
    }

    #[test]
    fn lines_are_whole_however_they_come() {
        for step in [1, 2, 7, 1000] {
            assert_eq!(read(b"one\n\ntwo\n".to_vec(), step), ["one", "", "two"], "{step}");
            assert_eq!(read(b"one\ntw".to_vec(), step), ["one", "Torn"], "{step}");
            assert!(read(Vec::new(), step).is_empty());
        }
    }

    #[test]
    fn a_line_that_is_too_long_is_passed_over_and_the_next_is_read() {
        let long = |length: usize| [b"a\n".to_vec(), vec![b'x'; length], b"\nb\n".to_vec()].concat();
        assert_eq!(read(long(STREAM_LINE_BYTES - 1), 100_000), ["a", "xxxxxxxxx", "b"]);
        assert_eq!(read(long(3 * STREAM_LINE_BYTES + 5), 100_000), ["a", "TooLong", "b"]);
        assert_eq!(read(vec![b'x'; 2 * STREAM_LINE_BYTES], 100_000), ["Torn"]);
    }

    #[test]
    fn a_line_without_an_end_is_an_error() {
        let mut lines = Lines::new(Box::new(io::repeat(0)));
        assert_eq!(lines.next().unwrap_err().kind(), io::ErrorKind::InvalidData);
    }
}
