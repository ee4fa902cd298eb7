//! Which program a process runs, as the kernel's /proc has it.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::os::fd::OwnedFd;
use std::process::Stdio;

use flowbus_attribution::{Event, Kind, Process};
use flowbus_tests::process::{DEADLINE, Directory};
use flowbus_tests::sockets::{by, name};
use flowbus_tests::{Namespace, Sockets};

use super::{is_close, listen, of, one, shell};

/// The path of a process's program, as the kernel shows it to us.
fn in_proc(pid: u32) -> String {
    let path = fs::read_link(format!("/proc/{pid}/exe")).unwrap().to_string_lossy().into_owned();
    path.strip_suffix(" (deleted)").map_or(path.clone(), str::to_owned)
}

fn real(path: &str) -> String {
    fs::canonicalize(path).unwrap().to_string_lossy().into_owned()
}

/// What a shell has to do that connects to this port and waits there.
fn connecting(port: u16) -> String {
    format!("exec 3<>/dev/tcp/127.0.0.1/{port}; read -u 3")
}

/// Runs a script in namespaces of its own, with a directory of its own in `$1`, which has to end as a shell that does `$CONNECT`. Returns
/// which program was reported, and which one /proc has.
fn program_of(script: &str) -> (Option<String>, String) {
    let namespace = Namespace::new("program");
    let mut sockets = Sockets::watch();
    let listener = listen(&namespace, "127.0.0.1:0");
    let directory = Directory::new("program");
    let mut process = namespace
        .command("unshare")
        .args(["--mount", "bash", "-ec", script, "script"])
        .arg(directory.path())
        .env("CONNECT", connecting(listener.local_addr().unwrap().port()))
        .stdin(Stdio::null())
        .spawn()
        .unwrap();
    // Which ends also where the script fails.
    let events = sockets.events_with(&namespace, 1, |kind| kind == Kind::Connect);
    let accepted = listener.accept().unwrap();
    let connects = by(&one(&events, |kind| kind == Kind::Connect));
    let reported = sockets.program(&connects).map(str::to_owned);
    let expected = in_proc(connects.pid);
    drop(accepted);
    process.wait().unwrap();
    (reported, expected)
}

/// The program is reported as /proc has it, and so that it ends in this.
fn is_as_in_proc(script: &str, end: &str) {
    let (reported, expected) = program_of(script);
    assert_eq!(reported.as_deref(), Some(expected.as_str()), "{script}");
    assert!(expected.ends_with(end), "{expected} does not end in {end}: {script}");
}

#[test]
fn a_program_in_a_directory_and_one_behind_a_link() {
    is_as_in_proc("exec bash -c \"$CONNECT\"", "/bin/bash");
    is_as_in_proc("ln -s /bin/bash $1/link; exec $1/link -c \"$CONNECT\"", "/bin/bash");
    is_as_in_proc("cd $1; cp /bin/bash here; exec ./here -c \"$CONNECT\"", "/here");
}

#[test]
fn a_script_is_its_interpreter() {
    is_as_in_proc(
        "cp /bin/bash $1/interpreter; printf '#!%s\neval \"$CONNECT\"\n' $1/interpreter >$1/script; chmod +x $1/script; exec $1/script",
        "/interpreter",
    );
}

#[test]
fn a_path_that_leads_over_mounts() {
    is_as_in_proc(
        "mkdir $1/outer; mount -t tmpfs none $1/outer; mkdir -p $1/outer/a/inner; mount -t tmpfs none $1/outer/a/inner; \
         mkdir $1/outer/a/inner/b; cp /bin/bash $1/outer/a/inner/b/far; exec $1/outer/a/inner/b/far -c \"$CONNECT\"",
        "/outer/a/inner/b/far",
    );
    is_as_in_proc("touch $1/bound; mount --bind /bin/bash $1/bound; exec $1/bound -c \"$CONNECT\"", "/bound");
}

#[test]
fn a_container_has_the_path_within_its_root() {
    is_as_in_proc(
        "mount --make-rprivate /; mount -t tmpfs none $1; \
         for library in $(ldd /bin/bash | grep -o '/[^ ]*'); do mkdir -p $1/${library%/*}; cp $library $1/$library; done; \
         cp /bin/bash $1/contained; cd $1; mount --move . /; exec chroot . /contained -c \"$CONNECT\"",
        "/contained",
    );
}

#[test]
fn a_program_that_is_deleted_has_the_path_that_it_had() {
    is_as_in_proc("cp /bin/bash $1/gone; exec $1/gone -c \"rm $1/gone; $CONNECT\"", "/gone");
    // An upgrade of a package puts another file in its place.
    is_as_in_proc(
        "cp /bin/bash $1/old; cp /bin/bash $1/new; exec $1/old -c \"mv $1/new $1/old; $CONNECT\"",
        "/old",
    );
}

#[test]
fn a_program_that_is_in_no_directory() {
    // memfd_create has no name in perl.
    is_as_in_proc(
        "case $(uname -m) in x86_64) number=319;; *) number=279;; esac; \
         exec perl -e 'open(F, \"+<&=\" . syscall(shift, $name = \"nowhere\", 0)); open(B, \"/bin/bash\"); \
         binmode F; binmode B; local $/; $| = 1; syswrite(F, <B>); $^F = 99; exec \"/proc/self/fd/\" . fileno(F), @ARGV' \
         $number -c \"$CONNECT\"",
        "/memfd:nowhere",
    );
}

#[test]
fn bytes_that_are_not_utf8_are_replaced() {
    is_as_in_proc("cp /bin/bash $1/$'caf\\xe9'; exec $1/$'caf\\xe9' -c \"$CONNECT\"", "/caf\u{fffd}");
}

#[test]
fn of_a_long_path_the_end_is_reported_in_whole_names() {
    for (directory, name) in [("0123456789/".repeat(30), "deep"), (String::new(), &*"n".repeat(255))] {
        let script = format!(
            "mkdir -p $1/long/{directory}x; cp /bin/bash $1/long/{directory}x/{name}; exec $1/long/{directory}x/{name} -c \"$CONNECT\""
        );
        let (reported, expected) = program_of(&script);
        let reported = reported.unwrap();
        let end = reported.strip_prefix("...").unwrap_or_else(|| panic!("{reported} is cut"));
        assert!(end.starts_with('/') && end.len() > 127 && expected.ends_with(end), "{reported}\n{expected}");
    }
}

/// The process behind the only event of this kind.
fn process_of(events: &[Event], kind: Kind) -> Process {
    by(&one(events, |other| other == kind))
}

#[test]
fn after_an_exec_the_other_program_is_reported_or_none() {
    let namespace = Namespace::new("exec");
    let mut sockets = Sockets::watch();
    let listener = listen(&namespace, "127.0.0.1:0");
    let port = listener.local_addr().unwrap().port();
    // One process: bash connects, perl connects, and cat, which makes no socket, ends the second connection.
    let perl = format!(
        "use Socket; $^F = 9; socket(S, PF_INET, SOCK_STREAM, 0); connect(S, sockaddr_in({port}, inet_aton(\"127.0.0.1\"))); \
         open(STDIN, \"<&S\"); close(S); exec \"cat\""
    );
    let script = format!("exec 3<>/dev/tcp/127.0.0.1/{port}; exec 3>&-; exec perl -e '{perl}'");
    let mut process = shell(&namespace, &script, Stdio::null());
    let (first, _) = listener.accept().unwrap();
    let (second, peer) = listener.accept().unwrap();
    drop((first, second));
    process.wait().unwrap();

    let events = sockets.events_with(&namespace, 4, is_close);
    let connects: Vec<Process> = of(&events, |kind| kind == Kind::Connect).iter().map(by).collect();
    let [bash, perl] = connects[..] else { panic!("{connects:?}") };
    assert_eq!((bash.pid, bash.start_boottime_ns), (perl.pid, perl.start_boottime_ns), "one process");
    assert_eq!(sockets.program(&bash), Some(&*real("/bin/bash")));
    assert_eq!(sockets.program(&perl), Some(&*real("/usr/bin/perl")));
    let closes: Vec<Event> = of(&events, is_close).into_iter().filter(|event| event.local == peer).collect();
    let cat = by(&closes[0]);
    assert_eq!((name(&cat.comm), cat.pid), ("cat".to_owned(), perl.pid));
    assert_eq!(sockets.program(&cat), None, "another program than those before");
}

#[test]
fn a_process_that_was_given_its_socket_is_known_when_it_accepts_or_sends() {
    let namespace = Namespace::new("given");
    let mut sockets = Sockets::watch();
    let listener = listen(&namespace, "127.0.0.1:0");
    let given = OwnedFd::from(listener.try_clone().unwrap());
    let mut worker = shell(&namespace, "exec perl -e 'accept(C, STDIN); sysread(C, $x, 1)'", given);
    drop(namespace.enter(|| std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap()));
    worker.wait().unwrap();
    let events = sockets.events_with(&namespace, 2, is_close);
    let accepts = process_of(&events, Kind::Accept);
    assert_eq!((accepts.pid, sockets.program(&accepts)), (worker.id(), Some(&*real("/usr/bin/perl"))));

    for (bound, pack, to) in [
        ("127.0.0.1:0", "sockaddr_in", "inet_aton(\"127.0.0.1\")"),
        ("[::1]:0", "sockaddr_in6", "inet_pton(AF_INET6, \"::1\")"),
    ] {
        let socket = namespace.enter(|| UdpSocket::bind(bound).unwrap());
        let port = socket.local_addr().unwrap().port();
        let script = format!(
            "exec perl -e 'use Socket qw(:DEFAULT sockaddr_in6 inet_pton AF_INET6); open(S, \"+<&=0\"); send(S, \"x\", 0, {pack}({port}, {to}))'"
        );
        let mut sender = shell(&namespace, &script, OwnedFd::from(socket.try_clone().unwrap()));
        socket.set_read_timeout(Some(DEADLINE)).unwrap();
        socket.recv_from(&mut [0; 2]).unwrap();
        sender.wait().unwrap();
        let sent = |events: &[Event]| {
            events.iter().any(|event| event.kind == Kind::Send && event.local.port() == port)
        };
        let events = sockets.events_until(&namespace, sent);
        let sends: Vec<Event> = of(&events, |kind| kind == Kind::Send)
            .into_iter()
            .filter(|event| event.local.port() == port)
            .collect();
        let sends = by(&sends[0]);
        assert_eq!(
            (sends.pid, sockets.program(&sends)),
            (sender.id(), Some(&*real("/usr/bin/perl"))),
            "{bound}"
        );
    }
}

#[test]
fn a_process_that_was_there_before_is_known() {
    let namespace = Namespace::new("before");
    let listener: TcpListener = listen(&namespace, "127.0.0.1:0");
    let server: SocketAddr = listener.local_addr().unwrap();
    let mut process = shell(&namespace, &connecting(server.port()), Stdio::null());
    let (mut accepted, peer) = listener.accept().unwrap();
    let mut sockets = Sockets::watch();
    let before = sockets.open_before(&namespace);
    let open = before.iter().find(|event| event.local == peer).unwrap_or_else(|| panic!("{before:#?}"));
    let holder = by(open);
    assert_eq!(sockets.program(&holder), Some(&*in_proc(process.id())));
    // This process, which has the listener, has the same program in every event.
    let other = before.iter().find(|event| event.local == server).unwrap_or_else(|| panic!("{before:#?}"));
    assert_eq!(sockets.program(&by(other)), Some(&*in_proc(std::process::id())));
    drop(listener);
    accepted.shutdown(std::net::Shutdown::Both).unwrap();
    let _ = accepted.read(&mut [0]);
    process.wait().unwrap();
}

#[test]
fn each_of_many_processes_that_were_there_before_is_known() {
    const COUNT: usize = 400;
    let namespace = Namespace::new("crowd");
    // Four of them have records of 3,232 bytes, so that most of the kernel's buffers, of 32 KiB, end between a program and its socket.
    let script = format!(
        "exec 9<&0; for i in {{1..{COUNT}}}; do \
         (for ((j = 0; j <= i % 4; j++)); do exec {{socket}}<>/dev/udp/127.0.0.1/9; done; echo; read -u 9) & done; wait"
    );
    let mut process = shell(&namespace, &script, Stdio::piped());
    let lines = BufReader::new(process.stdout.take().unwrap()).lines();
    assert_eq!(lines.take(COUNT).filter(Result::is_ok).count(), COUNT);
    let mut sockets = Sockets::watch();
    let holders: Vec<Process> = sockets.open_before(&namespace).iter().map(by).collect();
    assert_eq!(holders.len(), COUNT / 4 * (1 + 2 + 3 + 4));
    let bash = real("/bin/bash");
    let unknown: Vec<&Process> =
        holders.iter().filter(|holder| sockets.program(holder) != Some(&*bash)).collect();
    assert!(unknown.is_empty(), "{} of {}: {unknown:#?}", unknown.len(), holders.len());
    drop(process.stdin.take());
    process.wait().unwrap();
}

#[test]
fn after_an_exec_a_sender_is_reported_again() {
    let namespace = Namespace::new("resend");
    let mut sockets = Sockets::watch();
    for connected in [false, true] {
        let socket = namespace.enter(|| UdpSocket::bind("127.0.0.1:0").unwrap());
        let port = socket.local_addr().unwrap().port();
        let to = if connected {
            socket.connect(socket.local_addr().unwrap()).unwrap();
            String::new()
        } else {
            format!(", sockaddr_in({port}, inet_aton(\"127.0.0.1\"))")
        };
        let script = format!(
            "export SENDS='use Socket; open(S, \"+<&=0\"); for (1..2) {{ send(S, \"x\", 0{to}) or die $!; }} \
             exec($^X, \"-e\", $ENV{{SENDS}}, \"again\") unless @ARGV'; exec perl -e \"$SENDS\""
        );
        let mut sender = shell(&namespace, &script, OwnedFd::from(socket));
        assert!(sender.wait().unwrap().success(), "connected: {connected}");
        let is_send = |event: &Event| event.kind == Kind::Send && event.local.port() == port;
        let released = |event: &Event, cookie| event.kind == Kind::Release && event.cookie == cookie;
        let events = sockets.events_until(&namespace, |events| {
            let send = events.iter().find(|event| is_send(event));
            send.is_some_and(|send| events.iter().any(|event| released(event, send.cookie)))
        });
        let senders: Vec<Process> = events.iter().filter(|event| is_send(event)).map(by).collect();
        let [first, again] = senders[..] else { panic!("connected: {connected}: {senders:#?}") };
        assert_eq!((first.pid, again.pid), (sender.id(), sender.id()));
        assert_ne!(first.execs, again.execs, "connected: {connected}");
    }
}

#[test]
fn a_program_is_reported_once_for_many_sockets_and_for_each_process_that_was_forked() {
    const COUNT: usize = 200;
    let namespace = Namespace::new("many");
    let mut sockets = Sockets::watch();
    let script = format!(
        "for i in {{1..{COUNT}}}; do exec 3<>/dev/udp/127.0.0.1/9; done; echo x; (exec 3<>/dev/tcp/127.0.0.1/9) 2>/dev/null; true"
    );
    let mut process = shell(&namespace, &script, Stdio::null());
    process.wait().unwrap();
    let events = sockets.events_with(&namespace, 1, |kind| matches!(kind, Kind::ConnectFailed { .. }));
    let failed = of(&events, |kind| matches!(kind, Kind::ConnectFailed { .. }));
    let child = by(&failed[0]);
    assert_ne!(child.pid, process.id());
    assert_eq!(sockets.program(&child), Some(&*real("/bin/bash")));
    // Once a minute, to be exact.
    let reported = sockets.programs_reported(process.id());
    assert!((1..COUNT / 10).contains(&reported), "{reported}");
}
