//! Connects whose end comes after the call has returned, or without one: each is reported once.

use std::io::Read;
use std::net::SocketAddr;
use std::process::Stdio;

use flowbus_attribution::{Event, Kind};
use flowbus_tests::process::output_of;
use flowbus_tests::sockets::{by, name};
use flowbus_tests::{Namespace, Sockets};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::net::{SocketFlags, SocketType, connect};

use super::failures::{all, dead_end, failure, failures, socket};
use super::{listen, of};

#[test]
fn a_connect_that_does_not_wait_is_told_as_one_that_does() {
    let to: SocketAddr = "198.18.0.1:443".parse().unwrap();
    let namespace = dead_end();
    let mut sockets = Sockets::watch();
    let error = namespace.enter(|| connect(socket(to, SocketType::STREAM, SocketFlags::NONBLOCK), &to));
    assert_eq!(error, Err(Errno::NETUNREACH));
    assert_eq!(failure(&mut sockets, &namespace), (to, Errno::NETUNREACH.raw_os_error()));
}

#[test]
fn a_refusal_that_comes_later_is_told_once_however_the_process_learns_of_it() {
    let to: SocketAddr = "127.0.0.1:1".parse().unwrap();
    let namespace = Namespace::new("later");
    let mut sockets = Sockets::watch();
    let again = namespace.enter(|| {
        let client = socket(to, SocketType::STREAM, SocketFlags::NONBLOCK);
        assert_eq!(connect(&client, &to), Err(Errno::INPROGRESS));
        // It hands out the error of before.
        connect(&client, &to)
    });
    assert_eq!(again, Err(Errno::CONNREFUSED));
    assert_eq!(failure(&mut sockets, &namespace), (to, Errno::CONNREFUSED.raw_os_error()));
}

#[test]
fn a_socket_that_is_closed_while_it_connects_fails_without_an_error() {
    let namespace = Namespace::new("gaveup");
    namespace.nft(
        "table inet filter { chain output { type filter hook output priority 0; tcp dport 81 drop; }; }",
    );
    let to: SocketAddr = "127.0.0.1:81".parse().unwrap();
    let mut sockets = Sockets::watch();
    namespace.enter(|| {
        let client = socket(to, SocketType::STREAM, SocketFlags::NONBLOCK);
        assert_eq!(connect(&client, &to), Err(Errno::INPROGRESS));
    });
    assert_eq!(failure(&mut sockets, &namespace), (to, 0));
}

/// Keeps changes of state from being seen for the rest of the test, as where the kernel skips the program.
fn let_changes_of_state_pass_unseen(sockets: &mut Sockets, namespace: &Namespace) {
    sockets.detach("inet_sock_set_state");
    loop {
        let port = listen(namespace, "127.0.0.1:0").local_addr().unwrap().port();
        let seen = |event: &Event| event.kind == Kind::Listen && event.local.port() == port;
        if !all(sockets, namespace).iter().any(seen) {
            break;
        }
    }
}

#[test]
fn a_failure_that_no_change_of_state_told_is_told_by_the_call_or_at_the_release() {
    let to: SocketAddr = "127.0.0.1:81".parse().unwrap();
    for asks_again in [true, false] {
        let namespace = Namespace::new("unseen");
        namespace.nft(
            "table inet filter { chain output { type filter hook output priority 0; tcp dport 81 drop; }; }",
        );
        let mut sockets = Sockets::watch();
        let client = namespace.enter(|| {
            let client = socket(to, SocketType::STREAM, SocketFlags::NONBLOCK);
            assert_eq!(connect(&client, &to), Err(Errno::INPROGRESS));
            assert_eq!(connect(&client, &to), Err(Errno::ALREADY));
            client
        });
        let_changes_of_state_pass_unseen(&mut sockets, &namespace);
        assert_eq!(failures(&mut sockets, &namespace), []);
        namespace.nft(
            "flush chain inet filter output; add rule inet filter output tcp dport 81 reject with tcp reset;",
        );
        poll(&mut [PollFd::new(&client, PollFlags::OUT)], None).unwrap();
        let mut errno = 0;
        if asks_again {
            errno = Errno::CONNREFUSED.raw_os_error();
            assert_eq!(connect(&client, &to), Err(Errno::CONNREFUSED));
            assert_eq!(failures(&mut sockets, &namespace).len(), 1, "it does not wait for the release");
        }
        drop(client);
        assert_eq!(failure(&mut sockets, &namespace), (to, errno));
        assert_ne!(failures(&mut sockets, &namespace)[0].local.port(), 0);
    }
}

/// With TCP_FASTOPEN_CONNECT (30) connect() succeeds, and what is sent first asks for the connection.
#[test]
fn a_connect_that_waits_for_data_is_told_with_the_error_of_sending() {
    let namespace = dead_end();
    namespace.sysctl("net.ipv4.tcp_fastopen", "5");
    let mut sockets = Sockets::watch();
    let script = r#"
use Socket qw(:DEFAULT IPPROTO_TCP); use Errno qw(ECONNREFUSED ENETUNREACH);
$| = 1; $SIG{PIPE} = 'IGNORE';
for (['127.0.0.1', ECONNREFUSED], ['198.18.0.1', ENETUNREACH]) {
    my ($host, $expected) = @$_;
    socket(my $client, PF_INET, SOCK_STREAM, 0) or die $!;
    setsockopt($client, IPPROTO_TCP, 30, 1) or die $!;
    my $connected = connect($client, pack_sockaddr_in(1, inet_aton($host)));
    print "asked for with the first data\n" if $connected;
    !($connected && defined(send($client, 'x', 0))) && $! == $expected or die "$host: $!";
}
"#;
    let client = namespace.command("perl").args(["-e", script]).output().unwrap();
    assert_eq!(String::from_utf8(client.stdout).unwrap(), "asked for with the first data\n");
    assert!(client.status.success(), "{}", String::from_utf8_lossy(&client.stderr));
    let failed = failures(&mut sockets, &namespace);
    let told: Vec<_> = failed.iter().map(|event| (event.remote.to_string(), event.kind)).collect();
    let with = |error: Errno| Kind::ConnectFailed { errno: error.raw_os_error() };
    assert_eq!(
        told,
        [
            ("127.0.0.1:1".to_owned(), with(Errno::CONNREFUSED)),
            ("198.18.0.1:1".to_owned(), with(Errno::NETUNREACH)),
        ]
    );
}

#[test]
fn a_connect_that_a_signal_interrupts_has_failed_nothing() {
    let namespace = Namespace::new("signal");
    namespace.nft(
        "table inet filter { chain output { type filter hook output priority 0; tcp dport 81 drop; }; }",
    );
    let mut sockets = Sockets::watch();
    let script = r#"
use Socket; use Errno qw(EINTR);
$| = 1; $SIG{ALRM} = sub {};
socket(my $client, PF_INET, SOCK_STREAM, 0) or die $!;
alarm 1;
!connect($client, pack_sockaddr_in(81, inet_aton('127.0.0.1'))) && $! == EINTR or die $!;
print "interrupted\n";
<STDIN>;
"#;
    let mut client = namespace.command("perl");
    let mut client =
        client.args(["-e", script]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut said = [0; 12];
    client.stdout.take().unwrap().read_exact(&mut said).unwrap();
    assert_eq!(&said, b"interrupted\n");
    assert_eq!(failures(&mut sockets, &namespace), []);
    drop(client.stdin.take());
    assert!(client.wait().unwrap().success());
    let failed = failures(&mut sockets, &namespace);
    let told: Vec<_> = failed.iter().map(|event| (event.remote.port(), event.kind)).collect();
    assert_eq!(told, [(81, Kind::ConnectFailed { errno: 0 })], "the process closed it");
}

/// Connects by a ring (io_uring) and prints the error. Memory is written by reading from a pipe.
const RING: &str = r#"
use Socket; $| = 1;
my $parameters = "\0" x 120;
my $ring = syscall(425, 1, $parameters);
$ring >= 0 or die "io_uring: $!";
sub mapped { my $at = syscall(9, 0, 4096, 3, 0x8001, $ring, $_[0]); $at != -1 or die "mmap: $!"; $at }
my ($submitted, $completed, $entries) = map { mapped($_) } 0, 0x8000000, 0x10000000;
pipe(my $out, my $in) or die $!;
sub poke { my ($at, $bytes) = @_; syswrite($in, $bytes); syscall(0, fileno($out), $at, length $bytes) == length $bytes or die $! }
sub offset { unpack "L", substr($parameters, $_[0], 4) }
socket(my $client, PF_INET, SOCK_STREAM, 0) or die $!;
my $to = pack_sockaddr_in($ARGV[1], inet_aton($ARGV[0]));
my $address = unpack("Q", pack("p", $to));
poke($entries, pack("CCSlQQLLQ", 16, 0, 0, fileno($client), length($to), $address, 0, 0, 7) . "\0" x 24);
poke($submitted + offset(64), pack("L", 0));
poke($submitted + offset(44), pack("L", 1));
syscall(426, $ring, 1, 1, 1, 0, 0) == 1 or die "enter: $!";
print -unpack("l", unpack("P4", pack("Q", $completed + offset(100) + 8))), "\n";
"#;

#[test]
fn a_connect_by_io_uring_is_told_as_one_by_a_call() {
    let namespace = dead_end();
    let mut sockets = Sockets::watch();
    let listener = listen(&namespace, "127.0.0.1:0");
    let open = listener.local_addr().unwrap();
    let ways = [("127.0.0.1:1", Errno::CONNREFUSED), ("198.18.0.1:443", Errno::NETUNREACH)];
    for (to, error) in ways {
        let printed = ring(&namespace, to.parse().unwrap());
        assert_eq!(printed, format!("{}\n", error.raw_os_error()));
    }
    assert_eq!(ring(&namespace, open), "0\n");
    let told: Vec<_> = failures(&mut sockets, &namespace)
        .iter()
        .map(|event| (event.remote.to_string(), event.kind))
        .collect();
    let expected =
        ways.map(|(to, error)| (to.to_owned(), Kind::ConnectFailed { errno: error.raw_os_error() }));
    assert_eq!(told, expected);
    let connected = of(&all(&mut sockets, &namespace), |kind| kind == Kind::Connect);
    assert_eq!(
        (connected.len(), connected[0].remote, name(&by(&connected[0]).comm)),
        (1, open, "perl".to_owned())
    );
}

fn ring(namespace: &Namespace, to: SocketAddr) -> String {
    let (host, port) = (to.ip().to_string(), to.port().to_string());
    output_of(namespace.command("perl").args(["-e", RING, &host, &port]))
}
