//! The methods of the privileged helper that change the kernel's table: what they do, to what, and for whom.

use std::collections::BTreeSet;
use std::pin::pin;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use ctnetlink::{Conntrack, Expectation, Flow, Layer4, ProtocolInfo, RequestError, Status, TcpInfo, Tuple};
use flowbus_interfaces::{Changes, Error, Key, QueryMap};
use flowbus_tests::bus::call;
use flowbus_tests::helper::CONTROL;
use flowbus_tests::inject::tuple;
use flowbus_tests::{CallError, Helper, inject};
use rustix::process::Signal;
use serde_json::Value;

fn inverted(tuple: &Tuple) -> Tuple {
    let Layer4::Ports { src, dst } = tuple.layer4 else { unreachable!("made above") };
    Tuple { src: tuple.dst, dst: tuple.src, layer4: Layer4::Ports { src: dst, dst: src }, ..*tuple }
}

fn flow(original: Tuple) -> Flow<'static> {
    let mut flow = Flow::new(original, inverted(&original));
    flow.timeout = Some(3_600);
    flow.status = Some(Status::SEEN_REPLY);
    flow
}

/// Every flow: its tuple and mark.
fn marks(table: &mut Conntrack) -> Vec<(Tuple, u32)> {
    let mut marks = Vec::new();
    table.dump(None, |flow| marks.push((flow.original, flow.mark.unwrap_or(0)))).unwrap();
    marks
}

fn ports(table: &mut Conntrack) -> BTreeSet<String> {
    marks(table).iter().map(|(tuple, _)| tuple.to_string()).collect()
}

fn none() -> QueryMap<'static> {
    QueryMap::new()
}

fn deleted(matched: u32) -> Changes {
    Changes { matched, deleted: Some(matched), ..Changes::default() }
}

fn changed(matched: u32) -> Changes {
    Changes { matched, changed: Some(matched), ..Changes::default() }
}

#[tokio::test]
async fn flows_that_match_are_deleted_and_no_others() {
    let helper = Helper::start(&["--user", "nobody"]);
    inject::udp(&helper.namespace, 53, 300);
    inject::udp(&helper.namespace, 80, 20);
    let (control, mut table) = (helper.proxy().await, helper.table());
    let dns = QueryMap::from([("dport", 53_u16.into()), ("protocol", "udp".into())]);

    let dry = QueryMap::from([("dry_run", true.into()), ("limit", 200_u32.into())]);
    let seen = control.delete_flows(&dns, &dry).await.unwrap();
    assert_eq!((seen.matched, seen.deleted, seen.more), (200, Some(0), Some(true)));
    let flows = seen.flows.unwrap();
    assert_eq!(flows.len(), 200);
    assert!(flows.iter().all(|flow| flow.number(Key::Dport) == Some(53) && flow.get(Key::Id).is_none()));
    assert!(flows.iter().all(|flow| flow.number(Key::ConntrackId).is_some()));
    assert_eq!(marks(&mut table).len(), 320);

    let one = QueryMap::from([("limit", 1_u32.into())]);
    assert_eq!(control.delete_flows(&dns, &one).await.unwrap(), Changes { more: Some(true), ..deleted(1) });
    assert_eq!(control.delete_flows(&dns, &none()).await.unwrap(), deleted(299));
    assert_eq!(control.delete_flows(&dns, &none()).await.unwrap(), deleted(0));
    let left = ports(&mut table);
    assert_eq!(left.len(), 20);
    assert!(left.iter().all(|line| line.ends_with("dport=80")), "{left:?}");
}

#[tokio::test]
async fn of_a_mark_the_masked_bits_change_and_a_timeout_is_set() {
    let helper = Helper::start(&["--user", "nobody"]);
    inject::udp(&helper.namespace, 53, 10);
    inject::udp(&helper.namespace, 80, 10);
    let (control, mut table) = (helper.proxy().await, helper.table());
    let dns = QueryMap::from([("dport", 53_u16.into())]);
    assert_eq!(control.set_mark(&dns, 0xff00, u32::MAX, &none()).await.unwrap(), changed(10));
    assert_eq!(control.set_mark(&dns, 0x0a0a, 0x0f0f, &none()).await.unwrap(), changed(10));
    let dry = QueryMap::from([("dry_run", true.into())]);
    assert_eq!(control.set_mark(&dns, 1, 1, &dry).await.unwrap().matched, 10);
    for (tuple, mark) in marks(&mut table) {
        let expected = if tuple.to_string().ends_with("dport=53") { 0xfa0a } else { 0 };
        assert_eq!(mark, expected, "{tuple}");
    }
    let marked = QueryMap::from([("mark", "0xfa0a".into())]);
    assert_eq!(control.set_timeout(&marked, 7, &none()).await.unwrap(), changed(10));
    table
        .dump(None, |flow| assert_eq!(flow.timeout.unwrap() <= 7, flow.mark == Some(0xfa0a), "{flow}"))
        .unwrap();

    for (mark, mask) in [(0, 0), (1, 2), (0x100, 0xff)] {
        let error = control.set_mark(&dns, mark, mask, &none()).await.unwrap_err();
        assert!(matches!(&error, Error::InvalidArgument(text) if text.contains("mask")), "{error:?}");
    }
}

#[tokio::test]
async fn a_flush_has_to_be_confirmed() {
    let helper = Helper::start(&["--user", "nobody"]);
    inject::udp(&helper.namespace, 53, 10);
    let (control, mut table) = (helper.proxy().await, helper.table());
    let error = control.flush_flows(false).await.unwrap_err();
    assert!(matches!(&error, Error::InvalidArgument(text) if text.contains("confirm")), "{error:?}");
    assert_eq!(marks(&mut table).len(), 10);
    control.flush_flows(true).await.unwrap();
    assert_eq!(marks(&mut table), []);
}

#[tokio::test]
async fn ipv6_prefixes_delete_their_own_flows_only() {
    let helper = Helper::start(&["--user", "nobody"]);
    let (control, mut table) = (helper.proxy().await, helper.table());
    for network in 0..8 {
        for host in 1..=5 {
            table
                .create(&flow(tuple(&format!("2001:2:{network}::{host}"), "2001:2::53", 17, 4000, 53)))
                .unwrap();
        }
    }
    table.create(&flow(tuple("198.18.0.1", "198.18.0.2", 17, 4000, 53))).unwrap();
    let query = |prefix: &'static str| QueryMap::from([("src", prefix.into())]);
    for (prefix, matched) in [
        ("2001:2:3::/48", 5),
        ("2001:2:3::/48", 0),
        ("2001:2:4::2", 1),
        ("2001:2::/47", 10),
        ("2001:db8::/32", 0),
    ] {
        assert_eq!(
            control.delete_flows(&query(prefix), &none()).await.unwrap(),
            deleted(matched),
            "{prefix}"
        );
    }
    let left = ports(&mut table);
    assert_eq!(left.len(), 41 - 16);
    assert!(!left.iter().any(|line| line.contains("src=2001:2:3::") || line.contains("src=2001:2:4::2 ")));
}

/// 10,000 flows are deleted while some of their tuples are used again: freed and made in an order that gives them other ids.
#[tokio::test]
async fn what_was_recreated_meanwhile_is_gone_and_left_alone() {
    const FLOWS: u16 = 10_000;
    let helper = Helper::start(&["--user", "nobody"]);
    let (control, mut table) = (helper.proxy().await, helper.table());
    let original = |port| tuple("198.18.0.1", "198.18.0.2", 17, port, 53);
    let bystander = |port| tuple("198.18.0.1", "198.18.0.2", 17, port, 80);
    for port in 1..=100 {
        table.create(&flow(bystander(port))).unwrap();
    }
    let bystanders = ports(&mut table);
    let query = QueryMap::from([("dport", 53_u16.into()), ("family", "ipv4".into())]);
    let mut gone = 0;
    for _ in 0..20 {
        for port in 1..=FLOWS {
            match table.create(&flow(original(port))) {
                Ok(()) | Err(RequestError::Exists) => {}
                Err(error) => panic!("{error}"),
            }
        }
        let stop = Arc::new(AtomicBool::new(false));
        let (mut other, stopped) = (helper.table(), Arc::clone(&stop));
        let churn = std::thread::spawn(move || {
            // From the end, which the helper comes to last.
            let ports = (1..FLOWS).rev().step_by(2).cycle();
            for port in ports.take_while(|_| !stopped.load(Ordering::Relaxed)) {
                let pair = [original(port), original(port + 1)];
                if pair.iter().all(|tuple| other.delete(tuple, None).is_ok()) {
                    for tuple in pair {
                        let _ = other.create(&flow(tuple));
                    }
                }
            }
        });
        let result = control.delete_flows(&query, &none()).await.unwrap();
        stop.store(true, Ordering::Relaxed);
        churn.join().unwrap();
        assert_eq!(result.matched, result.deleted.unwrap() + result.gone + result.failed, "{result:?}");
        assert!(result.matched <= u32::from(FLOWS), "{result:?}");
        assert_eq!(result.failed, 0, "{result:?}");
        assert!(ports(&mut table).is_superset(&bystanders));
        gone += result.gone;
        if gone > 0 {
            return;
        }
    }
    panic!("no tuple was ever used again under a delete");
}

#[tokio::test]
async fn a_change_that_meets_the_end_of_the_helper_is_logged_as_far_as_it_came() {
    const FLOWS: u32 = 30_000;
    for _ in 0..10 {
        let mut helper = Helper::start(&["--user", "nobody"]);
        inject::udp(&helper.namespace, 53, FLOWS);
        let (control, mut table) = (helper.proxy().await, helper.table());
        let (query, limit) =
            (QueryMap::from([("dport", 53_u16.into())]), QueryMap::from([("limit", FLOWS.into())]));
        let mut delete = pin!(control.delete_flows(&query, &limit));
        let mut told = false;
        let answer = loop {
            tokio::select! {
                answer = &mut delete => break answer,
                () = tokio::task::yield_now() => {}
            }
            if !told && table.stats().unwrap().entries < FLOWS {
                helper.process.signal(Signal::TERM);
                told = true;
            }
        };
        if !told {
            helper.process.signal(Signal::TERM);
        }
        let (status, log) = helper.process.ended();
        assert!(status.success(), "{log}");
        let line = log.lines().find(|line| line.contains("flows deleted")).unwrap_or_else(|| panic!("{log}"));
        let left = u32::try_from(marks(&mut table).len()).unwrap();
        let deleted = FLOWS - left;
        assert!(
            line.contains(&format!("caller=0 matched={FLOWS} deleted={deleted} gone=0 failed=0")),
            "{line}"
        );
        if left == 0 {
            // The change was done before the signal came.
            continue;
        }
        assert!(line.contains(&format!("left={left}")), "{line}");
        let told = format!("{deleted} are deleted, {left} of {FLOWS} are left");
        assert!(matches!(&answer, Err(Error::Unavailable(text)) if text.contains(&told)), "{answer:?}");
        return;
    }
    panic!("no delete was ever under way when the signal came");
}

#[tokio::test]
async fn an_expectation_is_shown_with_master_and_helper_and_taken_back() {
    let helper = Helper::start(&["--user", "nobody"]);
    let (control, mut table) = (helper.proxy().await, helper.table());
    let mut master = flow(tuple("198.18.0.1", "198.18.0.2", 6, 40_000, 21));
    let state = TcpInfo {
        state: 3,
        wscale_original: None,
        wscale_reply: None,
        flags_original: None,
        flags_reply: None,
    };
    master.helper = Some(b"ftp");
    master.protocol_info = Some(ProtocolInfo::Tcp(state));
    table.create(&master).unwrap();
    let expected = Expectation {
        timeout: Some(300),
        helper: Some(b"ftp"),
        ..Expectation::new(
            master.original,
            tuple("198.18.0.2", "198.18.0.1", 6, 0, 50_000),
            tuple("255.255.255.255", "255.255.255.255", 6, 0, 0xffff),
        )
    };
    table.create_expectation(&expected).unwrap();

    let listed = control.list_expectations(&none()).await.unwrap();
    let [found] = listed.as_slice() else { panic!("{listed:?}") };
    assert_eq!((found.src.as_str(), found.dst.as_str()), ("198.18.0.2", "198.18.0.1"));
    assert_eq!((found.sport, found.dport, found.mask_sport), (Some(0), Some(50_000), Some(0)));
    assert_eq!((found.master_src.as_str(), found.master_dport), ("198.18.0.1", Some(21)));
    assert_eq!((found.helper.as_deref(), found.protocol.as_str()), (Some("ftp"), "tcp"));
    assert!(found.timeout.is_some_and(|left| left <= 300) && found.expectation_id.is_some());
    for (key, value, matched) in
        [("dport", 50_000_u16.into(), 1), ("helper", "FTP".into(), 1), ("dport", 1_u16.into(), 0)]
    {
        assert_eq!(control.list_expectations(&QueryMap::from([(key, value)])).await.unwrap().len(), matched);
    }

    let ftp = QueryMap::from([("helper", "ftp".into())]);
    let dry = QueryMap::from([("dry_run", true.into())]);
    let seen = control.delete_expectations(&ftp, &dry).await.unwrap();
    assert_eq!((seen.matched, seen.deleted), (1, Some(0)));
    assert_eq!(control.delete_expectations(&ftp, &none()).await.unwrap(), deleted(1));
    assert_eq!(control.list_expectations(&none()).await.unwrap(), []);
    assert_eq!(control.delete_expectations(&ftp, &none()).await.unwrap(), deleted(0));
}

/// Sixteen calls are as many as one connection may have in flight with flowbusd.
#[tokio::test]
async fn sixteen_calls_at_once_are_all_answered() {
    let helper = Helper::start(&["--user", "nobody"]);
    inject::udp(&helper.namespace, 53, 300);
    let control = helper.proxy().await;
    let mut calls = tokio::task::JoinSet::new();
    for _ in 0..16 {
        let control = control.clone();
        calls.spawn(async move {
            let dns = QueryMap::from([("dport", 53_u16.into())]);
            control.delete_flows(&dns, &none()).await.unwrap()
        });
    }
    let answers = calls.join_all().await;
    // One after another: each flow is deleted by one of them, and seen by no later one.
    assert!(answers.iter().all(|answer| *answer == deleted(answer.matched)), "{answers:?}");
    assert_eq!(answers.iter().map(|answer| answer.matched).sum::<u32>(), 300);
    assert_eq!(marks(&mut helper.table()), []);
}

#[tokio::test]
async fn each_cpu_has_its_counters() {
    let helper = Helper::start(&["--user", "nobody"]);
    inject::udp(&helper.namespace, 53, 1);
    let cpus = helper.proxy().await.get_cpu_statistics().await.unwrap();
    let there = std::thread::available_parallelism().unwrap().get();
    assert!(cpus.len() >= there, "{cpus:?}");
    let numbers: BTreeSet<_> = cpus.iter().map(|cpu| cpu.cpu).collect();
    assert_eq!(numbers.len(), cpus.len());
}

/// Calls as a user whom nothing is granted.
fn as_nobody(helper: &Helper, member: &str, arguments: &[&str]) -> Result<Value, CallError> {
    let mut busctl = Command::new("setpriv");
    busctl.args(["--reuid=65534", "--regid=65534", "--clear-groups", "busctl", "--json=short"]);
    busctl.arg(format!("--address={}", helper.bus.address())).stdin(Stdio::null());
    let [service, path, interface] = CONTROL;
    call(busctl, [service, path, interface, member], arguments)
}

#[test]
fn without_polkit_nobody_but_root_may() {
    let helper = Helper::start(&["--user", "root"]);
    inject::udp(&helper.namespace, 53, 10);
    for (member, arguments) in [
        ("DeleteFlows", &["a{sv}a{sv}", "1", "dport", "q", "53", "0"][..]),
        ("SetMark", &["a{sv}uua{sv}", "1", "dport", "q", "53", "1", "1", "0"]),
        ("SetTimeout", &["a{sv}ua{sv}", "1", "dport", "q", "53", "1", "0"]),
        ("FlushFlows", &["b", "true"]),
        ("ListExpectations", &["a{sv}", "0"]),
        ("DeleteExpectations", &["a{sv}a{sv}", "1", "helper", "s", "ftp", "0"]),
        ("GetCpuStatistics", &[]),
    ] {
        let error = as_nobody(&helper, member, arguments).unwrap_err();
        assert_eq!(error.name, "org.flowbus.Error.NotAuthorized", "{member}: {error}");
        assert!(error.message.contains("root") && error.message.contains("65534"), "{member}: {error}");
    }
    assert_eq!(marks(&mut helper.table()).len(), 10);
}

/// What is wrong is refused by name, nothing is deleted, and the next call is served.
#[test]
fn a_query_that_is_not_understood_deletes_nothing() {
    let helper = Helper::start(&["--user", "root"]);
    inject::udp(&helper.namespace, 53, 10);
    let [service, path, interface] = CONTROL;
    for (arguments, said) in [
        (&["0", "0"][..], "the query is empty"),
        (&["1", "dprt", "q", "53", "0"], "dprt"),
        (&["1", "id", "t", "1", "0"], "id is not known to the kernel"),
        (&["1", "interface", "s", "eth0", "0"], "interface"),
        (&["1", "since", "t", "1", "0"], "since"),
        (&["1", "limit", "u", "1", "0"], "limit"),
        (&["1", "snapshot", "b", "true", "0"], "snapshot"),
        (&["1", "dport", "s", "http", "0"], "dport takes a port"),
        (&["1", "dport", "d", "53", "0"], "dport"),
        (&["1", "dport", "aq", "0", "0"], "dport"),
        (&["1", "src", "s", "2001:2::/129", "0"], "src"),
        (&["2", "dport", "q", "53", "dport", "q", "54", "0"], "dport is given twice"),
        (&["1", "dport", "q", "53", "1", "dryrun", "b", "true"], "dryrun"),
        (&["1", "dport", "q", "53", "1", "dry_run", "s", "yes"], "dry_run"),
        (&["1", "dport", "q", "53", "1", "limit", "u", "0"], "limit"),
        (&["1", "dport", "q", "53", "1", "limit", "t", "1000001"], "limit"),
    ] {
        let arguments: Vec<_> = std::iter::once("a{sv}a{sv}").chain(arguments.iter().copied()).collect();
        let error = helper.bus.call([service, path, interface, "DeleteFlows"], &arguments).unwrap_err();
        assert_eq!(error.name, "org.flowbus.Error.InvalidArgument", "{arguments:?}: {error}");
        assert!(error.message.contains(said), "{arguments:?}: {error}");
    }
    assert_eq!(marks(&mut helper.table()).len(), 10);
    let arguments = ["a{sv}a{sv}", "1", "dport", "aq", "2", "53", "54", "0"];
    let reply = helper.bus.call([service, path, interface, "DeleteFlows"], &arguments).unwrap();
    assert_eq!(reply[0]["deleted"], 10);
}
