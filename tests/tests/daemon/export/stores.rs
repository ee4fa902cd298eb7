//! Stores that take the log in, by the recipes as docs/fleet.md has them.

use std::collections::BTreeSet;
use std::fs;
use std::io::Read;
use std::os::unix::process::ExitStatusExt;
use std::process::Stdio;
use std::thread;

use flowbus_tests::process::{Directory, output_of, output_with_input, wait_for};
use flowbus_tests::{Daemon, Namespace, Stores, burst};
use rustix::process::Signal;
use serde_json::Value;

use super::World;

const PAGE: &str = include_str!("../../../../docs/fleet.md");
/// The source of translated flows.
const PUBLIC: &str = "198.18.0.9";
const RULES: &str = "
table ip nat {
    chain post {
        type nat hook postrouting priority srcnat
        udp dport 5007 snat to 198.18.0.9
    }
}
";

/// The blocks of a recipe, in their order.
fn recipe<const COUNT: usize>(title: &str) -> [&'static str; COUNT] {
    let (_, recipe) = PAGE.split_once(&format!("\n### {title}\n")).unwrap();
    let recipe = recipe.split("\n### ").next().unwrap();
    let blocks = recipe.split("\n```").skip(1).step_by(2).map(|block| block.split_once('\n').unwrap().1);
    blocks.collect::<Vec<_>>().try_into().unwrap()
}

/// A world whose log is in the root of the stores, and with rules that translate flows.
fn world<'n>(namespace: &'n Namespace, stores: &Stores) -> World<'n> {
    namespace.nft(RULES);
    World::logging_to(namespace, 1_000_000, Directory::new("export"), stores.path("/var/log/flowbus"))
}

/// Makes flows, of which most are translated, and ends them.
fn make_flows(namespace: &Namespace, round: u32) {
    for (first, count) in [(0, 40), (7 * 65_536, 80)] {
        burst::create(namespace, first + round * count, count);
    }
    namespace.run("conntrack -D -p udp --orig-port-src 4000");
}

/// A flow that has ended, as flowbusd has it and as stores answer: text between bars.
fn row(flow: &Value) -> String {
    let text = |key: &str| match &flow[key] {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        value => value.to_string(),
    };
    let keys = ["id", "src", "sport", "dst", "dport", "nat_src", "nat_sport", "start_usec", "end_usec"];
    keys.map(text).join("|")
}

/// Every flow that has ended.
fn ended(world: &World<'_>) -> BTreeSet<String> {
    world.bus.list("ListClosed", &[]).unwrap().iter().map(row).collect()
}

/// What is stored is what ended, and no more.
fn assert_same(stored: &BTreeSet<String>, ended: &BTreeSet<String>) {
    let other = stored.symmetric_difference(ended).take(4).collect::<Vec<_>>();
    assert!(other.is_empty(), "{} stored, {} ended: {other:?}", stored.len(), ended.len());
}

/// An instant in which translated flows were alive, and the rows of these.
fn alive_at_once(rows: &BTreeSet<String>) -> (u64, BTreeSet<String>) {
    let field = |row: &str, index| row.split('|').nth(index).unwrap().to_owned();
    let translated: Vec<_> =
        rows.iter().filter(|row| field(row, 5) == PUBLIC && field(row, 6) == "4000").collect();
    let time = |row: &str, index| field(row, index).parse::<u64>().unwrap();
    let at = time(translated[translated.len() / 2], 7);
    let alive = translated.into_iter().filter(|row| time(row, 7) <= at && at <= time(row, 8));
    (at, alive.cloned().collect())
}

/// Replaces what the page has as examples in a query.
fn asked(query: &str, at: u64) -> String {
    let examples = [("203.0.113.5", PUBLIC), ("32768", "4000"), ("1795351200000000", &at.to_string())];
    examples.into_iter().fold(query.to_owned(), |query, (example, value)| {
        assert!(query.contains(example), "{example} in {query}");
        query.replace(example, value)
    })
}

/// rsyslog and the Postgres that it writes to.
struct Pipeline<'a> {
    namespace: &'a Namespace,
    stores: &'a Stores,
}

impl Pipeline<'_> {
    fn psql(&self, database: &str) -> std::process::Command {
        let mut command = self.stores.command(self.namespace, "postgres", "psql");
        command.args(["--no-psqlrc", "--tuples-only", "--no-align", "-v", "ON_ERROR_STOP=1", database]);
        command
    }

    fn ask(&self, query: &str) -> String {
        output_of(self.psql("flows").args(["-c", query]))
    }

    /// How many flows have come.
    fn count(&self) -> u64 {
        self.ask("select count(*) from flows").trim().parse().unwrap()
    }

    fn postgres(&self) -> Daemon {
        let mut command =
            self.stores.command(self.namespace, "postgres", "/usr/lib/postgresql/15/bin/postgres");
        command.args(["-c", "config_file=/etc/postgresql/15/main/postgresql.conf"]);
        let postgres = Daemon::spawn(&mut command);
        wait_for("Postgres to answer", || {
            let answer = self.psql("postgres").args(["-c", "select 1"]).output().unwrap();
            answer.status.success().then_some(())
        });
        postgres
    }

    fn rsyslog(&self) -> Daemon {
        // What is left is that of the one that was killed, whose number another process may have by now.
        let _ = fs::remove_file(self.stores.path("/run/rsyslogd.pid"));
        Daemon::spawn(self.stores.command(self.namespace, "root", "rsyslogd").arg("-n"))
    }
}

/// Kills a server, and waits until its children have ended as well: they hold the pipe of its log, which is read to its end. Postgres
/// must not be started above them, as each has shared memory of its own.
fn kill(mut process: Daemon) {
    process.signal(Signal::KILL);
    process.ended();
}

#[test]
fn a_server_ends_with_the_thread_that_started_it_however_that_ends() {
    let (namespace, stores) = (Namespace::new("store"), Stores::new());
    for user in ["root", "postgres"] {
        let mut command = stores.command(&namespace, user, "bash");
        command.args(["-c", "echo runs; exec sleep 60"]).stdout(Stdio::piped());
        let start = || {
            let mut server = command.spawn().unwrap();
            let mut line = [0; 5];
            server.stdout.take().unwrap().read_exact(&mut line).unwrap();
            server
        };
        let mut server = thread::scope(|scope| scope.spawn(start).join().unwrap());
        assert_eq!(server.wait().unwrap().signal(), Some(9), "of {user}");
    }
}

#[test]
fn postgres_has_every_flow_once_by_way_of_rsyslog_whatever_is_killed() {
    let [table, configuration] = recipe("Postgres, through rsyslog");
    let (namespace, storing, stores) = (Namespace::tracked("export"), Namespace::new("store"), Stores::new());
    let world = world(&namespace, &stores);
    let pipeline = Pipeline { namespace: &storing, stores: &stores };
    let mut postgres = pipeline.postgres();
    let prepare = "create role flowbus login password '...'; create database flows owner flowbus;";
    output_with_input(&mut pipeline.psql("postgres"), prepare);
    output_with_input(&mut pipeline.psql("flows"), &format!("set role flowbus;\n{table}"));
    stores.write("/etc/hosts", "127.0.0.1 localhost db.example\n");
    stores.write("/etc/rsyslog.d/flowbus.conf", configuration);

    let daemon = world.flowbusd();
    let exporter = world.exporter("rotate_sec = 1\ncompress_after_sec = 3600");
    let mut rsyslog = pipeline.rsyslog();
    for round in 0..6 {
        let before = pipeline.count();
        make_flows(&namespace, 2 * round);
        // Some have come, others not yet.
        wait_for("flows in Postgres", || (pipeline.count() > before).then_some(()));
        if round % 2 == 0 {
            kill(rsyslog);
            make_flows(&namespace, 2 * round + 1);
            rsyslog = pipeline.rsyslog();
        } else {
            kill(postgres);
            make_flows(&namespace, 2 * round + 1);
            postgres = pipeline.postgres();
        }
    }
    let ended = ended(&world);
    let flows = "select id, host(src), sport, host(dst), dport, host(nat_src), nat_sport, start_usec, end_usec from flows";
    let stored = |condition: &str| {
        let text = pipeline.ask(&format!("{flows} {condition}"));
        let rows: BTreeSet<_> = text.lines().map(str::to_owned).collect();
        assert_eq!(rows.len(), text.lines().count(), "a flow is there once");
        rows
    };
    wait_for("all flows in Postgres", || {
        let count = pipeline.ask("select count(*) from flows where end_usec is not null");
        (count.trim().parse::<usize>().unwrap() >= ended.len()).then_some(())
    });
    assert_eq!(pipeline.count(), ended.len() as u64);
    assert_same(&stored(""), &ended);
    let (at, alive) = alive_at_once(&ended);
    assert!(alive.len() > 1);
    let who = format!(
        "where nat_src = '{PUBLIC}' and nat_sport = 4000 and start_usec <= {at} and end_usec >= {at}"
    );
    assert_eq!(stored(&who), alive);
    kill(rsyslog);
    postgres.signal(Signal::INT);
    assert!(postgres.ended().0.success());
    exporter.stop();
    daemon.stop();
}

#[test]
fn clickhouse_has_every_flow_once_also_of_files_that_are_inserted_twice() {
    let [sql, insert] = recipe("ClickHouse");
    let (table, query) = sql.split_once(";\n").unwrap();
    let (namespace, storing, stores) = (Namespace::tracked("export"), Namespace::new("store"), Stores::new());
    let world = world(&namespace, &stores);
    stores.write("/etc/hosts", "127.0.0.1 localhost\n");
    let mut command = stores.command(&storing, "clickhouse", "clickhouse-server");
    let server = Daemon::spawn(command.arg("--config-file=/etc/clickhouse-server/config.xml"));
    let ask = |query: &str| {
        let mut command = stores.command(&storing, "clickhouse", "clickhouse-client");
        // What is an experiment in this old one.
        command.args(["--allow_experimental_low_cardinality_type", "1", "--query", query]);
        command
    };
    let answer = |query: &str| output_of(&mut ask(query));
    wait_for("ClickHouse to answer", || ask("select 1").output().unwrap().status.success().then_some(()));
    answer(table);

    let (daemon, exporter) = (world.flowbusd(), world.exporter("rotate_sec = 1"));
    for round in 0..4 {
        let begun = super::files(&world.log()).len();
        make_flows(&namespace, round);
        wait_for("another file", || (super::files(&world.log()).len() > begun).then_some(()));
    }
    world.wait_for_last_end(&world.log(), &exporter);
    exporter.stop();
    // The last one is compressed when the next begins.
    let written = super::files(&world.log()).len();
    let exporter = world.exporter("");
    let files = wait_for("the files to be compressed", || {
        let mut files = super::files(&world.log());
        let is_next_begun = files.len() > written;
        files.truncate(written);
        (is_next_begun && files.iter().all(|(name, _)| name.ends_with(".zst"))).then_some(files)
    });
    for (name, _) in files.iter().chain(&files[1..]) {
        let file = format!("/var/log/flowbus/{name}");
        let insert = insert.replace("FILE.ndjson.zst", &file);
        assert!(insert.contains(&file));
        let script = format!("set -euo pipefail; {insert}");
        output_of(stores.command(&storing, "root", "bash").args(["-c", &script]));
    }
    let ended = ended(&world);
    let counts = answer("select count(), uniq(machine, epoch, id) from flows final where end_usec > 0");
    assert_eq!(counts.trim(), format!("{0}\t{0}", ended.len()));
    let stored = answer(
        "select id, src, sport, dst, dport, nat_src, if(nat_sport = 0, '', toString(nat_sport)), start_usec, end_usec from flows final",
    );
    assert_same(&stored.lines().map(|line| line.replace('\t', "|")).collect(), &ended);
    let (at, alive) = alive_at_once(&ended);
    let answered = answer(&asked(query, at));
    assert!(alive.len() > 1 && answered.lines().count() == alive.len(), "{answered}");
    server.stop();
    exporter.stop();
    daemon.stop();
}
