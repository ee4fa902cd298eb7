//! Messages for journald, by its native protocol (systemd.io/JOURNAL_NATIVE_PROTOCOL). A journald that is stuck loses messages, and
//! holds up nobody.

use std::fmt::{Debug, Write as _};
use std::io;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;

const SOCKET: &str = "/run/systemd/journal/socket";

/// Sends each event to journald.
#[derive(Debug)]
pub(crate) struct Journal {
    socket: UnixDatagram,
    path: PathBuf,
    /// `SYSLOG_IDENTIFIER`: the name of the program.
    identifier: String,
    /// Messages that were lost and not reported.
    lost: AtomicU64,
}

impl Journal {
    /// Finds journald; an error where none listens.
    pub(crate) fn open() -> io::Result<Self> {
        Self::at(Path::new(SOCKET))
    }

    fn at(path: &Path) -> io::Result<Self> {
        let socket = UnixDatagram::unbound()?;
        socket.set_nonblocking(true)?;
        // journald discards what is empty.
        match socket.send_to(&[], path) {
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => return Err(error),
            _ => {}
        }
        let program = std::env::args_os().next().map(PathBuf::from);
        let name = program.as_deref().and_then(Path::file_name);
        let identifier = name.map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        Ok(Self { socket, path: path.to_owned(), identifier, lost: AtomicU64::new(0) })
    }

    /// Sends an entry; false where it is lost.
    fn send(&self, entry: &Entry) -> bool {
        self.socket.send_to(&entry.0, &self.path).is_ok()
    }

    fn entry(&self, level: Level, target: &str) -> Entry {
        let mut entry = Entry(Vec::with_capacity(256));
        entry.put("PRIORITY", priority(level));
        entry.put("SYSLOG_IDENTIFIER", &self.identifier);
        entry.put("TARGET", target);
        entry
    }
}

impl<S: Subscriber> Layer<S> for Journal {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let metadata = event.metadata();
        let mut entry = self.entry(*metadata.level(), metadata.target());
        if let (Some(file), Some(line)) = (metadata.file(), metadata.line()) {
            entry.put("CODE_FILE", file);
            entry.put("CODE_LINE", &line.to_string());
        }
        let mut message = Message::default();
        event.record(&mut Fields { entry: &mut entry, message: &mut message });
        entry.put("MESSAGE", &message.text());
        let lost = self.lost.swap(0, Ordering::Relaxed);
        if lost > 0 {
            let mut report = self.entry(Level::WARN, module_path!());
            report
                .put("MESSAGE", &format!("journald took no messages for a while, some are lost lost={lost}"));
            report.put("LOST", &lost.to_string());
            if !self.send(&report) {
                self.lost.fetch_add(lost, Ordering::Relaxed);
            }
        }
        if !self.send(&entry) {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// A syslog priority: notice for what is on by default.
const fn priority(level: Level) -> &'static str {
    match level {
        Level::ERROR => "3",
        Level::WARN => "4",
        Level::INFO => "5",
        Level::DEBUG => "6",
        Level::TRACE => "7",
    }
}

/// The fields of a message, as they are sent.
struct Entry(Vec<u8>);

impl Entry {
    fn put(&mut self, name: &str, value: &str) {
        self.0.extend(name.bytes().map(|byte| byte.to_ascii_uppercase()));
        // With its length, as a value of several lines has to be.
        self.0.push(b'\n');
        self.0.extend((value.len() as u64).to_le_bytes());
        self.0.extend(value.bytes());
        self.0.push(b'\n');
    }
}

/// What `journalctl` shows of an event: its message, then its fields as on stderr.
#[derive(Default)]
struct Message {
    said: String,
    fields: String,
}

impl Message {
    fn text(self) -> String {
        self.said + &self.fields
    }
}

/// Takes the fields of an event, each for the entry and for the message.
struct Fields<'a> {
    entry: &'a mut Entry,
    message: &'a mut Message,
}

impl Fields<'_> {
    /// Takes a field, of which the message shows `shown`.
    fn take(&mut self, name: &str, value: &str, shown: &str) {
        match name {
            "message" => return value.clone_into(&mut self.message.said),
            "message_id" => {}
            // Writing to a string cannot fail.
            _ => drop(write!(self.message.fields, " {name}={shown}")),
        }
        // journald takes letters, digits and underscores, and for itself what begins with one.
        let name: String = name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect();
        self.entry.put(name.trim_start_matches('_'), value);
    }
}

impl Visit for Fields<'_> {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.take(field.name(), value, &format!("{value:?}"));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        let text = format!("{value:?}");
        self.take(field.name(), &text, &text);
    }
}

#[cfg(test)]
mod tests {
    use tracing_subscriber::layer::SubscriberExt;

    use super::*;

    fn received(journald: &UnixDatagram) -> String {
        let mut buffer = [0; 4096];
        let length = journald.recv(&mut buffer).unwrap();
        String::from_utf8_lossy(&buffer[..length]).into_owned()
    }

    #[test]
    fn a_journald_that_is_stuck_holds_up_nobody_and_what_it_missed_is_counted() {
        let path = std::env::temp_dir().join(format!("flowbus-journal-{}", std::process::id()));
        assert!(Journal::at(&path).is_err(), "nobody listens");
        let journald = UnixDatagram::bind(&path).unwrap();
        let journal = Journal::at(&path).unwrap();
        let log = |number: u32| tracing::warn!(message_id = "4711", number, text = "two\nlines", "said");
        tracing::subscriber::with_default(tracing_subscriber::registry().with(journal), || {
            // More than wait in a socket's queue (net.unix.max_dgram_qlen).
            (0..10_000).for_each(log);
            journald.set_nonblocking(true).unwrap();
            let mut before = 0;
            while let Ok(length) = journald.recv(&mut [0; 4096]) {
                before += u32::from(length > 0);
            }
            assert!((1..10_000).contains(&before), "{before}");
            log(7);
            let report = received(&journald);
            assert!(report.contains(&(10_000 - before).to_string()) && report.contains("LOST\n"), "{report}");
            let message = received(&journald);
            for part in [
                "PRIORITY\n\u{1}\0",
                "MESSAGE\n",
                "said number=7 text=\"two\\nlines\"\n",
                "MESSAGE_ID\n",
                "NUMBER\n",
                "two\nlines\n",
            ] {
                assert!(message.contains(part), "{part:?} in {message:?}");
            }
        });
        std::fs::remove_file(&path).unwrap();
    }
}
