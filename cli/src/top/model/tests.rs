use std::collections::HashMap;
use std::time::Duration;

use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};

use super::*;
use crate::top::tally::Counted;
use crate::top::traffic::Traffic;
use crate::top::{input, screen};

fn row(id: u64, rate: u64) -> TallyRow {
    let traffic = |total: u64| Some(Traffic { up: total / 4, down: total - total / 4 });
    TallyRow {
        id,
        rate: traffic(rate),
        bytes: traffic(rate * 2),
        start: Some(id),
        flows: 1,
        ..TallyRow::default()
    }
}

fn snapshot(model: &Model, rows: Vec<TallyRow>) -> Box<Snapshot> {
    let flow = |row: &TallyRow| {
        let json = format!(
            r#"{{"id":{},"protocol":"tcp","src":"198.18.0.2","sport":{},"dst":"198.18.1.2","dport":443,
                "source":"CHROME","start_usec":1,"start_source":"event"}}"#,
            row.id,
            40_000 + row.id
        );
        (row.id, OwnedFlow::from_json(&json).unwrap())
    };
    let shown: HashMap<_, _> = rows.iter().filter(|row| row.id > 0).map(flow).collect();
    let sample =
        Some(Sample { rate: Traffic { up: 2048, down: 3072 }, new: 3, interval: Duration::from_secs(2) });
    let flows = rows.len() as u64;
    Box::new(Snapshot {
        view: model.wish().view,
        counted: Counted {
            rows,
            flows,
            all_rows: flows,
            sample,
            ended: Vec::new(),
            unremembered: 0,
            memory: None,
        },
        shown,
        now: 5_000_001,
        accounting: true,
        synchronized: true,
        kernel: Some((flows, 262_144)),
    })
}

fn model(rows: Vec<TallyRow>) -> Model {
    let mut model = Model::new(String::new(), Grouping::Flow, None);
    let snapshot = snapshot(&model, rows);
    model.report(Report::Snapshot(snapshot));
    model
}

fn press(model: &mut Model, code: KeyCode) -> bool {
    input::press(model, KeyEvent::new(code, KeyModifiers::NONE))
}

fn write(model: &mut Model, text: &str) {
    for letter in text.chars() {
        assert!(press(model, KeyCode::Char(letter)));
    }
}

fn screen_of(model: &mut Model) -> String {
    let mut terminal = Terminal::new(TestBackend::new(80, 24)).unwrap();
    terminal.draw(|frame| screen::draw(frame, model)).unwrap();
    terminal.backend().to_string()
}

fn ids(model: &Model) -> Vec<u64> {
    model.rows().iter().map(|row| row.id).collect()
}

#[test]
fn the_screen_shows_flows_rates_and_keys_in_eighty_columns() {
    let text = screen_of(&mut model(vec![row(7, 1024), row(8, 10)]));
    for words in [
        "flowctl top  2 flows  2 of 262144 in the kernel",
        "new/s      1.5",
        "up/s      2.0K",
        "down/s    3.0K",
        "flows by rate  filter: none",
        "  *UP *DOWN  BYTES PROTO  SOURCE   FROM",
        "  256   768   2.0K tcp    CHROME   198.18.0.2:40007",
        "198.18.1.2:443",
        "q quit  / filter",
    ] {
        assert!(text.contains(words), "{words} is not in:\n{text}");
    }
}

#[test]
fn the_bar_stays_on_its_flow_but_not_on_the_first() {
    let mut model = model(vec![row(1, 30), row(2, 20), row(3, 10)]);
    press(&mut model, KeyCode::Down);
    assert_eq!(model.rows()[model.selected].id, 2);
    let next = snapshot(&model, vec![row(1, 30), row(3, 40), row(2, 20)]);
    model.report(Report::Snapshot(next));
    assert_eq!((ids(&model), model.selected), (vec![3, 1, 2], 2));
    press(&mut model, KeyCode::Home);
    let next = snapshot(&model, vec![row(1, 90), row(3, 40), row(2, 20)]);
    model.report(Report::Snapshot(next));
    assert_eq!((ids(&model), model.selected), (vec![1, 3, 2], 0));
    press(&mut model, KeyCode::End);
    let next = snapshot(&model, vec![row(1, 90)]);
    model.report(Report::Snapshot(next));
    assert_eq!(model.selected, 0, "there is no third row any more");
}

#[test]
fn orders_sort_what_is_here_and_ask_for_the_rest() {
    let mut model = model(vec![row(1, 30), row(2, 20)]);
    for (order, first) in [(Order::Bytes, 1), (Order::New, 2), (Order::Age, 1), (Order::Rate, 1)] {
        press(&mut model, KeyCode::Char('s'));
        assert_eq!((model.wish().view.order, ids(&model)[0]), (order, first));
    }
}

#[test]
fn without_accounting_the_latest_come_first_and_the_screen_says_why() {
    let mut model = model(vec![row(1, 0), row(2, 0)]);
    let mut off = snapshot(&model, vec![row(1, 0), row(2, 0)]);
    off.accounting = false;
    model.report(Report::Snapshot(off));
    assert_eq!((model.wish().view.order, ids(&model)), (Order::New, vec![2, 1]));
    assert!(screen_of(&mut model).contains("Accounting is off, so no bytes: sysctl -w"));
    for _ in 0..3 {
        press(&mut model, KeyCode::Char('s'));
    }
    assert_eq!(model.order(), Order::Bytes, "whoever chooses an order gets it");
}

#[test]
fn a_filter_holds_as_it_is_written_and_a_mistake_is_told() {
    let mut model = model(vec![row(1, 30)]);
    press(&mut model, KeyCode::Char('/'));
    write(&mut model, "dport=44");
    assert_eq!(model.wish().view.filter, parse_filter("dport=44").unwrap());
    assert!(model.rows().is_empty() && model.history.is_empty(), "those were of other flows");
    write(&mut model, "x");
    assert!(screen_of(&mut model).contains("dport takes a port from 0 to 65535"));
    assert_eq!(model.wish().view.filter, parse_filter("dport=44").unwrap(), "the last good one holds");
    press(&mut model, KeyCode::Enter);
    assert!(model.edit.is_some(), "a mistake is not kept");
    press(&mut model, KeyCode::Backspace);
    write(&mut model, "3");
    press(&mut model, KeyCode::Enter);
    assert_eq!((model.edit.as_deref(), model.filter.as_str()), (None, "dport=443"));
    press(&mut model, KeyCode::Char('/'));
    write(&mut model, " source=q");
    press(&mut model, KeyCode::Esc);
    assert_eq!((model.filter.as_str(), &model.mistake), ("dport=443", &None));
    press(&mut model, KeyCode::Esc);
    assert_eq!(model.filter, "");
}

#[test]
fn letters_of_a_filter_are_no_commands() {
    let mut model = model(vec![row(1, 30)]);
    press(&mut model, KeyCode::Char('/'));
    write(&mut model, "qpgs?");
    assert_eq!(model.edit.as_deref(), Some("qpgs?"));
    let control = |letter| KeyEvent::new(KeyCode::Char(letter), KeyModifiers::CONTROL);
    assert!(input::press(&mut model, control('u')));
    assert_eq!(model.edit.as_deref(), Some(""));
    write(&mut model, "a=1 b");
    assert!(input::press(&mut model, control('w')));
    assert_eq!(model.edit.as_deref(), Some("a=1 "));
    assert!(!input::press(&mut model, control('c')), "this one is");
}

#[test]
fn a_held_picture_takes_no_report() {
    let mut model = model(vec![row(1, 30)]);
    let late = snapshot(&model, vec![row(2, 30)]);
    press(&mut model, KeyCode::Char('p'));
    assert!(model.wish().paused && screen_of(&mut model).contains("[paused]"));
    model.report(Report::Snapshot(late));
    assert_eq!(ids(&model), [1]);
    press(&mut model, KeyCode::Char(' '));
    assert!(!model.wish().paused);
}

#[test]
fn a_group_opens_into_its_flows_and_a_flow_into_its_fields() {
    let mut model = model(vec![row(1, 30)]);
    let late = snapshot(&model, vec![row(1, 30)]);
    press(&mut model, KeyCode::Char('g'));
    assert_eq!(model.wish().view.grouping, Grouping::Source);
    model.report(Report::Snapshot(late));
    assert!(model.rows().is_empty(), "flows are no groups");
    let named = |name: &str| TallyRow { name: name.to_owned(), flows: 2, new: 1, ..row(0, 9) };
    let groups = snapshot(&model, vec![named("CHROME")]);
    model.report(Report::Snapshot(groups));
    let text = screen_of(&mut model);
    assert!(text.contains("by source, rate first") && text.contains("in 1 groups"), "{text}");
    press(&mut model, KeyCode::Enter);
    assert_eq!((model.grouping, model.filter.as_str()), (Grouping::Flow, "source=CHROME"));
    let flows = snapshot(&model, vec![row(7, 30)]);
    model.report(Report::Snapshot(flows));
    press(&mut model, KeyCode::Enter);
    assert_eq!(model.wish().detail, Some(7));
    let flow = |id| OwnedFlow::from_json(&format!(r#"{{"id":{id},"timeout":30}}"#));
    model.report(Report::Detail { id: 8, flow: Ok(flow(8).unwrap()) });
    assert!(!screen_of(&mut model).contains("30s"), "that is another flow's");
    model.report(Report::Detail { id: 7, flow: Ok(flow(7).unwrap()) });
    assert!(screen_of(&mut model).contains("timeout  30s"));
    press(&mut model, KeyCode::Esc);
    assert_eq!(model.wish().detail, None);
}

#[test]
fn flows_without_a_process_cannot_be_chosen_by_one() {
    let mut model = model(vec![row(1, 30)]);
    press(&mut model, KeyCode::Char('g'));
    press(&mut model, KeyCode::Char('g'));
    let unknown = snapshot(&model, vec![row(0, 9)]);
    model.report(Report::Snapshot(unknown));
    assert!(screen_of(&mut model).contains("unknown"));
    press(&mut model, KeyCode::Enter);
    assert_eq!((model.grouping, model.filter.as_str()), (Grouping::Process, ""));
    assert!(screen_of(&mut model).contains("no filter chooses the flows without a process"));
}

#[test]
fn a_long_table_scrolls_and_help_lists_the_keys() {
    let mut model = model((1..=100).map(|id| row(id, 1000 - id)).collect());
    assert!(screen_of(&mut model).contains("198.18.0.2:40001"));
    press(&mut model, KeyCode::End);
    let text = screen_of(&mut model);
    assert!(text.contains("198.18.0.2:40100") && !text.contains("198.18.0.2:40001"), "{text}");
    press(&mut model, KeyCode::Char('?'));
    let text = screen_of(&mut model);
    for key in ["Enter", "g, G", "p, Space", "q, Ctrl-C"] {
        assert!(text.contains(key), "{key} is not in:\n{text}");
    }
    press(&mut model, KeyCode::Char('?'));
    assert!(!press(&mut model, KeyCode::Char('q')));
}

#[test]
fn a_flow_that_ended_stays_greyed_for_a_moment() {
    let mut model = model(vec![row(1, 30), row(2, 20), row(3, 10)]);
    let mut next = snapshot(&model, vec![row(2, 20)]);
    next.counted.ended = vec![1];
    model.report(Report::Snapshot(next));
    assert_eq!(ids(&model), [1, 2], "3 is not said to have ended: it is not among the first rows any more");
    let greyed = |model: &mut Model| {
        let mut terminal = Terminal::new(TestBackend::new(80, 24)).unwrap();
        terminal.draw(|frame| screen::draw(frame, model)).unwrap();
        let buffer = terminal.backend().buffer();
        let is_dim = |row: u16| buffer[(0, row)].modifier.contains(ratatui::style::Modifier::DIM);
        [6, 7].map(is_dim)
    };
    assert_eq!(greyed(&mut model), [true, false]);
    assert!(screen_of(&mut model).contains("198.18.0.2:40001"), "with what was known of it");
    // The next snapshot does not give it another moment.
    let (end, next) = (model.next_end(), snapshot(&model, vec![row(2, 20)]));
    model.report(Report::Snapshot(next));
    assert_eq!((model.next_end(), ids(&model)), (end, vec![1, 2]));
    press(&mut model, KeyCode::Char('p'));
    assert_eq!(model.next_end(), None, "a held picture holds");
    press(&mut model, KeyCode::Char('p'));
    model.forget_ended(end.unwrap());
    assert_eq!((model.next_end(), ids(&model)), (None, vec![2]));
}

#[test]
fn a_failure_is_shown_until_an_answer_comes() {
    let mut model = model(vec![row(1, 30)]);
    model.report(Report::Failed("flowbusd is not on the system bus".to_owned()));
    assert!(screen_of(&mut model).contains("flowbusd is not on the system bus"));
    let next = snapshot(&model, vec![row(1, 30)]);
    model.report(Report::Snapshot(next));
    assert!(!screen_of(&mut model).contains("flowbusd is not"));
}
