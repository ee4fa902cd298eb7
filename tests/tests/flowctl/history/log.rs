//! Files of a log as a writer would have left them, and what flowctl answers about them.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use flowbus_interfaces::FlowLogName;
use flowbus_tests::daemon::binary;
use flowbus_tests::process::Directory;
use serde_json::Value;

use crate::json_lines;

pub(super) const MACHINE: &str = "11111111111111111111111111111111";
pub(super) const EPOCH: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
pub(super) const OTHER: &str = "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb";
/// 2026-11-22 12:00 UTC.
pub(super) const NOON: u64 = 1_795_348_800_000_000;
pub(super) const MINUTE: u64 = 60_000_000;

/// Minutes after noon.
pub(super) const fn at(minutes: u64) -> u64 {
    NOON + minutes * MINUTE
}

/// A file of the log, line by line.
#[derive(Clone)]
pub(super) struct File {
    pub(super) begin: u64,
    pub(super) machine: &'static str,
    pub(super) epoch: &'static str,
    pub(super) text: String,
    pub(super) records: usize,
}

impl File {
    /// A file that goes on behind change `from`, or from nowhere.
    pub(super) fn begin(begin: u64, sequence: u64, from: Option<u64>) -> Self {
        Self::of(MACHINE, EPOCH, "gateway", begin, sequence, from)
    }

    pub(super) fn of(
        machine: &'static str,
        epoch: &'static str,
        host: &str,
        begin: u64,
        sequence: u64,
        from: Option<u64>,
    ) -> Self {
        let from = from.map(|from| format!("epoch={epoch};sequence={from};id=0")).unwrap_or_default();
        let file = Self { begin, machine, epoch, text: String::new(), records: 0 };
        file.line(&format!(
            r#""type":"begin","sequence":{sequence},"event_usec":{begin},"version":"0.1.0","host":"{host}","from":"{from}""#
        ))
    }

    /// The file says which fields its log has.
    pub(super) fn fields(self, names: &[&str]) -> Self {
        self.member("fields", names)
    }

    /// The file says which flows its log has.
    pub(super) fn query(self, words: &[&str]) -> Self {
        self.member("query", words)
    }

    /// Adds texts to the last line.
    fn member(mut self, name: &str, texts: &[&str]) -> Self {
        self.text.truncate(self.text.len() - "}\n".len());
        let _ = writeln!(self.text, ",\"{name}\":{}}}", serde_json::json!(texts));
        self
    }

    pub(super) fn line(mut self, members: &str) -> Self {
        let _ = writeln!(self.text, r#"{{"machine":"{}","epoch":"{}",{members}}}"#, self.machine, self.epoch);
        self.records += 1;
        self
    }

    /// A flow that is alive, begins or ends: the source's port after translation tells flows apart.
    pub(super) fn flow(self, kind: &str, sequence: Option<u64>, flow: &str) -> Self {
        let sequence = sequence.map(|sequence| format!("\"sequence\":{sequence},")).unwrap_or_default();
        self.line(&format!("\"type\":\"{kind}\",{sequence}{flow}"))
    }

    pub(super) fn end_of_snapshot(self, sequence: u64) -> Self {
        self.line(&format!(r#""type":"snapshot-end","sequence":{sequence}"#))
    }

    pub(super) fn end(self, usec: u64) -> Self {
        let records = self.records;
        self.line(&format!(r#""type":"end","reason":"rotated","event_usec":{usec},"records":{records}"#))
    }

    pub(super) fn name(&self, is_compressed: bool) -> String {
        FlowLogName { begin_usec: self.begin, is_compressed }.to_string()
    }
}

/// A flow with the source address 198.18.0.`host` that leaves from 198.18.9.9:`port`.
pub(super) fn flow(id: u64, host: u8, port: u16, start: u64, end: Option<u64>) -> String {
    let end = end.map(|end| {
        format!(r#","orig_packets":3,"orig_bytes":300,"reply_packets":2,"reply_bytes":100,"end_usec":{end},"end_reason":"destroyed""#)
    });
    format!(
        r#""id":{id},"family":"ipv4","protocol":"tcp","protocol_number":6,"src":"198.18.0.{host}","sport":40000,"dst":"198.18.1.2","dport":443,"nat_src":"198.18.9.9","nat_sport":{port},"mark":256,"start_usec":{start}{},"initiator":{{"pid":9,"comm":"curl"}}"#,
        end.unwrap_or_default()
    )
}

pub(super) struct Log(pub(super) Directory);

impl Log {
    pub(super) fn new() -> Self {
        Self(Directory::new("history"))
    }

    pub(super) fn add(&self, file: &File) -> PathBuf {
        self.0.file(&file.name(false), &file.text)
    }

    pub(super) fn add_compressed(&self, file: &File) -> PathBuf {
        let path = self.0.path().join(file.name(true));
        std::fs::write(&path, zstd::encode_all(file.text.as_bytes(), 3).unwrap()).unwrap();
        path
    }

    pub(super) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(binary("flowctl"));
        command.args(["--bus", "unix:path=/nonexistent", "history", "--directory"]).arg(self.0.path());
        command.args(arguments).env("TZ", "UTC").env_remove("NO_COLOR").stdin(Stdio::null());
        command
    }

    pub(super) fn ask(&self, arguments: &[&str]) -> Answer {
        run(&mut self.command(arguments))
    }

    /// The rows and the notices of an answer in JSON.
    pub(super) fn found(&self, arguments: &[&str]) -> (Vec<Value>, Vec<Value>) {
        let answer = self.ask(&[arguments, &["--json"]].concat());
        assert_eq!(answer.code, Some(0), "{arguments:?}: {}{}", answer.stdout, answer.stderr);
        json_lines(&answer.stdout).into_iter().partition(|line| line.get("type").is_none())
    }

    pub(super) fn ids(&self, arguments: &[&str]) -> Vec<u64> {
        self.found(arguments).0.iter().map(|row| row["id"].as_u64().unwrap()).collect()
    }

    /// Why an answer is not complete.
    pub(super) fn reasons(&self, arguments: &[&str]) -> Vec<String> {
        let (_, notices) = self.found(arguments);
        assert!(notices.iter().all(|notice| notice["type"] == "incomplete"), "{notices:?}");
        notices.iter().map(|notice| notice["reason"].as_str().unwrap().to_owned()).collect()
    }
}

pub(super) struct Answer {
    pub(super) stdout: String,
    pub(super) stderr: String,
    pub(super) code: Option<i32>,
}

pub(super) fn run(command: &mut Command) -> Answer {
    let output = command.output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Answer { stdout: text(&output.stdout), stderr: text(&output.stderr), code: output.status.code() }
}

pub(super) fn instant(usec: u64) -> String {
    usec.to_string()
}

/// Two files of ten minutes each and the one that is written. Flow 1 lives through all, 2 ends in the first file, 3 while the files
/// change, 4 has the translated port that 2 had, 5 began and ended while nobody wrote, 6 is alive.
pub(super) fn three_files() -> [File; 3] {
    let (one, three) = (|end| flow(1, 1, 1001, at(0) - 5, end), |end| flow(3, 3, 1003, at(8), end));
    let first = File::begin(at(0), 10, None)
        .flow("flow", None, &one(None))
        .end_of_snapshot(10)
        .flow("new", Some(11), &flow(2, 2, 1002, at(1), None))
        .flow("destroy", Some(12), &flow(2, 2, 1002, at(1), Some(at(5))))
        .flow("new", Some(13), &three(None))
        .end(at(10) - 1);
    let second = File::begin(at(10), 16, Some(13))
        .flow("closed", Some(14), &three(Some(at(10) - 1)))
        .flow("closed", Some(16), &flow(5, 5, 1005, at(10) - 2, Some(at(10))))
        .flow("flow", None, &one(None))
        .end_of_snapshot(16)
        .flow("new", Some(17), &flow(4, 4, 1002, at(12), None))
        .flow("destroy", Some(18), &flow(4, 4, 1002, at(12), Some(at(15))))
        .flow("destroy", Some(19), &one(Some(at(18))))
        .end(at(20) - 1);
    let third = File::begin(at(20), 19, Some(19)).end_of_snapshot(19).flow(
        "new",
        Some(20),
        &flow(6, 6, 1006, at(21), None),
    );
    [first, second, third]
}

pub(super) fn three() -> Log {
    let log = Log::new();
    let [first, second, third] = three_files();
    log.add_compressed(&first);
    log.add_compressed(&second);
    log.add(&third);
    log
}
