//! `flowctl monitor --cursor-file`: over restarts of flowbusd and of flowctl each begin and each end comes out.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use flowbus_tests::daemon::binary;
use flowbus_tests::flow::agreed;
use flowbus_tests::process::{Directory, signal, wait_for};
use flowbus_tests::{Bus, Daemon, Kept, Namespace, burst, churn, companion};
use rustix::process::Signal;
use serde_json::Value;

const BUFFER: usize = 64 * 1024 * 1024;

/// A namespace with flowbusd on kept descriptors, and monitors one after another with one cursor file.
struct World<'n> {
    namespace: &'n Namespace,
    bus: Bus,
    kept: Kept,
    directory: Directory,
    configuration: PathBuf,
    runs: usize,
}

impl<'n> World<'n> {
    fn new(namespace: &'n Namespace) -> Self {
        churn::prepare(namespace);
        let directory = Directory::new("cursor");
        let options = "[attribution]\ntier = \"none\"\n[closed]\ncapacity = 1000000\n";
        let configuration = directory.file("flowbusd.toml", options);
        let kept = Kept::open(namespace, BUFFER);
        Self { namespace, bus: Bus::start(), kept, directory, configuration, runs: 0 }
    }

    fn flowbusd(&self) -> Daemon {
        let configuration = self.configuration.to_str().unwrap();
        let mut daemon = self.kept.spawn_with(self.namespace, &self.bus, configuration);
        daemon.wait_until_synchronized(&self.bus);
        daemon
    }

    fn output(&self, run: usize) -> PathBuf {
        self.directory.path().join(format!("out{run}"))
    }

    /// Starts the next monitor, and waits until it has begun.
    fn monitor(&mut self) -> Child {
        self.runs += 1;
        let file = std::fs::File::create(self.output(self.runs)).unwrap();
        let mut command = Command::new(binary("flowctl"));
        command.args(["--bus", &self.bus.address(), "monitor", "--json", "--events", "new,destroy"]);
        command.arg("--cursor-file").arg(self.directory.path().join("cursor"));
        let child = command.stdin(Stdio::null()).stdout(file).spawn().unwrap();
        wait_for("the monitor to begin", || (!self.lines(self.runs).is_empty()).then_some(()));
        child
    }

    /// What a run has printed, without a line that a kill has torn.
    fn lines(&self, run: usize) -> Vec<Value> {
        let text = std::fs::read_to_string(self.output(run)).unwrap();
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        whole.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    fn all_lines(&self) -> Vec<Value> {
        (1..=self.runs).flat_map(|run| self.lines(run)).collect()
    }

    /// Waits until the newest run has printed the end of the flow to this address.
    fn wait_for_end(&self, dst: &str) {
        wait_for("the last end", || {
            let is_it =
                |line: &Value| line["event"] == "destroy" && line["dst"] == dst && line["dport"] == 5000;
            self.lines(self.runs).iter().any(is_it).then_some(())
        });
    }

    fn wait_for_place(&self, is_there: impl Fn(&str) -> bool) {
        let path = self.directory.path().join("cursor");
        wait_for("the cursor file", || {
            std::fs::read_to_string(&path).ok().filter(|text| is_there(text)).map(drop)
        });
    }
}

fn id(line: &Value) -> u64 {
    line["id"].as_u64().unwrap_or_else(|| panic!("no id in {line}"))
}

fn events<'a>(lines: &'a [Value], kind: &str) -> Vec<&'a Value> {
    lines.iter().filter(|line| line["event"] == kind).collect()
}

fn kill(mut child: Child) {
    signal(&child, Signal::KILL);
    child.wait().unwrap();
}

#[test]
fn a_monitor_that_is_started_again_shows_what_began_and_ended_meanwhile_once() {
    let namespace = Namespace::tracked("cursor");
    let mut world = World::new(&namespace);
    let daemon = world.flowbusd();
    burst::create(world.namespace, 0, 4);
    let _ = agreed(&world.bus, world.namespace);
    let mut monitor = world.monitor();
    world.wait_for_place(|text| text.contains(";id=4"));
    burst::create(world.namespace, 4, 1);
    world.wait_for_place(|text| text.contains(";id=5"));
    signal(&monitor, Signal::INT);
    assert!(monitor.wait().unwrap().success());
    // 5 was seen, 6 ends, 7 begins and ends, 8 begins.
    burst::create(world.namespace, 5, 3);
    world.namespace.run("conntrack -D -p udp --orig-dst 198.19.0.2");
    world.namespace.run("conntrack -D -p udp --orig-dst 198.19.0.6");
    let _ = agreed(&world.bus, world.namespace);
    let monitor = world.monitor();
    burst::create(world.namespace, 9, 1);
    world.namespace.run("conntrack -D -p udp --orig-dst 198.19.0.9");
    world.wait_for_end("198.19.0.9");

    let [first, second] = [1, 2].map(|run| world.lines(run));
    let epoch = world.bus.property("Epoch").unwrap();
    for lines in [&first, &second] {
        assert_eq!((&lines[0]["type"], &lines[0]["epoch"]), (&"begin".into(), &epoch));
        assert!(lines[0]["machine"].is_string(), "{}", lines[0]);
    }
    let shown = |lines: &[Value]| {
        let dst = |line: &Value| format!("{} {}", line["event"], line["dst"]).replace('"', "");
        lines[1..].iter().map(dst).collect::<Vec<_>>()
    };
    assert_eq!(shown(&first), ["new 198.19.0.4"], "what was alive before is not asked for");
    let expected = [
        "destroy 198.19.0.2",
        "destroy 198.19.0.6",
        "new 198.19.0.5",
        "new 198.19.0.7",
        "new 198.19.0.9",
        "destroy 198.19.0.9",
    ];
    assert_eq!(shown(&second), expected);
    kill(monitor);
    daemon.stop();
}

#[test]
fn kills_of_flowbusd_and_of_flowctl_under_load_lose_no_begin_and_no_end() {
    let namespace = Namespace::tracked("cursor");
    let mut world = World::new(&namespace);
    let daemon = world.flowbusd();
    let monitor = world.monitor();
    world.wait_for_place(|text| text.contains("epoch="));
    let (daemon, monitor) = churn::during(&namespace, || {
        let (mut daemon, mut monitor) = (daemon, monitor);
        for round in 0..10_u64 {
            // At the beginning, in the middle, later: a different instant every time.
            thread::sleep(Duration::from_millis(round * 37 % 190));
            daemon.signal(Signal::KILL);
            daemon.ended();
            daemon = world.flowbusd();
            thread::sleep(Duration::from_millis(round * 73 % 170));
            kill(monitor);
            monitor = world.monitor();
        }
        (daemon, monitor)
    });
    burst::create(world.namespace, 0, 1);
    world.namespace.run("conntrack -D -p udp --orig-dst 198.19.0.0");
    world.wait_for_end("198.19.0.0");
    let lines = world.all_lines();
    let set = |lines: Vec<&Value>| lines.into_iter().map(id).collect::<BTreeSet<_>>();
    let ended: BTreeSet<_> = world.bus.list("ListClosed", &[]).unwrap().iter().map(id).collect();
    assert!(world.bus.list("ListActive", &[]).unwrap().is_empty());
    assert_eq!(set(events(&lines, "destroy")).symmetric_difference(&ended).count(), 0, "of {}", ended.len());
    // What began and ended while nobody looked has its end alone.
    assert!(set(events(&lines, "new")).is_subset(&ended));
    let gaps: Vec<_> = lines.iter().filter(|line| line["type"] == "gap").collect();
    assert!(gaps.is_empty(), "{gaps:?}");
    kill(monitor);
    daemon.stop();
}

#[test]
fn a_first_run_shows_the_begin_of_each_flow_that_begins_while_the_table_is_read() {
    const BEFORE: u32 = 60_000;
    let namespace = Namespace::tracked("cursor");
    let mut world = World::new(&namespace);
    let daemon = world.flowbusd();
    burst::create(&namespace, 0, BEFORE);
    wait_for("the flows", || (world.bus.property("ActiveCount").ok()? == BEFORE).then_some(()));
    let (monitor, count) = companion::during(
        |stop| burst::Sender::open(&namespace).create_until(stop, BEFORE),
        || {
            let monitor = world.monitor();
            // It has printed a change that followed the snapshot.
            wait_for("an event", || {
                world.lines(1).iter().any(|line| line["event_usec"].is_u64()).then_some(())
            });
            monitor
        },
    );
    // Ids are given in the order of events, beginning with 1.
    wait_for("the newest flow", || (id(world.lines(1).last()?) == u64::from(count)).then_some(()));
    let lines = world.lines(1);
    let known = lines[0]["newest_id"].as_u64().unwrap();
    assert!(known >= BEFORE.into(), "{}", lines[0]);
    let new = events(&lines, "new");
    assert_eq!(
        new.iter().map(|line| id(line)).collect::<Vec<_>>(),
        (known + 1..=count.into()).collect::<Vec<_>>()
    );
    assert!(new[0]["event_usec"].is_null(), "none began while the table was read: {}", new[0]);
    kill(monitor);
    daemon.stop();
}
