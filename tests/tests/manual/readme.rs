//! README: that it is short, and that its numbers and the words of all texts are what they have to be.

use std::process::Command;

use super::root;

fn readme() -> String {
    std::fs::read_to_string(root().join("README.md")).unwrap()
}

#[test]
fn it_is_read_in_a_few_minutes() {
    let readme = readme();
    let prose = readme.split("```").step_by(2);
    let words = prose.map(|part| part.split_whitespace().count()).sum::<usize>();
    assert!(words <= 900, "{words} words outside of code");
    for line in readme.lines() {
        assert!(line.chars().count() <= 120, "{line}");
    }
}

#[test]
fn its_numbers_are_those_of_the_last_measurement() {
    let measured = std::fs::read_to_string(root().join("docs/performance.md")).unwrap();
    let median = |figure: &str| {
        let row = measured.lines().find(|line| line.starts_with(&format!("| {figure} | **")));
        let row = row.unwrap_or_else(|| panic!("no row of {figure}"));
        row.split("**").nth(1).unwrap().to_owned()
    };
    let readme = readme();
    for (row, figure) in [
        ("events received of a burst of 400,000", "events of a burst received"),
        ("CPU time per event", "CPU an event"),
    ] {
        let row = readme.lines().find(|line| line.starts_with(&format!("| {row} |"))).unwrap();
        let shown: Vec<_> = row.split('|').skip(2).map(|cell| cell.trim().replace("**", "")).collect();
        for (shown, peer) in shown.iter().zip(["flowbusd", "conntrack -E -b 32M", "ulogd2"]) {
            assert_eq!(
                shown.trim_end_matches(" µs"),
                median(&format!("{figure}: {peer}")),
                "{figure}: {peer}"
            );
        }
    }
    for (sentence, figure) in
        [("reaches a program in N s", "OpenStream, all fields"), ("`conntrack -L` takes N s", "conntrack -L")]
    {
        let sentence = sentence.replace('N', &median(figure));
        assert!(readme.contains(&sentence), "{sentence}");
    }
}

#[test]
fn no_text_uses_words_that_readers_stumble_over() {
    let words = r"\b(so many|is told|are told|was told|told of|tells of|word of|untold|somewhen)\b";
    let mut grep = Command::new("grep");
    grep.args([
        "-rniIE",
        words,
        "--exclude-dir=target",
        "--exclude-dir=.git",
        "--exclude-dir=tests",
        "--exclude-dir=corpus",
    ]);
    let found = grep.args(["--exclude=CHANGELOG.md", "."]).current_dir(root()).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&found.stdout), "");
    assert_eq!(found.status.code(), Some(1), "{}", String::from_utf8_lossy(&found.stderr));
}
