//! The privileged helper on a private bus: what it does for the one user who may call, and what it refuses.

use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};

use ctnetlink::{Message, Received, Socket, messages};
use flowbus_interfaces::{Error, FlowControlProxy};
use flowbus_tests::helper::CONTROL;
use flowbus_tests::process::wait_for;
use flowbus_tests::{Bus, Daemon, Helper, Namespace, inject};
use rustix::process::Signal;
use zbus::{Fd, Variant};

fn no_filter() -> HashMap<&'static str, Variant<'static>> {
    HashMap::new()
}

/// Reads a dump to its end: the number of flows, all of which have the sequence.
fn read_dump(socket: &Socket, sequence: u32) -> usize {
    let (mut flows, mut buffer) = (0, vec![0; 65_536]);
    loop {
        let length = match socket.receive(&mut buffer).unwrap() {
            Received::Datagram(length) => length,
            other => panic!("{other:?} before the end of the dump"),
        };
        for message in messages(&buffer[..length]) {
            match message.unwrap() {
                Message::Flow(header, ..) => {
                    assert_eq!(header.sequence, sequence);
                    flows += 1;
                }
                Message::Done(header, code) => {
                    assert_eq!((header.sequence, code), (sequence, 0));
                    return flows;
                }
                other => panic!("{other:?} in a dump"),
            }
        }
    }
}

#[tokio::test]
async fn a_dump_comes_on_the_passed_socket_with_the_callers_sequence() {
    let helper = Helper::start(&["--user", "root"]);
    inject::udp(&helper.namespace, 53, 3_000);
    let (proxy, socket) = (helper.proxy().await, helper.dump_socket());
    for sequence in [1, u32::MAX] {
        proxy.request_dump(Fd::from(socket.as_fd()), sequence, &no_filter()).await.unwrap();
        assert_eq!(read_dump(&socket, sequence), 3_000);
    }
}

#[tokio::test]
async fn the_kernels_state_is_that_of_the_helpers_namespace() {
    let helper = Helper::start(&["--user", "root"]);
    inject::udp(&helper.namespace, 53, 7);
    helper.namespace.sysctl("net.netfilter.nf_conntrack_events", "1");
    let state = helper.proxy().await.get_kernel_state().await.unwrap();
    assert_eq!(state.count, Some(7));
    let maximum = helper.namespace.sysctl_value("net.netfilter.nf_conntrack_max");
    assert_eq!(state.maximum, maximum.parse().ok());
    assert_eq!((state.accounting, state.timestamping, state.events), (Some(true), Some(true), Some(1)));
    assert_eq!((state.early_drop, state.insert_failed), (Some(0), Some(0)));

    helper.namespace.sysctl("net.netfilter.nf_conntrack_acct", "0");
    assert_eq!(helper.proxy().await.get_kernel_state().await.unwrap().accounting, Some(false));
}

#[tokio::test]
async fn nothing_is_written_to_a_descriptor_of_another_kind() {
    let helper = Helper::start(&["--user", "root"]);
    let proxy = helper.proxy().await;
    let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
    ours.set_nonblocking(true).unwrap();
    let file: OwnedFd = std::fs::File::open("/dev/null").unwrap().into();
    let route = rustix::net::socket_with(
        rustix::net::AddressFamily::NETLINK,
        rustix::net::SocketType::RAW,
        rustix::net::SocketFlags::CLOEXEC,
        None, // NETLINK_ROUTE is protocol 0
    )
    .unwrap();
    for descriptor in [theirs.as_fd(), file.as_fd(), route.as_fd()] {
        let error = proxy.request_dump(Fd::from(descriptor), 1, &no_filter()).await.unwrap_err();
        assert!(matches!(&error, Error::InvalidArgument(text) if text.starts_with("socket: ")), "{error:?}");
    }
    let nothing = std::io::Read::read(&mut &ours, &mut [0; 1]).unwrap_err();
    assert_eq!(nothing.kind(), std::io::ErrorKind::WouldBlock);
}

#[tokio::test]
async fn an_unknown_key_of_the_filter_is_refused_by_name() {
    let helper = Helper::start(&["--user", "root"]);
    let socket = helper.dump_socket();
    let filter = HashMap::from([("famly", Variant::from("ipv4"))]);
    let error = helper.proxy().await.request_dump(Fd::from(socket.as_fd()), 1, &filter).await.unwrap_err();
    assert!(
        matches!(&error, Error::InvalidArgument(text) if text.starts_with("filter.famly: ")),
        "{error:?}"
    );
    assert_eq!(socket.receive(&mut [0; 8192]).unwrap(), Received::Empty);
}

#[tokio::test]
async fn not_even_root_may_call_what_is_for_another_user() {
    let helper = Helper::start(&["--user", "nobody"]);
    let (proxy, socket) = (helper.proxy().await, helper.dump_socket());
    let dump = proxy.request_dump(Fd::from(socket.as_fd()), 1, &no_filter()).await.unwrap_err();
    let state = proxy.get_kernel_state().await.unwrap_err();
    for error in [dump, state] {
        assert!(
            matches!(&error, Error::NotAuthorized(text) if text.contains("nobody") && text.contains("user id 0")),
            "{error:?}"
        );
    }
    assert_eq!(socket.receive(&mut [0; 8192]).unwrap(), Received::Empty);
}

#[test]
fn an_unknown_user_ends_the_helper_with_advice() {
    let (namespace, bus) = (Namespace::new("host"), Bus::start());
    let mut process = Daemon::spawn(Helper::command(&namespace, &bus).args(["--user", "nosuchuser"]));
    let (status, log) = process.ended();
    assert!(!status.success());
    assert!(log.contains("/etc/passwd has no user nosuchuser") && log.contains("systemd-sysusers"), "{log}");
}

#[tokio::test]
async fn it_is_confined_from_its_first_answer_to_its_end() {
    let (namespace, bus) = (Namespace::tracked("host"), Bus::start());
    let process = Daemon::spawn(
        Helper::command(&namespace, &bus).args(["--user", "root", "--idle", "5"]).env("RUST_LOG", "debug"),
    );
    let mut helper = Helper { namespace, bus, process };
    wait_for("the helper to be on the bus", || helper.has_name().then_some(()));
    let (proxy, socket) = (helper.proxy().await, helper.dump_socket());
    inject::udp(&helper.namespace, 53, 30);
    assert_eq!(proxy.get_kernel_state().await.unwrap().insert_failed, Some(0));
    proxy.request_dump(Fd::from(socket.as_fd()), 1, &no_filter()).await.unwrap();
    assert_eq!(read_dump(&socket, 1), 30);
    let status = std::fs::read_to_string(format!("/proc/{}/status", helper.process.pid())).unwrap();
    assert!(status.contains("Seccomp:\t2\n") && status.contains("NoNewPrivs:\t1\n"), "{status}");
    // The machine's number is one of the files that it may read.
    let peer = [CONTROL[0], CONTROL[1], "org.freedesktop.DBus.Peer", "GetMachineId"];
    assert_eq!(helper.bus.call(peer, &[]).unwrap()[0].as_str().unwrap().len(), 32);
    let (status, log) = helper.process.ended();
    assert!(status.success(), "{log}");
    assert!(log.contains("files are confined enforced=") && !log.contains("enforced=Not"), "{log}");
    assert!(!log.contains("WARN"), "{log}");
}

#[test]
fn the_helper_exits_when_nobody_calls() {
    let mut helper = Helper::start(&["--user", "root", "--idle", "5"]);
    let (status, log) = helper.process.ended();
    assert!(status.success(), "{log}");
    assert!(!helper.has_name());
}

/// Calls until the bus knows nobody of the name; a call that was swallowed would have no answer.
async fn call_to_the_end(control: FlowControlProxy<'static>) {
    loop {
        match control.get_kernel_state().await {
            Ok(_) => {}
            Err(Error::ZBus(zbus::Error::FDO(error)))
                if matches!(*error, zbus::fdo::Error::ServiceUnknown(_)) =>
            {
                return;
            }
            Err(error) => panic!("{error:?}"),
        }
    }
}

#[tokio::test]
async fn a_call_that_meets_the_end_of_the_helper_is_answered_all_the_same() {
    for _ in 0..10 {
        let mut helper = Helper::start(&["--user", "root"]);
        let control = helper.proxy().await;
        control.get_kernel_state().await.unwrap();
        let mut callers = tokio::task::JoinSet::new();
        for _ in 0..8 {
            callers.spawn(call_to_the_end(control.clone()));
        }
        helper.process.signal(Signal::TERM);
        callers.join_all().await;
        let (status, log) = helper.process.ended();
        assert!(status.success(), "{log}");
    }
}
