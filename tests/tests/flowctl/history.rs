//! `flowctl history`: what the log has is found, and what it does not have is said. Neither a daemon nor a bus is there.

use std::fmt::Write as _;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use flowbus_interfaces::FlowLogName;
use flowbus_tests::daemon::binary;
use flowbus_tests::process::Directory;
use serde_json::Value;

use super::json_lines;

const MACHINE: &str = "11111111111111111111111111111111";
const EPOCH: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
const OTHER: &str = "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb";
/// 2026-11-22 12:00 UTC.
const NOON: u64 = 1_795_348_800_000_000;
const MINUTE: u64 = 60_000_000;

/// Minutes after noon.
const fn at(minutes: u64) -> u64 {
    NOON + minutes * MINUTE
}

/// A file of the log, line by line.
#[derive(Clone)]
struct File {
    begin: u64,
    machine: &'static str,
    epoch: &'static str,
    text: String,
    records: usize,
}

impl File {
    /// A file that goes on behind change `from`, or from nowhere.
    fn begin(begin: u64, sequence: u64, from: Option<u64>) -> Self {
        Self::of(MACHINE, EPOCH, "gateway", begin, sequence, from)
    }

    fn of(
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
    fn fields(mut self, names: &[&str]) -> Self {
        let fields = format!(",\"fields\":{names:?}}}\n");
        self.text.truncate(self.text.len() - "}\n".len());
        self.text.push_str(&fields);
        self
    }

    fn line(mut self, members: &str) -> Self {
        let _ = writeln!(self.text, r#"{{"machine":"{}","epoch":"{}",{members}}}"#, self.machine, self.epoch);
        self.records += 1;
        self
    }

    /// A flow that is alive, begins or ends: the source's port after translation tells flows apart.
    fn flow(self, kind: &str, sequence: Option<u64>, flow: &str) -> Self {
        let sequence = sequence.map(|sequence| format!("\"sequence\":{sequence},")).unwrap_or_default();
        self.line(&format!("\"type\":\"{kind}\",{sequence}{flow}"))
    }

    fn end_of_snapshot(self, sequence: u64) -> Self {
        self.line(&format!(r#""type":"snapshot-end","sequence":{sequence}"#))
    }

    fn end(self, usec: u64) -> Self {
        let records = self.records;
        self.line(&format!(r#""type":"end","reason":"rotated","event_usec":{usec},"records":{records}"#))
    }

    fn name(&self, is_compressed: bool) -> String {
        FlowLogName { begin_usec: self.begin, is_compressed }.to_string()
    }
}

/// A flow with the source address 198.18.0.`host` that leaves from 198.18.9.9:`port`.
fn flow(id: u64, host: u8, port: u16, start: u64, end: Option<u64>) -> String {
    let end = end.map(|end| {
        format!(r#","orig_packets":3,"orig_bytes":300,"reply_packets":2,"reply_bytes":100,"end_usec":{end},"end_reason":"destroyed""#)
    });
    format!(
        r#""id":{id},"family":"ipv4","protocol":"tcp","protocol_number":6,"src":"198.18.0.{host}","sport":40000,"dst":"198.18.1.2","dport":443,"nat_src":"198.18.9.9","nat_sport":{port},"mark":256,"start_usec":{start}{},"initiator":{{"pid":9,"comm":"curl"}}"#,
        end.unwrap_or_default()
    )
}

struct Log(Directory);

impl Log {
    fn new() -> Self {
        Self(Directory::new("history"))
    }

    fn add(&self, file: &File) -> PathBuf {
        self.0.file(&file.name(false), &file.text)
    }

    fn add_compressed(&self, file: &File) -> PathBuf {
        let path = self.0.path().join(file.name(true));
        std::fs::write(&path, zstd::encode_all(file.text.as_bytes(), 3).unwrap()).unwrap();
        path
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(binary("flowctl"));
        command.args(["--bus", "unix:path=/nonexistent", "history", "--directory"]).arg(self.0.path());
        command.args(arguments).env("TZ", "UTC").env_remove("NO_COLOR").stdin(Stdio::null());
        command
    }

    fn ask(&self, arguments: &[&str]) -> Answer {
        run(&mut self.command(arguments))
    }

    /// The rows and the notices of an answer in JSON.
    fn found(&self, arguments: &[&str]) -> (Vec<Value>, Vec<Value>) {
        let answer = self.ask(&[arguments, &["--json"]].concat());
        assert_eq!(answer.code, Some(0), "{arguments:?}: {}{}", answer.stdout, answer.stderr);
        json_lines(&answer.stdout).into_iter().partition(|line| line.get("type").is_none())
    }

    fn ids(&self, arguments: &[&str]) -> Vec<u64> {
        self.found(arguments).0.iter().map(|row| row["id"].as_u64().unwrap()).collect()
    }

    /// Why an answer is not complete.
    fn reasons(&self, arguments: &[&str]) -> Vec<String> {
        let (_, notices) = self.found(arguments);
        assert!(notices.iter().all(|notice| notice["type"] == "incomplete"), "{notices:?}");
        notices.iter().map(|notice| notice["reason"].as_str().unwrap().to_owned()).collect()
    }
}

struct Answer {
    stdout: String,
    stderr: String,
    code: Option<i32>,
}

fn run(command: &mut Command) -> Answer {
    let output = command.output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Answer { stdout: text(&output.stdout), stderr: text(&output.stderr), code: output.status.code() }
}

fn instant(usec: u64) -> String {
    usec.to_string()
}

/// Two files of ten minutes each and the one that is written. Flow 1 lives through all, 2 ends in the first file, 3 while the files
/// change, 4 has the translated port that 2 had, 5 began and ended while nobody wrote, 6 is alive.
fn three_files() -> [File; 3] {
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

fn three() -> Log {
    let log = Log::new();
    let [first, second, third] = three_files();
    log.add_compressed(&first);
    log.add_compressed(&second);
    log.add(&third);
    log
}

#[test]
fn an_instant_has_the_flows_that_were_alive_then() {
    let log = three();
    for (time, ids) in [
        (at(0), vec![1]),
        (at(1), vec![2, 1]),
        (at(5), vec![2, 1]),
        (at(6), vec![1]),
        (at(9), vec![3, 1]),
        // What ended while nobody wrote is in the head of the next file.
        (at(10) - 1, vec![3, 5, 1]),
        (at(11), vec![1]),
        (at(13), vec![4, 1]),
        (at(19), vec![]),
        (at(21), vec![6]),
    ] {
        assert_eq!(log.ids(&["--at", &instant(time)]), ids, "{}", (time - NOON) / MINUTE);
    }
    let who = |time| log.found(&["nat_src=198.18.9.9", "nat_sport=1002", "--at", &instant(time)]).0;
    assert_eq!(who(at(3))[0]["src"], "198.18.0.2");
    assert_eq!(who(at(13))[0]["src"], "198.18.0.4");
    assert!(who(at(7)).is_empty());
    let rows = log.found(&["--at", "2026-11-22T12:03:00Z"]).0;
    assert_eq!((&rows[0]["end_usec"], rows[0].get("alive")), (&Value::from(at(5)), None));
    assert_eq!(rows[0]["machine"], MACHINE);
    assert_eq!(rows[0]["epoch"], EPOCH);
    // The end of flow 1 is in a later file: an instant needs no more than the head of it.
    assert_eq!((&rows[1]["id"], &rows[1]["alive"]), (&Value::from(1), &Value::from(true)));
}

#[test]
fn a_span_has_each_flow_once() {
    let log = three();
    assert_eq!(log.ids(&[]), [2, 3, 5, 4, 1, 6]);
    let since = |from: u64, to: u64| log.ids(&["--since", &instant(from), "--until", &instant(to)]);
    assert_eq!(since(at(2), at(13)), [2, 3, 5, 4, 1]);
    assert_eq!(since(at(11), at(16)), [4, 1]);
    assert_eq!(since(at(16), at(30)), [1, 6]);
    assert_eq!(log.ids(&["dport!=443"]), [0_u64; 0]);
    assert_eq!(log.ids(&["--port", "1002,1006", "src!=198.18.0.2"]), [4, 6]);
    assert_eq!(log.ids(&["min_bytes=400", "comm=CURL"]), [2, 3, 5, 4, 1], "an end has the bytes");
    assert_eq!(log.ids(&["-n", "2"]), [2, 3]);
    assert_eq!(log.ids(&["-n", "0"]), [0_u64; 0]);
    let fields = log.ask(&["--json", "--fields", "src,epoch,alive", "--at", &instant(at(3))]).stdout;
    assert_eq!(
        fields,
        format!(
            "{{\"epoch\":\"{EPOCH}\",\"src\":\"198.18.0.2\"}}\n{{\"epoch\":\"{EPOCH}\",\"alive\":true,\"src\":\"198.18.0.1\"}}\n"
        )
    );
}

#[test]
fn every_form_of_list_is_there() {
    let log = three();
    let printed = |form: &str| {
        let answer = log.ask(&["nat_sport=1002,1006", "-o", form]);
        assert_eq!(answer.code, Some(0), "{}", answer.stderr);
        answer.stdout
    };
    let table = printed("table");
    let lines: Vec<Vec<_>> = table.lines().map(|line| line.split_whitespace().collect()).collect();
    assert!(
        lines[0].starts_with(&["ID", "PROTO", "FROM", "TO", "NAT", "SOURCE", "BYTES", "STARTED", "ENDED"]),
        "{table}"
    );
    assert!(table.contains("2026-11-22 12:01:00  2026-11-22 12:05:00  destroyed  curl[9]"), "{table}");
    assert!(table.contains("from 198.18.9.9:1002  CHROME"), "{table}");
    assert!(lines[3].contains(&"alive") && lines[3].contains(&"198.18.0.6:40000"), "{table}");
    assert!(printed("csv").starts_with("machine,epoch,sequence,id,"), "{}", printed("csv"));
    assert!(printed("csv").lines().nth(3).unwrap().ends_with(",true"));
    let awk = "2 198.18.0.2 40000 198.18.9.9 1002 198.18.1.2 443 tcp 1795348860 1795349100 256 CHROME\n";
    assert!(printed("awk").starts_with(awk), "{}", printed("awk"));
    // The reply direction follows from the translation.
    let conntrack = printed("conntrack");
    let reply = "src=198.18.1.2 dst=198.18.9.9 sport=443 dport=1002";
    assert!(conntrack.starts_with("[DESTROY] tcp") && conntrack.contains(reply), "{conntrack}");
    assert!(printed("xml").contains("<sport>443</sport><dport>1002</dport>"), "{}", printed("xml"));
    let answer = run(log.command(&["-o", "table"]).env("NO_COLOR", "1"));
    assert!(!answer.stdout.contains('\u{1b}') && answer.stderr.lines().count() == 1, "{}", answer.stderr);
}

#[test]
fn an_answer_says_where_the_record_begins_and_ends() {
    let log = three();
    assert_eq!(log.reasons(&["--at", &instant(at(0) - 1)]), ["record-begins"]);
    assert_eq!(log.ids(&["--at", &instant(at(0) - 1)]), [1], "what was alive when it began");
    assert_eq!(log.reasons(&["--since", &instant(at(0) - 1), "--until", &instant(at(3))]), ["record-begins"]);
    assert_eq!(log.reasons(&["--at", &instant(at(5))]), [""; 0]);
    assert_eq!(log.reasons(&["--at", &instant(at(40))]), ["record-ends"]);
    let answer = log.ask(&["--at", "2026-11-22 11:00", "nat_sport=7"]);
    assert_eq!(answer.stdout, "");
    assert!(
        answer.stderr.starts_with("No recorded connection matches. The record of ")
            && answer.stderr.contains("begins at 2026-11-22 12:00:00.000000 +00:00")
            && answer.stderr.contains("flowctl: gateway: the record begins at "),
        "{}",
        answer.stderr
    );
    let answer = log.ask(&["--at", &instant(at(40))]);
    assert!(
        answer.stderr.contains("the last line of the record is of 2026-11-22 12:21:00"),
        "{}",
        answer.stderr
    );
}

#[test]
fn a_gap_in_the_time_that_is_asked_about_is_said() {
    let log = Log::new();
    let one = |end| flow(1, 1, 1001, at(1), end);
    log.add(
        &File::begin(at(0), 10, None)
            .end_of_snapshot(10)
            .flow("new", Some(11), &one(None))
            .line(&format!(
                r#""type":"gap","first":12,"last":20,"lost":9,"reason":"overrun","event_usec":{}"#,
                at(3)
            ))
            .line(&format!(
                r#""type":"resync","reason":"overrun","lost":9,"closed":0,"added":0,"event_usec":{}"#,
                at(3)
            ))
            .flow("destroy", Some(21), &one(Some(at(8))))
            .line(&format!(
                r#""type":"resync","reason":"new-socket","lost":0,"closed":0,"added":0,"event_usec":{}"#,
                at(9)
            ))
            .end(at(10)),
    );
    assert_eq!(log.reasons(&["--at", &instant(at(2))]), ["overrun"]);
    assert_eq!(log.reasons(&["--at", &instant(at(5))]), [""; 0], "what was alive then is known again");
    assert_eq!(log.reasons(&["--at", &instant(at(8) + 1)]), ["new-socket"]);
    let answer = log.ask(&["--at", &instant(at(2))]);
    assert!(
        answer.stderr.contains(
            "up to 9 changes missing between 2026-11-22 12:01:00.000000 +00:00 and 2026-11-22 12:03:00"
        ),
        "{}",
        answer.stderr
    );
    assert!(answer.stdout.contains("198.18.0.1:40000"), "{}", answer.stdout);
}

#[test]
fn an_end_that_is_missing_is_unknown_and_not_alive() {
    let [first, second, _] = three_files();
    // Another epoch: the machine was started again.
    let log = Log::new();
    log.add(&first);
    log.add(&File::of(MACHINE, OTHER, "gateway", at(30), 5, None).end_of_snapshot(5));
    let (rows, notices) = log.found(&["--at", &instant(at(9))]);
    let alive: Vec<_> =
        rows.iter().map(|row| (row["id"].as_u64().unwrap(), row["alive"].as_bool())).collect();
    assert_eq!(alive, [(1, Some(false)), (3, Some(false))]);
    assert_eq!(notices, [""; 0]);
    assert_eq!(log.reasons(&["--at", &instant(at(20))]), ["new-epoch"]);
    assert!(log.ask(&["--at", &instant(at(9))]).stdout.contains("unknown"));

    // The same epoch, without the ends.
    let log = Log::new();
    log.add(&first);
    let forgotten =
        r#""type":"gap","first":14,"last":16,"lost":2,"reason":"forgotten","event_usec":1795349400000000"#;
    log.add(&File::begin(at(10), 16, Some(13)).line(forgotten).end_of_snapshot(16));
    let (rows, notices) = log.found(&["--at", &instant(at(10) - 1)]);
    assert!(rows.iter().all(|row| row["alive"] == false) && rows.len() == 2, "{rows:?}");
    assert_eq!(notices[0]["reason"], "forgotten");
    assert_eq!((&notices[0]["lost"], &notices[0]["to_usec"]), (&Value::from(2), &Value::from(at(10))));

    // A file between two others is gone.
    let log = Log::new();
    log.add(&first);
    log.add(&File::begin(at(20), 19, Some(19)).end_of_snapshot(19));
    assert_eq!(log.reasons(&["--at", &instant(at(12))]), ["missing"]);
    assert_eq!(log.reasons(&["--at", &instant(at(3))]), [""; 0]);

    // A file lost its end, and the writer went on behind it.
    let log = Log::new();
    let mut cut = first.clone();
    cut.text.truncate(cut.text.find(r#""sequence":12"#).unwrap());
    log.add(&cut);
    log.add(&second);
    assert_eq!(log.reasons(&["--at", &instant(at(6))]), ["missing"]);
    let rows = log.found(&["--at", &instant(at(4))]).0;
    assert_eq!((&rows[0]["id"], &rows[0]["alive"]), (&Value::from(2), &Value::from(false)));

    // It has no end, but the next file goes on where it was: nothing is missing.
    let log = Log::new();
    let mut torn = first.clone();
    torn.text.truncate(torn.text.find(r#""type":"end""#).unwrap());
    log.add(&torn);
    log.add(&second);
    assert_eq!(log.reasons(&["--at", &instant(at(9))]), [""; 0]);
    assert_eq!(log.ids(&["--at", &instant(at(9))]), [3, 1]);
}

#[test]
fn a_file_that_is_written_may_end_in_the_middle_of_a_line() {
    let log = Log::new();
    let [first, second, third] = three_files();
    log.add_compressed(&first);
    log.add(&second);
    let mut torn = third.clone();
    torn.text.truncate(torn.text.len() - 20);
    log.add(&torn);
    assert_eq!(log.ids(&["--at", &instant(at(13))]), [4, 1]);
    assert_eq!(log.reasons(&["--at", &instant(at(13))]), [""; 0]);
    assert_eq!(log.reasons(&["--at", &instant(at(21))]), ["record-ends"]);
    // A file that has just been made has no line.
    std::fs::write(log.0.path().join(File::begin(at(30), 1, None).name(false)), "").unwrap();
    assert_eq!(log.ids(&["--at", &instant(at(13))]), [4, 1]);
}

#[test]
fn lines_that_are_no_lines_of_a_log_are_counted() {
    let log = Log::new();
    let [first, ..] = three_files();
    let lines: Vec<_> = first.text.lines().collect();
    let long = "x".repeat(3 << 20);
    let bad = ["[1]", "7", "null", "\0\0\0\0", "{\"type\":", "not json", &long, r#"{"type":"new","id":"x"}"#];
    let strange = r#"{ "id": 8, "type": "new", "machine": "m", "src": "198.18.0.8", "dst": "198.18.1.2", "start_usec": 1795348920000000 }"#;
    let all: Vec<_> = lines[..3].iter().copied().chain(bad).chain([strange, r#"{"type":"later"}"#]).collect();
    let path = log.0.path().join(first.name(false));
    let end = first.text.lines().last().unwrap().replace("\"records\":6", "\"records\":15");
    std::fs::write(&path, format!("{}\n{}\n{end}\n", all.join("\n"), lines[3..6].join("\n"))).unwrap();
    let (rows, notices) = log.found(&["--at", &instant(at(3))]);
    let ids: Vec<_> = rows.iter().map(|row| row["id"].as_u64().unwrap()).collect();
    assert_eq!(ids, [2, 1, 8], "{notices:?}");
    assert_eq!(
        (notices.len(), &notices[0]["reason"], &notices[0]["lost"]),
        (1, &Value::from("lines"), &Value::from(8))
    );
    // A record that lacks lines says so by the number in its end.
    let whole = first.text.replace("\"records\":6", "\"records\":9");
    std::fs::write(&path, whole).unwrap();
    assert_eq!(log.found(&["--at", &instant(at(3))]).1[0]["lost"], 3);
}

#[test]
fn what_cannot_be_read_is_an_error_beside_what_can() {
    let log = three();
    let path = log.0.path().join(three_files()[0].name(true));
    let good = std::fs::read(&path).unwrap();
    let ask = || log.ask(&["--since", &instant(at(0)), "--until", &instant(at(16))]);

    let mut corrupt = good.clone();
    corrupt.truncate(good.len() / 2);
    std::fs::write(&path, &corrupt).unwrap();
    let answer = ask();
    assert_eq!(answer.code, Some(1), "{}", answer.stderr);
    assert!(
        answer.stderr.contains("cannot read ") && answer.stderr.contains(".ndjson.zst"),
        "{}",
        answer.stderr
    );
    assert!(answer.stderr.contains("1 file of the log could not be read: the answer is not complete."));
    assert!(answer.stdout.contains("198.18.0.4:40000"), "{}", answer.stdout);

    std::fs::write(&path, "no zstd").unwrap();
    let json = log.ask(&["--json", "--at", &instant(at(3))]);
    assert_eq!((json.code, json_lines(&json.stdout)[0]["reason"].as_str()), (Some(1), Some("unreadable")));
    std::fs::write(&path, zstd::encode_all(&b"{\"type\":\"new\"}\n"[..], 3).unwrap()).unwrap();
    assert_eq!(json_lines(&log.ask(&["--json", "--at", &instant(at(3))]).stdout)[0]["reason"], "not-a-log");
    // Of times that it says nothing of it is not missing.
    assert_eq!(log.ask(&["--at", &instant(at(13))]).code, Some(0));

    std::fs::write(&path, &good).unwrap();
    let nobody = |command: &mut Command| run(command.uid(65_534).gid(65_534));
    // The program itself is where nobody can run it.
    let copy = Directory::new("program");
    let program = copy.path().join("flowctl");
    std::fs::copy(binary("flowctl"), &program).unwrap();
    let set = |path: &std::path::Path, mode| {
        std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(mode)).unwrap();
    };
    [copy.path(), &program, log.0.path()].into_iter().for_each(|path| set(path, 0o755));
    let command = || {
        let mut command = Command::new(&program);
        command.args(["history", "--directory"]).arg(log.0.path()).args(["--at", &instant(at(3))]);
        command
    };
    set(&path, 0o640);
    let denied = nobody(&mut command());
    assert_eq!(denied.code, Some(1));
    assert!(
        denied.stderr.contains("Permission denied") && denied.stderr.contains("usermod -aG flowbus"),
        "{}",
        denied.stderr
    );
    set(log.0.path(), 0o750);
    let denied = nobody(&mut command());
    assert_eq!(denied.code, Some(1));
    assert!(
        denied.stderr.contains("cannot read the flow log in ")
            && denied.stderr.contains("usermod -aG flowbus"),
        "{}",
        denied.stderr
    );
}

#[test]
fn machines_are_told_apart() {
    let log = three();
    const FOREIGN: &str = "22222222222222222222222222222222";
    let file = File::of(FOREIGN, OTHER, "west", at(2), 3, None)
        .end_of_snapshot(3)
        .flow("new", Some(4), &flow(2, 7, 1002, at(3), None))
        .flow("destroy", Some(5), &flow(2, 7, 1002, at(3), Some(at(4))))
        .end(at(30));
    log.add_compressed(&file);
    let who = ["nat_sport=1002", "--at", &instant(at(3))];
    let machines: Vec<_> =
        log.found(&who).0.iter().map(|row| row["machine"].as_str().unwrap().to_owned()).collect();
    assert_eq!(machines, [MACHINE, FOREIGN]);
    let table = log.ask(&who).stdout;
    assert!(
        table.starts_with("MACHINE  ID  PROTO")
            && table.contains("gateway  2 ")
            && table.contains("west     2 "),
        "{table}"
    );
    assert!(
        log.ask(&[&who[..], &["-o", "csv"]].concat()).stdout.contains(&format!("\n{FOREIGN},{OTHER},5,2,"))
    );
    for machine in ["west", "2222", FOREIGN] {
        assert_eq!(log.found(&[&who[..], &["--machine", machine]].concat()).0[0]["src"], "198.18.0.7");
    }
    let refused = log.ask(&["-o", "awk"]);
    assert_eq!(refused.code, Some(2));
    assert!(refused.stderr.contains("choose one with --machine: gateway, west"), "{}", refused.stderr);
    assert_eq!(log.ask(&["-o", "awk", "--machine", "west"]).stdout.lines().count(), 1);
    assert_eq!(log.ask(&["--machine", "east"]).code, Some(2));
    log.add(&File::of(FOREIGN, OTHER, "gateway", at(40), 5, Some(5)).end_of_snapshot(5).end(at(41)));
    let table = log.ask(&who).stdout;
    assert!(table.contains("gateway-11111111  2 ") && table.contains("gateway-22222222  2 "), "{table}");
    // Each record has its own begin and end.
    let reasons = log.found(&["--at", &instant(at(1))]).1;
    assert_eq!((reasons.len(), &reasons[0]["machine"]), (1, &Value::from(FOREIGN)));
}

#[test]
fn other_names_are_not_of_the_log_and_of_two_forms_one_is_read() {
    let log = three();
    let [first, ..] = three_files();
    log.add(&first);
    for name in
        ["flows-.ndjson", "flows-20261122T120000.000000Z.ndjson.zst.new", "notes.txt", "flows-x.ndjson.zst"]
    {
        std::fs::write(log.0.path().join(name), "no log").unwrap();
    }
    assert_eq!(log.ids(&["--at", &instant(at(3))]), [2, 1]);
    assert_eq!(log.reasons(&["--at", &instant(at(3))]), [""; 0]);

    let nothing = Directory::new("nothing");
    let ask = |directory: &std::path::Path| {
        run(Command::new(binary("flowctl")).args(["history", "--directory"]).arg(directory))
    };
    let empty = ask(nothing.path());
    assert_eq!((empty.code, empty.stdout.as_str()), (Some(1), ""));
    assert!(
        empty.stderr.contains("there is no flow log in ") && empty.stderr.contains("flowbus-export@log"),
        "{}",
        empty.stderr
    );
    let absent = ask(&nothing.path().join("absent"));
    assert_eq!(absent.code, Some(1));
    assert!(
        absent.stderr.contains("No such file") && absent.stderr.contains("--directory"),
        "{}",
        absent.stderr
    );
}

#[test]
fn what_a_process_calls_itself_is_shown_escaped() {
    let log = Log::new();
    let hostile = flow(1, 1, 1001, at(1), Some(at(2))).replace("curl", r"\u001b]0;owned\u0007");
    log.add(
        &File::of(MACHINE, EPOCH, r"gate\u001b[2J", at(0), 1, None)
            .end_of_snapshot(1)
            .flow("destroy", Some(2), &hostile)
            .end(at(3)),
    );
    for form in ["table", "csv", "json", "awk", "conntrack", "xml"] {
        let answer = log.ask(&["-o", form, "--since", &instant(at(0) - 1), "--until", &instant(at(5))]);
        assert!(!answer.stdout.contains(['\u{1b}', '\u{7}']), "{form}: {:?}", answer.stdout);
        assert!(!answer.stderr.contains('\u{1b}'), "{form}: {:?}", answer.stderr);
    }
    assert!(log.ask(&[]).stdout.contains(r"\u{1b}]0;owned\u{7}[9]"), "{}", log.ask(&[]).stdout);
}

#[test]
fn a_condition_on_what_the_log_leaves_out_has_no_answer() {
    let log = three();
    let (rows, notices) = log.found(&["status=assured", "--at", &instant(at(3))]);
    assert!(rows.is_empty());
    assert_eq!(notices[0]["reason"], "not-recorded");
    let answer = log.ask(&["status=assured", "--at", &instant(at(3))]);
    assert!(
        answer.stderr.contains("not compared with status, which the log does not record"),
        "{}",
        answer.stderr
    );
    for (arguments, told) in [
        (&["--at", "soon"][..], "how long ago it was"),
        (&["--at", "1h", "since=2h"], "--at does not go with since or until"),
        (&["--at", "1h", "--since", "2h"], "cannot be used with"),
        (&["source=GUEST"], "give the number"),
        (&["dprt=5"], "did you mean dport?"),
        (&["--fields", "id", "-o", "awk"], "--fields goes with"),
    ] {
        let refused = log.ask(arguments);
        assert_eq!(refused.code, Some(2), "{arguments:?}");
        assert!(refused.stderr.contains(told), "{}", refused.stderr);
    }
    let mut list = Command::new(binary("flowctl"));
    let refused = run(list.args(["list", "--fields", "machine"]));
    assert_eq!(refused.code, Some(2));
    assert!(refused.stderr.contains("only history has the field machine"), "{}", refused.stderr);
    assert_eq!(log.ask(&["--at", "3 weeks ago"]).code, Some(0));
}

/// A log for carriers: destinations are left out.
#[test]
fn a_destination_that_is_left_out_is_not_said_to_be_absent() {
    let log = Log::new();
    let only_src = flow(1, 1, 1001, at(1), Some(at(2))).replace(r#""dst":"198.18.1.2","dport":443,"#, "");
    let untranslated =
        only_src.replace(r#","nat_src":"198.18.9.9","nat_sport":1001"#, "").replace(":1,", ":2,");
    for begin in [
        File::begin(at(0), 1, None),
        File::begin(at(0), 1, None).fields(&[
            "id",
            "src",
            "sport",
            "nat_src",
            "nat_sport",
            "start_usec",
            "end_usec",
        ]),
    ] {
        log.add(
            &begin
                .end_of_snapshot(1)
                .flow("destroy", Some(2), &only_src)
                .flow("destroy", Some(3), &untranslated)
                .end(at(9)),
        );
        for words in ["dst=198.18.1.2", "dport=443", "address=198.18.1.2", "port=443", "reply_src=198.18.1.2"]
        {
            let (rows, notices) = log.found(&[words, "--until", &instant(at(8))]);
            assert!(rows.is_empty(), "{words}");
            assert_eq!((notices.len(), notices[0]["lost"].as_u64()), (1, Some(2)), "{words}: {notices:?}");
            assert_eq!(notices[0]["reason"], "not-recorded", "{words}");
        }
        assert_eq!(log.ids(&["address=198.18.9.9", "port=1001", "nat_src=198.18.9.9"]), [1]);
        assert_eq!(log.reasons(&["src=198.18.9.9", "sport=7", "--until", &instant(at(8))]), [""; 0]);
    }
}

#[test]
fn a_field_that_the_log_does_not_have_is_told_from_one_that_the_flow_does_not_have() {
    let log = Log::new();
    let one = flow(1, 1, 1001, at(1), Some(at(2)));
    let file = |fields: &[&str]| {
        File::begin(at(0), 1, None)
            .fields(fields)
            .end_of_snapshot(1)
            .flow("destroy", Some(2), &one)
            .end(at(9))
    };
    const FIELDS: &[&str] = &[
        "id",
        "protocol_number",
        "src",
        "sport",
        "dst",
        "dport",
        "nat_src",
        "nat_sport",
        "mark",
        "start_usec",
        "end_usec",
        "initiator",
    ];
    log.add(&file(FIELDS));
    for words in [
        "interface=wan0",
        "interface!=wan0",
        "comm=sshd",
        "comm!=sshd",
        "helper=ftp",
        "labels=1",
        "zone=7",
        "nat=destination",
        "nat_dst=198.18.1.2",
        "nat_dport!=443",
    ] {
        let (rows, notices) = log.found(&[words, "--until", &instant(at(8))]);
        assert!(rows.is_empty(), "{words}");
        assert_eq!(notices.first().map(|notice| &notice["reason"]), Some(&"not-recorded".into()), "{words}");
    }
    assert_eq!(
        log.ids(&["comm=curl", "nat=source,destination", "min_bytes=400"]),
        [1],
        "the line says enough"
    );
    log.add(&file(&[FIELDS, &["interface", "responder", "nat_dst", "nat_dport"]].concat()));
    assert_eq!(log.ids(&["interface!=wan0", "comm!=sshd", "nat!=destination", "nat_dst!=198.18.1.2"]), [1]);
    assert_eq!(log.reasons(&["interface=wan0", "--until", &instant(at(8))]), [""; 0]);
    assert_eq!(log.reasons(&["comm=sshd", "--until", &instant(at(8))]), [""; 0]);
}

#[test]
fn ends_are_sought_until_the_beginning_of_a_file_is_whole() {
    let log = Log::new();
    let one = |end| flow(1, 1, 1001, at(1), end);
    log.add(&File::begin(at(0), 1, None).end_of_snapshot(1).flow("new", Some(2), &one(None)).end(at(4)));
    // It was killed before it had written what ended.
    log.add(&File::begin(at(5), 4, Some(2)));
    let asked = ["--at", &instant(at(4) + 1)];
    assert_eq!(log.reasons(&asked), ["record-ends"], "what ended since is nowhere");
    log.add(
        &File::begin(at(6), 4, Some(2))
            .flow("closed", Some(3), &one(Some(at(5) - 1)))
            .flow("closed", Some(4), &flow(2, 2, 1002, at(4), Some(at(5) - 1)))
            .end_of_snapshot(4),
    );
    assert_eq!(log.ids(&asked), [1, 2]);
    assert_eq!(log.reasons(&asked), [""; 0]);
}

#[test]
fn files_are_read_in_the_order_of_changes_where_the_clock_was_set_back() {
    let log = Log::new();
    let one = |end| flow(1, 1, 1001, at(61), end);
    log.add(&File::begin(at(60), 1, None).end_of_snapshot(1).flow("new", Some(2), &one(None)).end(at(70)));
    log.add(
        &File::begin(at(10), 2, Some(2))
            .flow("flow", None, &one(None))
            .end_of_snapshot(2)
            .flow("destroy", Some(3), &one(Some(at(75))))
            .end(at(75)),
    );
    log.add(&File::begin(at(75), 3, Some(3)).end_of_snapshot(3));
    for time in [at(62), at(69)] {
        let (rows, notices) = log.found(&["--at", &instant(time)]);
        assert_eq!((rows.len(), rows[0]["end_usec"].as_u64()), (1, Some(at(75))), "{rows:?}");
        assert_eq!((notices.len(), &notices[0]["reason"]), (1, &Value::from("clock-set-back")));
    }
    assert_eq!(log.reasons(&["--at", &instant(at(74))]), [""; 0], "that time was once");
    assert_eq!(log.reasons(&["--at", &instant(at(9))]), ["record-begins"]);
    let answer = log.ask(&["--at", &instant(at(62))]);
    assert!(answer.stderr.contains("the clock was set back from "), "{}", answer.stderr);
}

#[test]
fn nothing_but_files_is_opened() {
    let name = |minute| File::begin(at(minute), 1, None).name(false);
    let make_pipe = |path: &std::path::Path| {
        assert!(Command::new("mkfifo").arg(path).status().unwrap().success());
    };
    let make_link = |path: &std::path::Path| std::os::unix::fs::symlink("/dev/zero", path).unwrap();
    let make_directory = |path: &std::path::Path| std::fs::create_dir(path).unwrap();
    let makes: [&dyn Fn(&std::path::Path); 3] = [&make_pipe, &make_link, &make_directory];
    for make in makes {
        let log = three();
        make(&log.0.path().join(name(1)));
        let answer = log.ask(&["--at", &instant(at(3))]);
        assert_eq!(answer.code, Some(1), "{}", answer.stderr);
        assert!(answer.stderr.contains(&name(1)), "{}", answer.stderr);
        assert!(answer.stderr.contains("not a regular file"), "{}", answer.stderr);
        assert!(answer.stdout.contains("198.18.0.2:40000"), "{}", answer.stdout);
    }
}

#[test]
fn no_form_has_characters_that_do_not_print() {
    const HIDDEN: &str = "\u{9b}2J\u{202e}\u{7f}";
    let log = Log::new();
    let epoch: &'static str = format!("e{HIDDEN}").leak();
    let machine: &'static str = format!("m{HIDDEN}").leak();
    let hostile = flow(1, 1, 1001, at(1), Some(at(2))).replace("curl", &format!("é{HIDDEN}"));
    log.add(
        &File::of(machine, epoch, "gateway", at(0), 1, None)
            .end_of_snapshot(1)
            .flow("destroy", Some(2), &hostile)
            .end(at(3)),
    );
    let asked = ["--since", &instant(at(0) - 1), "--until", &instant(at(5))];
    for form in [
        &["-o", "table"][..],
        &["-o", "csv"],
        &["-o", "json"],
        &["-o", "awk"],
        &["-o", "conntrack"],
        &["-o", "xml"],
        &["--fields", "machine,epoch,process", "--numeric"],
        &["--json", "--fields", "machine,epoch,initiator"],
    ] {
        let answer = log.ask(&[form, &asked].concat());
        assert_eq!(answer.code, Some(0), "{form:?}: {}", answer.stderr);
        assert!(!answer.stdout.contains(['\u{9b}', '\u{202e}', '\u{7f}']), "{form:?}: {:?}", answer.stdout);
        assert!(!answer.stderr.contains(['\u{9b}', '\u{202e}', '\u{7f}']), "{form:?}: {:?}", answer.stderr);
    }
    let row = &log.found(&asked).0[0];
    assert_eq!(row["initiator"]["comm"], format!("é{HIDDEN}"), "the value is the same");
}

#[test]
fn a_file_that_cannot_be_read_may_be_of_each_machine() {
    let log = Log::new();
    log.add(&File::begin(at(0), 1, None).end_of_snapshot(1).end(at(1)));
    log.add(&File::of("22222222222222222222222222222222", OTHER, "west", at(10), 1, None).end_of_snapshot(1));
    // Files that are just being made, of both machines.
    for minute in [4, 30] {
        std::fs::write(log.0.path().join(File::begin(at(minute), 1, None).name(false)), "").unwrap();
    }
    let code = || log.ask(&["--at", &instant(at(20))]).code;
    assert_eq!(code(), Some(0));
    // The first machine has no file after it.
    let path = log.0.path().join(File::begin(at(5), 1, None).name(true));
    std::fs::write(&path, "no zstd").unwrap();
    assert_eq!(code(), Some(1));
    log.add(&File::begin(at(15), 1, None).end_of_snapshot(1));
    assert_eq!(code(), Some(0), "each machine has a later file");
}
