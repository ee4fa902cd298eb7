//! The configuration file: which flows, which of their fields, and where they go.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use flowbus_interfaces::{
    Argument, FLOW_LOG_DIRECTORY, Key, QueryError, QueryKey, QueryMap, QueryPart, RawQuery, SourceNames,
    StreamQuery,
};
use serde::Deserialize;

/// The fields of a flow where the file names none: who with whom, through which NAT, when, how much, why it ended.
const FIELDS: [Key; 25] = [
    Key::Id,
    Key::Family,
    Key::Protocol,
    Key::ProtocolNumber,
    Key::Src,
    Key::Sport,
    Key::Dst,
    Key::Dport,
    Key::NatSrc,
    Key::NatSport,
    Key::NatDst,
    Key::NatDport,
    Key::IcmpType,
    Key::IcmpCode,
    Key::Zone,
    Key::Mark,
    Key::OrigPackets,
    Key::OrigBytes,
    Key::ReplyPackets,
    Key::ReplyBytes,
    Key::StartUsec,
    Key::EndUsec,
    Key::EndReason,
    Key::Initiator,
    Key::Responder,
];

/// The options of `/etc/flowbus/export/NAME.toml`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Config {
    /// What flowbusd is asked for: conditions and fields.
    query: RawQuery,
    /// The conditions as words of a command line.
    conditions: Vec<String>,
    pub(crate) log: Option<LogOptions>,
    pub(crate) ipfix: Option<IpfixOptions>,
}

/// What the file has.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Text {
    /// Conditions of `flowctl list`; all flows where there are none.
    #[serde(default)]
    query: BTreeMap<String, toml::Value>,
    fields: Option<Vec<String>>,
    log: Option<LogOptions>,
    ipfix: Option<IpfixOptions>,
}

/// The files of the log.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct LogOptions {
    pub(crate) directory: PathBuf,
    /// For how long one file is written.
    rotate_sec: u64,
    /// How large one file becomes.
    pub(crate) rotate_bytes: u64,
    /// For how long a closed file stays as it was written.
    compress_after_sec: u64,
    /// How large all files together become.
    pub(crate) maximum_bytes: u64,
    /// After how long a file is removed.
    maximum_age_sec: u64,
}

impl Default for LogOptions {
    fn default() -> Self {
        Self {
            directory: FLOW_LOG_DIRECTORY.into(),
            rotate_sec: 3_600,
            rotate_bytes: 256 << 20,
            compress_after_sec: 0,
            maximum_bytes: 1 << 30,
            maximum_age_sec: 21 * 24 * 3_600,
        }
    }
}

impl LogOptions {
    /// An option that cannot be used: its key, its value, and what it takes.
    fn wrong(&self) -> Option<(&'static str, String, &'static str)> {
        for (key, value, range, takes) in [
            ("log.rotate_sec", self.rotate_sec, 1..=604_800, "takes 1 to 604800 (a week)"),
            ("log.rotate_bytes", self.rotate_bytes, 65_536..=1 << 40, "takes 65536 or more"),
            ("log.compress_after_sec", self.compress_after_sec, 0..=604_800, "takes 0 to 604800 (a week)"),
            ("log.maximum_age_sec", self.maximum_age_sec, 1..=1 << 32, "takes 1 or more"),
        ] {
            if !range.contains(&value) {
                return Some((key, value.to_string(), takes));
            }
        }
        // The file that is written and one that is compressed are there at the same time.
        if self.maximum_bytes < self.rotate_bytes.saturating_mul(2) {
            let takes = "takes at least twice log.rotate_bytes";
            return Some(("log.maximum_bytes", self.maximum_bytes.to_string(), takes));
        }
        let directory = format!("{:?}", self.directory);
        (!self.directory.is_absolute()).then_some(("log.directory", directory, "takes an absolute path"))
    }

    pub(crate) fn rotate(&self) -> Duration {
        Duration::from_secs(self.rotate_sec)
    }

    pub(crate) fn compress_after(&self) -> Duration {
        Duration::from_secs(self.compress_after_sec)
    }

    pub(crate) fn maximum_age(&self) -> Duration {
        Duration::from_secs(self.maximum_age_sec)
    }
}

/// A collector of IPFIX.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct IpfixOptions {
    pub(crate) collector: SocketAddr,
    /// The observation domain, which tells exporters apart.
    #[serde(default = "one")]
    pub(crate) domain: u32,
    /// How often the templates are sent at least, while there are records.
    #[serde(default = "five")]
    template_sec: u64,
}

const fn one() -> u32 {
    1
}

const fn five() -> u64 {
    5
}

impl IpfixOptions {
    /// A collector with every default.
    pub(crate) const fn to(collector: SocketAddr) -> Self {
        Self { collector, domain: one(), template_sec: five() }
    }

    pub(crate) const fn template(&self) -> Duration {
        Duration::from_secs(self.template_sec)
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
    Value { path: PathBuf, key: String, value: String, takes: &'static str },
    #[error("{}: there is neither a [log] nor an [ipfix], so that nothing would be written", path.display())]
    Nothing { path: PathBuf },
    #[error("{}: query: {source}", path.display())]
    Query { path: PathBuf, source: QueryError },
}

impl Config {
    /// Reads and checks a file.
    pub(crate) fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        Self::parse(&text, path)
    }

    fn parse(text: &str, path: &Path) -> Result<Self, ConfigError> {
        let text: Text = toml::from_str(text)
            .map_err(|source| ConfigError::Parse { path: path.to_owned(), source: Box::new(source) })?;
        let wrong = |key: &str, value: String, takes| {
            Err(ConfigError::Value { path: path.to_owned(), key: key.to_owned(), value, takes })
        };
        let Text { query: conditions, fields, log, ipfix } = text;
        if log.is_none() && ipfix.is_none() {
            return Err(ConfigError::Nothing { path: path.to_owned() });
        }
        if let Some((key, value, takes)) = log.as_ref().and_then(LogOptions::wrong) {
            return wrong(key, value, takes);
        }
        if let Some(ipfix) = ipfix.as_ref().filter(|ipfix| !(1..=600).contains(&ipfix.template_sec)) {
            return wrong("ipfix.template_sec", ipfix.template_sec.to_string(), "takes 1 to 600");
        }
        let mut words = Vec::new();
        for (key, values) in &conditions {
            if QueryKey::parse(key).is_some_and(|key| key.part() != QueryPart::Filter) {
                return wrong(&format!("query.{key}"), values.to_string(), "is not a condition of flows");
            }
            let Some(text) = text_of(values) else {
                let takes = "takes a text, a number or an array of these";
                return wrong(&format!("query.{key}"), values.to_string(), takes);
            };
            words.push(format!("{key}={text}"));
        }
        let fields = match &fields {
            None => FIELDS.iter().map(|key| key.name()).collect(),
            Some(fields) => {
                // The log's own place is made of ids.
                let id = fields.iter().all(|name| name != Key::Id.name()).then_some(Key::Id.name());
                fields.iter().map(String::as_str).chain(id).collect::<Vec<_>>()
            }
        };
        let conditions = words.clone();
        words.push(format!("fields={}", fields.join(",")));
        let query =
            query_of(&words).map_err(|source| ConfigError::Query { path: path.to_owned(), source })?;
        Ok(Self { query, conditions, log, ipfix })
    }

    /// The names of the fields that each flow is asked for.
    pub(crate) fn fields(&self) -> Option<Vec<String>> {
        let text = |name: &Argument| match name {
            Argument::Text(name) => Some(name.clone()),
            _ => None,
        };
        match self.query.get(QueryKey::Fields)? {
            Argument::List(names) => names.iter().map(text).collect(),
            name => Some(vec![text(name)?]),
        }
    }

    /// The conditions that each flow meets, as words of `flowctl list`.
    pub(crate) fn conditions(&self) -> &[String] {
        &self.conditions
    }

    /// What each stream is asked for besides its place.
    pub(crate) fn stream_query(&self) -> QueryMap<'_> {
        let mut query = self.query.to_map();
        query.insert("events", vec!["new", "destroy"].into());
        query
    }
}

fn query_of(words: &[String]) -> Result<RawQuery, QueryError> {
    let mut raw = RawQuery::default();
    for word in words {
        raw.add_word(word)?;
    }
    match StreamQuery::parse(&raw, &SourceNames::default()) {
        // The daemon's configuration may name more sources: it has the last word.
        Err(QueryError::Value { key, .. }) if key == QueryKey::Source.name() => Ok(raw),
        checked => checked.map(|_| raw),
    }
}

/// The values of a key, between commas.
fn text_of(value: &toml::Value) -> Option<String> {
    match value {
        toml::Value::String(text) => Some(text.clone()),
        toml::Value::Integer(number) => Some(number.to_string()),
        toml::Value::Array(values) => {
            let texts: Option<Vec<_>> = values.iter().map(text_of).collect();
            texts.map(|texts| texts.join(","))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Config, String> {
        Config::parse(text, Path::new("x.toml")).map_err(|error| error.to_string())
    }

    #[test]
    fn a_table_of_the_log_alone_has_every_default() {
        let config = parse("[log]").unwrap();
        assert_eq!(config.log, Some(LogOptions::default()));
        assert_eq!(config.log.unwrap().directory, Path::new("/var/log/flowbus"));
        let keys: Vec<_> = config.query.keys().collect();
        assert_eq!(keys, ["fields"]);
    }

    #[test]
    fn the_file_that_is_installed_has_every_option_with_its_default() {
        let file = include_str!("../../systemd/etc/flowbus/export/log.toml");
        let defaults = parse("[log]").unwrap();
        assert_eq!(parse(file).unwrap(), defaults);
        // An option is written behind a #, prose has a space after it.
        let options = |line: &str| {
            line.strip_prefix('#').filter(|rest| !rest.starts_with(' ')).unwrap_or(line).to_owned()
        };
        let all = parse(&file.lines().map(options).collect::<Vec<_>>().join("\n")).unwrap();
        let collector = "192.0.2.10:4739".parse().unwrap();
        assert_eq!((all.log, all.ipfix), (defaults.log, Some(IpfixOptions::to(collector))));
        let fields = |query: &RawQuery| format!("{:?}", query.to_map()["fields"]);
        assert_eq!(fields(&all.query), fields(&defaults.query));
    }

    #[test]
    fn conditions_and_fields_reach_the_daemon() {
        let config = parse(
            "query = { nat = \"any\", dport = [80, \"440-450\"] }\nfields = [\"src\"]\n[log]\nrotate_sec = 1",
        )
        .unwrap();
        let query = config.stream_query();
        let text = format!("{query:?}");
        assert_eq!(query.len(), 4);
        assert_eq!(config.fields(), Some(vec!["src".to_owned(), "id".to_owned()]));
        assert_eq!(config.conditions(), ["dport=80,440-450", "nat=any"]);
        for part in ["\"any\"", "440-450", "\"src\"", "\"id\"", "destroy"] {
            assert!(text.contains(part), "{part} in {text}");
        }
        assert_eq!(config.log.unwrap().rotate(), Duration::from_secs(1));
        assert!(parse("query = { source = \"of the daemon's configuration\" }\n[log]").is_ok());
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, part) in [
            ("", "neither a [log] nor an [ipfix]"),
            ("[ipfix]", "missing field `collector`"),
            ("[ipfix]\ncollector = \"192.0.2.1\"", "invalid socket address"),
            (
                "[ipfix]\ncollector = \"192.0.2.1:4739\"\ntemplate_sec = 0",
                "ipfix.template_sec = 0: takes 1 to 600",
            ),
            ("[log]\nrotate_secs = 1", "unknown field `rotate_secs`"),
            ("extra = 1\n[log]", "unknown field `extra`"),
            ("[log]\nrotate_sec = 0", "log.rotate_sec = 0: takes 1"),
            ("[log]\nrotate_bytes = 1", "log.rotate_bytes = 1: takes 65536"),
            ("[log]\ncompress_after_sec = 604801", "log.compress_after_sec = 604801: takes 0 to 604800"),
            ("[log]\nmaximum_bytes = 70000", "log.maximum_bytes = 70000: takes at least twice"),
            ("[log]\ndirectory = \"here\"", "takes an absolute path"),
            ("query = { dport = true }\n[log]", "query.dport = true: takes a text"),
            ("query = { snapshot = \"false\" }\n[log]", "query.snapshot = \"false\": is not a condition"),
            ("query = { dprt = 1 }\n[log]", "dprt"),
            ("query = { dport = \"x\" }\n[log]", "dport"),
            ("fields = [\"nothing\"]\n[log]", "nothing"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.starts_with("x.toml: ") && error.contains(part), "{text}: {error}");
        }
    }
}
