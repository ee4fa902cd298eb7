//! flowbus-export: each begin and each end stands once in its log, whatever is killed, full or torn.

mod ipfix;
mod log;
mod stores;

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Command;

use flowbus_interfaces::flow_log_files;
use flowbus_tests::daemon::binary;
use flowbus_tests::process::{Directory, wait_for};
use flowbus_tests::{Bus, Daemon, Kept, Namespace, burst, churn};
use serde_json::Value;

const BUFFER: usize = 64 * 1024 * 1024;

/// A namespace with flowbusd on kept descriptors, and a directory for the log.
struct World<'n> {
    namespace: &'n Namespace,
    bus: Bus,
    kept: Kept,
    directory: Directory,
    log: PathBuf,
    flowbusd: PathBuf,
}

impl<'n> World<'n> {
    /// flowbusd is to remember this many ended flows.
    fn new(namespace: &'n Namespace, capacity: u32) -> Self {
        let directory = Directory::new("export");
        let log = directory.path().join("log");
        Self::logging_to(namespace, capacity, directory, log)
    }

    /// A world whose log is elsewhere.
    fn logging_to(namespace: &'n Namespace, capacity: u32, directory: Directory, log: PathBuf) -> Self {
        churn::prepare(namespace);
        let options = format!("[attribution]\ntier = \"none\"\n[closed]\ncapacity = {capacity}\n");
        let flowbusd = directory.file("flowbusd.toml", &options);
        fs::create_dir(&log).unwrap();
        Self { namespace, bus: Bus::start(), kept: Kept::open(namespace, BUFFER), directory, log, flowbusd }
    }

    fn flowbusd(&self) -> Daemon {
        let mut daemon = self.kept.spawn_with(self.namespace, &self.bus, self.flowbusd.to_str().unwrap());
        daemon.wait_until_synchronized(&self.bus);
        daemon
    }

    fn log(&self) -> PathBuf {
        self.log.clone()
    }

    /// The command that starts flowbus-export with these options of its log.
    fn exporter_command(&self, options: &str) -> Command {
        let options = format!("[log]\ndirectory = {:?}\n{options}", self.log());
        let config = self.directory.file("export.toml", &options);
        let mut command = Command::new(binary("flowbus-export"));
        command.args(["--bus", &self.bus.address(), "--config"]).arg(config);
        command
    }

    fn exporter(&self, options: &str) -> Daemon {
        Daemon::spawn(&mut self.exporter_command(options))
    }

    /// Makes one more flow, ends it, and waits until its end is in the log. No other test has flows to this address.
    fn wait_for_last_end(&self, log: &Path, exporter: &Daemon) {
        burst::create(self.namespace, 0, 1);
        self.namespace.run("conntrack -D -p udp --orig-dst 198.19.0.0 --orig-port-dst 5000");
        let id = wait_for("flowbusd to have the end", || {
            let page = self.bus.monitor_call("ListClosed", &["a{sv}", "1", "limit", "u", "1"]).unwrap();
            let flow = page[0].as_array()?.first()?;
            (flow["dst"] == "198.19.0.0" && flow["dport"] == 5000).then(|| id(flow))
        });
        wait_for(&format!("the last end in the log, {}", exporter.log()), || {
            // The newest, and a few before it: one may have ended since.
            let files = flow_log_files(log).unwrap();
            let newest = files.iter().rev().take(3).flat_map(|(_, path)| read(path));
            newest.into_iter().any(|line| is_end(&line) && self::id(&line) == id).then_some(())
        });
    }

    /// The ids of all flows that flowbusd knows to have ended.
    fn ended(&self) -> Vec<u64> {
        let mut ids: Vec<_> = self.bus.list("ListClosed", &[]).unwrap().iter().map(id).collect();
        ids.sort_unstable();
        ids
    }
}

/// The whole lines of a file.
fn read(path: &Path) -> Vec<Value> {
    let mut bytes = Vec::new();
    let closed = path.with_extension("ndjson.zst");
    // It may have been compressed since it was listed.
    match fs::File::open(path) {
        Ok(mut file) if path.extension().is_some_and(|extension| extension == "ndjson") => {
            file.read_to_end(&mut bytes).unwrap();
        }
        file => {
            let file = file.unwrap_or_else(|_| fs::File::open(&closed).unwrap());
            zstd::Decoder::new(file).unwrap().read_to_end(&mut bytes).unwrap();
        }
    }
    let lines = bytes.split_inclusive(|&byte| byte == b'\n').filter(|line| line.ends_with(b"\n"));
    lines.map(|line| serde_json::from_slice(line).unwrap()).collect()
}

/// The log's files by name, with their whole lines.
fn files(log: &Path) -> Vec<(String, Vec<Value>)> {
    let files = flow_log_files(log).unwrap();
    files.into_iter().map(|(name, path)| (name.to_string(), read(&path))).collect()
}

fn lines(log: &Path) -> Vec<Value> {
    files(log).into_iter().flat_map(|(_, lines)| lines).collect()
}

fn id(line: &Value) -> u64 {
    line["id"].as_u64().unwrap_or_else(|| panic!("no id in {line}"))
}

fn is_end(line: &Value) -> bool {
    line["type"] == "closed" || line["type"] == "destroy"
}

/// How often each id has a line of this kind.
fn count(lines: &[Value], is_it: impl Fn(&Value) -> bool) -> BTreeMap<u64, usize> {
    let mut counts = BTreeMap::new();
    for line in lines.iter().filter(|line| is_it(line)) {
        *counts.entry(id(line)).or_default() += 1;
    }
    counts
}

/// Each id that ended stands once as an end, no id twice as `new`, and no begin is without its end.
fn assert_once(lines: &[Value], ended: &[u64]) {
    let ends = count(lines, is_end);
    let twice: Vec<_> = ends.iter().filter(|&(_, &count)| count > 1).collect();
    assert!(twice.is_empty(), "ends of {twice:?}");
    let missing: Vec<_> = ended.iter().filter(|id| !ends.contains_key(id)).collect();
    assert!(
        missing.is_empty() && ends.len() == ended.len(),
        "{} of {} ends, no {missing:?}",
        ends.len(),
        ended.len()
    );
    let begins = count(lines, |line| line["type"] == "new");
    assert!(begins.iter().all(|(id, &count)| count == 1 && ends.contains_key(id)), "begins");
    let gaps: Vec<_> = lines.iter().filter(|line| line["type"] == "gap").collect();
    assert!(gaps.is_empty(), "{gaps:?}");
}

/// Each file is a stream of its own, and says that it is whole; the last may be in the making.
fn assert_streams(files: &[(String, Vec<Value>)]) {
    for (position, (name, lines)) in files.iter().enumerate() {
        let kinds: Vec<_> = lines.iter().map(|line| line["type"].as_str().unwrap()).collect();
        let begin = &lines[0];
        assert_eq!(kinds.iter().filter(|kind| **kind == "begin").count(), 1, "{name}");
        assert_eq!(kinds[0], "begin", "{name}: {begin}");
        for key in ["sequence", "event_usec", "version", "host", "from", "machine"] {
            assert!(!begin[key].is_null(), "{key} of {begin}");
        }
        assert!(
            lines.iter().all(|line| line["epoch"] == begin["epoch"] && line["machine"] == begin["machine"])
        );
        let end = lines.last().unwrap();
        if end["type"] == "end" {
            assert_eq!(end["records"], lines.len() - 1, "{name}");
            assert!(end["event_usec"].as_u64() > begin["event_usec"].as_u64());
        } else {
            assert_eq!(position, files.len() - 1, "{name} has no end: {end}");
        }
        // The head is closed flows, then those that are alive.
        let head = kinds.iter().position(|kind| *kind == "snapshot-end").unwrap_or(kinds.len());
        let order = |kind: &str| ["begin", "gap", "closed", "flow"].iter().position(|known| *known == kind);
        let head: Vec<_> =
            kinds[..head].iter().filter(|kind| **kind != "end").map(|kind| order(kind)).collect();
        assert!(head.iter().all(Option::is_some) && head.is_sorted(), "{name}: {kinds:?}");
    }
}
