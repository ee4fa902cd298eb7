//! Files that cannot be read, or that somebody made to do harm.

use std::os::unix::process::CommandExt;
use std::process::Command;

use flowbus_tests::daemon::binary;
use flowbus_tests::process::Directory;

use crate::json_lines;

use super::log::*;

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
