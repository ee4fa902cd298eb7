//! flowctl's `-o conntrack` and `-o xml` against the real conntrack on the same table and the same events, byte by byte.

use std::process::{Command, Stdio};

use flowbus_tests::daemon::binary;
use flowbus_tests::network::{
    BOTH_NAT, CHROME, MASQUERADED, MASQUERADED_SERVER_V4, ORIGINAL_ZONED, PLAIN, REDIRECTED, ROUTER_V4,
    SERVER_V4, SERVER_V6, ZONED, ip_address, socket_address,
};
use flowbus_tests::process::{Directory, output_of, signal, wait_for};
use flowbus_tests::{Bus, Daemon, Namespace, Network, traffic};
use rustix::process::Signal;

/// What the rules of the network do not have: labels and a helper.
const RULES: &str = r#"
table inet more {
    ct helper files {
        type "ftp" protocol tcp
    }
    chain labels {
        type filter hook prerouting priority 10
        udp dport { 7000, 7900 } ct label set 5
        tcp dport 7000 ct label set 70
        tcp dport 7001 ct helper set "files"
    }
}
"#;

/// A network with flows of every kind that the kernel can be made to have.
fn network_of_all_kinds() -> (Network, Vec<traffic::Connection>) {
    let network = Network::new();
    network.router.nft(RULES);
    let mut open = Vec::new();
    for (address, port) in
        [(SERVER_V4, PLAIN), (SERVER_V6, CHROME), (SERVER_V4, CHROME), (SERVER_V4, MASQUERADED)]
    {
        open.extend(network.tcp_service(address, port).connect(
            &network.client,
            socket_address(address, port),
            1,
        ));
    }
    for (address, port) in
        [(SERVER_V4, MASQUERADED), (SERVER_V6, MASQUERADED), (SERVER_V4, ZONED), (SERVER_V4, ORIGINAL_ZONED)]
    {
        network.udp_service(address, port).exchange(&network.client, socket_address(address, port), 1);
    }
    let service = network.udp_service(SERVER_V4, PLAIN);
    for (address, port) in [(SERVER_V4, PLAIN), (ROUTER_V4, REDIRECTED), (ROUTER_V4, BOTH_NAT)] {
        service.exchange(&network.client, socket_address(address, port), 1);
    }
    for address in [SERVER_V4, SERVER_V6, MASQUERADED_SERVER_V4] {
        traffic::ping(&network.client, ip_address(address), 7);
    }
    for injected in [
        "-p tcp -s 198.18.7.1 -d 198.18.7.2 --sport 1 --dport 2 --state SYN_SENT -t 3000 -m 5",
        "-p sctp -s 198.18.7.1 -d 198.18.7.2 --sport 1 --dport 2 --state ESTABLISHED -t 3000 --orig-vtag 1 --reply-vtag 2",
        "-p gre -s 198.18.7.1 -d 198.18.7.2 --srckey 1 --dstkey 0x20 -t 3000",
        "-p udplite -s 2001:2::7:1 -d 2001:2::7:2 --sport 1 --dport 2 -t 3000",
        "-p 99 -s 198.18.7.1 -d 198.18.7.2 -t 3000",
        "-p udp -s 198.18.7.1 -d 198.18.7.2 --sport 3 --dport 2 -t 3000 --reply-zone 5",
        "-p udp -s ::198.18.7.1 -d 2001:2::7:2 --sport 3 --dport 2 -t 3000 -u FIXED_TIMEOUT",
    ] {
        network.router.run(&format!("conntrack -I {injected}"));
    }
    (network, open)
}

/// A command that sees a file of label names in /etc, which this machine need not have.
fn with_labels(directory: &Directory, namespace: &Namespace, program: &str) -> Command {
    let mut command = namespace.command("unshare");
    let mount = format!(
        "mount -t overlay overlay -o lowerdir={}:/etc /etc && exec \"$@\"",
        directory.path().display()
    );
    command.args(["--mount", "sh", "-c", &mount, "sh", program]);
    command
}

fn labels() -> Directory {
    let directory = Directory::new("etc");
    std::fs::create_dir(directory.path().join("xtables")).unwrap();
    let _ = directory.file("xtables/connlabel.conf", "# names\n5 video\n70 bulk\n");
    directory
}

/// The lines in an order of their own: the kernel's is that of its hash.
fn sorted(text: &str) -> Vec<&str> {
    let mut lines: Vec<_> = text.lines().collect();
    lines.sort_unstable();
    lines
}

/// The differences that docs/coming-from-conntrack.md lists, made equal.
fn known_differences(text: &str) -> String {
    let mut lines = String::new();
    for line in text.lines() {
        let mut line = line.to_owned();
        // The process that asked for a change is not part of a flow.
        if let Some((before, _)) = line.split_once(" [USERSPACE]") {
            line = before.to_owned();
        }
        // Times are kept in microseconds.
        for element in ["<start>", "<stop>"] {
            if let Some(at) = line.find(element) {
                let digits = at + element.len() + 16;
                line.replace_range(digits..digits + 3, "000");
            }
        }
        // conntrack names the states of SCTP and DCCP as if they were TCP's, in XML alone.
        if line.contains("protoname=\"sctp\"") {
            line = line.replace("<state>FIN_WAIT</state>", "<state>ESTABLISHED</state>");
        }
        // An IPv4-compatible address.
        line = line.replace("::198.18.7.1", "::c612:701");
        lines.push_str(&line);
        lines.push('\n');
    }
    lines
}

/// The rows of the table below a heading of docs/coming-from-conntrack.md: conntrack's command, and flowctl's.
fn rows(heading: &str) -> Vec<(String, String)> {
    let text = include_str!("../../../docs/coming-from-conntrack.md");
    let (_, section) = text.split_once(heading).unwrap();
    let section = section.split("\n## ").next().unwrap();
    let command = |cell: &str| cell.trim().trim_matches('`').to_owned();
    let row = |line: &str| {
        let cells: Vec<_> = line.split('|').collect();
        (command(cells[1]), command(cells[2]))
    };
    let rows: Vec<_> = section.lines().filter(|line| line.starts_with("| `")).map(row).collect();
    assert!(rows.len() > 9, "the table is found: {rows:?}");
    rows
}

/// How many streams are open.
fn streams(bus: &Bus) -> u64 {
    bus.monitor_call("GetStatistics", &[]).unwrap()[0]["streams"].as_u64().unwrap()
}

/// The command of a row, in the network.
fn run(network: &Network, bus: &Bus, etc: &Directory, line: &str) -> Command {
    let mut words = line.split_whitespace();
    let program = words.next().unwrap();
    let mut command = match program {
        "flowctl" => {
            let mut command = with_labels(etc, &network.router, binary("flowctl").to_str().unwrap());
            command.args(["--bus", &bus.address()]);
            command
        }
        program => with_labels(etc, &network.router, program),
    };
    command.args(words);
    command
}

#[test]
fn each_way_to_choose_flows_finds_what_conntrack_finds() {
    let (network, _open) = network_of_all_kinds();
    let bus = Bus::start();
    let daemon = Daemon::start(&network.router, &bus);
    let etc = labels();
    for (theirs, ours) in rows("## Which flows") {
        let listed = output_of(run(&network, &bus, &etc, &theirs).args(["-o", "id"]));
        let id = |line: &str| line.rsplit_once(" id=").unwrap().1.split(' ').next().unwrap().to_owned();
        let mut expected: Vec<String> = listed.lines().map(id).collect();
        let printed =
            output_of(run(&network, &bus, &etc, &ours).args(["--fields", "conntrack_id", "-o", "csv"]));
        let mut found: Vec<String> = printed.lines().skip(1).map(str::to_owned).collect();
        expected.sort_unstable();
        found.sort_unstable();
        assert_eq!(found, expected, "{ours}\n{theirs}:\n{listed}");
        let none = ["EXPECTED", "OFFLOAD"].iter().any(|status| theirs.contains(status));
        assert_eq!(found.is_empty(), none, "{theirs} has something to find");
    }
    daemon.stop();
}

#[test]
fn each_way_to_watch_and_count_works() {
    let network = Network::new();
    let bus = Bus::start();
    let daemon = Daemon::start(&network.router, &bus);
    let etc = labels();
    for (theirs, ours) in rows("## Events and numbers") {
        let mut command = Command::new(binary("flowctl"));
        command.args(["--bus", &bus.address()]).args(ours.split_whitespace().skip(1));
        if !ours.starts_with("flowctl monitor") || ours.ends_with("--help") {
            assert!(!output_of(&mut command).is_empty(), "{theirs}: {ours}");
            continue;
        }
        let path = etc.file("out", "");
        let file = std::fs::File::create(&path).unwrap();
        let mut child = command.stdin(Stdio::null()).stdout(file).stderr(Stdio::null()).spawn().unwrap();
        let mut shown = String::new();
        let service = network.tcp_service(SERVER_V4, PLAIN);
        wait_for(&format!("{ours} to listen"), || {
            let open = service.connect(&network.client, socket_address(SERVER_V4, PLAIN), 1);
            open.into_iter().for_each(traffic::Connection::close);
            network.router.run("conntrack -D -p tcp");
            shown = std::fs::read_to_string(&path).unwrap();
            // A quiet program says nothing until its end; the daemon's counter of streams shows whether it listens.
            let listens = streams(&bus) == 1;
            (if ours.contains("--quiet") { listens } else { shown.contains("7000") }).then_some(())
        });
        if ours.contains("--quiet") {
            service
                .connect(&network.client, socket_address(SERVER_V4, PLAIN), 1)
                .into_iter()
                .for_each(traffic::Connection::close);
            network.router.run("conntrack -D -p tcp");
        }
        signal(&child, Signal::INT);
        assert_eq!(child.wait().unwrap().code(), Some(0), "{theirs}: {ours}");
        shown = std::fs::read_to_string(&path).unwrap();
        if ours.contains("--exit-summary") {
            let (_, lists) = shown.split_once("Active connections:\n").unwrap();
            let (_, closed) = lists.split_once("Closed connections:\n").unwrap();
            assert!(closed.contains("7000"), "{ours}:\n{shown}");
        }
        wait_for("the stream to be closed", || (streams(&bus) == 0).then_some(()));
    }
    daemon.stop();
}

#[test]
fn a_listing_is_conntracks_byte_by_byte() {
    let (network, _open) = network_of_all_kinds();
    let bus = Bus::start();
    let daemon = Daemon::start(&network.router, &bus);
    let etc = labels();
    for (theirs, ours) in rows("## Which form") {
        let conntrack = || known_differences(&output_of(&mut run(&network, &bus, &etc, &theirs)));
        let mut last = (String::new(), String::new());
        // Timeouts are counted down: both have to have been read within the same second.
        let equal = (0..200).any(|_| {
            let before = conntrack();
            let listed = output_of(&mut run(&network, &bus, &etc, &ours));
            let same = sorted(&before) == sorted(&listed);
            last = (before, listed);
            same
        });
        assert!(equal, "{theirs}:\n{}\n{ours}:\n{}", last.0, last.1);
        assert!(last.1.lines().count() >= 21, "all kinds of flows are there:\n{}", last.1);
        if ours.contains("labels") {
            assert!(last.1.contains("video") && last.1.contains("bulk"), "{}", last.1);
        }
    }
    daemon.stop();
}

#[test]
fn events_are_conntracks_byte_by_byte() {
    let network = Network::new();
    network.router.nft(RULES);
    let bus = Bus::start();
    let daemon = Daemon::start(&network.router, &bus);
    let directory = Directory::new("events");
    // Each writes into a file of its own; one that has begun to listen has shown the probe.
    let mut pairs = Vec::new();
    for (theirs, ours) in [
        ("", "conntrack"),
        ("-o extended,id,ktimestamp", "conntrack,extended,id,ktimestamp"),
        ("-o xml", "xml"),
        ("-o xml,ktimestamp,id", "xml,ktimestamp,id"),
    ] {
        let into = |name: &str| directory.file(&format!("{name}-{ours}"), "");
        let start = |command: &mut Command, name: &str| {
            let path = into(name);
            let file = std::fs::File::create(&path).unwrap();
            let child = command.stdin(Stdio::null()).stdout(file).stderr(Stdio::null()).spawn().unwrap();
            (child, path)
        };
        let mut conntrack = network.router.command("stdbuf");
        conntrack.args(["-oL", "conntrack", "-E"]).args(theirs.split_whitespace());
        let mut flowctl = Command::new(binary("flowctl"));
        flowctl.args(["--bus", &bus.address(), "monitor", "-o", ours]);
        pairs.push((ours, start(&mut conntrack, "conntrack"), start(&mut flowctl, "flowctl")));
    }
    let everyone_has = |word: &str| {
        pairs.iter().all(|(_, (_, theirs), (_, ours))| {
            [theirs, ours].iter().all(|path| std::fs::read_to_string(path).unwrap().contains(word))
        })
    };
    let probe = "-p udp -s 198.19.255.1 -d 198.19.255.2 --sport 1 --dport 1";
    wait_for("all to listen", || {
        network.router.run(&format!("conntrack -I {probe} -t 60"));
        network.router.run(&format!("conntrack -D {probe}"));
        everyone_has("198.19.255.1").then_some(())
    });

    for (address, port) in
        [(SERVER_V4, PLAIN), (SERVER_V4, CHROME), (SERVER_V6, CHROME), (SERVER_V4, MASQUERADED)]
    {
        let open =
            network.tcp_service(address, port).connect(&network.client, socket_address(address, port), 1);
        open.into_iter().for_each(traffic::Connection::close);
    }
    for (address, port) in [(SERVER_V4, PLAIN), (SERVER_V4, ZONED)] {
        network.udp_service(address, port).exchange(&network.client, socket_address(address, port), 2);
    }
    traffic::ping(&network.client, ip_address(SERVER_V6), 7);
    for filter in ["-p udp", "-p tcp", "-f ipv6 -p icmpv6"] {
        network.router.run(&format!("conntrack -D {filter}"));
    }
    network.router.run("conntrack -I -p udp -s 198.19.255.3 -d 198.19.255.2 --sport 1 --dport 1 -t 60 -m 3");
    wait_for("all to show the last flow", || everyone_has("198.19.255.3").then_some(()));

    for (name, (mut theirs, theirs_path), (mut ours, ours_path)) in pairs {
        for child in [&theirs, &ours] {
            signal(child, Signal::INT);
        }
        theirs.wait().unwrap();
        assert_eq!(ours.wait().unwrap().code(), Some(0));
        let theirs = known_differences(&std::fs::read_to_string(&theirs_path).unwrap());
        let ours = std::fs::read_to_string(&ours_path).unwrap();
        // Each began to listen at a probe of its own, which only its address shows.
        let events = |text: &str| {
            let told = |line: &&str| !line.contains("198.19.255.1");
            text.lines().filter(told).map(str::to_owned).collect::<Vec<_>>()
        };
        let (theirs, ours) = (events(&theirs), events(&ours));
        assert!(theirs.len() > 30, "all events were shown: {theirs:#?}");
        for (their, our) in theirs.iter().zip(&ours) {
            assert_eq!(their, our, "-o {name}");
        }
        assert_eq!(theirs.len(), ours.len(), "-o {name}: {theirs:#?} {ours:#?}");
    }
    daemon.stop();
}
