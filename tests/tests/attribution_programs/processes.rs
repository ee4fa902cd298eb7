//! Processes that are gone before anybody could ask who they were.

use std::thread;

use flowbus_attribution::{Event, Kind, unit_of};
use flowbus_tests::process::{output_of, unique};
use flowbus_tests::sockets::by;
use flowbus_tests::{Namespace, Sockets, UnitGroup};

use super::{listen, of};

#[test]
fn a_thousand_one_shot_processes_are_told_with_user_and_unit() {
    const COUNT: usize = 1000;
    const USER: u32 = 4242;
    let namespace = Namespace::new("oneshot");
    let old = UnitGroup::new(&format!("{}.service", unique("old")));
    let mut sockets = Sockets::watch();
    let new = UnitGroup::new(&format!("{}.scope", unique("new")));
    let listener = listen(&namespace, "127.0.0.1:0");
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || (0..COUNT).for_each(|_| drop(listener.accept().unwrap())));
    let run = |group: &UnitGroup| {
        // Each turn is a process of its own, which connects and is gone.
        let script = format!(
            "for i in {{1..{}}}; do (exec 3<>/dev/tcp/127.0.0.1/{port}; echo $BASHPID); done",
            COUNT / 2
        );
        let enter =
            format!("{}; exec setpriv --reuid={USER} --clear-groups bash -c '{script}'", group.entering());
        let pids = output_of(namespace.command("bash").args(["-c", &enter]));
        let unit = group.unit();
        pids.lines().map(|pid| (pid.parse::<u32>().unwrap(), unit.clone())).collect::<Vec<_>>()
    };
    // Read meanwhile: the ring is the whole machine's.
    let (expected, events) = thread::scope(|scope| {
        let running = scope.spawn(|| [&old, &new].map(run).concat());
        let connected = |events: &[Event]| of(events, |kind| kind == Kind::Connect).len() * 100 >= 99 * COUNT;
        let mut events = sockets.events_until(&namespace, connected);
        let expected = running.join().unwrap();
        if sockets.statistics().dropped == 0 {
            events = sockets.events_with(&namespace, COUNT, |kind| kind == Kind::Connect);
        }
        (expected, events)
    });
    assert_eq!(expected.len(), COUNT);

    let connects = of(&events, |kind| kind == Kind::Connect);
    let is_right = |(pid, unit): &&(u32, String)| {
        let of_process = connects.iter().find(|event| by(event).pid == *pid).map(by);
        of_process.is_some_and(|process| {
            let path = sockets.cgroup(process.cgroup);
            process.uid == USER && path.as_deref().and_then(unit_of) == Some(unit)
        })
    };
    let right = expected.iter().filter(is_right).count();
    assert!(right * 100 >= 99 * COUNT, "{right} of {COUNT}");
}
