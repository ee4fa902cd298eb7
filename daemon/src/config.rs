//! The configuration file: every option has a default, and a key that is not known is an error.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Error, Read};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use flowbus_interfaces::SourceNames;
use rustix::fs::{CWD, Mode, OFlags, makedev};
use serde::Deserialize;

use crate::flow::ClosedLimits;

/// Where the service looks; absent, every option has its default.
pub(crate) const DEFAULT_PATH: &str = "/etc/flowbus/flowbusd.toml";

/// The options of `flowbusd.toml`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Config {
    pub(crate) events: EventOptions,
    pub(crate) closed: ClosedOptions,
    pub(crate) signals: SignalOptions,
    pub(crate) attribution: AttributionOptions,
    /// Traffic sources that the mark decoder is to know besides patchpanel's: name = number (1 to 63).
    sources: BTreeMap<String, u8>,
    /// patchpanel's names and those of `sources`.
    #[serde(skip)]
    pub(crate) source_names: SourceNames,
}

/// The event socket.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct EventOptions {
    /// Bytes that the kernel may queue for us; an event takes about 1,280.
    pub(crate) receive_buffer_bytes: u32,
    /// How many seconds pass between two comparisons with the kernel's table while flows exist, for what no event reports.
    pub(crate) sweep_interval_sec: u64,
    /// How events are received.
    pub(crate) source: SourceChoice,
}

/// How events may be received.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum SourceChoice {
    /// By a ring that a BPF socket filter fills, where the kernel takes it and the socket is ours alone.
    #[default]
    Auto,
    /// By the socket.
    Socket,
}

/// The flows that ended.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct ClosedOptions {
    /// How many ended flows are kept at most.
    pub(crate) capacity: u32,
    /// For how many seconds an ended flow is kept at most.
    pub(crate) maximum_age_sec: u64,
}

/// The signal FlowEvents.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct SignalOptions {
    /// How many milliseconds after its first event a batch closes.
    pub(crate) batch_msec: u64,
    /// How many events close a batch earlier.
    pub(crate) batch_events: usize,
    /// How many bytes close a batch earlier.
    pub(crate) batch_bytes: usize,
    /// The most signals a second.
    pub(crate) per_second: u32,
}

/// How the processes behind flows are found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct AttributionOptions {
    /// How processes are found.
    pub(crate) tier: TierChoice,
}

/// How processes may be found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum TierChoice {
    /// BPF programs find processes; by hand /proc is searched where those are refused.
    #[default]
    Auto,
    /// /proc is searched; by hand alone.
    Procfs,
    /// Processes are not found.
    None,
}

impl Default for EventOptions {
    fn default() -> Self {
        Self { receive_buffer_bytes: 32 * 1024 * 1024, sweep_interval_sec: 300, source: SourceChoice::Auto }
    }
}

impl Default for ClosedOptions {
    fn default() -> Self {
        Self { capacity: 20_000, maximum_age_sec: 24 * 60 * 60 }
    }
}

impl SignalOptions {
    /// The least time between two signals.
    pub(crate) fn interval(&self) -> Duration {
        Duration::from_secs(1) / self.per_second
    }
}

impl Default for SignalOptions {
    fn default() -> Self {
        Self { batch_msec: 100, batch_events: 256, batch_bytes: 64 * 1024, per_second: 20 }
    }
}

/// A configuration that cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConfigError {
    #[error("{}: {source}", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    /// The parser's text names the line, the column and the key.
    #[error("{}: {source}", path.display())]
    Parse { path: PathBuf, source: Box<toml::de::Error> },
    #[error("{}: {key} = {value}: {takes}", path.display())]
    Range { path: PathBuf, key: &'static str, value: u64, takes: &'static str },
    #[error("{}: sources: {source}", path.display())]
    Source { path: PathBuf, source: flowbus_interfaces::SourceNameError },
}

impl Config {
    /// Reads the file that was named, or the default one where there is one.
    pub(crate) fn load(named: Option<&Path>) -> Result<Self, ConfigError> {
        let path = named.unwrap_or(Path::new(DEFAULT_PATH));
        let text = match read(path) {
            Ok(text) => text,
            Err(error) if named.is_none() && error.kind() == std::io::ErrorKind::NotFound => String::new(),
            Err(source) => return Err(ConfigError::Read { path: path.into(), source }),
        };
        Self::parse(&text, path)
    }

    fn parse(text: &str, path: &Path) -> Result<Self, ConfigError> {
        let mut config: Self = toml::from_str(text)
            .map_err(|source| ConfigError::Parse { path: path.into(), source: Box::new(source) })?;
        let SignalOptions { batch_msec, batch_events, batch_bytes, per_second } = config.signals;
        let ranges: [(&'static str, u64, std::ops::RangeInclusive<u64>, &'static str); 7] = [
            ("events.sweep_interval_sec", config.events.sweep_interval_sec, 10..=86_400, "takes 10 to 86400"),
            (
                "events.receive_buffer_bytes",
                config.events.receive_buffer_bytes.into(),
                65_536..=1 << 30,
                "takes 65536 to 1073741824",
            ),
            (
                "closed.capacity",
                config.closed.capacity.into(),
                1..=ClosedLimits::MAXIMUM_CAPACITY.into(),
                "takes 1 to 1000000",
            ),
            ("signals.batch_msec", batch_msec, 1..=10_000, "takes 1 to 10000"),
            ("signals.batch_events", batch_events as u64, 1..=1_000, "takes 1 to 1000"),
            ("signals.batch_bytes", batch_bytes as u64, 4_096..=1 << 20, "takes 4096 to 1048576"),
            ("signals.per_second", per_second.into(), 1..=1_000, "takes 1 to 1000"),
        ];
        for (key, value, range, takes) in ranges {
            if !range.contains(&value) {
                return Err(ConfigError::Range { path: path.into(), key, value, takes });
            }
        }
        for (name, number) in &config.sources {
            let added = config.source_names.add(*number, name);
            added.map_err(|source| ConfigError::Source { path: path.into(), source })?;
        }
        Ok(config)
    }

    pub(crate) fn closed_limits(&self) -> ClosedLimits {
        ClosedLimits {
            capacity: self.closed.capacity,
            maximum_age: Duration::from_secs(self.closed.maximum_age_sec),
        }
    }
}

/// The whole file. It must be one: a pipe, which nobody may ever write into, would hold up a reload, and all else with it.
fn read(path: &Path) -> std::io::Result<String> {
    /// Far more than anybody writes by hand.
    const MAXIMUM_BYTES: u64 = 1 << 20;
    // Opening a pipe does not wait for its writer. The unit allows openat alone: rustix's open is another system call.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = File::from(rustix::fs::openat(CWD, path, flags, Mode::empty())?);
    if !is_file_or_null(&file)? {
        return Err(Error::other("not a regular file"));
    }
    let mut text = String::new();
    if file.take(MAXIMUM_BYTES + 1).read_to_string(&mut text)? as u64 > MAXIMUM_BYTES {
        return Err(Error::other(format!("longer than {MAXIMUM_BYTES} bytes")));
    }
    Ok(text)
}

/// /dev/null is how one says that there is no configuration.
fn is_file_or_null(file: &File) -> std::io::Result<bool> {
    let metadata = file.metadata()?;
    let null = makedev(1, 3);
    Ok(metadata.is_file() || (metadata.file_type().is_char_device() && metadata.rdev() == null))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(text: &str) -> String {
        Config::parse(text, Path::new("/x.toml")).unwrap_err().to_string()
    }

    #[test]
    fn an_empty_file_is_the_default() {
        assert_eq!(Config::parse("", Path::new("/x.toml")).unwrap(), Config::default());
    }

    #[test]
    fn the_installed_file_shows_the_defaults() {
        let installed = include_str!("../../systemd/etc/flowbus/flowbusd.toml");
        let (options, _) = installed.split_once("[sources]").unwrap();
        let shown: String = options
            .lines()
            .map(|line| line.strip_prefix('#').filter(|rest| !rest.starts_with(' ')).unwrap_or(line))
            .flat_map(|line| [line, "\n"])
            .collect();
        assert!(shown.contains("\nper_second = "), "{shown}");
        assert_eq!(Config::parse(&shown, Path::new("/x.toml")).unwrap(), Config::default());
    }

    #[test]
    fn errors_name_file_line_and_key() {
        let unknown = error("[closed]\ncapacty = 3\n");
        assert!(unknown.contains("/x.toml") && unknown.contains("line 2") && unknown.contains("capacty"));
        let wrong = error("[closed]\ncapacity = \"many\"\n");
        assert!(wrong.contains("line 2") && wrong.contains("capacity"), "{wrong}");
        assert!(error("[signals]\nper_second = 0\n").contains("signals.per_second = 0: takes 1 to 1000"));
    }
}
