//! The BPF programs on this kernel: which process connects, accepts, closes, sends.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

mod addresses;
mod events;
mod executables;
mod failures;
mod loading;
mod pending;
mod processes;

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::OwnedFd;
use std::process::Stdio;
use std::thread;
use std::time::Duration;

use flowbus_attribution::{Confidence, Event, Kind};
use flowbus_tests::sockets::{by, name};
use flowbus_tests::{Namespace, Sockets};
use rustix::net::{AddressFamily, SocketType, sockopt};

const V4: [u8; 4] = [127, 0, 0, 1];

fn listen(namespace: &Namespace, address: &str) -> TcpListener {
    namespace.enter(|| TcpListener::bind(address).unwrap())
}

/// Runs `work` in the namespace on a thread of this name.
fn on_thread<T: Send>(namespace: &Namespace, name: &str, work: impl FnOnce() -> T + Send) -> T {
    let named = || {
        thread::scope(|scope| {
            thread::Builder::new().name(name.to_owned()).spawn_scoped(scope, work).unwrap().join().unwrap()
        })
    };
    namespace.enter(named)
}

fn is_close(kind: Kind) -> bool {
    matches!(kind, Kind::Close { .. })
}

fn of(events: &[Event], kind: impl Fn(Kind) -> bool) -> Vec<Event> {
    events.iter().filter(|event| kind(event.kind)).copied().collect()
}

/// The only event of this kind.
fn one(events: &[Event], kind: impl Fn(Kind) -> bool) -> Event {
    let found = of(events, kind);
    assert_eq!(found.len(), 1, "{events:#?}");
    found[0]
}

/// The only event of this kind of a socket with this local port.
fn one_at(events: &[Event], port: u16, kind: impl Fn(Kind) -> bool) -> Event {
    let local: Vec<_> = events.iter().filter(|event| event.local.port() == port).copied().collect();
    one(&local, kind)
}

fn this_process() -> u32 {
    std::process::id()
}

/// A shell command in the namespace; it reads from `input`.
fn shell(namespace: &Namespace, script: &str, input: impl Into<Stdio>) -> std::process::Child {
    namespace.command("bash").args(["-c", script]).stdin(input).stdout(Stdio::piped()).spawn().unwrap()
}

fn connects_accepts_and_closes(address: &str) {
    let namespace = Namespace::new("triple");
    let mut sockets = Sockets::watch();
    let listener = listen(&namespace, address);
    let server = listener.local_addr().unwrap();
    let client = on_thread(&namespace, "connects", || TcpStream::connect(server).unwrap());
    let port = client.local_addr().unwrap().port();
    let (mut accepted, _) = on_thread(&namespace, "accepts", || listener.accept().unwrap());
    on_thread(&namespace, "closes", move || {
        (&client).write_all(b"x").unwrap();
        drop(client);
    });
    accepted.read_exact(&mut [0]).unwrap();
    assert_eq!(accepted.read(&mut [0]).unwrap(), 0);
    drop((accepted, listener));

    let events = sockets.events_with(&namespace, 2, is_close);
    let syn = one(&events, |kind| kind == Kind::Syn);
    let connect = one(&events, |kind| kind == Kind::Connect);
    let accept = one(&events, |kind| kind == Kind::Accept);
    let close = one_at(&events, port, is_close);
    let other_close = one_at(&events, server.port(), is_close);
    for event in [syn, connect, close] {
        assert_eq!((event.local, event.remote), (SocketAddr::new(server.ip(), port), server), "{event:?}");
        assert_eq!(event.cookie, connect.cookie);
    }
    for event in [accept, other_close] {
        assert_eq!((event.local, event.remote), (server, SocketAddr::new(server.ip(), port)), "{event:?}");
        assert_eq!(event.cookie, accept.cookie);
    }
    assert_ne!(accept.cookie, connect.cookie);
    for (event, thread) in [(syn, "connects"), (connect, "connects"), (accept, "accepts"), (close, "closes")]
    {
        let process = by(&event);
        assert_eq!((process.pid, process.uid), (this_process(), 0), "{event:?}");
        assert_eq!(name(&process.comm), thread, "{event:?}");
        assert_eq!(
            name(&process.leader_comm),
            fs::read_to_string("/proc/self/comm").unwrap().trim(),
            "{event:?}"
        );
        assert_eq!(process.confidence, Confidence::Exact, "{event:?}");
        assert_ne!(process.tid, process.pid, "{event:?}");
    }
    // Neither SYN nor FIN counts.
    assert!(matches!(close.kind, Kind::Close { reset: false, sent: 1, received: 0, .. }), "{close:?}");
    let is_other = |kind| matches!(kind, Kind::Close { reset: false, sent: 0, received: 1, .. });
    assert!(is_other(other_close.kind), "{other_close:?}");
    assert!(close.connect_usec.is_some() && other_close.connect_usec.is_none());
    assert_eq!((close.opened, other_close.opened), (Some(true), Some(false)));
    assert!(
        events.windows(2).all(|two| two[0].monotonic_ns <= two[1].monotonic_ns + 1_000_000),
        "oldest first"
    );
}

#[test]
fn an_ipv4_connection_is_told_with_who_connects_accepts_and_closes() {
    connects_accepts_and_closes("127.0.0.1:0");
}

#[test]
fn an_ipv6_connection_is_told_with_who_connects_accepts_and_closes() {
    connects_accepts_and_closes("[::1]:0");
}

#[test]
fn a_mapped_address_is_told_as_ipv4_on_both_sides() {
    let namespace = Namespace::new("mapped");
    let mut sockets = Sockets::watch();
    let listener = listen(&namespace, "[::]:0");
    let port = listener.local_addr().unwrap().port();
    let client = namespace.enter(|| TcpStream::connect(format!("[::ffff:127.0.0.1]:{port}")).unwrap());
    let accepted = listener.accept().unwrap();
    drop(client);
    drop(accepted);
    let events = sockets.events_with(&namespace, 2, is_close);
    for event in of(&events, |kind| kind != Kind::Listen) {
        assert_eq!((event.local.ip(), event.remote.ip()), (V4.into(), V4.into()), "{event:?}");
    }
}

#[test]
fn a_worker_that_inherited_the_listener_is_the_one_that_accepts() {
    let namespace = Namespace::new("worker");
    let mut sockets = Sockets::watch();
    let listener = listen(&namespace, "127.0.0.1:0");
    let server = listener.local_addr().unwrap();
    // Perl forks, and its child accepts: the owner of the listener is neither.
    let script = "perl -e 'unless (fork) { accept(C, STDIN); syswrite(STDOUT, \"$$\\n\"); sysread(C, $x, 1); exit } wait'";
    let mut worker = shell(&namespace, script, OwnedFd::from(listener.try_clone().unwrap()));
    let mut client = namespace.enter(|| TcpStream::connect(server).unwrap());
    let mut output = [0; 16];
    let length = worker.stdout.take().unwrap().read(&mut output).unwrap();
    let pid: u32 = String::from_utf8_lossy(&output[..length]).trim().parse().unwrap();
    client.write_all(b"x").unwrap();
    assert!(worker.wait().unwrap().success());

    let events = sockets.events_with(&namespace, 1, is_close);
    let (incoming, accept) =
        (one(&events, |kind| kind == Kind::Incoming), one(&events, |kind| kind == Kind::Accept));
    assert_eq!((by(&incoming).pid, by(&incoming).confidence), (this_process(), Confidence::Inherited));
    assert_eq!((by(&accept).pid, by(&accept).confidence), (pid, Confidence::Exact));
    assert_eq!(name(&by(&accept).comm), "perl");
    let close = one(&events, is_close);
    assert_eq!((close.cookie, by(&close).pid), (accept.cookie, pid));
}

#[test]
fn a_refused_connect_is_told_with_its_error() {
    let namespace = Namespace::new("refused");
    let mut sockets = Sockets::watch();
    for address in ["127.0.0.1:9", "[::1]:9"] {
        let error = namespace.enter(|| TcpStream::connect(address).unwrap_err());
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
    }
    let failed = |kind| matches!(kind, Kind::ConnectFailed { .. });
    let events = sockets.events_with(&namespace, 2, failed);
    for (event, remote) in of(&events, failed).into_iter().zip(["127.0.0.1:9", "[::1]:9"]) {
        assert_eq!(event.kind, Kind::ConnectFailed { errno: 111 });
        assert_eq!((event.remote.to_string().as_str(), by(&event).pid), (remote, this_process()));
        assert_ne!(event.local.port(), 0);
    }
    assert!(of(&events, |kind| kind == Kind::Connect || is_close(kind)).is_empty(), "{events:#?}");
}

#[test]
fn the_same_ends_in_two_namespaces_are_two_sockets() {
    let namespaces = ["one", "two"].map(Namespace::new);
    let mut sockets = Sockets::watch();
    let connect = |namespace: &Namespace| {
        let listener = listen(namespace, "127.0.0.1:7000");
        let client = namespace.enter(|| {
            let socket = rustix::net::socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
            rustix::net::bind(&socket, &SocketAddr::from((V4, 40_000))).unwrap();
            rustix::net::connect(&socket, &SocketAddr::from((V4, 7000))).unwrap();
            socket
        });
        (listener.accept().unwrap(), client)
    };
    let connections = namespaces.each_ref().map(connect);
    let [first, second] = namespaces.each_ref().map(|namespace| {
        let events = sockets.events_with(namespace, 1, |kind| kind == Kind::Accept);
        one(&events, |kind| kind == Kind::Connect)
    });
    assert_eq!((first.local, first.remote), (second.local, second.remote));
    assert_ne!(first.network_namespace, second.network_namespace);
    assert_ne!(first.cookie, second.cookie);
    drop(connections);
}

#[test]
fn sockets_older_than_the_programs_are_in_the_snapshot_and_their_ends_are_told() {
    let namespace = Namespace::new("older");
    let listener = listen(&namespace, "127.0.0.1:0");
    let server = listener.local_addr().unwrap();
    let udp = namespace.enter(|| UdpSocket::bind("127.0.0.1:0").unwrap());
    let client = namespace.enter(|| TcpStream::connect(server).unwrap());
    let (accepted, _) = listener.accept().unwrap();
    let mut sockets = Sockets::watch();
    let open = sockets.open_before(&namespace);
    let ends = [
        (server, "0.0.0.0:0".parse().unwrap(), 6),
        (udp.local_addr().unwrap(), "0.0.0.0:0".parse().unwrap(), 17),
        (client.local_addr().unwrap(), server, 6),
        (server, client.local_addr().unwrap(), 6),
    ];
    for (local, remote, protocol) in ends {
        let found = open
            .iter()
            .find(|event| (event.local, event.remote, event.protocol) == (local, remote, protocol));
        let process = by(found.unwrap_or_else(|| panic!("{local} {remote} {protocol} is not in {open:#?}")));
        assert_eq!((process.pid, process.confidence, process.uid), (this_process(), Confidence::Snapshot, 0));
    }
    // The peer resets: nobody here runs then, and the owner is known from the snapshot.
    sockopt::set_socket_linger(&client, Some(Duration::ZERO)).unwrap();
    drop(client);
    let events = sockets.events_with(&namespace, 2, is_close);
    let reset = one_at(&events, server.port(), is_close);
    assert!(matches!(reset.kind, Kind::Close { reset: true, .. }), "{reset:?}");
    assert_eq!((by(&reset).pid, by(&reset).confidence), (this_process(), Confidence::Snapshot));
    drop(accepted);
}

#[test]
fn a_reset_is_told_of_the_owner_and_not_of_whoever_ran() {
    let namespace = Namespace::new("reset");
    let mut sockets = Sockets::watch();
    let listener = listen(&namespace, "127.0.0.1:0");
    let server = listener.local_addr().unwrap();
    let script = format!("exec 3<>/dev/tcp/127.0.0.1/{}; echo; read x; exec sleep 60", server.port());
    let mut client = shell(&namespace, &script, Stdio::piped());
    let (accepted, peer) = listener.accept().unwrap();
    client.stdout.take().unwrap().read_exact(&mut [0]).unwrap();
    sockopt::set_socket_linger(&accepted, Some(Duration::ZERO)).unwrap();
    drop(accepted);
    let events = sockets.events_with(&namespace, 2, is_close);
    let (theirs, ours) = (one_at(&events, peer.port(), is_close), one_at(&events, server.port(), is_close));
    assert!(matches!(theirs.kind, Kind::Close { reset: true, .. }), "{theirs:?}");
    assert_eq!((by(&theirs).pid, name(&by(&theirs).comm)), (client.id(), "bash".to_owned()));
    assert!(matches!(ours.kind, Kind::Close { reset: false, .. }), "{ours:?}");
    assert_eq!(by(&ours).pid, this_process());
    client.kill().unwrap();
    client.wait().unwrap();
    sockets.drain();
    let events = sockets.events_with(&namespace, 2, is_close);
    assert_eq!(
        of(&events, is_close).len(),
        2,
        "the killed process closes nothing that had not ended: {events:#?}"
    );
}

#[test]
fn an_accepted_connection_that_is_reset_is_of_the_worker_that_accepted() {
    let namespace = Namespace::new("resetworker");
    let mut sockets = Sockets::watch();
    let listener = listen(&namespace, "127.0.0.1:0");
    let server = listener.local_addr().unwrap();
    let script = "exec perl -e 'accept(C, STDIN); sysread(C, $x, 1); syswrite(STDOUT, $x); sleep 60'";
    let mut worker = shell(&namespace, script, OwnedFd::from(listener.try_clone().unwrap()));
    let mut client = namespace.enter(|| TcpStream::connect(server).unwrap());
    client.write_all(b"x").unwrap();
    worker.stdout.take().unwrap().read_exact(&mut [0]).unwrap();
    sockopt::set_socket_linger(&client, Some(Duration::ZERO)).unwrap();
    drop(client);
    let events = sockets.events_with(&namespace, 2, is_close);
    let reset = one_at(&events, server.port(), is_close);
    assert!(matches!(reset.kind, Kind::Close { reset: true, .. }), "{reset:?}");
    assert_eq!((by(&reset).pid, by(&reset).confidence), (worker.id(), Confidence::Exact));
    worker.kill().unwrap();
    worker.wait().unwrap();
}

#[test]
fn a_killed_process_closes_its_connection_once() {
    let namespace = Namespace::new("killed");
    let mut sockets = Sockets::watch();
    let listener = listen(&namespace, "127.0.0.1:0");
    let server = listener.local_addr().unwrap();
    let script = format!("exec 3<>/dev/tcp/127.0.0.1/{}; exec sleep 60", server.port());
    let mut client = shell(&namespace, &script, Stdio::null());
    let (mut accepted, peer) = listener.accept().unwrap();
    client.kill().unwrap();
    client.wait().unwrap();
    assert_eq!(accepted.read(&mut [0]).unwrap(), 0);
    drop(accepted);
    let events = sockets.events_with(&namespace, 2, is_close);
    let close = one_at(&events, peer.port(), is_close);
    assert!(matches!(close.kind, Kind::Close { reset: false, .. }), "{close:?}");
    assert_eq!(by(&close).pid, client.id());
    assert_eq!(of(&events, is_close).len(), 2, "{events:#?}");
}

#[test]
fn a_connection_that_is_half_closed_first_ends_once_on_each_side() {
    let namespace = Namespace::new("half");
    let mut sockets = Sockets::watch();
    let listener = listen(&namespace, "127.0.0.1:0");
    let server = listener.local_addr().unwrap();
    let mut client = namespace.enter(|| TcpStream::connect(server).unwrap());
    let port = client.local_addr().unwrap().port();
    let (mut accepted, _) = listener.accept().unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(accepted.read(&mut [0]).unwrap(), 0);
    let before = sockets.events_with(&namespace, 1, |kind| kind == Kind::Accept);
    assert!(of(&before, is_close).is_empty(), "half of it is still open: {before:#?}");
    accepted.write_all(b"answer").unwrap();
    drop(accepted);
    assert_eq!(client.read_to_end(&mut Vec::new()).unwrap(), 6);
    drop(client);
    drop(listener);
    let events = sockets.events_with(&namespace, 1, |kind| kind == Kind::Release);
    for port in [port, server.port()] {
        let close = one_at(&events, port, is_close);
        assert!(matches!(close.kind, Kind::Close { reset: false, .. }), "{close:?}");
        assert_eq!(by(&close).pid, this_process());
    }
}

#[test]
fn one_datagram_is_enough_connected_or_not() {
    let namespace = Namespace::new("datagram");
    let mut sockets = Sockets::watch();
    let server = namespace.enter(|| UdpSocket::bind("127.0.0.1:0").unwrap());
    let to = server.local_addr().unwrap();
    let mut child = shell(&namespace, &format!("echo x >/dev/udp/127.0.0.1/{}", to.port()), Stdio::null());
    let (_, connected) = server.recv_from(&mut [0; 8]).unwrap();
    child.wait().unwrap();
    let unconnected = namespace.enter(|| {
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        socket.send_to(b"x", to).unwrap();
        socket.send_to(b"again", to).unwrap();
        socket.local_addr().unwrap()
    });
    drop(server);

    let events = sockets.events_with(&namespace, 2, |kind| kind == Kind::Release);
    let is_send = |kind| kind == Kind::Send;
    let send = one_at(&events, connected.port(), is_send);
    assert_eq!((send.local, send.remote, send.protocol), (connected, to, 17));
    assert_eq!((by(&send).pid, name(&by(&send).comm)), (child.id(), "bash".to_owned()));
    let send = one_at(&events, unconnected.port(), is_send);
    assert_eq!((send.remote, by(&send).pid), (to, this_process()), "told once: {send:?}");
    assert!(send.local.ip() == Ipv4Addr::UNSPECIFIED || send.local.ip() == Ipv4Addr::from(V4), "{send:?}");
    let bind = one_at(&events, to.port(), |kind| kind == Kind::Bind);
    assert_eq!((bind.local, by(&bind).pid), (to, this_process()));
    let gone = of(&events, |kind| kind == Kind::Release);
    assert!(gone.iter().any(|event| event.cookie == bind.cookie), "{gone:#?}");
}
