use super::*;
use crate::top::view::parse_filter;

/// Snapshots, each of which has the one before it.
struct Snapshots {
    start: Instant,
    memory: Option<Memory>,
    view: View,
}

impl Snapshots {
    fn by(grouping: Grouping, order: Order) -> Self {
        let view = View { filter: parse_filter("").unwrap(), grouping, order };
        Self { start: Instant::now(), memory: None, view }
    }

    /// Takes a snapshot at this second.
    fn at(&mut self, seconds: u64, lines: &[&str]) -> Counted {
        let now = self.start + Duration::from_secs(seconds);
        let mut tally = Tally::new(self.view.clone(), self.memory.as_ref(), now);
        for line in lines {
            tally.add(&StreamItem::parse(line.as_bytes()).unwrap(), now);
        }
        let mut counted = tally.finish();
        if let Some(memory) = counted.memory.take() {
            self.memory = Some(memory);
        }
        counted
    }
}

const fn traffic(up: u64, down: u64) -> Traffic {
    Traffic { up, down }
}

const BEGIN: &str = r#"{"type":"begin","epoch":"e","sequence":10}"#;
const END: &str = r#"{"type":"snapshot-end","sequence":10}"#;

fn ids(counted: &Counted) -> Vec<u64> {
    counted.rows.iter().map(|row| row.id).collect()
}

fn names(counted: &Counted) -> Vec<&str> {
    counted.rows.iter().map(|row| row.name.as_str()).collect()
}

#[test]
fn the_fastest_flows_come_first_once_there_are_two_snapshots() {
    let mut snapshots = Snapshots::by(Grouping::Flow, Order::Rate);
    let first = snapshots.at(
        0,
        &[
            BEGIN,
            r#"{"type":"flow","id":1,"orig_bytes":100,"reply_bytes":0}"#,
            r#"{"type":"flow","id":2,"orig_bytes":900,"reply_bytes":50}"#,
            r#"{"type":"flow","id":3}"#,
            END,
        ],
    );
    assert_eq!((first.flows, first.sample), (3, None));
    assert!(first.rows.iter().all(|row| row.rate.is_none()), "{:?}", first.rows);
    assert_eq!(ids(&first), [2, 1, 3], "without rates the totals decide");
    let second = snapshots.at(
        10,
        &[
            BEGIN,
            r#"{"type":"flow","id":1,"orig_bytes":300,"reply_bytes":100}"#,
            r#"{"type":"flow","id":2,"orig_bytes":900,"reply_bytes":60}"#,
            r#"{"type":"flow","id":3}"#,
            r#"{"type":"flow","id":4,"orig_bytes":20,"reply_bytes":0}"#,
            END,
        ],
    );
    assert_eq!(ids(&second), [1, 4, 2, 3]);
    let rates: Vec<_> = second.rows.iter().map(|row| row.rate).collect();
    assert_eq!(
        rates,
        [Some(traffic(20, 10)), Some(traffic(2, 0)), Some(traffic(0, 1)), None],
        "a flow that does not count has no rate, not 0"
    );
    let interval = Duration::from_secs(10);
    assert_eq!(second.sample, Some(Sample { rate: traffic(22, 11), new: 1, interval }));
}

#[test]
fn orders_are_by_total_latest_begin_and_age() {
    let lines = [
        BEGIN,
        r#"{"type":"flow","id":1,"start_usec":50,"orig_bytes":1}"#,
        r#"{"type":"flow","id":2,"start_usec":10,"orig_bytes":9}"#,
        r#"{"type":"flow","id":3,"start_usec":90,"orig_bytes":5}"#,
        r#"{"type":"flow","id":4}"#,
        END,
    ];
    for (order, expected) in
        [(Order::Bytes, [2, 3, 1, 4]), (Order::New, [3, 1, 2, 4]), (Order::Age, [2, 1, 3, 4])]
    {
        assert_eq!(ids(&Snapshots::by(Grouping::Flow, order).at(0, &lines)), expected, "{order:?}");
    }
}

#[test]
fn groups_add_up_what_is_in_them() {
    let mut snapshots = Snapshots::by(Grouping::Source, Order::Bytes);
    let counted = snapshots.at(
        0,
        &[
            BEGIN,
            r#"{"type":"flow","id":1,"source":"USER","start_usec":50,"orig_bytes":1,"reply_bytes":2}"#,
            r#"{"type":"flow","id":2,"source":"CHROME","start_usec":70,"orig_bytes":9}"#,
            r#"{"type":"flow","id":3,"source":"USER","start_usec":30}"#,
            r#"{"type":"flow","id":4,"start_usec":20}"#,
            END,
        ],
    );
    assert_eq!(names(&counted), ["CHROME", "USER", ""]);
    assert_eq!((counted.flows, counted.all_rows), (4, 3));
    let user = &counted.rows[1];
    assert_eq!((user.flows, user.bytes, user.start), (2, Some(traffic(1, 2)), Some(30)));
    assert_eq!(counted.rows[2].bytes, None, "nothing counts in it");
}

#[test]
fn flows_that_ended_in_between_count_once() {
    let mut snapshots = Snapshots::by(Grouping::Source, Order::Rate);
    snapshots.at(0, &[BEGIN, r#"{"type":"flow","id":5,"source":"USER","orig_bytes":100}"#, END]);
    let counted = snapshots.at(
        10,
        &[
            BEGIN,
            // Ended before the first snapshot.
            r#"{"type":"closed","id":1,"sequence":9,"source":"USER","orig_bytes":7000}"#,
            // In the first snapshot; its end reports the last of its bytes.
            r#"{"type":"closed","id":5,"sequence":11,"source":"USER","orig_bytes":150}"#,
            // Lived and died in between.
            r#"{"type":"closed","id":6,"sequence":12,"source":"CHROME","orig_bytes":30}"#,
            r#"{"type":"flow","id":7,"source":"CHROME","orig_bytes":10}"#,
            // Ended while this snapshot was made, and had been counted.
            r#"{"type":"closed","id":7,"sequence":13,"source":"CHROME","orig_bytes":20}"#,
            r#"{"type":"snapshot-end","sequence":13}"#,
        ],
    );
    assert_eq!(
        counted.sample,
        Some(Sample { rate: traffic(10, 0), new: 2, interval: Duration::from_secs(10) })
    );
    assert_eq!(counted.flows, 1);
    let rates: Vec<_> = counted.rows.iter().map(|row| (row.name.as_str(), row.rate, row.new)).collect();
    assert_eq!(rates, [("CHROME", Some(traffic(5, 0)), 2), ("USER", Some(traffic(5, 0)), 0)]);
    let third = snapshots.at(20, &[BEGIN, r#"{"type":"snapshot-end","sequence":13}"#]);
    assert_eq!(third.sample, Some(Sample { rate: traffic(0, 0), new: 0, interval: Duration::from_secs(10) }));
}

#[test]
fn a_snapshot_that_comes_too_soon_shows_the_rates_of_the_one_before() {
    let mut snapshots = Snapshots::by(Grouping::Flow, Order::Rate);
    let flow = |bytes: u64| format!(r#"{{"type":"flow","id":1,"orig_bytes":{bytes}}}"#);
    snapshots.at(0, &[BEGIN, &flow(0), END]);
    assert_eq!(snapshots.at(10, &[BEGIN, &flow(1000), END]).rows[0].rate, Some(traffic(100, 0)));
    let soon = snapshots.at(10, &[BEGIN, &flow(1000), END]);
    assert_eq!((soon.rows[0].rate, soon.sample), (Some(traffic(100, 0)), None));
    assert_eq!(snapshots.at(20, &[BEGIN, &flow(3000), END]).rows[0].rate, Some(traffic(200, 0)));
}

#[test]
fn after_another_filter_nothing_is_new() {
    let mut snapshots = Snapshots::by(Grouping::Flow, Order::Rate);
    let flows =
        [BEGIN, r#"{"type":"flow","id":1,"orig_bytes":5}"#, r#"{"type":"flow","id":9,"orig_bytes":5}"#, END];
    snapshots.at(0, &flows[..2]);
    snapshots.view.filter = parse_filter("source=USER").unwrap();
    let counted = snapshots.at(10, &flows);
    assert_eq!(counted.sample, None);
    assert_eq!(
        counted.rows.iter().map(|row| (row.id, row.rate, row.new)).collect::<Vec<_>>(),
        [(9, None, 0), (1, Some(traffic(0, 0)), 0)]
    );
}

#[test]
fn a_row_that_ended_is_named_and_turns_with_its_owner() {
    let mut snapshots = Snapshots::by(Grouping::Flow, Order::Rate);
    let flow = |id: u64| format!(r#"{{"type":"flow","id":{id},"orig_bytes":0,"reply_bytes":0}}"#);
    snapshots.at(0, &[BEGIN, &flow(1), &flow(2), END]);
    let served = r#"{"type":"flow","id":2,"orig_bytes":10,"reply_bytes":500,"responder":{"pid":7}}"#;
    let counted = snapshots.at(
        10,
        &[
            BEGIN,
            r#"{"type":"closed","id":1,"sequence":11}"#,
            r#"{"type":"closed","id":3,"sequence":12}"#,
            served,
            r#"{"type":"snapshot-end","sequence":12}"#,
        ],
    );
    assert_eq!(counted.ended, [1], "3 was not on the screen");
    assert_eq!(counted.rows[0].rate, Some(traffic(50, 1)), "also where the owner is learned meanwhile");
}

#[test]
fn another_epoch_begins_anew_and_counters_may_fall() {
    let mut snapshots = Snapshots::by(Grouping::Flow, Order::Rate);
    snapshots.at(0, &[BEGIN, r#"{"type":"flow","id":1,"orig_bytes":500}"#, END]);
    let zeroed = snapshots.at(10, &[BEGIN, r#"{"type":"flow","id":1,"orig_bytes":5}"#, END]);
    assert_eq!(zeroed.rows[0].rate, Some(traffic(0, 0)));
    let other = r#"{"type":"begin","epoch":"f","sequence":0}"#;
    let counted = snapshots.at(20, &[other, r#"{"type":"flow","id":1,"orig_bytes":900}"#, END]);
    assert_eq!((counted.rows[0].rate, counted.sample), (None, None));
}

#[test]
fn of_many_flows_only_the_first_are_kept() {
    const MANY: u64 = 5000;
    let mut snapshots = Snapshots::by(Grouping::Flow, Order::Bytes);
    // 7 and 5000 have no common factor: every number of bytes once, in no order.
    let bytes = |id: u64| id * 7 % MANY;
    let lines: Vec<String> =
        (1..=MANY).map(|id| format!(r#"{{"type":"flow","id":{id},"orig_bytes":{}}}"#, bytes(id))).collect();
    let lines: Vec<&str> = [BEGIN].into_iter().chain(lines.iter().map(String::as_str)).chain([END]).collect();
    let counted = snapshots.at(0, &lines);
    assert_eq!((counted.flows, counted.all_rows, counted.rows.len()), (MANY, MANY, ROWS));
    let kept: Vec<u64> = counted.rows.iter().filter_map(|row| row.bytes.map(Traffic::total)).collect();
    assert_eq!(kept, (0..MANY).rev().take(ROWS).collect::<Vec<_>>());
}
